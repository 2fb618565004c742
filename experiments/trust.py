"""How far a learner's word can be trusted: calibration before and after, and what novelty tells apart.

    python experiments/trust.py --data synth ../shared/data/handwritten --runs runs/trust
    python experiments/trust.py --leave-out eight nine --data ../shared/data/handwritten --write /tmp/without

Reads   every METHOD.pt and METHOD.json of the data sets under --runs (stages 1 to 4)
Writes  OUT/records.csv, a line a run, and from it table.md, mean ± sd over seeds: the expected calibration error before
        and after the temperature, what confidence 0.8 leaves, and the AUROC of novelty: test items against noise,
        silence, another sensor's items, and against classes that no training item had (the unlabelled test rows of a
        folder that --leave-out wrote)
--leave-out writes the folder: a copy of the files, a manifest without the training rows of these classes.
"""

import argparse
import csv
import io
import os
import shutil
from collections import defaultdict
from pathlib import Path

import collect
import torch
import torch.nn.functional as F

from cox_oom import confidence, files
from cox_oom.augment import model_of
from cox_oom.report.records import read_record, write_text
from cox_oom.report.scores import order, percent
from cox_oom.report.tables import markdown
from cox_oom.seed import split_rows

RUN = ("data", "oom", "method", "seed")
CALIBRATION = ("accuracy", "ECE before", "ECE after", "sure (≥ 0.8)", "sure ones right")
NOVELTY = ("false alarms", "noise", "silence", "another sensor", "unseen classes")


def auroc(own, other):
    """The chance that an item of `other` (m,) scores above one of `own` (n,), ties half."""
    below = torch.searchsorted(own.sort().values, other)
    upto = torch.searchsorted(own.sort().values, other, right=True)
    return ((below + upto) / 2).double().mean().item() / len(own)


def strangers(oom, rows, path, generator):
    """{name: an inputs file of items that are none of the sensor's}, as many as rows (R,)."""
    x, mean, std = oom["x"][rows], oom["mean"], oom["std"]
    made = {"noise": mean + std * torch.randn(x.shape, generator=generator), "silence": torch.zeros(x.shape)}
    for other in sorted(path.parent.glob("*.pt")):
        if other == path:
            continue
        file = files.load(other)
        if file["kind"] == oom["kind"]:
            y = file["x"][split_rows(file, ("test",))[: len(rows)]].float()
            y = F.interpolate(y, size=x.shape[2:])
            made["another sensor"] = y.mean(1, keepdim=True).expand(-1, x.shape[1], *y.shape[2:])
            break
    lengths = None if oom["lengths"] is None else oom["lengths"][rows]
    cut = lambda n: None if lengths is None else lengths[:n]
    return {k: {"kind": oom["kind"], "x": v, "lengths": cut(len(v)), "mean": mean, "std": std} for k, v in made.items()}


def of_run(path):
    """The figures of one METHOD.pt: {name: value}."""
    run, record = files.load(path), read_record(path.with_suffix(".json"))
    inputs = path.parents[4] / "inputs" / f"{run['preparation']['modality']}.pt"
    oom, model = files.load(inputs), model_of(run, "cpu")
    test = split_rows(oom, ("test",))
    known, unknown = test[oom["labels"][test] >= 0], test[oom["labels"][test] < 0]
    score = lambda file, rows: confidence.novelty(run, model(file, rows)[0])
    own, found = score(oom, known), {}
    if record and "calibration" in record["metrics"]:
        c = record["metrics"]["calibration"]
        kept, right = c["abstain"]["0.8"]
        found |= {"accuracy": record["metrics"]["accuracy"], "ECE before": c["ece_before"]}
        found |= {"ECE after": c["ece"] if c["n"] else None, "sure (≥ 0.8)": kept, "sure ones right": right}
    found["false alarms"] = (own > 1).double().mean().item()
    if oom["kind"] != "text":
        for name, file in strangers(oom, known, inputs, torch.Generator().manual_seed(0)).items():
            found[name] = auroc(own, score(file, torch.arange(len(file["x"]))))
    if len(unknown):
        found["unseen classes"] = auroc(own, score(oom, unknown))
    return found


def tables(records):
    """The blocks of table.md: a row for each world, sensor and method."""
    rows, blocks = defaultdict(list), []
    for r in records:
        rows[tuple(r[k] for k in RUN[:3])].append(r)
    seeds = "Mean ± sd over the seeds " + ", ".join(sorted({r["seed"] for r in records})) + "."
    for title, names in (("Calibration, %", CALIBRATION), ("Novelty, %", NOVELTY)):
        cells = lambda some, names: [percent([r[c] for r in some if r.get(c) is not None], len(some)) for c in names]
        lines = [[*key, *cells(some, names)] for key, some in rows.items()]
        blocks.append({"title": title, "header": [*RUN[:3], *names], "rows": lines, "notes": [seeds]})
    return blocks


def leave_out(data, classes, out):
    """A folder without the training rows of some classes, whose test rows lose their label."""
    os.makedirs(out, exist_ok=True)
    with open(Path(data) / "manifest.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    kept = [r for r in rows if r["label"] not in classes or r["split"] == "test"]
    for r in kept:
        r["label"] = "" if r["label"] in classes else r["label"]
    for path in Path(data).iterdir():
        if path.is_dir():
            shutil.copytree(path, Path(out) / path.name, dirs_exist_ok=True)
    with open(Path(out) / "manifest.csv", "w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(kept)
    print(f"{out}: {len(kept)} of {len(rows)} rows")


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--runs", default="runs")
    p.add_argument("--out", default="experiments/results/trust")
    p.add_argument("--leave-out", nargs="+", default=[])
    p.add_argument("--write")
    args = p.parse_args(argv)
    if args.leave_out:
        return leave_out(args.data[0], args.leave_out, args.write)
    records = []
    for data in args.data:
        found = (Path(args.runs) / files.data_name(data)).glob("*/oom-*/semi/seed*/*.json")
        for path in sorted(found, key=lambda p: (p.parts[-4], order(p.stem), p)):
            if path.with_suffix(".pt").exists():
                run = (files.data_name(data), path.parts[-4][4:], path.stem, path.parts[-2][4:])
                records.append(dict(zip(RUN, run)) | of_run(path.with_suffix(".pt")))
    out = Path(args.out)
    table = io.StringIO()
    writer = csv.DictWriter(table, [*RUN, *CALIBRATION, *NOVELTY], lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in r.items()} for r in records)
    write_text(out / "records.csv", table.getvalue())
    write_text(out / "table.md", markdown(tables(records)))
    write_text(out / "COMMAND", f"{collect.provenance()}, {len(records)} runs\n")
    print(f"wrote {out}/records.csv and table.md")


if __name__ == "__main__":
    main()
