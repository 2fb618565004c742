"""experiments/search.py: the choice of flags, on items held out."""

import pytest
import search
from records import make_world

from cox_oom import files


def run_of(name, accuracy, seed=0, oom="pen", flags=""):
    which = {"run": name, "data": "toy", "oom": oom, "seed": seed, "flags": flags}
    return {**which, "accuracy": accuracy, "n": 3, "seconds": 1}


def test_the_best_mean_over_columns_is_chosen():
    runs = [
        run_of(f"erm-{i}", a, s, o, f"--x {i}")
        for i, of_setting in (
            (1, {"pen": (0.9, 0.9), "rgb": (0.1, 0.1)}),
            (2, {"pen": (0.6, 0.8), "rgb": (0.5, 0.5)}),
            (3, {"pen": (0.6, 0.8), "rgb": (0.5, 0.5)}),
        )
        for o, values in of_setting.items()
        for s, a in enumerate(values)
    ]
    runs += [run_of("erm-4", 1.0)]  # not finished everywhere: not compared
    runs += [run_of("cox-10", 0.3), run_of("cox-2", 0.3)]
    chosen = search.choose(runs)
    assert [s["run"] for s in chosen["erm"]] == ["erm-2", "erm-3", "erm-1"]  # equally good: the earlier line
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
    connect = files.load(folder / "connect.pt")
    kept = {k: v for k, v in connect["meta"].items() if k not in ("digest", "argv", "time", "torch")}
    connect = {k: v for k, v in connect.items() if k != "meta"}
    files.save(folder / "connect.pt", {**connect, "held": ["i1", "i2"]}, quiet=True, **kept)
    search.main(line)
    (run,), _ = search.known_runs(tmp_path / "out")
    assert run["accuracy"] == 0.5 and run["n"] == 2 and run["flags"] == "--weight-decay 1"  # make_world's history
    assert (tmp_path / "out" / "chosen.sh").read_text() == 'export EXPLORE_erm="${EXPLORE_erm:---weight-decay 1}"\n'
    assert "**--weight-decay 1**" in (tmp_path / "out" / "search.md").read_text()
    (folder / "erm-1.pt").rename(folder / "moco-1.pt")  # another search, of another method
    monkeypatch.setenv("EXPLORE_moco_1", "--momentum 0.5")
    search.main(line)
    assert [r["flags"] for r in search.known_runs(tmp_path / "out")[0]] == ["--momentum 0.5", "--weight-decay 1"]
    assert len((tmp_path / "out" / "chosen.sh").read_text().splitlines()) == 2
    monkeypatch.setenv("COMMAND", "searched again")
    search.main(line)  # one outcome, and whose it is
    assert len(search.known_runs(tmp_path / "out")[0]) == 2
    moco, erm = sorted((tmp_path / "out" / "COMMAND").read_text().splitlines(), reverse=True)
    assert moco.startswith("moco: `searched again`, commit ") and erm.startswith("erm: ") and "again" not in erm
