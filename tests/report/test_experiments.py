"""The experiments: what their shell files run, what is already done, the tables by hand, the choice of flags."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats

from cox_oom import files
import evaluate
from cox_oom.report import tests
from cox_oom.report import tables
from cox_oom.report.records import read_records, write_records
from test_evaluate import make_world, record
from test_pipeline import write_folder

ROOT = Path(__file__).resolve().parents[2]
import collect   # noqa: E402
import commonality  # noqa: E402
import search    # noqa: E402


@pytest.fixture
def sh(tmp_path):
    """sh(experiment, fails="", **environment): the shell file with a python that only notes its arguments (and fails where
    they contain `fails`): (finished process, [its arguments, a line a call])."""
    log, fake = tmp_path / "log", tmp_path / "python"
    fake.write_text(f'#!/bin/sh\nif [ "$1" = -c ]; then case "$3" in bad) echo error: bad >&2; exit 2 ;; esac\n'
                    f'printf "rgb\\nvideo\\n"; exit; fi\necho "$*" >> "{log}"\n'
                    'case " $* " in *"$FAILS"*) [ -z "$FAILS" ] || { echo broken; exit 2; } ;; esac\necho done in 0 s\n')
    fake.chmod(0o755)

    def call(experiment, fails="", **environment):
        log.write_text("")
        keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
        done = subprocess.run(["bash", str(ROOT / "experiments" / f"{experiment}.sh")], capture_output=True, text=True, env={
            **keep, "PYTHON": str(fake), "RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out"), "SEEDS": "0 1",
            "FAILS": fails, "JOBS": "1", **environment})
        return done, log.read_text().splitlines()
    return call


def of(lines, stage, *words):
    return [line for line in lines if line.startswith(stage) and all(f" {w} " in f"{line} " for w in words)]


def test_table2_runs_every_column_method_and_seed_with_the_worlds_settings(sh):
    done, lines = sh("table2", DATA="some/digits synth")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "extract_features.py")) == 3 + 2                 # digits: rgb pen audio; synth: rgb video here
    assert len(of(lines, "train_connect.py")) == 2 * 5 and len(of(lines, "train_explore.py")) == 10 * 2 * 5
    (digits,) = of(lines, "train_connect.py", "--data some/digits", "--oom pen", "--seed 1")
    assert "--width 64 --depth 3 --patch 7 --slice 4" in digits and "--labels" not in digits
    assert "--labels 0.02" in of(lines, "train_connect.py", "--oom audio")[0]
    assert "--patch 8" in of(lines, "train_connect.py", "--data synth", "--oom video")[0]
    assert "--epochs 6" in of(lines, "train_explore.py", "--data some/digits", "--method moco")[0]
    assert len(of(lines, "train_explore.py", "--method selftrain", "--tag plain", "--rounds 0")) == 2 * 5
    assert len(of(lines, "evaluate.py", "--task classification")) == 5
    (last,) = of(lines, "experiments/collect.py")
    assert lines[-1] == last and "table2 --data some/digits synth --seed 0 1 --perceptor bind" in last


def test_full_size_and_other_flags(sh):
    done, lines = sh("table3", DATA="digits", OOM="pen", SIZE="full", METHODS="erm cox", PERCEPTOR="hf", CONNECT="--patch 4",
                     EXPLORE="--epochs 3", EXPLORE_cox="--w-agree 2", SETTING="semi unsup")
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
    assert of(lines, "experiments/collect.py")                            # what is there is shown


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
    for tag, flags in (("without-connection", "--without connection"), ("without-exploration", "--without exploration"),
                       ("without-emergent", "--without emergent"), ("kl-literal", "--kl literal"),
                       ("refresh-once", "--refreshes 1")):
        assert [line.endswith(flags) for line in of(lines, "train_explore.py", f"--tag {tag}")] == [True, True]
    for tag, flags in (("kl-matched", "--kl matched"), ("no-im", "--w-im 0")):                      # semi alone
        assert [line.endswith(flags) for line in of(lines, "train_explore.py", f"--tag {tag}")] == [True]
    (warm,) = of(lines, "train_connect.py", "--without warmup")
    assert "/runs/without-warmup " in warm and "--setting unsup" in warm
    assert len(of(lines, "train_explore.py", "--tag without-warmup", "--without warmup")) == 1
    assert f"/runs {tmp_path}/runs/without-warmup " in lines[-1]


def test_commonality_takes_a_tree_each_and_stage_1_once_a_world(sh, tmp_path):
    done, lines = sh("commonality", COMMONALITY="0 1", PAIRS="2 8", CONNECT="--width 8")
    assert done.returncode == 0, done.stderr
    assert len(of(lines, "evaluate.py", "--task retrieval")) == 4
    for c in "01":
        for n in "28":
            tree = f"--runs {tmp_path}/runs/commonality/{c}-{n}"
            assert len(of(lines, "train_connect.py", tree, f"--per-class {n}")) == 2
            assert of(lines, "train_connect.py", tree)[0].count("--per-class") == 1
            assert f"--commonality {c}" in of(lines, "extract_features.py", tree)[0]
    inputs = [tmp_path / "runs" / "commonality" / t / "synth" / "inputs" for t in ("0-2", "0-8", "1-2")]
    assert inputs[0].resolve() == inputs[1].resolve() != inputs[2].resolve()


def test_search_tries_six_settings_of_each_method_beside_items_held_out(sh):
    done, lines = sh("search", DATA="digits", OOM="pen", SEEDS="0", METHODS="erm fixmatch", EXPLORE_erm="--lr 9")
    assert done.returncode == 0, done.stderr
    runs = of(lines, "train_explore.py")
    assert len(runs) == 12 and len(set(runs)) == 12 and not any("--lr 9" in line for line in runs)
    assert "--threshold 0.6" in of(lines, "train_explore.py", "--method fixmatch", "--tag 2")[0]
    assert of(lines, "train_connect.py")[0].endswith("--holdout 0.3") and not of(lines, "evaluate.py")
    assert lines[-1].startswith("experiments/search.py --data digits")


@pytest.mark.slow
def test_table3_from_nothing_and_again(tmp_path):
    """The real stages on a toy folder; the second call finds everything done and writes the same table."""
    folder = write_folder(tmp_path / "toy", n=(36, 0, 15))
    keep = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "LANG")}
    environment = {**keep, "PYTHON": sys.executable, "DATA": str(folder), "OOM": "imu", "SEEDS": "0", "METHODS": "erm cox",
                   "RUNS": str(tmp_path / "runs"), "OUT": str(tmp_path / "out"), "OMP_WAIT_POLICY": "passive",
                   "EXTRACT": "--image-size 8 --bind-epochs 2 --bind-width 8 --bind-dim 8", "EXPLORE": "--epochs 2 --refreshes 1",
                   "CONNECT": "--width 16 --depth 1 --patch 4 --per-class 4 --warmup-epochs 2 --connect-steps 20"}
    call = lambda: subprocess.run(["bash", str(ROOT / "experiments/table3.sh")], capture_output=True, text=True, env=environment)
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


# ------------------------------------------------------------------------------------------------- tables by hand

def connection(r, *points, warm=0.8):
    r["metrics"]["connection"] = [{"modality": "rgb", "step": s, "mmd": m, "oom_accuracy": a} for s, m, a in points]
    r["metrics"]["warm_accuracy"] = warm
    return r


def test_fig5_table_by_hand():
    records = [connection(record(0.5, seed=0), (0, 0.5, 0.1), (30, 0.02, 0.7)),
               connection(record(0.5, seed=1), (30, 0.04, 0.8), (0, 0.7, 0.2)),
               connection(record(0.5, oom="pen"), (0, 0.5, 0.1), (30, 0.06, 0.7))]
    block = tables.connection_table(records, [("toy", "pen"), ("toy", "sonar")])
    pen, sonar = block["rows"]
    sd = f"{np.std([70, 80], ddof=1):.1f}"
    assert sonar[:2] == ["sonar", "semi, 10% labels"]
    assert sonar[2:] == ["rgb", "0.600", "0.030", "20.0×", f"15.0 ± {sd}", f"75.0 ± {sd}", "80.0 ± 0.0", "-5.0", "2"]
    assert pen[5] == "8.3×" and pen[9] == "-10.0"
    assert "tenfold or more for 1 of 2" in block["notes"][1] and "learner for 1 of 2, on average -7.5 points" in block["notes"][1]


def agreeing(r, before, after):
    part = lambda gap: {"share": 0.5, "agree_accuracy": 0.9, "disagree_accuracy": 0.9 - gap, "gap": gap, "label_accuracy": 0.9}
    r["metrics"]["agreement"] = {"before": part(before), "after": part(after), "after_own": part(after)}
    return r


def test_fig6_is_counted_over_the_columns():
    records = [agreeing(record(0.5, oom=o), b, a) for o, b, a in
               (("a", 0.4, 0.1), ("b", 0.4, 0.3), ("c", 0.05, 0.0), ("d", 0.2, 0.1))]
    note = tables.gap_note(records, [("toy", o) for o in "abcd"])
    assert "10 points or more in 3 of 4 columns" in note and "in 2 of these, on average 0.50 of it." in note
    other = agreeing({**record(0.5, oom="a"), "data": "toy2"}, 0.2, 0.2)
    note = tables.gap_note([*records, other], [("toy", o) for o in "abcd"] + [("toy2", "a")])
    assert "4 of 5 columns" in note and "on average 0.62 (toy 0.50, toy2 1.00) of it" in note
    assert tables.gap_note(records[2:3], [("toy", "c")]).endswith("in 0 of 1 columns.")


def test_commonality_by_hand():
    world = lambda a, c, n, s, m: {**record(a, seed=s, method=m, per_class=n), "commonality": c}
    records = [world(0.5 + 0.1 * c * (m == "cox") + 0.01 * s, c, n, s, m)
               for c in (0.0, 1.0) for n in (2, 8) for s in (0, 1) for m in ("cox", "selftrain")]
    records = [r for r in records if not (r["commonality"] == 1 and r["per_class"] == 8 and r["method"] == "cox" and r["seed"])]
    gains = commonality.gains(records)
    assert [(g["commonality"], g["per_class"], len(g["gain"])) for g in gains] == [(0, 2, 2), (0, 8, 2), (1, 2, 2), (1, 8, 1)]
    assert gains[2]["gain"] == pytest.approx([0.1, 0.1])
    panels = commonality.curves(gains).axes
    assert len(panels) == 2 and [t.get_text() for t in panels[0].get_legend().get_texts()] == ["2", "8"]
    apart = [{**r, "oom": "b" if r["per_class"] == 8 else "a"} for r in records]            # another modality at each
    panels = commonality.curves(commonality.gains(apart)).axes
    assert len(panels) == 1 and [t.get_text() for t in panels[0].get_legend().get_texts()] == ["2 (a)", "8 (b)"]
    three = [{**r, "oom": m, "per_class": 2, "metrics": {**r["metrics"], "accuracy": r["metrics"]["accuracy"] * (1 + n)}}
             for n, m in enumerate("abc") for r in records if r["per_class"] == 2]
    axes = commonality.curves(commonality.gains(three)).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["2 (a)", "2 (b)", "2 (c)", "2 (mean)"]
    assert [line.get_ydata() for line in axes.lines if str(line.get_color()) == "black"][0] == pytest.approx([0, 20])
    assert len({str(line.get_color()) for line in axes.lines if line.get_marker() in ".xs"}) == 3
    by_modality = commonality.tables(three)[1]
    assert by_modality["header"] == ["commonality", *(f"{m}, 2 per class" for m in "abc")]
    assert by_modality["rows"][1] == ["1", "10.0 ± 0.0", "20.0 ± 0.0", "30.0 ± 0.0"]
    gain, cox, alone = commonality.tables(records)
    assert gain["rows"] == [["0", "0.0 ± 0.0", "0.0 ± 0.0"], ["1", "10.0 ± 0.0", "10.0"]]
    assert "gain with commonality: +1.00, p = 1 (2 means" in gain["notes"][1]
    assert len(gain["notes"]) == 2                                              # the number of pairs changes nothing here
    more = [{**r, "data_seed": 1, "metrics": {**r["metrics"], "accuracy": 0.5 - (r["method"] == "cox") * r["per_class"] / 100}}
            for r in records]                                                    # a second world: negative, falls with the pairs
    both = commonality.gains(records + more)
    assert [len(g["gain"]) for g in both] == [4, 4, 4, 2] and len({w for g in both for w in g["world"]}) == 2
    rho = stats.spearmanr([0, 1, 0, 1], [-0.05, 0.05, 0, 0]).statistic                  # less the mean of each world
    _, by_world, by_pairs = commonality.tables(records + more)[0]["notes"]
    assert f"gain with commonality: {rho:+.2f}" in by_world and "(4 means" in by_world
    rho = stats.spearmanr([2, 8] * 2, [0, 0, 0.03, -0.03]).statistic                    # of both commonalities
    assert f"number of pairs: {rho:+.2f}" in by_pairs and "(4 means" in by_pairs
    other = [{**r, "oom": "pen", "metrics": {**r["metrics"], "accuracy": r["metrics"]["accuracy"] + (r["method"] == "cox") * 0.5}}
             for r in records if r["commonality"] == 0]                                # with one commonality alone it plays no part
    assert "gain with commonality: +1.00, p = 1 (2 means" in commonality.tables(records + other)[0]["notes"][1]
    assert alone["rows"][1][1:] == ["50.5 ± 0.7", "50.0"]                    # of the seeds that both have
    assert commonality.gains(records, "unlabelled") == [] and commonality.curves([]) is None
    for r in records:                                                        # on unlabelled items COX loses two points
        r["metrics"]["agreement"] = {"after": {"accuracy": 0.4 - 0.02 * (r["method"] == "cox") * r["commonality"]}}
    test, hidden, *_ = commonality.tables(records)
    assert test["title"].endswith("accuracy on test items") and test["rows"] == gain["rows"]
    assert hidden["title"].endswith("accuracy on the unlabelled training items") and hidden["rows"][1] == ["1", "-2.0 ± 0.0", "-2.0"]
    assert "gain with commonality: -1.00" in hidden["notes"][1]
    for r in records:                                                        # of finding the instance it gains three
        r["metrics"]["retrieval"] = {"rgb": {"out": {"instance": {"r10": 0.2 + 0.03 * (r["method"] == "cox") * r["commonality"]}}}}
    found = commonality.tables(records)[2]
    assert "R@10 of the very instance" in found["title"] and len(commonality.tables(records)) == 5
    assert found["rows"] == [["0", "0.0 ± 0.0", "0.0 ± 0.0"], ["1", "3.0 ± 0.0", "3.0"]]


def test_the_trend_within_worlds_is_found_through_the_differences_between_them():
    """Six worlds of very different levels, each with a gain that grows by a point a step; p against its definition."""
    rng = np.random.default_rng(0)
    found = [{"commonality": c, "per_class": 8, "world": [("audio", w)] * 2, "gain": [w + 0.01 * c + 0.002 * rng.standard_normal()] * 2}
             for c in range(5) for w in range(6)]
    rho, p, n = commonality.trend(found, "commonality", "per_class")
    level = {w: np.mean([g["gain"][0] for g in found if g["world"][0][1] == w]) for w in range(6)}
    within = [g["gain"][0] - level[g["world"][0][1]] for g in found]
    assert rho == pytest.approx(stats.spearmanr([g["commonality"] for g in found], within).statistic) and rho > 0.9
    assert p < 1e-3 and n == 30
    small = [g for g in found if g["commonality"] < 3 and g["world"][0][1] == 0]          # three means: six orders, two as extreme
    assert commonality.trend(small, "commonality", "per_class")[1] == pytest.approx(1 / 3, abs=0.02)
    shuffled = [{**g, "commonality": (3 * i + 1) % 5} for i, g in enumerate(found)]
    assert commonality.trend(shuffled, "commonality", "per_class")[1] > 0.05


@pytest.mark.parametrize("experiment", collect.TITLES)
def test_every_experiment_is_collected_from_several_trees(experiment, tmp_path, capsys):
    for tree, seeds in (("one", (0,)), ("two", (1,))):
        make_world(tmp_path / tree, seeds=seeds, methods=("random", "selftrain", "cox"))
        evaluate.main(["--data", "toy", "--runs", str(tmp_path / tree), "--task", "retrieval"])
    line = [experiment, "--data", "toy", "--runs", str(tmp_path / "one"), str(tmp_path / "two"), "--out", str(tmp_path / "out")]
    if experiment == "commonality":
        with pytest.raises(files.UserError, match="no commonality"):
            collect.main(line)
        return
    collect.main(line)
    out = tmp_path / "out"
    assert len(read_records(out / "records.csv")) == 6 and f"wrote {out}" in capsys.readouterr().out
    assert len(list(out.glob("plot-*.png"))) == (experiment not in collect.NO_PLOT)
    page = (tmp_path / "one" / f"report-{experiment}" / "report.html").read_text()
    assert "<img" in page and collect.TITLES[experiment] in page
    assert (out / "COMMAND").read_text().count("6 runs") == 1


def test_an_earlier_collection_adds_what_the_trees_lack(tmp_path, capsys):
    for tree, seeds in (("one", (0,)), ("two", (0, 1))):
        make_world(tmp_path / tree, seeds=seeds, methods=("random", "selftrain", "cox"))
        evaluate.main(["--data", "toy", "--runs", str(tmp_path / tree)])
    line = lambda tree, *more: ["table2", "--data", "toy", "--runs", str(tmp_path / tree),
                                "--out", str(tmp_path / tree / "out"), *more]
    collect.main(line("two"))
    earlier, table = (tmp_path / tree / "out" / "records.csv" for tree in ("two", "one"))
    read = lambda: [(r["method"], r["seed"], "added" in r) for r in read_records(table)]
    collect.main(line("one", "--add", str(earlier)))
    assert sorted(read()) == [(m, s, s == 1) for m in ("cox", "random", "selftrain") for s in (0, 1)]
    collect.main(line("one", "--add", str(earlier), "--add-method", "random"))
    assert sorted(read()) == [("cox", 0, False), ("random", 0, False), ("random", 1, True), ("selftrain", 0, False)]
    text = (tmp_path / "one" / "out" / "table.md").read_text()
    assert "random added from commit" in text and "Not alike" not in text and "not recorded" not in text
    assert "3 runs of 0.0 h in all; 1 more of commit " in (tmp_path / "one" / "out" / "COMMAND").read_text()
    old = [{k: v for k, v in r.items() if k not in ("args", "seconds", "connect_seconds")} for r in read_records(earlier)]
    write_records(earlier, old)                                             # tables once held no flags and no times
    collect.main(line("one", "--add", str(earlier)))
    assert len(read()) == 6
    assert "the flags of 3 of these runs were not recorded" in (tmp_path / "one" / "out" / "table.md").read_text()
    with pytest.raises(files.UserError, match="no evaluated run"):                       # no retrieval in these: none of table 3's
        collect.main(["table3", *line("one")[1:]])
    write_records(earlier, [{**r, "setting": "unsup"} for r in old])             # which start? a row could be of another one
    with pytest.raises(files.UserError, match="collect them again"):
        collect.main(line("one", "--add", str(earlier)))
    with pytest.raises(files.UserError, match="--add nothing.csv is missing"):
        collect.main(line("one", "--add", "nothing.csv"))


def test_collect_refuses_what_was_not_evaluated(tmp_path):
    folder = make_world(tmp_path)
    line = ["table2", "--data", "toy", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(files.UserError, match="no evaluated run"):
        collect.main(line)
    evaluate.main(["--data", "toy", "--runs", str(tmp_path)])
    (folder / "cox.json").write_text("{")
    with pytest.raises(files.UserError, match="cox.json is damaged"):
        collect.main(line)


# ------------------------------------------------------------------------------------------- the choice of flags

def run_of(name, accuracy, seed=0, oom="pen", flags=""):
    return {"run": name, "accuracy": accuracy, "seed": seed, "data": "toy", "oom": oom, "flags": flags, "n": 3, "seconds": 1}


def test_the_best_mean_over_columns_is_chosen():
    runs = [run_of(f"erm-{i}", a, s, o, f"--x {i}") for i, of_setting in
            ((1, {"pen": (0.9, 0.9), "rgb": (0.1, 0.1)}), (2, {"pen": (0.6, 0.8), "rgb": (0.5, 0.5)}),
             (3, {"pen": (0.6, 0.8), "rgb": (0.5, 0.5)})) for o, values in of_setting.items() for s, a in enumerate(values)]
    runs += [run_of("erm-4", 1.0)]                                              # not finished everywhere: not compared
    runs += [run_of("cox-10", 0.3), run_of("cox-2", 0.3)]
    chosen = search.choose(runs)
    assert [s["run"] for s in chosen["erm"]] == ["erm-2", "erm-3", "erm-1"]      # equally good: the earlier line
    assert chosen["erm"][0]["mean"] == pytest.approx(0.6) and chosen["erm"][0]["flags"] == "--x 2"
    assert chosen["erm"][0]["by_column"] == {"toy pen": [0.6, 0.8], "toy rgb": [0.5, 0.5]}
    assert chosen["cox"][0]["run"] == "cox-2"


def test_search_reads_validation_alone(tmp_path, monkeypatch, capsys):
    folder = make_world(tmp_path, methods=("erm",))
    monkeypatch.setenv("EXPLORE_erm_1", "--weight-decay 1")
    line = ["--data", "toy", "--runs", str(tmp_path), "--out", str(tmp_path / "out")]
    with pytest.raises(files.UserError, match="no run METHOD-N.pt"):
        search.main(line)
    (folder / "erm.pt").rename(folder / "erm-1.pt")
    with pytest.raises(files.UserError, match="no items held out"):
        search.main(line)
    connect = torch.load(folder / "connect.pt", weights_only=True)
    torch.save({**connect, "held": ["i1", "i2"]}, folder / "connect.pt")
    search.main(line)
    (run,), _ = search.known_runs(tmp_path / "out")
    assert run["accuracy"] == 0.5 and run["n"] == 2 and run["flags"] == "--weight-decay 1"     # make_world's history
    assert (tmp_path / "out" / "chosen.sh").read_text() == 'export EXPLORE_erm="${EXPLORE_erm:---weight-decay 1}"\n'
    assert "**--weight-decay 1**" in (tmp_path / "out" / "search.md").read_text()
    (folder / "erm-1.pt").rename(folder / "moco-1.pt")                                  # another search, of another method
    monkeypatch.setenv("EXPLORE_moco_1", "--momentum 0.5")
    search.main(line)
    assert [r["flags"] for r in search.known_runs(tmp_path / "out")[0]] == ["--momentum 0.5", "--weight-decay 1"]
    assert len((tmp_path / "out" / "chosen.sh").read_text().splitlines()) == 2
    monkeypatch.setenv("COMMAND", "searched again")
    search.main(line)                                                                   # one outcome, and whose it is
    assert len(search.known_runs(tmp_path / "out")[0]) == 2
    moco, erm = sorted((tmp_path / "out" / "COMMAND").read_text().splitlines(), reverse=True)
    assert moco.startswith("moco: `searched again`, commit ") and erm.startswith("erm: ") and "again" not in erm


def test_unsup_runs_three_starts_in_trees_of_their_own(sh, tmp_path):
    done, lines = sh("unsup", DATA="digits", OOM="rgb")
    assert done.returncode == 0, done.stderr
    starts = [line.split("--init ")[1] for line in of(lines, "train_connect.py", "--seed 0")]
    assert starts == ["literal", "spectral", "spectral --name-with 1"] and len(of(lines, "train_explore.py", "--method cox")) == 6
    assert len({line.split("--runs ")[1].split()[0] for line in of(lines, "train_connect.py")}) == 3
    (last,) = of(lines, "experiments/collect.py")
    assert last.split()[1] == "unsup" and last.split()[1] in collect.TITLES
