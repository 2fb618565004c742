"""What a script sets for its process before torch computes anything: threads that sleep, numbers below 1e-38 as 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def started(script, **env):
    """stdout and stderr of a process that loads `script` and then runs a main of one division; OpenMP says on stderr
    what it was told."""
    code = (
        f"import {script}, torch; from cox_oom import run; run.script(lambda argv: print(torch.tensor(2e-38) / 8 > 0))"
    )
    clean = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    env = {**clean, "OMP_DISPLAY_ENV": "true", **env}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)


@pytest.mark.parametrize("script", ["train_connect", "train_explore"])
def test_threads_sleep_and_subnormal_numbers_are_zero(script):
    run = started(script)
    assert "OMP_WAIT_POLICY = 'PASSIVE'" in run.stderr, run.stderr
    assert run.stdout.split() == ["tensor(False)"]


def test_a_users_own_wait_policy_wins():
    assert "OMP_WAIT_POLICY = 'ACTIVE'" in started("train_connect", OMP_WAIT_POLICY="active").stderr
