"""The largest memory of stage 3 at several numbers of items: it grows as the items do.

    python -m bench.explore_memory                       2,000 to 16,000 items; some minutes on one core
    python -m bench.explore_memory --items 2000 4000 --method selftrain

A folder of three short series, all truly paired, goes through stages 1 to 3 with a small learner. Peaks are those of
the process of stage 3 (the kernel's ru_maxrss, by wait4), beside that of a process that has imported the same.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
CLASSES, CHANNELS, STEPS = 10, 4, 16


def get_args():
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--items", type=int, nargs="+", default=[2000, 4000, 8000, 16000], help="OOM items, and IM items")
    p.add_argument("--method", default="cox")
    p.add_argument("--more", default="--epochs 1 --refreshes 1 --rounds 1", help="further flags of stage 3")
    return p.parse_args()


def write_folder(folder, items):
    """`items` train rows and 100 test rows of three modalities, series (4, 16) around the means of 10 classes."""
    rng, names = np.random.default_rng(0), ("a", "b", "sonar")
    means = {m: rng.standard_normal((CLASSES, CHANNELS, STEPS)) for m in names}
    for m in names:
        (folder / m).mkdir(parents=True)
    with open(folder / "manifest.csv", "w", newline="") as f:
        table = csv.writer(f)
        table.writerow(["id", "split", "label", *names])
        for i in range(items + 100):
            for m in names:
                x = means[m][i % CLASSES] + rng.standard_normal((CHANNELS, STEPS))
                np.save(folder / m / f"{i}.npy", x.astype(np.float32))
            split = "train" if i < items else "test"
            table.writerow([f"{i:06d}", split, f"class{i % CLASSES}", *(f"{m}/{i}.npy" for m in names)])


def peak(*command):
    """MB that a process held at most; SystemExit where it fails."""
    child = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {child.returncode}")
    return usage.ru_maxrss / 1000


def measure(folder, items, args):
    """MB of stage 3."""
    write_folder(folder / "data", items)
    common = ["--data", str(folder / "data"), "--oom", "sonar", "--runs", str(folder / "runs")]
    peak("extract_features.py", *common, "--bind-epochs", "2", "--workers", "0")
    peak("train_connect.py", *common, *"--width 32 --depth 2 --warmup-epochs 2 --connect-steps 50".split())
    return peak("train_explore.py", *common, "--method", args.method, *args.more.split())


def main():
    args = get_args()
    idle = peak("-c", "import train_explore")
    print(f"imports alone: {idle:.0f} MB", flush=True)
    for items in args.items:
        with tempfile.TemporaryDirectory(prefix="cox-bench-") as folder:
            mb = measure(Path(folder), items, args)
        print(f"{items} items: {mb:.0f} MB, {1000 * (mb - idle) / items:.1f} kB an item above the imports", flush=True)


if __name__ == "__main__":
    main()
