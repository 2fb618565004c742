"""A folder of five rows, as a user's own data set is, and what is said of a fault in it."""

import csv

import numpy as np
import pytest
from PIL import Image

from cox_oom import data as datasets
from cox_oom.files import UserError

HEADER = ["id", "split", "label", "rgb", "language", "pulse"]
ROWS = [
    ["a", "train", "cat", "rgb/a.png", "a cat", "pulse/a.npy"],
    ["b", "train", "dog", "rgb/b.png", "", "pulse/b.npy"],
    ["c", "train", "", "rgb/c.png", "", ""],
    ["d", "val", "dog", "", "it barks", "pulse/d.npy"],
    ["e", "test", "cat", "rgb/e.png", "", "pulse/e.npy"],
]


def write(path, rows=ROWS, header=HEADER, encoding="utf-8"):
    """A folder with the files that ROWS name; `rows` may be other rows."""
    rng = np.random.default_rng(0)
    for row in ROWS:
        for cell, folder_name in ((row[3], "rgb"), (row[5], "pulse")):
            if not cell:
                continue
            file = path / cell
            file.parent.mkdir(parents=True, exist_ok=True)
            if folder_name == "rgb":
                Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(file)
            else:
                np.save(file, rng.standard_normal((2, rng.integers(4, 9))))
    with open(path / "manifest.csv", "w", newline="", encoding=encoding) as f:
        csv.writer(f).writerows([header, *rows])
    return path


def changed(row, column, value):
    rows = [list(r) for r in ROWS]
    rows[row][HEADER.index(column)] = value
    return rows


def complaint(path, *parts, load=None):
    """The one-line message of read (or of load) contains all `parts`."""
    with pytest.raises(UserError) as caught:
        data = datasets.read(str(path))
        if load:
            data.load(*load)
    message = str(caught.value)
    assert "\n" not in message and message.count("; ") >= 1, message
    for part in ("manifest.csv", *parts):
        assert part in message, f"{part!r} is not in: {message}"
    return message


def first_complaint(path):
    """What the reader says of a folder: of its table, or of its first file of no use; None where it says nothing."""
    try:
        data = datasets.read(str(path))
        for m in (*data.absent, *data.broken):
            for row in sorted((*data.absent.get(m, ()), *data.broken.get(m, ()))):
                data.load(m, row)
    except UserError as error:
        return str(error)
    return None
