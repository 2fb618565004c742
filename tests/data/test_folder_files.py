"""cox_oom/data/folder.py: files that are missing, empty, broken or unlike, and the fingerprint of them all."""

import csv
import hashlib
import os
import re
import shutil

import numpy as np
import pytest
from pets import ROWS, changed, complaint, write

from cox_oom import data as datasets


def test_missing_files_are_listed_and_named_when_loaded(tmp_path):
    write(tmp_path)
    for name in ("a", "e"):
        (tmp_path / f"rgb/{name}.png").unlink()
    (tmp_path / "pulse/d.npy").unlink()
    data = datasets.read(str(tmp_path))
    assert data.absent == {"rgb": [0, 4], "pulse": [3]} and data.broken == {} and data.ids == list("abcde")
    complaint(
        tmp_path, "row 2 (id a)", "rgb/a.png", "not there (and 2 more missing)", "correct the path", load=("rgb", 0)
    )
    complaint(tmp_path, "row 5 (id d)", "pulse/d.npy", "2 more missing", load=("pulse", 3))
    for name in "abc":
        (tmp_path / f"pulse/{name}.npy").unlink(missing_ok=True)
    (tmp_path / "pulse/e.npy").unlink()
    complaint(
        tmp_path, "row 2 (id a)", "pulse/a.npy", "not there", "no other file of pulse can be used", "correct the path"
    )


@pytest.mark.parametrize(
    "content, words",
    [(b"", "is an empty file"), (b"not an array", "not a .npy array"), (b"\x93NUMPY\x01\0", "not a .npy array")],
)
def test_headers_of_no_use_are_listed_and_named_when_loaded(tmp_path, content, words):
    """Also in the column's first row, whose form the others are compared with otherwise."""
    write(tmp_path)
    for name in "ae":
        (tmp_path / f"pulse/{name}.npy").write_bytes(content)
    (tmp_path / "rgb/b.png").write_bytes(b"")
    data = datasets.read(str(tmp_path))
    assert data.broken == {"rgb": [1], "pulse": [0, 4]} and data.absent == {} and data.modalities["pulse"] == "series"
    complaint(tmp_path, "row 2 (id a)", "pulse/a.npy", words, "correct the file", load=("pulse", 0))
    complaint(tmp_path, "row 3 (id b)", "rgb/b.png", "is an empty file", load=("rgb", 1))
    for name in "bd":
        (tmp_path / f"pulse/{name}.npy").write_bytes(content)
    complaint(tmp_path, "row 2 (id a)", "pulse/a.npy", words, "no other file of pulse can be used")


@pytest.mark.parametrize(
    "array, words",
    [
        (np.zeros(5), "shape (5,)"),
        (np.zeros((1, 2, 3, 4)), "shape (1, 2, 3, 4)"),
        (np.zeros((2, 0)), "empty"),
        (np.array([["a", "b"]]), "not numbers"),
        (np.zeros((2, 3), complex), "not numbers"),
        (np.array([[None, 1]], dtype=object), "not numbers"),
    ],
)
def test_wrong_arrays_are_found_when_the_folder_is_read(tmp_path, array, words):
    write(tmp_path)
    np.save(tmp_path / "pulse/b.npy", array)
    assert datasets.read(str(tmp_path)).broken == {"pulse": [1]}
    complaint(tmp_path, "row 3 (id b)", "pulse/b.npy", words, "correct the file", load=("pulse", 1))


def test_array_columns_must_agree(tmp_path):
    write(tmp_path)
    np.save(tmp_path / "pulse/d.npy", np.zeros((3, 5)))
    complaint(tmp_path, "row 5 (id d)", "3 channels", "row 2 has series with 2 channels", "alike")
    np.save(tmp_path / "pulse/d.npy", np.zeros((2, 5, 5)))
    complaint(tmp_path, "row 5 (id d)", "image with 2 channels", "row 2 has series")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_values_that_are_not_finite_in_float32(tmp_path, value):
    write(tmp_path)
    np.save(tmp_path / "pulse/b.npy", np.array([[0.0, value], [0, 0]]))
    complaint(tmp_path, "row 3 (id b)", "pulse/b.npy", "NaN or Inf", "replace the file", load=("pulse", 1))


def test_broken_contents_name_the_row_when_loaded(tmp_path):
    write(tmp_path)
    whole = (tmp_path / "rgb/b.png").read_bytes()
    (tmp_path / "rgb/b.png").write_bytes(whole[: len(whole) // 2])
    complaint(tmp_path, "row 3 (id b)", "rgb/b.png", "cannot be read as an image", "replace", load=("rgb", 1))
    whole = (tmp_path / "pulse/d.npy").read_bytes()
    (tmp_path / "pulse/d.npy").write_bytes(whole[:-8])
    complaint(tmp_path, "row 5 (id d)", "pulse/d.npy", "cannot be read as an array", load=("pulse", 3))


def test_named_modalities_as_arrays(tmp_path):
    rows = [[r[0], r[1], r[2] or "cat", f"rgb/{r[0]}.npy", f"depth/{r[0]}.npy"] for r in ROWS]
    (tmp_path / "rgb").mkdir(), (tmp_path / "depth").mkdir()
    for r in rows:
        np.save(tmp_path / r[3], np.zeros((3, 4, 5), np.uint8))
        np.save(tmp_path / r[4], np.full((1, 4, 5), 1.5))
    with open(tmp_path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([["id", "split", "label", "rgb", "depth"], *rows])
    data = datasets.read(str(tmp_path))
    assert data.modalities == {"rgb": "image", "depth": "image"}
    assert data.load("rgb", 0).dtype == np.uint8 and data.load("depth", 0).dtype == np.float32
    np.save(tmp_path / "rgb/b.npy", np.zeros((4, 5, 3), np.uint8))
    complaint(tmp_path, "row 3 (id b)", "(4, 5, 3)", "(3, height, width)", load=("rgb", 1))
    np.save(tmp_path / "rgb/b.npy", np.zeros((4, 5), np.uint8))
    complaint(tmp_path, "row 3 (id b)", "(channels, height, width)", load=("rgb", 1))


@pytest.mark.parametrize("modality", ["rgb", "tactile", "thermal", "depth", "camera"])
@pytest.mark.parametrize("shape", [(60, 80, 3), (48, 64, 1), (32, 32, 4)])
def test_channels_last_are_refused_in_every_image_column(tmp_path, modality, shape):
    """Also where all files of the column are so; arrays whose numbers may mean either are let through."""
    rows = [[r[0], r[1], r[2] or "cat", f"{r[0]}.npy"] for r in ROWS]
    with open(tmp_path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([["id", "split", "label", modality], *rows])
    right = (1 if shape[2] == 1 else 3, *shape[:2]) if modality == "rgb" else (shape[2], *shape[:2])
    for r in rows:
        np.save(tmp_path / r[3], np.zeros(right, np.uint8))
    assert datasets.read(str(tmp_path)).broken == {}
    np.save(tmp_path / "b.npy", np.zeros(shape, np.uint8))
    assert datasets.read(str(tmp_path)).broken == {modality: [1]}
    mend = f"transpose to ({shape[2]}, height, width)"
    complaint(tmp_path, "row 3 (id b)", str(shape), "channels last", mend, load=(modality, 1))
    for r in rows:
        np.save(tmp_path / r[3], np.zeros(shape, np.uint8))
    complaint(tmp_path, "row 2 (id a)", mend, load=(modality, 0))
    if modality != "rgb":
        for r in rows:
            np.save(tmp_path / r[3], np.zeros((16, 4, 4)))  # as well a grid of 4 x 4 sensors of 16 values each
        assert datasets.read(str(tmp_path)).broken == {}


def test_the_case_with_the_channels_last(tmp_path, cases):
    write(tmp_path)
    for name in "abde":
        shutil.copy(cases / "rows_columns_channels.npy", tmp_path / f"pulse/{name}.npy")
        (tmp_path / f"pulse/{name}.npy").chmod(0o644)
    complaint(tmp_path, "row 2 (id a)", "(60, 80, 3)", "transpose to (3, height, width)")


def test_fingerprint(tmp_path):
    path = write(tmp_path / "one")
    first = datasets.read(str(path)).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first) and datasets.read(str(path) + "/").fingerprint == first
    os.utime(path / "rgb/a.png", (0, 0))
    shutil.copytree(path, tmp_path / "two")
    assert datasets.read(str(tmp_path / "two")).fingerprint == first  # neither times nor the place count
    data = bytearray((path / "rgb/a.png").read_bytes())
    data[-20] ^= 1
    (path / "rgb/a.png").write_bytes(data)
    assert datasets.read(str(path)).fingerprint != first  # one bit of one file does
    write(path, changed(0, "language", "a cat!"))
    assert datasets.read(str(path)).fingerprint != first  # the table does


def test_fingerprint_of_a_folder_with_faults(tmp_path):
    """A file that goes or comes makes other data; which columns are checked does not."""
    path = write(tmp_path)

    def fingerprint(*columns):
        return datasets.read(str(path), columns=columns or None).fingerprint

    first = fingerprint()
    assert fingerprint("rgb") == fingerprint("pulse") == first
    whole = (path / "pulse/d.npy").read_bytes()
    (path / "pulse/d.npy").write_bytes(b"")
    empty = fingerprint()
    (path / "pulse/d.npy").unlink()
    gone = fingerprint()
    assert len({first, empty, gone}) == 3 and fingerprint("rgb") == gone
    (path / "pulse/d.npy").write_bytes(whole)
    assert fingerprint() == first


def test_fingerprint_of_a_whole_folder_is_as_documented(tmp_path):
    path = write(tmp_path)
    data = (path / "manifest.csv").read_bytes()
    for m, column in (("rgb", 3), ("pulse", 5)):
        for cell in (r[column] for r in ROWS if r[column]):
            file = (path / cell).read_bytes()
            data += f"\0{m}\0{cell}\0{len(file)}\0".encode() + file[:4096] + file[-4096:]
    assert datasets.read(str(path)).fingerprint == hashlib.sha256(data).hexdigest()
