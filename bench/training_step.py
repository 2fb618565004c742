"""A step of exploration beside its bare forward and backward, and the loader alone: ms and items a CPU second.

    OMP_NUM_THREADS=1 python bench/training_step.py                     the demo's learner, a small one of images
    OMP_NUM_THREADS=1 python bench/training_step.py --which vit         ViT-T/16 on images of 224 x 224 (minutes)
    OMP_NUM_THREADS=1 python bench/training_step.py --which loader      rows of 224 x 224 images into one buffer
    python bench/training_step.py --device cuda --which demo,image,vit  on a GPU, and how often a step waits for it

Bare: one forward and backward of the same items in one batch. The step is cox's, with all of its losses, in the parts
that stages 2 and 3 take, and with --fast in one. Bare and step in turns, the least of each and the median of their
ratios, which other work on the machine moves less: CPU seconds of this process, on a GPU seconds by the clock.
"""

import argparse
import time
import warnings
from argparse import Namespace

import torch
import torch.nn.functional as F

from cox_oom import anchors, loader, methods, objectives
from cox_oom.descent import Descent
from cox_oom.labels import Items
from cox_oom.learner import Learner

WORLDS = {  # name: (learner, batch, labelled batch, steps a repeat)
    "demo": ({"kind": "series", "shape": [32, 96], "width": 64, "depth": 3, "slice": 3}, 128, 64, 3),
    "image": ({"kind": "image", "shape": [3, 32, 32], "width": 64, "depth": 4, "patch": 8}, 128, 64, 3),
    "vit": ({"kind": "image", "shape": [3, 224, 224]}, 32, 16, 1),
}
CLASSES, ITEMS, IM = 12, 512, 40


def inputs(arch, n):
    """An inputs file of n random items."""
    shape, kind = arch["shape"], arch["kind"]
    x = torch.randint(0, 256, (n, *shape), dtype=torch.uint8) if kind == "image" else torch.randn(n, *shape)
    ones = (shape[0], *(1,) * (len(shape) - 1))
    return {"kind": kind, "x": x, "lengths": None, "mean": torch.zeros(ones), "std": torch.full(ones, 64.0)}


def seconds_of(repeats, *calls, device="cpu"):
    """Seconds (repeats, calls) of calls in turns, after one of each: CPU time, or the clock until a GPU has ended."""
    clock, wait = (time.perf_counter, torch.cuda.synchronize) if device == "cuda" else (time.process_time, lambda: None)
    found = torch.zeros(1 + repeats, len(calls))
    for row in found:
        for k, call in enumerate(calls):
            wait()
            begun = clock()
            call()
            wait()
            row[k] = clock() - begun
    return found[1:]


def waits(call):
    """How often a call makes the host wait for the GPU: torch warns of each time."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing CUDA operation" in str(w.message) for w in found)


def measure(name, fast, repeats, device="cpu"):
    arch, batch, labelled_batch, steps = WORLDS[name]
    torch.manual_seed(0)
    file = inputs(arch, ITEMS)
    places, y = torch.arange(ITEMS), torch.randint(CLASSES, (ITEMS,))
    labelled, unlabelled = places[: ITEMS // 8], places[ITEMS // 8 :]
    none, frequencies = places[:0], torch.full((CLASSES,), 1 / CLASSES)
    items = Items(file, places, [], y, labelled, unlabelled, {}, none, none, frequencies, frequencies == 0)
    learner = Learner(**arch).to(device)
    head, predict = (torch.nn.Linear(learner.width, n).to(device) for n in (CLASSES, IM))
    model = objectives.Model(learner, head, predict)
    args = Namespace(method="cox", lr=1e-3, weight_decay=1e-5, seed=0, device=device, fast=fast, compile=None)
    vars(args).update(batch=batch, labelled_batch=labelled_batch, w_im=3.0, w_agree=1.0, w_disagree=1.0, kl="expected")
    u = len(unlabelled)
    found = torch.arange(u) % 3 == 0, y[unlabelled], torch.rand(1, u, CLASSES).softmax(-1)
    chosen = anchors.Anchors({}, *(t.to(device) for t in found))
    chosen.expected = torch.randn(u, IM).to(device)
    teacher, plan = Namespace(expected=torch.randn(ITEMS, IM).to(device)), Namespace(without=set())
    descent = Descent(model, args, 3)
    generator = torch.Generator().manual_seed(0)
    terms = lambda part: methods.terms(args, plan, model, items, chosen, teacher, part)

    def step():
        draws = items.draw(steps, labelled_batch, batch, generator)
        for k, its in enumerate(loader.steps(file, draws, descent.count, device)):
            descent.step(k, 1e-3, its, terms)
            model.follow()

    own, mean, std = (t.to(device) for t in (file["x"][: batch + labelled_batch], file["mean"], file["std"]))
    x = loader.normalise(own, None, mean, std)
    target = y[: len(x)].to(device)

    def bare():
        for _ in range(steps):
            with descent.amp:
                loss = F.cross_entropy(head(learner(x)).float(), target)
            loss.backward()

    seconds = seconds_of(repeats, bare, step, device=device) / steps
    (limit, whole), ratio = seconds.amin(0).tolist(), (seconds[:, 1] / seconds[:, 0]).median()
    how = f"{descent.count} parts" + (", --fast" if fast else "")
    said = f"{name:6s} {batch} + {labelled_batch} items, {how:16s} bare {limit * 1e3:7.1f} ms"
    often = f", waits for the GPU {waits(step) / steps:.1f} times a step" if device == "cuda" else ""
    print(f"{said}, step {whole * 1e3:7.1f} ms, step / bare {ratio:.2f}{often}", flush=True)


def read(repeats, steps=20, items=192, n=2048):
    """The loader alone, rows of 224 x 224 images a CPU second: as for the CPU, and a step ahead into two buffers."""
    x = torch.randint(0, 256, (n, 3, 224, 224), dtype=torch.uint8)
    rows = [(None, torch.randint(n, (items,))) for _ in range(steps)]
    for name in ("at_once", "ahead"):
        seconds = seconds_of(repeats, lambda name=name: [None for _ in getattr(loader, name)(x, rows, "cpu")]).min()
        print(f"loader, {name:8s} {steps * items / seconds:8.0f} images of 224 x 224 a CPU second", flush=True)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--which", default="demo,image", help="of demo, image, vit, loader; comma-separated")
    p.add_argument("--repeats", type=int, default=11)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    args = p.parse_args()
    for name in args.which.split(","):
        if name == "loader":
            read(args.repeats)
        else:
            for fast in (None, True):
                measure(name, fast, args.repeats, args.device)


if __name__ == "__main__":
    main()
