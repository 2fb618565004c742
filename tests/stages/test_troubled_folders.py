"""Folders whose files are odd rather than broken: stage 1 refuses them in one line, or says what it does with them."""

import csv

import numpy as np
import pytest
from PIL import Image
from worlds import read_manifest, refused, stage, write_folder, write_manifest

from cox_oom import files
from cox_oom.files import UserError

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def own(tmp_path):
    return write_folder(tmp_path / "toy", n=(9, 3, 6))


@pytest.mark.parametrize("row", ["itrain2", "itest1"])
@pytest.mark.parametrize("value", [9.969209968386869e36, -3.4028235e38, 1e18])
@pytest.mark.parametrize("kind", ["imu", "rgb"])
def test_no_data_is_refused_in_every_split_before_training(tmp_path, own, row, value, kind):
    """Of the new sensor and of an IM modality; --on-error skip leaves the row out."""
    rows = read_manifest(own)
    if kind == "rgb":
        (own / "thermal").mkdir()
        for r in rows:
            x = np.random.default_rng(0).normal(20, 3, (8, 8)).astype(np.float32)
            x[3, 4] = value if r[0] == row else x[3, 4]
            r[3] = f"thermal/{r[0]}.tif"
            Image.fromarray(x).save(own / r[3])
        write_manifest(own, rows, ("id", "split", "label", "thermal", "imu", "language"))
        file, modality = f"thermal/{row}.tif", "thermal"
    else:
        x = np.load(own / f"imu/{row}.npy")
        x[1, 3] = value
        np.save(own / f"imu/{row}.npy", x)
        file, modality = f"imu/{row}.npy", "imu"
    parts = ("manifest.csv", f"(id {row})", file, "a mark of 'no data'", "fill these values")
    refused("extract_features", own, tmp_path / "runs", parts=parts)
    assert not list((tmp_path / "runs").rglob("banks"))
    out = stage("extract_features", own, tmp_path / "runs", "--on-error skip")
    assert "1 broken (left out)" in out
    inputs = files.load(tmp_path / f"runs/toy/inputs/{modality}.pt")
    assert row not in inputs["ids"] and inputs["mean"].abs().max() < 100


def test_values_that_may_be_marks_are_counted_and_listed(tmp_path, own):
    for name in ("itrain2", "itest1"):
        x = np.load(own / f"imu/{name}.npy")
        x[1, 3:5] = -9999
        np.save(own / f"imu/{name}.npy", x)
    out = stage("extract_features", own, tmp_path / "runs")
    assert out.count("2 marked (kept): see") == 1
    with open(tmp_path / "runs/toy/log/media-imu.csv", newline="") as f:
        table = list(csv.reader(f))[1:]
    assert [row[:2] for row in table] == [["itrain2", "marked"], ["itest1", "marked"]]
    assert "imu/itrain2.npy (id itrain2): 2 of" in table[0][2] and "-9999" in table[0][2]


def test_depth_that_is_full_is_marked(tmp_path, own):
    (own / "depth").mkdir()
    rows = read_manifest(own)
    for r in rows:
        x = np.random.default_rng(0).integers(500, 9000, (8, 8), dtype=np.uint16)
        x[0, 0] = 65535 if r[0] == "ival1" else 700
        r[3] = f"depth/{r[0]}.png"
        Image.fromarray(x).save(own / r[3])
    write_manifest(own, rows, ("id", "split", "label", "depth", "imu", "language"))
    assert "1 marked (kept)" in stage("extract_features", own, tmp_path / "runs")


def test_one_overlong_recording_is_named(tmp_path, own):
    assert "as many as the median" not in stage("extract_features", own, tmp_path / "plain")
    np.save(own / "imu/itrain4.npy", np.random.default_rng(0).normal(size=(2, 60000)).astype(np.float32))
    out = stage("extract_features", own, tmp_path / "runs")
    line = next(line for line in out.splitlines() if "as many as the median" in line)
    for part in (
        "imu/itrain4.npy (id itrain4) has 60000 steps",
        "averaged down by 117",
        "keeps 1;",
        "cut that recording",
    ):
        assert part in line, line


def test_errors_of_stage_1_advise_no_flag_that_it_lacks(tmp_path):
    bad = {"x": np.nan * files.torch.ones(2)}
    for name, advised in (("extract_features", False), ("train_connect", True)):
        with pytest.raises(UserError) as caught:
            files.save(tmp_path / "x.pt", bad, stage=name, data="d", fingerprint="f", args={})
        assert ("--lr" in str(caught.value)) is advised and "inputs" in str(caught.value)
