"""cox_oom/report/metrics.py: accuracies, agreement and retrieval, by hand and against scikit-learn."""

import numpy as np
import pytest
import torch
from records import CLASSES
from sklearn import metrics as sk

from cox_oom.report import metrics


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_metrics_agree_with_sklearn(classes):
    g = torch.Generator().manual_seed(classes)
    truth = torch.randint(classes, (300,), generator=g)
    guess = torch.where(torch.rand(300, generator=g) < 0.6, truth, torch.randint(classes, (300,), generator=g))
    m = metrics.class_metrics(guess, truth, [f"c{i}" for i in range(classes)])
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert m["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert m["confusion"] == sk.confusion_matrix(truth, guess).tolist()
    assert m["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, guess))
    recall = sk.recall_score(truth, guess, average=None)
    assert list(m["per_class"].values()) == pytest.approx(recall.tolist())
    assert m["n_test"] == 300


def test_hungarian_undoes_a_renaming():
    truth = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    guess = torch.tensor([1, 1, 1, 2, 2, 2, 0, 0, 1])  # renamed, one item wrong
    m = metrics.class_metrics(guess, truth, CLASSES)
    assert m["accuracy"] == 0 and m["hungarian_accuracy"] == pytest.approx(8 / 9)


def test_class_without_test_items_and_constant_guesses():
    m = metrics.class_metrics(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1]), CLASSES)
    assert m["per_class"] == {"ape": 1.0, "bee": 0.0, "cat": None}
    assert m["balanced_accuracy"] == 0.5 and m["nmi"] == 0.0


def test_agreement_by_hand():
    agree = torch.tensor([True, True, True, False, False])
    guess, truth = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, -1, 1, 1])
    a = metrics.agreement(agree, guess, truth, torch.tensor([0, 0, 0, -1, -1]))  # one has no hidden label
    accuracies = {"accuracy": 0.75, "agree_accuracy": 1.0, "disagree_accuracy": 0.5, "label_accuracy": 0.5}
    assert a == pytest.approx({"share": 0.6, "gap": 0.5, **accuracies})
    assert metrics.agreement(torch.ones(5, dtype=torch.bool), guess, truth)["gap"] is None


def test_retrieval_by_hand():
    """Three categories on a line; the second query's nearest category is a wrong one, the third's own is the last."""
    gallery = (torch.tensor([[0.0], [1.0], [10.0], [12.0], [20.0]]), torch.tensor([0, 0, 1, 1, 2]), list("abcde"))
    query = (torch.tensor([[0.9], [6.0], [3.0], [9.0]]), torch.tensor([0, 0, 2, 1]), ["a", "b", "e", "z"])
    r = metrics.retrieval(query, gallery, 4)
    # category ranks 1, 2, 3, 1; instance ranks of a, b, e: 2 (b is nearer), 2 (c), 5; z has no instance
    category = {"r1": 0.5, "median_rank": 1.5, "chance_r1": 1 / 3, "n_query": 4, "n_candidates": 3}
    instance = {"r1": 0.0, "median_rank": 2.0, "chance_r1": 0.2, "n_query": 3, "n_candidates": 5}
    alike = {"r5": 1.0, "r10": 1.0, "chance_r5": 1.0}
    assert r["category"] == pytest.approx({**category, **alike})
    assert r["instance"] == pytest.approx({**instance, **alike, "class_r1": (1 / 2 + 1 / 2 + 1) / 3})


def test_a_category_that_the_gallery_lacks_is_not_asked_for():
    query = (torch.zeros(2, 1), torch.tensor([0, 1]), ["a", "b"])
    r = metrics.retrieval(query, (torch.ones(2, 1), torch.tensor([0, 0]), ["c", "d"]), 2)
    assert r["category"]["n_query"] == 1 and r["category"]["r1"] == 1.0 and r["instance"] is None


def test_no_query_of_a_known_category_is_no_category_level():
    query = (torch.zeros(2, 1), torch.tensor([1, 1]), ["a", "b"])
    r = metrics.retrieval(query, (torch.ones(2, 1), torch.tensor([0, 0]), ["a", "d"]), 2)
    assert r["category"] is None and r["instance"]["n_query"] == 1


def test_collapsed_features_retrieve_nothing():
    y, ids = torch.arange(20) % 10, [f"i{j}" for j in range(20)]
    r = metrics.retrieval((torch.ones(20, 3), y, ids), (torch.ones(20, 3), y, ids), 10)
    assert r["category"]["r5"] == 0.0 and r["category"]["median_rank"] == 10
    assert r["instance"]["r10"] == 0.0 and r["instance"]["median_rank"] == 20


def test_retrieval_agrees_with_sorting():
    g = torch.Generator().manual_seed(3)
    z, v = torch.randn(700, 4, generator=g, dtype=torch.float64), torch.randn(300, 4, generator=g, dtype=torch.float64)
    y, c = torch.randint(12, (700,), generator=g), torch.randint(12, (300,), generator=g)
    r = metrics.retrieval((z, y, [f"{i}" for i in range(700)]), (v, c, [f"{i}" for i in range(300)]), 12)
    order = torch.cdist(z, v).argsort(1)
    item = [order[i].tolist().index(i) + 1 for i in range(300)]
    seen = [list(dict.fromkeys(c[o].tolist())).index(t) + 1 for o, t in zip(order, y.tolist())]
    for found, rank in ((r["instance"], item), (r["category"], seen)):
        for k in (1, 5, 10):
            assert found[f"r{k}"] == pytest.approx(np.mean(np.array(rank) <= k))
        assert found["median_rank"] == np.median(rank)
