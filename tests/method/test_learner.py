"""The learner: every kind of item, its padding and its lengths; sizes of patches, slices and heads of attention."""

import math

import pytest
import torch
import torch.nn.functional as F

from cox_oom.learner import Learner, load_learner, new_learner, slice_steps
from cox_oom.readings import standardise, view

SMALL = dict(width=32, depth=2, patch=4)


SHAPES = {"image": (3, 8, 8), "video": (3, 4, 8, 8), "series": (2, 40), "text": (20,)}


ODD = {"image": (1, 7, 10), "video": (3, 3, 9, 6), "series": (5, 37), "text": (1,)}


def item(kind, shape, n=3):
    return torch.randint(1, 256, (n, *shape), dtype=torch.uint8) if kind == "text" else torch.randn(n, *shape)


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


def test_bytes_start_as_torchs_own_embedding_and_padding_stays_zero():
    torch.manual_seed(3)
    learner = Learner(kind="text", shape=(20,), **SMALL)
    torch.manual_seed(3)
    own = torch.nn.Embedding(256, learner.embed.embedding_dim, padding_idx=0)
    assert torch.equal(learner.embed.weight, own.weight)
    learner(torch.zeros(2, 20, dtype=torch.uint8)).square().sum().backward()
    assert not learner.embed.weight.grad[0].any()


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
        assert math.ceil(steps / s) <= 32, steps
        assert s == 1 or math.ceil(steps / (s - 1)) > 32, steps  # the shortest that fits
    assert slice_steps(100, tokens=10) == 10 and slice_steps(0) == 1


@pytest.mark.parametrize("width, heads", [(192, 3), (64, 2), (128, 2), (200, 2), (250, 2), (33, 1), (1, 1), (400, 5)])
def test_every_width_has_attention_heads_that_divide_it(width, heads):
    learner = Learner(kind="series", shape=(2, 8), width=width, depth=1)
    assert learner.blocks[0].attention.heads == heads
    assert learner(torch.randn(3, 2, 8)).shape == (3, width)


LOOKS = {
    "bands": ("series", (2, 40), ["spectrum"]),
    "bands and statistics": ("series", (2, 40), ["spectrum", "statistics"]),
    "spectrum of images": ("image", (3, 8, 8), ["spectrum"]),
    "spectrum of clips": ("video", (3, 4, 8, 8), ["spectrum"]),
}


@pytest.mark.parametrize("look", LOOKS)
def test_views_are_tokens_in_place_of_the_values(look):
    kind, shape, views = LOOKS[look]
    learner = Learner(kind=kind, shape=shape, **SMALL, views=views)
    assert learner.tokens == len(views)
    x = item(kind, shape)
    learner(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learner.parameters())
    learner.eval()
    assert (learner(x) - learner(x + torch.randn(x.shape))).abs().max() > 1e-4
    torch.testing.assert_close(learner(x[1:2]), learner(x)[1:2])
    moved = learner(x.roll(5, -1)) - learner(x)  # around: the order in time is lost to bands alone
    assert (moved.abs().max() < 1e-4) == (views == ["spectrum"])


@pytest.mark.parametrize("views", [["spectrum"], ["spectrum", "statistics"], ["statistics"]])
def test_views_do_not_see_the_padding(views):
    learner = Learner(kind="series", shape=(2, 40), **SMALL, views=views).eval()
    x, lengths = torch.randn(3, 2, 40), torch.tensor([40, 17, 1])
    x = x * (torch.arange(40) < lengths[:, None])[:, None]
    alone = torch.cat([learner(x[i : i + 1], lengths[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(learner(x, lengths), alone)
    assert learner(x, lengths).isfinite().all()


def test_a_view_token_has_the_scale_of_the_training_items():
    """A loud sensor and a quiet one give a token of the same size."""
    learner = Learner(kind="series", shape=(1, 24), **SMALL, views=["statistics"])
    for loud in (1e-2, 1.0, 50.0):
        x = loud * torch.randn(200, 1, 24) * torch.linspace(0.5, 2, 200)[:, None, None]
        file = {"kind": "series", "x": x, "lengths": None, "mean": torch.zeros(1, 1), "std": torch.ones(1, 1)}
        standardise(learner, file, torch.arange(200))
        token, seen = learner.view_tokens["statistics"], view("statistics", file, torch.arange(200), 24)
        changes = seen.std(0, correction=0) > 1e-5  # the length does not
        seen = (seen - token.mean) / token.scale
        torch.testing.assert_close(seen.mean(0)[changes], torch.zeros(int(changes.sum())), atol=1e-4, rtol=0)
        torch.testing.assert_close(
            seen.std(0, correction=0)[changes], torch.ones(int(changes.sum())), atol=1e-3, rtol=0
        )
        assert seen.isfinite().all()


@pytest.mark.parametrize(
    "kind, view", [("series", "smell"), ("series", "plain"), ("image", "statistics"), ("text", "grams")]
)
def test_a_view_that_a_learner_cannot_look_at(kind, view):
    with pytest.raises(ValueError, match=f"'{view}'.* of {kind}: there are"):
        Learner(kind=kind, shape=SHAPES[kind], **SMALL, views=[view])


@pytest.mark.parametrize(
    "chosen, own",
    [(["plain"], []), (["plain", "spectrum"], []), (["spectrum", "statistics"], ["spectrum", "statistics"])],
)
def test_a_new_learner_looks_at_the_values_where_the_plain_view_was_chosen(chosen, own):
    oom = {"kind": "series", "x": torch.zeros(3, 2, 600), "lengths": None, "class_names": ["a", "b"]}
    learner, head, arch = new_learner(oom, chosen, 16, 1, 4, 0, "cpu")
    assert arch["views"] == own == learner.views and hasattr(learner, "position") != bool(own)
    assert load_learner(arch, {"learner": learner.state_dict(), "head": head.state_dict()}, "cpu")[0].views == own
