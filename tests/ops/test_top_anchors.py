"""top_anchors: exactly the items and the order of the definition, with ties, infinities, masks, classes and
quotas."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cox_ops import ref, top_anchors

INF, NAN = float("inf"), float("nan")
VALUES = st.sampled_from([0.0, -0.0, 1.0, 1.0, 2.0, -3.0, 1e30, -1e-30, INF, -INF, NAN])


@given(st.data())
def test_equals_reference(data):
    scores = data.draw(st.lists(VALUES, max_size=40))
    M = len(scores)
    classes = data.draw(st.none() | st.lists(st.integers(-1, 3), min_size=M, max_size=M))
    mask = data.draw(st.none() | st.lists(st.booleans(), min_size=M, max_size=M))
    kw = dict(
        largest=data.draw(st.booleans()),
        classes=None if classes is None else torch.tensor(classes, dtype=torch.int64),
        quota=None if classes is None else data.draw(st.none() | st.integers(0, 6)),
        mask=None if mask is None else torch.tensor(mask, dtype=torch.bool),
    )
    t = data.draw(st.integers(0, M + 3))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]))
    score = torch.tensor(scores, dtype=dtype)
    got = top_anchors(score, t, **kw)
    assert got.dtype == torch.int64 and torch.equal(got, ref.top_anchors(score.double(), t, **kw))


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("M", [1, 255, 256, 257, 5000])
def test_dtypes_and_sizes(device, dtype, largest, M):
    score = torch.randn(M, device=device).mul(3).to(dtype)  # half types: many ties
    classes, mask = torch.randint(-1, 9, (M,), device=device), torch.rand(M, device=device) < 0.7
    for t in (0, 1, M // 3, M, M + 5):
        for kw in ({}, {"mask": mask}, {"classes": classes, "quota": 20, "mask": mask}):
            got = top_anchors(score, t, largest=largest, **kw)
            assert got.device == score.device
            assert torch.equal(got, ref.top_anchors(score, t, largest=largest, **kw))


def by_sorting(score, t, largest=False, classes=None, quota=None, mask=None):
    """The definition again, through stable sorts: for many items."""
    worst = float("-inf") if largest else float("inf")
    ok = ~score.isnan() & (score != worst)
    ok &= torch.ones_like(ok) if mask is None else mask
    ok &= torch.ones_like(ok) if classes is None else classes >= 0
    at = ok.nonzero()[:, 0]
    order = at[score[at].sort(stable=True, descending=largest).indices]
    if quota is not None:
        c, place = classes[order].sort(stable=True)
        start = torch.searchsorted(c, c)  # the first of its class
        rank = torch.empty_like(place)
        rank[place] = torch.arange(len(c), device=c.device) - start
        order = order[rank < quota]
    return torch.cat([order[:t], order.new_full((max(t - len(order), 0),), -1)])


@pytest.mark.parametrize("largest", [False, True])
@pytest.mark.parametrize("M", [32_768, 32_769, 150_001])
def test_many_items(device, dtype, largest, M):
    """Sizes at which histograms of the keys select; half types have thousands of equal scores at the cut."""
    score = torch.randn(M, device=device).mul(3).to(dtype)
    score[::1000], score[1::1000], score[2::1000] = NAN, INF, -INF
    score[3::1000], score[4::1000] = 0.0, -0.0
    classes, mask = torch.randint(-1, 9, (M,), device=device), torch.rand(M, device=device) < 0.7
    for t in (1, M // 10, M // 2, M + 5):
        for kw in ({}, {"mask": mask}, {"classes": classes, "quota": M // 50, "mask": mask}):
            assert torch.equal(top_anchors(score, t, largest=largest, **kw), by_sorting(score, t, largest, **kw))


@pytest.mark.parametrize("largest", [False, True])
def test_many_equal_scores(device, largest):
    M = 70_000
    assert torch.equal(
        top_anchors(torch.full((M,), 2.5, device=device), 40_000, largest=largest), torch.arange(40_000, device=device)
    )
    score = torch.arange(M, device=device) % 3 * 1.0  # the cut lies within equal ones
    assert torch.equal(top_anchors(score, 30_000, largest=largest), by_sorting(score, 30_000, largest))
    zeros = torch.zeros(M, device=device)
    zeros[::2] = -0.0
    assert torch.equal(top_anchors(zeros, 100, largest=largest), torch.arange(100, device=device))


def test_scores_that_differ_in_their_last_bits_alone(device):
    for dtype, ulp in ((torch.float64, 2**-52), (torch.float32, 2**-23)):
        place = torch.randperm(50_000, device=device)
        score = 1 + place.to(dtype) * ulp
        assert torch.equal(score[top_anchors(score, 20_000)], 1 + torch.arange(20_000, device=device).to(dtype) * ulp)


@pytest.mark.parametrize("spread", [1, 2**40])
def test_quota_that_turns_most_away(device, spread):
    """A few classes hold the best scores; ids close together and ids far apart."""
    M = 60_000
    classes = torch.randint(0, 40, (M,), device=device)
    score = torch.rand(M, device=device) + classes  # class after class
    for quota in (0, 1, 7, 1500, M):
        for t in (30, 2000, M):
            got = top_anchors(score, t, classes=classes * spread, quota=quota)
            assert torch.equal(got, by_sorting(score, t, classes=classes, quota=quota))


def test_many_items_on_any_number_of_threads(threads):
    score, classes = torch.randn(200_000).half(), torch.randint(0, 50, (200_000,))
    want = by_sorting(score, 20_000), by_sorting(score, 20_000, classes=classes, quota=300)
    for n in (1, 2, 3, 7):
        with threads(n):
            got = top_anchors(score, 20_000), top_anchors(score, 20_000, classes=classes, quota=300)
            assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_is_a_stable_sort(device):
    score = torch.randint(0, 20, (2000,), device=device).float()
    assert torch.equal(top_anchors(score, 500), score.sort(stable=True).indices[:500])
    assert top_anchors(torch.tensor([3.0, 1.0, 1.0, 1.0, 2.0, 1.0], device=device), 3).tolist() == [1, 2, 3]


def test_never_chosen(device):
    score = torch.tensor([NAN, INF, -INF, 5.0, -0.0, 0.0], device=device)
    assert top_anchors(score, 6).tolist() == [2, 4, 5, 3, -1, -1]
    assert top_anchors(score, 6, largest=True).tolist() == [1, 3, 4, 5, -1, -1]
    assert top_anchors(score * NAN, 2).tolist() == [-1, -1]


def test_differences_below_float32_count_in_float64(device):
    score = torch.tensor([1 + 1e-12, 1.0, 1 - 1e-12], dtype=torch.float64, device=device)
    assert top_anchors(score, 3).tolist() == [2, 1, 0]


def test_negative_class_without_quota(device):
    score, classes = torch.arange(4.0, device=device), torch.tensor([-1, 0, -7, 0], device=device)
    assert top_anchors(score, 3, classes=classes).tolist() == [1, 3, -1]


def test_quota_counts_chosen_items_only(device):
    """A masked or NaN item of a class takes no place of its quota; class labels may be any int64."""
    score = torch.tensor([0.0, 1.0, 2.0, 3.0, NAN], device=device)
    classes = torch.tensor([2**63 - 1] * 3 + [5, 2**63 - 1], device=device)
    mask = torch.tensor([False, True, True, True, True], device=device)
    assert top_anchors(score, 4, classes=classes, quota=1, mask=mask).tolist() == [1, 3, -1, -1]


def test_strided_and_repeatable(device, dtype, threads):
    score = torch.randn(900, 2, device=device).to(dtype)[:, 0]
    classes = torch.randint(0, 4, (3, 900), device=device).T
    mask = (torch.rand(1800, device=device) < 0.5)[::2]
    want = top_anchors(score.contiguous(), 300, classes=classes[:, 1].contiguous(), quota=60, mask=mask.contiguous())
    for n in (1, 2):
        with threads(n):
            assert torch.equal(want, top_anchors(score, 300, classes=classes[:, 1], quota=60, mask=mask))


def test_empty(device):
    none = torch.empty(0, device=device)
    assert top_anchors(none, 2).tolist() == [-1, -1] and top_anchors(none, 0).shape == (0,)
    assert top_anchors(none, 1, classes=none.long(), quota=3, mask=none.bool()).tolist() == [-1]


def test_gives_no_gradient():
    assert not top_anchors(torch.randn(5, requires_grad=True), 2).requires_grad


@pytest.mark.parametrize(
    "args, kw, words",
    [
        ((torch.zeros(2, 2), 1), {}, r"expected score \(M,\), got \(2, 2\)"),
        ((torch.zeros(2), -1), {}, "expected t >= 0, got -1"),
        ((torch.zeros(2), 1), {"quota": 1}, "quota needs classes"),
        ((torch.zeros(2), 1), {"quota": -2, "classes": torch.zeros(2).long()}, "expected quota >= 0, got -2"),
        ((torch.zeros(2), 1), {"classes": torch.zeros(2)}, "classes must be int64, got float32"),
        ((torch.zeros(2), 1), {"classes": torch.zeros(3).long()}, r"expected classes \(2,\) .* got \(3\)"),
        ((torch.zeros(2), 1), {"mask": torch.zeros(2)}, "mask must be bool, got float32"),
        ((torch.zeros(2).long(), 1), {}, "got int64"),
    ],
)
def test_errors(args, kw, words):
    with pytest.raises(RuntimeError, match="top_anchors: .*" + words):
        top_anchors(*args, **kw)
