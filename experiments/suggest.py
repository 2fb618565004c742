"""The experiment on which recordings to label next: rounds of labels, chosen by several strategies.

    python experiments/suggest.py --data ../shared/data/handwritten --oom fou --seed 0 --runs RUNS --out OUT

A seed begins with --per-class labels, the same for all strategies. In a round a strategy names --count unlabelled
training items, whose hidden labels become known; then stages 2 and 3 are trained anew, from the same initial weights.
Writes OUT/records.csv, a line a trained learner with its test accuracy, and from all its lines table.md and a plot.
What is trained already is not trained again.
"""

import argparse
import contextlib
import csv
import io
import math
import sys
import time
from pathlib import Path

import collect
import torch
from scipy.stats import ttest_1samp

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import train_connect
import train_explore
from cox_oom import confidence, files, run, suggest
from cox_oom.augment import model_of
from cox_oom.files import Place
from cox_oom.report.plots import grid, plain
from cox_oom.report.records import write_text
from cox_oom.report.scores import mean_sd, percent
from cox_oom.report.tables import markdown
from cox_oom.seed import split_rows

COLUMNS = ("data", "oom", "method", "seed", "strategy", "round", "labels", "accuracy")
COLOURS = ("#888888", "#4477aa", "#ee6677", "#228833", "#aa3377")


def shared(learner, z, p):
    """Posteriors (U, C), the mean over the learner's own p (U, C) and those of the heads on mapped known items."""
    found = [p]
    for m in learner["im"]:
        h = learner["mapped_heads"][m]
        found.append(((z - h["mean"]) / h["std"] @ h["linear.weight"].T + h["linear.bias"]).softmax(-1))
    return torch.stack(found).mean(0)


def most(weight, n):
    return weight.argsort(descending=True, stable=True)[:n]


def spread(among, z, p, n):
    return among[suggest.spread(z[among], suggest.entropy(p[among]), n)]


STRATEGIES = {  # of (learner, features z (U, d), posteriors p (U, C), n, a random generator): places (n,)
    "random": lambda learner, z, p, n, g: torch.randperm(len(z), generator=g)[:n],
    "entropy": lambda learner, z, p, n, g: most(suggest.entropy(p), n),
    "modalities": lambda learner, z, p, n, g: most(suggest.entropy(shared(learner, z, p)), n),
    "entropy-spread": lambda learner, z, p, n, g: spread(most(suggest.entropy(p), 10 * n), z, p, n),
    "spread": lambda learner, z, p, n, g: suggest.spread(z, suggest.entropy(p), n),  # evaluate.py --suggest
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


def read(path):
    """The lines of records.csv, numbers as such; [] where there is none."""
    if not path.exists():
        return []
    number = {"seed": int, "round": int, "labels": int, "accuracy": float}
    with path.open(newline="", encoding="utf-8") as f:
        return [{k: number.get(k, str)(v) for k, v in line.items()} for line in csv.DictReader(f)]


def write(path, records):
    """records.csv, in order."""
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({**r, "accuracy": f"{r['accuracy']:.6g}"} for r in sorted(records, key=key))
    write_text(path, table.getvalue())


def key(record):
    """What names a learner."""
    return tuple(record[k] for k in COLUMNS[:6])


def by_world(records):
    """{(data, oom, method): {strategy: {round: {seed: record}}}}; round 0 of every strategy is the common start."""
    found = {}
    for r in records:
        world = found.setdefault(tuple(r[k] for k in COLUMNS[:3]), {})
        world.setdefault(r["strategy"], {}).setdefault(r["round"], {})[r["seed"]] = r
    for world in found.values():
        start = world.pop("start")
        for rounds in world.values():
            rounds.update(start)
    return found


def gains(worlds, strategy):
    """[mean over the rounds of accuracy − that of labels drawn at random], for each world and seed that has both."""
    found = {}
    for name, world in worlds.items():
        for n, by_seed in world.get(strategy, {}).items():
            random = world.get("random", {}).get(n, {})
            for seed in by_seed.keys() & random.keys() if n else ():
                gain = by_seed[seed]["accuracy"] - random[seed]["accuracy"]
                found.setdefault((*name, seed), []).append(gain)
    return [mean_sd(found[k])[0] for k in sorted(found)]


def tables(records):
    """The blocks of table.md: accuracy of each world by strategy and labels; the gain over labels drawn at random."""
    worlds, out = by_world(records), []
    names = [s for s in STRATEGIES if any(s in w for w in worlds.values())]
    for (data, oom, method), world in sorted(worlds.items()):
        labels = {n: next(iter(by.values()))["labels"] for by_round in world.values() for n, by in by_round.items()}
        seeds = sorted({r["seed"] for by_round in world.values() for by in by_round.values() for r in by.values()})
        accuracies = lambda s, n: [r["accuracy"] for r in world[s].get(n, {}).values()]
        cells = {s: [percent(accuracies(s, n), len(seeds)) for n in sorted(labels)] for s in world}
        won = [
            f"Gain of {s} over labels drawn at random: {percent(found)} points."
            for s in names[1:]
            if (found := gains({(data, oom, method): world}, s))
        ]
        out.append(
            {
                "title": f"{data}, {oom}, {method}: test accuracy in %",
                "header": ["labels chosen by", *(f"{labels[n]} labels" for n in sorted(labels))],
                "rows": [[s, *cells[s]] for s in names if s in cells],
                "notes": [f"Mean ± sd over the seeds {', '.join(map(str, seeds))}.", *won],
            }
        )
    rows = []
    for s in names[1:]:
        found = gains(worlds, s)
        p = ttest_1samp(found, 0).pvalue if len(found) > 1 else math.nan
        rows.append([s, percent(found), f"{sum(g > 0 for g in found)} of {len(found)}", f"{p:.2f}"])
    return [
        {
            "title": "Gain over labels drawn at random, in points",
            "header": ["labels chosen by", "gain", "ahead", "p (t)"],
            "rows": rows,
            "notes": ["Mean ± sd over worlds and seeds of the mean over the rounds; p of the paired t-test over them."],
        },
        *out,
    ]


def curves(records):
    """Accuracy over labels: axes for each world, a line for each strategy, its standard error over seeds."""
    worlds = by_world(records)
    figure, axes = grid(len(worlds), width=3.2, height=2.7)
    for ax, ((data, oom, _), world) in zip(axes, sorted(worlds.items())):
        for strategy, colour in zip(STRATEGIES, COLOURS):
            by = {next(iter(r.values()))["labels"]: r for _, r in sorted(world.get(strategy, {}).items())}
            spread = [mean_sd([100 * r["accuracy"] for r in some.values()]) for some in by.values()]
            error = [(sd or 0) / len(some) ** 0.5 for (_, sd), some in zip(spread, by.values())]
            ax.errorbar([*by], [m for m, _ in spread], error, marker=".", lw=1.3, color=colour, label=strategy)
        plain(ax, f"{data}, {oom}", "labels", "test accuracy, %" if ax is axes[0] else "")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def get_args(argv):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name in ("--data", "--oom", "--runs", "--out"):
        p.add_argument(name, required=True)
    p.add_argument("--method", default="cox")
    p.add_argument("--strategy", nargs="+", default=[*STRATEGIES], choices=STRATEGIES)
    for name, default in (("--seed", 0), ("--rounds", 3), ("--count", 20), ("--per-class", 2)):
        p.add_argument(name, type=int, default=default)
    p.add_argument("--connect", default="", help="further flags of stage 2")
    p.add_argument("--explore", default="", help="further flags of stage 3")
    return p.parse_args(argv)


def main(argv=None):
    args, begun = get_args(argv), time.time()
    first = Place(args.runs, args.data, oom=args.oom, seed=args.seed)
    oom, out = files.load(first.inputs(args.oom)), Path(args.out)
    row, test = {i: r for r, i in enumerate(oom["ids"])}, split_rows(oom, ("test",))

    def measure(place, strategy, number, ids):
        """Train; a line of records.csv. Returns METHOD.pt and the labelled ids."""
        train(args, place, ids)
        learner, labelled = files.load(place.method(args.method)), files.load(place.connect)["labelled"]
        right = (model_of(learner, "cpu")(oom, test)[1].argmax(1) == oom["labels"][test]).double().mean().item()
        name = (files.data_name(args.data), args.oom, args.method, args.seed, strategy, number)
        line = dict(zip(COLUMNS, (*name, len(labelled), right)))
        print(*line.values(), flush=True)
        write(out / "records.csv", [*(r for r in read(out / "records.csv") if key(r) != name), line])
        return learner, labelled

    begin = measure(first, "start", 0, None)
    for strategy in args.strategy:
        (learner, labelled), draw = begin, torch.Generator().manual_seed(args.seed)
        for number in range(1, args.rounds + 1):
            z, logits = model_of(learner, "cpu")(oom, torch.tensor([row[i] for i in learner["unlabelled"]]))
            p = confidence.posteriors(learner, logits)
            places = STRATEGIES[strategy](learner, z, p, args.count, draw).tolist()
            place = Place(f"{args.runs}/{strategy}-{number}", args.data, oom=args.oom, seed=args.seed)
            link(first, place)
            ids = place.base / f"labelled-{args.oom}-{args.seed}.txt"
            write_text(ids, "".join(f"{i}\n" for i in [*labelled, *(learner["unlabelled"][i] for i in places)]))
            learner, labelled = measure(place, strategy, number, ids)
    records = read(out / "records.csv")
    write_text(out / "table.md", markdown(tables(records)))
    collect.write_plot(out / "plot-accuracy.png", curves(records))
    write_text(out / "COMMAND", f"{collect.provenance()}, {len(records)} learners\n")
    print(f"wrote {out}/records.csv, table.md and plot-accuracy.png ({time.time() - begun:.0f} s)")


if __name__ == "__main__":
    run.script(main)
