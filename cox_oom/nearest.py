"""The nearest item of a bank to each reading: readings shared out among the processes, or a bank beyond memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

import cox_ops
from cox_oom import ranks

UNIT = 4096  # queries that a process takes at once


def nearest_anchor(z: Tensor, mapped: Tensor) -> tuple[Tensor, Tensor]:
    """cox_ops.nearest_anchor, z (M, d) and mapped (K, N, d) -> score (M,), index (M,), the queries shared out."""
    score, index = z.new_zeros(len(z)), torch.zeros(len(z), dtype=torch.long, device=z.device)
    for own in ranks.share(len(z), UNIT):
        score[own], index[own] = cox_ops.nearest_anchor(z[own], mapped)
    return ranks.gather(score), ranks.gather(index)


def nearest_of_shards(z: Tensor, banks: Sequence[Any], size: int) -> tuple[Tensor, Tensor]:
    """The same, with K banks (N, d) of which `size` items at a time are read and searched, shared out among the
    processes: of a bank that a file holds (torch.load with mmap, numpy.load with mmap_mode) no more is in memory. The
    least score wins, of equal ones the lowest index, so the result is that of the whole bank."""
    score, index = z.new_full((len(z),), torch.inf), torch.full((len(z),), -1, device=z.device)
    for own in ranks.share(len(banks[0]), size):
        found, place = cox_ops.nearest_anchor(z, torch.stack([tensor(bank[own]).to(z) for bank in banks]))
        better = found < score  # shards come in order: of equal scores the earlier stays
        score, index = torch.where(better, found, score), torch.where(better, place + own.start, index)
    if ranks.world > 1:
        least = score.clone()
        dist.all_reduce(least, op=dist.ReduceOp.MIN)
        index = torch.where((score == least) & (index >= 0), index, len(banks[0]))
        dist.all_reduce(index, op=dist.ReduceOp.MIN)
        score, index = least, torch.where(index == len(banks[0]), -1, index)
    return score, index


def tensor(x: Any) -> Tensor:
    """A tensor as it is; an array of NumPy, which may be a file that one can only read, as a copy."""
    return x if isinstance(x, Tensor) else torch.from_numpy(np.array(x))
