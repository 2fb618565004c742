"""Small files that ask for much: refused in one line, soon, and in little memory."""

import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from pets import complaint, write
from PIL import Image

from cox_oom import data as datasets
from cox_oom.data import decode, media

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")

MEASURED = """
import sys, time
from cox_oom.data import media
begun = time.time()
try:
    getattr(media, sys.argv[1])(sys.argv[2])
except media.MediaError as e:
    print(e, e.mend, sep="; ")
seconds = time.time() - begun
try:  # not getrusage's: a child starts with the peak of its parent there
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
except (OSError, StopIteration):
    peak = 0
print(seconds, peak / 1e6, sep="\\n")
"""


def refused(load, path, *words):
    """The line about a file, which takes less than 10 s and 1 GB."""
    done = subprocess.run([sys.executable, "-c", MEASURED, load, str(path)], capture_output=True, text=True)
    line, seconds, gigabytes = done.stdout.strip().split("\n")
    assert float(seconds) < 10 and float(gigabytes) < 1, (seconds, gigabytes)
    for word in (*words, "--option limit="):
        assert word in line, line


def black(path, size, n=2):
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=10)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        frame = av.VideoFrame(size, size, "yuv420p")
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        for k in range(n):
            frame.pts = k
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def test_a_huge_frame(tmp_path):
    refused("load_video", black(tmp_path / "x.mp4", 8176), "8176 x 8176", "34 megapixels")


def test_a_huge_image(tmp_path):
    Image.new("1", (16000, 16000)).save(tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size < 10**6
    refused("load_image", tmp_path / "x.png", "16000 x 16000", "100 megapixels")


@pytest.mark.parametrize("rate", [2**31 - 1, 10**7])
def test_a_sampling_rate_that_cannot_be(tmp_path, rate):
    soundfile.write(tmp_path / "x.wav", np.zeros(1000), 16000)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[24:28] = rate.to_bytes(4, "little")
    (tmp_path / "x.wav").write_bytes(data)
    refused("load_audio", tmp_path / "x.wav", str(rate), "768000")


def test_what_is_just_below_the_limits_is_read_in_less_than_a_gigabyte(tmp_path):
    """More than the process has without it: a large image is in memory once besides what the decoder has."""
    row, pack = zlib.compressobj(9), []
    for _ in range(9900):
        pack.append(row.compress(bytes(1 + 3 * 9900)))
    (tmp_path / "x.png").write_bytes(png(9900, 9900, 8, b"".join([*pack, row.flush()])))
    assert (tmp_path / "x.png").stat().st_size < 10**6
    used = subprocess.run([sys.executable, "-c", MEASURED, "load_image", str(tmp_path / "x.png")], capture_output=True)
    least = subprocess.run([sys.executable, "-c", MEASURED, "load_image", "nowhere"], capture_output=True)
    peaks = [float(done.stdout.split()[-1]) for done in (used, least)]
    assert 0.29 < peaks[0] - peaks[1] < 1 or not peaks[0]


def png(width, height, bits, data):
    """The bytes of an RGB image of compressed rows."""
    head = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", data), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(d)) + name + d + struct.pack(">I", zlib.crc32(name + d)) for name, d in parts
    )


def test_a_huge_image_of_16_bits(tmp_path):
    (tmp_path / "x.png").write_bytes(png(5900, 5900, 16, b""))
    refused("load_image", tmp_path / "x.png", "5900 x 5900", "33 megapixels")


def test_a_clip_whose_frames_are_huge_together(tmp_path, monkeypatch):
    monkeypatch.setattr(decode, "CLIP_PIXELS", 5 * 64 * 64)
    path = black(tmp_path / "x.mp4", 64, 8)
    assert len(media.load_video(path, 5)) == 5 and len(media.load_video(path, 8, limit=2)) == 8
    with pytest.raises(decode.TooLarge, match="64 x 64; those to take have more than 0 megapixels"):
        media.load_video(path, 6)


def test_hours_of_silence(tmp_path):
    with soundfile.SoundFile(tmp_path / "x.flac", "w", 8000, 1) as f:
        for _ in range(62):
            f.write(np.zeros(8000 * 60, np.int16))
    assert (tmp_path / "x.flac").stat().st_size < 10**6
    refused("load_audio", tmp_path / "x.flac", "8000 samples a second", "too long")


def test_limits_are_raised_by_an_option(tmp_path, monkeypatch):
    write(tmp_path)
    assert len(datasets.read(str(tmp_path)).load("rgb", 0)) == 3
    monkeypatch.setattr(decode, "IMAGE_PIXELS", 40)  # the images have 48
    complaint(tmp_path, "row 2 (id a)", "8 x 6", "--option limit=4", load=("rgb", 0))
    assert len(datasets.read(str(tmp_path), limit="4").load("rgb", 0)) == 3
    for bad in ("0", "much"):
        with pytest.raises(datasets.UserError, match="limit"):
            datasets.read(str(tmp_path), limit=bad)
    monkeypatch.setattr(decode, "VIDEO_FRAMES", 3)
    with pytest.raises(media.MediaError, match="more than 3 frames"):
        media.load_video(black(tmp_path / "x.mp4", 32, 4))
    assert len(media.load_video(tmp_path / "x.mp4", limit=2)) == 8


@pytest.mark.parametrize("form", ["EPS", "PDF", "GIF", "ICO", "PPM"])
def test_other_formats_are_not_opened_whatever_their_name(tmp_path, form):
    """Pillow has Ghostscript draw an EPS."""
    write(tmp_path)
    with open(tmp_path / "rgb/a.png", "wb") as f:
        Image.new("RGB", (8, 8)).save(f, form)
    complaint(tmp_path, "row 2 (id a)", "cannot be read as an image", load=("rgb", 0))


def test_playlists_are_not_followed(tmp_path):
    black(tmp_path / "real.mp4", 32)
    for text in ("#EXTM3U\n#EXTINF:1,\nreal.mp4\n#EXT-X-ENDLIST\n", "ffconcat version 1.0\nfile real.mp4\n"):
        (tmp_path / "x.mp4").write_text(text)
        with pytest.raises(media.MediaError, match="cannot be read as a video"):
            media.load_video(tmp_path / "x.mp4")
