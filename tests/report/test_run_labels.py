"""run.sh with LABELS: each share of labels has runs of its own over the same files of stage 1."""

import json
import os
import subprocess

import pytest
from worlds import ROOT, stage, write_folder

import evaluate

KEEP = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}


def call(python, tmp_path, **environment):
    given = {"PYTHON": str(python), "RUNS": str(tmp_path / "runs"), "JOBS": "1", "METHODS": "erm cox", "SEEDS": "0 1"}
    return subprocess.run(
        ["bash", str(ROOT / "run.sh")], cwd=ROOT, capture_output=True, text=True, env={**KEEP, **given, **environment}
    )


@pytest.fixture
def noted(tmp_path):
    """noted(**environment): run.sh with a python that only notes its arguments: (finished process, the lines)."""
    log, fake = tmp_path / "log", tmp_path / "python"
    banks = '"$runs"/synth/inputs "$runs"/synth/bind/no-audio/banks "$runs"/synth/bind/no-rgb/banks'
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then echo erm cox; exit; fi\necho "$*" >> "{log}"\n'
        f'runs="{tmp_path}/runs"; [ "$1" != extract_features.py ] || mkdir -p {banks}\necho done in 0 s\n'
    )
    fake.chmod(0o755)

    def run(**environment):
        log.write_text("")
        done = call(fake, tmp_path, **environment)
        return done, log.read_text().splitlines()

    return run


def of(lines, stage, *words):
    return [line for line in lines if line.startswith(stage) and all(f" {w} " in f"{line} " for w in words)]


def test_every_share_has_its_runs_and_links_to_stage_1(noted, tmp_path):
    done, lines = noted(LABELS="0.02 0.1", CONNECT="--width 8")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "extract_features.py")) == 1
    for share in ("0.02", "0.1"):
        tree = f"--runs {tmp_path}/runs/labels-{share}"
        connect = of(lines, "train_connect.py", tree, f"--labels {share}", "--width 8")
        assert len(connect) == 2 and len(of(lines, "train_explore.py", tree)) == 4
        for part in ("inputs", "bind/no-audio"):
            link = tmp_path / "runs" / f"labels-{share}" / "synth" / part
            assert link.is_symlink() and link.resolve() == (tmp_path / "runs" / "synth" / part).resolve()
        assert not (tmp_path / "runs" / f"labels-{share}" / "synth" / "bind" / "no-rgb").exists()
    (last,) = of(lines, "evaluate.py")
    assert f"--runs {tmp_path}/runs/labels-0.02 {tmp_path}/runs/labels-0.1 --table --out" in last


def test_without_shares_nothing_is_different(noted, tmp_path):
    done, lines = noted()
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "train_connect.py", f"--runs {tmp_path}/runs")) == 2 and "--labels" not in " ".join(lines)
    assert len(of(lines, "train_explore.py", f"--runs {tmp_path}/runs")) == 4
    assert not list((tmp_path / "runs").glob("labels-*"))


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"SETTING": "unsup"}, "SETTING=unsup"),
        ({"CONNECT": "--labels 0.5"}, "both say how many labels"),
        ({"CONNECT": "--width 8 --per-class 4"}, "both say how many labels"),
    ],
)
def test_what_contradicts_the_shares_is_refused(noted, environment, words):
    done, lines = noted(LABELS="0.1", **environment)
    assert done.returncode == 2 and words in done.stderr and done.stderr.count("\n") == 1 and not lines


@pytest.mark.usefixtures("quick")
def test_the_stages_make_a_learning_curve(tmp_path):
    """The trees that run.sh makes of three shares of labels, in one report."""
    folder, runs = write_folder(tmp_path / "toy", n=(60, 0, 15)), tmp_path / "runs"
    stage("extract_features", folder, runs)
    trees = [runs / f"labels-{share}" for share in ("0.1", "0.2", "0.4")]
    for tree in trees:
        for part in ("inputs", "bind/no-imu"):
            (tree / "toy" / part).parent.mkdir(parents=True, exist_ok=True)
            (tree / "toy" / part).symlink_to(runs / "toy" / part)
        stage("train_connect", folder, tree, "--labels", tree.name.partition("-")[2])
        stage("train_explore", folder, tree, "--method erm")
    report = runs / "toy" / "report"
    evaluate.main(["--data", str(folder), "--runs", *map(str, trees), "--table", "--out", str(report)])
    assert {r["labels"] for r in json.loads((report / "table.json").read_text())} == {0.1, 0.2, 0.4}
    text = (report / "table.md").read_text()
    assert "How many labels are enough: toy imu" in text and "| method | 6 labels | 12 labels | 24 labels |" in text
    assert "Labels and accuracy" in (report / "report.html").read_text()
