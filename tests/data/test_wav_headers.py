"""WAV files whose header is wrong about their length: the whole recording, or one line; never silently a part of it."""

import struct

import numpy as np
import pytest
import soundfile
from pets import ROWS, complaint, write

from cox_oom import data as datasets
from cox_oom.data import media

N = 16000
WAVE = np.random.default_rng(0).integers(-20000, 20000, N, dtype=np.int16)

BYTES = WAVE.tobytes()


def chunk(name, data, n=None):
    return name + struct.pack("<I", len(data) if n is None else n) + data


def wav(claimed=None, behind=b"", data=BYTES, riff=None):
    """The bytes of a mono recording at 16 kHz; `claimed`: the length that its header gives."""
    body = b"WAVE" + chunk(b"fmt ", struct.pack("<HHIIHH", 1, 1, 16000, 32000, 2, 16)) + chunk(b"data", data, claimed)
    return chunk(b"RIFF", body + behind, riff)


def load(path, data):
    path.write_bytes(data)
    return media.load_audio(path)


LIST = chunk(b"LIST", b"INFO" + bytes(range(1, 255)) * 4)
BEHIND = [
    b"",
    LIST,
    chunk(b"id3 ", b"ID3" + b"x" * 999),
    chunk(b"_PMX", b"<x>" * 500),
    LIST + chunk(b"cue ", b"x" * 600),
]
BEHIND += [bytes(3000), b"TAG" + b"x" * 125, b"ID3\x04" + b"x" * 2000, b"junk" * 20]


@pytest.mark.parametrize("behind", BEHIND)
def test_chunks_tags_and_padding_may_follow(tmp_path, behind):
    np.testing.assert_array_equal(load(tmp_path / "x.wav", wav(behind=behind)), WAVE / np.float32(32768))


def test_a_length_that_is_odd_without_its_byte_of_padding(tmp_path):
    data = wav(data=WAVE.tobytes()[:-1], behind=LIST)
    assert len(load(tmp_path / "x.wav", data)) == N - 1


PIPED = [0, 0xFFFFFFFF, 0x7FFFFFFF, 0x80000000, 0x7FFFF000, 0xFFFFFFFF - 36]


@pytest.mark.parametrize("claimed", [*PIPED, 2 * N + 2, 4 * N, 2**30])
def test_a_length_beyond_the_end_is_read_to_the_end(tmp_path, claimed):
    np.testing.assert_array_equal(load(tmp_path / "x.wav", wav(claimed)), WAVE / np.float32(32768))


@pytest.mark.parametrize("claimed", [1, 2, 100, N, 2 * N - 600])
@pytest.mark.parametrize("riff", [None, "as claimed"])
def test_a_length_too_short_is_refused(tmp_path, claimed, riff):
    with pytest.raises(media.MediaError, match=f"holds {claimed} bytes of sound by its header, but [0-9]+ more") as e:
        load(tmp_path / "x.wav", wav(claimed, riff=riff and 36 + claimed))
    assert "true length" in e.value.mend
    with soundfile.SoundFile(tmp_path / "x.wav") as f:  # what would have been read
        assert f.frames == claimed // 2 or claimed == 1


@pytest.mark.parametrize("behind", [wav(), chunk(b"data", WAVE.tobytes()), LIST + chunk(b"data", WAVE.tobytes())])
def test_two_recordings_in_a_file_are_refused(tmp_path, behind):
    with pytest.raises(media.MediaError, match="holds 32000 bytes of sound by its header|cannot be read as audio"):
        load(tmp_path / "x.wav", wav(behind=behind))


def sounds(folder, **files):
    """The folder of pets with a column audio in place of rgb: {row id: bytes of a wav}."""
    (folder / "audio").mkdir(parents=True)
    for name in "abcde":
        (folder / f"audio/{name}.wav").write_bytes(files.get(name, wav()))
    rows = [[*r[:3], f"audio/{r[0]}.wav", *r[4:]] for r in ROWS]
    return write(folder, ROWS) and write_rows(folder, rows)


def write_rows(folder, rows):
    lines = ["id,split,label,audio,language,pulse", *(",".join(r) for r in rows)]
    (folder / "manifest.csv").write_text("\n".join(lines) + "\n")
    return folder


def test_a_folder_tells_file_row_and_mend(tmp_path):
    folder = sounds(tmp_path, b=wav(N))
    complaint(folder, "row 3 (id b)", "'audio/b.wav' holds 16000 bytes", "write it anew", load=("audio", 1))
    assert len(datasets.read(str(folder)).load("audio", 0)) == N


def test_recordings_that_were_cut_are_told_once(tmp_path):
    folder = sounds(tmp_path, b=wav()[:20000], d=wav()[:30000], e=wav(0xFFFFFFFF))
    data = datasets.read(str(folder))
    assert len(data.load("audio", 1)) == (20000 - 44) // 2
    (fact,) = data.facts
    for part in ("2 of 5 files of audio", "'audio/b.wav' in row 3, 12044 bytes short", "copy them anew"):
        assert part in fact, fact
