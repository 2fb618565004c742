"""Batches of an inputs file for training: the rows of a step, cut into parts, on the learner's device.

A GPU's are read a step ahead by a thread, into two buffers in turn, and copied while the GPU computes.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cox_oom import ranks
from cox_oom.augment import normalise
from cox_oom.shards import Shards, take

PARTS, LEAST = (8, 4, 2), 1024  # into how many parts a step may be cut; tokens of a part at least


@dataclass
class Part:
    """Part k of a step, on the device: places i (B,) of labelled items, their labels y (B,), places j (B',) of
    unlabelled ones; x (B or B' or B + B', ...) normalised and lengths of those that are looked at; `at`: where j lies
    in the step's whole batch."""

    k: int
    i: Tensor
    y: Tensor
    j: Tensor
    x: Tensor
    lengths: Tensor | None
    at: slice


def parts_of(tokens: int, *batches: int) -> int:
    """Parts of a step with so many items of each kind, of `tokens` tokens each: 8, or 4, 2, 1 where a part would have
    under 1,024 tokens, too few to keep a processor busy, or none of a kind. Not a word on processes: a step is the same
    for any number of these."""
    return next((n for n in PARTS if sum(batches) * tokens >= n * LEAST and min(batches) >= n), 1)


def steps(file: dict[str, Any], draws: Iterable[tuple[Tensor, ...]], count: int, device: str) -> Iterator[list[Part]]:
    """This rank's Parts of each step, which has `count` in all; draws: a step's i, y and j, and the rows of the inputs
    `file` for i and for j, none of these where they are not looked at."""
    gpu = torch.device(device).type == "cuda"
    scale = {} if file["kind"] == "text" else {k: file[k].to(device) for k in ("mean", "std")}
    send = lambda t: t.pin_memory().to(device, non_blocking=True) if gpu else t
    read = ahead if gpu else at_once
    for parts, x in read(file["x"], own_parts(draws, count), device):
        out, begin = [], 0
        for k, i, y, j, at, rows in parts:
            lengths = send(file["lengths"][rows]) if file.get("lengths") is not None else None
            raw, begin = x[begin : begin + len(rows)], begin + len(rows)
            out.append(Part(k, send(i), send(y), send(j), normalise(raw, lengths, **scale), lengths, at))
        yield out


def own_parts(draws: Iterable[tuple[Tensor, ...]], count: int) -> Iterator[tuple[list[tuple[Any, ...]], Tensor]]:
    """([(k, i, y, j, at, rows)] of this rank's parts, their rows one after the other) of each step."""
    for i, y, j, rows_i, rows_j in draws:
        cut = [t.tensor_split(count) for t in (i, y, j, torch.arange(len(j)), rows_i, rows_j)]
        parts = []
        for k in range(ranks.rank, count, ranks.world):
            *own, at, its_i, its_j = (t[k] for t in cut)
            begin = int(at[0]) if len(at) else 0
            parts.append((k, *own, slice(begin, begin + len(at)), torch.cat([its_i, its_j])))
        rows: list[Any] = [part[-1] for part in parts]
        yield parts, torch.cat([rows_i[:0], *rows])


def at_once(x: Tensor | Shards, rows: Iterable[tuple[Any, Tensor]], device: str) -> Iterator[tuple[Any, Tensor]]:
    """Of each (what, rows (R,)): (what, x[rows]), on the device."""
    for what, r in rows:
        yield what, take(x, r).to(device)


def ahead(x: Tensor | Shards, rows: Iterable[tuple[Any, Tensor]], device: str) -> Iterator[tuple[Any, Tensor]]:
    """The same, read one ahead by a thread into two buffers in turn, for a GPU in pinned memory: what is given out is
    good until the next but one is asked for."""
    gpu = torch.device(device).type == "cuda"
    none = torch.empty((0, *x.shape[1:]), dtype=x.dtype)
    buffers, sent = [none, none], [torch.cuda.Event() if gpu else None for _ in range(2)]

    def fill(n: int, r: Tensor) -> Tensor:
        if event := sent[n]:
            event.synchronize()  # the copy out of this buffer has ended
        if len(buffers[n]) < len(r):
            buffers[n] = torch.empty((len(r), *x.shape[1:]), dtype=x.dtype, pin_memory=gpu)
        return take(x, r, out=buffers[n][: len(r)])

    def give(n: int, what: Any, filled: "Future[Tensor]") -> tuple[Any, Tensor]:
        there = filled.result().to(device, non_blocking=True)
        if event := sent[n]:
            event.record()
        return what, there

    with ThreadPoolExecutor(1, "loader") as pool:
        waiting = None
        for step, (what, r) in enumerate(rows):
            following = step % 2, what, pool.submit(fill, step % 2, r)
            if waiting:
                yield give(*waiting)
            waiting = following
        if waiting:
            yield give(*waiting)
