"""Few recordings: steps and not epochs, all labels of a folder of one's own, what is said when the folder grows."""

from argparse import Namespace
from types import SimpleNamespace

import echo
import pytest
import torch
from worlds import argv, read_manifest, refused, run_dir, stage, write_folder, write_manifest

import extract_features
import train_connect
from cox_oom import cli, files, labels, methods, run
from cox_oom.augment import model_of
from cox_oom.seed import split_rows

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize(
    "epochs, least, expected",
    [
        (None, None, -(-cli.MIN_STEPS // 2)),
        (None, 0, 50),
        (None, 300, 150),
        (None, 7, 50),
        (3, None, 3),
        (3, 300, 150),
        (200, 300, 200),
        (0, None, 0),
    ],
)
def test_epochs_of_small_data(epochs, least, expected, capsys):
    """280 training items, 20 of them held out, are two steps of 128: 50 epochs would be 100 steps."""
    oom = {"split": torch.tensor([0] * 280 + [2] * 120)}
    args = Namespace(method="erm", epochs=epochs, min_steps=least, batch=128)
    methods.settle_epochs(args, SimpleNamespace(oom=oom, connect={"held": ["x"] * 20}))
    assert vars(args) == {"method": "erm", "epochs": expected, "batch": 128}  # --min-steps shapes nothing beside
    assert ("for --min-steps" in capsys.readouterr().out) == (expected not in (epochs, 50))


def test_every_method_gets_the_same_steps(runs, folder):
    """60 items in batches of 16 are 4 steps an epoch."""
    for method in ("erm", "cox"):
        out = stage("train_explore", folder, runs, f"--method {method} --tag more --min-steps 21")
        file = files.load(run_dir(runs) / f"{method}-more.pt")
        assert "every method gets 6 epochs" in out and len(file["history"]) == 6
        assert file["meta"]["args"]["epochs"] == 6 and "min_steps" not in file["meta"]["args"]


def test_the_warm_up_has_steps_enough(tmp_path):
    """Left out, the epochs of the warm-up make 200 steps: 60 items are 4 steps an epoch."""
    folder, runs = write_folder(tmp_path / "toy"), tmp_path / "runs"
    stage("extract_features", folder, runs, "--workers 0")
    line = argv("train_connect", folder, runs)
    at = line.index("--warmup-epochs")
    train_connect.main([*line[:at], *line[at + 2 :]])
    made = files.load(run_dir(runs) / "connect.pt")
    assert made["meta"]["args"]["warmup_epochs"] == 50 and len(made["warmup_loss"]) == 50


def test_rising_is_told_by_validation_alone():
    history = lambda values: [{"epoch": e, "loss": 1.0, "val_accuracy": v} for e, v in enumerate(values)]
    assert run.rising(history([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])) is True
    assert run.rising(history([0.1, 0.5, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8])) is False
    assert run.rising([{"epoch": 1, "loss": 1.0}] * 9) is None and run.rising(history([0.1, 0.9])) is None


@pytest.mark.parametrize(
    "data, flags, unlabelled, share",
    [
        ("my_robot", {}, 5, 1.0),
        ("my_robot", {}, 0, 0.1),
        ("synth", {}, 5, 0.1),
        ("msrvtt", {}, 0, 0.1),
        ("my_robot", {"labels": 0.3}, 5, 0.3),
        ("synth", {"labels": 1.0}, 0, 1.0),
    ],
)
def test_a_folder_of_ones_own_keeps_its_labels(data, flags, unlabelled, share, capsys):
    y = torch.cat([torch.zeros(20), torch.full((unlabelled,), -1.0)]).long()
    args = Namespace(**{"labels": None, "data": data, "setting": "semi", "per_class": 0, **flags})
    labels.settle_share(args, {"labels": y}, torch.arange(len(y)))
    assert args.labels == share and ("labels: " in capsys.readouterr().out) == (not flags)


def test_a_folder_that_has_grown_is_told_in_numbers_and_stages_2_and_3_are_made_anew(tmp_path):
    folder, runs = write_folder(tmp_path / "toy"), tmp_path / "runs"
    rows = read_manifest(folder)
    hidden = [[*r[:2], "" if k % 2 and r[1] == "train" else r[2], *r[3:]] for k, r in enumerate(rows)]
    write_manifest(folder, hidden[:-2])
    stage("extract_features", folder, runs, "--workers 0")
    stage("train_connect", folder, runs, "--seed 0")
    write_manifest(folder, rows)
    assert "2 rows with imu more, 30 labels other" in stage("extract_features", folder, runs, "--workers 0")
    grown = "from 100 rows and 70 labels to 102 and 102; inputs and banks were kept"
    refused("train_connect", folder, runs, "--seed 0", parts=(grown, "train_connect.py --force", "--runs"))
    refused("train_explore", folder, runs, "--seed 0", parts=(grown, "train_connect.py --force", "--runs"))
    assert "of 60 with a label" in stage("train_connect", folder, runs, "--seed 0 --force")


def test_echoes_are_named_by_their_bands(tmp_path):
    """Stage 2 finds by held-out labels that frequency bands tell the class, and its learner looks at them."""
    folder, runs = echo.write(tmp_path / "echo"), tmp_path / "runs"
    where = f"--data {folder} --oom sonar --runs {runs}"
    extract_features.main(f"{where} --im rgb,language --image-size 16 --bind-epochs 1 --workers 0".split())
    train_connect.main(f"{where} --width 32 --depth 2 --warmup-epochs 60 --connect-steps 5".split())
    made, oom = (
        files.load(run_dir(runs, data="echo", oom="sonar") / "connect.pt"),
        files.load(runs / "echo/inputs/sonar.pt"),
    )
    assert made["arch"]["views"] == made["views"]["chosen"] and "spectrum" in made["arch"]["views"]
    test = split_rows(oom, ("test",))
    right = model_of(made, "cpu")(oom, test)[1].argmax(1) == oom["labels"][test]
    assert right.double().mean() > 0.8
