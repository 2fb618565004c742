"""Which readings become anchors and what they teach, against the equations written out."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cox_oom import anchors
from cox_oom.heads import match_shares


def world(seed, m=12, k=3, classes=4):
    g = torch.Generator().manual_seed(seed)
    logits, posteriors = torch.randn(m, classes, generator=g), torch.randn(k, m, classes, generator=g).softmax(-1)
    mask, label = torch.rand(m, generator=g) < 0.5, torch.randint(classes, (m,), generator=g)
    logp = torch.randn(m, classes, generator=g).log_softmax(-1)[mask].mean(0)
    return logits, anchors.Anchors({}, mask, label.where(mask, -1), posteriors, logp), g


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 1000), st.sampled_from(["expected", "literal"]))
def test_losses_are_means_over_the_batch_of_their_part(seed, kl):
    logits, chosen, _ = world(seed)
    j = torch.arange(len(logits))
    a, d = chosen.mask, ~chosen.mask
    agree, disagree = anchors.losses(logits, chosen, j, kl)
    by_hand = (
        -logits.log_softmax(-1)[a].gather(1, chosen.label[a, None]).sum() / len(j) if a.any() else torch.tensor(0.0)
    )
    torch.testing.assert_close(agree, by_hand)
    if not a.any():
        assert disagree is None
        return
    logp = logits.log_softmax(-1)[d]
    if kl == "expected":
        by_hand = -(chosen.posteriors.mean(0)[d] * logp).sum() / len(j)
    else:
        by_hand = (logp.exp() * (logp - chosen.mean_anchor_logp)).sum() / len(j)
    torch.testing.assert_close(disagree, by_hand)


def test_the_expected_class_is_the_optimum_of_its_loss():
    """Gradient descent on the logits of D alone ends at the item's own posterior, on A at its label."""
    _, chosen, g = world(3)
    logits = torch.zeros(12, 4, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def step():
        optimizer.zero_grad()
        loss = sum(anchors.losses(logits, chosen, torch.arange(12), "expected"))
        loss.backward()
        return loss

    optimizer.step(step)
    d = ~chosen.mask
    torch.testing.assert_close(logits.softmax(-1)[d].detach(), chosen.posteriors.mean(0)[d], atol=1e-3, rtol=0)
    assert torch.equal(logits.argmax(-1)[~d], chosen.label[~d])


@pytest.mark.parametrize("named", [True, False])
def test_emergent_pairs_are_the_nearest_in_all_mappings(named):
    """By float64 and by hand: an IM item's distance to a reading is the mean over its mappings; where heads know names,
    a pair of two classes leaves A."""
    g = torch.Generator().manual_seed(4)
    z, mapped = torch.randn(30, 5, generator=g), torch.randn(2, 20, 5, generator=g)
    y_im, label, mask = torch.arange(20) % 4, torch.randint(4, (30,), generator=g), torch.rand(30, generator=g) < 0.8
    found_mask, found_label, pairs = anchors.emergent_pairs(z, mapped, y_im, mask, label, 6, named)
    score, nearest = torch.cdist(z.double().expand(2, -1, -1), mapped.double()).mean(0).min(1)
    best, im = pairs["item"], pairs["im"]
    allowed = mask & (label == y_im[nearest]) if named else torch.ones(30, dtype=torch.bool)
    first = score.masked_fill(~allowed, torch.inf).argsort()[: min(6, int(allowed.sum()))]
    assert len(first) > 1 and torch.equal(best, first)
    assert torch.equal(im, nearest[best]) and torch.equal(pairs["label"], y_im[im])
    if named:
        assert torch.equal(found_mask, allowed) and torch.equal(found_label, label)
    else:
        assert torch.equal(found_mask.nonzero().squeeze(1), best.sort().values) and torch.equal(
            found_label, y_im[nearest]
        )


def test_the_surest_are_the_first_of_the_sorted_confidences():
    confidence = torch.tensor([0.2, 0.9, 0.5, 0.9, 0.7])
    assert anchors.surest(confidence, 3).tolist() == [1, 3, 4]
    assert anchors.surest(confidence, 9, torch.tensor([True, False, True, False, True])).tolist() == [4, 2, 0]
    mask, label = anchors.surest_classes(torch.tensor([[0.1, 0.9], [0.6, 0.4], [0.8, 0.2]]), 2)
    assert mask.tolist() == [True, False, True] and label.tolist() == [1, 0, 0]


@pytest.mark.parametrize("free", [True, False])
def test_heads_judge_as_their_posteriors_do(free):
    """Agreement by the fused operator against the heads' logits in float64, held to the class frequencies or not."""
    g = torch.Generator().manual_seed(5)
    z = torch.randn(200, 7, generator=g)
    heads = [(torch.randn(4, 7, generator=g), torch.randn(4, generator=g)) for _ in range(3)]
    shares = None if free else torch.tensor([0.4, 0.3, 0.2, 0.1])
    mask, label, confidence, weight, bias = anchors.judge(z, heads, shares)
    logits = torch.stack([z.double() @ w.double().T + b.double() for w, b in heads])
    if shares is not None:
        logits = logits + torch.stack([match_shares(t, shares.double()) for t in logits])[:, None]
    named = logits.argmax(-1)
    assert torch.equal(mask, (named == named[0]).all(0)) and torch.equal(label, named[0].where(mask, -1))
    p = logits.softmax(-1)
    torch.testing.assert_close(confidence.double(), p.amax(-1).mean(0), atol=1e-5, rtol=0)
    torch.testing.assert_close(anchors.posteriors_of(z, weight, bias).double(), p, atol=1e-5, rtol=0)
    if shares is not None:
        torch.testing.assert_close(p.mean(1), shares.double().expand(3, 4), atol=1e-2, rtol=0)
