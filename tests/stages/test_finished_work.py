"""Finished work: skipped, done again alike, and refused where it is stale, broken or lacks a part."""

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from worlds import (
    FLAGS,
    ROOT,
    STAGES,
    argv,
    digests,
    no_leftovers,
    read_manifest,
    refused,
    run_dir,
    stage,
    write_folder,
    write_manifest,
)

import train_connect
from cox_oom import files
from cox_oom.files import Place
from cox_oom.perceptors import bind

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("name, files", [("extract_features", 5), ("train_connect", 1), ("train_explore", 1)])
def test_finished_work_is_skipped(runs, folder, name, files):
    before = {p: p.stat().st_mtime_ns for p in runs.rglob("*.pt")}
    out = stage(name, folder, runs)
    assert out.count("already done") == files and "wrote" not in out
    assert {p: p.stat().st_mtime_ns for p in runs.rglob("*.pt")} == before


AGAIN = """
import sys
import extract_features
import train_connect
import train_explore
names = ("extract_features", "train_connect", "train_explore")
for name, rest in zip(names, sys.argv[1].split(" // ")):
    sys.modules[name].main(rest.split(" "))
"""


def test_force_reproduces_every_file_bit_for_bit(runs, folder):
    """In another process, with another hash seed: no order of a set or dict leaks into the result."""
    before, stamps = digests(runs), {p: p.stat().st_mtime_ns for p in runs.rglob("*.pt")}
    words = " // ".join(" ".join(argv(name, folder, runs, "--force")) for name in STAGES)
    done = subprocess.run(
        [sys.executable, "-c", AGAIN, words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rewritten = {p for p in stamps if p.stat().st_mtime_ns != stamps[p]}
    assert set(stamps) - rewritten == {run_dir(runs, "unsup") / "connect.pt"}
    assert digests(runs) == before
    no_leftovers(runs)


def test_missing_stages_are_named(folder, tmp_path):
    for name in ("train_connect", "train_explore"):
        parts = ("run first", "imu.pt", "python extract_features.py", str(folder), "--oom imu")
        refused(name, folder, tmp_path, parts=parts)
    assert not list(tmp_path.rglob("*.pt"))


def test_the_named_command_mends_it(runs, folder):
    shutil.rmtree(run_dir(runs))
    message = refused("train_explore", folder, runs, parts=("python train_connect.py",))
    words = message.split("run first: python train_connect.py ")[1].split()
    with contextlib.redirect_stdout(io.StringIO()):
        train_connect.main([*words, "--runs", str(runs), "--device", "cpu", *FLAGS["train_connect"].split()])
    stage("train_explore", folder, runs)


@pytest.mark.parametrize("name", ["train_connect", "train_explore"])
def test_missing_banks_are_named(runs, folder, name):
    shutil.rmtree(Place(runs, folder, "bind", "imu").banks())
    refused(name, folder, runs, "--force", parts=("bank", "python extract_features.py", "--oom imu"))


@pytest.mark.parametrize("name", ["train_connect", "train_explore"])
def test_some_of_the_banks_are_not_taken_for_all(runs, folder, name):
    """Stage 1 stopped between two banks."""
    lost = Place(runs, folder, "bind", "imu").banks() / "rgb.pt"
    lost.unlink()
    refused(name, folder, runs, "--force", parts=("rgb", "run first", "extract_features.py"))
    stage("extract_features", folder, runs)
    assert lost.exists()
    stage(name, folder, runs, "--force")


@pytest.mark.parametrize(
    "file, stages",
    [
        ("inputs/imu.pt", ("extract_features", "train_connect", "train_explore")),
        ("bind/no-imu/banks/rgb.pt", ("extract_features", "train_connect", "train_explore")),
        ("bind/oom-imu/semi/seed0/connect.pt", ("train_connect", "train_explore")),
        ("bind/oom-imu/semi/seed0/cox.pt", ("train_explore",)),
    ],
)
def test_truncated_files_are_refused_by_every_stage_that_reads_them(runs, folder, file, stages):
    path = runs / "toy" / file
    os.truncate(path, os.path.getsize(path) // 2)
    for name in stages:
        refused(name, folder, runs, parts=(path, "cannot be read", "remove it"))


def edit_file(folder):
    x = np.load(folder / "imu/itrain3.npy")
    x[1, 4] += 1
    np.save(folder / "imu/itrain3.npy", x)


def edit_manifest(folder):
    rows = read_manifest(folder)
    rows[7][5] = "another thing"
    write_manifest(folder, rows)


def replace_folder(folder):
    shutil.rmtree(folder)
    write_folder(folder, seed=5)


@pytest.mark.parametrize("edit", [edit_file, edit_manifest, replace_folder], ids=lambda f: f.__name__)
def test_changed_data_are_noticed_along_the_chain(runs, folder, tmp_path, edit):
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    assert stage("extract_features", own, runs).count("already done") == 5  # the place does not matter
    edit(own)
    before = digests(runs)
    refused("extract_features", own, runs, parts=(".pt", "has changed since", "--force", "--runs"))
    assert digests(runs) == before
    stage("extract_features", own, runs, "--force")
    for name, file in (("train_connect", "connect.pt"), ("train_explore", "connect.pt")):
        refused(name, own, runs, parts=(run_dir(runs) / file, "--force"))
    stage("train_connect", own, runs, "--force")
    refused("train_explore", own, runs, parts=(run_dir(runs) / "cox.pt", "--force"))
    stage("train_explore", own, runs, "--force")
    assert {k for k in before if before[k] == digests(runs)[k]} <= {
        "toy/bind/oom-imu/unsup/seed0/connect.pt",
        "toy/inputs/rgb.pt",
        "toy/inputs/language.pt",
        "toy/inputs/imu.pt",
        "toy/bind/no-imu/banks/rgb.pt",
        "toy/bind/no-imu/banks/language.pt",
    }


@pytest.mark.parametrize(
    "name, flag",
    [
        ("extract_features", "--image-size 4"),
        ("extract_features", "--bind-epochs 3"),
        ("extract_features", "--seed 1"),
        ("train_connect", "--labels 0.3"),
        ("train_connect", "--width 32"),
        ("train_explore", "--epochs 3"),
        ("train_explore", "--temper 0.7"),
    ],
)
def test_other_flags_are_refused_without_force(runs, folder, name, flag):
    before = digests(runs)
    word = {"--bind-epochs": "--epochs"}.get(flag.split()[0], flag.split()[0])
    refused(name, folder, runs, flag, parts=(word, flag.split()[1], "--force"))
    assert digests(runs) == before
    stage(name, folder, runs, flag, "--force")
    assert digests(runs) != before


def test_stage_2_redone_makes_stage_3_stale(runs, folder):
    stage("train_connect", folder, runs, "--labels 0.3 --force")
    refused("train_explore", folder, runs, parts=("cox.pt", "connect", "--force"))
    stage("train_explore", folder, runs, "--force")
    assert files.load(run_dir(runs) / "cox.pt")["meta"]["n_labelled"] == 18
    assert "already done" in stage("train_explore", folder, runs)


def interrupted_force(runs, folder, monkeypatch):
    """Stage 1 redone at another image size, and stopped between the inputs and the banks."""
    with monkeypatch.context() as m:

        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        m.setattr(bind, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            stage("extract_features", folder, runs, "--image-size 4 --force")
    assert files.load(Place(runs, folder).inputs("rgb"))["x"].shape[-1] == 4


def test_banks_of_earlier_inputs_are_not_taken_for_done(runs, folder, monkeypatch):
    interrupted_force(runs, folder, monkeypatch)
    refused("extract_features", folder, runs, "--image-size 4", parts=("banks", "inputs/rgb", "--force"))


def test_banks_of_earlier_inputs_are_refused_by_stage_2(runs, folder, monkeypatch):
    interrupted_force(runs, folder, monkeypatch)
    shutil.rmtree(run_dir(runs))
    refused("train_connect", folder, runs, parts=("banks", "inputs/rgb"))


def test_banks_of_two_trainings_are_not_mixed(runs, folder, tmp_path):
    stage("extract_features", folder, tmp_path, "--seed 1")
    other, here = (Place(t, folder, "bind", "imu").banks() / "rgb.pt" for t in (tmp_path, runs))
    shutil.copy(other, here)
    parts = ("rgb.pt and language.pt", "not trained together", "--force")
    refused("train_connect", folder, runs, "--force", parts=parts)
