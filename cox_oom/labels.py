"""Which OOM items keep a label, which are held out, which IM items they are paired with.

Shapes: M OOM training items, L of them labelled, U not, N IM items, C classes.
"""

from argparse import ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cox_oom.augment import embed
from cox_oom.data import is_name
from cox_oom.files import UserError, digest
from cox_oom.learner import Learner
from cox_oom.seed import Seed, split_rows

if TYPE_CHECKING:
    from cox_oom.connect import Known  # it imports this module


def choose_labelled(
    labels: Tensor, count: float, per_class: int, generator: torch.Generator, paired: Tensor | None = None
) -> Tensor:
    """Positions (L,) of a class-balanced draw from labels (M,), -1: none. `count` in all, or `per_class` of each.

    Of each class the same number, one at least; what a class is short of, the larger ones give. Within a class those
    come first that more IM modalities have a pair of, paired (M, K) bool: pairs may be few. A modality whose pairs
    all lie elsewhere gets one in exchange for an item that no other modality needs."""
    order = torch.randperm(len(labels), generator=generator)
    if paired is not None:
        order = order[paired.sum(1)[order].argsort(descending=True, stable=True)]
    else:
        paired = torch.zeros(len(labels), 0, dtype=torch.bool)
    groups = [order[labels[order] == c] for c in labels[labels >= 0].unique().tolist()]
    quota = per_class or max(1, round(count / len(groups)))
    while not per_class and sum(min(len(g), quota + 1) for g in groups) <= count and quota < max(map(len, groups)):
        quota += 1
    drawn = [g[:quota].clone() for g in groups]
    for k in range(paired.shape[1]):
        for g, own in zip(groups, drawn):
            spare, shown = g[quota:], paired[torch.cat(drawn)].sum(0)  # (K,): pairs with each modality
            spare = spare[paired[spare, k]]
            if not shown[k] and len(spare):
                left = shown - paired[own].int() + paired[spare[0]].int()  # (Q, K): with each given up for it
                free = ((left > 0) | (shown == 0)).all(1).nonzero()
                if len(free):
                    own[free[-1, 0]] = spare[0]
    return torch.cat(drawn).sort().values


def settle_share(args: Namespace, oom: dict[str, Any], train: Tensor) -> None:
    """args.labels where it was left out: a folder of one's own keeps all its labels, but for one that is labelled
    throughout, which would leave nothing to explore; a data set of the paper keeps a tenth."""
    if args.labels is not None:
        return
    unlabelled = bool((oom["labels"][train] < 0).any())
    args.labels = 1.0 if unlabelled and not is_name(args.data) else 0.1
    if args.setting == "semi" and not args.per_class:
        why = "of a folder of your own" if unlabelled else "since every item has one: nothing else would be unlabelled"
        why = "of a data set by name" if is_name(args.data) else why
        print(f"  labels: {'all' if args.labels == 1 else 'a tenth'} kept, the default {why} (--labels)")


def read_ids(path: str) -> list[str]:
    """The ids in a text file, one a line; empty lines do not count. Raises UserError."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        reason = getattr(e, "strerror", None) or "it is no text in UTF-8"
        raise UserError(f"--labelled-ids {path}: {reason}; give a file with an id a line") from None
    if not (ids := [i for line in lines if (i := line.strip())]):
        raise UserError(f"--labelled-ids {path} has no id; write one a line")
    return ids


def ids_read(args: Namespace) -> dict[str, str]:
    """{"labelled ids": digest} of what --labelled-ids names, for made_from; {} where it is not given."""
    return {"labelled ids": digest(read_ids(args.labelled_ids))} if args.labelled_ids else {}


def places_of(path: str, ids: list[str], labels: Tensor, oom: str) -> Tensor:
    """Places (L,), in their order, of the items that a file of ids names among the training items, ids [M] and labels
    (M,). Raises UserError for one that is none of them or has no label."""
    at = {i: place for place, i in enumerate(ids)}
    for i in (named := read_ids(path)):
        if i not in at:
            raise UserError(f"--labelled-ids {path}: {i} is no training row of {oom}; leave it out")
        if labels[at[i]] < 0:
            raise UserError(f"--labelled-ids {path}: {i} has no label; leave it out, or label it and extract again")
    return torch.tensor(sorted({at[i] for i in named}))


def fold(text: str) -> str:
    """The type of --fold: "K/N", part K = 0 … N - 1 of N."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and int(part) < int(parts) and int(parts) > 1):
        raise ArgumentTypeError(f"{text}: give K/N, part K = 0 to N - 1 of N >= 2 parts")
    return text


def groups_of(oom: dict[str, Any], rows: Tensor) -> Tensor | None:
    """The group (R,) of each of the rows (R,), a number; a row without one is a group of its own. None where stage 1
    was given no --groups."""
    if "groups" not in oom:
        return None
    number: dict[str, int] = {}
    named = [oom["groups"][r] for r in rows.tolist()]
    return torch.tensor([number.setdefault(g or f"\0{r}", len(number)) for g, r in zip(named, rows.tolist())])


def parts_of(y: Tensor, parts: int, groups: Tensor | None = None) -> Tensor:
    """The part (L,), 0 to `parts` - 1, of items of classes y (L,): the items of a class in turn. With groups (L,) no
    group is in two parts: the largest first, each goes where its classes have least."""
    part = torch.empty_like(y)
    if groups is None:
        part[torch.argsort(y, stable=True)] = torch.arange(len(y), device=y.device) % parts
        return part
    names, of, size = groups.unique(return_inverse=True, return_counts=True)
    has = torch.zeros(parts, int(y.max()) + 1, dtype=torch.long, device=y.device)
    for g in size.argsort(descending=True, stable=True).tolist():
        own = torch.bincount(y[of == g], minlength=has.shape[1])
        load = (has * (own > 0)).sum(1) * len(y) + has.sum(1)
        part[of == g] = int(load.argmin())
        has[int(load.argmin())] += own
    return part


def share(text: str) -> tuple[int, int]:
    """The type of --share: "K/N", as (K, N)."""
    part, parts = fold(text).split("/")
    return int(part), int(parts)


def hold_out(labels: Tensor, share: float, fold: str | None = None, groups: Tensor | None = None) -> Tensor:
    """Mask (L,) of the items held out of labels (L,): of each class the first share of its items, one at least and not
    all; of a class of one item none. With `fold`, "K/N", every N-th item of each class in its place, from the K-th.
    With groups (L,) a group is held out as a whole or not at all."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    part, parts = map(int, fold.split("/")) if fold else (0, 0)
    if groups is not None:
        return hold_out_groups(labels, groups, share, parts_of(labels, parts, groups) == part if fold else None)
    for c in labels.unique():
        of_class = (labels == c).nonzero().squeeze(1)
        if fold:
            held[of_class[part::parts]] = len(of_class) > 1
        else:
            held[of_class[: min(max(1, round(share * len(of_class))), len(of_class) - 1)]] = True
    return held


def hold_out_groups(labels: Tensor, groups: Tensor, share: float, part: Tensor | None) -> Tensor:
    """hold_out's mask (L,) of whole groups (L,): those of `part` (L,) bool, else in their order as many as make up the
    share of each class; none that would leave a class without an item."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    of = {c: labels == c for c in labels.unique().tolist()}
    for g in dict.fromkeys((groups if part is None else groups[part]).tolist()):
        own = groups == g
        mine = [of[c] for c in labels[own].unique().tolist()]
        lacks = part is not None or any((held & m).sum() < max(1, round(share * int(m.sum()))) for m in mine)
        if lacks and all((m & ~held & ~own).any() for m in mine):
            held |= own
    return held


def steps_of(items: int, batch: int) -> int:
    """Steps of an epoch of so many items."""
    return max(1, round(items / batch))


@dataclass
class Items:
    """The OOM items that stage 3 trains on, M in the order of the inputs' rows: an item's place among them is its
    address.

    oom: the inputs file; rows (M,) in it; ids [M]; y (M,) labels, -1 where hidden; labelled (L,) and unlabelled (U,)
    places; pairs {modality: (places (P,), items of the bank (P,))}; val (V,) rows that training does not see, y_val
    (V,); frequencies (C,) of the classes and unseen (C,) bool, as `class_frequencies` gives them; `coverage` as
    coverage_of does; groups (M,), as `groups_of` does."""

    oom: dict[str, Any]
    rows: Tensor
    ids: list[str]
    y: Tensor
    labelled: Tensor
    unlabelled: Tensor
    pairs: dict[str, tuple[Tensor, Tensor]]
    val: Tensor
    y_val: Tensor
    frequencies: Tensor
    unseen: Tensor
    coverage: float = 1.0
    groups: Tensor | None = None

    def steps(self, batch: int) -> int:
        """Steps of an epoch, the same for every method."""
        return steps_of(len(self.rows), batch)

    def draw(
        self, steps: int, labelled_batch: int, batch: int, generator: torch.Generator, explore: bool = True
    ) -> Iterator[tuple[Tensor, ...]]:
        """`steps` random batches for loader.steps: places i (labelled_batch,) of labelled items, their labels, and j
        (batch,) among the unlabelled ones, the rows of both; no rows of what is not there, or not to be looked at."""
        for _ in range(steps):
            i = torch.randint(max(1, len(self.labelled)), (labelled_batch,), generator=generator)
            j = torch.randint(max(1, len(self.unlabelled)), (batch,), generator=generator)
            i = self.labelled[i] if len(self.labelled) else i
            rows_i = self.rows[i] if len(self.labelled) else self.rows[:0]
            yield i, self.y[i], j, rows_i, self.rows[self.unlabelled[j]] if explore else self.rows[:0]

    def embed(self, learner: Learner, device: str, labelled: bool = True) -> Tensor:
        """The learner's features z (M, d) of all items; zeros of the labelled ones where these are not asked for."""
        if labelled:
            return embed(learner, self.oom, self.rows, device)[0]
        z = torch.zeros(len(self.rows), learner.width, device=device)
        z[self.unlabelled.to(device)] = embed(learner, self.oom, self.rows[self.unlabelled], device)[0]
        return z

    def validate(self, learner: Learner, head: nn.Linear, device: str) -> dict[str, float]:
        """{"val_accuracy": accuracy on the validation items}, {} where there are none."""
        if not len(self.val):
            return {}
        guess = head(embed(learner, self.oom, self.val, device)[0]).argmax(1).cpu()
        return {"val_accuracy": (guess == self.y_val).float().mean().item()}


def items(seed: Seed, all_labels: bool = False) -> Items:
    """The Items of a Seed. `all_labels`: every label of the sensor is known, the upper limit.

    With stage 2's --holdout the items held out are those to validate on, else the rows of the split val.
    """
    oom, connect = seed.oom, seed.connect
    train, val = split_rows(oom, ("train",)), split_rows(oom, ("val",))
    among = lambda ids, rows: torch.tensor([oom["ids"][r] in ids for r in rows.tolist()], dtype=torch.bool)
    if connect.get("held"):
        aside = among(set(connect["held"]), train)
        train, val = train[~aside], train[aside]
    val = val[oom["labels"][val] >= 0]
    known = oom["labels"][train] >= 0 if all_labels else among(set(connect["labelled"]), train)
    places = torch.arange(len(train))
    first = places[among(set(connect["labelled"]), train)]  # stage 2's labelled items, in its order
    y = oom["labels"][train].masked_fill(~known, -1)
    on_im_side = torch.cat([connect["mapped_labels"][m] for m in connect["im"]])
    return Items(
        oom,
        train,
        [oom["ids"][r] for r in train.tolist()],
        y,
        places[known],
        places[~known],
        {m: (first[own], im) for m, (own, im) in connect["pairs"].items()},
        val,
        oom["labels"][val],
        *class_frequencies(on_im_side, y[known], len(oom["class_names"])),
        coverage_of([*connect["mapped_ids"].values()], len(train)),
        groups_of(oom, train),
    )


def find_pairs(
    ids: list[str], labels: Tensor, ids_im: list[str], y_im: Tensor, draw: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The labelled OOM items' (L ids and labels) instances among N IM items: (positions (P,), IM rows (P,)).

    With `draw` every item gets a random IM item of its class: for data that share no instance.
    """
    at = {i: r for r, i in enumerate(ids_im)}
    found = torch.tensor([at.get(i, -1) for i in ids])
    if draw:
        for j, label in enumerate(labels.tolist()):
            pool = (y_im.cpu() == label).nonzero().squeeze(1)
            if len(pool):
                found[j] = pool[torch.randint(len(pool), (1,), generator=generator)]
    has = (found >= 0).nonzero().squeeze(1)
    return has, found[has]


def class_frequencies(known: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Frequencies (C,) of the classes among the IM side's labels `known` (N,), and which classes (C,) bool no
    labelled OOM item, y (L,), has though the IM side does: they are not expected of the sensor, 0. A class of y that
    the IM side lacks keeps its share of y. Without any y: the IM side's alone."""
    frequent, own = (torch.bincount(t, minlength=classes).to(known.device) / max(1, len(t)) for t in (known, y))
    if not len(y):
        return frequent, torch.zeros_like(own, dtype=torch.bool)
    unseen = (frequent > 0) & (own == 0)
    expected = torch.where(frequent == 0, own, frequent).masked_fill(unseen, 0.0)
    return (expected / expected.sum() if (expected != frequent).any() else frequent), unseen


def coverage_of(known: Sequence[Sequence[str]], items: int) -> float:
    """For which part of M OOM items the class frequencies of labelled IM items hold, ids [N_k] of each modality: N / M,
    1 at most. Those of few items are too uncertain to bend the names of many."""
    return min(1.0, len(set().union(*known)) / max(1, items))


@dataclass
class Start:
    """What stage 2's learner starts from: rows (L,) of the inputs with labels y (L,), perhaps a teacher's posteriors
    (L, C), and the labelled ids, the ids held out and their rows, pairs {modality: [places (P,) among the labelled,
    items of the bank (P,)]}, the modalities whose pairs are drawn by class, and how clusters got their names."""

    rows: Tensor
    y: Tensor
    pairs: dict[str, list[Tensor]]
    naming: dict[str, Any]
    teacher: Tensor | None = None
    labelled: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    rows_held: Tensor | None = None
    by_class: list[str] = field(default_factory=list)

    def draw(self, steps: int, batch: int, generator: torch.Generator) -> Iterator[tuple[Tensor, ...]]:
        """`steps` random batches (batch,) for loader.steps, of labelled items alone."""
        for _ in range(steps):
            i = torch.randint(len(self.rows), (batch,), generator=generator)
            yield i, self.y[i], i[:0], self.rows[i], self.rows[:0]


def few(
    args: Namespace, oom: dict[str, Any], train: Tensor, known: dict[str, "Known"], generator: torch.Generator
) -> Start:
    """Setting semi: the Start in which a class-balanced share of the OOM items, rows `train` (M,), keeps label and
    pair; known {modality: z (N, d_k), y, ids, head}: the IM side, whose heads are the teacher on the pairs."""
    ids_of = lambda rows: [oom["ids"][r] for r in rows.tolist()]
    labels, in_im = oom["labels"][train], [set(k.ids) for k in known.values()]
    shown = torch.tensor([[i in ids for ids in in_im] for i in ids_of(train)])  # (M, K): has a pair
    has_pairs = shown[labels >= 0].any(0)  # (K,)
    if args.labelled_ids:
        chosen = places_of(args.labelled_ids, ids_of(train), labels, args.oom)
    else:
        chosen = choose_labelled(labels, args.labels * len(train), args.per_class, generator, shown)
    rows, y, held, with_label = train[chosen], labels[chosen], train[:0], (labels >= 0).sum()
    if args.holdout or args.fold:
        aside = hold_out(y, args.holdout, args.fold, groups_of(oom, rows))
        rows, y, held = rows[~aside], y[~aside], rows[aside]
        print(f"  {len(held)} labelled items held out (--{'fold' if args.fold else 'holdout'})")
    of_class = torch.bincount(y, minlength=len(oom["class_names"]))
    print(f"  {len(rows)} labelled items, {of_class.min()}-{of_class.max()} per class, of {with_label} with a label")
    pairs, by_class = {}, []
    for (m, k), has in zip(known.items(), has_pairs.tolist()):
        drawn = args.pair_by_class and not has  # the data have none of it
        pairs[m] = find_pairs(ids_of(rows), y, k.ids, k.y, drawn, generator)
        if not len(pairs[m][0]):
            raise UserError(
                f"no labelled {args.oom} item has a pair in {m}; give {'' if has else '--pair-by-class, '}"
                f"more --labels, or leave {m} out with --im in stage 1"
            )
        by_class += [m] if drawn else []
        print(f"  {len(pairs[m][0])} pairs with {m}{', drawn within the class (--pair-by-class)' if drawn else ''}")
    teacher = torch.zeros(len(rows), len(oom["class_names"]), device=args.device)  # mean of p(y | x_im)
    for m, (places, items_im) in pairs.items():
        teacher[places] += known[m].head(known[m].z[items_im]).softmax(-1)
    return Start(
        rows,
        y,
        {m: list(p) for m, p in pairs.items()},
        {},
        torch.nn.functional.normalize(teacher, p=1, dim=-1),
        ids_of(rows),
        ids_of(held),
        held,
        by_class,
    )
