"""What the test items say of a run: the record that METHOD.json holds."""

from typing import Any

import torch
from torch import Tensor

from cox_oom import confidence
from cox_oom.augment import model_of
from cox_oom.connect import Bridge, map_items
from cox_oom.files import data_name
from cox_oom.heads import Head
from cox_oom.methods import METHODS, refreshes
from cox_oom.report.metrics import accuracy, agreement, class_metrics, retrieval
from cox_oom.report.scores import score
from cox_oom.seed import Seed, features_of, split_rows


def features(state: dict[str, Any], oom: dict[str, Any], rows: Tensor, device: str) -> tuple[Tensor, Tensor]:
    """Features (R, d) and class (R,) of OOM rows by the learner and head in a connect.pt or METHOD.pt."""
    z, logits = model_of(state, device)(oom, rows)
    return z, logits.argmax(1)


def apply_head(state: dict[str, Tensor], z: Tensor) -> Tensor:
    """Class (n,) that a saved Head names for features z (n, d)."""
    head = Head(z.shape[1], len(state["linear.bias"]))
    head.load_state_dict(state)
    with torch.no_grad():
        return head(z).argmax(1)


def labelled_rows(file: dict[str, Any], split: str) -> Tensor:
    """Rows of a split of an inputs or bank file that have a label."""
    rows = split_rows(file, (split,))
    return rows[file["labels"][rows] >= 0]


# --------------------------------------------------------------------------------------------------------- retrieval


def own_pairs(run: dict[str, Any], seed: Seed, m: str, device: str) -> tuple[Tensor, Tensor, Tensor] | None:
    """What a method that trains no connection is given for one: (IM features, its own OOM features, labels) of the
    labelled pairs; aligned: of all pairs; without any pair: of class centroids under the method's own guesses, None
    where none of the classes that it names has an item in m."""
    oom, connect = seed.oom, seed.connect
    at, train = {i: r for r, i in enumerate(oom["ids"])}, split_rows(oom, ("train",))
    z_im, y_im = features_of(seed.ims[m], connect["mapped_ids"][m]), connect["mapped_labels"][m]
    own, paired = connect["pairs"][m]
    rows = torch.tensor([at[connect["labelled"][j]] for j in own.tolist()], dtype=torch.long)
    if METHODS[run["meta"]["args"]["method"]].all_labels:
        shown = [(at[i], j) for j, i in enumerate(connect["mapped_ids"][m]) if i in at and oom["split"][at[i]] == 0]
        rows, paired = torch.tensor(shown).T if shown else (rows, paired)
    z, guess = features(run, oom, rows if len(rows) else train, device)
    if len(rows):
        return z_im[paired], z, oom["labels"][rows]
    y = torch.tensor([k for k in guess.unique().tolist() if (y_im == k).any()], dtype=torch.long)
    if not len(y):
        return None
    centroid = lambda x, of: torch.stack([x[of == k].mean(0) for k in y.tolist()])
    return centroid(z_im, y_im), centroid(z, guess), y


def mapped_test_items(run: dict[str, Any], seed: Seed, device: str) -> dict[str, tuple[Tensor, Tensor, list[str]]]:
    """IM test items in the OOM feature space, by a run's connections: {modality: (v (n, d), labels (n,), ids [n])};
    without the modalities that have no labelled test item, or (unsup) no item of a class that the run names.

    COX has its last connections. A method that trains none is given what COX had: stage 2's, which go on for as many
    steps as COX's refreshes make, on this method's own features. `random` is untrained altogether."""
    args, out = run["meta"]["args"], {}
    head = torch.nn.Linear(run["arch"]["width"], len(run["class_names"])).requires_grad_(False)  # for --w-ce
    head.load_state_dict(run["head"])
    torch.manual_seed(args["seed"])
    generator = torch.Generator().manual_seed(args["seed"])
    for m in run["im"]:
        test = labelled_rows(seed.ims[m], "test")
        if not len(test):
            continue
        trains = METHODS[args["method"]].trains
        bridge = Bridge(
            seed, [m], device="cpu", lr=args["lr"], weight_decay=args["weight_decay"], start=trains, heads=False
        )
        if args["method"] == "cox":
            bridge.connections[m].load_state_dict(run["connections"][m])
        elif trains:
            pairs = own_pairs(run, seed, m, device)
            if pairs is None:
                continue
            bridge.train(m, *pairs, head, steps=len(refreshes(args)) * args["connect_steps"], generator=generator)
        out[m] = (
            map_items(bridge.connections[m], seed.ims[m]["features"][test]),
            seed.ims[m]["labels"][test],
            [seed.ims[m]["ids"][i] for i in test.tolist()],
        )
    return out


# ------------------------------------------------------------------------------------------------------------ records


def judge_connections(seed: Seed, test: Tensor, device: str) -> dict[str, Any]:
    """What the test items say of stage 2: accuracy of the IM heads, of the warm-started learner, and Fig. 5's of the
    heads on v[k]."""
    connect, oom, im_heads = seed.connect, seed.oom, {}
    for m, state in connect["im_heads"].items():
        r = labelled_rows(seed.ims[m], "test")
        im_heads[m] = accuracy(apply_head(state, seed.ims[m]["features"][r]), seed.ims[m]["labels"][r])
    z, guess = features(connect, oom, test, device)
    curve = [
        {
            "modality": c["modality"],
            "step": c["step"],
            "mmd": c["mmd"],
            "oom_accuracy": accuracy(apply_head(c["head"], z), oom["labels"][test]),
        }
        for c in connect["curve"]
    ]
    return {"im_head_accuracy": im_heads, "warm_accuracy": accuracy(guess, oom["labels"][test]), "connection": curve}


def agreements(run: dict[str, Any], oom: dict[str, Any]) -> dict[str, Any] | None:
    """Fig. 6 of a run, None where it has none: of its unlabelled training items, by their hidden labels."""
    row = METHODS[run["meta"]["args"]["method"]]
    if not row.trains or row.all_labels or not len(run["unlabelled"]):
        return None
    at, before, after = {i: r for r, i in enumerate(oom["ids"])}, run["before"], run["after"]
    truth = oom["labels"][torch.tensor([at[i] for i in run["unlabelled"]])]
    return {
        "before": agreement(before["agree"], before["prediction"], truth, before["label"]),
        "after": agreement(before["agree"], after["prediction"], truth),
        "after_own": agreement(after["agree"], after["prediction"], truth, after["label"]),
    }


def groups_seen(oom: dict[str, Any], test: Tensor) -> dict[str, Any]:
    """Of --groups in stage 1 the column, and which share of the test items is of a group that a training item is of."""
    known = {oom["groups"][r] for r in split_rows(oom, ("train",)).tolist()} - {""}
    seen = [oom["groups"][r] in known for r in test.tolist()]
    return {"column": oom["meta"]["args"]["groups"], "seen": sum(seen) / max(1, len(seen))}


def metrics_of(
    run: dict[str, Any], seed: Seed, test: Tensor, connections: dict[str, Any], device: str, task: str
) -> dict[str, Any]:
    """All metrics of a run; connections: what judge_connections found for its seed."""
    oom, names = seed.oom, run["class_names"]
    z, logits = model_of(run, device)(oom, test)
    metrics = class_metrics(logits.argmax(1), oom["labels"][test], names)
    metrics["correct"] = "".join(map(str, (logits.argmax(1) == oom["labels"][test]).int().tolist()))
    if "calibration" in run:
        metrics["calibration"] = confidence.judgement(run, logits, oom["labels"][test])
        metrics["novelty"] = (confidence.novelty(run, z) > 1).double().mean().item()
    val = labelled_rows(oom, "val")
    if len(val):
        metrics["val_accuracy"] = accuracy(features(run, oom, val, device)[1], oom["labels"][val])
    metrics |= {**connections, "agreement": agreements(run, oom)}
    metrics |= {
        k: run[k] for k in ("trust", "fallback") if run.get(k)
    }  # stage 3's check, and why it left correspondences out
    if "groups" in oom:
        metrics["groups"] = groups_seen(oom, test)
    if task == "retrieval":
        own = (z, oom["labels"][test], [oom["ids"][r] for r in test.tolist()])
        metrics["retrieval"] = {
            m: {"out": retrieval(own, other, len(names)), "back": retrieval(other, own, len(names))}
            for m, other in ({} if "classical" in run else mapped_test_items(run, seed, device)).items()
        }
    return metrics


def record(
    run: dict[str, Any], seed: Seed, test: Tensor, connections: dict[str, Any], device: str, task: str
) -> dict[str, Any]:
    """What METHOD.json holds."""
    metrics = metrics_of(run, seed, test, connections, device, task)
    meta, args, known, oom = run["meta"], run["meta"]["args"], seed.connect["meta"]["args"], seed.oom
    method = "-".join(filter(None, (args["method"], args.get("tag"))))
    semi, train = args["setting"] == "semi", split_rows(oom, ("train",))
    n_labelled = seed.connect["meta"]["n_labelled"]
    chosen = known["per_class"] or known.get("labelled_ids")
    share = round(n_labelled / len(train), 4) if chosen else known["labels"]
    if n_labelled == (oom["labels"][train] >= 0).sum():
        share = 1.0  # all that there are
    source = oom["meta"].get("source", {})
    return {
        "data": data_name(seed.place.data),
        **{k: args[k] for k in ("perceptor", "setting", "oom", "seed")},
        "method": method,
        "labels": share if semi else 0.0,
        "per_class": known["per_class"] if semi else 0,
        "n_labelled": meta["n_labelled"],
        "paired": seed.connect["meta"]["paired"],
        "paired_by_class": seed.connect["meta"]["paired_by_class"],
        "perceptor_paired_by_class": sorted(
            {m for im in seed.ims.values() for m in im["meta"].get("paired_by_class", [])}
        ),
        "fingerprint": meta["fingerprint"],
        "made_from": {method: meta["digest"]},
        "commonality": source.get("commonality"),
        "data_seed": source.get("seed"),
        "correct": metrics.pop("correct"),
        "metrics": metrics,
        "history": run["history"],
        "seconds": meta["seconds"],
        "connect_seconds": seed.connect["meta"].get("seconds"),
        "command": " ".join(["python", *meta["argv"]]),
        "args": {k: v for k, v in args.items() if k not in ("seed", "method", "tag")},
        "connect_args": {k: v for k, v in known.items() if k != "seed"},
        "torch": meta["torch"],
    }


def words(record: dict[str, Any], task: str) -> str:
    """A run's numbers in words."""
    m = record["metrics"]
    text = f"accuracy {100 * m['accuracy']:.1f}%, balanced {100 * m['balanced_accuracy']:.1f}%"
    if record["setting"] == "unsup":
        text += f", Hungarian {100 * m['hungarian_accuracy']:.1f}%, NMI {m['nmi']:.3f}"
    if task == "retrieval":
        found = {level: score(record, f"retrieval.out.{level}.r1") for level in ("category", "instance")}
        r1 = ", ".join(f"{level} {100 * v:.1f}%" for level, v in found.items() if v is not None)
        text += (
            f"; R@1, OOM → IM: {r1}"
            if r1
            else "; no features to retrieve by"
            if METHODS[record["method"].partition("-")[0]].classical
            else "; nothing to retrieve: no IM modality has a labelled test item of a class of the OOM test items"
        )
    return text
