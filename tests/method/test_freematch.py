"""FreeMatch against its equations written out in float64."""

from argparse import Namespace

import numpy as np
import torch

from cox_oom.methods import METHODS
from cox_oom.objectives import FreeThresholds, Model, Step, freematch


def posteriors(seed, items=40, classes=5):
    logits = 2 * torch.randn(items, classes, generator=torch.Generator().manual_seed(seed))
    return logits.softmax(-1)


def test_running_means_and_thresholds():
    state = FreeThresholds(5, 0.9)
    tau, p, h = 1 / 5, np.full(5, 1 / 5), np.full(5, 1 / 5)
    for seed in range(6):
        q = posteriors(seed)
        state.update(q)
        q = q.double().numpy()
        tau = 0.9 * tau + 0.1 * q.max(1).mean()
        p = 0.9 * p + 0.1 * q.mean(0)
        h = 0.9 * h + 0.1 * np.bincount(q.argmax(1), minlength=5) / len(q)
    np.testing.assert_allclose(state.tau, tau, rtol=1e-5)
    np.testing.assert_allclose(state.p, p, rtol=1e-5)
    np.testing.assert_allclose(state.h, h, rtol=1e-5)
    np.testing.assert_allclose(state.thresholds(), tau * p / p.max(), rtol=1e-5)
    assert state.thresholds().max() <= state.tau  # the most frequent class alone has the whole threshold


def test_fairness_is_the_term_of_the_paper():
    state, q = FreeThresholds(4, 0.5), posteriors(9, 30, 4)
    state.update(posteriors(8, 30, 4))
    q = q[q.argmax(1) != 2]  # a class that nothing is named
    named = np.bincount(q.argmax(1), minlength=4) / len(q)
    a = state.p.double().numpy() / state.h.double().numpy()
    b = np.where(named > 0, q.double().numpy().mean(0) / np.where(named > 0, named, 1), 0)
    a, b = a / a.sum(), b / b.sum()
    by_hand = (a * np.log(np.maximum(b, 1e-12))).sum()
    mixed = torch.cat([q[:7], posteriors(7, 9, 4), q[7:]])  # with nine that are not taken
    taken = torch.tensor([True] * 7 + [False] * 9 + [True] * (len(q) - 7))
    np.testing.assert_allclose(state.fairness(mixed, taken), by_hand, rtol=1e-4)
    assert state.fairness(mixed, taken & False) == 0


def test_only_confident_items_teach_and_each_class_has_its_threshold():
    """With logits that do not depend on the view: the loss is the mean over the batch of the taken items' losses."""

    class Fixed(torch.nn.Module):
        def forward(self, x, lengths=None):
            return x.flatten(1)[:, :3]

    head = torch.nn.Linear(3, 3)
    head.load_state_dict({"weight": torch.eye(3), "bias": torch.zeros(3)})
    state = FreeThresholds(3, 1.0, 5)  # it stays as it is
    state.tau.fill_(0.8)
    state.p.copy_(torch.tensor([0.6, 0.3, 0.1]))
    model = Model(Fixed(), head, extra=state)
    confident = torch.tensor([0.85, 0.75, 0.5, 0.35, 0.2])
    x = torch.zeros(5, 3, 1)
    for i, c in enumerate((0, 0, 1, 1, 2)):  # thresholds 0.8, 0.4, 0.133
        rest = (1 - confident[i]) / 2 if confident[i] > 1 / 3 else confident[i] - 0.05
        x[i, :, 0] = rest.log()
        x[i, c, 0] = confident[i].log()
    q = x[:, :, 0].softmax(-1)
    taken = [q[i].max() >= [0.8, 0.4, 0.8 / 6][q[i].argmax()] for i in range(5)]
    step = Step("series", x, None, torch.arange(5), True, slice(0, 5), z=x[:, :, 0], logits=x[:, :, 0])
    import cox_oom.objectives as module

    real, module.augment = module.augment, lambda kind, x, lengths, strength="weak", views=(): (x, lengths)
    try:
        found = freematch(Namespace(w_fair=0.0, w_pseudo=1.0), model, step)
    finally:
        module.augment = real
    by_hand = -sum(q[i].max().log() for i in range(5) if taken[i]) / 5
    torch.testing.assert_close(found["pseudo"], by_hand)
    assert taken == [True, False, True, False, True] and found["fair"] == 0
    torch.testing.assert_close(state.seen, q)


def test_it_is_a_row_like_any_other():
    row = METHODS["freematch"]
    assert (
        row.labels
        and row.learn is freematch
        and {f[0] for f in row.flags} == {"--free-momentum", "--w-fair", "--w-pseudo"}
    )
