"""Spectral clusters and their names, on worlds whose clusters and names are known."""

import pytest
import torch

from cox_oom.files import UserError
from cox_oom.naming import geometry, name_by_clusters, name_by_geometry, spectral, spread_names


def blobs(count=5, each=30, d=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(count, d, generator=g)
    labels = torch.arange(count).repeat_interleave(each)
    return centres[labels] + 0.3 * torch.randn(len(labels), d, generator=g), labels


def test_separate_blobs_are_the_clusters():
    x, labels = blobs()
    found, embedding, centroids = spectral(x, 5)
    assert len({(a, b) for a, b in zip(found.tolist(), labels.tolist())}) == 5
    assert torch.equal(torch.cdist(embedding, centroids).argmin(1), found)
    assert torch.equal(spectral(x, 5)[0], found)


def test_two_rings_that_k_means_would_cut():
    angle = torch.linspace(0, 6.28, 100)
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    found = spectral(torch.cat([ring, 4 * ring]), 2)[0]
    assert (found[:100] == found[0]).all() and (found[100:] == found[100]).all() and found[0] != found[100]


def test_one_labelled_item_per_class_names_all_that_hang_together():
    x, labels = blobs()
    items = torch.arange(5) * 30 + 7
    found, confidence = spread_names(x, items, labels[items], 5)
    assert torch.equal(found, labels) and (confidence > 0.9).all()


def test_names_follow_a_ring_past_nearer_items_of_the_other():
    angle = torch.arange(100) / 100 * 6.2832
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    found, _ = spread_names(torch.cat([ring, 2 * ring]), torch.tensor([0, 150]), torch.tensor([0, 1]), 2, neighbours=3)
    assert (found[:100] == 0).all() and (found[100:] == 1).all()


def test_an_item_that_no_name_reaches_is_in_doubt():
    x, labels = blobs()
    found, confidence = spread_names(x, torch.tensor([0]), torch.tensor([2]), 5)
    assert (found[:30] == 2).all() and (confidence[:30] == 1).all() and (confidence[30:] == 0).all()


def test_names_by_geometry_where_the_geometry_is_shared():
    """Six classes; the clusters are the same points under a rotation and in another order."""
    g = torch.Generator().manual_seed(1)
    centres = torch.randn(6, 8, generator=g)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=g))[0]
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    theirs, ours = (geometry(c, torch.arange(6), 6) for c in (centres, centres[order] @ turn))
    names, agreement, null = name_by_geometry(ours, theirs)
    assert torch.equal(names, order) and abs(agreement - 1) < 1e-4 and (null < agreement).all()


def test_a_class_without_items_has_no_geometry_and_leaves_the_others_theirs():
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 0, 1, 1, 3, 3, 3, 0, 1])
    d, whole = geometry(x, labels, 4), geometry(x, torch.where(labels == 3, 2, labels), 3)
    assert d[2, [0, 1, 3]].isnan().all() and d[[0, 1, 3], 2].isnan().all() and (d.diagonal() == 0).all()
    torch.testing.assert_close(d[[0, 1, 3]][:, [0, 1, 3]], whole)


def test_a_geometry_that_is_not_shared_does_not_stand_out():
    g = torch.Generator().manual_seed(2)
    one, two = (geometry(torch.randn(8, 20, generator=g), torch.arange(8), 8) for _ in range(2))
    agreement, null = name_by_geometry(one, two, null=19)[1:]
    assert (null >= agreement).float().mean() > 0.05


def test_fewer_readings_than_classes_have_no_clusters():
    with pytest.raises(UserError, match="3 clusters, one for a class, and there are only 2 training items"):
        name_by_clusters({}, torch.arange(2), {}, 3, 0)
