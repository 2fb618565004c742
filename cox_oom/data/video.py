"""Videos to frames (media.py lists the decoders)."""

import bisect
import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.data import decode
from cox_oom.data.decode import MediaError, TooLarge, reason
from cox_oom.files import optional


@dataclass
class Clip:
    """A video's frames as its packets tell them, and those of them that are the clip."""

    stamps: list | None  # time stamps of all frames, sorted; None where not every frame has one of its own
    first: int  # of the clip
    times: list  # seconds at which the clip's frames are shown
    finish: float  # second at which the last one is gone
    fps: float


def load_video(path, frames=8, sample=None, start=None, end=None, limit=1):
    """uint8 (frames, 3, H, W): frames evenly spaced over the time of the clip; a clip with fewer repeats some.

    They are turned and mirrored as the file says, and frames unlike the first are fitted to its size.
    sample: callable (n_frames, fps) -> list of frame indices, in place of the even choice; the result then has as many.
      Where frames come at uneven times, it is asked about a clip of the same duration at a constant rate (that of the
      median gap), and the frame shown in the middle of each time it chose is taken.
    start, end: seconds; the clip is the frames shown in start <= t < end (at least one), counted from 0 for `sample`.
    limit: what the limits are multiplied by.
    """
    optional("av", "reading video")
    try:
        clip = _clip(str(path), start, end, limit)
    except MediaError:
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    indices = _choose(clip, frames, sample)
    try:
        images = _frames(str(path), {clip.first + k for k in indices}, clip.stamps, limit)
    except MediaError:
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
    if not images:
        raise MediaError("contains no video frames")
    # a truncated clip has fewer frames than packets: the last that decoded stands for the others
    order = sorted(images)
    nearest = [max([j for j in order if j <= clip.first + k], default=order[0]) for k in indices]
    size = images[nearest[0]].shape[1:]
    out = np.empty((len(nearest), 3, *size), np.uint8)
    for k, j in enumerate(nearest):  # a frame goes when it is needed no more: large ones fill the memory
        out[k] = _fitted(images[j] if j in nearest[k + 1 :] else images.pop(j), size)
    return out


def _clip(path, start, end, limit):
    """The Clip of a part of a video."""
    import av

    with decode.open_container(path) as container:
        if not container.streams.video:
            raise MediaError("contains no video stream")
        stream = container.streams.video[0]
        _check_size(stream.codec_context.width or 0, stream.codec_context.height or 0, limit)
        fps = float(stream.average_rate or stream.guessed_rate or 25)
        begin, tick = (container.start_time or 0) / av.time_base, float(stream.time_base or 0)
        # not every container knows its number of frames: count the packets, which needs no decoding
        stamps, duration = [], {}
        for packet in container.demux(stream):
            if packet.size and not packet.is_discard and not _hidden(packet, stream):
                stamps.append(packet.pts)
                duration[packet.pts] = packet.duration
                if len(stamps) > decode.VIDEO_FRAMES * limit:
                    raise TooLarge(f"has more than {decode.VIDEO_FRAMES * limit:g} frames")
    n = len(stamps)
    if not n:
        raise MediaError("contains no video frames")
    distinct = None not in stamps and len(set(stamps)) == n
    times = sorted(stamps) if distinct else None
    seconds = [s * tick - begin for s in times] if times else [i / fps for i in range(n)]
    first = min(bisect.bisect_left(seconds, start - 1e-6), n - 1) if start else 0
    last = n if end is None else min(n, max(first + 1, bisect.bisect_left(seconds, end - 1e-6)))
    if last < n:
        finish = seconds[last]
    else:  # what the last frame lasts is told by its packet, or by the other frames
        own = (duration[times[-1]] or 0) * tick if times else 0
        finish = seconds[-1] + (own if own > 0 else _gap(seconds) or 1 / fps)
    return Clip(times, first, seconds[first:last], finish, _rate(seconds, fps))


def _hidden(packet, stream):
    """Whether a packet is decoded but never shown: VP8 says so in its first byte."""
    return stream.codec_context.name in ("vp8", "libvpx") and not bytes(packet)[0] >> 4 & 1


def _check_size(width, height, limit):
    """TooLarge where a frame is."""
    if width * height > decode.FRAME_PIXELS * limit:
        raise TooLarge(
            f"has frames of {width} x {height}, more than {decode.FRAME_PIXELS * limit / 1e6:.0f} megapixels"
        )


def _gap(seconds):
    """The median time between frames; 0 where there is one frame."""
    return float(np.median(np.diff(seconds))) if len(seconds) > 1 else 0.0


def _even(seconds):
    """Whether frames come at a constant rate, but for what a clock's ticks round."""
    step = (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    return float(np.abs(np.array(seconds) - seconds[0] - step * np.arange(len(seconds))).max()) <= step / 2


def _rate(seconds, fps):
    """Frames per second: what the header says, unless the time stamps say otherwise."""
    step = (seconds[-1] - seconds[0]) / max(1, len(seconds) - 1)
    return 1 / step if step and _even(seconds) and abs(fps * step - 1) > 0.01 else fps


def _choose(clip, frames, sample):
    """Indices into a clip's frames: even over its time, or what `sample` chooses (load_video)."""
    n = len(clip.times)
    even, span = _even(clip.times), clip.finish - clip.times[0]
    if even:
        count, fps = n, clip.fps
    else:
        count = max(n, min(decode.VIDEO_FRAMES, math.ceil(span / max(_gap(clip.times), 1e-3))))
        fps = count / span
    if sample is None:
        if even:
            return even_indices(n, frames)
        at = [clip.times[0] + (i + 0.5) * span / frames for i in range(frames)]
    else:
        indices = [int(k) for k in sample(count, fps)]
        if not indices or min(indices) < 0 or max(indices) >= count:
            raise ValueError(f"frames {indices} were asked of a clip of {count}")
        if even:
            return indices
        at = [clip.times[0] + (k + 0.5) / fps for k in indices]
    return [max(0, bisect.bisect_right(clip.times, t + 1e-6) - 1) for t in at]


def _frames(path, indices, stamps, limit):
    """{index: uint8 (3, H, W)} of the frames at a set of indices, as far as they decode; stamps: see Clip."""
    images, i, pixels = {}, -1, 0
    with decode.open_container(path) as container:
        stream = container.streams.video[0]
        place = {s: k for k, s in enumerate(stamps)} if stamps else {}
        if stamps and min(indices) > 250:  # to the key frame before: the clip lies deep in a long video
            container.seek(stamps[min(indices)], stream=stream, backward=True)
        for frame in container.decode(stream):
            _check_size(frame.width, frame.height, limit)
            i = place.get(frame.pts, i) if stamps else i + 1
            if i in indices and i not in images:
                pixels += frame.width * frame.height
                if pixels > decode.CLIP_PIXELS * limit:
                    most = f"{decode.CLIP_PIXELS * limit / 1e6:.0f} megapixels"
                    raise TooLarge(f"has frames of {frame.width} x {frame.height}; those to take have more than {most}")
                images[i] = _upright(frame.to_ndarray(format="rgb24"), frame).transpose(2, 0, 1)
            if i >= max(indices):
                break
    return images


def _upright(x, frame):
    """x (H, W, 3) turned and mirrored as the frame's display matrix says, which is rounded to quarter turns.

    The matrix [a b u; c d v; x y w] shows the pixel at (column p, row q) at (a p + c q, b p + d q).
    """
    marks = (frame.side_data[k] for k in range(len(frame.side_data)))
    matrix = next((np.frombuffer(bytes(m), np.int32) for m in marks if m.type.name == "DISPLAYMATRIX"), None)
    if matrix is None or len(matrix) != 9:
        return x
    a, b, _, c, d = matrix[:5].astype(np.int64)
    if abs(a) + abs(d) < abs(b) + abs(c):  # rows become columns
        x, a, d = x.transpose(1, 0, 2), c, b
    return x[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]


def _fitted(x, size):
    """x uint8 (3, h, w) as (3, *size): the short sides alike, the long one cut or its edges repeated, at the centre.

    The centre square, which the learner sees, is that of the frame itself.
    """
    height, width = size
    if x.shape[1:] == (height, width):
        return x
    short = min(height, width)
    scale = short / min(x.shape[1:])
    to = [max(short, round(n * scale)) for n in x.shape[1:]]
    y = torch.from_numpy(np.ascontiguousarray(x))[None].float()
    y = F.interpolate(y, size=to, mode="bilinear", align_corners=False, antialias=True)
    whole = y[0].round().clamp(0, 255).to(torch.uint8).numpy()
    rows, columns = (np.arange(n) - (n - m) // 2 for n, m in zip((height, width), to))
    return whole[:, rows.clip(0, to[0] - 1)][:, :, columns.clip(0, to[1] - 1)]


def even_indices(n, count):
    """`count` indices into n things, at the centres of equal parts: [1, 3] for n = 4, count = 2."""
    return [min(n - 1, int((i + 0.5) * n / count)) for i in range(count)]
