"""cox_oom/data/media.py: decoders on small files of the true formats; inputs.py: the learner's inputs."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from cox_oom.files import UserError
from cox_oom.data import inputs, media
from small_media import pitch, write_clip

SETTINGS = settings(max_examples=40, deadline=None)


# ---------------------------------------------------------------- images

def test_image_modes(tmp_path):
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 255, (5, 7, 3), dtype=np.uint8)
    grey = rgb[..., 0]
    images = {"rgb": Image.fromarray(rgb), "grey": Image.fromarray(grey),
              "rgba": Image.fromarray(np.dstack([rgb, grey])),
              "la": Image.merge("LA", [Image.fromarray(grey), Image.new("L", (7, 5), 9)]),
              "bit": Image.fromarray(grey > 128)}
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
    assert media.load_image(tmp_path / "y.png", "depth").dtype == np.uint8      # 8 bits: no unit known


def test_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (20, 10)).save(tmp_path / "x.jpg", exif=exif)
    assert media.load_image(tmp_path / "x.jpg").shape == (3, 20, 10)


# ---------------------------------------------------------------- audio

soundfile = pytest.importorskip("soundfile")


@pytest.mark.parametrize("extension", [".wav", ".flac", ".ogg", ".mp3"])
@pytest.mark.parametrize("rate", [8000, 16000, 44100])
def test_audio_formats_and_rates(tmp_path, extension, rate):
    """A 500 Hz tone of half a second stays one, whatever the container, rate and channels."""
    t = np.arange(rate // 2) / rate
    tone = 0.5 * np.sin(2 * np.pi * 500 * t)
    soundfile.write(tmp_path / f"x{extension}", np.stack([1.5 * tone, 0.5 * tone], 1), rate)
    x = media.load_audio(tmp_path / f"x{extension}")
    assert x.dtype == np.float32 and x.ndim == 1 and abs(len(x) - 8000) <= 1200     # mp3 pads its frames
    spectrum = np.abs(np.fft.rfft(x))
    assert abs(np.argmax(spectrum) * 16000 / len(x) - 500) < 5
    assert abs(np.sqrt(2 * np.mean(x[2000:6000] ** 2)) - 0.5) < 0.05                # mean of the two channels


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


def test_log_mel_places_a_tone():
    t = np.arange(16000) / 16000
    low, high = (inputs.log_mel(0.3 * np.sin(2 * np.pi * f * t), 64) for f in (300, 3000))
    assert low.shape == (64, 98) and low.dtype == np.float32                        # 1 + (16000 - 400) // 160
    assert low.mean(1).argmax() < 20 < 35 < high.mean(1).argmax()
    assert np.isfinite(inputs.log_mel(np.zeros(16000))).all()
    assert inputs.log_mel(np.ones(1), 8).shape == (8, 1)                             # padded to one window


# ---------------------------------------------------------------- video

av = pytest.importorskip("av")


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


@pytest.mark.parametrize("name, codec", [("x.mp4", "mpeg4"), ("x.avi", "mpeg4"), ("x.mkv", "mpeg4"),
                                         ("x.mov", "mpeg4"), ("x.mp4", "libx264"), ("x.webm", "libvpx")])
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


@pytest.mark.parametrize("name, codec", [("x.mp4", "mpeg4"), ("x.mkv", "mpeg4"), ("x.avi", "mpeg4"), ("x.mp4", "libx264")])
def test_frames_are_asked_for_by_number_and_time(tmp_path, name, codec):
    """400 frames at 10 a second, the grey of a frame tells its ten: also far from the beginning, behind key frames."""
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    path = clip(tmp_path / name, 400, codec)
    grey = lambda k: 20 + 200 * np.array(k) // 400
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
    assert len(media.load_video(path, 2, start=39.95, end=39.96)) == 2          # never no frame at all
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
    assert abs(np.sqrt(2 * np.mean(x[8000:40000] ** 2)) - 0.5) < 0.03                   # the mean of the two channels
    for start, end in ((0, 2), (2.5, 3.5), (4, 5), (-1, 1)):
        part, whole = media.load_audio(path, start, end), x[round(max(0, start) * 16000):]
        assert len(part) == round((end - max(0, start)) * 16000)
        lag = [np.abs(part[20:-20] - whole[20 + k:][:len(part) - 40]).mean() for k in range(-16, 17)]
        assert min(lag) < 0.02                  # the same sound, to the millisecond that mkv's clock knows
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


def test_a_part_of_a_wav(tmp_path):
    ramp = np.arange(8000, dtype=np.float32) / 8000
    soundfile.write(tmp_path / "x.wav", ramp, 16000, subtype="FLOAT")
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", 0.1, 0.3), ramp[1600:4800])
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", -2, 0.3), ramp[:4800])
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.wav", 0.4, 9), ramp[6400:])
    for start, end in ((0.5, 0.6), (7, 8), (0.2, 0.1)):
        with pytest.raises(media.MediaError, match="no audio samples from second"):
            media.load_audio(tmp_path / "x.wav", start, end)


@given(n=st.integers(1, 1000), count=st.integers(1, 64))
def test_even_indices(n, count):
    picked = media.even_indices(n, count)
    assert len(picked) == count and picked == sorted(picked) and 0 <= picked[0] and picked[-1] < n
    if n >= count:
        assert len(set(picked)) == count and abs(picked[0] - (n - 1 - picked[-1])) <= 1     # centred


# ---------------------------------------------------------------- learner inputs

def test_images_are_resized_on_the_short_side_and_cropped():
    raw = np.zeros((3, 40, 60), np.uint8)
    raw[:, :, 10:50] = 200                                    # the middle 40 x 40
    out = inputs.learner_inputs("image", [raw], [True], image_size=20)
    assert out["kind"] == "image" and out["x"].shape == (1, 3, 20, 20) and out["x"].dtype == torch.uint8
    assert (out["x"] == 200).all() and out["lengths"] is None
    up = inputs.learner_inputs("image", [raw], [True], image_size=80)["x"]
    assert up.shape == (1, 3, 80, 80) and (up == 200).all()
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (1, 64, 32))
    small = inputs.learner_inputs("image", [stripes], [True], image_size=8)["x"]
    assert small.dtype == torch.float32 and (small - 0.5).abs().max() < 0.1      # antialiased, not picked


def test_grey_and_colour_images_mix_to_colour():
    rng = np.random.default_rng(0)
    grey, colour = (rng.integers(0, 255, (c, 6, 6), dtype=np.uint8) for c in (1, 3))
    for raws in ([grey, colour, grey], [colour, grey, grey], [grey, grey, colour]):
        out = inputs.learner_inputs("image", iter(raws), [True] * 3, image_size=6)
        assert out["x"].shape == (3, 3, 6, 6) and out["mean"].shape == (3, 1, 1)
        for x, raw in zip(out["x"], raws):
            assert (x == torch.from_numpy(raw)).all()
        torch.testing.assert_close(out["mean"].flatten(), out["x"].float().mean((0, 2, 3)))
        torch.testing.assert_close(out["std"].flatten(), out["x"].float().std((0, 2, 3), correction=0))
    with pytest.raises(UserError, match="item 1"):
        inputs.learner_inputs("image", [grey, np.zeros((2, 6, 6), np.uint8)], [True] * 2, image_size=6)
    with pytest.raises(UserError, match="item 1"):
        inputs.learner_inputs("image", [grey, np.zeros((1, 6, 6), np.float32)], [True] * 2, image_size=6)


def test_videos():
    raws = [np.full((f, 3, 10, 14), 10 * f, np.uint8) for f in (2, 6)]
    out = inputs.learner_inputs("video", raws, [True, False], image_size=8, frames=4)
    assert out["x"].shape == (2, 3, 4, 8, 8) and out["x"].dtype == torch.uint8
    assert (out["x"][0] == 20).all() and (out["x"][1] == 60).all()
    assert out["mean"].shape == (3, 1, 1, 1) and (out["mean"] == 20).all() and (out["std"] == 1).all()


@SETTINGS
@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=6), channels=st.integers(1, 3),
       limit=st.integers(1, 40), seed=st.integers(0, 99))
def test_series_padding_lengths_and_resampling(lengths, channels, limit, seed):
    rng = np.random.default_rng(seed)
    raws = [rng.standard_normal((channels, t)).astype(np.float32) for t in lengths]
    train = [True] + [bool(b) for b in rng.integers(0, 2, len(raws) - 1)]
    out = inputs.learner_inputs("series", raws, train, series_length=limit)
    x, full = out["x"], min(limit, max(lengths))
    assert x.shape == (len(raws), channels, full) and x.dtype == torch.float32
    valid = out["lengths"].tolist() if out["lengths"] is not None else [full] * len(raws)
    for item, raw, t, v in zip(x, raws, lengths, valid):
        assert 1 <= v <= full and (item[:, v:] == 0).all()
        if max(lengths) <= limit:
            assert v == t
            np.testing.assert_array_equal(item[:, :v], raw)
        else:                                                  # the same factor for all
            assert abs(v - t * limit / max(lengths)) < 1
            assert item[:, :v].min() >= raw.min() - 1e-6 and item[:, :v].max() <= raw.max() + 1e-6
            if t % v == 0:
                np.testing.assert_allclose(item[:, :v].mean(1), raw.mean(1), atol=1e-5)
    assert (out["lengths"] is None) == (len(set(valid)) == 1)
    train_valid = [v for v, is_train in zip(valid, train) if is_train]
    assert out["mean"].shape == out["std"].shape == (channels, full if set(train_valid) == {full} else 1)
    again = inputs.learner_inputs("series", iter(raws), train, series_length=limit)
    assert torch.equal(again["x"], x) and torch.equal(again["mean"], out["mean"])


@SETTINGS
@given(x=arrays(np.float32, (6, 2, 3), elements=st.floats(-2.0 ** 99, 2.0 ** 99, width=32)))
def test_statistics_come_from_train_alone_and_stay_finite(x):
    train = [True, True, False, True, True, False]
    out = inputs.learner_inputs("series", list(x), train)
    changed = x.copy()
    changed[[2, 5]] = 7
    other = inputs.learner_inputs("series", list(changed), train)
    assert torch.equal(out["mean"], other["mean"]) and torch.equal(out["std"], other["std"])
    t = x[[0, 1, 3, 4]].astype(np.float64)
    np.testing.assert_allclose(out["mean"], t.mean(0), rtol=1e-5, atol=1e-6 * max(1, np.abs(t).max()))
    z = (torch.from_numpy(x[[0, 1, 3, 4]]) - out["mean"]) / out["std"]
    assert torch.isfinite(z).all() and (out["std"] > 0).all()
    live = t.std(0) > 1e-5 * np.abs(t).max(0).clip(1e-19)
    np.testing.assert_allclose(z.double().std(0, correction=0).numpy()[live], 1, rtol=1e-2)


def test_statistics_of_ragged_series_ignore_padding():
    raws = [np.full((1, 4), 2.0, np.float32), np.full((1, 2), 5.0, np.float32)]
    out = inputs.learner_inputs("series", raws, [True, True])
    assert out["lengths"].tolist() == [4, 2] and out["mean"].shape == (1, 1)
    np.testing.assert_allclose([out["mean"].item(), out["std"].item()], [3.0, 2 ** 0.5], rtol=1e-6)
    longer_test = inputs.learner_inputs("series", [*raws[1:], raws[0]], [True, False])
    assert longer_test["mean"].tolist() == [[5.0]] and longer_test["std"].tolist() == [[1.0]]


def test_audio_becomes_log_mel_series():
    rng = np.random.default_rng(0)
    waves = [rng.standard_normal(n).astype(np.float32) for n in (16000, 8000, 100)]
    out = inputs.learner_inputs("audio", waves, [True, True, False], mels=40)
    assert out["kind"] == "series" and out["x"].shape == (3, 40, 98)
    assert out["lengths"].tolist() == [98, 48, 1]
    assert out["mean"].shape == (40, 1)
    np.testing.assert_array_equal(out["x"][1, :, :48], inputs.log_mel(waves[1], 40))
    short = inputs.learner_inputs("audio", waves, [True, True, False], mels=40, series_length=49)
    assert short["x"].shape == (3, 40, 49) and short["lengths"].tolist() == [49, 24, 1]


@SETTINGS
@given(st.lists(st.text(max_size=400), min_size=1, max_size=5))
def test_text_bytes(texts):
    out = inputs.learner_inputs("text", texts, [True] * len(texts))
    x = out["x"]
    assert x.dtype == torch.uint8 and x.shape[1] <= inputs.TEXT_BYTES and out["mean"] is out["std"] is None
    lengths = out["lengths"].tolist() if out["lengths"] is not None else [x.shape[1]] * len(texts)
    for row, n, text in zip(x, lengths, texts):
        assert (row[:n] > 0).all() and (row[n:] == 0).all()
        clean = text.replace("\0", "").encode("utf-8", errors="replace").decode("utf-8")
        assert clean.startswith(bytes(row[:n].tolist()).decode("utf-8"))     # cut on a character boundary
        assert n > inputs.TEXT_BYTES - 4 or len(clean.encode()) == n


def test_misuse():
    for kind, raws in (("image", [np.zeros((1, 4, 4), np.uint8)]), ("image", [None]), ("series", [None]), ("audio", [None]),
                       ("video", [None])):
        with pytest.raises(inputs.NoTrainItem, match="no train item"):
            inputs.learner_inputs(kind, raws, [raws[0] is None], image_size=4)
    with pytest.raises(UserError, match="item 1: 3 channels, the first one has 2"):
        inputs.learner_inputs("series", [np.zeros((c, 3), np.float32) for c in (2, 3)], [True, True])
    with pytest.raises(ValueError, match="kind"):
        inputs.learner_inputs("smell", [1], [True])
