"""cox_oom/data/media.py: the learner's inputs of every kind, their lengths and statistics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cox_oom.data import inputs
from cox_oom.files import UserError

SETTINGS = settings(max_examples=40, deadline=None)


def test_images_are_resized_on_the_short_side_and_cropped():
    raw = np.zeros((3, 40, 60), np.uint8)
    raw[:, :, 10:50] = 200  # the middle 40 x 40
    out = inputs.learner_inputs("image", [raw], [True], image_size=20)
    assert out["kind"] == "image" and out["x"].shape == (1, 3, 20, 20) and out["x"].dtype == torch.uint8
    assert (out["x"] == 200).all() and out["lengths"] is None
    up = inputs.learner_inputs("image", [raw], [True], image_size=80)["x"]
    assert up.shape == (1, 3, 80, 80) and (up == 200).all()
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1, 64, 32))
    small = inputs.learner_inputs("image", [stripes], [True], image_size=8)["x"]
    assert small.dtype == torch.float32 and (small - 0.5).abs().max() < 0.1  # antialiased, not picked


def test_grey_and_colour_images_mix_to_colour():
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 255, (c, 6, 6), dtype=np.uint8) for c in (1, 3))
    for raws in ([grey, colour, grey], [colour, grey, grey], [grey, grey, colour]):
        out = inputs.learner_inputs("image", iter(raws), [True] * 3, image_size=6)
        assert out["x"].shape == (3, 3, 6, 6) and out["mean"].shape == (3, 1, 1)
        for x, raw in zip(out["x"], raws):
            assert (x == torch.from_numpy(raw)).all()
        torch.testing.assert_close(out["mean"].flatten(), out["x"].float().mean((0, 2, 3)))
        torch.testing.assert_close(out["std"].flatten(), out["x"].float().std((0, 2, 3), correction=0))
    with pytest.raises(UserError, match="item 1"):
        inputs.learner_inputs("image", [grey, np.zeros((2, 6, 6), np.uint8)], [True] * 2, image_size=6)
    with pytest.raises(UserError, match="item 1"):
        inputs.learner_inputs("image", [grey, np.zeros((1, 6, 6), np.float32)], [True] * 2, image_size=6)


def test_videos():
    raws = [np.full((f, 3, 10, 14), 10 * f, np.uint8) for f in (2, 6)]
    out = inputs.learner_inputs("video", raws, [True, False], image_size=8, frames=4)
    assert out["x"].shape == (2, 3, 4, 8, 8) and out["x"].dtype == torch.uint8
    assert (out["x"][0] == 20).all() and (out["x"][1] == 60).all()
    assert out["mean"].shape == (3, 1, 1, 1) and (out["mean"] == 20).all() and (out["std"] == 1).all()


@SETTINGS
@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    channels=st.integers(1, 3),
    limit=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_series_padding_lengths_and_resampling(lengths, channels, limit, seed):
    rng = np.random.default_rng(seed)
    raws = [rng.standard_normal((channels, t)).astype(np.float32) for t in lengths]
    train = [True] + [bool(b) for b in rng.integers(0, 2, len(raws) - 1)]
    out = inputs.learner_inputs("series", raws, train, series_length=limit)
    x, full = out["x"], min(limit, max(lengths))
    assert x.shape == (len(raws), channels, full) and x.dtype == torch.float32
    valid = out["lengths"].tolist() if out["lengths"] is not None else [full] * len(raws)
    for item, raw, t, v in zip(x, raws, lengths, valid):
        assert 1 <= v <= full and (item[:, v:] == 0).all()
        if max(lengths) <= limit:
            assert v == t
            np.testing.assert_array_equal(item[:, :v], raw)
        else:  # the same factor for all
            assert abs(v - t * limit / max(lengths)) < 1
            assert item[:, :v].min() >= raw.min() - 1e-6 and item[:, :v].max() <= raw.max() + 1e-6
            if t % v == 0:
                np.testing.assert_allclose(item[:, :v].mean(1), raw.mean(1), atol=1e-5)
    assert (out["lengths"] is None) == (len(set(valid)) == 1)
    train_valid = [v for v, is_train in zip(valid, train) if is_train]
    assert out["mean"].shape == out["std"].shape == (channels, full if set(train_valid) == {full} else 1)
    again = inputs.learner_inputs("series", iter(raws), train, series_length=limit)
    assert torch.equal(again["x"], x) and torch.equal(again["mean"], out["mean"])


@SETTINGS
@given(x=arrays(np.float32, (6, 2, 3), elements=st.floats(-(2.0**99), 2.0**99, width=32)))
def test_statistics_come_from_train_alone_and_stay_finite(x):
    train = [True, True, False, True, True, False]
    out = inputs.learner_inputs("series", list(x), train)
    changed = x.copy()
    changed[[2, 5]] = 7
    other = inputs.learner_inputs("series", list(changed), train)
    assert torch.equal(out["mean"], other["mean"]) and torch.equal(out["std"], other["std"])
    t = x[[0, 1, 3, 4]].astype(np.float64)
    np.testing.assert_allclose(out["mean"], t.mean(0), rtol=1e-5, atol=1e-6 * max(1, np.abs(t).max()))
    z = (torch.from_numpy(x[[0, 1, 3, 4]]) - out["mean"]) / out["std"]
    assert torch.isfinite(z).all() and (out["std"] > 0).all()
    live = t.std(0) > 1e-5 * np.abs(t).max(0).clip(1e-19)
    np.testing.assert_allclose(z.double().std(0, correction=0).numpy()[live], 1, rtol=1e-2)


def test_statistics_of_ragged_series_ignore_padding():
    raws = [np.full((1, 4), 2.0, np.float32), np.full((1, 2), 5.0, np.float32)]
    out = inputs.learner_inputs("series", raws, [True, True])
    assert out["lengths"].tolist() == [4, 2] and out["mean"].shape == (1, 1)
    np.testing.assert_allclose([out["mean"].item(), out["std"].item()], [3.0, 2**0.5], rtol=1e-6)
    longer_test = inputs.learner_inputs("series", [*raws[1:], raws[0]], [True, False])
    assert longer_test["mean"].tolist() == [[5.0]] and longer_test["std"].tolist() == [[1.0]]


def test_audio_becomes_log_mel_series():
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(n).astype(np.float32) for n in (16000, 8000, 100)]
    out = inputs.learner_inputs("audio", waves, [True, True, False], mels=40)
    assert out["kind"] == "series" and out["x"].shape == (3, 40, 98)
    assert out["lengths"].tolist() == [98, 48, 1]
    assert out["mean"].shape == (40, 1)
    np.testing.assert_array_equal(out["x"][1, :, :48], inputs.log_mel(waves[1], 40))
    short = inputs.learner_inputs("audio", waves, [True, True, False], mels=40, series_length=49)
    assert short["x"].shape == (3, 40, 49) and short["lengths"].tolist() == [49, 24, 1]


@SETTINGS
@given(st.lists(st.text(max_size=400), min_size=1, max_size=5))
def test_text_bytes(texts):
    out = inputs.learner_inputs("text", texts, [True] * len(texts))
    x = out["x"]
    assert x.dtype == torch.uint8 and x.shape[1] <= inputs.TEXT_BYTES and out["mean"] is out["std"] is None
    lengths = out["lengths"].tolist() if out["lengths"] is not None else [x.shape[1]] * len(texts)
    for row, n, text in zip(x, lengths, texts):
        assert (row[:n] > 0).all() and (row[n:] == 0).all()
        clean = text.replace("\0", "").encode("utf-8", errors="replace").decode("utf-8")
        assert clean.startswith(bytes(row[:n].tolist()).decode("utf-8"))  # cut on a character boundary
        assert n > inputs.TEXT_BYTES - 4 or len(clean.encode()) == n


def test_misuse():
    for kind, raws in (
        ("image", [np.zeros((1, 4, 4), np.uint8)]),
        ("image", [None]),
        ("series", [None]),
        ("audio", [None]),
        ("video", [None]),
    ):
        with pytest.raises(inputs.NoTrainItem, match="no train item"):
            inputs.learner_inputs(kind, raws, [raws[0] is None], image_size=4)
    with pytest.raises(UserError, match="item 1: 3 channels, the first one has 2"):
        inputs.learner_inputs("series", [np.zeros((c, 3), np.float32) for c in (2, 3)], [True, True])
    with pytest.raises(ValueError, match="kind"):
        inputs.learner_inputs("smell", [1], [True])
