"""A folder of data, made once, and a perceptor of no weight for the tests of stage 1."""

import sys

import embedded
import fake_perceptor
import pytest

from cox_oom import perceptors


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return embedded.write_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "seed.pth").write_bytes(b"seed 0")
    return tmp_path / "seed.pth"


@pytest.fixture
def fake(monkeypatch):
    """fake_perceptor.py is imagebind."""
    monkeypatch.setitem(sys.modules, "cox_oom.perceptors.imagebind", fake_perceptor)
    monkeypatch.setattr(perceptors, "imagebind", fake_perceptor, raising=False)
    fake_perceptor.encoded.clear()
