"""Tables of random damage: one line and exit status 2, or rows read as they stand in the file; never a traceback.

Each table is made by its seed alone, which a failure names. COX_MANIFESTS: their number; COX_MANIFESTS_FROM: the first
one; COX_MANIFESTS_RUN=1: the whole of stage 1 is run on each, in place of the reader alone.
"""

import contextlib
import csv
import io
import os
import random

import pytest
import worlds

from cox_oom import data as datasets
from cox_oom import run

STAGE1 = worlds.STAGES["extract_features"].main
FIRST, TABLES = int(os.environ.get("COX_MANIFESTS_FROM", "0")), int(os.environ.get("COX_MANIFESTS", "60"))
WHOLE = os.environ.get("COX_MANIFESTS_RUN") == "1"
HEADER = ["id", "split", "label", "rgb", "imu", "language"]
ODD = ["", " ", "nan", "None", "N/A", "0", "-1", "1e400", "\0", "a\0b", "\x1b[2J", "\u200b", "\u202e", "\ufeff", "é"]
ODD += ["e\u0301", "=1+1", "@x", "<script>", "|", "a\nb", "a\r\nb", '"', "''", '""', "x" * 300, "x" * 140_000, "\\"]
ODD += ["..", "../..", "/etc/passwd", "/dev/zero", "C:\\x.png", "rgb", "rgb/", "imu", ".", "~", "$HOME", "%00", "*"]
ODD += [
    "nowhere.png",
    "manifest.csv",
    "rgb/../rgb/itrain0.png",
    "imu/itrain0.npy",
    "rgb/itrain0.png",
    "rgb//itrain0.png",
]
ODD += [
    "cup",
    "Cup",
    "CUP ",
    "cup\u200b",
    "key",
    "train",
    "Test",
    "TRAIN",
    "validation",
    "test",
    "val",
    "\ud7ff",
    "😀",
    "ß",
]


def cell(rng, header, rows, value):
    row = rng.choice(rows)
    if row:
        row[rng.randrange(len(row))] = value


def label(rng, header, rows, value):
    for row in rng.choices(rows, k=rng.randint(1, 3)):
        row[2:3] = [value]


def split(rng, header, rows, value):
    for row in rng.choices(rows, k=rng.randint(1, 3)):
        row[1:2] = [value]


def column(rng, header, rows, value):
    """A column more, of one value."""
    at = rng.randint(0, len(header))
    header.insert(at, rng.choice([*ODD, *HEADER, "sonar"]))
    for row in rows:
        row.insert(at, value)


def names(rng, header, rows, value):
    header[rng.randrange(len(header))] = rng.choice([value, *HEADER, "Depth", "ID", "a,b", "x=y", "-x"])


def fewer(rng, header, rows, value):
    """A column less, in the header, the rows or both."""
    at, where = rng.randrange(len(header)), rng.randint(0, 2)
    for row in [*([header] if where else []), *(rows if where != 1 else [])]:
        del row[at : at + 1]


def order(rng, header, rows, value):
    """Columns in another order, in the header alone or everywhere."""
    places = rng.sample(range(len(header)), len(header))
    for row in [header, *(rows if rng.random() < 0.5 else [])]:
        row[:] = [row[k] for k in places if k < len(row)]


def ragged(rng, header, rows, value):
    for row in rng.choices(rows, k=rng.randint(1, 4)):
        row[:] = row[: rng.randint(0, len(row))] if rng.random() < 0.5 else [*row, value]


def twice(rng, header, rows, value):
    rows.insert(rng.randrange(len(rows)), list(rng.choice(rows)))


def lost(rng, header, rows, value):
    """All rows of a split, a class, or but a few."""
    at, gone = rng.choice([(1, "train"), (1, "test"), (2, "cup"), (2, "")])
    rows[:] = [r for r in rows if len(r) > at and r[at] != gone] if gone else rows[: rng.randint(0, 2)]


def blank(rng, header, rows, value):
    for _ in range(rng.randint(1, 4)):
        rows.insert(rng.randint(0, len(rows)), rng.choice([[], [""], [""] * len(header), [" "] * 9]))


def emptied(rng, header, rows, value):
    at = rng.randrange(len(header))
    for row in rows:
        row[at : at + 1] = [""] * len(row[at : at + 1])


CHANGES = [cell, cell, label, split, column, names, fewer, order, ragged, twice, lost, blank, emptied]


def written(rng, table):
    """The table as text."""
    out = io.StringIO()
    delimiter = rng.choice([*",,,,,,,,", ";", "\t", "|", " ", ":"])
    ends = rng.choice(["\n", "\n", "\n", "\r\n", "\r", "\n\r", "\n\n", "\x0b", "\u2028", "\x85"])
    quoting = rng.choice([csv.QUOTE_MINIMAL, csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONE])
    mark = rng.choice(['"', '"', '"', "'"])
    writer = csv.writer(out, delimiter=delimiter, lineterminator=ends, quoting=quoting, quotechar=mark, escapechar="\\")
    writer.writerows(row if any(row) else ["", ""] for row in table)
    return out.getvalue()


def damaged(rng, text):
    """The bytes of a text, in some encoding, perhaps cut or changed."""
    codes = ["utf-8"] * 8 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "utf-7", "shift-jis"]
    data = text.encode(rng.choice(codes), errors="replace")
    how = rng.choice(["whole"] * 6 + ["cut", "byte", "quote", "zeros", "twice", "marks", "end"])
    at = rng.randrange(len(data) + 1)
    if how == "cut":
        data = data[:at]
    elif how == "byte":
        data = data[:at] + rng.choice([b"\xff", b"\0", b"\x80", b"\r", b"\x1a", b",", b"\xed\xa0\x80"]) + data[at + 1 :]
    elif how == "quote":
        data = data[:at] + rng.choice([b'"', b"'", b'""', b',"', b'",']) + data[at:]
    elif how == "zeros":
        data = data[:at] + bytes(rng.choice([1, 50, 5000])) + data[at:]
    elif how == "twice":
        data = data + data[at:]
    elif how == "marks":
        data = b"\xef\xbb\xbf\xef\xbb\xbf" + data
    elif how == "end":
        data = data.rstrip(b"\r\n") + rng.choice([b"", b"\x1a", b"\n\n\n", b"\n,,,,,\n", b"\n;;;;\n", b"\n#x\n"])
    return data


def made(seed, rows):
    """The bytes of the table of a seed."""
    rng = random.Random(seed)
    header, rows = list(HEADER), [list(r) for r in rows]
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        if rows and header:
            rng.choice(CHANGES)(rng, header, rows, rng.choice(ODD))
    text = written(rng, [header, *rows]) if rng.random() < 0.4 else plain([header, *rows])
    return damaged(rng, text) if rng.random() < 0.5 else text.encode("utf-8", errors="replace")


def plain(table):
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(table)
    return out.getvalue()


def expected(data):
    """The rows of a table {column: cell} by Python's own reader, without those that are blank."""
    lines = [[c.strip() for c in r] for r in csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""))]
    header, *rows = [r for r in lines if any(r)]
    assert len(set(header)) == len(header) and all(len(r) == len(header) for r in rows)
    return header, [dict(zip(header, r)) for r in rows]


def ending(main, argv):
    """(exit status, stderr) of a script."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            run.script(main, argv)
        except SystemExit as end:
            return end.code, err.getvalue()
    return 0, err.getvalue()


def check_rows(own, found, data):
    """What was accepted is what stands in the file, and its paths lie in the folder."""
    header, cells = expected(data)
    assert found.ids == [r["id"] for r in cells] and len(set(found.ids)) == len(cells)
    assert found.split == [r["split"] for r in cells] and set(found.split) <= {"train", "val", "test"}
    assert [found.class_names[k] if k >= 0 else "" for k in found.labels] == [r["label"] for r in cells]
    assert {"rgb", "imu"} & set(header) <= set(found.modalities) and set(found.cells) <= set(header)
    for m in found.cells:
        assert found.cells[m] == [r[m] or None for r in cells]
    for m in {"rgb", "imu"} & set(header):
        for row, c in enumerate(found.cells[m]):
            if c and row not in found.absent.get(m, ()) and row not in found.broken.get(m, ()):
                assert os.path.realpath(own / c).startswith(os.path.realpath(own) + os.sep), c
                found.load(m, row)


def attack(own, rows, seed, runs):
    """The exit status of a damaged table."""
    data = made(seed, rows)
    (own / "manifest.csv").write_bytes(data)
    found = []
    code, said = ending(lambda argv: found.append(datasets.read(str(own), columns=["rgb", "imu"])), [])
    if not code:
        assert not said
        check_rows(own, found[0], data)
    if WHOLE:
        whole, said = ending(STAGE1, worlds.argv("extract_features", own, runs / str(seed), "--im rgb --bind-epochs 0"))
        assert whole == 2 or not code, "stage 1 takes a table that the reader refuses"
        code = whole
    said = "".join(line for line in said.splitlines(True) if line.startswith(("error", "Traceback")))
    assert (code, said) == (0, "") or code == 2 and said.count("\n") == 1 and said[:-1].isprintable(), said
    assert not code or said.startswith((f"error: {own}", "error: --im rgb: choose among")) and len(said) < 2000, said
    return code


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder of 15 rows, whose table is replaced."""
    return worlds.write_folder(tmp_path_factory.mktemp("own") / "toy", n=(9, 0, 6))


@pytest.fixture(scope="module")
def rows(own):
    return worlds.read_manifest(own)


@pytest.mark.parametrize("part", range(6))
def test_damaged_tables_are_refused_in_one_line_or_read_as_they_stand(own, rows, tmp_path, part, quick):
    ends = {0: 0, 2: 0}
    for seed in range(FIRST + part, FIRST + TABLES, 6):
        try:
            ends[attack(own, rows, seed, tmp_path)] += 1
        except Exception as e:
            raise AssertionError(f"seed {seed}: {type(e).__name__} {e}") from e
    print(f"tables {FIRST + part} to {FIRST + TABLES}: {ends[2]} refused, {ends[0]} taken")
    assert ends[2]
