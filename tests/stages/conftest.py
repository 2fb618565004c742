"""Runs of the stages on a small folder, made once for all files here."""

import shutil
import subprocess
from pathlib import Path

import pytest
import worlds


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return worlds.once(tmp_path_factory, "data", lambda place: worlds.write_folder(place / "toy")) / "toy"


@pytest.fixture(scope="session")
def finished_runs(folder, tmp_path_factory):
    """Stages 1-3 by the command line, semi; and stage 2 unsup. Nothing may change these; `runs` is for that."""
    return worlds.once(tmp_path_factory, "finished", lambda place: run_all(folder, place / "r")) / "r"


def run_all(folder, runs):
    for name in worlds.STAGES:
        done = subprocess.run(**worlds.command(name, folder, runs, PYTHONHASHSEED="1"))
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr and "Traceback" not in done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("wrote "):
                assert line.split(" ")[1].startswith(str(runs)), line
        assert "wrote" in done.stdout and "done in" in done.stdout
    with worlds.quickly():
        worlds.stage("train_connect", folder, runs, "--setting unsup")


@pytest.fixture
def runs(finished_runs, tmp_path):
    """A copy of the finished runs that a test may change."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs"))
