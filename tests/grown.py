"""What the tests of shards and of data that grow share."""

import torch

from cox_oom import files
from cox_oom.files import Place

ONLY = "--workers 0"


def inputs(runs, m):
    return files.load(Place(runs, "toy").inputs(m))


def same_rows(a, b):
    """Two inputs files or banks hold the same rows, but for roundings of mean and std."""
    for key in ("ids", "class_names", "kind"):
        assert a.get(key) == b.get(key)
    for key in ("labels", "split", "lengths"):
        assert (a.get(key) is None) == (b.get(key) is None) and (a.get(key) is None or torch.equal(a[key], b[key]))
    rows = torch.arange(len(a["ids"])).flip(0)
    for key in {"x", "features"} & a.keys():
        assert a[key].shape == b[key].shape and a[key].dtype == b[key].dtype
        torch.testing.assert_close(a[key][rows], b[key][rows], rtol=0, atol=0 if key == "x" else 1e-5)
    for key in ("mean", "std"):
        if a.get(key) is not None:
            torch.testing.assert_close(a[key], b[key])
