"""Sound files and the sound of videos to waves (media.py lists the decoders)."""

import io
import math
import os
import struct
from typing import Any

import numpy as np

from cox_oom.data import decode
from cox_oom.data.decode import VIDEO, MediaError, TooLarge, reason
from cox_oom.files import MissingLibrary, optional

SAMPLE_RATE = 16000  # Hz, of every audio item
SILENCE = 1e-4  # a recording that nowhere exceeds this share of full scale (-80 dB) is silent
BLOCK = 1 << 20  # values that are read at a time


def load_audio(path, start=None, end=None, limit=1, resample=None):
    """float32 (T,): the channels' mean at 16 kHz. Of a video (mp4, mkv, ...) its first audio track.

    start, end: seconds; only this part is read. A negative start counts as 0, an end beyond the end as the end.
    A recording whose rate or channels change midway is put together from its parts, each at its own rate.
    limit: what the limits are multiplied by.
    resample: callable (wave float32 (T,), rate) -> wave at 16 kHz, in place of scipy's resample_poly.
    """
    start = max(0.0, start or 0.0)
    extension = os.path.splitext(str(path))[1].lower()
    # Of other formats libsndfile believes the header's length, and reads one link of a chain. Names may lie.
    exact = extension == ".wav" and not compressed(_head(path))
    optional(*(("av", "reading video") if extension in VIDEO else ("soundfile" if exact else "av", "reading sound")))
    try:
        parts = (_sound if exact else _track)(str(path), start, end, limit)  # [(wave (T,), rate)]
    except (MediaError, MissingLibrary):
        raise
    except Exception as e:
        raise MediaError(f"cannot be read as audio ({reason(e)})") from None
    if not any(len(x) for x, _ in parts):
        raise MediaError("contains no audio samples" + (f" from second {start:g} on" if start else ""))
    if not all(np.isfinite(x).all() for x, _ in parts):
        raise MediaError("contains NaN or Inf")
    waves = [(resample or _resampled)(x, rate) for x, rate in parts if len(x)]
    return np.ascontiguousarray(waves[0] if len(waves) == 1 else np.concatenate(waves), dtype=np.float32)


def compressed(head):
    """Whether a file that begins so is FLAC, OGG, MP3, MP4 or Matroska, whatever its name."""
    mpeg = len(head) > 2 and head[0] == 0xFF and head[1] >= 0xE0 and head[1] & 6 and 0 < head[2] >> 4 < 15
    return bool(mpeg) or head.startswith((b"fLaC", b"OggS", b"ID3", b"\x1aE\xdf\xa3")) or head[4:8] == b"ftyp"


def _head(path):
    """The first bytes of a file; none where it cannot be read."""
    try:
        with open(path, "rb") as f:
            return f.read(8)
    except OSError:
        return b""


def _resampled(x, rate):
    """A wave at `rate` Hz at 16 kHz."""
    if rate == SAMPLE_RATE:
        return x
    resample_poly = optional("scipy.signal", "resampling sound to 16 kHz").resample_poly
    g = math.gcd(rate, SAMPLE_RATE)
    return resample_poly(x, SAMPLE_RATE // g, rate // g)


def _check(rate, samples, limit):
    """TooLarge where a recording of so many samples is."""
    if not 1 <= rate <= decode.RATE * limit:
        raise TooLarge(f"claims {rate} samples a second, more than {decode.RATE * limit:g}")
    if samples > min(decode.SECONDS * rate, decode.SAMPLES) * limit:
        raise TooLarge(f"lasts {samples / rate:.0f} s or more at {rate} samples a second, too long for one item")


def _sound(path, start, end, limit):
    """[(wave (T,) float32, rate)] of a file that libsndfile reads."""
    import soundfile

    _check_wav(path)
    with soundfile.SoundFile(path) as f:
        rate = f.samplerate
        _check(rate, 0, limit)
        first = min(round(start * rate), f.frames)
        last = f.frames if end is None else min(f.frames, max(first, round(end * rate)))
        _check(rate, last - first, limit)
        if first:
            f.seek(first)
        parts, left = [], last - first
        while left:
            x = f.read(min(left, max(1, BLOCK // f.channels)), dtype="float32", always_2d=True).T
            if not x.shape[1]:
                break
            parts.append(x.mean(axis=0))
            left -= x.shape[1]
        if not f.frames and os.path.getsize(path) > 1024:  # written to a pipe: the header holds no length
            optional("av", "reading sound")
            return _track(path, start, end, limit)
    return [(_joined(parts), rate)]


def _chunks(f):
    """(name, place of the contents, length that is claimed) of each chunk of an open WAV file; none of other files."""
    f.seek(0)
    head = f.read(12)
    if head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return
    while len(head := f.read(8)) == 8:
        name, n = struct.unpack("<4sI", head)
        place = f.tell()
        yield name, place, n
        f.seek(place + n + n % 2)


def missing_bytes(head, size):
    """How many bytes of sound a WAV file of `size` bytes that begins with `head` lacks of what its header claims. 0 for
    other files, and where writers to a pipe claim what cannot be."""
    for name, place, n in _chunks(io.BytesIO(head)):
        if name == b"data":
            return max(0, place + n - size) if n < 0x7FF00000 else 0
    return 0


def _check_wav(path):
    """MediaError where sound or something else follows the length that a WAV file's header claims: it would be read as
    a shorter recording. Further chunks, tags and padding may follow."""
    size, sound = os.path.getsize(path), None
    with open(path, "rb") as f:
        for name, place, n in _chunks(f):
            if sound is None:
                sound = n if name == b"data" else None
                continue
            rest = size - place + 8
            if sound == 0 or rest <= max(8, min(512, sound // 100)):
                return
            f.seek(place - 8 - sound % 2)  # some writers leave the byte out that makes an odd length even
            odd, following = f.read(sound % 2), f.read(4096)
            if (odd + following)[:4] in (b"LIST", b"id3 "):
                return
            if following[:3] in (b"TAG", b"ID3", b"APE") or rest == len(following) and not any(following):
                return
            if name in (b"data", b"RIFF") or not name.strip(b" _").isalnum() or place + n > size + 1:
                raise MediaError(
                    f"holds {sound} bytes of sound by its header, but {rest} more follow that are no part of it",
                    "write it anew with the true length, or cut off what follows",
                )


def _joined(parts):
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _track(path, start, end, limit):
    """[(wave (T,) float32, rate)] of the first audio track: more than one where its rate changes midway."""
    import av

    with decode.open_container(path) as container:
        if not container.streams.audio:
            raise MediaError("contains no audio track")
        stream = container.streams.audio[0]
        begin = (container.start_time or 0) / av.time_base  # what the container's own clock shows at its beginning
        if start > 0.5 and path.lower().endswith(VIDEO):
            # a little earlier, for the decoder to settle; the rest is cut below
            container.seek(int((start - 0.5 + begin) * av.time_base), backward=True)
        # offset: seconds at which the first part begins
        runs: list[tuple[list, int]] = []
        form: Any = None
        resampler: Any = None
        offset, count = None, 0
        for frame in _frames(container, stream):
            time = None if frame.time is None else frame.time - begin
            if offset is None:
                offset = time or 0.0
            if end is not None and time is not None and time >= end:
                break
            if form != (form := (frame.format.name, frame.layout.name, frame.rate)):
                _check(frame.rate, 0, limit)
                if resampler:
                    runs[-1][0].extend(_mean(part) for part in resampler.resample(None))
                resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.rate)
                if not runs or runs[-1][1] != frame.rate:
                    runs.append(([], frame.rate))
            count += frame.samples
            # what is read before `start` is cut below, and not of the item
            _check(frame.rate, count - max(0, start - offset) * frame.rate, limit)
            frame.pts = None  # gaps are closed as players do; nothing is filled in
            runs[-1][0].extend(_mean(part) for part in resampler.resample(frame))
        if resampler:
            runs[-1][0].extend(_mean(part) for part in resampler.resample(None))
        elif not start:
            raise MediaError("cannot be read as audio (nothing in it can be decoded)")
        return _cut([(_joined(parts), rate) for parts, rate in runs], start, end, offset or 0.0)


def _mean(part):
    return part.to_ndarray().mean(axis=0)


def _frames(container, stream):
    """The frames of a track. What cannot be decoded before the first or behind the last one is passed over, as players
    do: the rest of a cut packet. In between it is a fault, or the recording would be too short."""
    import av

    begun, torn = False, None
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError as e:
            torn = e
            continue
        for frame in frames:
            if begun and torn:
                raise torn
            begun, torn = True, None
            yield frame
    if torn and not begun:
        raise torn


def _cut(runs, start, end, offset):
    """The part from `start` to `end` (seconds) of the runs [(wave, rate)], the first of which begins at `offset`."""
    if not start and end is None:
        return runs
    out, at = [], offset
    for x, rate in runs:
        first = max(0, round((start - at) * rate))
        out.append((x[first : None if end is None else max(first, round((end - at) * rate))], rate))
        at += len(x) / rate
    return out


def has_audio(path):
    """Whether a video has an audio track, by its header alone."""
    optional("av", "reading video")
    try:
        with decode.open_container(str(path)) as container:
            return len(container.streams.audio) > 0
    except Exception as e:
        raise MediaError(f"cannot be read as a video ({reason(e)})") from None
