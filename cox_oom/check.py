"""Check a folder of recordings: all its faults at once, what it holds, and the commands to run.

    python -m cox_oom.check my_robot --oom sonar
    python -m cox_oom.check my_robot --as note=language
    python -m cox_oom.check recordings --make --oom sonar

Reads   FOLDER/manifest.csv (docs/data/folder.md), and decodes every item of the modalities
Writes  nothing; with --make FOLDER/manifest.csv, from folders of files named by class
A fault is what the stages stop at. A warning is what they go on with. Exit code 0: no fault; 1: faults; 2: the command
line cannot be followed.
"""

import os
import shlex
import sys
from argparse import Namespace
from typing import Any

import numpy as np

from cox_oom import cli, methods, run
from cox_oom.cli import Parser, key_values, number
from cox_oom.data import SPLITS, folder, make, media, survey
from cox_oom.data.survey import Facts, Folder, Found
from cox_oom.files import UserError, escaped

CLASSES = 40  # of more, the smallest are shown
EVERYDAY: tuple[tuple[Any, ...], ...] = (
    ("folder", None, cli.folder, "the folder of recordings"),
    ("--oom", None, str, "the new sensor; left out: the last column whose name COX does not know"),
    ("--im", None, str, "the other modalities, comma-separated; left out: every other column"),
    (
        "--as",
        [],
        str,
        "read a column as language, image, audio, video or series; may be repeated",
        {"action": "append", "metavar": "COLUMN=KIND", "dest": "kinds"},
    ),
    ("--groups", None, str, "as in stage 1: the column of objects, persons or places"),
    (
        "--option",
        [],
        str,
        "limit or frames, as in stage 1; may be repeated",
        {"action": "append", "metavar": "KEY=VALUE"},
    ),
    ("--on-error", "fatal", ("fatal", "skip"), "as in stage 1: are broken and missing files faults"),
    ("--on-silence", "warn", ("warn", "skip", "fatal"), "as in stage 1: are silent recordings faults"),
    ("--make", False, None, "write a first manifest.csv from folders of files named by class"),
    ("--seed", 0, cli.SEED, "--make: which rows become test rows"),
    ("--list", 10, number(int, 1, cli.ITEMS), "of faults or warnings of one kind, how many are printed"),
    ("--workers", run.CORES, number(int, 0, 1024), "processes that decode; 0: none besides this one"),
)


def get_args(argv: list[str] | None = None) -> Namespace:
    p = Parser(__doc__ or "", "docs/data/folder.md says what a folder holds.")
    p.prog = "python -m cox_oom.check"
    p.rows(EVERYDAY)
    args = p.parse_args(argv)
    args.kinds, args.option = key_values("--as", args.kinds), key_values("--option", args.option)
    for name in args.option:
        if name not in folder.OPTIONS:
            raise UserError(f"--option {name}: a folder has the options {', '.join(folder.OPTIONS)}")
    if not os.path.isdir(args.folder):
        raise UserError(f"{args.folder}: not a folder; give the one that contains manifest.csv")
    if args.im and not args.oom:
        raise UserError(f"--im {args.im}: give --oom as well")
    manifest = os.path.join(args.folder, "manifest.csv")
    if not args.make and not os.path.isfile(manifest):
        raise UserError(f"{manifest}: not there; write this table, or let --make write a first one ({make.LAYOUT})")
    return args


# ---------------------------------------------------------------------------------------------------------- print


def say(title: str, groups: dict[str, list[str]], most: int) -> None:
    """Print faults or warnings, `most` of each kind."""
    if groups:
        print(f"\n{title.capitalize()}")
    for lines in groups.values():
        for line in lines[:most]:
            print(f"  {escaped(line)}")
        if len(lines) > most:
            print(f"  … and {len(lines) - most} more of this kind (--list {len(lines)} shows them)")


def show(lines: list[tuple]) -> None:
    """Print a table: the first column to the left, the others to the right."""
    texts = [[escaped(cell)[:32] for cell in line] for line in lines]
    wide = [max(map(len, column)) for column in zip(*texts)]
    for first, *others in texts:
        print("  " + "  ".join([first.ljust(wide[0]), *(t.rjust(w) for t, w in zip(others, wide[1:]))]).rstrip())


def summary(own: Folder) -> None:
    """Print rows, classes, pairs, and what the items of each modality are."""
    data, oom = own.data, own.oom
    every, with_oom = range(len(data.ids)), own.facts.get(oom, {})
    by_split = lambda held: [sum(data.split[r] == s for r in held) for s in SPLITS]
    print("\nRows, by what they have")
    labelled = [r for r in every if data.labels[r] >= 0]
    show(
        [
            ("", *SPLITS),
            *((name, *by_split(of)) for name, of in (("id", every), ("label", labelled), *own.facts.items())),
        ]
    )
    sizes = []
    for c, name in enumerate(data.class_names):
        of = [r for r in labelled if data.labels[r] == c]
        sizes.append((name, by_split(of), by_split([r for r in of if r in with_oom])))
    print(f"\n{len(sizes)} classes: rows | rows with {oom}")
    few = sorted(sizes, key=lambda size: size[1][0])[:CLASSES] if len(sizes) > CLASSES else sizes
    show([("", *SPLITS, "|", *SPLITS), *((name, *of, "|", *own_rows) for name, of, own_rows in few)])
    if len(few) < len(sizes):
        print(f"  … and {len(sizes) - len(few)} larger ones")
    if own.ims:
        print(f"\nPairs: train rows that hold {oom} and another modality")
        show([("", "rows", "labelled"), *((m, own.count(oom, m), own.count(oom, m, labelled=True)) for m in own.ims)])
    print("\nItems")
    wide = max((len(escaped(m)) for m in own.used), default=0)
    for m in own.used:
        kind = data.modalities[m]
        print(f"  {escaped(m).ljust(wide)}  {kind.ljust(6)}  {form(kind, list(own.facts[m].values()))}")


def form(kind: str, facts: list[Facts]) -> str:
    """What a line says of a modality's items."""
    if not facts:
        return "none that can be used"
    if kind in ("image", "video"):
        sizes = sorted({f.shape[-2:] for f in facts}, key=lambda size: int(np.prod(size)))
        span = " to ".join(f"{h} x {w}" for h, w in dict.fromkeys((sizes[0], sizes[-1])))
        channels = sorted({f.shape[0] for f in facts}) if kind == "image" else [3]
        dtypes = " and ".join(sorted({f.dtype for f in facts}))
        return f"{span} (height x width), channels: {' or '.join(map(str, channels))}, {dtypes}"
    unit, per = {"audio": ("seconds", media.SAMPLE_RATE), "text": ("characters", 1), "series": ("steps", 1)}[kind]
    n = np.array([f.shape[-1] for f in facts]) / per
    words = f"{n.min():.4g} to {n.max():.4g} {unit}, median {np.median(n):.4g}"
    if kind == "text":
        return f"{words}; {len({f.digest for f in facts})} different ones"
    if kind == "audio":
        return words
    turned = " (more channels than steps: transpose where they are not (channels, time))"
    return f"{words}, channels: {facts[0].shape[0]}{turned if facts[0].shape[0] > n.max() else ''}"


# ------------------------------------------------------------------------------------------------------- commands


def commands(own: Folder) -> list[str]:
    """The command lines of the four stages, with the flags that this folder needs."""
    args, oom = own.args, own.oom
    of = ["--data", args.folder, "--oom", oom]
    extract = ["--im", args.im] if args.im else []
    for column, kind in args.kinds.items():
        extract += ["--as", f"{column}={kind}"]
    extract += ["--groups", args.groups] if args.groups else []
    side = image_side(own)
    extract += ["--image-size", str(side)] if side else []
    extract += ["--on-error", args.on_error] if args.on_error != "fatal" else []
    extract += ["--on-silence", args.on_silence] if args.on_silence != "warn" else []
    for name, value in args.option.items():
        extract += ["--option", f"{name}={value}"]
    extract += ["--pair-by-class"] if len(own.ims) > 1 and not all(survey.shares(own, m) for m in own.ims) else []
    learner = ["--patch", str(8 if not side or side >= 32 else 4), "--width", "64", "--depth", "4"]
    setting: list[str] = []
    if not own.count(oom, labelled=True):
        setting = ["--setting", "unsup"]
    elif not all(own.count(oom, m, labelled=True) for m in own.ims):
        learner.append("--pair-by-class")
    few = [m for m in methods.names("unsup" if setting else "semi", few=True) if m != "random"]
    lines = [
        ["extract_features.py", *of, *extract],
        ["train_connect.py", *of, *learner, *setting, *share(own)],
        *(["train_explore.py", *of, "--method", m, *setting] for m in few),
        ["evaluate.py", *of[:2], "--table"],
    ]
    return [shlex.join(["python", *line]) for line in lines]


def image_side(own: Folder) -> int | None:
    """A side that fits images and clips and keeps the learner small: 8 to 32, None where there are none."""
    kinds = own.data.modalities
    sides = [min(f.shape[-2:]) for m in own.used if kinds[m] in ("image", "video") for f in own.facts[m].values()]
    return max(8, min(32, round(float(np.median(sides)) / 8) * 8)) if sides else None


def share(own: Folder) -> list[str]:
    """Stage 2's --labels: all where the folder itself has few; else enough for two of a class, a tenth if that does."""
    items, labelled = own.count(own.oom), own.count(own.oom, labelled=True)
    if not labelled:
        return []
    if labelled <= items / 2:
        return ["--labels", "1"]
    least = 2 * len(own.data.class_names) / items
    return next((["--labels", str(s)] for s in (0.1, 0.2, 0.5) if s >= least), ["--labels", "0.5"])


def main(argv: list[str] | None = None) -> None:
    args = get_args(argv)
    if args.make:
        make.make(args.folder, args.oom, args.seed)
        oom = f" --oom {shlex.quote(args.oom)}" if args.oom else ""
        print(f"Next: python -m cox_oom.check {shlex.quote(args.folder)}{oom}")
        return
    found = Found()
    own = survey.read(args, found)
    if own:
        told = "" if args.oom else " (--oom names another)"
        print(f"{args.folder}: the new sensor is {own.oom or 'not to be found'}{told}")
        survey.look(own, found)
        survey.judge(own, found)
    say("faults: the stages stop at the first", found.faults, args.list)
    say("warnings: the stages go on", found.warnings, args.list)
    if own and own.used:
        summary(own)
        print("\nCommands" + (", once the faults are mended" if found.faults else ""))
        for line in commands(own):
            print(f"  {line}")
    faults, warnings = (sum(map(len, groups.values())) for groups in (found.faults, found.warnings))
    print(f"\n{args.folder}: faults: {faults}, warnings: {warnings}")
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    run.script(main)
