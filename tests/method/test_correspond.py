"""Soft correspondence, on worlds whose partners are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cox_oom.connect import common_items
from cox_oom.correspond import (
    Source,
    class_posteriors,
    correspond,
    drawn,
    held_out_gain,
    known_items,
    labels_alone,
    principal,
    shared_vectors,
    whiten,
)
from cox_oom.labels import class_frequencies
from cox_oom.teacher import explain


def shared_world(seed=0, m=300, classes=5, p=12, d=8, noise=0.3):
    """The same m objects on both sides, x (m, p) and z = xB + noise (m, d); each class is four groups of objects."""
    g = torch.Generator().manual_seed(seed)
    y, group = torch.arange(m) % classes, torch.randint(4, (m,), generator=g)
    x = 2 * torch.randn(classes, 4, p, generator=g)[y, group] + 0.5 * torch.randn(m, p, generator=g)
    z = x @ torch.randn(p, d, generator=g) / p**0.5 + noise * torch.randn(m, d, generator=g)
    return whiten(z, d), whiten(x, p), y, torch.bincount(y).float() / m


def given(y, count):
    """Labels and partners (M,) of the first `count` items, -1 for the others."""
    kept = torch.arange(len(y)) < count
    return y.where(kept, -1), torch.arange(len(y)).where(kept, -1)


def test_whitened_components_are_uncorrelated_with_unit_variance():
    x = torch.randn(200, 30, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 31.0) + 5
    z = whiten(x, 10)
    torch.testing.assert_close(z.T @ z / 200, torch.eye(10), atol=1e-4, rtol=1e-4)
    assert whiten(x[:, :3].repeat(1, 2), 10).shape == (200, 3)  # rank, not width


@pytest.mark.parametrize("shape", [(2500, 40), (2100, 30), (1200, 1100), (300, 400)])
def test_principal_components_are_those_of_numpys_svd(shape):
    """By the Gram matrix, and by the SVD; a column that says nothing, and a mean far from 0."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=g) * 0.9 ** torch.arange(shape[1]) + 30
    x[:, 3] = 7
    scores, values = principal(x, 12)
    u, s, _ = np.linalg.svd(x.double().numpy() - x.double().numpy().mean(0), full_matrices=False)
    np.testing.assert_allclose(values.numpy(), s[:12], rtol=1e-7)
    np.testing.assert_allclose(np.abs((scores.numpy() * u[:, :12]).sum(0)), 1, rtol=1e-6)
    torch.testing.assert_close(scores.T @ scores, torch.eye(12, dtype=torch.float64), atol=1e-7, rtol=0)


def test_shared_vectors_begin_with_what_all_modalities_show():
    """Three banks of 4 common and 6 private directions each, the private ones louder: PCA of the banks side by side
    takes the private ones first, the shared vectors the common ones."""
    g = torch.Generator().manual_seed(0)
    common = torch.randn(500, 4, generator=g)
    banks = [
        torch.cat([common, 3 * torch.randn(500, 6, generator=g)], 1)
        @ torch.linalg.qr(torch.randn(10, 10, generator=g))[0]
        for _ in range(3)
    ]

    def missed(x):
        """The share of `common` that is not explained."""
        y = common - common.mean(0)
        explained = torch.linalg.lstsq(x, y).solution.T.matmul(x.T @ y).diagonal().sum().item()
        return 1 - explained / y.square().sum().item()

    x = shared_vectors(banks, 22)
    assert missed(x[:, :4]) < 0.02 and missed(whiten(torch.cat(banks, 1), 22)[:, :4]) > 0.9
    torch.testing.assert_close(x.square().mean(), torch.tensor(1.0))
    variance = x.var(0)
    assert (variance.diff() <= 1e-5).all() and variance[3] > 1.2 * variance[4]
    torch.testing.assert_close((x.T @ x / 500).fill_diagonal_(0), torch.zeros(22, 22), atol=1e-4, rtol=0)
    scaled = [b * s for b, s in zip(banks, (1, 100, 0.01))]  # units do not matter
    assert shared_vectors(scaled, 22).allclose(x, atol=1e-3)
    assert shared_vectors([torch.randn(50, 300, generator=g)]).shape == (50, 49)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_correspondences_know_more_than_the_labels(seed):
    z, x, y, shares = shared_world(seed, m=1500)
    y_z, partner = given(y, 20)  # 4 pairs per class
    posterior, expected = correspond(z, y_z, partner, x, y, shares, rounds=10)
    alone, _ = correspond(z, y_z, **vars(labels_alone(y_z, shares)), rounds=10)

    def right(q):
        return (q[20:].argmax(1) == y[20:]).float().mean().item()

    assert right(posterior) > right(alone) + 0.05
    torch.testing.assert_close(posterior.sum(1), torch.ones(len(z)))
    assert torch.equal(posterior[:20], F.one_hot(y[:20], 5).float())
    assert (posterior[20:].mean(0) - shares).abs().max() < 0.08
    torch.testing.assert_close(expected[:20], x[:20])  # of a pair its own, of the others what z tells
    least = (x[20:] - F.one_hot(y[20:], 5).float() @ (F.one_hot(y, 5).float().T @ x / 300)).square().mean()
    assert (x[20:] - expected[20:]).square().mean() < 0.9 * least  # closer than the true class's mean


@pytest.mark.parametrize("freedom", [2.0, 5.0, 1e5])
def test_without_im_data_it_is_classes_with_a_common_covariance(freedom):
    """One round without IM data: means, unit covariance and Student's t (1e5: a Gaussian) on float64 by hand."""
    z, _, y, shares = shared_world(1)
    y_z, _ = given(y, 25)
    posterior, _ = correspond(z, y_z, **vars(labels_alone(y_z, shares)), rounds=1, freedom=freedom)
    means = torch.stack([z[:25][y[:25] == c].double().mean(0) for c in range(5)])
    far = torch.cdist(z[25:].double(), means) ** 2
    expected = -0.5 * far if freedom > 1e4 else -(freedom + 8) / 2 * (1 + far / freedom).log()
    expected = expected.softmax(1).float()
    torch.testing.assert_close(posterior[25:], expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("coverage", [1.0, 0.4, 0.0])
def test_class_posteriors_have_the_labels_and_the_class_frequencies(coverage):
    z, x, y, _ = shared_world(7)
    y_z, partner = given(y, 25)
    skewed = torch.tensor([0.4, 0.3, 0.1, 0.1, 0.1])
    source = Source(partner, x, y, skewed, coverage)
    q, expected = class_posteriors([z, z[:, :4]], y_z, source, temper=0.5)
    (one, told), (two, also_told) = correspond(z, y_z, **vars(source)), correspond(z[:, :4], y_z, **vars(source))
    torch.testing.assert_close(expected, (told + also_told) / 2)
    assert torch.equal(q[:25], F.one_hot(y[:25], 5).float())
    plain = (one.clamp(min=1e-6) * two.clamp(min=1e-6)).sqrt()  # the geometric mean of the two views
    by_hand = plain[25:].sqrt()  # tempered by 0.5
    if coverage:
        bias = (q[25:] / by_hand).log()  # one a class, up to each item's own normalisation
        bias = bias - bias.mean(1, keepdim=True)
        torch.testing.assert_close(bias, bias[:1].expand_as(bias), atol=1e-3, rtol=0)
        mean = torch.softmax(plain[25:].log() + 2 * bias[0], 1).mean(0)  # before the temper
        own = (plain[25:] / plain[25:].sum(1, keepdim=True)).mean(0)
        torch.testing.assert_close(mean, coverage * skewed + (1 - coverage) * own, atol=0.02, rtol=0)
    else:
        torch.testing.assert_close(q[25:], by_hand / by_hand.sum(1, keepdim=True))


def test_readings_like_no_other_do_not_bend_the_fit():
    """A few readings blown up a hundredfold: the others' classes stay as they were; with Gaussian tails they do not."""
    z, x, y, shares = shared_world(8, m=600)
    y_z, partner = given(y, 30)
    broken = z.clone()
    broken[-12:] *= 100

    def right(z, freedom):
        posterior, _ = correspond(z, y_z, partner, x, y, shares, freedom=freedom)
        return (posterior[30:-12].argmax(1) == y[30:-12]).float().mean().item()

    assert right(broken, 5.0) > right(z, 5.0) - 0.03
    assert right(broken, 1e5) < right(z, 1e5) - 0.1


def test_neither_threads_nor_the_order_of_items_matter(threads):
    z, x, y, shares = shared_world(3)
    y_z, partner = given(y, 20)
    whole = correspond(z, y_z, partner, x, y, shares)
    assert [t.shape for t in whole] == [(300, 5), (300, 12)]
    with threads(2):
        torch.testing.assert_close(correspond(z, y_z, partner, x, y, shares), whole, atol=1e-3, rtol=1e-3)
    order = torch.cat([torch.arange(20), 20 + torch.randperm(len(x) - 20, generator=torch.Generator().manual_seed(0))])
    torch.testing.assert_close(correspond(z, y_z, partner, x[order], y[order], shares), whole, atol=1e-3, rtol=1e-3)


def test_a_fit_to_a_part_names_all_nearly_as_well():
    """The rounds before the last take 300 readings and items of 1500, in which every pair is."""
    z, x, y, shares = shared_world(3, m=1500)
    y_z, partner = given(y, 40)
    right = {}
    for fit in (0, 300, 1500, 2000):
        q, expected = correspond(z, y_z, partner, x, y, shares, fit=fit)
        right[fit] = (q[40:].argmax(1) == y[40:]).float().mean().item()
        torch.testing.assert_close(q.sum(1), torch.ones(1500))
        torch.testing.assert_close(expected[:40], x[:40])
    assert right[1500] == right[2000] == right[0] and abs(right[300] - right[0]) < 0.03
    assert held_out_gain(z, y_z, Source(partner, x, y, shares, fit=300), labels_alone(y_z, shares))["trusted"]


def test_what_is_drawn_has_all_that_is_kept_and_of_the_rest_as_much_as_there_is():
    kept, strata = torch.arange(1000) % 100 == 7, torch.arange(1000) % 10 // 8  # 0: 800, 1: 200
    rows = drawn(kept, strata, 110, 3)
    assert len(rows) == 110 and (rows.diff() > 0).all() and set(kept.nonzero()[:, 0].tolist()) <= {*rows.tolist()}
    assert 79 <= (strata[rows][~kept[rows]] == 0).sum() <= 81
    assert torch.equal(rows, drawn(kept, strata, 110, 3)) and not torch.equal(rows, drawn(kept, strata, 110, 4))
    assert torch.equal(drawn(kept, strata, 5, 0), kept.nonzero()[:, 0])  # no room, but what must be
    for most in (0, 1000, 5000):
        assert torch.equal(drawn(kept, strata, most, 0), torch.arange(1000))


def test_both_name_every_held_out_label_and_are_trusted():
    """Labels alone tell all: the gain and its error are 0."""
    y = torch.arange(80) % 4
    z = 100 * F.one_hot(y, 4).float()
    y_z, partner = given(y, 40)
    alone = labels_alone(y_z, torch.full((4,), 0.25))
    told = held_out_gain(z, y_z, alone, alone)
    assert told["gain"] == 0 and told["error"] == 0 and told["trusted"]


def test_a_labelled_reading_without_a_partner_is_spread_over_its_class():
    z, x, y, shares = shared_world(4)
    y_z, partner = given(y, 30)
    partner[20:30] = -1
    posterior, expected = correspond(z, y_z, partner, x, y, shares)
    torch.testing.assert_close(posterior[20:30], F.one_hot(y[20:30], 5).float())


def test_without_weight_the_unpaired_items_leave_the_map_alone():
    """Weight 0: other items in no pair move the class frequencies' bias, alike for every item; not so with 0.3."""
    z, x, y, shares = shared_world(7)
    y_z, partner = given(y, 40)
    apart = {}
    for weight in (0.0, 0.3):
        whole, part = (
            correspond(z[:m], y_z[:m], partner[:m], x, y, shares, weight=weight, rounds=2)[0][40:60].log()
            for m in (300, 60)
        )
        moved = (part - whole)[:, 1:] - (part - whole)[:, :1]
        apart[weight] = moved.std(0).max().item()
    assert apart[0.0] < 1e-2 < 0.1 < apart[0.3]


def test_held_out_pairs_tell_whether_the_known_modalities_help():
    z, x, y, shares = shared_world(5)
    y_z, partner = given(y, 60)
    alone = labels_alone(y_z, shares)
    seen = Source(partner, x, y, shares)
    told = held_out_gain(z, y_z, seen, alone, rounds=10)
    assert told["gain"] > 2 * told["error"] > 0 and told["right"] > told["right_alone"] and told["trusted"]
    shuffled = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))  # partners of other classes
    told = held_out_gain(z, y_z, replace(seen, x=x[shuffled], y=y[shuffled]), alone, rounds=10)
    assert told["gain"] < -2 * told["error"] and told["right"] < told["right_alone"] and not told["trusted"]
    assert held_out_gain(z, y_z, alone, alone)["gain"] == 0


def test_held_out_labels_play_no_part():
    """Their own label changed, a fold's posteriors stay: the gain's terms of the other folds alone may move."""
    z, x, y, shares = shared_world(6)
    y_z, partner = given(y, 8)
    told = []
    for flip in (False, True):
        y_now = y_z.clone()
        if flip:
            y_now[3] = (y_now[3] + 1) % 5
        hidden = y_now.clone()
        hidden[3] = -1
        at = partner.clone()
        at[3] = -1
        told.append(correspond(z, hidden, at, x, y, shares)[0][3])
    assert torch.equal(*told)


def test_the_control_knows_the_class_frequencies_too():
    """Labels are drawn alike for all classes; what is frequent the IM side tells, COX and its control alike."""
    g = torch.Generator().manual_seed(0)
    shares = torch.tensor([0.7, 0.1, 0.1, 0.1])
    y = torch.cat([torch.arange(4).repeat(8), torch.multinomial(shares, 600, replacement=True, generator=g)])
    z = whiten(torch.randn(4, 12, generator=g)[y] + torch.randn(len(y), 12, generator=g) * 1.5, 12)
    y_z = torch.where(torch.arange(len(y)) < 32, y, -1)
    right = {}
    for name, frequent in (("known", shares), ("as drawn", torch.full((4,), 0.25))):
        q, _ = class_posteriors([z], y_z, labels_alone(y_z, frequent))
        right[name] = (q[32:].argmax(1) == y[32:]).float().mean().item()
    assert right["known"] > right["as drawn"] + 0.1


def test_a_class_that_no_known_item_has_is_told_by_the_labels():
    """Without an item of its own its readings would go to other classes, and its share to all readings."""
    z, x, y, shares = shared_world(9, m=600)
    z = z + 2 * (y == 4)[:, None]  # plain for the labels
    y_z, _ = given(y, 60)
    known, ids = (y != 4).nonzero().squeeze(1), [f"{i:03}" for i in range(600)]
    banks = {"rgb": x[known], "touch": x[known] @ torch.linalg.qr(torch.randn(12, 12))[0]}
    seen, facts = known_items(ids, y_z, [ids[i] for i in known], banks, y[known], shares)
    assert facts["lacking"] == [4]
    assert len(seen.x) == len(known) + 1 and seen.y[-1] == 4 and torch.equal(seen.shares, shares)
    torch.testing.assert_close(seen.x[-1], seen.x[seen.partner[(y_z >= 0) & (y_z != 4)]].mean(0))
    assert (seen.partner[y_z == 4] == len(known)).all() and (seen.partner[60:] == -1).all()
    q = correspond(z, y_z, **vars(seen))[0][60:]
    assert (q.argmax(1) == 4)[y[60:] == 4].float().mean() > 0.9 and q[y[60:] != 4, 4].mean() < 0.05


def test_fewer_than_eight_pairs_show_nothing_and_this_is_said():
    z, x, y, shares = shared_world(0)
    ids = [str(i) for i in range(300)]
    for count in (7, 8):
        seen, facts = known_items(ids, given(y, count)[0], ids, {"rgb": x}, y, shares)
        assert (seen is None) == (count == 7) and facts == {"pairs": count, "least": 8, "lacking": []}
    words = explain({"code": "few_pairs", "pairs": 7, "least": 8, "im": ["rgb", "touch"]})
    assert words == "7 labelled items have a pair in all of rgb, touch, 8 are needed: COX goes by labels and agreement"
    assert explain({}) == ""


def test_classes_that_the_sensor_does_not_record():
    """It shows three of five classes: at their frequencies on the IM side readings are forced into the other two; fewer
    where the readings tell the frequencies; none where it is known that there are none."""
    z, x, y, equal = shared_world(11, m=900)
    shown = (y < 3).nonzero().squeeze(1)
    y_z, partner = given(y, 30)

    def guess(shares, **more):
        return correspond(z[shown], y_z[shown], partner[shown], x, y, shares, **more)[0].argmax(1)

    forced, free, known = guess(equal), guess(equal, coverage=0.0), guess(class_frequencies(y, y_z[shown][:18], 5)[0])

    def other(g):
        return (g > 2).float().mean().item()

    def right(g):
        return (g[18:] == y[shown][18:]).float().mean().item()

    assert other(forced) > 0.2 and other(free) < 0.7 * other(forced) and other(known) == 0
    assert right(forced) + 0.05 < right(free) < right(known) - 0.05
    at = torch.full((900,), -1).scatter(0, shown, torch.arange(len(shown)))[partner[shown]]  # as if they were not there
    gone, _ = correspond(z[shown], y_z[shown], at, x[shown], y[shown], torch.full((3,), 1 / 3))
    whole, _ = correspond(z[shown], y_z[shown], partner[shown], x, y, torch.tensor([1, 1, 1, 0, 0]) / 3)
    torch.testing.assert_close(whole[:, :3], gone, atol=1e-4, rtol=1e-3)


def test_common_items_are_those_of_every_modality():
    ids, rows = common_items({"rgb": ["c", "a", "b"], "touch": ["b", "d", "c"]})
    assert ids == ["b", "c"] and {m: r.tolist() for m, r in rows.items()} == {"rgb": [2, 0], "touch": [0, 2]}
