"""Anchors of exploration (Section 3.2, Eqs. 13-15): which recordings teach, and what the others learn from them.

Shapes: U unlabelled OOM items, N labelled IM items, K IM modalities, B a batch, C classes.
"""

from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cox_ops
from cox_oom.connect import Bridge
from cox_oom.heads import match_shares
from cox_oom.labels import Items
from cox_oom.nearest import nearest_anchor
from cox_oom.teacher import Teacher

if TYPE_CHECKING:
    from cox_oom.methods import Plan  # it imports this module

SHARE = 0.1  # of the OOM items: how many become emergent pairs (S), or anchors without labels (T)

# --------------------------------------------------------------------------------------------- agreement, choice


@torch.no_grad()
def judge(
    z: Tensor, heads: Sequence[tuple[Tensor, Tensor]], shares: Tensor | None, coverage: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Agreement of heads on features z (U, d): mask (U,), label (U,) (-1: disagreement), confidence (U,).

    heads [(weight (C, d), bias (C,))] of K linear classifiers; `shares` (C,) or None: every head is held to these class
    frequencies, for a part `coverage` of the items. Returns weight (K, C, d) and bias (K, C) of the heads so held, too.
    """
    weight, bias = (torch.stack(part) for part in zip(*heads))
    if shares is not None:
        bias = bias + torch.stack([match_shares(z @ w.T + b, shares, coverage) for w, b in zip(weight, bias)])
    return *cox_ops.heads_agreement(z, weight, bias), weight, bias


@torch.no_grad()
def posteriors_of(z: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Posteriors (K, U, C) of linear heads, weight (K, C, d) and bias (K, C), on features z (U, d)."""
    return (z @ weight.mT + bias[:, None]).softmax(-1)


def emergent_pairs(
    z: Tensor, mapped: Tensor, y_im: Tensor, mask: Tensor, label: Tensor, count: int, named: bool
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Eq. 15: the `count` items of z (U, d) that lie nearest to one IM item in all its mappings (K, N, d) become its
    pairs.

    Where the heads know class names (`named`) an item must have the class of its IM item, y_im (N,), or it leaves A;
    else the new pairs are the anchors and have their IM items' labels. Returns mask (U,), label (U,), {"item", "im",
    "label": (S,)}."""
    score, nearest = nearest_anchor(z, mapped)
    label_im = y_im[nearest]
    mask = mask & (label == label_im) if named else nearest >= 0
    best = surest(-score, count, mask)
    if not named:
        mask, label = torch.zeros_like(mask).index_fill_(0, best, True), label_im
    return mask, label, {"item": best, "im": nearest[best], "label": label_im[best]}


def surest(confidence: Tensor, count: int, mask: Tensor | None = None) -> Tensor:
    """The (at most) `count` items of greatest confidence (U,) in the mask (U,)."""
    best = cox_ops.top_anchors(confidence, count, largest=True, mask=mask)
    return best[best >= 0]


def surest_classes(posteriors: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Anchors by class posteriors (U, C): mask (U,) of the `count` items surest of their class, class (U,) of every
    item."""
    confidence, label = posteriors.max(-1)
    return torch.zeros_like(label, dtype=torch.bool).index_fill_(0, surest(confidence, count), True), label


def no_pairs(device: str = "cpu") -> dict[str, Tensor]:
    """Emergent pairs before the first choice: none."""
    return {k: torch.empty(0, dtype=torch.long, device=device) for k in ("item", "im", "label")}


@dataclass
class Anchors:
    """What one refresh chose among the U unlabelled items.

    agreement {agree, label, confidence, prediction: (U,)} on the CPU, as METHOD.pt keeps it (Fig. 6); mask (U,) of
    the anchors A, label (U,) of every item, posteriors (K, U, C) or (1, U, C); mean_anchor_logp (C,), the anchors' mean
    of the learner's log-posteriors; expected (U, p), the IM vectors that a teacher expects; emergent {item, im, label:
    (S,)}: places of items, their common IM items, labels."""

    agreement: dict[str, Tensor]
    mask: Tensor
    label: Tensor
    posteriors: Tensor | None = None
    mean_anchor_logp: Tensor | None = None
    expected: Tensor | None = None
    emergent: dict[str, Tensor] = field(default_factory=no_pairs)
    heads: tuple[Tensor, ...] = ()

    @cached_property
    def some(self) -> bool:
        """Whether there are anchors; a GPU is asked once."""
        return bool(self.mask.any())

    def __str__(self) -> str:
        return (
            f"{self.mask.float().mean():.1%} of the unlabelled are anchors, {len(self.emergent['item'])} emergent pairs"
        )

    def counts(self) -> dict[str, float]:
        """What the log says of them: how many anchors; the share of these on which all heads agree, and of all
        unlabelled items; how many emergent pairs."""
        agree, mask = self.agreement["agree"], self.mask.cpu()
        return {
            "anchors": int(mask.sum()),
            "anchors_agree": agree[mask].float().mean().item() if mask.any() else 0.0,
            "heads_agree": agree.float().mean().item(),
            "emergent_pairs": len(self.emergent["item"]),
        }


def agreement(z: Tensor, head: nn.Linear, bridge: Bridge, items: Items, args: Namespace) -> Anchors:
    """Anchors that say on which unlabelled items the modalities agree under the learner's features z (M, d): the heads
    h*_k on mapped items judge, and the learner's own."""
    z = z[items.unlabelled.to(z.device)]
    heads = [*(bridge.heads[m].folded() for m in bridge.names), (head.weight, head.bias)]
    mask, label, confidence, weight, bias = judge(z, heads, *shares_of(items, args))
    seen = {"agree": mask.cpu(), "label": label.cpu(), "confidence": confidence.cpu()}
    return Anchors({**seen, "prediction": head(z).argmax(1).cpu()}, mask, label, heads=(weight, bias))


def shares_of(items: Items, args: Namespace) -> tuple[Tensor | None, float]:
    """The class frequencies (C,) to which heads are held, None with --shares free, and their coverage."""
    return (items.frequencies.to(args.device) if args.shares == "known" else None), items.coverage


def choose(
    z: Tensor, head: nn.Linear, bridge: Bridge, teacher: Teacher | None, items: Items, args: Namespace, plan: "Plan"
) -> Anchors:
    """The Anchors under the learner's features z (M, d): as many as the heads and the nearest IM items agree on, those
    that the teacher is surest of; without a teacher those that the heads agree on (COX) or the learner's head is surest
    of (selftrain)."""
    chosen, unlabelled = agreement(z, head, bridge, items, args), items.unlabelled.to(z.device)
    z_all, z = z, z[unlabelled]
    if bridge.common and "emergent" not in plan.without:
        chosen.mask, chosen.label, pairs = emergent_pairs(
            z,
            bridge.common_mapped(),
            bridge.y_common,
            chosen.mask,
            chosen.label,
            max(1, round(SHARE * len(items.rows))),
            plan.named,
        )
        if args.method == "cox":
            chosen.emergent = {**pairs, "item": unlabelled[pairs["item"]]}
    if teacher:
        teacher.look(z_all)
        chosen.posteriors, chosen.expected = teacher.posteriors[None, unlabelled], teacher.expected[unlabelled]
    elif args.method == "selftrain":
        chosen.posteriors = posteriors_of(z, *judge(z, [(head.weight, head.bias)], *shares_of(items, args))[3:])
    else:
        chosen.posteriors = posteriors_of(z, *chosen.heads)
    if teacher or args.method == "selftrain":
        chosen.mask, chosen.label = surest_classes(chosen.posteriors[0], int(chosen.mask.sum()))
    chosen.mean_anchor_logp = head(z).detach().softmax(-1).clamp(min=1e-12).log()[chosen.mask].mean(0)
    return chosen


# ------------------------------------------------------------------------------------ losses on A and D (Eq. 13)


def losses(logits: Tensor, anchors: Anchors, j: Tensor, kl: str) -> tuple[Tensor, Tensor | None]:
    """Eqs. 13-15 on a batch, logits (B, C) of the items j (B,): the anchors' labels on A, and what the rest is drawn
    to on D.

    kl: "expected", an item's own class posterior, the mean over its heads where there are several; "literal", every
    anchor's posterior, as Eq. 13 is printed. The second is None where there are no anchors at all."""
    a = anchors.mask[j]
    agree, disagree = (F.cross_entropy(logits, anchors.label[j].clamp(min=0), reduction="none") * a).mean(), None
    if anchors.some:
        if kl == "expected":
            assert anchors.posteriors is not None  # as of the other part below: `choose` leaves both
            each = F.cross_entropy(logits, anchors.posteriors[:, j].mean(0), reduction="none")
        else:
            assert anchors.mean_anchor_logp is not None
            each = kl_literal(logits, anchors.mean_anchor_logp)
        disagree = (each * ~a).mean()  # a mask as weights: a GPU's host need not know how many there are
    return agree, disagree


def kl_literal(logits: Tensor, mean_anchor_logp: Tensor) -> Tensor:
    """Eq. 13 as printed, every item to every anchor: the mean over a of KL(p_d ‖ p_a), of each item (B,). It separates,
    so that it costs (|D| + |A|)·C: mean_anchor_logp (C,) is the mean over all anchors of log p_a."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - mean_anchor_logp)).sum(-1)
