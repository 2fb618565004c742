"""What stages 2 and 3 take their labels from. semi: the items that keep theirs, those held out, their pairs among the IM
items; unsup: IM heads in a random space, or class names for the readings. No files, no arguments, no printing.

Shapes: M OOM training items, L of them labelled, N IM items, C classes.
"""
import torch

from cox_oom import files


def choose_labelled(labels, count, per_class, generator, paired=None):
    """Positions (L,) of a class-balanced draw from labels (M,), -1: none. `count` in all, or `per_class` of each.

    Of each class the same number, one at least; what a class is short of, the larger ones give. Within a class those come
    first that more IM modalities have a pair of, paired (M, K) bool: pairs may be few. A modality whose pairs all lie
    elsewhere gets one in exchange for an item that no other modality needs.
    """
    order = torch.randperm(len(labels), generator=generator)
    if paired is not None:
        order = order[paired.sum(1)[order].argsort(descending=True, stable=True)]
    groups = [order[labels[order] == c] for c in labels[labels >= 0].unique().tolist()]
    quota = per_class or max(1, round(count / len(groups)))
    while not per_class and sum(min(len(g), quota + 1) for g in groups) <= count and quota < max(map(len, groups)):
        quota += 1
    drawn = [g[:quota].clone() for g in groups]
    for k in range(paired.shape[1] if paired is not None else 0):
        for g, own in zip(groups, drawn):
            spare, shown = g[quota:], paired[torch.cat(drawn)].sum(0)                          # (K,): pairs with each modality
            spare = spare[paired[spare, k]]
            if not shown[k] and len(spare):
                left = shown - paired[own].int() + paired[spare[0]].int()                      # (Q, K): with each given up for it
                free = ((left > 0) | (shown == 0)).all(1).nonzero()
                if len(free):
                    own[free[-1, 0]] = spare[0]
    return torch.cat(drawn).sort().values


def hold_out(labels, share):
    """Mask (L,) of the items held out of labels (L,): of each class the first share of its items, one at least and not
    all; of a class of one item none."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        of_class = (labels == c).nonzero().squeeze(1)
        held[of_class[:min(max(1, round(share * len(of_class))), len(of_class) - 1)]] = True
    return held


def training_rows(oom, labelled, held):
    """Rows of the OOM inputs that stage 3 trains on (M,), which of them are `labelled` (M,) bool, and those that its curve is
    validated on: with stage 2's --holdout the `held` items (ids), which are then not trained on; else the split val."""
    train, val = files.rows(oom, ("train",)), files.rows(oom, ("val",))
    among = lambda ids, rows: torch.tensor([oom["ids"][r] in ids for r in rows.tolist()], dtype=torch.bool)
    if held:
        aside = among(set(held), train)
        train, val = train[~aside], train[aside]
    return train, among(set(labelled), train), val[oom["labels"][val] >= 0]


def find_pairs(ids, labels, ids_im, y_im, draw, generator):
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


def class_frequencies(known, y, classes):
    """Frequencies (C,) of the classes among the IM side's labels `known` (N,), and which classes (C,) bool no labelled OOM item,
    y (L,), has though the IM side does: they are not expected of the sensor, 0. A class of y that the IM side lacks keeps its
    share of y. Without any y: the IM side's alone."""
    frequent, own = (torch.bincount(t, minlength=classes).to(known.device) / max(1, len(t)) for t in (known, y))
    if not len(y):
        return frequent, torch.zeros_like(own, dtype=torch.bool)
    unseen = (frequent > 0) & (own == 0)
    expected = torch.where(frequent == 0, own, frequent).masked_fill(unseen, 0.0)
    return (expected / expected.sum() if (expected != frequent).any() else frequent), unseen
