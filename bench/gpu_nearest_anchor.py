"""nearest_anchor at a bank's full size, on a GPU alone: the default kernel and the bf16 screen beside the peers and the
products in float32 and bfloat16. `make gpu-check` runs it.
"""

import os

import pytest
import torch

import cox_ops
from bench.bench_nearest_anchor import cdist, norms_trick

ROWS = 4096  # of a product at a time: 1 GiB of results in bfloat16


def kernel(z, v):
    return cox_ops.nearest_anchor(z, v)


def screened(z, v):
    before = os.environ.get("COX_CUDA_SCREEN")
    os.environ["COX_CUDA_SCREEN"] = "1"
    try:
        return cox_ops.nearest_anchor(z, v)
    finally:
        if before is None:
            del os.environ["COX_CUDA_SCREEN"]
        else:
            os.environ["COX_CUDA_SCREEN"] = before


def products_alone(z, v):
    out = z.new_empty(ROWS, v.shape[1])
    for c in z.split(ROWS):
        for vk in v:
            torch.mm(c, vk.T, out=out[: len(c)])


def bfloat16_products_alone(z, v):
    products_alone(z, v)


@pytest.mark.parametrize("kind", ["gaussian", "agreeing"])
@pytest.mark.parametrize("D", [192, 1024])
@pytest.mark.parametrize(
    "method", [kernel, screened, cdist, norms_trick, products_alone, bfloat16_products_alone], ids=lambda f: f.__name__
)
def bench_full_size(timed, device, pick, method, D, kind):
    if device != "cuda":
        pytest.skip("no GPU here")
    if kind == "agreeing" and method is not screened:
        pytest.skip("takes the same time whatever the values")
    M = N = pick(512, 131_072)
    z, v = torch.randn(M, D, device=device), torch.randn(2, N, D, device=device)
    if kind == "agreeing":
        v = torch.randn(1, N, D, device=device) + 0.2 * v
    low = method is bfloat16_products_alone
    args = (z.bfloat16(), v.bfloat16()) if low else (z, v)
    got = timed(lambda: method(*args), f"nearest_anchor M=N={M} K=2 D={D} {kind}", 2 * 2 * M * N * D)
    if method is screened:
        want = kernel(z[:2048], v)
        assert torch.equal(got[0][:2048], want[0]) and torch.equal(got[1][:2048], want[1])
    elif got is not None:
        torch.testing.assert_close(got[0][:2048], kernel(z[:2048], v)[0], rtol=1e-3, atol=1e-3)
