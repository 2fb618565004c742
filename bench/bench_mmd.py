"""mmd, forward and with gradient, beside eager torch: whole matrices, and blocks of rows that stay in cache."""

import pytest
import torch

import cox_ops

BANDWIDTHS = [96.0, 192.0, 384.0, 768.0, 1536.0]


def kernel(x, y):
    return cox_ops.mmd(x, y, BANDWIDTHS)


def eager(x, y):
    p, n = torch.cat((x, y)), len(x)
    d2 = torch.cdist(p, p).square()
    k = sum((-d2 / b).exp() for b in BANDWIDTHS) / len(BANDWIDTHS)
    return k[:n, :n].mean() + k[n:, n:].mean() - 2 * k[:n, n:].mean()


def kernels(a, b):
    d2 = torch.cdist(a, b).square()
    return sum((d2 * (-1 / s)).exp().sum(dtype=torch.float64) for s in BANDWIDTHS)


def by_rows(x, y, sums, rows=125):
    def total(a, b):
        return sum(sums(c, b) for c in a.split(rows)) / (len(a) * len(b) * len(BANDWIDTHS))

    return (total(x, x) + total(y, y) - 2 * total(x, y)).float()


def chunked(x, y):
    return by_rows(x, y, kernels)


compiled_kernels = torch.compile(kernels)


def compiled(x, y):
    return by_rows(x, y, compiled_kernels)


def products_alone(x, y):
    for a, b in ((x, x), (y, y), (x, y)):
        out = a.new_empty(125, len(b))
        for c in a.split(125):
            torch.mm(c, b.T, out=out[: len(c)])


@pytest.mark.parametrize("method", [kernel, eager, chunked, compiled, products_alone], ids=lambda f: f.__name__)
@pytest.mark.parametrize("N", [4000, 20_000])
def bench_forward(timed, device, pick, method, N):
    if method in (eager, compiled) and N > 4000:
        pytest.skip("eager holds four matrices of 40,000 x 40,000 floats; compiled is compared at 4,000")
    N = pick(N // 40, N)
    x, y = torch.randn(N, 192, device=device), torch.randn(N, 192, device=device) + 0.2
    if method is compiled:
        try:
            compiled(x[:250], y[:250])
        except Exception as e:  # no compiler for this device
            pytest.skip(f"torch.compile: {type(e).__name__}")
    value = timed(lambda: method(x, y), f"mmd N=M={N} D=192, 5 bandwidths", 3 * 2 * N * N * 192)
    if method is not products_alone:
        torch.testing.assert_close(value, kernel(x, y), rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("method", [kernel, eager, chunked], ids=lambda f: f.__name__)
def bench_forward_and_backward(timed, device, pick, method):
    N = pick(100, 2000)
    x, y = (torch.randn(N, 192, device=device, requires_grad=True) for _ in range(2))
    timed(lambda: torch.autograd.grad(method(x, y), (x, y)), f"mmd with gradient N=M={N} D=192, 5 bandwidths")
