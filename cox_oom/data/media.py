"""Files to raw items, and raw items to the tensors that the learner trains on.

The loaders raise MediaError with the bare reason; the reader that knows file and row adds those (folder.py).
"""
import bisect
import math
import os

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.files import UserError, optional

IMAGE = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
AUDIO = (".wav", ".flac", ".ogg", ".mp3")
VIDEO = (".mp4", ".avi", ".mkv", ".webm", ".mov")
ARRAY = (".npy",)

SAMPLE_RATE = 16000      # Hz, of every audio item
WINDOW, SHIFT = 25, 10   # ms, of the mel frames
TEXT_BYTES = 256         # a sentence longer than this is cut
SILENCE = 1e-4           # a recording that nowhere exceeds this share of full scale (-80 dB) is silent


class MediaError(Exception):
    """A file that cannot be used, in one line: what is wrong with it."""


class Ragged(UserError):
    """An item that is unlike the others of its modality: `item`, its number, and `what` is unlike."""

    def __init__(self, item, what):
        super().__init__(f"item {item}: {what}; all items of a modality must agree")
        self.item, self.what = item, what


class NoTrainItem(UserError):
    """None of the train items is there, or all of them are left out: there is no mean and no standard deviation."""


def reason(error):
    """The message of a decoder's exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


# ---------------------------------------------------------------- files to raw items

def load_image(path, modality=""):
    """uint8 (1|3, H, W); float32 for images of more than 8 bits, which for `depth` are mm and become metres.

    Transparency is dropped, palettes and other colour spaces become RGB, grey stays one channel; the
    rotation that EXIF asks for is applied.
    """
    optional("PIL", "reading images")
    from PIL import Image, ImageOps
    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            mode = image.mode
            if mode == "F":
                x = np.asarray(image, dtype=np.float32)
            elif mode.startswith("I"):   # I, I;16, I;16B: 16 or 32 bit grey
                x = np.asarray(image).astype(np.float32)
                if modality == "depth":
                    x /= 1000
            elif mode in ("1", "L", "LA", "La"):
                x = np.asarray(image.convert("L"))
            else:
                x = np.asarray(image.convert("RGB"))
    except Exception as e:   # broken files raise OSError, SyntaxError, ValueError, struct.error, ...
        raise MediaError(f"cannot be read as an image ({reason(e)})") from None
    x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    if not np.isfinite(x).all():
        raise MediaError("contains NaN or Inf")
    return np.array(x, order="C")   # a copy: Pillow lends its memory read-only


def load_audio(path, start=None, end=None):
    """float32 (T,): the channels' mean at 16 kHz. Of a video (mp4, mkv, ...) its first audio track.

    start, end: seconds; only this part is read. A negative start counts as 0, an end beyond the end as the end.
    """
    start = max(0.0, start or 0.0)
    is_video = os.path.splitext(str(path))[1].lower() in VIDEO
    optional(*(("av", "reading video") if is_video else ("soundfile", "reading sound")))
    try:
        x, rate = (_track if is_video else _sound)(str(path), start, end)   # (channels, T)
    except MediaError:
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as audio ({reason(e)})") from None
    if x.shape[1] == 0:
        raise MediaError("contains no audio samples" + (f" from second {start:g} on" if start else ""))
    x = x.mean(axis=0)
    if not np.isfinite(x).all():
        raise MediaError("contains NaN or Inf")
    if rate != SAMPLE_RATE:
        resample_poly = optional("scipy.signal", "resampling sound to 16 kHz").resample_poly
        g = math.gcd(rate, SAMPLE_RATE)
        x = resample_poly(x, SAMPLE_RATE // g, rate // g)
    return np.ascontiguousarray(x, dtype=np.float32)


def _sound(path, start, end):
    """(channels, T) float32 and the rate of a file that libsndfile reads."""
    import soundfile
    with soundfile.SoundFile(path) as f:
        first = min(round(start * f.samplerate), f.frames)
        f.seek(first)
        count = -1 if end is None else max(0, round(end * f.samplerate) - first)
        return f.read(count, dtype="float32", always_2d=True).T, f.samplerate


def _track(path, start, end):
    """(channels, T) float32 and the rate of the first audio track of a video."""
    import av
    with av.open(path) as container:
        if not container.streams.audio:
            raise MediaError("contains no audio track")
        stream = container.streams.audio[0]
        begin = _begin(container)
        if start > 0.5:   # a little earlier, for the decoder to settle; the rest is cut below
            container.seek(int((start - 0.5 + begin) * av.time_base), backward=True)
        resampler = av.AudioResampler(format="fltp", layout=stream.layout, rate=stream.rate)
        parts, offset = [], None    # offset: seconds at which the first part begins
        for frame in container.decode(stream):
            time = None if frame.time is None else frame.time - begin
            if offset is None:
                offset = time or 0.0
            if end is not None and time is not None and time >= end:
                break
            frame.pts = None        # gaps are closed as players do; nothing is filled in
            parts += [part.to_ndarray() for part in resampler.resample(frame)]
        parts += [part.to_ndarray() for part in resampler.resample(None)]
        x = np.concatenate(parts, axis=1) if parts else np.zeros((1, 0), np.float32)
        if start or end is not None:
            first = max(0, round((start - (offset or 0.0)) * stream.rate))
            x = x[:, first:None if end is None else max(first, round((end - (offset or 0.0)) * stream.rate))]
        return x, stream.rate


def has_audio(path):
    """Whether a video has an audio track, by its header alone."""
    av = optional("av", "reading video")
    try:
        with av.open(str(path)) as container:
            return len(container.streams.audio) > 0
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None


def _begin(container):
    """The second that a container's own clock shows at its beginning."""
    import av
    return (container.start_time or 0) / av.time_base


def load_video(path, frames=8, sample=None, start=None, end=None):
    """uint8 (frames, 3, H, W): frames evenly spaced over the clip; a clip with fewer repeats some.

    sample: callable (n_frames, fps) -> list of frame indices, in place of the even choice; gives uint8 (len(list), 3, H, W).
    start, end: seconds; the clip is the frames shown in start <= t < end (at least one), counted from 0 for `sample`.
    """
    optional("av", "reading video")
    try:
        stamps, first, count, fps = _clip(str(path), start, end)
    except MediaError:
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    picks = [int(k) for k in (sample(count, fps) if sample else even_indices(count, frames))]
    if not picks or min(picks) < 0 or max(picks) >= count:
        raise ValueError(f"frames {picks} were asked of a clip of {count}")
    try:
        picked = _frames(str(path), {first + k for k in picks}, stamps)
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    if not picked:
        raise MediaError("contains no video frames")
    # a truncated clip has fewer frames than packets: the last that decoded stands for the others
    order = sorted(picked)
    nearest = [max([j for j in order if j <= first + k], default=order[0]) for k in picks]
    return np.stack([picked[j] for j in nearest])


def _clip(path, start, end):
    """(time stamps of all frames or None, first frame of the clip, number of its frames, frames per second)."""
    import av
    with av.open(path) as container:
        if not container.streams.video:
            raise MediaError("contains no video stream")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        begin, tick = _begin(container), float(stream.time_base or 0)
        # not every container knows its number of frames: count the packets, which needs no decoding
        stamps = [packet.pts for packet in container.demux(stream) if packet.size]
    n = len(stamps)
    if not n:
        raise MediaError("contains no video frames")
    known = None not in stamps and len(set(stamps)) == n
    stamps = sorted(stamps) if known else None
    seconds = [s * tick - begin for s in stamps] if known else [i / fps for i in range(n)]
    first = min(bisect.bisect_left(seconds, start - 1e-6), n - 1) if start else 0
    last = n if end is None else min(n, max(first + 1, bisect.bisect_left(seconds, end - 1e-6)))
    return stamps, first, last - first, fps


def _frames(path, wanted, stamps):
    """{index: uint8 (3, H, W)} of the wanted frames; stamps as _clip gives them."""
    import av
    picked, i = {}, -1
    with av.open(path) as container:
        stream = container.streams.video[0]
        place = {s: k for k, s in enumerate(stamps)} if stamps else None
        if stamps and min(wanted) > 250:   # to the key frame before: the clip lies deep in a long video
            container.seek(stamps[min(wanted)], stream=stream, backward=True)
        for frame in container.decode(stream):
            i = place.get(frame.pts, i) if stamps else i + 1
            if i in wanted and i not in picked:
                picked[i] = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
            if i >= max(wanted):
                break
    return picked


def even_indices(n, count):
    """`count` indices into n things, at the centres of equal parts: [1, 3] for n = 4, count = 2."""
    return [min(n - 1, int((i + 0.5) * n / count)) for i in range(count)]


def load_array(path):
    """float32 (channels, time) or (channels, height, width); a uint8 image stays uint8."""
    try:
        x = np.load(path, allow_pickle=False)
    except Exception as e:
        raise MediaError(f"cannot be read as an array ({reason(e)})") from None
    problem = array_problem(x.shape, x.dtype)
    if problem:
        raise MediaError(problem)
    if not (x.dtype == np.uint8 and x.ndim == 3):
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise MediaError("contains NaN or Inf")
    return np.ascontiguousarray(x)


def array_problem(shape, dtype):
    """What is wrong with an array of this shape and dtype as an item; None where it is fine."""
    if dtype.kind not in "fiub":
        return f"has dtype {dtype}, not numbers"
    if len(shape) not in (2, 3):
        return f"has shape {tuple(shape)}, not (channels, time) or (channels, height, width)"
    if 0 in shape:
        return f"has shape {tuple(shape)}, which is empty"
    return None


# ---------------------------------------------------------------- raw items to learner inputs

def log_mel(wave, mels=64):
    """float32 (mels, frames): log mel energies of 25 ms windows each 10 ms (Kaldi's, no dither)."""
    knf = optional("kaldi_native_fbank", "the spectrogram of sound")
    options = knf.FbankOptions()
    options.frame_opts.samp_freq = SAMPLE_RATE
    options.frame_opts.frame_length_ms, options.frame_opts.frame_shift_ms = WINDOW, SHIFT
    options.frame_opts.dither = 0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = mels
    options.use_energy = False
    bank = knf.OnlineFbank(options)
    wave = np.asarray(wave, dtype=np.float32)
    least = SAMPLE_RATE * WINDOW // 1000
    if len(wave) < least:
        wave = np.pad(wave, (0, least - len(wave)))
    bank.accept_waveform(SAMPLE_RATE, wave)
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)], axis=1).astype(np.float32)


def text_bytes(text, limit=TEXT_BYTES):
    """The UTF-8 bytes of a sentence, at most `limit`, cut between characters; without byte 0 (padding)."""
    data = text.replace("\0", "").encode("utf-8", errors="replace")
    if len(data) > limit:
        data = data[:limit].decode("utf-8", errors="ignore").encode("utf-8")
    return data


def square(x, size):
    """Centre square of a tensor (..., C, H, W), resized to (..., C, size, size), antialiased; dtype is kept.

    Cropping before resizing gives what resizing the short side and cropping gives, in less memory.
    """
    h, w = x.shape[-2:]
    s = min(h, w)
    top, left = (h - s) // 2, (w - s) // 2
    x = x[..., top:top + s, left:left + s]
    if s == size:
        return x
    y = x.reshape(-1, 1, s, s).float()
    y = F.interpolate(y, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    y = y.reshape(*x.shape[:-2], size, size)
    return y.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else y


def shorten(x, length):
    """(C, T) averaged over equal parts of time to (C, length), length <= T."""
    return x if x.shape[1] == length else F.adaptive_avg_pool1d(x[None], length)[0]


class _Moments:
    """Streaming mean and variance, merged item by item in float64 (Chan, Golub, LeVeque 1983)."""

    def __init__(self):
        self.count, self.mean, self.m2 = 0, None, None

    def add(self, x, axes):
        x = x.double()
        n = math.prod(x.shape[a] for a in axes)
        mean = x.mean(dim=axes, keepdim=True)
        m2 = (x - mean).square().sum(dim=axes, keepdim=True)
        if self.mean is None:
            self.count, self.mean, self.m2 = n, mean, m2
            return
        if mean.shape != self.mean.shape:   # grey so far, colour from here on: grey counts for each channel
            size = torch.broadcast_shapes(mean.shape, self.mean.shape)
            self.mean, self.m2 = self.mean.expand(size), self.m2.expand(size)
        delta, total = mean - self.mean, self.count + n
        self.mean = self.mean + delta * (n / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.count * n / total)
        self.count = total

    def result(self):
        if self.mean is None:
            raise NoTrainItem("this modality has no train item; fill its cells in some rows of the train split")
        std = (self.m2 / self.count).sqrt()
        # a constant channel: dividing by rounding noise would blow up the first test item that differs
        std = torch.where(std > 1e-6 * self.mean.abs().clamp(min=1e-20), std, torch.ones_like(std))
        return self.mean.float().contiguous(), std.float().contiguous()


def learner_inputs(kind, raws, train, *, image_size=224, series_length=512, frames=8, mels=64):
    """Raw items of one modality (Dataset has their forms) to the tensors that the OOM learner trains on.

    raws: the n items: a list, or anything with len() and [i] such as data.Items, or an iterator. What `reduced` made
      of an item serves as well; an item that is None (it could not be read) is left out, and n counts the others.
    train: booleans, one per item; mean and std come from these items alone.
    Returns {"kind", "x", "lengths", "mean", "std"}; (x[i].float() - mean) / std is what the model sees.
      image   x uint8 or float32 (n, C, S, S); mean, std (C, 1, 1). Grey items among coloured ones become RGB.
      video   x uint8 (n, 3, frames, S, S); mean, std (3, 1, 1, 1)
      series  x float32 (n, C, T), zero-padded to the longest; lengths (n,) int64, None where all are full.
              If the longest item exceeds series_length, every item is shortened by the same factor, so that
              a second stays equally long in all of them. mean, std (C, T) where every train item has the full
              length (feature vectors, binned sensors), else (C, 1) over the valid part.
      audio   becomes series: log mel, (mels, frames of 10 ms); lengths always; mean, std (mels, 1)
      text    x uint8 (n, T) UTF-8 bytes, 0 = padding; lengths; mean and std are None
    Raises UserErrors: Ragged, where items have unlike channels or dtypes; NoTrainItem.
    Memory: the result and one raw item; for audio also all log mels, for an iterator of series all items.
    """
    train = [bool(t) for t in train]
    if not hasattr(raws, "__getitem__"):
        raws = list(raws) if kind == "series" else iter(raws)   # series are read twice below
    if kind == "image":
        return _images(raws, train, image_size)
    if kind == "video":
        return _videos(raws, train, image_size, frames)
    if kind == "series":
        return _series(raws, train, series_length)
    if kind == "audio":
        mel = [None] * len(train)
        for i, wave in _each(raws, len(train)):
            mel[i] = wave if wave.ndim == 2 else log_mel(wave, mels)
        return _series(mel, train, series_length, per_position=False)
    if kind == "text":
        return _texts(raws, len(train))
    raise ValueError(f"unknown kind {kind!r}: image, video, series, audio or text")


def reduced(kind, raw, *, image_size=224, frames=8, mels=64, **_):
    """A raw item as far towards `learner_inputs` as it goes alone: worker processes do it. Others stay as they are."""
    if kind == "image":
        return square(_tensor(raw), image_size).numpy()
    if kind == "video":
        return square(_tensor(raw[even_indices(len(raw), frames)]), image_size).numpy()
    return log_mel(raw, mels) if kind == "audio" else raw


def _each(raws, count):
    """Iterates over a sequence or an iterator of `count` items: (i, item), without those that are None."""
    items = (raws[i] for i in range(len(raws))) if hasattr(raws, "__getitem__") else raws
    n = 0
    for i, item in enumerate(items):
        n += 1
        if item is not None and n <= count:
            yield i, item
    if n != count:
        raise ValueError(f"{n} items but {count} train flags")


def _tensor(x):
    return x if torch.is_tensor(x) else torch.from_numpy(np.ascontiguousarray(x))


def _images(raws, train, size):
    k, x, moments = 0, None, _Moments()
    for i, raw in _each(raws, len(train)):
        item = square(_tensor(raw), size)
        if x is None:
            x = torch.empty((len(train), *item.shape), dtype=item.dtype)
        if item.dtype != x.dtype:
            raise Ragged(i, f"pixels are {item.dtype}, those before it {x.dtype}")
        if len(item) != x.shape[1]:
            if {len(item), x.shape[1]} != {1, 3}:
                raise Ragged(i, f"{len(item)} channels, those before it {x.shape[1]}")
            if len(item) == 3:   # the first coloured one: what came before was grey
                x = x.expand(-1, 3, -1, -1).clone()
            item = item.expand(3, -1, -1)
        x[k], k = item, k + 1
        if train[i]:
            moments.add(item, (1, 2))
    mean, std = moments.result()
    return {"kind": "image", "x": _first(x, k), "lengths": None, "mean": mean, "std": std}


def _videos(raws, train, size, frames):
    k, x, moments = 0, torch.empty((len(train), 3, frames, size, size), dtype=torch.uint8), _Moments()
    for i, raw in _each(raws, len(train)):
        raw = _tensor(raw)                                                 # (F, 3, H, W)
        clip = square(raw[even_indices(len(raw), frames)], size)           # (frames, 3, S, S)
        x[k] = clip.transpose(0, 1)
        if train[i]:
            moments.add(x[k], (1, 2, 3))
        k += 1
    mean, std = moments.result()
    return {"kind": "video", "x": _first(x, k), "lengths": None, "mean": mean, "std": std}


def _first(x, k):
    """The first k of x, in memory of their own where that is not all of x."""
    return x if k == len(x) else x[:k].clone()


def _series(items, train, limit, per_position=True):
    shapes = {i: tuple(item.shape) for i, item in _each(items, len(train))}
    if not shapes:
        _Moments().result()                                                # says that there is no train item
    n, channels = len(shapes), next(iter(shapes.values()))[0]
    for i, (c, _) in shapes.items():
        if c != channels:
            raise Ragged(i, f"{c} channels, the first one has {channels}")
    lengths = [t for _, t in shapes.values()]
    longest, train = max(lengths), [train[i] for i in shapes]
    if longest > limit:   # integer ceiling of t * limit / longest: at least 1, at most limit
        lengths = [-(-t * limit // longest) for t in lengths]
    full = max(lengths)
    x = torch.zeros((n, channels, full), dtype=torch.float32)
    moments = _Moments()
    per_position_axis = per_position
    per_position = per_position and all(t == full for t, is_train in zip(lengths, train) if is_train)
    for k, (_, raw) in enumerate(_each(items, len(items))):
        item = shorten(_tensor(raw).float(), lengths[k])                   # (C, T)
        x[k, :, :lengths[k]] = item
        if train[k]:
            moments.add(item[None] if per_position else item, (0,) if per_position else (1,))
    mean, std = moments.result()
    if per_position:
        mean, std = mean[0], std[0]
    lengths = None if per_position_axis and min(lengths) == full else torch.tensor(lengths, dtype=torch.int64)
    return {"kind": "series", "x": x, "lengths": lengths, "mean": mean, "std": std}


def _texts(raws, count):
    data = [text_bytes(text) for _, text in _each(raws, count)]
    x = torch.zeros((len(data), max(1, max(map(len, data), default=1))), dtype=torch.uint8)
    for i, b in enumerate(data):
        x[i, :len(b)] = torch.tensor(list(b), dtype=torch.uint8)
    lengths = [len(b) for b in data]
    lengths = None if min(lengths) == x.shape[1] else torch.tensor(lengths, dtype=torch.int64)
    return {"kind": "text", "x": x, "lengths": lengths, "mean": None, "std": None}
