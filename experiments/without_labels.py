"""Names without any label or pair: does the geometry of a generic encoder's features carry them to a new sensor?

    python experiments/without_labels.py --encoder runs/models/efficientnet-lite0 \\
        --banks "pictures of digits" R/digits/P/banks/audio.pt R/digits/P/banks/rgb.pt

Known   the colour pictures of --data emoji, through the image encoder of a folder for --perceptor onnx:FOLDER
Sensors other cameras on the same signs, through the same encoder: it knows images, not these sensors. No label, no pair
        and no order is used; with `others` the camera has seen other signs than the pictures show
--banks NAME KNOWN SENSOR: two feature banks of stage 1 as a further case
Writes  OUT/records.csv, a line a case and seed of the draw, and OUT/table.md

The map is that of geometry.py without pairs: centres of k-means, quadratic assignment from many starts, Procrustes,
then Hungarian matching and Procrustes in turns. It is searched five times. The gate needs no label: two searches must
end at the same map (mean cosine of the mapped items at least 0.8), else the names are a guess."""

import argparse
import itertools
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from geometry import assignment, found, procrustes, write
from PIL import Image, ImageDraw, ImageFilter
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans

from cox_oom import data, files
from cox_oom.gauge import cka
from cox_oom.perceptors import onnx
from cox_oom.perceptors.embed import encode

COMPONENTS, CENTRES, STARTS, TURNS, BATCH = 30, 30, 20, 60, 300
SEARCHES, AGREE, NEIGHBOURS = 5, 0.8, 10


def camera(name, picture, strokes, rng):
    """A picture uint8 (3, S, S), or the strokes (3, T) of its sign, as the sensor `name` would see it."""
    grey = Image.fromarray(picture.transpose(1, 2, 0)).convert("L")
    side = grey.size[0]
    if name == "negative":
        grey = grey.point(lambda v: 255 - v)
    elif name.endswith(" pixels"):
        small = int(name.split()[0])
        grey = grey.resize((small, small), Image.BILINEAR).resize((side, side), Image.BILINEAR)
    elif name == "blurred negative":
        grey = grey.filter(ImageFilter.GaussianBlur(3)).point(lambda v: 255 - v)
    elif name == "edges":
        grey = grey.filter(ImageFilter.FIND_EDGES).point(lambda v: 255 - min(255, 3 * v))
    elif name == "noise":
        noisy = np.asarray(grey, dtype=np.float32) + rng.normal(0, 60, (side, side))
        grey = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    elif name == "pen":
        big = Image.new("L", (2 * side, 2 * side), "white")
        at, draw = strokes[:2].T * 2 * side, ImageDraw.Draw(big)
        for t in np.flatnonzero(strokes[2, :-1]):
            draw.line([tuple(at[t]), tuple(at[t + 1])], fill="black", width=6)
        grey = big.resize((side, side), Image.BILINEAR)
    return np.ascontiguousarray(np.array(grey.convert("RGB")).transpose(2, 0, 1))


CAMERAS = ("grey", "negative", "32 pixels", "blurred negative", "edges", "16 pixels", "pen", "noise")


def embedded(model, pictures):
    """Features (n, d) of pictures."""
    prepare = model.preparer().prepare
    items = [(k, prepare("image", p)) for k, p in enumerate(pictures)]
    return torch.cat([encode(model, "image", items[k : k + 32], "cpu")[1] for k in range(0, len(items), 32)])


def leading(z):
    """The leading principal components (n, COMPONENTS) of unit rows z (n, d), their mean variance 1."""
    z = F.normalize(z.float(), dim=1)
    u, s, _ = torch.linalg.svd(z - z.mean(0), full_matrices=False)
    z = u[:, :COMPONENTS] * s[:COMPONENTS]
    return z / z.square().mean().sqrt()


def search(x, z, seed):
    """An orthogonal map (p, p) of x (N, p) to z (M, p) from their geometry alone."""
    rng = np.random.default_rng(seed)
    k = min(CENTRES, len(x) // 8, len(z) // 8)
    draw = lambda t: KMeans(k, n_init=1, random_state=int(rng.integers(2**31))).fit(t.numpy()).cluster_centers_
    starts = []
    for _ in range(STARTS):
        cx, cz = (torch.from_numpy(draw(t)).float() for t in (x, z))
        a, b = cx @ cx.T, cz @ cz.T
        j = assignment(a / a.norm(), b / b.norm(), torch.zeros_like(a))
        cross = cx.T @ cz[j]
        starts.append((((a * b[j][:, j]).sum() / a.norm() / b.norm()).item(), cross / cross.norm()))
    starts.sort(key=lambda s: -s[0])
    turn = procrustes(torch.stack([cross for _, cross in starts[: STARTS // 2]]).sum(0))
    for _ in range(TURNS):
        some_x, some_z = (torch.from_numpy(rng.permutation(len(t))[:BATCH]) for t in (x, z))
        near = F.normalize(x[some_x] @ turn, dim=1) @ F.normalize(z[some_z], dim=1).T
        i, j = linear_sum_assignment(-near.numpy())
        turn = procrustes(x[some_x][i].T @ z[some_z][j])
    return turn


def agreed(turns, x):
    """(map, agreement): of several maps (p, p) the one that is most like another, and how much, the mean cosine of
    the rows of x that both map."""
    mapped = [F.normalize(x @ turn, dim=1) for turn in turns]
    pairs = itertools.combinations(range(len(turns)), 2)
    agreement, i = max(((mapped[i] * mapped[j]).sum(1).mean().item(), i) for i, j in pairs)
    return turns[i], agreement


def names(x, y, z, turn, classes):
    """Classes (M,) of z (M, p) by the votes of their nearest mapped items of x (N, p), y (N,)."""
    near = F.normalize(z, dim=1) @ F.normalize(x @ turn, dim=1).T
    votes = F.one_hot(y[near.topk(NEIGHBOURS).indices], classes).sum(1)
    return votes.argmax(1)


def judge(known, sensor, y, half, seed):
    """Facts of one case: known (n, d), sensor (n, d') features of the same n instances of classes y (n,), whose pairing
    only judges."""
    rows = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    seen, recorded = (rows[: len(y) // 2], rows[len(y) // 2 :]) if half else (rows.sort().values, rows)
    a, b = leading(known), leading(sensor)
    x, z, classes = a[seen], b[recorded], int(y.max()) + 1
    turn, agreement = agreed([search(x, z, 1000 * seed + k) for k in range(SEARCHES)], x)
    best = procrustes(a.T @ b)
    right = lambda t: (names(x, y[seen], z, t, classes) == y[recorded]).float().mean().item()
    return {
        "cka": cka(a, b).item(),
        "agreement": agreement,
        "open": agreement >= AGREE,
        "foscttm": found(a[recorded] @ turn, z)[0],
        "named": right(turn),
        "named_paired": right(best),
        "largest": torch.bincount(y[recorded]).max().item() / len(recorded),
    }


def table(records):
    """A line a case, means over the draws."""
    cases = defaultdict(list)
    for r in records:
        cases[r["sensor"], r["instances"]].append(r)
    heads = ("sensor", "instances", "CKA", "searches agree", "gate open", "FOSCTTM")
    heads += ("named, %", "by a map of all pairs, %", "largest class, %")
    lines = [f"| {' | '.join(heads)} |", "|:--|:--|" + "--:|" * (len(heads) - 2)]
    for (sensor, instances), rows in cases.items():
        mean = lambda k, rows=rows: sum(float(r[k]) for r in rows) / len(rows)
        span = lambda k, rows=rows: f"{min(r[k] for r in rows):.2f} to {max(r[k] for r in rows):.2f}"
        opened = f"{sum(r['open'] for r in rows)} of {len(rows)}"
        cells = [sensor, instances, f"{mean('cka'):.2f}", span("agreement"), opened, f"{mean('foscttm'):.3f}"]
        cells += [f"{100 * mean(k):.1f}" for k in ("named", "named_paired", "largest")]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def cases(args):
    """(name, known features, sensor features, classes) of every case."""
    if args.encoder:
        world, model = data.read("emoji"), onnx.load(["image"], weights=args.encoder)
        rows = [r for r in range(len(world.ids)) if world.cells["pen"][r]]
        y, rng = torch.tensor(world.labels)[rows], np.random.default_rng(0)
        pictures, strokes = ([world.load(m, r) for r in rows] for m in ("rgb", "pen"))
        known = embedded(model, pictures)
        for name in CAMERAS:
            yield name, known, embedded(model, [camera(name, *both, rng) for both in zip(pictures, strokes)]), y
    for name, *paths in args.banks:
        known, sensor = (files.load(path, keys=("features", "ids", "labels")) for path in paths)
        at = {i: r for r, i in enumerate(known["ids"])}
        both = [(at[i], r) for r, i in enumerate(sensor["ids"]) if i in at and sensor["labels"][r] >= 0]
        own, other = torch.tensor(both).T
        yield name, known["features"][own], sensor["features"][other], sensor["labels"][other]


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--encoder", help="a folder for --perceptor onnx:FOLDER that takes images")
    p.add_argument("--banks", nargs=3, action="append", default=[], metavar=("NAME", "KNOWN", "SENSOR"))
    p.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    p.add_argument("--out", default="experiments/results/without_labels")
    args = p.parse_args(argv)
    if not (args.encoder or args.banks):
        p.error("nothing to do; give --encoder or --banks")
    records = []
    for sensor, known, features, y in cases(args):
        for half, seed in itertools.product((False, True), args.seeds):
            facts = judge(known, features, y, half, seed)
            records.append({"sensor": sensor, "instances": "others" if half else "the same", "seed": seed, **facts})
            print(records[-1], file=sys.stderr, flush=True)
    write(records, table(records), Path(args.out))


if __name__ == "__main__":
    main()
