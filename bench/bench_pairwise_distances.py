"""pairwise_distances, forward and with gradient, beside torch.cdist in both of its modes and the product alone."""

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


METHODS = pytest.mark.parametrize("method", [kernel, cdist_products, cdist_direct], ids=lambda f: f.__name__)


@pytest.mark.parametrize("method", [kernel, cdist_products, cdist_direct, products_alone], ids=lambda f: f.__name__)
def bench_forward(timed, device, pick, method):
    M = N = pick(128, 4096)
    x, y = torch.randn(M, 192, device=device), torch.randn(N, 192, device=device)
    d = timed(lambda: method(x, y), f"pairwise_distances M=N={M} D=192", 2 * M * N * 192)
    if method is not products_alone:
        torch.testing.assert_close(d, cox_ops.pairwise_distances(x, y), rtol=1e-3, atol=1e-3)


@METHODS
def bench_forward_and_backward(timed, device, pick, method):
    M = N = pick(64, 1024)
    x, y = (torch.randn(n, 192, device=device, requires_grad=True) for n in (M, N))
    timed(lambda: torch.autograd.grad(method(x, y).sum(), (x, y)), f"pairwise_distances with gradient M=N={M} D=192")
