"""heads_agreement beside the logits in eager torch, the kernel on whole logits, and the heads' products alone."""

import pytest
import torch

import cox_ops


def kernel(z, weight, bias):
    return cox_ops.heads_agreement(z, weight, bias)[0]


def eager(z, weight, bias):
    logits = z @ weight.mT + bias[:, None]
    label = logits.argmax(-1)
    logits.softmax(-1).amax(-1).mean(0)
    return (label == label[0]).all(0)


def unfused(z, weight, bias):
    return cox_ops.modality_agreement(torch.baddbmm(bias[:, None], z.expand(len(weight), -1, -1), weight.mT))[0]


def products_alone(z, weight, bias):
    return [torch.mm(z, w.T) for w in weight]


def products_in_cache_alone(z, weight, bias, rows=1024):
    heads = weight.flatten(0, 1).T
    out = z.new_empty(rows, heads.shape[1])
    for c in z.split(rows):
        torch.mm(c, heads, out=out[: len(c)])


@pytest.mark.parametrize(
    "method", [kernel, eager, unfused, products_alone, products_in_cache_alone], ids=lambda f: f.__name__
)
def bench_heads_agreement(timed, device, pick, method):
    M, K, C, D = pick(1000, 200_000), 3, 309, 192
    z, weight, bias = (torch.randn(s, device=device) for s in ((M, D), (K, C, D), (K, C)))
    got = timed(lambda: method(z, weight, bias), f"heads_agreement M={M} K={K} C={C} D={D}", 2 * M * K * C * D)
    if method in (eager, unfused):  # another order of additions may name another of two equal classes
        assert (got != kernel(z, weight, bias)).float().mean() < 1e-4
