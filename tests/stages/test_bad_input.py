"""Folders and flags that cannot be: one line that names file, row or flag, and the mend, before any training."""

import os
import subprocess

import numpy as np
import pytest
from PIL import Image
from worlds import ROOT, argv, command, no_leftovers, read_manifest, refused, stage, write_folder, write_manifest

import extract_features
from cox_oom import run

pytestmark = pytest.mark.usefixtures("quick")


def bad_missing(f, rows):
    os.remove(f / "imu/itrain4.npy")
    return "row 6", "itrain4", "imu/itrain4.npy", "not there"


def bad_picture(f, rows):
    (f / "rgb/itrain2.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    return "row 4", "itrain2", "rgb/itrain2.png", "replace the file"


def bad_truncated_picture(f, rows):
    os.truncate(f / "rgb/itest1.png", 60)
    return "itest1", "rgb/itest1.png"


def bad_array(f, rows):
    (f / "imu/itrain1.npy").write_bytes(b"not an array")
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_array_shape(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros(7, np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_array_channels(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros((3, 9), np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy", "channels"


def bad_array_empty(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros((2, 0), np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_nan(f, rows):
    x = np.load(f / "imu/itest0.npy")
    x[1, 2] = np.nan
    np.save(f / "imu/itest0.npy", x)
    return "itest0", "imu/itest0.npy", "NaN"


def bad_infinite(f, rows):
    x = np.load(f / "imu/itrain5.npy")
    x[0, 0] = np.inf
    np.save(f / "imu/itrain5.npy", x)
    return "row 7", "itrain5", "imu/itrain5.npy"


def bad_split(f, rows):
    rows[1][1] = "dev"
    return "manifest.csv", "row 3", "itrain1", "'dev'", "train, val or test"


def bad_duplicate(f, rows):
    rows[5][0] = rows[2][0]
    return "manifest.csv", "row 7", "row 4", "itrain2"


def bad_empty_modality(f, rows):
    for r in rows:
        r[4] = ""
    return "manifest.csv", "column imu", "no filled cell"


def bad_modality_in_test_alone(f, rows):
    for r in rows:
        r[3] = r[3] if r[1] == "test" else ""
    return "manifest.csv", "column rgb", "train"


def bad_single_class(f, rows):
    for r in rows:
        r[2] = "cup"
    return "manifest.csv", "1 class", "at least 2"


def bad_no_labels(f, rows):
    for r in rows:
        r[2] = ""
    return "manifest.csv", "0 classes"


def bad_test_label(f, rows):
    rows[-1][2] = "spoon"
    return "manifest.csv", "row", "'spoon'", rows[-1][0], "train"


def bad_no_test_rows(f, rows):
    rows[:] = [r for r in rows if r[1] != "test"]
    return "manifest.csv", "test"


def bad_outside(f, rows):
    rows[0][3] = "../secret.png"
    return "row 2", "itrain0", "leaves the folder"


def bad_extension(f, rows):
    (f / "imu/x.mat").write_bytes(b"1")
    rows[0][4] = "imu/x.mat"
    return "row 2", "itrain0", ".npy"


def bad_ragged_row(f, rows):
    rows[3] = rows[3][:-1]
    return "manifest.csv", "row 5", "cells", "columns"


def bad_nothing_observed(f, rows):
    rows[3][3:] = ["", "", ""]
    return "manifest.csv", "row 5", "itrain3"


BAD = [v for k, v in list(globals().items()) if k.startswith("bad_")]


def one_error_line(capsys, arguments, parts):
    with pytest.raises(SystemExit) as exit:
        run.script(extract_features.main, arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 2
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    for part in parts:
        assert part in lines[0], f"{part!r} is not in: {lines[0]}"
    assert "training" not in captured.out
    return lines[0]


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__[4:])
def test_bad_input_ends_with_one_line_before_any_training(tmp_path, capsys, spoil):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    rows = read_manifest(own)
    parts = spoil(own, rows)
    write_manifest(own, rows)
    line = one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), parts)
    assert ";" in line  # what is wrong; what mends it
    assert not list((tmp_path / "runs").rglob("banks"))
    no_leftovers(tmp_path)


def test_the_mended_folder_goes_through(tmp_path, capsys):
    """A file that could not be used is replaced, as the message says: the same command goes on."""
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    good = (own / "imu/itrain5.npy").read_bytes()
    parts = bad_infinite(own, None)
    one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), parts)
    (own / "imu/itrain5.npy").write_bytes(good)
    stage("extract_features", own, tmp_path / "runs")


def test_unlike_items_are_named_by_their_file(tmp_path, capsys):
    """What the first bytes do not tell: 8 and 16 bits among tiffs."""
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    rows = read_manifest(own)
    for k, r in enumerate(rows):
        picture = np.full((8, 8), k, np.uint16 if k == 4 else np.uint8)
        Image.fromarray(picture).save(own / r[3].replace(".png", ".tif"))
        r[3] = r[3].replace(".png", ".tif")
    write_manifest(own, rows)
    parts = (str(own / "rgb/itrain4.tif"), "(id itrain4)", "float32", "uint8", ";")
    one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), parts)


@pytest.mark.parametrize(
    "change, parts",
    [
        (("--bind-width", "12"), ("--bind-width 12", "multiple of 8")),
        (("--bind-width", "0"), ("--bind-width 0", "multiple of 8")),
        (("--oom", "smell"), ("--oom smell", "rgb", "imu", "language")),
        (("--im", "smell"), ("--im smell", "rgb", "language")),
        (("--im", "imu"), ("--im imu",)),
        (("--data", "nowhere"), ("nowhere", "manifest.csv", "synth")),
        (("--data", "setup.py"), ("setup.py", "file", "manifest.csv")),
        (("--data", "tests"), ("manifest.csv", "not there")),
    ],
    ids=lambda v: " ".join(v)[:20],
)
def test_bad_flags_end_with_one_line(tmp_path, capsys, folder, monkeypatch, change, parts):
    monkeypatch.chdir(ROOT)
    one_error_line(capsys, [*argv("extract_features", folder, tmp_path), *change], parts)
    assert not list(tmp_path.iterdir())


def test_oom_is_required_for_bind(tmp_path, capsys, folder):
    one_error_line(capsys, ["--data", str(folder), "--runs", str(tmp_path)], ("--oom", "bind"))


def test_one_modality_is_too_few(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    write_manifest(own, [[*r[:3], r[4]] for r in read_manifest(own)], ("id", "split", "label", "imu"))
    one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), ("imu", "other modality"))


def test_bad_input_by_the_command_line(tmp_path):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    os.remove(own / "rgb/ival1.png")
    done = subprocess.run(**command("extract_features", own, tmp_path / "runs"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and "ival1" in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(folder, tmp_path):
    (tmp_path / "file").write_text("")
    refused("extract_features", folder, tmp_path / "file", parts=("file", "cannot be written to"))
