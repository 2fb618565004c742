"""soft_correspondence beside eager torch with whole rows of the M x N matrix, tiles of it with torch.compile, KeOps
where it is installed, and the products alone that it cannot do without.

Nanoseconds a pair: the median / (M N). Readings are few, so that a row of N items can be timed at any N."""

import pytest
import torch
import torch.nn.functional as F

import cox_ops

FREEDOM, P = 5.0, 80


def setting(M, N, C, d, device):
    """Readings that come from items, whitened by the noise; classes as frequent as each other."""
    g = torch.Generator().manual_seed(0)
    classes = torch.cat([torch.arange(min(C, N)), torch.randint(C, (max(N - C, 0),), generator=g)])
    x = torch.randn(N, P, generator=g)
    means = x @ torch.randn(P, d, generator=g) / P**0.5
    z = means[torch.randint(N, (M,), generator=g)] + torch.randn(M, d, generator=g)
    return [t.to(device) for t in (z, means, x, classes, torch.zeros(C))]


def kernel(*args):
    return cox_ops.soft_correspondence(*args, freedom=FREEDOM)[:6]


def bfloat16(*args):
    """The operator on rounded inputs, where this machine multiplies them so."""
    return kernel(*args)


def eager(z, means, x, classes, bias, tile=1 << 22):
    """As the program had it before: tiles of at most 4 M numbers, classes by a product with one-hot rows."""
    d, of_class = z.shape[1], F.one_hot(classes, len(bias)).to(z)
    pull, level = means.T, means.square().sum(1)
    use, total = z.new_zeros(len(x)), z.new_zeros(len(x), d)
    posterior, expected, evidence = [], [], []
    for r in z.split(max(1, min(1024, tile // len(x)))):
        far = 2 * r @ pull
        far = torch.sub(r.square().sum(1)[:, None], far, out=far).add_(level).clamp_(min=0)
        logits = (far / FREEDOM).log1p_().mul_(0.5 * (FREEDOM + d))
        logits = torch.sub(bias[classes], logits, out=logits)
        evidence.append(logits.logsumexp(1))
        q = logits.softmax(1)
        posterior.append(q @ of_class)
        expected.append(q @ x)
        q = far.add_(FREEDOM).reciprocal_().mul_(FREEDOM + d).mul_(q)
        use, total = use + q.sum(0), total + q.T @ r
    return finished(posterior, expected, evidence, use, total)


def finished(posterior, expected, evidence, use, total):
    posterior = torch.cat(posterior)
    best = posterior.topk(2, 1).values
    return posterior, torch.cat(expected), best[:, 0] - best[:, 1], torch.cat(evidence), use, total


def first(far, bias, top, half):
    logits = bias - half * (far.clamp(min=0) / FREEDOM).log1p()
    new = torch.maximum(top, logits.amax(1))
    return new, (logits - new[:, None]).exp().sum(1)


def second(far, bias, lse, half):
    far = far.clamp(min=0)
    q = (bias - half * (far / FREEDOM).log1p() - lse[:, None]).exp()
    w = 2 * half / (FREEDOM + far) * q
    return q, w, w.sum(0)


def tiled(z, means, x, classes, bias, first=first, second=second, rows=256, cols=1024):
    """Two passes over tiles that fit the second cache level; items by class, so that a tile has few of them."""
    order = classes.argsort(stable=True)
    means, x, classes = means[order], x[order], classes[order]
    half, level, biases = (FREEDOM + z.shape[1]) / 2, means.square().sum(1), bias[classes]
    use, total = z.new_zeros(len(x)), z.new_zeros(len(x), z.shape[1])
    posterior, expected, evidence = z.new_zeros(len(z), len(bias)), z.new_zeros(len(z), x.shape[1]), []
    tiles = [slice(c, min(c + cols, len(x))) for c in range(0, len(x), cols)]
    spans = [slice(int(classes[t][0]), int(classes[t][-1]) + 1) for t in tiles]
    one = [F.one_hot(classes[t] - s.start, s.stop - s.start).to(z) for t, s in zip(tiles, spans)]
    pulls = [-2 * means[t].T.contiguous() for t in tiles]
    for j in range(0, len(z), rows):
        r = z[j : j + rows]
        own = r.square().sum(1)[:, None]
        top, mass = z.new_full((len(r),), -1e30), z.new_zeros(len(r))
        for t, pull in zip(tiles, pulls):
            new, part = first(torch.addmm(own + level[t], r, pull), biases[t], top, half)
            top, mass = new, mass * (top - new).exp() + part
        lse = top + mass.log()
        evidence.append(lse)
        for t, pull, o, s in zip(tiles, pulls, one, spans):
            q, w, down = second(torch.addmm(own + level[t], r, pull), biases[t], lse, half)
            posterior[j : j + rows, s] += q @ o
            expected[j : j + rows] += q @ x[t]
            total[t] += w.T @ r
            use[t] += down
    back = order.argsort()
    return finished([posterior], [expected], evidence, use[back], total[back])


compiled_first, compiled_second = (torch.compile(f, dynamic=True) for f in (first, second))


def compiled(*args):
    return tiled(*args, compiled_first, compiled_second)


def keops(z, means, x, classes, bias):
    """A reduction for each result; KeOps compiles each for itself, half a minute apiece."""
    from pykeops.torch import LazyTensor

    half, of_class = (FREEDOM + z.shape[1]) / 2, F.one_hot(classes, len(bias)).to(z)
    reading, mean, item = LazyTensor(z[:, None]), LazyTensor(means[None]), LazyTensor(x[None])
    far = reading.sqdist(mean)
    logits = LazyTensor(bias[classes].view(1, -1, 1)) - half * (1 + far / FREEDOM).log()
    evidence = logits.logsumexp(1)
    q = (logits - LazyTensor(evidence[:, None])).exp()
    w = q * (2 * half) / (FREEDOM + far)
    posterior, expected = (q * LazyTensor(of_class[None])).sum(1), (q * item).sum(1)
    return finished([posterior], [expected], [evidence[:, 0]], w.sum(0)[:, 0], (w * reading).sum(0))


def products_alone(z, means, x, classes, bias, rows=256, cols=1024):
    """Distances twice, total, expected: in tiles, on data that stay in cache."""
    pull, part = means[:cols].T.contiguous(), x[:cols]
    q, out, total = z.new_ones(rows, len(part)), z.new_empty(rows, x.shape[1]), z.new_empty(len(part), z.shape[1])
    for r in z.split(rows):
        here = q[: len(r)]
        for _ in range(0, len(x), cols):
            torch.mm(r, pull, out=here)
            torch.mm(r, pull, out=here)
            torch.mm(here, part, out=out[: len(r)])
            torch.mm(here.T, r, out=total)


METHODS = [kernel, bfloat16, eager, tiled, compiled, keops, products_alone]


@pytest.mark.parametrize("method", METHODS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("C, d", [(10, 60), (309, 120)])
@pytest.mark.parametrize("M, N", [(1024, 16_384), (1024, 65_536), (512, 183_000)])
def bench_round(timed, device, pick, method, M, N, C, d):
    M, N = pick(40, M, 8 * M), pick(200, N)
    args = setting(M, N, C, d, device)
    if method is keops:
        pytest.importorskip("pykeops")
        if device == "cpu" and N * C > 1e6:
            pytest.skip("minutes on a CPU")
    if method is bfloat16:
        if device != "cpu" or cox_ops._C.build_info()["bf16"] == "none":
            pytest.skip("no products of bfloat16 on this device")
        args = [a.bfloat16() if a.is_floating_point() else a for a in args]
    if method is compiled:
        try:
            compiled(args[0][:8], *args[1:])
        except Exception as e:  # no compiler for this device
            pytest.skip(f"torch.compile: {type(e).__name__}")
    work = M * N * (6 * d + 2 * P)
    value = timed(lambda: method(*args), f"soft_correspondence M={M} N={N} C={C} d={d} p={P}", work)
    if method is not products_alone:
        for got, want in zip(value, kernel(*[a.float() if a.is_floating_point() else a for a in args])):
            torch.testing.assert_close(got, want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("C, d", [(10, 60), (309, 120)])
def bench_part_of_a_large_run(timed, device, pick, C, d):
    """As many readings at a time as `correspond` gives where it has 32,768: the items are packed for each part."""
    M, N = pick(40, 4096), pick(200, 183_000)
    args = setting(M, N, C, d, device)
    timed(lambda: kernel(*args), f"soft_correspondence M={M} N={N} C={C} d={d} p={P}", M * N * (6 * d + 2 * P))
