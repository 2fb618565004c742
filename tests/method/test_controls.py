"""The controls of cox_oom/controls.py and UML against dense solves, scikit-learn and scipy."""

from argparse import Namespace
from types import SimpleNamespace

import echo
import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from sklearn.linear_model import Ridge
from sklearn.semi_supervised import LabelSpreading

from cox_oom import classical, controls, shapes
from cox_oom.augment import embed
from cox_oom.data.inputs import learner_inputs
from cox_oom.heads import Head
from cox_oom.learner import Learner
from cox_oom.objectives import SharedHead


def moons(n, seed):
    """Two crescents (n, 2) that no line parts, and their classes (n,)."""
    rng = np.random.default_rng(seed)
    t, y = rng.uniform(0, np.pi, n), np.arange(n) % 2
    x = np.stack([np.where(y, 1 - np.cos(t), np.cos(t)), np.where(y, 0.5 - np.sin(t), np.sin(t))], 1)
    return torch.from_numpy(x + 0.08 * rng.standard_normal(x.shape)), torch.from_numpy(y)


def world(file, labelled, seed=0):
    """The parts of Seed and Items that a control reads; every row is a training row."""
    y = torch.full_like(file["labels"], -1)
    y[labelled] = file["labels"][labelled]
    items = SimpleNamespace(oom=file, rows=torch.arange(len(y)), y=y, labelled=labelled, groups=None)
    return SimpleNamespace(place=SimpleNamespace(seed=seed)), items


def echoes(n, seed):
    rng = np.random.default_rng(seed)
    y = torch.arange(n) % 8
    made = learner_inputs("series", [echo.echo(rng, c) for c in y.tolist()], [True] * n)
    return {**made, "labels": y, "class_names": [f"c{k}" for k in range(8)]}


# ----------------------------------------------------------------------------------------------------- labelprop


def test_poisson_is_the_dense_solve():
    x, y = moons(120, 0)
    labelled = torch.tensor([0, 1, 20, 33, 50])
    weights = controls.graph(x, labelled)
    w = weights.toarray()
    assert (w == w.T).all() and (w.diagonal() == 0).all() and ((w > 0).sum(1) >= 5).all()
    u = controls.poisson(weights, labelled, y[labelled], 2).numpy()
    source = np.zeros((120, 2))
    known = np.eye(2)[y[labelled]]
    source[labelled] = known - known.mean(0)
    laplacian = np.diag(w.sum(1)) - w
    killed = np.linalg.solve(laplacian + controls.KILLED * np.diag(w.sum(1)), source)
    np.testing.assert_allclose(u, killed, atol=1e-5 * np.abs(killed).max())
    exact = np.linalg.pinv(laplacian) @ source  # the paper's, of which a constant is free
    exact += (u - exact).mean(0)
    assert np.abs(u - exact).max() < 0.05 * np.abs(exact).max()


def test_labels_follow_the_graph_as_label_spreading_says():
    x, y = moons(300, 1)
    labelled = torch.tensor([0, 1, 10, 11])
    u = controls.poisson(controls.graph(x, labelled), labelled, y[labelled], 2)
    hidden = np.full(300, -1)
    hidden[labelled] = y[labelled]
    theirs = LabelSpreading(kernel="knn", n_neighbors=10, alpha=0.99, max_iter=1000).fit(x.numpy(), hidden)
    assert (u.argmax(1) == y).double().mean() > 0.97
    assert (u.argmax(1).numpy() == theirs.transduction_).mean() > 0.97


def test_an_island_without_a_label_asks_the_nearest_labelled_item():
    x = torch.cat([torch.randn(40, 2, dtype=torch.float64) * 0.1 + c for c in (0.0, 5.0, 9.0)])
    labelled = torch.tensor([0, 40])
    u = controls.poisson(controls.graph(x, labelled), labelled, torch.tensor([0, 1]), 2)
    assert u.isfinite().all() and (u.argmax(1) == torch.tensor([0] * 40 + [1] * 80)).all()


def test_labelprop_names_echoes_new_ones_and_itself():
    file, labelled = echoes(240, 0), torch.arange(48)
    state = controls.labelprop(*world(file, labelled))
    assert all(holds for holds, _ in shapes.of_classical(state, 8)) and state["cv_accuracy"] > 0.6
    right = lambda f: (classical.logits(state, f, torch.arange(240)).argmax(1) == f["labels"]).double().mean()
    assert right(file) > 0.85 and right(echoes(240, 5)) > 0.85
    one = torch.cat([classical.logits(state, file, torch.tensor([r])) for r in range(8)])
    torch.testing.assert_close(one, classical.logits(state, file, torch.arange(8)), rtol=1e-4, atol=1e-4)
    assert classical.logits(state, file, torch.arange(0)).shape == (0, 8)
    again = controls.labelprop(*world(file, labelled))
    assert all(torch.equal(state[k], again[k]) for k in ("points", "values"))


def test_no_group_is_on_both_sides_of_a_fold():
    y, groups = torch.arange(60) % 3, torch.arange(60) // 6
    folds = classical.folds_of(y, 0, groups)
    assert len(folds) > 1 and sorted(torch.cat([judge for _, judge in folds]).tolist()) == list(range(60))
    assert all(not {*groups[fit].tolist()} & {*groups[judge].tolist()} for fit, judge in folds)
    assert classical.folds_of(torch.arange(5), 0) == []


@pytest.mark.parametrize("labelled", [[0], [0, 1], [0, 8, 16], list(range(8)), [0, 8, 1, 9, 2]])
def test_few_labels(labelled):
    """Finite, and a class without a label is never named."""
    file = echoes(40, 2)
    state = controls.labelprop(*world(file, torch.tensor(labelled)))
    out = classical.logits(state, file, torch.arange(40))
    assert out.isfinite().all() and set(out.argmax(1).tolist()) <= {r % 8 for r in labelled}


@pytest.mark.parametrize("name", ["points", "project", "values", "mean"])
def test_a_state_of_other_shape_is_told(name):
    file = echoes(40, 4)
    state = controls.labelprop(*world(file, torch.arange(24)))
    assert any(not holds for holds, _ in shapes.of_classical({**state, name: state[name][:-1]}, 8))


# ---------------------------------------------------------------------------------------------------- procrustes


def test_maps_are_those_of_scipy_and_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 12, generator=generator, dtype=torch.float64) + 3
    turn = torch.from_numpy(scipy.stats.ortho_group.rvs(12, random_state=0))
    z = 2.5 * x @ turn + 1 + 0.01 * torch.randn(60, 12, generator=generator, dtype=torch.float64)
    weights, offset = controls.mapped(x, z, 0.0)
    theirs, size = scipy.linalg.orthogonal_procrustes((x - x.mean(0)).numpy(), (z - z.mean(0)).numpy())
    theirs = theirs * size / (x - x.mean(0)).square().sum().item()
    np.testing.assert_allclose(weights, theirs, atol=1e-10)
    np.testing.assert_allclose(x @ weights + offset, z, atol=0.1)
    weights, offset = controls.mapped(x, z[:, :5], 7.0)
    ridge = Ridge(alpha=7.0).fit(x.numpy(), z[:, :5].numpy())
    np.testing.assert_allclose(x @ weights + offset, ridge.predict(x.numpy()), atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_procrustes_names_what_the_im_heads_name(ridge):
    """Learner features that are a turned copy of the IM features: pairs of three classes of four are enough to name
    the fourth, since no label of a reading is used."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 4
    learner = Learner(kind="series", shape=(1, 16), width=16, depth=1)
    file = learner_inputs("series", torch.randn(200, 1, 16, generator=generator).numpy(), [True] * 200)
    z = embed(learner, file, torch.arange(200), "cpu")[0]
    turn = torch.from_numpy(scipy.stats.ortho_group.rvs(16, random_state=1)).float()
    z_im = (z - z.mean(0)) @ turn
    im_head = Head(16, 4)
    im_head.linear.weight.data = torch.randn(4, 16, generator=generator)
    im_head.linear.bias.data = torch.zeros(4)
    truth = im_head(z_im)
    own = torch.arange(120)[y[:120] < 3]
    items = SimpleNamespace(oom=file, rows=torch.arange(200), pairs={"rgb": (own, own)})
    bridge = SimpleNamespace(names=["rgb"], z_im={"rgb": z_im})
    seed = SimpleNamespace(connect={"im_heads": {"rgb": im_head.state_dict()}})
    head = torch.nn.Linear(16, 4)
    controls.procrustes(Namespace(device="cpu", ridge=ridge), learner, head, bridge, seed, items)
    assert (head(z).argmax(1) == truth.argmax(1)).double().mean() > 0.97
    torch.testing.assert_close(head(z), truth, atol=0.05, rtol=0.02)


# ----------------------------------------------------------------------------------------------------------- uml


def test_uml_teaches_the_head_by_known_items():
    torch.manual_seed(0)
    head, y = torch.nn.Linear(16, 3), torch.arange(60) % 3
    shared = SharedHead(16, {"rgb": torch.eye(3)[y], "text": torch.eye(3)[y].repeat(1, 2)}, {"rgb": y, "text": y})
    assert not [n for n in shared.state_dict() if "items" in n] and len(shared.enter) == 2  # no bank in a checkpoint
    optimizer = torch.optim.Adam([*head.parameters(), *shared.parameters()], lr=1e-2)
    before = head.weight.detach().clone()
    losses = []
    for _ in range(60):
        loss = shared.loss(head, 32)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0] and (head.weight - before).abs().max() > 0.1


def test_uml_is_the_mean_cross_entropy_over_modalities():
    """With one item a modality the random batch is known: the loss by hand."""
    head = torch.nn.Linear(4, 3)
    z = {"a": torch.tensor([[1.0, 3.0]]), "b": torch.tensor([[2.0, -1.0, 5.0]])}
    shared = SharedHead(4, z, {"a": torch.tensor([2]), "b": torch.tensor([0])})
    by_hand = 0
    for own, enter, y in zip(z.values(), shared.enter, (2, 0)):
        logits = head.weight @ (enter.weight @ (own[0] / own.std()) + enter.bias) + head.bias
        by_hand -= logits.log_softmax(0)[y] / 2
    torch.testing.assert_close(shared.loss(head, 8), by_hand)
