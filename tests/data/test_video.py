"""cox_oom/data/video.py: frames by the time at which they are shown, turned as a player turns them."""

from fractions import Fraction

import numpy as np
import pytest

from cox_oom.data import media, video
from cox_oom.perceptors import imagebind, preprocess

av = pytest.importorskip("av")


def write(path, stamps, size=(32, 48), greys=None, container=None, turned=None):
    """A clip whose frames are shown at `stamps` (ms), grey of level 20 + k or of `greys`, the top left corner white."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = *size, "yuv420p", 8_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if turned:
            stream.set_display_rotation(turned[0], hflip=turned[1])
        for k, stamp in enumerate(stamps):
            x = np.full((*size, 3), 20 + k if greys is None else greys[k], np.uint8)
            x[: size[0] // 4, : size[1] // 4] = 255
            frame = av.VideoFrame.from_ndarray(x, format="rgb24")
            frame.pts, frame.time_base = stamp, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def greys(x):
    """The level of each frame, away from the white corner."""
    return x[:, 0, x.shape[2] // 2 - 2 : x.shape[2] // 2 + 2, x.shape[3] // 2 - 2 : x.shape[3] // 2 + 2].mean((1, 2))


@pytest.mark.parametrize(
    "name, red, size",
    [
        ("uneven_times", (14, 25, 50, 75, 125, 150, 175, 200), (48, 64)),
        ("size_changes", (10, 34, 60, 85, 110, 135, 159, 185), (48, 64)),
        ("upright", (10, 34, 60, 85, 110, 135, 159, 185), (48, 64)),
        ("turned_90", (10, 34, 60, 85, 110, 135, 159, 185), (64, 48)),
        ("cut_without_recoding", (83, 98, 113, 127, 144, 156, 172, 187), (48, 64)),
    ],
)
def test_cases(cases, name, red, size):
    x = media.load_video(cases / f"{name}.mp4")
    assert x.shape == (8, 3, *size)
    found = (x[:, 0, 16, 8] if name == "turned_90" else x[:, 0, 8, 32]).astype(int)
    assert np.abs(found - red).max() <= 5, found
    if name == "turned_90":  # a quarter turn against the clock takes the mark to the bottom left
        assert (x[:, :, 56:, :6] > 180).all() and (x[:, :, :8].min(1) < 180).all()
        upright = media.load_video(cases / "upright.mp4")
        assert np.abs(np.rot90(upright, axes=(2, 3)).astype(int) - x).max() <= 2


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("name", ["x.mp4", "x.mov"])
def test_rotation_and_mirroring(tmp_path, name, degrees, mirrored):
    path = write(tmp_path / name, range(0, 400, 40), turned=(degrees, mirrored))
    plain = media.load_video(write(tmp_path / f"plain-{name}", range(0, 400, 40)), 2)
    right = np.rot90(plain, degrees // 90, axes=(2, 3))
    right = right[..., ::-1] if mirrored else right
    np.testing.assert_array_equal(media.load_video(path, 2), right)


@pytest.mark.parametrize("name", ["x.mp4", "x.mkv", "x.mov"])
def test_uneven_times(tmp_path, name):
    """25 frames in the first second, then one a second to second 6: frames even over the time."""
    stamps = [*range(0, 1000, 40), *range(1000, 6000, 1000)]
    path = write(tmp_path / name, stamps, greys=[20 + round(s / 30) for s in stamps])
    at = np.array(stamps) / 1000
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
    tick = float(packets[0].time_base)
    finish = max(p.pts for p in packets) * tick + ((packets[-1].duration or 0) * tick or 0.04)
    shown = [at[np.searchsorted(at, (i + 0.5) * finish / 6, side="right") - 1] for i in range(6)]
    assert np.abs(greys(media.load_video(path, 6)) - [20 + round(t * 1000 / 30) for t in shown]).max() < 4
    part = greys(media.load_video(path, 3, start=0.5, end=4.0))  # at 1.08, 2.25 and 3.42 s
    assert np.abs(part - [20 + 1000 / 30, 20 + 2000 / 30, 20 + 3000 / 30]).max() < 4

    def sample(n, fps):
        assert abs(n / fps - finish) < 0.1 and n > len(stamps)
        return [0, round(2.5 * fps), n - 1]

    assert np.abs(greys(media.load_video(path, sample=sample)) - [20, 20 + 2000 / 30, 20 + 5000 / 30]).max() < 4
    x = greys(media.load_video(path, sample=lambda n, fps: preprocess.spread(n, fps, count=8)))
    assert (np.diff(x) >= -1).all() and abs(x[0] - 20) < 4 and x[-1] > 20 + 4900 / 30  # from first to last
    x = greys(media.load_video(path, sample=imagebind.video_frames))  # clips of 2 s that overlap
    begun = [at[np.searchsorted(at, t + 0.03, side="right") - 1] for t in np.arange(5) * (finish - 2) / 4]
    assert np.abs(x[::2] - (20 + 1000 / 30 * np.array(begun))).max() < 5


@pytest.mark.parametrize("rate", [24000 / 1001, 25, 30000 / 1001, 60])
def test_a_constant_rate_is_even_by_number(tmp_path, rate):
    """The clock of mkv rounds to ms; the choice does not see it, and `sample` is told frames and rate."""
    path = write(tmp_path / "x.mkv", [round(1000 * k / rate) for k in range(100)])
    seen = []
    media.load_video(path, sample=lambda n, fps: seen.append((n, fps)) or [0])
    assert seen[0][0] == 100 and abs(seen[0][1] / rate - 1) < 0.02
    assert np.abs(greys(media.load_video(path, 8)) - 20 - np.array(media.even_indices(100, 8))).max() < 3


@pytest.mark.parametrize("second", [(80, 96), (48, 32), (32, 48), (16, 96)])
def test_a_size_that_changes_midway(tmp_path, second):
    """Two transport streams behind each other. The centre square of a frame is its own, whatever the first one's."""
    for k, size in enumerate(((32, 48), second)):
        write(tmp_path / f"{k}.ts", range(1000 * k, 1000 * k + 1000, 40), size, container="mpegts")
    data = b"".join((tmp_path / f"{k}.ts").read_bytes() for k in range(2))
    (tmp_path / "x.mp4").write_bytes(data)
    x = media.load_video(tmp_path / "x.mp4", 4)
    assert x.shape == (4, 3, 32, 48)
    assert np.abs(greys(x) - [26, 38, 26, 38]).max() < 3


def test_a_frame_is_fitted_by_its_centre_square():
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[:, None], (3, 96, 120))
    same = video._fitted(ramp, (96, 120))
    assert same is ramp
    wide, tall = video._fitted(ramp, (48, 90)), video._fitted(ramp, (90, 48))
    assert wide.shape == (3, 48, 90) and tall.shape == (3, 90, 48)
    for square in (wide[:, :, 21:69], tall[:, 21:69]):
        assert np.abs(square[0, :, 20] - np.arange(0.5, 96, 2)).max() <= 1


@pytest.mark.parametrize("formats", [("yuv420p", "yuv444p"), ("yuv444p", "yuv420p"), ("yuv420p", "yuv422p")])
def test_a_pixel_format_that_changes_midway(tmp_path, formats):
    if "libx264" not in av.codecs_available:
        pytest.skip("this PyAV has no libx264")
    data = b""
    for k, pix_fmt in enumerate(formats):
        with av.open(str(tmp_path / "x.ts"), "w", format="mpegts") as out:
            stream = out.add_stream("libx264", rate=25)
            stream.height, stream.width, stream.pix_fmt = 32, 48, pix_fmt
            for _ in range(20):
                x = np.full((32, 48, 3), 60 + 100 * k, np.uint8)
                out.mux(stream.encode(av.VideoFrame.from_ndarray(x, format="rgb24")))
            out.mux(stream.encode())
        data += (tmp_path / "x.ts").read_bytes()
    (tmp_path / "x.mp4").write_bytes(data)
    x = media.load_video(tmp_path / "x.mp4", 4)
    assert x.shape == (4, 3, 32, 48) and np.abs(greys(x) - [60, 60, 160, 160]).max() < 4
