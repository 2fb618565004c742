"""Temperature, reliability, cross-fitting, novelty and the card, against references."""

import json
import math

import numpy as np
import pytest
import torch
import worlds
from scipy.optimize import minimize_scalar
from scipy.spatial.distance import mahalanobis
from torch.utils._python_dispatch import TorchDispatchMode

from cox_oom import again, confidence, files
from cox_oom.files import UserError
from cox_oom.labels import fold, hold_out
from cox_oom.report.card import card, wilson


def drawn(n=4000, c=5, scale=3.0, seed=0):
    """Logits (n, c) that are `scale` times too large, and labels drawn from what they should have been."""
    g = torch.Generator().manual_seed(seed)
    true = 2 * torch.randn(n, c, generator=g)
    return scale * true, torch.multinomial(true.softmax(1), 1, generator=g)[:, 0]


def test_the_temperature_is_the_one_that_made_the_logits_too_large():
    logits, y = drawn()
    found = confidence.temperature(logits, y, "test")
    nll = lambda t: torch.nn.functional.cross_entropy(logits.double() / t, y).item()
    best = minimize_scalar(nll, bounds=(0.1, 30), method="bounded").x
    assert found["temperature"] == pytest.approx(best, rel=0.03) and best == pytest.approx(3, rel=0.1)
    assert found["low"] <= found["temperature"] <= found["high"] and found["n"] == 4000


def test_few_items_give_a_wide_interval_and_no_certainty():
    logits, y = drawn(n=40)
    few, many = confidence.temperature(logits, y, ""), confidence.temperature(*drawn(), "")
    assert few["high"] / few["low"] > 1.5 * many["high"] / many["low"]
    right = torch.eye(3)[torch.arange(12) % 3]
    sure = confidence.temperature(4 * right, torch.arange(12) % 3, "")["temperature"]
    assert (4 * right / sure).softmax(1).max() < 0.99  # 12 of 12 right do not prove more


def test_no_held_out_item_leaves_the_posteriors_alone():
    logits, _ = drawn(n=10)
    found = confidence.temperature(logits[:0], torch.zeros(0, dtype=torch.long), "")
    assert found["source"] == "none" and found["n"] == 0
    torch.testing.assert_close(confidence.posteriors({"calibration": found}, logits), logits.softmax(1))


def test_the_expected_calibration_error_is_what_its_definition_says():
    logits, y = drawn(n=500)
    p = logits.softmax(1).double()
    error, bins = confidence.reliability(p, y)
    sure, right = p.max(1).values.numpy(), (p.argmax(1) == y).numpy()
    edges, expected = np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges, edges[1:]):
        of_bin = (sure > low) & (sure <= high)
        if of_bin.any():
            expected += of_bin.mean() * abs(right[of_bin].mean() - sure[of_bin].mean())
    assert error == pytest.approx(expected, abs=1e-9) and sum(n for *_, n in bins) == 500


def test_novelty_is_the_mahalanobis_distance_over_that_of_95_percent():
    g = torch.Generator().manual_seed(0)
    guess = torch.arange(600) % 3
    z = torch.randn(600, 4, generator=g) * torch.tensor([1.0, 2, 3, 4]) + 9 * guess[:, None]
    run = {"novelty": confidence.familiar(z, guess)}
    assert (confidence.novelty(run, z) > 1).double().mean().item() == pytest.approx(0.05, abs=0.005)
    means = [z[guess == k].mean(0).numpy() for k in range(3)]
    within = np.mean([np.cov(z[guess == k].numpy().T, bias=True) for k in range(3)], 0)
    within += 0.01 * np.diag(within).mean() * np.eye(4)
    for x in torch.randn(20, 4, generator=g) * 30:
        d = min(mahalanobis(x.numpy(), m, np.linalg.inv(within)) for m in means)
        assert confidence.distance(run["novelty"], x[None]).item() == pytest.approx(d, rel=1e-4)


def test_a_paper_sized_validation_set_needs_little_memory():
    """300 classes, 192 features, 2,000 items: no tensor of items x classes x features, nor x temperatures."""
    g, largest = torch.Generator().manual_seed(0), []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            largest.append(out.numel() if isinstance(out, torch.Tensor) else 0)
            return out

    n, c, d = 2000, 300, 192
    state = {"means": torch.randn(c, d, generator=g), "precision": torch.eye(d), "distance": 1.0, "trained": 1.0}
    z, logits, y = torch.randn(n, d, generator=g), torch.randn(n, c, generator=g), torch.randint(c, (n,), generator=g)
    with Sizes():
        far = confidence.distance(state, z)
        confidence.temperature(logits, y, "")
    assert max(largest) < n * c * d / 4
    torch.testing.assert_close(far, torch.cdist(z.double(), state["means"].double()).amin(1))


@pytest.mark.parametrize("parts", [2, 3, 5])
def test_every_labelled_item_is_held_out_once_but_one_of_its_own_class(parts):
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 0, 0, 1, 0])
    times = sum(hold_out(labels, 0, f"{k}/{parts}").int() for k in range(parts))
    assert times.tolist() == (labels != 2).int().tolist()
    for k in range(parts):
        assert set(labels[~hold_out(labels, 0, f"{k}/{parts}")].tolist()) == {0, 1, 2}


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/3", "0/1", "a/b", "1/3/4"])
def test_no_other_fold_is_taken(text):
    with pytest.raises(Exception, match="give K/N"):
        fold(text)


@pytest.fixture(scope="module")
def cross(tmp_path_factory):
    """(folder, runs): no validation rows; erm with two cross-fits."""
    folder = worlds.write_folder(tmp_path_factory.mktemp("cross") / "toy", n=(60, 0, 30))
    runs = tmp_path_factory.mktemp("runs")
    with worlds.quickly():
        for name in ("extract_features", "train_connect"):
            worlds.stage(name, folder, runs)
        worlds.stage("train_explore", folder, runs, "--method erm --folds 2")
    return folder, runs


def test_cross_fits_give_every_labelled_item_once(cross):
    folder, runs = cross
    run, connect = (files.load(worlds.run_dir(runs) / f"{name}.pt") for name in ("erm", "connect"))
    assert run["calibration"]["n"] == len(connect["labelled"]) and run["calibration"]["source"] == "2 cross-fits"
    held = [
        files.load(worlds.run_dir(runs) / "folds" / f"{k}of2" / worlds.run_dir("", data="toy") / "connect.pt")["held"]
        for k in (0, 1)
    ]
    assert sorted(held[0] + held[1]) == sorted(connect["labelled"]) and not set(held[0]) & set(held[1])


def test_folds_change_nothing_but_the_calibration(cross):
    folder, runs = cross
    with worlds.quickly():
        worlds.stage("train_explore", folder, runs, "--method erm --tag alone")
    a, b = (files.load(worlds.run_dir(runs) / f"{name}.pt") for name in ("erm", "erm-alone"))
    rest = lambda run: files.digest({k: v for k, v in run.items() if k not in ("meta", "calibration")})
    assert rest(a) == rest(b)
    assert b["calibration"]["source"] == "none"


def test_no_more_folds_are_made_than_a_class_has_labelled_items(cross, tmp_path, monkeypatch):
    folder, _ = cross
    monkeypatch.setattr(again.subprocess, "run", worlds.in_process)
    with worlds.quickly():
        worlds.stage("extract_features", folder, tmp_path)
        worlds.stage("train_connect", folder, tmp_path, "--per-class 2")
        worlds.stage("train_explore", folder, tmp_path, "--method erm --folds 9")
        worlds.stage("train_connect", folder, tmp_path, "--per-class 1 --force")
        with pytest.raises(UserError, match="no class has two"):
            worlds.stage("train_explore", folder, tmp_path, "--method erm --folds 9 --tag one")
    calibration = files.load(worlds.run_dir(tmp_path) / "erm.pt")["calibration"]
    assert calibration["n"] == 6 and calibration["source"] == "2 cross-fits"
    assert sorted(p.name for p in (worlds.run_dir(tmp_path) / "folds").iterdir()) == ["0of2", "1of2"]


def test_a_fold_without_a_pair_is_one_line(tmp_path):
    folder = worlds.write_folder(tmp_path / "toy", n=(30, 0, 12))
    rows = worlds.read_manifest(folder)
    kept = [r[:5] + [r[5] if i < 3 or r[1] == "test" else ""] for i, r in enumerate(rows)]
    apart = [[f"x{r[0]}", r[1], r[2], "", "", r[5]] for r in rows]
    worlds.write_manifest(folder, kept + apart)
    with worlds.quickly():
        for name in ("extract_features", "train_connect"):
            worlds.stage(name, folder, tmp_path / "runs")
        with pytest.raises(UserError, match="--folds 3.*fewer --folds"):
            worlds.stage("train_explore", folder, tmp_path / "runs", "--method erm --folds 3")


def test_the_interval_is_wilsons():
    for right, n in ((0.9, 10), (0.5, 400), (1.0, 3), (0.0, 7)):
        low, high = wilson(right, n)
        for edge in (low, high):
            if 0 < edge < 1:
                assert abs(edge - right) == pytest.approx(1.96 * math.sqrt(edge * (1 - edge) / n), rel=1e-6)
        assert low <= right <= high
    assert wilson(0, 0) == (0, 1)


def test_the_card_holds_the_records_figures(cross):
    import evaluate

    folder, runs = cross
    evaluate.main(["--data", str(folder), "--runs", str(runs)])
    record = json.loads((worlds.run_dir(runs) / "erm.json").read_text())
    text = (worlds.run_dir(runs) / "erm.card.md").read_text()
    m = record["metrics"]
    assert text == card(record)
    for words in (
        f"{100 * m['accuracy']:.1f}%",
        f"{m['calibration']['temperature']:.2f}",
        "2 cross-fits",
        "not used by",
    ):
        assert words in text
    for name, right in m["per_class"].items():
        assert f"| {name} | 10 | {100 * right:.1f}%" in text
    assert m["calibration"]["abstain"]["0.5"][0] <= 1 and 0 <= m["calibration"]["ece"] <= 1
