"""Soft correspondences of readings and IM items: checked on held-out pairs, trusted or left out, and said."""

import json

import numpy as np
import pytest
from worlds import CLASSES, read_manifest, run_dir, stage, write_folder, write_manifest

import evaluate
from cox_oom import files

pytestmark = pytest.mark.usefixtures("quick")


def write_shared_folder(path, n=120, seed=0):
    """Two sensors of the same objects: `touch` is a linear image of `gauge`, both (1, 12); three classes overlap."""
    rng = np.random.default_rng(seed)
    mix, means = rng.standard_normal((12, 12)), 0.7 * rng.standard_normal((3, 12))
    rows = []
    for split, count in (("train", n), ("test", 60)):
        for k in range(count):
            inner = means[k % 3] + rng.standard_normal(12)
            for m, x in (("gauge", inner), ("touch", inner @ mix / 3 + 0.1 * rng.standard_normal(12))):
                (path / m).mkdir(parents=True, exist_ok=True)
                np.save(path / m / f"{split}{k}.npy", x[None].astype(np.float32))
            rows.append([f"{split}{k}", split, CLASSES[k % 3], f"gauge/{split}{k}.npy", f"touch/{split}{k}.npy"])
    write_manifest(path, rows, ("id", "split", "label", "gauge", "touch"))
    return path


def test_correspondences_are_checked_on_held_out_pairs_and_left_out_on_demand(tmp_path):
    own, runs = write_shared_folder(tmp_path / "shared"), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.3", oom="touch")
    said = stage("train_explore", own, runs, oom="touch")
    trust = files.load(run_dir(runs, data="shared", oom="touch") / "cox.pt")["trust"]
    assert "held-out pairs: correspondences name" in said and f"{trust['gain']:+.3f}" in said
    assert trust["trusted"] == (trust["gain"] > -2 * trust["error"]) and 0 < trust["right"] <= 1
    for flags in ("--without emergent", "--without connection", "--rounds 0"):
        assert "held-out" not in stage("train_explore", own, runs, f"{flags} --tag {flags.split()[-1]}", oom="touch")
    assert "held-out" not in stage("train_explore", own, runs, "--method selftrain", oom="touch")
    stage("train_explore", own, runs, "--w-im 0 --tag plain", oom="touch")
    told = {
        m: files.load(run_dir(runs, data="shared", oom="touch") / f"{m}.pt")["history"]
        for m in ("cox", "cox-plain", "cox-emergent", "selftrain")
    }
    assert all("im" in epoch for epoch in told["cox"]) == trust["trusted"] and told["cox"][-1] != told["cox-plain"][-1]
    assert not any("im" in epoch for m in ("cox-plain", "cox-emergent", "selftrain") for epoch in told[m])
    line = ["--data", str(own), "--runs", str(runs), "--table", "--out", str(tmp_path / "report")]
    evaluate.main([*line, "--device", "cpu"])
    record = json.loads((run_dir(runs, data="shared", oom="touch") / "cox.json").read_text())
    assert record["metrics"]["trust"] == trust
    assert "What the known modalities tell" in (tmp_path / "report" / "table.md").read_text()


def test_a_class_that_the_sensor_never_recorded_is_not_forced_on_its_readings(tmp_path):
    """`gauge` shows three classes, `touch` two of them; --shares free makes no such statement."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    rows = [[*r[:4], "" if r[2] == CLASSES[2] else r[4]] for r in read_manifest(own)]
    write_manifest(own, rows, ("id", "split", "label", "gauge", "touch"))
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.3", oom="touch")
    for method in ("cox", "selftrain"):
        out = stage("train_explore", own, runs, f"--method {method} --epochs 8 --refreshes 2", oom="touch")
        assert f"no labelled touch item shows {CLASSES[2]}: no reading will be taken for one" in out
        saved = files.load(run_dir(runs, data="shared", oom="touch") / f"{method}.pt")
        assert (saved["after"]["prediction"] == 2).float().mean() < 0.02
        free = f"--method {method} --epochs 1 --refreshes 1 --shares free --tag free"
        assert "no reading will be" not in stage("train_explore", own, runs, free, oom="touch")


def test_too_few_pairs_for_correspondences_are_said(tmp_path):
    own, runs = write_shared_folder(tmp_path / "shared"), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--per-class 2", oom="touch")
    said = stage("train_explore", own, runs, oom="touch")
    assert "6 labelled items have a pair in all of gauge, 8 are needed" in said


def test_im_features_are_predicted_better_with_every_epoch(tmp_path):
    """What gauge shows is in touch as well: more epochs, and the learner's features tell it better."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.4", oom="touch")
    stage("train_explore", own, runs, "--epochs 12 --tag long", oom="touch")
    saved = files.load(run_dir(runs, data="shared", oom="touch") / "cox-long.pt")
    assert saved["trust"]["trusted"]
    im = [epoch["im"] for epoch in saved["history"]]
    assert sum(im[-3:]) < 0.9 * sum(im[:3])


def test_partners_of_other_objects_are_not_trusted(tmp_path):
    """The manifest pairs every `touch` with the `gauge` of an object of another class: COX says so, goes on without."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    rows = read_manifest(own)
    gauges = [r[3] for r in rows]
    for k, r in enumerate(rows):
        if r[1] == "train":
            r[3] = gauges[(7 * k + 1) % 240]
    write_manifest(own, rows, ("id", "split", "label", "gauge", "touch"))
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.4", oom="touch")
    said = stage("train_explore", own, runs, oom="touch")
    trust = files.load(run_dir(runs, data="shared", oom="touch") / "cox.pt")["trust"]
    assert "held-out pairs" in said and trust["gain"] < 0.1


def test_pairs_drawn_within_a_class_give_no_correspondences(tmp_path):
    own, runs = write_folder(tmp_path / "toy", separate=("imu",)), tmp_path / "runs"
    stage("extract_features", own, runs)
    stage("train_connect", own, runs, "--pair-by-class")
    assert "held-out" not in stage("train_explore", own, runs) and files.load(run_dir(runs) / "cox.pt")["trust"] == {}
