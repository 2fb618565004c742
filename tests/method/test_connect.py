"""Connections: what they sample, standardise, learn from pairs and leave alone; the terms of their loss."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from cox_oom.connect import Bridge, Connection, connection_loss, map_items, train_connection
from cox_oom.learner import Learner
from cox_oom.seed import Seed

SMALL = dict(width=32, depth=2, patch=4)


def linear_world(n=400, d_im=8, d=6, seed=0):
    g = torch.Generator().manual_seed(seed)
    z_im = torch.randn(n, d_im, generator=g)
    return z_im, z_im @ torch.randn(d_im, d, generator=torch.Generator().manual_seed(50)) / math.sqrt(d_im)


def connection(z_im, d, **sizes):
    c = Connection(d_im=z_im.shape[1], d=d, **sizes)
    c.standardise(z_im)
    return c


@pytest.mark.parametrize("w_ce", [0.0, 1.0])
def test_connection_loss_does_not_move_the_learner(w_ce):
    learner = Learner(kind="series", shape=(2, 16), **SMALL)
    head, c = torch.nn.Linear(32, 3), Connection(d_im=8, d=32)
    connection_loss(
        c, torch.randn(5, 8), learner(torch.randn(5, 2, 16)), torch.tensor([0, 1, 2, 0, 1]), head, w_ce=w_ce
    ).backward()
    assert all(p.grad is None for p in learner.parameters())
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in c.parameters())


def test_training_a_connection_moves_nothing_else():
    z_im, z = linear_world()
    head = torch.nn.Linear(6, 3)
    before = [p.clone() for p in head.parameters()]
    c = connection(z_im, 6)
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    train_connection(c, optimizer, z_im, z[None], torch.zeros(400, dtype=torch.long), head, steps=3, w_ce=1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, head.parameters()))


def test_connection_samples_in_training_alone():
    z_im, _ = linear_world()
    c = connection(z_im, 6, dropout=0.0)
    c.eval()
    assert torch.equal(c(z_im)[0], c(z_im)[0])
    mapped, mean, logvar = c(z_im)
    torch.testing.assert_close(mapped, c.decode(mean))
    c.train()
    first, mean_again, _ = c(z_im)
    torch.testing.assert_close(mean_again, mean)
    assert (first - c(z_im)[0]).abs().mean() > 1e-3 and mean.shape == logvar.shape == (400, 64)


def test_what_is_sampled_has_the_mean_and_deviation_it_says():
    c = Connection(d_im=3, d=5, latent=4, dropout=0.0).train()
    c.decode = torch.nn.Identity()
    v, mean, logvar = c(torch.randn(1, 3).expand(20000, 3))
    torch.testing.assert_close(v.mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(v.std(0), (0.5 * logvar[0]).exp(), atol=0.05, rtol=0)


def test_standardise_makes_the_scale_of_a_bank_irrelevant():
    z_im, _ = linear_world()
    a = connection(z_im, 6).eval()
    b = Connection(d_im=8, d=6).eval()
    b.load_state_dict(a.state_dict())
    b.standardise(100 * z_im + 7)
    torch.testing.assert_close(a(z_im)[0], b(100 * z_im + 7)[0], atol=1e-3, rtol=1e-3)


def test_a_connection_does_not_blow_up_a_constant_dimension():
    bank = torch.cat([torch.randn(600, 7), torch.full((600, 1), 5.3)], 1)
    c = Connection(d_im=8, d=4)
    c.standardise(bank)
    assert c.std[7] == 1 and torch.allclose(c.std[:7], bank[:, :7].std(0, correction=0))


def test_connection_learns_a_linear_map_from_pairs():
    (z_im, z), (held_im, held) = linear_world(), linear_world(seed=1)
    c = connection(z_im, 6)

    def error():
        return F.mse_loss(map_items(c, held_im), held).item()

    before = error()
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    views = torch.stack([z, z + 0.05 * torch.randn(z.shape)])
    last = train_connection(c, optimizer, z_im, views, torch.zeros(400), None, steps=300, beta=1e-4)
    assert math.isfinite(last)
    assert error() < 0.1 * before and error() < 0.1 * held.var()


def test_train_connection_pairs_the_same_rows():
    """Were rows of z_im and z drawn apart, the best map would be the mean."""
    z_im, z = linear_world()
    c = connection(z_im, 6)
    optimizer = torch.optim.Adam(c.parameters(), lr=1e-3)
    train_connection(c, optimizer, z_im, z[torch.randperm(400)][None], torch.zeros(400), None, steps=300)
    assert F.mse_loss(map_items(c, linear_world(seed=1)[0]), linear_world(seed=1)[1]) > 0.5 * z.var()


def test_a_single_pair_can_be_trained_on():
    z_im, z = linear_world()
    c = connection(z_im, 6)
    last = train_connection(
        c, torch.optim.Adam(c.parameters(), lr=1e-3), z_im[:1], z[None, :1], torch.zeros(1), None, steps=200
    )
    assert math.isfinite(last) and F.mse_loss(map_items(c, z_im[:1]), z[:1]) < 0.2 * z[:1].square().mean()


def test_ce_on_the_reconstruction_is_felt():
    z_im, z = linear_world()
    y, head = (z[:, 0] > 0).long(), torch.nn.Linear(6, 2)
    c = connection(z_im, 6).eval()
    mapped = c(z_im)[0]
    plain = connection_loss(c, z_im, z, y, head, beta=0.0)
    with_ce = connection_loss(c, z_im, z, y, head, beta=0.0, w_ce=0.7)
    torch.testing.assert_close(plain, (mapped - z).square().mean())
    torch.testing.assert_close(with_ce - plain, 0.7 * F.cross_entropy(head(mapped), y), atol=1e-5, rtol=1e-4)


def test_beta_weighs_the_kl_to_the_standard_normal():
    z_im, z = linear_world(50)
    c = connection(z_im, 6).eval()
    with torch.no_grad():
        c.encode[-1].weight.mul_(5)  # means and variances worth the name
    _, mean, logvar = c(z_im)
    assert logvar.abs().max() < 8
    kl = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).sum(1).mean()
    difference = connection_loss(c, z_im, z, beta=0.3) - connection_loss(c, z_im, z, beta=0.0)
    torch.testing.assert_close(difference, 0.3 * kl, atol=1e-4, rtol=1e-4)


def test_map_items_in_batches_is_the_same_and_deterministic():
    z_im, _ = linear_world()
    c = connection(z_im, 6).train()
    whole = map_items(c, z_im)
    torch.testing.assert_close(map_items(c, z_im, batch=7), whole)
    assert whole.shape == (400, 6) and not whole.requires_grad


def test_a_bridge_leaves_what_it_was_read_from_alone():
    """One connect.pt serves every method of a seed: what one trains on must not be the next one's start."""
    z_im = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    z, y = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)), torch.zeros(20, dtype=torch.long)
    first = Connection(d_im=5, d=8)
    optimizer = torch.optim.Adam(first.parameters())
    first.standardise(z_im)
    head = torch.nn.Linear(8, 2).requires_grad_(False)
    g = torch.Generator().manual_seed(2)
    train_connection(first, optimizer, z_im, z[None], y, head, steps=3, generator=g)
    ids = [str(i) for i in range(20)]
    connect = {
        "im": ["rgb"],
        "arch": {"width": 8},
        "connections": {"rgb": first.state_dict()},
        "optimizers": {"rgb": optimizer.state_dict()},
        "mapped_ids": {"rgb": ids},
        "mapped_labels": {"rgb": y},
        "meta": {"args": {"beta": 1e-4, "w_ce": 0.0}},
    }
    seed = Seed(None, {"class_names": ["a", "b"]}, {"rgb": {"features": z_im, "ids": ids}}, connect, {})
    mapped = []
    for _ in range(2):
        torch.manual_seed(3)
        bridge = Bridge(seed, device="cpu", lr=1e-3, weight_decay=0.0, heads=False)
        assert bridge.common == sorted(ids) and torch.equal(bridge.v["rgb"], map_items(first, z_im))
        bridge.train("rgb", z_im, z, y, head, steps=3, generator=torch.Generator().manual_seed(2))
        mapped.append(bridge.v["rgb"])
    assert torch.equal(*mapped) and connect["optimizers"]["rgb"]["state"][0]["step"] == 3
    assert not torch.equal(mapped[0], map_items(first, z_im))
