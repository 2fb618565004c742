"""Stage 4: accuracy of every finished run on the test items, the result table and the report.

    python evaluate.py --data synth                                     every run that is not evaluated yet
    python evaluate.py --data synth digits --table --out runs/report    and the table over two data sets
    python evaluate.py --compare A B                                    two METHOD.pt, or folders of runs, side by side

Reads   RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/{connect,METHOD}.pt, inputs and banks; test rows here alone
Writes  METHOD.json, METHOD.card.md beside METHOD.pt: metrics as fractions, history, command; --new: OUT/predictions.csv
        --suggest: OUT/suggest.csv; --table: OUT/table.json, table.csv, table.md (mean ± sd), report.html. OUT left out:
        RUNS/DATA/report, RUNS/report over several data sets, report-retrieval; for --new and --suggest RUNS/DATA
A filter left out means all. Runs with different labels or pairing stand in different rows, never in one mean.
"""

import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from tqdm import tqdm

from cox_oom import cli, export, files, predict, recordings, run, shapes, suggest
from cox_oom.cli import Parser
from cox_oom.files import Place, UserError
from cox_oom.report import card, compare, tables, verdict
from cox_oom.report.judge import features, judge_connections, labelled_rows, record, words
from cox_oom.report.records import check_once, find, read_record, what_first, write_tables, write_text
from cox_oom.report.scores import condition, order
from cox_oom.seed import load_seed, split_rows
from cox_oom.watch import progress

MANY = {"nargs": "+"}
EVERYDAY = (
    ("--data", None, str, "one or several data sets, as in stages 1 to 3", MANY),
    ("--oom", None, str, "these OOM modalities; left out: all", MANY),
    ("--perceptor", None, str, "these perceptors; left out: all", MANY),
    ("--setting", None, ("semi", "unsup"), "left out: both", MANY),
    ("--method", None, str, "these methods, METHOD-TAG for a run with --tag; left out: all", MANY),
    ("--seed", None, cli.SEED, "left out: all", MANY),
    ("--task", "classification", ("classification", "retrieval"), "retrieval: of IM test items by OOM ones, and back"),
    ("--table", False, None, "all runs that match in a table and a report"),
    ("--out", None, cli.folder, "folder to write; left out: RUNS/DATA/report, for --new and --suggest RUNS/DATA"),
    ("--new", None, str, "name new recordings: a file, a folder, - for a path a line; several seeds are averaged"),
    ("--export", None, str, "write the learner to this file, .onnx or .pt2, with learner.json beside it"),
    ("--int8", False, None, "with --export: the same in int8 beside it, NAME.int8.onnx"),
    ("--suggest", None, cli.number(int, 1, 1000), "so many recordings to label next, in OUT/suggest.csv"),
    ("--abstain", 0.0, cli.number(float, 0, 1), "with --new: no class for what is less sure than this"),
    ("--compare", None, str, "two METHOD.pt, METHOD.json or folders of runs", {"nargs": 2, "metavar": ("A", "B")}),
    ("--runs", ["runs"], cli.folder, "folders under which all stages write; several are put together", MANY),
)


def get_args(argv=None):
    p = Parser(__doc__, "")
    p.rows(EVERYDAY)
    p.common("--device", "--force")
    args = p.parse_args(argv)
    if not args.data and not args.compare:
        p.error("the following arguments are required: --data, or --compare A B")
    return args


def seed_of(args, data, folder):
    """The Seed of a folder of runs, and its labelled OOM test rows."""
    perceptor, oom, setting, seed = folder.parts[-4:]
    place = Place(args.runs, data, perceptor, oom[4:], setting, int(seed[4:]))
    found = load_seed(place, keys=("learner", "im_heads", "curve"))
    test = labelled_rows(found.oom, "test")
    if not len(test):
        raise UserError(f"{place.inputs(place.oom)} has no labelled test row; mark some as test and extract again")
    return found, test


def judge(args, data):
    """The records of a data set's runs, METHOD.json written where it is new: {folder: [record]}, and those whose .pt
    is gone."""
    found = find(args, data, ".pt")
    kept = [f for f in find(args, data, ".json") if f not in found] if args.table else []
    if not found and not kept:
        raise UserError(what_first(args, data))
    records = {}
    for folder, method in progress(found, f"evaluate {data}"):
        if folder not in records:
            (seed, test), connections, records[folder] = seed_of(args, data, folder), None, []
        path = folder / f"{method}.pt"
        run = files.load(path, keys=("learner", "head", "before", "after", "history"))
        files.check_chain(path, run["meta"], seed.made_from, seed.oom["meta"]["fingerprint"])
        shapes.check_method(path, run, seed)
        old = None if args.force else read_record(path.with_suffix(".json"))
        wanted = ("warm_accuracy", *(["retrieval"] if args.task == "retrieval" else []))
        new = (
            not old
            or old["made_from"] != {method: run["meta"]["digest"]}
            or any(k not in old["metrics"] for k in wanted)
            or "correct" not in old
        )
        if new:
            connections = connections or judge_connections(seed, test, args.device)
            old = record(run, seed, test, connections, args.device, args.task)
            write_text(path.with_suffix(".json"), json.dumps(old, indent=1))
            write_text(path.with_suffix(".card.md"), card.card(old))
        tqdm.write(
            f"{'wrote' if new else 'already evaluated:'} {path.with_suffix('.json')}: {words(old, args.task)}"
            + ("" if new else " (--force redoes it)")
        )
        records[folder].append(old)
    return records, [keep(folder / f"{method}.json") for folder, method in kept]


def keep(path):
    """The record of a run whose .pt is gone."""
    old = read_record(path)
    if old is None:
        raise UserError(f"{path} is damaged or of another version, its .pt is gone; remove it")
    print(f"taken as it is: {path} ({path.stem}.pt is gone, so nothing can be checked or drawn)")
    return old


def cloud(args, data, folder, names):
    """Features for the report's planes, of one seed: IM banks, the learner's OOM test items, mapped items."""
    seed, _ = seed_of(args, data, folder)
    method = next(m for m in ("cox", *sorted(names, key=order, reverse=True)) if m in names)
    run, test = files.load(folder / f"{method}.pt"), split_rows(seed.oom, ("test",))
    shown = {m: split_rows(im, ("train",)) for m, im in seed.ims.items()}
    return {
        "method": method,
        "seed": seed.place.seed,
        "classes": seed.oom["class_names"],
        "im": {m: (seed.ims[m]["features"][r], seed.ims[m]["labels"][r]) for m, r in shown.items()},
        "oom": (features(run, seed.oom, test, args.device)[0], seed.oom["labels"][test]),
        "mapped": {m: (run["mapped"][m], seed.connect["mapped_labels"][m]) for m in run["im"]},
    }


def use(args):
    """What is asked of a learner instead of a table: to name new recordings, to be exported, what to label next."""
    for flag in ("data", "runs"):
        if len(values := getattr(args, flag)) > 1:
            raise UserError(f"--{flag} {shlex.join(values)}: name one")
    if sum(bool(v) for v in (args.new, args.export, args.suggest, args.table)) > 1:
        raise UserError("give one of --new, --export, --suggest and --table at a time")
    args.runs = args.runs[0]
    paths = predict.choose(find(args, args.data[0], ".pt"), what_first(args, args.data[0]))
    learner = predict.Trained(paths, args.device)
    print(f"note: {', '.join(map(str, paths))}, {learner.certainty}", file=sys.stderr)
    if args.export:
        return export.command(learner, Path(args.export), args.int8)
    out = Path(args.out or Path(args.runs) / files.data_name(args.data[0]))
    if args.suggest:
        return suggest.name(learner, Place(args.runs, args.data[0]), args.suggest, out)
    if args.new == "-":
        whole = recordings.stream(learner, sys.stdin, args.abstain)
    else:
        whole = recordings.name(learner, args.new, out, args.abstain)
    sys.exit(not whole)


def main(argv=None):
    args = get_args(argv)
    if args.compare:
        return compare.compare(args.compare, args.out)
    if args.new or args.export or args.suggest:
        return use(args)
    if args.table:
        files.optional("matplotlib", "the report")  # said before anything is judged
        from cox_oom.report import page
    args.data = list({files.data_name(d): d for d in args.data}.values())  # named twice, it counts once
    if args.out:
        files.writable(args.out)

    # ----------------------------------------------------------------------------------- evaluate what is new
    records, clouds = [], {}
    trees = [Namespace(**{**vars(args), "runs": runs}) for runs in dict.fromkeys(args.runs)]
    for tree, data in [(tree, data) for tree in trees for data in args.data]:
        by_folder, kept = judge(tree, data)
        records += [*sum(by_folder.values(), []), *kept]
        for folder, some in by_folder.items() if args.table else ():  # of each row the lowest seed
            key = (some[0]["data"], some[0]["perceptor"], some[0]["oom"], condition(some[0]))
            clouds[key] = clouds.get(key) or cloud(tree, data, folder, [r["method"] for r in some])
    if not args.table:
        task = " --task retrieval" if args.task == "retrieval" else ""
        print(f"Next: python evaluate.py --data {shlex.join(args.data)} --runs {shlex.join(args.runs)}{task} --table")
        return

    # --------------------------------------------------------------------------------------- table and report
    base = Path(args.runs[0]) / (files.data_name(args.data[0]) if len(args.data) == 1 else "")
    out = Path(args.out) if args.out else base / ("report-retrieval" if args.task == "retrieval" else "report")
    check_once(records)
    said = verdict.blocks(records) if args.task == "classification" else []
    blocks = [*said, *tables.tables(records, args.task)]
    write_tables(out, records, blocks)
    command = " ".join(["python", *(["evaluate.py", *argv] if argv else sys.argv)])
    html = page.page(blocks, records, clouds, command, args.task)
    write_text(out / "report.html", html)
    print("\n" + tables.markdown([*blocks[len(said) :], *said]))
    print(f"wrote {out}/table.md, table.csv, table.json and report.html ({len(html) / 1e6:.1f} MB)")


if __name__ == "__main__":
    run.script(main)
