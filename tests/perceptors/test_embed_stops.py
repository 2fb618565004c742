"""Stage 1 stopped or killed: the parts that were finished are kept, those of other work are not."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import fake_perceptor
import numpy as np
import pytest
import torch
from embedded import bank_of, expected, extract, stopped, written
from PIL import Image

from cox_oom.perceptors import embed

pytestmark = pytest.mark.usefixtures("quick", "fake")


def in_child(work, seconds=None):
    """work() in a forked process, killed after so many seconds; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    until = time.time() + (60 if seconds is None else seconds)
    while time.time() < until:
        if (done := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return done[1]
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 10)
    monkeypatch.setenv("COX_FAKE_SLEEP", "0.01")

    def work(runs):
        return lambda: extract(folder, tmp_path / runs, weights, "--oom audio", "--batch-size 4", "--workers 2")

    begun = time.time()
    assert in_child(work("whole")) == 0
    took, whole, draw, parts = time.time() - begun, written(tmp_path / "whole"), random.Random(3), set()
    for k in range(3):
        for _ in range(8):
            if in_child(work(f"killed{k}"), took * draw.uniform(0.05, 0.9)) == 0:
                break
            parts |= set((tmp_path / f"killed{k}").rglob("*.parts/*.pt"))
        assert in_child(work(f"killed{k}")) == 0
        again = written(tmp_path / f"killed{k}")
        assert again.keys() == whole.keys()
        for path in whole:
            assert again[path] == whole[path], path
    assert parts, "no run was killed between two parts"


def test_finished_parts_are_not_made_again(folder, weights, tmp_path, monkeypatch):
    parts = stopped(folder, tmp_path / "runs", weights, monkeypatch, 3)
    assert sorted(os.listdir(parts)) == ["00000000.pt", "00000020.pt", "00000040.pt"]
    (parts / "00000020.pt").write_bytes(b"torn")
    fake_perceptor.encoded.clear()
    extract(folder, tmp_path / "runs", weights, "--im rgb")
    assert [shape[0] for _, shape in fake_perceptor.encoded] == [20, 20, 10]  # the torn one, and the two that lacked
    assert not parts.exists()
    z, _ = expected(folder, "rgb", weights, "image")
    torch.testing.assert_close(bank_of(tmp_path / "runs", "rgb")["features"], z)


@pytest.mark.parametrize("change", ["weights", "batch", "dtype", "data", "force"])
def test_parts_of_other_work_are_made_again(folder, weights, tmp_path, monkeypatch, change):
    stopped(folder, tmp_path / "runs", weights, monkeypatch, 3)
    fake_perceptor.encoded.clear()
    flags = {"batch": ["--batch-size 10"], "dtype": ["--dtype bfloat16"], "force": ["--force"]}.get(change, [])
    own = folder
    if change == "weights":
        weights.write_bytes(b"seed 1")
    if change == "data":
        own = Path(shutil.copytree(folder, tmp_path / "toy"))
        Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(own / "rgb/0.png")
    extract(own, tmp_path / "runs", weights, "--im rgb", *flags)
    assert sum(shape[0] for _, shape in fake_perceptor.encoded) == 90
