"""The OOM learner g: a Vision Transformer from scratch for images, videos, series and text.

Shapes: B batch, width features of the learner.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from cox_oom.views import OF, view_of

MASKED_BYTE = 1  # stands for a dropped byte of text; never part of real text


class Attention(nn.Module):
    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = rearrange(self.qkv(t), "b n (three h e) -> three b h n e", three=3, h=self.heads)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(rearrange(o, "b h n e -> b n (h e)"))


class Block(nn.Module):
    def __init__(self, *, width: int, heads: int, ratio: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width=width, heads=heads)
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, t: Tensor, mask: Tensor | None) -> Tensor:
        t = t + self.attention(self.norm1(t), mask)
        return t + self.mlp(self.norm2(t))


class Learner(nn.Module):
    """g, the OOM learner: a Vision Transformer from scratch; the defaults are ViT-T/16 (width 192, depth 12, 3 heads).

    kind   "image" (C,H,W): patches of `patch`²; "video" (C,F,H,W): tubelets of 2 frames; "series" (C,T): time slices of
           `slice` steps over all channels (spectrograms too: square patches lose 14 points); "text" (T,): byte tokens.
    shape  of one item, without the batch.
    views  where given, each of these views of an item (cox_oom/views.py) is a token, in place of the tokens above.
    forward(x, lengths=None): x (B, …) normalised floats (text: byte ids), lengths (B,) valid steps -> z (B, width), the
    mean of the valid tokens after a LayerNorm.
    """

    def __init__(
        self,
        *,
        kind: str,
        shape: Sequence[int],
        width: int = 192,
        depth: int = 12,
        heads: int = 0,
        patch: int = 16,
        slice: int = 0,
        views: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.kind, self.width, self.longest, self.views = kind, width, shape[-1], list(views)
        self.step: tuple[int, ...]
        self.embed: nn.Module
        if kind == "image":
            c, *size = shape
            self.step = (min(patch, size[0]), min(patch, size[1]))
            self.embed = nn.Conv2d(c, width, self.step, self.step)
        elif kind == "video":
            c, *size = shape
            self.step = (min(2, size[0]), min(patch, size[1]), min(patch, size[2]))
            self.embed = nn.Conv3d(c, width, self.step, self.step)
        elif kind == "series":
            c, *size = shape
            self.step = (slice or slice_steps(size[0]),)
            self.embed = nn.Conv1d(c, width, self.step, self.step)
        elif kind == "text":
            size, self.step = list(shape), (1,)
            first = torch.randn(256, width)  # nn.Embedding's own start, but see optimizers.py
            first[0].zero_()
            self.embed = nn.Embedding.from_pretrained(first, freeze=False, padding_idx=0)
        else:
            raise ValueError(f"kind {kind!r}: one of image, video, series, text")
        if set(views) - set(OF[kind]):
            raise ValueError(f"views {list(views)} of {kind}: there are {', '.join(OF[kind]) or 'none'}")
        pieces = math.prod(math.ceil(s / p) for s, p in zip(size, self.step))  # of an item
        self.position = nn.Parameter(torch.randn(1, pieces, width).mul_(0.02))  # in place: see optimizers.py
        none = torch.zeros(1, *shape), torch.full((1,), shape[-1])
        sizes = {v: view_of(kind, v, *none, self.longest).shape[1] for v in views}
        self.view_tokens = nn.ModuleDict({v: ViewToken(numbers, width) for v, numbers in sizes.items()})
        self.tokens = len(views) or pieces
        if views:
            del self.embed, self.position
        self.blocks = nn.ModuleList(Block(width=width, heads=heads or heads_of(width)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        t = self.glances(x, lengths) if self.views else self.pieces(x)  # (B, tokens, width)
        if lengths is None or self.views:
            for block in self.blocks:
                t = block(t, None)
            return self.norm(t).mean(1)
        starts = torch.arange(self.tokens, device=t.device) * self.step[0]
        valid = starts < lengths.clamp(min=1)[:, None]  # (B, tokens)
        for block in self.blocks:
            t = block(t, valid[:, None, None, :])
        return (self.norm(t) * valid[..., None]).sum(1) / valid.sum(1, keepdim=True)

    def pieces(self, x: Tensor) -> Tensor:
        """Tokens (B, tokens, width) of the items: patches, tubelets, slices or bytes in their order."""
        if self.kind == "text":
            return self.embed(x.long()) + self.position
        pad = [(-s) % p for s, p in zip(x.shape[2:], self.step)]  # to whole patches
        x = F.pad(x, [v for p in reversed(pad) for v in (0, p)]) if any(pad) else x
        return self.embed(x).flatten(2).transpose(1, 2) + self.position

    def glances(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """Tokens (B, views, width) of the items' views, which are made in float32."""
        with torch.autocast(x.device.type, enabled=False):
            seen = {v: view_of(self.kind, v, x.float(), lengths, self.longest) for v in self.views}
        return torch.cat([token(seen[v]) for v, token in self.view_tokens.items()], 1)


class ViewToken(nn.Module):
    """A view (B, F) of an item, standardised by `mean` and `scale` (F,), as one token (B, 1, width)."""

    mean: Tensor
    scale: Tensor

    def __init__(self, numbers: int, width: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(numbers))
        self.register_buffer("scale", torch.ones(numbers))
        self.linear = nn.Linear(numbers, width)

    def standardise(self, x: Tensor) -> None:
        """Take mean and deviation from a view (R, F) of training items."""
        self.mean.copy_(x.mean(0))
        self.scale.copy_(x.std(0, correction=0).clamp(min=1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((x - self.mean) / self.scale)[:, None]


def heads_of(width: int) -> int:
    """Attention heads of a learner: 64 features each, two at least, fewer where they do not divide the width."""
    return next(n for n in range(max(2, width // 64), 0, -1) if width % n == 0)


def slice_steps(steps: int, tokens: int = 32) -> int:
    """Steps of one time slice so that `steps` make at most `tokens` tokens."""
    return max(1, math.ceil(steps / tokens))


def new_learner(
    oom: dict[str, Any], views: Sequence[str], width: int, depth: int, patch: int, slice: int, device: str
) -> tuple[Learner, nn.Linear, dict[str, Any]]:
    """A Learner with random weights for an inputs file, its head, and what it is made from. It looks at the values of
    an item, or at those `views` that readings.choose found, where the plain one is not among them. A series of fixed
    length and at most 512 values, a feature vector or binned sensor, is one token where `slice` is 0."""
    shape = list(oom["x"].shape[1:])
    fixed = oom["kind"] == "series" and oom["lengths"] is None and math.prod(shape) <= 512
    arch = {"kind": oom["kind"], "shape": shape, "width": width, "depth": depth, "patch": patch}
    arch |= {"slice": slice or (shape[-1] if fixed else 0), "views": [] if "plain" in views else list(views)}
    learner = Learner(**arch).to(device)
    return learner, nn.Linear(width, len(oom["class_names"])).to(device), arch


def load_learner(arch: dict[str, Any], state: dict[str, Any], device: str) -> tuple[Learner, nn.Linear]:
    """The Learner and its head (a Linear to the classes) with the weights in state {"learner", "head"}, on a device."""
    learner = Learner(**arch).to(device)
    head = nn.Linear(learner.width, len(state["head"]["bias"])).to(device)
    learner.load_state_dict(state["learner"])
    head.load_state_dict(state["head"])
    return learner, head
