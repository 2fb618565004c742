"""Soft correspondence (Eq. 15): which known items an unlabelled recording may come from.

Shapes: M OOM items, N labelled IM items, C classes, d and p dimensions of whitened vectors.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cox_ops
from cox_oom.augment import batch
from cox_oom.connect import Bridge
from cox_oom.heads import fit_head, match_shares, move_head
from cox_oom.labels import Items
from cox_oom.seed import Seed
from cox_oom.watch import progress


def plain_vectors(file: dict[str, Any], rows: Tensor, side: int = 16, steps: int = 64, most: int = 8192) -> Tensor:
    """Rows (R,) of an inputs file as vectors (R, p) that no label has bent: images and frames at most `side` x
    `side`, a series with lengths played over `steps` steps, one without averaged down to them where it has over
    `most` numbers, text as the logarithm of its counts of byte pairs (hashed to 512)."""
    out = []
    for r in progress(rows.split(1024), "plain vectors"):
        x, lengths = batch(file, r, "cpu")
        if file["kind"] == "text":
            pair = (x[:, :-1].long() * 257 + x[:, 1:].long()) % 512
            x = torch.zeros(len(x), 512).scatter_add_(1, pair, (x[:, 1:] > 0).float()).log1p()
        elif file["kind"] == "series" and lengths is not None:
            at = (torch.arange(steps) / steps * lengths[:, None]).long().clamp(max=x.shape[-1] - 1)
            x = x.gather(2, at[:, None].expand(-1, x.shape[1], -1))
        elif file["kind"] == "series" and x[0].numel() > most:
            x = F.adaptive_avg_pool1d(x, min(steps, x.shape[-1]))
        elif file["kind"] != "series" and max(x.shape[-2:]) > side:
            h, w = (min(side, s) for s in x.shape[-2:])
            x = F.adaptive_avg_pool2d(x.flatten(1, -3), (h, w))
        out.append(x.flatten(1))
    return torch.cat(out)


def principal(x: Tensor, components: int) -> tuple[Tensor, Tensor]:
    """Leading principal components of x (N, p): scores (N, <= components) with orthonormal columns, singular values;
    float64. Many rows of at most 2000 numbers go by the p x p Gram matrix: no float64 copy of them is made."""
    if x.shape[1] <= 2000 and (len(x) > 2000 or min(x.shape) > 1000):
        mean, gram = x.mean(0, dtype=torch.float64), x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
        for part in x.split(1024):
            part = part - mean
            gram.addmm_(part.T, part)
        values, axes = torch.linalg.eigh(gram)
        s = values.flip(0)[:components].clamp(min=0).sqrt()
        axes, u = axes.flip(1)[:, :components] / s.clamp(min=1e-300), mean.new_empty(len(x), len(s))
        for at, part in zip(u.split(1024), x.split(1024)):
            torch.mm(part - mean, axes, out=at)
    else:
        x = x.to(torch.float64, copy=True)
        x -= x.mean(0)
        if min(x.shape) <= 1000:
            u, s, _ = torch.linalg.svd(x, full_matrices=False)
        else:
            u, s, _ = torch.svd_lowrank(x, q=min(components, *x.shape) + 10, niter=4)
    keep = min(components, int((s > 1e-5 * s[0].clamp(min=1e-30)).sum()))
    return u[:, :keep], s[:keep]


def whiten(x: Tensor, components: int) -> Tensor:
    """Leading principal components (N, <= components) of x (N, p), each of unit variance."""
    return (principal(x, components)[0] * len(x) ** 0.5).float()


def shared_vectors(banks: Sequence[Tensor], components: int = 80, ridge: float = 0.1, most: int = 200) -> Tensor:
    """IM items as vectors (N, <= components) of what their modalities have in common: banks [(N, d_k)] of K modalities.

    MAXVAR generalised canonical correlation (Kettenring, Biometrika 1971): principal components of the whitened banks
    side by side, each bank by its `most` leading ones with a `ridge` of their mean variance. A component's variance,
    1 on the mean, rises with how many modalities show it: what is seen by all that are known is what a new one will
    most probably see."""
    parts = []
    for z in progress(banks, "shared vectors"):
        u, s = principal(z, most)
        parts.append(u * (s.square() / (s.square() + ridge * s.square().mean())).sqrt())
    u, s = principal(torch.cat(parts, 1), components)
    x = u * s.sqrt()
    return (x / x.square().mean().sqrt()).float()


def correspond(
    z: Tensor,
    y_z: Tensor,
    partner: Tensor,
    x: Tensor,
    y: Tensor,
    shares: Tensor,
    *,
    held: bool = True,
    rounds: int = 6,
    weight: float = 0.3,
    ridge: float = 200.0,
    offset: float = 0.25,
    floor: float = 0.3,
    prior: float = 2.0,
    freedom: float = 5.0,
    fit: int = 0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Class posteriors (M, C) and expected IM vectors (M, p) of OOM items z (M, d) by soft correspondence with
    labelled IM items x (N, p), y (N,).

    Eq. 15's emergent correspondence, made soft and alternated with the connection: an OOM item is generated by one of
    the IM items, z ~ t(x_i B + b + r_y, S), Student's t with `freedom` degrees of freedom, fitted as a Gaussian of
    unknown scale (Lange et al., JASA 1989): guesses at an item that is like none count little. The pairs (partner
    (M,): the IM item, -1 where none is known) give the first B, by ridge; then in turns every other OOM item is
    spread over the IM items by their posteriors, held to the class frequencies `shares` (C,) (not `held`: they are
    fitted as well), and B, the class offsets r (shrunk to 0 by `prior` items) and the noise S are fitted to all, an
    item that is in no pair with `weight` (Nigam et al., Machine Learning 2000: many guesses must not outvote the few
    pairs). y_z (M,): labels of OOM items, -1 where unknown; a labelled one is spread over its class alone. z and x
    whitened. fit: all rounds but the last take so many OOM and IM items at most, drawn with `seed` (0: all); pairs and
    labelled items are among them. Constant in its inputs: no gradient."""
    classes, d = len(shares), z.shape[1]
    paired, unpaired = (partner >= 0).nonzero().squeeze(1), (partner < 0).nonzero().squeeze(1)
    z_pair, x_mean = z[paired], x[partner[paired]].mean(0)
    every, x_every, y_every = unpaired, x - x_mean, y
    unpaired = unpaired[drawn(y_z[unpaired] >= 0, torch.zeros_like(unpaired), fit, seed)]
    items = drawn(torch.zeros_like(y, dtype=torch.bool).index_fill(0, partner[paired], True), y, fit, seed)
    weight, x, y = weight * max(1, len(every)) / max(1, len(unpaired)), x_every[items], y[items]
    at = torch.searchsorted(items, partner[paired])
    of_pair, of_class = (z.new_zeros(len(c), classes).scatter_(1, c[:, None], 1) for c in (y[at], y))
    b, eye = z_pair.mean(0), ridge * torch.eye(x.shape[1], device=x.device)
    gram = x[at].T @ x[at]
    weights = torch.linalg.solve(gram + eye, x[at].T @ (z_pair - b))
    residual = of_pair.T @ (z_pair - b - x[at] @ weights)
    offsets, noise = offset * residual / of_pair.sum(0)[:, None].clamp(min=1), torch.eye(d, device=z.device)
    bias = torch.zeros(classes, device=z.device)
    if held:
        bias[shares == 0] = -20.0  # never, from the first turn on
    bar = progress(None, "soft correspondences", (rounds - 1) * len(unpaired) + len(every))
    for _ in range(rounds - 1):
        # E step: where may every unpaired item come from
        posterior, _, use, total, scatter = spread(
            z[unpaired], y_z[unpaired], x, y, b + x @ weights + offsets[y], noise, bias, freedom
        )
        use, total, scatter = weight * use, weight * total, weight * scatter
        posterior = posterior[y_z[unpaired] < 0]
        if held:
            bias = bias + match_shares(posterior.clamp(min=1e-9).log(), shares)
        else:
            bias = (posterior.mean(0).clamp(min=1e-6) / of_class.mean(0).clamp(min=1e-6)).log()
        # M step: map B, class offsets r, noise S
        cross = x[at].T @ (z_pair - b - offsets[y[at]]) + x.T @ (total - use[:, None] * (b + offsets[y]))
        weights = torch.linalg.solve(gram + x.T @ (x * use[:, None]) + eye, cross)
        plain = b + x @ weights
        residual = of_pair.T @ (z_pair - plain[at]) + of_class.T @ (total - use[:, None] * plain)
        offsets = residual / (of_pair.sum(0) + of_class.T @ use + prior)[:, None]
        means = plain + offsets[y]
        residual, both = z_pair - means[at], total.T @ means
        noise = residual.T @ residual + scatter - both - both.T + means.T @ (means * use[:, None])
        noise = (1 - floor) * noise / (len(paired) + weight * len(unpaired))
        noise = noise + floor / (1 - floor) * noise.diagonal().mean() * torch.eye(d, device=z.device)
        bar.update(len(unpaired))
    means = b + x_every @ weights + offsets[y_every]
    posterior, expected = z.new_zeros(len(z), classes), z.new_empty(len(z), x.shape[1])
    posterior[paired], expected[paired] = of_pair, x[at]
    posterior[every], expected[every], *_ = spread(z[every], y_z[every], x_every, y_every, means, noise, bias, freedom)
    bar.update(len(every))
    bar.close()
    return posterior, expected + x_mean


def spread(
    z: Tensor, y_z: Tensor, x: Tensor, y: Tensor, means: Tensor, noise: Tensor, bias: Tensor, freedom: float
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """cox_ops.soft_correspondence of OOM items z (M, d) with IM items x (N, p) that are mapped to means (N, d), in the
    metric of `noise` (d, d): posterior (M, C), expected (M, p), use (N,), total (N, d), scatter (d, d)."""
    root = torch.linalg.cholesky(noise)
    white = torch.linalg.solve_triangular(root, torch.eye(len(root), device=z.device), upper=False).T
    found = cox_ops.soft_correspondence(z @ white, means @ white, x, y, bias, y_z, freedom=freedom)
    return found.posterior, found.expected, found.use, found.total @ root.T, root @ found.scatter @ root.T


def drawn(kept: Tensor, strata: Tensor, most: int, seed: int) -> Tensor:
    """Rows in ascending order: those `kept` (n,) and so many others that they are `most` (0: all), drawn with `seed`
    from each of the strata (n,) in proportion to what it has."""
    rows = torch.arange(len(kept), device=kept.device)
    room = most - int(kept.sum())
    if not most or most >= len(kept):
        return rows
    others = rows[~kept]
    others = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(seed)).to(rows.device)]
    others = others[strata[others].argsort(stable=True)]
    _, count = strata[others].unique_consecutive(return_counts=True)
    place = torch.arange(len(others), device=rows.device) - (count.cumsum(0) - count).repeat_interleave(count)
    turn = ((place + 0.5) / count.repeat_interleave(count)).argsort(stable=True)
    return torch.cat([rows[kept], others[turn[: max(room, 0)]]]).sort().values


def coarse_and_fine(raw: Tensor, learned: Tensor, p: int, q: int = 20) -> list[Tensor]:
    """Views [(M, d)] of items for `class_posteriors`: the first of their whitened components, raw (M, 2p) beside
    learned (M, 2q), p and q of them but for half or twice as many of one. Nobody knows how many tell most; the mean
    over them does well."""
    return [torch.cat([raw[:, :a], learned[:, :b]], 1) for a, b in ((p // 2, q), (p, q // 2), (p, 2 * q), (2 * p, q))]


@dataclass
class Source:
    """Where readings may come from, the arguments of `correspond`: partner (M,) of each OOM item, -1 where none is
    known; items x (N, p) of classes y (N,); the class frequencies `shares` (C,), to which they are held or (`held`
    False) not; how many readings and items it is fitted to (`fit`, 0: all), drawn with `seed`."""

    partner: Tensor
    x: Tensor
    y: Tensor
    shares: Tensor
    held: bool = True
    offset: float = 0.25
    fit: int = 0
    seed: int = 0


def class_posteriors(
    views: Sequence[Tensor], y_z: Tensor, source: Source, shares: Tensor | None, *, temper: float = 0.4, rounds: int = 6
) -> tuple[Tensor, Tensor]:
    """Class posteriors (M, C) for training by, and expected IM vectors (M, p): the mean (of the posteriors a
    geometric one) over `views` [(M, d)] of the same items, each by `correspond` with a Source; the posteriors held to
    the class frequencies `shares` (C,) (None: free), then tempered; a labelled item (y_z >= 0) has its label."""
    each = [correspond(z, y_z, **vars(source), rounds=rounds) for z in views]
    log_q: Any = sum(q.clamp(min=1e-6).log() for q, _ in each)  # sum may be the int 0, says its type
    logits: Tensor = log_q[y_z < 0] / len(each)
    logits = logits if shares is None else logits + match_shares(logits, shares)
    out = F.one_hot(y_z.clamp(min=0), logits.shape[1]).to(logits)
    out[y_z < 0] = (temper * logits).softmax(-1)
    expected: Any = sum(x for _, x in each)
    return out, expected / len(each)


def known_items(
    ids: list[str], y_z: Tensor, ids_im: list[str], banks: dict[str, Tensor], y: Tensor, shares: Tensor, least: int = 8
) -> tuple[Source | None, dict[str, Any]]:
    """The Source of the labelled IM items that all modalities show, ids_im [N], banks {modality: (N, d_k)}, y (N,),
    and their pairs among the labelled OOM items ids [M], y_z (M,), at the class frequencies `shares` (C,); and facts
    of it: how many `pairs`, the classes `lacking` on the IM side. None where there are fewer than `least` pairs:
    these show nothing of how modalities correspond.

    A class of labelled OOM items that no IM item has gets one like the mean of all partners, and its labelled items
    are paired with it: it is then told by its offset alone, as by `labels_alone`."""
    row = {i: r for r, i in enumerate(ids_im)}
    partner = torch.tensor([row.get(i, -1) for i in ids], device=y_z.device).where(y_z >= 0, -1)
    pairs = int((partner >= 0).sum())
    if pairs < least:
        return None, {"pairs": pairs, "least": least, "lacking": []}
    lacking = sorted({*y_z[y_z >= 0].tolist()} - {*y.tolist()})
    x = shared_vectors([*banks.values()])
    mean = x[partner[partner >= 0]].mean(0)
    for n, c in enumerate(lacking):
        partner = partner.masked_fill(y_z == c, len(x) + n)
    return Source(
        partner,
        torch.cat([x, mean.expand(len(lacking), -1)]),
        torch.cat([y, torch.tensor(lacking, dtype=torch.long, device=y.device)]),
        shares,
    ), {"pairs": pairs, "least": least, "lacking": lacking}


def labels_alone(y_z: Tensor, shares: Tensor) -> Source:
    """The Source without IM items, the control of known_items: classes of one spread from labels (M,) (-1: none) and
    readings, at the class frequencies `shares` (C,). The IM side's, as for COX: a gain over the control is then more
    than a prior."""
    classes = torch.arange(len(shares), device=y_z.device)
    return Source(y_z, torch.zeros(len(shares), 1, device=y_z.device), classes, shares, offset=1.0)


def held_out_gain(
    z: Tensor,
    y_z: Tensor,
    one: Source,
    other: Source,
    *,
    rounds: int = 6,
    folds: int = 4,
    tempers: Sequence[float] = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0),
) -> dict[str, Any]:
    """What the Source `one` tells of held-out labels beyond `other`: the mean `gain` in nats, its standard `error`,
    how many both get `right` (`right_alone`), and whether one can be `trusted`: not worse by two errors.

    A fold of the labelled items at a time loses label and partner; each's posteriors are tempered to their best
    likelihood, as they may be too sure. z (M, d) must not have been fitted to the labels. Both are looked at on the
    readings alone that `one` is fitted to."""
    rows = drawn(y_z >= 0, torch.zeros_like(y_z), one.fit, one.seed)
    z, y_z, one, other = z[rows], y_z[rows], *(replace(s, partner=s.partner[rows]) for s in (one, other))
    labelled = (y_z >= 0).nonzero().squeeze(1)
    y, fold = y_z[labelled], torch.empty_like(labelled)
    fold[torch.argsort(y, stable=True)] = torch.arange(len(y), device=y.device) % folds  # every class in all folds
    likelihood, right = [], []
    for source in (one, other):
        log_q = torch.empty(len(y), len(one.shares), device=z.device)
        for f in range(folds):
            hidden, kept, partner = labelled[fold == f], y_z.clone(), source.partner.clone()
            kept[hidden], partner[hidden] = -1, -1
            q, _ = correspond(z, kept, **vars(replace(source, partner=partner)), rounds=rounds)
            log_q[fold == f] = q[hidden].clamp(min=1e-6).log()
        right.append((log_q.argmax(1) == y).float().mean().item())
        likelihood.append(max(((t * log_q).log_softmax(1).gather(1, y[:, None])[:, 0] for t in tempers), key=torch.sum))
    each = likelihood[0] - likelihood[1]
    gain, error = each.mean().item(), each.std().item() / len(y) ** 0.5
    return {"gain": gain, "error": error, "right": right[0], "right_alone": right[1], "trusted": gain >= -2 * error}


# --------------------------------------------------------------------------------------------------- the teacher


class Teacher:
    """What names the readings for the learner: `posteriors` (M, C) and `expected` IM vectors (M, p) of all items, by
    a Source and two kinds of view, the raw readings (M, 2 `components`) and the learner's features."""

    def __init__(
        self,
        source: Source,
        raw: Tensor,
        components: int,
        y: Tensor,
        shares: Tensor | None,
        *,
        temper: float,
        rounds: int,
        cross: bool,
    ) -> None:
        self.source, self.raw, self.components, self.y, self.shares = source, raw, components, y, shares
        self.temper, self.rounds = temper, rounds
        self.width = source.x.shape[1] if cross else 0  # p; 0: there are no IM vectors to expect

    def look(self, z: Tensor) -> None:
        """Take in the learner's features z (M, d) as they are now."""
        views = coarse_and_fine(self.raw, whiten(z, 40), self.components)
        self.posteriors, self.expected = class_posteriors(
            views, self.y, self.source, self.shares, temper=self.temper, rounds=self.rounds
        )

    def refit(self, head: nn.Linear, z: Tensor, share: float) -> None:
        """Move the learner's head by `share` to the optimal classifier of the posteriors of all items, z (M, d)."""
        self.look(z)
        move_head(head, fit_head(z, self.posteriors, self.posteriors.shape[1], weight_decay=1e-2), share)


def teacher_of(
    seed: Seed, items: Items, bridge: Bridge, args: Namespace, trust: dict[str, Any] | None = None
) -> tuple[Teacher, dict[str, Any]]:
    """The Teacher of a run, and facts of it: {"trust": held_out_gain's, "fallback": why COX has no correspondences}.

    COX's is told by the IM items, where there are pairs enough and they do not do worse on held-out pairs than labels
    alone; else, and for selftrain, by labels alone. trust: what an earlier part of the same run found."""
    y = items.y.to(args.device)
    components = max(10, min(50, len(items.rows) // 20))
    raw = whiten(plain_vectors(seed.oom, items.rows), 2 * components).to(args.device)
    shares = items.frequencies.to(args.device)
    alone, source = labels_alone(y, shares), None
    facts: dict[str, Any] = {"trust": {}, "fallback": {}}
    if args.method == "cox" and bridge.common:
        source, found = known_items(items.ids, y, bridge.common, bridge.common_banks(), bridge.y_common, shares)
        for c in found["lacking"]:
            print(
                f"  no labelled item that all of {', '.join(bridge.names)} show is {seed.oom['class_names'][c]}: "
                f"this the labels alone tell"
            )
        if not source:
            facts["fallback"] = {
                "code": "few_pairs",
                "pairs": found["pairs"],
                "least": found["least"],
                "im": bridge.names,
            }
    for each in filter(None, (alone, source)):
        each.held, each.fit, each.seed = args.shares == "known", args.fit_items, args.seed
    if source:
        trust = facts["trust"] = trust or held_out_gain(raw[:, :components], y, source, alone, rounds=args.rounds)
        print(
            "  held-out pairs: correspondences name {right:.1%} of the raw readings, labels alone {right_alone:.1%}; "
            "gain {gain:+.3f} ± {error:.3f} nat".format(**trust)
        )
        if not trust["trusted"]:
            facts["fallback"] = {"code": "not_trusted"}
    cross = bool(facts["trust"].get("trusted"))
    return Teacher(
        source if cross and source else alone,
        raw,
        components,
        y,
        shares if args.shares == "known" else None,
        temper=args.temper,
        rounds=args.rounds,
        cross=cross,
    ), facts


def explain(fallback: dict[str, Any]) -> str:
    """A fallback in words: why COX goes without correspondences; "" where it has them."""
    return {
        "few_pairs": "{pairs} labelled items have a pair in all of {names}, {least} are needed: "
        "COX goes by labels and agreement",
        "not_trusted": "correspondences do worse on held-out pairs than labels alone: COX goes by labels and agreement",
        "none_common": "no instance is in all of {names}: agreement alone, without emergent correspondences",
        "": "",
    }[fallback.get("code", "")].format(**fallback, names=", ".join(fallback.get("im", ())))
