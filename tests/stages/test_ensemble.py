"""--method ensemble: members with the same labels and other weights, the mean of their posteriors, and its use."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from worlds import differ, in_process, refused, run_dir, stage

import cox_oom
import evaluate
from cox_oom import again, files, predict
from cox_oom.augment import classify
from cox_oom.learner import load_learner
from cox_oom.seed import split_rows

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def ensemble(quick, folder, finished_runs, tmp_path_factory):
    """Runs with an ensemble of two, its file, and what stage 3 printed."""
    runs = shutil.copytree(finished_runs, tmp_path_factory.mktemp("ensemble") / "runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(again.subprocess, "run", in_process)
        printed = stage("train_explore", folder, runs, "--method ensemble --members 2")
    path = run_dir(runs) / "ensemble.pt"
    return runs, path, files.load(path), printed


def members(runs):
    """The METHOD.pt and connect.pt of each member, by its seed."""
    base = run_dir(runs) / "members"
    found = sorted(base.rglob("selftrain.pt"), key=lambda p: int(p.parent.name[4:]))
    return [(files.load(p), files.load(p.with_name("connect.pt"))) for p in found]


def test_members_have_the_labels_of_the_seed_and_weights_of_their_own(ensemble):
    runs, _, file, printed = ensemble
    connect, found = files.load(run_dir(runs) / "connect.pt"), members(runs)
    assert "member 2 of 2" in printed and len(found) == len(file["members"]) == 2
    for (run, own), kept in zip(found, file["members"]):
        assert set(own["labelled"]) == set(connect["labelled"])
        assert not differ(kept, {k: run[k] for k in ("learner", "head")})
        assert run["meta"]["args"]["method"] == "selftrain"
    assert differ(found[0][1]["initial"], found[1][1]["initial"])
    assert differ(found[0][0]["learner"], found[1][0]["learner"])


def test_it_names_by_the_mean_posterior_in_stage_4_and_for_new_recordings(ensemble, folder):
    runs, path, file, _ = ensemble
    inputs = files.load(next(runs.glob("*/inputs/imu.pt")))
    test = split_rows(inputs, ("test",))
    mean = 0
    for kept in file["members"]:
        learner, head = load_learner(file["arch"], kept, "cpu")
        mean = mean + classify(learner, head.state_dict(), inputs, test, "cpu")[1].softmax(-1) / 2
    evaluate.main(["--data", str(folder), "--runs", str(runs), "--method", "ensemble", "--device", "cpu"])
    record = json.loads(path.with_suffix(".json").read_text())
    right = mean.argmax(1) == inputs["labels"][test]
    assert record["correct"] == "".join(map(str, right.int().tolist()))
    assert len(record["history"]) == 2 and record["metrics"]["agreement"]
    temperature = file["calibration"]["temperature"]
    expected = (mean.log() / temperature).softmax(-1)
    answer = cox_oom.load(path).answer([folder / "imu" / f"{inputs['ids'][i]}.npy" for i in test.tolist()])
    torch.testing.assert_close(answer.posteriors, expected, atol=1e-5, rtol=1e-4)


def test_a_folder_of_runs_gives_no_member_and_export_refuses_an_ensemble(ensemble, folder, tmp_path, capsys):
    runs, path, _, _ = ensemble
    assert predict.best(runs).parent == run_dir(runs)
    with pytest.raises(files.UserError, match="several networks"):
        from cox_oom import export

        export.export(predict.Trained([path]), tmp_path / "a.onnx")


def test_a_member_that_fails_is_one_line(folder, runs, monkeypatch):
    failed = SimpleNamespace(returncode=2, stderr="a warning\nerror: the disk is full\n")
    monkeypatch.setattr(again.subprocess, "run", lambda *a, **k: failed)
    parts = ("--method ensemble, member 1, train_connect.py: the disk is full",)
    refused("train_explore", folder, runs, "--method ensemble --members 2", parts=parts)
    assert not (run_dir(runs) / "ensemble.pt").exists()
