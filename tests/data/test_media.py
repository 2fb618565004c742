"""cox_oom/data/media.py: decoders of images, sounds and videos, on small files of the true formats."""

import struct
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_media import pitch, write_clip

from cox_oom.data import inputs, media
from cox_oom.files import MissingLibrary

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")


def test_image_modes(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    images = {
        "rgb": Image.fromarray(rgb),
        "grey": Image.fromarray(grey),
        "rgba": Image.fromarray(np.dstack([rgb, grey])),
        "la": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (7, 5), 9)]),
        "bit": Image.fromarray(grey > 128),
    }
    palette = Image.fromarray(grey % 4)
    palette.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90, 100, 110, 120])
    images["palette"] = palette
    for name, image in images.items():
        image.save(tmp_path / f"{name}.png")
    load = {name: media.load_image(tmp_path / f"{name}.png") for name in images}
    for name, x in load.items():
        assert x.dtype == np.uint8 and x.flags.writeable and x.shape[1:] == (5, 7), name
    np.testing.assert_array_equal(load["rgb"], rgb.transpose(2, 0, 1))
    np.testing.assert_array_equal(load["rgba"], load["rgb"])
    np.testing.assert_array_equal(load["grey"], grey[None])
    np.testing.assert_array_equal(load["la"], grey[None])
    np.testing.assert_array_equal(load["bit"], 255 * (grey[None] > 128))
    np.testing.assert_array_equal(load["palette"][:, 0, 0], np.array([10, 20, 30]) + 30 * (grey[0, 0] % 4))
    with pytest.raises(media.MediaError, match="cannot be read as an image"):
        (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
        media.load_image(tmp_path / "x.png")


def test_other_image_formats(tmp_path):
    rgb = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    for extension in (".jpg", ".bmp", ".webp", ".tif"):
        Image.fromarray(rgb).save(tmp_path / f"x{extension}")
        x = media.load_image(tmp_path / f"x{extension}")
        assert x.shape == (3, 16, 16) and np.abs(x.astype(int) - rgb.transpose(2, 0, 1)).max() < 12
    Image.fromarray(rgb).convert("CMYK").save(tmp_path / "c.jpg")
    assert media.load_image(tmp_path / "c.jpg").shape == (3, 16, 16)
    Image.fromarray(np.array([[0.5, 2.5]], np.float32)).save(tmp_path / "f.tif")
    np.testing.assert_array_equal(media.load_image(tmp_path / "f.tif"), [[[0.5, 2.5]]])
    Image.fromarray(np.array([[0.5, np.nan]], np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(media.MediaError, match="NaN"):
        media.load_image(tmp_path / "f.tif")


def test_sixteen_bits_and_depth_in_metres(tmp_path):
    deep = np.array([[0, 1, 1500], [40000, 65535, 256]], np.uint16)
    Image.fromarray(deep).save(tmp_path / "x.png")
    x = media.load_image(tmp_path / "x.png", "thermal")
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[0], deep)
    np.testing.assert_allclose(media.load_image(tmp_path / "x.png", "depth")[0], deep / 1000, rtol=1e-6)
    Image.fromarray(np.array([[7]], np.uint8)).save(tmp_path / "y.png")
    assert media.load_image(tmp_path / "y.png", "depth").dtype == np.uint8  # 8 bits: no unit known


def write_tiff(path, x, form):
    """A TIFF of x (H, W, C) of any number type; form: 1 unsigned, 2 signed, 3 float. Pillow writes no such."""
    bits, (h, w, n) = 8 * x.itemsize, x.shape
    tags = [(256, w), (257, h), (259, 1), (262, 2 if n > 2 else 1), (277, n), (278, h), (279, x.nbytes)]
    tags += [(338, 2)] if n in (2, 4) else []
    end = 14 + 12 * (len(tags) + 3)
    place = (lambda v, at: v) if n == 1 else (lambda v, at: v * 65537) if n == 2 else (lambda v, at: at)
    entries = [(k, 4 if k == 279 else 3, 1, v) for k, v in tags]
    entries += [(258, 3, n, place(bits, end)), (339, 3, n, place(form, end + 2 * n)), (273, 4, 1, end + 4 * n)]
    data = b"II*\0" + struct.pack("<IH", 8, len(entries))
    data += b"".join(struct.pack("<HHII", *entry) for entry in sorted(entries)) + bytes(4)
    path.write_bytes(data + struct.pack(f"<{2 * n}H", *[bits] * n, *[form] * n) + x.tobytes())


@pytest.mark.parametrize("number", ["uint16", "int16", "uint32", "int32", "float32", "float64"])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_tiffs_keep_their_values_or_are_refused(tmp_path, number, channels):
    """Never rounded to 8 bits, wrapped or cut off."""
    rng = np.random.default_rng(0)
    if number.startswith("float"):
        x = rng.standard_normal((5, 7, channels)).astype(number)
    else:
        x = rng.integers(*(lambda i: (i.min, i.max))(np.iinfo(number)), (5, 7, channels), dtype=number)
    write_tiff(tmp_path / "x.tif", x, {"u": 1, "i": 2, "f": 3}[x.dtype.kind])
    try:
        found = media.load_image(tmp_path / "x.tif")
    except media.MediaError as e:
        assert "\n" not in str(e) and (channels > 1 or number == "float64")
        return
    kept = x[:, :, : {1: 1, 2: 1, 3: 3, 4: 3}[channels]].transpose(2, 0, 1)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, kept.astype(np.float32))


def write_png(path, x, exif=None):
    """A 16-bit PNG of x uint16 (H, W, C), of which Pillow writes only grey ones."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    h, w, n = x.shape
    lines = b"".join(b"\0" + row.astype(">u2").tobytes() for row in x)
    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[n], 0, 0, 0)
    exif = chunk(b"eXIf", exif) if exif else b""
    body = chunk(b"IHDR", head) + exif + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bit_pngs_keep_their_values(tmp_path, channels):
    x = np.random.default_rng(0).integers(0, 65536, (6, 9, channels), dtype=np.uint16)
    write_png(tmp_path / "x.png", x)
    found = media.load_image(tmp_path / "x.png")
    kept = x[:, :, : {1: 1, 2: 1, 3: 3, 4: 3}[channels]].transpose(2, 0, 1)
    assert found.dtype == np.float32 and found.flags.writeable
    np.testing.assert_array_equal(found, kept)
    np.testing.assert_allclose(media.load_image(tmp_path / "x.png", "depth"), kept / 1000, rtol=1e-6)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_deep_colours_is_that_of_shallow_ones(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png", exif=exif)
    write_png(tmp_path / "b.png", rgb.astype(np.uint16), exif.tobytes().removeprefix(b"Exif\0\0"))
    np.testing.assert_array_equal(media.load_image(tmp_path / "a.png"), media.load_image(tmp_path / "b.png"))


def test_a_library_that_is_not_installed_is_no_fault_of_a_file(tmp_path, monkeypatch):
    write_png(tmp_path / "x.png", np.zeros((3, 4, 3), np.uint16))
    soundfile.write(tmp_path / "x.wav", np.zeros(1000), 16000)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    data[40:44] = bytes(4)  # no length: read by av
    (tmp_path / "x.wav").write_bytes(data)
    monkeypatch.setitem(sys.modules, "av", None)
    for load, name in ((media.load_image, "x.png"), (media.load_audio, "x.wav")):
        with pytest.raises(MissingLibrary, match="needs av"):
            load(tmp_path / name)


def test_cases_of_sixteen_bits(cases):
    plain, alpha = (media.load_image(cases / f"depth16{a}.png", "depth") for a in ("", "_alpha"))
    np.testing.assert_array_equal(plain, alpha)
    assert plain.shape == (1, 32, 48) and plain.dtype == np.float32 and 0.4 < plain.min() < plain.max() < 10
    x = media.load_image(cases / "rgb16.png")
    assert x.dtype == np.float32 and x.shape == (3, 32, 48) and 4000 <= x.max() < 4096


@pytest.mark.parametrize("value", [3.4028235e38, -3.4028235e38, 9.969209968386869e36, 1e20, -1e18, np.inf, np.nan])
@pytest.mark.parametrize("name", ["series.npy", "image.npy", "image.tif"])
def test_large_numbers_that_mark_no_data(tmp_path, value, name):
    x = np.random.default_rng(0).normal(size=(1, 6, 7) if "image" in name else (2, 9)).astype(np.float32)
    path = tmp_path / name

    def load(x):
        if name == "image.tif":
            Image.fromarray(x[0]).save(path)
            return media.load_image(path, "thermal")
        np.save(path, x)
        return media.load_array(path)

    np.testing.assert_array_equal(load(x), x)
    np.testing.assert_array_equal(load(x * np.float32(1e15)), x * np.float32(1e15))
    x[0, 2, ...] = value
    with pytest.raises(media.MediaError, match="NaN or Inf" if not np.isfinite(value) else "mark of 'no data'"):
        load(x)


def test_case_of_no_data(cases):
    assert media.load_image(cases / "thermal.tif", "thermal").max() == 35
    with pytest.raises(media.MediaError, match="-3.4e\\+38, a mark of 'no data'"):
        media.load_image(cases / "thermal_nodata.tif", "thermal")


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "x.jpg", exif=exif)
    assert media.load_image(tmp_path / "x.jpg").shape == (3, 20, 10)


@pytest.mark.parametrize("extension", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_audio_formats_and_rates(tmp_path, extension, rate):
    """A 500 Hz tone of half a second stays one, whatever the container, rate and channels."""
    t = np.arange(rate // 2) / rate
    tone = 0.5 * np.sin(2 * np.pi * 500 * t)
    soundfile.write(tmp_path / f"x{extension}", np.stack([1.5 * tone, 0.5 * tone], 1), rate)
    x = media.load_audio(tmp_path / f"x{extension}")
    assert x.dtype == np.float32 and x.ndim == 1 and abs(len(x) - 8000) <= 1200  # mp3 pads its frames
    spectrum = np.abs(np.fft.rfft(x))
    assert abs(np.argmax(spectrum) * 16000 / len(x) - 500) < 5
    assert abs(np.sqrt(2 * np.mean(x[2000:6000] ** 2)) - 0.5) < 0.05  # mean of the two channels


def test_bad_audio(tmp_path):
    soundfile.write(tmp_path / "x.wav", np.zeros(0), 16000)
    with pytest.raises(media.MediaError, match="no audio samples"):
        media.load_audio(tmp_path / "x.wav")
    soundfile.write(tmp_path / "x.wav", np.array([0.0, np.nan]), 16000, subtype="FLOAT")
    with pytest.raises(media.MediaError, match="NaN"):
        media.load_audio(tmp_path / "x.wav")
    (tmp_path / "x.flac").write_bytes(b"noise")
    with pytest.raises(media.MediaError, match="cannot be read as audio"):
        media.load_audio(tmp_path / "x.flac")


def test_a_part_of_a_wav(tmp_path):
    ramp = np.arange(8000, dtype=np.float32) / 8000
    soundfile.write(tmp_path / "x.wav", ramp, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", 0.1, 0.3), ramp[1600:4800])
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", -2, 0.3), ramp[:4800])
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", 0.4, 9), ramp[6400:])
    for start, end in ((0.5, 0.6), (7, 8), (0.2, 0.1)):
        with pytest.raises(media.MediaError, match="no audio samples from second"):
            media.load_audio(tmp_path / "x.wav", start, end)


def test_log_mel_places_a_tone():
    t = np.arange(16000) / 16000
    low, high = (inputs.log_mel(0.3 * np.sin(2 * np.pi * f * t), 64) for f in (300, 3000))
    assert low.shape == (64, 98) and low.dtype == np.float32  # 1 + (16000 - 400) // 160
    assert low.mean(1).argmax() < 20 < 35 < high.mean(1).argmax()
    assert np.isfinite(inputs.log_mel(np.zeros(16000))).all()
    assert inputs.log_mel(np.ones(1), 8).shape == (8, 1)  # padded to one window


def clip(path, n, codec="mpeg4", rate=10):
    """n frames of 32 x 48, each grey of level 20 + 200 i / n."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(n):
            frame = np.full((32, 48, 3), 20 + 200 * i // n, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "name, codec",
    [
        ("x.mp4", "mpeg4"),
        ("x.avi", "mpeg4"),
        ("x.mkv", "mpeg4"),
        ("x.mov", "mpeg4"),
        ("x.mp4", "libx264"),
        ("x.webm", "libvpx"),
    ],
)
def test_video_formats(tmp_path, name, codec):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    x = media.load_video(clip(tmp_path / name, 20, codec), frames=4)
    assert x.shape == (4, 3, 32, 48) and x.dtype == np.uint8
    expected = np.array([20 + 200 * i // 20 for i in (2, 7, 12, 17)])
    assert np.abs(x.mean((1, 2, 3)) - expected).max() < 8


def test_short_and_bad_videos(tmp_path):
    x = media.load_video(clip(tmp_path / "x.mp4", 3), frames=8)
    assert x.shape[0] == 8 and len(np.unique(x.mean((1, 2, 3)).round())) == 3
    whole = (tmp_path / "x.mp4").read_bytes()
    (tmp_path / "x.mp4").write_bytes(whole[:40])
    with pytest.raises(media.MediaError, match="cannot be read as a video"):
        media.load_video(tmp_path / "x.mp4")
    soundfile.write(tmp_path / "x.wav", np.zeros(1600), 16000)
    (tmp_path / "x.wav").rename(tmp_path / "x.mkv")
    with pytest.raises(media.MediaError, match="no video stream"):
        media.load_video(tmp_path / "x.mkv")


@pytest.mark.parametrize(
    "name, codec", [("x.mp4", "mpeg4"), ("x.mkv", "mpeg4"), ("x.avi", "mpeg4"), ("x.mp4", "libx264")]
)
def test_frames_are_asked_for_by_number_and_time(tmp_path, name, codec):
    """400 frames at 10 a second, the grey of a frame tells its ten: also far from the beginning, behind key frames."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = clip(tmp_path / name, 400, codec)

    def grey(k):
        return 20 + 200 * np.array(k) // 400

    seen = []

    def sample(n, fps):
        seen.append((n, round(fps, 3)))
        return [n - 1, 0, 0]

    def check(x, frames):
        assert np.abs(x.mean((1, 2, 3)) - grey(frames)).max() < 6

    check(media.load_video(path, sample=sample), [399, 0, 0])
    check(media.load_video(path, sample=sample, start=30.0, end=36.0), [359, 300, 300])
    check(media.load_video(path, sample=sample, start=30.0), [399, 300, 300])
    check(media.load_video(path, sample=sample, start=-1, end=2.0), [19, 0, 0])
    check(media.load_video(path, 3, start=30.0, end=33.0), [305, 315, 325])
    assert seen == [(400, 10.0), (60, 10.0), (100, 10.0), (20, 10.0)]
    assert len(media.load_video(path, 2, start=39.95, end=39.96)) == 2  # never no frame at all
    check(media.load_video(path, 1, start=80, end=81), [399])
    for bad in ([], [400], [-1]):
        with pytest.raises(ValueError, match="of a clip of 400"):
            media.load_video(path, sample=lambda n, fps: bad)


@pytest.mark.parametrize("extension", [".mp4", ".mkv"])
def test_the_sound_of_a_video(tmp_path, extension):
    """44.1 kHz stereo, a tone in one channel that doubles half way."""
    path = write_clip(tmp_path / f"x{extension}", seconds=6)
    x = media.load_audio(path)
    assert x.dtype == np.float32 and abs(len(x) - 96000) < 400
    assert abs(pitch(x[:40000]) - 500) < 2 and abs(pitch(x[56000:]) - 1000) < 2
    assert abs(np.sqrt(2 * np.mean(x[8000:40000] ** 2)) - 0.5) < 0.03  # the mean of the two channels
    for start, end in ((0, 2), (2.5, 3.5), (4, 5), (-1, 1)):
        part, whole = media.load_audio(path, start, end), x[round(max(0, start) * 16000) :]
        assert len(part) == round((end - max(0, start)) * 16000)
        lag = [np.abs(part[20:-20] - whole[20 + k :][: len(part) - 40]).mean() for k in range(-16, 17)]
        assert min(lag) < 0.02  # the same sound, to the millisecond that mkv's clock knows
    assert abs(len(media.load_audio(path, 5.5, 99)) - 8000) < 400
    with pytest.raises(media.MediaError, match="no audio samples from second 50"):
        media.load_audio(path, 50, 60)
    assert media.has_audio(path) and not media.has_audio(write_clip(tmp_path / f"y{extension}", sound=False))
    with pytest.raises(media.MediaError, match="no audio track"):
        media.load_audio(tmp_path / f"y{extension}")
    (tmp_path / f"z{extension}").write_bytes(b"torn")
    for load in (media.load_audio, media.load_video, media.has_audio):
        with pytest.raises(media.MediaError, match="cannot be read as"):
            load(tmp_path / f"z{extension}")


@given(n=st.integers(1, 1000), count=st.integers(1, 64))
def test_even_indices(n, count):
    picked = media.even_indices(n, count)
    assert len(picked) == count and picked == sorted(picked) and 0 <= picked[0] and picked[-1] < n
    if n >= count:
        assert len(set(picked)) == count and abs(picked[0] - (n - 1 - picked[-1])) <= 1  # centred
