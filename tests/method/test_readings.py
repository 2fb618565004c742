"""cox_oom/readings.py: views of every kind of recording, and the choice among them."""

import echo
import numpy as np
import pytest
import torch

from cox_oom.correspond import held_out, labels_alone, whiten
from cox_oom.data.inputs import learner_inputs
from cox_oom.readings import choose, coarse_and_fine, plain_vectors, raw_views, side_by_side, vectors, view, words
from cox_oom.views import statistics


def test_views_take_fewer_and_more_components():
    raw, learned = torch.randn(5, 20), torch.randn(5, 40)
    views = coarse_and_fine(raw, learned, 10)
    assert [v.shape[1] for v in views] == [25, 20, 50, 40]
    assert torch.equal(views[0], torch.cat([raw[:, :5], learned[:, :20]], 1))
    assert torch.equal(views[3], torch.cat([raw, learned[:, :20]], 1))
    few = coarse_and_fine(raw[:, :3], learned[:, :12], 10)
    assert [v.shape[1] for v in few] == [15, 13, 15, 15]  # all that there are


def test_a_long_series_of_one_length_is_averaged_down():
    x = torch.randn(5, 32, 512, generator=torch.Generator().manual_seed(0))
    file = {"x": x, "kind": "series", "mean": torch.zeros(1), "std": torch.ones(1), "lengths": None}
    torch.testing.assert_close(plain_vectors(file, torch.arange(5)), x.view(5, 32, 64, 8).mean(3).flatten(1))
    assert torch.equal(plain_vectors(file, torch.arange(5), most=x[0].numel()), x.flatten(1))


@pytest.mark.parametrize("kind", ["image", "video", "series", "lengths", "text"])
def test_plain_vectors_of_every_kind(kind):
    rng = np.random.default_rng(0)
    if kind == "text":
        x = torch.from_numpy(rng.integers(97, 100, (6, 40)))
    else:
        shape = {"image": (3, 40, 20), "video": (3, 4, 40, 40), "series": (2, 30), "lengths": (2, 100)}[kind]
        x = torch.from_numpy(rng.standard_normal((6, *shape)).astype(np.float32))
    x[3] = x[2]
    file = {
        "x": x,
        "kind": "series" if kind == "lengths" else kind,
        "mean": torch.zeros(1),
        "std": torch.ones(1),
        "lengths": torch.tensor([100, 50, 30, 30, 10, 99]) if kind == "lengths" else None,
    }
    v = plain_vectors(file, torch.arange(6))
    assert v.shape == (
        6,
        {"image": 3 * 16 * 16, "video": 3 * 4 * 16 * 16, "series": 60, "lengths": 128, "text": 512}[kind],
    )
    assert v.isfinite().all() and torch.equal(v[2], v[3]) and not torch.equal(v[0], v[1])
    if kind == "lengths":  # what lies behind an item's end plays no part
        file["x"] = x.clone()
        file["x"][2:4, :, 30:] = 7
        assert torch.equal(plain_vectors(file, torch.arange(6)), v)


@pytest.mark.parametrize("name", ["plain", "spectrum"])
def test_no_items_have_no_views(name):
    """A data set may have no val rows, and series that differ in length."""
    x, lengths = torch.randn(4, 3, 50, generator=torch.Generator().manual_seed(0)), torch.tensor([50, 20, 30, 1])
    file = {"x": x, "kind": "series", "mean": torch.zeros(3, 1), "std": torch.ones(3, 1), "lengths": lengths}
    some, none = (view(name, file, rows, 50) for rows in (torch.arange(4), torch.arange(0)))
    assert none.shape == (0, some.shape[1]) and none.dtype == some.dtype


def test_statistics_are_those_of_the_valid_part():
    g = torch.Generator().manual_seed(0)
    x, lengths = torch.randn(3, 2, 30, generator=g), torch.tensor([30, 11, 1])
    s = statistics(x, lengths)
    for row, one, t in zip(s, x, lengths.tolist()):
        part = one[:, :t].numpy()
        steps = np.square(np.diff(part)).sum(1) / t
        expected = [part.mean(1), np.log(part.var(1) + 1e-3) / 2, np.log(steps + 1e-3) / 2, [np.log(t)]]
        np.testing.assert_allclose(row.numpy(), np.concatenate(expected), rtol=1e-4, atol=1e-5)
    assert torch.equal(statistics(x, None), statistics(x, torch.tensor([30, 30, 30])))


def test_views_side_by_side_weigh_the_same():
    g = torch.Generator().manual_seed(0)
    x, other = 100 * torch.randn(50, 7, generator=g) + 3, torch.randn(50, 2, generator=g)
    both = side_by_side([x, other])
    variances = both.var(0, correction=0)
    torch.testing.assert_close(variances[:7].sum(), torch.tensor(1.0))
    torch.testing.assert_close(variances[7:].sum(), torch.tensor(1.0))
    assert side_by_side([x]) is x


def judged(y, shares):
    """Held-out labels' log-likelihood by labels alone, as stage 3 takes it."""
    return lambda x, at: held_out(whiten(x, 14), y[at], labels_alone(y[at], shares))[0]


def test_echoes_are_seen_by_their_bands_and_steps_of_a_level_by_their_course():
    """Where the phase is chance frequency bands tell the class; where the order in time is all, the course does."""
    rng, n = np.random.default_rng(0), 200
    truth = torch.arange(n) % 8
    y = truth.where(torch.arange(n) < 64, -1)
    shares = torch.full((8,), 1 / 8)
    file = learner_inputs("series", [echo.echo(rng, c) for c in truth.tolist()], [True] * n)
    facts = choose(file, torch.arange(n), y, judged(y, shares))
    assert "spectrum" in facts["chosen"] and "bands" not in words(facts) and facts["better"] > 3 * facts["error"]
    level = [np.roll(np.repeat([4.0, -1.0, 0.0, 0.0, 0, 0, 0, 0], 3), 3 * c)[None] for c in truth.tolist()]
    level = [one + 0.5 * rng.standard_normal((1, 24)) for one in level]
    file = learner_inputs("series", [one.astype(np.float32) for one in level], [True] * n)
    facts = choose(file, torch.arange(n), y, judged(y, shares))
    assert facts["chosen"] == ["plain"]
    assert torch.equal(raw_views(["plain"], file, torch.arange(n)), plain_vectors(file, torch.arange(n)))
    assert set(facts["likelihood"]) > {"plain", "spectrum"}


def test_a_choice_weighs_some_of_many_items_and_sees_all(monkeypatch):
    monkeypatch.setattr("cox_oom.readings.SAMPLE", 60)
    g, weighed = torch.Generator().manual_seed(0), []
    x = torch.randn(150, 1, 40, generator=g)
    file = {"kind": "series", "x": x, "mean": torch.zeros(1), "std": torch.ones(1), "lengths": None}
    y = torch.arange(150).remainder(3).where(torch.arange(150) >= 130, -1)

    def judge(some, places):
        weighed.append(len(some))
        assert (y[places] >= 0).sum() == 20
        return torch.full((20,), float(some.shape[1] == vectors("spectrum", file, torch.arange(2)).shape[1]))

    facts = choose(file, torch.arange(150), y, judge)
    assert max(weighed) <= 60 and facts["chosen"] == ["spectrum"]
    torch.testing.assert_close(
        raw_views(["spectrum"], file, torch.arange(150)), view("spectrum", file, torch.arange(150), 40)
    )
