"""Anchors of exploration (Section 3.2): which unlabelled readings teach the learner, and what the others learn from them.

No files, no arguments, no printing. Shapes: M unlabelled OOM items, N labelled IM items, K IM modalities, B a batch, C classes.
"""
import torch
import torch.nn.functional as F

import cox_ops
from cox_oom.connect import match_shares

EMERGENT = ("emergent", "emergent_im", "emergent_label")       # OOM items, their IM instances, their labels


@torch.no_grad()
def judge(z, head, heads, shares, gate):
    """Agreement on features z (M, d): mask (M,), label (M,) (-1: disagreement), confidence (M,), posteriors (K, M, C).

    The heads h*_k on mapped items judge; with `gate` the learner's head is one more of them. `shares` (C,) or None: every
    head is held to these class frequencies.
    """
    logits = torch.stack([h(z) for h in heads] + ([head(z).float()] if gate else []))
    if shares is not None:
        logits = logits + torch.stack([match_shares(t, shares) for t in logits])[:, None]
    mask, label, confidence = cox_ops.modality_agreement(logits)
    return mask, label, confidence, logits.softmax(-1)


def emergent(z, mapped, y_im, mask, label, count, named):
    """Eq. 15: the `count` items of z (M, d) that lie nearest to one IM item in all its mappings (K, N, d) become its pairs.

    Where the heads know class names (`named`) an item must have the class of its IM item, y_im (N,), or it leaves A; else
    the new pairs are the anchors and have their IM items' labels. Returns mask (M,), label (M,), {name of EMERGENT: (S,)}.
    """
    score, nearest = cox_ops.nearest_anchor(z, mapped)
    label_im = y_im[nearest]
    mask = mask & (label == label_im) if named else nearest >= 0
    best = surest(-score, count, mask)
    if not named:
        mask, label = torch.zeros_like(mask).index_fill_(0, best, True), label_im
    return mask, label, dict(zip(EMERGENT, (best, nearest[best], label_im[best])))


def surest(confidence, count, mask=None):
    """The (at most) `count` items of greatest confidence (M,) in the mask (M,)."""
    best = cox_ops.top_anchors(confidence, count, largest=True, mask=mask)
    return best[best >= 0]


def surest_classes(posteriors, count):
    """Anchors by class posteriors (M, C): mask (M,) of the `count` items surest of their class, class (M,) of every item."""
    confidence, label = posteriors.max(-1)
    return torch.zeros_like(label, dtype=torch.bool).index_fill_(0, surest(confidence, count), True), label


def statistics(logits, mask, label):
    """What Eq. 13 matches to, of the learner's logits (M, C): class_posteriors (C, C), the anchors' mean posterior by their
    class (NaN rows: no anchor), and mean_anchor_logp (C,)."""
    p = logits.softmax(-1).detach()
    of_class = F.one_hot(label.clamp(min=0), p.shape[1]).float() * mask[:, None]                       # (M, C)
    return {"class_posteriors": (of_class.T @ p) / of_class.sum(0)[:, None],
            "mean_anchor_logp": p.clamp(min=1e-12).log()[mask].mean(0)}


def losses(logits, sets, j, kl):
    """Eqs. 13-15 on a batch, logits (B, C) of the items j (B,): the anchors' labels on A, and what the rest is drawn to on D.

    kl: "expected", an item's own class posterior; "matched", the mean posterior of the anchors of the classes that its
    heads name; "literal", every anchor's posterior, as Eq. 13 is printed. The second is None where D or all anchors are missing.
    """
    a = sets["mask"][j]
    ce = F.cross_entropy(logits, sets["label"][j].clamp(min=0), reduction="none")
    agree, disagree = (ce * a).mean(), None
    if not a.all() and sets["mask"].any():
        if kl == "expected":
            disagree = F.cross_entropy(logits[~a], sets["posteriors"][:, j[~a]].mean(0))
        elif kl == "matched":
            disagree = kl_matched(logits[~a], matched_target(sets["posteriors"][:, j[~a]], sets["class_posteriors"]))
        else:
            disagree = kl_literal(logits[~a], sets["mean_anchor_logp"])
        disagree = (~a).float().mean() * disagree
    return agree, disagree


def matched_target(head_posteriors, class_posteriors, smooth=0.01):
    """The anchor posterior that a disagreement item is matched to, through the classes its heads name (Eqs. 13, 15).

    head_posteriors (K, B, C): h*_k(c | x_d); class_posteriors (C, C): row c is the mean posterior of the anchors of class
    c (NaN rows, classes without anchors, take no part). Returns (B, C): sum_c w_c row_c with w_c ∝ mean_k h*_k(c | x_d)
    on the named classes, smoothed by `smooth`; an item all of whose named classes lack anchors gets its heads' mean.
    """
    named = torch.zeros_like(head_posteriors[0]).scatter_(1, head_posteriors.argmax(-1).T, 1.0)          # (B, C)
    have = ~class_posteriors.isnan().any(-1)                                                             # (C,)
    mean = head_posteriors.mean(0)
    weight = mean * named * have
    total = weight.sum(-1, keepdim=True)
    target = (weight / total.clamp(min=1e-12)) @ class_posteriors.nan_to_num(0.0)
    target = torch.where(total > 1e-12, target, mean)
    return (1 - smooth) * target + smooth / target.shape[-1]


def kl_matched(logits, target):
    """Mean KL(h(x_d) ‖ target), gradient through h alone. logits, target (B, C)."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - target.clamp(min=1e-12).log())).sum(-1).mean()


def kl_literal(logits, mean_anchor_logp):
    """Eq. 13 as printed, every item to every anchor: mean over d and a of KL(p_d ‖ p_a). It separates, so that it costs
    (|D| + |A|)·C: mean_anchor_logp (C,) is the mean over all anchors of log p_a."""
    logp = logits.log_softmax(-1)
    return (logp.exp() * (logp - mean_anchor_logp)).sum(-1).mean()
