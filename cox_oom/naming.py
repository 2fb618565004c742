"""The unsupervised start that gives names a chance: spectral clusters of the raw readings, named by class geometry, or the
names of a few labelled items carried along the readings' graph. No files, no arguments, no printing.
"""
import numpy as np
import torch

from cox_oom.files import optional

NAMING = "naming classes without labels"                                  # what needs scipy here


def graph(x, *, components=50, neighbours=10):
    """The normalised kNN graph of items x (M, ...), in the `components` leading principal components: scipy sparse (M, M),
    M x neighbours entries."""
    sparse = optional("scipy.sparse", NAMING)
    x = x.reshape(len(x), -1).float()
    x = x - x.mean(0)
    variance, axes = torch.linalg.eigh(x.T @ x / len(x)) if x.shape[1] <= 2000 else _wide(x, components)
    x = x @ axes[:, -min(components, x.shape[1]):]
    k = min(neighbours, len(x) - 1)
    near = torch.cat([torch.cdist(part, x).topk(k + 1, largest=False).indices for part in x.split(1024)]).numpy()
    rows = np.repeat(np.arange(len(x)), k + 1)
    joined = sparse.csr_matrix((np.ones(near.size), (rows, near.ravel())), shape=(len(x), len(x)))
    joined = 0.5 * (joined + joined.T)
    scale = sparse.diags(1 / np.sqrt(np.asarray(joined.sum(1)).ravel()))
    return (scale @ joined @ scale).tocsr()


def spectral(x, count, *, components=50, neighbours=10, seed=0):
    """`count` clusters of items x (M, ...): (cluster (M,) int64, embedding (M, count) float32, centroids (count, count)).

    k-means on the leading eigenvectors of the kNN graph's normalised adjacency, rows scaled to unit length (Ng et al.).
    """
    joined = graph(x, components=components, neighbours=neighbours)
    eigsh, kmeans2 = optional("scipy.sparse.linalg", NAMING).eigsh, optional("scipy.cluster.vq", NAMING).kmeans2
    rng = np.random.default_rng(seed)
    if count < len(x) - 1:
        start = rng.standard_normal(len(x))
        vectors = eigsh(joined, k=count, which="LA", v0=start)[1]
    else:
        vectors = np.linalg.eigh(joined.toarray())[1][:, -count:]
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    best = None
    for _ in range(10):                                                          # k-means from ten starts
        centroids, label = kmeans2(vectors, count, minit="++", seed=rng, missing="warn")
        spread = ((vectors - centroids[label]) ** 2).sum()
        best = (spread, label, centroids) if best is None or spread < best[0] else best
    return torch.from_numpy(best[1]).long(), torch.from_numpy(vectors).float(), torch.from_numpy(best[2]).float()


def _wide(x, components):
    _, s, v = torch.pca_lowrank(x, q=min(components, *x.shape), center=False, niter=4)
    return s.flip(0), v.flip(1)


def spread_names(x, items, labels, count, *, alpha=0.99, components=50, neighbours=10):
    """Class names carried from few labelled items (rows of x, labels (n,)) along the kNN graph of all items x (M, ...):
    (class (M,), confidence (M,) in 0...1). Label spreading (Zhou et al. 2004), every class given the same total mass; an
    item that no name reaches has confidence 0."""
    joined = graph(x, components=components, neighbours=neighbours)
    identity, cg = optional("scipy.sparse", NAMING).identity, optional("scipy.sparse.linalg", NAMING).cg
    start = np.zeros((len(x), count))
    start[items.numpy(), labels.numpy()] = 1.0
    system = identity(len(x)) - alpha * joined                       # symmetric, positive definite
    mass = np.stack([cg(system, column, rtol=1e-6)[0] for column in start.T], 1).clip(min=0)
    mass /= np.maximum(mass.sum(0), 1e-300)
    total = mass.sum(1)
    confidence = np.where(total > 0, mass.max(1) / np.maximum(total, 1e-300), 0.0)
    return torch.from_numpy(mass.argmax(1)).long(), torch.from_numpy(confidence).float()


def geometry(x, labels, count):
    """Distances (count, count) between the class means of x (N, ...), standardised off the diagonal; NaN for a class without
    items."""
    x = x.reshape(len(x), -1).float()
    means = torch.stack([x[labels == c].mean(0) for c in range(count)])
    d = torch.cdist(means, means)
    off = ~torch.eye(count, dtype=torch.bool)
    seen = d[off & ~d.isnan()]
    return ((d - seen.mean()) / seen.std(correction=0).clamp(min=1e-12)).masked_fill(~off, 0.0)


def name_by_geometry(ours, theirs, *, null=20, restarts=10, seed=0):
    """Naming of clusters by the distances among them: (class (count,) of each cluster, correlation, correlations (null,)).

    ours, theirs: geometries (count, count) of the clusters and of the classes. Quadratic assignment from `restarts`
    starts; the null is the best correlation that the same search finds when our distances are shuffled. A correlation
    that does not stand out from the null says that the names are a guess.
    """
    quadratic_assignment = optional("scipy.optimize", NAMING).quadratic_assignment
    rng = np.random.default_rng(seed)
    a, b = ours.double().numpy(), theirs.double().numpy()
    count = len(a)
    up = np.triu_indices(count, 1)

    def search(a):
        best = (-2.0, None)
        for _ in range(restarts):
            found = quadratic_assignment(a, b, options={"maximize": True, "P0": "randomized", "rng": rng})
            found = quadratic_assignment(a, b, method="2opt", options={
                "maximize": True, "rng": rng, "partial_guess": np.stack([np.arange(count), found.col_ind], 1)})
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
