"""Steps of training, which are the same for any number of processes."""

from argparse import Namespace
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cox_oom import optimizers, ranks
from cox_oom.augment import reseed
from cox_oom.loader import Part, parts_of

FAST = (  # flags of stages 2 and 3; None: left out, as in files that are older than they
    (
        "--fast",
        None,
        None,
        "a step is one part a process, summed in float32: other last bits for other numbers of these",
    ),
    ("--compile", None, None, "compile the learner (torch.compile): it takes a minute and gives other last bits"),
)


def adam(parameters: Iterable[Tensor], lr: float, weight_decay: float) -> torch.optim.Adam:
    """The optimizer of everything that is trained in steps."""
    return optimizers.Adam(parameters, lr=lr, weight_decay=weight_decay, fused=True)


class Descent:
    """Steps of an optimizer down the sum of a loss's terms, of `count` parts each (loader.steps), this rank's share of
    them here. A part's augmentation is seeded by (seed, stage, step, part), and the gradients of the parts are summed
    in fixed point: a step has the same bits for any number of processes. args.fast: there are as many parts as
    processes, summed in float32, as DistributedDataParallel does."""

    def __init__(self, model: Any, args: Namespace, stage: int) -> None:
        self.moved = [p for p in model.parameters() if p.requires_grad]
        self.optimizer, self.fast = adam(self.moved, args.lr, args.weight_decay), bool(args.fast)
        sizes = [args.labelled_batch, args.batch] if stage == 3 else [args.labelled_batch]
        self.count, self.key = ranks.world if self.fast else parts_of(model.learner.tokens, *sizes), (args.seed, stage)
        self.amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled="cuda" in args.device)
        self.names: list[str] = []  # of the terms
        self.used: list[nn.Parameter] = []  # that the terms have a gradient for
        self.gradient = self.sums = ranks.Total()
        if ranks.world > self.count:
            print(f"  note: a step has {self.count} parts, so that {self.count} of the {ranks.world} processes train")
        if args.compile:
            model.learner.compile()

    def step(self, number: int, lr: float, parts: list[Part], terms: Callable[[Part], dict[str, Tensor]]) -> None:
        """Step `number` at a learning rate; terms(part): {name: a part's share of a loss}. The host waits for
        nothing of the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.zero_grad()
        for part in parts:
            reseed(*self.key, number, part.k)
            with self.amp:
                found = terms(part)
                loss: Any = sum(found.values())  # sum may be the int 0, says its type
            loss.backward()
            self.add(found, loss)
        self.share()
        self.optimizer.step()
        reseed(*self.key, number)

    def add(self, found: dict[str, Tensor], loss: Tensor) -> None:
        """Take in a part's terms and gradient."""
        if not self.used:
            self.agree([*found])
        self.sums.add(torch.stack([loss, *found.values()]).detach())
        if not self.fast:
            self.gradient.add(torch.cat([p.grad.flatten() for p in self.used if p.grad is not None]))
            self.optimizer.zero_grad()

    def agree(self, names: list[str]) -> None:
        """At an epoch's first step: names and parameters are those that rank 0 finds, which always has a part."""
        self.names, used = ranks.told((names, [p.grad is not None for p in self.moved]))
        self.used = [p for p, has in zip(self.moved, used) if has]
        size, device = sum(p.numel() for p in self.used), self.used[0].device
        self.gradient = ranks.Total(size, device=device)
        self.sums = ranks.Total(1 + len(self.names), device=device, limit=2.0**22)  # of an epoch

    def share(self) -> None:
        """Give every rank the gradient of all parts."""
        if not self.used:  # a step has fewer parts than there are processes
            self.agree([])
        if self.fast and ranks.world == 1:
            return
        if self.fast:
            whole = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.used])
            torch.distributed.all_reduce(whole)
        else:
            whole = self.gradient.result().float()
        for p, part in zip(self.used, whole.split([p.numel() for p in self.used])):
            p.grad = part.view_as(p)

    def means(self, steps: int) -> dict[str, float]:
        """{name: mean over so many steps} of the terms since the last call, and of their sum as "loss"."""
        self.used = []  # the next epoch may have other terms: no anchors were found, say
        return dict(zip(["loss", *self.names], (self.sums.result() / steps).tolist()))
