"""cox_oom/gauge.py: what two sides have in common, beside pairs that are mixed at random."""

import numpy as np
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import NearestNeighbors

from cox_oom.gauge import cka, explained, gauge, in_words, neighbours


def world(within, pairs=120, classes=6, seed=0):
    """z (P, 20), x (P, 30), y (P,): both show the class; with `within` also what tells instances of a class apart."""
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(pairs) % classes
    centres, own = torch.randn(classes, 8, generator=g), torch.randn(pairs, 8, generator=g)
    sides = []
    for width in (20, 30):
        mine = own if within else torch.randn(pairs, 8, generator=g)
        hidden = 2 * torch.randn(classes, 8, generator=g)[y] if not within else 2 * centres[y]
        sides.append(
            (hidden + mine) @ torch.randn(8, width, generator=g) + 0.3 * torch.randn(pairs, width, generator=g)
        )
    return *sides, y


def test_measures_are_those_of_other_libraries():
    z, x, y = (t.double() if t.is_floating_point() else t for t in world(True))
    a, b = ((t - t.mean(0)).numpy() for t in (z, x))
    kernel, other = a @ a.T, b @ b.T
    expected = (kernel * other).sum() / np.sqrt((kernel**2).sum() * (other**2).sum())
    np.testing.assert_allclose(cka(z, x).item(), expected, rtol=1e-10)
    near = NearestNeighbors(n_neighbors=7).fit(z.numpy()).kneighbors(return_distance=False)
    assert all(set(row.nonzero().squeeze(1).tolist()) == set(n) for row, n in zip(neighbours(z, 7), near.tolist()))
    left = around = 0.0
    for c in y.unique():
        out = (y == c).numpy()
        guess = Ridge(alpha=200.0).fit(x[~out].numpy(), z[~out].numpy()).predict(x[out].numpy())
        left += ((z[out].numpy() - guess) ** 2).sum()
        around += ((z[out].numpy() - z[~out].numpy().mean(0)) ** 2).sum()
    np.testing.assert_allclose(explained(z[None], x, y, 200.0).item(), 1 - left / around, rtol=1e-8)


def test_what_is_shared_is_told_from_chance_and_from_the_class_alone():
    instance, by_class = (gauge(*world(within)) for within in (True, False))
    g = torch.Generator().manual_seed(1)
    nothing = gauge(torch.randn(120, 20, generator=g), torch.randn(120, 30, generator=g), torch.arange(120) % 6)
    for name in ("cka", "neighbours", "left_out"):
        assert instance[name]["p"] == min(found[name]["p"] for found in (instance, by_class, nothing))
        assert nothing[name]["p"] > 0.05 and abs(nothing[name]["value"]) < 0.1
        assert nothing[name]["value"] < instance[name]["value"]
    assert nothing["cka"]["raw"] > 0.1  # what a raw measure shows where nothing is shared
    assert by_class["cka"]["p"] < 0.01 and instance["left_out"]["value"] > by_class["left_out"]["value"] + 0.1
    assert "120 pairs" in in_words(instance) and gauge(*world(True)) == instance
    assert gauge(*world(True, pairs=1800))["pairs"] <= 300
