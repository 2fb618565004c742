"""COX and the methods that it is compared with: METHODS has a row for each, and everything else reads the rows.

A new baseline is one function of objectives.py and one row. It then appears in stage 3, in the shell files, in tables,
plots and documents. `python -m cox_oom.methods --setting semi` prints the names."""

import argparse
import math
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cox_oom import classical, controls, ensemble, ranks
from cox_oom.anchors import Anchors
from cox_oom.augment import augment
from cox_oom.cli import LARGE, MIN_STEPS, number
from cox_oom.connect import Bridge
from cox_oom.files import UserError
from cox_oom.labels import Items, steps_of
from cox_oom.learner import Learner
from cox_oom.loader import Part
from cox_oom.objectives import (
    FreeThresholds,
    Model,
    MomentumContrast,
    SharedHead,
    Step,
    View,
    entmin,
    explore,
    fixmatch,
    freematch,
    moco,
    noisy,
    ssl,
    strong,
    uml,
    unseen,
    weak,
)
from cox_oom.run import enough, script
from cox_oom.seed import Seed, split_rows
from cox_oom.teacher import Teacher


def raw(seed: Seed, items: Items) -> dict[str, Any]:
    """The state of --method raw."""
    rows, y = items.rows[items.labelled], items.y[items.labelled]
    return classical.fit(items.oom, items.rows, rows, y, seed.place.seed)


# ------------------------------------------------------------------------------------------------------- METHODS


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    loss: the documents' line. colour: in plots. learn(args, model, step) -> {name: loss} of unlabelled items, None
    where they teach nothing. view(args, step): what the learner is shown of them beside the labelled items, None:
    nothing. start(args, learner, head, bridge, seed, items) -> a module of its own, or None; its follow(learner), if it
    has one, is called after a step. flags: rows (name, default, type, help). grid: the flags that experiments/search.sh
    tries, its defaults first. labels: it needs some, so that it has no place in the setting unsup. explores: it chooses
    anchors. trains: False for the learner as it was before stage 2. steps: False where stage 3 takes none. members: it
    is the mean of other runs' learners. classical(seed, items) -> the state by which cox_oom/classical.py names
    recordings, in a learner's place. all_labels: it is shown every label. few: it is among the few that run.sh runs
    unasked."""

    loss: str
    colour: str
    learn: Callable[[Namespace, Model, Step], dict[str, Tensor]] | None = None
    view: Callable[[Namespace, Step], View | None] = strong
    start: Callable[[Namespace, Learner, nn.Linear, Bridge, Seed, Items], nn.Module | None] | None = None
    flags: tuple[tuple[Any, ...], ...] = ()
    grid: tuple[str, ...] = ()
    labels: bool = False
    explores: bool = False
    trains: bool = True
    classical: Callable[[Seed, Items], dict[str, Any]] | None = None
    steps: bool = True
    members: bool = False
    all_labels: bool = False
    few: bool = False


def grid(form: str, *values: object) -> tuple[str, ...]:
    """A form's flags with each of the values, e.g. grid("--lr {}", 1, 2); a tuple fills several places."""
    return tuple(form.format(*(v if isinstance(v, tuple) else (v,))) for v in values)


W_PSEUDO = ("--w-pseudo", 1.0, number(float, 0, LARGE), "fixmatch, freematch: weight of the pseudo-labels")
W_ENTROPY = ("--w-entropy", 0.3, number(float, 0, LARGE), "entmin, moco: weight of the entropy")
TERMS = grid("--w-agree {} --w-disagree {}", (1, 1), (1, 0), (0.5, 1), (0.5, 0.5), (2, 1), (1, 0.5))
METHODS = {  # in the order of the tables' rows
    "random": Method("nothing: the untrained learner", "#c9c9c9", trains=False, few=True),
    "raw": Method(
        "the labelled items, by logistic regression on plain and spectral views; no network",
        "#b8860b",
        labels=True,
        trains=False,
        classical=raw,
        few=True,
    ),
    "labelprop": Method(
        "the labelled items, whose labels spread over a graph of all recordings; no network",
        "#a0783c",
        labels=True,
        trains=False,
        classical=controls.labelprop,
    ),
    "erm": Method(
        "the labelled items, by cross-entropy",
        "#7f8fa6",
        grid=grid("--weight-decay {}", "1e-5", 0, "1e-4", "1e-3", "3e-3", "1e-2"),
        labels=True,
        few=True,
    ),
    "entmin": Method(
        "the labels, and the entropy of its posteriors",
        "#8fb996",
        entmin,
        weak,
        flags=(W_ENTROPY,),
        grid=grid("--w-entropy {}", 0.3, 0.03, 0.1, 0.6, 1, 2),
        labels=True,
    ),
    "ssl": Method(
        "consistency under Gaussian noise; in semi the labels too",
        "#b5a1d0",
        ssl,
        noisy,
        flags=(
            ("--noise", 0.3, number(float, 0, LARGE), "ssl: standard deviation of the Gaussian noise on the input"),
            ("--w-ssl", 1.0, number(float, 0, LARGE), "ssl: weight of the consistency"),
        ),
        grid=grid("--noise {} --w-ssl {}", (0.3, 1), (0.1, 1), (0.6, 1), (0.3, 0.3), (0.3, 3), (0.1, 3)),
    ),
    "moco": Method(
        "momentum contrast; in semi the labels and the entropy too",
        "#d9b26f",
        moco,
        weak,
        start=lambda args, learner, head, bridge, *_: MomentumContrast(
            learner, queue=args.queue, momentum=args.momentum, temperature=args.temperature, batch=args.batch
        ).to(args.device),
        flags=(
            W_ENTROPY,
            ("--queue", 2048, number(int, 1, 10**7), "moco: negatives"),
            ("--momentum", 0.99, number(float, 0, 1), "moco: of the key encoder"),
            ("--temperature", 0.1, number(float, 0, LARGE, ends="(]"), "moco: of the contrastive loss"),
        ),
        grid=(
            *grid("--w-entropy {} --temperature {}", (0.3, 0.1), (0.1, 0.1), (1, 0.1), (0.3, 0.2), (0.3, 0.5)),
            "--w-entropy 0.3 --temperature 0.1 --momentum 0.999",
        ),
    ),
    "fixmatch": Method(
        "the labels, and confident pseudo-labels under strong augmentation",
        "#c98f8f",
        fixmatch,
        flags=(("--threshold", 0.95, number(float, 0, 1), "fixmatch: least confidence of a pseudo-label"), W_PSEUDO),
        grid=grid("--threshold {} --w-pseudo {}", (0.95, 1), (0.95, 0.3), (0.95, 3), (0.8, 1), (0.8, 0.3), (0.6, 0.3)),
        labels=True,
    ),
    "freematch": Method(
        "as fixmatch, with thresholds of the classes that follow the learner's confidence",
        "#d4a5a5",
        freematch,
        start=lambda args, learner, head, *_: FreeThresholds(head.out_features, args.free_momentum, args.batch).to(
            args.device
        ),
        flags=(
            ("--free-momentum", 0.99, number(float, 0, 1), "freematch: of its running means"),
            ("--w-fair", 0.05, number(float, 0), "freematch: weight of its fairness term"),
            W_PSEUDO,
        ),
        grid=grid(
            "--free-momentum {} --w-fair {} --w-pseudo {}",
            (0.99, 0.05, 1),
            (0.99, 0, 1),
            (0.9, 0.05, 1),
            (0.9, 0, 1),
            (0.9, 0.05, 0.3),
            (0.999, 0.05, 1),
        ),
        labels=True,
    ),
    "procrustes": Method(
        "the warm start's features, mapped by the pairs to the IM features, which the IM heads name",
        "#6b8e23",
        start=controls.procrustes,
        flags=(("--ridge", 0.0, number(float, 0, LARGE), "procrustes: of the map by ridge; 0: the orthogonal map"),),
        grid=grid("--ridge {}", 0, 0.1, 1, 10, 100, 1000),
        labels=True,
        steps=False,
    ),
    "uml": Method(
        "the labels, and the IM items by the same head, without any pair",
        "#7b68ae",
        uml,
        unseen,
        start=lambda args, learner, head, bridge, *_: SharedHead(learner.width, bridge.z_im, bridge.y_im).to(
            args.device
        ),
        flags=(("--w-shared", 1.0, number(float, 0, LARGE), "uml: weight of the IM items' cross-entropy"),),
        grid=grid("--w-shared {}", 1, 0.03, 0.1, 0.3, 3, 10),
        labels=True,
    ),
    "selftrain": Method(
        "as cox, but the same model of the recordings without any IM item chooses the anchors",
        "#5f9ea0",
        explore,
        grid=TERMS,
        labels=True,
        explores=True,
        few=True,
    ),
    "ensemble": Method(
        "as selftrain: the mean posterior of several such learners, all with the same labels",
        "#2f6f73",
        flags=(
            ("--members", 3, number(int, 2, 100), "ensemble: how many learners"),
            ("--of", "selftrain", ("selftrain", "cox"), "ensemble: the method of its members"),
        ),
        labels=True,
        steps=False,
        members=True,
    ),
    "cox": Method(
        "agreement, emergent correspondences, expected classes on disagreement, IM features predicted",
        "#c0392b",
        explore,
        grid=TERMS,
        explores=True,
        few=True,
    ),
    "aligned": Method("all labels: the upper limit", "#444444", all_labels=True),
}


def names(setting: str = "semi", few: bool = False) -> list[str]:
    """The methods that a setting has, or the few of them that run.sh runs unasked."""
    return [m for m, row in METHODS.items() if (setting == "semi" or not row.labels) and (row.few or not few)]


def table() -> str:
    """The methods as a table in Markdown, for docs/method.md."""
    lines = ["| method | learns from | settings |", "|---|---|---|"]
    for m, row in METHODS.items():
        lines.append(f"| `{m}` | {row.loss} | {'semi' if row.labels else 'semi, unsup'} |")
    return "\n".join(lines)


def flags() -> list[tuple[Any, ...]]:
    """Every method's flags as rows of a cli.Parser: (name, default, type, help)."""
    return list(dict.fromkeys(flag for row in METHODS.values() for flag in row.flags))


def flags_of_others(method: str) -> list[str]:
    """The names, as attributes of parsed arguments, of the flags that other methods have and this one has not."""
    return [flag[0][2:].replace("-", "_") for flag in flags() if flag not in METHODS[method].flags]


# ---------------------------------------------------------------------------------------------- a run's settings


@dataclass
class Plan:
    """What stage 3's flags and stage 2's file settle for a run.

    explores: anchors are chosen; without: parts that an ablation leaves out; soft: correspondences can be had; named:
    the heads know class names; epochs: 0 where nothing is trained; refreshes: the epochs at which anchors are chosen,
    and a checkpoint is written."""

    explores: bool
    without: set[str]
    soft: bool
    named: bool
    epochs: int
    refreshes: range


def refreshes(args: dict[str, Any]) -> range:
    """The epochs (range) at which COX chooses anchors anew; args {"epochs", "refreshes"}."""
    return range(0, args["epochs"], max(1, math.ceil(args["epochs"] / args["refreshes"])))


def settle_epochs(args: Namespace, seed: Seed) -> None:
    """args.epochs as a number, the same for every method: those given, or 50. Few recordings make short epochs, so
    there are as many as --min-steps asks, unless --epochs alone was given. args.min_steps goes: it shapes nothing."""
    given, least, usual = args.epochs, args.min_steps, 50 if args.epochs is None else args.epochs
    steps = steps_of(len(split_rows(seed.oom, ("train",))) - len(seed.connect.get("held", [])), args.batch)
    del args.min_steps
    args.epochs = enough(given if least is None else None, usual, MIN_STEPS if least is None else least, steps)
    if args.epochs != usual and METHODS[args.method].trains:
        print(f"  {usual} epochs are {usual * steps} steps; every method gets {args.epochs} epochs, for --min-steps")


def plan(args: Namespace, seed: Seed) -> Plan:
    """The Plan of a run on a Seed; args.epochs and args.w_disagree are settled by it."""
    settle_epochs(args, seed)
    row, at_stage_2 = METHODS[args.method], seed.connect["meta"]["args"]["without"]
    args.without = sorted(set(args.without))
    if "warmup" in args.without and "warmup" not in at_stage_2:
        raise UserError(
            f"{seed.place.connect} was made with the warm-up; run first, under another --runs or with --force: "
            f"{seed.place.command('train_connect.py', without='warmup')}"
        )
    without = {*args.without, *at_stage_2} if args.method == "cox" else set()
    soft = args.setting == "semi" and bool(args.rounds) and not without & {"connection", "emergent"}
    args.w_disagree = (1.0 if args.setting == "semi" else 0.2) if args.w_disagree is None else args.w_disagree
    idle = not row.trains or not row.steps or args.setting == "unsup" and "exploration" in without
    return Plan(
        row.explores,
        without,
        soft and row.explores,
        args.setting == "semi" or bool(seed.connect["naming"]),
        0 if idle else args.epochs,
        range(0) if idle else refreshes(vars(args)),
    )


def instead(args: Namespace, seed: Seed, items: Items) -> dict[str, Any]:
    """What METHOD.pt keeps in the learner's place: {"classical": the state of its row} of a method without a learner,
    an ensemble's members; {} of the others."""
    row = METHODS[args.method]
    if row.members:
        return ranks.told(ensemble.train(args, seed, items) if ranks.rank == 0 else None)
    if not row.classical:
        return {}
    state = row.classical(seed, items)
    print(f"  {classical.words(args.method, state)}")
    return {"classical": state}


def learns(args: Namespace, plan: Plan) -> bool:
    """Whether unlabelled items teach anything in a run."""
    return METHODS[args.method].learn is not None and "exploration" not in plan.without


def terms(
    args: Namespace,
    plan: Plan,
    model: Model,
    items: Items,
    chosen: Anchors | None,
    teacher: Teacher | None,
    part: Part,
) -> dict[str, Tensor]:
    """A part's share of a step's loss, {name: term}: of its labelled items and of its unlabelled ones, which the
    learner sees at once."""
    n, row, kind, views = len(part.i) if len(items.labelled) else 0, METHODS[args.method], items.oom["kind"], []
    cut = lambda rows: (part.x[rows], None if part.lengths is None else part.lengths[rows])
    if n:
        views.append(augment(kind, *cut(slice(n)), views=model.learner.views))
    step = None
    if learns(args, plan):
        step = Step(kind, *cut(slice(n, None)), part.j, n > 0, part.at, chosen, views=model.learner.views)
        views += filter(None, [row.view(args, step)])
    found = {}
    if views:
        lengths = None if part.lengths is None else torch.cat([own for _, own in views if own is not None])
        z = model.learner(torch.cat([x for x, _ in views]), lengths)
        logits = model.head(z).float()
    if n:
        found["labelled"] = F.cross_entropy(logits[:n], part.y) * (n / args.labelled_batch)
        if model.predict and teacher:
            im = F.mse_loss(model.predict(z[:n]).float(), teacher.expected[part.i])
            found["im"] = args.w_im * im * (n / args.labelled_batch)
    if step:
        assert row.learn is not None  # as `learns` has found
        step.z, step.logits = (z[n:], logits[n:]) if views[n > 0 :] else (None, None)
        for name, term in row.learn(args, model, step).items():
            found[name] = found.get(name, 0.0) + term * (len(part.j) / args.batch)
    return found


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="python -m cox_oom.methods", description="prints the names of the methods")
    p.add_argument("--setting", default="semi", choices=["semi", "unsup"])
    p.add_argument(
        "--methods", nargs="*", metavar="METHOD-TAG", help="these, checked; those of run.sh where none is named"
    )
    p.add_argument("--grid", action="store_true", help="a line for each setting that experiments/search.sh tries")
    args = p.parse_args(argv)
    if args.grid:
        print("\n".join(f"{m} {flags}" for m, row in METHODS.items() for flags in row.grid))
        return
    for run in args.methods or []:
        if (method := run.split("-")[0]) not in METHODS:
            raise UserError(f"METHODS: there is no method {method}; choose among {' '.join(METHODS)}")
    print(*(args.methods or names(args.setting, few=args.methods is not None)))


if __name__ == "__main__":
    script(main)
