"""nearest_anchor beside chunked torch.cdist, the norms trick in eager torch, and the K float32 products
alone."""
import pytest
import torch

import cox_ops

CHUNK = 1024


def kernel(z, v):
    return cox_ops.nearest_anchor(z, v)


def cdist(z, v):
    parts = [sum(torch.cdist(c, vk) for vk in v).div(len(v)).min(1) for c in z.split(CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def norms_trick(z, v):
    vv = v.square().sum(-1)
    parts = []
    for c in z.split(CHUNK):
        cc = c.square().sum(-1, keepdim=True)
        total = sum((cc + vv[k] - 2 * c @ v[k].T).clamp(min=0).sqrt() for k in range(len(v)))
        parts.append((total / len(v)).min(1))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def products_alone(z, v):
    return [c @ vk.T for c in z.split(CHUNK) for vk in v]


@pytest.mark.parametrize("D", [192, 1024])
@pytest.mark.parametrize("method", [kernel, cdist, norms_trick, products_alone], ids=lambda f: f.__name__)
def bench_nearest_anchor(timed, device, scale, method, D):
    M = N = 1024 * scale
    z, v = torch.randn(M, D, device=device), torch.randn(2, N, D, device=device)
    result = timed(lambda: method(z, v), f"nearest_anchor M=N={M} K=2 D={D}", 2 * 2 * M * N * D)
    if method is not products_alone:
        torch.testing.assert_close(result[0], cox_ops.nearest_anchor(z, v)[0], rtol=1e-3, atol=1e-3)
