"""experiments/trust.py: its AUROC, its folder without some classes, its table."""

import csv

import pytest
import torch
import trust
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from worlds import write_folder

from cox_oom import data

scores = st.lists(st.integers(-3, 3), min_size=1, max_size=20)


@given(scores, scores)
def test_auroc_is_scikit_learns(own, other):
    found = trust.auroc(torch.tensor(own, dtype=torch.float), torch.tensor(other, dtype=torch.float))
    assert found == pytest.approx(roc_auc_score([0] * len(own) + [1] * len(other), own + other), abs=1e-9)


def test_classes_left_out_are_in_no_training_row_and_unlabelled_in_the_test_rows(tmp_path, capsys):
    folder = write_folder(tmp_path / "toy", n=(12, 3, 6))
    with open(folder / "manifest.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    gone = sorted({r["label"] for r in rows})[0]
    trust.main(["--data", str(folder), "--leave-out", gone, "--write", str(tmp_path / "open")])
    before, after = data.read(str(folder)), data.read(str(tmp_path / "open"))
    of_class = {r["id"]: r["label"] for r in rows}
    kept = [i for i, r in zip((r["id"] for r in rows), rows) if r["split"] == "test" or r["label"] != gone]
    assert list(after.ids) == kept and gone in before.class_names and gone not in after.class_names
    for i, split, label in zip(after.ids, after.split, after.labels):
        name = after.class_names[label] if label >= 0 else ""
        assert name == ("" if of_class[i] == gone else of_class[i]) and (name or split == "test")


def test_the_table_has_a_row_for_each_method_and_says_where_a_figure_is_missing():
    runs = [dict(zip(trust.RUN, ("toy", "imu", "erm", str(k)))) | {"accuracy": 0.5 + 0.1 * k} for k in range(2)]
    calibration, novelty = trust.tables([*runs, {**runs[0], "method": "cox", "noise": 1.0}])
    assert calibration["rows"] == [["toy", "imu", "erm", "55.0 ± 7.1", *"––––"], ["toy", "imu", "cox", "50.0", *"––––"]]
    assert novelty["rows"][1][3:] == ["–", "100.0", "–", "–", "–"] and "seeds 0, 1" in novelty["notes"][0]
