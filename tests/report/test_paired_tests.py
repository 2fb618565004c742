"""Scores of records and paired tests of them, against scipy."""

import numpy as np
import pytest
import torch
from records import record
from scipy import stats

import train_explore
from cox_oom.report import metrics, plots, scores, tables, tests


def test_methods_are_those_of_stage_3():
    assert set(scores.METHODS) == set(train_explore.METHODS)


def test_accuracy_on_unlabelled_items_is_that_of_both_parts():
    r = record(0.5)
    assert scores.score(r, "unlabelled") is None
    agree, guess = torch.tensor([True, True, True, False]), torch.tensor([1, 1, 0, 2])
    r["metrics"]["agreement"] = {"after": metrics.agreement(agree, guess, torch.tensor([1, 0, 0, 2]))}
    assert scores.score(r, "unlabelled") == pytest.approx(0.75)
    del r["metrics"]["agreement"]["after"]["accuracy"]  # the record of an earlier version
    assert scores.score(r, "unlabelled") == pytest.approx(0.75)
    r["metrics"]["agreement"]["after"].update(share=1.0, disagree_accuracy=None)  # all agree
    assert scores.score(r, "unlabelled") == pytest.approx(2 / 3)


def test_unlabelled_items_without_a_hidden_label_are_not_counted():
    agree, guess = torch.tensor([True, True, True, False, False]), torch.tensor([1, 1, 0, 2, 0])

    def after(truth):
        return {"after": metrics.agreement(agree, guess, torch.tensor(truth))}

    r = record(0.5)
    for truth, accuracy in (([1, -1, -1, 0, 0], 2 / 3), ([-1, -1, -1, 0, 0], 1 / 2), ([1, 0, 0, -1, -1], 2 / 3)):
        r["metrics"]["agreement"] = after(truth)
        assert scores.score(r, "unlabelled") == pytest.approx(accuracy)
    unknown = [record(0.5, method=m, seed=s) for m in ("erm", "cox") for s in range(3)]
    for r in unknown:
        parts = metrics.agreement(agree, guess, torch.full((5,), -1), guess)
        r["metrics"]["agreement"] = dict.fromkeys(("before", "after", "after_own"), parts)
    assert scores.score(unknown[0], "unlabelled") is None and plots.agreement_bars(unknown) is None
    titles = [b["title"] for b in tables.tables(unknown)]
    assert any("paired: test accuracy" in t for t in titles) and not any("unlabelled" in t for t in titles)


def test_paired_tests_against_scipy():
    g = np.random.default_rng(0)
    cox, erm = g.random((2, 4)), g.random((2, 4)) - 0.2  # two columns, four seeds
    records = [
        record(a, seed=s, oom=o, method=m)
        for m, t in (("cox", cox), ("erm", erm))
        for o, row in zip(("sonar", "pen"), t)
        for s, a in enumerate(row)
    ]
    records += [record(0.9, method="aligned"), record(0.1, seed=7, method="erm")]  # neither takes part
    (t,) = tests.tests(records, "accuracy")
    assert (t["setting"], t["against"], t["n"], t["columns"]) == ("semi", "erm", 8, 2)
    assert t["mean"] == pytest.approx((cox - erm).mean())
    assert t["ahead"] == ((cox - erm).mean(1) > 0).sum()
    assert t["t_p"] == pytest.approx(stats.ttest_rel(cox.ravel(), erm.ravel()).pvalue)
    assert t["wilcoxon_p"] == pytest.approx(stats.wilcoxon((cox - erm).ravel()).pvalue)
    assert t["columns_p"] == pytest.approx(stats.ttest_1samp((cox - erm).mean(1), 0).pvalue)


def test_the_best_rival_is_chosen_for_each_column():
    of = {"cox": (0.9, 0.5), "erm": (0.8, 0.3), "entmin": (0.6, 0.6), "ssl": (1.0, 1.0)}
    records = [
        record(v[i] + 0.01 * s, seed=s, data=d, method=m)
        for m, v in of.items()
        for i, d in enumerate(("a", "b"))
        for s in range(3)
    ]
    best = tests.tests(records, "accuracy")[-1]
    assert best["against"] == "best of erm, entmin"
    assert best["mean"] == pytest.approx((0.1 - 0.1) / 2)
    assert best["by_data"] == pytest.approx({"a": 0.1, "b": -0.1})
    assert best["t_p"] is not None


def test_no_p_where_there_is_nothing_to_test():
    (t,) = tests.tests([record(0.5), record(0.25, method="erm")], "accuracy")
    assert t["n"] == 1 and t["mean"] == 0.25 and t["t_p"] is t["wilcoxon_p"] is t["columns_p"] is None
    alike = [record(0.5, method=m, seed=s) for m in ("cox", "erm") for s in range(4)]
    (t,) = tests.tests(alike, "accuracy")
    assert t["mean"] == 0 and t["t_p"] is None
    unlike = [record(0.5), record(0.4, method="erm", labels=0.02)]  # other labels: no pair
    assert tests.tests(unlike, "accuracy") == []
