"""MSR-VTT's layout with generated clips, tiny checkpoints in the models' true formats: files to result table."""

import json

import pytest
import tiny_weights
import torch
from small_media import write_clip

import evaluate
import extract_features
import train_connect
import train_explore
from cox_oom import files
from cox_oom.data import msrvtt
from cox_oom.files import Place
from cox_oom.seed import load_banks

pytest.importorskip("av")
pytestmark = pytest.mark.usefixtures("quick")
CATEGORIES = (0, 9, 17)  # music, vehicles, cooking
COUNT = {"train": 27, "validate": 3, "test": 9}
SILENT = ("video3", "video31")  # without an audio track
SMALL = {
    "train_connect": "--width 16 --depth 1 --warmup-epochs 2 --batch 16 --labelled-batch 8 --connect-steps 4 "
    "--labels 0.4",
    "train_explore": "--epochs 2 --batch 16 --labelled-batch 8 --connect-steps 2 --refreshes 1 --method cox",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """39 clips: train_val and test annotation, TrainValVideo/ and TestVideo/; a category has its pitch and words."""
    root, k = tmp_path_factory.mktemp("msrvtt"), 0
    lists = {"train_val": ([], []), "test": ([], [])}
    for split, count in COUNT.items():
        for _ in range(count):
            part, category = "test" if split == "test" else "train_val", CATEGORIES[k % 3]
            write_clip(
                root / ("TestVideo" if part == "test" else "TrainValVideo") / f"video{k}.mp4",
                sound=f"video{k}" not in SILENT,
                tone=300.0 + 400 * (k % 3) + 5 * k,
            )
            video = {"video_id": f"video{k}", "category": category, "split": split, "id": k, "url": ""}
            lists[part][0].append({**video, "start time": 0.0, "end time": 1.0})
            lists[part][1].extend(
                {"video_id": f"video{k}", "sen_id": 20 * k + i, "caption": f"{msrvtt.CLASSES[category]} {k} {i}"}
                for i in range(20)
            )
            k += 1
    for part, (videos, sentences) in lists.items():
        folder = root / f"{part}_annotation"
        folder.mkdir()
        (folder / f"{part}_videodatainfo.json").write_text(
            json.dumps({"info": {}, "videos": videos, "sentences": sentences})
        )
    return root


def write_imagebind(folder):
    pytest.importorskip("tokenizers"), pytest.importorskip("ftfy")
    import tiny_languagebind

    folder.mkdir()
    tiny_weights.imagebind(folder / "imagebind_huge.pth")
    tiny_languagebind.vocabulary(folder, 49408)
    return 8


def write_languagebind(folder):
    pytest.importorskip("transformers"), pytest.importorskip("ftfy")
    import tiny_languagebind

    tiny_languagebind.write(folder, ("image", "video"))
    return 8


@pytest.mark.parametrize("perceptor, write", [("imagebind", write_imagebind), ("languagebind", write_languagebind)])
def test_msrvtt_through_the_four_stages(root, tmp_path, capsys, perceptor, write):
    dim = write(tmp_path / "weights")
    runs = str(tmp_path / "runs")
    common = ["--data", "msrvtt", "--oom", "audio", "--runs", runs, "--perceptor", perceptor, "--device", "cpu"]
    extract_features.main([*common, "--root", str(root), "--weights", str(tmp_path / "weights"), "--workers", "2"])
    out = capsys.readouterr().out
    assert "2 of 39 clips carry no audio: kept, masked" in out and "39 rows (27 train, 3 val, 9 test)" in out
    banks, _ = load_banks(Place(runs, "msrvtt", perceptor, "audio"))
    assert sorted(banks) == ["language", "video"]
    for m, file in banks.items():
        assert file["features"].shape == (39, dim) and file["ids"] == [f"video{k}" for k in range(39)]
        torch.testing.assert_close(file["features"].norm(dim=1), torch.ones(39))
        assert file["meta"]["args"]["role"] == {"language": "text", "video": "video"}[m]
        assert len(file["features"].unique(dim=0)) >= (3 if m == "language" else 1)
    heard = files.load(Place(runs, "msrvtt").inputs("audio"))
    assert len(heard["ids"]) == 37 and not set(SILENT) & set(heard["ids"])
    before = {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.pt")}
    extract_features.main([*common, "--root", str(root), "--weights", str(tmp_path / "weights"), "--force"])
    assert before == {p: p.read_bytes() for p in (tmp_path / "runs").rglob("*.pt")}  # the same bytes again
    train_connect.main([*common, *SMALL["train_connect"].split()])
    train_explore.main([*common, *SMALL["train_explore"].split()])
    evaluate.main(
        ["--data", "msrvtt", "--runs", runs, "--perceptor", perceptor, "--table", "--out", str(tmp_path / "report")]
    )
    record = json.loads((Place(runs, "msrvtt", perceptor, "audio", "semi", 0).folder / "cox.json").read_text())
    assert record["perceptor"] == perceptor and record["oom"] == "audio" and record["metrics"]["n_test"] == 8
    assert set(record["metrics"]["im_head_accuracy"]) == {"language", "video"}
    assert "audio" in (tmp_path / "report" / "table.md").read_text()
