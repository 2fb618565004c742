"""Connections from each IM modality to the learner's feature space (Section 4.1, Eqs. 4-9), and what is built on them.

Shapes: B batch, M OOM items, N labelled IM items, K IM modalities, C classes, d features of the learner, d_k of a bank.
Equations and sections: "Towards Out-of-Modal Generalization without Instance-level Modal Correspondence".
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cox_ops
from cox_oom.augment import embed
from cox_oom.descent import adam
from cox_oom.files import UserError
from cox_oom.heads import Head, deviation, fit_head
from cox_oom.labels import Items, Start
from cox_oom.learner import Learner
from cox_oom.seed import Seed, features_of, split_rows, state_of
from cox_oom.watch import progress


class Connection(nn.Module):
    """One variational information bottleneck, z_im[k] -> v -> OOM feature space (Eqs. 4-9).

    encode: MLP z_im (B, d_im) -> mean and log-variance of v (B, latent); decode: MLP v -> (B, d).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, *, d_im: int, d: int, hidden: int = 256, latent: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_im))
        self.register_buffer("std", torch.ones(d_im))
        self.encode = nn.Sequential(
            nn.Linear(d_im, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, 2 * latent)
        )
        self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, d))

    def standardise(self, z_im: Tensor) -> None:
        """Take mean and standard deviation from the whole bank z_im (N, d_im)."""
        self.mean.copy_(z_im.mean(0))
        self.std.copy_(deviation(z_im))

    def forward(self, z_im: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z_im (B, d_im) -> (mapped (B, d), mean, log-variance); v is sampled in training, its mean otherwise."""
        mean, logvar = self.encode((z_im - self.mean) / self.std).chunk(2, -1)
        logvar = logvar.clamp(-8, 8)
        v = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return self.decode(v), mean, logvar


def connection_loss(
    connection: Connection,
    z_im: Tensor,
    z: Tensor,
    y: Tensor | None = None,
    head: nn.Linear | None = None,
    *,
    beta: float = 1e-4,
    w_ce: float = 0.0,
) -> Tensor:
    """L_con of one modality (Eq. 9) on pairs z_im (B, d_im), z (B, d): reconstruction, optional CE of the OOM head on
    the reconstruction, beta x KL(v ‖ N(0, I)). z is detached: the connection must not move the learner, or it can
    collapse."""
    mapped, mean, logvar = connection(z_im)
    loss = F.mse_loss(mapped, z.detach())
    if w_ce:
        assert head is not None and y is not None
        loss = loss + w_ce * F.cross_entropy(head(mapped), y)
    return loss + beta * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()


@torch.no_grad()
def map_items(connection: Connection, z_im: Tensor, batch: int = 65536) -> Tensor:
    """v[k]: every IM item mapped into the OOM feature space, (N, d_im) -> (N, d)."""
    connection.eval()
    return torch.cat([connection(b)[0] for b in z_im.split(batch)]) if len(z_im) else z_im.new_zeros(0, 0)


def train_connection(
    connection: Connection,
    optimizer: torch.optim.Optimizer,
    z_im: Tensor,
    z: Tensor,
    y: Tensor,
    head: nn.Linear,
    *,
    steps: int,
    batch: int = 256,
    beta: float = 1e-4,
    w_ce: float = 0.0,
    generator: torch.Generator | None = None,
) -> float:
    """`steps` steps of L_con on pairs z_im (P, d_im) and z (V, P, d), V views of the OOM items. Returns the last
    loss."""
    connection.train()
    views, pairs = z.shape[:2]
    loss = z.new_zeros(())
    with torch.enable_grad():
        for _ in progress(range(steps), "connection"):
            i = torch.randint(pairs, (min(batch, 2 * pairs),), generator=generator).to(z.device)
            w = torch.randint(views, i.shape, generator=generator).to(z.device)
            loss = connection_loss(connection, z_im[i], z[w, i], y[i], head, beta=beta, w_ce=w_ce)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


def common_items(ids: dict[str, list[str]], device: str = "cpu") -> tuple[list[str], dict[str, Tensor]]:
    """The items that every IM modality shows, of {modality: ids [N_k]}: ids [N] in order, {modality: their rows
    (N,)}."""
    common = sorted(set.intersection(*map(set, ids.values())))
    row = {m: {i: r for r, i in enumerate(own)} for m, own in ids.items()}
    return common, {m: torch.tensor([row[m][i] for i in common], dtype=torch.long, device=device) for m in ids}


class Bridge:
    """What joins K IM banks to the learner's space in stages 3 and 4, by modality: connections with their optimizers,
    the labelled IM items z_im (N_k, d_k), y_im (N_k,), their mappings v (N_k, d), the heads h*_k.

    common: the ids [N] of the items that every modality shows, `rows` {modality: their places in z_im (N,)}.
    """

    def __init__(
        self,
        seed: Seed,
        names: Sequence[str] | None = None,
        *,
        device: str,
        lr: float,
        weight_decay: float,
        start: bool = True,
        heads: bool = True,
    ) -> None:
        """The connections go on from stage 2's, `start` False: from random weights; with `heads` its heads h*_k too."""
        connect, self.settings = seed.connect, seed.connect["meta"]["args"]
        self.names, self.classes = list(names or connect["im"]), len(seed.oom["class_names"])
        self.connections, self.optimizers, self.heads, self.z_im, self.y_im = {}, {}, {}, {}, {}
        for m in self.names:
            z = self.z_im[m] = features_of(seed.ims[m], connect["mapped_ids"][m]).to(device)
            self.y_im[m] = connect["mapped_labels"][m].to(device)
            c = self.connections[m] = Connection(d_im=z.shape[1], d=connect["arch"]["width"]).to(device)
            c.standardise(z)
            if start:
                c.load_state_dict(connect["connections"][m])
            self.optimizers[m] = adam(c.parameters(), lr, weight_decay)
            self.optimizers[m].load_state_dict(
                copy.deepcopy(connect["optimizers"][m])
            )  # else it would go on in connect's own
            if heads:
                self.heads[m] = Head(connect["arch"]["width"], self.classes).to(device)
                self.heads[m].load_state_dict(connect["mapped_heads"][m])
        self.v = {m: map_items(self.connections[m], self.z_im[m]) for m in self.names}
        self.common, self.rows = common_items({m: connect["mapped_ids"][m] for m in self.names}, device)

    @property
    def y_common(self) -> Tensor:
        """Labels (N,) of the common items."""
        return self.y_im[self.names[0]][self.rows[self.names[0]]]

    def common_banks(self) -> dict[str, Tensor]:
        """{modality: features (N, d_k)} of the common items."""
        return {m: self.z_im[m][self.rows[m]] for m in self.names}

    def common_mapped(self) -> Tensor:
        """The common items in the learner's space, by each connection: (K, N, d)."""
        return torch.stack([self.v[m][self.rows[m]] for m in self.names])

    def train(
        self,
        m: str,
        im_pair: Tensor,
        z_pair: Tensor,
        y: Tensor,
        head: nn.Linear,
        *,
        steps: int,
        generator: torch.Generator,
    ) -> None:
        """`steps` of L_con for modality m on pairs im_pair (P, d_k), z_pair (P, d), y (P,); then its items are mapped
        anew."""
        train_connection(
            self.connections[m],
            self.optimizers[m],
            im_pair,
            z_pair[None],
            y,
            head,
            steps=steps,
            beta=self.settings["beta"],
            w_ce=self.settings["w_ce"],
            generator=generator,
        )
        self.v[m] = map_items(self.connections[m], self.z_im[m])

    def follow(
        self,
        z: Tensor,
        items: Items,
        emergent: dict[str, Tensor],
        head: nn.Linear,
        *,
        steps: int,
        generator: torch.Generator,
        train: bool = True,
    ) -> None:
        """Follow the learner, whose features of all items z (M, d) have moved: train every connection on the known
        and the emergent pairs (Eqs. 4-9), and fit the heads h*_k to mapped IM items and labelled OOM items. `train`
        False: the connections stay untrained, and the heads see mapped items alone (ablation)."""
        y = items.y.to(z.device)
        for m in self.names:
            own, im = (t.to(z.device) for t in items.pairs[m])
            at = torch.cat([own, emergent["item"]])
            if train and steps and len(at):
                im_pair = self.z_im[m][torch.cat([im, self.rows[m][emergent["im"]]])]
                y_pair = torch.cat([y[own], emergent["label"]])
                self.train(m, im_pair, z[at], y_pair, head, steps=steps, generator=generator)
            own = items.labelled if train else items.labelled[:0]
            self.heads[m] = fit_head(torch.cat([self.v[m], z[own]]), torch.cat([self.y_im[m], y[own]]), self.classes)

    def parts(self) -> dict[str, Any]:
        """{name: module or optimizer} for a checkpoint."""
        return {
            **{f"connection {m}": self.connections[m] for m in self.names},
            **{f"connection optimizer {m}": self.optimizers[m] for m in self.names},
        }

    def saved(self) -> dict[str, Any]:
        """What METHOD.pt keeps of it."""
        return {
            "im": self.names,
            "connections": {m: state_of(c) for m, c in self.connections.items()},
            "mapped_heads": {m: state_of(h) for m, h in self.heads.items()},
            "mapped": {m: t.cpu() for m, t in self.v.items()},
        }

    def remap(self) -> None:
        """Map the IM items by the connections as they are now."""
        self.v = {m: map_items(self.connections[m], self.z_im[m]) for m in self.names}


# ------------------------------------------------------------------------------------------------------------ stage 2


@dataclass
class Known:
    """The labelled training items of one IM modality: features z (N, d_k), labels y (N,), ids [N], the IM head h_k."""

    z: Tensor
    y: Tensor
    ids: list[str]
    head: Head


def known_side(
    ims: dict[str, dict[str, Any]], classes: int, device: str, generator: torch.Generator
) -> dict[str, Known]:
    """{modality: Known} of the banks; prints how well a head does on a fifth of the items that it has not seen."""
    known = {}
    for m in sorted(ims):
        r = split_rows(ims[m], ("train",))
        r = r[ims[m]["labels"][r] >= 0]
        if not len(r):
            raise UserError(
                f"IM modality {m} has no labelled training item; label some, or leave it out with --im in stage 1"
            )
        z, y = ims[m]["features"][r].to(device), ims[m]["labels"][r].to(device)
        fold, words = torch.rand(len(r), generator=generator) < 0.2, "too few to hold out a fifth"
        if fold.any() and not fold.all():
            probe = fit_head(z[~fold], y[~fold], classes)
            words = f"{100 * (probe(z[fold]).argmax(1) == y[fold]).float().mean():.1f}% on a fifth held out"
        known[m] = Known(z, y, [ims[m]["ids"][i] for i in r.tolist()], fit_head(z, y, classes))
        print(f"  IM head {m}: N = {len(r)}, d = {z.shape[1]}, {words}")
    return known


def pairs_of(
    learner: Learner,
    head: nn.Linear,
    oom: dict[str, Any],
    train: Tensor,
    start: Start,
    known: dict[str, Known],
    args: Namespace,
) -> tuple[dict[str, tuple[Tensor, Tensor, Tensor]], Tensor | None, Tensor | None]:
    """What a connection is trained on: {modality: IM features (P, d_k), OOM features (V, P, d) in V views, labels
    (P,)}, and the labelled OOM items' own z (L, d), y (L,). unsup: class centroids in the place of pairs."""
    if args.setting == "semi":
        z, y = embed(learner, oom, start.rows, args.device, views=3), start.y.to(args.device)  # (V, L, d)
        return {m: (known[m].z[im], z[:, own], y[own]) for m, (own, im) in start.pairs.items()}, z[0], y
    z_all = embed(learner, oom, train, args.device)[0]
    guess = head(z_all).argmax(1)
    classes = [
        c
        for c in range(len(oom["class_names"]))
        if (guess == c).any() and all((k.y == c).any() for k in known.values())
    ]
    if not classes:
        raise UserError(
            f"no class that the {args.oom} items are given has a labelled item in each of {', '.join(known)}, "
            f"so there are no centroids to pair; choose --im in stage 1 so that classes are common"
        )
    z, y = torch.stack([z_all[guess == c].mean(0) for c in classes])[None], torch.tensor(classes, device=args.device)
    return {m: (torch.stack([k.z[k.y == c].mean(0) for c in classes]), z, y) for m, k in known.items()}, None, None


def connect(
    m: str,
    known: Known,
    pair: tuple[Tensor, Tensor, Tensor],
    head: nn.Linear,
    z_oom: Tensor,
    args: Namespace,
    generator: torch.Generator,
    chance: torch.Generator,
    log: Callable[..., None],
) -> tuple[Connection, torch.optim.Optimizer, Tensor, list[dict[str, Any]]]:
    """Stage 2's connection of modality m, trained on `pair` (IM features, views of OOM features, labels), its
    optimizer, its items v (N, d) mapped, and Fig. 5's curve at seven points: MMD of mapped and OOM items, and the
    head fitted to mapped items alone. chance: a generator for the sample of the MMD, so that this changes no run.
    log: takes a line {connection: m, step, mmd, loss of the last step} at each point."""
    points = sorted({0, *(round(args.connect_steps * f) for f in (0.02, 0.07, 0.15, 0.3, 0.6, 1.0))})
    c = Connection(d_im=known.z.shape[1], d=args.width).to(args.device)
    c.standardise(known.z)
    optimizer = adam(c.parameters(), args.lr, args.weight_decay)
    sample, curve = torch.randperm(len(known.z), generator=chance)[:2000].to(args.device), []
    loss: dict[str, float] = {}
    for at, following in zip(points, [*points[1:], None]):
        v = map_items(c, known.z)
        h = fit_head(v, known.y, head.out_features, steps=60)
        curve.append({"modality": m, "step": at, "mmd": float(cox_ops.mmd(v[sample], z_oom)), "head": state_of(h)})
        log(connection=m, step=at, mmd=curve[-1]["mmd"], **loss)
        if following is not None and "connection" not in args.without:
            last = train_connection(
                c, optimizer, *pair, head, steps=following - at, beta=args.beta, w_ce=args.w_ce, generator=generator
            )
            loss = {"loss": last}
    print(f"  connection {m}: MMD {curve[0]['mmd']:.3f} -> {curve[-1]['mmd']:.3f}")
    return c, optimizer, v, curve
