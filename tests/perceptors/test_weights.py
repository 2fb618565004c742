"""Files of weights: where they are searched, what is said of missing and broken ones, their hashes."""

from pathlib import Path

import pytest
import tiny_weights
import torch

from cox_oom.files import UserError
from cox_oom.perceptors import imagebind, weights


def test_missing_weights_say_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(UserError) as e:
        imagebind.load(["image"])
    for part in ("imagebind_huge.pth", "https://", "4.8 GB", "CC BY-NC-SA 4.0", "--weights", ".checkpoints"):
        assert part in str(e.value)
    with pytest.raises(UserError, match="no such file or folder.*https://"):
        imagebind.load(["image"], weights=tmp_path / "gone.pth")
    with pytest.raises(UserError, match="holds no imagebind_huge.pth or .*https://"):
        imagebind.load(["image"], weights=tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        ".checkpoints/imagebind_huge.pth",
        "hub/checkpoints/imagebind_huge.pth",
        "huggingface/hub/models--nielsr--imagebind-huge/snapshots/ab12/pytorch_model.bin",
    ],
)
def test_usual_places_are_searched(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / place).parent.mkdir(parents=True)
    tiny_weights.imagebind(tmp_path / place, sizes={"imu": tiny_weights.IMAGEBIND_TINY["imu"]})
    assert imagebind.load(["imu"]).weights == {Path(place).name: weights.sha256(tmp_path / place)}


def test_broken_weights_are_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>404")
    torch.save({"state_dict": {"x": torch.zeros(2)}}, tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    for name, says in (
        ("a.pth", "cannot be read as weights"),
        ("b.pth", "not a plain dict"),
        ("c.pth", "not a plain dict"),
    ):
        with pytest.raises(UserError, match=says) as e:
            imagebind.load(["imu"], weights=tmp_path / name)
        assert "\n" not in str(e.value) and name in str(e.value)


def test_sha256_of_a_file(tmp_path):
    """Against hashlib's published example; a changed file has another hash."""
    (tmp_path / "x").write_bytes(b"abc")
    assert weights.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "x").write_bytes(b"")
    assert weights.sha256(tmp_path / "x") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_files_of_the_old_format_are_read(tmp_path):
    torch.save({"x": torch.arange(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(weights.read(tmp_path / "x.pth")["x"], torch.arange(3))
