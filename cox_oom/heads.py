"""Heads: linear classifiers on features, the "optimal classifiers" of Section 4.1, and class frequencies for them.

Shapes: N items, M OOM items, C classes, d features.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cox_oom import optimizers


class Head(nn.Module):
    """A linear classifier on standardised features: h_k on z_im[k], h*_k on mapped items, h on z (Section 4.1)."""

    mean: Tensor
    std: Tensor

    def __init__(self, d: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("std", torch.ones(d))
        self.linear = nn.Linear(d, classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.linear((z - self.mean) / self.std)

    def folded(self) -> tuple[Tensor, Tensor]:
        """(weight (C, d), bias (C,)) of the same function of plain features."""
        weight = self.linear.weight / self.std
        return weight, self.linear.bias - weight @ self.mean


def deviation(z: Tensor) -> Tensor:
    """Standard deviation (d,) of each feature of z (N, d); 1 where a feature is constant up to the rounding of its
    mean."""
    std = z.std(0, correction=0)
    return torch.where(std > 1e-5 * z.abs().amax(0), std, torch.ones_like(std))


def fit_head(
    z: Tensor,
    y: Tensor,
    classes: int,
    *,
    steps: int = 200,
    lr: float = 0.02,
    weight_decay: float = 1e-3,
    whole: int = 32768,
    batch: int = 8192,
    generator: torch.Generator | None = None,
) -> Head:
    """The "optimal classifier" of features: softmax regression on z (N, d), y (N,) or class posteriors (N, C).

    Full batches up to `whole` items, random ones of `batch` beyond. Returns a frozen Head on z's device.
    """
    head = Head(z.shape[1], classes)
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    head.mean.copy_(z.mean(0))
    head.std.copy_(deviation(z))
    head.to(z.device)
    x = (z - head.mean) / head.std
    opt: torch.optim.Optimizer

    def loss_of(i: Tensor | slice) -> Tensor:
        return F.cross_entropy(head.linear(x[i]), y[i]) + weight_decay * head.linear.weight.square().sum()

    def step(i: Tensor | slice) -> Tensor:
        opt.zero_grad()
        loss = loss_of(i)
        loss.backward()
        return loss

    with torch.enable_grad():
        if len(x) <= whole:  # convex and whole: L-BFGS needs a fifth of the passes
            opt = optimizers.LBFGS(
                head.linear.parameters(), max_iter=steps // 5, history_size=10, line_search_fn="strong_wolfe"
            )
            opt.step(lambda: step(slice(None)))
        else:
            opt = optimizers.AdamW(head.linear.parameters(), lr=lr, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
            for _ in range(steps):
                step(torch.randint(len(x), (batch,), generator=generator).to(x.device))
                opt.step()
                schedule.step()
    return head.requires_grad_(False)


@torch.no_grad()
def move_head(linear: nn.Linear, head: Head, share: float) -> None:
    """Move a Linear (d, C) by `share` of the way to what a Head computes: their logits are averaged, the layer stays
    one."""
    weight, bias = head.folded()
    linear.weight.lerp_(weight, share)
    linear.bias.lerp_(bias, share)


def match_shares(
    logits: Tensor, shares: Tensor, coverage: float = 1.0, free: Tensor | float = 0.0, rounds: int = 10
) -> Tensor:
    """Biases (C,) under which the mean posterior of logits (M, C) is `shares` (C,): a few rounds of Sinkhorn's scaling.

    The IM side knows how frequent the classes are; a head fitted to few OOM items does not, and names some far too
    often. coverage: for which part of the items the IM side knows it; the others keep the mean posterior of logits +
    `free` (C,)."""
    if coverage < 1:
        own = (logits + free).softmax(-1).mean(0) * (shares > 0)
        shares = coverage * shares + (1 - coverage) * own / own.sum()
    bias = torch.zeros_like(shares)
    for _ in range(rounds):
        bias = bias + shares.clamp(min=1e-6).log() - (logits + bias).softmax(-1).mean(0).clamp(min=1e-6).log()
    return bias - bias.mean()
