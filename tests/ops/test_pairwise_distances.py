"""pairwise_distances: entries and gradients against float64, without cancellation, for every dtype and
layout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cox_ops
from cox_ops import pairwise_distances, ref

# Largest relative error of one rounding to the dtype, and a little for float32's sum.
ROUNDING = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-10}


def cone(rows, D, seed=0):
    """Rows around one vector, narrowly to widely: pairs of every angle, from far ones to near copies."""
    g = torch.Generator().manual_seed(seed)
    width = torch.logspace(-2, 1, rows)[torch.randperm(rows, generator=g)][:, None]
    return torch.randn(D, generator=torch.Generator().manual_seed(99)) + width * torch.randn(rows, D, generator=g)


def check(x, y, squared=False):
    d = pairwise_distances(x, y, squared)
    assert d.dtype == x.dtype
    want = ref.pairwise_distances(x.double(), y.double(), squared)
    torch.testing.assert_close(d.double(), want, rtol=ROUNDING[x.dtype], atol=0)
    return d


@given(
    M=st.integers(0, 40),
    N=st.integers(0, 40),
    D=st.integers(0, 70),
    B=st.integers(-1, 3),
    squared=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_reference(M, N, D, B, squared, seed):
    g = torch.Generator().manual_seed(seed)
    batch = () if B < 0 else (B,)
    d = check(torch.randn(*batch, M, D, generator=g), torch.randn(*batch, N, D, generator=g), squared)
    assert d.shape == (*batch, M, N)


@pytest.mark.parametrize("M, N, D", [(1, 1, 1), (63, 65, 16), (64, 64, 17), (129, 31, 257), (130, 1, 5)])
def test_dtypes(device, dtype, M, N, D):
    for squared in (False, True):
        check(torch.randn(M, D, device=device).to(dtype), torch.randn(N, D, device=device).to(dtype), squared)


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_no_cancellation(device, gap):
    """Relative error at most 1e-5 although ||x - y|| is a small part of ||x||."""
    x = torch.nn.functional.normalize(torch.randn(64, 512), dim=1) + 10
    y = (x + gap * torch.nn.functional.normalize(torch.randn(64, 512), dim=1)).to(device)
    d = pairwise_distances(x.to(device), y).double()
    want = ref.pairwise_distances(x.to(device).double(), y.double())
    assert ((d - want).abs() / want).max() < 1e-5
    assert (pairwise_distances(y, y).diagonal() == 0).all()


@pytest.mark.parametrize("squared", [False, True])
def test_near_copies(device, squared):
    """||x - y|| at 1e-3 of ||x||: distances and gradients to 1e-5, where products lose most digits."""
    x = torch.randn(200, 300, device=device)
    step = torch.randn(200, 300, device=device)
    y = x + 1e-3 * step * (x.norm(dim=1) / step.norm(dim=1))[:, None]
    args = [t.requires_grad_() for t in (x, y)]
    want_args = [t.detach().double().requires_grad_() for t in (x, y)]
    got, want = (
        op(*a, squared).diagonal() for op, a in ((pairwise_distances, args), (ref.pairwise_distances, want_args))
    )
    near = (want.sqrt() if squared else want) / x.detach().double().norm(dim=1)
    assert ((near - 1e-3).abs() < 1e-6).all()
    assert ((got.double() - want) / want).abs().max() < 1e-5
    for g, w in zip(torch.autograd.grad(got.sum(), args), torch.autograd.grad(want.sum(), want_args)):
        assert ((g.double() - w).norm(dim=1) / w.norm(dim=1)).max() < 1e-5
    products = torch.cdist(x, y, compute_mode="use_mm_for_euclid_dist").diagonal().double()
    assert ((products - want_args[0].sub(want_args[1]).norm(dim=1)) / products).abs().max() > 1e-3


@pytest.mark.parametrize("D", [33, 129, 400])
def test_every_angle(device, D):
    x, y = cone(50, D, 1).to(device), cone(280, D, 2).to(device)
    check(x, y)
    check(x + 30, y + 30)  # near, all of them
    squares = pairwise_distances(x, y, squared=True).double()
    torch.testing.assert_close(squares, ref.pairwise_distances(x.double(), y.double(), True), rtol=4e-6, atol=0)


@pytest.mark.parametrize("D", [5, 40])
def test_large_and_small_values(device, D):
    x, y = torch.randn(9, D, device=device), torch.randn(8, D, device=device)
    for scale in (1e6, 1e-6, 1e15, 1e-15, 1e18, 1e-17):
        check(x * scale, y * scale)
        check(x * scale, y)


@pytest.mark.parametrize("D", [5, 40])
def test_nan_and_inf_stay_in_their_row(device, D):
    x, y = torch.randn(6, D, device=device), torch.randn(7, D, device=device)
    clean = pairwise_distances(x, y)
    x[2, 1], y[3, 0] = float("nan"), float("inf")
    d = pairwise_distances(x, y)
    assert d[2].isnan().all() and (d[[0, 1, 3, 4, 5], 3] == float("inf")).all()
    keep = torch.ones_like(d, dtype=torch.bool)
    keep[2], keep[:, 3] = False, False
    assert torch.equal(d[keep], clean[keep])
    x[2, 1] = 0
    x.requires_grad_(), y.requires_grad_()
    gx, gy = torch.autograd.grad(pairwise_distances(x, y).sum(), (x, y))
    keep = [0, 1, 2, 4, 5, 6]
    want = [t.detach().double().requires_grad_() for t in (x, y[keep])]
    wx, wy = torch.autograd.grad(ref.pairwise_distances(*want).sum(), want)
    torch.testing.assert_close(gx.double(), wx, rtol=0, atol=1e-5)  # an infinite distance pulls nothing
    torch.testing.assert_close(gy[keep].double(), wy, rtol=0, atol=1e-5)
    assert (gy[3] == 0).all()


@pytest.mark.parametrize("D", [40, 300])
def test_a_pair_is_the_same_in_any_company(device, D):
    x, y = cone(150, D, 1).to(device), cone(700, D, 2).to(device)
    d = pairwise_distances(x, y)
    order = torch.randperm(150)
    assert torch.equal(d[order], pairwise_distances(x[order], y)) and torch.equal(d.T, pairwise_distances(y, x))
    assert torch.equal(d[5:6, 600:], pairwise_distances(x[5:6], y[600:]))
    near = x[d.median(1).values < d.median()]  # most pairs of these are near
    assert torch.equal(pairwise_distances(near, y), d[d.median(1).values < d.median()])


def test_isa_with_fma_give_the_same_bits(device, instruction_set):
    x, y, results = cone(50, 200, 1), cone(40, 200, 2), {}
    for isa in cox_ops._C.build_info()["isa_available"]:
        with instruction_set(isa):
            a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
            d = check(a, b)
            results[isa] = (d, *torch.autograd.grad(d.sum(), (a, b)))
    fma = [r for isa, r in results.items() if isa != "plain"]
    assert all(torch.equal(one, first) for r in fma[1:] for one, first in zip(r, fma[0]))
    torch.testing.assert_close(results["plain"], list(results.values())[-1], rtol=1e-5, atol=1e-4)


def test_bitwise_under_any_split(device, threads):
    x, y = torch.randn(300, 40, device=device), torch.randn(200, 40, device=device)
    x.requires_grad_()
    results = []
    for n in (1, 2, 3):
        with threads(n):
            d = pairwise_distances(x, y)
            (grad,) = torch.autograd.grad(d.square().sum(), x)
            results.append((d, grad))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))
    d = results[0][0]
    assert torch.equal(d[7:8], pairwise_distances(x[7:8], y)) and torch.equal(d.T, pairwise_distances(y, x))
    assert torch.equal(d, pairwise_distances(x[None], y[None])[0])


def test_strided(device, dtype):
    x, y = torch.randn(20, 12, 3, device=device).to(dtype), torch.randn(3, 20, 30, device=device).to(dtype)
    xs, ys = x.permute(2, 1, 0), y.transpose(1, 2)[:, ::4]
    assert torch.equal(pairwise_distances(xs, ys), pairwise_distances(xs.contiguous(), ys.contiguous()))


def test_offsets_beyond_32_bits(far):
    x, y = torch.randn(6, 8).half(), torch.randn(6, 8).half()
    assert torch.equal(pairwise_distances(far(x, torch.float16), y), pairwise_distances(x, y))
    assert torch.equal(pairwise_distances(x, far(y, torch.float16)), pairwise_distances(x, y))


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_gradients(device, squared, batch):
    x = torch.randn(*batch, 18, 3, dtype=torch.float64, device=device, requires_grad=True)
    y = torch.randn(*batch, 4, 3, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: pairwise_distances(x, y, squared), (x, y))


@pytest.mark.parametrize("squared", [False, True])
def test_gradients_in_every_dtype(device, dtype, squared):
    x, y = torch.randn(35, 40, device=device).to(dtype), torch.randn(70, 40, device=device).to(dtype)
    weight = torch.randn(70, 35, device=device).to(dtype).T  # a strided incoming gradient
    got = []
    for cast, op in ((x.dtype, pairwise_distances), (torch.float64, ref.pairwise_distances)):
        a, b = x.to(cast).requires_grad_(), y.to(cast).requires_grad_()
        got.append(torch.autograd.grad(op(a, b, squared), (a, b), weight.to(cast)))
    for mine, want in zip(*got):
        assert mine.dtype == dtype
        atol = 20 * ROUNDING[dtype] * want.abs().max().item()
        torch.testing.assert_close(mine.double(), want, rtol=0, atol=atol)


@pytest.mark.parametrize("squared", [False, True])
def test_gradients_at_every_angle(device, squared):
    """Also without the mean: offsets of 100 cost the gradient no digits."""
    x, y = cone(50, 60, 1).to(device), cone(150, 60, 2).to(device)
    weight = torch.randn(50, 150, device=device)
    for offset in (0, 100):
        args = [(t + offset).requires_grad_() for t in (x, y)]
        want_args = [t.detach().double().requires_grad_() for t in args]
        got = torch.autograd.grad(pairwise_distances(*args, squared), args, weight)
        want = torch.autograd.grad(ref.pairwise_distances(*want_args, squared), want_args, weight.double())
        for g, w in zip(got, want):
            assert ((g.double() - w).norm(dim=1) / w.norm(dim=1)).max() < 2e-5


def test_gradient_is_zero_at_distance_zero(device):
    x = torch.randn(5, 4, device=device, requires_grad=True)
    d = pairwise_distances(x, x)
    d.sum().backward()
    want = x.detach().double().requires_grad_()
    ref.pairwise_distances(want, want).sum().backward()
    torch.testing.assert_close(x.grad.double(), want.grad, rtol=1e-5, atol=1e-5)
    same = torch.ones(3, 4, device=device, requires_grad=True)
    pairwise_distances(same, same).sum().backward()
    assert (same.grad == 0).all()


def test_gradient_of_overflowed_distance_is_not_nan(device):
    x = torch.full((2, 3), 3e19, device=device, requires_grad=True)
    pairwise_distances(x, torch.zeros(1, 3, device=device)).sum().backward()
    assert (x.grad == 0).all()


def test_no_second_derivative(device):
    x = torch.randn(3, 4, device=device, requires_grad=True)
    (grad,) = torch.autograd.grad(pairwise_distances(x, x.detach() + 1).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="pairwise_distances has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    "x, y, words",
    [
        (torch.zeros(2, 17), torch.zeros(3, 16), "D differs: x has 17, y has 16"),
        (torch.zeros(2, 3), torch.zeros(1, 2, 3), r"got x \(2, 3\) and y \(1, 2, 3\)"),
        (torch.zeros(2, 2, 3), torch.zeros(4, 2, 3), "batch differs: x has 2, y has 4"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), "x is float32, y is float64"),
        (torch.zeros(2, 3).int(), torch.zeros(2, 3).int(), "got int32"),
    ],
)
def test_errors(x, y, words):
    with pytest.raises(RuntimeError, match="pairwise_distances: .*" + words):
        pairwise_distances(x, y)
