"""Sound of any rate comes to the official perceptors as torchaudio.functional.resample brings it there."""

import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cox_oom import data as datasets
from cox_oom.data import media
from cox_oom.perceptors import imagebind, preprocess

RATES = [8000, 11025, 22050, 24000, 44100, 48000, 96000]


def torchaudio_resampled(wave, rate, to):
    """torchaudio 2.11's documented formula, as a bank of `to` filters that each stride over `rate` samples."""
    g = math.gcd(rate, to)
    rate, to = rate // g, to // g
    base = min(rate, to) * 0.99
    width = math.ceil(6 * rate / base)
    at = torch.arange(-width, width + rate, dtype=torch.float64) / rate
    t = ((torch.arange(0, -to, -1, dtype=torch.float64)[:, None] / to + at) * base).clamp(-6, 6)
    window = torch.cos(t * math.pi / 6 / 2) ** 2
    kernels = torch.where(t == 0, 1.0, (t * math.pi).sin() / (t * math.pi)) * window * base / rate
    x = F.pad(torch.from_numpy(wave).double(), (width, width + rate))[None, None]
    y = F.conv1d(x, kernels[:, None], stride=rate)[0].T.reshape(-1)
    return y[: math.ceil(to * len(wave) / rate)].float().numpy()


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("n", [1, 160, 4001])
def test_it_is_the_formula_of_torchaudio(rate, n):
    wave = np.random.default_rng(0).uniform(-1, 1, n).astype(np.float32)
    y = preprocess.sinc_resampled(wave, rate)
    want = torchaudio_resampled(wave, rate, 16000)
    assert y.shape == want.shape and y.dtype == np.float32
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6)
    assert preprocess.sinc_resampled(wave, 16000) is wave


def test_rates_without_a_common_divisor_take_little_memory():
    y = preprocess.sinc_resampled(np.ones(4801, np.float32), 48001)
    assert len(y) == math.ceil(4801 * 16000 / 48001) and np.abs(y[100:-100] - 1).max() < 2e-3


@pytest.mark.parametrize("rate", [8000, 44100])
def test_recordings_of_a_folder_reach_the_perceptor_so(tmp_path, rate):
    """The learner's items stay as they are; the perceptor's log mel bands are those of the formula."""
    soundfile = pytest.importorskip("soundfile")
    wave = np.random.default_rng(1).uniform(-0.5, 0.5, 3 * rate).astype(np.float32)
    (tmp_path / "audio").mkdir()
    for k in range(4):
        soundfile.write(tmp_path / f"audio/{k}.wav", wave, rate, subtype="FLOAT")
    rows = "".join(f"{k},{'test' if k > 1 else 'train'},{'ab'[k % 2]},audio/{k}.wav\n" for k in range(4))
    (tmp_path / "manifest.csv").write_text("id,split,label,audio\n" + rows)
    preparer = pickle.loads(pickle.dumps(imagebind.Preparer(None)))
    data = datasets.read(str(tmp_path))
    raw = data.load("audio", 0, preparer.sample("audio"))
    want = torchaudio_resampled(wave, rate, 16000)
    np.testing.assert_allclose(raw, want, rtol=0, atol=1e-6)
    x, y = (preparer.prepare("audio", torch.from_numpy(w)) for w in (raw, want))
    assert (x - y).abs().max() < 0.01
    plain = data.load("audio", 0)
    assert np.array_equal(plain, media.load_audio(tmp_path / "audio/0.wav")) and np.abs(plain - raw).max() > 1e-3
