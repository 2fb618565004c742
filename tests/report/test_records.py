"""records.csv: what an experiment keeps of its runs, read back as the tables take it; the pages that are made from it
alone."""

import csv
import json
import shutil
from pathlib import Path

import collect
import numpy as np
import pytest
import write_results
from records import make_world, record
from scipy import stats

import evaluate
from cox_oom import files
from cox_oom.report import scores, tables, tests
from cox_oom.report.records import csv_metrics, number, read_records, write_records

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "results"


def lines_of(path):
    with open(path, newline="") as f:
        return list(csv.DictReader(f))


def back(path, records, keep=None):
    write_records(path / "records.csv", records, keep)
    return read_records(path / "records.csv")


def part(**more):
    return {"share": 0.5, "accuracy": 1 / 3, "agree_accuracy": 0.75, "disagree_accuracy": 0.25, "gap": 0.5, **more}


# ------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("task", ["classification", "retrieval"])
@pytest.mark.parametrize("setting", ["semi", "unsup"])
def test_tables_of_records_read_back_are_those_of_method_json(task, setting, tmp_path):
    methods = ("random", "cox", "aligned") if setting == "unsup" else ("random", "erm", "selftrain", "cox", "aligned")
    make_world(tmp_path, seeds=(0, 1), methods=methods, setting=setting)
    evaluate.main(["--data", "toy", "--runs", str(tmp_path), "--task", task])
    records = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("toy/bind/oom-*/*/seed*/*.json"))]
    assert len(records) == 2 * len(methods) and all(len(r.pop("correct")) == 21 for r in records)
    again = back(tmp_path, records)
    assert tables.markdown(tables.tables(again, task)) == tables.markdown(tables.tables(records, task))
    columns = [("toy", "sonar")]
    assert tables.connection_table(again, columns) == tables.connection_table(records, columns)
    assert tables.agreement_table(again, columns) == tables.agreement_table(records, columns)
    metrics = [
        "accuracy",
        "unlabelled",
        *(["retrieval.out.category.r1", "retrieval.back.instance.r5"] if task == "retrieval" else []),
    ]
    for old, new in zip(records, again, strict=True):
        assert [scores.score(old, m) for m in metrics] == [scores.score(new, m) for m in metrics]
        same = (
            "data",
            "perceptor",
            "oom",
            "setting",
            "method",
            "seed",
            "labels",
            "per_class",
            "n_labelled",
            "paired",
            "seconds",
        )
        assert {k: old[k] for k in same} == {k: new[k] for k in same} and old["fingerprint"].startswith(
            new["fingerprint"]
        )
        assert {k: v for k, v in scores.flags(old).items() if k not in old and v is not None} == scores.flags(new)
    assert back(tmp_path, again) == again  # a collection of a collection


def test_a_record_cell_by_cell(tmp_path):
    r = record(1 / 3, counts=(10, 10, 40), paired="class", epochs=4)
    r["metrics"].update(
        agreement={"before": part(label_accuracy=0.5), "after": part(), "after_own": part(label_accuracy=None)},
        trust={"gain": 0.123456789, "error": 0.5, "right": 2 / 3, "right_alone": 0.25, "trusted": False},
        fallback={"code": "few_pairs", "pairs": 3, "least": 8, "im": ["rgb"]},
        warm_accuracy=0.1,
    )
    r.update(
        commonality=0.25,
        data_seed=3,
        seconds=1.5,
        connect_seconds=None,
        added="commit 1",
        perceptor_paired_by_class=["rgb", "imu"],
    )
    (new,) = back(tmp_path, [r])
    (line,) = lines_of(tmp_path / "records.csv")
    assert (
        line["condition"] == "semi, 10% labels, paired by class"
        and "connect_seconds" not in line
        and line["seed"] == "0"
    )
    assert line["perceptor_paired_by_class"] == "rgb imu" and line["fingerprint"] == "f" * 8
    assert (line["accuracy"], line["trust.gain"], line["trust.trusted"]) == ("0.3333333333333333", "0.123457", "false")
    assert (line["classes"], line["skewed"]) == ("3", "true") and "confusion" not in line and "per_class.c0" not in line
    assert json.loads(line["args"]) == {"*": {"epochs": 4}}
    assert line["agreement.after.accuracy"] == "0.3333333333333333" and not any(k.endswith(".gap") for k in line)
    assert "hungarian_accuracy" not in line and line["balanced_accuracy"] == "0.333333"  # as the tables show them
    gone = {k: r["metrics"][k] for k in ("per_class", "confusion", "hungarian_accuracy", "nmi")}
    assert new["metrics"] == {
        **{k: v for k, v in r["metrics"].items() if k not in gone},
        "balanced_accuracy": 0.333333,
        "classes": 3,
        "skewed": True,
        "trust": {**r["metrics"]["trust"], "gain": 0.123457},
    }
    assert {k: v for k, v in new.items() if k != "metrics"} == {
        **{k: v for k, v in r.items() if k not in ("metrics", "history", "connect_seconds")},
        "fingerprint": "f" * 8,
    }
    assert tables.skewed(new) and scores.classes(new["metrics"]) == 3


def test_flags_say_what_differs_from_most_lines(tmp_path):
    records = [
        record(0.5, method=m, seed=s, oom=o, lr=0.1, **({"noise": 1} if o == "imu" else {}))
        for o in ("imu", "sonar")
        for s in (0, 1)
        for m in ("erm", "cox")
    ]
    records[0]["args"] = {"epochs": 3, "lr": 0.1, "noise": None}  # the first line is not like most
    for r in records:
        r["connect_args"] = {"lr": 7, "oom": r["oom"]}  # what is a column is not told twice
    del records[5]["args"]  # not recorded
    again = back(tmp_path, records)
    cells = [line["args"] and json.loads(line["args"]) for line in lines_of(tmp_path / "records.csv")]
    assert cells == [
        {"*": {"epochs": 2, "lr": 0.1, "noise": 1}, "epochs": 3, "noise": None},
        {},
        {},
        {},
        {"*": {"noise": None}},
        "",
        {},
        {},
    ]
    assert [line["connect_args"] for line in lines_of(tmp_path / "records.csv")][::4] == ['{"*":{"lr":7}}', '{"*":{}}']
    assert [r.get("args") for r in again] == [
        {"epochs": 3, "lr": 0.1},
        *[{"epochs": 2, "lr": 0.1, "noise": 1}] * 3,
        {"epochs": 2, "lr": 0.1},
        None,
        *[{"epochs": 2, "lr": 0.1}] * 2,
    ]
    assert all(r["connect_args"] == {"lr": 7} for r in again)


def test_what_a_seed_shares_stands_once_and_a_kept_metric_alone(tmp_path):
    records = [record(0.5, method=m, seed=s) for s in (0, 1) for m in ("erm", "cox")]
    records[3]["metrics"]["im_head_accuracy"] = {"rgb": 0.8}  # of another machine
    again = back(tmp_path, records, ["accuracy", "im_head_accuracy"])
    heads = [line["im_head_accuracy.rgb"] for line in lines_of(tmp_path / "records.csv")]
    assert heads == ["0.9", "", "0.9", "0.8"] and set(again[0]["metrics"]) == {
        "accuracy",
        "im_head_accuracy",
        "agreement",
    }
    columns = [("toy", "sonar")]
    assert tables.heads_table(again, columns) == tables.heads_table(records, columns)


def test_retrieval_is_the_mean_over_the_known_modalities(tmp_path):
    r = record(0.5)
    level = lambda v: {"r1": v, "n_query": 4}
    r["metrics"]["retrieval"] = {
        "rgb": {"out": {"category": level(0.1), "instance": None}, "back": {"category": level(0.5), "instance": None}},
        "imu": {"out": {"category": level(0.2), "instance": level(0.3)}, "back": {"category": None, "instance": None}},
    }
    (new,) = back(tmp_path, [r], ["retrieval.out.category.r1", "retrieval.out.instance", "retrieval.back.category.r1"])
    for metric in (
        "retrieval.out.category.r1",
        "retrieval.out.instance.r1",
        "retrieval.back.category.r1",
        "retrieval.back.instance.r1",
    ):
        assert scores.score(new, metric) == scores.score(r, metric)
    assert new["metrics"]["retrieval"]["mean"]["out"]["category"] == {"r1": sum((0.1, 0.2)) / 2}


def test_numbers_and_what_is_no_records_csv(tmp_path):
    assert [number(t) for t in ("3", "0.5", "1e-05", "true", "1 0.5")] == [3, 0.5, 1e-05, True, [1, 0.5]]
    assert csv_metrics(record(0.5, setting="unsup"))["nmi"] == 0.25  # without labels: Hungarian and NMI
    (tmp_path / "records.csv").write_text("data,method\ntoy,cox\n")
    with pytest.raises(files.UserError, match="is not a records.csv"):
        read_records(tmp_path / "records.csv")


# --------------------------------------------------------------------------------------------- what the tree holds


def test_the_results_are_small_and_of_one_form():
    kinds = {"records.csv", "table.md", "COMMAND", "search.md", "chosen.sh"}
    paths = [p for p in RESULTS.rglob("*") if p.is_file()]
    assert all(p.name in kinds or (p.name.startswith("plot-") and p.suffix == ".png") for p in paths)
    assert sum(p.stat().st_size for p in paths) <= 2_000_000
    for folder in RESULTS.iterdir():
        assert (
            (folder / "records.csv").exists() and (folder / "COMMAND").exists() and len(list(folder.glob("*.png"))) <= 2
        )


@pytest.mark.slow
def test_pages_and_tables_are_what_the_records_say(tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results")
    (tmp_path / "docs").mkdir()
    pages = [Path("README.md"), *(Path(f"docs/{name}.md") for name in ("method", "results", "experiments"))]
    for p in pages:
        shutil.copy(ROOT / p, tmp_path / p)
    write_results.main(tmp_path, tmp_path / "results")
    for p in pages:
        assert (tmp_path / p).read_text() == (ROOT / p).read_text(), f"{p}: run experiments/write_results.py"
    for p in RESULTS.glob("*/table.md"):
        assert (tmp_path / "results" / p.parent.name / p.name).read_text() == p.read_text(), (
            f"{p}: run experiments/write_results.py"
        )


# ------------------------------------------------------------------------------------------------- pages by hand


@pytest.fixture
def tree(tmp_path):
    """A tree with three pages and no results; write(name, records) adds a folder of them."""
    (tmp_path / "docs").mkdir()
    for page in ("README.md", "docs/method.md"):
        (tmp_path / page).write_text(f"before\n{write_results.BEGIN}\nold 99.9\n{write_results.END}\nafter\n")

    def write(name, records):
        folder = tmp_path / "results" / name
        folder.mkdir(parents=True)
        write_records(folder / "records.csv", records, collect.KEEP[name.partition("_")[0]])
        (folder / "COMMAND").write_text(f"`bash {name}.sh`\n")

    return tmp_path, write


def test_pages_are_made_from_the_records(tree):
    root, write = tree
    two = [record(0.8 + 0.02 * s, seed=s) for s in range(2)] + [record(0.7, method="erm", seed=s) for s in range(2)]
    two += [record(0.9, method="cox-kl-literal"), record(0.99, method="aligned")]
    write("table2", two)
    write("table2_paired", two)
    write_results.main(root, root / "results")
    page, readme, method = ((root / p).read_text() for p in ("docs/results.md", "README.md", "docs/method.md"))
    sd = f"{np.std([80, 82], ddof=1):.1f}"
    assert "| world | new sensors | labels | erm | cox | aligned | gap before | gap after |" in page
    assert f"| toy | sonar | 10% labels | 70.0 ± 0.0 | **81.0 ± {sd}** | 99.0 (n = 1) | – | – |" in page
    assert "| erm | semi | 2 | 1 of 1 | +11.0 |" in page and "cox-kl" not in page and "## Retrieval" not in page
    assert "table2: seeds 0, 1; bash table2.sh" in page
    for text in (readme, method):
        assert text.startswith("before\n") and text.endswith("\nafter\n") and "99.9" not in text
    assert (
        f"| toy | sonar | 10% labels | 70.0 ± 0.0 | **81.0 ± {sd}** | 99.0 (n = 1) |" in readme and "gap" not in readme
    )
    assert (
        "COX is 11.0 points above `erm`, labels alone (p = 0.058 over 2 pairs of runs, p = – over 1 sensors)." in readme
    )
    assert "(docs/results.md)" in readme and "selftrain" not in readme
    assert (
        "| erm | test | semi | 2 | 1 of 1 | +11.0 | 0.058 | 0.5 | – | +11.0 |" in method and "unlabelled" not in method
    )
    assert (root / "results" / "table2" / "table.md").read_text() == tables.markdown(
        tables.tables(read_records(root / "results" / "table2" / "records.csv"))
    )


def test_a_control_that_lacks_a_seed_has_a_table_of_the_seeds_that_all_have(tree):
    root, write = tree
    two = [record(v, method=m, seed=s) for m, v in (("erm", 0.6), ("selftrain", 0.7), ("cox", 0.8)) for s in range(2)]
    (root / "docs" / "experiments.md").write_text("<!-- controls:begin -->\n<!-- controls:end -->\n")
    write("controls", [*two, record(0.75, method="ensemble", seed=1)])
    write_results.main(root, root / "results")
    page = (root / "docs" / "experiments.md").read_text()
    both, one = page.split("The same with `ensemble` as well, by seed 1 alone:")
    assert "| best of these | test | semi | 2 | 1 of 1 | +10.0 |" in both and "ensemble" not in both
    assert "| toy | sonar | 10% labels | 60.0 ± 0.0 | 70.0 ± 0.0 | **80.0 ± 0.0** |" in both
    assert "| best of these | test | semi | 1 | 1 of 1 | +5.0 |" in one and "| 75.0 |" in one


def test_perceptors_are_compared_by_the_seeds_that_both_have():
    def of(perceptor, method, seed, value, r1=None):
        r = {**record(value, method=method, seed=seed), "perceptor": perceptor}
        at = {"r1": r1, "r10": 1.0}
        if r1 is not None:
            r["metrics"]["retrieval"] = {"rgb": {way: {"category": at, "instance": at} for way in ("out", "back")}}
        return r

    real = "rgb=onnx:models/a"
    records = [of("bind", "raw", s, 0.4) for s in (0, 1)] + [of(real, "raw", s, 0.4) for s in (0, 1)]
    records += [of("bind", "cox", 0, 0.5, 0.1), of("bind", "cox", 1, 0.6, 0.2), of("bind", "erm", 0, 0.3, 0.1)]
    records += [of(real, "cox", 0, 0.53, 0.3), of(real, "cox", 1, 0.61, 0.4), of(real, "cox", 2, 0.9, 0.4)]
    lines = write_results.perceptor_lines(records)
    assert [line.split(" | ")[1:5] for line in lines[2:6]] == [
        ["bind", "raw", "2", "40.0 ± 0.0"],
        ["bind", "erm", "1", "30.0"],
        ["bind", "cox", "2", "55.0 ± 7.1"],
        ["pretrained", "cox", "3", f"68.0 ± {np.std([53, 61, 90], ddof=1):.1f}"],
    ]
    assert [line.split(" | ")[1:5] for line in lines[9:]] == [
        ["bind", "cox − raw", "+15.0 ± 5.0", "–"],
        ["bind", "cox − erm", "+20.0", "+0.0"],
        ["pretrained", "cox − raw", "+17.0 ± 4.0", "–"],
        ["pretrained − bind", "cox", "+2.0 ± 1.0", "+20.0 ± 0.0"],
    ]


def test_the_gain_of_each_column_has_its_error_over_the_seeds():
    of = lambda method, *values: [record(v, method=method, seed=s) for s, v in enumerate(values)]
    lines = write_results.gain_lines([*of("cox", 0.51, 0.53, 0.9), *of("selftrain", 0.5, 0.5), *of("erm", 0.1)])
    assert lines[2:] == ["| toy | sonar | 2 | 50.0 ± 0.0 | 52.0 ± 1.4 | +2.0 ± 1.0 |", "| all |  |  |  |  | +2.0 |"]


def test_the_same_runs_of_two_collections_are_compared():
    old = [record(0.5, seed=s) for s in range(3)] + [record(0.5, method="erm")]
    new = [record(0.51, seed=0), record(0.53, seed=1), record(0.9, seed=7), record(0.9, method="erm", seed=1)]
    lines = write_results.difference_lines([*new, record(0.53, seed=1)], old)  # the run of seed 1 counts once
    assert lines[0] == "| method | runs | all | toy |" and lines[2:] == ["| cox | 2 | +2.0 ± 1.0 | +2.0 ± 1.0 |"]
    other = {**record(0.5, method="erm"), "data": "other"}
    lines = write_results.difference_lines([*new, other], [*old, other])
    assert lines[2:] == ["| erm | 1 | +0.0 | +0.0 | – |", "| cox | 2 | +2.0 ± 1.0 | – | +2.0 ± 1.0 |"]


def test_later_runs_are_tested_once_each_in_columns_of_several_seeds():
    of = lambda method, *values: [record(v, method=method, seed=s) for s, v in enumerate(values)]
    once = [{**record(v, method=m), "oom": "thermal"} for m, v in (("cox", 0.9), ("selftrain", 0.1))]
    new = [*of("cox", 0.51, 0.53, 0.54), *of("selftrain", 0.5, 0.5), *of("erm", 0.1, 0.1), *once]
    later = write_results.latest([*new, record(0.53, method="cox", seed=1)])
    (line,) = write_results.test_lines(later, "accuracy")[2:]
    assert line.split(" | ")[:6] == ["| selftrain", "test", "semi", "2", "1 of 1", "+2.0"]
    assert "Later runs give +2.0 (p = – over 1 sensors)." in "\n".join(write_results.readme_lines(new, later))


def test_retrieval_of_two_collections_is_compared_both_ways():
    def of(seed, out, back):
        r = record(0.5, seed=seed)
        ways = {way: {"category": v and {"r1": v}, "instance": None} for way, v in (("out", out), ("back", back))}
        r["metrics"]["retrieval"] = {"rgb": ways}
        return r

    lines = write_results.rank_difference_lines([of(0, 0.3, 0.5), of(1, 0.5, None)], [of(0, 0.2, 0.7), of(1, 0.2, 0.1)])
    assert lines[0].startswith("| method | runs | category R@1, out | category R@1, back | instance R@1, out |")
    assert lines[2:] == ["| cox | 2 | +20.0 ± 10.0 | -20.0 | – | – |"]
    assert write_results.rank_difference_lines([record(0.5)], [record(0.4)]) == []


def test_retrieval_and_starts_without_labels_on_the_page(tree):
    root, write = tree
    write("table2", [record(0.5)])
    at = lambda v: {
        "r1": v,
        "r5": 0.75,
        "r10": 1.0,
        "median_rank": 1.0,
        "chance_r1": 0.1,
        "chance_r5": 0.5,
        "class_r1": 0.2,
    }
    three = [record(0.5, method=m, seed=s) for s in range(2) for m in ("erm", "cox")]
    for r, extra in zip(three, (0.0, 0.125, 0.0, 0.25)):
        r["metrics"]["retrieval"] = {
            m: {"out": {"category": at(a + extra), "instance": None}} for m, a in (("rgb", 0.5), ("imu", 0.25))
        }
    drawn = [
        record(0.5, method="cox", data="digits", seed=s) for s in range(3)
    ]  # partners drawn within a class: no instances
    for r in drawn:
        r["metrics"]["retrieval"] = {"rgb": {"out": {"category": at(0.5), "instance": at(0.5)}}}
    write("table3", three + drawn)
    write("unsup", [record(0.12 + 0.01 * s, setting="unsup", seed=s, init="spectral") for s in range(2)])
    write_results.main(root, root / "results")
    page = (root / "docs" / "results.md").read_text()
    p = f"{stats.ttest_1samp([0.125, 0.25], 0).pvalue:.2g}"
    assert f"| erm | 37.5 ± 0.0 | **75.0 ± 0.0** | +18.8 ({p}, –) | – | – | – |" in page
    sd = f"{np.std([50, 56.25], ddof=1):.1f}"  # of the two seeds that have both columns
    assert (
        f"| cox | **53.1 ± {sd}** | **75.0 ± 0.0** | – | – | – | – |" in page
        and "| chance | 10 | 50 | – | – | – | – |" in page
    )
    assert "| toy | sonar | spectral | cox | 12.5 ± 0.7 | 50.0 ± 0.0 | 25.0 ± 0.0 | – | – |" in page
    assert (
        "- toy sonar, spectral: COX reaches 12.5%, chance is 33.3%. With a standard error of" in page
        and "it is at chance." in page
    )


def test_retrieval_of_instances():
    """Mean over the columns, spread over the seeds that have them all, fewer seeds marked and not bold, drawn pairs
    left out."""

    def shown(data, method, seed, r1, oom="sonar"):
        at = lambda v: {"r1": v, "r5": 0.75, "chance_r1": 0.02, "chance_r5": 0.1}
        r = record(0.5, method=method, seed=seed, data=data, oom=oom)
        r["metrics"]["retrieval"] = {"rgb": {"out": {"category": at(0.5), "instance": at(r1)}}}
        return r

    records = [
        shown("toy", m, s, v + 0.02 * s, oom)
        for m, v in (("selftrain", 0.1), ("cox", 0.3))
        for s in range(2)
        for oom in ("sonar", "imu")
    ]
    records += [shown("toy", "erm", 0, 0.9, oom) for oom in ("sonar", "imu")]  # one seed of two
    records += [shown("digits", m, s, 1.0) for m in ("selftrain", "cox", "erm") for s in range(2)]
    lines = write_results.retrieval_lines(records)
    cells = {line.split(" | ")[0].strip("| "): line.strip("| ").split(" | ")[4:] for line in lines}
    sd = f"{np.std([30, 32], ddof=1):.1f}"
    assert cells["cox"] == [f"**31.0 ± {sd}**", "**75.0 ± 0.0**", "–"] and cells["chance"] == ["2", "10", "–"]
    assert cells["selftrain"] == [f"11.0 ± {sd}", "**75.0 ± 0.0**", "+20.0 (–, –)"]  # all differences alike
    assert cells["erm"] == ["90.0 (n = 1)", "75.0 (n = 1)", "-60.0 (–, –)"]
    assert write_results.instance_lines(records)[-1] == f"| toy | 11.0 ± {sd} | 31.0 ± {sd} | 16 |"


def test_ablations_figures_and_sweeps_on_the_page(tree):
    root, write = tree
    write("table2", [record(0.5)])
    methods = {"cox": 0.8, "erm": 0.6, "cox-without-connection": 0.5}
    rows = [record(a + 0.1 * (o == "imu"), method=m, oom=o) for m, a in methods.items() for o in ("sonar", "imu")]
    write("table4", rows)
    curve = [record(0.5)]
    curve[0]["metrics"].update(
        warm_accuracy=0.75,
        connection=[
            {"modality": m, "step": s, "mmd": v, "oom_accuracy": a}
            for m, end in (("rgb", 0.7), ("imu", 0.6))
            for s, v, a in ((0, 0.5, 0.1), (30, 0.04, end))
        ],
    )
    write("fig5", curve)
    gaps = [record(0.5, oom=o) for o in ("sonar", "imu")]
    for r, left in zip(gaps, (0.25, 0.5)):
        r["metrics"]["agreement"] = {
            "before": part(label_accuracy=0.5),
            "after": part(disagree_accuracy=0.75 - left),
            "after_own": part(label_accuracy=0.5),
        }
    write("fig6", gaps)
    world = [
        {**record(0.5 + 0.1 * c * (m == "cox"), method=m, per_class=4, seed=s), "commonality": c, "data_seed": 0}
        for c in (0, 1)
        for m in ("cox", "selftrain")
        for s in (0, 1)
    ]
    write("commonality", world)
    write_results.main(root, root / "results")
    page = (root / "docs" / "results.md").read_text()
    assert (
        "| cox-without-connection | 55.0 | +30.0 | 2 of 2 | – |" in page
        and "- `cox-without-connection`: no connection" in page
    )
    assert "cox-no-im" not in page
    assert "| toy | 2 | 0.500 | 0.040 | 2 of 2 | 10.0 | 65.0 | 75.0 | -10.0 | 1 of 2 |" in page
    assert "| toy | 2 | 50.0 | 75.0 | 25.0 | 50.0 | 75.0 | 37.5 | 37.5 |" in page
    assert (
        "gap is 10 points or more in 2 of 2 columns." in page
        and "at most half is left in 1 of these, on average 0.75 of it." in page
    )
    assert (
        "| 1 | 10.0 ± 0.0 |" in page
        and "| test accuracy | 0.0 ± 0.0 | 10.0 ± 0.0 | +1.00 |" in page
        and "Exploration takes 2 epochs." in page
    )


def test_a_plot_is_small(tmp_path):
    records = [record(0.5, method=m, oom=o) for m in ("erm", "cox") for o in ("sonar", "imu")]
    ((figure, *_),) = collect.figures("table2", records).values()
    collect.write_plot(tmp_path / "plot.png", figure)
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG") and (
        tmp_path / "plot.png"
    ).stat().st_size < 20_000


def test_paired_tests_are_the_same_of_records_read_back(tmp_path):
    rng = np.random.default_rng(0)
    records = [
        record(int(rng.integers(300, 600)) / 600, method=m, seed=s, oom=o)
        for m in ("erm", "selftrain", "cox")
        for s in range(5)
        for o in ("a", "b", "c")
    ]
    assert tests.tests(back(tmp_path, records), "accuracy") == tests.tests(records, "accuracy")
