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


def reading_alone(score, t):
    return score.sum()


@pytest.mark.parametrize("method", [kernel, topk, stable_sort, reading_alone], ids=lambda f: f.__name__)
def bench_top_anchors(timed, device, pick, method):
    M = pick(10_000, 10_000_000)
    score = torch.randn(M, device=device)
    got = timed(lambda: method(score, M // 10), f"top_anchors M={M} t=M/10", M * 4)
    if method is not reading_alone:
        torch.testing.assert_close(score[got], score[cox_ops.top_anchors(score, M // 10)])


def bench_top_anchors_with_quota(timed, device, pick):
    M = pick(10_000, 10_000_000)
    score, classes = torch.randn(M, device=device), torch.randint(0, 309, (M,), device=device)
    timed(
        lambda: cox_ops.top_anchors(score, M // 10, classes=classes, quota=M // 3090),
        f"top_anchors with quota M={M} t=M/10, 309 classes",
        M * 12,
    )
