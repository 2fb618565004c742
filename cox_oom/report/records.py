"""The files of finished runs: METHOD.pt and METHOD.json found by filters, records read, tables of many written.

records.csv, a line a run, is what an experiment keeps of its records. An empty cell says nothing.

    data … added                as in METHOD.json; condition: the row of a table in which the run stands
    args, connect_args          flags as JSON, but those that are columns; null: not there. "*" in the first line:
                                those of most lines. "*" in the first line of a data set, OOM modality and condition:
                                what differs in most of its lines. Beside "*" or without it: what differs in the line
    classes, skewed             number of classes; true where those of the test items differ by more than 1.5 in size
    agreement.WHEN.KEY, trust.KEY
    im_head_accuracy.MODALITY   in a seed's first line, as it is the same for all methods
    retrieval.WAY.LEVEL.KEY     mean over the IM modalities
    connection.MODALITY.KEY     the points of the connection's curve, a space between them

balanced_accuracy stands where classes are skewed, hungarian_accuracy and nmi without labels, as in the tables.
Numbers have six significant digits, those that EXACT names all their digits: equal accuracies have to stay equal in
ranks, tests and means."""

import csv
import json
import re
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cox_oom import files
from cox_oom.methods import METHODS
from cox_oom.report.scores import classes, condition, order, score
from cox_oom.report.tables import markdown, skewed

COLUMNS = (
    "data",
    "perceptor",
    "setting",
    "method",
    "oom",
    "seed",
    "labels",
    "per_class",
    "n_labelled",
    "paired",
    "metrics",
)
PROVENANCE = ("commonality", "data_seed", "fingerprint", "args", "seconds", "connect_seconds", "added")


LINE = tuple(
    "data perceptor oom setting method seed labels per_class n_labelled paired paired_by_class "
    "perceptor_paired_by_class condition commonality data_seed fingerprint seconds connect_seconds added".split()
)
FLAGS = ("connect_args", "args")
WORDS = ("data", "perceptor", "oom", "setting", "method", "paired", "condition", "fingerprint", "added")
EXACT = {
    "accuracy",
    "warm_accuracy",
    "oom_accuracy",
    "right",
    "right_alone",
    "r1",
    "r5",
    "r10",
}
PART = ("share", "accuracy", "agree_accuracy", "disagree_accuracy")
AGREEMENT = {"before": (*PART, "label_accuracy"), "after": PART, "after_own": (*PART, "label_accuracy")}
PRINT = 8  # letters of a fingerprint that records.csv keeps


def find(args: Namespace, data: str, suffix: str) -> list[tuple[Path, str]]:
    """Files METHOD<suffix> of one data set that match the filters: [(folder, method)], sorted."""
    wanted = lambda chosen, value: not chosen or value in chosen
    perceptors = args.perceptor and [files.perceptor_name(p) for p in args.perceptor]
    base = Path(args.runs) / files.data_name(data)
    found = []
    for path in base.glob(f"*/oom-*/*/seed*/*{suffix}"):
        perceptor, oom, setting, seed, name = path.relative_to(base).parts
        method = name.removesuffix(suffix)
        if (
            "." not in method
            and method.partition("-")[0] in METHODS
            and seed[4:].isdigit()
            and all(
                (
                    wanted(perceptors, perceptor),
                    wanted(args.oom, oom[4:]),
                    wanted(args.setting, setting),
                    wanted(args.method, method),
                    wanted(args.seed, int(seed[4:])),
                )
            )
        ):
            found.append((path.parent, method))
    return sorted(found, key=lambda f: (f[0].parent, int(f[0].name[4:]), order(f[1])))


def what_first(args: Namespace, data: str) -> str:
    """The line that is said where no run of `data` matches."""
    one = lambda chosen, other: chosen[0] if chosen else other
    place = files.Place(
        args.runs, data, one(args.perceptor, "bind"), one(args.oom, "M"), one(args.setting, "semi"), one(args.seed, 0)
    )
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


def read_record(path: Path) -> dict[str, Any] | None:
    """A METHOD.json, or None where it is missing or damaged."""
    try:
        record = json.loads(path.read_text())
        return record if {*COLUMNS, "made_from", "history"} <= set(record) else None
    except (OSError, ValueError):
        return None


def check_once(records: list[dict[str, Any]]) -> None:
    """UserError where a run of one seed is there twice: it would count twice in a mean."""
    seen = set()
    for r in records:
        key = (r["data"], r["perceptor"], r["oom"], condition(r), r["method"], r["seed"], r["fingerprint"])
        if key in seen:
            raise files.UserError(
                f"two folders of --runs have {r['method']} of {r['data']} {r['oom']}, {condition(r)}, seed "
                f"{r['seed']}; leave one of them out"
            )
        seen.add(key)


def write_text(path: str | Path, text: str) -> None:
    files.write_atomic(path, lambda tmp: tmp.write_text(text, encoding="utf-8"))


def flat(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The scalar metrics of a record as {"agreement.before.gap": value}, without classes and curves."""
    out = {}
    for k, v in metrics.items():
        if isinstance(v, dict) and k != "per_class":
            out.update(flat(v, f"{prefix}{k}."))
        elif isinstance(v, (int, float)):
            out[prefix + k] = v
    return out


FORMULA = r"(?='*[=+\-@\t\r])"  # how a text begins that a spreadsheet takes for a formula


def cell(value: Any) -> Any:
    """A word as a cell of a table: an apostrophe goes before what a spreadsheet would compute; numbers stay numbers."""
    try:
        float(value)
    except (TypeError, ValueError):
        return "'" + value if isinstance(value, str) and re.match(FORMULA, value) else value
    return value


def write_tables(out: Path, records: list[dict[str, Any]], blocks: list[dict[str, Any]]) -> None:
    """table.json, table.csv and table.md in the folder `out`."""
    short = [
        {"condition": condition(r), **{k: r[k] for k in COLUMNS}, **{k: r[k] for k in PROVENANCE if k in r}}
        for r in records
    ]
    wide = [{**{k: r[k] for k in COLUMNS[:-1]}, **flat(r["metrics"])} for r in records]

    def write_csv(tmp: Path) -> None:
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            w = csv.DictWriter(f, list(dict.fromkeys(k for r in wide for k in r)))
            w.writeheader()
            w.writerows({k: cell(v) for k, v in r.items()} for r in wide)

    write_text(out / "table.json", "[\n" + ",\n".join(map(json.dumps, short)) + "\n]\n")  # a record a line
    files.write_atomic(out / "table.csv", write_csv)
    write_text(out / "table.md", markdown(blocks))


def write_csv(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Rows [{column: value}]: columns in the order in which they come up, those that no row fills left out; a list's
    entries with a space between them, a dict as JSON, None as an empty cell."""

    def text(v: Any) -> str:
        if isinstance(v, (list, tuple)):
            return " ".join(map(text, v))
        if isinstance(v, dict):
            return json.dumps(v, separators=(",", ":"), ensure_ascii=False)
        return str(v).lower() if isinstance(v, bool) else str(v).removesuffix(".0") if isinstance(v, float) else str(v)

    filled = {k for row in rows for k, v in row.items() if v is not None}

    def write(tmp: Path) -> None:
        with open(tmp, "w", newline="", encoding="utf-8") as f:
            names = [k for k in dict.fromkeys(k for row in rows for k in row) if k in filled]
            w = csv.DictWriter(f, names, lineterminator="\n")
            w.writeheader()
            word = lambda v: cell(v.replace("\r", "\\r") if isinstance(v, str) else v)  # csv does not quote it
            told = ({k: word(v) if k in WORDS else v for k, v in row.items() if v is not None} for row in rows)
            w.writerows({k: text(v) for k, v in row.items()} for row in told)

    files.write_atomic(path, write)


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """[{column: text}] of a table, without the empty cells."""
    with open(path, newline="", encoding="utf-8") as f:
        rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(f)]
    return [{k: re.sub(f"^'{FORMULA}", "", v) if k in WORDS else v for k, v in row.items()} for row in rows]


def number(text: str) -> Any:
    """A number or truth value that write_csv wrote, a list where there are several."""
    if " " in text:
        return [number(t) for t in text.split(" ")]
    if text in ("true", "false"):
        return text == "true"
    try:
        return int(text)
    except ValueError:
        return float(text)


def short(value: Any) -> Any:
    """Of a number, or of each in a list, six significant digits."""
    if isinstance(value, list):
        return [short(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def under(name: str, parts: Iterable[str]) -> bool:
    """Is a column one of `parts`, or below one of them."""
    return any(f"{name}.".startswith(f"{part}.") for part in parts)


def csv_metrics(r: dict[str, Any]) -> dict[str, Any]:
    """A record's metrics as columns of records.csv: {name: number, list or code}."""
    m, uneven = r["metrics"], skewed(r)
    left_out = {"retrieval"} | (set() if uneven else {"balanced_accuracy"})
    left_out |= {"hungarian_accuracy", "nmi"} if r["setting"] == "semi" else set()
    out = flat({k: v for k, v in m.items() if k not in left_out})
    out = {k: v for k, v in out.items() if not k.endswith(".gap")}  # of two others
    out.update(classes=classes(m), skewed=uneven or None, fallback=m.get("fallback") or None)
    if m.get("agreement"):
        out["agreement.after.accuracy"] = score(r, "unlabelled")
    found = [flat(ways) for ways in m.get("retrieval", {}).values()]
    for k in dict.fromkeys(k for each in found for k in each):
        values = [each[k] for each in found if k in each]
        out[f"retrieval.{k}"] = sum(values) / len(values)
    for point in sorted(m.get("connection") or [], key=lambda p: (p["modality"], p["step"])):
        for k in ("step", "mmd", "oom_accuracy"):
            out.setdefault(f"connection.{point['modality']}.{k}", []).append(point[k])
    return {k: v if k.rpartition(".")[2] in EXACT else short(v) for k, v in out.items()}


def column(r: dict[str, Any]) -> tuple[str, str, str, str]:
    """The data set, OOM modality and condition of a record, whose flags differ little."""
    return r["data"], r["perceptor"], r["oom"], r["condition"] if "condition" in r else condition(r)


def flag_lines(records: list[dict[str, Any]], name: str) -> list[dict[str, Any] | None]:
    """What the lines of the records say of their flags, r[name]; None where they were not recorded."""
    told = [
        {k: v for k, v in r[name].items() if k not in LINE and v is not None} if r.get(name) else None for r in records
    ]
    listed: dict[tuple, list[dict[str, Any]]] = {}
    lines: list[dict[str, Any] | None] = []
    seen: set[tuple] = set()
    for r, flags in zip(records, told):
        if flags is not None:
            listed.setdefault(column(r), []).append(flags)
    most = {where: max(each, key=each.count) for where, each in listed.items()}
    base: dict[str, Any] = next(iter(most.values()), {})
    differs = lambda flags, others: {k: flags.get(k) for k in {**others, **flags} if flags.get(k) != others.get(k)}
    for r, flags in zip(records, told):
        line = flags if flags is None else differs(flags, most[column(r)])
        if line is not None and column(r) not in seen:
            line = {"*": differs(most[column(r)], base) if seen else base, **line}
            seen.add(column(r))
        lines.append(line)
    return lines


def flags_told(
    columns: Iterable[tuple[str, ...]], lines: Iterable[dict[str, Any] | None]
) -> list[dict[str, Any] | None]:
    """The flags by records that flag_lines' lines, of these columns, tell."""
    base: Any = None
    most: dict[tuple, dict[str, Any]] = {}
    out: list[dict[str, Any] | None] = []
    for where, line in zip(columns, lines):
        if line is not None:
            base = line.get("*") if base is None else base
            line = {**most.setdefault(where, {**base, **line.get("*", {})}), **line}
            line = {k: v for k, v in line.items() if k != "*" and v is not None}
        out.append(line)
    return out


def write_records(path: str | Path, records: list[dict[str, Any]], keep: Sequence[str] | None = None) -> None:
    """records.csv of records, each what METHOD.json holds, with the metrics whose columns `keep` names, in its order;
    a name stands for the columns below it as well; None: all."""
    flags, metrics = {k: flag_lines(records, k) for k in FLAGS}, []
    heads: dict[tuple, dict[str, Any] | None] = {}
    for r in records:
        all_of = csv_metrics(r)
        mine = {k: v for k, v in all_of.items() if under(k, ["im_head_accuracy"])}
        known = heads.get((column(r), r["seed"])) == mine
        heads[column(r), r["seed"]] = mine or heads.get((column(r), r["seed"]))
        metrics.append({k: v for k, v in all_of.items() if not (known and k in mine)})
    names = list(dict.fromkeys(k for m in metrics for k in m))
    kept = names if keep is None else [k for part in keep for k in names if under(k, [part])]
    rows = []
    for i, r in enumerate(records):
        row = {k: r.get(k) for k in LINE} | {
            "condition": condition(r),
            "fingerprint": (r.get("fingerprint") or "")[:PRINT] or None,
        }
        row["perceptor_paired_by_class"] = r.get("perceptor_paired_by_class") or None
        rows.append({**row, **{k: flags[k][i] for k in FLAGS}, **{k: metrics[i].get(k) for k in kept}})
    write_csv(path, rows)


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The records of a records.csv in the shape that tables, tests and scores take."""
    rows = read_csv(path)
    if not all({"data", "perceptor", "oom", "method", "seed", "condition"} <= set(row) for row in rows):
        raise files.UserError(f"{path} is not a records.csv")
    columns = [column(row) for row in rows]
    flags = {k: flags_told(columns, [json.loads(row[k]) if k in row else None for row in rows]) for k in FLAGS}
    records = []
    for i, row in enumerate(rows):
        lists = {k: row.pop(k).split() for k in ("perceptor_paired_by_class", "paired_by_class") if k in row}
        why: dict[str, Any] = {"fallback": json.loads(row.pop("fallback"))} if "fallback" in row else {}
        cells = {k: v if k in WORDS else number(v) for k, v in row.items() if k not in FLAGS}
        r = {k: cells.pop(k) for k in LINE if k in cells}
        r.pop("condition")
        r.update({k: flags[k][i] for k in FLAGS if flags[k][i] is not None})
        metrics = nested(cells)
        metrics.update(why)
        records.append(r | lists | {"metrics": metrics})
    return records


def nested(cells: dict[str, Any]) -> dict[str, Any]:
    """The metrics of csv_metrics' columns as a record has them, None for what a level of retrieval or an agreement
    lacks."""
    parts = lambda name: {k.removeprefix(f"{name}."): v for k, v in cells.items() if k.startswith(f"{name}.")}
    out = {k: v for k, v in cells.items() if "." not in k}
    out.update({name: parts(name) for name in ("trust", "im_head_accuracy") if parts(name)})
    out["agreement"] = {
        when: {**dict.fromkeys(keys), **parts(f"agreement.{when}"), "gap": None}
        for when, keys in AGREEMENT.items()
        if parts(f"agreement.{when}")
    } or None
    for a in (out["agreement"] or {}).values():
        if None not in (a["agree_accuracy"], a["disagree_accuracy"]):
            a["gap"] = a["agree_accuracy"] - a["disagree_accuracy"]
    if parts("retrieval"):
        level = lambda way: {k: parts(f"retrieval.{way}.{k}") or None for k in ("category", "instance")}
        out["retrieval"] = {"mean": {way: level(way) for way in ("out", "back")}}
    curves: dict[str, dict[str, list]] = {}
    for k, v in parts("connection").items():
        modality, _, key = k.rpartition(".")
        curves.setdefault(modality, {})[key] = v if isinstance(v, list) else [v]
    if curves:
        out["connection"] = [
            {"modality": m, **dict(zip(by, point))} for m, by in curves.items() for point in zip(*by.values())
        ]
    return out
