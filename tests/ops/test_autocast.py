"""Under torch.autocast half inputs are cast to float32, as torch.cdist does; nothing else changes."""

import pytest
import torch

import cox_ops

HALF = [torch.bfloat16, torch.float16]


@pytest.mark.parametrize("half", HALF, ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_as_cdist(device, half, compiled):
    def distances(op, x, y):
        return op(x, y)

    torch._dynamo.reset()
    f = torch.compile(distances, fullgraph=True, backend="aot_eager") if compiled else distances
    x, y = torch.randn(4, 3, device=device).to(half), torch.randn(5, 3, device=device)
    with torch.autocast(device, dtype=half):
        for a, b in ((x, y.to(half)), (x, y), (x.double(), y.double())):
            mine, want = f(cox_ops.pairwise_distances, a, b), f(torch.cdist, a, b)
            assert mine.dtype == want.dtype and mine.dtype != half
            torch.testing.assert_close(mine, want, rtol=1e-4, atol=1e-4)
        with pytest.raises(RuntimeError, match="dtypes differ"):  # float64 is left alone
            cox_ops.pairwise_distances(x.double(), y)
    assert cox_ops.pairwise_distances(x, x).dtype == half
    with torch.autocast(device, dtype=half, enabled=False):
        assert cox_ops.pairwise_distances(x, x).dtype == half


def test_every_operator_takes_what_a_linear_layer_gives(device):
    """bfloat16 beside float32, with the gradient in each one's dtype."""
    x, v = torch.randn(4, 3, device=device), torch.randn(2, 5, 3, device=device)
    weight, bias = torch.randn(2, 6, 3, device=device), torch.randn(2, 6, device=device)
    layer = torch.nn.Linear(3, 3, device=device)
    calls = {
        "pairwise_distances": lambda z: cox_ops.pairwise_distances(z, v[0]),
        "nearest_anchor": lambda z: cox_ops.nearest_anchor(z, v)[0],
        "heads_agreement": lambda z: cox_ops.heads_agreement(z, weight, bias)[2],
        "modality_agreement": lambda z: cox_ops.modality_agreement(torch.stack([z, z]))[2],
        "mmd": lambda z: cox_ops.mmd(z, v[0]),
    }
    for name, f in calls.items():
        with torch.autocast(device, dtype=torch.bfloat16):
            z = layer(x)
            assert z.dtype == torch.bfloat16
            got = f(z)
        want = f(z.float())
        assert got.dtype == torch.float32 and torch.equal(got, want), name
        for a, b in zip(torch.autograd.grad(got.sum(), [z]), torch.autograd.grad(want.sum(), [z])):
            assert a.dtype == torch.bfloat16 and torch.equal(a, b), name
