"""Raw items to the tensors that the learner trains on."""

import math
from dataclasses import dataclass
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


class Moments:
    """Streaming mean and variance, merged item by item in float64 (Chan, Golub, LeVeque 1983). `state`: [count, mean,
    sum of squares about it], None where nothing was added."""

    def __init__(self, state=None):
        self.state: Any = state

    def add(self, x, axes):
        """Takes in an item x; mean and variance are over its `axes`, which stay as axes of length 1."""
        x = x.double()
        mean = x.mean(dim=axes, keepdim=True)
        self.merge([math.prod(x.shape[a] for a in axes), mean, (x - mean).square().sum(dim=axes, keepdim=True)])

    def merge(self, other):
        """Takes in the state of another."""
        if self.state is None or other is None:
            self.state = self.state or other
            return
        (count, mean, m2), (n, mean_n, m2_n) = self.state, other
        if mean_n.shape != mean.shape:  # grey so far, colour from here on: grey counts for each channel
            size = torch.broadcast_shapes(mean_n.shape, mean.shape)
            mean, m2 = mean.expand(size), m2.expand(size)
        delta, total = mean_n - mean, count + n
        self.state = [total, mean + delta * (n / total), m2 + m2_n + delta.square() * (count * n / total)]

    def result(self):
        """(mean, std) float32, std 1 where the channel is constant; NoTrainItem where nothing was added."""
        if self.state is None:
            raise NoTrainItem("this modality has no train item; fill its cells in some rows of the train split")
        count, mean, m2 = self.state
        std = (m2 / count).sqrt()
        # a constant channel: dividing by rounding noise would blow up the first test item that differs
        std = torch.where(std > 1e-6 * mean.abs().clamp(min=1e-20), std, torch.ones_like(std))
        return mean.float().contiguous(), std.float().contiguous()


def learner_inputs(kind, raws, train, *, image_size=224, series_length=512, frames=8, mels=MELS):
    """Raw items of one modality (Dataset has their forms) to the tensors that the OOM learner trains on.

    raws: the n items: a list, or an iterator. What `reduced` made of an item serves as well; an item that is None (it
      could not be read) is left out, and n counts the others.
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
    Stage 1 makes the same in units (cox_oom/data/units.py): `unit` and `series_unit` make one, `joined` says what all
    of them have in common.
    """
    train = [bool(t) for t in train]
    if kind not in ("series", "audio"):
        made = unit(kind, raws, train, image_size=image_size, frames=frames)
        return {**joined(kind, [made]), "x": made["x"]}
    items: list[Any] = []
    flags = []
    for i, raw in _each(raws, len(train)):
        item = as_tensor(raw if kind == "series" or raw.ndim == 2 else log_mel(raw, mels))
        unlike_series(i, len(item), len(items[0] if items else item))
        items.append(item)
        flags.append(train[i])
    longest = max((item.shape[1] for item in items), default=0)
    lengths = [shorter(item.shape[1], longest, series_length) for item in items]
    form = Form.of(kind, lengths, flags, longest)
    made = series_unit(items, lengths, flags, form)
    return {**joined(kind, [made], form), "x": made["x"]}


def unit(kind, raws, train, *, image_size=224, frames=8, **_):
    """Images, videos or texts of some rows: {"x", "lengths" (n,) or None, "moments": those of the train items}."""
    if kind == "image":
        return _images(raws, train, image_size)
    if kind == "video":
        return _videos(raws, train, image_size, frames)
    if kind == "text":
        return _texts(raws, len(train))
    raise ValueError(f"unknown kind {kind!r}: image, video, series, audio or text")


@dataclass(frozen=True)
class Form:
    """What all series of a modality have in common: the steps of the `longest` before it was shortened; whether mean
    and std are per step (`even`), and whether the items' `lengths` are kept, since they differ."""

    longest: int
    even: bool
    lengths: bool

    @classmethod
    def of(cls, kind, lengths, train, longest):
        """From the lengths of all items, shortened, and whether they are of train. NoTrainItem where there is none."""
        if not lengths:
            Moments().result()  # says that there is no train item
        full, fixed = max(lengths), kind == "series"
        even = fixed and all(t == full for t, is_train in zip(lengths, train) if is_train)
        return cls(longest, even, not (fixed and min(lengths) == full))


def series_unit(items, lengths, train, form):
    """What `unit` gives, of series: items (C, T) one by one, which become so long as lengths [n] say."""
    x: Any = None
    moments = Moments()
    for k, raw in enumerate(items):
        item = shorten(as_tensor(raw).float(), lengths[k])  # (C, T)
        if x is None:
            x = torch.zeros((len(lengths), len(item), max(lengths)), dtype=torch.float32)
        x[k, :, : lengths[k]] = item
        if train[k]:
            moments.add(item[None] if form.even else item, (0,) if form.even else (1,))
    return {"x": x, "lengths": torch.tensor(lengths, dtype=torch.int64), "moments": moments.state}


def joined(kind, made, form=None):
    """{"kind", "lengths", "mean", "std", "longest"} of what `unit` or `series_unit` made, in their order."""
    moments = Moments()
    for part in made:
        moments.merge(part["moments"])
    mean, std = (None, None) if kind == "text" else moments.result()  # type: Any, Any
    lengths = None if made[0]["lengths"] is None else torch.cat([part["lengths"] for part in made])
    if form:
        kind, mean, std = "series", *((mean[0], std[0]) if form.even else (mean, std))
    kept = form.lengths if form else lengths is not None and int(lengths.min()) < max(1, int(lengths.max()))
    longest = form.longest if form else 0
    return {"kind": kind, "lengths": lengths if kept else None, "mean": mean, "std": std, "longest": longest}


def reduced(kind, raw, *, image_size=224, frames=8, mels=MELS, **_):
    """A raw item as far towards `learner_inputs` as it goes alone: worker processes do it. Others stay as they are."""
    if kind == "image":
        return square(as_tensor(raw), image_size).numpy()
    if kind == "video":
        return square(as_tensor(raw[even_indices(len(raw), frames)]), image_size).numpy()
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
    raw = as_tensor(raw)
    dims = {"audio": 1, "series": 2, "image": 3, "video": 4}[kind]
    if raw.dim() != dims:
        raise UserError(f"it has {raw.dim()} dimensions, an item of kind {kind} has {dims}; give one of that kind")
    sizes = {k: to[k] for k in ("image_size", "frames", "mels")}
    x = as_tensor(reduced(kind, raw.numpy() if kind in ("audio", "video") else raw, **sizes))
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


def as_tensor(x):
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


def unlike_series(i, channels, first):
    """Ragged where item i, a series of so many channels, has others than the first one."""
    if channels != first:
        raise Ragged(i, f"{channels} channels, the first one has {first}")


def _images(raws, train, size):
    """`unit` of images. Grey ones are kept grey until the first coloured one."""
    k, x, moments = 0, None, Moments()
    for i, raw in _each(raws, len(train)):
        item = square(as_tensor(raw), size)
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
    return {"x": None if x is None else _first(x, k), "lengths": None, "moments": moments.state}


def _videos(raws, train, size, frames):
    """`unit` of clips."""
    k, x, moments = 0, torch.empty((len(train), 3, frames, size, size), dtype=torch.uint8), Moments()
    for i, raw in _each(raws, len(train)):
        raw = as_tensor(raw)  # (F, 3, H, W)
        clip = square(raw[even_indices(len(raw), frames)], size)  # (frames, 3, S, S)
        x[k] = clip.transpose(0, 1)
        if train[i]:
            moments.add(x[k], (1, 2, 3))
        k += 1
    return {"x": _first(x, k), "lengths": None, "moments": moments.state}


def _first(x, k):
    """The first k of x, in memory of their own where that is not all of x."""
    return x if k == len(x) else x[:k].clone()


def _texts(raws, count):
    """`unit` of `count` sentences."""
    data = [text_bytes(text) for _, text in _each(raws, count)]
    x = torch.zeros((len(data), max(1, max(map(len, data), default=1))), dtype=torch.uint8)
    for i, b in enumerate(data):
        x[i, : len(b)] = torch.tensor(list(b), dtype=torch.uint8)
    return {"x": x, "lengths": torch.tensor([len(b) for b in data], dtype=torch.int64), "moments": None}
