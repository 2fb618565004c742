"""Where class names come from without labels.

By the IM heads in a random space (Eq. 14 as printed), by clusters of the raw readings that are named by class geometry,
or by a few labelled items whose names spread along the graph of the readings.
"""

import warnings
from argparse import Namespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import cox_ops
from cox_oom.anchors import SHARE, surest
from cox_oom.augment import batch, embed
from cox_oom.connect import Known
from cox_oom.files import UserError, optional
from cox_oom.labels import Start, choose_labelled
from cox_oom.learner import Learner
from cox_oom.seed import split_rows

NAMING = "naming classes without labels"  # what needs scipy here


def graph(x: Tensor, *, components: int = 50, neighbours: int = 10) -> Any:
    """The normalised kNN graph of items x (M, ...), in the `components` leading principal components: scipy sparse
    (M, M), M x neighbours entries."""
    sparse = optional("scipy.sparse", NAMING)
    x = x.reshape(len(x), -1).float()
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x)) if x.shape[1] <= 2000 else _wide(x, components)
    x = x @ axes[:, -min(components, x.shape[1]) :]
    k = min(neighbours, len(x) - 1)
    near = torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).indices for part in x.split(1024)]).numpy()
    rows = np.repeat(np.arange(len(x)), k + 1)
    joined = sparse.csr_matrix((np.ones(near.size), (rows, near.ravel())), shape=(len(x), len(x)))
    joined = 0.5 * (joined + joined.T)
    scale = sparse.diags(1 / np.sqrt(np.asarray(joined.sum(1)).ravel()))
    return (scale @ joined @ scale).tocsr()


def spectral(
    x: Tensor, count: int, *, components: int = 50, neighbours: int = 10, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """`count` clusters of items x (M, ...): (cluster (M,) int64, embedding (M, count) float32, centroids (count,
    count)).

    k-means on the leading eigenvectors of the kNN graph's normalised adjacency, rows scaled to unit length (Ng et al.).
    """
    joined = graph(x, components=components, neighbours=neighbours)
    linalg, kmeans2 = optional("scipy.sparse.linalg", NAMING), optional("scipy.cluster.vq", NAMING).kmeans2
    rng = np.random.default_rng(seed)
    parts = optional("scipy.sparse.csgraph", NAMING).connected_components(joined)[0]
    if parts == 1 and count < len(x) - 1:
        start = rng.standard_normal(len(x))
        vectors = linalg.eigsh(joined, k=count, which="LA", v0=start)[1]
    elif count <= len(x) // 5:  # each part has an eigenvalue 1, of which Lanczos' method from one start misses some
        with warnings.catch_warnings():  # it says where it stopped
            warnings.simplefilter("ignore")
            vectors = linalg.lobpcg(joined, rng.standard_normal((len(x), count)), maxiter=200, tol=1e-6)[1]
    else:
        vectors = np.linalg.eigh(joined.toarray())[1][:, -count:]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    best: Any = None
    for _ in range(10):  # k-means from ten starts
        centroids, label = kmeans2(vectors, count, minit="++", seed=rng, missing="warn")
        spread = ((vectors - centroids[label]) ** 2).sum()
        best = (spread, label, centroids) if best is None or spread < best[0] else best
    return torch.from_numpy(best[1]).long(), torch.from_numpy(vectors).float(), torch.from_numpy(best[2]).float()


def _wide(x: Tensor, components: int) -> tuple[Tensor, Tensor]:
    _, s, v = torch.pca_lowrank(x, q=min(components, *x.shape), center=False, niter=4)
    return s.flip(0), v.flip(1)


def spread_names(
    x: Tensor,
    items: Tensor,
    labels: Tensor,
    count: int,
    *,
    alpha: float = 0.99,
    components: int = 50,
    neighbours: int = 10,
) -> tuple[Tensor, Tensor]:
    """Class names carried from few labelled items (rows of x, labels (n,)) along the kNN graph of all items x (M,
    ...): (class (M,), confidence (M,) in 0...1). Label spreading (Zhou et al. 2004), every class given the same total
    mass; an item that no name reaches has confidence 0."""
    joined = graph(x, components=components, neighbours=neighbours)
    identity, cg = optional("scipy.sparse", NAMING).identity, optional("scipy.sparse.linalg", NAMING).cg
    start = np.zeros((len(x), count))
    start[items.numpy(), labels.numpy()] = 1.0
    system = identity(len(x)) - alpha * joined  # symmetric, positive definite
    mass = np.stack([cg(system, column, rtol=1e-6)[0] for column in start.T], 1).clip(min=0)
    mass /= np.maximum(mass.sum(0), 1e-300)
    total = mass.sum(1)
    confidence = np.where(total > 0, mass.max(1) / np.maximum(total, 1e-300), 0.0)
    return torch.from_numpy(mass.argmax(1)).long(), torch.from_numpy(confidence).float()


def geometry(x: Tensor, labels: Tensor, count: int) -> Tensor:
    """Distances (count, count) between the class means of x (N, ...), standardised off the diagonal; NaN for a class
    without items."""
    x = x.reshape(len(x), -1).float()
    means = torch.stack([x[labels == c].mean(0) for c in range(count)])
    d = torch.cdist(means, means)
    off = ~torch.eye(count, dtype=torch.bool)
    seen = d[off & ~d.isnan()]
    return ((d - seen.mean()) / seen.std(correction=0).clamp(min=1e-12)).masked_fill(~off, 0.0)


def name_by_geometry(
    ours: Tensor, theirs: Tensor, *, null: int = 20, restarts: int = 10, seed: int = 0
) -> tuple[Tensor, float, Tensor]:
    """Naming of clusters by the distances among them: (class (count,) of each cluster, correlation, correlations
    (null,)).

    ours, theirs: geometries (count, count) of the clusters and of the classes. Quadratic assignment from `restarts`
    starts; the null is the best correlation that the same search finds when our distances are shuffled. A correlation
    that does not stand out from the null says that the names are a guess.
    """
    quadratic_assignment = optional("scipy.optimize", NAMING).quadratic_assignment
    rng = np.random.default_rng(seed)
    a, b = ours.double().numpy(), theirs.double().numpy()
    count = len(a)
    up = np.triu_indices(count, 1)

    def search(a: np.ndarray) -> tuple[float, np.ndarray]:
        best: tuple[float, Any] = (-2.0, None)
        for _ in range(restarts):
            found = quadratic_assignment(a, b, options={"maximize": True, "P0": "randomized", "rng": rng})
            found = quadratic_assignment(
                a,
                b,
                method="2opt",
                options={"maximize": True, "rng": rng, "partial_guess": np.stack([np.arange(count), found.col_ind], 1)},
            )
            agreement = found.fun / max(2 * len(up[0]), 1)
            best = max(best, (agreement, found.col_ind), key=lambda f: f[0])
        return best

    agreement, names = search(a)
    shuffled = []
    for _ in range(null):
        other = np.zeros_like(a)
        other[up] = rng.permutation(a[up])
        shuffled.append(search(other + other.T)[0])
    return torch.from_numpy(names).long(), agreement, torch.tensor(shuffled)


def literal_space(z: Tensor, d_im: int, seed: int) -> Tensor:
    """The learner's features (M, d) in a bank's space (M, d_im) at Eq. 14's start: standardised, then mapped at random.

    The heads h_k know only their bank's space and nothing relates the two yet: a random orthogonal map serves.
    """
    z = (z - z.mean(0)) / z.std(0).clamp(min=1e-6)
    g = torch.Generator().manual_seed(seed)
    q = torch.linalg.qr(torch.randn(max(z.shape[1], d_im), max(z.shape[1], d_im), generator=g))[0]
    mapped = z @ q[: z.shape[1], :d_im].to(z)
    return F.normalize(mapped, dim=-1)


def name_by_items(
    oom: dict[str, Any], rows: Tensor, classes: int, per_class: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, dict[str, Any], str]:
    """A class for each of the OOM rows (M,) from the labels of `per_class` of them a class: (class (M,), how doubtful
    it is (M,), how it was found, that in words)."""
    x, y = batch(oom, rows, "cpu")[0], oom["labels"][rows]
    lacking = [oom["class_names"][c] for c in range(classes) if not (y == c).any()]
    if len(lacking) == classes:
        raise UserError(
            "--name-with takes the names from labelled training items, and the sensor has none; label one of "
            "each class and extract again"
        )
    items = choose_labelled(y, 0, per_class, generator)
    label, confidence = spread_names(x, items, y[items], classes)
    said = f"names spread from {len(items)} labelled items ({per_class} per class) along the graph of the readings"
    said += f"; no item of {', '.join(lacking)} has a label, so that nothing can get this name" if lacking else ""
    return label, 1 - confidence, {"by": "items", "items": [oom["ids"][r] for r in rows[items].tolist()]}, said


def name_by_clusters(
    oom: dict[str, Any], rows: Tensor, inputs: dict[str, dict[str, Any]], classes: int, seed: int
) -> tuple[Tensor, Tensor, dict[str, Any], str]:
    """The same without labels: spectral clusters, named by the classes' geometry in the IM modalities' inputs or
    banks {m: file}; doubtful is what lies far from its cluster's centre."""
    if len(rows) < classes:
        raise UserError(
            f"--init spectral makes {classes} clusters, one for a class, and there are only {len(rows)} training "
            f"items of the sensor; record more, or use --setting semi"
        )
    x = batch(oom, rows, "cpu")[0]
    values = lambda file, r: batch(file, r, "cpu")[0] if "x" in file else file["features"][r]
    label, embedding, centroids = spectral(x, classes, seed=seed)
    distance = (embedding - centroids[label]).norm(dim=1)
    seen = {m: (r := split_rows(im, ("train",)))[im["labels"][r] >= 0] for m, im in inputs.items()}
    theirs = {m: geometry(values(inputs[m], r), inputs[m]["labels"][r], classes) for m, r in seen.items()}
    ours = geometry(x, label, classes)
    if ours.isnan().any():
        raise UserError(
            f"--init spectral: the {len(rows)} training items of the sensor do not fall into {classes} clusters, "
            f"one for a class; record more, or give --name-with 1"
        )
    known = torch.stack(list(theirs.values())).nanmean(0)  # over the modalities that show both
    if known.isnan().any():
        shown = set().union(*(set(inputs[m]["labels"][r].tolist()) for m, r in seen.items()))
        lacking = [oom["class_names"][c] for c in range(classes) if c not in shown]
        raise UserError(
            f"--init spectral names clusters by how the classes lie to each other in a known modality, and "
            f"none shows {', '.join(lacking) or 'every two classes'} with a label; label some, or give "
            f"--name-with 1"
        )
    of_cluster, agreement, null = name_by_geometry(ours, known, seed=seed)
    p = (1 + (null >= agreement).sum().item()) / (1 + len(null))
    trust = "a weak sign at best" if p > 0.05 or agreement < 0.8 else "they may be right"
    said = (
        f"{classes} spectral clusters, named by the geometry of {len(inputs)} known modalities: correlation "
        f"{agreement:.2f}, shuffled geometry reaches {null.mean():.2f} (p = {p:.2f}); these names are {trust}"
    )
    said += (
        ""
        if trust == "they may be right"
        else ": expect chance. --name-with 1 takes the names from one label per class"
    )
    return of_cluster[label], distance, {"by": "geometry", "agreement": float(agreement), "null": null, "p": p}, said


def name_by_heads(
    args: Namespace, oom: dict[str, Any], rows: Tensor, known: dict[str, Known], learner: Learner
) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """The same as Eq. 14 is printed: the class on which the IM heads agree about a random learner's features;
    doubtful is what they are not confident of, and infinitely so what they do not agree on."""
    z = embed(learner, oom, rows, args.device)[0]  # (M, d)
    logits = torch.stack([k.head(literal_space(z, k.z.shape[1], args.seed)) for k in known.values()])
    mask, label, confidence = cox_ops.modality_agreement(logits)
    anchors = surest(confidence, max(1, round(SHARE * len(rows))), mask)
    if not len(anchors):
        raise UserError(
            f"the IM heads of {', '.join(known)} agree on no {args.oom} item, so there is no anchor; "
            f"try another --seed, or --setting semi"
        )
    print(
        f"  literal start: the IM heads agree on {mask.float().mean():.1%} of the items, {len(anchors)} anchors in "
        f"{label[anchors].unique().numel()} of {logits.shape[-1]} classes. A random network carries "
        f"no class names: expect chance"
    )
    return anchors, label, {}


def none(
    args: Namespace,
    oom: dict[str, Any],
    train: Tensor,
    known: dict[str, Known],
    learner: Learner,
    inputs: dict[str, dict[str, Any]],
    generator: torch.Generator,
) -> Start:
    """Setting unsup: the Start in which no OOM item, rows `train` (M,), has a label or a pair; it is warmed up on
    anchors whose classes --init and --name-with say. inputs {modality: inputs file, or bank of a pretrained
    perceptor}."""
    classes = len(oom["class_names"])
    if args.init == "literal":
        anchors, label, naming = name_by_heads(args, oom, train, known, learner)
    else:
        if args.name_with:
            label, doubt, naming, words = name_by_items(oom, train, classes, args.name_with, generator)
        else:
            label, doubt, naming, words = name_by_clusters(oom, train, inputs, classes, args.seed)
        print(f"  {words}")
        of_class = [(label == c).nonzero().squeeze(1) for c in range(classes)]
        anchors = torch.cat([i[doubt[i].argsort()[: (len(i) + 1) // 2]] for i in of_class])  # the surer half
    return Start(
        train[anchors.cpu()], label[anchors].cpu(), {m: [torch.arange(0), torch.arange(0)] for m in known}, naming
    )
