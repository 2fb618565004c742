"""modality_agreement: mask, label and confidence of the definition; rows without a softmax; ties to the
lowest class."""

import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cox_ops import _C, modality_agreement, ref

INF, NAN = float("inf"), float("nan")


def check(logits):
    mask, label, confidence = modality_agreement(logits)
    want = ref.modality_agreement(logits.double())
    assert mask.dtype == torch.bool and label.dtype == torch.int64
    assert confidence.dtype == (torch.float64 if logits.dtype == torch.float64 else torch.float32)
    assert torch.equal(mask, want[0]) and torch.equal(label, want[1])
    rtol = 1e-12 if logits.dtype == torch.float64 else 2e-6
    torch.testing.assert_close(confidence.double(), want[2], rtol=rtol, atol=0, equal_nan=True)
    return mask, label, confidence


@given(
    K=st.integers(1, 4), M=st.integers(0, 60), C=st.integers(1, 70), levels=st.integers(2, 50), seed=st.integers(0, 99)
)
def test_equals_reference(K, M, C, levels, seed):
    """Few levels: many ties within a head."""
    g = torch.Generator().manual_seed(seed)
    check(torch.randint(0, levels, (K, M, C), generator=g).float())


@pytest.mark.parametrize("K, M, C", [(1, 1, 1), (2, 300, 8), (3, 33, 31), (3, 7, 33), (2, 9, 309)])
def test_dtypes(device, dtype, K, M, C):
    logits = torch.randn(K, M, C, device=device).mul(2).to(dtype)
    logits[:, ::2, C // 2] += 12  # half of the rows agree
    mask, _, _ = check(logits)
    assert mask[::2].float().mean() > 0.7


def test_ties_to_the_lowest_class(device):
    logits = torch.zeros(2, 3, 100, device=device)
    logits[0, 1, 70], logits[0, 1, 40], logits[1, 1, 40] = 5, 5, 5
    logits[0, 2, 70], logits[0, 2, 40], logits[1, 2, 70] = 5, 5, 5
    mask, label, confidence = check(logits)
    assert mask.tolist() == [True, True, False] and label.tolist() == [0, 40, -1]
    assert abs(confidence[0].item() - 0.01) < 1e-8


def test_rows_without_a_softmax(device, dtype):
    logits = torch.randn(3, 8, 40, device=device).to(dtype)
    logits[:, :, 3] += 9
    logits[2, 0, 39], logits[0, 1, 0], logits[1, 2, 7], logits[2, 3] = NAN, NAN, INF, -INF
    logits[0, 4, 10:] = -INF  # some classes ruled out: fine
    mask, label, confidence = check(logits)
    assert mask.tolist() == [False] * 4 + [True] * 4
    assert label.tolist() == [-1] * 4 + [3] * 4
    assert confidence[:4].isnan().all() and confidence[4:].isfinite().all()


def test_large_logits_do_not_overflow(device):
    logits = torch.tensor([[[1e30, -1e30], [-1e30, -2e30]]], device=device)
    assert modality_agreement(logits)[2].tolist() == [1, 1]


def test_exponentials_of_every_instruction_set(instruction_set):
    """One class at 0 and 319 at x: confidence 1 / (1 + 319 e^x) shows the relative error of e^x."""
    x = torch.linspace(-20, 0, 401)
    logits = torch.cat([torch.zeros(401, 1), x[:, None].expand(-1, 319)], 1)[None]
    want, results = ref.modality_agreement(logits.double()), {}
    for isa in _C.build_info()["isa_available"]:
        with instruction_set(isa):
            results[isa] = mask, label, confidence = modality_agreement(logits)
        assert torch.equal(mask, want[0]) and torch.equal(label, want[1])
        torch.testing.assert_close(confidence.double(), want[2], rtol=2e-6, atol=0)
    if {"avx2", "avx512"} <= set(results):
        assert torch.equal(results["avx2"][2], results["avx512"][2])


def test_bitwise_under_any_split(device, dtype, threads):
    m = 600 if os.environ.get("COX_EMULATED") == "1" else 3000
    logits = torch.randn(3, m, 20, device=device).to(dtype)
    want = modality_agreement(logits)
    for n in (1, 2, 3):
        with threads(n):
            parts = [modality_agreement(c) for c in logits.split(m // 4 + 27, dim=1)]
            for got in (modality_agreement(logits), [torch.cat(p) for p in zip(*parts)]):
                assert all(torch.equal(a, b) for a, b in zip(got, want))
    assert all(torch.equal(a, b[5:6]) for a, b in zip(modality_agreement(logits[:, 5:6]), want))


def test_strided(device, dtype):
    logits = torch.randn(20, 30, 6, device=device).to(dtype).permute(2, 1, 0)[::2, 1:, ::3]
    want = modality_agreement(logits.contiguous())
    assert all(torch.equal(a, b) for a, b in zip(modality_agreement(logits), want))


def test_offsets_beyond_32_bits(far):
    logits = torch.randn(6, 9).half()
    for axis in (0, 1):  # heads far apart, rows far apart
        got = modality_agreement(far(logits, torch.float16).unsqueeze(1 - axis))
        want = modality_agreement(logits.unsqueeze(1 - axis))
        assert all(torch.equal(a, b) for a, b in zip(got, want))


def test_empty(device):
    mask, label, confidence = modality_agreement(torch.empty(2, 0, 5, device=device))
    assert mask.shape == label.shape == confidence.shape == (0,)


def test_gradients(device):
    logits = torch.randn(3, 4, 5, dtype=torch.float64, device=device, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: modality_agreement(x)[2], (logits,))
    assert torch.autograd.gradgradcheck(lambda x: modality_agreement(x)[2], (logits,))
    bad = torch.tensor([[[NAN, 1.0], [2.0, 1.0]]], device=device, requires_grad=True)
    modality_agreement(bad)[2].sum().backward()
    assert (bad.grad[0, 0] == 0).all() and (bad.grad[0, 1] != 0).all()


@pytest.mark.parametrize(
    "logits, words",
    [
        (torch.zeros(2, 3), r"expected logits \(K, M, C\), got \(2, 3\)"),
        (torch.zeros(0, 3, 4), r"at least one head and one class.*\(0, 3, 4\)"),
        (torch.zeros(2, 3, 0), "at least one head and one class"),
        (torch.zeros(2, 3, 4).long(), "got int64"),
    ],
)
def test_errors(logits, words):
    with pytest.raises(RuntimeError, match="modality_agreement: .*" + words):
        modality_agreement(logits)
