"""The experiment on which recordings to label next: rounds of labels, chosen by several strategies.

    python experiments/suggest.py --data ../shared/data/handwritten --oom fou --runs RUNS --out OUT/records.csv

A seed begins with --per-class labels, the same for all strategies. A round trains stages 2 and 3 and measures the test
accuracy. Then a strategy names --count unlabelled training items; their hidden labels become known. One line of
records.csv is one trained learner. What is there already is not trained again.
"""

import argparse
import contextlib
import csv
import io
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_connect
import train_explore
from cox_oom import confidence, files, suggest
from cox_oom.augment import model_of
from cox_oom.files import Place
from cox_oom.seed import split_rows

COLUMNS = ("data", "oom", "method", "seed", "strategy", "round", "labels", "accuracy")


def shared(run, z, p):
    """Posteriors (U, C), the mean over the learner's own p (U, C) and those of the heads on mapped known items."""
    found = [p]
    for m in run["im"]:
        h = run["mapped_heads"][m]
        found.append(((z - h["mean"]) / h["std"] @ h["linear.weight"].T + h["linear.bias"]).softmax(-1))
    return torch.stack(found).mean(0)


def most(weight, n):
    return weight.argsort(descending=True, stable=True)[:n]


STRATEGIES = {  # of (run, features z (U, d), posteriors p (U, C), n, a random generator): places (n,)
    "random": lambda run, z, p, n, g: torch.randperm(len(z), generator=g)[:n],
    "entropy": lambda run, z, p, n, g: most(suggest.entropy(p), n),
    "modalities": lambda run, z, p, n, g: most(suggest.entropy(shared(run, z, p)), n),
    "spread": lambda run, z, p, n, g: suggest.spread(z, suggest.entropy(p), n),
}


def train(args, place, ids):
    """Stages 2 and 3 at a place, with the labels of a file of ids or, where it is None, of the first draw."""
    where = ["--data", args.data, "--oom", args.oom, "--runs", place.runs, "--seed", str(place.seed), "--device", "cpu"]
    labels = ["--labelled-ids", str(ids)] if ids else ["--per-class", str(args.per_class)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        train_connect.main([*where, *labels, *args.connect.split()])
        train_explore.main([*where, "--method", args.method, *args.explore.split()])


def link(old, new):
    """Stage 1's files of one tree of runs serve another as well."""
    for name in ("inputs", f"bind/no-{old.oom}"):
        (new.base / name).parent.mkdir(parents=True, exist_ok=True)
        if not (new.base / name).exists():
            (new.base / name).symlink_to((old.base / name).resolve())


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--data", "--oom", "--runs", "--out"):
        p.add_argument(name, required=True)
    p.add_argument("--method", default="cox")
    p.add_argument("--strategy", nargs="+", default=[*STRATEGIES], choices=STRATEGIES)
    for name, default in (("--seed", 0), ("--rounds", 3), ("--count", 20), ("--per-class", 2)):
        p.add_argument(name, type=int, default=default)
    p.add_argument("--connect", default="", help="further flags of stage 2")
    p.add_argument("--explore", default="", help="further flags of stage 3")
    args = p.parse_args(argv)
    first = Place(args.runs, args.data, oom=args.oom, seed=args.seed)
    oom, out = files.load(first.inputs(args.oom)), Path(args.out)
    row, test = {i: r for r, i in enumerate(oom["ids"])}, split_rows(oom, ("test",))
    done = [*csv.DictReader(out.open(newline=""))] if out.exists() else []

    def measure(place, strategy, number, ids):
        """Train; returns (METHOD.pt, its labelled ids); a new line of records.csv."""
        train(args, place, ids)
        run, labelled = files.load(place.method(args.method)), files.load(place.connect)["labelled"]
        guess = model_of(run, "cpu")(oom, test)[1].argmax(1)
        right = (guess == oom["labels"][test]).double().mean().item()
        line = [files.data_name(args.data), args.oom, args.method, args.seed, strategy, number, len(labelled)]
        line = [str(v) for v in (*line, f"{right:.6f}")]
        if line[:6] not in [[r[c] for c in COLUMNS[:6]] for r in done]:
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.open("a", newline="") as f:
                csv.writer(f, lineterminator="\n").writerows([COLUMNS] * (not f.tell()) + [line])
        print(*line, flush=True)
        done.append(dict(zip(COLUMNS, line)))
        return run, labelled

    begin = measure(first, "start", 0, None)
    for strategy in args.strategy:
        (run, labelled), draw = begin, torch.Generator().manual_seed(args.seed)
        for number in range(1, args.rounds + 1):
            rows = torch.tensor([row[i] for i in run["unlabelled"]])
            z, logits = model_of(run, "cpu")(oom, rows)
            places = STRATEGIES[strategy](run, z, confidence.posteriors(run, logits), args.count, draw)
            labelled = [*labelled, *(run["unlabelled"][i] for i in places.tolist())]
            place = Place(f"{args.runs}/{strategy}-{number}", args.data, oom=args.oom, seed=args.seed)
            link(first, place)
            ids = place.base / f"labelled-{args.oom}-{args.seed}.txt"
            ids.write_text("".join(f"{i}\n" for i in labelled))
            run, labelled = measure(place, strategy, number, ids)


if __name__ == "__main__":
    main()
