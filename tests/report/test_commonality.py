"""experiments/commonality.py: gains, curves and trends by hand."""

import commonality
import numpy as np
import pytest
from records import record
from scipy import stats


def with_accuracy(r, accuracy):
    return {**r, "metrics": {**r["metrics"], "accuracy": accuracy}}


def test_commonality_by_hand():
    def world(a, c, n, s, m):
        return {**record(a, seed=s, method=m, per_class=n), "commonality": c}

    records = [
        world(0.5 + 0.1 * c * (m == "cox") + 0.01 * s, c, n, s, m)
        for c in (0.0, 1.0)
        for n in (2, 8)
        for s in (0, 1)
        for m in ("cox", "selftrain")
    ]
    lost = (1, 8, "cox", 1)
    records = [r for r in records if (r["commonality"], r["per_class"], r["method"], r["seed"]) != lost]
    gains = commonality.gains(records)
    counts = [(g["commonality"], g["per_class"], len(g["gain"])) for g in gains]
    assert counts == [(0, 2, 2), (0, 8, 2), (1, 2, 2), (1, 8, 1)]
    assert gains[2]["gain"] == pytest.approx([0.1, 0.1])
    panels = commonality.curves(gains).axes
    assert len(panels) == 2 and [t.get_text() for t in panels[0].get_legend().get_texts()] == ["2", "8"]
    apart = [{**r, "oom": "b" if r["per_class"] == 8 else "a"} for r in records]  # another modality at each
    panels = commonality.curves(commonality.gains(apart)).axes
    assert len(panels) == 1 and [t.get_text() for t in panels[0].get_legend().get_texts()] == ["2 (a)", "8 (b)"]
    two = [r for r in records if r["per_class"] == 2]
    three = [
        {**with_accuracy(r, r["metrics"]["accuracy"] * (1 + n)), "oom": m} for n, m in enumerate("abc") for r in two
    ]
    axes = commonality.curves(commonality.gains(three)).axes[0]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["2 (a)", "2 (b)", "2 (c)", "2 (mean)"]
    assert [line.get_ydata() for line in axes.lines if str(line.get_color()) == "black"][0] == pytest.approx([0, 20])
    assert len({str(line.get_color()) for line in axes.lines if line.get_marker() in ".xs"}) == 3
    by_modality = commonality.tables(three)[1]
    assert by_modality["header"] == ["commonality", *(f"{m}, 2 per class" for m in "abc")]
    assert by_modality["rows"][1] == ["1", "10.0 ± 0.0", "20.0 ± 0.0", "30.0 ± 0.0"]
    gain, cox, alone = commonality.tables(records)
    assert gain["rows"] == [["0", "0.0 ± 0.0", "0.0 ± 0.0"], ["1", "10.0 ± 0.0", "10.0"]]
    assert "gain with commonality: +1.00, p = 1 (2 means" in gain["notes"][1]
    assert len(gain["notes"]) == 2  # the number of pairs changes nothing here
    more = [  # a second world: negative, falls with the pairs
        {**with_accuracy(r, 0.5 - (r["method"] == "cox") * r["per_class"] / 100), "data_seed": 1} for r in records
    ]
    both = commonality.gains(records + more)
    assert [len(g["gain"]) for g in both] == [4, 4, 4, 2] and len({w for g in both for w in g["world"]}) == 2
    rho = stats.spearmanr([0, 1, 0, 1], [-0.05, 0.05, 0, 0]).statistic  # less the mean of each world
    _, by_world, by_pairs = commonality.tables(records + more)[0]["notes"]
    assert f"gain with commonality: {rho:+.2f}" in by_world and "(4 means" in by_world
    rho = stats.spearmanr([2, 8] * 2, [0, 0, 0.03, -0.03]).statistic  # of both commonalities
    assert f"number of pairs: {rho:+.2f}" in by_pairs and "(4 means" in by_pairs
    other = [  # with one commonality alone it plays no part
        {**with_accuracy(r, r["metrics"]["accuracy"] + (r["method"] == "cox") * 0.5), "oom": "pen"}
        for r in records
        if r["commonality"] == 0
    ]
    assert "gain with commonality: +1.00, p = 1 (2 means" in commonality.tables(records + other)[0]["notes"][1]
    assert alone["rows"][1][1:] == ["50.5 ± 0.7", "50.0"]  # of the seeds that both have
    assert commonality.gains(records, "unlabelled") == [] and commonality.curves([]) is None
    for r in records:  # on unlabelled items COX loses two points
        r["metrics"]["agreement"] = {"after": {"accuracy": 0.4 - 0.02 * (r["method"] == "cox") * r["commonality"]}}
    test, hidden, *_ = commonality.tables(records)
    assert test["title"].endswith("accuracy on test items") and test["rows"] == gain["rows"]
    assert hidden["title"].endswith("accuracy on the unlabelled training items")
    assert hidden["rows"][1] == ["1", "-2.0 ± 0.0", "-2.0"]
    assert "gain with commonality: -1.00" in hidden["notes"][1]
    for r in records:  # of finding the instance it gains three
        r10 = 0.2 + 0.03 * (r["method"] == "cox") * r["commonality"]
        r["metrics"]["retrieval"] = {"rgb": {"out": {"instance": {"r10": r10}}}}
    found = commonality.tables(records)[2]
    assert "R@10 of the very instance" in found["title"] and len(commonality.tables(records)) == 5
    assert found["rows"] == [["0", "0.0 ± 0.0", "0.0 ± 0.0"], ["1", "3.0 ± 0.0", "3.0"]]


def test_the_trend_within_worlds_is_found_through_the_differences_between_them():
    """Six worlds of very different levels, each with a gain that grows by a point a step; p against its definition."""
    rng = np.random.default_rng(0)
    found = [
        {
            "commonality": c,
            "per_class": 8,
            "world": [("audio", w)] * 2,
            "gain": [w + 0.01 * c + 0.002 * rng.standard_normal()] * 2,
        }
        for c in range(5)
        for w in range(6)
    ]
    rho, p, n = commonality.trend(found, "commonality", "per_class")
    level = {w: np.mean([g["gain"][0] for g in found if g["world"][0][1] == w]) for w in range(6)}
    within = [g["gain"][0] - level[g["world"][0][1]] for g in found]
    assert rho == pytest.approx(stats.spearmanr([g["commonality"] for g in found], within).statistic) and rho > 0.9
    assert p < 1e-3 and n == 30
    # three means: six orders, two as extreme
    small = [g for g in found if g["commonality"] < 3 and g["world"][0][1] == 0]
    assert commonality.trend(small, "commonality", "per_class")[1] == pytest.approx(1 / 3, abs=0.02)
    shuffled = [{**g, "commonality": (3 * i + 1) % 5} for i, g in enumerate(found)]
    assert commonality.trend(shuffled, "commonality", "per_class")[1] > 0.05
