"""What FixMatch's pseudo-labels are, epoch by epoch: how many are sure enough, and how many of these are right.

    python experiments/pseudo_labels.py --data ../shared/data/handwritten --oom fou --seed 0 1 2 -- --epochs 20

Trains from each seed's connect.pt by stage 3's own main, as METHOD-watched.pt, with the flags behind `--`. It reads the
hidden labels of the unlabelled training items; training does not. Prints a table in Markdown, a line for each quarter
of the steps: the share of pseudo-labels at or above --sure, how many of these are right, and how many of all.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_explore
from cox_oom import files, labels, methods, objectives, run, seed


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", required=True)
    p.add_argument("--oom", required=True)
    p.add_argument("--runs", default="runs/experiments-small")
    p.add_argument("--perceptor", default="bind")
    p.add_argument("--seed", type=int, nargs="+", default=[0])
    p.add_argument("--method", default="fixmatch", choices=["fixmatch", "freematch"])
    p.add_argument("--sure", type=float, default=0.95, help="least confidence that the table counts")
    p.add_argument("flags", nargs="*", help="of stage 3")
    return p.parse_args(argv)


def watch(args, k):
    """[(confidence (B,), right (B,) bool) of every step] of a run."""
    found, now, row, plain = [], [], methods.METHODS[args.method], objectives.posteriors_of
    items = labels.items(seed.load_seed(files.Place(args.runs, args.data, args.perceptor, args.oom, "semi", k)))
    truth = items.oom["labels"][items.rows][items.unlabelled]

    def learn(flags, model, step):
        now[:] = [truth[step.j.cpu()]]
        return row.learn(flags, model, step)

    def watched(model, view):
        posteriors = plain(model, view)
        confidence, guess = posteriors.max(-1)
        found.append((confidence.cpu(), guess.cpu() == now[0]))
        return posteriors

    methods.METHODS[args.method], objectives.posteriors_of = dataclasses.replace(row, learn=learn), watched
    where = ["--data", args.data, "--oom", args.oom, "--runs", args.runs, "--perceptor", args.perceptor]
    which = ["--seed", str(k), "--method", args.method, "--tag", "watched", "--force"]
    try:
        train_explore.main([*where, *which, *args.flags])
    finally:
        methods.METHODS[args.method], objectives.posteriors_of = row, plain
    return found


def main(argv=None):
    args = get_args(argv)
    rows = []
    for k in args.seed:
        found = watch(args, k)
        for part, ends in enumerate(torch.arange(len(found)).tensor_split(4)):
            confidence, right = (torch.cat([found[i][n] for i in ends.tolist()]) for n in (0, 1))
            taken = confidence >= args.sure
            rows.append([k, part, taken.double().mean(), right[taken].double().mean(), right.double().mean()])
    print(f"\n| quarter of the steps | sure ({args.sure:g}) | right of these | right of all |\n|--:|--:|--:|--:|")
    for part in range(4):
        own = torch.tensor([[float(v) for v in r[2:]] for r in rows if r[1] == part], dtype=torch.float64)
        print(f"| {part + 1} | " + " | ".join(f"{100 * v:.1f}" for v in own.nanmean(0).tolist()) + " |")


if __name__ == "__main__":
    run.script(main)
