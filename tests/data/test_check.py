"""`python -m cox_oom.check`: it names every fault that the stages would stop at, says what a folder holds, and its
commands run."""

import csv
import re
import shlex

import numpy as np
import pytest
import worlds
from pets import HEADER, ROWS, changed, first_complaint, write
from PIL import Image
from worlds import read_manifest, write_folder, write_manifest

import evaluate
from cox_oom import check
from cox_oom import data as datasets
from cox_oom.files import UserError

STAGES = {**worlds.STAGES, "evaluate": evaluate}


def checked(capsys, *argv):
    """(exit code, what was printed) of the command."""
    code = 0
    try:
        check.main([str(a) for a in argv])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().out


def table_of(out, title, width):
    """{name: numbers} of the table below a line that begins with the title."""
    lines = out.split(f"\n{title}", 1)[1].split("\n\n")[0].splitlines()[2:]
    found = (re.match(rf"  (.+?)((?:\s+(?:\d+|\|)){{{width}}})$", line) for line in lines)
    return {m[1].strip(): [int(n) for n in m[2].split() if n != "|"] for m in found if m}


def test_a_good_folder_and_its_commands(tmp_path, capsys):
    """test_survey.py runs the commands of stages 1 to 3."""
    code, out = checked(capsys, write_folder(tmp_path / "toy"))
    assert code == 0 and "the new sensor is imu" in out and out.endswith("faults: 0, warnings: 0\n")
    commands = [shlex.split(line)[1:] for line in out.split("\nCommands\n")[1].splitlines() if "python" in line]
    given = [STAGES[script.removesuffix(".py")].get_args(flags) for script, *flags in commands]
    scripts = ["extract_features", "train_connect", *["train_explore"] * 4, "evaluate"]
    assert [script for script, *_ in commands] == [f"{name}.py" for name in scripts]
    assert all(str(tmp_path / "toy") in args.data for args in given)
    assert [args.method for args in given[2:6]] == ["raw", "erm", "selftrain", "cox"] and given[0].image_size == 8


def test_what_it_counts_is_in_the_table(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(20, 4, 9))
    rows = [[*r[:2], "" if k % 4 == 0 and r[1] == "train" else r[2], *r[3:]] for k, r in enumerate(read_manifest(own))]
    rows = [[*r[:4], "" if k % 3 == 0 else r[4], r[5]] for k, r in enumerate(rows)]
    write_manifest(own, rows)
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 0 and max(map(len, out.splitlines())) <= 100 + len(str(own))
    with open(own / "manifest.csv", newline="") as f:
        cells = list(csv.DictReader(f))
    count = lambda *has, **of: sum(all(c[h] for h in has) and all(c[k] == v for k, v in of.items()) for c in cells)
    counts = table_of(out, "Rows", 3)
    for name in ("id", "label", "rgb", "imu", "language"):
        assert counts[name] == [count(name, split=s) for s in datasets.SPLITS], name
    classes = table_of(out, "3 classes", 7)
    for name in worlds.CLASSES:
        own_rows = [count("imu", split=s, label=name) for s in datasets.SPLITS]
        assert classes[name] == [count(split=s, label=name) for s in datasets.SPLITS] + own_rows
    pairs = table_of(out, "Pairs", 2)
    assert pairs["rgb"] == [count("imu", "rgb", split="train"), count("imu", "rgb", "label", split="train")]
    steps = [np.load(own / c["imu"]).shape[1] for c in cells if c["imu"]]
    assert f"imu       series  {min(steps)} to {max(steps)} steps, median {np.median(steps):g}, channels: 2" in out
    assert "rgb       image   8 x 8 (height x width), channels: 3, uint8" in out


CHANGES = [
    (1, "id", "a"),
    (1, "id", ""),
    (3, "split", "dev"),
    (4, "label", "cow"),
    (1, "label", "cat"),
    (0, "label", "None"),
    (3, "label", "Dog"),
    (4, "split", "val"),
    (2, "rgb", ""),
    (0, "rgb", "../a.png"),
    (0, "rgb", "a.wav"),
    (0, "pulse", "rgb/a.png"),
    (0, "rgb", "rgb/none.png"),
    (3, "pulse", "a.txt"),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_first_fault_is_what_the_stages_stop_at(tmp_path, capsys, change):
    said = first_complaint(write(tmp_path, changed(*change)))
    code, out = checked(capsys, tmp_path, "--oom", "pulse")
    assert code == 1 and said and f"  {said}\n" in out


def test_all_faults_of_one_folder(tmp_path, capsys):
    """Of ten rows with a fault each, and two with two, every one is named by row and id."""
    write(tmp_path)
    rows = [[f"r{k}", *ROWS[k % 2][1:]] for k in range(12)] + [["r12", *ROWS[4][1:]]]
    for row, column, value in (
        (0, "split", "Train"),
        (11, "label", "DOG"),
        (2, "label", "nan"),
        (3, "rgb", "rgb/none.png"),
        (4, "rgb", "/etc/passwd.png"),
        (5, "rgb", "rgb\\b.png"),
        (6, "pulse", "pulse/a.txt"),
        (7, "pulse", "rgb/a.png"),
        (8, "id", "r3"),
        (8, "split", "dev"),
        (9, "pulse", "pulse/broken.npy"),
        (9, "rgb", "rgb/broken.png"),
        (12, "label", "cow"),
    ):
        rows[row][HEADER.index(column)] = value
    rows[1][3:], rows[10] = ["", "", ""], rows[10][:3]
    write(tmp_path, rows)
    (tmp_path / "pulse/broken.npy").write_bytes(b"")
    (tmp_path / "rgb/broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    code, out = checked(capsys, tmp_path, "--oom", "pulse")
    faults = out.split("\nRows")[0].splitlines()
    found = {int(m[1]) - 2: m[2] for line in faults if (m := re.search(r"row (\d+) \(id (\w+)\)", line))}
    assert code == 1 and sorted(found) == [*range(13)] and found[0] == "r0" and found[8] == "r3"
    assert all("; " in line for line in faults if "manifest.csv" in line)
    for words in ("'Train' is unknown", "already in row 5", "'dev' is unknown", "is an empty file", "as an image"):
        assert words in out, words
    assert "Commands, once the faults are mended" in out


def test_a_split_that_can_be_guessed_hides_no_other_fault(tmp_path, capsys):
    """Every row says Train or Testing: that is one kind of fault, and the files are checked all the same."""
    rows = [[r[0], {"train": "Train", "val": "Valid", "test": "Testing"}[r[1]], *r[2:]] for r in ROWS]
    (write(tmp_path, rows) / "pulse/e.npy").unlink()
    code, out = checked(capsys, tmp_path, "--oom", "pulse")
    assert code == 1 and out.count("is unknown; use train, val or test") == 5
    assert (
        "pulse/e.npy' is not there" in out
        and "no row has split" not in out
        and table_of(out, "Rows", 3)["id"] == [3, 1, 1]
    )


def test_one_line_for_two_spellings_of_a_label(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(30, 0, 6))
    write_manifest(own, [[*r[:2], "Cup" if k == 0 else r[2], *r[3:]] for k, r in enumerate(read_manifest(own))])
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 1 and out.count("differ only in case") == 1 and "'cup' and 'Cup' of row 2" in out


def test_many_faults_of_one_kind_are_counted(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(30, 0, 6))
    for k in range(30):
        (own / f"imu/itrain{k}.npy").unlink() if k % 2 else None
    code, out = checked(capsys, own, "--oom", "imu", "--list", "4")
    assert code == 1 and out.count("is not there;") == 4 and "… and 11 more of this kind" in out
    code, out = checked(capsys, own, "--oom", "imu", "--on-error", "skip")
    assert code == 0 and out.endswith("faults: 0, warnings: 15\n") and "--on-error skip" in out.split("Commands")[1]


def test_a_folder_of_which_nothing_can_be_used(tmp_path, capsys):
    (tmp_path / "manifest.csv").write_text("id,split,label,a\n1,train,x,q.npy\n2,train,y,r.npy\n3,test,y,s.npy\n")
    code, out = checked(capsys, tmp_path)
    assert code == 1 and out.count("is not there;") == 3 and "no modality can be used" in out and "python" not in out


def test_a_table_without_a_header_is_one_fault(tmp_path, capsys):
    write(tmp_path)
    (tmp_path / "manifest.csv").write_text("id;split;label;rgb\na;train;x;y\n")
    code, out = checked(capsys, tmp_path)
    assert code == 1 and out.count("\n  ") == 1 and "separated by ';'" in out


@pytest.mark.parametrize(
    "flags, words",
    [
        (["nowhere"], "nowhere: not a folder"),
        (["."], "manifest.csv: not there; .*--make"),
        (["pets", "--oom", "nose"], "--oom nose: .* has the columns rgb, language, pulse"),
        (["pets", "--oom", "pulse", "--im", "rgb,nose"], "--im nose"),
        (["pets", "--im", "rgb"], "give --oom as well"),
        (["pets", "--as", "nose=image"], "--as nose=image"),
        (["pets", "--as", "rgb=smell"], "no such kind"),
        (["pets", "--as", "rgb"], "write KEY=VALUE"),
        (["pets", "--option", "seed=1"], "--option seed: a folder has the options frames, limit"),
        (["pets", "--option", "limit=x"], "the option limit is 'x'"),
    ],
)
def test_command_lines_that_cannot_be_followed(tmp_path, monkeypatch, flags, words):
    write(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=words):
        check.main(flags)


def test_warnings_let_a_run_go_on(tmp_path, capsys):
    """Silent, constant, marked and repeated items, and alike labels: exit code 0. The line names the item."""
    soundfile = pytest.importorskip("soundfile")
    own = write_folder(tmp_path / "toy", n=(18, 3, 9))
    rows = read_manifest(own)
    (own / "tap").mkdir()
    for k, r in enumerate(rows):
        wave = np.random.default_rng(k).normal(0, 0.1 if r[0] != "itrain3" else 0, 1600)
        soundfile.write(own / f"tap/{k}.wav", wave, 16000)
        r[2] = {"cup": "cup", "key": "key", "pen": "pens" if k % 6 == 2 else "pen"}[r[2]]
        r[5] = f"tap/{k}.wav"
    write_manifest(own, rows, ("id", "split", "label", "rgb", "imu", "tap"))
    Image.new("RGB", (8, 8), (9, 9, 9)).save(own / "rgb/itrain4.png")
    x = np.load(own / "imu/itrain5.npy")
    x[0, 1:3] = -9999
    np.save(own / "imu/itrain5.npy", x)
    (own / "imu/itest2.npy").write_bytes((own / "imu/itrain6.npy").read_bytes())
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 0, out
    for words in (
        "row 5 (id itrain3): tap 'tap/3.wav' is silent",
        "row 6 (id itrain4): rgb 'rgb/itrain4.png' never changes",
        "row 7 (id itrain5): imu 'imu/itrain5.npy' has 2 of",
        "(id itest2): imu 'imu/itest2.npy' of test holds the same as row 8 of train",
        "the labels 'pen' and 'pens' look alike",
    ):
        assert words in out, words
    code, out = checked(capsys, own, "--oom", "imu", "--on-silence", "fatal")
    assert code == 1 and "is silent" in out.split("\nFaults")[1].split("\nWarnings")[0]


def test_images_unlike_the_others(tmp_path, capsys):
    """TIFFs of 8 bits and of floats are told apart by decoding alone."""
    own = write_folder(tmp_path / "toy", n=(9, 0, 6))
    rows = read_manifest(own)
    for k, r in enumerate(rows):
        r[3] = f"rgb/{k}.tif"
        mode = np.float32 if k == 4 else np.uint8
        Image.fromarray(np.random.default_rng(k).integers(0, 9, (8, 8)).astype(mode)).save(own / r[3])
    write_manifest(own, rows)
    code, out = checked(capsys, own, "--oom", "imu")
    assert (
        code == 1 and "row 6 (id itrain4): rgb 'rgb/4.tif' is unlike: pixels are float32, those before it uint8" in out
    )


def test_flags_that_a_folder_needs(tmp_path, capsys):
    """No true pairs; few labels; no label of the sensor at all; a column that is told by hand."""
    own = write_folder(tmp_path / "toy", n=(30, 0, 9), separate=("imu",))
    code, out = checked(capsys, own, "--oom", "imu")
    connect = next(line for line in out.splitlines() if "train_connect" in line)
    assert code == 0 and "--pair-by-class" in connect and "--image-size 8" in out and "--patch 4" in connect
    rows = [[*r[:2], r[2] if r[1] == "test" or k % 30 < 9 else "", *r[3:]] for k, r in enumerate(read_manifest(own))]
    write_manifest(own, rows, ("id", "split", "label", "rgb", "imu", "note"))
    code, out = checked(capsys, own, "--oom", "imu", "--as", "note=language")
    assert code == 0 and "--as note=language" in out and "--labels 1" in out
    rows = [[*r[:2], "" if r[4] and r[1] == "train" else r[2], *r[3:]] for r in rows]
    write_manifest(own, rows)
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 0 and "--setting unsup" in out and "expect chance" in out


def test_a_sensor_that_stage_4_cannot_judge(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(12, 0, 6))
    write_manifest(own, [[*r[:4], "" if r[1] == "test" else r[4], r[5]] for r in read_manifest(own)])
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 1 and "no labelled row of split test has a imu item" in out


def test_a_sensor_of_which_nothing_is_left_to_explore(tmp_path, capsys):
    """One labelled row of each class: stage 2 keeps them all, and stage 3 would stop."""
    own = write_folder(tmp_path / "toy", n=(12, 0, 6))
    cut = lambda few: [[*r[:4], r[4] if k < few or r[1] == "test" else "", r[5]] for k, r in enumerate(rows)]
    rows = read_manifest(own)
    write_manifest(own, cut(3))
    code, out = checked(capsys, own, "--oom", "imu")
    assert code == 1 and "none is left to explore" in out
    write_manifest(own, cut(4))
    assert checked(capsys, own, "--oom", "imu")[0] == 0


def test_a_real_folder(data, capsys):
    if not (data / "robot_push" / "manifest.csv").exists():
        pytest.skip(f"{data} has no robot_push (COX_TEST_DATA names the folder of test data)")
    code, out = checked(capsys, data / "robot_push", "--oom", "sound")
    assert code == 0 and "20 classes" in out and table_of(out, "Pairs", 2)["surf"] == [400, 400]
