"""cox_oom/classical.py: views, the choice of strength, and predictions without scikit-learn."""

import csv

import echo
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from worlds import stage

import cox_oom
from cox_oom import classical, files, shapes
from cox_oom.data.inputs import learner_inputs
from cox_oom.seed import split_rows

NAMES = [f"c{k}" for k in range(8)]


def echoes(n, seed, classes=8):
    """An inputs file of echoes, the labels in turn; every row is a training row."""
    rng = np.random.default_rng(seed)
    y = torch.arange(n) % classes
    made = learner_inputs("series", [echo.echo(rng, c) for c in y.tolist()], [True] * n)
    return {**made, "labels": y, "class_names": NAMES}


def right(state, file, rows):
    return (classical.logits(state, file, rows).argmax(1) == file["labels"][rows]).double().mean().item()


def test_frequency_bands_tell_the_echoes_and_samples_do_not():
    file = echoes(240, 0)
    labelled, others = torch.arange(96), torch.arange(96, 240)
    state = classical.fit(file, torch.arange(240), labelled, file["labels"][labelled], 0)
    assert "spectrum" in state["views"] and right(state, file, others) > 0.9
    steps = state["steps"]
    plain = [classical.view("plain", file, r, steps).numpy() for r in (labelled, others)]
    by_samples = LogisticRegression(max_iter=500).fit(plain[0], file["labels"][labelled])
    assert by_samples.score(plain[1], file["labels"][others]) < 0.6


def test_logits_are_those_of_scikit_learn():
    """Standardised views, blocks of equal weight, and the chosen strength: fitted by scikit-learn in all dimensions."""
    file = echoes(120, 1)
    every = torch.arange(120)
    labelled = every[:64]
    state = classical.fit(file, every, labelled, file["labels"][labelled], 0)
    x = torch.cat([classical.view(n, file, every, state["steps"]) for n in state["views"]], 1)
    x = ((x - state["mean"]) / state["scale"]).double().numpy()
    model = LogisticRegression(C=state["strength"], max_iter=5000, tol=1e-8).fit(x[:64], file["labels"][labelled])
    expected = model.predict_proba(x)
    assert np.abs(classical.logits(state, file, every).softmax(1).numpy() - expected).max() < 0.02


def test_views_do_not_depend_on_padding():
    """The same recording beside longer ones, as another folder may have it, has the same views."""
    wave = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    file = {"kind": "series", "mean": torch.zeros(2, 1), "std": torch.ones(2, 1)}
    short = {**file, "x": torch.stack([wave, wave]), "lengths": torch.tensor([40, 40])}
    padded = {**file, "x": torch.nn.functional.pad(short["x"], (0, 25), value=9.0), "lengths": short["lengths"]}
    for name in ("plain", "spectrum"):
        one, two = (classical.view(name, f, torch.arange(2), 64) for f in (short, padded))
        assert torch.allclose(one, two, atol=1e-5), name


@pytest.mark.parametrize(
    "kind, raws, views",
    [
        ("image", lambda r, c: r.random((3, 20, 20)) * 100 + 80 * (np.arange(3) == c)[:, None, None], 3),
        ("video", lambda r, c: r.random((4, 3, 20, 20)) * 100 + 80 * (np.arange(3) == c)[:, None, None], 3),
        ("text", lambda r, c: f"{('a cup', 'the key', 'some pen')[c]} number {r.integers(99)}", 1),
    ],
)
def test_every_kind_has_views_that_tell_easy_classes(kind, raws, views):
    rng = np.random.default_rng(0)
    items = [raws(rng, k % 3) for k in range(60)]
    items = items if kind == "text" else [i.astype(np.uint8) for i in items]
    made = learner_inputs(kind, items, [True] * 60, image_size=16, frames=4)
    file = {**made, "labels": torch.arange(60) % 3, "class_names": NAMES[:3]}
    state = classical.fit(file, torch.arange(60), torch.arange(30), file["labels"][:30], 0)
    assert right(state, file, torch.arange(30, 60)) > 0.9
    assert len(classical.VIEWS.get(kind, classical.CHOICES)) == views


@pytest.mark.parametrize("labelled", [[0], [0, 8, 16], [0, 1], list(range(8)), [0, 8, 1, 9, 2]])
def test_few_labels(labelled):
    """One class, one item of each, a class with one item: finite, and a class without a label is never named."""
    file = echoes(40, 2)
    rows = torch.tensor(labelled)
    state = classical.fit(file, torch.arange(40), rows, file["labels"][rows], 0)
    out = classical.logits(state, file, torch.arange(40))
    assert out.isfinite().all() and set(out.argmax(1).tolist()) <= set(file["labels"][rows].tolist())


def test_no_rows_have_no_logits():
    """A folder without validation rows: spectra of nothing are an error of the FFT library."""
    file = {**echoes(40, 4), "lengths": None}
    state = classical.fit(file, torch.arange(40), torch.arange(24), file["labels"][:24], 0)
    assert classical.logits({**state, "views": ["spectrum"]}, file, torch.arange(0)).shape == (0, 8)


@pytest.mark.parametrize("name", ["mean", "scale", "weight", "bias", "views", "steps"])
def test_a_state_of_other_shape_is_told(name):
    file = echoes(40, 4)
    state = classical.fit(file, torch.arange(40), torch.arange(24), file["labels"][:24], 0)
    assert all(holds for holds, _ in shapes.of_classical(state, 8)) and not [*shapes.of_classical(None, 8)]
    bad = {**state, name: {"views": ["pixels"], "steps": 0}.get(name)}
    bad[name] = state[name][:-1] if bad[name] is None else bad[name]
    assert any(not holds for holds, _ in shapes.of_classical(bad, 8))


def test_two_classes_of_eight():
    """scikit-learn keeps one row of weights for two classes; the file keeps one for each."""
    file = echoes(80, 3)
    rows = torch.arange(80)[(file["labels"] == 2) | (file["labels"] == 5)]
    state = classical.fit(file, torch.arange(80), rows[:10], file["labels"][rows[:10]], 0)
    assert right(state, file, rows[10:]) > 0.9


@pytest.mark.usefixtures("quick")
def test_stages_train_and_judge_raw(runs, folder):
    """`raw` beside the others: stage 3 writes it, stage 4's record has the accuracy of the logits in the file."""
    import json

    import evaluate

    said = stage("train_explore", folder, runs, "--method raw")
    assert "views" in said and "cross-validation" in said or "too few labels" in said
    evaluate.main(["--data", str(folder), "--runs", str(runs), "--method", "raw", "--device", "cpu"])
    (path,) = runs.rglob("raw.pt")
    run, inputs = files.load(path), files.load(next(runs.rglob("inputs/imu.pt")))
    record, test = json.loads(path.with_suffix(".json").read_text()), split_rows(inputs, ("test",))
    assert record["metrics"]["accuracy"] == pytest.approx(right(run["classical"], inputs, test))
    named, _ = cox_oom.load(path)([folder / "imu" / f"{inputs['ids'][i]}.npy" for i in test.tolist()])
    guess = classical.logits(run["classical"], inputs, test).argmax(1)
    assert named == [inputs["class_names"][c] for c in guess.tolist()]  # new recordings take the same way
    assert record["metrics"]["agreement"] is None and record["history"] == []
    assert record["correct"].count("1") / len(test) == pytest.approx(record["metrics"]["accuracy"])


def test_the_folder_of_echoes(tmp_path):
    """400 rows, 101 labels in train, every test row labelled, lengths that differ, cells that are missing."""
    with open(echo.write(tmp_path / "e") / "manifest.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    train, test = ([r for r in rows if r["split"] == s] for s in ("train", "test"))
    assert (len(rows), sum(bool(r["label"]) for r in train)) == (400, 101) and all(r["label"] for r in test)
    assert {r["label"] for r in test} == set(echo.CLASSES) and any(not r["rgb"] for r in rows)
    assert len({np.load(tmp_path / "e" / r["sonar"]).shape for r in rows[:20]}) > 1
