"""Stages 2 and 3: what the warm-up, the terms of COX's loss, the moves of the head and validation do."""

import shutil

import numpy as np
import pytest
import torch
from worlds import CLASSES, assert_same, differ, read_manifest, refused, run_dir, stage, write_folder, write_manifest

import train_connect
from cox_oom import augment, connect, files, teacher
from cox_oom.files import Place
from cox_oom.heads import Head
from cox_oom.learner import Learner
from cox_oom.seed import load_banks, load_inputs

pytestmark = pytest.mark.usefixtures("quick")


def test_stage_3_starts_from_stage_2(runs, folder):
    """Without training and without noise the learner is the warm start; `random` is the learner before it."""
    stage("train_explore", folder, runs, "--method erm --lr 0")
    stage("train_explore", folder, runs, "--method random")
    connect, erm, random = (files.load(run_dir(runs) / f"{n}.pt") for n in ("connect", "erm", "random"))
    assert_same(connect["learner"], erm["learner"])
    assert_same(connect["initial"]["learner"], random["learner"])
    assert differ(connect["learner"], random["learner"])


def test_more_epochs_of_erm_fit_the_labelled_items_better(runs, folder):
    stage("train_explore", folder, runs, "--method erm --epochs 15")
    history = files.load(run_dir(runs) / "erm.pt")["history"]
    assert len(history) == 15 and history[-1]["loss"] < 0.8 * history[0]["loss"]


def test_held_out_items_are_for_validation_alone(folder, runs):
    stage("train_connect", folder, runs, "--force --holdout 0.25 --per-class 4")
    stage("train_explore", folder, runs, "--force --method erm --epochs 3")
    connect, erm = files.load(run_dir(runs) / "connect.pt"), files.load(run_dir(runs) / "erm.pt")
    of = {r[0]: r for r in read_manifest(folder)}
    assert sorted(of[i][2] for i in connect["held"]) == sorted(CLASSES)  # a quarter of each class
    assert {of[i][1] for i in connect["held"]} == {"train"}
    assert sorted(of[i][2] for i in connect["labelled"]) == sorted(CLASSES * 3)
    known, unknown = set(connect["labelled"]), set(erm["unlabelled"])
    assert not set(connect["held"]) & (known | unknown) and len(known | unknown) == 60 - 3
    stage("train_connect", folder, runs, "--force --per-class 4")
    assert set(files.load(run_dir(runs) / "connect.pt")["labelled"]) == known | set(connect["held"])
    accuracy = np.array([r["val_accuracy"] for r in erm["history"]]) * 3  # of the three items held out
    np.testing.assert_allclose(accuracy, accuracy.round(), atol=1e-6)


def test_few_items_have_none_to_hold_out(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    stage("extract_features", own, tmp_path / "runs")
    monkeypatch.setattr(train_connect.torch, "rand", lambda *size, **_: torch.ones(*size))
    out = stage("train_connect", own, tmp_path / "runs", "--labels 0.4")
    assert "too few to hold out" in out and "nan" not in out


def test_the_last_validation_is_of_the_saved_model(folder, runs, monkeypatch):
    """selftrain's head moves after the last epoch: here to one that names the first class alone."""
    monkeypatch.setattr(teacher, "move_head", lambda head, *_: head.bias.data[0].add_(1e4))
    stage("train_connect", folder, runs, "--force --holdout 0.4 --per-class 10")
    stage("train_explore", folder, runs, "--force --method selftrain --epochs 2 --refit 1")
    connect, saved = files.load(run_dir(runs) / "connect.pt"), files.load(run_dir(runs) / "selftrain.pt")
    oom = load_inputs(Place(runs, folder), "imu")
    held = torch.tensor([i for i, name in enumerate(oom["ids"]) if name in set(connect["held"])])
    learner = Learner(**saved["arch"])
    learner.load_state_dict(saved["learner"])
    with torch.no_grad():
        z = augment.embed(learner, oom, held, "cpu")[0]
        guess = (z @ saved["head"]["weight"].T + saved["head"]["bias"]).argmax(1)
    assert len(held) == 12 and (guess == 0).all() and saved["history"][0]["val_accuracy"] > 0.4
    assert saved["history"][-1]["val_accuracy"] == (guess == oom["labels"][held]).float().mean().item()
    stage("train_connect", folder, runs, "--force")


def test_the_im_posterior_on_the_pairs_teaches_the_warm_up(runs, folder):
    """--w-kl: at the end of the warm-up the head is nearer to the mean posterior of the IM heads on the pairs."""
    divergence = {}
    oom = load_inputs(Place(runs, folder), "imu")
    ims = load_banks(Place(runs, folder, "bind", "imu"))[0]
    for w in (0, 5):
        stage("train_connect", folder, runs, f"--w-kl {w} --warmup-epochs 15 --force")
        state = files.load(run_dir(runs) / "connect.pt")
        row = {i: r for r, i in enumerate(oom["ids"])}
        learner = Learner(**state["arch"])
        learner.load_state_dict(state["learner"])
        x, lengths = augment.batch(oom, torch.tensor([row[i] for i in state["labelled"]]), "cpu")
        teacher = 0
        for m, (has, paired) in state["pairs"].items():
            assert len(has) == len(state["labelled"])
            head = Head(8, 3)
            head.load_state_dict(state["im_heads"][m])
            at = {i: r for r, i in enumerate(ims[m]["ids"])}
            z = ims[m]["features"][torch.tensor([at[state["mapped_ids"][m][p]] for p in paired.tolist()])]
            teacher = teacher + head(z).softmax(-1) / len(state["pairs"])
        with torch.no_grad():
            logits = learner.eval()(x, lengths) @ state["head"]["weight"].T + state["head"]["bias"]
            divergence[w] = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean").item()
    assert divergence[5] < divergence[0]


def test_literal_kl_is_another_run(runs, folder):
    expected = files.load(run_dir(runs) / "cox.pt")["learner"]
    refused("train_explore", folder, runs, "--kl literal", parts=("--kl", "expected", "literal", "--force"))
    stage("train_explore", folder, runs, "--kl literal --force --w-disagree 5")
    assert differ(expected, files.load(run_dir(runs) / "cox.pt")["learner"])


def test_the_term_on_d_follows_what_there_is(runs, folder):
    """Without correspondences an item's expected classes are the mean of the heads' posteriors, which no temper
    changes; with them they are those of its correspondences."""
    stage("train_explore", folder, runs, "--rounds 0 --tag plain")
    stage("train_explore", folder, runs, "--rounds 0 --temper 1 --tag plain-sure")
    stage("train_explore", folder, runs, "--temper 1 --tag sure")

    def learner(name):
        return files.load(run_dir(runs) / f"{name}.pt")["learner"]

    assert not differ(learner("cox-plain"), learner("cox-plain-sure")) and differ(learner("cox"), learner("cox-sure"))


def test_refit_moves_the_head_alone_and_only_where_there_are_correspondences(runs, folder):
    def file(name):
        return files.load(run_dir(runs) / f"{name}.pt")

    for tag, flags in (
        ("half", ""),
        ("kept", "--refit 0"),
        ("whole", "--refit 1"),
        ("plain", "--rounds 0"),
        ("plain-kept", "--rounds 0 --refit 0"),
    ):
        stage("train_explore", folder, runs, f"{flags} --tag {tag}")
    half, kept, whole = file("cox-half"), file("cox-kept"), file("cox-whole")
    assert not differ(half["learner"], kept["learner"]) and not differ(half["learner"], whole["learner"])
    for k in ("weight", "bias"):
        torch.testing.assert_close(half["head"][k], 0.5 * (kept["head"][k] + whole["head"][k]), atol=1e-5, rtol=1e-4)
    assert differ(half["head"], kept["head"]) and not differ(file("cox-plain")["head"], file("cox-plain-kept")["head"])


def test_the_refresh_of_a_connection_keeps_stage_2s_weights(runs, folder, tmp_path, monkeypatch):
    told, train = [], connect.train_connection
    monkeypatch.setattr(connect, "train_connection", lambda *a, **k: told.append(k) or train(*a, **k))
    shutil.copytree(runs, tmp_path / "again")
    stage("train_connect", folder, tmp_path / "again", "--beta 0.03 --w-ce 0.2 --force")
    stage("train_explore", folder, tmp_path / "again", "--method cox --epochs 2 --refreshes 2 --force")
    assert told and {(k["beta"], k["w_ce"]) for k in told} == {(0.03, 0.2)}


def test_selftrain_takes_as_many_anchors_as_cox_at_the_start(runs, folder):
    def shares(method):
        out = stage("train_explore", folder, runs, f"--method {method} --refreshes 1 --epochs 1 --force")
        return [line.split(":")[1].split("%")[0] for line in out.splitlines() if "are anchors" in line]

    assert shares("cox") == shares("selftrain") != []


def test_a_class_that_only_the_new_sensor_shows_is_kept(tmp_path):
    """Pens have labels among the readings alone: the heads are not held to their share of 0 on the IM side."""
    own = write_folder(tmp_path / "toy", separate=("imu",))

    def lose(r):
        return r[1] == "train" and not r[4] and r[2] == "pen"

    write_manifest(own, [[*r[:2], "" if lose(r) else r[2], *r[3:]] for r in read_manifest(own)])
    runs = tmp_path / "runs"
    stage("extract_features", own, runs, "--bind-epochs 1")
    stage("train_connect", own, runs, "--pair-by-class")
    stage("train_explore", own, runs, "--method selftrain --rounds 3 --epochs 6 --refreshes 2")
    saved = files.load(run_dir(runs) / "selftrain.pt")
    assert (saved["after"]["prediction"] == CLASSES.index("pen")).any()
