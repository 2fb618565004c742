"""Learning curves: which runs make one, the fitted law, what it foretells and how sure of it, table and figure."""

import numpy as np
import pytest
from records import record
from scipy.optimize import curve_fit

from cox_oom.report import learning, page, plots, tables

COUNTS = (20, 50, 100, 200)


def true(n, a=0.92, b=1.2, c=0.5):
    return a - b * n**-c


def runs(counts=COUNTS, seeds=3, sd=0.0, random=None, of=true, method="cox", **more):
    """Records of a method at several numbers of labels."""
    noise = lambda: sd * random.standard_normal() if random else 0.0
    return [
        record(float(np.clip(of(n) + noise(), 0, 1)), method=method, seed=s, labels=n / 4000, **more)
        | {"n_labelled": n}
        for n in counts
        for s in range(seeds)
    ]


def test_an_exact_law_is_found_and_goes_on():
    (curve,) = learning.curves(runs())
    assert curve["labels"] == list(COUNTS) and [len(a) for a in curve["accuracy"]] == [3] * 4
    found = learning.prediction(curve)
    assert found["accuracy"] == pytest.approx(true(400), abs=5e-4)
    assert found["gain"] == pytest.approx(true(400) - true(200), abs=5e-4)
    assert found["low"] <= found["gain"] <= found["high"]


def test_the_fit_is_that_of_another_fitter():
    random = np.random.default_rng(1)
    y = true(np.array(COUNTS)) + 0.01 * random.standard_normal(4)
    error = np.array([0.02, 0.01, 0.01, 0.005])
    n = np.array(COUNTS) / 200
    other = curve_fit(lambda n, a, b, c: a - b * n**-c, n, y, p0=(0.9, 0.1, 0.5), sigma=error, method="lm")[0]
    (found,) = learning.fit(n, y[None], error)
    np.testing.assert_allclose(learning.law(2.0, *found), learning.law(2.0, *other), atol=3e-4)


@pytest.mark.parametrize("y", [(0.5, 0.8, 0.999, 1.0), (0.9, 0.8, 0.7, 0.6), (0.7, 0.7, 0.7, 0.7)])
def test_the_fit_keeps_its_bounds_and_is_the_best_within_them(y):
    n, y, error = np.array(COUNTS) / 200, np.array(y), np.full(4, 0.01)
    (a, b, c) = learning.fit(n, y[None], error)[0]
    assert 0 <= a <= 1 and b >= 0 and 0.05 <= c <= 3
    loss = lambda p: ((learning.law(n, *p) - y) ** 2).sum()
    other = curve_fit(learning.law, n, y, p0=(0.9, 0.1, 0.5), bounds=((0, 0, 0.05), (1, np.inf, 3)))[0]
    assert loss((a, b, c)) <= loss(other) + 1e-5


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """90% of simulated curves, counted over 30 of them: 27 ± 1.6 are expected."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(30):
        (curve,) = learning.curves(runs(sd=0.012, random=random))
        found = learning.prediction(curve)
        hits += found["low"] <= true(400) - true(200) <= found["high"]
    assert 23 <= hits


def test_more_seeds_make_the_interval_narrower():
    width = lambda found: found["high"] - found["low"]
    few, many = (
        np.mean(
            [
                width(learning.prediction(learning.curves(runs(seeds=k, sd=0.01, random=np.random.default_rng(s)))[0]))
                for s in range(4)
            ]
        )
        for k in (2, 12)
    )
    assert many < 0.7 * few


def test_two_numbers_of_labels_only_continue_the_step():
    (curve,) = learning.curves(runs((20, 80)))
    found = learning.prediction(curve)
    assert found["law"] is None and found["low"] is None
    assert found["gain"] == pytest.approx((true(80) - true(20)) / 2)  # two doublings between them
    said = learning.words(curve, found)
    assert "at most about" in said and "three numbers of labels" in said


def test_what_falls_or_bends_like_no_power_law_gets_none():
    (falling,) = learning.curves(runs((20, 80), of=lambda n: 0.9 - n / 1000))
    assert learning.prediction(falling)["gain"] == 0
    steps = dict(zip(COUNTS, (0.3, 0.31, 0.32, 0.8)))
    (bent,) = learning.curves(runs(sd=0.002, random=np.random.default_rng(0), of=steps.get))
    found = learning.prediction(bent)
    assert found["law"] is None and "no power law fits" in learning.words(bent, found)
    assert found["accuracy"] <= 1


def test_only_runs_that_differ_in_labels_alone_make_a_curve():
    assert learning.curves(runs((20,))) == []
    assert learning.curves(runs(method="random")) == [] and learning.curves(runs(method="aligned")) == []
    assert learning.curves(runs((20,)) + runs((50,), paired="class")) == []
    assert learning.curves(runs((20,)) + runs((50,), oom="pen")) == []
    other = [r | {"fingerprint": "0" * 64} for r in runs((50,))]
    assert learning.curves(runs((20,)) + other) == []
    assert learning.curves([r | {"setting": "unsup"} for r in runs()]) == []
    both = learning.curves([*runs(), *runs(method="erm"), record(0.95, method="aligned")])
    assert [c["method"] for c in both] == ["erm", "cox"] and both[0]["aligned"] == 0.95


def test_the_table_says_it_in_figures_and_words():
    random = np.random.default_rng(3)
    records = [*runs(sd=0.01, random=random), *runs(method="erm", sd=0.01, random=random)]
    (block,) = [b for b in tables.tables(records) if b["title"].startswith("How many labels")]
    assert block["header"][1:5] == ["20 labels", "50 labels", "100 labels", "200 labels"]
    assert [row[0] for row in block["rows"]] == ["erm", "cox"]
    cox = [c for c in learning.curves(records) if c["method"] == "cox"][0]
    found = learning.prediction(cox)
    row = block["rows"][1]
    assert row[4].startswith(f"{100 * np.mean(cox['accuracy'][-1]):.1f} ±") and row[5] == "400"
    assert row[7:] == [f"{100 * found['gain']:+.1f}", f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}"]
    said = " ".join(block["notes"])
    assert f"Twice as many would bring {row[7]} points, between" in said and "Check: the runs with at most 100" in said
    assert not [b for b in tables.tables(runs((20,))) if b["title"].startswith("How many labels")]
    assert not [b for b in tables.tables(records, "retrieval") if b["title"].startswith("How many labels")]


def test_the_picture_shows_points_law_and_forecast():
    records = [*runs(sd=0.01, random=np.random.default_rng(0)), record(0.95, method="aligned")]
    (some,) = learning.predicted(records).values()
    figure = plots.learning_curves(some)
    figure.draw_without_rendering()
    (ax,) = figure.axes
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["aligned, all labels", "cox"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert points[0].get_xdata().tolist() == list(COUNTS) and points[-1].get_xdata().tolist() == [400]
    assert points[-1].get_ydata()[0] == pytest.approx(100 * some[0][1]["accuracy"])
    text = page.page(tables.tables(records), records, {}, "")
    assert 'alt="toy sonar. Labels and accuracy' in text and "400" in text
