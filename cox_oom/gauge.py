"""How much the readings and the known modalities have in common, told from the labelled pairs alone: a gauge, printed
before training and kept in METHOD.pt.

Shapes: P pairs, z (P, d) readings, x (P, p) IM vectors of the same instances, C classes.

Every measure comes with what it is of pairs that are mixed up at random: a raw one grows with the dimensions and is
far from 0 where nothing is shared (Davari et al., ICLR 2023)."""

from typing import Any

import torch
from torch import Tensor

DRAWS, MOST = 199, 300  # permutations; pairs that are weighed at most


def cka(z: Tensor, x: Tensor) -> Tensor:
    """Linear CKA of z and x, 0 to 1 (Kornblith et al., ICML 2019)."""
    z, x = z - z.mean(0), x - x.mean(0)
    return (z.T @ x).square().sum() / ((z.T @ z).norm() * (x.T @ x).norm()).clamp(min=1e-30)


def neighbours(z: Tensor, count: int) -> Tensor:
    """(P, P) bool: is the column's item among the `count` nearest of the row's."""
    far = torch.cdist(z, z).fill_diagonal_(torch.inf)
    return torch.zeros_like(far, dtype=torch.bool).scatter(1, far.topk(count, largest=False).indices, True)


def explained(z: Tensor, x: Tensor, y: Tensor, ridge: float) -> Tensor:
    """Share (n,) of the variance of z (n, P, d) that a ridge regression on x explains in classes that it was not fitted
    to, each of y (P,) in turn; below 0 where the mean does better."""
    left = around = torch.zeros(len(z), dtype=z.dtype)
    for c in y.unique():
        out = y == c
        a = x[~out] - x[~out].mean(0)
        kernel = a @ a.T + ridge * torch.eye(len(a), dtype=a.dtype)
        weights = torch.linalg.solve(kernel, a @ (x[out] - x[~out].mean(0)).T).T  # (items out, items in)
        mean = z[:, ~out].mean(1, keepdim=True)
        off = z[:, out] - mean
        left = left + (off - weights @ (z[:, ~out] - mean)).square().sum((1, 2))
        around = around + off.square().sum((1, 2))
    return 1 - left / around.clamp(min=1e-30)


def above_chance(found: float, drawn: Tensor) -> dict[str, float]:
    """A measure `found` beside those of mixed pairs, drawn (n,): how far above their mean it is, as a share of what is
    left to 1, and the chance p of one as large among the mixed."""
    null = drawn.mean().item()
    p = (1 + int((drawn >= found).sum())) / (1 + len(drawn))
    return {"raw": found, "value": (found - null) / max(1e-12, 1 - null), "p": p}


def gauge(z: Tensor, x: Tensor, y: Tensor, ridge: float = 200.0) -> dict[str, Any]:
    """{"pairs": P, "cka", "neighbours", "left_out": above_chance's} of pairs z (P, d), x (P, p) of classes y (P,): CKA,
    the share of common nearest neighbours, and `explained` of left-out classes. Deterministic."""
    stride = -(-len(z) // MOST)
    z, x, y = z[::stride].cpu().double(), x[::stride].cpu().double(), y[::stride].cpu()
    count = max(1, min(10, len(z) // 8))
    near_z, near_x = neighbours(z, count), neighbours(x, count)
    g = torch.Generator().manual_seed(0)
    orders = [torch.arange(len(z)), *(torch.randperm(len(z), generator=g) for _ in range(DRAWS))]
    each = {
        "cka": torch.stack([cka(z[o], x) for o in orders]),
        "neighbours": torch.stack([(near_z[o][:, o] & near_x).sum() / near_z.sum() for o in orders]),
        "left_out": explained(torch.stack([z[o] for o in orders]), x, y, ridge),
    }
    return {"pairs": len(z), **{name: above_chance(v[0].item(), v[1:]) for name, v in each.items()}}


def in_words(found: dict[str, Any]) -> str:
    """A gauge in one line."""
    names = {"cka": "CKA", "neighbours": "neighbours", "left_out": "variance of left-out classes"}
    parts = (f"{name} {found[k]['value']:+.2f} (p = {found[k]['p']:.3f})" for k, name in names.items())
    return f"in common on {found['pairs']} pairs, above chance: {', '.join(parts)}"
