"""Raw items to the tensors that the learner trains on."""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.data.media import SAMPLE_RATE, even_indices
from cox_oom.files import UserError, optional

WINDOW, SHIFT = 25, 10  # ms, of the mel frames
READER = 3  # version of the decoders and of what follows here; another one's learners would be given other items
MELS = 64  # of a spectrogram
TEXT_BYTES = 256  # a sentence longer than this is cut


class Ragged(UserError):
    """An item that is unlike the others of its modality: `item`, its number, and `what` is unlike."""

    def __init__(self, item, what):
        super().__init__(f"item {item}: {what}; all items of a modality must agree")
        self.item, self.what = item, what


class NoTrainItem(UserError):
    """None of the train items is there, or all of them are left out: there is no mean and no standard deviation."""


def log_mel(wave, mels=MELS):
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


def mel_frames(samples):
    """How many frames log_mel gives of a wave."""
    shift, window = (SAMPLE_RATE * ms // 1000 for ms in (SHIFT, WINDOW))
    return 1 + max(0, samples - window) // shift


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
    x = x[..., top : top + s, left : left + s]
    if s == size:
        return x
    planes, few = x.reshape(-1, 1, s, s), max(1, (1 << 24) // (s * s))  # a large image in float32 would fill the memory
    y = torch.cat(
        [
            F.interpolate(p.float(), size=(size, size), mode="bilinear", align_corners=False, antialias=True)
            for p in planes.split(few)
        ]
    ).reshape(*x.shape[:-2], size, size)
    return y.round().clamp(0, 255).to(torch.uint8) if x.dtype == torch.uint8 else y


def shorten(x, length):
    """(C, T) averaged over equal parts of time to (C, length), length <= T."""
    return x if x.shape[1] == length else F.adaptive_avg_pool1d(x[None], length)[0]


def shorter(steps, longest, limit):
    """Steps that an item of a series keeps where the longest item has `longest`, of which `limit` are kept."""
    return -(-steps * limit // longest) if longest > limit else steps  # a ceiling: at least 1


class _Moments:
    """Streaming mean and variance, merged item by item in float64 (Chan, Golub, LeVeque 1983)."""

    def __init__(self):
        self.count = 0
        self.mean: Any = None  # tensors, from the first item on
        self.m2: Any = None

    def add(self, x, axes):
        """Takes in an item x; mean and variance are over its `axes`, which stay as axes of length 1."""
        x = x.double()
        n = math.prod(x.shape[a] for a in axes)
        mean = x.mean(dim=axes, keepdim=True)
        m2 = (x - mean).square().sum(dim=axes, keepdim=True)
        if self.mean is None:
            self.count, self.mean, self.m2 = n, mean, m2
            return
        if mean.shape != self.mean.shape:  # grey so far, colour from here on: grey counts for each channel
            size = torch.broadcast_shapes(mean.shape, self.mean.shape)
            self.mean, self.m2 = self.mean.expand(size), self.m2.expand(size)
        delta, total = mean - self.mean, self.count + n
        self.mean = self.mean + delta * (n / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.count * n / total)
        self.count = total

    def result(self):
        """(mean, std) float32, std 1 where the channel is constant; NoTrainItem where nothing was added."""
        if self.mean is None:
            raise NoTrainItem("this modality has no train item; fill its cells in some rows of the train split")
        std = (self.m2 / self.count).sqrt()
        # a constant channel: dividing by rounding noise would blow up the first test item that differs
        std = torch.where(std > 1e-6 * self.mean.abs().clamp(min=1e-20), std, torch.ones_like(std))
        return self.mean.float().contiguous(), std.float().contiguous()


def learner_inputs(kind, raws, train, *, image_size=224, series_length=512, frames=8, mels=MELS):
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
    and "longest", the steps of the longest item before it was shortened, 0 of images, videos and text.
    Raises UserErrors: Ragged, where items have unlike channels or dtypes; NoTrainItem.
    Memory: the result and one raw item; for audio also all log mels, for an iterator of series all items.
    """
    train = [bool(t) for t in train]
    if not hasattr(raws, "__getitem__"):
        raws = list(raws) if kind == "series" else iter(raws)  # series are read twice below
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


def reduced(kind, raw, *, image_size=224, frames=8, mels=MELS, **_):
    """A raw item as far towards `learner_inputs` as it goes alone: worker processes do it. Others stay as they are."""
    if kind == "image":
        return square(_tensor(raw), image_size).numpy()
    if kind == "video":
        return square(_tensor(raw[even_indices(len(raw), frames)]), image_size).numpy()
    return log_mel(raw, mels) if kind == "audio" else raw


def preparation(oom, modality, path):
    """How an inputs file's items were made: `prepared`'s facts, with mean and std. UserError: `path` does not say."""
    facts = oom["meta"].get("preparation")
    if facts is None:
        raise UserError(f"{path} does not say how its items were made; make it again by extract_features.py --force")
    x, lengths = oom["x"], oom["lengths"] is not None
    facts = {**facts, "modality": modality, "shape": list(x.shape[1:]), "dtype": str(x.dtype)[6:], "lengths": lengths}
    return {**facts, "mean": oom["mean"], "std": oom["std"]}


def prepared(raw, to):
    """A raw item as the learner takes it, with the same bits as in stage 1's inputs: (x, steps).

    to: a learner's preparation, stage 1's facts (`kind` of the raw item, image_size, series_length, frames, mels,
    longest) with the `shape` and `dtype` of x, and `lengths`: whether items differ in length. x has that shape; steps
    is an int, or None where all are full. Longer items lose their end. UserError where the item is of another form.
    """
    shape, kind = tuple(to["shape"]), to["kind"]
    if kind == "text":
        data = text_bytes(raw, shape[0])
        x = torch.zeros(shape, dtype=torch.uint8)
        x[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
        return x, len(data) if to["lengths"] else None
    raw = _tensor(raw)
    dims = {"audio": 1, "series": 2, "image": 3, "video": 4}[kind]
    if raw.dim() != dims:
        raise UserError(f"it has {raw.dim()} dimensions, an item of kind {kind} has {dims}; give one of that kind")
    sizes = {k: to[k] for k in ("image_size", "frames", "mels")}
    x = _tensor(reduced(kind, raw.numpy() if kind in ("audio", "video") else raw, **sizes))
    if kind in ("image", "video"):
        if x.dtype != getattr(torch, to["dtype"]):
            raise UserError(f"its pixels are {x.dtype}, the learner's {to['dtype']}; give images as it was taught by")
        x = x.transpose(0, 1) if kind == "video" else x.expand(shape[0], -1, -1) if len(x) == 1 else x
        if tuple(x.shape) != shape:
            raise UserError(f"it has {len(x)} channels, the learner takes {shape[0]}; give images as it was taught by")
        return x, None
    steps = shorter(x.shape[1], to["longest"], to["series_length"])
    if len(x) != shape[0] or not to["lengths"] and steps != shape[1]:
        form = f"{shape[0]} channels" + ("" if to["lengths"] else f" of {to['longest']} steps")
        raise UserError(f"it has shape {tuple(x.shape)}, the learner takes {form}; give recordings of that form")
    out = torch.zeros(shape)
    steps = min(steps, shape[1])
    out[:, :steps] = shorten(x.float(), shorter(x.shape[1], to["longest"], to["series_length"]))[:, :steps]
    return out, steps if to["lengths"] else None


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
    """An array or a tensor as a tensor."""
    return x if torch.is_tensor(x) else torch.from_numpy(np.ascontiguousarray(x))


def unlike(image, before):
    """What an image has that those before it have not, None where they go together: grey and coloured ones do. Both are
    (channels, dtype)."""
    if image[1] != before[1]:
        return f"pixels are {image[1]}, those before it {before[1]}"
    if image[0] != before[0] and {image[0], before[0]} != {1, 3}:
        return f"{image[0]} channels, those before it {before[0]}"
    return None


def _images(raws, train, size):
    """learner_inputs of images. Grey ones are kept grey until the first coloured one."""
    k, x, moments = 0, None, _Moments()
    for i, raw in _each(raws, len(train)):
        item = square(_tensor(raw), size)
        if x is None:
            x = torch.empty((len(train), *item.shape), dtype=item.dtype)
        if what := unlike((len(item), item.dtype), (x.shape[1], x.dtype)):
            raise Ragged(i, what)
        if len(item) != x.shape[1]:
            if len(item) == 3:  # the first coloured one: what came before was grey
                x = x.expand(-1, 3, -1, -1).clone()
            item = item.expand(3, -1, -1)
        x[k], k = item, k + 1
        if train[i]:
            moments.add(item, (1, 2))
    mean, std = moments.result()
    return {"kind": "image", "x": _first(x, k), "lengths": None, "mean": mean, "std": std, "longest": 0}


def _videos(raws, train, size, frames):
    """learner_inputs of clips."""
    k, x, moments = 0, torch.empty((len(train), 3, frames, size, size), dtype=torch.uint8), _Moments()
    for i, raw in _each(raws, len(train)):
        raw = _tensor(raw)  # (F, 3, H, W)
        clip = square(raw[even_indices(len(raw), frames)], size)  # (frames, 3, S, S)
        x[k] = clip.transpose(0, 1)
        if train[i]:
            moments.add(x[k], (1, 2, 3))
        k += 1
    mean, std = moments.result()
    return {"kind": "video", "x": _first(x, k), "lengths": None, "mean": mean, "std": std, "longest": 0}


def _first(x, k):
    """The first k of x, in memory of their own where that is not all of x."""
    return x if k == len(x) else x[:k].clone()


def _series(items, train, limit, per_position=True):
    """learner_inputs of series (C, T), at most `limit` long. per_position: whether mean and std may be (C, T)."""
    shapes = {i: tuple(item.shape) for i, item in _each(items, len(train))}
    if not shapes:
        _Moments().result()  # says that there is no train item
    n, channels = len(shapes), next(iter(shapes.values()))[0]
    for i, (c, _) in shapes.items():
        if c != channels:
            raise Ragged(i, f"{c} channels, the first one has {channels}")
    lengths = [t for _, t in shapes.values()]
    longest, train = max(lengths), [train[i] for i in shapes]
    lengths = [shorter(t, longest, limit) for t in lengths]
    full = max(lengths)
    x = torch.zeros((n, channels, full), dtype=torch.float32)
    moments = _Moments()
    drop_lengths = per_position and min(lengths) == full
    per_position = per_position and all(t == full for t, is_train in zip(lengths, train) if is_train)
    for k, (_, raw) in enumerate(_each(items, len(items))):
        item = shorten(_tensor(raw).float(), lengths[k])  # (C, T)
        x[k, :, : lengths[k]] = item
        if train[k]:
            moments.add(item[None] if per_position else item, (0,) if per_position else (1,))
    mean, std = moments.result()
    if per_position:
        mean, std = mean[0], std[0]
    kept = None if drop_lengths else torch.tensor(lengths, dtype=torch.int64)
    return {"kind": "series", "x": x, "lengths": kept, "mean": mean, "std": std, "longest": longest}


def _texts(raws, count):
    """learner_inputs of `count` sentences."""
    data = [text_bytes(text) for _, text in _each(raws, count)]
    x = torch.zeros((len(data), max(1, max(map(len, data), default=1))), dtype=torch.uint8)
    for i, b in enumerate(data):
        x[i, : len(b)] = torch.tensor(list(b), dtype=torch.uint8)
    lengths = [len(b) for b in data]
    kept = None if min(lengths) == x.shape[1] else torch.tensor(lengths, dtype=torch.int64)
    return {"kind": "text", "x": x, "lengths": kept, "mean": None, "std": None, "longest": 0}
