"""The outcome of search.sh: of every method the setting with the best mean accuracy on the labelled items held out.

    python experiments/search.py --data synth --runs runs/experiments-small/search --seed 0 1 --out runs/search

Reads METHOD-N.pt of stage 3 alone (its last validation accuracy), so that no test item plays a part. Writes
OUT/records.csv (a line a run), search.md, chosen.sh (EXPLORE_method, which worlds.sh sources) and COMMAND. A method
that RUNS lacks keeps what OUT says of it.
"""

import argparse
import os
import re
from pathlib import Path

import collect

from cox_oom import files, run
from cox_oom.report import records, scores, tables


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--data", nargs="+", required=True)
    p.add_argument("--runs", required=True)
    p.add_argument("--oom", nargs="+")
    p.add_argument("--perceptor", nargs="+")
    p.add_argument("--seed", nargs="+", type=int)
    p.add_argument("--out", required=True, help="folder to write")
    return p.parse_args(argv)


def read_runs(args):
    """[{run, flags, data, oom, seed, accuracy, n, seconds}] of every METHOD-N.pt that was trained beside items held
    out."""
    found = []
    filters = argparse.Namespace(**vars(args), setting=["semi"], method=None)
    for data in args.data:
        for folder, name in records.find(filters, data, ".pt"):
            if not name.partition("-")[2].isdigit():
                continue
            connect, run = files.load(folder / "connect.pt"), files.load(folder / f"{name}.pt")
            if not connect.get("held"):
                raise files.UserError(f"{folder}/connect.pt has no items held out; give stage 2 --holdout")
            found.append(
                {
                    "run": name,
                    "flags": os.environ.get(f"EXPLORE_{name.replace('-', '_')}", ""),
                    "data": files.data_name(data),
                    "oom": folder.parts[-3][4:],
                    "seed": int(folder.name[4:]),
                    "accuracy": run["history"][-1]["val_accuracy"]
                    if run["history"]
                    else run["calibration"]["accuracy"],
                    "n": len(connect["held"]),
                    "seconds": run["meta"]["seconds"],
                }
            )
    if not found:
        raise files.UserError(f"no run METHOD-N.pt in {args.runs}; run experiments/search.sh")
    return found


def method_of(name):
    return name.partition("-")[0]


def choose(runs):
    """{method: its settings [{run, flags, mean, by_column}], the best first}; the mean over columns of the mean over
    seeds. A setting that misses a run which another one has is left out; equally good: the earlier line."""
    cells = {}
    for r in runs:
        cells.setdefault(r["run"], {}).setdefault((r["data"], r["oom"]), {})[r["seed"]] = r
    out = {}
    for name in sorted(cells, key=lambda k: (scores.order(k)[0], int(k.partition("-")[2]))):
        out.setdefault(method_of(name), []).append(name)
    have = lambda name: {(c, s) for c, seeds in cells[name].items() for s in seeds}
    for method, named in out.items():
        every = set().union(*map(have, named))
        settings = []
        for name in (n for n in named if have(n) == every):
            by = {" ".join(c): [r["accuracy"] for r in seeds.values()] for c, seeds in sorted(cells[name].items())}
            flags = next(iter(next(iter(cells[name].values())).values()))["flags"]
            settings.append(
                {
                    "run": name,
                    "flags": flags,
                    "by_column": by,
                    "mean": scores.mean_sd([scores.mean_sd(v)[0] for v in by.values()])[0],
                }
            )
        out[method] = sorted(settings, key=lambda s: -s["mean"])
    return out


def known_runs(out):
    """The runs of an earlier search in OUT, as of read_runs, and whence they are: (runs, {method: command})."""
    if not (out / "records.csv").exists():
        return [], {}
    text = ("run", "flags", "data", "oom")
    runs = [
        {"flags": "", **{k: v if k in text else records.number(v) for k, v in row.items()}}
        for row in records.read_csv(out / "records.csv")
    ]
    lines = re.findall(r"^([^:]*): (.*), \d+ runs of [0-9.]+ h in all$", (out / "COMMAND").read_text(), re.M)
    return runs, {method: command for methods, command in lines for method in methods.split(", ")}


def main(argv=None):
    args = get_args(argv)
    runs, out = read_runs(args), Path(args.out)
    known, command_of = known_runs(out)
    searched = {method_of(r["run"]) for r in runs}
    command_of.update(dict.fromkeys(searched, collect.provenance()))
    runs += [r for r in known if method_of(r["run"]) not in searched]
    chosen = choose(runs)
    columns = sorted({" ".join((r["data"], r["oom"])) for r in runs})
    best = {m: s[0] for m, s in chosen.items() if s}
    show = lambda text, s, m: f"**{text}**" if s is best[m] else text
    block = {
        "title": "Hyper-parameters, accuracy on the labelled items held out, %",
        "header": ["method", "flags", *columns, "mean"],
        "rows": [
            [
                m,
                show(s["flags"] or "defaults", s, m),
                *(scores.percent(s["by_column"][c]) for c in columns),
                show(f"{100 * s['mean']:.1f}", s, m),
            ]
            for m, settings in chosen.items()
            for s in settings
        ],
        "notes": [
            f"Best first; bold: chosen. {min(r['n'] for r in runs)} to {max(r['n'] for r in runs)} items held out "
            f"a run, seeds {', '.join(map(str, sorted({r['seed'] for r in runs})))}; no test item is looked at."
        ],
    }
    records.write_csv(out / "records.csv", runs)
    records.write_text(out / "search.md", tables.markdown([block]))
    records.write_text(
        out / "chosen.sh", "".join(f'export EXPLORE_{m}="${{EXPLORE_{m}:-{s["flags"]}}}"\n' for m, s in best.items())
    )
    by_command = {}
    for r in runs:
        by_command.setdefault(command_of.get(method_of(r["run"]), "an earlier search"), []).append(r)
    records.write_text(
        out / "COMMAND",
        "".join(
            f"{', '.join(sorted({method_of(r['run']) for r in rs}, key=scores.order))}: {command}, {len(rs)} runs of "
            f"{sum(r['seconds'] for r in rs) / 3600:.1f} h in all\n"
            for command, rs in by_command.items()
        ),
    )
    print(tables.markdown([block]) + f"wrote {out}/search.md, records.csv and chosen.sh")


if __name__ == "__main__":
    run.script(main)
