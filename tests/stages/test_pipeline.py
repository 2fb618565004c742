"""The stages on a folder written here: what they write, skip, refuse, never look at, and survive."""

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cox_oom import augment
from cox_oom import files
import evaluate
import extract_features
from cox_oom import model
from cox_oom.labels import choose_labelled, class_frequencies, hold_out, name_by_clusters
import train_connect
import train_explore
from cox_oom.files import UserError

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "extract_features": extract_features,
    "train_connect": train_connect,
    "train_explore": train_explore,
}
FLAGS = {
    "extract_features": "--image-size 8 --bind-epochs 2 --bind-width 8 --bind-dim 8",
    "train_connect": "--width 16 --depth 1 --patch 4 --warmup-epochs 2 --batch 16 --labelled-batch 8 "
    "--connect-steps 2 --labels 0.2",
    "train_explore": "--epochs 2 --batch 16 --labelled-batch 8 --connect-steps 2 --refreshes 2 --queue 64",
}
CLASSES = ("cup", "key", "pen")
UNSUP_REFUSED = ("erm", "entmin", "fixmatch", "selftrain")


# ---------------------------------------------------------------------------------------------------- helpers


def write_folder(path, n=(60, 12, 30), separate=(), seed=0):
    """rgb 8x8 png, imu (2, T) npy of varying T, language; every row has all three, but for the modalities in
    `separate`, which have rows of their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for part in [(), *((m,) for m in separate)]:
        for split, count in zip(("train", "val", "test"), n):
            for k in range(count):
                c, name = k % 3, f"{'_'.join(part) or 'i'}{split}{k}"
                cells = {
                    "rgb": f"rgb/{name}.png",
                    "imu": f"imu/{name}.npy",
                    "language": f"a {('red', 'long', 'small')[c]} {CLASSES[c]} number {rng.integers(9)}",
                }
                cells = {m: v if (m in part if part else m not in separate) else "" for m, v in cells.items()}
                if cells["rgb"]:
                    (path / "rgb").mkdir(parents=True, exist_ok=True)
                    picture = rng.integers(0, 120, (8, 8, 3))
                    picture[:, :, c] += 100
                    Image.fromarray(picture.astype(np.uint8)).save(path / cells["rgb"])
                if cells["imu"]:
                    (path / "imu").mkdir(parents=True, exist_ok=True)
                    t = np.arange(rng.integers(8, 21))
                    np.save(
                        path / cells["imu"],
                        (
                            np.stack([np.sin(t * (0.3 + 0.5 * c)), t / 20 * (c - 1)])
                            + 0.3 * rng.standard_normal((2, len(t)))
                        ).astype(np.float32),
                    )
                rows.append([name, split, CLASSES[c], *(cells[m] for m in ("rgb", "imu", "language"))])
    write_manifest(path, rows)
    return path


def write_manifest(path, rows, header=("id", "split", "label", "rgb", "imu", "language")):
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])


def read_manifest(path):
    with open(path / "manifest.csv", newline="") as f:
        return list(csv.reader(f))[1:]


def argv(stage, folder, runs, *flags, oom="imu"):
    own = [w for f in flags for w in str(f).split()]
    return [
        "--data",
        str(folder),
        "--oom",
        oom,
        "--runs",
        str(runs),
        "--device",
        "cpu",
        *FLAGS[stage].split(),
        *own,
    ]


def stage(name, folder, runs, *flags, oom="imu"):
    """main() in this process; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        STAGES[name].main(argv(name, folder, runs, *flags, oom=oom))
    return out.getvalue()


def command(name, folder, runs, *flags, oom="imu", **environment):
    return dict(
        args=[sys.executable, "-u", f"{name}.py", *argv(name, folder, runs, *flags, oom=oom)],
        cwd=ROOT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run in the background
    )


def refused(name, folder, runs, *flags, oom="imu", parts=()):
    """The stage ends with one line that contains all `parts`."""
    with pytest.raises(UserError) as caught:
        stage(name, folder, runs, *flags, oom=oom)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    return message


def tensors(o, prefix=""):
    """{path: tensor} of a nest."""
    if isinstance(o, torch.Tensor):
        return {prefix: o}
    items = o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, (list, tuple)) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}/{key}").items()}


def assert_same(a, b, what=""):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys() and a
    for k in a:
        assert torch.equal(a[k], b[k]), f"{what} {k} differs"


def differ(a, b):
    a, b = tensors(a), tensors(b)
    return any(not torch.equal(a[k], b[k]) for k in a)


def digests(runs):
    return {
        str(p.relative_to(runs)): files.load(p)["meta"]["digest"] for p in sorted(Path(runs).rglob("*.pt"))
    }


def change(path, **tensors_of):
    """Rewrite a file of stage 1 with other tensors: {name: function of the old one}; the meta stays."""
    file = files.load(path)
    meta = file.pop("meta")
    file = {k: tensors_of[k](v.clone()) if k in tensors_of else v for k, v in file.items()}
    own = {k: v for k, v in meta.items() if k not in ("digest", "argv", "torch", "time")}
    files.save(path, file, quiet=True, **own)


def no_leftovers(runs):
    assert not [p for p in Path(runs).rglob("*") if p.suffix == ".tmp"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Heads of 20 steps instead of 200, and one thread: nothing here asks how good a head is."""
    threads, steps = torch.get_num_threads(), model.fit_head.__kwdefaults__["steps"]
    torch.set_num_threads(1)
    model.fit_head.__kwdefaults__["steps"] = 20
    yield
    torch.set_num_threads(threads)
    model.fit_head.__kwdefaults__["steps"] = steps


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture(scope="module")
def finished_runs(folder, tmp_path_factory):
    """Stages 1-3 by the command line, semi; and stage 2 unsup."""
    runs = tmp_path_factory.mktemp("runs") / "r"
    for name in STAGES:
        done = subprocess.run(**command(name, folder, runs, PYTHONHASHSEED="1"))
        assert done.returncode == 0, done.stderr
        assert "error" not in done.stderr and "Traceback" not in done.stderr
        for line in done.stdout.splitlines():
            if line.startswith("wrote "):
                assert line.split(" ")[1].startswith(str(runs)), line
        assert "wrote" in done.stdout and "done in" in done.stdout
    stage("train_connect", folder, runs, "--setting unsup")
    return runs


@pytest.fixture
def runs(finished_runs, tmp_path):
    """A copy of the finished runs that a test may change."""
    return Path(shutil.copytree(finished_runs, tmp_path / "runs"))


def run_dir(runs, setting="semi", seed=0, data="toy", oom="imu"):
    return files.run_dir(runs, data, "bind", oom, setting, seed)


# --------------------------------------------------------------------------------- what a chain leaves behind


def test_files_lie_where_the_contract_says(finished_runs, folder):
    expected = {files.inputs_path(finished_runs, folder, m) for m in ("rgb", "imu", "language")}
    expected |= {files.bank_dir(finished_runs, folder, "bind", "imu") / f"{m}.pt" for m in ("rgb", "language")}
    expected |= {
        run_dir(finished_runs) / "connect.pt",
        run_dir(finished_runs) / "cox.pt",
        run_dir(finished_runs, "unsup") / "connect.pt",
    }
    assert expected <= set(finished_runs.rglob("*.pt"))
    assert not (files.bank_dir(finished_runs, folder, "bind", "imu") / "imu.pt").exists()
    no_leftovers(finished_runs)


def test_inputs_and_banks_hold_the_data_set(finished_runs, folder):
    rows = read_manifest(folder)
    fingerprints = set()
    for m in ("rgb", "imu", "language"):
        file = files.load(files.inputs_path(finished_runs, folder, m))
        fingerprints.add(file["meta"]["fingerprint"])
        assert file["class_names"] == sorted(CLASSES)
        assert file["ids"] == [r[0] for r in rows]
        assert [file["class_names"][k] for k in file["labels"]] == [r[2] for r in rows]
        assert [files.SPLITS[k] for k in file["split"]] == [r[1] for r in rows]
        assert len(file["x"]) == len(rows)
    imu = files.load(files.inputs_path(finished_runs, folder, "imu"))
    for k in (0, 70, 101):
        raw = np.load(folder / rows[k][4])
        assert imu["lengths"][k] == raw.shape[1]
        np.testing.assert_allclose(imu["x"][k, :, : raw.shape[1]], raw, rtol=1e-6)
    for m in ("rgb", "language"):
        file = files.load(files.bank_dir(finished_runs, folder, "bind", "imu") / f"{m}.pt")
        fingerprints.add(file["meta"]["fingerprint"])
        assert (
            file["features"].shape == (102, 8)
            and file["ids"] == imu["ids"]
            and torch.equal(file["split"], imu["split"])
        )
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
    assert (
        connect["labelled"] == []
        and connect["meta"]["paired"] == "none"
        and connect["meta"]["n_labelled"] == 0
    )
    assert all(len(t) == 0 for pair in connect["pairs"].values() for t in pair)


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
    assert sorted(of[i][2] for i in connect["held"]) == sorted(CLASSES)                 # a quarter of each class
    assert {of[i][1] for i in connect["held"]} == {"train"}
    assert sorted(of[i][2] for i in connect["labelled"]) == sorted(CLASSES * 3)
    known, unknown = set(connect["labelled"]), set(erm["unlabelled"])
    assert not set(connect["held"]) & (known | unknown) and len(known | unknown) == 60 - 3
    stage("train_connect", folder, runs, "--force --per-class 4")
    assert set(files.load(run_dir(runs) / "connect.pt")["labelled"]) == known | set(connect["held"])
    accuracy = np.array([r["val_accuracy"] for r in erm["history"]]) * 3                # of the three items held out
    np.testing.assert_allclose(accuracy, accuracy.round(), atol=1e-6)


def test_the_last_validation_is_of_the_saved_model(folder, runs, monkeypatch):
    """selftrain's head moves after the last epoch: here to one that names the first class alone."""
    monkeypatch.setattr(train_explore, "move_head", lambda head, *_: head.bias.data[0].add_(1e4))
    stage("train_connect", folder, runs, "--force --holdout 0.4 --per-class 10")
    stage("train_explore", folder, runs, "--force --method selftrain --epochs 2 --refit 1")
    connect, saved = files.load(run_dir(runs) / "connect.pt"), files.load(run_dir(runs) / "selftrain.pt")
    oom = files.load_inputs(runs, folder, "imu")[0]
    held = torch.tensor([i for i, name in enumerate(oom["ids"]) if name in set(connect["held"])])
    learner = model.Learner(**saved["arch"])
    learner.load_state_dict(saved["learner"])
    with torch.no_grad():
        z = augment.embed(learner, oom, held, "cpu")[0]
        guess = (z @ saved["head"]["weight"].T + saved["head"]["bias"]).argmax(1)
    assert len(held) == 12 and (guess == 0).all() and saved["history"][0]["val_accuracy"] > 0.4
    assert saved["history"][-1]["val_accuracy"] == (guess == oom["labels"][held]).float().mean().item()
    stage("train_connect", folder, runs, "--force")


def test_a_class_keeps_at_least_one_item_to_train_on():
    held = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 0.9)
    assert held.tolist() == [True, True, True, False, True, False, False]
    assert hold_out(torch.tensor([0, 0, 0, 1, 1]), 0.01).tolist() == [True, False, False, True, False]


def test_a_tag_makes_a_run_beside_the_first(folder, runs):
    before = digests(runs)
    stage("train_explore", folder, runs, "--method cox --kl literal --tag literal-kl")
    assert files.load(run_dir(runs) / "cox-literal-kl.pt")["meta"]["args"]["kl"] == "literal"
    after = digests(runs)
    assert {k: after[k] for k in before} == before and len(after) == len(before) + 1
    refused("train_explore", folder, runs, "--tag a/b", parts=["--tag a/b"])


@pytest.fixture(scope="module")
def all_methods(folder, finished_runs, tmp_path_factory):
    """Every method in both settings, where it exists: (runs, {(setting, method): what it printed})."""
    runs = Path(shutil.copytree(finished_runs, tmp_path_factory.mktemp("methods") / "runs"))
    printed = {}
    for setting in ("semi", "unsup"):
        for method in train_explore.METHODS:
            if setting == "semi" or method not in UNSUP_REFUSED:
                printed[setting, method] = stage(
                    "train_explore",
                    folder,
                    runs,
                    f"--method {method} --setting {setting} --force",
                    "--threshold 0.2" if method == "fixmatch" else "",
                )
    return runs, printed


@pytest.mark.parametrize("method", train_explore.METHODS)
def test_every_method_semi(all_methods, method):
    runs, printed = all_methods
    path = run_dir(runs) / f"{method}.pt"
    file, connect = files.load(path), files.load(run_dir(runs) / "connect.pt")
    assert f"wrote {path}" in printed["semi", method]
    assert len(file["history"]) == (0 if method == "random" else 2)
    assert all(np.isfinite(r["loss"]) for r in file["history"])
    assert all(t.isfinite().all() for t in tensors({"l": file["learner"], "h": file["head"]}).values())
    assert differ(file["learner"], connect["learner"])
    assert file["meta"]["n_labelled"] == (60 if method == "aligned" else 12)
    assert len(file["before"]["agree"]) == len(file["after"]["agree"]) == len(file["unlabelled"])
    assert file["meta"]["paired"] == "true" and file["meta"]["labels"] == 0.2
    for other in train_explore.METHODS:  # no method is another one by mistake
        if other != method:
            assert differ(file["learner"], files.load(run_dir(runs) / f"{other}.pt")["learner"]), other


@pytest.mark.parametrize("method", [m for m in train_explore.METHODS if m not in UNSUP_REFUSED])
def test_every_method_unsup(all_methods, method):
    runs, _ = all_methods
    file, connect = files.load(run_dir(runs, "unsup") / f"{method}.pt"), files.load(
        run_dir(runs, "unsup") / "connect.pt"
    )
    assert differ(file["learner"], connect["learner"])
    assert all(t.isfinite().all() for t in tensors({"l": file["learner"], "h": file["head"]}).values())
    assert len(file["unlabelled"]) == (0 if method == "aligned" else 60)


@pytest.mark.parametrize("method", UNSUP_REFUSED)
def test_methods_that_need_labels_are_refused_in_unsup(runs, folder, method):
    refused(
        "train_explore",
        folder,
        runs,
        f"--method {method} --setting unsup",
        parts=(method, "labels", "semi", "cox"),
    )
    assert not (run_dir(runs, "unsup") / f"{method}.pt").exists()


def test_literal_kl_is_another_run(runs, folder):
    matched = files.load(run_dir(runs) / "cox.pt")["learner"]
    refused("train_explore", folder, runs, "--kl literal", parts=("--kl", "expected", "literal", "--force"))
    stage("train_explore", folder, runs, "--kl literal --force --w-disagree 5")
    assert differ(matched, files.load(run_dir(runs) / "cox.pt")["learner"])


def test_the_term_on_d_follows_what_there_is(runs, folder):
    """Without correspondences no item has an expected class of its own: the run says so in its flags and is a `matched` one."""
    args = lambda name, setting="semi": files.load(run_dir(runs, setting) / f"{name}.pt")["meta"]["args"]
    stage("train_explore", folder, runs, "--rounds 0 --tag plain")
    stage("train_explore", folder, runs, "--rounds 0 --kl matched --w-disagree 0.5 --tag said")
    stage("train_explore", folder, runs, "--temper 1 --tag sure")
    told = [(args(n)["kl"], args(n)["w_disagree"]) for n in ("cox", "cox-plain", "cox-said")]
    assert told == [("expected", 1.0), ("matched", 0.5), ("matched", 0.5)]
    learner = lambda name: files.load(run_dir(runs) / f"{name}.pt")["learner"]
    assert not differ(learner("cox-plain"), learner("cox-said")) and differ(learner("cox"), learner("cox-sure"))


def test_refit_moves_the_head_alone_and_only_where_there_are_correspondences(runs, folder):
    file = lambda name: files.load(run_dir(runs) / f"{name}.pt")
    for tag, flags in (("half", ""), ("kept", "--refit 0"), ("whole", "--refit 1"), ("plain", "--rounds 0"),
                       ("plain-kept", "--rounds 0 --refit 0")):
        stage("train_explore", folder, runs, f"{flags} --tag {tag}")
    half, kept, whole = file("cox-half"), file("cox-kept"), file("cox-whole")
    assert not differ(half["learner"], kept["learner"]) and not differ(half["learner"], whole["learner"])
    for k in ("weight", "bias"):
        torch.testing.assert_close(half["head"][k], 0.5 * (kept["head"][k] + whole["head"][k]), atol=1e-5, rtol=1e-4)
    assert differ(half["head"], kept["head"]) and not differ(file("cox-plain")["head"], file("cox-plain-kept")["head"])


@pytest.mark.parametrize("oom, setting", [("rgb", "semi"), ("language", "semi"), ("language", "unsup")])
def test_other_kinds_as_oom(folder, runs, oom, setting):
    stage("extract_features", folder, runs, oom=oom)
    stage("train_connect", folder, runs, f"--setting {setting}", oom=oom)
    stage("train_explore", folder, runs, f"--setting {setting}", oom=oom)
    file = files.load(run_dir(runs, setting, oom=oom) / "cox.pt")
    assert file["im"] == sorted({"rgb", "imu", "language"} - {oom})
    assert differ(file["learner"], files.load(run_dir(runs, setting, oom=oom) / "connect.pt")["learner"])


def test_im_chooses_modalities(folder, tmp_path):
    stage("extract_features", folder, tmp_path, "--im rgb")
    assert os.listdir(files.bank_dir(tmp_path, folder, "bind", "imu")) == ["rgb.pt"]
    stage("train_connect", folder, tmp_path)
    stage("train_explore", folder, tmp_path)
    assert files.load(run_dir(tmp_path) / "cox.pt")["im"] == ["rgb"]
    rgb = files.bank_dir(tmp_path, folder, "bind", "imu") / "rgb.pt"
    before = rgb.read_bytes()
    refused("extract_features", folder, tmp_path, "--im language --force", parts=("rgb.pt", "--im"))
    assert rgb.read_bytes() == before and os.listdir(rgb.parent) == ["rgb.pt"]               # refused before any training


def test_banks_of_two_trainings_are_not_mixed(runs, folder, tmp_path):
    stage("extract_features", folder, tmp_path, "--seed 1")
    other, here = (files.bank_dir(t, folder, "bind", "imu") / "rgb.pt" for t in (tmp_path, runs))
    shutil.copy(other, here)
    refused("train_connect", folder, runs, "--force", parts=("rgb.pt and language.pt", "not trained together", "--force"))


def test_synth_by_name(tmp_path):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        extract_features.main(
            [
                "--data",
                "synth",
                "--oom",
                "audio",
                "--im",
                "language",
                "--runs",
                str(tmp_path),
                "--device",
                "cpu",
                "--bind-epochs",
                "1",
                "--bind-width",
                "8",
                "--image-size",
                "8",
            ]
        )
    file = files.load(files.inputs_path(tmp_path, "synth", "audio"))
    assert file["kind"] == "series" and {0, 1, 2} == set(file["split"].tolist())


# ----------------------------------------------------------------------------- skipped, forced, deterministic


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


@pytest.mark.parametrize("method", [m for m in train_explore.METHODS if m not in ("random", "fixmatch")])
def test_every_method_is_deterministic(all_methods, folder, tmp_path, method):
    runs = Path(shutil.copytree(all_methods[0], tmp_path / "runs"))
    path = run_dir(runs) / f"{method}.pt"
    first = files.load(path)["meta"]["digest"]
    torch.manual_seed(12345)  # whatever ran before
    stage("train_explore", folder, runs, f"--method {method} --force")
    assert files.load(path)["meta"]["digest"] == first


def test_another_seed_is_another_run(runs, folder):
    refused(
        "train_explore", folder, runs, "--seed 1", parts=("connect.pt", "python train_connect.py", "--seed 1")
    )
    stage("train_connect", folder, runs, "--seed 1")
    stage("train_explore", folder, runs, "--seed 1")
    zero, one = (files.load(run_dir(runs, seed=s) / "connect.pt") for s in (0, 1))
    assert zero["labelled"] != one["labelled"] and differ(zero["learner"], one["learner"])


# ----------------------------------------------------------------------------------------- the chain, refused


def test_missing_stages_are_named(folder, tmp_path):
    for name in ("train_connect", "train_explore"):
        message = refused(
            name, folder, tmp_path, parts=("imu.pt", "python extract_features.py", str(folder), "--oom imu")
        )
        assert "run first" in message
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
    shutil.rmtree(files.bank_dir(runs, folder, "bind", "imu"))
    refused(name, folder, runs, "--force", parts=("bank", "python extract_features.py", "--oom imu"))


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
    rows[7][2] = CLASSES[(CLASSES.index(rows[7][2]) + 1) % 3]
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
    refused("extract_features", own, runs, parts=(".pt", "other data", "--force", "--runs"))
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
        ("train_explore", "--gate 0"),
    ],
)
def test_other_flags_are_refused_without_force(runs, folder, name, flag):
    before = digests(runs)
    word = {"--bind-epochs": "--epochs"}.get(flag.split()[0], flag.split()[0])
    refused(name, folder, runs, flag, parts=(word, flag.split()[1], "--force"))
    assert digests(runs) == before
    stage(name, folder, runs, flag, "--force")
    assert digests(runs) != before


def test_a_folder_that_cannot_be_written_to_is_refused_at_once(folder, tmp_path):
    (tmp_path / "file").write_text("")
    refused("extract_features", folder, tmp_path / "file", parts=("file", "cannot be written to"))


def test_stage_2_redone_makes_stage_3_stale(runs, folder):
    stage("train_connect", folder, runs, "--labels 0.3 --force")
    refused("train_explore", folder, runs, parts=("cox.pt", "connect", "--force"))
    stage("train_explore", folder, runs, "--force")
    assert files.load(run_dir(runs) / "cox.pt")["meta"]["labels"] == 0.3
    assert "already done" in stage("train_explore", folder, runs)


def interrupted_force(runs, folder, monkeypatch):
    """Stage 1 redone at another image size, and stopped between the inputs and the banks."""
    with monkeypatch.context() as m:

        def stop(*args, **kwargs):
            raise KeyboardInterrupt

        m.setattr(extract_features.bind, "train", stop)
        with pytest.raises(KeyboardInterrupt):
            stage("extract_features", folder, runs, "--image-size 4 --force")
    assert files.load(files.inputs_path(runs, folder, "rgb"))["x"].shape[-1] == 4


def test_banks_of_earlier_inputs_are_not_taken_for_done(runs, folder, monkeypatch):
    interrupted_force(runs, folder, monkeypatch)
    refused("extract_features", folder, runs, "--image-size 4", parts=("banks", "inputs/rgb", "--force"))


def test_banks_of_earlier_inputs_are_refused_by_stage_2(runs, folder, monkeypatch):
    interrupted_force(runs, folder, monkeypatch)
    shutil.rmtree(run_dir(runs))
    refused("train_connect", folder, runs, parts=("banks", "inputs/rgb"))


# --------------------------------------------------------------------------------------------- pairs by class


def test_oom_without_shared_rows_needs_pair_by_class(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))
    runs = tmp_path / "runs"
    stage("extract_features", own, runs)
    refused("train_connect", own, runs, parts=("imu", "pair", "--pair-by-class"))
    assert not list(runs.rglob("connect.pt"))
    out = stage("train_connect", own, runs, "--pair-by-class")
    assert "--pair-by-class" in out
    connect = files.load(run_dir(runs) / "connect.pt")
    assert connect["meta"]["paired"] == "by class: language, rgb"
    label = {r[0]: r[2] for r in read_manifest(own)}
    for m in ("rgb", "language"):
        positions, im = connect["pairs"][m]
        assert len(positions) == 12
        for j, i in zip(positions.tolist(), im.tolist()):
            assert label[connect["labelled"][j]] == label[connect["mapped_ids"][m][i]]
    stage("train_explore", own, runs)
    assert files.load(run_dir(runs) / "cox.pt")["meta"]["paired"] == "by class: language, rgb"


@pytest.mark.parametrize("flags", ["", "--pair-by-class"])
def test_few_true_pairs_are_found_and_no_others_drawn(tmp_path, flags):
    """Of 60 training rows three hold imu beside the others: they keep their labels, whatever the seed."""
    own = write_folder(tmp_path / "toy")
    rows = [[*r[:3], *(r[3:] if k < 3 or r[1] != "train" else (r[3], "", r[5]) if k % 2 else ("", r[4], ""))]
            for k, r in enumerate(read_manifest(own))]
    write_manifest(own, rows)
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    for seed in (0, 1):
        stage("train_connect", own, tmp_path / "runs", flags, f"--seed {seed} --labels 0.1 --warmup-epochs 0 --connect-steps 1")
        connect = files.load(files.run_dir(tmp_path / "runs", own, "bind", "imu", "semi", seed) / "connect.pt")
        assert connect["meta"]["paired"] == "true"
        for m in ("rgb", "language"):
            at, im = connect["pairs"][m]
            assert {connect["labelled"][j] for j in at.tolist()} == {f"itrain{k}" for k in range(3)}
            assert [connect["labelled"][j] for j in at.tolist()] == [connect["mapped_ids"][m][i] for i in im.tolist()]


def test_pair_by_class_changes_nothing_where_rows_are_shared(runs, folder, tmp_path):
    before = files.load(run_dir(runs) / "connect.pt")
    stage("train_connect", folder, runs, "--pair-by-class --force")
    after = files.load(run_dir(runs) / "connect.pt")
    assert after["meta"]["paired"] == "true"
    assert_same(before["pairs"], after["pairs"])
    assert_same(before["learner"], after["learner"])


@pytest.fixture(scope="module")
def bind_by_class(tmp_path_factory):
    """imu shares rows with rgb and with language, which share none: bind alone needs --pair-by-class."""
    base = tmp_path_factory.mktemp("by_class")
    own, runs = write_folder(base / "toy"), base / "runs"
    write_manifest(
        own,
        [
            [*r[:3], r[3] if k % 2 else "", r[4], "" if k % 2 else r[5]]
            for k, r in enumerate(read_manifest(own))
        ],
    )
    refused("extract_features", own, runs, "--bind-epochs 1", parts=("language", "--pair-by-class"))
    assert not (runs / "toy" / "bind").exists()
    out = stage("extract_features", own, runs, "--pair-by-class --bind-epochs 1")
    return own, runs, out


def test_im_without_shared_rows_needs_pair_by_class(bind_by_class):
    own, runs, out = bind_by_class
    assert "paired by class" in out and "language" in out
    for m in ("rgb", "language"):
        meta = files.load(files.bank_dir(runs, own, "bind", "imu") / f"{m}.pt")["meta"]
        assert meta["paired_by_class"] == ["language", "rgb"]
        assert meta["args"]["pair_by_class"] is True


def test_pairs_by_class_in_bind_are_said_in_the_results(bind_by_class, tmp_path):
    own, runs, _ = bind_by_class
    runs = Path(shutil.copytree(runs, tmp_path / "runs"))
    stage("train_connect", own, runs, "--labels 0.4")
    stage("train_explore", own, runs)
    assert "class" in files.load(run_dir(runs) / "cox.pt")["meta"]["paired"]


# -------------------------------------------------------------------------------- labels that nobody may read


def weights(path):
    file = files.load(path)
    return {k: file[k] for k in ("learner", "head", "connections", "mapped_heads", "mapped")}


def train_all(folder, runs, methods=("cox", "selftrain", "fixmatch", "moco"), settings=("semi", "unsup")):
    out = {}
    for setting in settings:
        stage("train_connect", folder, runs, f"--setting {setting} --force")
        out[setting, "connect"] = weights(run_dir(runs, setting) / "connect.pt")
        for method in methods:
            if setting == "semi" or method not in UNSUP_REFUSED:
                stage("train_explore", folder, runs, f"--setting {setting} --method {method} --force")
                out[setting, method] = weights(run_dir(runs, setting) / f"{method}.pt")
    return out


@pytest.fixture(scope="module")
def trained(folder, finished_runs, tmp_path_factory):
    runs = Path(shutil.copytree(finished_runs, tmp_path_factory.mktemp("trained") / "runs"))
    return train_all(folder, runs)


def test_no_stage_learns_from_test_rows(runs, folder, trained):
    """With other labels, inputs and features in every test row, all weights are the same bit for bit."""
    test = files.load(files.inputs_path(runs, folder, "imu"))["split"] == 2

    def wrong(y):
        y[test] = (y[test] + 1) % 3
        return y

    def noise(x):
        x[test] = torch.randn(x[test].shape, generator=torch.Generator().manual_seed(9))
        return x

    change(files.inputs_path(runs, folder, "imu"), labels=wrong, x=noise)
    for m in ("rgb", "language"):
        change(files.bank_dir(runs, folder, "bind", "imu") / f"{m}.pt", labels=wrong, features=noise)
    for key, changed in train_all(folder, runs).items():
        assert_same(trained[key], changed, key)


def test_bind_learns_from_no_test_row(runs, folder):
    """The encoders in the banks, with other test rows in the inputs that stage 1 made."""
    folder_of_banks = files.bank_dir(runs, folder, "bind", "imu")
    before = {m: files.load(folder_of_banks / f"{m}.pt") for m in ("rgb", "language")}
    test = before["rgb"]["split"] == 2
    for m in before:
        change(
            files.inputs_path(runs, folder, m),
            labels=lambda y: torch.where(test, (y + 1) % 3, y),
            x=lambda x: torch.where(test.view(-1, *(1,) * (x.dim() - 1)), x.flip(-1), x),
        )
    shutil.rmtree(folder_of_banks)
    stage("extract_features", folder, runs)
    for m, old in before.items():
        new = files.load(folder_of_banks / f"{m}.pt")
        assert_same(old["encoder"], new["encoder"], m)
        assert torch.equal(old["features"][~test], new["features"][~test])
        assert differ(old["features"][test], new["features"][test])


@pytest.mark.parametrize("lie", ["another class", "none"])
def test_hidden_labels_reach_training_by_the_draw_alone(runs, folder, trained, monkeypatch, lie):
    """Which items keep their label is drawn from the true labels; then all other labels change.

    The draw itself is made with the true labels again: the same items, the same steps of the generator.
    """
    path = files.inputs_path(runs, folder, "imu")
    file = files.load(path)
    true = file["labels"].clone()
    drawn = set(files.load(run_dir(runs) / "connect.pt")["labelled"])
    hidden = torch.tensor([i not in drawn for i in file["ids"]]) & (file["split"] == 0)
    assert hidden.sum() == 48
    change(
        path,
        labels=lambda y: torch.where(
            hidden, (true + 1) % 3 if lie == "another class" else torch.full_like(y, -1), y
        ),
    )
    real, seen = train_connect.choose_labelled, []

    def draw(labels, *rest):
        seen.append(labels)
        return real(true[file["split"] == 0], *rest)

    monkeypatch.setattr(train_connect, "choose_labelled", draw)
    for key, changed in train_all(folder, runs).items():
        assert_same(trained[key], changed, key)
    assert len(seen) == 1 and (seen[0] != true[file["split"] == 0]).sum() == 48


def test_the_draw_depends_on_the_labels_by_class_alone():
    """All that choose_labelled may use of hidden labels is who is in which class: renamed, the same items."""
    labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(1))
    draw = lambda y: choose_labelled(y, 20, 0, torch.Generator().manual_seed(3))
    one = draw(labels)
    assert torch.equal(one, draw(torch.tensor([2, 3, 0, 1])[labels]))
    assert torch.bincount(labels[one]).tolist() == [5, 5, 5, 5]
    partly = torch.where(torch.arange(200) % 2 == 0, labels, -1)
    assert (partly[draw(partly)] >= 0).all()
    assert len(choose_labelled(labels, 0, 3, torch.Generator())) == 12
    paired = torch.ones(200, 2, dtype=torch.bool)
    assert torch.equal(one, choose_labelled(labels, 20, 0, torch.Generator().manual_seed(3), paired))


@pytest.mark.parametrize("sizes, count, drawn", [((30, 8, 4), 42, (30, 8, 4)), ((30, 8, 4), 21, (9, 8, 4)),
                                                 ((30, 8, 4), 6, (2, 2, 2)), ((30, 8, 4), 0.4, (1, 1, 1)), ((9, 9), 7.9, (4, 4))])
def test_what_a_small_class_is_short_of_the_larger_ones_give(sizes, count, drawn):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = choose_labelled(labels, count, 0, torch.Generator().manual_seed(0))
    assert tuple(torch.bincount(labels[chosen]).tolist()) == drawn and len(chosen.unique()) == len(chosen)


def test_items_with_pairs_are_drawn_first():
    labels, paired = torch.arange(60) % 3, torch.zeros(60, 2, dtype=torch.bool)
    paired[torch.tensor([3, 30, 30, 7]), torch.tensor([0, 0, 1, 1])] = True                  # classes 0, 0 and 1
    for seed in range(5):
        chosen = choose_labelled(labels, 0, 1, torch.Generator().manual_seed(seed), paired).tolist()
        assert 7 in chosen and 30 in chosen and 3 not in chosen and len(chosen) == 3


def test_no_modality_is_left_without_pairs_where_it_has_any():
    """Each item has rgb and language, or touch alone: the draw would take none of the latter."""
    labels, touch = torch.arange(60) % 3, torch.arange(60) >= 54
    paired = torch.stack([~touch, ~touch, touch], 1)
    for seed in range(5):
        draw = lambda p: choose_labelled(labels, 0, 2, torch.Generator().manual_seed(seed), p)
        plain, chosen = draw(paired[:, :2]), draw(paired)
        assert paired[chosen].any(0).all() and not paired[plain][:, 2].any() and paired[chosen][:, 2].sum() == 1
        assert torch.bincount(labels[chosen]).tolist() == [2, 2, 2] and len(chosen.unique()) == 6
    with_none = torch.stack([~touch, torch.zeros_like(touch)], 1)
    assert len(choose_labelled(labels, 0, 2, torch.Generator(), with_none)) == 6
    imu = (torch.arange(60) >= 48) & ~touch
    two = torch.stack([~touch & ~imu, ~touch & ~imu, imu, touch], 1)                         # two that the draw would leave out
    for per_class in (1, 2, 4):
        for seed in range(4):
            chosen = choose_labelled(labels, 0, per_class, torch.Generator().manual_seed(seed), two)
            assert two[chosen].any(0).all() and torch.bincount(labels[chosen]).tolist() == [per_class] * 3


def test_an_oom_modality_without_labelled_training_rows(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))
    write_manifest(
        own, [[r[0], r[1], "" if r[4] and r[1] == "train" else r[2], *r[3:]] for r in read_manifest(own)]
    )
    stage("extract_features", own, tmp_path / "runs")
    refused("train_connect", own, tmp_path / "runs", "--pair-by-class", parts=("imu", "label"))


# -------------------------------------------------------------------------------------- stopped in the middle

CASES = [
    ("extract_features", "--bind-epochs 1000000", "training bind", signal.SIGKILL),
    ("train_connect", "--warmup-epochs 1000000", "labelled items", signal.SIGKILL),
    ("train_connect", "--warmup-epochs 1000000", "labelled items", signal.SIGINT),
    ("train_explore", "--epochs 1000000 --method erm", "epochs of", signal.SIGKILL),
]


@pytest.mark.parametrize("name, flags, begun, how", CASES, ids=[f"{c[0]} {c[3].name}" for c in CASES])
def test_a_stage_stopped_in_training_leaves_nothing_for_a_later_one(runs, folder, name, flags, begun, how):
    if name == "extract_features":
        shutil.rmtree(files.bank_dir(runs, folder, "bind", "imu"))
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
    assert set(runs.rglob("*.pt")) == before
    no_leftovers(runs)
    if name == "extract_features":
        refused("train_connect", folder, runs, parts=("python extract_features.py",))
    if name == "train_connect":
        refused("train_explore", folder, runs, parts=("python train_connect.py",))
    stage(name, folder, runs, *(["--method erm"] if name == "train_explore" else []))
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
        files.run(STAGES[name].main, argv(name, folder, runs, "--force"))
    assert exit.value.code == 130 and "Traceback" not in capsys.readouterr().err
    assert path.read_bytes() == before
    no_leftovers(runs)


def test_a_diverged_training_is_not_saved(runs, folder):
    path = run_dir(runs) / "erm.pt"
    try:
        stage("train_explore", folder, runs, "--method erm --lr 1e30")
    except UserError as error:
        assert "--lr" in str(error) and not path.exists()
    else:
        assert all(
            t.isfinite().all() for t in tensors(files.load(path)["learner"]).values()
        ), "NaN weights were saved"


# -------------------------------------------------------------------------------------------------- bad input


def bad_missing(f, rows):
    os.remove(f / "imu/itrain4.npy")
    return "row 6", "itrain4", "imu/itrain4.npy", "not there"


def bad_picture(f, rows):
    (f / "rgb/itrain2.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    return "row 4", "itrain2", "rgb/itrain2.png", "replace the file"


def bad_truncated_picture(f, rows):
    os.truncate(f / "rgb/itest1.png", 60)
    return "itest1", "rgb/itest1.png"


def bad_array(f, rows):
    (f / "imu/itrain1.npy").write_bytes(b"not an array")
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_array_shape(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros(7, np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_array_channels(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros((3, 9), np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy", "channels"


def bad_array_empty(f, rows):
    np.save(f / "imu/itrain1.npy", np.zeros((2, 0), np.float32))
    return "row 3", "itrain1", "imu/itrain1.npy"


def bad_nan(f, rows):
    x = np.load(f / "imu/itest0.npy")
    x[1, 2] = np.nan
    np.save(f / "imu/itest0.npy", x)
    return "itest0", "imu/itest0.npy", "NaN"


def bad_infinite(f, rows):
    x = np.load(f / "imu/itrain5.npy")
    x[0, 0] = np.inf
    np.save(f / "imu/itrain5.npy", x)
    return "row 7", "itrain5", "imu/itrain5.npy"


def bad_split(f, rows):
    rows[1][1] = "dev"
    return "manifest.csv", "row 3", "itrain1", "'dev'", "train, val or test"


def bad_duplicate(f, rows):
    rows[5][0] = rows[2][0]
    return "manifest.csv", "row 7", "row 4", "itrain2"


def bad_empty_modality(f, rows):
    for r in rows:
        r[4] = ""
    return "manifest.csv", "column imu", "no filled cell"


def bad_modality_in_test_alone(f, rows):
    for r in rows:
        r[3] = r[3] if r[1] == "test" else ""
    return "manifest.csv", "column rgb", "train"


def bad_single_class(f, rows):
    for r in rows:
        r[2] = "cup"
    return "manifest.csv", "1 class", "at least 2"


def bad_no_labels(f, rows):
    for r in rows:
        r[2] = ""
    return "manifest.csv", "0 classes"


def bad_test_label(f, rows):
    rows[-1][2] = "spoon"
    return "manifest.csv", "row", "'spoon'", rows[-1][0], "train"


def bad_no_test_rows(f, rows):
    rows[:] = [r for r in rows if r[1] != "test"]
    return "manifest.csv", "test"


def bad_outside(f, rows):
    rows[0][3] = "../secret.png"
    return "row 2", "itrain0", "leaves the folder"


def bad_extension(f, rows):
    (f / "imu/x.mat").write_bytes(b"1")
    rows[0][4] = "imu/x.mat"
    return "row 2", "itrain0", ".npy"


def bad_ragged_row(f, rows):
    rows[3] = rows[3][:-1]
    return "manifest.csv", "row 5", "cells", "columns"


def bad_nothing_observed(f, rows):
    rows[3][3:] = ["", "", ""]
    return "manifest.csv", "row 5", "itrain3"


BAD = [v for k, v in list(globals().items()) if k.startswith("bad_")]


def one_error_line(capsys, arguments, parts, main=extract_features.main):
    with pytest.raises(SystemExit) as exit:
        files.run(main, arguments)
    captured = capsys.readouterr()
    assert exit.value.code == 2
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), captured.err
    for part in parts:
        assert part in lines[0], f"{part!r} is not in: {lines[0]}"
    assert "training" not in captured.out
    return lines[0]


@pytest.mark.parametrize("spoil", BAD, ids=lambda f: f.__name__[4:])
def test_bad_input_ends_with_one_line_before_any_training(tmp_path, capsys, spoil):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    rows = read_manifest(own)
    parts = spoil(own, rows)
    write_manifest(own, rows)
    line = one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), parts)
    assert ";" in line  # what is wrong; what mends it
    assert not list((tmp_path / "runs").rglob("banks"))
    no_leftovers(tmp_path)


def test_the_mended_folder_goes_through(tmp_path, capsys):
    """A file that could not be used is replaced, as the message says: the same command goes on."""
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    good = (own / "imu/itrain5.npy").read_bytes()
    parts = bad_infinite(own, None)
    one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), parts)
    (own / "imu/itrain5.npy").write_bytes(good)
    stage("extract_features", own, tmp_path / "runs")


def test_unlike_items_are_named_by_their_file(tmp_path, capsys):
    """What the first bytes do not tell: 8 and 16 bits among tiffs."""
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    rows = read_manifest(own)
    for k, r in enumerate(rows):
        picture = np.full((8, 8), k, np.uint16 if k == 4 else np.uint8)
        Image.fromarray(picture).save(own / r[3].replace(".png", ".tif"))
        r[3] = r[3].replace(".png", ".tif")
    write_manifest(own, rows)
    one_error_line(
        capsys,
        argv("extract_features", own, tmp_path / "runs"),
        (str(own / "rgb/itrain4.tif"), "(id itrain4)", "float32", "uint8", ";"),
    )


def test_items_are_read_one_at_a_time(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    real, kinds = extract_features.inputs.learner_inputs, {}

    def look(kind, raws, *args, **kw):
        kinds[kind] = isinstance(raws, extract_features.datasets.Items)
        return real(kind, raws, *args, **kw)

    monkeypatch.setattr(extract_features.inputs, "learner_inputs", look)
    stage("extract_features", own, tmp_path / "runs")
    assert kinds == {"image": True, "series": True, "text": True}


def test_frames_reach_the_reader(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    real, seen = extract_features.datasets.read, []

    def look(data, **options):
        seen.append(options)
        return real(data, **options)

    monkeypatch.setattr(extract_features.datasets, "read", look)
    stage("extract_features", own, tmp_path / "runs", "--frames 5")
    assert seen == [{"root": None, "frames": 5}]


def test_few_items_have_none_to_hold_out(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    stage("extract_features", own, tmp_path / "runs")
    monkeypatch.setattr(train_connect.torch, "rand", lambda *size, **_: torch.ones(*size))
    out = stage("train_connect", own, tmp_path / "runs", "--labels 0.4")
    assert "too few to hold out" in out and "nan" not in out


@pytest.mark.parametrize(
    "change, parts",
    [
        (("--bind-width", "12"), ("--bind-width 12", "multiple of 8")),
        (("--bind-width", "0"), ("--bind-width 0", "multiple of 8")),
        (("--oom", "smell"), ("--oom smell", "rgb", "imu", "language")),
        (("--im", "smell"), ("--im smell", "rgb", "language")),
        (("--im", "imu"), ("--im imu",)),
        (("--data", "nowhere"), ("nowhere", "manifest.csv", "synth")),
        (("--data", "setup.py"), ("setup.py", "file", "manifest.csv")),
        (("--data", "tests"), ("manifest.csv", "not there")),
    ],
    ids=lambda v: " ".join(v)[:20],
)
def test_bad_flags_end_with_one_line(tmp_path, capsys, folder, monkeypatch, change, parts):
    monkeypatch.chdir(ROOT)
    one_error_line(capsys, [*argv("extract_features", folder, tmp_path), *change], parts)
    assert not list(tmp_path.iterdir())


def test_oom_is_required_for_bind(tmp_path, capsys, folder):
    one_error_line(capsys, ["--data", str(folder), "--runs", str(tmp_path)], ("--oom", "bind"))


def test_one_modality_is_too_few(tmp_path, capsys):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    write_manifest(own, [[*r[:3], r[4]] for r in read_manifest(own)], ("id", "split", "label", "imu"))
    one_error_line(capsys, argv("extract_features", own, tmp_path / "runs"), ("imu", "other modality"))


def test_bad_input_by_the_command_line(tmp_path):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    os.remove(own / "rgb/ival1.png")
    done = subprocess.run(**command("extract_features", own, tmp_path / "runs"))
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and "ival1" in done.stderr
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", STAGES)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        STAGES[name].get_args(["--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert all(flag in out for flag in ("--data", "--oom", "--perceptor", "--runs", "--seed", "--force"))


# ------------------------------------------------------------------------------------------------- evaluation


@pytest.mark.skipif(not (ROOT / "evaluate.py").exists(), reason="there is no evaluate.py yet")
def test_the_table_has_a_row_for_each_finished_method(runs, folder, tmp_path):
    stage("train_explore", folder, runs, "--method erm")
    done = subprocess.run(
        [
            sys.executable,
            "evaluate.py",
            "--data",
            str(folder),
            "--runs",
            str(runs),
            "--table",
            "--out",
            str(tmp_path / "out"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [line for line in (tmp_path / "out" / "table.md").read_text().splitlines() if line.startswith("|")]
    text = "\n".join(rows).lower()
    assert len(rows) >= 4 and "cox" in text and "erm" in text and "imu" in text


# ------------------------------------------------------------------------------------------- going on, anchors


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

    monkeypatch.setattr(files, "save", save_and_stop)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, flags.replace("--force", ""))
    monkeypatch.undo()
    assert written == [checkpoint.name] * 2 and not path.exists()
    monkeypatch.setattr(train_explore, "held_out_gain", None)                      # trust was settled when the run began
    assert "going on from epoch 2" in stage("train_explore", folder, runs, flags.replace("--force", ""))
    again = files.load(path)
    for k in whole:
        assert_same(whole[k] or {"none": torch.zeros(1)}, tensors(again[k]) or {"none": torch.zeros(1)}, k)
    assert not checkpoint.exists()


def test_a_forced_run_goes_on_as_well_but_not_from_what_it_is_to_replace(runs, folder, monkeypatch):
    flags = "--method erm --epochs 4 --refreshes 4"
    checkpoint, save = run_dir(runs) / "erm.checkpoint.pt", files.save

    def save_and_stop(*args, **kwargs):
        save(*args, **kwargs)
        raise Stop

    for first, then, goes_on in (("--force", "--force", True), ("", "--force", False)):
        (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
        monkeypatch.setattr(files, "save", save_and_stop)
        with pytest.raises(Stop):
            stage("train_explore", folder, runs, flags, first)
        monkeypatch.undo()
        assert checkpoint.exists()
        assert ("going on from epoch 1" in stage("train_explore", folder, runs, flags, then)) == goes_on
        assert not checkpoint.exists()


def test_the_refresh_of_a_connection_keeps_stage_2s_weights(runs, folder, tmp_path, monkeypatch):
    told, train = [], train_explore.train_connection
    monkeypatch.setattr(train_explore, "train_connection", lambda *a, **k: told.append(k) or train(*a, **k))
    shutil.copytree(runs, tmp_path / "again")
    stage("train_connect", folder, tmp_path / "again", "--beta 0.03 --w-ce 0.2 --force")
    stage("train_explore", folder, tmp_path / "again", "--method cox --epochs 2 --refreshes 2 --force")
    assert told and {(k["beta"], k["w_ce"]) for k in told} == {(0.03, 0.2)}


def test_a_checkpoint_of_other_flags_is_not_gone_on_from(runs, folder, monkeypatch):
    save = files.save

    def save_and_stop(target, *args, **kwargs):
        save(target, *args, **kwargs)
        raise Stop

    monkeypatch.setattr(files, "save", save_and_stop)
    (run_dir(runs) / "erm.pt").unlink(missing_ok=True)
    with pytest.raises(Stop):
        stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 4")
    monkeypatch.undo()
    assert (run_dir(runs) / "erm.checkpoint.pt").exists()
    assert "going on" not in stage("train_explore", folder, runs, "--method erm --epochs 4 --refreshes 4 --lr 0.01")


def test_selftrain_takes_as_many_anchors_as_cox_at_the_start(runs, folder):
    def shares(method):
        out = stage("train_explore", folder, runs, f"--method {method} --refreshes 1 --epochs 1 --force")
        return [line.split(":")[1].split("%")[0] for line in out.splitlines() if "are anchors" in line]

    assert shares("cox") == shares("selftrain") != []


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


@pytest.mark.parametrize("name", ["train_connect", "train_explore"])
def test_some_of_the_banks_are_not_taken_for_all(runs, folder, name):
    """Stage 1 stopped between two banks."""
    lost = files.bank_dir(runs, folder, "bind", "imu") / "rgb.pt"
    lost.unlink()
    refused(name, folder, runs, "--force", parts=("rgb", "run first", "extract_features.py"))
    stage("extract_features", folder, runs)
    assert lost.exists()
    stage(name, folder, runs, "--force")


def test_the_im_posterior_on_the_pairs_teaches_the_warm_up(runs, folder):
    """--w-kl: at the end of the warm-up the head is nearer to the mean posterior of the IM heads on the pairs."""
    divergence = {}
    oom = files.load_inputs(runs, folder, "imu")[0]
    ims = files.load_banks(runs, folder, "bind", "imu")[0]
    for w in (0, 5):
        stage("train_connect", folder, runs, f"--w-kl {w} --warmup-epochs 15 --force")
        state = files.load(run_dir(runs) / "connect.pt")
        row = {i: r for r, i in enumerate(oom["ids"])}
        learner = model.Learner(**state["arch"])
        learner.load_state_dict(state["learner"])
        x, lengths = train_connect.batch(oom, torch.tensor([row[i] for i in state["labelled"]]), "cpu")
        teacher = 0
        for m, (has, paired) in state["pairs"].items():
            assert len(has) == len(state["labelled"])
            head = model.Head(8, 3)
            head.load_state_dict(state["im_heads"][m])
            at = {i: r for r, i in enumerate(ims[m]["ids"])}
            z = ims[m]["features"][torch.tensor([at[state["mapped_ids"][m][p]] for p in paired.tolist()])]
            teacher = teacher + head(z).softmax(-1) / len(state["pairs"])
        with torch.no_grad():
            logits = learner.eval()(x, lengths) @ state["head"]["weight"].T + state["head"]["bias"]
            divergence[w] = torch.nn.functional.kl_div(logits.log_softmax(-1), teacher, reduction="batchmean").item()
    assert divergence[5] < divergence[0]


@pytest.mark.parametrize("flags, parts", [("--init spectral --name-with 1", ("--name-with", "has none")),
                                          ("--init spectral", ("pen", "--name-with 1"))])
def test_names_that_nothing_can_give_are_refused(tmp_path, flags, parts):
    """No reading has a label; no picture and no sentence shows a pen with one."""
    own = write_folder(tmp_path / "toy", separate=("imu",))
    lose = lambda r: r[1] == "train" and (r[4] if "--name-with" in flags else r[2] == "pen" and not r[4])
    write_manifest(own, [[*r[:2], "" if lose(r) else r[2], *r[3:]] for r in read_manifest(own)])
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    said = refused("train_connect", own, tmp_path / "runs", "--setting unsup", flags, parts=parts)
    assert "cup" not in said and "key" not in said


def test_a_class_without_a_label_can_get_no_name_and_this_is_said(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))
    write_manifest(own, [[*r[:2], "" if r[1] == "train" and r[4] and r[2] == "pen" else r[2], *r[3:]] for r in read_manifest(own)])
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    out = stage("train_connect", own, tmp_path / "runs", "--setting unsup --init spectral --name-with 1 --per-class 3")
    assert "no item of pen has a label" in out and "these play no part: --per-class" in out


def test_a_class_that_only_the_new_sensor_shows_is_kept(tmp_path):
    """Pens have labels among the readings alone: the heads are not held to their share of 0 on the IM side."""
    own = write_folder(tmp_path / "toy", separate=("imu",))
    write_manifest(own, [[*r[:2], "" if r[1] == "train" and not r[4] and r[2] == "pen" else r[2], *r[3:]] for r in read_manifest(own)])
    runs = tmp_path / "runs"
    stage("extract_features", own, runs, "--bind-epochs 1")
    stage("train_connect", own, runs, "--pair-by-class")
    stage("train_explore", own, runs, "--method selftrain --rounds 3 --epochs 6 --refreshes 2")
    saved = files.load(run_dir(runs) / "selftrain.pt")
    assert (saved["after"]["prediction"] == CLASSES.index("pen")).any()


# ---------------------------------------------------------------------------------------------------- ablations


def test_without_connection_maps_by_an_untrained_connection(runs, folder):
    before = files.load(run_dir(runs) / "connect.pt")
    stage("train_explore", folder, runs, "--method cox --without connection --tag alone")
    alone = files.load(run_dir(runs) / "cox-alone.pt")
    assert differ(before["connections"], alone["connections"])
    stage("train_connect", folder, runs, "--without connection --force")
    after = files.load(run_dir(runs) / "connect.pt")
    assert_same(before["learner"], after["learner"])
    assert differ(before["connections"], after["connections"])
    assert len({c["mmd"] for c in after["curve"] if c["modality"] == "rgb"}) == 1


def test_without_warmup_leaves_the_learner_at_its_initial_weights(runs, folder):
    refused("train_explore", folder, runs, "--without warmup --tag cold", parts=("train_connect.py", "--without warmup"))
    stage("train_connect", folder, runs, "--without warmup --force")
    connect = files.load(run_dir(runs) / "connect.pt")
    assert_same(connect["initial"]["learner"], connect["learner"])
    assert_same(connect["initial"]["head"], connect["head"])


def test_without_emergent_has_no_emergent_pairs_and_without_exploration_is_labels_alone(runs, folder):
    out = stage("train_explore", folder, runs, "--method cox --without emergent --force")
    assert "0 emergent pairs" in out
    stage("train_explore", folder, runs, "--method cox --without exploration,emergent --force")
    cox = files.load(run_dir(runs) / "cox.pt")
    assert cox["meta"]["args"]["without"] == ["emergent", "exploration"]
    assert set(cox["history"][-1]) & {"agree", "disagree"} == set()


@pytest.mark.parametrize("flags", ["--without connexion", "--name-with 1"])
def test_unknown_parts_and_names_without_clusters_are_refused(runs, folder, flags, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        stage("train_connect", folder, runs, flags)
    assert "connexion" in capsys.readouterr().err or "--init spectral" in str(error.value)


@pytest.mark.parametrize("flags", ["--init spectral --name-with 1", "--init spectral"])
def test_clusters_start_the_unsupervised_case(folder, runs, flags):
    out = stage("train_connect", folder, runs, "--setting unsup --force", flags)
    assert ("names spread from" in out) == ("--name-with" in flags) and ("correlation" in out) == ("--name-with" not in flags)
    connect = files.load(run_dir(runs, "unsup") / "connect.pt")
    assert connect["labelled"] == [] and connect["naming"]["by"] == ("items" if "--name-with" in flags else "geometry")
    if "--name-with" in flags:
        assert len(connect["naming"]["items"]) == 3
    stage("train_explore", folder, runs, "--setting unsup --method cox --force")


def test_clusters_are_named_by_banks_where_no_inputs_were_written(folder, runs, tmp_path):
    """A pretrained perceptor's modalities have a bank alone."""
    shutil.copytree(runs, tmp_path / "again")
    for m in ("rgb", "language"):
        files.inputs_path(tmp_path / "again", folder, m).unlink()
    out = stage("train_connect", folder, tmp_path / "again", "--setting unsup --init spectral --force")
    assert "named by the geometry of 2 known modalities" in out


def test_fewer_readings_than_classes_have_no_clusters():
    with pytest.raises(UserError, match="3 clusters, one for a class, and there are only 2 training items"):
        name_by_clusters({}, torch.arange(2), {}, 3, 0)


# ---------------------------------------------------------------------------------------- soft correspondences


def write_shared_folder(path, n=120, seed=0):
    """Two sensors of the same objects: `touch` is a linear image of `gauge`, both (1, 12); three classes that overlap."""
    rng = np.random.default_rng(seed)
    mix, means = rng.standard_normal((12, 12)), 0.7 * rng.standard_normal((3, 12))
    rows = []
    for split, count in (("train", n), ("test", 60)):
        for k in range(count):
            inner = means[k % 3] + rng.standard_normal(12)
            for m, x in (("gauge", inner), ("touch", inner @ mix / 3 + 0.1 * rng.standard_normal(12))):
                (path / m).mkdir(parents=True, exist_ok=True)
                np.save(path / m / f"{split}{k}.npy", x[None].astype(np.float32))
            rows.append([f"{split}{k}", split, CLASSES[k % 3], f"gauge/{split}{k}.npy", f"touch/{split}{k}.npy"])
    write_manifest(path, rows, ("id", "split", "label", "gauge", "touch"))
    return path


def test_correspondences_are_checked_on_held_out_pairs_and_left_out_on_demand(tmp_path):
    own, runs = write_shared_folder(tmp_path / "shared"), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.3", oom="touch")
    said = stage("train_explore", own, runs, oom="touch")
    trust = files.load(run_dir(runs, data="shared", oom="touch") / "cox.pt")["trust"]
    assert "held-out pairs: correspondences name" in said and f"{trust['gain']:+.3f}" in said
    assert trust["trusted"] == (trust["gain"] > -2 * trust["error"]) and 0 < trust["right"] <= 1
    for flags in ("--without emergent", "--without connection", "--rounds 0"):
        assert "held-out" not in stage("train_explore", own, runs, f"{flags} --tag {flags.split()[-1]}", oom="touch")
    assert "held-out" not in stage("train_explore", own, runs, "--method selftrain", oom="touch")
    stage("train_explore", own, runs, "--w-im 0 --tag plain", oom="touch")
    told = {m: files.load(run_dir(runs, data="shared", oom="touch") / f"{m}.pt")["history"] for m in
            ("cox", "cox-plain", "cox-emergent", "selftrain")}
    assert all("im" in epoch for epoch in told["cox"]) == trust["trusted"] and told["cox"][-1] != told["cox-plain"][-1]
    assert not any("im" in epoch for m in ("cox-plain", "cox-emergent", "selftrain") for epoch in told[m])
    evaluate.main(["--data", str(own), "--runs", str(runs), "--table", "--out", str(tmp_path / "report"), "--device", "cpu"])
    record = json.loads((run_dir(runs, data="shared", oom="touch") / "cox.json").read_text())
    assert record["metrics"]["trust"] == trust
    assert "What the known modalities tell" in (tmp_path / "report" / "table.md").read_text()


def test_a_class_that_the_sensor_never_recorded_is_not_forced_on_its_readings(tmp_path):
    """`gauge` shows three classes, `touch` two of them; --shares free makes no such statement."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    rows = read_manifest(own)
    write_manifest(own, [[*r[:4], "" if r[2] == CLASSES[2] else r[4]] for r in rows], ("id", "split", "label", "gauge", "touch"))
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.3", oom="touch")
    for method in ("cox", "selftrain"):
        out = stage("train_explore", own, runs, f"--method {method} --epochs 8 --refreshes 2", oom="touch")
        assert f"no labelled touch item shows {CLASSES[2]}: no reading will be taken for one" in out
        saved = files.load(run_dir(runs, data="shared", oom="touch") / f"{method}.pt")
        assert (saved["after"]["prediction"] == 2).float().mean() < 0.02
        free = stage("train_explore", own, runs, f"--method {method} --epochs 1 --refreshes 1 --shares free --tag free", oom="touch")
        assert "no reading will be" not in free


def test_too_few_pairs_for_correspondences_are_said(tmp_path):
    own, runs = write_shared_folder(tmp_path / "shared"), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--per-class 2", oom="touch")
    assert "6 labelled items have a pair in all of gauge, 8 are needed" in stage("train_explore", own, runs, oom="touch")


def test_class_frequencies_by_hand():
    im, none = torch.tensor([0] * 6 + [1] * 3 + [2]), torch.zeros(4, dtype=torch.bool)
    told = lambda y: class_frequencies(im, torch.tensor(y, dtype=torch.long), 4)
    for y, expected, unseen in (([0, 1, 2], [0.6, 0.3, 0.1, 0], []), ([], [0.6, 0.3, 0.1, 0], []),
                                ([0, 1], [2 / 3, 1 / 3, 0, 0], [2]), ([0, 1, 2, 3], [0.48, 0.24, 0.08, 0.2], []),
                                ([0, 3], [0.6 / 1.1, 0, 0, 0.5 / 1.1], [1, 2])):
        shares, absent = told(y)
        torch.testing.assert_close(shares, torch.tensor(expected))
        assert torch.equal(absent, none.index_fill(0, torch.tensor(unseen, dtype=torch.long), True))


def test_im_features_are_predicted_better_with_every_epoch(tmp_path):
    """What gauge shows is in touch as well: more epochs, and the learner's features tell it better."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.4", oom="touch")
    stage("train_explore", own, runs, "--epochs 12 --tag long", oom="touch")
    saved = files.load(run_dir(runs, data="shared", oom="touch") / "cox-long.pt")
    assert saved["trust"]["trusted"]
    im = [epoch["im"] for epoch in saved["history"]]
    assert sum(im[-3:]) < 0.9 * sum(im[:3])


def test_partners_of_other_objects_are_not_trusted(tmp_path):
    """The manifest pairs every `touch` with the `gauge` of an object of another class: COX says so and goes on without."""
    own, runs = write_shared_folder(tmp_path / "shared", n=240), tmp_path / "runs"
    rows = read_manifest(own)
    gauges = [r[3] for r in rows]
    for k, r in enumerate(rows):
        if r[1] == "train":
            r[3] = gauges[(7 * k + 1) % 240]
    write_manifest(own, rows, ("id", "split", "label", "gauge", "touch"))
    stage("extract_features", own, runs, oom="touch")
    stage("train_connect", own, runs, "--labels 0.4", oom="touch")
    said = stage("train_explore", own, runs, oom="touch")
    assert "held-out pairs" in said and files.load(run_dir(runs, data="shared", oom="touch") / "cox.pt")["trust"]["gain"] < 0.1


def test_pairs_drawn_within_a_class_give_no_correspondences(tmp_path):
    own, runs = write_folder(tmp_path / "toy", separate=("imu",)), tmp_path / "runs"
    stage("extract_features", own, runs)
    stage("train_connect", own, runs, "--pair-by-class")
    assert "held-out" not in stage("train_explore", own, runs) and files.load(run_dir(runs) / "cox.pt")["trust"] == {}
