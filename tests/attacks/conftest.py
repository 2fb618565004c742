"""Runs of the stages on a small folder, made once for all files here."""

import shutil
from pathlib import Path

import pytest
import worlds


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return worlds.write_folder(tmp_path_factory.mktemp("data") / "toy", n=(30, 6, 12))


@pytest.fixture(scope="session")
def finished_runs(folder, tmp_path_factory):
    """Stages 1-3, semi. Nothing may change these; `runs` is for that."""
    runs = tmp_path_factory.mktemp("runs") / "r"
    with worlds.quickly():
        for name in worlds.STAGES:
            worlds.stage(name, folder, runs)
    return runs


@pytest.fixture
def runs(finished_runs, tmp_path):
    """A copy of the finished runs that a test may change."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs"))
