"""What the check rests on: it foretells the stages, collects the reader's complaints, and finds alike names."""

import shlex

import pytest
import worlds
from hypothesis import given
from hypothesis import strategies as st
from pets import HEADER, ROWS, first_complaint, write
from worlds import read_manifest, write_folder, write_manifest

from cox_oom import check
from cox_oom.data import folder, survey
from cox_oom.files import UserError

RGB, IMU, LANGUAGE = 3, 4, 5  # columns
SMALL = {
    "extract_features": "--bind-epochs 1 --bind-width 8 --bind-dim 8 --workers 0",
    "train_connect": "--warmup-epochs 1 --connect-steps 1 --width 16 --depth 1 --batch 8",
    "train_explore": "--epochs 1 --connect-steps 1",
}


def without(rows, *columns, split=("train", "val", "test")):
    """Rows with these cells emptied."""
    return [["" if k in columns and r[1] in split else cell for k, cell in enumerate(r)] for r in rows]


def only(rows, column, count):
    """Rows of which `count` of the train rows keep the cell of a column."""
    train = [r[0] for r in rows if r[1] == "train"][:count]
    return [r if r[1] != "train" or r[0] in train else without([r], column)[0] for r in rows]


def apart(rows, column):
    """Rows that hold a column, or all the others, by turns."""
    others = {RGB, IMU, LANGUAGE} - {column}
    return [without([r], *(others if k % 6 < 3 else {column}))[0] for k, r in enumerate(rows)]


FOLDERS = {  # name: (rows -> rows, whether the stages go through)
    "whole": (lambda rows: rows, True),
    "no pairs with the sensor": (lambda rows: apart(rows, IMU), True),
    "no pairs among the others": (lambda rows: without(apart(rows, RGB), IMU, split=("val",)), True),
    "no label in the train rows": (lambda rows: [without([r], 2)[0] if r[1] == "train" else r for r in rows], False),
    "labels beside the sensor alone": (
        lambda rows: [without([r], 2)[0] if r[1] == "train" and r[IMU] else r for r in apart(rows, IMU)],
        True,
    ),
    "no pair, and one side without labels": (
        lambda rows: [without([r], 2)[0] if r[1] == "train" and r[RGB] else r for r in apart(rows, RGB)],
        False,
    ),
    "no test row of the sensor": (lambda rows: without(rows, IMU, split=("test",)), False),
    "no test label of the sensor": (lambda rows: without(rows, 2, split=("test",)), False),
    "no train row of rgb": (lambda rows: without(rows, RGB, split=("train",)), False),
    "only the sensor": (lambda rows: without(rows, RGB, LANGUAGE), False),
    "three labelled rows of the sensor": (lambda rows: only(rows, IMU, 3), False),
    "four labelled rows of the sensor": (lambda rows: only(rows, IMU, 4), True),
    "no id": (lambda rows: [["", *rows[0][1:]], *rows[1:]], False),
    "a file that is not there": (lambda rows: [[*rows[0][:3], "rgb/x.png", *rows[0][4:]], *rows[1:]], False),
}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("name", FOLDERS)
def test_the_exit_code_foretells_the_stages(tmp_path, capsys, monkeypatch, name):
    """0 just where the printed commands run, with small numbers added."""
    monkeypatch.chdir(tmp_path)
    change, passes = FOLDERS[name]
    own, code = write_folder(tmp_path / "toy", n=(18, 3, 9)), 0
    write_manifest(own, change(read_manifest(own)))
    try:
        check.main(["toy", "--oom", "imu", "--workers", "0"])
    except SystemExit as ended:
        code = ended.code
    out = capsys.readouterr().out
    commands = [shlex.split(line)[1:] for line in out.splitlines() if line.startswith("  python")]
    commands = [c for c in commands if c[0] != "evaluate.py" and c[-1] not in ("raw", "erm", "selftrain")]
    assert len(commands) == 3
    refused = None
    try:
        for script, *flags in commands:
            stage = script.removesuffix(".py")
            worlds.STAGES[stage].main([*flags, *SMALL[stage].split()])
    except UserError as error:
        refused = str(error)
    assert (code == 0) == passes == (refused is None), (refused, out)


def test_complaints_are_those_of_the_reader(tmp_path):
    """One folder, mended fault by fault: the first of the collected complaints is always what reading stops at."""
    faults = [(1, "id", ""), (3, "split", "dev"), (0, "label", "None"), (0, "rgb", "../a.png")]
    for n in range(len(faults) + 1):
        rows = [list(r) for r in [*ROWS, *ROWS]]
        for k, row in enumerate(rows):
            row[0] = f"r{k}"
        for row, column, value in faults[n:]:
            rows[row][HEADER.index(column)] = value
        write(tmp_path, rows)
        found = []
        folder.collect(str(tmp_path), found.append)
        assert [str(e) for e in found[:1]] == ([first_complaint(tmp_path)] if n < len(faults) else [])
        assert len(found) == len(faults) - n


def test_names_that_look_alike():
    names = ["cup", "cups", "glass", "glasses", "spatula", "spatual", "coffee cup", "coffee_cup", "box 1", "box 2"]
    names += ["ball", "bell", "object_10", "object_11", "screw a", "screw b", "metal can", "metal cap"]
    names += ["banana", "bananna"]
    assert survey.alike(names) == [
        ("cup", "cups"),
        ("glass", "glasses"),
        ("spatula", "spatual"),
        ("coffee cup", "coffee_cup"),
        ("banana", "bananna"),
    ]


@given(st.text("abc", min_size=5, max_size=7), st.text("abc", min_size=5, max_size=7))
def test_one_slip_is_one_edit(x, y):
    """Against all words that one letter less, more, another one, or two exchanged make of x."""
    cuts = [(x[:i], x[i:]) for i in range(len(x) + 1)]
    edits = {a + b[1:] for a, b in cuts if b} | {a + c + b for a, b in cuts for c in "abc"}
    edits |= {a + c + b[1:] for a, b in cuts if b for c in "abc"} | {a + b[1] + b[0] + b[2:] for a, b in cuts if b[1:]}
    assert survey._one_slip(x, y) == (y in edits - {x})
