"""What the stages leave behind on a folder: which files, whose items, which labels and pairs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from worlds import CLASSES, ROOT, differ, digests, no_leftovers, read_manifest, refused, run_dir, stage, write_manifest

from cox_oom import files
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")


def test_files_lie_where_the_contract_says(finished_runs, folder):
    expected = {Place(finished_runs, folder).inputs(m) for m in ("rgb", "imu", "language")}
    expected |= {Place(finished_runs, folder, "bind", "imu").banks() / f"{m}.pt" for m in ("rgb", "language")}
    expected |= {
        run_dir(finished_runs) / "connect.pt",
        run_dir(finished_runs) / "cox.pt",
        run_dir(finished_runs, "unsup") / "connect.pt",
    }
    assert expected <= set(finished_runs.rglob("*.pt"))
    assert not (Place(finished_runs, folder, "bind", "imu").banks() / "imu.pt").exists()
    no_leftovers(finished_runs)


def test_inputs_and_banks_hold_the_data_set(finished_runs, folder):
    rows = read_manifest(folder)
    fingerprints = set()
    for m in ("rgb", "imu", "language"):
        file = files.load(Place(finished_runs, folder).inputs(m))
        fingerprints.add(file["meta"]["fingerprint"])
        assert file["class_names"] == sorted(CLASSES)
        assert file["ids"] == [r[0] for r in rows]
        assert [file["class_names"][k] for k in file["labels"]] == [r[2] for r in rows]
        assert [files.SPLITS[k] for k in file["split"]] == [r[1] for r in rows]
        assert len(file["x"]) == len(rows)
    imu = files.load(Place(finished_runs, folder).inputs("imu"))
    for k in (0, 70, 101):
        raw = np.load(folder / rows[k][4])
        assert imu["lengths"][k] == raw.shape[1]
        np.testing.assert_allclose(imu["x"][k, :, : raw.shape[1]], raw, rtol=1e-6)
    for m in ("rgb", "language"):
        file = files.load(Place(finished_runs, folder, "bind", "imu").banks() / f"{m}.pt")
        fingerprints.add(file["meta"]["fingerprint"])
        assert file["features"].shape == (102, 8) and file["ids"] == imu["ids"]
        assert torch.equal(file["split"], imu["split"])
        torch.testing.assert_close(file["features"].norm(dim=1), torch.ones(102))
    assert len(fingerprints) == 1


def test_labelled_items_are_a_class_balanced_share_of_the_training_rows(finished_runs, folder):
    connect = files.load(run_dir(finished_runs) / "connect.pt")
    of = {r[0]: r for r in read_manifest(folder)}
    assert len(connect["labelled"]) == len(set(connect["labelled"])) == 12 == connect["meta"]["n_labelled"]
    assert {of[i][1] for i in connect["labelled"]} == {"train"}
    assert sorted(of[i][2] for i in connect["labelled"]) == sorted(CLASSES * 4)
    assert connect["meta"]["paired"] == "true"
    cox = files.load(run_dir(finished_runs) / "cox.pt")
    assert len(cox["unlabelled"]) == 48 and not set(cox["unlabelled"]) & set(connect["labelled"])
    assert {of[i][1] for i in cox["unlabelled"]} == {"train"}


def test_pairs_are_the_same_instance(finished_runs):
    connect = files.load(run_dir(finished_runs) / "connect.pt")
    for m in ("rgb", "language"):
        own, im = connect["pairs"][m]
        assert len(own) == 12
        assert [connect["labelled"][j] for j in own] == [connect["mapped_ids"][m][i] for i in im]


def test_the_curve_is_of_heads_that_know_no_labelled_item(finished_runs):
    """Fig. 5's last head is fitted to the mapped items alone, h* to the labelled items as well."""
    connect = files.load(run_dir(finished_runs) / "connect.pt")
    for m in ("rgb", "language"):
        last = [c for c in connect["curve"] if c["modality"] == m][-1]["head"]
        torch.testing.assert_close(last["mean"], connect["mapped"][m].mean(0))
        assert differ(last, connect["mapped_heads"][m])


def test_nothing_of_an_im_test_row_is_mapped(finished_runs, folder):
    train = {r[0] for r in read_manifest(folder) if r[1] == "train"}
    for name in ("connect", "cox"):
        file = files.load(run_dir(finished_runs) / f"{name}.pt")
        for m in ("rgb", "language"):
            assert len(file["mapped"][m]) == 60 and file["mapped"][m].isfinite().all()
    for setting in ("semi", "unsup"):
        file = files.load(run_dir(finished_runs, setting) / "connect.pt")
        assert all(set(ids) <= train for ids in file["mapped_ids"].values())


def test_other_items_have_neither_label_nor_pair_in_unsup(finished_runs):
    connect = files.load(run_dir(finished_runs, "unsup") / "connect.pt")
    assert connect["labelled"] == [] and connect["meta"]["paired"] == "none" and connect["meta"]["n_labelled"] == 0
    assert all(len(t) == 0 for pair in connect["pairs"].values() for t in pair)


def test_a_tag_makes_a_run_beside_the_first(folder, runs):
    before = digests(runs)
    stage("train_explore", folder, runs, "--method cox --kl literal --tag literal-kl")
    assert files.load(run_dir(runs) / "cox-literal-kl.pt")["meta"]["args"]["kl"] == "literal"
    after = digests(runs)
    assert {k: after[k] for k in before} == before and len(after) == len(before) + 1
    refused("train_explore", folder, runs, "--tag a/b", parts=["--tag a/b"])


def test_another_seed_is_another_run(runs, folder):
    refused("train_explore", folder, runs, "--seed 1", parts=("connect.pt", "python train_connect.py", "--seed 1"))
    stage("train_connect", folder, runs, "--seed 1")
    stage("train_explore", folder, runs, "--seed 1")
    zero, one = (files.load(run_dir(runs, seed=s) / "connect.pt") for s in (0, 1))
    assert zero["labelled"] != one["labelled"] and differ(zero["learner"], one["learner"])


@pytest.mark.parametrize("oom, setting", [("rgb", "semi"), ("language", "semi"), ("language", "unsup")])
def test_other_kinds_as_oom(folder, runs, oom, setting):
    stage("extract_features", folder, runs, oom=oom)
    stage("train_connect", folder, runs, f"--setting {setting}", oom=oom)
    stage("train_explore", folder, runs, f"--setting {setting}", oom=oom)
    file = files.load(run_dir(runs, setting, oom=oom) / "cox.pt")
    assert file["im"] == sorted({"rgb", "imu", "language"} - {oom})
    assert differ(file["learner"], files.load(run_dir(runs, setting, oom=oom) / "connect.pt")["learner"])


def test_a_feature_vector_is_one_token_and_a_free_series_many(tmp_path):
    folder = tmp_path / "vectors"
    (folder / "v").mkdir(parents=True)
    rng, rows = np.random.default_rng(0), []
    for k in range(60):
        split = "train" if k < 40 else "test"
        for m, length in (("bins", 12), ("free", 8 + k % 5)):
            np.save(folder / "v" / f"{m}{k}.npy", rng.standard_normal((2, length)).astype(np.float32) + k % 2)
        rows.append([k, split, CLASSES[k % 2], f"v/bins{k}.npy", f"v/free{k}.npy"])
    write_manifest(folder, rows, ("id", "split", "label", "bins", "free"))
    for oom, tokens in (("bins", 1), ("free", 12)):
        runs = tmp_path / oom
        stage("extract_features", folder, runs, oom=oom)
        stage("train_connect", folder, runs, oom=oom)
        state = files.load(run_dir(runs, data="vectors", oom=oom) / "connect.pt")["learner"]
        assert state["position"].shape[1] == tokens


def test_the_table_has_a_row_for_each_finished_method(runs, folder, tmp_path):
    stage("train_explore", folder, runs, "--method erm")
    line = ["evaluate.py", "--data", str(folder), "--runs", str(runs), "--table", "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, *line], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if line.startswith("|")]
    text = "\n".join(rows).lower()
    assert len(rows) >= 4 and "cox" in text and "erm" in text and "imu" in text
