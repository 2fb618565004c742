"""cox_oom/data/vggs.py: a small imitation, and the true test list with train rows made for it."""

import csv
import os

import numpy as np
import pytest
from small_media import annotations, link, pitch, write_clip

from cox_oom import data as datasets
from cox_oom.data import media
from cox_oom.files import UserError

pytest.importorskip("av")
ROWS = [
    ["-abc_DEFGHI", "1", "people marching", "test"],
    ["aa", "30", "bird chirping, tweeting", "train"],
    ["bb", "185", "playing tennis", "train"],
    ["aa", "40", "people marching", "train"],
]
IDS = ["-abc_DEFGHI_000001", "aa_000030", "bb_000185", "aa_000040"]


def table(path, rows=ROWS):
    with open(path / "vggsound.csv", "w", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows(rows)


@pytest.fixture
def root(tmp_path):
    table(tmp_path)
    for k, i in enumerate(IDS):
        write_clip(tmp_path / "video" / "00" / f"{i}.mp4", sound=k != 3, tone=300.0 + 100 * k)
    return tmp_path


def test_layout_labels_and_items(root):
    data = datasets.read("vggs", root=str(root), frames=2)
    assert data.ids == IDS and data.split == ["test", "train", "train", "train"]
    assert data.class_names == ["bird chirping, tweeting", "people marching", "playing tennis"] and data.labels == [
        1,
        0,
        2,
        1,
    ]
    assert data.modalities == {"video": "video", "audio": "audio", "language": "text"}
    assert data.load("language", 1) == "a video of bird chirping, tweeting."
    assert data.load("video", 0).shape == (2, 3, 32, 48) and abs(pitch(data.load("audio", 2)[:8000]) - 500) < 5
    assert data.cells["audio"][3] is None and any("1 of 4 clips carry no audio" in f for f in data.facts)
    assert any("tells the label" in f for f in data.facts)


def test_wav_beside_the_videos_is_the_audio(root):
    import soundfile

    (root / "audio").mkdir()
    soundfile.write(root / "audio" / f"{IDS[3]}.wav", np.ones(1600, np.float32) / 2, 16000)
    data = datasets.read("vggs", root=str(root))
    assert data.cells["audio"][3] == f"audio/{IDS[3]}.wav" and len(data.load("audio", 3)) == 1600


def test_options(root):
    more = ROWS + [[f"t{k}", "0", ROWS[k % 3][2], "train"] for k in range(30)]
    table(root, more)
    data = datasets.read("vggs", root=str(root), val="0.2", template="{}|the sound of {}", audio="trust")
    assert data.split.count("val") == 6 and data.split[0] == "test"
    assert {s.replace(data.class_names[k], "") for s, k in zip(data.cells["language"], data.labels)} == {
        "",
        "the sound of ",
    }
    other = datasets.read("vggs", root=str(root), val="0.2", template="{}|the sound of {}", audio="trust", seed=1)
    assert other.split != data.split and other.fingerprint != data.fingerprint
    assert data.absent["video"] == list(range(4, 34))


def test_what_is_refused(root):
    os.rename(root / "vggsound.csv", root / "test.csv")
    words = "vggsound.csv is not there.*it alone lists the train rows.*get it from https://"
    with pytest.raises(UserError, match=words):
        datasets.read("vggs", root=str(root))
    table(root, [ROWS[0]])
    with pytest.raises(UserError, match="no train rows"):
        datasets.read("vggs", root=str(root))
    table(root, [*ROWS, ["cc", "x", "y", "train"]])
    with pytest.raises(UserError, match="vggsound.csv, row 5: .* is not YouTube id"):
        datasets.read("vggs", root=str(root))


def test_the_true_test_list(data, tmp_path):
    """15,446 rows of 309 classes; the train rows, one a class, are made here: vggsound.csv was not to be had."""
    annot = annotations(data, "vggsound")
    with open(annot / "test.csv", newline="") as f:
        test = [(name[:-11], int(name[-10:-4]), label) for name, label in csv.reader(f)]
    with open(annot / "stat.csv", newline="") as f:
        classes = [row[0] for row in csv.reader(f)]
    table(
        tmp_path,
        [[i, s, label, "test"] for i, s, label in test]
        + [[f"train{k}", k, label, "train"] for k, label in enumerate(classes)],
    )
    clip = write_clip(tmp_path / "train0_000000.mp4")
    link(clip, *(tmp_path / "videos" / f"{i}_{s:06d}.mp4" for i, s, _ in test[:-1]))
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "FwVYUHKoLtQ_000034.wav").write_bytes((annot / "FwVYUHKoLtQ_000034.wav").read_bytes())
    found = datasets.read("vggs", root=str(tmp_path), audio="trust")
    assert [found.split.count(s) for s in datasets.SPLITS] == [309, 0, 15446]
    assert len(found.class_names) == 309 and found.class_names == sorted(classes)
    assert found.absent["video"] == [15445, *range(15447, 15446 + 309)]
    row = found.ids.index("FwVYUHKoLtQ_000034")
    assert found.cells["audio"][row] == "wav/FwVYUHKoLtQ_000034.wav"
    assert abs(len(found.load("audio", row)) - 10 * media.SAMPLE_RATE) < 200  # a real clip of ten seconds
