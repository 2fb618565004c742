"""cox_oom/data/official.py: what the six readers share, on a data set of its own."""

import os

import pytest
from small_media import write_clip

from cox_oom import data as datasets
from cox_oom.data import media, official
from cox_oom.files import UserError


def made(root, **changes):
    """A data set of four rows whose one file each is text, through official.finish."""
    part = {
        "ids": list("abcd"),
        "split": ["train", "train", "val", "test"],
        "labels": [0, 1, 0, 1],
        "class_names": ["x", "y"],
        "modalities": {"rgb": "image", "language": "text"},
        "cells": {"rgb": [f"{i}.png" for i in "abcd"], "language": ["p", None, "q", "r"]},
        "fetch": lambda modality, row, sample: (modality, row, sample),
        "sizes": official.tree(root, (".png",)),
        "mend": "get it",
        "settings": {"seed": 0},
        "files": [os.path.join(root, "table.csv")],
    }
    return official.finish("mini", str(root), **{**part, **changes})


@pytest.fixture
def root(tmp_path):
    for i in "abcd":
        (tmp_path / f"{i}.png").write_bytes(b"x" * ord(i))
    (tmp_path / "table.csv").write_text("a,b")
    return tmp_path


def test_a_whole_data_set(root):
    data = made(root)
    assert data.facts == [] and data.absent == {} and data.load("rgb", 2) == ("rgb", 2, None)
    assert data.load("rgb", 2, len) == ("rgb", 2, len) and data.load("language", 3) == "r"
    with pytest.raises(KeyError):
        data.load("language", 1)


def test_missing_files_are_counted_in_one_line_and_refused_when_loaded(root):
    os.remove(root / "b.png"), os.remove(root / "d.png")
    data = made(root)
    assert data.absent == {"rgb": [1, 3]} and data.ids == list("abcd")
    (line,) = data.facts
    assert "rgb: 2 of 4 files are not there, the first is b.png (id b); get it" in line and "--on-error skip" in line
    with pytest.raises(UserError, match=r"b.png \(id b\): the rgb file is not there; get it"):
        data.load("rgb", 1)
    for i in "ac":
        os.remove(root / f"{i}.png")
    with pytest.raises(UserError, match=r"none of the 4 rgb files is there, the first is a.png \(id a\); get it"):
        made(root)


def test_a_broken_file_names_row_and_mend(root):
    def fetch(modality, row, sample):
        raise media.MediaError("is torn")

    with pytest.raises(UserError, match=r"c.png \(id c\): rgb is torn; get the file again"):
        made(root, fetch=fetch).load("rgb", 2)


def test_an_annotation_that_is_not_whole(root):
    with pytest.raises(UserError, match="no test rows"):
        made(root, split=["train"] * 4)
    with pytest.raises(UserError, match="lists a twice"):
        made(root, ids=list("abca"))


def test_fingerprint_covers_annotation_names_sizes_and_options_alone(root, tmp_path_factory):
    first = made(root).fingerprint
    assert made(root).fingerprint == first
    other = tmp_path_factory.mktemp("elsewhere") / "copy"
    os.rename(root, other)
    assert made(other).fingerprint == first  # moving changes nothing
    (other / "c.png").write_bytes(b"y" * ord("c"))
    assert made(other).fingerprint == first  # contents are not read
    prints = {
        first,
        made(other, settings={"seed": 1}).fingerprint,
        made(other, labels=[1, 1, 0, 1]).fingerprint,
        made(other, split=["train", "val", "val", "test"]).fingerprint,
        made(other, ids=list("abce")).fingerprint,
        made(other, cells={"rgb": ["b.png"] * 4, "language": ["p", None, "q", "r"]}).fingerprint,
        made(other, cells={"rgb": [f"{i}.png" for i in "abcd"], "language": ["p", None, "q", "s"]}).fingerprint,
    }
    (other / "c.png").write_bytes(b"yy")
    prints.add(made(other).fingerprint)
    (other / "table.csv").write_text("a,c")
    prints.add(made(other).fingerprint)
    assert len(prints) == 9


def test_tree_and_stems(tmp_path):
    for name in ("b/x.MP4", "a/x.mp4", "a/c/y.wav", "z.txt", ".hidden/w.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"12345")
    os.symlink(tmp_path / "a", tmp_path / "a" / "c" / "back")  # a link that leads back
    os.symlink(tmp_path / "gone", tmp_path / "gone.mp4")
    files = official.tree(str(tmp_path), (".mp4", ".wav"))
    assert files == dict.fromkeys([".hidden/w.mp4", "a/c/y.wav", "a/x.mp4", "b/x.MP4"], 5)
    assert official.by_stem(files) == {"w": ".hidden/w.mp4", "y": "a/c/y.wav", "x": "a/x.mp4"}
    assert official.by_stem(files, (".wav",)) == {"y": "a/c/y.wav"}


def test_annotation_is_found_near_the_root(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "t.csv").write_text("")
    assert official.annotation("mini", str(tmp_path), "s.csv", "t.csv", where="") == str(tmp_path / "a" / "b" / "t.csv")
    (tmp_path / "t.csv").write_text("")
    assert official.annotation("mini", str(tmp_path), "t.csv", where="") == str(tmp_path / "t.csv")
    assert official.annotation("mini", str(tmp_path), "u.csv", where="", optional=True) is None
    with pytest.raises(UserError, match="u.csv is not there, nor in its folders; ask"):
        official.annotation("mini", str(tmp_path), "u.csv", where="ask")


def test_hold_out_takes_a_share_of_each_class_from_train_alone():
    labels = [0] * 40 + [1] * 20 + [2] + [-1] * 10 + [0] * 9
    split = ["train"] * 71 + ["test"] * 9
    out = official.hold_out("mini", split, labels, "0.25", seed=1)
    taken = [r for r, s in enumerate(out) if s == "val"]
    assert [sum(labels[r] == k for r in taken) for k in (-1, 0, 1, 2)] == [0, 10, 5, 0]
    assert out[71:] == ["test"] * 9 and split[:71] == ["train"] * 71
    again = [official.hold_out("mini", split, labels, 0.25, seed=s) for s in (1, 2)]
    assert out == again[0] != again[1]
    assert official.hold_out("mini", split, labels, 0) == split


def test_sentences():
    ids = [str(i) for i in range(40)]
    assert official.sentences("mini", "a {}.", ["cat"] * 40, ids) == ["a cat."] * 40
    two = official.sentences("mini", "a {}. | the {}", ["cat"] * 40, ids)
    assert set(two) == {"a cat.", "the cat"} and two == official.sentences("mini", "a {}.|the {}", ["cat"] * 40, ids)
    assert two != official.sentences("mini", "a {}. | the {}", ["cat"] * 40, ids, seed=1)
    assert two[7:9] == official.sentences("mini", "a {}. | the {}", ["cat"] * 2, ids[7:9])  # whatever else there is
    for bad in ("a cat", "{} and {}", "{0}", "a {}|"):
        with pytest.raises(UserError, match="template"):
            official.sentences("mini", bad, ["cat"], ["1"])


def test_numbers_and_choices_may_come_as_text():
    assert (
        official.number("mini", "frames", "8", 1, 9) == 8 and official.number("mini", "val", ".5", 0, 1, float) == 0.5
    )
    for bad in ("x", "10", 0, "2.5", None):
        with pytest.raises(UserError, match="--data mini: the option frames is .*; give a whole number from 1 to 9"):
            official.number("mini", "frames", bad, 1, 9)
    with pytest.raises(UserError, match="the option val is 'nan'; give a number"):
        official.number("mini", "val", "nan", 0, 1, float)
    with pytest.raises(UserError, match="the option audio is 'no'; give one of check, trust"):
        official.choice("mini", "audio", "no", ("check", "trust"))


def test_which_clips_carry_sound_is_looked_up_once(tmp_path, monkeypatch):
    pytest.importorskip("av")
    root = str(tmp_path)
    write_clip(tmp_path / "a.mp4"), write_clip(tmp_path / "b.mp4", sound=False)
    (tmp_path / "c.mp4").write_bytes(b"torn")
    paths = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    sizes = official.tree(root, (".mp4",))
    expected = {"a.mp4": True, "b.mp4": False, "c.mp4": True}  # what does not open is kept: loading it complains
    assert official.with_sound("mini", root, sizes, paths, "check") == expected
    looked = []
    monkeypatch.setattr(media, "has_audio", lambda path: looked.append(os.path.basename(path)) or True)
    assert official.with_sound("mini", root, sizes, paths, "check") == expected and looked == ["c.mp4"]
    os.remove(tmp_path / "b.mp4"), write_clip(tmp_path / "b.mp4", seconds=2)
    sizes = official.tree(root, (".mp4",))
    assert official.with_sound("mini", root, sizes, paths, "check")["b.mp4"] and "b.mp4" in looked  # another size
    (tmp_path / official.CACHE).write_text("[1")
    assert set(official.with_sound("mini", root, sizes, paths, "check").values()) == {True}
    del looked[:]
    assert set(official.with_sound("mini", root, sizes, paths, "trust").values()) == {True} and not looked


@pytest.mark.parametrize("name", datasets.ROOTED)
def test_flags_of_every_reader(name, tmp_path):
    assert all(isinstance(h, str) and h for h in datasets.options(name).values())
    for given, words in (
        ({}, f"--data {name}: where are its files"),
        ({"root": str(tmp_path / "x")}, "not a folder"),
        ({"root": str(tmp_path), "colour": 1}, f"--data {name}: there is no option colour; it has "),
        ({"root": str(tmp_path)}, f"docs/data/{name}.md|vggsound.csv"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            datasets.read(name, **given)
        assert "\n" not in str(caught.value) and "; " in str(caught.value)
    page = os.path.join(os.path.dirname(datasets.__file__), "..", "..", "docs", "data", f"{name}.md")
    text = open(page, encoding="utf-8").read()
    assert f"--data {name} --root" in text
    for option in datasets.options(name):
        assert f"`{option}`" in text, f"{page} lacks the option {option}"


def test_root_is_for_official_data_sets_alone(tmp_path):
    for data in ("synth", str(tmp_path)):
        with pytest.raises(UserError, match="leave --root .* out"):
            datasets.read(data, root=str(tmp_path))
    assert set(datasets.options(str(tmp_path))) == {"frames", "limit"} and "seed" in datasets.options("synth")


def test_frames_may_be_asked_for_by_number_in_every_reader(tmp_path):
    pytest.importorskip("av"), pytest.importorskip("soundfile")
    from cox_oom.data import synth

    world = datasets.read("synth", n_train=24, n_val=0, n_test=1)
    picked = world.load("video", 3, lambda n, fps: [n - 1, 0])
    assert (picked == world.load("video", 3)[[7, 0]]).all() and world.load("rgb", 3, len).shape == (3, 32, 32)
    synth.write_folder(world, str(tmp_path))
    own = datasets.read(str(tmp_path))
    assert len(own.load("video", 3, lambda n, fps: [0] * (n + 1))) == 9 and own.load("language", 3, len) == world.load(
        "language", 3
    )
