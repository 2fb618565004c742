"""Watching a run: the lines of its log as they come, TensorBoard's event files, bars with the time left."""

import io
import json
import subprocess
import time

import numpy as np
import pytest
import torch
from worlds import command, refused, run_dir, stage

from cox_oom import augment, correspond, files, readings, run, watch
from cox_oom.learner import Learner

pytestmark = pytest.mark.usefixtures("quick")
EXPLORE = "--epochs 4 --refreshes 2 --force --method"


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def events(path):
    """{tag: [(step, value)]} of a folder, as TensorBoard reads it."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator
    found = accumulator(str(path))
    found.Reload()
    return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


def test_a_line_an_epoch_of_exploration(runs, folder):
    stage("train_explore", folder, runs, EXPLORE, "cox", "--lr 0.01")
    lines, history = lines_of(run_dir(runs) / "cox.log.jsonl"), files.load(run_dir(runs) / "cox.pt")["history"]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for line, record in zip(lines[:-1], history):  # the head moves once more after the last line
        assert {k: line[k] for k in record} == record and {"loss", "labelled", "val_accuracy"} <= set(record)
    rates = [line["lr"] for line in lines]
    assert rates == sorted(rates, reverse=True) and 0 < rates[-1] < rates[0] < 0.01
    assert all(0 <= a["seconds"] <= b["seconds"] for a, b in zip(lines, lines[1:]))
    unlabelled = len(files.load(run_dir(runs) / "cox.pt")["unlabelled"])
    for line in lines:
        assert 0 < line["anchors"] <= unlabelled and line["emergent_pairs"] >= 0
        assert 0 <= line["anchors_agree"] <= 1 and 0 <= line["heads_agree"] <= 1
    before = files.load(run_dir(runs) / "cox.pt")["before"]["agree"]
    assert lines[0]["heads_agree"] == pytest.approx(before.float().mean().item())


def test_stage_2_says_its_epochs_and_the_points_of_its_connections(runs, folder):
    stage("train_connect", folder, runs, "--force --w-kl 0.5 --lr 0.002 --connect-steps 20")
    lines, connect = lines_of(run_dir(runs) / "connect.log.jsonl"), files.load(run_dir(runs) / "connect.pt")
    warm = [line for line in lines if "epoch" in line]
    assert [line["loss"] for line in warm] == connect["warmup_loss"] and warm == lines[: len(warm)]
    assert all(line["lr"] == 0.002 for line in warm)
    assert all(line["loss"] == pytest.approx(line["labelled"] + line["teacher"]) for line in warm)
    points = [(line["connection"], line["step"], line["mmd"]) for line in lines[len(warm) :]]
    assert points == [(c["modality"], c["step"], c["mmd"]) for c in connect["curve"]] and len(points) > 4
    assert all(("loss" in line) == (line["step"] > 0) for line in lines[len(warm) :])


def test_the_log_can_be_followed_while_a_run_goes_on(runs, folder):
    (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
    path = run_dir(runs) / "erm.log.jsonl"
    process = subprocess.Popen(**command("train_explore", folder, runs, "--method erm --epochs 1000000"))
    try:
        counts = []
        for least in (1, 4):
            end = time.time() + 60
            while time.time() < end and not (path.exists() and path.read_text().count("\n") >= least):
                time.sleep(0.05)
            counts.append(path.read_text().count("\n"))
        assert process.poll() is None and 1 <= counts[0] and 4 <= counts[1]
        whole = path.read_text().rpartition("\n")[0]
        assert [json.loads(line)["epoch"] for line in whole.splitlines()] == list(range(1, 2 + whole.count("\n")))
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("name, stem", [("train_connect", "connect"), ("train_explore", "cox")])
def test_tensorboard_shows_what_the_log_says(runs, folder, name, stem):
    flags = ["--force", *(["--method cox --epochs 4"] if name == "train_explore" else [])]
    stage(name, folder, runs, *flags, "--log tensorboard")
    wanted = {}
    for line in lines_of(run_dir(runs) / f"{stem}.log.jsonl"):
        prefix = f"connection/{line['connection']}/" if "connection" in line else ""
        for key in set(line) - {"epoch", "step", "connection"}:
            wanted.setdefault(prefix + key, []).append((line["step" if prefix else "epoch"], line[key]))
    found = events(run_dir(runs) / f"{stem}.tensorboard")
    assert found.keys() == wanted.keys() and "loss" in found
    for tag, points in wanted.items():
        np.testing.assert_allclose(found[tag], points, rtol=1e-6)


def test_a_run_with_and_without_events_is_the_same_work(runs, folder):
    stage("train_explore", folder, runs, "--force --method erm --log tensorboard")
    assert "log" not in files.load(run_dir(runs) / "erm.pt")["meta"]["args"]
    assert "already done" in stage("train_explore", folder, runs, "--method erm")
    stage("train_explore", folder, runs, "--force --method erm")
    assert not events(run_dir(runs) / "erm.tensorboard")  # those of the run that was replaced are gone
    assert "already done" in stage("train_explore", folder, runs, "--method erm --log tensorboard")


class Stop(Exception):
    pass


@pytest.mark.parametrize("first", ["--log tensorboard", ""])
def test_events_of_a_run_that_was_stopped_go_on_without_a_step_twice(runs, folder, monkeypatch, first):
    flags, save, written = "--method erm --epochs 6 --refreshes 3", files.save, []
    (run_dir(runs) / "erm.pt").unlink(missing_ok=True)

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        written.append(1)
        if len(written) == 2:
            raise Stop

    monkeypatch.setattr(run, "save", save_and_stop)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, flags, first)
    monkeypatch.undo()
    with open(run_dir(runs) / "erm.log.jsonl", "a") as f:  # a line after the checkpoint, which will come again
        f.write(json.dumps({"epoch": 5, "loss": 9.0, "seconds": 1.0}) + "\n")
    stage("train_explore", folder, runs, flags, "--log tensorboard")
    found = events(run_dir(runs) / "erm.tensorboard")["loss"]
    history = files.load(run_dir(runs) / "erm.pt")["history"]
    assert [step for step, _ in found] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose([v for _, v in found], [r["loss"] for r in history], rtol=1e-6)


def test_tensorboard_that_is_missing_is_named_before_training(runs, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    parts = ("--log tensorboard needs tensorboard", "pip install cox-oom[watch]")
    refused("train_explore", folder, runs, "--method erm --log tensorboard", parts=parts)


# ------------------------------------------------------------------------------------------------------------ bars


class Terminal(io.StringIO):
    def isatty(self):
        return True


def long_parts():
    """Calls of what takes long on large data, by the name that its bar has."""
    g = torch.Generator().manual_seed(0)
    z, x = torch.randn(60, 4, generator=g), torch.randn(30, 3, generator=g)
    y, y_z = torch.arange(30) % 3, torch.full((60,), -1).index_copy(0, torch.arange(6), torch.arange(6) % 3)
    partner = torch.where(y_z >= 0, torch.arange(60) % 30, -1)
    file = {"kind": "series", "x": torch.randn(60, 2, 6, generator=g), "mean": torch.zeros(2, 1)}
    file |= {"std": torch.ones(2, 1), "lengths": None}
    learner = Learner(kind="series", shape=[2, 6], width=8, depth=1, patch=16, slice=0)
    return {
        "soft correspondences": lambda: correspond.correspond(z, y_z, partner, x, y, torch.ones(3) / 3),
        "shared vectors": lambda: correspond.shared_vectors([x, z[:30]]),
        "embed": lambda: augment.embed(learner, file, torch.arange(60), "cpu"),
        "plain vectors": lambda: readings.plain_vectors(file, torch.arange(60)),
    }


@pytest.mark.parametrize("name", long_parts())
def test_what_takes_long_shows_a_bar_and_what_does_not_is_silent(name, monkeypatch):
    said = Terminal()
    monkeypatch.setattr("sys.stderr", said)
    long_parts()[name]()
    assert said.getvalue() == ""
    monkeypatch.setattr(watch, "DELAY", 0)
    long_parts()[name]()
    assert f"{name}:" in said.getvalue() and "0%" in said.getvalue()
