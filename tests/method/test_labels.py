"""Which items keep a label or are held out, and the class frequencies that are told from what is left."""

import pytest
import torch

from cox_oom.labels import choose_labelled, class_frequencies, hold_out


def test_the_draw_depends_on_the_labels_by_class_alone():
    """All that choose_labelled may use of hidden labels is who is in which class: renamed, the same items."""
    labels = torch.randint(0, 4, (200,), generator=torch.Generator().manual_seed(1))

    def draw(y):
        return choose_labelled(y, 20, 0, torch.Generator().manual_seed(3))

    one = draw(labels)
    assert torch.equal(one, draw(torch.tensor([2, 3, 0, 1])[labels]))
    assert torch.bincount(labels[one]).tolist() == [5, 5, 5, 5]
    partly = torch.where(torch.arange(200) % 2 == 0, labels, -1)
    assert (partly[draw(partly)] >= 0).all()
    assert len(choose_labelled(labels, 0, 3, torch.Generator())) == 12
    paired = torch.ones(200, 2, dtype=torch.bool)
    assert torch.equal(one, choose_labelled(labels, 20, 0, torch.Generator().manual_seed(3), paired))


@pytest.mark.parametrize(
    "sizes, count, drawn",
    [
        ((30, 8, 4), 42, (30, 8, 4)),
        ((30, 8, 4), 21, (9, 8, 4)),
        ((30, 8, 4), 6, (2, 2, 2)),
        ((30, 8, 4), 0.4, (1, 1, 1)),
        ((9, 9), 7.9, (4, 4)),
    ],
)
def test_what_a_small_class_is_short_of_the_larger_ones_give(sizes, count, drawn):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    chosen = choose_labelled(labels, count, 0, torch.Generator().manual_seed(0))
    assert tuple(torch.bincount(labels[chosen]).tolist()) == drawn and len(chosen.unique()) == len(chosen)


def test_items_with_pairs_are_drawn_first():
    labels, paired = torch.arange(60) % 3, torch.zeros(60, 2, dtype=torch.bool)
    paired[torch.tensor([3, 30, 30, 7]), torch.tensor([0, 0, 1, 1])] = True  # classes 0, 0 and 1
    for seed in range(5):
        chosen = choose_labelled(labels, 0, 1, torch.Generator().manual_seed(seed), paired).tolist()
        assert 7 in chosen and 30 in chosen and 3 not in chosen and len(chosen) == 3


def test_no_modality_is_left_without_pairs_where_it_has_any():
    """Each item has rgb and language, or touch alone: the draw would take none of the latter."""
    labels, touch = torch.arange(60) % 3, torch.arange(60) >= 54
    paired = torch.stack([~touch, ~touch, touch], 1)
    for seed in range(5):

        def draw(p):
            return choose_labelled(labels, 0, 2, torch.Generator().manual_seed(seed), p)

        plain, chosen = draw(paired[:, :2]), draw(paired)
        assert paired[chosen].any(0).all() and not paired[plain][:, 2].any() and paired[chosen][:, 2].sum() == 1
        assert torch.bincount(labels[chosen]).tolist() == [2, 2, 2] and len(chosen.unique()) == 6
    with_none = torch.stack([~touch, torch.zeros_like(touch)], 1)
    assert len(choose_labelled(labels, 0, 2, torch.Generator(), with_none)) == 6
    imu = (torch.arange(60) >= 48) & ~touch
    two = torch.stack([~touch & ~imu, ~touch & ~imu, imu, touch], 1)  # two that the draw would leave out
    for per_class in (1, 2, 4):
        for seed in range(4):
            chosen = choose_labelled(labels, 0, per_class, torch.Generator().manual_seed(seed), two)
            assert two[chosen].any(0).all() and torch.bincount(labels[chosen]).tolist() == [per_class] * 3


def test_a_class_keeps_at_least_one_item_to_train_on():
    held = hold_out(torch.tensor([0, 0, 0, 0, 1, 1, 2]), 0.9)
    assert held.tolist() == [True, True, True, False, True, False, False]
    assert hold_out(torch.tensor([0, 0, 0, 1, 1]), 0.01).tolist() == [True, False, False, True, False]


def test_class_frequencies_by_hand():
    im, none = torch.tensor([0] * 6 + [1] * 3 + [2]), torch.zeros(4, dtype=torch.bool)

    def told(y):
        return class_frequencies(im, torch.tensor(y, dtype=torch.long), 4)

    for y, expected, unseen in (
        ([0, 1, 2], [0.6, 0.3, 0.1, 0], []),
        ([], [0.6, 0.3, 0.1, 0], []),
        ([0, 1], [2 / 3, 1 / 3, 0, 0], [2]),
        ([0, 1, 2, 3], [0.48, 0.24, 0.08, 0.2], []),
        ([0, 3], [0.6 / 1.1, 0, 0, 0.5 / 1.1], [1, 2]),
    ):
        shares, absent = told(y)
        torch.testing.assert_close(shares, torch.tensor(expected))
        assert torch.equal(absent, none.index_fill(0, torch.tensor(unseen, dtype=torch.long), True))
