"""Inputs in shards: the same rows as in one file, in little memory, whatever stopped on the way."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from grown import ONLY, inputs, same_rows
from worlds import digests, no_leftovers, refused, stage, write_manifest

from cox_oom import files, shards
from cox_oom.files import Place, UserError

pytestmark = pytest.mark.usefixtures("quick")


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


def test_every_item_is_decoded_once(world, tmp_path, few, decoded):
    stage("extract_features", world[0], tmp_path, ONLY)
    assert sorted(decoded) == sorted((m, r) for m in ("rgb", "imu", "language") for r in range(60))


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(world, tmp_path, few):
    """SIGKILL in a process of its own, at two moments."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    folder, rng = world[0], random.Random(seed)
    as_bytes = lambda runs: {p.relative_to(runs): p.read_bytes() for p in Path(runs).rglob("*.pt")}
    code = "import sys; from cox_oom import shards; shards.ITEMS = int(sys.argv[1]); from worlds import stage; "
    code += "print(flush=True); stage('extract_features', *sys.argv[2:])"

    def child(runs, seconds=None):
        path = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
        words = [sys.executable, "-c", code, str(shards.ITEMS), folder, runs, ONLY]
        env = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=env) as process:
            process.stdout.readline()
            begun = time.time()
            if seconds is not None:
                time.sleep(seconds)
                process.kill()
            process.stdout.read()
        return process.returncode, time.time() - begun

    done, took = child(tmp_path / "sound")
    assert not done
    known, runs = as_bytes(tmp_path / "sound"), tmp_path / "killed"
    for _ in range(2):
        child(runs, rng.uniform(0, took))
    assert child(runs)[0] == 0
    assert as_bytes(runs).keys() == known.keys()
    assert not [path for path, content in as_bytes(runs).items() if content != known[path]]
    no_leftovers(runs)


def growth(begin, work, *words):
    """By how many bytes the memory of a process of its own grows at most while it does the work, code that is given
    sys.argv[1:]; `begin`: what it does before."""
    code = "import sys, torch; torch.set_num_threads(1)\n"
    code += "size = lambda of: next(int(li.split()[1]) for li in open('/proc/self/status') if li.startswith(of))\n"
    code += f"{begin}\nbefore = size('VmRSS')\n{work}\nprint(1024 * (size('VmHWM') - before))"
    path = os.pathsep.join(map(str, (Path(__file__).parents[2], Path(__file__).parents[1])))
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def test_stage_1_holds_a_shard_whatever_the_number_of_rows(tmp_path, monkeypatch):
    """2,400 images of 128 x 128 are 118 MB, 400 are 20 MB."""
    monkeypatch.setattr(shards, "BYTES", 4 << 20)
    rng, grown = np.random.default_rng(0), {}
    for n in (400, 2400):
        (tmp_path / f"toy{n}/eye").mkdir(parents=True)
        rows = []
        for k in range(n):
            path = tmp_path / f"toy{n}/eye/{k}.npy"
            if k < 20:
                np.save(path, rng.integers(0, 255, (3, 128, 128), dtype=np.uint8))
            else:
                os.link(tmp_path / f"toy{n}/eye/{k % 20}.npy", path)
            rows.append([f"i{k}", "train" if k % 4 else "test", "ab"[k % 2], f"thing {k % 2}", f"eye/{k}.npy"])
        write_manifest(tmp_path / f"toy{n}", rows, ("id", "split", "label", "language", "eye"))
        flags = (ONLY, "--image-size 128 --bind-epochs 0")
        grown[n] = growth(
            f"from cox_oom import shards; from worlds import stage; shards.BYTES = {4 << 20}",
            "stage('extract_features', *sys.argv[1:], oom='eye')",
            *(tmp_path / f"toy{n}", tmp_path, *flags),
        )
    assert grown[2400] - grown[400] < 32 << 20
    assert sum(files.load(Place(tmp_path, "toy2400").inputs("eye"))["x"].sizes) == 2400


def test_a_large_file_is_written_without_a_copy(tmp_path):
    facts = {"stage": "extract_features", "data": "toy", "fingerprint": "", "args": {}, "quiet": True}
    x = torch.ones(64 << 20)
    begin = f"from cox_oom import files; x, facts = torch.ones({len(x)}), {facts}"
    assert growth(begin, "files.save(sys.argv[1], {'x': x}, **facts)", tmp_path / "x.pt") < 64 << 20  # of 256 MB
    x[-1] = torch.nan
    with pytest.raises(UserError, match="x has NaN"):
        files.save(tmp_path / "x.pt", {"x": x}, **facts)
