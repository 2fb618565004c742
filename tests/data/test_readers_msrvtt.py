"""cox_oom/data/msrvtt.py: a small imitation of the official layouts, and the true annotation with links to one clip."""

import csv
import io
import json
import os
import zipfile

import numpy as np
import pytest
from small_media import annotations, link, pitch, write_clip

from cox_oom import data as datasets
from cox_oom.data import msrvtt
from cox_oom.files import UserError

pytest.importorskip("av")
PART = ["train", "train", "train", "validate", "test", "test"]


def lists(root, name="MSRVTT_data.json", parts=None):
    """The annotation of six videos with 20 captions each, in one file or in the official two."""
    for file, wanted in (parts or {name: range(6)}).items():
        os.makedirs(root, exist_ok=True)
        videos = [
            {
                "video_id": f"video{i}",
                "category": 3 * i,
                "split": PART[i],
                "id": i,
                "url": "",
                "start time": 0.0,
                "end time": 1.0,
            }
            for i in wanted
        ]
        sentences = [
            {"video_id": f"video{i}", "sen_id": 100 - k + 1000 * i, "caption": f"clip {i} said {k} "}
            for k in range(20)
            for i in wanted
        ]
        with open(os.path.join(root, file), "w") as f:
            json.dump({"info": {}, "videos": videos, "sentences": sentences}, f)


@pytest.fixture
def root(tmp_path):
    lists(
        tmp_path / "annotation",
        parts={"train_val_videodatainfo.json": range(4), "test_videodatainfo.json": range(4, 6)},
    )
    for i in range(6):
        folder = "TrainValVideo" if i < 4 else "TestVideo"
        write_clip(tmp_path / folder / f"video{i}.mp4", seconds=1, sound=i != 2, tone=300.0 + 100 * i)
    return tmp_path


def test_official_layout(root):
    data = datasets.read("msrvtt", root=str(root), frames=4)
    assert data.ids == [f"video{i}" for i in range(6)] and data.split == ["train"] * 3 + ["val"] + ["test"] * 2
    assert (
        data.labels == [0, 3, 6, 9, 12, 15] and data.class_names[3] == "sports/actions" and len(data.class_names) == 20
    )
    assert data.modalities == {"video": "video", "audio": "audio", "language": "text"}
    assert data.cells["audio"][2] is None and data.cells["audio"].count(None) == 1
    assert any("1 of 6 clips carry no audio: kept, masked" in f for f in data.facts) and data.absent == {}
    assert data.load("language", 1) == "clip 1 said 19"  # sen_id counts down in this annotation
    assert abs(pitch(data.load("audio", 4)[:8000]) - 700) < 5
    x = data.load("video", 0)
    assert x.shape == (4, 3, 32, 48) and np.abs(x.mean((1, 2, 3)) - (20 + 4 * np.array([1, 3, 6, 8]))).max() < 4
    x = data.load("video", 0, lambda n, fps: [0, n - 1] if (n, fps) == (10, 10.0) else [])
    assert np.abs(x.mean((1, 2, 3)) - [20, 56]).max() < 4


def test_one_folder_and_wav_beside_it(tmp_path):
    """CLIP4Clip's bundle: MSRVTT_data.json and videos/all; extracted sound is taken first."""
    import soundfile

    lists(tmp_path)
    clip = write_clip(tmp_path / "MSRVTT" / "videos" / "all" / "video0.mp4", sound=False)
    link(clip, *(tmp_path / "MSRVTT" / "videos" / "all" / f"video{i}.mp4" for i in range(1, 6)))
    soundfile.write(tmp_path / "video3.wav", np.ones(1600, np.float32) / 2, 16000)
    data = datasets.read("msrvtt", root=str(tmp_path), caption="all", audio="check")
    assert [c for c in data.cells["audio"] if c] == ["video3.wav"] and len(data.load("audio", 3)) == 1600
    assert data.load("language", 0).startswith("clip 0 said 19. clip 0 said 18. ")
    assert datasets.read("msrvtt", root=str(tmp_path), caption="19").load("language", 5) == "clip 5 said 0"
    trusted = datasets.read("msrvtt", root=str(tmp_path), audio="trust")
    assert None not in trusted.cells["audio"] and trusted.fingerprint != data.fingerprint
    with pytest.raises(UserError, match=r"video0.mp4 \(id video0\): audio contains no audio track"):
        trusted.load("audio", 0)


def test_the_9k_split(root):
    (root / "MSRVTT_train.9k.csv").write_text("video_id\nvideo0\nvideo4\nvideo5\n")
    (root / "MSRVTT_JSFUSION_test.csv").write_text("key,vid_key,video_id,sentence\nret0,msr1,video1,its own words\n")
    data = datasets.read("msrvtt", root=str(root), split="9k")
    assert data.ids == ["video0", "video1", "video4", "video5"] and data.split == ["train", "test", "train", "train"]
    assert data.load("language", 1) == "its own words" and data.load("language", 0) == "clip 0 said 19"
    (root / "MSRVTT_train.9k.csv").write_text("video_id\nvideo77\n")
    with pytest.raises(UserError, match="MSRVTT_train.9k.csv: video_id 'video77' is in no"):
        datasets.read("msrvtt", root=str(root), split="9k")


def test_what_is_refused(root):
    with pytest.raises(UserError, match="the option caption is '20'"):
        datasets.read("msrvtt", root=str(root), caption="20")
    os.remove(root / "TestVideo" / "video4.mp4")
    data = datasets.read("msrvtt", root=str(root))
    assert data.absent == {"video": [4], "audio": [4]} and len(data.ids) == 6  # kept: --on-error decides
    (root / "annotation" / "test_videodatainfo.json").write_text('{"videos": []}')
    with pytest.raises(UserError, match="test_videodatainfo.json: not the official list"):
        datasets.read("msrvtt", root=str(root))
    os.remove(root / "annotation" / "test_videodatainfo.json")
    with pytest.raises(UserError, match="test_videodatainfo.json is not there"):
        datasets.read("msrvtt", root=str(root))


@pytest.fixture(scope="module")
def true(data, tmp_path_factory):
    annot = annotations(data, "msrvtt")
    root = tmp_path_factory.mktemp("msrvtt")
    for name in ("train_val_annotation.zip", "test_videodatainfo.json.zip"):
        zipfile.ZipFile(annot / name).extractall(root)
    for name in ("MSRVTT_JSFUSION_test.csv", "MSRVTT_train.9k.csv"):
        (root / name).write_bytes((annot / name).read_bytes())
    clip = write_clip(root / "TrainValVideo" / "video0.mp4")
    silent = write_clip(root / "TestVideo" / "video7010.mp4", sound=False)
    link(clip, *(root / "TrainValVideo" / f"video{i}.mp4" for i in range(1, 7010)))
    link(silent, *(root / "TestVideo" / f"video{i}.mp4" for i in range(7011, 7200)))
    link(clip, *(root / "TestVideo" / f"video{i}.mp4" for i in range(7200, 10000)))
    return root


def test_the_true_annotation(true):
    data = datasets.read("msrvtt", root=str(true))
    assert [data.split.count(s) for s in datasets.SPLITS] == [6513, 497, 2990]
    assert set(data.labels) == set(range(20)) and data.labels[:2] == [9, 16]
    listed = [line.split("\t")[0] for line in (true / "category.txt").read_text().splitlines() if line.strip()]
    assert data.class_names == listed == list(msrvtt.CLASSES)
    assert data.cells["audio"].count(None) == 190 and any("190 of 10,000 clips carry no audio" in f for f in data.facts)
    assert data.absent == {} and all(data.cells["language"])
    assert data.load("video", 9000).shape == (8, 3, 32, 48)
    table = json.load(open(true / "train_val_videodatainfo.json"))["sentences"]
    for row in (0, 17, 6600):
        mine = sorted((s["sen_id"], s["caption"]) for s in table if s["video_id"] == data.ids[row])
        assert len(mine) == 20 and data.load("language", row) == mine[0][1].strip()


def test_the_true_9k_split(true):
    data = datasets.read("msrvtt", root=str(true), split="9k")
    assert [data.split.count(s) for s in datasets.SPLITS] == [9000, 0, 1000]
    rows = list(csv.DictReader(io.StringIO((true / "MSRVTT_JSFUSION_test.csv").read_text())))
    said = {r["video_id"]: r["sentence"] for r in rows}
    assert all(data.cells["language"][r] == said[i] for r, i in enumerate(data.ids) if data.split[r] == "test")
