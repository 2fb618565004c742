"""Small encoders trained contrastively on the data set's own IM pairs, then frozen: `bind` trains one per IM modality
to a joint space, the default where no pretrained perceptor is; beside a pretrained one it trains those of the
modalities that this one lacks against its frozen features, as the paper does for touch (Section 4.1, Models).

The OOM modality takes no part, no label is used (but for --pair-by-class), and only rows of the training split are
seen.
"""

import math
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from cox_oom import optimizers
from cox_oom.augment import augment, batch
from cox_oom.files import UserError
from cox_oom.seed import split_rows
from cox_oom.watch import progress


def pair_table(inputs, pair_by_class, generator):
    """Which rows belong together: (names, table (n, K) int64 of row numbers, -1 where not observed, by_class names).

    A row of the table is one instance of the training split. A modality that shares no instance with another one gets,
    with `pair_by_class`, a random labelled item of the same class for each labelled instance; without it, or where no
    labelled item allows it: UserError.
    """
    names = sorted(inputs)
    at = {m: {inputs[m]["ids"][r]: r for r in split_rows(inputs[m], ("train",)).tolist()} for m in names}
    ids = sorted(set().union(*at.values()))
    table = torch.tensor([[at[m].get(i, -1) for m in names] for i in ids])
    if len(names) == 1:
        return names, table, []
    shared = (table >= 0) & ((table >= 0).sum(1, keepdim=True) >= 2)
    alone = [k for k in range(len(names)) if not shared[:, k].any()]
    if alone and not pair_by_class:
        raise UserError(
            f"modality {names[alone[0]]} shares no training row with another IM modality, so bind has no "
            f"pairs for it; fill rows of manifest.csv in both, or give --pair-by-class"
        )
    for k in alone:
        own = inputs[names[k]]
        if not (own["labels"][split_rows(own, ("train",))] >= 0).any():
            raise UserError(
                f"modality {names[k]} has no labelled training row, so --pair-by-class finds no pairs for "
                f"it; label some, or leave it out with --im"
            )
    label = torch.full((len(ids),), -1)
    for k, m in enumerate(names):
        observed = table[:, k] >= 0
        label[observed] = torch.maximum(label[observed], inputs[m]["labels"][table[observed, k]])
    for k in alone:
        own, labels = split_rows(inputs[names[k]], ("train",)), inputs[names[k]]["labels"]
        for c in label.unique().tolist():
            pool = own[labels[own] == c]
            need = ((label == c) & (table[:, k] < 0)).nonzero().squeeze(1)
            if c >= 0 and len(pool) and len(need):
                table[need, k] = pool[torch.randint(len(pool), (len(need),), generator=generator)]
    usable = (table >= 0) & ((table >= 0).sum(1, keepdim=True) >= 2)
    for k in alone:
        if not usable[:, k].any():
            raise UserError(
                f"modality {names[k]} shares no class with a labelled training row of another IM modality, "
                f"so --pair-by-class finds no pairs for it; label some, or leave it out with --im"
            )
    return names, table, [names[k] for k in alone]


def train(
    inputs,
    *,
    frozen=None,
    dim=64,
    width=64,
    epochs=40,
    batch_size=256,
    lr=1e-3,
    seed=0,
    device="cpu",
    pair_by_class=False,
):
    """Train one encoder per modality of `inputs` ({name: inputs file}) with InfoNCE over all pairs of modalities.

    frozen: {name: bank of features (n, dim)}: encoders are trained against these and each other. With a single IM
    modality and no bank, two augmented views of an item are its pair. Returns ({name: encoder}, [names paired by
    class]). Raises pair_table's UserErrors.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    frozen = frozen or {}
    files = {**inputs, **frozen}
    names, table, by_class = pair_table(files, pair_by_class, generator)
    encoders = {
        m: Encoder(
            kind=f["kind"], shape=tuple(f["x"].shape[1:]), lengths=f["lengths"] is not None, dim=dim, width=width
        ).to(device)
        for m, f in sorted(inputs.items())
    }
    log_scale = nn.Parameter(torch.tensor(math.log(10.0), device=device))
    parameters = [log_scale, *(p for e in encoders.values() for p in e.parameters())]
    optimizer = optimizers.AdamW(parameters, lr=lr, weight_decay=1e-3)
    table = usable_rows(table)
    batch_size = min(batch_size, max(32, len(table) // 8))  # some steps an epoch for a small folder, too
    steps = max(1, len(table) // batch_size)
    warm = 0.2 if epochs * steps == 10 else 0.1  # torch divides by zero where the warm-up is exactly one step
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(1, epochs * steps), pct_start=warm)
    pairs = modality_pairs(names, frozen)
    progress = tqdm(total=epochs * steps, desc=f"bind {'+'.join(sorted(inputs))}", mininterval=1, disable=None)
    for _ in range(epochs):
        if by_class:
            table = usable_rows(pair_table(files, True, generator)[1])
        order = torch.randperm(len(table), generator=generator)
        for chunk in order.chunk(steps):
            place, z, again = encode_rows(table[chunk], names, inputs, frozen, encoders, device)
            loss = pair_loss(pairs, place, z, again, log_scale)
            progress.update()
            if loss is not None:
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            schedule.step()
    progress.close()
    return {m: e.eval().requires_grad_(False) for m, e in encoders.items()}, by_class


def usable_rows(table):
    """The rows of a pair table (n, K) that at least two modalities have; with K = 1, that the one has."""
    return table[(table >= 0).sum(1) >= min(2, table.shape[1])]


def modality_pairs(names, frozen):
    """[(a, b)] of the modalities to be compared, not both frozen; a single one with itself."""
    pairs = [(names[0], names[0])] if len(names) == 1 else combinations(names, 2)
    return [(a, b) for a, b in pairs if not (a in frozen and b in frozen)]


def encode_rows(table, names, inputs, frozen, encoders, device):
    """(place, z, again), each {modality: ...}, of B rows of the pair table (B, K), for the modalities that they have.

    place (B,): which row of z it is, -1 where the modality is not observed. z (b, d): unit rows, of augmented items or
    frozen. again (b, d): those of a second, stronger augmentation where there is one modality alone.
    """
    place, z, again = {}, {}, {}
    for k, m in enumerate(names):
        observed = (table[:, k] >= 0).nonzero().squeeze(1)
        if not len(observed):
            continue
        place[m] = torch.full((len(table),), -1).scatter_(0, observed, torch.arange(len(observed)))
        if m in frozen:
            z[m] = frozen[m]["features"][table[observed, k]].to(device)
            continue
        x, lengths = batch(inputs[m], table[observed, k], device)
        z[m] = encoders[m](*augment(inputs[m]["kind"], x, lengths))
        if len(names) == 1:
            again[m] = encoders[m](*augment(inputs[m]["kind"], x, lengths, "strong"))
    return place, z, again


def pair_loss(pairs, place, z, again, log_scale):
    """Mean InfoNCE over the pairs of modalities that share at least two rows; None where none does.

    place, z, again: what encode_rows gives. log_scale: scalar, the log of the logits' scale, which is at most 100.
    """
    losses = []
    for a, b in pairs:
        if a not in z or b not in z:
            continue
        both = ((place[a] >= 0) & (place[b] >= 0)).nonzero().squeeze(1)
        if len(both) >= 2:
            zb = again[b] if a == b else z[b]
            losses.append(info_nce(z[a][place[a][both]], zb[place[b][both]], log_scale.exp().clamp(max=100)))
    return torch.stack(losses).mean() if losses else None


class Encoder(nn.Module):
    """x (B, …) normalised (text: byte ids), lengths (B,) or None -> unit rows (B, dim) of the joint space.

    Images, clips and series: 3-wide convolutions of stride 2 until no side exceeds 4, group-normalised; what is left is
    flattened (fixed shapes) or pooled over the valid steps (varying lengths). Series of one fixed length of at most
    2,048 values (feature vectors, binned sensors): an MLP. Text: bytes, two convolutions, maximum over the sentence.
    """

    def __init__(self, *, kind, shape, lengths, dim=64, width=64):
        super().__init__()
        self.kind, self.pooled, layers = kind, lengths, []
        if kind == "text":
            self.embed = nn.Embedding(256, width, padding_idx=0)
            layers = [nn.Conv1d(width, width, 5, padding=2), nn.GELU(), nn.Conv1d(width, 2 * width, 5, padding=2)]
            flat = 2 * width
        elif kind == "series" and not lengths and math.prod(shape) <= 2048:
            flat = math.prod(shape)
        else:
            conv: Any = {"series": nn.Conv1d, "image": nn.Conv2d, "video": nn.Conv3d}[kind]
            channels, *size = shape
            while max(size) > 4 and len(layers) < 18:
                wide = width if layers else width // 2
                stride = [2 if s > 4 else 1 for s in size]
                layers += [conv(channels, wide, 3, stride, 1), nn.GroupNorm(4, wide), nn.GELU()]
                channels, size = wide, [math.ceil(s / t) for s, t in zip(size, stride)]
            flat = 2 * channels if lengths else channels * math.prod(size)
        self.convolve = nn.Sequential(*layers)
        self.project = nn.Sequential(nn.Linear(flat, 2 * width), nn.GELU(), nn.Linear(2 * width, dim))

    def forward(self, x, lengths=None):
        if self.kind == "text":
            t = self.convolve(self.embed(x.long()).transpose(1, 2))  # (B, 2·width, T)
            t = t.masked_fill((x == 0)[:, None], -1e4).amax(-1)
        else:
            t = self.convolve(x)
            if self.pooled:  # (B, width, T')
                steps = x.shape[-1] / t.shape[-1]
                lengths = torch.full((len(x),), x.shape[-1], device=x.device) if lengths is None else lengths
                valid = (torch.arange(t.shape[-1], device=x.device) * steps < lengths[:, None])[:, None]
                mean = (t * valid).sum(-1) / valid.sum(-1).clamp(min=1)
                t = torch.cat([mean, t.masked_fill(~valid, -1e4).amax(-1)], 1)
        return F.normalize(self.project(t.flatten(1)), dim=-1)


@torch.no_grad()
def features(encoder, file, *, device="cpu", batch_size=512):
    """The bank of one modality: unit rows (n, dim) float32 for all n rows of its inputs file, in their order."""
    rows = progress(torch.arange(len(file["ids"])).split(batch_size), "features of bind")
    return torch.cat([encoder(*batch(file, r, device)).float().cpu() for r in rows])


def info_nce(a, b, scale):
    """Symmetric InfoNCE of paired unit rows a, b (B, d) at logit scale `scale`."""
    logits = scale * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))
