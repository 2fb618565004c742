"""What is no tensor, integer or boolean, out of range or on another device: one line with operator and argument."""

import numpy as np
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
    "soft_correspondence": dict(
        z=X,
        means=X,
        x=X[:, :2],
        classes=torch.tensor([0, 1, 1, 0]),
        bias=X[0],
        labels=torch.tensor([1, -1, 0, -1]),
        freedom=5.0,
    ),
}
OPTIONAL = [("top_anchors", "classes"), ("top_anchors", "mask"), ("soft_correspondence", "labels")]
TENSORS = [(op, name) for op, given in CALLS.items() for name, a in given.items() if isinstance(a, torch.Tensor)]


def test_every_operator_is_here():
    assert set(CALLS) == set(cox_ops.__all__)
    for op, given in CALLS.items():
        getattr(cox_ops, op)(**given)


@pytest.mark.parametrize("op, name", TENSORS)
def test_what_is_no_tensor(op, name):
    for wrong in ([1.0, 2.0], 3, "a", None, X.numpy()):
        if wrong is None and (op, name) in OPTIONAL:
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


INTEGERS = [("top_anchors", "t"), ("top_anchors", "quota"), ("nearest_anchor", "tile")]
BOOLEANS = [("top_anchors", "largest"), ("pairwise_distances", "squared")]
NUMBERS = [("soft_correspondence", "freedom")]


def test_these_are_all_integers_booleans_and_numbers():
    """By the schemas that the dispatcher knows."""
    kinds = {"int": INTEGERS, "Optional[int]": INTEGERS, "bool": BOOLEANS, "float": NUMBERS}
    for op in CALLS:
        for a in getattr(torch.ops.cox_ops, op).default._schema.arguments:
            assert str(a.type).endswith(("Tensor", "Optional[Tensor]")) or (op, a.name) in kinds[str(a.type)], (op, a)


@pytest.mark.parametrize("op, name", INTEGERS)
def test_what_is_no_integer(op, name):
    for wrong in (2.5, 2.0, "2", [2], True, float("nan"), torch.tensor(2), np.bool_(True)):
        with pytest.raises(TypeError, match=f"^{op}: {name} must be an int, got {type(wrong).__name__}$"):
            getattr(cox_ops, op)(**{**CALLS[op], name: wrong})


@pytest.mark.parametrize("op, name", INTEGERS)
@pytest.mark.parametrize("n", [-(2**70), -(2**63), -1, 0, 2**24, 2**31, 2**33, 2**62, 2**63 - 1, 2**63, 2**64, 10**30])
def test_integers_of_any_size(op, name, n):
    """What is refused is one line of ours; what is taken gives what a large number of before gave, or nothing for 0."""
    f, given = getattr(cox_ops, op), CALLS[op]
    if n < 0 or n >= 2**63 or name == "t" and n > 2**24:
        with pytest.raises(RuntimeError, match=f"^{op}: expected {name} [<>]= [0-9]+, got {n}$"):
            f(**{**given, name: n})
        return
    if name == "t":
        got = f(**{**given, name: n})
        assert got.shape == (n,) and torch.equal(got[:4], f(**{**given, name: 4})[:n]) and (got[4:] == -1).all()
    else:
        want = f(**{**given, name: 100 if n else 0})
        for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (f(**{**given, name: n}), want))):
            assert torch.equal(a, b)


def test_more_scores_than_the_bound_may_all_be_asked_for():
    score = torch.zeros(2**24 + 8, dtype=torch.float16)
    assert cox_ops.top_anchors(score, 2**24 + 8)[-1] == 2**24 + 7
    with pytest.raises(RuntimeError, match="^top_anchors: expected t <= 16777224, got 16777225$"):
        cox_ops.top_anchors(score, 2**24 + 9)


@pytest.mark.parametrize("n", [np.int64(2), np.uint8(2), np.int32(2)])
def test_integers_of_numpy(n):
    for op, name in INTEGERS:
        assert getattr(cox_ops, op)(**{**CALLS[op], name: n}) is not None


@pytest.mark.parametrize("op, name", BOOLEANS)
def test_what_is_no_boolean(op, name):
    for wrong in (1, 2.5, "a", None, torch.tensor(True)):
        with pytest.raises(TypeError, match=f"^{op}: {name} must be a bool, got {type(wrong).__name__}$"):
            getattr(cox_ops, op)(**{**CALLS[op], name: wrong})
    assert getattr(cox_ops, op)(**{**CALLS[op], name: np.bool_(False)}) is not None


@pytest.mark.parametrize("op, name", NUMBERS)
def test_what_is_no_number(op, name):
    for wrong in ("2", [2.0], True, None, torch.tensor(2.0), np.bool_(True)):
        with pytest.raises(TypeError, match=f"^{op}: {name} must be a number, got {type(wrong).__name__}$"):
            getattr(cox_ops, op)(**{**CALLS[op], name: wrong})
    for fine in (2, np.float32(2), np.int64(2)):
        assert torch.equal(
            getattr(cox_ops, op)(**{**CALLS[op], name: fine})[0], getattr(cox_ops, op)(**{**CALLS[op], name: 2.0})[0]
        )
