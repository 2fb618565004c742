"""A stage that is stopped: what it leaves, and how the same command goes on."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from worlds import STAGES, argv, assert_same, command, no_leftovers, refused, run_dir, stage, tensors

from cox_oom import files, run, teacher
from cox_oom.files import Place, UserError

pytestmark = pytest.mark.usefixtures("quick")

CASES = [
    ("extract_features", "--bind-epochs 1000000", "training bind", signal.SIGKILL),
    ("train_connect", "--warmup-epochs 1000000", "labelled items", signal.SIGKILL),
    ("train_connect", "--warmup-epochs 1000000", "labelled items", signal.SIGINT),
    ("train_explore", "--epochs 1000000 --method erm", "epochs of", signal.SIGKILL),
]


@pytest.mark.parametrize("name, flags, begun, how", CASES, ids=[f"{c[0]} {c[3].name}" for c in CASES])
def test_a_stage_stopped_in_training_leaves_nothing_for_a_later_one(runs, folder, name, flags, begun, how):
    if name == "extract_features":
        shutil.rmtree(Place(runs, folder, "bind", "imu").banks())
    if name == "train_connect":
        shutil.rmtree(run_dir(runs))
    before = set(runs.rglob("*.pt"))
    process = subprocess.Popen(**command(name, folder, runs, flags))
    try:
        for line in process.stdout:
            if begun in line:
                break
        time.sleep(0.5)
        assert process.poll() is None, process.stderr.read()
        process.send_signal(how)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in stderr
    assert {p for p in runs.rglob("*.pt") if ".checkpoint.pt" not in str(p)} == before
    if name == "extract_features":
        refused("train_connect", folder, runs, parts=("python extract_features.py",))
    if name == "train_connect":
        refused("train_explore", folder, runs, parts=("python train_connect.py",))
    stage(name, folder, runs, *(["--method erm"] if name == "train_explore" else []))
    no_leftovers(runs)
    assert len(set(runs.rglob("*.pt")) - before) == (2 if name == "extract_features" else 1)


@pytest.mark.parametrize(
    "name, target",
    [
        ("extract_features", "bind/no-imu/banks/rgb.pt"),
        ("train_connect", "bind/oom-imu/semi/seed0/connect.pt"),
        ("train_explore", "bind/oom-imu/semi/seed0/cox.pt"),
    ],
)
def test_an_interrupt_while_writing_keeps_the_old_file(runs, folder, monkeypatch, capsys, name, target):
    path = runs / "toy" / target
    before, real = path.read_bytes(), torch.save

    def half(obj, f, **kw):
        real(obj, f, **kw)
        if Path(target).name in str(f) and "banks" in str(f) or name != "extract_features":
            os.truncate(f, 100)
            raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(SystemExit) as exit:
        run.script(STAGES[name].main, argv(name, folder, runs, "--force"))
    assert exit.value.code == 130 and "Traceback" not in capsys.readouterr().err
    assert path.read_bytes() == before
    no_leftovers(runs)


def test_a_diverged_training_is_not_saved(runs, folder):
    path = run_dir(runs) / "erm.pt"
    try:
        stage("train_explore", folder, runs, "--method erm --lr 1e6")
    except UserError as error:
        assert "--lr" in str(error) and not path.exists()
    else:
        assert all(t.isfinite().all() for t in tensors(files.load(path)["learner"]).values()), "NaN weights were saved"


class Stop(Exception):
    pass


@pytest.mark.parametrize("method", ["cox", "selftrain", "moco", "erm"])
def test_a_stopped_run_goes_on_to_the_same_bits(runs, folder, monkeypatch, method):
    flags = f"--method {method} --epochs 4 --refreshes 4 --force"
    stage("train_explore", folder, runs, flags)
    path, checkpoint = run_dir(runs) / f"{method}.pt", run_dir(runs) / f"{method}.checkpoint.pt"
    whole = {k: v for k, v in files.load(path).items() if k != "meta"}
    whole = {k: {n: t.clone() for n, t in tensors(v).items()} for k, v in whole.items()}
    path.unlink()
    assert not checkpoint.exists()
    written, save = [], files.save

    def save_and_stop(target, *args, **kwargs):
        digest = save(target, *args, **kwargs)
        written.append(Path(target).name)
        if len(written) == 2:
            raise Stop
        return digest

    monkeypatch.setattr(run, "save", save_and_stop)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, flags.replace("--force", ""))
    monkeypatch.undo()
    assert written == [checkpoint.name] * 2 and not path.exists()
    for name in ("held_out", "held_out_gain"):  # views and trust were settled when the run began
        monkeypatch.setattr(teacher, name, None)
    assert "going on from epoch 2" in stage("train_explore", folder, runs, flags.replace("--force", ""))
    again = files.load(path)
    for k in whole:
        assert_same(whole[k] or {"none": torch.zeros(1)}, tensors(again[k]) or {"none": torch.zeros(1)}, k)
    assert not checkpoint.exists()


def test_a_stopped_warm_up_goes_on_to_the_same_bits(runs, folder, monkeypatch):
    path, checkpoint = run_dir(runs) / "connect.pt", run_dir(runs) / "connect.checkpoint.pt"
    flags = "--warmup-epochs 4 --w-kl 0.5"
    stage("train_connect", folder, runs, flags, "--force")
    whole, log = files.load(path)["meta"]["digest"], (run_dir(runs) / "connect.log.jsonl").read_text()
    path.unlink()
    written, save = [], files.save

    def save_and_stop(target, *args, **kwargs):
        save(target, *args, **kwargs)
        written.append(Path(target).name)
        if len(written) == 3:
            raise Stop

    monkeypatch.setattr(run, "save", save_and_stop)
    with pytest.raises(Stop):
        stage("train_connect", folder, runs, flags)
    monkeypatch.undo()
    assert written == [checkpoint.name] * 3 and not path.exists()
    assert "going on from step" in stage("train_connect", folder, runs, flags)
    assert files.load(path)["meta"]["digest"] == whole and not checkpoint.exists()
    lines = [[json.loads(line) for line in text.splitlines()] for text in (log, read_log(run_dir(runs) / "connect"))]
    lines = [[{k: v for k, v in line.items() if k != "seconds"} for line in of] for of in lines]
    assert lines[0] == lines[1] and [r["epoch"] for r in lines[0][:4]] == [1, 2, 3, 4]


def read_log(stem):
    return Path(f"{stem}.log.jsonl").read_text()


def test_the_log_has_a_line_an_epoch_also_after_a_stop(runs, folder, monkeypatch):
    save = files.save

    def save_and_stop(target, *args, **kwargs):
        save(target, *args, **kwargs)
        raise Stop

    (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
    monkeypatch.setattr(run, "save", save_and_stop)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 2")
    monkeypatch.undo()
    with open(run_dir(runs) / "erm.log.jsonl", "a") as f:
        f.write('{"epoch": 3, "loss": 1')  # what a kill in the next epoch leaves
    stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 2")
    lines = [json.loads(line) for line in read_log(run_dir(runs) / "erm").splitlines()]
    history = files.load(run_dir(runs) / "erm.pt")["history"]
    assert [{k: v for k, v in line.items() if k not in ("seconds", "lr")} for line in lines] == history
    assert len(history) == 4


def test_a_forced_run_goes_on_as_well_but_not_from_what_it_is_to_replace(runs, folder, monkeypatch):
    flags = "--method erm --epochs 4 --refreshes 4"
    checkpoint, save = run_dir(runs) / "erm.checkpoint.pt", files.save

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        raise Stop

    for first, then, goes_on in (("--force", "--force", True), ("", "--force", False)):
        (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
        monkeypatch.setattr(run, "save", save_and_stop)
        with pytest.raises(Stop):
            stage("train_explore", folder, runs, flags, first)
        monkeypatch.undo()
        assert checkpoint.exists()
        assert ("going on from epoch 1" in stage("train_explore", folder, runs, flags, then)) == goes_on
        assert not checkpoint.exists()


def test_a_checkpoint_of_other_flags_is_not_gone_on_from(runs, folder, monkeypatch):
    save = files.save

    def save_and_stop(target, *args, **kwargs):
        save(target, *args, **kwargs)
        raise Stop

    monkeypatch.setattr(run, "save", save_and_stop)
    (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 4")
    monkeypatch.undo()
    assert (run_dir(runs) / "erm.checkpoint.pt").exists()
    assert "going on" not in stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 4 --lr 0.01")
