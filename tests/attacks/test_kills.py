"""Stages killed at random moments, and two at once: what they leave, and that the end is that of an undisturbed run.
COX_KILL_SECONDS: how long those of a test may be killed, up to 20 times."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import ROOT, argv, command, digests, no_leftovers, write_folder

from cox_oom.files import Place

SECONDS = float(os.environ.get("COX_KILL_SECONDS", "10"))  # that the kills may take
# Stages 1 to 3 in a process forked from one that has imported them, killed after so many seconds; a line each.
CHAIN = """
import contextlib, io, json, os, signal, sys, time
import torch
import extract_features, train_connect, train_explore
from cox_oom.heads import fit_head
torch.set_num_threads(1)
fit_head.__kwdefaults__["steps"] = 20
stages = extract_features, train_connect, train_explore
for line in sys.stdin:
    lines, delay = json.loads(line)
    begun, pid = time.time(), os.fork()
    if not pid:
        code = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(open(os.devnull, "w")):
                for stage, argv in zip(stages, lines):
                    stage.main(argv)
            code = 0
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(code)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    print(json.dumps([code, time.time() - begun]), flush=True)
"""


@pytest.fixture(scope="module")
def chain():
    """chain(folder, runs, delay) runs stages 1 to 3 and kills them after `delay` seconds: (exit code, seconds)."""
    how = dict(cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process = subprocess.Popen([sys.executable, "-c", CHAIN], env=command("train_connect", ".", ".")["env"], **how)

    def run(folder, runs, delay=None):
        more = {"train_explore": "--epochs 4 --refreshes 4", "extract_features": "--workers 0"}
        names = ("extract_features", "train_connect", "train_explore")
        lines = [argv(name, folder, runs, more.get(name, "")) for name in names]
        process.stdin.write(json.dumps([lines, delay]) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())

    yield run
    process.stdin.close()
    assert process.wait(timeout=60) == 0


def kills(chain, folder, base, n, seconds, rng):
    """Kill the chain at up to n random moments within so many seconds; it goes on, to the digests of `base / "sound"`.
    Returns how often it was killed."""
    code, whole = chain(folder, base / "sound")
    assert code == 0
    known, end, done = digests(base / "sound"), time.time() + seconds, 0
    while done < n and time.time() < end:
        runs = base / "killed"
        for _ in range(3):
            done += chain(folder, runs, rng.uniform(0, whole))[0] == -9
        assert chain(folder, runs)[0] == 0
        assert digests(runs) == known
        no_leftovers(runs)
        assert not list(runs.rglob("*.checkpoint.pt"))
        shutil.rmtree(runs)
    return done


def test_a_chain_killed_at_random_moments_ends_as_an_undisturbed_one(chain, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    folder = write_folder(tmp_path / "toy", n=(30, 6, 12))
    done = kills(chain, folder, tmp_path, 20, SECONDS, random.Random(seed))
    print(f"{done} kills")
    assert done > 0


@pytest.mark.slow
@pytest.mark.skipif("COX_KILL_SECONDS" not in os.environ, reason="COX_KILL_SECONDS says how long it may kill")
def test_of_two_processes_one_killed_at_random_moments_ends_both_and_any_number_goes_on(tmp_path):
    """Stage 3 by torchrun: the other process ends within 30 seconds, and the end is that of one process undisturbed."""
    seed = random.SystemRandom().randrange(2**32)
    rng, folder, runs = random.Random(seed), write_folder(tmp_path / "toy", n=(30, 6, 12)), tmp_path / "killed"
    for name in ("extract_features", "train_connect"):
        assert subprocess.run(**command(name, folder, runs)).returncode == 0
    shutil.copytree(runs, tmp_path / "sound")
    flags = "--epochs 60 --refreshes 30"

    def start(count):
        """The command on `count` processes."""
        torchrun = f"-m torch.distributed.run --standalone --nproc-per-node {count}".split()
        how = command("train_explore", folder, runs, flags, LOGLEVEL="ERROR")
        how["args"][1:2] = torchrun if count > 1 else []
        return subprocess.Popen(**{**how, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL})

    assert subprocess.run(**command("train_explore", folder, tmp_path / "sound", flags)).returncode == 0
    path, end, done, slowest = Place(runs, folder, "bind", "imu").method("cox"), time.time() + SECONDS, 0, 0.0
    log = path.with_suffix(".log.jsonl")
    while done < 20 and time.time() < end:
        for old in (path, log):
            old.unlink(missing_ok=True)
        for _ in range(3):
            group, lines = start(rng.choice((2, 2, 4))), rng.randrange(60)
            while group.poll() is None and (not log.exists() or len(log.read_text().splitlines()) < lines):
                time.sleep(0.05)
            time.sleep(rng.uniform(0, 2))
            if ranks := Path(f"/proc/{group.pid}/task/{group.pid}/children").read_text().split():
                os.kill(int(rng.choice(ranks)), signal.SIGKILL)
                killed = time.time()
                failed = group.wait(timeout=30) != 0
                slowest, done = max(slowest, time.time() - killed), done + failed
            group.wait()
        assert start(rng.choice((1, 2, 4))).wait() == 0
        assert digests(runs) == digests(tmp_path / "sound"), seed
        no_leftovers(runs)
    print(f"seed {seed}: {done} kills, all ended within {slowest:.1f} s")
    assert done > 0


def test_two_at_the_same_stage_1_both_end_well(tmp_path):
    folder = write_folder(tmp_path / "toy", n=(30, 6, 12))
    both = [subprocess.Popen(**command("extract_features", folder, tmp_path / "two")) for _ in range(2)]
    for process in both:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
    assert subprocess.run(**command("extract_features", folder, tmp_path / "one")).returncode == 0
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    assert Place(tmp_path / "two", folder, "bind", "imu").bank("rgb").exists()
    no_leftovers(tmp_path / "two")
    as_bytes = lambda runs: {p.relative_to(runs): p.read_bytes() for p in Path(runs).rglob("*.pt")}
    assert as_bytes(tmp_path / "two") == as_bytes(tmp_path / "one")
