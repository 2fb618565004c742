"""Views of recordings that no label has bent: fixed lists of numbers, made of a batch.

Shapes: B items of a batch, F numbers of a view, T time steps.

Series have "plain" (the values, or their means over equal parts of time), "spectrum" (log power in frequency bands)
and "statistics"; images and clips the first two; text has "grams", counts of byte n-grams."""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 1024  # numbers of a view, about
BANDS, SIDE = 32, 16  # frequency bands of a series' channel; side of a small image
GRAMS = 2048  # counts of byte n-grams, hashed
# What a learner can look at in place of an item's values, by kind of input.
OF = {"series": ("spectrum", "statistics"), "image": ("spectrum",), "video": ("spectrum",), "text": ()}


def parts_of_time(x: Tensor, lengths: Tensor | None, parts: int) -> Tensor:
    """Means (B, channels, parts) of series (B, channels, T) over equal parts of their valid time."""
    if lengths is None:
        return F.adaptive_avg_pool1d(x, parts)
    return torch.cat([F.adaptive_avg_pool1d(one[None, :, : max(1, t)], parts) for one, t in zip(x, lengths.tolist())])


def series_view(name: str, x: Tensor, lengths: Tensor | None, steps: int) -> Tensor:
    """A view (B, F) of series (B, channels, T); `steps`: the T that every view is made for."""
    channels = x.shape[1]
    if name == "spectrum":
        power = torch.fft.rfft(x.double(), n=steps).abs().square()  # other runtimes' float32 transforms are less exact
        power = power / (steps if lengths is None else lengths[:, None, None])
        bands = max(1, min(BANDS, power.shape[2], MOST // channels))
        return F.adaptive_avg_pool1d((power + 1e-3).log().float(), bands).flatten(1)
    if lengths is None and channels * steps <= MOST:
        return x.flatten(1)
    means = parts_of_time(x, lengths, max(1, min(BANDS, steps, MOST // channels)))
    count = x.shape[2] if lengths is None else lengths[:, None]
    return torch.cat([means.flatten(1), (x.square().sum(2) / count).sqrt()], 1)


def image_view(name: str, x: Tensor) -> Tensor:
    """A view (B, F) of images (B, channels, H, W): small pixels, or log power of the grey image in bands."""
    if name == "spectrum":
        power = torch.fft.fftshift(torch.fft.rfft2(x.mean(1).double(), norm="ortho"), 1).abs().square()
        h, w = power.shape[1:]
        return F.adaptive_avg_pool2d((power + 1e-3).log().float(), (min(SIDE, h), min(SIDE // 2, w))).flatten(1)
    side = max(1, min(SIDE, int((MOST / x.shape[1]) ** 0.5)))
    return F.adaptive_avg_pool2d(x, (min(side, x.shape[2]), min(side, x.shape[3]))).flatten(1)


def statistics(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Of series (B, channels, T) each channel's mean over the valid time, log deviation and log step from one instant
    to the next, and the log length where lengths differ: (B, 3 channels + 1)."""
    count = torch.full((len(x), 1), x.shape[2], device=x.device) if lengths is None else lengths[:, None]
    valid = (torch.arange(x.shape[2], device=x.device) < count)[:, None]
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


def view_of(kind: str, name: str, x: Tensor, lengths: Tensor | None, steps: int) -> Tensor:
    """A view (B, F) of normalised items x (B, …) of a kind, lengths (B,) valid steps or None; `steps`: the T for which
    every view of a series is made."""
    if kind == "series":
        x = F.pad(x, (0, max(0, steps - x.shape[2])))[:, :, :steps]
        lengths = None if lengths is None else lengths.clamp(1, steps)
        return statistics(x, lengths) if name == "statistics" else series_view(name, x, lengths, steps)
    if kind == "text":
        return grams_view(x)
    return image_view(name, torch.cat([x.mean(2), x.std(2, correction=0)], 1) if kind == "video" else x)
