"""Rows of an inputs file as normalised batches, the augmentations that every method shares, the learner's features.

augment(kind, x, lengths, strength) -> (x, lengths): "weak" moves an item within what a sensor's user would still call
the same reading, "strong" beyond (for consistency and pseudo-label losses). Images are not flipped: a mirrored digit,
sign or scan is another thing. Only a series with `lengths` moves in time: binned sensors and feature vectors keep
their axis. Where the learner looks at its spectrum (`views`), it is not played faster or slower: that moves every
frequency, by which the class is told. Randomness comes from torch's global generator of x's device."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from cox_oom import ranks
from cox_oom.learner import MASKED_BYTE, Learner
from cox_oom.shards import take
from cox_oom.watch import progress


def batch(file: dict[str, Any], rows: Tensor, device: str) -> tuple[Tensor, Tensor | None]:
    """Rows (B,) of an inputs file -> (x (B, …) normalised float32, or bytes for text; lengths (B,) or None) on
    device."""
    lengths = file["lengths"][rows].to(device) if file.get("lengths") is not None else None
    scale = {} if file["kind"] == "text" else {k: file[k].to(device) for k in ("mean", "std")}
    return normalise(take(file["x"], rows).to(device), lengths, **scale), lengths


def normalise(x: Tensor, lengths: Tensor | None, mean: Tensor | None = None, std: Tensor | None = None) -> Tensor:
    """Raw x (B, …) in units of the training items' standard deviation; text, which has none, stays as it is."""
    if mean is None or std is None:
        return x
    x = (x.float() - mean) / std
    if lengths is not None:  # padding is zero after normalising, too
        x = x * (torch.arange(x.shape[-1], device=x.device) < lengths[:, None])[:, None, :]
    return x


def augment(
    kind: str,
    x: Tensor,
    lengths: Tensor | None = None,
    strength: str = "weak",
    views: Sequence[str] = (),
) -> tuple[Tensor, Tensor | None]:
    strong = strength == "strong"
    if kind == "text":
        return drop_words(x, 0.3 if strong else 0.1), lengths
    if kind == "series":
        return augment_series(x, lengths, strong, "spectrum" not in views)
    flat = x.flatten(1, 2) if kind == "video" else x  # one movement for all frames
    flat = affine(flat, strong)
    gain, shift = (0.3, 0.3) if strong else (0.1, 0.1)
    n, ones = len(x), (1,) * (x.dim() - 1)
    x = flat.view_as(x) * (1 + gain * noise(x, n, *ones)) + shift * noise(x, n, *ones)
    return (cutout(x) if strong else x), lengths


@torch.no_grad()
def embed(learner: Learner, file: dict[str, Any], rows: Tensor, device: str, views: int = 0) -> Tensor:
    """Features of rows (R,) of an inputs file: (1 + views, R, d), the plain items and `views` weakly augmented ones.
    Batches are shared out among the processes; one's augmentation is seeded by its place, and by torch's generator."""
    learner.eval()
    out, own = torch.zeros(1 + views, len(rows), learner.width, device=device), ranks.share(len(rows), 512)
    begin = int(torch.randint(2**62, ())) if views else 0
    for view, part in progress([(v, p) for v in range(1 + views) for p in own], "embed"):
        x, lengths = batch(file, rows[part], device)
        if view:
            reseed(begin, view, part.start)
            x, lengths = augment(file["kind"], x, lengths, views=learner.views)
        out[view, part] = learner(x, lengths).float()
    if views:
        reseed(begin)
    return ranks.gather(out)


def reseed(*key: int) -> None:
    """Seed torch's generators by numbers of what comes next, such as (seed, step, part)."""
    number = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> 1)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # torch.manual_seed would write down a stack for a GPU that is not in use
        torch.cuda.manual_seed_all(number)


@torch.no_grad()
def classify(
    learner: Learner, head: dict[str, Tensor], file: dict[str, Any], rows: Tensor, device: str
) -> tuple[Tensor, Tensor]:
    """Features z (R, d) and logits (R, C), on the CPU, of rows (R,) of an inputs file; head {"weight", "bias"}."""
    z = embed(learner, file, rows, device)[0].cpu()
    return z, z @ head["weight"].detach().cpu().T + head["bias"].detach().cpu()


def model_of(state: dict[str, Any], device: str) -> Callable[[dict[str, Any], Tensor], tuple[Tensor, Tensor]]:
    """classify(file, rows) by the learner and head in a connect.pt or METHOD.pt. Of a method without a learner logits
    are its own model's; features are the untrained learner's. Of an ensemble logits are the logarithm of its members'
    mean posterior; features are the first one's."""
    if "members" in state:
        models = [model_of({"arch": state["arch"], **member}, device) for member in state["members"]]

        def mean(file: dict[str, Any], rows: Tensor) -> tuple[Tensor, Tensor]:
            found = [model(file, rows) for model in models]
            logp = torch.stack([logits.log_softmax(-1) for _, logits in found])
            return found[0][0], logp.logsumexp(0) - math.log(len(models))

        return mean
    learner = Learner(**state["arch"]).to(device)
    learner.load_state_dict(state["learner"])
    if "classical" in state:
        from cox_oom import classical  # here, since it imports this module

        z = lambda file, rows: classify(learner, state["head"], file, rows, device)[0]
        return lambda file, rows: (z(file, rows), classical.logits(state["classical"], file, rows))
    return lambda file, rows: classify(learner, state["head"], file, rows, device)


def noise(like: Tensor, *shape: int) -> Tensor:
    """Uniform in -1…1."""
    return torch.rand(shape, device=like.device) * 2 - 1


def affine(x: Tensor, strong: bool) -> Tensor:
    """Rotation, scale, shear and shift of images (B, C, H, W), borders continued."""
    n = len(x)
    turn, scale, shear, move = (0.30, 0.25, 0.20, 0.25) if strong else (0.10, 0.10, 0.05, 0.15)
    a = turn * noise(x, n)
    s = 1 + scale * noise(x, n)
    h = shear * noise(x, n)
    cos, sin = torch.cos(a) * s, torch.sin(a) * s
    theta = torch.stack(
        [torch.stack([cos, -sin + h, move * noise(x, n)], 1), torch.stack([sin, cos, move * noise(x, n)], 1)], 1
    )
    with torch.autocast(x.device.type, enabled=False):  # in bfloat16 a pixel of 224 is lost in rounding
        grid = affine_grid(theta, x.shape[-2], x.shape[-1])
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def affine_grid(theta: Tensor, h: int, w: int) -> Tensor:
    """Where to sample images, (B, h, w, 2), by maps theta (B, 2, 3): torch's affine_grid, by one product for all
    items."""
    points = F.affine_grid(torch.eye(2, 3, device=theta.device)[None], [1, 1, h, w], align_corners=False)
    grid = torch.addmm(theta[..., 2:].flatten(0, 1), theta[..., :2].flatten(0, 1), points.view(-1, 2).T)
    return grid.view(len(theta), 2, -1).mT.reshape(len(theta), h, w, 2)


def cutout(x: Tensor, largest: float = 0.5) -> Tensor:
    """A rectangle of up to `largest` of each side set to zero, the mean after normalising; the same in all frames."""
    h, w = x.shape[-2:]

    def span(size: int) -> Tensor:
        half = torch.rand(len(x), 1, device=x.device) * largest / 2 * size
        centre = torch.rand(len(x), 1, device=x.device) * size
        at = torch.arange(size, device=x.device) + 0.5
        return (at - centre).abs() < half

    hole = span(h)[:, :, None] & span(w)[:, None, :]
    return x.masked_fill(hole.view(len(x), *(1,) * (x.dim() - 3), h, w), 0.0)


def augment_series(
    x: Tensor, lengths: Tensor | None, strong: bool, faster: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Gain and offset, a little noise; where the time axis is free (lengths given) another start, and speed if it may
    be `faster`; strong: spans of time and of many channels dropped."""
    n, c, t = x.shape
    if lengths is not None:
        speed, shift = (0.2, 0.15) if strong else (0.1, 0.08)
        x, lengths = replay(x, lengths, speed * faster, shift)
    amount = 0.2 if strong else 0.1
    x = x * (1 + amount * noise(x, n, 1, 1))
    x = x + amount * (noise(x, n, 1, 1) + 0.5 * noise(x, n, c, 1) + 0.5 * torch.randn_like(x))
    if strong:
        valid = (lengths if lengths is not None else torch.full((n,), t, device=x.device)).float()[:, None]
        x = x.masked_fill(span_mask(n, t, valid, 0.25, x.device)[:, None, :], 0.0)
        if c >= 8:
            full = torch.full((n, 1), float(c), device=x.device)
            x = x.masked_fill(span_mask(n, c, full, 0.2, x.device)[:, :, None], 0.0)
    if lengths is not None:
        x = x * (torch.arange(t, device=x.device) < lengths[:, None])[:, None, :]
    return x, lengths


def span_mask(n: int, size: int, valid: Tensor, largest: float, device: torch.device) -> Tensor:
    """(n, size) bool: one span of up to `largest` of the valid part."""
    width = torch.rand(n, 1, device=device) * largest * valid
    start = torch.rand(n, 1, device=device) * (valid - width)
    at = torch.arange(size, device=device) + 0.5
    return (at > start) & (at < start + width)


def replay(x: Tensor, lengths: Tensor, speed: float, shift: float) -> tuple[Tensor, Tensor]:
    """Series (B, C, T) played at 1 ± `speed`, starting up to `shift` of their length later or earlier."""
    n, c, t = x.shape
    rate = 1 + speed * noise(x, n, 1)
    start = shift * noise(x, n, 1) * lengths[:, None]
    at = torch.arange(t, device=x.device)[None] * rate + start  # (B, T) source positions
    low = at.floor().long()
    part = (at - low).unsqueeze(1)
    inside = ((at >= 0) & (at <= lengths[:, None] - 1)).unsqueeze(1)
    take = lambda i: x.gather(2, i.clamp(0, t - 1)[:, None].expand(n, c, t))
    last = ((lengths[:, None] - 1 - start) / rate).floor()[:, 0] + 1
    return (take(low) * (1 - part) + take(low + 1) * part) * inside, last.long().clamp(min=1, max=t)


def drop_words(x: Tensor, p: float) -> Tensor:
    """Whole words of text (B, T) replaced by the masked byte with probability p; padding stays."""
    word = (x == ord(" ")).long().cumsum(1)
    drop = torch.rand(len(x), int(word.max()) + 1, device=x.device).gather(1, word) < p
    return x.masked_fill(drop & (x != 0) & (x != ord(" ")), MASKED_BYTE)
