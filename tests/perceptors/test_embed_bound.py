"""An encoder that stage 1 trains beside a pretrained perceptor: bound to whose features, and what it never sees."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from embedded import bank_of, connect, extract, refused
from PIL import Image

from cox_oom.files import UserError
from cox_oom.seed import split_rows

pytestmark = pytest.mark.usefixtures("quick", "fake")


def test_touch_is_bound_to_the_image_or_else_to_what_there_is(folder, weights, tmp_path):
    out = extract(folder, tmp_path / "a", weights, "--oom audio")
    assert "training encoders on touch against the features of rgb" in out
    file = bank_of(tmp_path / "a", "touch", trained=True)
    assert file["meta"]["args"]["target"] == "rgb" and file["features"].shape == (90, 12) and "encoder" in file
    assert set(file["meta"]["made_from"]) == {"inputs/touch", "banks/rgb"}
    out = extract(folder, tmp_path / "b", weights, "--oom rgb", "--im language,touch")
    assert "training encoders on touch against the features of language" in out  # the image is what is to be learnt


def test_bound_features_find_their_partners(folder, weights, tmp_path):
    """On rows never trained on, the touch of a class lies nearer to the images of that class."""
    extract(folder, tmp_path / "r", weights, "--oom audio", "--bind-epochs 60", "--bind-width 32")
    touch, rgb = bank_of(tmp_path / "r", "touch", trained=True), bank_of(tmp_path / "r", "rgb")
    rows = split_rows(touch, ("test",))
    near = touch["features"][rows] @ rgb["features"][rows].T
    same = touch["labels"][rows][:, None] == rgb["labels"][rows]
    assert near[same].mean() > near[~same].mean() + 0.1
    torch.testing.assert_close(touch["features"].norm(dim=1), torch.ones(90))


def test_encoders_see_neither_test_rows_nor_the_oom_modality(folder, weights, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    for k in range(60, 90):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(own / f"rgb/{k}.png")
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)).save(own / f"touch/{k}.png")
    for path in (own / "audio").iterdir():
        path.write_bytes((own / "audio/0.wav").read_bytes())
    extract(folder, tmp_path / "a", weights, "--oom audio"), extract(own, tmp_path / "b", weights, "--oom audio")
    a, b = (bank_of(tmp_path / r, "touch", trained=True) for r in "ab")
    assert all(torch.equal(a["encoder"][k], b["encoder"][k]) for k in a["encoder"])
    assert torch.equal(a["features"][:60], b["features"][:60]) and not torch.equal(a["features"], b["features"])


def test_an_encoder_trained_here_needs_to_know_the_oom_modality(folder, weights, tmp_path):
    refused(folder, tmp_path, weights, parts=("no encoder for touch", "--oom", "--im rgb,language,audio"))


def test_touch_bound_to_features_that_have_changed_is_refused(folder, weights, tmp_path):
    runs = tmp_path / "runs"
    extract(folder, runs, weights, "--oom audio")
    weights.write_bytes(b"seed 1")
    extract(folder, runs, weights, "--im rgb,language", "--force")
    with pytest.raises(UserError, match="touch.pt was made from an earlier banks/rgb"):
        connect(folder, runs)
    refused(folder, runs, weights, "--oom audio", parts=("touch.pt", "banks/rgb", "--force"))
