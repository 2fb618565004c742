"""What is no tensor, no integer or on another device: one line that names the operator and the argument."""

import pytest
import torch

import cox_ops

X, V, W = torch.randn(4, 3), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
CALLS = {
    "pairwise_distances": dict(x=X, y=X),
    "nearest_anchor": dict(z=X, v=V),
    "top_anchors": dict(score=X[:, 0], t=2, classes=torch.arange(4), mask=torch.ones(4, dtype=torch.bool)),
    "modality_agreement": dict(logits=V),
    "heads_agreement": dict(z=X, weight=W, bias=W[..., 0]),
    "mmd": dict(x=X, y=X),
}
TENSORS = [(op, name) for op, given in CALLS.items() for name, a in given.items() if isinstance(a, torch.Tensor)]


def test_every_operator_is_here():
    assert set(CALLS) == set(cox_ops.__all__)
    for op, given in CALLS.items():
        getattr(cox_ops, op)(**given)


@pytest.mark.parametrize("op, name", TENSORS)
def test_what_is_no_tensor(op, name):
    for wrong in ([1.0, 2.0], 3, "a", None, X.numpy()):
        if wrong is None and name in ("classes", "mask"):
            continue
        with pytest.raises(TypeError, match=f"^{op}: {name} must be a Tensor, got {type(wrong).__name__}$"):
            getattr(cox_ops, op)(**{**CALLS[op], name: wrong})


@pytest.mark.parametrize("op, name", [(o, n) for o, n in TENSORS if len([1 for p, _ in TENSORS if p == o]) > 1])
@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("compiled", [False, True])
def test_devices_that_differ(op, name, device, compiled):
    """Meta tensors, too, beside others: the result would be a meta tensor."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    f = getattr(cox_ops, op)
    f = torch.compile(f, backend="eager") if compiled else f
    with pytest.raises(RuntimeError, match=f"{op}: devices differ: .*{name} (is )?on {device}|devices differ: {name}"):
        f(**{**CALLS[op], name: CALLS[op][name].to(device)})


@pytest.mark.parametrize("op", sorted(CALLS))
def test_meta_tensors_alone_give_meta_tensors(op):
    f, given = getattr(cox_ops, op), CALLS[op]
    real, meta = f(**given), f(**{k: a.to("meta") if isinstance(a, torch.Tensor) else a for k, a in given.items()})
    for r, m in zip(*((a,) if isinstance(a, torch.Tensor) else a for a in (real, meta)), strict=True):
        assert m.is_meta and (m.shape, m.dtype) == (r.shape, r.dtype)


@pytest.mark.parametrize("op, name", [("top_anchors", "t"), ("top_anchors", "quota"), ("nearest_anchor", "tile")])
def test_what_is_no_integer(op, name):
    for wrong in (2.5, "2", [2]):
        with pytest.raises(TypeError, match=f"^{op}: {name} must be an int, got {type(wrong).__name__}$"):
            getattr(cox_ops, op)(**{**CALLS[op], name: wrong})
