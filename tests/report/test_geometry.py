"""experiments/geometry.py and gauge.py: maps of two sides, how partners are found by them, and R² over columns."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import worlds


def experiment(name):
    spec = importlib.util.spec_from_file_location(name, worlds.ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sides():
    """x (300, 12) and z (300, 10), a rotated copy of its leading dimensions with noise; twelve clumps."""
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(12, 12, generator=g)[torch.arange(300) % 12] + torch.randn(300, 12, generator=g)
    x = x * torch.linspace(2, 0.3, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=g))[0][:, :10]
    z = x @ turn + 0.3 * torch.randn(300, 10, generator=g)
    return x - x.mean(0), z - z.mean(0)


def test_foscttm_and_recall_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 5, generator=g), torch.randn(40, 5, generator=g)
    near = F.cosine_similarity(a[:, None], b[None], dim=2).numpy()
    ranks = [(near[i] > near[i, i]).sum() for i in range(40)] + [(near[:, i] > near[i, i]).sum() for i in range(40)]
    share, ten = experiment("geometry").found(a, b)
    assert share == pytest.approx(np.mean(ranks) / 40) and ten == pytest.approx(np.mean(np.array(ranks) < 10))


def test_shared_geometry_finds_partners_that_few_pairs_alone_do_not(sides):
    geometry = experiment("geometry")
    (x, z), pair = sides, torch.arange(3)
    rest = torch.arange(3, 300)
    few = geometry.procrustes(x[pair].T @ z[pair])
    more = geometry.geometry(x, z, x[pair], z[pair], rest, rest)
    torch.testing.assert_close(more.T @ more, torch.eye(10), atol=1e-4, rtol=0)
    by_pairs, shared = (geometry.found(x[rest] @ turn, z[rest])[0] for turn in (few, more))
    assert shared < 0.05 and shared < by_pairs / 2


def test_assignment_puts_a_mixed_order_right():
    geometry, g = experiment("geometry"), torch.Generator().manual_seed(0)
    a, order = torch.randn(15, 6, generator=g), torch.randperm(15, generator=g)
    b = a[order]
    mapped = geometry.assignment(a @ a.T, b @ b.T, torch.zeros(15, 15))
    assert torch.equal(order[torch.from_numpy(mapped)], torch.arange(15))


def test_r2_of_a_gauge_has_an_interval_around_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(25)
    r2, low, high, r, p = experiment("gauge").fit(x, 2 * x + rng.standard_normal(25))
    assert low < r2 < high <= 1 and r > 0 and p < 0.01
    assert r2 == pytest.approx(np.corrcoef(x, 2 * x + np.random.default_rng(0).standard_normal(50)[25:])[0, 1] ** 2)
