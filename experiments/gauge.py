"""Does the gauge foretell what other modalities bring? cox_oom/gauge.py beside the gain of COX over selftrain.

    python experiments/gauge.py --data synth ../shared/data/handwritten --runs runs/experiments-small

Reads   inputs, banks and connect.pt of the data sets under --runs (stages 1 and 2), and the gains of --gains, a
        records.csv
Writes  OUT/records.csv, a line a column: the gauge and its p, means over its seeds under --runs, the gain and its
        standard error; OUT/table.md: R² of each measure with a 95% interval over draws of columns, then a line a column
        with the regime that the gauge names and the truth; OUT/plot-gain.png"""

import argparse
import csv
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from collect import write_plot
from scipy import stats

from cox_oom import files, labels
from cox_oom.connect import Bridge
from cox_oom.correspond import known_items, whiten
from cox_oom.gauge import gauge
from cox_oom.readings import raw_views
from cox_oom.report.plots import grid
from cox_oom.seed import load_seed
from cox_oom.teacher import components_of

MEASURES = {
    "cka": "CKA above chance",
    "neighbours": "common neighbours above chance",
    "left_out": "variance of left-out classes, above chance",
    "trust": "gain on held-out pairs, nat",
}
DRAWS = 2000


def of_seed(place):
    """{measure: value} of one seed of a column by its labelled pairs; {} where there are too few."""
    seed = load_seed(place, keys=("mapped", "labelled"))
    items = labels.items(seed)
    bridge = Bridge(seed, device="cpu", lr=1e-3, weight_decay=0)
    banks, y = bridge.common_banks(), items.y
    source, _ = known_items(items.ids, y, bridge.common, banks, bridge.y_common, items.frequencies)
    if source is None:
        return {}
    components = components_of(len(items.rows))
    raw = whiten(raw_views(seed.connect["views"]["chosen"], seed.oom, items.rows), 2 * components)
    own = (source.partner >= 0) & (source.partner < len(bridge.common))
    found = gauge(raw[own, :components], source.x[source.partner[own]], y[own])
    names = ("cka", "neighbours", "left_out")
    return {name: found[name]["value"] for name in names} | {f"p.{name}": found[name]["p"] for name in names}


def gains(path):
    """{(world, sensor): (mean gain in points, its standard error, gain in nat on held-out pairs)} of a records.csv:
    COX − selftrain over the seeds that both have."""
    of, trust = defaultdict(dict), defaultdict(list)
    with open(path, newline="", encoding="utf-8") as f:
        for row in csv.DictReader(f):
            if row["method"] in ("cox", "selftrain") and row["setting"] == "semi" and row["accuracy"]:
                of[row["data"], row["oom"]].setdefault(row["seed"], {})[row["method"]] = float(row["accuracy"])
                if row["method"] == "cox" and row.get("trust.gain"):
                    trust[row["data"], row["oom"]].append(float(row["trust.gain"]))
    out = {}
    for column, seeds in of.items():
        each = [100 * (s["cox"] - s["selftrain"]) for s in seeds.values() if len(s) == 2]
        if len(each) > 1:
            nat = np.mean(trust[column]) if trust[column] else np.nan
            out[column] = np.mean(each), np.std(each, ddof=1) / len(each) ** 0.5, nat
    return out


def fit(x, y):
    """R² of y over x, its 95% interval over draws of the columns, and r's p."""
    rng, n = np.random.default_rng(0), len(x)
    drawn = []
    for _ in range(DRAWS):
        i = rng.integers(0, n, n)
        if len(set(x[i])) > 2:
            drawn.append(stats.pearsonr(x[i], y[i])[0] ** 2)
    r, p = stats.pearsonr(x, y)
    return r**2, *np.quantile(drawn, [0.025, 0.975]), r, p


def regime(line):
    """What a column's gauge says of its instances beyond their classes: `left_out` is above chance, or it is not."""
    return "shared" if line["p.left_out"] < 0.05 else "not shared"


def truth(line):
    """What the gain says: beyond two standard errors, or not."""
    return "neither" if abs(line["gain"]) <= 2 * line["error"] else "gains" if line["gain"] > 0 else "loses"


def of_columns(lines):
    """A row a column: measures (bold where p < 0.05), regime, gain, truth; and how often the regimes gain or lose."""
    names = list(MEASURES)[:3]
    cell = lambda line, k: f"**{line[k]:.3f}**" if line[f"p.{k}"] < 0.05 else f"{line[k]:.3f}"
    rows = ["| world | sensor | CKA | neighbours | left-out | nat | regime | COX − selftrain | truth |"]
    rows.append("|:--|:--|--:|--:|--:|--:|:--|--:|:--|")
    for line in sorted(lines, key=lambda line: (line["world"], line["oom"])):
        measures = " | ".join(cell(line, k) for k in names)
        gain = f"{line['gain']:+.1f} ± {line['error']:.1f}"
        start = f"| {line['world']} | {line['oom']} | {measures} | {line['trust']:+.3f} "
        rows.append(f"{start}| {regime(line)} | {gain} | {truth(line)} |")
    ends = [""]
    for name in ("shared", "not shared"):
        of = [line for line in lines if regime(line) == name]
        counts = ", ".join(f"{sum(truth(line) == t for line in of)} {t}" for t in ("gains", "neither", "loses"))
        mean = f", on the mean {np.mean([line['gain'] for line in of]):+.1f} points" if of else ""
        ends.append(f"{name}: {len(of)} columns, {counts}{mean}.  ")
    return [*rows, *ends]


def draw(lines):
    """A panel a measure: a point a column, with the standard error of its gain."""
    figure, axes = grid(len(MEASURES), width=3.6, height=3.0)
    worlds = list(dict.fromkeys(line["world"] for line in lines))
    for ax, (name, words) in zip(axes, MEASURES.items()):
        for world in worlds:
            mine = [line for line in lines if line["world"] == world]
            x, y, error = ([line[k] for line in mine] for k in (name, "gain", "error"))
            ax.errorbar(x, y, error, fmt="o", ms=4, lw=0.7, label=world)
        ax.axhline(0, color="#999999", lw=0.7)
        ax.set_xlabel(words, fontsize=8)
        ax.set_ylabel("COX − selftrain, points", fontsize=8)
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def write(lines, out):
    """records.csv, table.md and the plot of lines [a dict a column] in the folder `out`."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with open(Path(out) / "records.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(lines[0]))
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in line.items()} for line in lines)
    y = np.array([line["gain"] for line in lines])
    heads = "| measure | R² | 95% interval | r | p | r without the largest gain | r on robots |"
    text = [f"Over {len(lines)} columns.", "", heads, "|:--|--:|:--|--:|--:|--:|--:|"]
    parts = y < y.max(), np.array([line["world"].startswith("robot_") for line in lines])
    for name, words in MEASURES.items():
        r2, low, high, r, chance = fit(np.array([line[name] for line in lines]), y)
        x = np.array([line[name] for line in lines])
        of_parts = (f"{stats.pearsonr(x[part], y[part])[0]:+.2f}" if sum(part) > 2 else "–" for part in parts)
        text.append(
            f"| {words} | {r2:.2f} | {low:.2f} to {high:.2f} | {r:+.2f} | {chance:.3f} | {' | '.join(of_parts)} |"
        )
    text += ["", *of_columns(lines)]
    (Path(out) / "table.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    write_plot(Path(out) / "plot-gain.png", draw(lines))
    print("\n".join(text))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--runs", default="runs/experiments-small")
    p.add_argument("--gains", default="experiments/results/table2_paired/records.csv")
    p.add_argument("--out", default="experiments/results/gauge")
    args = p.parse_args(argv)
    lines, gained = [], gains(args.gains)
    for data in args.data:
        world, seeds = files.data_name(data), defaultdict(list)
        for path in sorted((Path(args.runs) / world).glob("bind/oom-*/semi/seed*/connect.pt")):
            oom, k = path.parts[-4][4:], int(path.parts[-2][4:])
            where = {"runs": args.runs, "data": data, "perceptor": "bind", "oom": oom, "setting": "semi", "seed": k}
            if (world, oom) in gained and (found := of_seed(files.Place.of(Namespace(**where)))):
                seeds[oom].append(found)
        for oom, found in seeds.items():
            gain, error, nat = gained[world, oom]
            means = {k: float(np.mean([f[k] for f in found])) for k in found[0]}
            lines.append({"world": world, "oom": oom, "seeds": len(found), **means, "trust": float(nat)})
            lines[-1] |= {"gain": float(gain), "error": float(error)}
            print(lines[-1], file=sys.stderr, flush=True)
    write(lines, args.out)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
