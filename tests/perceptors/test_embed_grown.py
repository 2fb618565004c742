"""Banks of a pretrained perceptor: in shards, and extended where the data have grown."""

import csv
import shutil
from pathlib import Path

import fake_perceptor
import pytest
import torch
from embedded import HEADER, bank_of, expected, extract, refused
from worlds import write_manifest

from cox_oom import files, shards
from cox_oom.perceptors import embed

pytestmark = pytest.mark.usefixtures("quick", "fake")


@pytest.fixture
def growing(folder, tmp_path):
    """grow(rows): the folder with so many rows of its table, those of `later` without a label."""
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    with open(own / "manifest.csv", newline="") as f:
        rows = list(csv.reader(f))[1:]

    def grow(without=(), unlabelled=()):
        table = [[*r[:2], "" if k in unlabelled else r[2], *r[3:]] for k, r in enumerate(rows) if k not in without]
        write_manifest(own, table, HEADER)
        return own

    return grow


def embedded():
    """How many items were embedded since the last call."""
    n = sum(shape[0] for _, shape in fake_perceptor.encoded)
    fake_perceptor.encoded.clear()
    return n


@pytest.mark.parametrize("size", [4096, 32])
def test_only_new_rows_are_embedded(growing, weights, tmp_path, monkeypatch, size):
    monkeypatch.setattr(shards, "ITEMS", size)
    monkeypatch.setattr(embed, "PART", 10)
    runs, new = tmp_path / "runs", (3, 40, *range(80, 90))
    extract(growing(new, unlabelled=(5, 6)), runs, weights, "--oom audio --im rgb,language")
    before, _ = bank_of(runs, "rgb"), embedded()
    features_before = torch.cat(list(before["features"].split(7)))
    own = growing()
    out = extract(own, runs, weights, "--oom audio --im rgb,language")
    assert embedded() == 2 * len(new) and "12 rows with rgb more, 2 labels other; the 78 items" in out
    bank, (z, ids) = bank_of(runs, "rgb"), expected(own, "rgb", weights, "image")
    assert bank["ids"] == ids and (bank["labels"][[5, 6]] >= 0).all()
    features = torch.cat(list(bank["features"].split(7)))
    torch.testing.assert_close(features, z)
    kept = torch.tensor([ids.index(i) for i in before["ids"]])
    assert torch.equal(features[kept], features_before)
    assert extract(own, runs, weights, "--oom audio --im rgb,language").count("already done") == 4
    assert isinstance(bank["features"], shards.Shards) == (size == 32)
    names = {f"{name}.pt" for name in bank.get("shards", {}).get("names", ())}
    folder = shards.folder(bank_path := runs / "toy/imagebind/banks/rgb.pt")
    assert {p.name for p in folder.glob("*")} == names and bank_path.exists()


def test_new_labels_need_no_perceptor(growing, weights, tmp_path):
    own = growing(unlabelled=(1, 2, 3))
    extract(own, tmp_path / "runs", weights, "--im rgb")
    embedded()
    out = extract(growing(), tmp_path / "runs", weights, "--im rgb")
    assert not embedded() and "0 rows with rgb more, 3 labels other" in out
    assert bank_of(tmp_path / "runs", "rgb")["meta"]["weights"]


def test_other_weights_and_changed_rows_extend_nothing(growing, weights, tmp_path):
    runs = tmp_path / "runs"
    extract(growing((80,)), runs, weights, "--im rgb")
    digest = files.load(runs / "toy/imagebind/banks/rgb.pt")["meta"]["digest"]
    refused(growing((81,)), runs, weights, "--im rgb", parts=("1 rows with rgb more, 1 fewer", "--force"))
    weights.write_bytes(b"seed 1")
    refused(growing(), runs, weights, "--im rgb", parts=("rgb.pt", "file of weights", "--force"))
    assert files.load(runs / "toy/imagebind/banks/rgb.pt")["meta"]["digest"] == digest
