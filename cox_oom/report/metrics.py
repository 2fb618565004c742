"""What a run's outputs amount to in numbers: accuracy, confusion, agreement, retrieval."""

import math
from typing import Any

import torch
from torch import Tensor

import cox_ops
from cox_oom.files import optional


def accuracy(guess: Tensor, truth: Tensor) -> float | None:
    """Share of equal entries, None where there are none."""
    return (guess == truth).double().mean().item() if len(truth) else None


def class_metrics(guess: Tensor, truth: Tensor, class_names: list[str]) -> dict[str, Any]:
    """Metrics of guess, truth (n,) int64; confusion: a row per true class. A class without
    test items is None in per_class and not in the balanced accuracy."""
    classes = len(class_names)
    confusion = torch.bincount(truth * classes + guess, minlength=classes**2).view(classes, -1)
    count, right = confusion.sum(1), confusion.diagonal()
    per_class = {n: (r / c if c else None) for n, r, c in zip(class_names, right.tolist(), count.tolist())}
    present = [v for v in per_class.values() if v is not None]
    assign = optional("scipy.optimize", "judging a run").linear_sum_assignment
    best = assign(confusion.numpy(), maximize=True)  # the best renaming of the guesses
    return {
        "accuracy": accuracy(guess, truth),
        "balanced_accuracy": sum(present) / len(present),
        "per_class": per_class,
        "confusion": confusion.tolist(),
        "n_test": len(truth),
        "hungarian_accuracy": confusion.numpy()[best].sum().item() / len(truth),
        "nmi": nmi(confusion),
    }


def nmi(confusion: Tensor) -> float:
    """Normalised mutual information of counts (C, C): I / mean entropy, 0 where either is constant."""
    p = confusion.double() / confusion.sum()
    a, b = p.sum(1), p.sum(0)
    h = lambda q: -torch.special.xlogy(q, q).sum().item()
    both = h(a) + h(b)
    return max(0.0, 2 * (both - h(p)) / both) if min(h(a), h(b)) > 1e-12 else 0.0


def agreement(agree: Tensor, guess: Tensor, truth: Tensor, label: Tensor | None = None) -> dict[str, float | None]:
    """Fig. 6 for items (M,), hidden labels `truth` (-1: none): share of A, accuracy of `guess` on A, on D and on
    both, of the items whose label is known; None where there are none."""
    known = truth >= 0
    a, d = agree & known, ~agree & known
    found: dict[str, Any] = {
        "share": agree.double().mean().item(),
        "accuracy": accuracy(guess[known], truth[known]),
        "agree_accuracy": accuracy(guess[a], truth[a]),
        "disagree_accuracy": accuracy(guess[d], truth[d]),
        "gap": None,
    }
    if a.any() and d.any():
        found["gap"] = found["agree_accuracy"] - found["disagree_accuracy"]
    return found if label is None else {**found, "label_accuracy": accuracy(label[a], truth[a])}


def recall(rank: Tensor, size: int) -> dict[str, float]:
    """R@1, R@5, R@10 and median rank of ranks (n,) from 1 among `size` candidates, and what chance gives."""
    share = {f"r{k}": (rank <= k).double().mean().item() for k in (1, 5, 10)}
    return {
        **share,
        "median_rank": rank.double().quantile(0.5).item(),
        "chance_r1": 1 / size,
        "chance_r5": min(5, size) / size,
        "n_query": len(rank),
        "n_candidates": size,
    }


def retrieval(
    query: tuple[Tensor, Tensor, list[str]], gallery: tuple[Tensor, Tensor, list[str]], classes: int
) -> dict[str, Any]:
    """Metrics of retrieving with query items in a gallery, each (features (n, d), labels (n,), ids [n]).

    Category level: categories are ranked by their nearest item, a hit is the query's own. Instance level: items are
    ranked, a hit is the query's own id; None where the two share none; class_r1 is the R@1 of who knows the class and
    draws within it. Distances are Euclidean; what is as near as the right one counts as nearer, so that features all
    alike find nothing. A query whose category (or id) the gallery lacks is left out; a level without any query is
    None."""
    (z, y, ids), (v, c, names) = query, gallery
    at = {i: r for r, i in enumerate(names)}
    own = torch.tensor([at.get(i, -1) for i in ids], dtype=torch.long)
    by_class, by_item = [], []
    for r in torch.arange(len(z)).split(512):
        d = cox_ops.pairwise_distances(z[r], v)  # (queries, gallery)
        near = d.new_full((len(r), classes), math.inf).scatter_reduce(1, c.expand(len(r), -1), d, "amin")
        by_class.append((near <= near.gather(1, y[r, None])).sum(1))
        by_item.append((d <= d.gather(1, own[r, None].clamp(min=0))).sum(1))
    known, present = torch.isin(y, c), len(c.unique())
    found = {"category": recall(torch.cat(by_class)[known], present) if known.any() else None, "instance": None}
    if (own >= 0).any():
        of_class = torch.bincount(c, minlength=classes)[c[own[own >= 0]]].double()
        found["instance"] = {**recall(torch.cat(by_item)[own >= 0], len(v)), "class_r1": (1 / of_class).mean().item()}
    return found
