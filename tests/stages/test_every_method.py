"""Every method in both settings: it trains, is like no other, is the same again; or it needs labels."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import UNSUP_REFUSED, differ, in_process, refused, run_dir, stage, tensors

import train_explore
from cox_oom import again, files

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def all_methods(quick, folder, finished_runs, tmp_path_factory):
    """Every method in both settings, where it exists: (runs, {(setting, method): what it printed})."""
    runs = Path(shutil.copytree(finished_runs, tmp_path_factory.mktemp("methods") / "runs"))
    printed, patch = {}, pytest.MonkeyPatch()
    patch.setattr(again.subprocess, "run", in_process)  # the members of an ensemble
    for setting in ("semi", "unsup"):
        for method in train_explore.METHODS:
            if setting == "semi" or method not in UNSUP_REFUSED:
                flags = f"--method {method} --setting {setting} --force"
                more = "--threshold 0.2" if method == "fixmatch" else ""
                printed[setting, method] = stage("train_explore", folder, runs, flags, more)
    patch.undo()
    return runs, printed


@pytest.mark.parametrize("method", train_explore.METHODS)
def test_every_method_semi(all_methods, method):
    runs, printed = all_methods
    path = run_dir(runs) / f"{method}.pt"
    file, connect = files.load(path), files.load(run_dir(runs) / "connect.pt")
    assert f"wrote {path}" in printed["semi", method]
    assert len(file["history"]) == (2 if train_explore.METHODS[method].trains and method != "procrustes" else 0)
    assert all(np.isfinite(r["loss"]) for r in file["history"])
    assert all(t.isfinite().all() for t in tensors({"l": file["learner"], "h": file["head"]}).values())
    assert differ(file["learner"], connect["learner"]) == (method != "procrustes") and differ(
        file["head"], connect["head"]
    )
    assert file["meta"]["n_labelled"] == (60 if method == "aligned" else 12)
    assert len(file["before"]["agree"]) == len(file["after"]["agree"]) == len(file["unlabelled"])
    untrained = {m for m, row in train_explore.METHODS.items() if row.classical}  # theirs is the learner of random
    assert ("classical" in file) == (method in untrained)
    for other in {*train_explore.METHODS} - {method} - untrained:  # no method is another one by mistake
        if method not in untrained:
            assert differ(file["learner"], files.load(run_dir(runs) / f"{other}.pt")["learner"]), other


@pytest.mark.parametrize("method", [m for m in train_explore.METHODS if m not in UNSUP_REFUSED])
def test_every_method_unsup(all_methods, method):
    runs, _ = all_methods
    file, connect = (files.load(run_dir(runs, "unsup") / f"{name}.pt") for name in (method, "connect"))
    assert differ(file["learner"], connect["learner"])
    assert all(t.isfinite().all() for t in tensors({"l": file["learner"], "h": file["head"]}).values())
    assert len(file["unlabelled"]) == (0 if method == "aligned" else 60)


@pytest.mark.parametrize("method", UNSUP_REFUSED)
def test_methods_that_need_labels_are_refused_in_unsup(runs, folder, method):
    parts = (method, "labels", "semi", "cox")
    refused("train_explore", folder, runs, f"--method {method} --setting unsup", parts=parts)
    assert not (run_dir(runs, "unsup") / f"{method}.pt").exists()


@pytest.mark.parametrize("method", [m for m in train_explore.METHODS if m not in ("random", "fixmatch", "ensemble")])
def test_every_method_is_deterministic(all_methods, folder, tmp_path, method):
    runs = Path(shutil.copytree(all_methods[0], tmp_path / "runs"))
    path = run_dir(runs) / f"{method}.pt"
    first = files.load(path)["meta"]["digest"]
    torch.manual_seed(12345)  # whatever ran before
    stage("train_explore", folder, runs, f"--method {method} --force")
    assert files.load(path)["meta"]["digest"] == first
