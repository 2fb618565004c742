"""What nobody may learn from: test rows, and labels that were not drawn."""

import shutil
from pathlib import Path

import pytest
import torch
from worlds import UNSUP_REFUSED, assert_same, differ, run_dir, stage

from cox_oom import files, labels
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")


def change(path, **tensors_of):
    """Rewrite a file of stage 1 with other tensors: {name: function of the old one}; the meta stays."""
    file = files.load(path)
    meta = file.pop("meta")
    file = {k: tensors_of[k](v.clone()) if k in tensors_of else v for k, v in file.items()}
    own = {k: v for k, v in meta.items() if k not in ("digest", "argv", "torch", "time")}
    files.save(path, file, quiet=True, **own)


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
def trained(quick, folder, finished_runs, tmp_path_factory):
    runs = Path(shutil.copytree(finished_runs, tmp_path_factory.mktemp("trained") / "runs"))
    return train_all(folder, runs)


def test_no_stage_learns_from_test_rows(runs, folder, trained):
    """With other labels, inputs and features in every test row, all weights are the same bit for bit."""
    test = files.load(Place(runs, folder).inputs("imu"))["split"] == 2

    def wrong(y):
        y[test] = (y[test] + 1) % 3
        return y

    def noise(x):
        x[test] = torch.randn(x[test].shape, generator=torch.Generator().manual_seed(9))
        return x

    def directions(z):
        return torch.where(test[:, None], torch.nn.functional.normalize(noise(z), dim=1), z)

    change(Place(runs, folder).inputs("imu"), labels=wrong, x=noise)
    for m in ("rgb", "language"):
        change(Place(runs, folder, "bind", "imu").banks() / f"{m}.pt", labels=wrong, features=directions)
    for key, changed in train_all(folder, runs).items():
        assert_same(trained[key], changed, key)


def test_bind_learns_from_no_test_row(runs, folder):
    """The encoders in the banks, with other test rows in the inputs that stage 1 made."""
    folder_of_banks = Place(runs, folder, "bind", "imu").banks()
    before = {m: files.load(folder_of_banks / f"{m}.pt") for m in ("rgb", "language")}
    test = before["rgb"]["split"] == 2
    for m in before:
        change(
            Place(runs, folder).inputs(m),
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
    path = Place(runs, folder).inputs("imu")
    file = files.load(path)
    true = file["labels"].clone()
    drawn = set(files.load(run_dir(runs) / "connect.pt")["labelled"])
    hidden = torch.tensor([i not in drawn for i in file["ids"]]) & (file["split"] == 0)
    assert hidden.sum() == 48
    false = (true + 1) % 3 if lie == "another class" else torch.full_like(true, -1)
    change(path, labels=lambda y: torch.where(hidden, false, y))
    real, seen = labels.choose_labelled, []

    def draw(labels, *rest):
        seen.append(labels)
        return real(true[file["split"] == 0], *rest)

    monkeypatch.setattr(labels, "choose_labelled", draw)
    for key, changed in train_all(folder, runs).items():
        assert_same(trained[key], changed, key)
    assert len(seen) == 1 and (seen[0] != true[file["split"] == 0]).sum() == 48
