"""Small files of the true formats for the readers' tests."""

import os
from fractions import Fraction

import numpy as np


def write_clip(path, seconds=1.0, rate=10, sound=True, size=(32, 48), tone=500.0):
    """A video whose frame k is grey of level 20 + 4 k (230 at most); with `sound`, a tone in the right channel."""
    import av

    os.makedirs(os.path.dirname(str(path)) or ".", exist_ok=True)
    n = round(seconds * rate)
    with av.open(str(path), "w") as out:
        video = out.add_stream("mpeg4", rate=rate)
        video.height, video.width, video.pix_fmt, video.bit_rate = *size, "yuv420p", 4_000_000
        audio = out.add_stream("aac", rate=44100, layout="stereo") if sound else None
        for k in range(n):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), min(230, 20 + 4 * k), np.uint8), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        if sound:
            t = np.arange(round(seconds * 44100)) / 44100
            wave = np.stack([0 * t, np.sin(2 * np.pi * tone * t * (1 + (t >= seconds / 2)))]).astype(np.float32)
            for at in range(0, wave.shape[1], 1024):  # the tone doubles half way, so that cuts can be told
                frame = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(wave[:, at : at + 1024]), format="fltp", layout="stereo"
                )
                frame.rate, frame.pts, frame.time_base = 44100, at, Fraction(1, 44100)
                out.mux(audio.encode(frame))
            out.mux(audio.encode())
    return path


def pitch(wave):
    """The strongest frequency of a 16 kHz wave, Hz."""
    return float(np.argmax(np.abs(np.fft.rfft(wave))) * 16000 / len(wave))


def link(source, *targets):
    """Hard links to one file, so that thousands of clips cost nothing."""
    for target in targets:
        os.makedirs(os.path.dirname(str(target)), exist_ok=True)
        os.link(source, target)


def annotations(data, name):
    """The folder of a data set's true annotation in the test data, else the test is skipped and says so."""
    import pytest

    folder = data / "annot" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there (COX_TEST_DATA names the folder of test data)")
    return folder
