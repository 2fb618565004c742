"""The control without a network, --method raw: plain and spectral views of the recordings, a penalised logistic
regression (scikit-learn). What it reaches, a learner has to reach too.

Shapes: R rows of an inputs file, F numbers of a view, C classes, L labelled items, T time steps.

Views are those of cox_oom/readings.py. fit() standardises them, and chooses views and strength of the penalty by
cross-validation on the labelled items."""

import warnings
from typing import Any

import torch
from torch import Tensor

from cox_oom.files import optional
from cox_oom.labels import groups_of
from cox_oom.readings import standard, view

NEIGHBOURS = 10  # of a point, labelprop
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C, the strongest penalty first
FOLDS = 5
NEVER = -1e4  # logit of a class that no labelled item has
VIEWS = {"text": (("grams",),)}  # by kind, the choices of views; else:
CHOICES = (("plain",), ("spectrum",), ("plain", "spectrum"))


def folds_of(y: Tensor, seed: int, groups: Tensor | None = None) -> list[tuple[Tensor, Tensor]]:
    """Folds of labelled items y (L,) for cross-validation, [(places to fit, places to judge)]; [] where every class has
    one item, so that nothing can be held out. No one of groups (L,) is on both sides."""
    selection = optional("sklearn.model_selection", "a control without a network")
    least, most = (int(f(torch.unique(y, return_counts=True)[1])) for f in (torch.min, torch.max))
    if most < 2:
        return []
    kind = selection.StratifiedKFold if groups is None else selection.StratifiedGroupKFold
    folds = kind(max(2, min(FOLDS, least)), shuffle=True, random_state=seed % 2**32)
    with warnings.catch_warnings():  # a class that is rarer than the folds is no news to a user
        warnings.simplefilter("ignore")
        split = folds.split(y.numpy(), y.numpy(), None if groups is None else groups.numpy())
        return [(torch.from_numpy(fit), torch.from_numpy(judge)) for fit, judge in split]


def search(x: Tensor, y: Tensor, folds: list[tuple[Tensor, Tensor]]) -> tuple[Any, float | None]:
    """The logistic regression of x (L, F), y (L,) whose strength did best in cross-validation, the strongest of equals,
    and its accuracy there, None where there are no folds, which folds_of gives."""
    linear = optional("sklearn.linear_model", "--method raw")
    selection = optional("sklearn.model_selection", "--method raw")
    model = linear.LogisticRegression(max_iter=5000, tol=1e-6)
    if not folds:
        return model.fit(x.numpy(), y.numpy()), None
    split = [(fit.numpy(), judge.numpy()) for fit, judge in folds]
    grid = selection.GridSearchCV(model, {"C": STRENGTHS}, scoring="accuracy", cv=split)
    grid.fit(x.numpy(), y.numpy())
    return grid.best_estimator_, float(grid.best_score_)


def fit(file: dict[str, Any], train: Tensor, labelled: Tensor, y: Tensor, seed: int) -> dict[str, Any]:
    """The state that METHOD.pt keeps. train (M,): rows that standardise; labelled (L,): rows whose labels are y (L,).

    {views [names], steps, strength, cv_accuracy, mean (F,), scale (F,), weight (C, F), bias (C,)}, all float32: logits
    are ((view − mean) / scale) · weight + bias."""
    classes, steps = len(file["class_names"]), int(file["x"].shape[-1])
    names = sorted({n for choice in VIEWS.get(file["kind"], CHOICES) for n in choice})
    mean, scale, x = {}, {}, {}
    for name in names:
        every = view(name, file, train, steps).double()
        mean[name], scale[name] = standard(every)
        x[name] = (view(name, file, labelled, steps).double() - mean[name]) / scale[name]
    best: tuple[float, Any] = (-1.0, None)
    present = y.unique()
    folds = folds_of(y, seed, groups_of(file, labelled))
    for choice in VIEWS.get(file["kind"], CHOICES) if len(present) > 1 else ():
        some = torch.cat([x[n] for n in choice], 1)
        wide = some.shape[1] > len(some)
        basis = torch.linalg.svd(some, full_matrices=False)[2] if wide else None  # (L, F): the same model, sooner
        model, right = search(some if basis is None else some @ basis.T, y, folds)
        if (right or 0.0) >= best[0]:  # of equals the later: more views
            best = (right or 0.0), (choice, model, right, basis)
    state: dict[str, Any] = {"views": list(names), "steps": steps, "strength": 0.0, "cv_accuracy": None}
    weight = torch.zeros(classes, sum(len(mean[n]) for n in names))
    bias = torch.full((classes,), NEVER).index_fill_(0, present, 0.0)
    if best[1]:
        choice, model, right, basis = best[1]
        w, b = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
        w, b = (torch.cat([-w, w]) / 2, torch.cat([-b, b]) / 2) if len(w) == 1 else (w, b)  # two classes: one row
        w = w if basis is None else w @ basis
        state |= {"views": list(choice), "strength": float(model.C), "cv_accuracy": right}
        weight = torch.zeros(classes, w.shape[1]).index_copy_(0, present, w.float())
        bias = bias.index_copy_(0, present, b.float())
    join = lambda of: torch.cat([of[n] for n in state["views"]]).float()
    return {**state, "mean": join(mean), "scale": join(scale), "weight": weight, "bias": bias}


def logits(state: dict[str, Any], file: dict[str, Any], rows: Tensor) -> Tensor:
    """Logits (R, C) float32 of rows (R,) of an inputs file, or of anything with its kind, x, lengths, mean and std.

    `state` is what fit returned, or a control of cox_oom/controls.py. A recording longer than `steps`, the longest at
    stage 1, is cut there."""
    if not len(rows):
        return torch.zeros(0, state["values"].shape[1] if "points" in state else len(state["bias"]))
    x = torch.cat([view(n, file, rows, state["steps"]) for n in state["views"]], 1)
    x = (x - state["mean"]) / state["scale"]
    return nearby(state, x @ state["project"]) if "points" in state else x @ state["weight"].T + state["bias"]


def closeness(far: Tensor, reach: Tensor) -> Tensor:
    """Weights of neighbours at distances `far`, 1 at 0, of a point whose neighbours reach as far as `reach`."""
    return (-4 * (far / reach).square()).exp()


def nearby(state: dict[str, Any], x: Tensor) -> Tensor:
    """Logits (R, C) of x (R, p) by labelprop's state: the mean of its nearest points' values, weighted by closeness."""
    out = []
    for part in x.split(512):
        far, at = torch.cdist(part, state["points"], compute_mode="donot_use_mm_for_euclid_dist").topk(
            min(len(state["points"]), NEIGHBOURS), largest=False
        )
        weight = closeness(far, far[:, -1:].clamp(min=1e-12))
        out.append((weight[..., None] * state["values"][at]).sum(1) / weight.sum(1, keepdim=True))
    return torch.cat(out)


def words(method: str, state: dict[str, Any]) -> str:
    """What was chosen, in one line."""
    right, strength = state["cv_accuracy"], state.get("strength")
    said = "too few labels to hold any out" if right is None else f"{100 * right:.1f}% in cross-validation"
    how = "" if strength is None else f", strength {strength:g}"
    return f"{method}: views {' and '.join(state['views'])}{how}, {said}"
