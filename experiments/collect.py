"""An experiment's table, plot and page from the METHOD.json of finished runs, which stage 4 wrote and checked.

    python experiments/collect.py table2 --data synth digits --runs runs/experiments-small --out runs/table2

Writes OUT/records.csv, a line a run, and from it OUT/table.md and the plot with the most runs; OUT/COMMAND; every plot
beside the tables in RUNS/report-EXPERIMENT/report.html. Called by the shell files; a filter left out means all.
"""

import argparse
import html
import io
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import commonality
from PIL import Image

from cox_oom import files, run
from cox_oom.report import page, plots, scores, tables
from cox_oom.report.records import PRINT, find, read_record, read_records, write_records, write_text

TITLES = {
    "table2": "Table 2: classification",
    "controls": "COX beside simpler ideas",
    "present": "The runs of Tables 2 to 4 by the present program",
    "table3": "Table 3: retrieval",
    "table4": "Table 4: ablations",
    "fig5": "Fig. 5: connecting",
    "fig6": "Fig. 6: exploring",
    "unsup": "Without labels and pairs",
    "emoji": "What pretrained encoders of the known modalities bring",
    "commonality": "When does a second modality help, and how many pairs does it take?",
}
TEST = ("accuracy", "n_test", "classes", "skewed", "balanced_accuracy", "trust.trusted", "fallback")
PARTS = tuple(
    f"agreement.{when}.{k}"
    for when, keys in (
        ("before", ("share", "label_accuracy", "agree_accuracy", "disagree_accuracy")),
        ("after", ("accuracy", "agree_accuracy", "disagree_accuracy")),
        ("after_own", ("share", "label_accuracy")),
    )
    for k in keys
)
RANKS = tuple(
    f"retrieval.{way}.{level}.{k}"
    for way in ("out", "back")
    for level in ("category", "instance")
    for k in ("r1", "r5", "r10", "median_rank", "chance_r1", "chance_r5", "class_r1")
)
ALL, UNLABELLED = (*TEST, "trust", *PARTS, "hungarian_accuracy", "nmi", "im_head_accuracy"), "agreement.after.accuracy"
# the metrics that an experiment's tables and plots use
KEEP = {
    "table2": ALL,
    "unsup": ALL,
    "table3": (*TEST, *RANKS),
    "emoji": (*ALL, *RANKS),
    "table4": (*TEST, UNLABELLED),
    "controls": (*TEST, UNLABELLED),
    "present": (*TEST, *(k for k in RANKS if k.endswith(".r1"))),
    "fig6": ("accuracy", *PARTS),
    "fig5": ("warm_accuracy", "connection"),
    "commonality": ("accuracy", UNLABELLED, "retrieval.out.instance.r10"),
}
NO_PLOT = {"table4", "unsup", "emoji", "controls", "present"}  # the others have one beside their tables


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("experiment", choices=TITLES, help="what is shown")
    p.add_argument("--data", nargs="+", required=True, help="data sets, as in the stages")
    p.add_argument("--runs", nargs="+", required=True, help="where the stages wrote; several trees are put together")
    p.add_argument("--oom", nargs="+")
    p.add_argument("--perceptor", nargs="+")
    p.add_argument("--setting", nargs="+")
    p.add_argument("--method", nargs="+")
    p.add_argument("--seed", nargs="+", type=int)
    p.add_argument(
        "--add",
        nargs="+",
        default=[],
        metavar="FILE",
        help="records.csv of an earlier or another machine's "
        "collection: what these trees lack comes from there, and the table says so",
    )
    p.add_argument("--add-method", nargs="+", help="of these methods alone")
    p.add_argument("--out", required=True, help="folder to write")
    return p.parse_args(argv)


def collected(args):
    """Every METHOD.json that matches the filters, and what --add adds."""
    records = []
    for runs in args.runs:
        for data in {files.data_name(d): d for d in args.data}.values():
            for folder, method in find(argparse.Namespace(**{**vars(args), "runs": runs}), data, ".json"):
                record = read_record(folder / f"{method}.json")
                if record is None or "warm_accuracy" not in record["metrics"]:
                    raise files.UserError(
                        f"{folder / method}.json is damaged or of another version; run evaluate.py again"
                    )
                if args.experiment != "table3" or "retrieval" in record["metrics"]:  # else --add may have it
                    record.pop("correct", None)  # records.csv has no place for it: its tables bold the best mean
                    records.append({**record, "fingerprint": record["fingerprint"][:PRINT]})
    records += added_records(args, records)
    seed_of = {r["fingerprint"]: r["data_seed"] for r in records if r.get("data_seed") is not None}
    for r in records:  # an earlier version's record of the same world does not say it
        if r.get("fingerprint") in seed_of:
            r["data_seed"] = seed_of[r["fingerprint"]]
    if args.experiment == "commonality" and not commonality.gains(records):
        raise files.UserError("no commonality at which both cox and selftrain are finished")
    if not records:
        raise files.UserError(
            f"no evaluated run in {', '.join(args.runs)} matches; run the experiment's shell file first"
        )
    return records


def added_records(args, records):
    """What --add's files have of the runs that match the filters and are not among the records."""
    same = lambda r: (
        r["data"],
        r["perceptor"],
        r["oom"],
        scores.condition(r),
        r["method"],
        r["seed"],
        args.experiment == "commonality" and (r.get("commonality"), r.get("fingerprint")),
    )
    have, names, found = {same(r) for r in records}, {files.data_name(d) for d in args.data}, []
    filters = {
        "oom": args.oom,
        "perceptor": args.perceptor,
        "setting": args.setting,
        "seed": args.seed,
        "method": args.add_method or args.method,
    }
    for file in map(Path, args.add):
        if not file.exists():
            raise files.UserError(f"--add {file} is missing; name the records.csv of an earlier collection")
        command = file.with_name("COMMAND")
        source = next(iter(re.findall("commit [0-9a-f]+", command.read_text() if command.exists() else "")), str(file))
        for r in read_records(file):
            if r["setting"] == "unsup" and not scores.flags(r):
                raise files.UserError(
                    f"--add {file}: its runs without labels do not say how they started; collect them again"
                )
            if r["data"] in names and all(not v or r[k] in v for k, v in filters.items()) and same(r) not in have:
                have.add(same(r))
                found.append({"added": source, **r})
    return found


def blocks(experiment, records):
    """The tables of an experiment."""
    columns = sorted({(r["data"], r["oom"]) for r in records})
    if experiment == "commonality":
        return commonality.tables(records)
    if experiment == "fig5":
        return [tables.connection_table(records, columns)]
    if experiment == "fig6":
        return [tables.agreement_table(records, columns)]
    if experiment == "emoji":
        return [b for task in ("classification", "retrieval") for b in tables.tables(records, task)]
    found = tables.tables(records, "retrieval" if experiment == "table3" else "classification")
    return [b for b in found if experiment != "table4" or b["title"].startswith(("Test accuracy", "COX against"))]


def figures(experiment, records):
    """{name: (figure, words, number of runs)} of an experiment."""
    groups = {}
    for r in records:
        groups.setdefault((r["perceptor"], scores.condition(r)), []).append(r)
    by_data = {
        (*k, d): [r for r in rows if r["data"] == d]
        for k, rows in sorted(groups.items())
        for d in sorted({r["data"] for r in rows})
    }
    name = lambda k: "-".join("".join(c if c.isalnum() else "-" for c in part) for part in reversed(k)).replace(
        "--", "-"
    )
    found = {}
    if experiment == "commonality":
        for which, metric in zip(("gain", "gain-unlabelled", "gain-instance"), commonality.ON):
            gains = commonality.gains(records, metric)
            words = (
                f"Gain of COX over selftrain, which sees no other modality: points of {commonality.ON[metric]}; "
                f"mean over seeds, bars: standard error."
            )
            found[which] = commonality.curves(gains), words, sum(len(g["gain"]) for g in gains)
    elif experiment == "fig5":
        for k, rows in by_data.items():
            found[name(k)] = plots.connection_curves(rows), f"{', '.join(k)}. {page.CONNECT}", len(rows)
    elif experiment == "fig6":
        for k, rows in by_data.items():
            for m in plots.method_names(rows):
                mine = [r for r in rows if r["method"] == m]
                words = f"{m}, {', '.join(k)}. {page.EXPLORE}"
                found[name((*k, m))] = plots.agreement_bars(mine, by="column"), words, len(mine)
    else:
        for k, rows in sorted(groups.items()):
            for metric, words in page.BARS["retrieval" if experiment == "table3" else "classification"]:
                which = name((metric.split(".")[-2] if "." in metric else metric, *k))
                said = f"{', '.join(k)}: {words}, mean and sd over seeds."
                found[which] = plots.method_bars(rows, metric, words), said, len(rows)
    return {k: v for k, v in found.items() if v[0] is not None}


def write_plot(path, figure):
    """A figure as a small PNG: bars and lines need few colours."""
    png, small = io.BytesIO(), io.BytesIO()
    figure.savefig(png, format="png", dpi=90)
    Image.open(png).convert("RGB").quantize(48, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    files.write_atomic(path, lambda tmp: tmp.write_bytes(small.getvalue()))


def provenance():
    """By which command and commit, where and when."""
    sha = (
        subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        or "unknown"
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py", "csrc"]).returncode
    return (
        f"`{os.environ.get('COMMAND', ' '.join(sys.argv))}`, commit {sha}{' with changes' if changed else ''}, "
        f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}"
    )


def hours(records):
    """Stage 2 once a seed and stage 3, as the runs themselves measured it."""
    once = {
        (r["data"], r["perceptor"], r["oom"], scores.condition(r), r["seed"]): r.get("connect_seconds") or 0
        for r in records
    }
    return (sum(once.values()) + sum(r.get("seconds", 0) for r in records)) / 3600


def main(argv=None):
    args = get_args(argv)
    out, report = Path(args.out), Path(args.runs[0]) / f"report-{args.experiment}" / "report.html"
    write_records(out / "records.csv", collected(args), KEEP[args.experiment])
    records = read_records(out / "records.csv")  # all that is shown can be made of this file again
    shown, drawn = blocks(args.experiment, records), figures(args.experiment, records)
    mine = [r for r in records if "added" not in r]
    command = f"{provenance()}, {len(mine)} runs of {hours(mine):.1f} h in all"
    sources = sorted({r["added"] for r in records if "added" in r})
    command += f"; {len(records) - len(mine)} more of {', '.join(sources)}" if sources else ""
    write_text(out / "table.md", tables.markdown(shown))
    write_text(out / "COMMAND", command + "\n")
    if drawn and args.experiment not in NO_PLOT:
        name = max(drawn, key=lambda name: drawn[name][2])
        write_plot(out / f"plot-{name}.png", drawn[name][0])
    body = [
        f"<h1>{html.escape(TITLES[args.experiment])}</h1>",
        *(page.picture(*f[:2]) for f in drawn.values()),
        *map(page.html_table, shown),
        f"<footer><p>{html.escape(command)}</p></footer>",
    ]
    write_text(report, page.whole_page(TITLES[args.experiment], body))
    print(tables.markdown(shown))
    print(f"wrote {out}/table.md, records.csv and COMMAND; with every plot: {report}")


if __name__ == "__main__":
    run.script(main)
