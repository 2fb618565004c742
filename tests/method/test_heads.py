"""Heads: fitted as well as logistic regression, whatever the scale; moved, and held to class frequencies."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cox_oom.heads import Head, fit_head, match_shares, move_head


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


def test_small_features_are_standardised_all_the_same():
    z, y = blobs(600, 10, 5, 0.5, 1)
    scale = torch.logspace(-6, 3, 10)
    assert (fit_head(z * scale, y, 5)(z * scale).argmax(1) == fit_head(z, y, 5)(z).argmax(1)).float().mean() > 0.99


def test_fit_head_on_identical_items_gives_the_prior():
    for z in (torch.zeros(40, 3), torch.full((40, 3), 0.1)):
        y = torch.tensor([0] * 30 + [1] * 10)
        p = fit_head(z, y, 2)(z[:1]).softmax(-1)[0]
        torch.testing.assert_close(p, torch.tensor([0.75, 0.25]), atol=0.05, rtol=0)


def test_a_class_without_items_gets_no_probability_to_speak_of():
    z, y = blobs(400, 6, 3, 0.4)
    assert fit_head(z, y, 4)(z).softmax(-1)[:, 3].max() < 0.1


def test_a_folded_head_computes_the_same_of_plain_features():
    z, y = blobs(300, 6, 3, 0.4)
    head = fit_head(z * 7 + 3, y, 3)
    weight, bias = head.folded()
    torch.testing.assert_close((z * 7 + 3) @ weight.T + bias, head(z * 7 + 3), atol=1e-4, rtol=1e-4)


def test_fit_head_on_random_batches():
    z, y = blobs(600, 10, 5, 0.5, 1)
    zt, yt = blobs(2000, 10, 5, 0.5, 2)

    def g():
        return torch.Generator().manual_seed(3)

    one, two = (fit_head(z, y, 5, whole=0, batch=128, generator=g()) for _ in range(2))
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


def test_a_moved_head_averages_the_logits():
    g = torch.Generator().manual_seed(0)
    z, y = 3 * torch.randn(60, 8, generator=g) + 1, torch.randint(4, (60,), generator=g)
    linear, head = torch.nn.Linear(8, 4), fit_head(z, y, 4)
    before, other = linear(z).detach(), head(z)
    move_head(linear, head, 0.25)
    torch.testing.assert_close(linear(z).detach(), 0.75 * before + 0.25 * other, atol=1e-4, rtol=1e-4)
    move_head(linear, head, 1.0)
    torch.testing.assert_close(linear(z).detach(), other, atol=1e-4, rtol=1e-4)


def test_match_shares_holds_a_head_to_the_class_frequencies():
    logits = 3 * torch.randn(500, 5, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0, 0, -2, 0])
    for shares in (torch.full((5,), 0.2), torch.tensor([0.5, 0.2, 0.1, 0.1, 0.1])):
        bias = match_shares(logits, shares, rounds=50)
        torch.testing.assert_close((logits + bias).softmax(-1).mean(0), shares, atol=1e-3, rtol=0)
        assert abs(bias.mean()) < 1e-5
    few = match_shares(logits, torch.full((5,), 0.2))  # the default rounds come close
    torch.testing.assert_close((logits + few).softmax(-1).mean(0), torch.full((5,), 0.2), atol=0.02, rtol=0)


def test_match_shares_holds_a_part_and_leaves_the_rest_as_it_is():
    """Class frequencies of few items hold for few; the others keep what the head says. What is never stays so."""
    logits = 2 * torch.randn(400, 4, generator=torch.Generator().manual_seed(2))
    shares, own = torch.tensor([0.6, 0.2, 0.2, 0.0]), logits.softmax(-1).mean(0)
    own = own * torch.tensor([1, 1, 1, 0]) / own[:3].sum()
    for coverage in (0.0, 0.25, 1.0):
        mean = (logits + match_shares(logits, shares, coverage, rounds=100)).softmax(-1).mean(0)
        torch.testing.assert_close(mean, coverage * shares + (1 - coverage) * own, atol=2e-3, rtol=0)
    other = (logits + match_shares(logits, shares, 0.5, torch.tensor([0.0, 0.5, 1, 0]), rounds=100)).softmax(-1).mean(0)
    own = (logits + torch.tensor([0.0, 0.5, 1, 0])).softmax(-1).mean(0) * torch.tensor([1, 1, 1, 0])
    torch.testing.assert_close(other, (shares + own / own.sum()) / 2, atol=2e-3, rtol=0)


def test_match_shares_with_a_class_that_does_not_occur():
    logits = torch.randn(50, 3, generator=torch.Generator().manual_seed(1))
    bias = match_shares(logits, torch.tensor([0.5, 0.5, 0.0]))
    assert bias.isfinite().all() and ((logits + bias).argmax(1) != 2).all()
