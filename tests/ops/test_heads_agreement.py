"""heads_agreement: modality_agreement of the heads' logits, for every dtype, layout, size; its gradients and memory."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cox_ops import heads_agreement, modality_agreement, ref

ROOT = Path(__file__).resolve().parents[2]

INF, NAN = float("inf"), float("nan")


def whole_numbers(g, *shape, high=4, device="cpu"):
    """Small integers: their products are exact in every dtype, so that ties are ties."""
    return torch.randint(-high, high + 1, shape, generator=g).to(device, torch.float32)


def check(z, weight, bias):
    mask, label, confidence = heads_agreement(z, weight, bias)
    want = ref.heads_agreement(z.double(), weight.double(), bias.double())
    assert mask.dtype == torch.bool and label.dtype == torch.int64
    assert confidence.dtype == (torch.float64 if z.dtype == torch.float64 else torch.float32)
    assert torch.equal(mask, want[0]) and torch.equal(label, want[1])
    rtol = 1e-12 if z.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(confidence.double(), want[2], rtol=rtol, atol=0, equal_nan=True)
    return mask, label, confidence


@given(M=st.integers(0, 150), K=st.integers(1, 4), C=st.integers(1, 70), D=st.integers(0, 20), seed=st.integers(0, 99))
def test_equals_reference(M, K, C, D, seed):
    g = torch.Generator().manual_seed(seed)
    check(whole_numbers(g, M, D), whole_numbers(g, K, C, D), whole_numbers(g, K, C))


@pytest.mark.parametrize("M, K, C, D", [(1, 1, 1, 1), (3000, 2, 40, 24), (65, 3, 309, 7), (70, 1, 5000, 3)])
def test_dtypes(device, dtype, M, K, C, D):
    g = torch.Generator().manual_seed(0)
    z, bias = whole_numbers(g, M, D, device=device), whole_numbers(g, K, C, device=device)
    weight = whole_numbers(g, 1, C, D, device=device) + whole_numbers(g, K, C, D, high=1, device=device)
    mask, _, _ = check(*(t.to(dtype) for t in (z, weight, bias)))
    assert mask.any()


def test_real_numbers_agree_with_the_two_steps(device):
    z, weight, bias = (torch.randn(s, device=device) for s in ((500, 64), (3, 33, 64), (3, 33)))
    logits = torch.einsum("md,kcd->kmc", z.double(), weight.double()) + bias.double()[:, None]
    two = logits.topk(2, -1).values
    clear = (two[..., 0] - two[..., 1] > 1e-3).all(0)  # no other class within float32's rounding
    got, want = heads_agreement(z, weight, bias), modality_agreement(logits)
    assert clear.float().mean() > 0.9
    assert torch.equal(got[0][clear], want[0][clear]) and torch.equal(got[1][clear], want[1][clear])
    torch.testing.assert_close(got[2].double(), want[2], rtol=2e-5, atol=0)


def test_ties_to_the_lowest_class(device):
    z, bias = torch.ones(1, 2, device=device), torch.zeros(2, 100, device=device)
    weight = torch.zeros(2, 100, 2, device=device)
    weight[:, 40], weight[:, 70, 0], bias[:, 70] = 1, 1, 1
    assert check(z, weight, bias)[1].tolist() == [40]
    bias[:, 20] = 2
    assert check(z, weight, bias)[1].tolist() == [20]


def test_rows_without_a_softmax(device, dtype):
    z = torch.ones(5, 3, device=device).to(dtype)
    weight, bias = torch.ones(2, 9, 3, device=device).to(dtype), torch.zeros(2, 9, device=device).to(dtype)
    bias[:, 4] = 1
    z[1, 0], z[2, 1] = NAN, INF
    mask, label, confidence = heads_agreement(z, weight, bias)
    assert mask.tolist() == [True, False, False, True, True] and label.tolist() == [4, -1, -1, 4, 4]
    assert confidence.isnan().tolist() == [False, True, True, False, False]
    bias[1] = -INF  # a head that rules out every class
    assert not heads_agreement(z, weight, bias)[0].any()


def test_any_number_of_threads(threads):
    z, weight, bias = torch.randn(3000, 900), torch.randn(3, 50, 900), torch.randn(3, 50)
    results = []
    for n in (1, 2, 3):
        with threads(n):
            results.append((*heads_agreement(z, weight, bias), *heads_agreement(z[:60], weight, bias)))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))


def test_strided(device, dtype):
    g = torch.Generator().manual_seed(0)
    z = whole_numbers(g, 12, 200, device=device).to(dtype).T[::2, ::3]
    weight = whole_numbers(g, 4, 30, 2, device=device).to(dtype).permute(2, 1, 0)
    bias = whole_numbers(g, 30, 4, device=device).to(dtype).T[::2]
    got, want = heads_agreement(z, weight, bias), heads_agreement(*(t.contiguous() for t in (z, weight, bias)))
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_under_inference_mode_and_on_inputs_that_require_gradients():
    z, weight, bias = torch.randn(3000, 8), torch.randn(2, 70, 8), torch.randn(2, 70)
    want = heads_agreement(z, weight, bias)
    with torch.inference_mode():
        assert all(torch.equal(a, b) for a, b in zip(heads_agreement(z + 0, weight + 0, bias), want))
    got = heads_agreement(*(t.clone().requires_grad_() for t in (z, weight, bias)))
    assert got[2].requires_grad and not got[1].requires_grad
    assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_gradients(device):
    args = [torch.randn(s, dtype=torch.float64, device=device, requires_grad=True) for s in ((4, 3), (2, 5, 3), (2, 5))]
    assert torch.autograd.gradcheck(lambda *a: heads_agreement(*a)[2], args)
    assert torch.autograd.gradgradcheck(lambda *a: heads_agreement(*a)[2], args)


def test_gradients_in_every_dtype_and_over_blocks_of_rows(device, dtype):
    sizes = (900, 6), (2, 700, 6), (2, 700)  # more than one block of the backward pass
    values = [torch.randn(s, device=device).to(dtype) for s in sizes]
    got = []
    for cast, op in ((dtype, heads_agreement), (torch.float64, ref.heads_agreement)):
        args = [t.to(cast).requires_grad_() for t in values]
        got.append(torch.autograd.grad(op(*args)[2].sum(), args))
    for mine, want in zip(*got):
        assert mine.dtype == dtype
        rounding = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-9}[dtype]
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=rounding * want.abs().max().item())


def test_no_gradient_from_rows_without_a_softmax(device):
    z, weight, bias = (
        torch.randn(3, 2, device=device),
        torch.randn(2, 4, 2, device=device),
        torch.zeros(2, 4, device=device),
    )
    z[1] = NAN
    z.requires_grad_(), bias.requires_grad_()
    heads_agreement(z, weight, bias)[2].nansum().backward()
    assert bias.grad.isfinite().all() and (z.grad[1] == 0).all() and (z.grad[[0, 2]] != 0).any()


def test_memory_does_not_hold_the_logits():
    code = (
        "import resource, torch, cox_ops\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "z, w, b = torch.randn(40000, 8), torch.randn(2, 600, 8), torch.randn(2, 600)\n"
        "cox_ops.heads_agreement(z[:3000], w, b); before = peak()\n"
        "cox_ops.heads_agreement(z, w, b); print((peak() - before) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(run.stdout) < 40  # MiB; the logits would be 183


def test_empty(device):
    got = heads_agreement(
        torch.empty(0, 3, device=device), torch.zeros(2, 4, 3, device=device), torch.zeros(2, 4, device=device)
    )
    assert [t.shape for t in got] == [(0,)] * 3


@pytest.mark.parametrize(
    "z, weight, bias, words",
    [
        (torch.zeros(2), torch.zeros(1, 2, 3), torch.zeros(1, 2), r"expected z \(M, D\), got \(2\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(1, 2), r"expected weight \(K, C, D\), got \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(0, 2, 3), torch.zeros(0, 2), "at least one head and one class"),
        (torch.zeros(2, 3), torch.zeros(1, 2, 4), torch.zeros(1, 2), "D differs: z has 3, weight has 4"),
        (torch.zeros(2, 3), torch.zeros(1, 2, 3), torch.zeros(2), r"expected bias \(1, 2\) .* got \(2\)"),
        (torch.zeros(2, 3), torch.zeros(1, 2, 3).double(), torch.zeros(1, 2), "z is float32, weight is float64"),
        (torch.zeros(2, 3).long(), torch.zeros(1, 2, 3), torch.zeros(1, 2), "got int64"),
    ],
)
def test_errors(z, weight, bias, words):
    with pytest.raises(RuntimeError, match="heads_agreement: .*" + words):
        heads_agreement(z, weight, bias)
