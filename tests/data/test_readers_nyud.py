"""cox_oom/data/nyud.py: a small .mat of MATLAB 7.3's form, exported images, the true split and scene list."""

import os

import numpy as np
import pytest
from PIL import Image
from small_media import annotations, link

from cox_oom import data as datasets
from cox_oom.files import UserError

h5py = pytest.importorskip("h5py")
SCENES = ["kitchen", "living_room", "office_kitchen", "home_office", "excercise_room", "dining_room"]


def write_mat(path, scenes, shape=(6, 8), seed=0):
    """images (n, 3, W, H), depths and rawDepths (n, W, H), sceneTypes references to uint16 text, as MATLAB does."""
    rng, (h, w), n = np.random.default_rng(seed), shape, len(scenes)
    images = rng.integers(0, 255, (n, 3, w, h), dtype=np.uint8)
    depths = rng.uniform(1, 9, (n, w, h)).astype(np.float32)
    raw = np.where(rng.random(depths.shape) < 0.2, 0, depths).astype(np.float32)
    with h5py.File(path, "w") as f:
        f["images"], f["depths"], f["rawDepths"] = images, depths, raw
        names = {
            s: f.create_dataset(f"#refs#/{k}", data=np.array([list(map(ord, s))], np.uint16).T)
            for k, s in enumerate(dict.fromkeys(scenes))
        }
        references = f.create_dataset("sceneTypes", (1, n), dtype=h5py.ref_dtype)
        for k, s in enumerate(scenes):
            references[0, k] = names[s].ref
    return images, depths, raw


def write_splits(path, train, test):
    from scipy.io import savemat

    savemat(path, {"trainNdxs": np.array(train)[:, None], "testNdxs": np.array(test)[:, None]})


@pytest.fixture
def root(tmp_path):
    write_mat(tmp_path / "nyu_depth_v2_labeled.mat", SCENES)
    write_splits(tmp_path / "splits.mat", [1, 3, 4, 6], [2, 5])
    return tmp_path


def test_the_mat_file(root):
    images, depths, raw = write_mat(root / "nyu_depth_v2_labeled.mat", SCENES)
    data = datasets.read("nyud", root=str(root))
    assert data.ids == ["0001", "0002", "0003", "0004", "0005", "0006"]
    assert data.split == ["train", "test", "train", "train", "test", "train"]
    assert [data.class_names[k] for k in data.labels] == [
        "kitchen",
        "living room",
        "others",
        "home office",
        "others",
        "dining room",
    ]
    assert data.class_names == sorted(data.class_names) and len(data.class_names) == 10
    x = data.load("rgb", 3)
    assert x.dtype == np.uint8 and x.shape == (3, 6, 8) and x[2, 1, 5] == images[3, 2, 5, 1]
    d = data.load("depth", 4)
    assert d.dtype == np.float32 and d.shape == (1, 6, 8) and d[0, 1, 5] == depths[4, 5, 1]
    assert data.load("language", 1) == "a photo of a living room." and "others" not in data.load("language", 2)
    unfilled = datasets.read("nyud", root=str(root), depth="raw")
    assert (unfilled.load("depth", 0)[0] == raw[0].T).all() and unfilled.fingerprint != data.fingerprint


def test_exported_images(tmp_path):
    rng = np.random.default_rng(0)
    for part, scene, number in (("train", "kitchen", 5), ("train", "study", 6), ("test", "home_office", 7)):
        folder = tmp_path / "official_splits" / part / scene
        folder.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 255, (6, 8, 3), dtype=np.uint8)).save(folder / f"rgb_{number:05d}.jpg")
        Image.fromarray(np.full((6, 8), 1000 * number, np.uint16)).save(folder / f"sync_depth_{number:05d}.png")
    data = datasets.read("nyud", root=str(tmp_path))
    assert data.ids == ["home_office/00007", "kitchen/00005", "study/00006"] and data.split == [
        "test",
        "train",
        "train",
    ]
    assert [data.class_names[k] for k in data.labels] == ["home office", "kitchen", "others"]
    assert data.load("rgb", 1).shape == (3, 6, 8) and (data.load("depth", 1) == 5).all()  # metres
    os.remove(tmp_path / "official_splits" / "train" / "kitchen" / "sync_depth_00005.png")
    assert datasets.read("nyud", root=str(tmp_path)).absent == {"depth": [1]}
    with pytest.raises(UserError, match="depth=raw needs nyu_depth_v2_labeled.mat"):
        datasets.read("nyud", root=str(tmp_path), depth="raw")


def test_what_is_refused(root):
    write_splits(root / "splits.mat", [1, 3], [2, 7])
    with pytest.raises(UserError, match="splits.mat: numbers rows 1 to 7, but .* has 6; "):
        datasets.read("nyud", root=str(root))
    (root / "splits.mat").write_bytes(b"no")
    with pytest.raises(UserError, match="splits.mat: not the official split"):
        datasets.read("nyud", root=str(root))
    os.remove(root / "splits.mat")
    with pytest.raises(UserError, match="splits.mat is not there"):
        datasets.read("nyud", root=str(root))
    write_splits(root / "splits.mat", [1, 3], [2, 4])
    whole = (root / "nyu_depth_v2_labeled.mat").read_bytes()
    (root / "nyu_depth_v2_labeled.mat").write_bytes(whole[:200])
    with pytest.raises(UserError, match="nyu_depth_v2_labeled.mat: not the labelled data set"):
        datasets.read("nyud", root=str(root))


def test_the_true_split(data, tmp_path):
    """795 and 654 rows; a small .mat of 1,449 rooms whose test scenes are those of the public list."""
    annot = annotations(data, "nyuv2")
    (tmp_path / "splits.mat").write_bytes((annot / "splits.mat").read_bytes())
    listed = [line.split()[0] for line in (annot / "nyudepthv2_test_files_with_gt.txt").read_text().splitlines()]
    scenes = ["bedroom"] * 1449
    for path in listed:
        folder, name = path.split("/")
        scenes[int(name[4:9])] = folder  # this list counts from 0
    write_mat(tmp_path / "nyu_depth_v2_labeled.mat", scenes, shape=(4, 6))
    found = datasets.read("nyud", root=str(tmp_path))
    assert [found.split.count(s) for s in datasets.SPLITS] == [795, 0, 654] and found.ids[0] == "0001"
    count = {
        name: sum(k == found.labels[r] for r in range(1449) if found.split[r] == "test")
        for k, name in enumerate(found.class_names)
    }
    assert count == {
        "bedroom": 191,
        "others": 41,
        "kitchen": 106,
        "living room": 107,
        "bathroom": 58,
        "dining room": 55,
        "office": 38,
        "classroom": 23,
        "home office": 24,
        "bookstore": 11,
    }


def test_the_true_list_as_exported_images(data, tmp_path):
    annot = annotations(data, "nyuv2")
    listed = [line.split()[:2] for line in (annot / "nyudepthv2_test_files_with_gt.txt").read_text().splitlines()]
    (tmp_path / "train" / "kitchen").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(tmp_path / "train" / "kitchen" / "rgb_09999.jpg")
    Image.fromarray(np.ones((6, 8), np.uint16)).save(tmp_path / "train" / "kitchen" / "sync_depth_09999.png")
    link(tmp_path / "train" / "kitchen" / "rgb_09999.jpg", *(tmp_path / "test" / rgb for rgb, _ in listed))
    link(tmp_path / "train" / "kitchen" / "sync_depth_09999.png", *(tmp_path / "test" / depth for _, depth in listed))
    found = datasets.read("nyud", root=str(tmp_path))
    assert [found.split.count(s) for s in datasets.SPLITS] == [1, 0, 654] and found.absent == {}
