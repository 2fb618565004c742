"""experiments/suggest.py: rounds of labels, their tables, and that a round keeps the labels of the rounds before."""

import importlib.util

import pytest
import worlds
from scipy.stats import ttest_rel

from cox_oom import files


@pytest.fixture(scope="module")
def rounds():
    """The experiment's module, whose name is also that of a module of cox_oom."""
    spec = importlib.util.spec_from_file_location("label_rounds", worlds.ROOT / "experiments" / "suggest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(strategy, number, seed, accuracy, data="toy"):
    name = {"data": data, "oom": "imu", "method": "cox", "seed": seed, "strategy": strategy, "round": number}
    return {**name, "labels": 10 + 5 * number, "accuracy": accuracy}


def test_gains_are_paired_by_world_and_seed(rounds):
    """Seed 2 has no random round, so it takes no part; the common start counts for no strategy."""
    random = {("toy", 0): (0.5, 0.6), ("toy", 1): (0.4, 0.6), ("pets", 0): (0.7, 0.7)}
    entropy = {("toy", 0): (0.6, 0.7), ("toy", 1): (0.4, 0.5), ("pets", 0): (0.8, 0.9), ("toy", 2): (1.0, 1.0)}
    records = [record("start", 0, s, 0.1, d) for d, s in entropy]
    for name, of in (("random", random), ("entropy", entropy)):
        records += [record(name, n + 1, s, a, d) for (d, s), both in of.items() for n, a in enumerate(both)]
    found = rounds.gains(rounds.by_world(records), "entropy")
    assert sorted(found) == pytest.approx([-0.05, 0.1, 0.15])
    gain, *of_worlds = rounds.tables(records)
    mean = lambda of: [sum(of[k]) / 2 for k in sorted(random)]
    p = ttest_rel(mean(entropy), mean(random)).pvalue
    assert gain["rows"] == [["entropy", "6.7 ± 10.4", "2 of 3", f"{p:.2f}"]]
    assert [b["title"].split(":")[0] for b in of_worlds] == ["pets, imu, cox", "toy, imu, cox"]
    assert of_worlds[0]["header"] == ["labels chosen by", "10 labels", "15 labels", "20 labels"]
    assert of_worlds[0]["rows"] == [["random", "10.0", "70.0", "70.0"], ["entropy", "10.0", "80.0", "90.0"]]
    assert rounds.curves(records) is not None


def test_a_round_adds_labels_to_those_before(rounds, tmp_path, capsys):
    folder, runs, out = worlds.write_folder(tmp_path / "toy"), tmp_path / "runs", tmp_path / "out"
    with worlds.quickly():
        worlds.stage("extract_features", folder, runs, "--workers 0")
        line = ["--data", folder, "--oom", "imu", "--runs", runs, "--out", out, "--method", "selftrain"]
        line += ["--strategy", "random", "spread", "--rounds", 2, "--count", 4]
        line += ["--connect", worlds.FLAGS["train_connect"], "--explore", worlds.FLAGS["train_explore"]]
        rounds.main([str(w) for w in line])
    records = rounds.read(out / "records.csv")
    assert {(r["strategy"], r["round"]): r["labels"] for r in records} == {
        ("start", 0): 6,
        **{(s, n): 6 + 4 * n for s in ("random", "spread") for n in (1, 2)},
    }
    at = lambda base: files.load(base / "toy" / "bind" / "oom-imu" / "semi" / "seed0" / "connect.pt")["labelled"]
    sets = [set(at(base)) for base in (runs, runs / "spread-1", runs / "spread-2")]
    assert sets[0] < sets[1] < sets[2]
    before = (out / "records.csv").read_text()
    rounds.main([str(w) for w in line])  # nothing is trained again
    assert (out / "records.csv").read_text() == before
    assert (out / "table.md").exists() and (out / "plot-accuracy.png").exists() and (out / "COMMAND").exists()
