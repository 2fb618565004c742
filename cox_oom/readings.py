"""Which views of the recordings (cox_oom/views.py) COX's model of the readings stands on, and the learner looks at.

Shapes: R rows of an inputs file, B of them at once, F numbers of a view, T time steps, M training items."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cox_oom.augment import batch
from cox_oom.learner import Learner, ViewToken
from cox_oom.views import view_of
from cox_oom.watch import progress


def view(name: str, file: dict[str, Any], rows: Tensor, steps: int) -> Tensor:
    """A view (R, F) float32 of rows (R,) of an inputs file {kind, x, lengths, mean, std}, on the CPU."""
    if not len(rows):  # a data set may have no val rows
        return view(name, file, torch.zeros(1, dtype=torch.int64), steps)[:0]
    return torch.cat([view_of(file["kind"], name, *batch(file, r, "cpu"), steps) for r in rows.split(512)])


# ------------------------------------------------------------------------------------------- the model's readings


def standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """(mean (F,), scale (F,)) that standardise a view x (R, F): it then counts as much as another one, however many
    numbers it has; what is constant counts nothing."""
    deviation = x.std(0, correction=0)
    return x.mean(0), torch.where(deviation > 1e-6, deviation, 1e6) * len(deviation) ** 0.5


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


def coarse_and_fine(raw: Tensor, learned: Tensor, p: int, q: int = 20) -> list[Tensor]:
    """Views [(M, d)] of items for `class_posteriors`: the first of their whitened components, raw (M, 2p) beside
    learned (M, 2q), p and q of them but for half or twice as many of one. Nobody knows how many tell most; the mean
    over them does well."""
    return [torch.cat([raw[:, :a], learned[:, :b]], 1) for a, b in ((p // 2, q), (p, q // 2), (p, 2 * q), (2 * p, q))]


# ---------------------------------------------------------------------------------------------- a choice of views

SETS = {  # by kind of input, what the model of the readings may stand on; the first is the usual one
    "series": (
        ("plain",),
        ("spectrum",),
        ("plain", "spectrum"),
        ("plain", "statistics"),
        ("spectrum", "statistics"),
        ("plain", "spectrum", "statistics"),
    ),
    "text": (("plain",),),
}
IMAGES = (("plain",), ("spectrum",), ("plain", "spectrum"))
SURE = 3  # standard errors by which another set must be above the plain view: several are tried, labels are few
LEAST = 8  # labels, without which nothing is chosen
SAMPLE = 2000  # items by which a choice is made, all labelled ones among them


def side_by_side(parts: Sequence[Tensor]) -> Tensor:
    """Views [(M, F_k)] as one (M, F): each with the same variance in all, so that none outweighs; one alone as it
    is."""
    if len(parts) == 1:
        return parts[0]
    centred = [x - x.mean(0) for x in parts]
    return torch.cat([x / x.square().sum(1).mean().sqrt().clamp(min=1e-12) for x in centred], 1)


def vectors(name: str, file: dict[str, Any], rows: Tensor) -> Tensor:
    """A view (R, F) of rows (R,) for the model of the readings; its statistics standardised."""
    if name == "plain":
        return plain_vectors(file, rows)
    x = view(name, file, rows, file["x"].shape[-1])
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6) if name == "statistics" else x


def choose(file: dict[str, Any], rows: Tensor, y: Tensor, judge: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """Which views fit the recordings of an inputs file, rows (M,) with labels y (M,), -1 where unknown: {"chosen"
    [names], "likelihood": {names: mean of judge's}, "better" and "error": by how much the chosen ones are above plain}.

    Taken is the set under which judge(x (n, F), places (n,)), the log-likelihood of each held-out label of these items,
    is largest; the plain view where no set is above it by three standard errors."""
    sets, known = SETS.get(file["kind"], IMAGES), (y >= 0).nonzero().squeeze(1)
    facts: dict[str, Any] = {"chosen": list(sets[0]), "likelihood": {}, "better": 0.0, "error": 0.0}
    if len(sets) == 1 or len(known) < LEAST:
        return facts
    others = (y < 0).nonzero().squeeze(1)
    others = others[:: max(1, -(-len(others) // max(1, SAMPLE - len(known))))]
    some = torch.cat([known, others]).sort().values
    parts = {n: vectors(n, file, rows[some]) for n in dict.fromkeys(n for names in sets for n in names)}
    each = {names: judge(side_by_side([parts[n] for n in names]), some) for names in sets}
    facts["likelihood"] = {"+".join(names): v.mean().item() for names, v in each.items()}
    for names, likelihood in each.items():
        gain = likelihood - each[sets[0]]
        mean, error = gain.mean().item(), gain.std().item() / len(gain) ** 0.5
        if mean > max(facts["better"], SURE * error):
            facts |= {"chosen": list(names), "better": mean, "error": error}
    return facts


def raw_views(names: Sequence[str], file: dict[str, Any], rows: Tensor) -> Tensor:
    """Views (M, F) of rows (M,) side by side, for the model of the readings."""
    return side_by_side([vectors(n, file, rows) for n in names])


def standardise(learner: Learner, file: dict[str, Any], rows: Tensor) -> None:
    """Give a learner mean and deviation of the views that it looks at, from rows (M,) of an inputs file."""
    rows = rows[:: max(1, len(rows) // SAMPLE)]
    for name, token in learner.view_tokens.items():
        assert isinstance(token, ViewToken)  # says its type
        token.standardise(view(name, file, rows, learner.longest))


def words(facts: dict[str, Any]) -> str:
    """A choice of views in one line."""
    told = f"readings seen by their {' and '.join(facts['chosen'])} view"
    if facts["better"]:
        return f"{told}: {facts['better']:+.3f} ± {facts['error']:.3f} nat a held-out label above plain"
    return told
