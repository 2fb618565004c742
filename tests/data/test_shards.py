"""Inputs and banks in shards: the same rows as in one file, whatever stopped on the way; data that have grown."""

import contextlib
import io
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import digests, no_leftovers, read_manifest, refused, stage, write_folder, write_manifest

from cox_oom import files, shards
from cox_oom.data import ahead
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")
ONLY = "--workers 0"


@pytest.fixture
def few(monkeypatch):
    """Shards of 16 items."""
    monkeypatch.setattr(shards, "ITEMS", 16)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder of 60 rows, and what stage 1 makes of it in one file each."""
    base = tmp_path_factory.mktemp("shards")
    folder = write_folder(base / "toy", n=(36, 6, 18))
    grey = np.random.default_rng(1).integers(0, 255, (8, 8), dtype=np.uint8)
    from PIL import Image

    for k in range(20):  # the first shard is grey alone
        Image.fromarray(grey).save(folder / f"rgb/itrain{k}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        stage("extract_features", folder, base / "whole", ONLY)
    return folder, base / "whole"


def inputs(runs, m):
    return files.load(Place(runs, "toy").inputs(m))


def same_rows(a, b):
    """Two inputs files or banks hold the same rows, but for roundings of mean and std."""
    for key in ("ids", "class_names", "kind"):
        assert a.get(key) == b.get(key)
    for key in ("labels", "split", "lengths"):
        assert (a.get(key) is None) == (b.get(key) is None) and (a.get(key) is None or torch.equal(a[key], b[key]))
    rows = torch.arange(len(a["ids"])).flip(0)
    for key in {"x", "features"} & a.keys():
        assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype
        torch.testing.assert_close(a[key][rows], b[key][rows], rtol=0, atol=0 if key == "x" else 1e-5)
    for key in ("mean", "std"):
        if a.get(key) is not None:
            torch.testing.assert_close(a[key], b[key])


@pytest.mark.parametrize("m", ["rgb", "language", "imu"])
@pytest.mark.parametrize("length", [512, 15])
def test_shards_hold_the_rows_of_one_file(world, tmp_path, few, m, length):
    folder, whole = world
    if length == 15:
        whole = tmp_path / "whole"
        shards.ITEMS = 4096
        stage("extract_features", folder, whole, ONLY, "--series-length 15")
        shards.ITEMS = 16
    stage("extract_features", folder, tmp_path / "runs", ONLY, f"--series-length {length}")
    file = inputs(tmp_path / "runs", m)
    assert isinstance(file["x"], shards.Shards) and file["x"].sizes == [16, 16, 16, 12]
    same_rows(file, inputs(whole, m))
    left = {p.name for p in shards.folder(Place(tmp_path / "runs", "toy").inputs(m)).iterdir()}
    assert left == {f"{name}.pt" for name in file["x"].names}
    stage("train_connect", folder, tmp_path / "runs")


def test_rows_of_shards_are_taken_as_of_a_tensor(world, tmp_path, few):
    folder, _ = world
    stage("extract_features", folder, tmp_path, ONLY)
    x = inputs(tmp_path, "imu")["x"]
    whole = torch.cat(list(x.split(7)))
    assert whole.shape == x.shape and len(x) == 60 and x.dim() == 3
    mask = torch.arange(60) % 7 == 3
    for rows in (torch.tensor([59, 0, 17, 17]), [3, -1], slice(5, 40, 4), mask, torch.tensor([], dtype=torch.long)):
        assert torch.equal(x[rows], whole[rows])
    assert torch.equal(x[33], whole[33])
    out = torch.full((2, *x.shape[1:]), 7.0)
    assert shards.take(x, torch.tensor([20, 4]), out) is out and torch.equal(out, whole[[20, 4]])
    with pytest.raises(IndexError):
        x[torch.tensor([60])]


@pytest.mark.parametrize("harm", ["missing", "torn", "other"])
def test_a_shard_that_is_not_right_is_named_and_made_again(world, tmp_path, few, harm):
    folder, _ = world
    runs = tmp_path / "runs"
    stage("extract_features", folder, runs, ONLY)
    before, path = digests(runs), Place(runs, "toy").inputs("imu")
    first, second = (shards.folder(path) / f"{name}.pt" for name in files.load(path)["x"].names[:2])
    if harm == "missing":
        second.unlink()
    elif harm == "torn":
        os.truncate(second, second.stat().st_size // 2)
    else:
        shutil.copy(first, second)
    for name in ("extract_features", "train_connect"):
        refused(name, folder, runs, parts=(path, second.name[:5], "remove it"))
    path.unlink()
    stage("extract_features", folder, runs, ONLY)
    assert digests(runs) == before


def decoded(monkeypatch):
    """The (modality, row)s that are decoded from here on."""
    rows, real = [], ahead.Rows.__getitem__

    def look(self, place):
        rows.append((self.modality, self.rows[place]))
        return real(self, place)

    monkeypatch.setattr(ahead.Rows, "__getitem__", look)
    return rows


def test_every_item_is_decoded_once(world, tmp_path, few, monkeypatch):
    rows = decoded(monkeypatch)
    stage("extract_features", world[0], tmp_path, ONLY)
    assert sorted(rows) == sorted((m, r) for m in ("rgb", "imu", "language") for r in range(60))


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(world, tmp_path, few):
    """SIGKILL in a forked process; shards that were finished are not made again."""
    folder, rng = world[0], np.random.default_rng()
    as_bytes = lambda runs: {p.relative_to(runs): p.read_bytes() for p in Path(runs).rglob("*.pt")}

    def child(runs, seconds=None):
        pid = os.fork()
        if not pid:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                torch.set_num_threads(1)
                stage("extract_features", folder, runs, ONLY)
            os._exit(0)
        if seconds is not None:
            time.sleep(seconds)
            os.kill(pid, signal.SIGKILL)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    begun = time.time()
    assert child(tmp_path / "sound") == 0
    took, known = time.time() - begun, as_bytes(tmp_path / "sound")
    for k in range(3):
        runs = tmp_path / f"killed{k}"
        for _ in range(4):
            child(runs, rng.uniform(0, took))
        assert child(runs) == 0
        assert as_bytes(runs) == known
        no_leftovers(runs)


# ----------------------------------------------------------------------------------------------- data that have grown


def part_of(folder, to, rows):
    """The same recordings with a part of the table."""
    if not to.exists():
        shutil.copytree(folder, to)
    write_manifest(to, rows)
    return to


@pytest.mark.parametrize("shard", [4096, 16])
@pytest.mark.parametrize("where", ["end", "among"])
def test_new_rows_and_labels_extend_inputs_and_only_they_are_decoded(world, tmp_path, monkeypatch, shard, where):
    monkeypatch.setattr(shards, "ITEMS", shard)
    folder, rows = world[0], read_manifest(world[0])
    new = set(range(50, 60)) if where == "end" else {0, 7, 20, 41}
    first = [[*r[:2], "" if k % 4 == 1 and r[1] == "train" else r[2], *r[3:]] for k, r in enumerate(rows)]
    own = part_of(folder, tmp_path / "toy", [r for k, r in enumerate(first) if k not in new])
    stage("extract_features", own, tmp_path / "runs", ONLY)
    part_of(folder, own, rows)
    looked = decoded(monkeypatch)
    out = stage("extract_features", own, tmp_path / "runs", ONLY)
    assert sorted(looked) == sorted((m, r) for m in ("rgb", "imu", "language") for r in new)
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


def test_series_that_were_shortened_are_kept_unless_a_longer_one_comes(world, tmp_path, monkeypatch):
    rows = read_manifest(world[0])
    own, flag = part_of(world[0], tmp_path / "toy", rows[:-2]), "--series-length 12"
    longest = max(np.load(p).shape[1] for p in (own / "imu").iterdir())
    np.save(own / "imu/itrain0.npy", np.ones((2, longest + 1), np.float32))
    stage("extract_features", own, tmp_path / "runs", ONLY, flag)
    part_of(world[0], own, rows[:-1])
    looked = decoded(monkeypatch)
    stage("extract_features", own, tmp_path / "runs", ONLY, flag)
    assert [m for m, _ in looked].count("imu") == 1
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
