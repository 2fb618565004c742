"""Controls that take no step: labels spread over a graph of the recordings, --method labelprop, and the warm start's
features mapped to the known modalities by the pairs, --method procrustes.

Shapes: M training items, L labelled, P pairs, C classes, F numbers of a view, p components, d and d_k features of the
learner and of a bank."""

from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cox_oom import classical
from cox_oom.augment import embed
from cox_oom.connect import Bridge
from cox_oom.files import optional
from cox_oom.heads import Head
from cox_oom.labels import Items
from cox_oom.learner import Learner
from cox_oom.readings import standard, view
from cox_oom.seed import Seed

COMPONENTS = (10, 20, 50)  # choices of how many
KILLED = 1e-5  # share of a random walk that ends at each step, so that no part of the graph is left without an answer
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
    views = {n: view(n, file, rows, steps).double() for n in sorted({n for c in choices for n in c})}
    for choice in choices:
        mean, scale = (torch.cat(t) for t in zip(*(standard(views[n]) for n in choice)))
        x = (torch.cat([views[n] for n in choice], 1) - mean) / scale
        project = whitening(x, COMPONENTS[-1])
        for p in sorted({min(p, project.shape[1]) for p in COMPONENTS}):
            state = {"views": list(choice), "steps": steps, "mean": mean, "scale": scale, "project": project[:, :p]}
            yield state, x @ project[:, :p]


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
    (M, p), values (M, C)}, tensors float32. A recording's logits are the values of its nearest points, weighted by
    closeness; points are the training items. Cross-validation on the labelled items chooses views and p, as for
    raw."""
    labelled, y, classes = items.labelled, items.y[items.labelled], len(items.oom["class_names"])
    groups = None if items.groups is None else items.groups[labelled]
    folds, best = classical.folds_of(y, seed.place.seed, groups), -1.0
    chosen: dict[str, Any] = {}
    for state, points in readings(items.oom, items.rows):
        weights = graph(points, labelled)
        solve = lambda fit, weights=weights: poisson(weights, labelled[fit], y[fit], classes)
        right, times = judged(lambda fit: solve(fit)[labelled], y, folds) if folds else (0.0, 0.0)
        if right >= best:  # of equals the later: more views
            values = solve(torch.arange(len(y)))
            values = values * (times or 1 / values.std().clamp(min=1e-12))
            absent = torch.bincount(y, minlength=classes) == 0
            values[:, absent] = classical.NEVER
            kept = {"points": points, "values": values}
            best, chosen = right, {**state, **kept, "cv_accuracy": right if folds else None}
    return {k: v.float() if isinstance(v, Tensor) else v for k, v in chosen.items()}


# ---------------------------------------------------------------------------------------------------- procrustes


def mapped(x: Tensor, z: Tensor, ridge: float) -> tuple[Tensor, Tensor]:
    """(weights (p, d), offset (d,)) of the map from x (P, p) to z (P, d) of pairs: with `ridge` above 0 by ridge
    regression of that strength, with 0 the orthogonal map and a scale (Procrustes)."""
    a, b = x - x.mean(0), z - z.mean(0)
    if ridge:
        weights = torch.linalg.solve(a.T @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype), a.T @ b)
    else:
        u, s, v = torch.linalg.svd(a.T @ b, full_matrices=False)
        weights = u @ v
        weights = weights * s.sum() / (a @ weights).square().sum().clamp(min=1e-12)
    return weights, z.mean(0) - x.mean(0) @ weights


@torch.no_grad()
def procrustes(args: Namespace, learner: Learner, head: nn.Linear, bridge: Bridge, seed: Seed, items: Items) -> None:
    """Make the learner's head, a Linear (d, C), name an item as the IM heads h_k name its mapped features: each
    modality has a map of its own, fitted to the pairs, and their logits are averaged."""
    weight, bias = torch.zeros_like(head.weight).double(), torch.zeros_like(head.bias).double()
    for m in bridge.names:
        own, im = (t.to(args.device) for t in items.pairs[m])
        z = embed(learner, items.oom, items.rows[own.cpu()], args.device)[0].double()
        z_im = bridge.z_im[m][im].double()
        im_head = Head(z_im.shape[1], head.out_features)
        im_head.load_state_dict(seed.connect["im_heads"][m])
        w, b = (t.to(z) for t in im_head.folded())
        to, offset = mapped(z, z_im, args.ridge)
        weight, bias = weight + w @ to.T / len(bridge.names), bias + (w @ offset + b) / len(bridge.names)
    head.weight.copy_(weight)
    head.bias.copy_(bias)
