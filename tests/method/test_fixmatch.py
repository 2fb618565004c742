"""FixMatch against its equations in float64: targets, threshold, the mean over the batch, what gets a gradient."""

from argparse import Namespace

import numpy as np
import pytest
import torch

import cox_oom.objectives as objectives
from cox_oom.methods import METHODS
from cox_oom.objectives import Model, Step, fixmatch


class Pixels(torch.nn.Module):
    """A learner whose features are its input by a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.map = torch.nn.Linear(6, 4)

    def forward(self, x, lengths=None):
        return self.map(x.flatten(1))


def loss_of_the_paper(model, weak, strong, threshold):
    """Eq. 4 in numpy: 1/B sum of 1(max q >= threshold) H(argmax q, p), q of the weak and p of the strong views."""
    layers = [
        (m.weight.detach().double().numpy(), m.bias.detach().double().numpy()) for m in (model.learner.map, model.head)
    ]

    def posteriors(x):
        for weight, bias in layers:
            x = x @ weight.T + bias
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    q, p = posteriors(weak), posteriors(strong)
    own = -np.log(p[np.arange(len(q)), q.argmax(1)])
    taken = q.max(1) >= threshold
    return (taken * own).sum() / len(q), taken


@pytest.fixture
def views(monkeypatch):
    """Two fixed views of a batch of 32, in the place of the random augmentation."""
    generator = torch.Generator().manual_seed(3)
    found = {strength: 2 * torch.randn(32, 1, 6, generator=generator) for strength in ("weak", "strong")}
    monkeypatch.setattr(
        objectives, "augment", lambda kind, x, lengths, strength="weak", views=(): (found[strength], lengths)
    )
    return found


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_loss_and_gradient_are_those_of_the_paper(views, threshold, weight):
    model = Model(Pixels(), torch.nn.Linear(4, 3))
    step = Step("series", views["weak"], None, torch.arange(32), True, slice(0, 32))
    step.z = model.learner(*METHODS["fixmatch"].view(Namespace(), step))  # as methods.terms shows it the view
    step.logits = model.head(step.z)
    loss = fixmatch(Namespace(threshold=threshold, w_pseudo=weight), model, step)["pseudo"]
    weak, strong = (views[k].double().flatten(1).numpy() for k in ("weak", "strong"))
    expected, taken = loss_of_the_paper(model, weak, strong, threshold)
    assert loss.item() == pytest.approx(weight * expected, rel=1e-5, abs=1e-9)
    if threshold in (0.5, 0.7):
        assert 0 < taken.sum() < 32
    loss.backward()
    step_size, bias = 1e-4, model.head.bias.detach().clone()
    for c in range(3):  # by differences, the pseudo-labels held: nothing flows through the weak view
        found = []
        for sign in (1, -1):
            moved = Model(Pixels(), torch.nn.Linear(4, 3))
            moved.load_state_dict(model.state_dict())
            moved.head.bias.data = bias + sign * step_size * torch.eye(3)[c]
            logits = moved.head(moved.learner(views["strong"])).double()
            pseudo = model.head(model.learner(views["weak"])).argmax(1)
            own = -logits.log_softmax(1)[torch.arange(32), pseudo]
            found.append(weight * (own.detach().numpy() * taken).sum() / 32)
        assert model.head.bias.grad[c].item() == pytest.approx((found[0] - found[1]) / (2 * step_size), abs=2e-3)


def test_it_is_searched_over_threshold_and_weight():
    row = METHODS["fixmatch"]
    assert {f[0] for f in row.flags} == {"--threshold", "--w-pseudo"} and len(row.grid) == 6
    assert row.grid[0] == "--threshold 0.95 --w-pseudo 1"  # its defaults first
