"""An experiment's table, plot and page from the METHOD.json of finished runs (stage 4 wrote them, and checked the chain).

    python experiments/collect.py table2 --data synth digits --runs runs/experiments-small --out experiments/results/table2

Writes OUT/table.md, table.csv, table.json (records), tests.json, plot-*.png, report.html and COMMAND. Called by the shell
files beside it; a filter left out means all.
"""
import argparse
import html
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import bank                # noqa: E402
import evaluate            # noqa: E402
import report              # noqa: E402
import results             # noqa: E402

TITLES = {"table2": "Table 2: classification", "table3": "Table 3: retrieval"}


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
    p.add_argument("--out", required=True, help="folder to write")
    return p.parse_args(argv)


def read_records(args):
    """Every METHOD.json that matches the filters."""
    records = []
    for runs in args.runs:
        for data in {bank.data_name(d): d for d in args.data}.values():
            for folder, method in evaluate.find(argparse.Namespace(**{**vars(args), "runs": runs}), data, ".json"):
                record = evaluate.read_record(folder / f"{method}.json")
                if record is None:
                    raise bank.UserError(f"{folder / method}.json is damaged or of another version; run evaluate.py --force")
                records.append(record)
    if not records:
        raise bank.UserError(f"no evaluated run in {', '.join(args.runs)} matches; run the experiment's shell file first")
    return records


def blocks_and_figures(experiment, records):
    """(blocks, {name: (figure, words)}) of an experiment."""
    task = "retrieval" if experiment == "table3" else "classification"
    figures = {}
    for i, (perceptor, k) in enumerate(sorted({(r["perceptor"], results.condition(r)) for r in records})):
        rows = [r for r in records if (r["perceptor"], results.condition(r)) == (perceptor, k)]
        for metric, words in report.BARS[task]:
            figures[f"{i}-{metric.split('.')[-2] if '.' in metric else metric}"] = (
                report.method_bars(rows, metric, words), f"{k}, perceptor {perceptor}: {words}, mean and sd over seeds.")
    return results.tables(records, task), figures


def command_line(records):
    """What was run, by which commit, where, in which time: the line in COMMAND."""
    sha = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip() or "unknown"
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "*.py", "csrc"]).returncode
    once = {(r["data"], r["perceptor"], r["oom"], results.condition(r), r["seed"]): r["connect_seconds"] or 0 for r in records}
    seconds = sum(once.values()) + sum(r["seconds"] for r in records)
    return (f"`{os.environ.get('COMMAND', ' '.join(sys.argv))}`, commit {sha}{' with changes' if changed else ''}, "
            f"{os.cpu_count()} cores, {len(records)} runs of {seconds / 3600:.1f} h in all, {time.strftime('%Y-%m-%d')}")


def main(argv=None):
    args = get_args(argv)
    out = Path(args.out)
    records = read_records(args)
    blocks, figures = blocks_and_figures(args.experiment, records)
    figures = {k: v for k, v in figures.items() if v[0] is not None}
    command = command_line(records)
    evaluate.write_tables(out, records, blocks)
    metrics = ["retrieval.out.category.r1", "retrieval.out.instance.r1"] if args.experiment == "table3" else ["accuracy"]
    evaluate.write_text(out / "tests.json", json.dumps([{"perceptor": p, **t} for p in sorted({r["perceptor"] for r in records})
                        for m in metrics for t in results.tests([r for r in records if r["perceptor"] == p], m)], indent=1))
    evaluate.write_text(out / "COMMAND", command + "\n")
    for name, (figure, _) in figures.items():
        bank.write_atomic(out / f"plot-{name}.png", lambda tmp: figure.savefig(tmp, format="png", dpi=110,
                                                                               metadata={"Software": None}))
    body = [f"<h1>{html.escape(TITLES[args.experiment])}</h1>", *(report.picture(*f) for f in figures.values()),
            *map(report.html_table, blocks), f"<footer><p>{html.escape(command)}</p></footer>"]
    evaluate.write_text(out / "report.html", report.whole_page(TITLES[args.experiment], body))
    print(results.markdown(blocks))
    print(f"wrote {out}/table.md, table.csv, table.json, tests.json, report.html and {len(figures)} plots")


if __name__ == "__main__":
    bank.run(main)
