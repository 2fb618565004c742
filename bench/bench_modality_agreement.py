"""modality_agreement beside argmax and softmax in eager torch, and beside reading the same bytes once."""
import pytest
import torch

import cox_ops


def kernel(logits):
    return cox_ops.modality_agreement(logits)[0]


def eager(logits):
    label = logits.argmax(-1)
    logits.softmax(-1).amax(-1).mean(0)
    return (label == label[0]).all(0)


def reading_alone(logits):
    return logits.sum()


@pytest.mark.parametrize("method", [kernel, eager, reading_alone], ids=lambda f: f.__name__)
def bench_modality_agreement(timed, device, scale, method):
    M = 5000 * scale
    logits = torch.randn(3, M, 309, device=device)
    got = timed(lambda: method(logits), f"modality_agreement K=3 M={M} C=309", logits.numel() * 4)
    if method is eager:
        assert torch.equal(got, cox_ops.modality_agreement(logits)[0])
