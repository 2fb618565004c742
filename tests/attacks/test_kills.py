"""Stages killed at random moments, and two at once: what they leave, and that the end is that of an undisturbed run.
COX_KILL_SECONDS: how long they may be killed, up to 20 times; 600 is enough for all."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from worlds import ROOT, argv, command, digests, no_leftovers, write_folder

from cox_oom.files import Place

SECONDS = float(os.environ.get("COX_KILL_SECONDS", "30"))  # that the kills may take
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
