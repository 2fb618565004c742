"""nearest_anchor on hundreds of banks made to be confused: score and index are the reference's bit for bit, with every
instruction set, on any number of threads and tiling. COX_ADVERSARIAL: their number."""

import os

import pytest
import torch

import cox_ops
from cox_ops import nearest_anchor, ref

INF = float("inf")
ISAS = [*cox_ops._C.build_info()["isa_available"], "amx_emulated"]  # the last: AMX's packing on any machine
CASES = int(os.environ.get("COX_ADVERSARIAL", "300"))  # COX_ADVERSARIAL=10000: all


def adversarial(seed):
    """A bank and queries made to be confused: exact and near duplicates, offsets, extreme scales, ties, NaN,
    Inf."""
    g = torch.Generator().manual_seed(seed)

    def pick(*options):
        return options[int(torch.randint(len(options), (), generator=g))]

    def randn(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    K, M = pick(1, 1, 2, 2, 2, 3, 4, 5, 7), pick(1, 2, 11, 12, 13, 24, 25, 37, 64)
    N = pick(1, 2, 31, 32, 33, 63, 64, 65, 97, 128, 129, 200, 1100)
    D = pick(1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 64, 65, 127, 192, 257, 512, 1023, 4099)
    while M * N * D > 3_000_000:
        M, N = max(M // 2, 1), max(N * 3 // 4, 1)
    z, v = randn(M, D), randn(K, N, D)
    kind = pick(
        "gauss", "gauss", "clusters", "lattice", "line", "sparse", "tails", "constant", "zero", "agree", "equal"
    )
    if kind == "clusters":
        middle = randn(5, D)
        z = middle[torch.randint(5, (M,), generator=g)] + pick(0.3, 1e-2, 1e-4) * z
        v = middle[torch.randint(5, (N,), generator=g)] + pick(0.3, 1e-2, 1e-4) * v
    if kind == "lattice":
        z, v = z.round(), v.round()
    if kind == "line":
        z, v = z[:, :1] * randn(D), v[:, :, :1] * randn(D)
    if kind == "sparse":
        z, v = z * (z.abs() > 1.5), v * (v.abs() > 1.5)
    if kind == "tails":
        z, v = z**5, v**5
    if kind == "constant":
        v = v[:, :1].expand(-1, N, -1).clone()
    if kind == "zero":
        v = v * 0
    if kind in ("agree", "equal"):
        v = v[:1] + (0.2 * v if kind == "agree" else 0 * v)
    for _ in range(pick(0, 1, 3)):  # near copies of queries at one distance and a little more, anywhere in the bank
        gap, j = pick(0, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6), pick(*range(M))
        step = torch.nn.functional.normalize(randn(K, 1, D), dim=-1) * z[j].norm() * gap
        at = torch.randperm(N, generator=g)[:4]
        v[:, at] = z[j] + step * (1 + pick(0, 0.05, 1e-6) * torch.arange(len(at))[:, None])
    for _ in range(pick(0, 2)):  # the same item twice
        a, b = torch.randint(N, (2,), generator=g)
        v[:, b] = v[:, a]
    if pick(0, 0, 1):
        z, v = z * torch.logspace(0, pick(-6, 3), D), v * torch.logspace(0, pick(-6, 3), D)
    shift, scale = pick(0, 0, 0, 10, 1e3, 1e6), pick(1, 1, 1, 1e6, 1e-6, 1e18, 1e-20, 1e-38, 1e-43)
    z, v = (z + shift) * scale, (v + shift) * scale
    if pick(0, 0, 1):
        v[:, torch.randint(N, (), generator=g)] *= pick(1e3, 1e9, 1e30)
        z[-1] *= pick(1, 1e5, 1e12)
    dtype = pick(torch.float32, torch.float32, torch.float32, torch.float16, torch.bfloat16)
    z, v = z.to(dtype), v.to(dtype)
    for bad in (float("nan"), INF):
        if pick(0, 0, 0, 1):
            v[-1, torch.randint(N, (), generator=g), -1] = bad
        if pick(0, 0, 0, 0, 0, 1):
            z[0, 0] = bad
    if pick(0, 0, 1):
        z, v = z.T.contiguous().T, v.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    return z, v, pick


def wrong(z, v, score, index):
    """Queries whose (score, index) is not the reference's. The two may differ where float64's own rounding decides
    on which side of the middle of two float32 values a score lies: one in 1e8."""
    want, want_index = ref.nearest_anchor(z, v)
    odd = ((index != want_index) | (score != want)).nonzero().flatten().tolist()
    for j in list(odd):
        if index[j] >= 0 and want_index[j] >= 0:
            at = torch.stack([index[j], want_index[j]])
            exact = (z[j].double() - v[:, at].double()).square().sum(-1).sqrt().mean(0)
            close = [(s * (1 - 4e-15)).float() != (s * (1 + 4e-15)).float() for s in exact]
            same_score = (exact * (1 - 4e-15)).float()[0] <= (exact * (1 + 4e-15)).float()[1]
            if any(close) and same_score:
                odd.remove(j)
    return odd


@pytest.mark.parametrize("batch", range(10))
def test_adversarial(device, threads, instruction_set, batch):
    for seed in range(batch, CASES, 10):
        z, v, pick = adversarial(seed)
        z, v = z.to(device), v.to(device)
        results = []
        for isa in ISAS:
            tile, split = pick(0, 1, 5, 12, 32, 64, 100, 2000), pick(len(z), 1, 5, 12)
            with threads(pick(1, 2)), instruction_set(isa):
                parts = [nearest_anchor(c, v, tile=tile) for c in z.split(split)]
                results.append([torch.cat(p) for p in zip(*parts)])
        for isa, (score, index) in zip(ISAS, results):
            assert torch.equal(score, results[0][0]) and torch.equal(index, results[0][1]), (seed, isa)
        assert not wrong(z, v, *results[0]), (seed, z.shape, v.shape, z.dtype)
