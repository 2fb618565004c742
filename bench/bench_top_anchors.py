"""top_anchors beside torch.topk and a stable torch.sort."""
import pytest
import torch

import cox_ops


def kernel(score, t):
    return cox_ops.top_anchors(score, t)


def topk(score, t):
    return score.topk(t, largest=False).indices


def stable_sort(score, t):
    return score.sort(stable=True).indices[:t]


@pytest.mark.parametrize("method", [kernel, topk, stable_sort], ids=lambda f: f.__name__)
def bench_top_anchors(timed, device, scale, method):
    M = 200_000 * scale
    score = torch.randn(M, device=device)
    got = timed(lambda: method(score, M // 10), f"top_anchors M={M} t=M/10")
    torch.testing.assert_close(score[got], score[cox_ops.top_anchors(score, M // 10)])


def bench_top_anchors_with_quota(timed, device, scale):
    M = 200_000 * scale
    score, classes = torch.randn(M, device=device), torch.randint(0, 309, (M,), device=device)
    timed(lambda: cox_ops.top_anchors(score, M // 10, classes=classes, quota=M // 3090),
          f"top_anchors with quota M={M} t=M/10, 309 classes")
