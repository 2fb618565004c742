"""cox_oom/data/folder.py: the table is read as it says, and a fault of it ends in one line with row, id and mend."""

import csv

import numpy as np
import pytest
from pets import HEADER, ROWS, changed, complaint, write
from PIL import Image

from cox_oom import data as datasets
from cox_oom.data import folder, inputs
from cox_oom.files import UserError


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
    complaint(path, "row 6 (id d)", "'vall'")  # lines of the file, as an editor counts


@pytest.mark.parametrize("mark", [";", "\t"])
def test_another_separator_is_named(tmp_path, mark):
    write(tmp_path)
    table = tmp_path / "manifest.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes().replace(b",", mark.encode()).replace(b"\n", b"\r\n"))
    with pytest.raises(UserError, match=f"row 1: the cells are separated by {mark!r}".replace("\\", "\\\\")):
        datasets.read(str(tmp_path))


def test_not_a_data_set(tmp_path):
    for data, words in ((str(tmp_path), "id,split,label"), ("nothing-here", "synth"), (__file__, "manifest.csv")):
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


@pytest.mark.parametrize(
    "change, parts",
    [
        (
            (1, "id", "a"),
            ("row 3 (id a)", "already in row 2", "all modalities of an instance into its one row", "an id of its own"),
        ),
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
        (
            (0, "pulse", "a.txt"),
            ("row 2 (id a)", "not supported", ".npy", ".wav", ".mp4", "remove the column if it is no modality"),
        ),
        ((0, "pulse", "1:30"), ("row 2 (id a)", "leaves the folder", "remove the column if it is no modality")),
        ((0, "pulse", "rgb/a.png"), ("row 3 (id b)", "series with 2 channels", "row 2 has image", "alike")),
    ],
)
def test_bad_cells(tmp_path, change, parts):
    complaint(write(tmp_path, changed(*change)), *parts)


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "N/A", "NULL", "na", "<NA>", "?", "\\N", "\u200bnan"])
@pytest.mark.parametrize("row", [0, 3, 4])
def test_labels_that_stand_for_none_are_asked_about(tmp_path, word, row):
    where = f"row {row + 2} (id {'abcde'[row]})"
    complaint(write(tmp_path, changed(row, "label", word)), where, repr(word), "unlabelled?", "empty the cell")


@pytest.mark.parametrize(
    "first, second, words",
    [
        ("Cup", "cup", "'cup' and 'Cup' of row 2 differ only in case"),
        ("STRASSE", "stra\xdfe", "only in case"),
        ("cup", "cup\u200b", "'cup\\u200b' and 'cup' of row 2 differ only in what cannot be seen"),
        ("caf\xe9", "cafe\u0301", "'cafe\\u0301' and 'caf\\xe9' of row 2"),
        ("a cup", "a\xa0cup", "'a\\xa0cup'"),
        ("cup", "\ufeffcup", "what cannot be seen"),
        ("cup", "cu\x00p", "what cannot be seen"),
        ("cup", "cup\u3164", "what cannot be seen"),
        ("cup", "cup\ufe00", "what cannot be seen"),
        ("cup", "c\u034fup\U000e0101", "what cannot be seen"),
    ],
)
def test_labels_that_look_the_same_are_refused(tmp_path, first, second, words):
    rows = changed(0, "label", first)
    rows[1][2] = "dog"
    rows[3][2] = rows[4][2] = second
    complaint(write(tmp_path, rows), "row 5 (id d)", words, "write one of them in both")


@pytest.mark.parametrize("name", ["\u200b", "\x00", "\u3164"])
def test_a_label_that_cannot_be_seen_is_asked_about(tmp_path, name):
    complaint(write(tmp_path, changed(3, "label", name)), "row 5 (id d)", "unlabelled?")


@pytest.mark.parametrize("name", ["pulse\u200b", "pul\x1bse", "\ufeffpulse", "pulse\ufe0f"])
def test_a_column_name_that_is_not_what_it_looks_like_is_refused(tmp_path, name):
    complaint(write(tmp_path, header=[*HEADER[:-1], name]), "row 1", ascii(name), "type it anew: pulse")


@pytest.mark.parametrize("name", ["\u200b", "x" * 101, "a/b", ".a"])
def test_a_column_name_that_cannot_name_a_file_is_refused(tmp_path, name):
    complaint(write(tmp_path, header=[*HEADER[:-1], name]), "row 1", "cannot name a file")


def test_a_long_cell_makes_no_long_line(tmp_path):
    with pytest.raises(UserError) as e:
        datasets.read(str(write(tmp_path, changed(3, "split", "x" * 100_000))))
    assert len(str(e.value)) < 700 + len(str(tmp_path)) and "row 5 (id d): split 'xxx" in str(e.value)


def test_sentences_that_stand_for_none_are_told(tmp_path):
    data = datasets.read(str(write(tmp_path, changed(3, "language", "NaN"))))
    assert data.load("language", 3) == "NaN" and len(data.facts) == 1
    for part in ("manifest.csv", "1 cells of language", "'NaN' in row 5", "empty them"):
        assert part in data.facts[0]
    assert not datasets.read(str(write(tmp_path))).facts


def test_labels_that_differ_are_let_through(tmp_path):
    """Width, superscripts and accents are no slips."""
    names = ["x2", "x\xb2", "e", "\xe9", "A1", "A 1", "nanny", "none of these"]
    rows = [[*ROWS[k % 2]] for k in range(len(names))]
    for k, (row, name) in enumerate(zip(rows, names)):
        row[0], row[2] = f"r{k}", name
    last = [*ROWS[4]]
    last[2] = names[0]
    assert datasets.read(str(write(tmp_path, [*rows, last]))).class_names == sorted(names)


def test_rows_of_commas_alone_are_blank_lines(tmp_path):
    path = write(tmp_path)
    first = datasets.read(str(path)).ids
    with open(path / "manifest.csv", "a") as f:
        f.write(",,,,,\n,,,\n , ,,,,\n,,,,,,,,\n")
    assert datasets.read(str(path)).ids == first


def test_backslashes_and_sentences(tmp_path):
    complaint(
        write(tmp_path, changed(1, "rgb", "rgb\\b.png")),
        "row 3 (id b)",
        "has a backslash",
        "write / in paths: rgb/b.png",
    )
    for name in ("text", "caption", "note", "words"):
        rows = [[*r, "a cup. It is red"] for r in ROWS]
        complaint(write(tmp_path, rows, [*HEADER, name]), "row 2 (id a)", f"{name} 'a cup.", "name the column language")


def test_links_that_leave_the_folder_are_refused(tmp_path):
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner)
    (inner / "rgb/a.png").rename(tmp_path / "a.png")
    (inner / "rgb/a.png").symlink_to(tmp_path / "a.png")
    complaint(inner, "row 2 (id a)", "rgb/a.png", "leaves the folder by a link")
    data = datasets.read(str(inner), columns=["pulse"])  # nor is it read where its column is not asked for
    (inner / "rgb/a.png").unlink()
    assert datasets.read(str(inner), columns=["pulse"]).fingerprint == data.fingerprint
    (inner / "rgb/a.png").symlink_to("b.png")  # a link inside is a file like any other
    assert datasets.read(str(inner)).absent == {}
    (inner / "rgb").rename(tmp_path / "rgb")
    (inner / "rgb").symlink_to(tmp_path / "rgb")
    complaint(inner, "row 2 (id a)", "leaves the folder by a link")
    (tmp_path / "other").symlink_to(inner)  # the folder itself may be a link
    (inner / "rgb").unlink()
    (tmp_path / "rgb").rename(inner / "rgb")
    assert datasets.read(str(tmp_path / "other")).absent == {}


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


def test_only_the_columns_asked_for_are_checked(tmp_path):
    extra = [["good", "12:30", "7"], ["bad", "", ""], ["", "1:30", ""], ["", "", ""], ["../x", "", "rgb/a.png"]]
    write(tmp_path, [[*r, *e] for r, e in zip(ROWS, extra)], [*HEADER, "comment", "time", "subject"])
    complaint(
        tmp_path, "row 2 (id a)", "comment 'good'", "not supported", "remove the column if it is no modality", "--im"
    )
    data = datasets.read(str(tmp_path), columns=["rgb", "pulse", None])
    assert data.modalities == {"rgb": "image", "language": "text", "pulse": "series", "subject": "image"}
    assert data.absent == data.broken == {} and data.cells.keys() == data.modalities.keys()
    with pytest.raises(UserError, match="comment 'good' has an extension"):
        datasets.read(str(tmp_path), columns=["rgb", "comment"])
    (tmp_path / "pulse/d.npy").unlink()
    assert datasets.read(str(tmp_path), columns=["rgb"]).absent == {}
    assert datasets.read(str(tmp_path), columns=["pulse"]).absent == {"pulse": [3]}


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
    rows = [
        [i, s, c, "x.wav", "x.jpg", "x.npy", "x.mp4"]
        for i, s, c in (("1", "train", "p"), ("2", "train", "q"), ("3", "test", "p"))
    ]
    with open(tmp_path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([["id", "split", "label", "tap", "cam", "skin", "clip"], *rows])
    data = folder.read(tmp_path, frames=4)
    assert data.modalities == {"tap": "audio", "cam": "image", "skin": "image", "clip": "video"}
    assert data.load("tap", 0).shape == (1600,) and data.load("cam", 0).shape == (1, 4, 4)
    assert data.load("skin", 0).shape == (2, 4, 4) and data.load("clip", 0).shape == (4, 3, 16, 16)


@pytest.mark.parametrize(
    "name, parts, classes, kinds, observed",
    [
        (
            "digits",
            (4000, 0, 1000),
            10,
            {"rgb": "image", "language": "text", "audio": "audio", "pen": "series"},
            {"audio": (2700, 300)},
        ),
        (
            "handwritten",
            (1600, 0, 400),
            10,
            {"pix": "image", "fou": "series", "fac": "series", "zer": "series", "kar": "series", "mor": "series"},
            {},
        ),
        (
            "robot_push",
            (400, 0, 100),
            20,
            {"sound": "series", "proprioception": "series", "vibration": "series", "surf": "series"},
            {},
        ),
    ],
)
def test_real_folders(data, name, parts, classes, kinds, observed):
    if not (data / name / "manifest.csv").exists():
        pytest.skip(f"{data / name} is not there (COX_TEST_DATA names the folder of test data)")
    found = datasets.read(str(data / name))
    assert tuple(found.split.count(s) for s in datasets.SPLITS) == parts
    assert len(found.class_names) == classes and found.modalities == kinds and min(found.labels) == 0
    for modality in kinds:
        rows = [i for i, cell in enumerate(found.cells[modality]) if cell is not None]
        counts = tuple(sum(found.split[i] == s for i in rows) for s in ("train", "test"))
        assert counts == observed.get(modality, (parts[0], parts[2]))
        items = [found.load(modality, row) for row in rows[:20]]
        assert len(inputs.learner_inputs(kinds[modality], items, [True] * 20, image_size=32)["x"]) == 20
