"""Heads, and connections from each IM modality to the learner's feature space (Section 4.1, Eqs. 4-9).

Shapes: B batch, M OOM items, N labelled IM items, K IM modalities, C classes, d features of the learner, d_k of a bank.
Equations and sections: "Towards Out-of-Modal Generalization without Instance-level Modal Correspondence".
"""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from cox_oom.files import features_of


# ------------------------------------------------------------------------------------------------------------- heads

class Head(nn.Module):
    """A linear classifier on standardised features: h_k on z_im[k], h*_k on mapped items, h on z (Section 4.1)."""

    def __init__(self, d, classes):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("std", torch.ones(d))
        self.linear = nn.Linear(d, classes)

    def forward(self, z):
        return self.linear((z - self.mean) / self.std)


def deviation(z):
    """Standard deviation (d,) of each feature of z (N, d); 1 where a feature is constant up to the rounding of its mean."""
    std = z.std(0, correction=0)
    return torch.where(std > 1e-5 * z.abs().amax(0), std, torch.ones_like(std))


def fit_head(z, y, classes, *, weight=None, steps=200, lr=0.02, weight_decay=1e-3, batch=8192, generator=None):
    """The "optimal classifier" of features: softmax regression on z (N, d), y (N,) or class posteriors (N, C), optional item
    weights (N,).

    Full batches up to `batch` items, random ones beyond. Returns a frozen Head on z's device.
    """
    head = Head(z.shape[1], classes)
    nn.init.zeros_(head.linear.weight)
    nn.init.zeros_(head.linear.bias)
    head.mean.copy_(z.mean(0))
    head.std.copy_(deviation(z))
    head.to(z.device)
    x = (z - head.mean) / head.std

    def loss_of(i):
        loss = F.cross_entropy(head.linear(x[i]), y[i], reduction="none")
        loss = loss.mean() if weight is None else (loss * weight[i]).sum() / weight[i].sum()
        return loss + weight_decay * head.linear.weight.square().sum()

    def step(i):
        opt.zero_grad()
        loss = loss_of(i)
        loss.backward()
        return loss

    with torch.enable_grad():
        if len(x) <= batch:                                      # convex and whole: L-BFGS needs a fifth of the passes
            opt = torch.optim.LBFGS(head.linear.parameters(), max_iter=steps // 5, history_size=10,
                                    line_search_fn="strong_wolfe")
            opt.step(lambda: step(slice(None)))
        else:
            opt = torch.optim.AdamW(head.linear.parameters(), lr=lr, weight_decay=0.0)
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
            for _ in range(steps):
                step(torch.randint(len(x), (batch,), generator=generator).to(x.device))
                opt.step()
                schedule.step()
    return head.requires_grad_(False)


def fit_mapped_head(v, y_im, z, y, classes, *, w_mapped=1.0):
    """h*_k: the optimal classifier of mapped IM items v (N, d), y_im (N,), each with weight `w_mapped`, and of labelled OOM items
    z (L, d), y (L,)."""
    weight = torch.cat([v.new_full((len(v),), w_mapped), v.new_ones(len(z))])
    return fit_head(torch.cat([v, z]), torch.cat([y_im, y]), classes, weight=weight)


@torch.no_grad()
def move_head(linear, head, share):
    """Move a Linear (d, C) by `share` of the way to what a Head computes: their logits are averaged, the layer stays one."""
    weight = head.linear.weight / head.std
    linear.weight.lerp_(weight, share)
    linear.bias.lerp_(head.linear.bias - weight @ head.mean, share)


def match_shares(logits, shares, rounds=10):
    """Biases (C,) under which the mean posterior of logits (M, C) is `shares` (C,): a few rounds of Sinkhorn's scaling.

    The IM side knows how frequent the classes are; a head fitted to few OOM items does not, and names some far too often.
    """
    bias = torch.zeros_like(shares)
    for _ in range(rounds):
        bias = bias + shares.clamp(min=1e-6).log() - (logits + bias).softmax(-1).mean(0).clamp(min=1e-6).log()
    return bias - bias.mean()


# ------------------------------------------------------------------------------------------------------- connections

class Connection(nn.Module):
    """One variational information bottleneck, z_im[k] -> v -> OOM feature space (Eqs. 4-9).

    encode: MLP z_im (B, d_im) -> mean and log-variance of v (B, latent); decode: MLP v -> (B, d).
    """

    def __init__(self, *, d_im, d, hidden=256, latent=64, dropout=0.1):
        super().__init__()
        self.register_buffer("mean", torch.zeros(d_im))
        self.register_buffer("std", torch.ones(d_im))
        self.encode = nn.Sequential(nn.Linear(d_im, hidden), nn.GELU(), nn.Dropout(dropout),
                                    nn.Linear(hidden, 2 * latent))
        self.decode = nn.Sequential(nn.Linear(latent, hidden), nn.GELU(), nn.Linear(hidden, d))

    def standardise(self, z_im):
        """Take mean and standard deviation from the whole bank z_im (N, d_im)."""
        self.mean.copy_(z_im.mean(0))
        self.std.copy_(deviation(z_im))

    def forward(self, z_im):
        """z_im (B, d_im) -> (mapped (B, d), mean, log-variance); v is sampled in training, its mean otherwise."""
        mean, logvar = self.encode((z_im - self.mean) / self.std).chunk(2, -1)
        logvar = logvar.clamp(-8, 8)
        v = mean + torch.randn_like(mean) * (0.5 * logvar).exp() if self.training else mean
        return self.decode(v), mean, logvar


def connection_loss(connection, z_im, z, y=None, head=None, *, beta=1e-4, w_ce=0.0):
    """L_con of one modality (Eq. 9) on pairs z_im (B, d_im), z (B, d): reconstruction, optional CE of the OOM head on the
    reconstruction, beta x KL(v ‖ N(0, I)). z is detached: the connection must not move the learner, or it can collapse."""
    mapped, mean, logvar = connection(z_im)
    loss = F.mse_loss(mapped, z.detach())
    if w_ce:
        loss = loss + w_ce * F.cross_entropy(head(mapped), y)
    return loss + beta * 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1).mean()


@torch.no_grad()
def map_items(connection, z_im, batch=65536):
    """v[k]: every IM item mapped into the OOM feature space, (N, d_im) -> (N, d)."""
    connection.eval()
    return torch.cat([connection(b)[0] for b in z_im.split(batch)]) if len(z_im) else z_im.new_zeros(0, 0)


def train_connection(connection, optimizer, z_im, z, y, head, *, steps, batch=256, beta=1e-4, w_ce=0.0, generator=None):
    """`steps` steps of L_con on pairs z_im (P, d_im) and z (V, P, d), V views of the OOM items. Returns the last loss."""
    connection.train()
    views, pairs = z.shape[:2]
    loss = z.new_zeros(())
    with torch.enable_grad():
        for _ in range(steps):
            i = torch.randint(pairs, (min(batch, 2 * pairs),), generator=generator).to(z.device)
            w = torch.randint(views, i.shape, generator=generator).to(z.device)
            loss = connection_loss(connection, z_im[i], z[w, i], y[i], head, beta=beta, w_ce=w_ce)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return loss.item()


class Bridge:
    """What joins K IM banks to the learner's space in stages 3 and 4, by modality: connections with their optimizers, the
    labelled IM items z_im (N_k, d_k), y_im (N_k,), their mappings v (N_k, d), the heads h*_k.

    common: the ids [N] of the items that every modality shows, `rows` {modality: their places in z_im (N,)}.
    """

    def __init__(self, seed, names=None, *, device, lr, weight_decay, start=True, heads=True):
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
            self.optimizers[m] = torch.optim.Adam(c.parameters(), lr=lr, weight_decay=weight_decay)
            self.optimizers[m].load_state_dict(copy.deepcopy(connect["optimizers"][m]))    # else it would go on in connect's own
            if heads:
                self.heads[m] = Head(connect["arch"]["width"], self.classes).to(device)
                self.heads[m].load_state_dict(connect["mapped_heads"][m])
        self.v = {m: map_items(self.connections[m], self.z_im[m]) for m in self.names}
        ids = {m: connect["mapped_ids"][m] for m in self.names}
        self.common = sorted(set.intersection(*map(set, ids.values())))
        place = {m: {i: r for r, i in enumerate(own)} for m, own in ids.items()}
        self.rows = {m: torch.tensor([place[m][i] for i in self.common], dtype=torch.long, device=device) for m in ids}

    @property
    def y_common(self):
        """Labels (N,) of the common items."""
        return self.y_im[self.names[0]][self.rows[self.names[0]]]

    def common_banks(self):
        """{modality: features (N, d_k)} of the common items."""
        return {m: self.z_im[m][self.rows[m]] for m in self.names}

    def common_mapped(self):
        """The common items in the learner's space, by each connection: (K, N, d)."""
        return torch.stack([self.v[m][self.rows[m]] for m in self.names])

    def train(self, m, im_pair, z_pair, y, head, *, steps, generator):
        """`steps` of L_con for modality m on pairs im_pair (P, d_k), z_pair (P, d), y (P,); then its items are mapped anew."""
        train_connection(self.connections[m], self.optimizers[m], im_pair, z_pair[None], y, head, steps=steps,
                         beta=self.settings["beta"], w_ce=self.settings["w_ce"], generator=generator)
        self.v[m] = map_items(self.connections[m], self.z_im[m])

    def follow(self, z, items, emergent, head, *, steps, generator, train=True, w_mapped=1.0):
        """Follow the learner, whose features of all items z (M, d) have moved: train every connection on the known and the
        emergent pairs (Eqs. 4-9), and fit the heads h*_k to mapped IM items and labelled OOM items. `train` False: the
        connections stay untrained, and the heads see mapped items alone (ablation)."""
        y = items.y.to(z.device)
        for m in self.names:
            own, im = (t.to(z.device) for t in items.pairs[m])
            at = torch.cat([own, emergent["item"]])
            if train and steps and len(at):
                im = torch.cat([im, self.rows[m][emergent["im"]]])
                self.train(m, self.z_im[m][im], z[at], torch.cat([y[own], emergent["label"]]), head, steps=steps,
                           generator=generator)
            own = items.labelled if train else items.labelled[:0]
            self.heads[m] = fit_mapped_head(self.v[m], self.y_im[m], z[own], y[own], self.classes, w_mapped=w_mapped)

    def parts(self):
        """{name: module or optimizer} for a checkpoint."""
        return {**{f"connection {m}": self.connections[m] for m in self.names},
                **{f"connection optimizer {m}": self.optimizers[m] for m in self.names}}

    def remap(self):
        """Map the IM items by the connections as they are now."""
        self.v = {m: map_items(self.connections[m], self.z_im[m]) for m in self.names}
