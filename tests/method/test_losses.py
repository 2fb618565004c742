"""Losses on posteriors: the literal KL, entropy and InfoNCE, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from cox_oom.anchors import kl_literal
from cox_oom.objectives import entropy
from cox_oom.perceptors.bind import info_nce


def posterior_logp(n, c, seed=0):
    return (2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)


def test_kl_literal_is_the_mean_over_all_pairs():
    d, a = posterior_logp(7, 4), posterior_logp(5, 4, 1)
    logits = d + 3.0  # logits are known up to a constant
    loops = [kl_divergence(Categorical(logits=x), Categorical(logits=y)) for x in d for y in a]
    torch.testing.assert_close(kl_literal(logits, a.mean(0)).mean(), torch.stack(loops).mean())


def test_kl_literal_with_one_anchor_is_the_kl_to_it():
    d, a = posterior_logp(7, 4), posterior_logp(1, 4, 1)
    loop = [kl_divergence(Categorical(logits=x), Categorical(logits=a[0])) for x in d]
    torch.testing.assert_close(kl_literal(d - 1.0, a[0]), torch.stack(loop))
    assert kl_literal(a.expand(3, 4), a[0]).abs().max() < 1e-12


def test_entropy():
    logp = posterior_logp(9, 5)
    torch.testing.assert_close(entropy(logp + 2), Categorical(logits=logp).entropy().mean())
    torch.testing.assert_close(entropy(torch.zeros(3, 7)), torch.tensor(math.log(7)))
    assert entropy(torch.tensor([[1e4, 0.0, 0.0]])) == 0  # certain: 0, not NaN


def test_info_nce_against_a_loop():
    a, b = (F.normalize(torch.randn(6, 4, dtype=torch.float64), dim=-1) for _ in range(2))
    total = 0.0
    for i in range(6):
        for x, y in ((a, b), (b, a)):
            scores = [math.exp(10 * float(x[i] @ y[j])) for j in range(6)]
            total -= math.log(scores[i] / sum(scores)) / 12
    assert info_nce(a, b, 10.0).item() == pytest.approx(total, rel=1e-9)
    assert info_nce(a, a, 100.0) < info_nce(a, b, 100.0)
