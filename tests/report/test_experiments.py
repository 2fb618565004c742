"""The experiments' shell files: which stages they run with which flags, what is already done."""

import os
import subprocess
import sys

import collect
import pytest
from worlds import ROOT, write_folder

from cox_oom.methods import METHODS, names
from cox_oom.report import tests
from cox_oom.report.records import read_records


@pytest.fixture
def sh(tmp_path):
    """sh(experiment, fails="", **environment): the shell file with a python that only notes its arguments (and fails
    where they contain `fails`): (finished process, [its arguments, a line a call])."""
    log, fake = tmp_path / "log", tmp_path / "python"
    (tmp_path / "grid").write_text("".join(f"{m} {flags}\n" for m, row in METHODS.items() for flags in row.grid))
    fake.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then case "$*" in *--grid*) cat "{tmp_path}/grid" ;; '
        f'*coxx*) {sys.executable} "$@" || exit ;; *--methods" "*) echo "${{*##*--methods }}" ;; '
        f"*unsup*) echo {' '.join(names('unsup'))} ;; *) echo {' '.join(names())} ;; esac; exit; fi\n"
        f'if [ "$1" = -c ]; then case "$3" in bad) echo error: bad >&2; exit 2 ;; esac\n'
        f'printf "rgb\\nvideo\\n"; exit; fi\necho "$*" >> "{log}"\n'
        'case " $* " in *"$FAILS"*) [ -z "$FAILS" ] || { echo broken; exit 2; } ;; esac\necho done in 0 s\n'
    )
    fake.chmod(0o755)

    def call(experiment, fails="", **environment):
        log.write_text("")
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        done = subprocess.run(
            ["bash", str(ROOT / "experiments" / f"{experiment}.sh")],
            capture_output=True,
            text=True,
            env={
                **keep,
                "PYTHON": str(fake),
                "RUNS": str(tmp_path / "runs"),
                "OUT": str(tmp_path / "out"),
                "SEEDS": "0 1",
                "FAILS": fails,
                "JOBS": "1",
                **environment,
            },
        )
        return done, log.read_text().splitlines()

    return call


def of(lines, stage, *words):
    return [line for line in lines if line.startswith(stage) and all(f" {w} " in f"{line} " for w in words)]


def test_table2_runs_every_column_method_and_seed_with_the_worlds_settings(sh):
    done, lines = sh("table2", DATA="some/digits synth")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "extract_features.py")) == 3 + 2  # digits: rgb pen audio; synth: rgb video here
    assert (
        len(of(lines, "train_connect.py")) == 2 * 5 and len(of(lines, "train_explore.py")) == (len(names()) + 1) * 2 * 5
    )
    (digits,) = of(lines, "train_connect.py", "--data some/digits", "--oom pen", "--seed 1")
    assert "--width 64 --depth 3 --patch 7 --slice 4" in digits and "--labels 0.1 " in digits
    assert of(lines, "train_connect.py", "--oom audio")[0].rindex("--labels 0.02") > digits.index("--labels 0.1")
    assert "--patch 8" in of(lines, "train_connect.py", "--data synth", "--oom video")[0]
    assert "--epochs 6" in of(lines, "train_explore.py", "--data some/digits", "--method moco")[0]
    assert len(of(lines, "train_explore.py", "--method selftrain", "--tag plain", "--rounds 0")) == 2 * 5
    assert len(of(lines, "evaluate.py", "--task classification")) == 5
    (last,) = of(lines, "experiments/collect.py")
    assert lines[-1] == last and "table2 --data some/digits synth --seed 0 1 --perceptor bind" in last


def test_controls_are_all_methods_that_see_few_labels(sh):
    done, lines = sh("controls", DATA="synth", OOM="rgb", SEEDS="0")
    assert done.returncode == 0, done.stderr
    ran = [line.split("--method ")[1].split()[0] for line in of(lines, "train_explore.py")]
    assert sorted(ran) == sorted(set(names()) - {"random", "aligned", "ensemble"})
    assert of(lines, "experiments/collect.py")[0].split("--method ")[1].split() == ran
    _, lines = sh("controls", DATA="synth", OOM="rgb", SEEDS="0", METHODS="ensemble cox")
    assert len(of(lines, "train_explore.py")) == 2


def test_full_size_and_other_flags(sh):
    which = dict(DATA="digits", OOM="pen", SIZE="full", METHODS="erm cox", PERCEPTOR="hf", SETTING="semi unsup")
    done, lines = sh("table3", **which, CONNECT="--patch 4", EXPLORE="--epochs 3", EXPLORE_cox="--w-agree 2")
    assert done.returncode == 0, done.stderr
    (connect,) = of(lines, "train_connect.py", "--seed 0", "--setting semi")
    assert "--width" not in connect and connect.endswith("--patch 4") and "--perceptor hf" in connect
    (cox,) = of(lines, "train_explore.py", "--seed 0", "--setting unsup", "--method cox")
    assert cox.endswith("--epochs 3 --w-agree 2")
    assert "--w-agree" not in of(lines, "train_explore.py", "--method erm")[0]
    assert len(of(lines, "evaluate.py", "--task retrieval")) == 2
    assert "--setting semi unsup --method erm cox" in lines[-1]


def test_a_failure_is_named_and_does_not_stop_the_other_columns(sh):
    done, lines = sh("fig6", fails="--oom pen --perceptor bind --runs", DATA="digits")
    assert done.returncode == 1 and "not finished: digits/pen/semi" in done.stderr
    assert len(of(lines, "train_explore.py", "--oom audio")) == 2 and not of(lines, "train_explore.py", "--oom pen")
    assert of(lines, "experiments/collect.py")  # what is there is shown


def test_a_data_set_that_cannot_be_read_is_named(sh):
    for experiment in ("table2", "table4"):
        done, lines = sh(experiment, DATA="bad synth", SEEDS="0")
        assert done.returncode == 1 and "error: bad" in done.stderr and "not finished: bad;" in done.stderr
        assert of(lines, "evaluate.py", "--data synth") and lines[-1].startswith("experiments/collect.py")


def test_a_misspelt_method_is_refused_before_anything_is_run(sh):
    done, lines = sh("table2", DATA="digits", OOM="pen", METHODS="erm coxx")
    assert done.returncode == 1 and "there is no method coxx" in done.stderr and not of(lines, "extract_features.py")


def test_table4_gives_every_ablation_a_row_of_its_own(sh, tmp_path):
    done, lines = sh("table4", DATA="digits", OOM="pen", SETTING="semi unsup", SEEDS="0")
    assert done.returncode == 0, done.stderr
    for tag, flags in (
        ("without-connection", "--without connection"),
        ("without-exploration", "--without exploration"),
        ("without-emergent", "--without emergent"),
        ("kl-literal", "--kl literal --w-disagree 0.5"),
        ("refresh-once", "--refreshes 1"),
    ):
        assert [line.endswith(flags) for line in of(lines, "train_explore.py", f"--tag {tag}")] == [True, True]
    assert [line.endswith("--w-im 0") for line in of(lines, "train_explore.py", "--tag no-im")] == [True]  # semi alone
    (warm,) = of(lines, "train_connect.py", "--without warmup")
    assert "/runs/without-warmup " in warm and "--setting unsup" in warm
    assert len(of(lines, "train_explore.py", "--tag without-warmup", "--without warmup")) == 1
    assert f"/runs {tmp_path}/runs/without-warmup " in lines[-1]


def test_trust_gives_every_column_its_own_flags_and_stops_where_one_fails(sh, tmp_path):
    done, lines = sh("trust", COX_TEST_DATA="some")
    assert done.returncode == 0, done.stderr
    assert lines[0].endswith(
        f"--leave-out eight nine --data some/handwritten --write {tmp_path}/runs/data/handwritten_open"
    )
    for world, oom, flags in (("some/digits", "pen", "--folds 2"), ("some/robot_push", "vibration", "--folds 3")):
        runs = of(lines, "train_explore.py", f"--data {world}", f"--oom {oom}")
        assert len(runs) == 3 * 2 and all(f"{flags} " in f"{line} " for line in runs)
    assert "--folds" not in "".join(of(lines, "train_explore.py", "--data synth"))
    assert "--patch 4" in of(lines, "train_connect.py", f"--data {tmp_path}/runs/data/handwritten_open")[0]
    assert lines[-1].startswith("experiments/trust.py --data synth some/handwritten some/robot_push some/digits ")
    done, lines = sh("trust", COX_TEST_DATA="some", fails="--data some/robot_push")
    assert done.returncode == 1 and "not finished: some/robot_push vibration" in done.stderr
    assert not of(lines, "experiments/trust.py", "--runs")


def test_commonality_takes_a_tree_each_and_stage_1_once_a_world(sh, tmp_path):
    done, lines = sh("commonality", COMMONALITY="0 1", PAIRS="2 8", CONNECT="--width 8")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "evaluate.py", "--task retrieval")) == 4
    for c in "01":
        for n in "28":
            tree = f"--runs {tmp_path}/runs/commonality/{c}-{n}"
            assert len(of(lines, "train_connect.py", tree, f"--per-class {n}")) == 2
            assert of(lines, "train_connect.py", tree)[0].count("--per-class") == 1
            assert f"--option commonality={c}" in of(lines, "extract_features.py", tree)[0]
    inputs = [tmp_path / "runs" / "commonality" / t / "synth" / "inputs" for t in ("0-2", "0-8", "1-2")]
    assert inputs[0].resolve() == inputs[1].resolve() != inputs[2].resolve()


def test_search_tries_six_settings_of_each_method_beside_items_held_out(sh):
    done, lines = sh("search", DATA="digits", OOM="pen", SEEDS="0", METHODS="erm fixmatch", EXPLORE_erm="--lr 9")
    assert done.returncode == 0, done.stderr
    runs = of(lines, "train_explore.py")
    assert len(runs) == 12 and len(set(runs)) == 12 and not any("--lr 9" in line for line in runs)
    assert "--threshold 0.6" in of(lines, "train_explore.py", "--method fixmatch", "--tag 6")[0]
    assert of(lines, "train_connect.py")[0].endswith("--holdout 0.3") and not of(lines, "evaluate.py")
    assert lines[-1].startswith("experiments/search.py --data digits")


def test_unsup_runs_three_starts_in_trees_of_their_own(sh, tmp_path):
    done, lines = sh("unsup", DATA="digits", OOM="rgb")
    assert done.returncode == 0, done.stderr
    starts = [line.split("--init ")[1] for line in of(lines, "train_connect.py", "--seed 0")]
    assert starts == ["literal", "spectral", "spectral --name-with 1"]
    assert len(of(lines, "train_explore.py", "--method cox")) == 6
    assert len({line.split("--runs ")[1].split()[0] for line in of(lines, "train_connect.py")}) == 3
    (last,) = of(lines, "experiments/collect.py")
    assert last.split()[1] == "unsup" and last.split()[1] in collect.TITLES


@pytest.mark.slow
def test_table3_from_nothing_and_again(tmp_path):
    """The real stages on a toy folder; the second call finds everything done and writes the same table."""
    folder = write_folder(tmp_path / "toy", n=(36, 0, 15))
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    environment = {
        **keep,
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT),  # this tree's cox_oom, whichever one is installed
        "DATA": str(folder),
        "OOM": "imu",
        "SEEDS": "0",
        "METHODS": "erm cox",
        "RUNS": str(tmp_path / "runs"),
        "OUT": str(tmp_path / "out"),
        "OMP_WAIT_POLICY": "passive",
        "EXTRACT": "--image-size 8 --bind-epochs 2 --bind-width 8 --bind-dim 8",
        "EXPLORE": "--epochs 2 --refreshes 1",
        "CONNECT": "--width 16 --depth 1 --patch 4 --per-class 4 --warmup-epochs 2 --connect-steps 20",
    }

    def call():
        return subprocess.run(
            ["bash", str(ROOT / "experiments/table3.sh")], capture_output=True, text=True, env=environment
        )

    done = call()
    assert done.returncode == 0, done.stderr + done.stdout
    out = tmp_path / "out"
    table = (out / "table.md").read_text()
    assert "| setting | method | imu R@1 | imu R@5 |" in table and "| semi, 4 labels per class | cox |" in table
    assert "chance R@1 33%" in table and "COX against each method" in table
    found = read_records(out / "records.csv")
    for level in ("category", "instance"):
        assert {(t["against"], t["n"]) for t in tests.tests(found, f"retrieval.out.{level}.r1")} == {("erm", 1)}
    assert "bash experiments/table3.sh`, commit" in (out / "COMMAND").read_text()
    assert len(list(out.glob("plot-*.png"))) == 1 and len(found) == 2
    assert (tmp_path / "runs" / "report-table3" / "report.html").read_text().count("<img") == 2
    stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "runs").rglob("*") if p.suffix in (".pt", ".json")}
    again = call()
    assert again.returncode == 0 and again.stdout.count("already done") > 5 and "already evaluated" in again.stdout
    assert (out / "table.md").read_text() == table
    assert {p: p.stat().st_mtime_ns for p in stamps} == stamps


@pytest.mark.parametrize(("data", "columns"), [("synth", 7), ("nowhere", 0)])
def test_columns_are_the_data_sets_modalities(data, columns):
    done = subprocess.run(
        ["bash", "-c", f'. "{ROOT}/experiments/worlds.sh"; columns {data}', str(ROOT / "experiments" / "any.sh")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": sys.executable, "OOM": ""},
    )
    assert len(done.stdout.split()) == columns
    assert "Traceback" not in done.stderr
    assert (done.returncode == 0) == bool(columns)


def test_suggest_takes_its_rounds_from_the_environment(sh):
    done, lines = sh("suggest", DATA="some/handwritten", COUNT="5", STRATEGIES="random entropy", EXPLORE="--epochs 2")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "extract_features.py", "--image-size 16")) == 2  # rgb and video here
    rounds = of(lines, "experiments/suggest.py", "--oom video", "--count 5", "--strategy random entropy --connect")
    assert len(rounds) == 2 and "--seed 1 " in rounds[1] and rounds[0].endswith("--epochs 20 --epochs 2")
