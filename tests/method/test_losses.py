"""Losses on posteriors: the KL, matched and literal, its target; entropy and InfoNCE, against loops."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, kl_divergence

from cox_oom.anchors import kl_literal, kl_matched, matched_target
from cox_oom.objectives import entropy
from cox_oom.perceptors.bind import info_nce


def posterior_logp(n, c, seed=0):
    return (2 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).log_softmax(-1)


def test_kl_literal_is_the_mean_over_all_pairs():
    d, a = posterior_logp(7, 4), posterior_logp(5, 4, 1)
    logits = d + 3.0  # logits are known up to a constant
    loops = [kl_divergence(Categorical(logits=x), Categorical(logits=y)) for x in d for y in a]
    torch.testing.assert_close(kl_literal(logits, a.mean(0)).mean(), torch.stack(loops).mean())


def test_kl_literal_with_one_anchor_is_kl_matched():
    d, a = posterior_logp(7, 4), posterior_logp(1, 4, 1)
    torch.testing.assert_close(kl_literal(d, a[0]), kl_matched(d, a.exp().expand(7, 4)))


def test_kl_matched_is_the_kl_to_each_target():
    d, target = posterior_logp(7, 4), posterior_logp(7, 4, 1).exp()
    loop = [kl_divergence(Categorical(logits=x), Categorical(probs=t)) for x, t in zip(d, target)]
    torch.testing.assert_close(kl_matched(d - 1.0, target), torch.stack(loop))
    assert kl_matched(target.log(), target).abs().max() < 1e-12
    assert kl_matched(d, F.one_hot(d.argmax(1), 4).double()).isfinite().all()  # a target of zeros and ones


def class_posteriors(c, seed=5):
    return torch.rand(c, c, generator=torch.Generator().manual_seed(seed)).softmax(-1)


def matched_by_loop(heads, rows, smooth):
    k, b, c = heads.shape
    out = torch.zeros(b, c)
    for i in range(b):
        named = {int(heads[m, i].argmax()) for m in range(k)}
        weights = {n: float(heads[:, i, n].mean()) for n in named if not rows[n].isnan().any()}
        t = sum(w * rows[n] for n, w in weights.items()) / sum(weights.values()) if weights else heads[:, i].mean(0)
        out[i] = (1 - smooth) * t + smooth / c
    return out


@pytest.mark.parametrize("k", [1, 2, 4])
def test_matched_target_against_a_loop(k):
    heads = (2 * torch.randn(k, 30, 5)).softmax(-1)
    rows = class_posteriors(5)
    rows[1], rows[4] = float("nan"), float("nan")  # classes without anchors
    target = matched_target(heads, rows)
    torch.testing.assert_close(target, matched_by_loop(heads, rows, 0.01), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(target.sum(-1), torch.ones(30))
    assert (target >= 0.01 / 5 - 1e-6).all()


def test_matched_target_of_certain_heads_is_their_class_posterior():
    rows = class_posteriors(4)
    heads = F.one_hot(torch.tensor([[0, 3, 2]] * 3), 4).float()  # (3 heads, 3 items, 4)
    torch.testing.assert_close(matched_target(heads, rows, smooth=0.0), rows[[0, 3, 2]])


def test_matched_target_of_two_certain_heads_is_the_middle():
    rows = class_posteriors(4)
    heads = F.one_hot(torch.tensor([[0], [3]]), 4).float()
    torch.testing.assert_close(matched_target(heads, rows, smooth=0.0), rows[[0, 3]].mean(0, keepdim=True))


def test_matched_target_without_any_anchor_is_the_heads_mean():
    heads = torch.randn(2, 6, 3).softmax(-1)
    target = matched_target(heads, torch.full((3, 3), float("nan")), smooth=0.0)
    torch.testing.assert_close(target, heads.mean(0))
    assert target.isfinite().all()


def test_the_kl_moves_the_learner_alone():
    logits = torch.randn(6, 3, requires_grad=True)
    heads, rows = torch.randn(2, 6, 3).softmax(-1), class_posteriors(3)
    kl_matched(logits, matched_target(heads, rows)).mean().backward()
    assert logits.grad.abs().max() > 1e-3 and not heads.requires_grad and not rows.requires_grad
    start, goal = torch.randn(6, 3), matched_target(heads, rows)
    p = start.clone().requires_grad_()
    opt = torch.optim.SGD([p], lr=2.0)
    for _ in range(500):
        opt.zero_grad()
        kl_matched(p, goal).mean().backward()
        opt.step()
    torch.testing.assert_close(p.detach().softmax(-1), goal, atol=0.02, rtol=0)


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
