"""cox_oom/data/ahead.py: items decoded ahead by worker processes, in order, and what goes wrong there."""

import os
import signal

import pytest

from cox_oom import data as datasets
from cox_oom.data import ahead
from cox_oom.files import UserError


def test_items_come_in_order_from_any_number_of_workers():
    world, rows = datasets.read("synth", n_train=100, n_val=0, n_test=1), list(range(99, 10, -1))
    alone = list(ahead.decoded(world, "rgb", rows, lambda x: x[:, ::4, ::4], workers=0))
    side = list(ahead.decoded(world, "rgb", rows, lambda x: x[:, ::4, ::4], workers=2))
    assert [place for place, _, _ in side] == list(range(89)) and len(alone) == 89
    assert all((a[1] == b[1]).all() and a[2] is b[2] is None for a, b in zip(alone, side))


def refuse(raw):
    raise UserError("has 3 channels, 6 are needed")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_preprocessing_refuses_stops_with_one_line(workers):
    world = datasets.read("synth", n_train=100, n_val=0, n_test=1)
    with pytest.raises(UserError, match=r"^train-00000 \(id train-00000\): has 3 channels, 6 are needed$"):
        list(ahead.decoded(world, "rgb", range(100), refuse, workers=workers))


def die(raw):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_said_in_one_line():
    world = datasets.read("synth", n_train=100, n_val=0, n_test=1)
    with pytest.raises(UserError, match="reading rgb: a worker process died .*--workers"):
        list(ahead.decoded(world, "rgb", range(100), die, workers=2))
