"""pairwise_distances, forward and with gradient, beside torch.cdist by products and the product alone; where rows
are far from 0, beside its direct mode, too."""

import pytest
import torch

import cox_ops


def kernel(x, y):
    return cox_ops.pairwise_distances(x, y)


def cdist_products(x, y):
    return torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist")


def cdist_direct(x, y):
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def products_alone(x, y):
    return x @ y.T


METHODS = [kernel, cdist_products, products_alone]
DIMENSIONS = pytest.mark.parametrize("D", [16, 64, 192, 512, 1024])


@DIMENSIONS
@pytest.mark.parametrize("rows", [1024, 4096, 16384])
@pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)
def bench_forward(timed, device, pick, method, rows, D):
    M = N = pick(128, rows)
    x, y = torch.randn(M, D, device=device), torch.randn(N, D, device=device)
    d = timed(lambda: method(x, y), f"pairwise_distances M=N={M} D={D}", 2 * M * N * D)
    if method is not products_alone:
        torch.testing.assert_close(d[:200], cox_ops.pairwise_distances(x[:200], y), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", [kernel, cdist_products, cdist_direct], ids=lambda f: f.__name__)
@pytest.mark.parametrize("offset", [1, 1.8, 10])
def bench_offset(timed, device, pick, method, offset):
    """Rows far from 0 beside their distances: products lose digits, and the kernel takes pairs directly."""
    M = N = pick(128, 1024)
    x, y = (torch.randn(n, 192, device=device) + offset for n in (M, N))
    timed(lambda: method(x, y), f"pairwise_distances M=N={M} D=192, offset {offset}", 2 * M * N * 192)


@DIMENSIONS
@pytest.mark.parametrize("rows", [1024, 4096])
@pytest.mark.parametrize("method", [kernel, cdist_products], ids=lambda f: f.__name__)
def bench_forward_and_backward(timed, device, pick, method, rows, D):
    M = N = pick(64, rows)
    x, y = (torch.randn(n, D, device=device, requires_grad=True) for n in (M, N))
    timed(lambda: torch.autograd.grad(method(x, y).sum(), (x, y)), f"pairwise_distances with gradient M=N={M} D={D}")
