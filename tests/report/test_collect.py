"""experiments/collect.py: the runs of several trees, and what an earlier collection adds."""

import collect
import pytest
from records import make_world

import evaluate
from cox_oom import files
from cox_oom.report.records import read_records, write_records


@pytest.mark.parametrize("experiment", collect.TITLES)
def test_every_experiment_is_collected_from_several_trees(experiment, tmp_path, capsys):
    for tree, seeds in (("one", (0,)), ("two", (1,))):
        make_world(tmp_path / tree, seeds=seeds, methods=("random", "selftrain", "cox"))
        evaluate.main(["--data", "toy", "--runs", str(tmp_path / tree), "--task", "retrieval"])
    trees = [str(tmp_path / "one"), str(tmp_path / "two")]
    line = [experiment, "--data", "toy", "--runs", *trees, "--out", str(tmp_path / "out")]
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

    def line(tree, *more):
        where = ["--runs", str(tmp_path / tree), "--out", str(tmp_path / tree / "out")]
        return ["table2", "--data", "toy", *where, *more]

    collect.main(line("two"))
    earlier, table = (tmp_path / tree / "out" / "records.csv" for tree in ("two", "one"))

    def read():
        return [(r["method"], r["seed"], "added" in r) for r in read_records(table)]

    collect.main(line("one", "--add", str(earlier)))
    assert sorted(read()) == [(m, s, s == 1) for m in ("cox", "random", "selftrain") for s in (0, 1)]
    collect.main(line("one", "--add", str(earlier), "--add-method", "random"))
    assert sorted(read()) == [("cox", 0, False), ("random", 0, False), ("random", 1, True), ("selftrain", 0, False)]
    text = (tmp_path / "one" / "out" / "table.md").read_text()
    assert "random added from commit" in text and "Not alike" not in text and "not recorded" not in text
    assert "3 runs of 0.0 h in all; 1 more of commit " in (tmp_path / "one" / "out" / "COMMAND").read_text()
    late = ("args", "connect_args", "seconds", "connect_seconds")  # tables once held no flags and no times
    old = [{k: v for k, v in r.items() if k not in late} for r in read_records(earlier)]
    write_records(earlier, old)
    collect.main(line("one", "--add", str(earlier)))
    assert len(read()) == 6
    assert "the flags of 3 of these runs were not recorded" in (tmp_path / "one" / "out" / "table.md").read_text()
    with pytest.raises(files.UserError, match="no evaluated run"):  # no retrieval in these: none of table 3's
        collect.main(["table3", *line("one")[1:]])
    unsup = [{**r, "setting": "unsup"} for r in old]  # which start? a row could be of another one
    write_records(earlier, unsup)
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
