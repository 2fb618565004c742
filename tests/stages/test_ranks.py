"""Several processes: the same bits for any number of them, what is shared out, and what happens when one dies.

together.py is what torchrun starts here; docs/scale.md has the commands that people use."""

import contextlib
import copy
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import together
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as settings_of
from hypothesis import strategies as st
from worlds import ROOT, command, digests, no_leftovers, run_dir, stage

import cox_ops
from cox_oom import loader, ranks, run
from cox_oom.augment import batch
from cox_oom.descent import Descent
from cox_oom.files import UserError
from cox_oom.loader import Part, parts_of
from cox_oom.nearest import nearest_of_shards

pytestmark = pytest.mark.usefixtures("quick")
STEP = "--batch 256 --labelled-batch 256"  # items of 20 tokens: eight parts, in stage 2 four
CALLS = (
    f"train_connect {STEP} --force",
    f"train_explore {STEP} --method cox",
    f"train_explore {STEP} --method moco",
    f"train_explore {STEP} --method freematch",
)


def torchrun(count, folder, runs, out, *calls, die=0):
    """The finished process of together.py on `count` ranks of one thread."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    return subprocess.run(
        [sys.executable, *command, ROOT / "tests/stages/together.py", str(die), folder, runs, out, *calls],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "LOGLEVEL": "ERROR"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def extracted(finished_runs, tmp_path_factory):
    """Stage 1's files alone."""
    runs = tmp_path_factory.mktemp("extracted") / "r"
    shutil.copytree(finished_runs, runs, ignore=lambda _, names: [n for n in names if n.startswith("oom-")])
    return runs


@pytest.fixture(scope="module")
def alone(extracted, folder, tmp_path_factory, quick):
    """The runs of CALLS by one process without torchrun."""
    runs = tmp_path_factory.mktemp("alone") / "r"
    shutil.copytree(extracted, runs)
    for call in CALLS:
        stage(call.split()[0], folder, runs, *call.split()[1:])
    return runs


@pytest.mark.parametrize("count, calls", [(2, CALLS), (4, CALLS[:2])])
def test_two_and_four_processes_give_the_bits_of_one(count, calls, extracted, alone, folder, tmp_path):
    """And what is refused, here in the end another number of epochs, is refused in one line."""
    shutil.copytree(extracted, tmp_path / "r")
    refused = f"train_explore {STEP} --method cox --epochs 9"
    done = torchrun(count, folder, tmp_path / "r", tmp_path / "out", *calls, refused)
    made, expected = digests(tmp_path / "r"), digests(alone)
    assert made == {name: expected[name] for name in made} and len(made) == 5 + len(calls), done.stderr
    assert done.stdout.count("stage 2 done") == 1  # rank 0 alone prints
    assert done.stdout.count("stage 3 done") == len(calls) - 1
    logs = [(run_dir(r) / "cox.log.jsonl").read_text().splitlines() for r in (tmp_path / "r", alone)]
    a, b = ([line.rpartition(', "seconds"')[0] for line in lines] for lines in logs)
    assert a == b and len(a) == 2
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "--epochs 2, now 9 is asked" in said[0] and done.returncode
    no_leftovers(tmp_path / "r")
    found, expected = torch.load(tmp_path / "out"), together.shared()
    for name in expected:
        assert torch.equal(found[name], expected[name]), name


def test_a_process_that_dies_ends_all_and_another_number_goes_on(extracted, folder, tmp_path):
    """Rank 1 is killed at its third checkpoint: the other says so in a line. One process goes on, to the same bits."""
    flags = f"{STEP} --epochs 6 --refreshes 6"
    for runs in ("killed", "whole"):
        shutil.copytree(extracted, tmp_path / runs)
        stage("train_connect", folder, tmp_path / runs, STEP)
    done = torchrun(2, folder, tmp_path / "killed", tmp_path / "out", f"train_explore {flags}", die=3)
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(said) == 1 and "another process of this run has ended" in said[0]
    assert "going on from epoch 3" in stage("train_explore", folder, tmp_path / "killed", flags)
    stage("train_explore", folder, tmp_path / "whole", flags)
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_a_process_that_waits_for_the_others_ends_at_once_when_told_to(folder, tmp_path):
    """It has not met them yet, and so waits where no handler of Python's is called."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    process = subprocess.Popen(**command("train_explore", folder, tmp_path, **alone))
    try:
        while process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection(("localhost", port)):
                break
            time.sleep(0.1)
        time.sleep(0.5)
        process.terminate()
        assert process.wait(timeout=20) == -signal.SIGTERM
    finally:
        process.kill()


def test_torchruns_signal_is_no_error_of_what_it_interrupts():
    def main(argv):
        try:
            run.ended()
        except Exception:
            raise UserError("connect.pt: it is not what it should be") from None

    said, code = run.problem(main, None)
    assert "another process of this run has ended" in said and code == 1


# -------------------------------------------------------------------------------------------------- sums in any order


def test_a_total_is_exact_in_any_order():
    g = torch.Generator().manual_seed(0)
    parts = torch.randn(40, 70000, generator=g) * 10.0 ** torch.randint(-9, 2, (40, 1), generator=g)
    found = []
    for order in (range(40), reversed(range(40)), torch.randperm(40, generator=g).tolist()):
        halves = ranks.Total(70000), ranks.Total(70000)
        for n, k in enumerate(order):
            halves[n % 3 == 0].add(parts[k])
        found.append(halves[0].result() + halves[1].result())
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    exact = torch.tensor([math.fsum(column) for column in parts[:, :500].T.tolist()], dtype=torch.float64)
    assert (found[0][:500] - exact).abs().max() <= 40 * 2.0**-41
    assert torch.equal(halves[0].result(), torch.zeros(70000, dtype=torch.float64))  # it began anew


def test_a_total_never_makes_a_wrong_number():
    total = ranks.Total(4)
    for t in ([1e30, 1.0, float("nan"), 5000.1], [1e30, float("inf"), 1.0, 5000.1]):
        total.add(torch.tensor(t, dtype=torch.float64))
    found = total.result()
    assert found[0] == 2e30 and found[1] == torch.inf and found[2].isnan()
    assert found[3] == pytest.approx(10000.2, abs=1e-9)


# ------------------------------------------------------------------------------------------------------ parts of a step


def series(n=60):
    g = torch.Generator().manual_seed(1)
    scale = {"mean": torch.randn(2, 1, generator=g), "std": torch.rand(2, 1, generator=g) + 0.5}
    lengths = torch.randint(1, 7, (n,), generator=g)
    return {"kind": "series", "x": torch.randn(n, 2, 6, generator=g), "lengths": lengths, **scale}


def draws(steps, i=20, j=33, n=60):
    g = torch.Generator().manual_seed(2)
    for _ in range(steps):
        at, to = torch.randint(n, (i,), generator=g), torch.randint(n, (j,), generator=g)
        yield at, at % 3, to, at, to


def test_how_many_parts_a_step_has():
    sizes = (196, 128, 64), (32, 128, 64), (32, 64), (16, 128, 64), (1, 128, 64), (10**4, 128, 5), (10**4, 1)
    assert [parts_of(*s) for s in sizes] == [8, 4, 2, 2, 1, 4, 1]


@pytest.mark.parametrize("read", ["at_once", "ahead"])
@pytest.mark.parametrize("world", [1, 3])
def test_parts_are_the_rows_of_a_step_in_order(read, world, monkeypatch):
    """By whichever processes, read at once or, as for a GPU, one step ahead into two buffers in turn."""
    file, steps = series(), 5
    monkeypatch.setattr(loader, "at_once", getattr(loader, read))
    monkeypatch.setattr(ranks, "world", world)
    found = [[] for _ in range(steps)]
    for rank in range(world):
        monkeypatch.setattr(ranks, "rank", rank)
        for step, parts in enumerate(loader.steps(file, draws(steps), 8, "cpu")):
            assert [p.k for p in parts] == list(range(rank, 8, world))
            found[step] += [Part(**{**vars(p), "x": p.x.clone()}) for p in parts]  # a buffer is used again
    for parts, (i, y, j, *_) in zip(found, draws(steps)):
        parts.sort(key=lambda p: p.k)
        assert torch.equal(torch.cat([p.i for p in parts]), i) and torch.equal(torch.cat([p.y for p in parts]), y)
        for p in parts:
            assert torch.equal(j[p.at], p.j)
            x, lengths = batch(file, torch.cat([p.i, p.j]), "cpu")
            assert torch.equal(p.x, x) and torch.equal(p.lengths, lengths)
        assert sum(len(p.j) for p in parts) == 33


def settings(**more):
    return Namespace(lr=0.1, weight_decay=0.1, seed=0, device="cpu", labelled_batch=100, batch=100, **more)


@pytest.mark.parametrize("fast", [None, True])
def test_a_step_in_parts_is_that_of_the_whole_batch(fast):
    """Against Adam on the whole batch; a layer that no loss has seen stays, in spite of the weight decay."""
    x, y = torch.randn(3, 33, 12), torch.randn(3, 33, 2)
    model = torch.nn.ModuleDict({"learner": torch.nn.Linear(12, 2), "other": torch.nn.Linear(2, 2)})
    model.learner.tokens = 100
    plain = copy.deepcopy(model)
    down = Descent(model, settings(fast=fast, compile=None), 3)
    optimizer = torch.optim.Adam(plain.learner.parameters(), weight_decay=0.1)
    losses = []
    for step in range(3):
        spans = [slice(k * 33 // down.count, (k + 1) * 33 // down.count) for k in range(down.count)]
        parts = [Part(k, *[torch.arange(33)[s]] * 3, x[step][s], None, s) for k, s in enumerate(spans)]
        share = lambda p: len(p.i) / 33 * F.mse_loss(model.learner(p.x), y[step][p.at])
        down.step(step, 0.05 * (step + 1), parts, lambda p: {"a": 0.25 * share(p), "b": 0.75 * share(p)})
        optimizer.zero_grad()
        loss = F.mse_loss(plain.learner(x[step]), y[step])
        loss.backward()
        optimizer.param_groups[0]["lr"] = 0.05 * (step + 1)
        optimizer.step()
        losses.append(loss.item())
    assert down.count == (1 if fast else 8)
    torch.testing.assert_close(model.learner.state_dict(), plain.learner.state_dict(), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.other.weight, plain.other.weight)
    means = down.means(3)
    assert means["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5) and means["a"] == pytest.approx(means["b"] / 3)
    down.step(3, 0.1, parts, lambda p: {"c": share(p)})  # in the next epoch there may be other terms
    assert list(down.means(1)) == ["loss", "c"]


def test_a_step_without_a_number_leaves_none():
    model = torch.nn.ModuleDict({"learner": torch.nn.Linear(2, 1)})
    model.learner.tokens = 100
    down = Descent(model, settings(fast=None, compile=None), 3)
    parts = [Part(k, *[torch.arange(1)] * 3, torch.ones(1, 2), None, slice(k, k + 1)) for k in range(8)]
    down.step(0, 0.1, parts, lambda p: {"a": model.learner(p.x).sum() * (torch.nan if p.k == 5 else 1.0)})
    assert model.learner.weight.isnan().all() and math.isnan(down.means(1)["loss"])  # files.save refuses such a file


# --------------------------------------------------------------------------------------------------- a bank in shards


@settings_of(max_examples=30)
@given(st.integers(0, 10**6), st.sampled_from([1, 3, 7, 64]))
def test_a_bank_is_searched_by_shards_as_a_whole(seed, size):
    """Ties among them, items without a number and an empty bank."""
    g = torch.Generator().manual_seed(seed)
    n = seed % 60
    v = torch.randint(-2, 3, (2, n, 2), generator=g).float()
    v[:, torch.rand(n, generator=g) < 0.2] = torch.nan
    z = torch.randint(-2, 3, (9, 2), generator=g).float()
    score, index = nearest_of_shards(z, [*v], size)
    expected = cox_ops.nearest_anchor(z, v)
    assert torch.equal(score, expected[0]) and torch.equal(index, expected[1])


@pytest.mark.filterwarnings("error")
def test_of_a_bank_in_a_file_a_shard_at_a_time_is_read(tmp_path):
    """A bank that numpy maps: every row is asked for once, `size` of them at a time."""
    rng, asked = np.random.default_rng(0), []
    for k in range(2):
        np.save(tmp_path / f"{k}.npy", rng.standard_normal((10_000, 8)).astype(np.float32))

    class Mapped:
        def __init__(self, path):
            self.rows = np.load(path, mmap_mode="r")

        def __len__(self):
            return len(self.rows)

        def __getitem__(self, rows):
            asked.append(rows)
            return self.rows[rows]  # read-only

    banks = [Mapped(tmp_path / f"{k}.npy") for k in range(2)]
    z = torch.randn(50, 8)
    score, index = nearest_of_shards(z, banks, 1 << 10)
    expected = cox_ops.nearest_anchor(z, torch.stack([torch.from_numpy(np.array(bank.rows)) for bank in banks]))
    assert torch.equal(score, expected[0]) and torch.equal(index, expected[1])
    assert sorted((s.start, s.stop) for s in asked) == sorted(
        2 * [(k, min(k + 1024, 10000)) for k in range(0, 10000, 1024)]
    )
