"""Memory of stage 1 by the number of rows: images of 224 x 224 whose file is never in memory as a whole.

    python bench/extract_memory.py --rows 2000 20000 --folder /tmp/many

Writes a folder of so many images (64 differ, the others are links to them), runs stage 1 on it with two worker
processes, and prints for each number of rows: seconds, the largest size in memory of the process and of a worker in MB,
beside that of a process that has imported stage 1 alone. --limit GB: the address space that each may have (ulimit -v).
"""

import argparse
import csv
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DIFFERENT, SIZE = 64, 224
RUN = """
import resource, sys
sys.path.insert(0, {root!r})
import extract_features
if {argv!r}:
    extract_features.main({argv!r})
size = lambda who: resource.getrusage(who).ru_maxrss * 1024 / 1e6
print("peak", size(resource.RUSAGE_SELF), size(resource.RUSAGE_CHILDREN))
"""


def write(folder, rows):
    """A folder with so many images and their sentences."""
    rng = np.random.default_rng(0)
    (folder / "camera").mkdir(parents=True, exist_ok=True)
    table = [("id", "split", "label", "language", "camera")]
    for k in range(rows):
        path = folder / f"camera/{k}.npy"
        if not path.exists() and k < DIFFERENT:
            np.save(path, rng.integers(0, 255, (3, SIZE, SIZE), dtype=np.uint8))
        elif not path.exists():
            os.link(folder / f"camera/{k % DIFFERENT}.npy", path)
        table.append((f"i{k}", "train" if k % 10 else "test", "ab"[k % 2], f"thing {k % 2}", f"camera/{k}.npy"))
    with open(folder / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows(table)


def peak(argv, limit):
    """(MB of the process, MB of its largest worker) of stage 1, or of its import alone where argv is empty."""
    bound = lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)) if limit else None
    script = RUN.format(root=str(ROOT), argv=argv)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, preexec_fn=bound)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return [float(n) for n in done.stdout.splitlines()[-1].split()[1:]]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rows", type=int, nargs="+", default=[2000, 20000])
    p.add_argument("--folder", type=Path, required=True)
    p.add_argument("--limit", type=float, default=0, help="GB of address space; 0: no limit")
    p.add_argument("--workers", type=int, default=2)
    args = p.parse_args()
    base, _ = peak([], 0)
    print(f"import alone: {base:.0f} MB")
    for rows in args.rows:
        write(args.folder / str(rows), rows)
        argv = f"--data {args.folder / str(rows)} --oom camera --bind-epochs 0 --force --runs {args.folder / 'runs'}"
        begun = time.time()
        own, worker = peak([*argv.split(), "--workers", str(args.workers)], int(args.limit * 1e9))
        print(f"{rows} rows: {time.time() - begun:.0f} s, {own:.0f} MB (+ {own - base:.0f}), a worker {worker:.0f} MB")


if __name__ == "__main__":
    main()
