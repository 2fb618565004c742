"""bench/gpu_check.py without a GPU: its commands name what is there, and its report tells what ran."""

import importlib
import importlib.util
import re
import sys
import warnings
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "bench" / "gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tool = tmp_path / "compute-sanitizer"
    tool.write_text("#!/bin/sh\necho '  --report-api-errors arg (=explicit)'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: str(tool))
    for name, value in dict(is_available=True, get_device_capability=(9, 0), get_device_name="GPU X").items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--commit", "abc"])
    return module


def test_every_file_and_test_that_it_names_is_there(check):
    steps = list(check.steps("python", "abc"))
    for _, command, _, seconds in steps:
        words = " ".join(command).split()
        assert all((ROOT / word).exists() for word in words if word.endswith((".py", ".sh"))) and seconds > 0
    tests = "\n".join(p.read_text() for p in (ROOT / "tests" / "ops").glob("test_*.py"))
    assert all(re.search(rf"def test_\w*{part}", tests) for part in check.SANITIZED.split(" or "))
    assert {f"{check.SPARE}{op}" for op in check.OPS} < {name for name, *_ in steps}
    assert steps[0][2]["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_the_sanitizer_gets_the_flags_that_it_knows(check):
    of = {name.split()[1]: command for name, command, *_ in check.steps("python", "abc") if "sanitizer" in name}
    assert of["memcheck"][1:6] == ["--tool", "memcheck", "--report-api-errors", "no", "--error-exitcode"]
    assert of["racecheck"][1:4] == ["--tool", "racecheck", "--error-exitcode"]


def test_only_true_waits_for_the_gpu_are_counted(monkeypatch):
    """torch also warns that the mode is a prototype, when it is set."""
    warn = lambda text: warnings.warn(text, stacklevel=2)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda _: warn("does not yet detect all synchronizing ones"))
    step = importlib.import_module("bench.training_step")
    wait = lambda: warn("called a synchronizing CUDA operation (Triggered internally at ...)")
    assert step.waits(lambda: [wait(), wait()]) == 2 and step.waits(lambda: None) == 0


@pytest.mark.parametrize("least, status", [(0, 0), (100, 1)])
def test_benchmarks_alone_may_lack_time(check, monkeypatch, tmp_path, least, status):
    """Of 1000 s a step takes 2 and the first of the spare ones all that is left, or the first step all but 100."""
    clock = [0.0]

    def run(command, env, seconds):
        clock[0] += 1000 - least if least or f"bench/bench_{check.OPS[0]}.py" in " ".join(command) else 2
        return "ok", "12 passed"

    monkeypatch.setattr(check, "ROOT", tmp_path)
    monkeypatch.setattr(check, "LIMIT", 1000)
    monkeypatch.setattr(check, "run", run)
    monkeypatch.setattr(check.time, "monotonic", lambda: clock[0])
    assert check.main() == status
    report = (tmp_path / "bench" / "results" / "gpu-x-check.md").read_text()
    assert "commit abc" in report and "| build | ok |" in report and "| left out | 0 | no time left |" in report
    assert ("| did not start |" in report) == bool(status)
