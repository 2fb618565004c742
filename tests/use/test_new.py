"""evaluate.py --new: predictions.csv, the stream, bad recordings, abstaining."""

import csv
import io
import shutil
import sys

import numpy as np
import pytest
import worlds

from cox_oom.files import UserError


@pytest.fixture
def imu(trained):
    folder, paths = trained
    return folder, ["--data", folder, "--runs", paths["imu"].parents[5], "--oom", "imu"]


def test_a_folder_with_one_bad_file(imu, named, tmp_path):
    folder, flags = imu
    new = tmp_path / "new"
    shutil.copytree(folder / "imu", new / "deep")
    (new / "broken.npy").write_bytes(b"nothing")
    np.save(new / "other.npy", np.zeros((5, 7), np.float32))
    (new / "notes.txt").write_text("no recording")
    status, said = named(*flags, "--new", new, "--out", tmp_path / "out")
    rows = worlds.read_rows(tmp_path / "out" / "predictions.csv")
    assert status == 1 and len(rows) == 40 and "2 of them could not be read" in said
    bad = {r["id"]: r for r in rows if not r["confidence"]}
    assert set(bad) == {"broken.npy", "other.npy"} and all(r["note"] and not r["class"] for r in bad.values())
    assert "no .npy array" in bad["broken.npy"]["note"] and "pickle" not in bad["broken.npy"]["note"]
    for row in rows:
        if row["confidence"]:
            p = {c: float(row[c]) for c in ("cup", "key")}
            assert sum(p.values()) == pytest.approx(1, abs=1e-5) and row["class"] == max(p, key=p.get)
            assert float(row["confidence"]) == pytest.approx(max(p.values()), abs=1e-4)


def test_a_manifest_gives_ids_and_its_labels_are_compared(imu, named, tmp_path):
    folder, flags = imu
    status, said = named(*flags, "--new", folder, "--out", tmp_path)
    rows = worlds.read_rows(tmp_path / "predictions.csv")
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as f:
        truth = {r["id"]: r["label"] for r in csv.DictReader(f)}
    right = np.mean([truth[r["id"]] == r["class"] for r in rows])
    assert status == 0 and f"{100 * right:.1f}% of the 38" in said


def test_abstaining_leaves_the_unsure_without_a_class(imu, named, tmp_path):
    folder, flags = imu
    named(*flags, "--new", folder / "imu", "--out", tmp_path)
    sure = sorted(float(r["confidence"]) for r in worlds.read_rows(tmp_path / "predictions.csv"))
    least = (sure[10] + sure[11]) / 2
    named(*flags, "--new", folder / "imu", "--out", tmp_path, "--abstain", least)
    rows = worlds.read_rows(tmp_path / "predictions.csv")
    assert [bool(r["class"]) for r in rows] == [float(r["confidence"]) >= least for r in rows]
    assert any("less sure" in r["note"] for r in rows)


def test_a_line_is_answered_before_the_next_is_read(imu, named, monkeypatch):
    folder, flags = imu
    seen = []

    class Lines(io.StringIO):
        def readline(self, *args):
            seen.append(sys.stdout.getvalue().count("\n"))
            return super().readline(*args)

    written = io.StringIO()
    monkeypatch.setattr(sys, "stdin", Lines(f"{folder}/imu/test0.npy\n\n{folder}/imu/nothing.npy\n"))
    monkeypatch.setattr(sys, "stdout", written)
    status, _ = named(*flags, "--new", "-")
    lines = list(csv.reader(io.StringIO(written.getvalue())))
    assert status == 1 and seen == [0, 1, 1, 2]
    assert lines[0][1] in ("cup", "key") and lines[1][1] == "" and "not there" in lines[1][3]


def test_sentences_are_named_a_line_each(trained, named, tmp_path):
    folder, paths = trained
    (tmp_path / "new.txt").write_text("a red cup\n\na long key\n", encoding="utf-8")
    flags = ["--data", folder, "--runs", paths["language"].parents[5], "--oom", "language"]
    status, _ = named(*flags, "--new", tmp_path / "new.txt", "--out", tmp_path)
    assert status == 0 and [r["id"] for r in worlds.read_rows(tmp_path / "predictions.csv")] == ["1", "2"]


@pytest.mark.parametrize(
    ("new", "words"), [("nowhere", "not there"), ("empty", "no file of kind series"), ("table", "no column imu")]
)
def test_nothing_to_name_is_one_line(imu, named, tmp_path, new, words):
    (tmp_path / "empty").mkdir()
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "manifest.csv").write_text("id,rgb\n1,a.png\n")
    with pytest.raises(UserError, match=words):
        named(*imu[1], "--new", tmp_path / new)


@pytest.mark.parametrize("flags", ["--export a.onnx", "--suggest 3", "--table", "--runs b"])
def test_two_uses_at_once_are_one_line(imu, named, flags):
    with pytest.raises(UserError, match="at a time|name one"):
        named(*imu[1], "--new", imu[0], *flags.replace("--runs", f"--runs {imu[1][3]}").split())


def test_runs_of_several_sensors_need_a_choice(trained, named, tmp_path):
    folder, paths = trained
    with pytest.raises(UserError, match="--oom"):
        named("--data", folder, "--runs", paths["imu"].parents[5], "--new", folder / "imu")
