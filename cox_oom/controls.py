"""Controls without a network beside `raw`: labels spread over a graph of the recordings, --method labelprop, and the
recordings mapped to the known modalities by the pairs, --method procrustes.

Shapes: M training items, L labelled, C classes, F numbers of a view, p principal components, d_k of a bank.

Both stand on the views of cox_oom/classical.py, standardised by all training items, and choose among them by
cross-validation on the labelled items, as `raw` does. Their states are read by classical.logits."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cox_oom import classical
from cox_oom.files import optional
from cox_oom.heads import Head
from cox_oom.labels import Items
from cox_oom.seed import Seed, features_of

COMPONENTS = (10, 20, 50)  # choices of how many
KILLED = 1e-5  # share of a random walk that ends at each step, so that no part of the graph is left without an answer
RIDGES = (1.0, 10.0, 100.0, 1000.0)  # strengths of the map by ridge regression; 0 stands for the orthogonal one
SCALES = torch.logspace(-2, 4, 121, dtype=torch.float64)  # of logits


def whitening(x: Tensor, most: int) -> Tensor:
    """The map (F, <= most) of standardised x (M, F) to its leading principal components, each of unit variance;
    float64."""
    u, s, v = torch.linalg.svd(x, full_matrices=False)
    kept = min(most, int((s > 1e-5 * s[0].clamp(min=1e-30)).sum()))
    return v[:kept].T * (len(x) ** 0.5 / s[:kept])


def readings(file: dict[str, Any], rows: Tensor) -> Iterable[tuple[dict[str, Any], Tensor]]:
    """For each choice of views and of how many components the state {views [names], steps, mean (F,), scale (F,),
    project (F, p)}, and rows (M,) of an inputs file as whitened points (M, p); float64."""
    steps = int(file["x"].shape[-1])
    choices = classical.VIEWS.get(file["kind"], classical.CHOICES)
    views = {n: classical.view(n, file, rows, steps).double() for n in sorted({n for c in choices for n in c})}
    for choice in choices:
        mean, scale = (torch.cat(t) for t in zip(*(classical.standard(views[n]) for n in choice)))
        x = (torch.cat([views[n] for n in choice], 1) - mean) / scale
        project = whitening(x, COMPONENTS[-1])
        for p in sorted({min(p, project.shape[1]) for p in COMPONENTS}):
            state = {"views": list(choice), "steps": steps, "mean": mean, "scale": scale, "project": project[:, :p]}
            yield state, x @ project[:, :p]


def parts(y: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Folds of labelled items y (L,) for cross-validation, [(places to fit, places to judge)]; [] where every class has
    one item."""
    selection = optional("sklearn.model_selection", "a control without a network")
    least, most = (int(f(torch.unique(y, return_counts=True)[1])) for f in (torch.min, torch.max))
    if most < 2:
        return []
    folds = selection.StratifiedKFold(max(2, min(classical.FOLDS, least)), shuffle=True, random_state=seed % 2**32)
    import warnings

    with warnings.catch_warnings():  # a class that is rarer than the folds is no news to a user
        warnings.simplefilter("ignore")
        return [tuple(map(torch.from_numpy, f)) for f in folds.split(y.numpy(), y.numpy())]  # type: ignore[misc]


def judged(
    logits: Callable[[Tensor], Tensor], y: Tensor, folds: Sequence[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """What cross-validation says of logits(places to fit) -> (L, C) on labels y (L,): the share that is right, and the
    scale under which they are most likely."""
    held = torch.cat([logits(fit)[judge] for fit, judge in folds])
    truth = torch.cat([y[judge] for _, judge in folds])
    loss = torch.stack([F.cross_entropy(held * s, truth, label_smoothing=1 / (len(y) + 2)) for s in SCALES])
    return (held.argmax(1) == truth).double().mean().item(), SCALES[loss.argmin()].item()


# ----------------------------------------------------------------------------------------------------- labelprop


def graph(x: Tensor, labelled: Tensor) -> Any:
    """The symmetric weights (M, M), scipy sparse, of a graph in which each of x (M, p) is joined to its nearest
    neighbours and to the nearest labelled item."""
    neighbours = optional("sklearn.neighbors", "--method labelprop")
    sparse = optional("scipy.sparse", "--method labelprop")
    k = min(classical.NEIGHBOURS, len(x) - 1)
    far, to = neighbours.NearestNeighbors(n_neighbors=k + 1).fit(x.numpy()).kneighbors(x.numpy())
    near, at = neighbours.NearestNeighbors(n_neighbors=1).fit(x[labelled].numpy()).kneighbors(x.numpy())
    far, to = (torch.from_numpy(t) for t in (far, to))
    reach = far[:, -1].clamp(min=1e-12)
    far = torch.cat([far[:, 1:], torch.from_numpy(near)], 1)
    to = torch.cat([to[:, 1:], labelled[torch.from_numpy(at)]], 1)
    weight = classical.closeness(far, reach[:, None]).clamp(min=1e-6)
    own = torch.arange(len(x))[:, None].expand_as(to)
    weight = torch.where(to == own, 0.0, weight)
    w = sparse.csr_matrix((weight.flatten().numpy(), (own.flatten().numpy(), to.flatten().numpy())), (len(x),) * 2)
    return (w + w.T) / 2


def poisson(weights: Any, labelled: Tensor, y: Tensor, classes: int) -> Tensor:
    """Poisson learning (Calder, Cook, Thorpe, Slepcev, ICML 2020): u (M, C) float64 that solves L u = f on a graph of
    weights (M, M), where f is each labelled item's class less the mean of all, and 0 elsewhere. labelled (L,), y (L,).
    L is the graph's Laplacian with a little of its degrees, KILLED."""
    sparse, linear = (optional(f"scipy.sparse{part}", "--method labelprop") for part in ("", ".linalg"))
    degree = torch.from_numpy(weights.sum(1)).flatten().clamp(min=1e-12)
    laplacian = sparse.diags(((1 + KILLED) * degree).numpy()) - weights
    source = torch.zeros(len(degree), classes, dtype=torch.float64)
    known = F.one_hot(y, classes).double()
    source.index_add_(0, labelled, known - known.mean(0))
    jacobi = sparse.diags((1 / degree).numpy())
    found = [linear.cg(laplacian, f, rtol=1e-8, maxiter=2000, M=jacobi)[0] for f in source.T.numpy()]
    return torch.stack([torch.from_numpy(u) for u in found], 1)


def labelprop(seed: Seed, items: Items) -> dict[str, Any]:
    """--method labelprop's state: {views [names], steps, cv_accuracy, mean (F,), scale (F,), project (F, p), points
    (M, p), values (M, C)}, tensors float32. A recording's logits are its nearest points' values, weighted
    by closeness; points are the training items."""
    labelled, y, classes = items.labelled, items.y[items.labelled], len(items.oom["class_names"])
    folds, best = parts(y, seed.place.seed), (-1.0, {})
    for state, points in readings(items.oom, items.rows):
        weights = graph(points, labelled)
        solve = lambda fit, weights=weights: poisson(weights, labelled[fit], y[fit], classes)
        right, times = judged(lambda fit: solve(fit)[labelled], y, folds) if folds else (0.0, 0.0)
        if right >= best[0]:  # of equals the later: more views
            values = solve(torch.arange(len(y)))
            values = values * (times or 1 / values.std().clamp(min=1e-12))
            absent = torch.bincount(y, minlength=classes) == 0
            values[:, absent] = classical.NEVER
            kept = {"points": points, "values": values}
            best = right, {**state, **kept, "strength": None, "cv_accuracy": right if folds else None}
    return {k: v.float() if isinstance(v, Tensor) else v for k, v in best[1].items()}


# ---------------------------------------------------------------------------------------------------- procrustes


def mapped(x: Tensor, z: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(weights (p, d), offset (d,)) of the map from x (P, p) to z (P, d) of pairs: with `ridge` by ridge regression,
    with 0 the orthogonal one and a scale (Procrustes)."""
    a, b = x - x.mean(0), z - z.mean(0)
    if ridge:
        weights = torch.linalg.solve(a.T @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    else:
        u, s, v = torch.linalg.svd(a.T @ b, full_matrices=False)
        weights = u @ v
        weights = weights * s.sum() / (a @ weights).square().sum().clamp(min=1e-12)
    return weights, z.mean(0) - x.mean(0) @ weights


def procrustes(seed: Seed, items: Items) -> dict[str, Any]:
    """--method procrustes's state, of the same form as raw's: the recordings' principal components are mapped to each
    known modality by the pairs, the IM heads h_k name them there, and their logits are averaged. Cross-validation on
    the pairs chooses views and map: `strength` 0 is the orthogonal one, else ridge regression's."""
    connect, labelled = seed.connect, items.labelled
    at = torch.full((len(items.rows),), -1).index_copy_(0, labelled, torch.arange(len(labelled)))
    heads, pairs, classes = {}, {}, len(items.oom["class_names"])
    for m in connect["im"]:
        z = features_of(seed.ims[m], connect["mapped_ids"][m]).double()
        head = Head(z.shape[1], classes).double()
        head.load_state_dict(connect["im_heads"][m])
        heads[m], (own, im) = head.folded(), items.pairs[m]
        pairs[m] = at[own], z[im]

    def linear(x: Tensor, fit: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
        """(weight (C, p), bias (C,)) of the mean logits, by the pairs of the labelled items at places `fit`."""
        weight, bias, n = torch.zeros(classes, x.shape[1], dtype=x.dtype), torch.zeros(classes, dtype=x.dtype), 0
        for m, (w, b) in heads.items():
            own, z = pairs[m]
            kept = torch.isin(own, fit)
            if kept.any():
                to, offset = mapped(x[own[kept]], z[kept], ridge)
                weight, bias, n = weight + w @ to.T, bias + w @ offset + b, n + 1
        return weight / max(n, 1), bias / max(n, 1)

    y, best = items.y[labelled], (-1.0, {})
    folds = parts(y, seed.place.seed)
    for state, points in readings(items.oom, items.rows):
        own, project = points[labelled], state["project"]
        for ridge in (0.0, *RIDGES):
            name = lambda fit, ridge=ridge, own=own: (lambda w, b: own @ w.T + b)(*linear(own, fit, ridge))
            right, times = judged(name, y, folds) if folds else (0.0, 1.0)
            if right > best[0]:  # of equals the earlier: the orthogonal map
                w, b = linear(own, torch.arange(len(y)), ridge)
                kept = {"weight": times * w @ project.T, "bias": times * b}
                best = right, {**state, **kept, "strength": ridge, "cv_accuracy": right if folds else None}
    del best[1]["project"]  # it is in the weights
    return {k: v.detach().float() if isinstance(v, Tensor) else v for k, v in best[1].items()}
