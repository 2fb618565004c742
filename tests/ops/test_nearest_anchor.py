"""nearest_anchor: the index must equal the float64 reference's, ties go to the lowest index, nothing depends
on tiling."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cox_ops
from cox_ops import nearest_anchor, ref

ROOT = Path(__file__).resolve().parents[2]

INF = float("inf")


def unit(*shape):
    return torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)


def check(z, v, **kw):
    """Same index as the float64 reference on the same (rounded) inputs; score within float32 rounding."""
    score, index = nearest_anchor(z, v, **kw)
    want, want_index = ref.nearest_anchor(z.double(), v.double())
    assert score.dtype == (torch.float64 if z.dtype == torch.float64 else torch.float32)
    assert index.dtype == torch.int64 and index.device == score.device == z.device
    assert torch.equal(index, want_index)
    rtol = 1e-12 if z.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(score.double(), want, rtol=rtol, atol=0)
    return score, index


def same(a, b):
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1])


@given(M=st.integers(0, 70), N=st.integers(0, 140), K=st.integers(1, 5), D=st.integers(1, 70), seed=st.integers(0, 99))
def test_equals_reference(M, N, K, D, seed):
    g = torch.Generator().manual_seed(seed)
    check(torch.randn(M, D, generator=g), torch.randn(K, N, D, generator=g))


@pytest.mark.parametrize("D", [1, 15, 16, 17, 64, 129, 1000])
def test_dtypes(device, dtype, D):
    z, v = torch.randn(37, D, device=device).to(dtype), torch.randn(3, 75, D, device=device).to(dtype)
    if dtype in (torch.float16, torch.bfloat16) and D == 1:
        z = torch.arange(37.0, device=device)[:, None].to(dtype)
        v = torch.arange(111.0).reshape(3, 37, 1).to(device, dtype)
    check(z, v)


@pytest.mark.parametrize("gap", [1e-2, 1e-3, 1e-4])
def test_near_copies(device, gap):
    """Four near copies per query at gap, 1.05 gap, 1.10 gap, 1.15 gap in both mappings; norms tricks lose
    half of them."""
    z, step = unit(64, 128), unit(2, 64, 128)
    copies = [z + gap * (1 + 0.05 * n) * step for n in range(4)]
    v = torch.cat([*reversed(copies), unit(2, 200, 128)], dim=1)
    z, v = z.float().to(device), v.float().to(device)
    _, index = check(z, v)
    assert torch.equal(index.cpu(), torch.arange(64) + 3 * 64)  # the nearest copy is the last block


@pytest.mark.parametrize("kind", ["gauss", "agree", "clusters", "equal"])
def test_larger_banks(device, kind):
    """Sizes at which the bound through the mean of the mappings and the finer screen are tried on a sample."""
    M, N, K, D = 1024, 1100, 3, 16
    z, v = torch.randn(M, D), torch.randn(K, N, D)
    if kind == "agree":
        v = torch.randn(1, N, D) + 0.1 * v
    if kind == "clusters":  # within each, closer together than 8 bits can tell
        middle = 10 * torch.randn(2, D)
        z, v = middle[torch.arange(M) % 2] + 1e-2 * z, middle[torch.arange(N) % 2] + 1e-2 * v
    if kind == "equal":
        v = v[:, :1].expand(-1, N, -1)
    want = [torch.cat(p) for p in zip(*(ref.nearest_anchor(c, v) for c in z.split(100)))]
    same(nearest_anchor(z.to(device), v.to(device)), [w.to(device) for w in want])


@pytest.mark.parametrize("offset, scale", [(10, 1), (0, 1e6), (0, 1e-6), (1000, 1)])
def test_offset_and_scale(device, offset, scale):
    z, v = unit(50, 64), unit(2, 200, 64)
    v[:, :50] = z + 0.1 * unit(2, 50, 64)
    _, index = check(((z + offset) * scale).float().to(device), ((v + offset) * scale).float().to(device))
    assert torch.equal(index.cpu(), torch.arange(50))


@pytest.mark.parametrize("K", [1, 2, 5])
def test_self_is_identity(device, dtype, K):
    x = torch.randn(256, 24, device=device).to(dtype)
    score, index = nearest_anchor(x, x.expand(K, -1, -1))
    assert torch.equal(index.cpu(), torch.arange(256)) and (score == 0).all()


def test_all_rows_equal(device):
    _, index = nearest_anchor(torch.randn(70, 9, device=device), torch.ones(2, 500, 9, device=device))
    assert (index == 0).all()


@pytest.mark.parametrize("tile", [0, 1, 7, 64])
def test_duplicates_across_tiles(device, tile, threads):
    z, v = torch.randn(9, 40, device=device), torch.randn(2, 700, 40, device=device) + 3
    for at in (5, 6, 63, 64, 300, 699):
        v[:, at] = z[4]
    for n in (1, 2):
        with threads(n):
            score, index = nearest_anchor(z, v, tile=tile)
            assert index[4] == 5 and score[4] == 0
    v[:, 5:300] += 50
    assert nearest_anchor(z, v, tile=tile)[1][4] == 300


@pytest.mark.parametrize("tile", [2**20, 2**31 + 1, 2**58, 2**63 - 1])
def test_a_tile_beyond_the_data(device, dtype, tile):
    """Memory is that of as many rows as there are."""
    for M, N in ((9, 14), (1, 70), (0, 3), (3, 0)):
        z, v = torch.randn(M, 5, device=device).to(dtype), torch.randn(2, N, 5, device=device).to(dtype)
        assert all(torch.equal(a, b) for a, b in zip(nearest_anchor(z, v, tile=tile), nearest_anchor(z, v)))


@pytest.mark.parametrize("tile", [1, 3, 4, 5, 16, 64])
def test_sizes_around_the_tile(device, tile):
    for M in (0, 1, tile - 1, tile, tile + 1, 2 * tile):
        for N in (0, 1, tile - 1, tile, tile + 1, 2 * tile, 8 * tile):
            z, v = torch.randn(M, 19, device=device), torch.randn(2, N, 19, device=device)
            same(nearest_anchor(z, v, tile=tile), check(z, v))


@pytest.mark.parametrize("rows", [256, 512])
def test_multiples_of_256(device, rows):
    check(torch.randn(rows, 8, device=device), torch.randn(1, rows, 8, device=device))


def test_bitwise_under_any_split(device, dtype, threads):
    z, v = torch.randn(1000, 33, device=device).to(dtype), torch.randn(2, 600, 33, device=device).to(dtype)
    whole = nearest_anchor(z, v)
    same(whole, nearest_anchor(z, v))
    for n in (1, 2, 3):
        with threads(n):
            same(whole, nearest_anchor(z, v))
            same((whole[0][7:8], whole[1][7:8]), nearest_anchor(z[7:8], v))
    parts = [nearest_anchor(c, v) for c in z.split(77)]
    same(whole, [torch.cat(p) for p in zip(*parts)])
    best, arg = nearest_anchor(z, v[:, :100])
    for i in range(100, 600, 100):
        s, a = nearest_anchor(z, v[:, i : i + 100])
        arg, best = torch.where(s < best, a + i, arg), torch.minimum(s, best)
    same(whole, (best, arg))


def test_zero_padding_changes_nothing(device):
    z, v = torch.randn(30, 21, device=device), torch.randn(2, 90, 21, device=device)
    same(nearest_anchor(z, v), nearest_anchor(*(torch.nn.functional.pad(t, (0, 50)) for t in (z, v))))


def test_permuted_bank(device):
    z, v, p = torch.randn(40, 16, device=device), torch.randn(2, 300, 16, device=device), torch.randperm(300)
    (s, i), (sp, ip) = nearest_anchor(z, v), nearest_anchor(z, v[:, p])
    assert torch.equal(s, sp) and torch.equal(p[ip.cpu()], i.cpu())


def test_nan_and_inf_never_chosen(device, dtype):
    z, v = torch.randn(20, 12, device=device).to(dtype), torch.randn(2, 60, 12, device=device).to(dtype)
    v[:, 10] = z[3]
    v[:, 30] = z[3]
    for bad in (float("nan"), INF, -INF):
        v[1, 10, 5] = bad
        score, index = check(z, v)
        assert index[3] == 30 and score[3] == 0
    z[0, 0], z[1, 1] = float("nan"), INF
    score, index = nearest_anchor(z, v)
    assert index[:2].tolist() == [-1, -1] and score[:2].tolist() == [INF, INF] and (index[2:] >= 0).all()
    score, index = nearest_anchor(z, v * float("nan"))
    assert (index == -1).all() and (score == INF).all()


def test_large_finite_values_have_no_sentinel(device):
    z, v = torch.zeros(1, 4, device=device), torch.full((1, 3, 4), 1e18, device=device)
    v[:, 1] = 0.9e18
    assert nearest_anchor(z, v)[1].tolist() == [1]
    assert nearest_anchor(z, v * 1e10)[1].tolist() == [-1]  # squares overflow float32: documented


def test_empty(device, dtype):
    for M, N, D in ((0, 5, 3), (4, 0, 3), (0, 0, 0), (4, 5, 0)):
        score, index = nearest_anchor(
            torch.zeros(M, D, device=device, dtype=dtype), torch.zeros(2, N, D, device=device, dtype=dtype)
        )
        assert score.shape == index.shape == (M,)
        assert (index == (0 if N else -1)).all() and (score == (0 if N else INF)).all()


def test_strided(device, dtype):
    z = torch.randn(24, 2 * 31, device=device).to(dtype)
    v = torch.randn(24, 50, 3, device=device).to(dtype)
    zs, vs = z[:, ::2].T, v.permute(2, 1, 0)  # (31, 24) and (3, 50, 24), last dimension not 1 apart
    same(nearest_anchor(zs, vs), nearest_anchor(zs.contiguous(), vs.contiguous()))
    same(
        nearest_anchor(zs[::3], vs[:, 5::2].flip(1)),
        nearest_anchor(zs[::3].contiguous(), vs[:, 5::2].flip(1).contiguous()),
    )
    same(nearest_anchor(zs[:1].expand(9, -1), vs), nearest_anchor(zs[:1].repeat(9, 1), vs))


def test_offsets_beyond_32_bits(far):
    z, bank = torch.randn(6, 8), torch.randn(6, 8)
    want = nearest_anchor(z.half(), bank.half()[None])
    same(nearest_anchor(z.half(), far(bank.half(), torch.float16)[None]), want)
    same(
        nearest_anchor(z.half(), far(bank.half(), torch.float16)[:, None]),
        nearest_anchor(z.half(), bank.half()[:, None]),
    )
    same(nearest_anchor(far(z.half(), torch.float16), bank.half()[None]), want)


@pytest.mark.cuda
@pytest.mark.slow
def test_more_than_2_31_elements_on_the_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU here")
    v = torch.zeros(3, 1_400_000, 520, dtype=torch.float16, device="cuda")
    assert v.numel() > 2**31
    v[2, :-1] = 1
    assert nearest_anchor(v[0, :5], v)[1].tolist() == [1_399_999] * 5


def test_memory_does_not_hold_the_matrix():
    code = (
        "import resource, torch, cox_ops\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "z, v = torch.randn(4000, 4), torch.randn(1, 100_000, 4)\n"
        "cox_ops.nearest_anchor(z[:8], v[:, :8]); before = peak()\n"
        "cox_ops.nearest_anchor(z, v); print((peak() - before) // 1024)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    grown = int(run.stdout)
    assert grown < 100  # MiB; the matrix would be 1,526


def test_instruction_sets_agree(instruction_set):
    z, v, results = torch.randn(50, 77), torch.randn(2, 200, 77), {}
    v[:, :50] = z + 1e-4 * torch.randn(2, 50, 77)
    for name in [*cox_ops._C.build_info()["isa_available"], "amx_emulated"]:
        with instruction_set(name):
            assert cox_ops._C.build_info()["isa_chosen"] == name
            results[name] = check(z, v)
            check(z.double(), v.double())
    same(results["plain"], results["amx_emulated"])
    if "avx512" in results:  # both use FMA
        same(results["avx2"], results["avx512"])
    with pytest.raises(RuntimeError, match='no instruction set "mmx".*available: plain'):
        cox_ops._C.force_isa("mmx")


def test_gradients(device):
    z = torch.randn(6, 5, dtype=torch.float64, device=device, requires_grad=True)
    v = torch.randn(2, 7, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z, v: nearest_anchor(z, v)[0], (z, v))
    assert torch.autograd.gradgradcheck(lambda z, v: nearest_anchor(z, v)[0], (z, v))


def test_gradient_where_there_is_none(device):
    """Distance 0, a query without an anchor, an empty bank: gradient 0, never NaN; repeated anchors add
    up."""
    z = torch.randn(4, 5, device=device)
    v = torch.randn(2, 3, 5, device=device) + 10
    v[:, 1] = z[0]
    z[1] = float("nan")
    z, v = z.requires_grad_(), v.requires_grad_()
    score, index = nearest_anchor(z, v)
    score[[0, 1, 2, 3]].sum().backward()
    assert index.tolist()[:2] == [1, -1]
    assert (z.grad[:2] == 0).all() and z.grad[2:].abs().sum() > 0
    assert v.grad.isfinite().all() and (v.grad[:, 0] == 0).all()
    torch.testing.assert_close(v.grad.mean(0)[1] * 2, -(z.grad[2] + z.grad[3]))
    z = torch.randn(4, 5, device=device, requires_grad=True)
    nearest_anchor(z, torch.empty(1, 0, 5, device=device))[0].sum().backward()
    assert (z.grad == 0).all()


def test_gradient_keeps_half_dtype(device):
    z = torch.randn(4, 5, device=device).half().requires_grad_()
    nearest_anchor(z, torch.randn(1, 3, 5, device=device).half())[0].sum().backward()
    assert z.grad.dtype == torch.float16 and z.grad.norm(dim=1).float().sub(1).abs().max() < 1e-2


@pytest.mark.parametrize(
    "z, v, words",
    [
        (torch.zeros(2, 17), torch.zeros(1, 3, 16), "D differs: z has 17, v has 16"),
        (torch.zeros(2), torch.zeros(1, 3, 2), r"expected z \(M, D\), got \(2\)"),
        (torch.zeros(2, 2), torch.zeros(3, 2), r"expected v \(K, N, D\), got \(3, 2\)"),
        (torch.zeros(2, 2), torch.zeros(0, 3, 2), "at least one mapping.*K = 0"),
        (torch.zeros(2, 2), torch.zeros(1, 3, 2).half(), "z is float32, v is float16"),
        (torch.zeros(2, 2).long(), torch.zeros(1, 3, 2).long(), "float16 or bfloat16, got int64"),
    ],
)
def test_errors(z, v, words):
    with pytest.raises(RuntimeError, match="nearest_anchor: .*" + words):
        nearest_anchor(z, v)
