"""What the baselines of stage 3 learn from unlabelled readings, and the flags of it. No files, no printing.

x (B, …) and lengths (B,) or None are a batch as `augment.batch` gives it, `kind` says how it is augmented.
"""
import copy

import torch
import torch.nn.functional as F

from cox_oom.augment import augment
from cox_oom.run import number

UNLABELLED = ("entmin", "moco", "ssl", "fixmatch")          # the baselines that learn from them


def add_flags(p):
    p.add_argument("--w-entropy", type=number(float, 0), default=0.3, help="entmin, moco: weight of the entropy")
    p.add_argument("--threshold", type=number(float, 0, 1), default=0.95, help="fixmatch: least confidence of a pseudo-label")
    p.add_argument("--noise", type=number(float, 0), default=0.3, help="ssl: standard deviation of the Gaussian noise on the input")
    p.add_argument("--w-ssl", type=number(float, 0), default=1.0, help="ssl: weight of the consistency")
    p.add_argument("--queue", type=number(int, 1), default=2048, help="moco: negatives")
    p.add_argument("--momentum", type=number(float, 0, 1), default=0.99, help="moco: of the key encoder")
    p.add_argument("--temperature", type=number(float, 0, ends="(]"), default=0.1, help="moco: of the contrastive loss")


def terms(args, learner, head, moco, kind, x, lengths, *, labelled):
    """The terms {name: loss} of --method on a batch of unlabelled items; `labelled`: is there any label (entropy sharpens what
    labels have begun)."""
    found = {}
    if args.method in ("entmin", "moco") and labelled:
        found["entropy"] = args.w_entropy * entropy(head(learner(*augment(kind, x, lengths))).float())
    if args.method == "moco":
        found["contrast"] = moco.loss(learner, kind, x, lengths)
    elif args.method == "ssl":
        found["consistency"] = args.w_ssl * consistency(learner, head, kind, x, lengths, args.noise)
    elif args.method == "fixmatch":
        found["pseudo"] = confident(learner, head, kind, x, lengths, args.threshold)
    return found


class MomentumContrast(torch.nn.Module):
    """MoCo (He et al., CVPR 2020): two views of an item against `queue` keys of earlier batches, from a slow copy."""

    def __init__(self, learner, *, queue=2048, momentum=0.99, temperature=0.1):
        super().__init__()
        self.project = torch.nn.Sequential(torch.nn.Linear(learner.width, 128), torch.nn.GELU(), torch.nn.Linear(128, 64))
        self.key_learner = copy.deepcopy(learner).requires_grad_(False)
        self.key_project = copy.deepcopy(self.project).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, 64), dim=-1))

    def loss(self, learner, kind, x, lengths):
        """InfoNCE of a batch; moves the slow copy and the queue on."""
        q = F.normalize(self.project(learner(*augment(kind, x, lengths, "strong"))).float(), dim=-1)
        with torch.no_grad():
            for slow, fast in zip([*self.key_learner.parameters(), *self.key_project.parameters()],
                                  [*learner.parameters(), *self.project.parameters()]):
                slow.lerp_(fast, 1 - self.momentum)
            k = F.normalize(self.key_project(self.key_learner(*augment(kind, x, lengths))).float(), dim=-1)
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / self.temperature
        self.queue = torch.cat([k, self.queue])[:len(self.queue)]
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))


def entropy(logits):
    """Mean entropy of the posteriors (EntMin), logits (B, C)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


def consistency(learner, head, kind, x, lengths, noise):
    """SSL: KL of the posterior under Gaussian noise (text: another augmentation) to the item's own, which gets no gradient."""
    x, lengths = augment(kind, x, lengths)
    noisy = augment(kind, x, lengths)[0] if kind == "text" else x + noise * torch.randn_like(x)
    p, q = head(learner(x, lengths)).float(), head(learner(noisy, lengths)).float()
    return F.kl_div(q.log_softmax(-1), p.detach().softmax(-1), reduction="batchmean")


def confident(learner, head, kind, x, lengths, threshold):
    """FixMatch (Sohn et al., NeurIPS 2020): the class of the weak view teaches the strong one where it is sure enough."""
    with torch.no_grad():
        sure, pseudo = head(learner(*augment(kind, x, lengths))).float().softmax(-1).max(-1)
    logits = head(learner(*augment(kind, x, lengths, "strong"))).float()
    return (F.cross_entropy(logits, pseudo, reduction="none") * (sure >= threshold)).mean()
