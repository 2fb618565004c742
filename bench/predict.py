"""What naming new recordings costs: one from a cold start, and many images from their files beside the learner alone.

    python -m bench.predict                                       ViT-T/16 at 224 x 224
    python -m bench.predict --image-size 32 --patch 8 --width 64 --depth 4        the learner of README
    python -m bench.predict --device cuda

A learner with drawn weights and jpg files of 640 x 480 are written to a temporary folder. `--rounds` times in turn:
  import    python -c "import torch", a process of its own
  cold      python -c "import cox_oom; cox_oom.load(METHOD.pt)([one file])", a process of its own
  prepare   100 of the images decoded and prepared, one process
  forward   the learner over the prepared images, in memory, as many at a time as below
  files     Trained.answer: the files by worker processes, decoded and prepared, the learner, confidence, novelty
The medians and the ratio go to bench/results/predict-<device>.md; what was measured with other sizes stays in it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import cox_oom
from bench.extraction_overhead import picture, seconds
from cox_oom import confidence, files
from cox_oom.data import inputs
from cox_oom.learner import new_learner
from cox_oom.predict import CHUNK

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 10


def get_args():
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    for name, default in (("image-size", 224), ("patch", 16), ("width", 192), ("depth", 12), ("items", 1000)):
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--workers", type=int, default=2)
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def write_learner(path, args):
    """A METHOD.pt of an image learner with drawn weights."""
    shape = (3, args.image_size, args.image_size)
    oom = {"kind": "image", "x": torch.zeros((1, *shape), dtype=torch.uint8), "lengths": None}
    oom["class_names"] = [str(c) for c in range(CLASSES)]
    learner, head, arch = new_learner(oom, [], args.width, args.depth, args.patch, 0, "cpu")
    facts = {"kind": "image", "modality": "rgb", "reader": inputs.READER, "longest": 0, "frames": 8, "mels": 64}
    facts |= {"image_size": args.image_size, "series_length": 512, "shape": list(shape), "dtype": "uint8"}
    facts |= {"lengths": False, "mean": torch.full((3, 1, 1), 120.0), "std": torch.full((3, 1, 1), 60.0)}
    run = {"arch": arch, "learner": learner.state_dict(), "head": head.state_dict(), "preparation": facts}
    run |= {"class_names": oom["class_names"], "history": []}
    run |= {"calibration": confidence.temperature(torch.zeros(0, CLASSES), torch.zeros(0, dtype=torch.long), "")}
    run |= {"novelty": confidence.familiar(torch.randn(1000, args.width), torch.arange(1000) % CLASSES)}
    files.save(path, run, stage="bench", data="bench", fingerprint="", args={}, quiet=True)


def write_images(folder, count):
    """Paths of `count` jpg files: 100 pictures, each linked often enough."""
    from PIL import Image

    rng, paths = np.random.default_rng(0), [folder / f"{k}.jpg" for k in range(count)]
    for k, path in enumerate(paths):
        if k < 100:
            Image.fromarray(picture(rng, 480, 640)).save(path, quality=90)
        else:
            os.link(paths[k % 100], path)
    return paths


def process(code, *argv):
    """Seconds of python -c `code`."""
    command = [sys.executable, "-c", code, *map(str, argv)]
    return seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))[0]


def measure(folder, args):
    """Medians of the four, in seconds."""
    write_learner(folder / "learner.pt", args)
    paths = write_images(folder, args.items)
    learner = cox_oom.load(folder / "learner.pt", args.device)
    data = learner.data(paths)
    prepare = lambda: [learner.prepared(data.load("rgb", k)) for k in range(100)]
    items = prepare()
    x = torch.stack([items[k % 100]["x"] for k in range(args.items)])
    file = {"kind": "image", "x": x, "mean": learner.preparation["mean"], "std": learner.preparation["std"]}
    forward = lambda: [learner.models[0](file, rows) for rows in torch.arange(args.items).split(CHUNK)]
    cold = "import sys, cox_oom; cox_oom.load(sys.argv[1])(sys.argv[2:])"
    learner.answer(paths[:CHUNK])
    found = {"import": [], "cold": [], "prepare": [], "forward": [], "files": []}
    for _ in range(args.rounds):
        found["import"].append(process("import torch"))
        found["cold"].append(process(cold, folder / "learner.pt", paths[0]))
        found["prepare"].append(seconds(prepare)[0])
        found["forward"].append(seconds(forward)[0])
        found["files"].append(seconds(lambda: learner.answer(paths, workers=args.workers))[0])
        print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    return {name: statistics.median(values) for name, values in found.items()}


def write(out, size, row):
    """The table with a row; those of other sizes stay."""
    old = [line for line in out.read_text().splitlines() if line[:2] == "| "][1:] if out.exists() else []
    rows = {line.split("|")[1].strip(): line for line in old} | {size: row}
    head = [
        "# What naming new recordings costs",
        "",
        "`python -m bench.predict`; its docstring says what is measured. Medians; the ratio is of images a second.",
        "",
        "| learner | import torch, s | one recording, cold, s | prepare alone, images/s | forward alone, images/s "
        "| from files, images/s | files / forward | measured |",
        "|:--|--:|--:|--:|--:|--:|--:|:--|",
    ]
    out.parent.mkdir(exist_ok=True)
    out.write_text("\n".join([*head, *rows.values()]) + "\n")


def main():
    args = get_args()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    with tempfile.TemporaryDirectory(prefix="cox-bench-") as folder:
        s = measure(Path(folder), args)
    size = f"{args.image_size} x {args.image_size}, patch {args.patch}, {args.width} wide, {args.depth} deep"
    how = f"{args.items} images, {args.workers} workers, {torch.get_num_threads()} threads, {args.rounds} rounds"
    where = f"{len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.0f}, torch {torch.__version__}"
    rates = [100 / s["prepare"], args.items / s["forward"], args.items / s["files"], s["forward"] / s["files"]]
    numbers = [f"{s['import']:.1f}", f"{s['cold']:.1f}", *(f"{r:.0f}" for r in rates[:3]), f"{rates[3]:.2f}"]
    row = f"| {size} | {' | '.join(numbers)} | {how}, {where}, {time.strftime('%Y-%m-%d')} |"
    print(row)
    write(ROOT / "bench" / "results" / f"predict-{device.replace(' ', '-')}.md", size, row)


if __name__ == "__main__":
    main()
