"""A bank that is larger than memory, searched a shard at a time: seconds, and whether every query finds its item.

    python bench/bank_beyond_memory.py write bank.npy --gb 8
    OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 bench/bank_beyond_memory.py search bank.npy

Queries are items of the bank, drawn at random, with a little noise. To see it with less memory than the machine has,
give a memory cgroup a limit and run both lines in it: pages of the file count there as well.
"""

import argparse
import resource
import time

import numpy as np
import torch

from cox_oom import ranks
from cox_oom.nearest import nearest_of_shards

D, BLOCK = 512, 1 << 16


def write(path, gb):
    """A bank (N, 512) float32 of so many GiB, a block at a time; unit rows."""
    n = int(gb * 2**30) // (4 * D)
    bank = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(n, D))
    for k in range(0, n, BLOCK):
        z = torch.randn(min(BLOCK, n - k), D, generator=torch.Generator().manual_seed(k))
        bank[k : k + len(z)] = torch.nn.functional.normalize(z, dim=1).numpy()
    bank.flush()
    print(f"wrote {path}: {n:,} items, {n * D * 4 / 2**30:.2f} GiB")


def search(path, queries):
    """Find the item of each query."""
    ranks.begin("cpu")
    bank = np.load(path, mmap_mode="r")
    generator = torch.Generator().manual_seed(1)
    own = torch.randint(len(bank), (queries,), generator=generator)
    z = torch.from_numpy(bank[own.numpy()]) + 0.01 * torch.randn(queries, D, generator=generator)
    ranks.wait()
    begun = time.perf_counter()
    index = nearest_of_shards(z, [bank], BLOCK)[1]
    seconds = time.perf_counter() - begun
    if ranks.rank == 0:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(
            f"{ranks.world} processes: {queries} queries in {len(bank):,} items, {(index == own).sum()} found, "
            f"{seconds:.1f} s, {bank.nbytes / 2**30 / seconds:.2f} GiB/s, peak of a process {peak:.2f} GiB"
        )


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=["write", "search"])
    p.add_argument("path")
    p.add_argument("--gb", type=float, default=8)
    p.add_argument("--queries", type=int, default=256)
    args = p.parse_args()
    write(args.path, args.gb) if args.what == "write" else search(args.path, args.queries)


if __name__ == "__main__":
    main()
