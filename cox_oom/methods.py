"""COX and the methods that it is compared with: METHODS has a row for each, and everything else reads the rows.

A new baseline is one function of (args, model, step) -> {name: loss}, and one row. It then appears in stage 3, in the
shell files, in tables, plots and documents. `python -m cox_oom.methods --setting semi` prints the names."""

import argparse
import copy
import math
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cox_oom import anchors, classical, controls, ensemble, ranks
from cox_oom.anchors import Anchors
from cox_oom.augment import augment
from cox_oom.connect import Bridge
from cox_oom.correspond import Teacher
from cox_oom.files import UserError
from cox_oom.labels import Items, steps_of
from cox_oom.learner import Learner
from cox_oom.loader import Part
from cox_oom.run import LARGE, MIN_STEPS, enough, number
from cox_oom.seed import Seed, split_rows


class Model(nn.Module):
    """What the optimizer moves and a checkpoint holds: the learner, its head, and perhaps a layer that predicts IM
    features (COX) and a method's own module."""

    def __init__(self, learner: Learner, head: nn.Linear, predict: nn.Linear | None = None, extra: Any = None) -> None:
        super().__init__()
        self.learner, self.head, self.predict, self.extra = learner, head, predict, extra

    def follow(self) -> None:
        """After a step: the method's own module follows the learner."""
        if hasattr(self.extra, "follow"):
            self.extra.follow(self.learner)


@dataclass
class Step:
    """What a method learns from at a step beside the labelled items, of a part of the batch: places j (B,) among the
    unlabelled ones, `at`, where these lie in the whole batch, their x (B, ...) and lengths as augment.batch gives
    them, the anchors; then features z (B, d) and logits (B, C) of the method's view. `labelled`: is there any label at
    all."""

    kind: str
    x: Tensor
    lengths: Tensor | None
    j: Tensor
    labelled: bool
    at: slice
    anchors: Anchors | None = None
    z: Any = None  # Tensors, once the learner has seen the view
    logits: Any = None
    views: Sequence[str] = ()  # that the learner looks at in place of the values

    def view(self, strength: str = "weak") -> "View":
        """The items as an augmentation shows them."""
        return augment(self.kind, self.x, self.lengths, strength, self.views)


View = tuple[Tensor, Tensor | None]  # x (B, ...) and lengths

# ------------------------------------------------------------- which view of the unlabelled items the learner sees


def weak(args: Namespace, step: Step) -> View | None:
    """The weak augmentation, for a term of posteriors: none where there is no label, which they would sharpen."""
    return step.view() if step.labelled else None


def strong(args: Namespace, step: Step) -> View | None:
    """The strong augmentation."""
    return step.view("strong")


def unseen(args: Namespace, step: Step) -> View | None:
    """Nothing: the method learns from other things."""
    return None


def noisy(args: Namespace, step: Step) -> View | None:
    """The weak augmentation, which takes the place of the item, and Gaussian noise; of text another augmentation."""
    step.x, step.lengths = step.view()
    if step.kind == "text":
        return step.view()
    return step.x + args.noise * torch.randn_like(step.x), step.lengths


# ----------------------------------------------------------------------------------- what unlabelled items teach


def explore(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """COX and selftrain: the anchors' labels on A, what the others are drawn to on D, IM features predicted (Eqs.
    13-15)."""
    assert step.anchors is not None  # they are chosen before a step, where a method explores
    found = {}
    if model.predict:
        assert step.anchors.expected is not None  # a layer that predicts has what to predict
        found["im"] = args.w_im * F.mse_loss(model.predict(step.z).float(), step.anchors.expected[step.j])
    agree, disagree = anchors.losses(step.logits, step.anchors, step.j, args.kl)
    found["agree"] = args.w_agree * agree
    if args.w_disagree and disagree is not None:
        found["disagree"] = args.w_disagree * disagree
    return found


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the posteriors, logits (B, C)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


def entmin(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """EntMin (Grandvalet & Bengio, NeurIPS 2004): sharpens what labels have begun, so nothing where there is none."""
    return {"entropy": args.w_entropy * entropy(step.logits)} if step.labelled else {}


def moco(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """Momentum contrast beside entropy."""
    return {**entmin(args, model, step), "contrast": model.extra.loss(model.learner, step)}


def ssl(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """Consistency: KL of the posterior under Gaussian noise (text: another augmentation) to the item's own, without
    gradient."""
    own = posteriors_of(model, (step.x, step.lengths))
    return {"consistency": args.w_ssl * F.kl_div(step.logits.log_softmax(-1), own, reduction="batchmean")}


@torch.no_grad()
def posteriors_of(model: Model, view: View) -> Tensor:
    """Posteriors (B, C) of a view, without gradient: what pseudo-labels are taken from."""
    return model.head(model.learner(*view)).float().softmax(-1)


def fixmatch(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """FixMatch (Sohn et al., NeurIPS 2020, Eq. 4): the class of the weak view teaches the strong one where it is sure
    enough; the mean is over all items, those that teach nothing too."""
    confidence, pseudo = posteriors_of(model, step.view()).max(-1)
    taken = confidence >= args.threshold
    return {"pseudo": args.w_pseudo * (F.cross_entropy(step.logits, pseudo, reduction="none") * taken).mean()}


class FreeThresholds(torch.nn.Module):
    """FreeMatch's running means over batches of unlabelled items (Wang et al., ICLR 2023, Eqs. 5 to 8): the confidence
    tau (), the posterior of each class p (C,), how often each is named h (C,). They begin at 1 / C. `seen`: the
    posteriors (batch, C) of a step."""

    tau: Tensor
    p: Tensor
    h: Tensor
    seen: Tensor

    def __init__(self, classes: int, momentum: float, batch: int = 0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("tau", torch.tensor(1 / classes))
        self.register_buffer("p", torch.full((classes,), 1 / classes))
        self.register_buffer("h", torch.full((classes,), 1 / classes))
        self.register_buffer("seen", torch.zeros(batch, classes), persistent=False)

    def follow(self, learner: Learner) -> None:
        """After a step: move on by the posteriors of all its parts."""
        self.update(ranks.gather(self.seen))
        self.seen.zero_()

    @torch.no_grad()
    def update(self, posteriors: Tensor) -> None:
        """Move all three on by the posteriors (B, C) of a batch."""
        confidence, named = posteriors.max(-1)
        frequency = F.one_hot(named, len(self.h)).to(posteriors).mean(0)
        for mean, now in ((self.tau, confidence.mean()), (self.p, posteriors.mean(0)), (self.h, frequency)):
            mean.lerp_(now, 1 - self.momentum)

    def thresholds(self) -> Tensor:
        """The least confidence (C,) of a pseudo-label of each class."""
        return self.tau * self.p / self.p.max()

    def fairness(self, posteriors: Tensor, taken: Tensor) -> Tensor:
        """Eq. 11 on the strong views' posteriors (B, C) of the items that were taken, a mask (B,): the sum over classes
        of a log b, where a and b are the running and the part's mean posterior, each over how often a class is named;
        0 where none was taken."""
        weight = (taken / taken.sum().clamp(min=1))[:, None]
        named = (F.one_hot(posteriors.argmax(-1), len(self.h)) * weight).sum(0)
        a = self.p / self.h.clamp(min=1e-12)
        b = torch.where(named > 0, (posteriors * weight).sum(0) / named.clamp(min=1e-12), torch.zeros_like(named))
        return (a / a.sum() * (b / b.sum().clamp(min=1e-12)).clamp(min=1e-12).log()).sum() * taken.any()


def freematch(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """FreeMatch (Wang et al., ICLR 2023): FixMatch whose thresholds, one for each class, follow the learner's own
    confidence of earlier steps, and a term that keeps the classes of the taken items of a part apart."""
    sure = posteriors_of(model, step.view())
    model.extra.seen[step.at] = sure
    confidence, pseudo = sure.max(-1)
    taken = confidence >= model.extra.thresholds()[pseudo]
    return {
        "pseudo": args.w_pseudo * (F.cross_entropy(step.logits, pseudo, reduction="none") * taken).mean(),
        "fair": args.w_fair * model.extra.fairness(step.logits.softmax(-1), taken),
    }


def raw(seed: Seed, items: Items) -> dict[str, Any]:
    """The state of --method raw."""
    rows, y = items.rows[items.labelled], items.y[items.labelled]
    return classical.fit(items.oom, items.rows, rows, y, seed.place.seed)


class MomentumContrast(torch.nn.Module):
    """MoCo (He et al., CVPR 2020): two views of an item against `queue` keys of earlier batches, from a slow copy.
    `keys`: those (batch, 64) of a step."""

    queue: Tensor
    keys: Tensor

    def __init__(
        self,
        learner: Learner,
        *,
        queue: int = 2048,
        momentum: float = 0.99,
        temperature: float = 0.1,
        batch: int = 128,
    ) -> None:
        super().__init__()
        self.project = torch.nn.Sequential(
            torch.nn.Linear(learner.width, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)
        )
        self.key_learner = copy.deepcopy(learner).requires_grad_(False)
        self.key_project = copy.deepcopy(self.project).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, 64), dim=-1))
        self.register_buffer("keys", torch.zeros(batch, 64), persistent=False)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """InfoNCE of a part."""
        q = F.normalize(self.project(learner(*step.view("strong"))).float(), dim=-1)
        with torch.no_grad():
            k = F.normalize(self.key_project(self.key_learner(*step.view())).float(), dim=-1)
            self.keys[step.at] = k
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    @torch.no_grad()
    def follow(self, learner: Learner) -> None:
        """After a step: move the slow copy and the queue on, by the keys of all parts in their order."""
        for slow, fast in zip(
            [*self.key_learner.parameters(), *self.key_project.parameters()],
            [*learner.parameters(), *self.project.parameters()],
        ):
            slow.lerp_(fast, 1 - self.momentum)
        self.queue = torch.cat([ranks.gather(self.keys), self.queue])[: len(self.queue)]
        self.keys = torch.zeros_like(self.keys)


class SharedHead(torch.nn.Module):
    """UML (Gupta et al., ICLR 2026): the labelled items of each known modality, features z_im (N, d_k), y_im (N,), come
    by a linear layer of their own to the head that names the learner's items. No pair is used."""

    def __init__(self, width: int, z_im: dict[str, Tensor], y_im: dict[str, Tensor]) -> None:
        super().__init__()
        self.items = [(z / z.std().clamp(min=1e-6), y_im[m]) for m, z in z_im.items()]  # of equal size
        self.enter = nn.ModuleList(nn.Linear(z.shape[1], width) for z in z_im.values())

    def loss(self, head: nn.Linear, batch: int) -> Tensor:
        """Mean cross-entropy of a random batch of each modality."""
        found = []
        for (z, y), enter in zip(self.items, self.enter):
            i = torch.randint(len(y), (batch,)).to(y.device)
            found.append(F.cross_entropy(head(enter(z[i])).float(), y[i]))
        return torch.stack(found).mean()


def uml(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """UML's term: the known modalities' items beside the labelled ones, a part's share of them."""
    size = max(1, round(args.labelled_batch * len(step.j) / args.batch))
    return {"shared": args.w_shared * model.extra.loss(model.head, size)}


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
    """Every method's flags as rows of a run.Parser: (name, default, type, help)."""
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
    """The Plan of a run on a Seed; args.epochs, args.kl and args.w_disagree are settled by it."""
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
    args.kl = "matched" if args.kl == "expected" and not soft else args.kl
    args.w_disagree = (1.0 if args.kl == "expected" else 0.5) if args.w_disagree is None else args.w_disagree
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
    p.add_argument("--few", action="store_true", help="those that run.sh runs unasked")
    p.add_argument("--grid", action="store_true", help="a line for each setting that experiments/search.sh tries")
    args = p.parse_args(argv)
    if args.grid:
        print("\n".join(f"{m} {flags}" for m, row in METHODS.items() for flags in row.grid))
    else:
        print(*names(args.setting, args.few))


if __name__ == "__main__":
    main()
