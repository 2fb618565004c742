"""How far a trained learner's posteriors and its knowledge reach: temperature, reliability, novelty.

Shapes: n items, C classes, d features of the learner.
"""

from argparse import Namespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cox_oom import again, ranks
from cox_oom.augment import model_of
from cox_oom.data.inputs import preparation
from cox_oom.files import UserError, load
from cox_oom.labels import Items, groups_of
from cox_oom.seed import Seed

TEMPERATURES = torch.logspace(-2, 1.5, 351, dtype=torch.float64)  # steps of 2.3%
BINS, DRAWS, TILE = 15, 200, 256
BEYOND, FEW = 0.95, 20  # share of known items that are within novelty 1; fewer than FEW tell nothing of it


def of_run(seed: Seed, args: Namespace, items: Items, run: dict[str, Any]) -> dict[str, Any]:
    """What METHOD.pt keeps for new recordings: how to prepare one, the temperature, what the training items were like.
    run: what else it keeps.

    Temperature and the bound of novelty are fitted on the validation items, else by args.folds cross-fits. Without both
    the temperature is 1, and the bound that of the training items."""
    model = model_of(run, args.device)
    (z, logits), (z_held, held) = (model(seed.oom, rows) for rows in (items.rows, items.val))
    known, y, source = familiar(z, logits.argmax(1)), items.y_val, "validation items"
    far = distance(known, z_held) / known["distance"]
    if not len(y) and args.folds and args.setting == "semi":
        held, y, far, folds = ranks.told(cross_fit(seed, args) if ranks.rank == 0 else None)
        source = f"{folds} cross-fits"
    return {
        "preparation": preparation(seed.oom, args.oom, seed.place.inputs(args.oom)),
        "calibration": temperature(held, y, source),
        "novelty": widened(known, far),
    }


# -------------------------------------------------------------------------------------------------- temperature


def temperature(logits: Tensor, y: Tensor, source: str) -> dict[str, Any]:
    """The temperature by which logits (n, C) of items that training has not seen give y (n,) the largest likelihood
    (Guo et al., ICML 2017), its 90% interval over bootstrap draws of the items, and where it is from. A share of
    1 / (n + 2) of each item counts for all classes alike (Platt, 1999): few items that are all right prove little.

    Returns {"temperature", "low", "high": float, "n": int, "source": source, "accuracy": float, of these items}; where
    n is 0 temperature 1 and accuracy None."""
    if not len(y):
        return {"temperature": 1.0, "low": 1.0, "high": 1.0, "n": 0, "source": "none", "accuracy": None}
    smooth = 1 / (len(y) + 2)
    of = lambda t: F.cross_entropy(logits.double() / t, y, reduction="none", label_smoothing=smooth)
    loss = torch.stack([of(t) for t in TEMPERATURES], 1)  # (n, temperatures)
    generator = torch.Generator().manual_seed(0)
    draws = torch.randint(len(y), (DRAWS, len(y)), generator=generator)
    counts = torch.zeros(DRAWS, len(y), dtype=loss.dtype).scatter_add_(
        1, draws, torch.ones_like(draws, dtype=loss.dtype)
    )
    drawn = TEMPERATURES[(counts @ loss).argmin(1)]
    best = TEMPERATURES[loss.sum(0).argmin()].item()
    low, high = drawn.quantile(torch.tensor([0.05, 0.95], dtype=loss.dtype)).tolist()
    right = (logits.argmax(1) == y).double().mean().item()
    return {"temperature": best, "low": low, "high": high, "n": len(y), "source": source, "accuracy": right}


def posteriors(run: dict[str, Any], logits: Tensor) -> Tensor:
    """Posteriors (n, C) of logits (n, C) at the temperature of a METHOD.pt."""
    return (logits / run["calibration"]["temperature"]).softmax(-1)


def reliability(p: Tensor, y: Tensor) -> tuple[float, list[list[float]]]:
    """Expected calibration error of posteriors p (n, C) for y (n,), over 15 bins of equal width, and the bins that
    have items: [mean confidence, accuracy, count]."""
    confidence, guess = p.double().max(1)
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    right = (guess == y).double()
    count = torch.bincount(place, minlength=BINS)
    bins = torch.stack([torch.bincount(place, weights=w, minlength=BINS) for w in (confidence, right)], 1)
    error = (bins[:, 0] - bins[:, 1]).abs().sum().item() / max(1, len(y))
    return error, [[c / n, r / n, int(n)] for (c, r), n in zip(bins.tolist(), count.tolist()) if n]


def judgement(run: dict[str, Any], logits: Tensor, y: Tensor) -> dict[str, Any]:
    """What test items, logits (n, C) and y (n,), say of a run's calibration: the expected calibration error before
    and after, the bins, and what abstaining below a confidence leaves: {"0.8": [share, accuracy or None]}."""
    p = posteriors(run, logits)
    error, bins = reliability(p, y)
    confidence, guess = p.max(1)
    abstain = {}
    for least in (0.5, 0.7, 0.8, 0.9):
        kept = confidence >= least
        right = (guess == y)[kept].double().mean().item() if kept.any() else None
        abstain[str(least)] = [kept.double().mean().item(), right]
    before = reliability(logits.softmax(-1), y)[0]
    return {**run["calibration"], "ece_before": before, "ece": error, "bins": bins, "abstain": abstain}


# ------------------------------------------------------------------------------------------------ cross-fitting


def cross_fit(seed: Seed, args: Namespace) -> tuple[Tensor, Tensor, Tensor, int]:
    """Logits (n, C), labels (n,) and distances (n,), in those of 95% of the training items, of the labelled items,
    each by a learner that stages 2 and 3 made without its part of args.folds parts, or fewer where no class has as
    many items; and the number of parts. These runs lie in SEED/folds and go on after a stop. UserError: one fails."""
    at = {i: r for r, i in enumerate(seed.oom["ids"])}
    of_class = torch.bincount(seed.oom["labels"][[at[i] for i in seed.connect["labelled"]]])
    folds, found = min(args.folds, int(of_class.max())), []  # a further part would hold nothing out
    if folds < 2:
        raise UserError(f"--folds {args.folds}: no class has two labelled items; leave it out, or label more")
    own = {k: v for k, v in vars(args).items() if k != "folds"}
    groups = groups_of(seed.oom, torch.tensor([at[i] for i in seed.connect["labelled"]]))
    folds = folds if groups is None else max(2, min(folds, len(groups.unique())))
    for k in range(folds):
        runs = seed.place.folder / "folds" / f"{k}of{folds}"
        print(f"  fold {k + 1} of {folds}", flush=True)
        try:
            part = again.stages(seed, runs, {"fold": f"{k}/{folds}"}, own)
        except UserError as e:
            raise UserError(f"--folds {args.folds}, part {k + 1}, {e}; or give fewer --folds, 0: none") from None
        run, held = load(part.method(args.method, args.tag)), load(part.connect)["held"]
        rows = torch.tensor([at[i] for i in held], dtype=torch.long)
        z, logits = model_of(run, args.device)(seed.oom, rows)
        far = distance(run["novelty"], z) / run["novelty"]["trained"]
        found.append((logits, seed.oom["labels"][rows], far))
    logits, y, far = (torch.cat(parts) for parts in zip(*found))
    return logits, y, far, folds


# ------------------------------------------------------------------------------------------------------- novelty


def familiar(z: Tensor, guess: Tensor) -> dict[str, Any]:
    """What tells how unlike the training items an item is: of features z (n, d) and their classes guess (n,), the
    class means, the inverse of the covariance within classes (Lee et al., NeurIPS 2018), and the distance that
    95% of the items are within. Returns {"means": (C', d), "precision": (d, d), "distance" and "trained": float."""
    z = z.double()
    means = torch.stack([z[guess == c].mean(0) for c in guess.unique()])
    own = torch.bucketize(guess, guess.unique())
    within = (z - means[own]).T @ (z - means[own]) / len(z)
    within += 1e-2 * within.diagonal().mean().clamp(min=1e-12) * torch.eye(z.shape[1], dtype=z.dtype)
    state = {"means": means, "precision": torch.linalg.inv(within), "distance": 1.0}
    state["distance"] = distance(state, z).quantile(BEYOND).clamp(min=1e-12).item()
    bound = {"distance": state["distance"], "trained": state["distance"]}
    return {"means": means.float(), "precision": state["precision"].float(), **bound}


def widened(state: dict[str, Any], far: Tensor) -> dict[str, Any]:
    """`familiar`'s state whose distance is that of 95% of the items that training has not seen: far (n,) is theirs in
    units of the training items'. Fewer than 20 items change nothing, nor does a distance below the training items'."""
    grown = far.quantile(BEYOND).clamp(min=1).item() if len(far) >= FEW else 1.0
    return {**state, "distance": state["trained"] * grown}


def distance(state: dict[str, Any], z: Tensor) -> Tensor:
    """Mahalanobis distance (n,) float64 of z (n, d) to the nearest class mean."""
    means, precision, found = state["means"].double(), state["precision"].double(), []
    for part in z.double().split(TILE):
        off = part[:, None] - means  # (TILE, C', d)
        found.append(((off @ precision) * off).sum(-1).clamp(min=0).sqrt().amin(1))
    return torch.cat(found)


def novelty(run: dict[str, Any], z: Tensor) -> Tensor:
    """How unlike the training items a METHOD.pt takes items with features z (n, d) to be (n,): above 1 where they
    are farther from the nearest class than 95% of these."""
    return (distance(run["novelty"], z) / run["novelty"]["distance"]).float()
