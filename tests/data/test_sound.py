"""cox_oom/data/sound.py: recordings whose header is silent or wrong, or that change midway: whole, at their pitch."""

import io
from fractions import Fraction

import numpy as np
import pytest
from small_media import pitch

from cox_oom.data import inputs, media

av = pytest.importorskip("av")
soundfile = pytest.importorskip("soundfile")


def tone(rate, seconds=1.0, hertz=440.0, channels=1):
    t = np.arange(round(rate * seconds)) / rate
    return np.tile(0.5 * np.sin(2 * np.pi * hertz * t), (channels, 1)).astype(np.float32)


def encoded(codec, container, rate, layout="mono", form="fltp", seconds=1.0):
    """The bytes of a tone of 440 Hz as a writer to a pipe leaves them."""

    class Pipe:  # cannot seek
        def write(self, b):
            self.data += bytes(b)
            return len(b)

    pipe = Pipe()
    pipe.data = bytearray()
    with av.open(pipe, "w", format=container) as out:
        stream = out.add_stream(codec, rate=rate, layout=layout)
        stream.format = form
        wave = tone(rate, seconds, channels=len(stream.layout.channels))
        if form[:3] == "s16":
            wave = (wave * 32767).astype(np.int16)
        if not form.endswith("p"):
            wave = wave.T.reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave), format=form, layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(form, layout, rate, frame_size=stream.frame_size or 1152)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            out.mux(stream.encode(part))
        out.mux(stream.encode())
    return bytes(pipe.data)


def check(path, seconds, slack=0.06):
    x = media.load_audio(path)
    assert x.dtype == np.float32 and abs(len(x) / 16000 - seconds) <= slack, len(x) / 16000
    for part in np.array_split(x[400:-1600], 4):
        assert abs(pitch(part) - 440) < 16000 / len(part) + 1  # everywhere
    return x


def test_cases_of_headers_without_a_length(cases):
    frames = {"vbr_streamed_4s.mp3": (400, 406), "streamed_1s.flac": (98, 98)}
    for name, (least, most) in frames.items():
        assert least <= inputs.log_mel(media.load_audio(cases / name)).shape[1] <= most, name


def test_case_of_a_rate_that_changes(cases):
    check(cases / "rate_changes.mp4", 1.05, 0.06)
    x = media.load_audio(cases / "rate_changes.mp4", 0.25, 0.75)
    assert abs(len(x) - 8000) <= 1 and abs(pitch(x) - 440) <= 2


@pytest.mark.parametrize("rate", [16000, 44100])
@pytest.mark.parametrize(
    "codec, container, extension, form",
    [
        ("flac", "flac", ".flac", "s16"),
        ("libmp3lame", "mp3", ".mp3", "fltp"),
        ("libvorbis", "ogg", ".ogg", "fltp"),
        ("pcm_s16le", "wav", ".wav", "s16"),
    ],
)
def test_written_to_a_pipe(tmp_path, codec, container, extension, form, rate):
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    (tmp_path / f"x{extension}").write_bytes(encoded(codec, container, rate, form=form, seconds=2.0))
    check(tmp_path / f"x{extension}", 2.0, 0.15)


def test_a_wav_whose_header_says_zero(tmp_path):
    soundfile.write(tmp_path / "x.wav", tone(16000)[0], 16000)
    data = bytearray((tmp_path / "x.wav").read_bytes())
    at = data.index(b"data") + 4
    data[at : at + 4] = bytes(4)
    (tmp_path / "x.wav").write_bytes(data)
    assert len(check(tmp_path / "x.wav", 1.0)) == 16000


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_chain_of_two_oggs(tmp_path, subtype):
    parts = []
    for _ in range(2):
        part = io.BytesIO()
        soundfile.write(part, tone(16000)[0], 16000, format="OGG", subtype=subtype)
        parts.append(part.getvalue())
    (tmp_path / "x.ogg").write_bytes(b"".join(parts))
    check(tmp_path / "x.ogg", 2.0)


def test_flac_keeps_every_value(tmp_path):
    x = np.random.default_rng(0).integers(-32768, 32767, 5000, dtype=np.int16)
    soundfile.write(tmp_path / "x.flac", x, 16000)
    np.testing.assert_array_equal(media.load_audio(tmp_path / "x.flac"), x / np.float32(32768))


@pytest.mark.parametrize(
    "first, second",
    [
        ((44100, "mono"), (32000, "mono")),
        ((32000, "stereo"), (44100, "mono")),
        ((44100, "mono"), (44100, "stereo")),
        ((48000, "stereo"), (32000, "stereo")),
    ],
)
def test_streams_that_change_midway(tmp_path, first, second):
    """Two transport streams behind each other: the rate or the channels change."""
    parts = [encoded("mp2", "mpegts", rate, layout, "s16") for rate, layout in (first, second)]
    (tmp_path / "x.mp4").write_bytes(b"".join(parts))
    check(tmp_path / "x.mp4", 2.0, 0.1)


def test_a_chain_whose_rate_changes_is_whole_or_refused(tmp_path):
    parts = []
    for rate in (16000, 22050):
        part = io.BytesIO()
        soundfile.write(part, tone(rate)[0], rate, format="OGG", subtype="VORBIS")
        parts.append(part.getvalue())
    (tmp_path / "x.ogg").write_bytes(b"".join(parts))
    try:
        check(tmp_path / "x.ogg", 2.0)
    except media.MediaError as e:
        assert "cannot be read as audio" in str(e) and "\n" not in str(e)


def test_a_hole_in_the_middle_is_refused_and_a_cut_end_is_not(tmp_path):
    soundfile.write(tmp_path / "x.flac", np.random.default_rng(0).uniform(-0.5, 0.5, 64000), 16000)
    data = (tmp_path / "x.flac").read_bytes()
    (tmp_path / "x.flac").write_bytes(data[: 3 * len(data) // 4])
    assert 44000 <= len(media.load_audio(tmp_path / "x.flac")) <= 49000


@pytest.mark.parametrize("name, seconds", [("vbr_streamed_4s.mp3", 4.05), ("streamed_1s.flac", 1.0)])
@pytest.mark.parametrize("extension", [".wav", ".mp3", ".flac", ".ogg"])
def test_contents_decide_and_not_the_name(cases, tmp_path, name, seconds, extension):
    """Named .wav, the first one was 1.2 s long."""
    (tmp_path / f"x{extension}").write_bytes((cases / name).read_bytes())
    assert abs(len(media.load_audio(tmp_path / f"x{extension}")) / 16000 - seconds) < 0.06


@pytest.mark.parametrize("form, subtype", [("AIFF", "PCM_16"), ("AU", "PCM_24"), ("NIST", "PCM_16"), ("WAV", "GSM610")])
def test_other_formats_named_wav(tmp_path, form, subtype):
    soundfile.write(tmp_path / "x.wav", tone(16000)[0], 16000, format=form, subtype=subtype)
    check(tmp_path / "x.wav", 1.0)
