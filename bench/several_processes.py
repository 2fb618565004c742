"""What several processes save: CPU seconds of each part of stage 3 that is shared out, by rank, and a digest of it.

    for n in 1 2; do OMP_NUM_THREADS=1 torchrun --nproc-per-node $n bench/several_processes.py; done

M = N = 8,192 items (images of 32 x 32; the learner has width 64, depth 4), K = 2. The sum over ranks says what sharing
costs, the largest of one rank what it saves where every rank has a core of its own. Equal digests: the same bits.
"""

import argparse
import hashlib
import resource
import time
from argparse import Namespace

import torch
import torch.nn.functional as F

from cox_oom import loader, ranks
from cox_oom.augment import augment, embed
from cox_oom.correspond import correspond
from cox_oom.descent import Descent
from cox_oom.learner import Learner
from cox_oom.nearest import nearest_anchor, nearest_of_shards

CLASSES, D, P, PAIRS = 20, 60, 80, 400


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(name, call):
    """Print what a call took: over all ranks, of the busiest one, by the clock; and the digest of its tensors."""
    ranks.wait()
    begun, clock = cpu(), time.perf_counter()
    found = call()
    used = torch.zeros(ranks.world, 2, dtype=torch.float64)
    used[ranks.rank] = torch.tensor([cpu() - begun, time.perf_counter() - clock])
    used = ranks.gather(used)
    h = hashlib.sha256(b"".join(t.detach().contiguous().numpy().tobytes() for t in found))
    if ranks.rank == 0:
        print(
            f"{ranks.world} ranks  {name:28s} CPU {used[:, 0].sum():6.2f} s, busiest {used[:, 0].max():6.2f}, "
            f"clock {used[:, 1].max():6.2f}  {h.hexdigest()[:10]}",
            flush=True,
        )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--items", type=int, default=8192)
    p.add_argument("--steps", type=int, default=16)
    args = p.parse_args()
    ranks.begin("cpu")
    n, g = args.items, torch.Generator().manual_seed(0)
    y = torch.cat([torch.arange(CLASSES), torch.randint(CLASSES, (n - CLASSES,), generator=g)])
    x = torch.randn(CLASSES, P, generator=g)[y] + torch.randn(n, P, generator=g)
    z = x @ torch.randn(P, D, generator=g) / 9 + 0.7 * torch.randn(n, D, generator=g)
    partner = torch.arange(n).where(torch.arange(n) < PAIRS, torch.tensor(-1))
    shares, bank = torch.bincount(y, minlength=CLASSES) / n, torch.stack([z, z.flip(1)])
    pixels, ones = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=g), torch.ones(3, 1, 1)
    file = {"kind": "image", "x": pixels, "lengths": None, "mean": 128 * ones, "std": 64 * ones}
    torch.manual_seed(0)
    learner = Learner(kind="image", shape=[3, 32, 32], width=64, depth=4, patch=8)
    model = torch.nn.ModuleDict({"learner": learner, "head": torch.nn.Linear(64, CLASSES)})
    more = Namespace(lr=1e-3, weight_decay=1e-5, seed=0, device="cpu", labelled_batch=64, batch=128)

    def train(fast):
        descent = Descent(model, Namespace(**vars(more), fast=fast, compile=None), 3)

        def terms(part):
            logits = model.head(learner(*augment("image", part.x, None, "strong")))
            return {"labelled": F.cross_entropy(logits, y[part.j], reduction="sum") / 128}

        rows = [torch.randint(n, (192,), generator=g) for _ in range(args.steps)]
        draws = ((r[:64], y[r[:64]], r, r[:0], r) for r in rows)
        for step, parts in enumerate(loader.steps(file, draws, descent.count, "cpu")):
            descent.step(step, 1e-3, parts, terms)
        return list(model.state_dict().values())

    train(None)  # what a first step makes once
    timed("embed", lambda: [embed(learner, file, torch.arange(n), "cpu")])
    timed("nearest_anchor, by queries", lambda: nearest_anchor(z * 1.01, bank))
    timed("nearest_anchor, by shards", lambda: nearest_of_shards(z * 1.01, [*bank], 1024))
    timed("correspond, 2 rounds", lambda: correspond(z, y.where(partner >= 0, -1), partner, x, y, shares, rounds=2))
    timed(f"{args.steps} steps", lambda: train(None))
    timed(f"{args.steps} steps, --fast", lambda: train(True))


if __name__ == "__main__":
    main()
