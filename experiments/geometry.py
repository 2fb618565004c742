"""Where the connection starts: maps from the pairs alone, from shared geometry, and soft correspondence, on held-out
pairs.

    python experiments/geometry.py --data synth ../shared/data/handwritten --runs runs/experiments-small

Reads   inputs, banks and connect.pt of the data sets under --runs (stages 1 and 2), and all true pairs of the folders
Writes  OUT/records.csv, a line a column, seed, number of pairs and start; OUT/table.md: means over worlds
Measure FOSCTTM, the share of items nearer than the true partner, 0.5 by chance, and R@10, both of held-out pairs and
        both ways; for `soft` also how many of these items get their class

Starts: `ridge`, as `correspond` has it; `procrustes`, an orthogonal map of the pairs; `geometry`, the start of "Shared
Geometry as a Rosetta Stone" (Schnaus et al., 2026): k-means centres of both sides, matched by quadratic assignment with
the pairs as a linear term, then Hungarian matching and Procrustes in turns; `soft`, after soft correspondence.
Vectors: readings as principal components, whitened for `ridge` and `soft`, else with their own variances."""

import argparse
import csv
import sys
from argparse import Namespace
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from cox_oom import files, labels
from cox_oom.connect import Bridge
from cox_oom.correspond import correspond, principal, shared_vectors
from cox_oom.readings import plain_vectors
from cox_oom.seed import load_seed

PAIRS = (16, 40, 100, 160)
CENTRES, RESTARTS, TURNS, BATCH = 30, 10, 30, 300


def procrustes(cross):
    """The nearest matrix (p, d) with orthonormal rows or columns to a cross-covariance (p, d)."""
    u, _, v = torch.linalg.svd(cross, full_matrices=False)
    return u @ v


def assignment(a, b, linear):
    """Columns (k,) that maximise tr(A P B Pᵀ) + tr(linearᵀ P) over permutations P, by Frank and Wolfe (Vogelstein
    et al., PLOS ONE 2015); a, b, linear (k, k)."""
    p = torch.full_like(a, 1 / len(a))
    for _ in range(30):
        i, j = linear_sum_assignment(-(2 * a @ p @ b + linear).numpy())
        step = torch.zeros_like(p)
        step[i, j] = 1
        step -= p
        square = ((a @ step @ b) * step).sum()
        slope = (2 * (a @ p @ b) * step).sum() + (linear * step).sum()
        size = 1.0 if square >= 0 else min(1.0, float(-slope / (2 * square)))
        if float(square * size**2 + slope * size) <= 1e-12:
            break
        p = p + size * step
    return linear_sum_assignment(-p.numpy())[1]


def geometry(x, z, x_pair, z_pair, free_x, free_z):
    """The map (p, d) from shared geometry. x (N, p), z (M, d) centred; x_pair, z_pair the pairs' rows of them; free_x,
    free_z: rows that are in no pair."""
    k, rng = min(CENTRES, len(x) // 8, len(z) // 8), np.random.default_rng(0)
    centres = lambda t, r: torch.from_numpy(KMeans(k, n_init=1, random_state=r).fit(t.numpy()).cluster_centers_).float()
    own = x_pair.T @ z_pair
    cross = torch.zeros_like(own)
    for r in range(RESTARTS):
        cx, cz = centres(x, r), centres(z, 1000 + r)
        a, b, linear = cx @ cx.T, cz @ cz.T, cx @ x_pair.T @ z_pair @ cz.T
        j = assignment(a / a.norm(), b / b.norm(), 2 * linear / linear.norm())
        found = cx.T @ cz[j] + own * k / len(x_pair)
        cross += found / found.norm()
    turn = procrustes(cross)
    for _ in range(TURNS):
        some_x, some_z = (torch.from_numpy(rng.permutation(free.numpy())[:BATCH]) for free in (free_x, free_z))
        near = F.normalize(x[some_x] @ turn, dim=1) @ F.normalize(z[some_z], dim=1).T
        i, j = linear_sum_assignment(-near.numpy())
        turn = procrustes(x[some_x][i].T @ z[some_z][j] + own * len(i) / len(x_pair))
    return turn


def found(a, b):
    """(FOSCTTM, R@10) of items a (n, d) and b (n, d), partners in order, by cosine, both ways."""
    near = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T
    true = near.diagonal()
    far, back = (near > true[:, None]).float(), (near > true).float()
    share = (far.mean(1).mean() + back.mean(0).mean()) / 2
    return share.item(), ((far.sum(1) < 10).float().mean() + (back.sum(0) < 10).float().mean()).item() / 2


def in_turn(places, y, generator):
    """The places in random order, a class after the other: any number of the first is a class-balanced draw."""
    places = places[torch.randperm(len(places), generator=generator)]
    rank = torch.empty_like(places)
    for c in y[places].unique():
        mine = (y[places] == c).nonzero().squeeze(1)
        rank[mine] = torch.arange(len(mine))
    return places[rank.argsort(stable=True)]


def of_seed(place):
    """Lines of one seed of one column."""
    seed = load_seed(place, keys=("mapped", "labelled"))
    items = labels.items(seed)
    bridge = Bridge(seed, device="cpu", lr=1e-3, weight_decay=0)
    row, truth = {i: r for r, i in enumerate(bridge.common)}, seed.oom["labels"][items.rows]
    partner = torch.tensor([row.get(i, -1) for i in items.ids])
    places = ((partner >= 0) & (truth >= 0)).nonzero().squeeze(1)
    if not len(places):
        return
    components = max(10, min(50, len(items.rows) // 20))
    u, s = principal(plain_vectors(seed.oom, items.rows), components)
    white, own = (u * len(u) ** 0.5).float(), (u * s).float()
    own /= own.square().mean().sqrt()
    x, y_im = shared_vectors([*bridge.common_banks().values()]), bridge.y_common
    order = in_turn(places, truth, torch.Generator().manual_seed(place.seed))
    for count in PAIRS:
        if len(order) < count + 50:
            continue
        pair, held = order[:count], order[count : count + 1000]
        at, other = partner[pair], partner[held]
        for name, (z_map, x_map), right in starts(white, own, x, y_im, pair, at, truth, items.frequencies):
            share, ten = found(z_map[held], x_map[other])
            accuracy = None if right is None else (right[held] == truth[held]).float().mean().item()
            yield {"pairs": count, "start": name, "foscttm": share, "r10": ten, "accuracy": accuracy}


def starts(white, own, x, y_im, pair, at, truth, shares):
    """(name, (z, x) in one space, class named for each item or None) of every start. pair, at (P,): the pairs' rows."""
    z0, x0 = white[pair].mean(0), x[at].mean(0)
    a, b = x[at] - x0, white[pair] - z0
    ridge = torch.linalg.solve(a.T @ a + 200 * torch.eye(a.shape[1]), a.T @ b)
    yield "ridge", (white - z0, (x - x0) @ ridge), None
    o0 = own[pair].mean(0)
    yield "procrustes", (own - o0, (x - x0) @ procrustes(a.T @ (own[pair] - o0))), None
    xc, zc = x - x.mean(0), own - own.mean(0)
    rest = lambda n, used: torch.ones(n, dtype=torch.bool).index_fill_(0, used, False).nonzero().squeeze(1)
    turn = geometry(xc, zc, xc[at], zc[pair], rest(len(x), at), rest(len(own), pair))
    yield "geometry", (zc, xc @ turn), None
    y_z, partner = torch.full((len(white),), -1), torch.full((len(white),), -1)
    y_z[pair], partner[pair] = truth[pair], at
    posterior, expected = correspond(white, y_z, partner, x, y_im, shares)
    yield "soft", (expected - x.mean(0), xc), posterior.argmax(1)


STARTS = ("ridge", "procrustes", "geometry", "soft")


def table(records):
    """Means over the sensors and seeds of a world."""
    mean = lambda values: sum(values) / len(values)
    worlds = defaultdict(list)
    for r in records:
        worlds[r["world"], int(r["pairs"])].append(r)
    lines = [f"| world | pairs | sensors | seeds | {' | '.join(STARTS)} |", "|:--|--:|--:|--:|" + "--:|" * len(STARTS)]
    for (world, pairs), rows in worlds.items():
        cells = [world, str(pairs), *(str(len({r[k] for r in rows})) for k in ("oom", "seed"))]
        for n in STARTS:
            far, ten = ([float(r[k]) for r in rows if r["start"] == n] for k in ("foscttm", "r10"))
            cells.append(f"{mean(far):.3f} · {100 * mean(ten):.1f}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cases(records):
    """In how many cases, a sensor with a number of pairs each, one start has a lower FOSCTTM than another, by the mean
    over the seeds; without emoji."""
    of = defaultdict(list)
    for r in records:
        if not r["world"].startswith("emoji"):
            of[r["start"], r["world"], r["oom"], int(r["pairs"])].append(float(r["foscttm"]))
    at = sorted({k[1:] for k in of})
    mean = {k: sum(v) / len(v) for k, v in of.items()}
    lines = [f"| of {len(at)} cases, nearer than | {' | '.join(STARTS[1:])} |", "|:--|" + "--:|" * len(STARTS[1:])]
    for other in STARTS[:-1]:
        near = [sum(mean[(n, *k)] < mean[(other, *k)] for k in at) if n != other else "–" for n in STARTS[1:]]
        lines.append(f"| {other} | {' | '.join(map(str, near))} |")
    return lines


def write(records, lines, out):
    """records.csv and table.md in the folder `out`; the table is printed as well."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "records.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in r.items()} for r in records)
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--perceptor", default="bind", help="as in stage 1")
    p.add_argument("--runs", default="runs/experiments-small")
    p.add_argument("--out", default="experiments/results/geometry")
    p.add_argument("--add", metavar="FILE", help="records.csv of an earlier call: its other sensors and seeds")
    args = p.parse_args(argv)
    records = []
    for data in args.data:
        where = Path(args.runs) / files.data_name(data) / files.perceptor_name(args.perceptor)
        for path in sorted(where.glob("oom-*/semi/seed*/connect.pt")):
            oom, k = path.parts[-4][4:], int(path.parts[-2][4:])
            place = files.Place.of(
                Namespace(runs=args.runs, data=data, perceptor=args.perceptor, oom=oom, setting="semi", seed=k)
            )
            for line in of_seed(place):
                records.append({"world": files.data_name(data), "oom": oom, "seed": k, **line})
                print(records[-1], file=sys.stderr, flush=True)
    if args.add:
        with open(args.add, newline="", encoding="utf-8") as f:
            earlier, have = list(csv.DictReader(f)), {(r["world"], r["oom"], str(r["seed"])) for r in records}
        records = [r for r in earlier if (r["world"], r["oom"], r["seed"]) not in have] + records
    write(records, [*table(records), "", *cases(records)], Path(args.out))


if __name__ == "__main__":
    main()
