"""Stage 4: accuracy of every finished run on the test items, the result table and the report.

    python evaluate.py --data synth                                     every run that is not evaluated yet
    python evaluate.py --data synth digits --table --out runs/report    and the table over two data sets

Reads   RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/{connect,METHOD}.pt, inputs and banks; test rows here alone
Writes  METHOD.json beside each METHOD.pt: metrics as fractions, history, seconds, command
        --table: OUT/table.json (records), table.csv (a row per run), table.md (mean ± sd), report.html; OUT left out:
        RUNS/DATA/report, RUNS/report over several data sets; --task retrieval: report-retrieval in its place
A filter left out means all. Runs with different labels or pairing stand in different rows, never in one mean.
"""
import json
import math
import shlex
import sys
from pathlib import Path

import torch

from cox_oom import files
from cox_oom.report import tables
from cox_oom.augment import embed
from cox_oom.run import Parser, known_device
from cox_oom.report.metrics import accuracy, agreement, class_metrics, retrieval
from cox_oom.model import Head, Learner, map_items, train_connection, warm_connection
from cox_oom.report.records import find, read_record, what_first, write_tables, write_text
from cox_oom.report.scores import condition, order, score


def get_args(argv=None):
    p = Parser(__doc__)
    p.add_argument("--data", required=True, nargs="+", help="one or several, as in stages 1 to 3")
    p.add_argument("--oom", nargs="+", help="these OOM modalities; left out: all")
    p.add_argument("--perceptor", nargs="+", help="these perceptors; left out: all")
    p.add_argument("--setting", nargs="+", choices=["semi", "unsup"], help="left out: both")
    p.add_argument("--method", nargs="+", help="these methods, METHOD-TAG for a run with --tag; left out: all")
    p.add_argument("--seed", nargs="+", type=int, help="left out: all")
    p.add_argument("--runs", default="runs", help="where the stages wrote, and where METHOD.json is written")
    p.add_argument("--task", default="classification", choices=["classification", "retrieval"], help="retrieval: of each IM "
                   "modality's test items by OOM test items and back, through the connections; beside the accuracies")
    p.add_argument("--table", action="store_true", help="all runs that match in a table and a report")
    p.add_argument("--out", help="with --table: folder to write; left out: RUNS/DATA/report, or RUNS/report; of --task "
                   "retrieval: report-retrieval there")
    p.add_argument("--device", type=known_device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    p.add_argument("--force", action="store_true", help="evaluate again what was evaluated")
    return p.parse_args(argv)


@torch.no_grad()
def features(state, oom, rows, device):
    """Features (R, d) and class (R,) of OOM rows by the learner and head in a connect.pt or METHOD.pt."""
    learner = Learner(**state["arch"]).to(device)
    learner.load_state_dict(state["learner"])
    z = embed(learner, oom, rows, device)[0].cpu()
    return z, (z @ state["head"]["weight"].T + state["head"]["bias"]).argmax(1)


def mapped_test_items(run, connect, oom, ims, device):
    """IM test items in the OOM feature space, by a run's connections: {modality: (v (n, d), labels (n,), ids [n])}; without
    the modalities that have no labelled test item, or (unsup) no item of a class that the run names.

    COX has its last connections. A method that trains none is given what COX had: stage 2's, which go on for as many steps
    as COX's refreshes make, on this method's own features of the same labelled pairs (aligned: of all pairs; unsup: of
    class centroids under the method's own guesses). `random` is untrained altogether.
    """
    args, known = run["meta"]["args"], connect["meta"]["args"]
    head = torch.nn.Linear(run["arch"]["width"], len(run["class_names"]))                                # for --w-ce
    head.load_state_dict(run["head"])
    every = max(1, math.ceil(args["epochs"] / args["refreshes"]))                         # epochs between COX's refreshes
    torch.manual_seed(args["seed"])
    generator = torch.Generator().manual_seed(args["seed"])
    at, train = {i: r for r, i in enumerate(oom["ids"])}, files.rows(oom, ("train",))
    out = {}
    for m in run["im"]:
        test = files.rows(ims[m], ("test",))
        test = test[ims[m]["labels"][test] >= 0]
        if not len(test):
            continue
        z_im, y_im = files.features_of(ims[m], connect["mapped_ids"][m]), connect["mapped_labels"][m]
        c, optimizer = warm_connection(connect, m, z_im, lr=args["lr"], weight_decay=args["weight_decay"],
                                       trained=args["method"] != "random")
        if args["method"] == "cox":
            c.load_state_dict(run["connections"][m])
        elif args["method"] != "random":
            own, paired = connect["pairs"][m]
            rows = torch.tensor([at[connect["labelled"][j]] for j in own.tolist()], dtype=torch.long)
            if args["method"] == "aligned" and (seen := [(at[i], j) for j, i in enumerate(connect["mapped_ids"][m])
                                                         if i in at and oom["split"][at[i]] == 0]):
                rows, paired = torch.tensor(seen).T
            z, guess = features(run, oom, rows if len(rows) else train, device)
            z_pair, y, im_pair = z, oom["labels"][rows], z_im[paired]
            if not len(rows):                                                                            # no pair at all
                y = torch.tensor([k for k in guess.unique().tolist() if (y_im == k).any()], dtype=torch.long)
                if not len(y):                                             # no class that it names has an item in m
                    continue
                z_pair = torch.stack([z[guess == k].mean(0) for k in y.tolist()])
                im_pair = torch.stack([z_im[y_im == k].mean(0) for k in y.tolist()])
            train_connection(c, optimizer, im_pair, z_pair[None], y, head.requires_grad_(False), generator=generator,
                             steps=math.ceil(args["epochs"] / every) * args["connect_steps"], beta=known["beta"],
                             w_ce=known["w_ce"])
        out[m] = (map_items(c, ims[m]["features"][test]), ims[m]["labels"][test], [ims[m]["ids"][i] for i in test.tolist()])
    return out


def apply_head(state, z):
    """Class (n,) that a saved Head names for features z (n, d)."""
    head = Head(z.shape[1], len(state["linear.bias"]))
    head.load_state_dict(state)
    with torch.no_grad():
        return head(z).argmax(1)


# ------------------------------------------------------------------------------------------------------- runs

def load_run(args, data, folder):
    """What all methods of one seed share, by their folder: OOM inputs, banks, connect.pt, the digests they have now."""
    perceptor, oom, setting, seed = folder.parts[-4:]
    return files.load_seed(args.runs, data, perceptor, oom[4:], setting, int(seed[4:]), keys=("learner", "im_heads", "curve"),
                          first=f"python extract_features.py --data {data} --oom {oom[4:]}")


def judge_connections(connect, oom, ims, test, device):
    """What the test items say of stage 2: accuracy of the IM heads, of the warm-started learner, and Fig. 5's of the heads
    on v[k]."""
    im_heads = {}
    for m, state in connect["im_heads"].items():
        r = files.rows(ims[m], ("test",))
        r = r[ims[m]["labels"][r] >= 0]
        im_heads[m] = accuracy(apply_head(state, ims[m]["features"][r]), ims[m]["labels"][r])
    z, guess = features(connect, oom, test, device)
    return im_heads, accuracy(guess, oom["labels"][test]), [{"modality": c["modality"], "step": c["step"], "mmd": c["mmd"],
                       "oom_accuracy": accuracy(apply_head(c["head"], z), oom["labels"][test])}
                      for c in connect["curve"]]


def evaluate(run, connect, oom, ims, test, judged, data, device, task):
    """The record of one run: what METHOD.json holds."""
    meta, args, known = run["meta"], run["meta"]["args"], connect["meta"]["args"]
    method = "-".join(filter(None, (args["method"], args.get("tag"))))
    z, guess = features(run, oom, test, device)
    metrics = class_metrics(guess, oom["labels"][test], oom["class_names"])
    val = files.rows(oom, ("val",))
    val = val[oom["labels"][val] >= 0]
    if len(val):
        metrics["val_accuracy"] = accuracy(features(run, oom, val, device)[1], oom["labels"][val])
    metrics["im_head_accuracy"], metrics["warm_accuracy"], metrics["connection"] = judged
    metrics["agreement"] = None
    if args["method"] not in ("random", "aligned") and len(run["unlabelled"]):
        at, before, after = {i: r for r, i in enumerate(oom["ids"])}, run["before"], run["after"]
        truth = oom["labels"][torch.tensor([at[i] for i in run["unlabelled"]])]
        metrics["agreement"] = {
            "before": agreement(before["agree"], before["prediction"], truth, before["label"]),
            "after": agreement(before["agree"], after["prediction"], truth),
            "after_own": agreement(after["agree"], after["prediction"], truth, after["label"])}
    for k in ("trust", "fallback"):                                         # stage 3's check, and why it left correspondences out
        if run.get(k):
            metrics[k] = run[k]
    if task == "retrieval":
        own = (z, oom["labels"][test], [oom["ids"][r] for r in test.tolist()])
        metrics["retrieval"] = {m: {"out": retrieval(own, other, len(oom["class_names"])),
                                    "back": retrieval(other, own, len(oom["class_names"]))}
                                for m, other in mapped_test_items(run, connect, oom, ims, device).items()}
    semi, train = args["setting"] == "semi", len(files.rows(oom, ("train",)))
    share = known["labels"] if not known["per_class"] else round(connect["meta"]["n_labelled"] / train, 4)
    if connect["meta"]["n_labelled"] == (oom["labels"][files.rows(oom, ("train",))] >= 0).sum():
        share = 1.0                                                                           # all that there are
    by_class = sorted({m for im in ims.values() for m in im["meta"].get("paired_by_class", [])})
    return {"data": files.data_name(data),
            **{k: args[k] for k in ("perceptor", "setting", "oom", "seed")},
            "method": method,
            "labels": share if semi else 0.0, "per_class": known["per_class"] if semi else 0,
            "n_labelled": meta["n_labelled"], "paired": meta["paired"], "perceptor_paired_by_class": by_class,
            "fingerprint": meta["fingerprint"], "made_from": {method: meta["digest"]},
            **{name: oom["meta"].get("source", {}).get(k) for name, k in (("commonality", "commonality"), ("data_seed", "seed"))},
            "metrics": metrics, "history": run["history"], "seconds": meta["seconds"],
            "connect_seconds": connect["meta"].get("seconds"),
            "command": " ".join(["python", *meta["argv"]]),
            "args": {k: v for k, v in {**known, **args}.items() if k not in ("seed", "method", "tag")},
            "torch": meta["torch"]}


def said(record, task):
    """A run's numbers in words."""
    m = record["metrics"]
    words = f"accuracy {100 * m['accuracy']:.1f}%, balanced {100 * m['balanced_accuracy']:.1f}%"
    if record["setting"] == "unsup":
        words += f", Hungarian {100 * m['hungarian_accuracy']:.1f}%, NMI {m['nmi']:.3f}"
    if task == "retrieval":
        found = {level: score(record, f"retrieval.out.{level}.r1") for level in ("category", "instance")}
        r1 = ", ".join(f"{level} {100 * v:.1f}%" for level, v in found.items() if v is not None)
        words += f"; R@1, OOM → IM: {r1}" if r1 else \
            "; nothing to retrieve: no IM modality has a labelled test item of a class of the OOM test items"
    return words


def cloud(args, data, folder, methods):
    """Features for the report's planes, of one seed: IM banks, the learner's OOM test items, mapped items."""
    oom, ims, connect, _ = load_run(args, data, folder)
    method = next(m for m in ("cox", *sorted(methods, key=order, reverse=True)) if m in methods)
    run = files.load(folder / f"{method}.pt")
    test = files.rows(oom, ("test",))
    shown = {m: files.rows(im, ("train",)) for m, im in ims.items()}
    return {"method": method, "seed": int(folder.name[4:]), "classes": oom["class_names"],
            "im": {m: (ims[m]["features"][r], ims[m]["labels"][r]) for m, r in shown.items()},
            "oom": (features(run, oom, test, args.device)[0], oom["labels"][test]),
            "mapped": {m: (run["mapped"][m], connect["mapped_labels"][m]) for m in run["im"]}}


def main(argv=None):
    args = get_args(argv)
    if args.table:
        files.optional("matplotlib", "the report")                           # said before anything is judged
        from cox_oom.report import page
    args.data = list({files.data_name(d): d for d in args.data}.values())    # named twice, it counts once
    records, clouds, seen = [], {}, {}
    if args.out:
        files.writable(args.out)

    # ----------------------------------------------------------------------------------- evaluate what is new
    for data in args.data:
        found = find(args, data, ".pt")
        kept = [f for f in find(args, data, ".json") if f not in found] if args.table else []
        if not found and not kept:
            raise files.UserError(what_first(args, data))
        for folder, method in found:
            if folder not in seen:
                oom, ims, connect, made_from = load_run(args, data, folder)
                test = files.rows(oom, ("test",))
                test = test[oom["labels"][test] >= 0]
                if not len(test):
                    raise files.UserError(f"{files.inputs_path(args.runs, data, folder.parts[-3][4:])} has no "
                                         f"labelled test row; mark some as test and extract again")
                judged, seen[folder] = None, []
            path = folder / f"{method}.pt"
            run = files.load(path, keys=("learner", "head", "before", "after", "history"))
            files.check_chain(path, run["meta"], made_from, oom["meta"]["fingerprint"])
            record = None if args.force else read_record(path.with_suffix(".json"))
            new = record is None or record["made_from"] != {method: run["meta"]["digest"]}
            wanted = ("warm_accuracy", *(["retrieval"] if args.task == "retrieval" else []))
            new = new or any(k not in record["metrics"] for k in wanted) or "data_seed" not in record    # an earlier version's
            if new:
                judged = judged or judge_connections(connect, oom, ims, test, args.device)
                record = evaluate(run, connect, oom, ims, test, judged, data, args.device, args.task)
                write_text(path.with_suffix(".json"), json.dumps(record, indent=1))
            print(f"{'wrote' if new else 'already evaluated:'} {path.with_suffix('.json')}: {said(record, args.task)}"
                  + ("" if new else " (--force redoes it)"))
            records.append(record)
            seen[folder].append(record)
        for folder, method in kept:
            path = folder / f"{method}.json"
            record = read_record(path)
            if record is None:
                raise files.UserError(f"{path} is damaged or of another version, its .pt is gone; remove it")
            print(f"taken as it is: {path} ({method}.pt is gone, so nothing can be checked or drawn)")
            records.append(record)
    if not args.table:
        task = " --task retrieval" if args.task == "retrieval" else ""
        print(f"Next: python evaluate.py --data {shlex.join(args.data)} --runs {shlex.quote(args.runs)}{task} --table")
        return

    # --------------------------------------------------------------------------------------- table and report
    for folder, done in seen.items():                                       # of each row the lowest seed
        r = done[0]
        data = next(d for d in args.data if files.data_name(d) == r["data"])
        key = (r["data"], r["perceptor"], r["oom"], condition(r))
        clouds[key] = clouds.get(key) or cloud(args, data, folder, [r["method"] for r in done])
    base = Path(args.runs) / (files.data_name(args.data[0]) if len(args.data) == 1 else "")
    out = Path(args.out) if args.out else base / ("report-retrieval" if args.task == "retrieval" else "report")
    blocks = tables.tables(records, args.task)
    write_tables(out, records, blocks)
    command = " ".join(["python", *(["evaluate.py", *argv] if argv else sys.argv)])
    html = page.page(blocks, records, clouds, command, args.task)
    write_text(out / "report.html", html)
    print("\n" + tables.markdown(blocks))
    print(f"wrote {out}/table.md, table.csv, table.json and report.html ({len(html) / 1e6:.1f} MB)")


if __name__ == "__main__":
    files.run(main)
