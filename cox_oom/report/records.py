"""The files of finished runs: METHOD.pt and METHOD.json found by filters, records read, tables of many written."""
import csv
import json
from pathlib import Path

from cox_oom import files
from cox_oom.report.tables import markdown
from cox_oom.methods import METHODS
from cox_oom.report.scores import condition, order

COLUMNS = ("data", "perceptor", "setting", "method", "oom", "seed", "labels", "per_class", "n_labelled",
           "paired", "metrics")
PROVENANCE = ("commonality", "data_seed", "fingerprint", "args", "seconds", "connect_seconds", "added")


def find(args, data, suffix):
    """Files METHOD<suffix> of one data set that match the filters: [(folder, method)], sorted."""
    wanted = lambda chosen, value: not chosen or value in chosen
    perceptors = args.perceptor and [files.perceptor_name(p) for p in args.perceptor]
    base = Path(args.runs) / files.data_name(data)
    found = []
    for path in base.glob(f"*/oom-*/*/seed*/*{suffix}"):
        perceptor, oom, setting, seed, name = path.relative_to(base).parts
        method = name.removesuffix(suffix)
        if "." not in method and method.partition("-")[0] in METHODS and seed[4:].isdigit() and all((
                wanted(perceptors, perceptor), wanted(args.oom, oom[4:]), wanted(args.setting, setting),
                wanted(args.method, method), wanted(args.seed, int(seed[4:])))):
            found.append((path.parent, method))
    return sorted(found, key=lambda f: (f[0].parent, int(f[0].name[4:]), order(f[1])))


def what_first(args, data):
    """The line that is said where no run of `data` matches."""
    one = lambda chosen, other: chosen[0] if chosen else other
    place = files.Place(args.runs, data, one(args.perceptor, "bind"), one(args.oom, "M"), one(args.setting, "semi"), one(args.seed, 0))
    base, filters = place.base, ("oom", "perceptor", "setting", "method", "seed")
    asked = " ".join(f"--{k} {' '.join(map(str, v))}" for k in filters if (v := getattr(args, k)))
    there = sorted({p.name[4:] for p in base.glob("*/oom-*")})
    unknown = [m for m in args.method or () if m.partition("-")[0] not in METHODS]
    if unknown:
        return f"--method {unknown[0]}: there are {', '.join(METHODS)}, and METHOD-TAG for a run with --tag"
    if args.oom and there and not set(args.oom) & set(there):
        return f"--oom {' '.join(args.oom)}: {base} has runs of {', '.join(there)}"
    if not (base / "inputs").is_dir():
        first = place.command("extract_features.py")
    elif not any(base.glob(f"*/oom-{place.oom if args.oom else '*'}/{place.setting}/seed{place.seed}/connect.pt")):
        first = place.command("train_connect.py")
    else:
        first = place.command("train_explore.py", method=one(args.method, "cox"))
    return f"no finished run in {base}{' matches ' + asked if asked else ''}; run first: {first}"


def read_record(path):
    """A METHOD.json, or None where it is missing or damaged."""
    try:
        record = json.loads(path.read_text())
        return record if {*COLUMNS, "made_from", "history"} <= set(record) else None
    except (OSError, ValueError):
        return None


def write_text(path, text):
    files.write_atomic(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def flat(metrics, prefix=""):
    """The scalar metrics of a record as {"agreement.before.gap": value}, without classes and curves."""
    out = {}
    for k, v in metrics.items():
        if isinstance(v, dict) and k != "per_class":
            out.update(flat(v, f"{prefix}{k}."))
        elif isinstance(v, (int, float)):
            out[prefix + k] = v
    return out


def write_tables(out, records, blocks):
    """table.json, table.csv and table.md in the folder `out`."""
    short = [{"condition": condition(r), **{k: r[k] for k in COLUMNS}, **{k: r[k] for k in PROVENANCE if k in r}} for r in records]
    wide = [{**{k: r[k] for k in COLUMNS[:-1]}, **flat(r["metrics"])} for r in records]

    def write_csv(tmp):
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            w = csv.DictWriter(f, list(dict.fromkeys(k for r in wide for k in r)))
            w.writeheader()
            w.writerows(wide)
    write_text(out / "table.json", "[\n" + ",\n".join(map(json.dumps, short)) + "\n]\n")        # a record a line
    files.write_atomic(out / "table.csv", write_csv)
    write_text(out / "table.md", markdown(blocks))
