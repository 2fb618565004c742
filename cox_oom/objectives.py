"""What unlabelled items teach at a step: a function of (args, model, step) -> {name: loss} for each method, what the
learner is shown for it, and the modules that a method brings. `methods.METHODS` says which method has which."""

import copy
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cox_oom import anchors, ranks
from cox_oom.anchors import Anchors
from cox_oom.augment import augment
from cox_oom.learner import Learner


class Model(nn.Module):
    """What the optimizer moves and a checkpoint holds: the learner, its head, and perhaps a layer that predicts IM
    features (COX) and a method's own module."""

    def __init__(self, learner: Learner, head: nn.Linear, predict: nn.Linear | None = None, extra: Any = None) -> None:
        super().__init__()
        self.learner, self.head, self.predict, self.extra = learner, head, predict, extra

    def follow(self) -> None:
        """After a step: the method's own module follows the learner."""
        if hasattr(self.extra, "follow"):
            self.extra.follow(self.learner)


@dataclass
class Step:
    """What a method learns from at a step beside the labelled items, of a part of the batch: places j (B,) among the
    unlabelled ones, `at`, where these lie in the whole batch, their x (B, ...) and lengths as augment.batch gives
    them, the anchors; then features z (B, d) and logits (B, C) of the method's view. `labelled`: is there any label at
    all."""

    kind: str
    x: Tensor
    lengths: Tensor | None
    j: Tensor
    labelled: bool
    at: slice
    anchors: Anchors | None = None
    z: Any = None  # Tensors, once the learner has seen the view
    logits: Any = None
    views: Sequence[str] = ()  # that the learner looks at in place of the values

    def view(self, strength: str = "weak") -> "View":
        """The items as an augmentation shows them."""
        return augment(self.kind, self.x, self.lengths, strength, self.views)


View = tuple[Tensor, Tensor | None]  # x (B, ...) and lengths

# ------------------------------------------------------------- which view of the unlabelled items the learner sees


def weak(args: Namespace, step: Step) -> View | None:
    """The weak augmentation, for a term of posteriors: none where there is no label, which they would sharpen."""
    return step.view() if step.labelled else None


def strong(args: Namespace, step: Step) -> View | None:
    """The strong augmentation."""
    return step.view("strong")


def unseen(args: Namespace, step: Step) -> View | None:
    """Nothing: the method learns from other things."""
    return None


def noisy(args: Namespace, step: Step) -> View | None:
    """The weak augmentation, which takes the place of the item, and Gaussian noise; of text another augmentation."""
    step.x, step.lengths = step.view()
    if step.kind == "text":
        return step.view()
    return step.x + args.noise * torch.randn_like(step.x), step.lengths


# ----------------------------------------------------------------------------------- what unlabelled items teach


def explore(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """COX and selftrain: the anchors' labels on A, what the others are drawn to on D, IM features predicted (Eqs.
    13-15)."""
    assert step.anchors is not None  # they are chosen before a step, where a method explores
    found = {}
    if model.predict:
        assert step.anchors.expected is not None  # a layer that predicts has what to predict
        found["im"] = args.w_im * F.mse_loss(model.predict(step.z).float(), step.anchors.expected[step.j])
    agree, disagree = anchors.losses(step.logits, step.anchors, step.j, args.kl)
    found["agree"] = args.w_agree * agree
    if args.w_disagree and disagree is not None:
        found["disagree"] = args.w_disagree * disagree
    return found


def entropy(logits: Tensor) -> Tensor:
    """Mean entropy of the posteriors, logits (B, C)."""
    logp = logits.log_softmax(-1)
    return -(logp.exp() * logp).sum(-1).mean()


def entmin(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """EntMin (Grandvalet & Bengio, NeurIPS 2004): sharpens what labels have begun, so nothing where there is none."""
    return {"entropy": args.w_entropy * entropy(step.logits)} if step.labelled else {}


def moco(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """Momentum contrast beside entropy."""
    return {**entmin(args, model, step), "contrast": model.extra.loss(model.learner, step)}


def ssl(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """Consistency: KL of the posterior under Gaussian noise (text: another augmentation) to the item's own, without
    gradient."""
    own = posteriors_of(model, (step.x, step.lengths))
    return {"consistency": args.w_ssl * F.kl_div(step.logits.log_softmax(-1), own, reduction="batchmean")}


@torch.no_grad()
def posteriors_of(model: Model, view: View) -> Tensor:
    """Posteriors (B, C) of a view, without gradient: what pseudo-labels are taken from."""
    return model.head(model.learner(*view)).float().softmax(-1)


def fixmatch(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """FixMatch (Sohn et al., NeurIPS 2020, Eq. 4): the class of the weak view teaches the strong one where it is sure
    enough; the mean is over all items, those that teach nothing too."""
    confidence, pseudo = posteriors_of(model, step.view()).max(-1)
    taken = confidence >= args.threshold
    return {"pseudo": args.w_pseudo * (F.cross_entropy(step.logits, pseudo, reduction="none") * taken).mean()}


class FreeThresholds(torch.nn.Module):
    """FreeMatch's running means over batches of unlabelled items (Wang et al., ICLR 2023, Eqs. 5 to 8): the confidence
    tau (), the posterior of each class p (C,), how often each is named h (C,). They begin at 1 / C. `seen`: the
    posteriors (batch, C) of a step."""

    tau: Tensor
    p: Tensor
    h: Tensor
    seen: Tensor

    def __init__(self, classes: int, momentum: float, batch: int = 0) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("tau", torch.tensor(1 / classes))
        self.register_buffer("p", torch.full((classes,), 1 / classes))
        self.register_buffer("h", torch.full((classes,), 1 / classes))
        self.register_buffer("seen", torch.zeros(batch, classes), persistent=False)

    def follow(self, learner: Learner) -> None:
        """After a step: move on by the posteriors of all its parts."""
        self.update(ranks.gather(self.seen))
        self.seen.zero_()

    @torch.no_grad()
    def update(self, posteriors: Tensor) -> None:
        """Move all three on by the posteriors (B, C) of a batch."""
        confidence, named = posteriors.max(-1)
        frequency = F.one_hot(named, len(self.h)).to(posteriors).mean(0)
        for mean, now in ((self.tau, confidence.mean()), (self.p, posteriors.mean(0)), (self.h, frequency)):
            mean.lerp_(now, 1 - self.momentum)

    def thresholds(self) -> Tensor:
        """The least confidence (C,) of a pseudo-label of each class."""
        return self.tau * self.p / self.p.max()

    def fairness(self, posteriors: Tensor, taken: Tensor) -> Tensor:
        """Eq. 11 on the strong views' posteriors (B, C) of the items that were taken, a mask (B,): the sum over classes
        of a log b, where a and b are the running and the part's mean posterior, each over how often a class is named;
        0 where none was taken."""
        weight = (taken / taken.sum().clamp(min=1))[:, None]
        named = (F.one_hot(posteriors.argmax(-1), len(self.h)) * weight).sum(0)
        a = self.p / self.h.clamp(min=1e-12)
        b = torch.where(named > 0, (posteriors * weight).sum(0) / named.clamp(min=1e-12), torch.zeros_like(named))
        return (a / a.sum() * (b / b.sum().clamp(min=1e-12)).clamp(min=1e-12).log()).sum() * taken.any()


def freematch(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """FreeMatch (Wang et al., ICLR 2023): FixMatch whose thresholds, one for each class, follow the learner's own
    confidence of earlier steps, and a term that keeps the classes of the taken items of a part apart."""
    sure = posteriors_of(model, step.view())
    model.extra.seen[step.at] = sure
    confidence, pseudo = sure.max(-1)
    taken = confidence >= model.extra.thresholds()[pseudo]
    return {
        "pseudo": args.w_pseudo * (F.cross_entropy(step.logits, pseudo, reduction="none") * taken).mean(),
        "fair": args.w_fair * model.extra.fairness(step.logits.softmax(-1), taken),
    }


class MomentumContrast(torch.nn.Module):
    """MoCo (He et al., CVPR 2020): two views of an item against `queue` keys of earlier batches, from a slow copy.
    `keys`: those (batch, 64) of a step."""

    queue: Tensor
    keys: Tensor

    def __init__(
        self,
        learner: Learner,
        *,
        queue: int = 2048,
        momentum: float = 0.99,
        temperature: float = 0.1,
        batch: int = 128,
    ) -> None:
        super().__init__()
        self.project = torch.nn.Sequential(
            torch.nn.Linear(learner.width, 128), torch.nn.GELU(), torch.nn.Linear(128, 64)
        )
        self.key_learner = copy.deepcopy(learner).requires_grad_(False)
        self.key_project = copy.deepcopy(self.project).requires_grad_(False)
        self.momentum, self.temperature = momentum, temperature
        self.register_buffer("queue", F.normalize(torch.randn(queue, 64), dim=-1))
        self.register_buffer("keys", torch.zeros(batch, 64), persistent=False)

    def loss(self, learner: Learner, step: Step) -> Tensor:
        """InfoNCE of a part."""
        q = F.normalize(self.project(learner(*step.view("strong"))).float(), dim=-1)
        with torch.no_grad():
            k = F.normalize(self.key_project(self.key_learner(*step.view())).float(), dim=-1)
            self.keys[step.at] = k
        with torch.autocast(q.device.type, enabled=False):
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], 1) / self.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long, device=q.device))

    @torch.no_grad()
    def follow(self, learner: Learner) -> None:
        """After a step: move the slow copy and the queue on, by the keys of all parts in their order."""
        for slow, fast in zip(
            [*self.key_learner.parameters(), *self.key_project.parameters()],
            [*learner.parameters(), *self.project.parameters()],
        ):
            slow.lerp_(fast, 1 - self.momentum)
        self.queue = torch.cat([ranks.gather(self.keys), self.queue])[: len(self.queue)]
        self.keys = torch.zeros_like(self.keys)


class SharedHead(torch.nn.Module):
    """UML (Gupta et al., ICLR 2026): the labelled items of each known modality, features z_im (N, d_k), y_im (N,), come
    by a linear layer of their own to the head that names the learner's items. No pair is used."""

    def __init__(self, width: int, z_im: dict[str, Tensor], y_im: dict[str, Tensor]) -> None:
        super().__init__()
        self.items = [(z / z.std().clamp(min=1e-6), y_im[m]) for m, z in z_im.items()]  # of equal size
        self.enter = nn.ModuleList(nn.Linear(z.shape[1], width) for z in z_im.values())

    def loss(self, head: nn.Linear, batch: int) -> Tensor:
        """Mean cross-entropy of a random batch of each modality."""
        found = []
        for (z, y), enter in zip(self.items, self.enter):
            i = torch.randint(len(y), (batch,)).to(y.device)
            found.append(F.cross_entropy(head(enter(z[i])).float(), y[i]))
        return torch.stack(found).mean()


def uml(args: Namespace, model: Model, step: Step) -> dict[str, Tensor]:
    """UML's term: the known modalities' items beside the labelled ones, a part's share of them."""
    size = max(1, round(args.labelled_batch * len(step.j) / args.batch))
    return {"shared": args.w_shared * model.extra.loss(model.head, size)}
