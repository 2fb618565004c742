"""evaluate.py --compare A B: flags that differ, metrics with differences, curves; and several --runs in one table."""

import json
import re
import shutil

import numpy as np
import pytest
from records import make_world

import evaluate
from cox_oom import files, run
from cox_oom.report import compare


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    runs = tmp_path_factory.mktemp("runs")
    make_world(runs, seeds=(0, 1, 2), methods=("erm", "cox"))
    evaluate.main(["--data", "toy", "--runs", str(runs)])
    return runs


@pytest.fixture
def folders(world, tmp_path):
    """The seeds' folders of a copy that a test may change."""
    return sorted(shutil.copytree(world, tmp_path / "w").glob("*/*/*/*/seed*"))


def rows(text, title):
    """{(first cells of a row): [its last three]} of a table that was printed."""
    part = text.split(f"## {title}\n")[1].split("\n## ")[0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")]
    return {tuple(row[:-3]): row[-3:] for row in cells[2:]}


def test_two_runs_side_by_side(folders, capsys):
    evaluate.main(["--compare", str(folders[0] / "erm.pt"), str(folders[1] / "cox.json")])
    text = capsys.readouterr().out
    part = text.split("## Metrics")[0]
    assert "| run | method | erm | cox |" in part and "| run | seed | 0 | 1 |" in part and "fingerprint" not in part
    assert "--lr" not in part and "--labels" not in part  # only what differs
    one, other = (json.loads((folders[s] / f"{m}.json").read_text()) for s, m in ((0, "erm"), (1, "cox")))
    found = rows(text, "Metrics")
    for key, words in (
        ("accuracy", "test accuracy, %"),
        ("val_accuracy", "validation accuracy, %"),
        ("nmi", "NMI, × 100"),
    ):
        a, b = (100 * r["metrics"][key] for r in (one, other))
        assert found[("erm → cox", words)] == [f"{a:.1f}", f"{b:.1f}", f"{b - a:+.1f}"]
    assert set(rows(text, "Accuracy of each class, %")) == {("ape",), ("bee",), ("cat",)}
    assert "over 21 test items has a standard error of 8.7 points" in text and "--out DIR" in text


def test_flags_that_differ_are_named_with_their_stage(folders, capsys):
    known = json.loads((folders[0] / "cox.json").read_text())
    known["args"]["epochs"], known["connect_args"]["labels"], known["connect_args"]["lr"] = 9, 0.5, 0.1
    (folders[0] / "cox.json").write_text(json.dumps(known))
    (folders[0] / "cox.pt").unlink()
    evaluate.main(["--compare", str(folders[1] / "cox.pt"), str(folders[0] / "cox.json")])
    part = capsys.readouterr().out.split("## Metrics")[0]
    assert "| stage 3 | --epochs | 2 | 9 |" in part and "| stage 2 | --labels | 0.1 | 0.5 |" in part
    assert "| stage 2 | --lr | – | 0.1 |" in part and "| stage 3 | --lr" not in part


def test_folders_are_compared_by_method_and_paired_by_seed(world, tmp_path, capsys):
    other = shutil.copytree(world, tmp_path / "other")
    gaps = {}
    for k, path in enumerate(sorted(other.rglob("cox.json"))):
        known = json.loads(path.read_text())
        gaps[path] = (0.01, 0.02, 0.06)[k]
        known["metrics"]["accuracy"] += gaps[path]
        path.write_text(json.dumps(known))
    next(other.rglob("seed0/erm.pt")).unlink()
    next(other.rglob("seed0/erm.json")).unlink()
    evaluate.main(["--compare", str(world), str(other)])
    found = rows(capsys.readouterr().out, "Metrics")
    gap = [100 * g for g in gaps.values()]
    assert found[("cox", "test accuracy, %")][2] == f"{np.mean(gap):+.1f} ± {np.std(gap, ddof=1):.1f}"
    erm = [100 * json.loads(p.read_text())["metrics"]["accuracy"] for p in sorted(world.rglob("erm.json"))]
    said = found[("erm", "test accuracy, %")]  # no pairs: one seed is missing
    assert said[0] == f"{np.mean(erm):.1f} ± {np.std(erm, ddof=1):.1f}"
    assert said[2] == f"{np.mean(erm[1:]) - np.mean(erm):+.1f}"


def test_a_run_that_is_not_evaluated_shows_flags_and_says_so(folders, tmp_path, capsys):
    (folders[0] / "cox.json").unlink()
    old = json.loads((folders[1] / "cox.json").read_text())
    (folders[1] / "cox.json").write_text(json.dumps({**old, "made_from": {"cox": "of an earlier .pt"}}))
    evaluate.main(["--compare", str(folders[0] / "cox.pt"), str(folders[1] / "cox.pt")])
    text = capsys.readouterr().out
    assert "A has runs that are not evaluated" in text and "B has runs that are not evaluated" in text
    assert "| run | seed | 0 | 1 |" in text and "test accuracy" not in text and "seconds of stage 3" in text


def test_the_page_has_the_curves(folders, tmp_path, capsys):
    sides = [compare.read_side(str(f)) for f in folders[:2]]
    figure = compare.curves(sides)
    assert [ax.get_title() for ax in figure.axes] == ["loss", "val_accuracy"]
    labels = [t.get_text() for t in figure.axes[0].get_legend().get_texts()]
    assert labels == ["A erm", "A cox", "B erm", "B cox"]
    assert figure.axes[0].lines[0].get_ydata().tolist() == [1.0, 0.5]
    evaluate.main(["--compare", str(folders[0]), str(folders[1]), "--out", str(tmp_path / "out")])
    assert f"wrote {tmp_path}/out/compare.html" in capsys.readouterr().out
    page = (tmp_path / "out" / "compare.html").read_text()
    assert page.count("<img ") == 1 and "<h2>What differs</h2>" in page
    assert not re.search(r"https?:|<script|<link", page)


@pytest.mark.parametrize("side", ["nowhere", ".", "notes.txt"])
def test_a_side_without_a_run_is_refused(folders, tmp_path, monkeypatch, capsys, side):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "w").rename(tmp_path.parent / f"{tmp_path.name}-moved")
    (tmp_path / "notes.txt").write_text("no run")
    with pytest.raises(SystemExit) as ended:
        run.script(evaluate.main, ["--compare", side, side])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and f"--compare {side}: no run" in said


def test_data_or_two_runs_must_be_given(capsys):
    with pytest.raises(SystemExit) as ended:
        evaluate.main([])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "--data" in said and "--compare" in said and said.count("\n") == 1


# ------------------------------------------------------------------------------------------------------ several --runs


def test_several_folders_of_runs_make_one_table(tmp_path):
    make_world(tmp_path / "a", seeds=(0,), methods=("erm",))
    make_world(tmp_path / "b", seeds=(1,), methods=("erm",))
    both = ["--data", "toy", "--runs", str(tmp_path / "a"), str(tmp_path / "b"), "--table"]
    evaluate.main(both)
    records = json.loads((tmp_path / "a" / "toy" / "report" / "table.json").read_text())
    assert [r["seed"] for r in records] == [0, 1]
    make_world(tmp_path / "b", seeds=(0,), methods=("erm",))
    with pytest.raises(files.UserError, match="two folders of --runs have erm of toy sonar, semi, 10% labels, seed 0"):
        evaluate.main(both)
