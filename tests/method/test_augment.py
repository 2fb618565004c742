"""augment.py: normalised batches, and augmentations that keep shapes, padding and time axes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cox_oom import augment as module
from cox_oom.augment import augment, batch
from cox_oom.learner import MASKED_BYTE

STRENGTHS = ("weak", "strong")
SHAPES = {"image": (3, 16, 12), "video": (3, 4, 12, 16), "series": (5, 40), "text": (30,)}


def sentences(n, t, lengths=None):
    letters = torch.tensor(list(b"abcdefgh    "))
    x = letters[torch.randint(len(letters), (n, t))].to(torch.uint8)
    lengths = torch.randint(1, t + 1, (n,)) if lengths is None else lengths
    return x * (torch.arange(t) < lengths[:, None]), lengths


def items(kind, n=6, shape=None):
    shape = shape or SHAPES[kind]
    return sentences(n, *shape) if kind == "text" else (torch.randn(n, *shape), None)


def correlation(a, b):
    """Per row of (…, T)."""
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-12)


# -------------------------------------------------------------------------------------------------- all kinds


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("kind", SHAPES)
def test_shape_dtype_and_input_stay(kind, strength):
    x, lengths = items(kind)
    before = x.clone()
    y, new = augment(kind, x, lengths, strength)
    assert y.shape == x.shape and y.dtype == x.dtype and (new is None) == (lengths is None)
    assert torch.equal(x, before), "the caller's batch is changed in place"
    assert not torch.equal(y, x)
    assert kind == "text" or y.isfinite().all()


@pytest.mark.parametrize(
    "kind, shape",
    [
        ("image", (1, 1, 1)),
        ("image", (1, 3, 200)),
        ("video", (1, 1, 2, 2)),
        ("series", (1, 1)),
        ("series", (4, 1)),
        ("text", (1,)),
    ],
)
@pytest.mark.parametrize("strength", STRENGTHS)
def test_the_smallest_items(kind, shape, strength):
    x, lengths = items(kind, 1, shape)
    assert augment(kind, x, lengths, strength)[0].shape == x.shape


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("kind", [*SHAPES, "varying"])
def test_the_same_seed_gives_the_same(kind, strength):
    x, lengths = (torch.randn(6, 5, 40), torch.arange(6) + 20) if kind == "varying" else items(kind)
    kind = "series" if kind == "varying" else kind
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(augment(kind, x, lengths, strength)[0])
    assert torch.equal(runs[0], runs[1]) and not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("kind", ["image", "video", "series"])
def test_strong_moves_further_than_weak(kind):
    x, _ = items(kind, 64)
    weak, strong = ((augment(kind, x, None, s)[0] - x).square().mean() for s in STRENGTHS)
    assert strong > 1.2 * weak


@pytest.mark.parametrize("kind", ["image", "video", "series"])
def test_items_of_a_batch_are_moved_each_in_its_own_way(kind):
    x = items(kind, 1)[0].expand(4, *SHAPES[kind]).clone()
    y = augment(kind, x, None, "weak")[0]
    assert len({tuple(row.flatten().tolist()) for row in y}) == 4


# ----------------------------------------------------------------------------------------------------- series


@given(
    st.integers(1, 5),
    st.integers(1, 30),
    st.integers(1, 6),
    st.sampled_from(STRENGTHS),
    st.integers(0, 2**31),
    st.data(),
)
def test_padding_stays_zero_and_lengths_valid(n, t, c, strength, seed, data):
    lengths = torch.tensor(data.draw(st.lists(st.integers(0, t), min_size=n, max_size=n)))
    torch.manual_seed(seed)
    x = torch.randn(n, c, t) * (torch.arange(t) < lengths[:, None])[:, None, :]
    y, new = augment("series", x, lengths, strength)
    assert new.shape == (n,) and not new.is_floating_point()
    assert (new >= 1).all() and (new <= t).all()
    assert y.isfinite().all() and y.shape == x.shape
    assert (y * (torch.arange(t) >= new[:, None])[:, None, :] == 0).all()
    speed, shift = (0.2, 0.15) if strength == "strong" else (0.1, 0.08)
    assert (new <= ((1 + shift) * lengths / (1 - speed) + 1).clamp(max=t, min=1)).all()
    assert (new >= (((1 - shift) * lengths - 1) / (1 + speed)).clamp(min=1).floor()).all()


def test_lengths_vary_both_ways_and_are_not_written_in_place():
    lengths = torch.full((200,), 40)
    before = lengths.clone()
    _, new = augment("series", torch.randn(200, 2, 60), lengths, "weak")
    assert torch.equal(lengths, before)
    assert (new < 40).any() and (new > 40).any()


def test_replay_plays_at_another_speed_from_another_start():
    """A ramp stays a ramp: of a slope within 1 ± speed, a start within ± shift, zero outside."""
    x = ((torch.arange(80.0) + 1) * (torch.arange(80) < 40)).expand(200, 1, 80)
    y, new = module.replay(x, torch.full((200,), 40), 0.2, 0.1)
    slopes, starts = [], []
    for row, t in zip(y[:, 0], new.tolist()):
        assert (row[t:] == 0).all()
        heard = row.nonzero().squeeze(1)
        assert heard[-1] >= t - 2 and len(heard) == heard[-1] - heard[0] + 1  # in one piece, to the end
        values = row[heard]
        slope = (values[-1] - values[0]) / (len(values) - 1)
        torch.testing.assert_close(values, values[0] + slope * torch.arange(len(values)), atol=1e-3, rtol=1e-4)
        assert values.min() >= 1 and values.max() <= 40
        slopes.append(float(slope)), starts.append(float(values[0] - 1 - slope * heard[0]))
    assert 0.8 <= min(slopes) < 0.9 and 1.1 < max(slopes) <= 1.2 + 1e-4
    assert -4 - 1e-2 <= min(starts) < -2 and 2 < max(starts) <= 4 + 1e-2


def test_replay_without_speed_and_shift_changes_nothing():
    lengths = torch.tensor([1, 20, 33])
    x = torch.randn(3, 2, 33) * (torch.arange(33) < lengths[:, None])[:, None, :]
    y, new = module.replay(x, lengths, 0.0, 0.0)
    torch.testing.assert_close(y, x)
    assert torch.equal(new, lengths)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_series_of_one_length_keep_their_time_axis(strength):
    """Binned sensors and feature vectors: position is meaning, so no shift and no stretch."""
    x = torch.randn(200, 2, 64)
    y, lengths = augment("series", x, None, strength)
    assert lengths is None
    own = correlation(x, y)
    assert own.mean() > (0.95 if strength == "weak" else 0.7)
    if strength == "weak":
        assert own.min() > 0.9
    for shift in (-2, -1, 1, 2):
        assert correlation(x.roll(shift, -1), y).mean() < 0.3
    spike = torch.zeros(200, 1, 64)
    spike[:, :, 20] = 50.0
    assert (augment("series", spike, None, "weak")[0].argmax(-1) == 20).all()


def test_weak_series_are_not_dropped_in_parts():
    x = torch.ones(100, 6, 50)
    assert (augment("series", 10 * x, None, "weak")[0] > 5).all()
    strong = augment("series", 10 * x, None, "strong")[0]
    gone = (strong == 0).float().mean((1, 2))
    assert (gone > 0).float().mean() > 0.9 and gone.max() < 0.6  # spans of time and channels, never all


def test_strong_keeps_every_channel_where_there_are_few():
    y = augment("series", 10 * torch.ones(100, 3, 50), None, "strong")[0]
    assert ((y != 0).any(-1)).all()


# ------------------------------------------------------------------------------------------------------- text


@given(st.integers(1, 5), st.integers(1, 40), st.sampled_from(STRENGTHS), st.integers(0, 2**31))
def test_text_keeps_padding_spaces_and_length(n, t, strength, seed):
    torch.manual_seed(seed)
    x, lengths = sentences(n, t)
    y, new = augment("text", x, lengths, strength)
    assert torch.equal(new, lengths)
    assert torch.equal(y == 0, x == 0) and torch.equal(y == ord(" "), x == ord(" "))
    assert ((y == x) | (y == MASKED_BYTE)).all()


@pytest.mark.parametrize("strength, share", [("weak", 0.1), ("strong", 0.3)])
def test_text_loses_whole_words_at_the_stated_rate(strength, share):
    text = b"one two six ten the cat sat mat"
    x = torch.tensor(list(text), dtype=torch.uint8).expand(500, -1)
    y = augment("text", x, None, strength)[0]
    words = torch.stack([(y[:, i : i + 3] == MASKED_BYTE) for i in range(0, len(text), 4)], 1)  # (500, words, 3)
    assert torch.equal(words.all(-1), words.any(-1))
    assert abs(words.any(-1).float().mean() - share) < 0.03


# ---------------------------------------------------------------------------------------------- images, clips


def test_all_frames_of_a_clip_move_alike():
    frame = torch.randn(4, 3, 1, 16, 16)
    for strength in STRENGTHS:
        y, _ = augment("video", frame.expand(4, 3, 5, 16, 16).clone(), None, strength)
        torch.testing.assert_close(y, y[:, :, :1].expand_as(y))


def test_a_clip_of_one_frame_is_moved_like_an_image():
    x = torch.randn(4, 3, 16, 16)
    for strength in STRENGTHS:
        torch.manual_seed(5)
        image = augment("image", x, None, strength)[0]
        torch.manual_seed(5)
        torch.testing.assert_close(augment("video", x.unsqueeze(2), None, strength)[0].squeeze(2), image)


def test_images_are_moved_in_full_precision_under_autocast():
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    moved = []
    for enabled in (False, True):
        torch.manual_seed(1)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            moved.append(augment("image", x, None, "strong")[0])
    assert moved[1].dtype == torch.float32 and torch.equal(*moved)


def test_images_are_neither_mirrored_nor_turned_over():
    """A weakly moved picture with a bright corner keeps it in the same quarter."""
    x = torch.zeros(300, 1, 20, 20)
    x[:, :, 3:7, 3:7] = 10.0
    y = augment("image", x, None, "weak")[0]
    quarters = torch.stack([y[:, :, :10, :10], y[:, :, :10, 10:], y[:, :, 10:, :10], y[:, :, 10:, 10:]]).sum((2, 3, 4))
    assert (quarters.argmax(0) == 0).float().mean() > 0.97


def test_weak_images_have_no_hole_and_strong_ones_do():
    x = 10 * torch.ones(200, 1, 16, 16)
    assert (augment("image", x, None, "weak")[0] > 5).all()
    hole = (augment("image", x, None, "strong")[0] == 0).float().mean((1, 2, 3))
    assert (hole > 0).float().mean() > 0.5 and hole.max() <= 0.35


# ------------------------------------------------------------------------------------------------------ batch


def inputs_file(kind, lengths=None):
    if kind == "text":
        x, lengths = sentences(5, 12)
        return {"kind": "text", "x": x, "lengths": lengths, "mean": None, "std": None}
    shape = SHAPES[kind]
    x = (
        torch.randint(0, 256, (5, *shape), dtype=torch.uint8)
        if kind in ("image", "video")
        else 3 * torch.randn(5, *shape) + 100
    )
    ones = (shape[0], *(1,) * (len(shape) - 1))
    return {"kind": kind, "x": x, "lengths": lengths, "mean": torch.rand(ones) * 100, "std": 1 + torch.rand(ones)}


@pytest.mark.parametrize("kind", ["image", "video", "series"])
def test_batch_normalises(kind):
    file, rows = inputs_file(kind), torch.tensor([3, 0, 3])
    x, lengths = batch(file, rows, "cpu")
    assert lengths is None and x.dtype == torch.float32
    expected = torch.stack([(file["x"][r].float() - file["mean"]) / file["std"] for r in rows.tolist()])
    torch.testing.assert_close(x, expected)


def test_batch_normalises_per_position():
    file = inputs_file("series")
    file["mean"], file["std"] = torch.randn(5, 40), 1 + torch.rand(5, 40)
    torch.testing.assert_close(batch(file, torch.tensor([4]), "cpu")[0][0], (file["x"][4] - file["mean"]) / file["std"])


def test_batch_leaves_zero_in_the_padding():
    lengths = torch.tensor([40, 1, 7, 39, 20])
    file = inputs_file("series", lengths)
    rows = torch.tensor([4, 1, 0])
    x, new = batch(file, rows, "cpu")
    assert torch.equal(new, lengths[rows])
    for row, r in zip(x, rows.tolist()):
        t = int(lengths[r])
        torch.testing.assert_close(row[:, :t], ((file["x"][r] - file["mean"]) / file["std"])[:, :t])
        assert (row[:, t:] == 0).all()  # not -mean / std


def test_batch_of_text_is_its_bytes():
    file = inputs_file("text")
    x, lengths = batch(file, torch.tensor([2, 0]), "cpu")
    assert torch.equal(x, file["x"][[2, 0]]) and torch.equal(lengths, file["lengths"][[2, 0]])


def test_an_empty_batch():
    for kind in SHAPES:
        x, _ = batch(inputs_file(kind), torch.empty(0, dtype=torch.long), "cpu")
        assert x.shape[0] == 0


@pytest.mark.parametrize("strength", STRENGTHS)
def test_a_learner_that_looks_at_the_spectrum_sees_no_other_speed(strength):
    """A tone keeps its frequency and may begin elsewhere; a learner of time slices sees other tones."""
    tone = 20 * torch.sin(2 * torch.pi * 0.1 * torch.arange(400)).expand(60, 1, 400)
    lengths = torch.full((60,), 400)
    for views, same in ((["spectrum"], True), (["spectrum", "statistics"], True), (["statistics"], False), ([], False)):
        x, new = augment("series", tone, lengths, strength, views)
        top = torch.tensor([peak(one[0, :n]) for one, n in zip(x, new.tolist())])
        assert (((top - 0.1).abs() < 0.004).all().item()) == same
        assert len(set(new.tolist())) > 5


@pytest.mark.parametrize("n, h, w", [(1, 1, 1), (3, 8, 8), (5, 7, 12), (2, 224, 224)])
def test_images_are_sampled_where_torch_would(n, h, w):
    theta = torch.randn(n, 2, 3)
    expected = torch.nn.functional.affine_grid(theta.double(), [n, 1, h, w], align_corners=False)
    torch.testing.assert_close(module.affine_grid(theta, h, w).double(), expected, atol=2e-6, rtol=0)


def peak(x):
    """The frequency (cycles a step) of most power."""
    power = torch.fft.rfft(x - x.mean(), n=4000).abs()
    return power.argmax().item() / 4000
