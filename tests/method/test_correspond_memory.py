"""Memory of soft correspondence grows as the items do: all tensors are counted that torch's operators make."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from cox_oom import correspond

TILE = 1 << 20  # numbers: less than 3000 x 3000


class Memory(TorchDispatchMode):
    """largest: bytes of the largest tensor that was made; peak: most bytes that were held at once."""

    def __init__(self):
        super().__init__()
        self.held, self.largest, self.peak = WeakIdKeyDictionary(), 0, 0

    def __torch_dispatch__(self, f, types, args=(), kwargs=None):
        out = f(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, torch.Tensor):
                self.held[t] = None
                self.largest = max(self.largest, t.untyped_storage().nbytes())
        self.peak = max(self.peak, sum({s.data_ptr(): s.nbytes() for s in map(storage, self.held)}.values()))
        return out


def storage(t):
    return t.untyped_storage()


def memory(f, n):
    """The Memory of f(z, y_z, source) on n OOM and n IM items, 10% of them labelled and paired."""
    g = torch.Generator().manual_seed(0)
    z, x, y = torch.randn(n, 20, generator=g), torch.randn(n, 10, generator=g), torch.arange(n) % 5
    y_z = y.where(torch.rand(n, generator=g) < 0.1, -1)
    partner = torch.arange(n).where(y_z >= 0, -1)
    source = correspond.Source(partner, x, y, torch.full((5,), 0.2))
    with Memory() as counted:
        f(z, y_z, source)
    return counted


def posteriors(z, y_z, source):
    correspond.class_posteriors([z, z[:, :10]], y_z, source, rounds=1)


def trust(z, y_z, source):
    correspond.held_out_gain(z, y_z, source, correspond.labels_alone(y_z, source.shares), rounds=1, folds=2)


def vectors(z, y_z, source):
    correspond.whiten(z, 8), correspond.shared_vectors([z, source.x])


@pytest.mark.parametrize("f", [posteriors, trust, vectors])
def test_twice_the_items_hold_at_most_twice_the_memory(f):
    first, second, third = (memory(f, n) for n in (1500, 3000, 6000))
    assert max(m.largest for m in (first, second, third)) <= 4 * TILE
    assert second.peak <= 2.2 * first.peak and third.peak <= 2.2 * second.peak
    assert third.peak <= 4 * TILE + 4 * memory(vectors, 1500).peak


def test_the_count_sees_a_matrix_of_all_pairs():
    """What the test above would say of one: 4 n^2 bytes."""
    assert memory(lambda z, *_: torch.cdist(z, z), 3000).largest == 4 * 3000**2 > 4 * TILE
