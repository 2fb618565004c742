"""cox_oom/data/mosei.py: small files of the official layouts, and the true label table with links to one clip."""

import csv
import os

import numpy as np
import pytest
from small_media import annotations, link, pitch, write_clip

from cox_oom import data as datasets
from cox_oom.data import mosei
from cox_oom.files import UserError

h5py = pytest.importorskip("h5py")
pytest.importorskip("av")
# video, number, start, end, label6, label7, split, sentiment and six emotions
ROWS = [
    ("_a-1", 0, 0.0, 2.0, 0, 1, 0, (0.3, 0, 0, 0, 0, 0, 0)),
    ("_a-1", 1, 2.0, 4.0, 2, -3, 0, (-2.3, 0, 0, 0.7, 0, 0, 0)),
    ("b_", 0, 1.5, 3.0, 1, 0, 1, (0, 0.3, 0.6, 0, 0, 0.6, 0)),
    ("c", 0, -0.4, 1.0, 5, 3, 2, (3, 0, 0, 0, 0, 0, 0.3)),
    ("d", 0, 0.0, 1.0, 0, 0, 3, (0, 1, 0, 0, 0, 0, 0)),
]
CLIP = {("_a-1", 0): "7", ("_a-1", 1): "3", ("b_", 0): "0", ("c", 0): "1"}  # the segments' own numbers


def write_table(root, rows=ROWS):
    with open(root / "CMU_MOSEI_Labels.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(["", "file", "index", "start", "end", "label2a", "label2b", "label6", "label7", "split"])
        out.writerows([k, v, i, s, e, 1, 1, l6, l7, part] for k, (v, i, s, e, l6, l7, part, _) in enumerate(rows))


def write_csd(root, rows=ROWS):
    videos = {}
    for r in rows:
        videos.setdefault(r[0], []).append(r)
    with h5py.File(root / "CMU_MOSEI_Labels.csd", "w") as f:
        for video, mine in videos.items():
            f[f"All Labels/data/{video}/features"] = np.array([r[7] for r in mine], np.float32)
            f[f"All Labels/data/{video}/intervals"] = np.array([r[2:4] for r in mine])


def write_transcripts(root):
    folder = root / "Raw" / "Transcript" / "Segmented" / "Combined"
    folder.mkdir(parents=True)
    for video, i, start, end, *_ in ROWS[:4]:
        with open(folder / f"{video}.txt", "a") as f:
            f.write(f"{video}___{CLIP[video, i]}___{start}___{end}___words of {video} {i}___ and more\n")


@pytest.fixture
def root(tmp_path):
    """Full videos of six seconds whose tone doubles at the third; sentences of a video are told by what is cut."""
    write_table(tmp_path), write_csd(tmp_path)
    for video in ("_a-1", "b_", "c"):
        write_clip(tmp_path / "Raw" / "Videos" / "Full" / "Combined" / f"{video}.mp4", seconds=6)
    return tmp_path


def test_emotions_and_folds(root):
    data = datasets.read("mosei", root=str(root))
    assert data.ids == ["_a-1_0", "_a-1_1", "b__0", "c_0"] and data.split == ["train", "train", "val", "test"]
    assert [data.class_names[k] for k in data.labels] == ["neutral", "angry", "sad", "fearful"]  # a tie: the first
    assert len(data.class_names) == 7 and data.load("language", 1) == "the person speaking is angry."
    for words in ("1 sentences of", "neutral where all are 0 (1 rows); in 1 rows two or more", "tells the label"):
        assert any(words in f for f in data.facts), words
    assert datasets.read("mosei", root=str(root), classes="emotion6").labels == [0, 2, 1, 5]
    seven = datasets.read("mosei", root=str(root), classes="sentiment7")
    assert [seven.class_names[k] for k in seven.labels] == [
        "weakly positive",
        "highly negative",
        "neutral",
        "highly positive",
    ]
    assert len({data.fingerprint, seven.fingerprint}) == 2 and "sentiment is highly negative" in seven.load(
        "language", 1
    )


def test_full_videos_are_cut(root):
    data = datasets.read("mosei", root=str(root), frames=2)
    assert data.cells["video"][2] == "Raw/Videos/Full/Combined/b_.mp4::1.500-3.000" == data.cells["audio"][2]
    assert data.cells["video"][3].endswith("c.mp4::0.000-1.000")  # some begin before the video
    x = data.load("video", 1)
    assert np.abs(x.mean((1, 2, 3)) - (20 + 4 * np.array([25, 35]))).max() < 4
    x = data.load("video", 1, lambda n, fps: [n - 1])
    assert len(x) == 1 and abs(x.mean() - (20 + 4 * 39)) < 4
    wave = data.load("audio", 1)  # 2...4 s: half of either tone
    assert abs(len(wave) - 32000) < 200 and abs(pitch(wave[:14000]) - 500) < 5 and abs(pitch(wave[18000:]) - 1000) < 5


def test_wav_and_segmented_videos_come_first(root):
    import soundfile

    write_transcripts(root)
    (root / "WAV_16000").mkdir()
    soundfile.write(root / "WAV_16000" / "_a-1.wav", np.arange(64000) / 64000, 16000)
    segmented = root / "Raw" / "Videos" / "Segmented" / "Combined"
    write_clip(segmented / "_a-1_3.mp4", seconds=2, sound=False)
    write_clip(segmented / "_a-1_1.mp4", seconds=2)  # another sentence: segments have numbers of their own
    write_clip(segmented / "b__0.mp4", seconds=1.5, sound=False)
    data = datasets.read("mosei", root=str(root), language="transcript")
    assert [c.split("/")[-1] for c in data.cells["video"]] == [
        "_a-1.mp4::0.000-2.000",
        "_a-1_3.mp4",
        "b__0.mp4",
        "c.mp4::0.000-1.000",
    ]
    assert data.cells["audio"][:3] == ["WAV_16000/_a-1.wav::0.000-2.000", "WAV_16000/_a-1.wav::2.000-4.000", None]
    np.testing.assert_allclose(data.load("audio", 1)[[0, -1]], [0.5, 1], atol=1e-3)
    assert data.load("language", 1) == "words of _a-1 1___ and more" and any(
        "1 of 4 clips carry no audio" in f for f in data.facts
    )


def test_segments_without_transcripts_cannot_be_told_apart(root):
    write_clip(root / "Raw" / "Videos" / "Segmented" / "Combined" / "_a-1_0.mp4", seconds=2)
    data = datasets.read("mosei", root=str(root))
    assert data.cells["video"][0].startswith("Raw/Videos/Full") and any("cannot be told apart" in f for f in data.facts)
    with pytest.raises(UserError, match="language=transcript needs Raw/Transcript"):
        datasets.read("mosei", root=str(root), language="transcript")


def test_the_csd_alone_takes_the_standard_folds(root):
    both = datasets.read("mosei", root=str(root), classes="sentiment7")
    os.remove(root / "CMU_MOSEI_Labels.csv")
    with pytest.raises(UserError, match="cmu_mosei_std_folds.py is not there"):
        datasets.read("mosei", root=str(root))
    (root / "cmu_mosei_std_folds.py").write_text(
        "standard_train_fold = ['_a-1']\nstandard_valid_fold = ['b_']\n"
        "standard_test_fold = ['c', 'never seen']\nraise SystemExit\n"
    )
    alone = datasets.read("mosei", root=str(root), classes="sentiment7")
    assert (alone.ids, alone.split, alone.labels) == (both.ids, both.split, both.labels)
    with pytest.raises(UserError, match="emotion6 is a column of CMU_MOSEI_Labels.csv"):
        datasets.read("mosei", root=str(root), classes="emotion6")
    (root / "cmu_mosei_std_folds.py").write_text("standard_train_fold = open('x')")
    with pytest.raises(UserError, match="not the standard folds"):
        datasets.read("mosei", root=str(root))


def test_rounding_of_sentiment():
    assert [mosei._sentiment(x) - 3 for x in (-5, -2.1, -2, -1.01, -1, -0.1, 0, 0.1, 1, 1.01, 2, 2.01, 3)] == [
        -3,
        -3,
        -2,
        -2,
        -1,
        -1,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_what_is_refused(root):
    write_csd(root, [r for r in ROWS if r[1] == 0])
    with pytest.raises(UserError, match="csd: no sentence of _a-1 from second 2 to 4, which .*csv has"):
        datasets.read("mosei", root=str(root))
    (root / "CMU_MOSEI_Labels.csd").write_bytes(b"no")
    with pytest.raises(UserError, match="csd: not the labels' sequence"):
        datasets.read("mosei", root=str(root))
    os.remove(root / "CMU_MOSEI_Labels.csd")
    with pytest.raises(
        UserError, match="need CMU_MOSEI_Labels.csd.*use --option classes=emotion6 or classes=sentiment7"
    ):
        datasets.read("mosei", root=str(root))
    text = (root / "CMU_MOSEI_Labels.csv").read_text()
    (root / "CMU_MOSEI_Labels.csv").write_text(text.replace("b_,0,1.5", "b_,0,soon"))
    with pytest.raises(UserError, match="CMU_MOSEI_Labels.csv, row 4: not file, index"):
        datasets.read("mosei", root=str(root), classes="sentiment7")


@pytest.fixture(scope="module")
def true(data, tmp_path_factory):
    """The true table; a .csd that agrees with it, where half of the happy sentences have no emotion."""
    annot, root = annotations(data, "mosei"), tmp_path_factory.mktemp("mosei")
    (root / "CMU_MOSEI_Labels.csv").write_bytes((annot / "CMU_MOSEI_Labels.csv").read_bytes())
    with open(annot / "CMU_MOSEI_Labels.csv", newline="") as f:
        table = list(csv.DictReader(f))
    rows = []
    for k, r in enumerate(table):
        strengths = np.zeros(7)
        strengths[0] = int(r["label7"]) - 0.2 * np.sign(int(r["label7"]))
        strengths[1 + int(r["label6"])] = 0 if r["label6"] == "0" and k % 2 else 0.67
        rows.append((r["file"], int(r["index"]), float(r["start"]), float(r["end"]), 0, 0, 0, strengths))
    write_csd(root, rows)
    videos = sorted({r["file"] for r in table})
    clip = write_clip(root / "Raw" / "Videos" / "Full" / "Combined" / f"{videos[0]}.mp4", seconds=1)
    link(clip, *(root / "Raw" / "Videos" / "Full" / "Combined" / f"{v}.mp4" for v in videos[1:]))
    return root


@pytest.mark.parametrize("classes", ["emotion", "emotion6", "sentiment7"])
def test_the_true_table(true, classes):
    data = datasets.read("mosei", root=str(true), classes=classes)
    assert [data.split.count(s) for s in datasets.SPLITS] == [16327, 1871, 4662] and data.absent == {}
    assert len(data.class_names) == (6 if classes == "emotion6" else 7)
    assert set(data.labels) == set(range(len(data.class_names))) and any("399 sentences of" in f for f in data.facts)
    assert len({i.rsplit("_", 1)[0] for i in data.ids}) == 2249 + 300 + 676  # videos
    count = np.bincount(data.labels)
    if classes == "sentiment7":
        assert count[3] == 3538 + 433 + 1025  # neutral of the three folds
    else:
        assert count[1] == 2679 + 349 + 703  # sad
        assert count[0] + (count[6] if classes == "emotion" else 0) == 10180 + 1168 + 2931
