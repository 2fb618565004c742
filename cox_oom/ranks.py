"""Several processes and machines: torchrun starts them, torch.distributed joins them. One alone is a world of 1.

All do the same, but for work that is shared out in whole units. Results have the same bits for any number on machines
of one kind: a unit is computed as one process would, sums over units are exact. Rank 0 alone prints and writes files.
"""

import atexit
import os
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # of the environment: a process started without them is alone
rank, world = int(os.environ.get(NAMES[0], 0)), int(os.environ.get(NAMES[1], 1))


def begin(device: str) -> tuple[int, int, str]:
    """Join the other processes: (rank, world, this process's device)."""
    if (gpu := device.startswith("cuda")) and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    if world > 1 and not dist.is_initialized():  # nobody knows how long rank 0 reads or writes alone
        dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)  # else its threads may abort a process that has done all
    return rank, world, device


def share(rows: int, unit: int) -> list[slice]:
    """This rank's part of so many rows, in units of `unit` rows: unit k is that of rank k % world."""
    return [slice(begin, min(begin + unit, rows)) for begin in range(rank * unit, rows, world * unit)]


def gather(out: Tensor) -> Tensor:
    """`out`, in which every rank has filled its own rows of zeros, with the rows of all ranks, in place."""
    if world > 1:
        dist.all_reduce(out.view(torch.uint8))  # of all bytes but one is 0: the sum is every bit of that
    return out


class Total:
    """A sum over units and ranks in fixed point, the same bits in any order: of multiples of limit * 2^-52 (usually
    2^-40), which float64 adds exactly up to `limit`. Beyond it rounds as usual; NaN and infinity stay what they are."""

    def __init__(self, *shape: int, device: str | torch.device = "cpu", limit: float = 2.0**12) -> None:
        self.whole, self.shift = torch.zeros(shape, dtype=torch.float64, device=device), 1.5 * limit

    def add(self, t: Tensor) -> None:
        """Add floats t (shape)."""
        tile = 1 << 16 if self.whole.device.type == "cpu" else max(1, self.whole.numel())  # so it stays in the cache
        for whole, part in zip(self.whole.view(-1).split(tile), t.reshape(-1).split(tile)):
            whole += part.double().add(self.shift).sub_(self.shift)  # what the shift leaves

    def result(self) -> Tensor:
        """The sum over all ranks (shape), float64; this one begins anew."""
        whole, self.whole = self.whole, torch.zeros_like(self.whole)
        if world > 1:
            dist.all_reduce(whole)
        return whole


def told(value: Any) -> Any:
    """Rank 0's plain value, on every rank."""
    if world > 1:
        dist.broadcast_object_list(box := [value])
    return box[0] if world > 1 else value


def wait() -> None:
    """Until all processes are here."""
    gather(torch.zeros(1))


def first(write: Callable[..., Any], *args: Any, **named: Any) -> None:
    """When all are here rank 0 calls write(...), and the others wait until it has returned."""
    wait()
    if rank == 0:
        write(*args, **named)
    wait()


def lead(make: Callable[..., Any], args: Any, *more: Any) -> Any:
    """make(args, ...): rank 0 makes its files, then the others find them there, whatever args.force says."""
    found = make(args, *more) if rank == 0 else None
    wait()
    return found if rank == 0 else make(Namespace(**{**vars(args), "force": False}), *more)
