"""soft_correspondence: shares and sums of the definition in float64, extremes, the same bits for any threads."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import cox_ops
from cox_ops import ref, soft_correspondence

INF = float("inf")
RELATIVE = ("expected", "use", "total", "scatter")  # to the largest value; the others lie in 0 ... 1, or are logs


def world(M, N, C, d, p, *, seed=0, spread=0.4, device="cpu"):
    """Readings that come from items, z = mean of an item + unit noise; classes, biases, a third of the labels."""
    g = torch.Generator().manual_seed(seed)
    classes = torch.randint(C, (N,), generator=g)
    x = torch.randn(N, p, generator=g)
    means = spread * (x @ torch.randn(p, d, generator=g) + torch.randn(C, d, generator=g)[classes])
    own = torch.randint(N, (M,), generator=g)
    z = means[own] + torch.randn(M, d, generator=g)
    labels = torch.where(torch.rand(M, generator=g) < 0.3, classes[own], -1)
    bias = torch.randn(C, generator=g)
    return [t.to(device) for t in (z, means, x, classes, bias, labels)]


def bfloat16(*args):
    return [a.bfloat16() if a.is_floating_point() else a for a in args]


def check(*args, freedom, tolerance=1e-5):
    got = soft_correspondence(*args, freedom=freedom)
    double = [a.double() if a is not None and a.is_floating_point() else a for a in args]
    want = ref.soft_correspondence(*double, freedom=freedom)
    for name, a, w in zip(got._fields, got, want, strict=True):
        assert a.shape == w.shape and a.dtype == (torch.float64 if args[0].dtype == torch.float64 else torch.float32)
        scale = w.abs().max().clamp(min=1e-30).item() if name in RELATIVE and w.numel() else 1
        if name == "evidence":
            scale = w[w.isfinite()].abs().max().clamp(min=1).item() if w.isfinite().any() else 1
        torch.testing.assert_close(a.double() / scale, w / scale, rtol=0, atol=tolerance, msg=lambda m: f"{name}: {m}")
    return got


@given(
    M=st.integers(0, 70),
    N=st.integers(1, 420),
    C=st.integers(1, 9),
    d=st.integers(0, 40),
    p=st.integers(0, 36),
    freedom=st.sampled_from([0.5, 5.0, 300.0, 1e6, INF]),
    labelled=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_reference(M, N, C, d, p, freedom, labelled, seed):
    *args, labels = world(M, N, C, d, p, seed=seed)
    check(*args, labels if labelled else None, freedom=freedom)


@pytest.mark.parametrize("freedom", [5.0, INF])
def test_dtypes(device, dtype, freedom):
    args = [a.to(dtype) if a.is_floating_point() else a for a in world(60, 90, 4, 9, 5, device=device)]
    check(*args, freedom=freedom, tolerance=1e-12 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("M, N, C, d, p", [(530, 500, 3, 20, 18), (9, 900, 60, 90, 80), (1100, 5, 5, 3, 1)])
@pytest.mark.parametrize("spread", [0.05, 0.4, 3.0])
def test_beyond_a_block_and_a_tile(device, M, N, C, d, p, spread):
    """With shares that are all alike, and with ones so sure that most of them are 0."""
    got = check(*world(M, N, C, d, p, spread=spread, device=device), freedom=5.0)
    torch.testing.assert_close(got.posterior.sum(1), torch.ones(M, device=device))


def test_one_item_and_one_class(device):
    z = torch.randn(7, 3, device=device)
    none, zero = torch.zeros(1, dtype=torch.int64, device=device), torch.zeros(1, device=device)
    got = check(z, z[:1], z[:1], none, zero, freedom=2.0)
    assert (got.posterior == 1).all() and (got.margin == 1).all() and got.expected.allclose(z[:1].expand(7, 3))


def test_far_readings_and_near_copies(device):
    """A reading a thousand times as far as the items lie apart, and one that is an item, of which there are copies."""
    z, means, x, classes, bias, labels = world(40, 200, 4, 30, 6, device=device)
    z[0], z[1], means[5], means[6] = 1000.0, means[4], means[4], means[4] + 1e-4
    got = check(z, means, x, classes, bias, freedom=5.0)
    assert got.use[4] == got.use[5] if classes[4] == classes[5] else True
    check(z[1:], means, x, classes, bias, labels[1:], freedom=INF)
    check(z[1:] + 300, means + 300, x, classes, bias, freedom=5.0, tolerance=1e-4)  # float32 itself holds them to 3e-5


def test_huge_biases(device):
    """A class that is all but forbidden, and one that takes everything."""
    z, means, x, classes, bias, labels = world(40, 120, 4, 6, 3, device=device)
    for huge in (-1e6, 1e6, -1e20):
        bias[2] = huge
        got = check(z, means, x, classes, bias, labels, freedom=5.0)
        free = labels < 0
        assert (got.posterior[free, 2] == (1 if huge > 0 else 0)).all()


def test_a_label_that_no_item_has(device):
    z, means, x, classes, bias, labels = world(20, 50, 3, 4, 2, device=device)
    bias, labels = torch.cat([bias, bias[:1]]), torch.full_like(labels, -1)
    labels[4] = 3
    got = check(z, means, x, classes, bias, labels, freedom=5.0)
    assert (got.posterior[4] == 0).all() and (got.expected[4] == 0).all() and got.margin[4] == 0
    assert got.evidence[4] == -INF
    without = torch.arange(20, device=device) != 4
    rest = soft_correspondence(z[without], means, x, classes, bias, freedom=5.0)
    for name in ("use", "total", "scatter"):
        torch.testing.assert_close(getattr(got, name), getattr(rest, name))


def test_no_readings(device):
    z, means, x, classes, bias, labels = world(0, 30, 3, 4, 2, device=device)
    got = check(z, means, x, classes, bias, labels, freedom=5.0)
    assert (got.use == 0).all() and (got.scatter == 0).all() and got.posterior.shape == (0, 3)


def test_strided(device):
    z, means, x, classes, bias, labels = world(33, 70, 5, 12, 8, device=device)
    apart = [
        torch.stack([t, t], -1)[..., 0].mT.contiguous().mT if t.dim() == 2 else torch.stack([t, t], -1)[:, 0]
        for t in (z, means, x, classes, bias, labels)
    ]
    assert not any(t.is_contiguous() for t in apart)
    for a, b in zip(
        soft_correspondence(z, means, x, classes, bias, labels, freedom=5.0), soft_correspondence(*apart, freedom=5.0)
    ):
        assert torch.equal(a, b)


def test_it_is_constant_for_gradients(device):
    args = world(5, 9, 3, 4, 2, device=device)
    args[0].requires_grad_()
    assert not any(t.requires_grad for t in soft_correspondence(*args, freedom=5.0))


@pytest.mark.parametrize("freedom", [5.0, INF])
def test_bitwise_for_any_number_of_threads(threads, freedom):
    args, results = world(700, 900, 40, 30, 20), []
    for n in (1, 2, 3):
        with threads(n):
            results.append(soft_correspondence(*args, freedom=freedom))
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))


@pytest.mark.parametrize("freedom", [5.0, INF])
def test_every_isa(freedom, instruction_set):
    """To rounding; AVX2 and AVX-512 bit for bit."""
    results = {}
    for isa in cox_ops._C.build_info()["isa_available"]:
        with instruction_set(isa):
            results[isa] = check(*world(70, 300, 7, 20, 18), freedom=freedom)
    with_fma = [r for isa, r in results.items() if isa != "plain"]
    assert all(torch.equal(a, b) for r in with_fma[1:] for a, b in zip(r, with_fma[0]))


ON_CPU = pytest.mark.skipif(os.environ.get("COX_EMULATED") == "1", reason="instruction sets are the CPU's")


@ON_CPU
@given(
    M=st.integers(0, 40),
    N=st.integers(1, 420),
    d=st.sampled_from([0, 1, 2, 9, 32, 33, 64, 65, 120]),
    p=st.integers(0, 20),
    isa=st.sampled_from([*cox_ops._C.build_info()["isa_available"], "amx_emulated"]),
    freedom=st.sampled_from([5.0, INF]),
    seed=st.integers(0, 99),
)
def test_bfloat16_equals_reference_on_every_isa(instruction_set, M, N, d, p, isa, freedom, seed):
    """Of the rounded numbers it is as exact as of others, in AMX's tiles (here or emulated) too."""
    with instruction_set(isa):
        check(*bfloat16(*world(M, N, 4, d, p, seed=seed)), freedom=freedom)


@ON_CPU
def test_bfloat16_takes_tiles(threads, instruction_set):
    """Where there are any: bitwise the same for any number of threads, to rounding what products in float32 give."""
    args, results = bfloat16(*world(700, 900, 40, 70, 20)), []
    with instruction_set("amx_emulated"):
        assert cox_ops._C.build_info()["bf16"] == "amx_emulated"
        for n in (1, 2, 3):
            with threads(n):
                results.append(soft_correspondence(*args, freedom=5.0))
        wide = soft_correspondence(*[a.float() if a.is_floating_point() else a for a in args], freedom=5.0)
    with instruction_set("plain"):
        assert cox_ops._C.build_info()["bf16"] == "none"
    assert all(torch.equal(a, b) for r in results[1:] for a, b in zip(r, results[0]))
    for name, a, b in zip(wide._fields, wide, results[0]):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * max(1, b.abs().max().item()), msg=name)
    assert not torch.equal(wide.evidence, results[0].evidence)  # other products, in other orders


def test_rounding_to_bfloat16_costs_little(device):
    args = world(300, 500, 10, 60, 20, device=device)
    wide, narrow = (soft_correspondence(*a, freedom=5.0).posterior for a in (args, bfloat16(*args)))
    assert (wide - narrow).abs().max() < 0.05 and torch.equal(wide.argmax(1), narrow.argmax(1))


@ON_CPU
@pytest.mark.parametrize("offset", [0.0, 0.5, 1.0, 64.0])
@pytest.mark.parametrize("d", [30, 61])
def test_bfloat16_far_readings_and_near_copies(d, offset, instruction_set):
    """Where the rows lie off the origin no tile is taken, since bfloat16 does not hold what is centred."""
    z, means, x, classes, bias, labels = world(40, 200, 4, d, 6)
    z[0], z[1], means[5], means[6] = 1000.0, means[4], means[4], means[4] * (1 + 2**-8)
    args = bfloat16(z + offset, means + offset, x, classes, bias, labels)
    for isa in [*cox_ops._C.build_info()["isa_available"], "amx_emulated"]:
        with instruction_set(isa):
            got = check(*args, freedom=5.0)
    with instruction_set("amx_emulated"):
        wide = soft_correspondence(*[a.float() if a.is_floating_point() else a for a in args], freedom=5.0)
    assert torch.equal(got.evidence, wide.evidence) == (offset >= 1)


def test_subnormal_numbers_do_not_arise():
    """Flushing them changes no bit."""
    args, results = world(200, 400, 5, 60, 20, spread=1.0), []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            results.append(soft_correspondence(*args, freedom=5.0))
        finally:
            torch.set_flush_denormal(False)
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_refuses(device):
    z, means, x, classes, bias, labels = world(6, 9, 3, 4, 2, device=device)

    def refused(words, **other):
        given = dict(z=z, means=means, x=x, classes=classes, bias=bias, labels=labels, freedom=5.0)
        with pytest.raises(RuntimeError, match=f"^soft_correspondence: {words}"):
            soft_correspondence(**{**given, **other})

    refused(r"expected z \(M, d\) and means \(N, d\), got z \(6\)", z=z[:, 0])
    refused("d differs: z has 3, means has 4", z=z[:, :3])
    refused("expected at least one item", means=means[:0], x=x[:0], classes=classes[:0])
    refused(r"expected x \(9, p\) like means, got \(8, 2\)", x=x[1:])
    refused(r"expected classes \(9,\), got \(8\)", classes=classes[1:])
    refused("classes must be int64, got int32", classes=classes.int())
    refused(r"expected labels \(6,\), got \(9\)", labels=classes)
    refused(r"expected bias \(C,\) of at least one class, got \(0\)", bias=bias[:0])
    refused("dtypes differ: z is float32, x is float64", x=x.double())
    for freedom in (0.0, -1.0, float("nan")):
        refused(f"expected freedom > 0, got {freedom:g}", freedom=freedom)


@pytest.mark.skipif(os.environ.get("COX_EMULATED") == "1", reason="CUDA's waits for no value")
def test_refuses_values():
    z, means, x, classes, bias, labels = world(6, 9, 3, 4, 2)

    def refused(words, **other):
        given = dict(z=z, means=means, x=x, classes=classes, bias=bias, labels=labels, freedom=5.0)
        with pytest.raises(RuntimeError, match=f"^soft_correspondence: {words}"):
            soft_correspondence(**{**given, **other})

    for name, t in (("z", z), ("means", means), ("x", x), ("bias", bias)):
        for bad in (float("nan"), INF):
            refused(f"{name} has NaN or Inf", **{name: torch.cat([t[:-1], torch.full_like(t[-1:], bad)])})
    refused("expected classes below C = 3 and not negative, got 3", classes=classes + 3 * (classes == 0))
    refused("expected classes below C = 3 and not negative, got -1", classes=classes - 1)
    refused("expected labels below C = 3, got 7", labels=labels.new_full((6,), 7))
    refused("z lies too far from means", z=z * 1e17)
