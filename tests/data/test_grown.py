"""Stage 1 on data that have grown: new rows and labels extend what is there, whatever else changed is refused."""

import shutil

import numpy as np
import pytest
from grown import ONLY, inputs, same_rows
from worlds import digests, read_manifest, refused, stage, write_manifest

from cox_oom import shards

pytestmark = pytest.mark.usefixtures("quick")


def part_of(folder, to, rows):
    """The same recordings with a part of the table."""
    if not to.exists():
        shutil.copytree(folder, to)
    write_manifest(to, rows)
    return to


@pytest.mark.parametrize("shard", [4096, 16])
@pytest.mark.parametrize("where", ["end", "among"])
def test_new_rows_extend_inputs_and_only_they_are_decoded(world, tmp_path, monkeypatch, shard, where, decoded):
    monkeypatch.setattr(shards, "ITEMS", shard)
    folder, rows = world[0], read_manifest(world[0])
    new = set(range(50, 60)) if where == "end" else {0, 7, 20, 41}
    first = [[*r[:2], "" if k % 4 == 1 and r[1] == "train" else r[2], *r[3:]] for k, r in enumerate(rows)]
    own = part_of(folder, tmp_path / "toy", [r for k, r in enumerate(first) if k not in new])
    stage("extract_features", own, tmp_path / "runs", ONLY)
    part_of(folder, own, rows)
    decoded.clear()
    out = stage("extract_features", own, tmp_path / "runs", ONLY)
    assert sorted(decoded) == sorted((m, r) for m in ("rgb", "imu", "language") for r in new)
    hidden = sum(k % 4 == 1 and r[1] == "train" for k, r in enumerate(rows) if k not in new)
    assert f"{len(new)} rows with imu more, {hidden} labels other; the {60 - len(new)} items" in out
    assert "rgb, language: the data have changed, so these encoders are trained anew" in out
    stage("extract_features", own, tmp_path / "anew", ONLY)
    if where == "end" or shard == 4096:  # else a shard of grey images alone was of colour when it was made first
        assert digests(tmp_path / "runs") == digests(tmp_path / "anew")
    for m in ("rgb", "imu", "language"):
        same_rows(inputs(tmp_path / "runs", m), inputs(tmp_path / "anew", m))
    stage("train_connect", own, tmp_path / "runs")
    assert stage("extract_features", own, tmp_path / "runs", ONLY).count("already done") == 5


def test_new_labels_alone_keep_the_banks_whose_training_saw_none(world, tmp_path):
    rows = read_manifest(world[0])
    own = part_of(world[0], tmp_path / "toy", [[*r[:2], "" if r[0] == "itrain4" else r[2], *r[3:]] for r in rows])
    stage("extract_features", own, tmp_path / "runs", ONLY)
    part_of(world[0], own, rows)
    out = stage("extract_features", own, tmp_path / "runs", ONLY)
    assert "banks kept" in out and "training bind" not in out
    stage("extract_features", own, tmp_path / "anew", ONLY)
    assert digests(tmp_path / "runs") == digests(tmp_path / "anew")


def test_series_that_were_shortened_are_kept_unless_a_longer_one_comes(world, tmp_path, decoded):
    rows = read_manifest(world[0])
    own, flag = part_of(world[0], tmp_path / "toy", rows[:-2]), "--series-length 12"
    longest = max(np.load(p).shape[1] for p in (own / "imu").iterdir())
    np.save(own / "imu/itrain0.npy", np.ones((2, longest + 1), np.float32))
    stage("extract_features", own, tmp_path / "runs", ONLY, flag)
    part_of(world[0], own, rows[:-1])
    decoded.clear()
    stage("extract_features", own, tmp_path / "runs", ONLY, flag)
    assert [m for m, _ in decoded].count("imu") == 1
    np.save(own / "imu/itest17.npy", np.ones((2, longest + 5), np.float32))
    part_of(world[0], own, rows)
    out = stage("extract_features", own, tmp_path / "runs", ONLY, flag)
    assert "a new recording is longer than all before, so all are read again" in out
    stage("extract_features", own, tmp_path / "anew", ONLY, flag)
    assert digests(tmp_path / "runs") == digests(tmp_path / "anew")


@pytest.mark.parametrize("change", ["item", "gone", "split", "sentence"])
def test_changed_or_vanished_rows_are_refused(world, tmp_path, change):
    rows = read_manifest(world[0])
    own = part_of(world[0], tmp_path / "toy", rows)
    stage("extract_features", own, tmp_path / "runs", ONLY)
    before = digests(tmp_path / "runs")
    if change == "item":
        np.save(own / "imu/itrain3.npy", np.zeros((2, 9), np.float32))
    rows = [list(r) for r in rows]
    rows[4][1] = "val" if change == "split" else rows[4][1]
    rows[4][5] = "another sentence" if change == "sentence" else rows[4][5]
    write_manifest(own, rows[:-1] if change == "gone" else rows)
    what = {"item": "1 items other", "gone": "1 fewer", "split": "1 splits other", "sentence": "1 items other"}[change]
    refused("extract_features", own, tmp_path / "runs", ONLY, parts=("has changed since", what, "--force", "--runs"))
    assert digests(tmp_path / "runs") == before
    stage("extract_features", own, tmp_path / "runs", ONLY, "--force")
    stage("train_connect", own, tmp_path / "runs")
