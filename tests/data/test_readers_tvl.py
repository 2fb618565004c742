"""cox_oom/data/tvl.py: small csv of both parts, what is cropped and turned, the 402 real test rows in csv."""

import csv
import json
import math
import os

import numpy as np
import pytest
from PIL import Image
from small_media import annotations, link

from cox_oom import data as datasets
from cox_oom.data import tvl
from cox_oom.files import UserError

HCT = ["url", "tactile", "tactile_background", "caption"]
FILES = {
    "hct/data1/train.csv": [
        HCT,
        ["0-17/vision/1-0.5.jpg", "0-17/tactile/1-0.5.jpg", "b.jpg", "Smooth, hard."],
        ["0-17/vision/2-0.5.jpg", "0-17/tactile/2-0.5.jpg", "b.jpg", "hard,smooth"],
        ["0-17/vision/3-0.5.jpg", "0-17/tactile/3-0.5.jpg", "b.jpg", "hard, odd"],
    ],
    "hct/data1/test.csv": [HCT, ["0-18/vision/1-0.5.jpg", "0-18/tactile/1-0.5.jpg", "b.jpg", "smooth, hard, smooth,"]],
    "hct/data2/train.csv": [HCT],
    "hct/data2/test.csv": [HCT],
    "hct/data3/train.csv": [
        ["vision", "tactile", "background", "caption"],
        ["4/vision/1.jpg", "4/tactile/1.jpg", "b.jpg", "soft"],
    ],
    "hct/data3/test.csv": [HCT, ["5/vision/1.jpg", "5/tactile/1.jpg", "b.jpg", "new, soft"]],
    "ssvtp/train.csv": [["url", "caption"], ["images_rgb/image_0_rgb.jpg", "soft"]],
    "ssvtp/test.csv": [["url", "caption"], ["images_rgb/image_7_rgb.jpg", "soft"]],
}


def write(root, files=FILES, images=True):
    for path, rows in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with open(root / path, "w", newline="") as f:
            csv.writer(f).writerows(rows)
        for row in rows[1:] if images else []:
            tactile = row[1] if path.startswith("hct") else row[0].replace("rgb", "tac")
            photo(root / os.path.dirname(path) / row[0], (640, 480))
            photo(root / os.path.dirname(path) / tactile, (32, 24))
    return root


def photo(path, size):
    """Red grows to the right, green to the bottom: a pixel tells where it was."""
    w, h = size
    x = np.zeros((h, w, 3), np.uint8)
    x[..., 0], x[..., 1] = np.arange(w) * 255 // (w - 1), np.arange(h)[:, None] * 255 // (h - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, quality=100, subsampling=0)


@pytest.fixture
def root(tmp_path):
    return write(tmp_path)


def test_rows_of_both_parts(root):
    data = datasets.read("tvl", root=str(root))
    assert data.split == ["train"] * 5 + ["test"] * 3
    assert data.ids[0] == "hct/data1/0-17/tactile/1-0.5" and data.ids[4] == "ssvtp/images_tac/image_0_tac"
    assert data.cells["rgb"][4:8:3] == ["ssvtp/images_rgb/image_0_rgb.jpg", "ssvtp/images_rgb/image_7_rgb.jpg"]
    assert data.class_names == ["hard, smooth", "soft"] and data.labels == [0, 0, -1, 1, 1, 0, -1, 1]
    assert any(f.startswith("2 classes: the adjective sets that train (3) and test (3) share") for f in data.facts)
    assert any(f.startswith("1 of 5 train rows have adjective sets of no class") for f in data.facts)
    assert data.load("language", 1) == "This image gives tactile feelings of hard and smooth."
    assert data.load("language", 3) == "This image gives tactile feelings of soft."
    assert data.modalities == {"tactile": "image", "rgb": "image", "language": "text"} and data.absent == {}
    first = datasets.read("tvl", root=str(root), classes="first", prompt="it feels ")
    assert first.class_names == ["smooth", "soft"] and first.labels == [0, -1, -1, 1, 1, 0, -1, 1]
    assert first.load("language", 0) == "it feels smooth and hard." and first.fingerprint != data.fingerprint


def test_touch_is_squared_and_turned(root):
    x = datasets.read("tvl", root=str(root)).load("tactile", 0)
    plain = datasets.read("tvl", root=str(root), pad="none").load("tactile", 0)
    assert x.shape == (3, 32, 32) and plain.shape == (3, 24, 32)
    assert (x[:, :, :4] == 0).all() and (x[:, :, 28:] == 0).all()  # the bars above and below lie left and right now
    np.testing.assert_array_equal(x[:, ::-1, 4:28].transpose(0, 2, 1), plain)  # against the clock: right became top
    odd = np.arange(15, dtype=np.uint8).reshape(1, 3, 5)
    assert tvl.turned(odd).shape == (1, 5, 5) and tvl.turned(odd)[0, 0].tolist() == [0, 4, 9, 14, 0]


def test_photo_is_cropped_where_the_sensor_is(root):
    data = datasets.read("tvl", root=str(root))
    side = math.ceil(math.sqrt(2) * 0.18 * 640)
    left, middle = (640 - side) // 2, (480 - side) / 2
    for row, top in ((0, 0), (3, 200), (4, middle), (7, middle)):  # data1, data3, ssvtp
        x = data.load("rgb", row)
        assert x.shape == (3, side, side)
        assert abs(x[0, :, 0].mean() - left * 255 / 639) < 3 and abs(x[1, 0].mean() - top * 255 / 479) < 3
    assert datasets.read("tvl", root=str(root), crop="none").load("rgb", 3).shape == (3, 480, 640)
    photo(root / "hct" / "data3" / "4" / "vision" / "1.jpg", (640, 300))
    x = data.load("rgb", 3)
    assert x.shape == (3, side, side) and (x[:, 101:] == 0).all() and x[1, 90].mean() > 200  # below the photo: black
    photo(root / "hct" / "data3" / "4" / "vision" / "1.jpg", (64, 48))
    with pytest.raises(UserError, match="is 64 x 48: the part that hct/data3 crops lies outside"):
        data.load("rgb", 3)


def test_captions_beside_the_photo(root):
    """ssvtp's csv may list photos alone; the words are in text/labels_<number>.txt."""
    (root / "ssvtp" / "train.csv").write_text("url\nimages_rgb/image_0_rgb.jpg\n")
    with pytest.raises(UserError, match="image_0_rgb.jpg has no caption, and .*labels_0.txt is not there"):
        datasets.read("tvl", root=str(root))
    (root / "ssvtp" / "text").mkdir()
    (root / "ssvtp" / "text" / "labels_0.txt").write_text("Soft, warm.\nmore")
    assert datasets.read("tvl", root=str(root)).cells["language"][4].endswith("of soft and warm.")


def test_parts_that_are_not_there(root):
    os.remove(root / "hct" / "data2" / "test.csv")
    data = datasets.read("tvl", root=str(root))
    assert any("hct/data2/test.csv: not there, read without" in f for f in data.facts) and data.split.count("test") == 3
    os.remove(root / "hct" / "data3" / "4" / "tactile" / "1.jpg")
    assert datasets.read("tvl", root=str(root)).absent == {"tactile": [3]}
    moved = root.parent / "other"
    moved.mkdir(exist_ok=True)
    os.rename(root, moved / "tvl_dataset")
    assert datasets.read("tvl", root=str(moved)).absent == {"tactile": [3]}


def test_what_is_refused(root):
    rows = [HCT, ["a.jpg", "b.jpg", "c.jpg", " ., "]]
    write(root, {"hct/data2/test.csv": rows}, images=False)
    with pytest.raises(UserError, match="data2/test.csv, row 2: the caption of a.jpg is empty"):
        datasets.read("tvl", root=str(root))
    write(root, {"hct/data2/test.csv": [HCT, ["a.jpg", "b.jpg"]]}, images=False)
    with pytest.raises(UserError, match="data2/test.csv, row 2: .* lacks the image, the touch or the caption"):
        datasets.read("tvl", root=str(root))
    (root / "hct" / "data2" / "test.csv").write_text("")
    with pytest.raises(UserError, match="data2/test.csv: empty"):
        datasets.read("tvl", root=str(root))


def test_the_real_test_rows(data, tmp_path):
    """402 rows, 334 adjective sets; the train csv are made of the same words in another order."""
    with open(annotations(data, "tvl") / "tvl_llama_results_gpt4v.json") as f:
        records = json.load(f)
    files = {
        f"{part}/{split}.csv": [HCT if part != "ssvtp" else ["url", "caption"]]
        for part in tvl.PARTS
        for split in ("train", "test")
    }
    photo(tmp_path / "a.jpg", (640, 480)), photo(tmp_path / "b.jpg", (320, 240))
    for r in records:
        part = next(p for p in tvl.PARTS if r["image_fp"].startswith(p + "/"))
        rgb, touch = r["image_fp"][len(part) + 1 :], r["tactile_fp"][len(part) + 1 :]
        link(tmp_path / "a.jpg", tmp_path / part / rgb), link(tmp_path / "b.jpg", tmp_path / part / touch)
        files[f"{part}/test.csv"].append([rgb, r["label"]] if part == "ssvtp" else [rgb, touch, "none.jpg", r["label"]])
        words = ", ".join(reversed(r["label"].rstrip(".").split(",")))
        files["hct/data1/train.csv"].append([f"again/{part}/{rgb}", f"again/{part}/{touch}", "none.jpg", words])
        link(tmp_path / "b.jpg", tmp_path / "hct/data1/again" / part / touch)
        link(tmp_path / "a.jpg", tmp_path / "hct/data1/again" / part / rgb)
    write(tmp_path, files, images=False)
    found = datasets.read("tvl", root=str(tmp_path))
    assert [found.split.count(s) for s in datasets.SPLITS] == [402, 0, 402] and found.absent == {}
    assert sum(c.startswith("ssvtp") for c in found.cells["rgb"]) == 46
    assert len(found.class_names) == 334 and min(found.labels) >= 0  # 1 / 334 = 0.3%: the paper's Random row
    words = {w for name in found.class_names for w in name.split(", ")}
    assert len(words) == 70 and "smooth" in words and not any("." in w for w in words)
    assert found.load("tactile", 402).shape == (3, 320, 320) and found.load("rgb", 402).shape == (3, 163, 163)
