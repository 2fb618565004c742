"""CPU seconds of stage 3 by its parts, at several numbers of items: how much of it the correspondences are.

    OMP_NUM_THREADS=1 python -m bench.explore_growth --items 4000 8000 16000

M = N items, all true pairs: images of 32 x 32 and two banks of 1,024 features, generated; 10% labels, a learner of
width 64, depth 4, patch 8. Stage 3 is `cox` as by default, but of --epochs epochs and --refreshes refreshes. Each of
these costs the same as the next one, so a run of 50 epochs and 5 refreshes is computed from it. A part's seconds leave
out what other parts took inside it.
"""

import argparse
import contextlib
import functools
import io
import math
import resource
import tempfile

import torch
import torch.nn.functional as F

import train_connect
import train_explore
from cox_oom import anchors, augment, connect, correspond, files, heads, labels, loader, teacher
from cox_oom.files import Place

WIDTH, OWN, TEST, EPOCHS, REFRESHES = 1024, 24, 500, 50, 5
PARTS = {  # name: functions, in whichever module their callers find them
    "check": [(teacher, "held_out_gain")],  # correspond's part of the whole: this one and the next
    "correspond": [(teacher, "class_posteriors")],
    "nearest items": [(anchors, "nearest_anchor")],
    "features": [(labels, "embed"), (augment, "embed")],
    "connections": [(connect.Bridge, "follow")],
    "readings": [(teacher, "raw_views"), (teacher, "whiten"), (correspond, "shared_vectors")],
    "heads": [(heads, "fit_head"), (teacher, "fit_head"), (connect, "fit_head")],
    "epochs": [(loader, "steps"), (labels.Items, "validate")],
}


def generate(runs, n, classes):
    """Stage 1's files of n train rows: a class and OWN numbers of its own, which all three modalities show."""
    g, place = torch.Generator().manual_seed(0), Place(runs, "growth", "generated", "sonar")
    rows = n + TEST
    y = torch.arange(rows) % classes
    hidden = torch.randn(classes, 16, generator=g)[y] + 0.8 * torch.randn(rows, 16, generator=g)
    hidden = torch.cat([hidden, torch.randn(rows, OWN, generator=g)], 1)
    about = {"ids": [f"i{k:06d}" for k in range(rows)], "class_names": [f"class {c:03d}" for c in range(classes)]}
    about |= {"labels": y, "split": torch.where(torch.arange(rows) < n, 0, 2)}
    facts = {"stage": "extract_features", "data": "growth", "fingerprint": f"growth {n}", "dated": False, "args": {}}
    small = hidden @ torch.randn(16 + OWN, 3 * 8 * 8, generator=g) / (16 + OWN) ** 0.5
    x = 128 + 40 * F.interpolate(small.view(-1, 3, 8, 8), scale_factor=4.0)
    x = (x + 40 * torch.randn(x.shape, generator=g)).clamp(0, 255).to(torch.uint8)
    image = {"kind": "image", "x": x, "lengths": None, "mean": torch.full((3, 1, 1), 128.0)}
    files.save(place.inputs("sonar"), {**image, "std": torch.full((3, 1, 1), 57.0), **about}, preparation={}, **facts)
    for m in ("a", "b"):
        z = hidden @ torch.randn(16 + OWN, WIDTH, generator=g) + 3 * torch.randn(rows, WIDTH, generator=g)
        files.save(place.bank(m), {"features": F.normalize(z, dim=1), **about}, **facts)


def cpu():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def watch(spent, running):
    """Count the CPU seconds of PARTS in spent {name: seconds}."""

    @contextlib.contextmanager
    def counted(name):
        begun, inside = cpu(), dict(spent)
        running.append(name)
        try:
            yield
        finally:
            running.pop()
            others = sum(spent[k] - inside[k] for k in spent if k != name)
            if name not in running:
                spent[name] += cpu() - begun - others

    def wrapped(name, call):
        @functools.wraps(call)
        def plain(*args, **named):
            with counted(name):
                return call(*args, **named)

        @functools.wraps(call)
        def generator(*args, **named):
            with counted(name):
                yield from call(*args, **named)

        return generator if call.__name__ == "steps" else plain

    for name, functions in PARTS.items():
        for owner, function in functions:
            if hasattr(owner, function):
                setattr(owner, function, wrapped(name, getattr(owner, function)))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--items", type=int, nargs="+", default=[4000, 8000, 16000])
    p.add_argument("--classes", type=int, default=10)
    p.add_argument("--epochs", type=int, default=1)
    p.add_argument("--refreshes", type=int, default=1)
    p.add_argument("--more", default="", help="further flags of stage 3")
    args = p.parse_args()
    spent = dict.fromkeys(PARTS, 0.0)
    watch(spent, [])
    found = []
    for n in args.items:
        with tempfile.TemporaryDirectory(prefix="cox-bench-") as runs, contextlib.redirect_stdout(io.StringIO()):
            generate(runs, n, args.classes)
            where = f"--data growth --oom sonar --perceptor generated --runs {runs} --device cpu"
            small = "--labels 0.1 --width 64 --depth 4 --patch 8 --warmup-epochs 2"
            train_connect.main(f"{where} {small}".split())
            spent.update(dict.fromkeys(spent, 0.0))
            begun = cpu()
            train_explore.main(f"{where} --epochs {args.epochs} --refreshes {args.refreshes} {args.more}".split())
            whole = cpu() - begun
        ends = (REFRESHES + 1) / (args.refreshes + 1)  # all is done once more when the training has ended
        times = {"epochs": EPOCHS / args.epochs, **dict.fromkeys(("correspond", "connections", "features"), ends)}
        full = whole + sum((times.get(name, 1) - 1) * seconds for name, seconds in spent.items())
        own = spent["check"] + spent["correspond"] * ends
        found.append((n, full - own, own))
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in spent.items())
        print(f"{n} items: CPU {whole:.1f} s: {parts}", flush=True)
        print(
            f"  {EPOCHS} epochs, {REFRESHES} refreshes: CPU {full:.0f} s, correspond {own:.0f} s: {own / full:.1%}",
            flush=True,
        )
    for (n, *before), (m, *after) in zip(found, found[1:]):
        rest, own = (math.log(b / a) / math.log(m / n) for a, b in zip(before, after))
        print(f"exponent from {n} to {m}: correspond {own:.2f}, the rest {rest:.2f}", flush=True)


if __name__ == "__main__":
    main()
