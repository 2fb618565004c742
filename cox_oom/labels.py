"""What stages 2 and 3 take their labels from. semi: the items that keep theirs, those held out, their pairs among the IM
items; unsup: IM heads in a random space, or class names for the readings. No files, no arguments, no printing.

Shapes: M OOM training items, L of them labelled, N IM items, C classes.
"""
import torch
import torch.nn.functional as F

from cox_oom import files
from cox_oom.augment import batch
from cox_oom.naming import geometry, name_by_geometry, spectral, spread_names


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


def literal_space(z, d_im, seed):
    """The learner's features (M, d) in a bank's space (M, d_im) at Eq. 14's start: standardised, then mapped at random.

    The heads h_k know only their bank's space and nothing relates the two yet: a random orthogonal map serves.
    """
    z = (z - z.mean(0)) / z.std(0).clamp(min=1e-6)
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(max(z.shape[1], d_im), max(z.shape[1], d_im), generator=g))[0]
    mapped = z @ q[:z.shape[1], :d_im].to(z)
    return F.normalize(mapped, dim=-1)


def name_by_items(oom, rows, classes, per_class, generator):
    """A class for each of the OOM rows (M,) from the labels of `per_class` of them a class: (class (M,), how doubtful it is
    (M,), how it was found, that in words)."""
    x, y = batch(oom, rows, "cpu")[0], oom["labels"][rows]
    lacking = [oom["class_names"][c] for c in range(classes) if not (y == c).any()]
    if len(lacking) == classes:
        raise files.UserError("--name-with takes the names from labelled training items, and the sensor has none; label one of "
                             "each class and extract again")
    items = choose_labelled(y, 0, per_class, generator)
    label, confidence = spread_names(x, items, y[items], classes)
    said = f"names spread from {len(items)} labelled items ({per_class} per class) along the graph of the readings"
    said += f"; no item of {', '.join(lacking)} has a label, so that nothing can get this name" if lacking else ""
    return label, 1 - confidence, {"by": "items", "items": [oom["ids"][r] for r in rows[items].tolist()]}, said


def name_by_clusters(oom, rows, inputs, classes, seed):
    """The same without labels: spectral clusters, named by the classes' geometry in the IM modalities' inputs or banks {m: file};
    doubtful is what lies far from its cluster's centre."""
    if len(rows) < classes:
        raise files.UserError(f"--init spectral makes {classes} clusters, one for a class, and there are only {len(rows)} training "
                             f"items of the sensor; record more, or use --setting semi")
    x = batch(oom, rows, "cpu")[0]
    values = lambda file, r: batch(file, r, "cpu")[0] if "x" in file else file["features"][r]
    label, embedding, centroids = spectral(x, classes, seed=seed)
    distance = (embedding - centroids[label]).norm(dim=1)
    seen = {m: (r := files.rows(im, ("train",)))[im["labels"][r] >= 0] for m, im in inputs.items()}
    theirs = {m: geometry(values(inputs[m], r), inputs[m]["labels"][r], classes) for m, r in seen.items()}
    ours = geometry(x, label, classes)
    if ours.isnan().any():
        raise files.UserError(f"--init spectral: the {len(rows)} training items of the sensor do not fall into {classes} clusters, "
                             f"one for a class; record more, or give --name-with 1")
    known = torch.stack(list(theirs.values())).nanmean(0)                                  # over the modalities that show both
    if known.isnan().any():
        shown = set().union(*(set(inputs[m]["labels"][r].tolist()) for m, r in seen.items()))
        lacking = [oom["class_names"][c] for c in range(classes) if c not in shown]
        raise files.UserError(f"--init spectral names clusters by how the classes lie to each other in a known modality, and "
                             f"none shows {', '.join(lacking) or 'every two classes'} with a label; label some, or give "
                             f"--name-with 1")
    of_cluster, agreement, null = name_by_geometry(ours, known, seed=seed)
    p = (1 + (null >= agreement).sum().item()) / (1 + len(null))
    trust = "a weak sign at best" if p > 0.05 or agreement < 0.8 else "they may be right"
    said = (f"{classes} spectral clusters, named by the geometry of {len(inputs)} known modalities: correlation "
            f"{agreement:.2f}, shuffled geometry reaches {null.mean():.2f} (p = {p:.2f}); these names are {trust}")
    said += "" if trust == "they may be right" else ": expect chance. --name-with 1 takes the names from one label per class"
    return of_cluster[label], distance, {"by": "geometry", "agreement": float(agreement), "null": null, "p": p}, said
