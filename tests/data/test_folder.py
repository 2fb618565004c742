"""cox_oom/data/folder.py: what it reads, and that bad input ends in one line with file, row, id and mend."""
import csv
import hashlib
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cox_oom import data as datasets
from cox_oom.files import UserError
from cox_oom.data import folder, inputs


def data_folder(name):
    root = os.environ.get("COX_TEST_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(root) / name
    if not (path / "manifest.csv").exists():
        pytest.skip(f"{path} is not there (COX_TEST_DATA names the folder of test data)")
    return path


HEADER = ["id", "split", "label", "rgb", "language", "pulse"]
ROWS = [["a", "train", "cat", "rgb/a.png", "a cat", "pulse/a.npy"],
        ["b", "train", "dog", "rgb/b.png", "", "pulse/b.npy"],
        ["c", "train", "", "rgb/c.png", "", ""],
        ["d", "val", "dog", "", "it barks", "pulse/d.npy"],
        ["e", "test", "cat", "rgb/e.png", "", "pulse/e.npy"]]


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


def test_reads_what_the_table_says(tmp_path):
    data = datasets.read(str(write(tmp_path / "pets")))
    assert data.name == "pets" and data.ids == list("abcde")
    assert data.split == ["train", "train", "train", "val", "test"]
    assert data.class_names == ["cat", "dog"] and data.labels == [0, 1, -1, 1, 0]
    assert list(data.modalities.items()) == [("rgb", "image"), ("language", "text"), ("pulse", "series")]
    assert data.cells["language"] == ["a cat", None, None, "it barks", None]
    assert data.load("language", 3) == "it barks"
    rgb, pulse = data.load("rgb", 0), data.load("pulse", 0)
    assert rgb.shape == (3, 6, 8) and rgb.dtype == np.uint8
    assert pulse.shape[0] == 2 and pulse.dtype == np.float32
    np.testing.assert_array_equal(pulse, np.load(tmp_path / "pets/pulse/a.npy").astype(np.float32))
    assert data.source == {"path": str(tmp_path / "pets")}


def test_bom_spaces_blank_lines_and_quoted_line_breaks(tmp_path):
    rows = changed(0, "language", "a cat,\nasleep")
    path = write(tmp_path, rows, encoding="utf-8-sig")
    text = (path / "manifest.csv").read_bytes().decode("utf-8-sig").replace("train,dog", " train , dog ")
    (path / "manifest.csv").write_bytes(b"\xef\xbb\xbf" + (text + "\r\n").encode())
    data = datasets.read(str(path))
    assert data.load("language", 0) == "a cat,\nasleep" and data.labels[1] == 1
    bad = text.replace("val", "vall")
    (path / "manifest.csv").write_text(bad, newline="")
    complaint(path, "row 6 (id d)", "'vall'")      # lines of the file, as an editor counts


def test_not_a_data_set(tmp_path):
    for data, words in ((str(tmp_path), "id,split,label"), ("nothing-here", "synth"),
                        (__file__, "manifest.csv")):
        with pytest.raises(UserError, match=words):
            datasets.read(data)
    with pytest.raises(UserError, match="commonality"):
        datasets.read(str(write(tmp_path)), commonality=0.5)
    datasets.read(str(tmp_path), commonality=None)


@pytest.mark.parametrize("missing", ["id", "split", "label"])
def test_missing_column(tmp_path, missing):
    keep = [i for i, h in enumerate(HEADER) if h != missing]
    write(tmp_path, [[r[i] for i in keep] for r in ROWS], [HEADER[i] for i in keep])
    complaint(tmp_path, "row 1", f"column {missing} is missing", "id,split,label,<modality>")


def test_header_faults(tmp_path):
    write(tmp_path, header=[*HEADER[:5], "rgb"])
    complaint(tmp_path, "row 1", "column rgb", "2 times", "rename or remove")
    write(tmp_path, header=[*HEADER[:5], ""])
    complaint(tmp_path, "row 1", "no name")
    write(tmp_path, header=[*HEADER[:5], "../pulse"])
    complaint(tmp_path, "row 1", "'../pulse'", "rename")
    write(tmp_path, [r[:3] for r in ROWS], HEADER[:3])
    complaint(tmp_path, "no modality column", "add one")
    write(tmp_path, [])
    complaint(tmp_path, "no rows", "add one row")
    (tmp_path / "manifest.csv").write_text("")
    complaint(tmp_path, "empty", "id,split,label")
    (tmp_path / "manifest.csv").write_bytes("id,split,label,rgb\na,train,K\xe4se,x.png\n".encode("latin-1"))
    complaint(tmp_path, "row 2", "UTF-8")
    (tmp_path / "manifest.csv").write_text('id,split,label,language\na,train,x,"open\nb,train,y,z\n')
    complaint(tmp_path, "row 2", "quotes")


@pytest.mark.parametrize("change, parts", [
    ((1, "id", "a"), ("row 3 (id a)", "already in row 2", "all modalities of an instance into its one row",
                      "an id of its own")),
    ((1, "id", ""), ("row 3 (id empty)", "an id of its own")),
    ((3, "split", "dev"), ("row 5 (id d)", "'dev'", "train, val or test")),
    ((4, "label", "cow"), ("row 6 (id e)", "test label 'cow'", "no train row", "label train rows")),
    ((3, "label", "cow"), ("row 5 (id d)", "val label 'cow'", "no train row")),
    ((1, "label", "cat"), ("1 class (cat)", "at least 2 classes")),
    ((4, "split", "val"), ("no row has split test",)),
    ((2, "rgb", ""), ("row 4 (id c)", "no modality is filled", "delete the row")),
    ((0, "rgb", "rgb"), ("row 2 (id a)", "not supported", ".png")),
    ((0, "rgb", "../a.png"), ("row 2 (id a)", "leaves the folder", "relative")),
    ((0, "rgb", "rgb/..\\..\\a.png"), ("row 2 (id a)", "leaves the folder")),
    ((0, "rgb", "/etc/a.png"), ("row 2 (id a)", "leaves the folder")),
    ((0, "rgb", "C:\\a.png"), ("row 2 (id a)", "leaves the folder")),
    ((0, "rgb", "a.wav"), ("row 2 (id a)", "not supported", "convert", ".png .jpg")),
    ((0, "pulse", "a.txt"), ("row 2 (id a)", "not supported", ".npy", ".wav", ".mp4", "remove the column if it is no modality")),
    ((0, "pulse", "1:30"), ("row 2 (id a)", "leaves the folder", "remove the column if it is no modality")),
    ((0, "pulse", "rgb/a.png"), ("row 3 (id b)", "series with 2 channels", "row 2 has image", "alike")),
])
def test_bad_cells(tmp_path, change, parts):
    complaint(write(tmp_path, changed(*change)), *parts)


def test_splits_classes_and_columns_that_train_lacks(tmp_path):
    write(tmp_path, [[r[0], "test", *r[2:]] for r in ROWS])
    complaint(tmp_path, "no row has split train", "set the split")
    write(tmp_path, [[*r[:2], "", *r[3:]] for r in ROWS])
    complaint(tmp_path, "0 classes (no labels)", "label train rows")
    write(tmp_path, [[*r[:4], "" if r[1] == "train" else r[4], r[5]] for r in ROWS])
    complaint(tmp_path, "column language", "no filled cell in the train rows", "set the split", "remove the column")


def test_row_length(tmp_path):
    write(tmp_path, [*ROWS[:2], ROWS[2][:4], *ROWS[3:]])
    complaint(tmp_path, "row 4 (id c)", "4 cells", "6 columns", "add the commas")
    write(tmp_path, [*ROWS[:2], [*ROWS[2], "more"], *ROWS[3:]])
    complaint(tmp_path, "row 4 (id c)", "7 cells", "in quotes")


def test_missing_files_are_listed_and_named_when_loaded(tmp_path):
    write(tmp_path)
    for name in ("a", "e"):
        (tmp_path / f"rgb/{name}.png").unlink()
    (tmp_path / "pulse/d.npy").unlink()
    data = datasets.read(str(tmp_path))
    assert data.absent == {"rgb": [0, 4], "pulse": [3]} and data.broken == {} and data.ids == list("abcde")
    complaint(tmp_path, "row 2 (id a)", "rgb/a.png", "not there (and 2 more missing)", "correct the path", load=("rgb", 0))
    complaint(tmp_path, "row 5 (id d)", "pulse/d.npy", "2 more missing", load=("pulse", 3))
    for name in "abc":
        (tmp_path / f"pulse/{name}.npy").unlink(missing_ok=True)
    (tmp_path / "pulse/e.npy").unlink()
    complaint(tmp_path, "row 2 (id a)", "pulse/a.npy", "not there", "no other file of pulse can be used", "correct the path")


@pytest.mark.parametrize("content, words", [(b"", "is an empty file"), (b"not an array", "not a .npy array"),
                                            (b"\x93NUMPY\x01\0", "not a .npy array")])
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


def test_only_the_columns_asked_for_are_checked(tmp_path):
    extra = [["good", "12:30", "7"], ["bad", "", ""], ["", "1:30", ""], ["", "", ""], ["../x", "", "rgb/a.png"]]
    write(tmp_path, [[*r, *e] for r, e in zip(ROWS, extra)], [*HEADER, "comment", "time", "subject"])
    complaint(tmp_path, "row 2 (id a)", "comment 'good'", "not supported", "remove the column if it is no modality", "--im")
    data = datasets.read(str(tmp_path), columns=["rgb", "pulse", None])
    assert data.modalities == {"rgb": "image", "language": "text", "pulse": "series", "subject": "image"}
    assert data.absent == data.broken == {} and data.cells.keys() == data.modalities.keys()
    with pytest.raises(UserError, match="comment 'good' has an extension"):
        datasets.read(str(tmp_path), columns=["rgb", "comment"])
    (tmp_path / "pulse/d.npy").unlink()
    assert datasets.read(str(tmp_path), columns=["rgb"]).absent == {}
    assert datasets.read(str(tmp_path), columns=["pulse"]).absent == {"pulse": [3]}


@pytest.mark.parametrize("array, words", [
    (np.zeros(5), "shape (5,)"),
    (np.zeros((1, 2, 3, 4)), "shape (1, 2, 3, 4)"),
    (np.zeros((2, 0)), "empty"),
    (np.array([["a", "b"]]), "not numbers"),
    (np.zeros((2, 3), complex), "not numbers"),
    (np.array([[None, 1]], dtype=object), "not numbers"),
])
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
    (tmp_path / "rgb/b.png").write_bytes(whole[:len(whole) // 2])
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


def test_kinds_of_a_users_own_columns(tmp_path):
    soundfile, av = pytest.importorskip("soundfile"), pytest.importorskip("av")
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    Image.new("L", (4, 4)).save(tmp_path / "x.jpg")
    np.save(tmp_path / "x.npy", np.zeros((2, 4, 4)))
    with av.open(str(tmp_path / "x.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 16
        for _ in range(3):
            black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
            out.mux(stream.encode(black))
        out.mux(stream.encode())
    rows = [[i, s, c, "x.wav", "x.jpg", "x.npy", "x.mp4"] for i, s, c in
            (("1", "train", "p"), ("2", "train", "q"), ("3", "test", "p"))]
    with open(tmp_path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([["id", "split", "label", "tap", "cam", "skin", "clip"], *rows])
    data = folder.read(tmp_path, frames=4)
    assert data.modalities == {"tap": "audio", "cam": "image", "skin": "image", "clip": "video"}
    assert data.load("tap", 0).shape == (1600,) and data.load("cam", 0).shape == (1, 4, 4)
    assert data.load("skin", 0).shape == (2, 4, 4) and data.load("clip", 0).shape == (4, 3, 16, 16)


def test_fingerprint(tmp_path):
    path = write(tmp_path / "one")
    first = datasets.read(str(path)).fingerprint
    assert re.fullmatch("[0-9a-f]{64}", first) and datasets.read(str(path) + "/").fingerprint == first
    os.utime(path / "rgb/a.png", (0, 0))
    shutil.copytree(path, tmp_path / "two")
    assert datasets.read(str(tmp_path / "two")).fingerprint == first       # neither times nor the place count
    data = bytearray((path / "rgb/a.png").read_bytes())
    data[-20] ^= 1
    (path / "rgb/a.png").write_bytes(data)
    assert datasets.read(str(path)).fingerprint != first                   # one bit of one file does
    write(path, changed(0, "language", "a cat!"))
    assert datasets.read(str(path)).fingerprint != first                   # the table does


def test_fingerprint_of_a_folder_with_faults(tmp_path):
    """A file that goes or comes makes other data; which columns are checked does not."""
    path = write(tmp_path)
    fingerprint = lambda *columns: datasets.read(str(path), columns=columns or None).fingerprint
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


@pytest.mark.parametrize("name, parts, classes, kinds, observed", [
    ("digits", (4000, 0, 1000), 10, {"rgb": "image", "language": "text", "audio": "audio", "pen": "series"},
     {"audio": (2700, 300)}),
    ("handwritten", (1600, 0, 400), 10,
     {"pix": "image", "fou": "series", "fac": "series", "zer": "series", "kar": "series",
      "mor": "series"}, {}),
    ("robot_push", (400, 0, 100), 20,
     {"sound": "series", "proprioception": "series", "vibration": "series", "surf": "series"}, {}),
])
def test_real_folders(name, parts, classes, kinds, observed):
    data = datasets.read(str(data_folder(name)))
    assert tuple(data.split.count(s) for s in datasets.SPLITS) == parts
    assert len(data.class_names) == classes and data.modalities == kinds and min(data.labels) == 0
    for modality in kinds:
        rows = [i for i, cell in enumerate(data.cells[modality]) if cell is not None]
        counts = tuple(sum(data.split[i] == s for i in rows) for s in ("train", "test"))
        assert counts == observed.get(modality, (parts[0], parts[2]))
        items = datasets.Items(data, modality, rows[:20])
        assert len(inputs.learner_inputs(kinds[modality], items, [True] * 20, image_size=32)["x"]) == 20


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_named(tmp_path, mark):
    write(tmp_path)
    table = tmp_path / "manifest.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b",", mark.encode()).replace(b"\n", b"\r\n"))
    with pytest.raises(UserError, match=f"row 1: the cells are separated by {mark!r}".replace("\\", "\\\\")):
        datasets.read(str(tmp_path))
