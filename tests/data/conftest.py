"""A folder and what stage 1 makes of it, shards of few items, and a look at what is decoded."""

import contextlib
import io

import numpy as np
import pytest
from grown import ONLY
from PIL import Image
from worlds import stage, write_folder

from cox_oom import shards
from cox_oom.data import ahead


@pytest.fixture
def few(monkeypatch):
    """Shards of 16 items."""
    monkeypatch.setattr(shards, "ITEMS", 16)


@pytest.fixture(scope="session")
def world(tmp_path_factory):
    """A folder of 60 rows, and what stage 1 makes of it in one file each."""
    base = tmp_path_factory.mktemp("shards")
    folder = write_folder(base / "toy", n=(36, 6, 18))
    grey = np.random.default_rng(1).integers(0, 255, (8, 8), dtype=np.uint8)
    for k in range(20):  # the first shard is grey alone
        Image.fromarray(grey).save(folder / f"rgb/itrain{k}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        stage("extract_features", folder, base / "whole", ONLY)
    return folder, base / "whole"


@pytest.fixture
def decoded(monkeypatch):
    """The (modality, row)s that are decoded from here on."""
    rows, real = [], ahead.Rows.__getitem__

    def look(self, place):
        rows.append((self.modality, self.rows[place]))
        return real(self, place)

    monkeypatch.setattr(ahead.Rows, "__getitem__", look)
    return rows
