"""modality_agreement beside argmax and softmax, eager and compiled, and beside reading the same bytes."""

import pytest
import torch

import cox_ops


def kernel(logits):
    return cox_ops.modality_agreement(logits)[0]


def eager(logits):
    label = logits.argmax(-1)
    logits.softmax(-1).amax(-1).mean(0)
    return (label == label[0]).all(0)


@torch.compile
def both(logits):
    label = logits.argmax(-1)
    return (label == label[0]).all(0), logits.softmax(-1).amax(-1).mean(0)


def compiled(logits):
    return both(logits)[0]


def reading_alone(logits):
    return logits.sum()


@pytest.mark.parametrize("method", [kernel, eager, compiled, reading_alone], ids=lambda f: f.__name__)
def bench_modality_agreement(timed, device, pick, method):
    M = pick(1000, 200_000)
    logits = torch.randn(3, M, 309, device=device)
    if method is compiled:
        try:
            compiled(logits[:, :10])
        except Exception as e:  # no compiler for this device
            pytest.skip(f"torch.compile: {type(e).__name__}")
    got = timed(lambda: method(logits), f"modality_agreement K=3 M={M} C=309", logits.numel() * 4)
    if method is not reading_alone:
        assert torch.equal(got, cox_ops.modality_agreement(logits)[0])
