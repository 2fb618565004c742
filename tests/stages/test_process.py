"""What a script sets for its process before torch computes anything: threads that sleep, numbers below 1e-38 as 0."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cox_oom import optimizers

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


def test_no_stage_loads_the_front_end_of_torchs_compiler(folder, tmp_path):
    """torch would, for two to four seconds of every process, as soon as an optimizer is made."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); import worlds\n"
        f"for name in worlds.STAGES: worlds.stage(name, Path({str(folder)!r}), Path({str(tmp_path)!r}))\n"
        "print(sorted(name for name in sys.modules if name in ('torch.optim.adam', 'torch._dynamo')))"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["['torch.optim.adam']"]


def test_no_kind_of_learner_loads_it_when_its_file_is_checked():
    code = (
        "import sys, torch; from cox_oom.learner import Learner\n"
        "with torch.device('meta'):\n"
        "  for kind, shape in (('image', (3, 8, 8)), ('video', (3, 4, 8, 8)), ('series', (2, 40)), ('text', (20,))):\n"
        "    Learner(kind=kind, shape=shape, width=8, depth=1, patch=4)\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


@pytest.mark.parametrize("name", ("Adam", "AdamW", "LBFGS"))
def test_optimizers_make_the_steps_of_torchs(name):
    generator = torch.Generator().manual_seed(0)
    x, y, first = (torch.randn(*shape, generator=generator) for shape in ((30, 4), (30,), (4,)))
    found = []
    for library in (optimizers, torch.optim):
        w = torch.nn.Parameter(first.clone())
        made = getattr(library, name)([w], lr=0.1)
        assert isinstance(made, getattr(torch.optim, name))

        def loss():
            made.zero_grad()
            value = ((x @ w - y) ** 2).mean()
            value.backward()
            return value

        for _ in range(5):
            made.step(loss)
        copy = getattr(library, name)([w], lr=0.2)
        copy.load_state_dict(made.state_dict())
        copy.step(loss)
        found.append((w.detach().clone(), w.grad, copy.state_dict()["param_groups"]))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][2] == found[1][2] and not torch.equal(found[0][0], first)
