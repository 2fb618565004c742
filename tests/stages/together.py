"""What test_ranks.py starts by torchrun: what is shared out without files, then stages in the same processes.

    torchrun --nproc-per-node 2 tests/stages/together.py DIE FOLDER RUNS OUT [STAGE FLAGS...]...

DIE: rank 1 kills itself at this checkpoint, 0: at none. OUT: the file of what `shared` gave."""

import os
import signal
import sys

import torch
import worlds

from cox_oom import ranks, run
from cox_oom.nearest import nearest_anchor, nearest_of_shards


def shared():
    """{name: tensor} of sums, rows and searches that go round the ranks."""
    g = torch.Generator().manual_seed(0)
    z, bank = torch.randn(9000, 3, generator=g), torch.randn(2, 105, 3, generator=g).round(decimals=1)
    total, rows = ranks.Total(3), torch.zeros(len(z), 2)
    for own in ranks.share(len(z), 700):
        total.add(z[own].sum(0))
        rows[own] = -z[own, :2] * 0.0  # of both signs
    whole = dict(zip(("score", "index"), nearest_anchor(z, bank)))
    parts = dict(zip(("score of shards", "index of shards"), nearest_of_shards(z, [*bank], 10)))
    return {"total": total.result(), "rows": ranks.gather(rows).view(torch.int32), **whole, **parts}


def main(die, folder, runs, out, *calls):
    checkpoint, written = run.Work.checkpoint, []

    def deadly(*args):
        checkpoint(*args)
        written.append(args)
        if len(written) == int(die) and ranks.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    run.Work.checkpoint = deadly
    ranks.begin("cpu")
    found = shared()
    if ranks.rank == 0:
        torch.save(found, out)
    with worlds.quickly():
        for stage, _, flags in (call.partition(" ") for call in calls):
            run.script(worlds.STAGES[stage].main, worlds.argv(stage, folder, runs, flags), together=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
