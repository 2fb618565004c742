"""The definition of each operator in a few lines of plain torch, in the dtype it is given.

Meant for checks in float64: slow and large in memory on purpose. Needs no build: load it by its path where
cox_ops is not compiled.
"""

from collections.abc import Iterable

import torch
from torch import Tensor


def pairwise_distances(x: Tensor, y: Tensor, squared: bool = False) -> Tensor:
    square = (x[..., :, None, :] - y[..., None, :, :]).square().sum(-1)
    if squared:
        return square
    zero = square == 0
    return torch.where(zero, 0, torch.where(zero, 1, square).sqrt())  # subgradient 0 at distance 0


def pairwise_distances_backward(grad: Tensor, x: Tensor, y: Tensor, dist: Tensor, squared: bool) -> tuple[Tensor, ...]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(pairwise_distances(x, y, squared), (x, y), grad)


def nearest_anchor(z: Tensor, v: Tensor, tile: int = 0) -> tuple[Tensor, Tensor]:
    acc = torch.float64 if z.dtype == torch.float64 else torch.float32
    distance = torch.stack([pairwise_distances(z.double(), vk.double()) for vk in v])  # (K, M, N)
    finite = distance.square().to(acc).isfinite().all(0)
    mean = torch.where(finite, distance.mean(0).to(acc), float("inf"))  # rounded once, before they are compared
    mean = torch.cat([mean, mean.new_full((len(z), 1), float("inf"))], 1)  # (M, N + 1)
    score = mean.min(1).values
    index = torch.arange(mean.shape[1], device=z.device).expand_as(mean)
    index = torch.where(mean == score[:, None], index, mean.shape[1]).min(1).values  # the lowest of equals
    return score, torch.where(score.isfinite(), index, -1)


def top_anchors(
    score: Tensor,
    t: int,
    *,
    largest: bool = False,
    classes: Tensor | None = None,
    quota: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    chosen: list[int] = []
    taken: dict[int, int] = {}
    for s, i in sorted((-s if largest else s, i) for i, s in enumerate(score.tolist()) if s == s):
        c = 0 if classes is None else int(classes[i])
        ok = s < float("inf") and c >= 0 and (mask is None or bool(mask[i]))
        if ok and len(chosen) < t and (quota is None or taken.get(c, 0) < quota):
            taken[c] = taken.get(c, 0) + 1
            chosen.append(i)
    return torch.tensor(chosen + [-1] * (t - len(chosen)), dtype=torch.int64, device=score.device)


def modality_agreement(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = logits.softmax(-1)  # (K, M, C)
    arg = logits.argmax(-1)  # the first of equals on the CPU
    bad = p.isnan().any(-1).any(0)
    mask = (arg == arg[0]).all(0) & ~bad
    return mask, torch.where(mask, arg[0], -1), p.amax(-1).mean(0).masked_fill(bad, float("nan"))


def heads_agreement(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return modality_agreement(z @ weight.mT + bias[:, None])


def soft_correspondence(
    z: Tensor,
    means: Tensor,
    x: Tensor,
    classes: Tensor,
    bias: Tensor,
    labels: Tensor | None = None,
    *,
    freedom: float,
) -> tuple[Tensor, ...]:
    d, far = z.shape[1], pairwise_distances(z, means, squared=True)  # (M, N)
    student = freedom < float("inf")
    logits = bias[classes] - ((freedom + d) / 2 * (far / freedom).log1p() if student else far / 2)
    if labels is not None:
        logits = logits.masked_fill((labels >= 0)[:, None] & (labels[:, None] != classes), -float("inf"))
    q = logits.softmax(1).nan_to_num(0)  # no item of the label's class: no share
    w = q * (freedom + d) / (freedom + far) if student else q
    posterior = z.new_zeros(len(z), len(bias)).index_add(1, classes, q)
    best = torch.cat([posterior, torch.zeros_like(posterior[:, :1])], 1).topk(2, 1).values
    margin, evidence = best[:, 0] - best[:, 1], logits.logsumexp(1)
    return posterior, q @ x, margin, evidence, w.sum(0), w.mT @ z, (z * w.sum(1)[:, None]).mT @ z


def mmd(x: Tensor, y: Tensor, bandwidths: Iterable[float] | Tensor) -> Tensor:
    def k(a: Tensor, b: Tensor) -> Tensor:
        d2 = pairwise_distances(a, b, squared=True)
        return torch.stack([(-d2 / s).exp() for s in bandwidths]).mean(0).mean()

    return k(x, x) + k(y, y) - 2 * k(x, y)


def mmd_backward(grad: Tensor, x: Tensor, y: Tensor, bandwidths: Iterable[float] | Tensor) -> tuple[Tensor, ...]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    with torch.enable_grad():
        return torch.autograd.grad(mmd(x, y, bandwidths), (x, y), grad)
