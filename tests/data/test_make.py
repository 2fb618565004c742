"""`python -m cox_oom.check FOLDER --make`: a manifest from folders of files, as a user has them before there is a
table."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cox_oom import check
from cox_oom import data as datasets
from cox_oom.files import UserError


def put(root, *paths):
    """Small files at the paths: an array or a picture, as the extension says."""
    rng = np.random.default_rng(len(paths))
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if path.endswith(".npy"):
            np.save(root / path, rng.standard_normal((2, 5)).astype(np.float32))
        elif path.endswith(".png"):
            Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(root / path)
        else:
            (root / path).write_text("x")
    return root


def made(root, *flags):
    """The rows {id: {column: cell}} of the manifest that --make writes."""
    check.main([str(root), "--make", *flags])
    with open(root / "manifest.csv", newline="") as f:
        return {row["id"]: row for row in csv.DictReader(f)}


def names(*parts, n=10, end=".png"):
    return ["/".join([*parts, f"{k:02}{end}"]) for k in range(n)]


def test_classes(tmp_path, capsys):
    """One modality, named by its kind or by --oom; rows are told apart though each class counts from 00."""
    put(tmp_path, *names("cup"), *names("plate"), *names("_", n=4), "cup/notes.txt", ".hidden/x/a.png")
    rows = made(tmp_path)
    assert list(rows["cup/00"]) == ["id", "split", "label", "rgb"] and len(rows) == 24
    assert all(Path(tmp_path / r["rgb"]).is_file() for r in rows.values())
    assert all(r["label"] == r["rgb"].split("/")[0].replace("_", "") for r in rows.values())
    assert Counter((r["label"], r["split"]) for r in rows.values()) == {
        ("cup", "train"): 8,
        ("cup", "test"): 2,
        ("plate", "train"): 8,
        ("plate", "test"): 2,
        ("", "train"): 4,
    }
    said = capsys.readouterr().out
    assert "20%" in said and "--seed 0" in said and "1 .txt" in said and "at least one other modality than rgb" in said
    data = datasets.read(str(tmp_path))
    assert data.class_names == ["cup", "plate"] and data.modalities == {"rgb": "image"} and not data.absent


def test_the_column_is_named_by_oom(tmp_path):
    put(tmp_path, *names("cup", end=".npy"), *names("plate", end=".npy"))
    assert "sonar" in next(iter(made(tmp_path, "--oom", "sonar").values()))
    assert datasets.read(str(tmp_path)).modalities == {"sonar": "series"}


def test_modalities_with_one_stem_are_pairs(tmp_path):
    """Rows of one modality alone get test rows of their own, so that each modality is judged."""
    put(tmp_path, *names("rgb", "cup", n=20), *names("rgb", "plate", n=20))
    put(tmp_path, *names("sonar", "cup", n=10, end=".npy"), *names("sonar", "unlabelled", n=3, end=".npy"))
    put(tmp_path, "sonar/plate/x.npy", "sonar/plate/y.npy", "sonar/plate/only.npy")
    rows = made(tmp_path)
    assert len(rows) == 20 + 20 + 3 + 3 and rows["only"]["rgb"] == ""
    pairs = [r for r in rows.values() if r["rgb"] and r["sonar"]]
    assert {(r["rgb"], r["sonar"]) for r in pairs} == {
        (f"rgb/cup/{k:02}.png", f"sonar/cup/{k:02}.npy") for k in range(10)
    }
    tested = Counter((r["label"], bool(r["rgb"]), bool(r["sonar"])) for r in rows.values() if r["split"] == "test")
    assert tested == {
        ("cup", True, True): 2,
        ("cup", True, False): 2,
        ("plate", True, False): 4,
        ("plate", False, True): 1,
    }
    assert datasets.read(str(tmp_path)).modalities == {"rgb": "image", "sonar": "series"}


@pytest.mark.parametrize("modality", [(), ("rgb",)])
def test_folders_that_tell_the_split(tmp_path, capsys, modality):
    paths = {s: [p for c in ("cup", "plate") for p in names(s, *modality, c, n=2)] for s in ("train", "val", "test")}
    put(tmp_path, *(p for of in paths.values() for p in of))
    rows = made(tmp_path)
    assert {s: [r["rgb"] for r in rows.values() if r["split"] == s] for s in paths} == paths
    assert "drawn at random" not in capsys.readouterr().out and len(set(rows)) == 12


def test_the_seed_draws_the_test_rows(tmp_path):
    put(tmp_path, *names("cup", n=30), *names("plate", n=30))
    tested = []
    for seed in ("0", "0", "1"):
        (tmp_path / "manifest.csv").unlink(missing_ok=True)
        tested.append({i for i, r in made(tmp_path, "--seed", seed).items() if r["split"] == "test"})
    assert tested[0] == tested[1] != tested[2] and len(tested[2]) == 12


def test_a_manifest_stays_as_it_is(tmp_path):
    put(tmp_path, *names("cup"), *names("plate"))
    (tmp_path / "manifest.csv").write_text("mine")
    with pytest.raises(UserError, match="manifest.csv is there already"):
        made(tmp_path)
    assert (tmp_path / "manifest.csv").read_text() == "mine"


@pytest.mark.parametrize(
    "paths, words",
    [
        (["cup/x.txt"], "no image, sound, video or .npy file"),
        (["a.png", "b.png"], "a.png lies elsewhere"),
        (["cup/a.png", "rgb/cup/a.png"], "rgb/cup/a.png lies elsewhere"),
        (["x/rgb/cup/a.png", "x/rgb/plate/a.png"], "x/rgb/cup/a.png lies elsewhere"),
        (["cup/a.png", "cup/b.npy"], "of two kinds in the one column rgb"),
        (["rgb/a.png", "thermal/a.png"], "named by modality, not by class"),
        (["train/cup/a.png", "val/cup/a.png"], "in train, val alone; give it the folders train and test"),
        (["cup/a.png", "cup/a.jpg"], "cup/a.jpg and cup/a.png would be one cell|cup/a.png and cup/a.jpg"),
        (["audio/cup/a.npy", "rgb/cup/a.png"], "a column audio cannot hold audio/cup/a.npy"),
        (["train/cup/a.png", "test/cup/a.png", "more/cup/a.png"], "more lies beside test, train; move it"),
        (["label/cup/a.npy", "rgb/cup/a.png"], "a column label cannot hold"),
        (["cup/a\n.png", "plate/a.png"], "has a name that no cell can hold"),
        ([" cup/a.png", "plate/a.png"], "has a name that no cell can hold"),
    ],
)
def test_other_layouts_are_refused_in_one_line(tmp_path, paths, words):
    put(tmp_path, *paths)
    with pytest.raises(UserError, match=words) as caught:
        made(tmp_path)
    assert "\n" not in str(caught.value) and not (tmp_path / "manifest.csv").exists()


def test_spaces_within_names_are_kept(tmp_path):
    put(tmp_path, *(f"{c}/{k} a, b.png" for c in ("tea cup ", "plate") for k in range(4)))
    assert all((tmp_path / r["rgb"]).is_file() for r in made(tmp_path).values())
    data = datasets.read(str(tmp_path))
    assert data.class_names == ["plate", "tea cup"] and not data.absent


def test_a_name_that_no_column_can_have(tmp_path):
    with pytest.raises(UserError, match="column name '../x' cannot name a file"):
        made(put(tmp_path, *names("cup"), *names("train")), "--oom", "../x")
    assert made(tmp_path, "--oom", "x")["train/00"]["label"] == "train"  # a class may be called so


def test_oom_must_be_one_of_the_modalities(tmp_path):
    put(tmp_path, *names("rgb", "cup"), *names("sonar", "cup", end=".npy"))
    with pytest.raises(UserError, match="--oom nose: .* has the modalities rgb, sonar"):
        made(tmp_path, "--oom", "nose")
