"""Stage 1 with a pretrained perceptor on a folder written here; the perceptor is fake_perceptor.py in the place of
imagebind (fixture `fake` of tests/perceptors)."""

import contextlib
import io
from pathlib import Path

import fake_perceptor
import numpy as np
import pytest
import torch
from PIL import Image
from worlds import write_manifest

import extract_features
import train_connect
from cox_oom import data as datasets
from cox_oom import files
from cox_oom.files import Place, UserError
from cox_oom.perceptors import embed

HEADER = ("id", "split", "label", "rgb", "language", "audio", "touch")
EXTRACT = "--device cpu --image-size 8 --bind-epochs 2 --bind-width 8"
CONNECT = (
    "--device cpu --width 16 --depth 1 --patch 4 --warmup-epochs 1 --batch 16 --labelled-batch 8 --connect-steps 2 "
    "--labels 0.3"
)


def write_folder(path, n=90):
    """rgb and touch 8 x 8 png, language of unlike lengths, audio wav; a third of the rows have no audio."""
    import soundfile

    rng, rows = np.random.default_rng(0), []
    for folder in ("rgb", "audio", "touch"):
        (path / folder).mkdir(parents=True)
    for k in range(n):
        c, split = k % 3, "train" if k < 2 * n // 3 else "val" if k % 6 == 0 else "test"
        picture = rng.integers(0, 100, (8, 8, 3))
        picture[:, :, c] += 120
        Image.fromarray(picture.astype(np.uint8)).save(path / f"rgb/{k}.png")
        felt = rng.integers(0, 100, (8, 8))
        felt[2 * c : 2 * c + 3] += 120
        Image.fromarray(felt.astype(np.uint8)).save(path / f"touch/{k}.png")
        if k % 3 != 2:
            t = np.arange(rng.integers(800, 6000)) / 16000
            soundfile.write(path / f"audio/{k}.wav", 0.3 * np.sin(2 * np.pi * (200 + 300 * c) * t), 16000)
        words, sound = f"{'a' * (1 + k % 5)} thing {c}", f"audio/{k}.wav" if k % 3 != 2 else ""
        rows.append([f"i{k}", split, ("cup", "key", "pen")[c], f"rgb/{k}.png", words, sound, f"touch/{k}.png"])
    write_manifest(path, rows, HEADER)
    return path


def argv(folder, runs, weights, *flags, perceptor="imagebind"):
    where = ["--data", str(folder), "--runs", str(runs), "--perceptor", perceptor, "--weights", str(weights)]
    return [*where, *EXTRACT.split(), *(word for f in flags for word in f.split())]


def extract(folder, runs, weights, *flags, perceptor="imagebind"):
    """Stage 1 in this process; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        extract_features.main(argv(folder, runs, weights, *flags, perceptor=perceptor))
    return out.getvalue()


def connect(folder, runs):
    """Stage 2 in this process; what it printed."""
    out = io.StringIO()
    where = ["--data", str(folder), "--runs", str(runs), "--perceptor", "imagebind", "--oom", "audio"]
    with contextlib.redirect_stdout(out):
        train_connect.main([*where, *CONNECT.split()])
    return out.getvalue()


def refused(*args, parts, **kw):
    """Stage 1 ends with one line that contains all `parts`."""
    with pytest.raises(UserError) as caught:
        extract(*args, **kw)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value), f"{part!r} is not in: {caught.value}"


def stopped(folder, runs, weights, monkeypatch, after, *flags):
    """Stage 1 over rgb in parts of 20, interrupted when `after` batches were encoded; the folder of parts."""
    monkeypatch.setattr(embed, "PART", 20)
    real = fake_perceptor.Perceptor.encode

    def encode(self, role, batch):
        if len(fake_perceptor.encoded) == after:
            raise KeyboardInterrupt
        return real(self, role, batch)

    with monkeypatch.context() as m:
        m.setattr(fake_perceptor.Perceptor, "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, runs, weights, "--im rgb", *flags)
    return Place(runs, "toy", "imagebind", None).banks() / "rgb.parts"


def bank_of(runs, m, trained=False, oom="audio"):
    return files.load(Place(runs, "toy", "imagebind", oom).banks(trained=trained) / f"{m}.pt")


def expected_row(data, m, row, weights, role):
    """(d,): the features of one item, made alone in this process."""
    fake = fake_perceptor.load([role], weights=weights)
    return fake.encode(role, fake.preparer().prepare(role, data.load(m, row))[None])[0]


def expected(folder, m, weights, role):
    """(features (N, d), ids) of a bank."""
    data = datasets.read(str(folder))
    rows = [i for i, c in enumerate(data.cells[m]) if c is not None]
    return torch.stack([expected_row(data, m, r, weights, role) for r in rows]), [data.ids[r] for r in rows]


def written(runs):
    """{path: bytes} of everything that stage 1 wrote but its log."""
    found = [p for p in sorted(Path(runs).rglob("*")) if p.is_file() and p.suffix != ".log"]
    return {str(p.relative_to(runs)): p.read_bytes() for p in found}
