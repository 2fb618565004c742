"""Files to raw items: the decoders of images, sound, video and arrays.

The loaders raise MediaError with the bare reason; the reader that knows file and row adds those (folder.py).
"""

import bisect

import numpy as np

from cox_oom.data import decode
from cox_oom.data.decode import ARRAY, AUDIO, IMAGE, VIDEO, MediaError, reason
from cox_oom.data.sound import SAMPLE_RATE, SILENCE, has_audio, load_audio
from cox_oom.files import optional

__all__ = [
    "ARRAY",
    "AUDIO",
    "IMAGE",
    "SAMPLE_RATE",
    "SILENCE",
    "VIDEO",
    "MediaError",
    "has_audio",
    "load_audio",
    "reason",
]


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
            elif mode.startswith("I"):  # I, I;16, I;16B: 16 or 32 bit grey
                x = np.asarray(image).astype(np.float32)
                if modality == "depth":
                    x /= 1000
            elif mode in ("1", "L", "LA", "La"):
                x = np.asarray(image.convert("L"))
            else:
                x = np.asarray(image.convert("RGB"))
    except Exception as e:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ...
        raise MediaError(f"cannot be read as an image ({reason(e)})") from None
    x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    if not np.isfinite(x).all():
        raise MediaError("contains NaN or Inf")
    return np.array(x, order="C")  # a copy: Pillow lends its memory read-only


def _begin(container):
    """The second that a container's own clock shows at its beginning."""
    import av

    return (container.start_time or 0) / av.time_base


def load_video(path, frames=8, sample=None, start=None, end=None):
    """uint8 (frames, 3, H, W): frames evenly spaced over the clip; a clip with fewer repeats some.

    sample: callable (n_frames, fps) -> list of frame indices, in place of the even choice; the result then has as many.
    start, end: seconds; the clip is the frames shown in start <= t < end (at least one), counted from 0 for `sample`.
    """
    optional("av", "reading video")
    try:
        stamps, first, count, fps = _clip(str(path), start, end)
    except MediaError:
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    indices = [int(k) for k in (sample(count, fps) if sample else even_indices(count, frames))]
    if not indices or min(indices) < 0 or max(indices) >= count:
        raise ValueError(f"frames {indices} were asked of a clip of {count}")
    try:
        images = _frames(str(path), {first + k for k in indices}, stamps)
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    if not images:
        raise MediaError("contains no video frames")
    # a truncated clip has fewer frames than packets: the last that decoded stands for the others
    order = sorted(images)
    nearest = [max([j for j in order if j <= first + k], default=order[0]) for k in indices]
    return np.stack([images[j] for j in nearest])


def _clip(path, start, end):
    """(time stamps of all frames or None, first frame of the clip, number of its frames, frames per second)."""
    with decode.open_container(path) as container:
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
    distinct = None not in stamps and len(set(stamps)) == n
    stamps = sorted(stamps) if distinct else None
    seconds = [s * tick - begin for s in stamps] if distinct else [i / fps for i in range(n)]
    first = min(bisect.bisect_left(seconds, start - 1e-6), n - 1) if start else 0
    last = n if end is None else min(n, max(first + 1, bisect.bisect_left(seconds, end - 1e-6)))
    return stamps, first, last - first, fps


def _frames(path, indices, stamps):
    """{index: uint8 (3, H, W)} of the frames at a set of indices, as far as they decode; stamps as _clip gives them."""
    images, i = {}, -1
    with decode.open_container(path) as container:
        stream = container.streams.video[0]
        place = {s: k for k, s in enumerate(stamps)} if stamps else None
        if stamps and min(indices) > 250:  # to the key frame before: the clip lies deep in a long video
            container.seek(stamps[min(indices)], stream=stream, backward=True)
        for frame in container.decode(stream):
            i = place.get(frame.pts, i) if stamps else i + 1
            if i in indices and i not in images:
                images[i] = frame.to_ndarray(format="rgb24").transpose(2, 0, 1)
            if i >= max(indices):
                break
    return images


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
