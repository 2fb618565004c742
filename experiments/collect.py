"""An experiment's table, plot and page from the METHOD.json of finished runs (stage 4 wrote them, and checked the chain).

    python experiments/collect.py table2 --data synth digits --runs runs/experiments-small --out experiments/results/table2

Writes OUT/table.md, table.csv, table.json (records), tests.json, plot-*.png, report.html and COMMAND. Called by the shell
files beside it; a filter left out means all.
"""
import argparse
import html
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from cox_oom import files
import commonality
from cox_oom.report import tests
from cox_oom.report import plots
from cox_oom.report import page
from cox_oom.report import tables
from cox_oom.report.records import find, read_record, write_tables, write_text
from cox_oom.report import scores

TITLES = {"table2": "Table 2: classification", "table3": "Table 3: retrieval", "table4": "Table 4: ablations",
          "fig5": "Fig. 5: connecting", "fig6": "Fig. 6: exploring", "unsup": "Without labels and pairs",
          "commonality": "When does a second modality help, and how many pairs does it take?"}


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
    p.add_argument("--add", nargs="+", default=[], metavar="FILE", help="table.json of an earlier or another machine's "
                   "collection: what these trees lack comes from there, and the table says so")
    p.add_argument("--add-method", nargs="+", help="of these methods alone")
    p.add_argument("--out", required=True, help="folder to write")
    return p.parse_args(argv)


def read_records(args):
    """Every METHOD.json that matches the filters."""
    records = []
    for runs in args.runs:
        for data in {files.data_name(d): d for d in args.data}.values():
            for folder, method in find(argparse.Namespace(**{**vars(args), "runs": runs}), data, ".json"):
                record = read_record(folder / f"{method}.json")
                if record is None or "warm_accuracy" not in record["metrics"]:
                    raise files.UserError(f"{folder / method}.json is damaged or of another version; run evaluate.py again")
                if args.experiment != "table3" or "retrieval" in record["metrics"]:      # else --add may have it
                    records.append(record)
    records += added_records(args, records)
    seed_of = {r["fingerprint"]: r["data_seed"] for r in records if r.get("data_seed") is not None}
    for r in records:                                            # an earlier version's record of the same world does not say it
        if r.get("fingerprint") in seed_of:
            r["data_seed"] = seed_of[r["fingerprint"]]
    if args.experiment == "commonality" and not commonality.gains(records):
        raise files.UserError("no commonality at which both cox and selftrain are finished")
    if not records:
        raise files.UserError(f"no evaluated run in {', '.join(args.runs)} matches; run the experiment's shell file first")
    return records


def added_records(args, records):
    """What --add's files have of the runs that match the filters and are not among the records."""
    same = lambda r: (r["data"], r["perceptor"], r["oom"], scores.condition(r), r["method"], r["seed"],
                      args.experiment == "commonality" and (r.get("commonality"), r.get("fingerprint")))
    have, names, found = {same(r) for r in records}, {files.data_name(d) for d in args.data}, []
    filters = {"oom": args.oom, "perceptor": args.perceptor, "setting": args.setting, "seed": args.seed,
               "method": args.add_method or args.method}
    for file in map(Path, args.add):
        if not file.exists():
            raise files.UserError(f"--add {file} is missing; name the table.json of an earlier collection")
        command = file.with_name("COMMAND")
        source = next(iter(re.findall("commit [0-9a-f]+", command.read_text() if command.exists() else "")), str(file))
        for r in json.loads(file.read_text()):
            if r["setting"] == "unsup" and ("args" not in r or "per_class" not in r["metrics"]):
                raise files.UserError(f"--add {file}: its runs without labels do not say how they started; collect them again")
            r = {"args": {}, **r}
            if r["data"] in names and all(not v or r[k] in v for k, v in filters.items()) and same(r) not in have:
                have.add(same(r))
                found.append({"added": source, **r})
    return found


def blocks_and_figures(experiment, records):
    """(blocks, {name: (figure, words)}) of an experiment."""
    columns = sorted({(r["data"], r["oom"]) for r in records})
    groups = {}
    for r in records:
        groups.setdefault((r["perceptor"], scores.condition(r)), []).append(r)
    by_data = {(*k, d): [r for r in rows if r["data"] == d] for k, rows in sorted(groups.items())
               for d in sorted({r["data"] for r in rows})}
    name = lambda k: "-".join("".join(c if c.isalnum() else "-" for c in part) for part in reversed(k)).replace("--", "-")
    if experiment == "commonality":
        return commonality.tables(records), {name: (
            commonality.curves(commonality.gains(records, metric)),
            f"Gain of COX over selftrain, which sees no other modality: points of {commonality.ON[metric]}; mean over seeds, bars: "
            f"standard error.") for name, metric in zip(("gain", "gain-unlabelled", "gain-instance"), commonality.ON)}
    if experiment == "fig5":
        return [tables.connection_table(records, columns)], {name(k): (
            plots.connection_curves(rows), f"{', '.join(k)}. {page.CONNECT}") for k, rows in by_data.items()}
    if experiment == "fig6":
        return [tables.agreement_table(records, columns)], {name((*k, m)): (
            plots.agreement_bars([r for r in rows if r["method"] == m], by="column"), f"{m}, {', '.join(k)}. {page.EXPLORE}")
            for k, rows in by_data.items() for m in plots.method_names(rows)}
    task = "retrieval" if experiment == "table3" else "classification"
    blocks = tables.tables(records, task)
    if experiment == "table4":
        blocks = [b for b in blocks if b["title"].startswith(("Test accuracy", "COX against"))]
    return blocks, {name((metric.split(".")[-2] if "." in metric else metric, *k)): (
        plots.method_bars(rows, metric, words), f"{', '.join(k)}: {words}, mean and sd over seeds.")
        for k, rows in sorted(groups.items()) for metric, words in page.BARS[task]}


def provenance():
    """By which command and commit, where and when."""
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "unknown"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py", "csrc"]).returncode
    return (f"`{os.environ.get('COMMAND', ' '.join(sys.argv))}`, commit {sha}{' with changes' if changed else ''}, "
            f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}")


def hours(records):
    """Stage 2 once a seed and stage 3, as the runs themselves measured it."""
    once = {(r["data"], r["perceptor"], r["oom"], scores.condition(r), r["seed"]): r.get("connect_seconds") or 0 for r in records}
    return (sum(once.values()) + sum(r.get("seconds", 0) for r in records)) / 3600


def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    records = read_records(args)
    blocks, figures = blocks_and_figures(args.experiment, records)
    figures = {k: v for k, v in figures.items() if v[0] is not None}
    mine = [r for r in records if "added" not in r]
    command = f"{provenance()}, {len(mine)} runs of {hours(mine):.1f} h in all"
    sources = sorted({r["added"] for r in records if "added" in r})
    command += f"; {len(records) - len(mine)} more of {', '.join(sources)}" if sources else ""
    spare = {k for k, experiment in (("connection", "fig5"), ("retrieval", "table3")) if experiment != args.experiment}
    spare -= {"retrieval"} if args.experiment == "commonality" else set()
    spare_of = {"semi": {*spare, "confusion", "per_class"}, "unsup": spare}                        # METHOD.json has them
    slim = [{**r, "metrics": {k: v for k, v in r["metrics"].items() if k not in spare_of[r["setting"]]}} for r in records]
    write_tables(out, slim, blocks)
    metrics = {"table2": ["accuracy", "unlabelled"], "table4": ["accuracy"],
               "table3": ["retrieval.out.category.r1", "retrieval.out.instance.r1"]}.get(args.experiment, [])
    if metrics:
        found = [{"perceptor": p, **t} for p in sorted({r["perceptor"] for r in records}) for m in metrics
                 for t in tests.tests([r for r in records if r["perceptor"] == p], m)]
        write_text(out / "tests.json", json.dumps(found, indent=1))
    write_text(out / "COMMAND", command + "\n")
    for name, (figure, _) in figures.items():
        files.write_atomic(out / f"plot-{name}.png", lambda tmp: figure.savefig(tmp, format="png", dpi=110,
                                                                               metadata={"Software": None}))
    body = [f"<h1>{html.escape(TITLES[args.experiment])}</h1>", *(page.picture(*f) for f in figures.values()),
            *map(page.html_table, blocks), f"<footer><p>{html.escape(command)}</p></footer>"]
    write_text(out / "report.html", page.whole_page(TITLES[args.experiment], body))
    print(tables.markdown(blocks))
    print(f"wrote {out}/table.md, table.csv, table.json, report.html and {len(figures)} plots")


if __name__ == "__main__":
    files.run(main)
