"""Random calls of every operator against float64: sizes 0 and 1, dtypes, strides, scales 1e-30 to 1e30, ties, NaN, Inf.

Each call is made by its seed alone, which a failure names. COX_ATTACKS: their number; COX_ATTACKS_FROM: the first one.
"""

import os

import pytest
import torch

import cox_ops
from cox_ops import ref

FIRST, CALLS = int(os.environ.get("COX_ATTACKS_FROM", "0")), int(os.environ.get("COX_ATTACKS", "300"))
INF, NAN = float("inf"), float("nan")
DTYPES = [torch.float32, torch.float32, torch.float64, torch.float16, torch.bfloat16]


class Draw:
    """What a seed draws."""

    def __init__(self, seed):
        self.g = torch.Generator().manual_seed(seed)
        self.dtype = self.pick(*DTYPES)
        self.acc = torch.float64 if self.dtype == torch.float64 else torch.float32

    def pick(self, *options):
        return options[int(torch.randint(len(options), (), generator=self.g))]

    def size(self, least=0):
        return self.pick(*[n for n in (0, 1, 1, 2, 3, 4, 5, 8, 13, 16, 17, 33, 64, 65) if n >= least])

    def scale(self):
        return 10.0 ** self.pick(0, 0, 0, -30, -20, -10, -3, 3, 10, 20, 30)

    def values(self, *shapes, plain=False):
        """Tensors of these shapes, alike in kind; plain: without NaN and Inf."""
        kind, scale, odd = self.pick("normal", "normal", "ties", "tails", "same"), self.scale(), self.pick(0, 0, 1)
        if self.dtype == torch.float16:  # that holds no other scales
            scale = self.pick(1.0, 1.0, 1e-6, 1e3)
        out = []
        for shape in shapes:
            t = torch.randn(*shape, generator=self.g, dtype=torch.float64)
            t = {"ties": t.round(), "tails": t**5, "same": t * 0 + 1}.get(kind, t) * scale
            if self.pick(0, 0, 1) and t.ndim:
                t = t * 10.0 ** torch.randint(-8, 9, (t.shape[-2], 1) if t.ndim > 1 else t.shape, generator=self.g)
            if odd and not plain and t.numel():
                for _ in range(self.pick(1, 1, 3)):
                    t.view(-1)[self.pick(*range(t.numel()))] = self.pick(NAN, INF, -INF, 0.0, -0.0, 1e38, 1e-45)
            out.append(self.strided(t.to(self.dtype)))
        return out if len(out) > 1 else out[0]

    def strided(self, t):
        """The same values in another layout."""
        way = self.pick("plain", "turned", "stepped", "offset")
        if way == "turned":
            return t.movedim(-1, 0).contiguous().movedim(0, -1)
        if way == "stepped" and t.ndim:
            wide = t.new_zeros(*t.shape[:-1], 2 * t.shape[-1])
            wide[..., ::2] = t
            return wide[..., ::2]
        if way == "offset" and t.ndim:
            return torch.cat([t[:1], t])[1:] if len(t) else t
        return t


def near(got, want, rtol, atol, what):
    """NaN where NaN, infinities alike, else within rtol and atol; atol may be a tensor."""
    got, bound = got.double(), rtol * want.abs() + atol
    finite = want.isfinite()
    ok = torch.where(finite, (got - want).abs() <= bound, (got == want) | (got.isnan() & want.isnan()))
    assert ok.all(), f"{what}: {got[~ok][:3].tolist()} for {want[~ok][:3].tolist()}"


def distances(d):
    batch, M, N, D = d.pick((), (), (0,), (1,), (3,)), d.size(), d.size(), d.size()
    x, y = d.values((*batch, M, D), (*batch, N, D))
    squared = d.pick(False, True)
    got = cox_ops.pairwise_distances(x, y, squared).double()
    assert got.shape == (*batch, M, N)
    square = ref.pairwise_distances(x.double(), y.double(), squared=True)
    info, own = torch.finfo(d.acc), torch.finfo(d.dtype)
    want = square if squared else square.sqrt()
    # Squares beyond the arithmetic's range are inf, those below its least normal number lose digits; then the dtype's.
    rtol, lost = (D + 8) * info.eps + own.eps, D * info.tiny
    atol = (lost if squared else lost**0.5) + own.smallest_normal
    over = (square > info.max * (1 - rtol)) | (want > own.max * (1 - rtol))
    near(torch.where(over, 0, got), torch.where(over, 0, want), rtol, atol, "distances")
    assert (got[over] >= want[over].clamp(max=own.max) * (1 - rtol)).all()


def anchors(d):
    K, M, N, D = d.pick(1, 1, 2, 3, 5), d.size(), d.pick(0, 1, 2, 5, 31, 64, 130, 300), d.size()
    z, v = d.values((M, D), (K, N, D))
    tile = d.pick(0, 0, 0, 1, 7, 64, 2**20, 2**58)
    score, index = cox_ops.nearest_anchor(z, v, tile=tile)
    assert score.shape == index.shape == (M,) and score.dtype == d.acc and index.dtype == torch.int64
    square = torch.stack([ref.pairwise_distances(z.double(), k.double(), squared=True) for k in v])  # (K, M, N)
    mean, e = square.sqrt().mean(0), (D + K + 8) * 2.3e-16
    low, high = (torch.where(mean.isnan(), INF, mean * f).to(d.acc) for f in (1 - e, 1 + e))
    most = torch.finfo(d.acc).max
    never = ~(square <= most * (1 + e)).all(0)
    unsure = ~never & ~(square <= most * (1 - e)).all(0)
    low, high = low.masked_fill(never, INF), high.masked_fill(never | unsure, INF)
    best = torch.cat([high, high.new_full((M, 1), INF)], 1).min(1).values
    for j, (s, i) in enumerate(zip(score, index.tolist())):
        assert -1 <= i < N and (s <= best[j]), (j, i, s, best[j])
        if i < 0:
            assert s == INF
        else:
            assert s.isfinite() and low[j, i] <= s <= high[j, i].clamp(max=INF), (j, i, s, low[j, i], high[j, i])
            assert not (high[j, :i] <= s).any(), (j, i)  # ties go to the lowest


def best(d):
    M = d.pick(0, 1, 2, 7, 64, 300)
    score = d.values((M,))
    classes = torch.randint(-1, 4, (M,), generator=d.g) if d.pick(0, 1) else None
    mask = torch.rand(M, generator=d.g) < 0.6 if d.pick(0, 1) else None
    quota = d.pick(None, 0, 1, 3, 50) if classes is not None else None
    given = dict(largest=d.pick(False, True), classes=classes, quota=quota, mask=mask)
    t = d.pick(0, 1, 3, M // 2, M, M + 5)
    got = cox_ops.top_anchors(score, t, **given)
    want = ref.top_anchors(score.double(), t, **given)
    assert torch.equal(got, want), (got, want)


def logits(d):
    x = d.values((d.pick(1, 1, 2, 4), d.size(), d.size(1)))
    mask, label, confidence = cox_ops.modality_agreement(x)
    want_mask, want_label, want = ref.modality_agreement(x.double())
    assert torch.equal(mask, want_mask) and torch.equal(label, want_label) and confidence.dtype == d.acc
    near(confidence, want, 4 * (x.shape[-1] + 8) * torch.finfo(d.acc).eps, 0, "confidence")


def heads(d):
    K, M, C, D = d.pick(1, 2, 3), d.size(), d.size(1), d.size()
    z = d.values((M, D))
    weight, bias = d.values((K, C, D), plain=d.pick(True, False)), d.values((K, C), plain=True)
    mask, label, confidence = cox_ops.heads_agreement(z, weight, bias)
    assert mask.shape == label.shape == confidence.shape == (M,) and confidence.dtype == d.acc
    x = z.double() @ weight.double().mT + bias.double()[:, None]  # (K, M, C)
    size = z.double().abs() @ weight.double().abs().mT + bias.double().abs()[:, None]
    info = torch.finfo(d.acc)
    assert torch.equal(label >= 0, mask) and not mask[confidence.isnan()].any()
    bad = x.isnan().any(-1).any(0)
    assert confidence[bad].isnan().all()
    off = (2 * (D + 8) * info.eps * size + D * info.tiny).amax(-1).amax(0)  # (M,): of a logit
    sure = ((size < info.max / 4).all(-1).all(0) & (off < 0.01)) & ~bad  # nothing overflows, little is rounded
    top = torch.cat([x, torch.full((K, M, 1), -INF)], -1).topk(2, dim=-1).values
    clear = sure & (top[..., 0] - top[..., 1] > 2 * off).all(0)
    want_mask, want_label, want = ref.modality_agreement(x)
    assert torch.equal(mask[clear], want_mask[clear]) and torch.equal(label[clear], want_label[clear])
    near(confidence[sure], want[sure], 8 * (C + 8) * info.eps, 2 * off[sure], "confidence")


def discrepancy(d):
    N, M, D = d.pick(1, 2, 5, 64, 65, 300), d.pick(1, 3, 70, 300), d.size()
    x, y = d.values((N, D), (M, D))
    a, b = x.double(), y.double()
    mean = cox_ops.ops.mean_squared_distance(a, b)
    given = d.pick(None, None, "scale", "one", "wide")
    size = mean.item() if 0 < mean < INF else 1.0
    bandwidths = {None: None, "scale": [size, 3 * size], "one": [1.0], "wide": [size * 1e-6, size * 1e6]}[given]
    got = cox_ops.mmd(x, y, bandwidths)
    assert got.shape == () and got.dtype == d.acc
    if not (a.isfinite().all() and b.isfinite().all()):
        assert got.isnan()
        return
    fine = [size * f for f in (0.25, 0.5, 1, 2, 4)] if bandwidths is None else bandwidths
    want = ref.mmd(a, b, fine)
    atol = 1e-10 if d.acc == torch.float64 else 2e-4 if min(N, M) > 256 else 2e-5
    near(got, want, 0, atol, f"mmd {given}")


OPERATORS = [distances, anchors, best, logits, heads, discrepancy]


def attack(seed):
    OPERATORS[seed % len(OPERATORS)](Draw(seed))


@pytest.mark.parametrize("part", range(6))
def test_random_calls(part):
    for seed in range(FIRST + part, FIRST + CALLS, 6):
        try:
            attack(seed)
        except Exception as e:
            raise AssertionError(f"seed {seed}: {e}") from e
