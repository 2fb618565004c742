"""Pairs: the true ones are found, others drawn within a class on demand alone, and this is said."""

import json
import shutil
from pathlib import Path

import pytest
from worlds import assert_same, read_manifest, refused, run_dir, stage, write_folder, write_manifest

import evaluate
from cox_oom import files
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")


def test_oom_without_shared_rows_needs_pair_by_class(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))
    runs = tmp_path / "runs"
    stage("extract_features", own, runs)
    refused("train_connect", own, runs, parts=("imu", "pair", "--pair-by-class"))
    assert not list(runs.rglob("connect.pt"))
    out = stage("train_connect", own, runs, "--pair-by-class")
    assert "--pair-by-class" in out
    connect = files.load(run_dir(runs) / "connect.pt")
    assert connect["meta"]["paired"] == "class" and connect["meta"]["paired_by_class"] == ["language", "rgb"]
    label = {r[0]: r[2] for r in read_manifest(own)}
    for m in ("rgb", "language"):
        positions, im = connect["pairs"][m]
        assert len(positions) == 12
        for j, i in zip(positions.tolist(), im.tolist()):
            assert label[connect["labelled"][j]] == label[connect["mapped_ids"][m][i]]
    stage("train_explore", own, runs)
    evaluate.main(["--data", str(own), "--runs", str(runs)])
    record = json.loads((run_dir(runs) / "cox.json").read_text())
    assert record["paired"] == "class" and record["paired_by_class"] == ["language", "rgb"]


@pytest.mark.parametrize("flags", ["", "--pair-by-class"])
def test_few_true_pairs_are_found_and_no_others_drawn(tmp_path, flags):
    """Of 60 training rows three hold imu beside the others: they keep their labels, whatever the seed."""
    own = write_folder(tmp_path / "toy")
    rows = [
        [*r[:3], *(r[3:] if k < 3 or r[1] != "train" else (r[3], "", r[5]) if k % 2 else ("", r[4], ""))]
        for k, r in enumerate(read_manifest(own))
    ]
    write_manifest(own, rows)
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    for seed in (0, 1):
        short = f"--seed {seed} --labels 0.1 --warmup-epochs 0 --connect-steps 1"
        stage("train_connect", own, tmp_path / "runs", flags, short)
        connect = files.load(Place(tmp_path / "runs", own, "bind", "imu", "semi", seed).folder / "connect.pt")
        assert connect["meta"]["paired"] == "true"
        for m in ("rgb", "language"):
            at, im = connect["pairs"][m]
            assert {connect["labelled"][j] for j in at.tolist()} == {f"itrain{k}" for k in range(3)}
            assert [connect["labelled"][j] for j in at.tolist()] == [connect["mapped_ids"][m][i] for i in im.tolist()]


def test_pair_by_class_changes_nothing_where_rows_are_shared(runs, folder, tmp_path):
    before = files.load(run_dir(runs) / "connect.pt")
    stage("train_connect", folder, runs, "--pair-by-class --force")
    after = files.load(run_dir(runs) / "connect.pt")
    assert after["meta"]["paired"] == "true"
    assert_same(before["pairs"], after["pairs"])
    assert_same(before["learner"], after["learner"])


@pytest.fixture(scope="module")
def bind_by_class(quick, tmp_path_factory):
    """imu shares rows with rgb and with language, which share none: bind alone needs --pair-by-class."""
    base = tmp_path_factory.mktemp("by_class")
    own, runs = write_folder(base / "toy"), base / "runs"
    rows = enumerate(read_manifest(own))
    write_manifest(own, [[*r[:3], r[3] if k % 2 else "", r[4], "" if k % 2 else r[5]] for k, r in rows])
    refused("extract_features", own, runs, "--bind-epochs 1", parts=("language", "--pair-by-class"))
    assert not (runs / "toy" / "bind").exists()
    out = stage("extract_features", own, runs, "--pair-by-class --bind-epochs 1")
    return own, runs, out


def test_im_without_shared_rows_needs_pair_by_class(bind_by_class):
    own, runs, out = bind_by_class
    assert "paired by class" in out and "language" in out
    for m in ("rgb", "language"):
        meta = files.load(Place(runs, own, "bind", "imu").banks() / f"{m}.pt")["meta"]
        assert meta["paired_by_class"] == ["language", "rgb"]
        assert meta["args"]["pair_by_class"] is True


def test_pairs_by_class_in_bind_are_said_in_the_results(bind_by_class, tmp_path):
    own, runs, _ = bind_by_class
    runs = Path(shutil.copytree(runs, tmp_path / "runs"))
    stage("train_connect", own, runs, "--labels 0.4")
    stage("train_explore", own, runs)
    evaluate.main(["--data", str(own), "--runs", str(runs), "--table"])
    record = json.loads((run_dir(runs) / "cox.json").read_text())
    assert record["paired"] == "true" and record["perceptor_paired_by_class"] == ["language", "rgb"]
    table = (runs / "toy" / "report" / "table.md").read_text()
    assert "perceptor's pairs drawn by class: language, rgb" in table


def test_an_oom_modality_without_labelled_training_rows(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))
    write_manifest(own, [[r[0], r[1], "" if r[4] and r[1] == "train" else r[2], *r[3:]] for r in read_manifest(own)])
    stage("extract_features", own, tmp_path / "runs")
    refused("train_connect", own, tmp_path / "runs", "--pair-by-class", parts=("imu", "label"))
