"""Views of the recordings that no label has bent: what `--method raw` is fitted to, and COX's model of the readings.

Shapes: R rows of an inputs file, B of them at once, F numbers of a view, T time steps, M training items.

A view is a fixed list of numbers of a recording. Series have "plain" (the values, or their means over equal parts of
time), "spectrum" (log power in frequency bands) and "statistics"; images and clips the first two; text has counts of
byte n-grams alone."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cox_oom.augment import batch
from cox_oom.watch import progress

MOST = 1024  # numbers of a view, about
BANDS, SIDE = 32, 16  # frequency bands of a series' channel; side of a small image
GRAMS = 2048  # counts of byte n-grams, hashed


def parts_of_time(x: Tensor, lengths: Tensor | None, parts: int) -> Tensor:
    """Means (B, channels, parts) of series (B, channels, T) over equal parts of their valid time."""
    if lengths is None:
        return F.adaptive_avg_pool1d(x, parts)
    return torch.cat([F.adaptive_avg_pool1d(one[None, :, : max(1, t)], parts) for one, t in zip(x, lengths.tolist())])


def series_view(name: str, x: Tensor, lengths: Tensor | None, steps: int) -> Tensor:
    """A view (B, F) of series (B, channels, T); `steps`: the T that every view is made for."""
    channels = x.shape[1]
    if name == "spectrum":
        power = torch.fft.rfft(x, n=steps).abs().square()
        power = power / (steps if lengths is None else lengths.clamp(min=1)[:, None, None])
        bands = max(1, min(BANDS, power.shape[2], MOST // channels))
        return F.adaptive_avg_pool1d((power + 1e-3).log(), bands).flatten(1)
    if lengths is None and channels * steps <= MOST:
        return x.flatten(1)
    means = parts_of_time(x, lengths, max(1, min(BANDS, steps, MOST // channels)))
    count = x.shape[2] if lengths is None else lengths.clamp(min=1)[:, None]
    return torch.cat([means.flatten(1), (x.square().sum(2) / count).sqrt()], 1)


def image_view(name: str, x: Tensor) -> Tensor:
    """A view (B, F) of images (B, channels, H, W): small pixels, or log power of the grey image in bands."""
    if name == "spectrum":
        power = torch.fft.fftshift(torch.fft.rfft2(x.mean(1), norm="ortho"), 1).abs().square()
        h, w = power.shape[1:]
        return F.adaptive_avg_pool2d((power + 1e-3).log(), (min(SIDE, h), min(SIDE // 2, w))).flatten(1)
    side = max(1, min(SIDE, int((MOST / x.shape[1]) ** 0.5)))
    return F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3]))).flatten(1)


def statistics(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Of series (B, channels, T) each channel's mean over the valid time, log deviation and log step from one instant
    to the next, and the log length where lengths differ: (B, 3 channels + 1)."""
    count = torch.full((len(x), 1), x.shape[2]) if lengths is None else lengths.clamp(min=1)[:, None]
    valid = (torch.arange(x.shape[2]) < count)[:, None]
    mean = (x * valid).sum(2) / count
    deviation = ((x - mean[:, :, None]).square() * valid).sum(2) / count
    step = (x.diff(dim=2).square() * valid[:, :, 1:]).sum(2) / count
    return torch.cat([mean, (deviation + 1e-3).log() / 2, (step + 1e-3).log() / 2, count.log()], 1)


def grams_view(x: Tensor) -> Tensor:
    """log(1 + counts) (B, GRAMS) of the 1-, 2- and 3-grams of bytes (B, T), hashed; 0 is padding."""
    x, counts = x.long(), torch.zeros(len(x), GRAMS)
    for n in (1, 2, 3):
        grams = x.unfold(1, n, 1) if x.shape[1] >= n else x[:, :0, None]
        at = (grams * torch.tensor([1, 257, 66047][:n])).sum(2).remainder(GRAMS - n).add(n)
        counts.scatter_add_(1, at, (grams > 0).all(2).float())
    return counts.log1p()


def view(name: str, file: dict[str, Any], rows: Tensor, steps: int) -> Tensor:
    """A view (R, F) float32 of rows (R,) of an inputs file {kind, x, lengths, mean, std}, on the CPU."""
    kind, out = file["kind"], []
    if not len(rows):  # a data set may have no val rows
        return view(name, file, torch.zeros(1, dtype=torch.int64), steps)[:0]
    for r in rows.split(512):
        x, lengths = batch(file, r, "cpu")
        if kind == "series":
            x = F.pad(x, (0, max(0, steps - x.shape[2])))[:, :, :steps]
            lengths = None if lengths is None else lengths.clamp(max=steps)
            out.append(statistics(x, lengths) if name == "statistics" else series_view(name, x, lengths, steps))
        elif kind == "text":
            out.append(grams_view(x))
        else:
            x = torch.cat([x.mean(2), x.std(2, correction=0)], 1) if kind == "video" else x
            out.append(image_view(name, x))
    return torch.cat(out)


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


def weigh(file: dict[str, Any], rows: Tensor, y: Tensor, judge: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Any]:
    """Which views fit the recordings, rows (M,) with labels y (M,), -1 where unknown: {"chosen" [names], "likelihood":
    {names: mean of judge's}, "better" and "error": by how much the chosen ones are above the plain view}.

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


def choose(
    file: dict[str, Any],
    rows: Tensor,
    y: Tensor,
    judge: Callable[[Tensor, Tensor], Tensor],
    earlier: dict[str, Any] | None = None,
) -> tuple[Tensor, dict[str, Any]]:
    """The views (M, F) of rows (M,) that fit the recordings, side by side, and weigh's facts. earlier: those of the
    same choice, which then is not made again."""
    facts = earlier or weigh(file, rows, y, judge)
    return side_by_side([vectors(n, file, rows) for n in facts["chosen"]]), facts


def words(facts: dict[str, Any]) -> str:
    """A choice of views in one line."""
    told = f"readings seen by their {' and '.join(facts['chosen'])} view"
    if facts["better"]:
        return f"{told}: {facts['better']:+.3f} ± {facts['error']:.3f} nat a held-out label above plain"
    return told
