"""model.py: the learner, the heads, the connections and the losses, each against what it must equal or do."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Normal, kl_divergence

from cox_oom import model
from cox_oom.model import (
    Connection,
    Head,
    Learner,
    connection_loss,
    entropy,
    fit_head,
    info_nce,
    kl_literal,
    kl_matched,
    map_items,
    match_shares,
    matched_target,
    move_head,
    slice_steps,
    train_connection,
)

SMALL = dict(width=32, depth=2, patch=4)
SHAPES = {"image": (3, 8, 8), "video": (3, 4, 8, 8), "series": (2, 40), "text": (20,)}
ODD = {"image": (1, 7, 10), "video": (3, 3, 9, 6), "series": (5, 37), "text": (1,)}


def item(kind, shape, n=3):
    return torch.randint(1, 256, (n, *shape), dtype=torch.uint8) if kind == "text" else torch.randn(n, *shape)


# ---------------------------------------------------------------------------------------------------- learner


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("shapes", [SHAPES, ODD], ids=["whole patches", "odd sizes"])
def test_learner_gives_one_finite_row_per_item(kind, shapes):
    learner = Learner(kind=kind, shape=shapes[kind], **SMALL).eval()
    x = item(kind, shapes[kind], 4)
    x[3] = x[1]
    z = learner(x)
    assert z.shape == (4, 32) and z.dtype == torch.float32 and z.isfinite().all()
    torch.testing.assert_close(z[1], z[3])
    assert (z[0] - z[1]).abs().max() > 1e-3
    torch.testing.assert_close(learner(x[1:2]), z[1:2])  # items do not see each other


@pytest.mark.parametrize("kind", SHAPES)
def test_every_part_of_an_item_is_seen(kind):
    """The last row, frame, step or byte of an odd size lies in a patch that is padded, not cut off."""
    learner = Learner(kind=kind, shape=ODD[kind] if kind != "text" else (20,), **SMALL).eval()
    x = item(kind, ODD[kind] if kind != "text" else (20,), 1)
    y = x.clone()
    y[(0,) + (-1,) * (x.dim() - 1)] = 1 if kind == "text" and x[0, -1] != 1 else 2 if kind == "text" else 9.0
    assert (learner(x) - learner(y)).abs().max() > 1e-4


def test_patches_larger_than_the_image_are_the_whole_image():
    learner = Learner(kind="image", shape=(1, 5, 9), width=16, depth=1, patch=16)
    assert learner.position.shape[1] == 1 and learner(torch.randn(2, 1, 5, 9)).shape == (2, 16)


def test_learner_position_matters():
    learner = Learner(kind="image", shape=(1, 8, 8), **SMALL).eval()
    x = torch.randn(1, 1, 8, 8)
    assert (learner(x) - learner(x.roll(4, -1))).abs().max() > 1e-4


@pytest.mark.parametrize("kind", SHAPES)
def test_gradient_reaches_every_parameter(kind):
    learner = Learner(kind=kind, shape=SHAPES[kind], **SMALL)
    lengths = torch.tensor([5, 40, 20]).clamp(max=SHAPES[kind][-1]) if kind in ("series", "text") else None
    (learner(item(kind, SHAPES[kind]), lengths) * torch.randn(3, 32)).sum().backward()
    for name, p in learner.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


@pytest.mark.parametrize("kind, shape", [("series", (2, 40)), ("text", (24,))])
def test_what_lies_beyond_the_length_does_not_matter(kind, shape):
    learner = Learner(kind=kind, shape=shape, width=32, depth=2, slice=4).eval()
    x, lengths = item(kind, shape), torch.tensor([4, 12, shape[-1]])
    z = learner(x, lengths)
    y = x.clone()
    y[0, ..., 4:], y[1, ..., 12:] = (7, 7) if kind == "text" else (1e3, -1e3)
    torch.testing.assert_close(learner(y, lengths), z)
    y[1, ..., 11] = 7 if x[1, ..., 11].ne(7).all() else 8  # the last valid step does
    assert (learner(y, lengths)[1] - z[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind, shape, longer", [("series", (2, 20), (2, 33)), ("text", (12,), (31,))])
def test_longer_padding_gives_the_same_features(kind, shape, longer):
    """A data set whose longest item is longer: the same weights give the same items the same features."""
    short = Learner(kind=kind, shape=shape, width=32, depth=2, slice=4).eval()
    long = Learner(kind=kind, shape=longer, width=32, depth=2, slice=4).eval()
    state = {**short.state_dict()}
    state["position"] = long.state_dict()["position"].clone()
    state["position"][:, : short.position.shape[1]] = short.position
    long.load_state_dict(state)
    lengths = torch.tensor([3, 9, shape[-1]])
    x = item(kind, shape)
    x = x * (torch.arange(shape[-1]) < lengths[:, None]).view(3, *(1,) * (x.dim() - 2), -1)
    padded = F.pad(x, (0, longer[-1] - shape[-1]))
    torch.testing.assert_close(long(padded, lengths), short(x, lengths), atol=1e-5, rtol=1e-4)
    assert (long(padded) - long(padded, lengths)).abs().max() > 1e-4  # it is the lengths that do it


@pytest.mark.parametrize("kind", ["series", "text"])
def test_full_lengths_are_no_lengths(kind):
    learner = Learner(kind=kind, shape=SHAPES[kind], **SMALL).eval()
    x = item(kind, SHAPES[kind])
    torch.testing.assert_close(learner(x, torch.full((3,), SHAPES[kind][-1])), learner(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["series", "text"])
def test_length_zero_gives_finite_features(kind):
    learner = Learner(kind=kind, shape=SHAPES[kind], **SMALL)
    x = item(kind, SHAPES[kind]) * torch.tensor([0, 1, 1], dtype=torch.uint8).view(3, *(1,) * len(SHAPES[kind]))
    z = learner(x, torch.tensor([0, 3, 7]))
    z.sum().backward()
    assert z.isfinite().all() and all(p.grad.isfinite().all() for p in learner.parameters())


def test_default_learner_is_vit_t_16():
    learner = Learner(kind="image", shape=(3, 224, 224))
    assert learner.position.shape == (1, 196, 192) and len(learner.blocks) == 12
    assert learner.blocks[0].attention.heads == 3
    encoder = 12 * (4 * 192 * 192 + 4 * 192 + 2 * 192 * 768 + 768 + 192 + 4 * 192) + 2 * 192  # weights and biases
    ends = 3 * 16 * 16 * 192 + 192 + 196 * 192  # patches, positions
    assert sum(p.numel() for p in learner.parameters()) == encoder + ends
    assert encoder + ends == pytest.approx(5.5e6, rel=0.02)  # DeiT's 5.7 M has the 1000-way head


def test_learner_refuses_an_unknown_kind():
    with pytest.raises(ValueError, match="smell"):
        Learner(kind="smell", shape=(3,))


def test_slice_steps():
    for steps in [1, 2, 31, 32, 33, 64, 65, 512, 1000]:
        s = slice_steps(steps)
        assert math.ceil(steps / s) <= 32 and (s == 1 or math.ceil(steps / (s - 1)) > 32), (
            steps
        )  # the shortest that fits
    assert slice_steps(100, tokens=10) == 10 and slice_steps(0) == 1


@pytest.mark.parametrize("width, heads", [(192, 3), (64, 2), (128, 2), (200, 2), (250, 2), (33, 1), (1, 1), (400, 5)])
def test_every_width_has_attention_heads_that_divide_it(width, heads):
    learner = Learner(kind="series", shape=(2, 8), width=width, depth=1)
    assert learner.blocks[0].attention.heads == heads
    assert learner(torch.randn(3, 2, 8)).shape == (3, width)


# ------------------------------------------------------------------------------------------------------ heads


def blobs(n, d, classes, spread, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, d))
    y = rng.integers(classes, size=n)
    z = (centres[y] + spread * rng.standard_normal((n, d))) * scale
    return torch.tensor(z, dtype=torch.float32), torch.tensor(y)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])
@pytest.mark.parametrize("spread", [0.5, 1.5])
def test_fit_head_is_as_good_as_logistic_regression(scale, spread):
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    z, y = blobs(600, 10, 5, spread, 1, scale)
    zt, yt = blobs(2000, 10, 5, spread, 2, scale)
    head = fit_head(z, y, 5)
    scaler = StandardScaler().fit(z)
    best = LogisticRegression(max_iter=2000).fit(scaler.transform(z), y).score(scaler.transform(zt), yt)
    mine = (head(zt).argmax(1) == yt).float().mean().item()
    assert mine >= best - 0.01, (mine, best)
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize("constant", [0.0, 1.0, 5.3, -1e4])
def test_fit_head_with_constant_features(constant):
    z, y = blobs(600, 10, 5, 0.5, 1)
    zt, yt = blobs(2000, 10, 5, 0.5, 2)
    plain = (fit_head(z, y, 5)(zt).argmax(1) == yt).float().mean()

    def with_constant(t):
        return torch.cat([t, torch.full((len(t), 2), constant)], 1)

    head = fit_head(with_constant(z), y, 5)
    assert all(t.isfinite().all() for t in head.state_dict().values())
    assert (head(with_constant(zt)).argmax(1) == yt).float().mean() >= plain - 0.01


@pytest.mark.parametrize("constant", [0.0, 1.0, 5.3])
def test_a_feature_that_was_constant_decides_nothing_later(constant):
    """A dimension that no training item moves says nothing, whatever a later item has there."""
    z, y = blobs(600, 10, 5, 0.5, 1)
    zt, yt = blobs(2000, 10, 5, 0.5, 2)
    head = fit_head(torch.cat([z, torch.full((600, 1), constant)], 1), y, 5)
    later = torch.cat([zt, constant + 0.1 * torch.randn(2000, 1)], 1)
    assert (head(later).argmax(1) == yt).float().mean() >= (fit_head(z, y, 5)(zt).argmax(1) == yt).float().mean() - 0.01


def test_a_connection_does_not_blow_up_a_constant_dimension():
    bank = torch.cat([torch.randn(600, 7), torch.full((600, 1), 5.3)], 1)
    c = Connection(d_im=8, d=4)
    c.standardise(bank)
    assert c.std[7] == 1 and torch.allclose(c.std[:7], bank[:, :7].std(0, correction=0))


def test_small_features_are_standardised_all_the_same():
    z, y = blobs(600, 10, 5, 0.5, 1)
    scale = torch.logspace(-6, 3, 10)
    assert (fit_head(z * scale, y, 5)(z * scale).argmax(1) == fit_head(z, y, 5)(z).argmax(1)).float().mean() > 0.99


def test_fit_head_on_identical_items_gives_the_prior():
    for z in (torch.zeros(40, 3), torch.full((40, 3), 0.1)):
        y = torch.tensor([0] * 30 + [1] * 10)
        p = fit_head(z, y, 2)(z[:1]).softmax(-1)[0]
        torch.testing.assert_close(p, torch.tensor([0.75, 0.25]), atol=0.05, rtol=0)


def test_fit_head_item_weights():
    """Weight 0 is as if the item were not there; a class without items gets no probability to speak of."""
    z, y = blobs(400, 6, 3, 0.4)
    wrong = torch.arange(400) % 2 == 0
    noisy = torch.where(wrong, (y + 1) % 3, y)

    def accuracy(h):
        return (h(z).argmax(1) == y).float().mean()

    assert accuracy(fit_head(z, noisy, 3, weight=(~wrong).float())) > 0.97
    assert accuracy(fit_head(z, noisy, 3)) < 0.9
    assert fit_head(z, y, 4)(z).softmax(-1)[:, 3].max() < 0.1


def test_fit_head_on_random_batches():
    z, y = blobs(600, 10, 5, 0.5, 1)
    zt, yt = blobs(2000, 10, 5, 0.5, 2)

    def g():
        return torch.Generator().manual_seed(3)

    one, two = (fit_head(z, y, 5, batch=128, generator=g()) for _ in range(2))
    assert torch.equal(one.linear.weight, two.linear.weight)
    assert (
        (one(zt).argmax(1) == yt).float().mean() - (fit_head(z, y, 5)(zt).argmax(1) == yt).float().mean()
    ).abs() < 0.02


def test_head_standardises():
    head = Head(2, 3)
    head.mean.copy_(torch.tensor([1.0, -2.0])), head.std.copy_(torch.tensor([2.0, 4.0]))
    z = torch.randn(5, 2)
    torch.testing.assert_close(head(z), head.linear((z - torch.tensor([1.0, -2.0])) / torch.tensor([2.0, 4.0])))
    assert {"mean", "std"} <= head.state_dict().keys()  # saved with the weights


# ------------------------------------------------------------------------------------------------ connections


def linear_world(n=400, d_im=8, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    z_im = torch.randn(n, d_im, generator=g)
    return z_im, z_im @ torch.randn(d_im, d, generator=torch.Generator().manual_seed(50)) / math.sqrt(d_im)


def connection(z_im, d, **sizes):
    c = Connection(d_im=z_im.shape[1], d=d, **sizes)
    c.standardise(z_im)
    return c


@pytest.mark.parametrize("w_ce", [0.0, 1.0])
def test_connection_loss_does_not_move_the_learner(w_ce):
    learner = Learner(kind="series", shape=(2, 16), **SMALL)
    head, c = torch.nn.Linear(32, 3), Connection(d_im=8, d=32)
    connection_loss(
        c, torch.randn(5, 8), learner(torch.randn(5, 2, 16)), torch.tensor([0, 1, 2, 0, 1]), head, w_ce=w_ce
    ).backward()
    assert all(p.grad is None for p in learner.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in c.parameters())


def test_training_a_connection_moves_nothing_else():
    z_im, z = linear_world()
    head = torch.nn.Linear(6, 3)
    before = [p.clone() for p in head.parameters()]
    c = connection(z_im, 6)
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    train_connection(c, optimizer, z_im, z[None], torch.zeros(400, dtype=torch.long), head, steps=3, w_ce=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters()))


def test_connection_samples_in_training_alone():
    z_im, _ = linear_world()
    c = connection(z_im, 6, dropout=0.0)
    c.eval()
    assert torch.equal(c(z_im)[0], c(z_im)[0])
    mapped, mean, logvar = c(z_im)
    torch.testing.assert_close(mapped, c.decode(mean))
    c.train()
    first, mean_again, _ = c(z_im)
    torch.testing.assert_close(mean_again, mean)
    assert (first - c(z_im)[0]).abs().mean() > 1e-3 and mean.shape == logvar.shape == (400, 64)


def test_what_is_sampled_has_the_mean_and_deviation_it_says():
    c = Connection(d_im=3, d=5, latent=4, dropout=0.0).train()
    c.decode = torch.nn.Identity()
    v, mean, logvar = c(torch.randn(1, 3).expand(20000, 3))
    torch.testing.assert_close(v.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(v.std(0), (0.5 * logvar[0]).exp(), atol=0.05, rtol=0)


def test_standardise_makes_the_scale_of_a_bank_irrelevant():
    z_im, _ = linear_world()
    a = connection(z_im, 6).eval()
    b = Connection(d_im=8, d=6).eval()
    b.load_state_dict(a.state_dict())
    b.standardise(100 * z_im + 7)
    torch.testing.assert_close(a(z_im)[0], b(100 * z_im + 7)[0], atol=1e-3, rtol=1e-3)


def test_connection_learns_a_linear_map_from_pairs():
    (z_im, z), (held_im, held) = linear_world(), linear_world(seed=1)
    c = connection(z_im, 6)

    def error():
        return F.mse_loss(map_items(c, held_im), held).item()

    before = error()
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    views = torch.stack([z, z + 0.05 * torch.randn(z.shape)])
    last = train_connection(c, optimizer, z_im, views, torch.zeros(400), None, steps=300, beta=1e-4)
    assert math.isfinite(last)
    assert error() < 0.1 * before and error() < 0.1 * held.var()


def test_train_connection_pairs_the_same_rows():
    """Were rows of z_im and z drawn apart, the best map would be the mean."""
    z_im, z = linear_world()
    c = connection(z_im, 6)
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    train_connection(c, optimizer, z_im, z[torch.randperm(400)][None], torch.zeros(400), None, steps=300)
    assert F.mse_loss(map_items(c, linear_world(seed=1)[0]), linear_world(seed=1)[1]) > 0.5 * z.var()


def test_a_single_pair_can_be_trained_on():
    z_im, z = linear_world()
    c = connection(z_im, 6)
    last = train_connection(
        c, torch.optim.Adam(c.parameters(), lr=1e-3), z_im[:1], z[None, :1], torch.zeros(1), None, steps=200
    )
    assert math.isfinite(last) and F.mse_loss(map_items(c, z_im[:1]), z[:1]) < 0.2 * z[:1].square().mean()


def test_ce_on_the_reconstruction_is_felt():
    z_im, z = linear_world()
    y, head = (z[:, 0] > 0).long(), torch.nn.Linear(6, 2)
    c = connection(z_im, 6).eval()
    mapped = c(z_im)[0]
    plain = connection_loss(c, z_im, z, y, head, beta=0.0)
    with_ce = connection_loss(c, z_im, z, y, head, beta=0.0, w_ce=0.7)
    torch.testing.assert_close(plain, (mapped - z).square().mean())
    torch.testing.assert_close(with_ce - plain, 0.7 * F.cross_entropy(head(mapped), y), atol=1e-5, rtol=1e-4)


def test_beta_weighs_the_kl_to_the_standard_normal():
    z_im, z = linear_world(50)
    c = connection(z_im, 6).eval()
    with torch.no_grad():
        c.encode[-1].weight.mul_(5)  # means and variances worth the name
    _, mean, logvar = c(z_im)
    assert logvar.abs().max() < 8
    kl = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1).mean()
    difference = connection_loss(c, z_im, z, beta=0.3) - connection_loss(c, z_im, z, beta=0.0)
    torch.testing.assert_close(difference, 0.3 * kl, atol=1e-4, rtol=1e-4)


def test_map_items_in_batches_is_the_same_and_deterministic():
    z_im, _ = linear_world()
    c = connection(z_im, 6).train()
    whole = map_items(c, z_im)
    torch.testing.assert_close(map_items(c, z_im, batch=7), whole)
    assert whole.shape == (400, 6) and not whole.requires_grad


# ----------------------------------------------------------------------------------------------------- losses


def posterior_logp(n, c, seed=0):
    return (2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)


def test_kl_literal_is_the_mean_over_all_pairs():
    d, a = posterior_logp(7, 4), posterior_logp(5, 4, 1)
    logits = d + 3.0  # logits are known up to a constant
    loops = [kl_divergence(Categorical(logits=x), Categorical(logits=y)) for x in d for y in a]
    torch.testing.assert_close(kl_literal(logits, a.mean(0)), torch.stack(loops).mean())


def test_kl_literal_with_one_anchor_is_kl_matched():
    d, a = posterior_logp(7, 4), posterior_logp(1, 4, 1)
    torch.testing.assert_close(kl_literal(d, a[0]), kl_matched(d, a.exp().expand(7, 4)))


def test_kl_matched_is_the_mean_kl_to_each_target():
    d, target = posterior_logp(7, 4), posterior_logp(7, 4, 1).exp()
    loop = [kl_divergence(Categorical(logits=x), Categorical(probs=t)) for x, t in zip(d, target)]
    torch.testing.assert_close(kl_matched(d - 1.0, target), torch.stack(loop).mean())
    assert kl_matched(target.log(), target).abs() < 1e-12
    assert kl_matched(d, F.one_hot(d.argmax(1), 4).double()).isfinite()  # a target of zeros and ones


def class_posteriors(c, seed=5):
    return torch.rand(c, c, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def matched_by_loop(heads, rows, smooth):
    k, b, c = heads.shape
    out = torch.zeros(b, c)
    for i in range(b):
        named = {int(heads[m, i].argmax()) for m in range(k)}
        weights = {n: float(heads[:, i, n].mean()) for n in named if not rows[n].isnan().any()}
        t = sum(w * rows[n] for n, w in weights.items()) / sum(weights.values()) if weights else heads[:, i].mean(0)
        out[i] = (1 - smooth) * t + smooth / c
    return out


@pytest.mark.parametrize("k", [1, 2, 4])
def test_matched_target_against_a_loop(k):
    heads = (2 * torch.randn(k, 30, 5)).softmax(-1)
    rows = class_posteriors(5)
    rows[1], rows[4] = float("nan"), float("nan")  # classes without anchors
    target = matched_target(heads, rows)
    torch.testing.assert_close(target, matched_by_loop(heads, rows, 0.01), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(target.sum(-1), torch.ones(30))
    assert (target >= 0.01 / 5 - 1e-6).all()


def test_matched_target_of_certain_heads_is_their_class_posterior():
    rows = class_posteriors(4)
    heads = F.one_hot(torch.tensor([[0, 3, 2]] * 3), 4).float()  # (3 heads, 3 items, 4)
    torch.testing.assert_close(matched_target(heads, rows, smooth=0.0), rows[[0, 3, 2]])


def test_matched_target_of_two_certain_heads_is_the_middle():
    rows = class_posteriors(4)
    heads = F.one_hot(torch.tensor([[0], [3]]), 4).float()
    torch.testing.assert_close(matched_target(heads, rows, smooth=0.0), rows[[0, 3]].mean(0, keepdim=True))


def test_matched_target_without_any_anchor_is_the_heads_mean():
    heads = torch.randn(2, 6, 3).softmax(-1)
    target = matched_target(heads, torch.full((3, 3), float("nan")), smooth=0.0)
    torch.testing.assert_close(target, heads.mean(0))
    assert target.isfinite().all()


def test_the_kl_moves_the_learner_alone():
    logits = torch.randn(6, 3, requires_grad=True)
    heads, rows = torch.randn(2, 6, 3).softmax(-1), class_posteriors(3)
    kl_matched(logits, matched_target(heads, rows)).backward()
    assert logits.grad.abs().max() > 1e-3 and not heads.requires_grad and not rows.requires_grad
    start, goal = torch.randn(6, 3), matched_target(heads, rows)
    p = start.clone().requires_grad_()
    opt = torch.optim.SGD([p], lr=2.0)
    for _ in range(500):
        opt.zero_grad()
        kl_matched(p, goal).backward()
        opt.step()
    torch.testing.assert_close(p.detach().softmax(-1), goal, atol=0.02, rtol=0)


def test_entropy():
    logp = posterior_logp(9, 5)
    torch.testing.assert_close(entropy(logp + 2), Categorical(logits=logp).entropy().mean())
    torch.testing.assert_close(entropy(torch.zeros(3, 7)), torch.tensor(math.log(7)))
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])) == 0  # certain: 0, not NaN


def test_info_nce_against_a_loop():
    a, b = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    total = 0.0
    for i in range(6):
        for x, y in ((a, b), (b, a)):
            scores = [math.exp(10 * float(x[i] @ y[j])) for j in range(6)]
            total -= math.log(scores[i] / sum(scores)) / 12
    assert info_nce(a, b, 10.0).item() == pytest.approx(total, rel=1e-9)
    assert info_nce(a, a, 100.0) < info_nce(a, b, 100.0)


def test_match_shares_holds_a_head_to_the_class_frequencies():
    logits = 3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, -2, 0])
    for shares in (torch.full((5,), 0.2), torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])):
        bias = match_shares(logits, shares, rounds=50)
        torch.testing.assert_close((logits + bias).softmax(-1).mean(0), shares, atol=1e-3, rtol=0)
        assert abs(bias.mean()) < 1e-5
    few = match_shares(logits, torch.full((5,), 0.2))  # the default rounds come close
    torch.testing.assert_close((logits + few).softmax(-1).mean(0), torch.full((5,), 0.2), atol=0.02, rtol=0)


def test_match_shares_with_a_class_that_does_not_occur():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    bias = match_shares(logits, torch.tensor([0.5, 0.5, 0.0]))
    assert bias.isfinite().all() and ((logits + bias).argmax(1) != 2).all()


def test_a_moved_head_averages_the_logits():
    g = torch.Generator().manual_seed(0)
    z, y = 3 * torch.randn(60, 8, generator=g) + 1, torch.randint(4, (60,), generator=g)
    linear, head = torch.nn.Linear(8, 4), fit_head(z, y, 4)
    before, other = linear(z).detach(), head(z)
    move_head(linear, head, 0.25)
    torch.testing.assert_close(linear(z).detach(), 0.75 * before + 0.25 * other, atol=1e-4, rtol=1e-4)
    move_head(linear, head, 1.0)
    torch.testing.assert_close(linear(z).detach(), other, atol=1e-4, rtol=1e-4)


def test_a_head_fitted_to_posteriors_is_the_optimum_of_their_cross_entropy():
    g = torch.Generator().manual_seed(1)
    z, p = torch.randn(200, 6, generator=g), torch.randn(200, 3, generator=g).mul(2).softmax(-1)
    hard = p.argmax(-1)
    torch.testing.assert_close(
        fit_head(z, hard, 3)(z), fit_head(z, F.one_hot(hard, 3).float(), 3)(z), atol=1e-3, rtol=1e-3
    )
    head = fit_head(z, p, 3, weight_decay=0.0, steps=500)
    residual = (head(z).softmax(-1) - p).double()  # its gradient is 0 at the optimum
    x = ((z - head.mean) / head.std).double()
    assert (residual.T @ x / 200).abs().max() < 1e-3 and residual.mean(0).abs().max() < 1e-3


def test_a_warm_connection_leaves_what_it_was_read_from_alone():
    """One connect.pt serves every method of a seed: what one trains on must not be the next one's start."""
    z_im = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    first = model.Connection(d_im=5, d=8)
    optimizer = torch.optim.Adam(first.parameters())
    first.standardise(z_im)

    def arguments():
        return (
            z_im,
            torch.randn(1, 20, 8, generator=torch.Generator().manual_seed(1)),
            torch.zeros(20, dtype=torch.long),
            torch.nn.Linear(8, 2).requires_grad_(False),
        )

    keywords = dict(steps=3, beta=1e-4, w_ce=0.0)
    model.train_connection(first, optimizer, *arguments(), generator=torch.Generator().manual_seed(2), **keywords)
    connect = {
        "arch": {"width": 8},
        "connections": {"rgb": first.state_dict()},
        "optimizers": {"rgb": optimizer.state_dict()},
    }
    mapped = []
    for _ in range(2):
        torch.manual_seed(3)
        connection, going_on = model.warm_connection(connect, "rgb", z_im, lr=1e-3, weight_decay=0.0)
        model.train_connection(
            connection, going_on, *arguments(), generator=torch.Generator().manual_seed(2), **keywords
        )
        mapped.append(model.map_items(connection, z_im))
    assert torch.equal(*mapped) and connect["optimizers"]["rgb"]["state"][0]["step"] == 3
