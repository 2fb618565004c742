"""--groups: an object, person or place is on one side of every split inside the training."""

import csv
import importlib

import pytest
import torch
from worlds import quickly, refused, run_dir, stage, write_folder

from cox_oom import data, files
from cox_oom.labels import groups_of, hold_out, parts_of


def test_no_group_is_in_two_parts_and_classes_are_spread():
    g = torch.Generator().manual_seed(0)
    groups = torch.arange(120) // 5
    y = (groups % 4).repeat_interleave(1)
    order = torch.randperm(120, generator=g)
    y, groups = y[order], groups[order]
    part = parts_of(y, 3, groups)
    assert all(len(part[groups == k].unique()) == 1 for k in range(24))
    counts = torch.stack([torch.bincount(y[part == p], minlength=4) for p in range(3)])
    assert counts.tolist() == [[10] * 4] * 3  # 6 groups of 5 of each class, two in each part
    alone = parts_of(y, 3)
    assert torch.stack([torch.bincount(y[alone == p], minlength=4) for p in range(3)]).tolist() == [[10] * 4] * 3


def test_a_group_of_several_classes_is_held_out_whole_and_none_takes_a_class_away():
    y = torch.tensor([0, 0, 1, 1, 0, 1, 2, 2])
    groups = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])  # class 2 is of one object alone
    assert hold_out(y, 0.3, groups=groups).nonzero().squeeze(1).tolist() == [0, 1, 2, 3]
    parts = [hold_out(y, 0, f"{k}/2", groups) for k in range(2)]
    assert not any(p[6:].any() for p in parts) and (parts[0] | parts[1])[:6].all() and not (parts[0] & parts[1]).any()
    twelve = torch.arange(12) // 2
    assert hold_out(torch.zeros(12, dtype=torch.long), 0.5, groups=twelve).sum() == 6


def test_a_row_without_a_group_is_one_of_its_own():
    oom = {"groups": ["a", "", "", "a", "b"]}
    assert groups_of(oom, torch.arange(5)).tolist() == [0, 1, 2, 0, 3]
    assert groups_of({}, torch.arange(5)) is None


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The small world with a column `object`: four recordings in a row of the table's turn are of one object."""
    path = write_folder(tmp_path_factory.mktemp("groups") / "toy")
    with open(path / "manifest.csv", newline="") as f:
        rows = list(csv.reader(f))
    seen = {}
    for row in rows[1:]:
        n = seen[row[1], row[2]] = seen.get((row[1], row[2]), -1) + 1
        row.append(f"{row[1]} {row[2]} {n // 4}")
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([[*rows[0], "object"], *rows[1:]])
    return path


def four_stages(folder, runs):
    stage("extract_features", folder, runs, "--groups object")
    stage("train_connect", folder, runs, "--labels 0.8 --holdout 0.3")
    stage("train_explore", folder, runs, "--method cox")
    importlib.import_module("evaluate").main(["--data", str(folder), "--runs", str(runs)])


def test_every_split_inside_the_training_keeps_groups_together(folder, tmp_path):
    runs = tmp_path / "runs"
    with quickly():
        four_stages(folder, runs)
    oom = files.load(runs / "toy" / "inputs" / "imu.pt")
    assert len(oom["groups"]) == len(oom["ids"]) and set(data.read(str(folder), groups="object").modalities) == {
        "rgb",
        "imu",
        "language",
    }
    connect = files.load(run_dir(runs) / "connect.pt")
    of = dict(zip(oom["ids"], oom["groups"]))
    held, kept = ({of[i] for i in connect[name]} for name in ("held", "labelled"))
    assert held and kept and not held & kept
    card = (run_dir(runs) / "cox.card.md").read_text()
    assert "kept each object on one side" in card and "0% are of one that training has seen" in card


def test_a_column_that_is_not_there_is_one_line(folder, tmp_path):
    refused("extract_features", folder, tmp_path, "--groups thing", parts=("--groups thing", "rgb", "object"))
    with pytest.raises(files.UserError, match="--groups"):
        data.read("synth", groups="object")
