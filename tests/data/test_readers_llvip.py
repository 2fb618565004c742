"""cox_oom/data/llvip.py: crops of generated images, and of the eight real pairs with annotations made here."""

import os

import numpy as np
import pytest
from PIL import Image
from small_media import annotations

from cox_oom import data as datasets
from cox_oom.data import llvip
from cox_oom.files import UserError


def annotate(root, stem, boxes, size=(160, 128), name="person"):
    things = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax><ymax>{d}</ymax>"
        f"</bndbox></object>"
        for a, b, c, d in boxes
    )
    size = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>" if size else ""
    (root / "Annotations").mkdir(exist_ok=True)
    (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation><folder>x</folder>{size}{things}</annotation>")


def scene(root, part, stem, boxes, size=(160, 128)):
    """Persons are white on black in the visible image, grey in infrared: a background crop is black."""
    for light, level in (("visible", 255), ("infrared", 128)):
        x = np.zeros((size[1], size[0], 3), np.uint8)
        for a, b, c, d in boxes:
            x[b:d, a:c] = level
        (root / light / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x).save(root / light / part / f"{stem}.jpg", quality=100)
    annotate(root, stem, boxes, size)


BOXES = {"010001": [(10, 20, 30, 60), (100, 30, 130, 100)], "010002": [(0, 0, 40, 128)], "190001": [(60, 50, 80, 90)]}


@pytest.fixture
def root(tmp_path):
    for stem, boxes in BOXES.items():
        scene(tmp_path, "test" if stem[0:2] == "19" else "train", stem, boxes)
    return tmp_path


def test_persons_and_equally_sized_backgrounds(root):
    data = datasets.read("llvip", root=str(root))
    assert data.class_names == ["background", "person"] and data.labels == [1, 0] * 4
    assert data.split == ["train"] * 6 + ["test"] * 2 and data.ids[:3] == [
        "010001-person0",
        "010001-background0",
        "010001-person1",
    ]
    assert any("2 train and 1 test images: 4 person crops, 4 background crops" in f for f in data.facts)
    for row, label in enumerate(data.labels):
        visible, thermal = data.load("rgb", row), data.load("thermal", row)
        assert visible.shape == thermal.shape and visible.dtype == np.uint8
        if label:
            assert visible.min() > 200 and abs(int(thermal.max()) - 128) < 40  # the whole box, nothing else
            a, b, c, d = BOXES[data.ids[row][:6]][int(data.ids[row][-1])]
            assert visible.shape == (3, d - b, c - a)
        else:
            assert visible.shape == data.load("rgb", row - 1).shape
            assert np.median(visible) == np.median(thermal) == 0 and (visible > 100).mean() == 0
    assert data.load("language", 0) == "a photo of a person."


def test_the_same_seed_gives_the_same_crops_whatever_else_there_is(root):
    a = datasets.read("llvip", root=str(root))
    scene(root, "train", "000001", [(5, 5, 9, 9)])
    b = datasets.read("llvip", root=str(root))
    assert set(a.cells["rgb"]) < set(b.cells["rgb"]) and a.fingerprint != b.fingerprint
    other = datasets.read("llvip", root=str(root), seed=1)
    moved = [x != y for x, y, k in zip(b.cells["rgb"], other.cells["rgb"], b.labels) if not k]
    assert sum(moved) >= 4 and other.fingerprint != b.fingerprint


def test_crowded_images_and_other_things(root):
    scene(root, "train", "020001", [(0, 0, 100, 128), (90, 0, 160, 128)])  # no free place at all
    annotate(root, "020002", [(1, 1, 9, 9)])  # no image
    scene(root, "train", "020003", [])
    annotate(root, "020003", [(1, 1, 9, 9)], name="car")
    Image.new("RGB", (9, 9)).save(root / "visible" / "test" / "230001.jpg")  # no annotation
    data = datasets.read("llvip", root=str(root))
    assert [i for i in data.ids if i.startswith("02")] == ["020001-person0", "020001-person1"]
    for words in (
        "1 images have no annotation",
        "1 annotations have no image",
        "1 images show no person",
        "2 persons leave no free place",
    ):
        assert any(words in f for f in data.facts), words


def test_boxes_that_leave_the_image_and_a_missing_size(root):
    annotate(root, "190001", [(150, -5, 170, 40)], size=None)
    data = datasets.read("llvip", root=str(root))
    row = data.ids.index("190001-person0")
    assert data.cells["rgb"][row].endswith("::150,0,160,40") and data.load("rgb", row).shape == (3, 40, 10)


def test_few_places_are_all_found():
    rng = np.random.default_rng(0)
    boxes = [(0, 0, 100, 45), (0, 48, 100, 100), (4, 45, 100, 48)]  # only a 3 x 4 hole at the left
    assert {llvip._background(rng, 100, 100, 3, 3, boxes) for _ in range(40)} == {(0, 45, 3, 48), (1, 45, 4, 48)}
    assert llvip._background(rng, 100, 100, 4, 4, boxes) is None


def test_options(root):
    data = datasets.read("llvip", root=str(root), persons="1", template="{}")
    assert (
        data.cells["rgb"][0].endswith("::100,30,130,100")
        and data.ids.count("010001-person0") == 1
        and len(data.ids) == 6
    )
    for k in range(60):
        scene(root, "train", f"03{k:04d}", [(10, 10, 20, 20)])
    parts = {i[:6]: s for i, s in zip(*(lambda d: (d.ids, d.split))(datasets.read("llvip", root=str(root), val=0.3)))}
    assert 8 < list(parts.values()).count("val") < 30 and parts["190001"] == "test"


def test_what_is_refused(root):
    (root / "Annotations" / "010001.xml").write_text("<annotation><object><name>person</name></object></annotation>")
    with pytest.raises(UserError, match="010001.xml: not a VOC annotation"):
        datasets.read("llvip", root=str(root))
    annotate(root, "010001", BOXES["010001"], size=(300, 300))
    os.remove(root / "infrared" / "train" / "010002.jpg")
    data = datasets.read("llvip", root=str(root))
    assert data.absent["thermal"] == [4, 5] and len(data.ids) == 8 and "rgb" not in data.absent
    annotate(root, "010001", [(10, 20, 300, 60)], size=(300, 300))
    data = datasets.read("llvip", root=str(root))
    words = r"010001.jpg \(id 010001-person0\): rgb is 160 x 128, but its annotation reaches 300"
    with pytest.raises(UserError, match=words):
        data.load("rgb", 0)


def test_the_real_pairs(data, tmp_path):
    annot = annotations(data, "llvip")
    pairs = sorted(p for p in (annot / "visible").rglob("*.jpg"))
    for p in pairs:
        for light in ("visible", "infrared"):
            target = tmp_path / light / p.parent.name / p.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(annot / light / p.parent.name / p.name)
        annotate(tmp_path, p.stem, [(200, 300, 260, 460), (640, 400, 700, 590)], size=(1280, 1024))
    found = datasets.read("llvip", root=str(tmp_path))
    assert len(pairs) == 8 and [found.split.count(s) for s in datasets.SPLITS] == [16, 0, 16]
    assert any("4 train and 4 test images: 16 person crops, 16 background crops" in f for f in found.facts)
    for row in range(0, 32, 5):
        a, b = found.load("rgb", row), found.load("thermal", row)
        assert a.shape == b.shape == ((3, 160, 60) if found.ids[row].endswith("0") else (3, 190, 60)) and a.std() > 0
