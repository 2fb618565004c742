"""mmd, forward and with gradient, beside the N x N matrices in eager torch."""
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


METHODS = pytest.mark.parametrize("method", [kernel, eager], ids=lambda f: f.__name__)


@METHODS
def bench_forward(timed, device, scale, method):
    x, y = torch.randn(1000 * scale, 192, device=device), torch.randn(1000 * scale, 192, device=device) + 0.2
    value = timed(lambda: method(x, y), f"mmd N=M={1000 * scale} D=192, 5 bandwidths")
    torch.testing.assert_close(value, kernel(x, y), rtol=1e-2, atol=1e-4)


@METHODS
def bench_forward_and_backward(timed, device, scale, method):
    x, y = (torch.randn(500 * scale, 192, device=device, requires_grad=True) for _ in range(2))
    timed(lambda: torch.autograd.grad(method(x, y), (x, y)),
          f"mmd with gradient N=M={500 * scale} D=192, 5 bandwidths")
