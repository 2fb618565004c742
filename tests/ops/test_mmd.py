"""mmd: value and gradient of the definition in float64, the closed form of its default bandwidths, O(N)
memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cox_ops import mmd, ref
from cox_ops.ops import mean_squared_distance

ROOT = Path(__file__).resolve().parents[2]


def check(x, y, bandwidths):
    got = mmd(x, y, bandwidths)
    assert got.shape == () and got.dtype == (torch.float64 if x.dtype == torch.float64 else torch.float32)
    want = ref.mmd(x.double(), y.double(), bandwidths)
    atol = 1e-12 if x.dtype == torch.float64 else 1e-6
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=atol)
    return got


@given(
    N=st.integers(1, 70), M=st.integers(1, 140), D=st.integers(0, 20), shift=st.floats(0, 2), seed=st.integers(0, 99)
)
def test_equals_reference(N, M, D, shift, seed):
    g = torch.Generator().manual_seed(seed)
    check(torch.randn(N, D, generator=g), torch.randn(M, D, generator=g) + shift, [0.5, 3.0, 40.0])


@pytest.mark.parametrize("N, M, D", [(1, 1, 1), (64, 64, 16), (65, 129, 33), (200, 3, 7)])
def test_dtypes(device, dtype, N, M, D):
    x, y = torch.randn(N, D, device=device).to(dtype), torch.randn(M, D, device=device).add(0.5).to(dtype)
    check(x, y, [float(D), 4.0 * D])


@pytest.mark.parametrize("N, M, D", [(257, 300, 40), (280, 1300, 3)])
def test_samples_large_enough_for_products(device, dtype, N, M, D):
    """Value and gradient, with rows far from 0, rows that are the same and rows that nearly are."""
    x, y = torch.randn(N, D, device=device) + 5, torch.randn(M, D, device=device) + 5.3
    x[7], y[9], y[10] = x[3], x[3], x[3] + 1e-3
    x, y = x.to(dtype), y.to(dtype)
    check(x, y, [float(D), 4.0 * D])
    got = []
    for cast, op in ((dtype, mmd), (torch.float64, ref.mmd)):
        a, b = x.to(cast).requires_grad_(), y.to(cast).requires_grad_()
        got.append(torch.autograd.grad(op(a, b, [float(D), 4.0 * D]) * 1000, (a, b)))
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    for mine, want in zip(*got):
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=rounding[dtype] * want.abs().max().item())


@pytest.mark.parametrize("bandwidths", [[1e-3], [1e-4, 100.0]])
def test_bandwidths_far_below_the_distances(device, bandwidths):
    """Two points at 1e-2 of each other among points at 100: products in float32 would not see that distance."""
    x, y = torch.randn(300, 8, device=device) * 100, torch.randn(300, 8, device=device) * 100
    y[:150] = x[:150] + 3.5e-3 * torch.randn(150, 8, device=device)
    want = ref.mmd(x.double(), y.double(), bandwidths)
    assert abs(mmd(x, y, bandwidths).double() / want - 1) < 1e-4
    outlier = torch.randn(300, 8, device=device)
    outlier[0] = 1e6
    check(outlier, outlier[:299] + 0.01, [0.5, 2.0])


@pytest.mark.parametrize("N", [20, 300])  # directly, and by products
@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e20, 1e30])
def test_data_of_any_scale(device, dtype, scale, N):
    """With the default bandwidths, with given ones, the gradient; also at scales whose squares leave float32."""
    if dtype == torch.float16:
        pytest.skip("float16 holds no such numbers")
    x, y = (scale * (torch.randn(N, 5, dtype=torch.float64, device=device) + shift) for shift in (0, 0.5))
    x, y = x.to(dtype), y.to(dtype)
    one, two = x.double() / scale, y.double() / scale
    mean = mean_squared_distance(one, two)
    cases = [(None, [mean * f for f in (0.25, 0.5, 1, 2, 4)]), ([scale**2, 4 * scale**2], [1.0, 4.0])]
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8}[dtype]
    for bandwidths, at_one in cases:
        a, b = x.clone().requires_grad_(), one.clone().requires_grad_()
        got, want = mmd(a, y, bandwidths), ref.mmd(b, two, at_one)
        torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=1e-12 if dtype == torch.float64 else 1e-6)
        (got,), (want,) = torch.autograd.grad(got, a), torch.autograd.grad(want, b)
        torch.testing.assert_close(got.double() * scale, want, rtol=0, atol=rounding * want.abs().max().item())


@pytest.mark.parametrize("N", [20, 300])
def test_bandwidths_beyond_the_dtype(device, N):
    """1 / bandwidth is 0 or inf in float32."""
    x = torch.randn(N, 4, device=device)
    check(x, x + 1, [1e-45, 1e300])
    check(x, x + 1, [1.0, float("inf")])
    check(x[:, :0], x[:, :0], [1e-45, 1.0])
    check(x * 1e30, x * 1e30 + 1e30, [1.0, 2.0])
    assert mmd(torch.full((3, 2), 1e-30, device=device), torch.full((N, 2), 1e-30, device=device)) == 0


def test_data_of_any_scale_compiled(device):
    x, y = torch.randn(9, 4, device=device) * 1e-20, torch.randn(8, 4, device=device) * 1e-20
    compiled = torch.compile(mmd, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, y), mmd(x, y))
    torch.testing.assert_close(compiled(x, y, [1e-40]), mmd(x, y, [1e-40]))


def test_nan_and_inf_in_large_samples(device):
    for bad in (float("nan"), float("inf")):
        x, y = torch.randn(300, 4, device=device), torch.randn(300, 4, device=device)
        y[2, 1] = bad
        assert mmd(x, y, [1.0]).isnan()


def test_default_bandwidths(device):
    x, y = torch.randn(40, 6, device=device) + 100, torch.randn(30, 6, device=device) * 2 + 100
    pooled = torch.cat((x, y)).double()
    mean = ref.pairwise_distances(pooled, pooled, squared=True).sum() / (70 * 69)
    torch.testing.assert_close(mean_squared_distance(x, y), mean)
    torch.testing.assert_close(mmd(x, y), mmd(x, y, [mean.item() * f for f in (0.25, 0.5, 1, 2, 4)]))


def test_what_it_means(device):
    """Zero for the same sample, small for the same distribution, larger for another; points that coincide are
    fine."""
    x, y = torch.randn(400, 5, device=device), torch.randn(400, 5, device=device)
    assert abs(mmd(x, x).item()) < 1e-6
    assert abs(mmd(x, x[torch.randperm(400, device=device)]).item()) < 1e-6
    assert mmd(x, y) < 0.02 < 0.1 < mmd(x, y + 1)
    assert mmd(torch.ones(3, 2, device=device), torch.ones(5, 2, device=device)) == 0
    assert mmd(torch.zeros(1, 2, device=device), torch.ones(1, 2, device=device), [1e-3]) == 2
    assert mmd(x * float("nan"), y, [1.0]).isnan()


def test_bitwise_for_any_number_of_threads(threads):
    x, y = torch.randn(1500, 20, requires_grad=True), torch.randn(333, 20, requires_grad=True)
    results = []
    for n in (1, 2, 3):
        with threads(n):
            result = []
            for part in (x, x[:100]):  # by products, and directly
                value = mmd(part, y, [10.0, 40.0])
                result += [value, *torch.autograd.grad(value, (x, y))]
            results.append(result)
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))


def test_strided(device, dtype):
    x = torch.randn(8, 50, device=device).to(dtype).T
    y = torch.randn(60, 16, device=device).to(dtype)[::2, ::2]
    assert torch.equal(mmd(x, y, [8.0]), mmd(x.contiguous(), y.contiguous(), [8.0]))


def test_offsets_beyond_32_bits(far):
    x, y = torch.randn(6, 8).half(), torch.randn(5, 8).half()
    assert torch.equal(mmd(far(x, torch.float16), y, [8.0]), mmd(x, y, [8.0]))


def test_memory_does_not_hold_the_matrix():
    code = (
        "import resource, torch, cox_ops\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "x, y = torch.randn(6000, 2, requires_grad=True), torch.randn(6000, 2)\n"
        "cox_ops.mmd(x[:8], y[:8], [1.0]).backward(); before = peak()\n"
        "cox_ops.mmd(x, y, [1.0]).backward(); print((peak() - before) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    grown = int(run.stdout)
    assert grown < 60  # MiB; one matrix would be 137


@pytest.mark.parametrize("N, M", [(5, 4), (66, 3), (1, 1)])
def test_gradients(device, N, M):
    x = torch.randn(N, 3, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(M, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: mmd(x, y, [0.7, 5.0]), (x, y))


def test_gradients_in_every_dtype(device, dtype):
    x, y = torch.randn(90, 12, device=device).to(dtype), torch.randn(70, 12, device=device).add(1).to(dtype)
    got = []
    for cast, op in ((dtype, mmd), (torch.float64, ref.mmd)):
        a, b = x.to(cast).requires_grad_(), y.to(cast).requires_grad_()
        got.append(torch.autograd.grad(3 * op(a, b, [10.0, 30.0]), (a, b)))
    # One rounding of the result; in float16 these gradients are subnormal, so that rounding is absolute.
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}
    for mine, want in zip(*got):
        assert mine.dtype == dtype
        atol = rounding[dtype] * want.abs().max().item() + (2**-25 if dtype == torch.float16 else 0)
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=atol)


def test_bandwidths_are_constants(device):
    x = torch.randn(9, 3, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(8, 3, dtype=torch.float64, device=device)
    scale = mean_squared_distance(x, y)
    (free,) = torch.autograd.grad(mmd(x, y), x)
    (fixed,) = torch.autograd.grad(mmd(x, y, [scale * f for f in (0.25, 0.5, 1, 2, 4)]), x)
    torch.testing.assert_close(free, fixed)


def test_no_second_derivative(device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(mmd(x, x.detach() + 1), x, create_graph=True)
    with pytest.raises(RuntimeError, match="mmd has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "x, y, words",
    [
        (torch.zeros(2, 17), torch.zeros(3, 16), "D differs: x has 17, y has 16"),
        (torch.zeros(0, 3), torch.zeros(2, 3), "at least one row in each sample"),
        (torch.zeros(3), torch.zeros(2, 3), r"got x \(3\) and y \(2, 3\)"),
        (torch.zeros(2, 3), torch.zeros(2, 3).half(), "x is float32, y is float16"),
    ],
)
def test_errors(x, y, words):
    with pytest.raises(RuntimeError, match="mmd: .*" + words):
        mmd(x, y, [1.0])


def test_bandwidth_errors():
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"bandwidths must be positive, got \[1.0, 0.0\]"):
        mmd(x, x, [1.0, 0.0])
    with pytest.raises(ValueError, match=r"bandwidths must be positive, got \[nan\]"):
        mmd(x, x, [float("nan")])
    for wrong in (4.0, "ab", [None], [1.0, "a"]):
        with pytest.raises(
            TypeError, match="^mmd: bandwidths must be a Tensor, a sequence of numbers or None, got .*$"
        ):
            mmd(x, x, wrong)
    if os.environ.get("COX_EMULATED") != "1":  # the CUDA kernels never look at values on the host
        with pytest.raises(RuntimeError, match="bandwidths must be positive, got -1"):
            mmd(x, x, torch.tensor([-1.0]))
        with pytest.raises(RuntimeError, match="bandwidths must be positive, got nan"):
            mmd(x, x, torch.tensor([1.0, float("nan")]))
    with pytest.raises(RuntimeError, match=r"at least one value, got float64 \(0\)"):
        mmd(x, x, [])
