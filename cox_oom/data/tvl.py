"""TVL, Touch-Vision-Language: DIGIT touch, the image of what is touched, adjectives (docs/data/tvl.md).

--data tvl --root DIR           DIR/hct/data{1,2,3}/{train,test}.csv and DIR/ssvtp/{train,test}.csv with their
                                images
"""

import csv
import io
import math
import os
import re
from typing import Any

import numpy as np

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError

NAME = "tvl"
OPTIONS = {
    "classes": "set (the adjectives of the caption, in any order) or first (its first adjective); default set",
    "crop": "official (the part of the photo around the sensor) or none (the whole photo); default official",
    "pad": "official (touch padded to a square and turned by 90 degrees) or none; default official",
    "prompt": "words before the adjectives in language; default 'This image gives tactile feelings of '",
    "val": "share of the train rows that becomes val, per class (default 0: the official csv have none)",
    "seed": "draws val rows (default 0)",
}
MEND = "docs/data/tvl.md says where to get it"
PARTS = ("hct/data1", "hct/data2", "hct/data3", "ssvtp")
CROP = math.sqrt(2) * 0.18  # side of the crop over the photo's longer side
DOWN = {"hct/data3": 200}  # pixels from the top of the photo


def read(
    root: str,
    classes: str = "set",
    crop: str = "official",
    pad: str = "official",
    prompt: str = "This image gives tactile feelings of ",
    val: float | str = 0,
    seed: int | str = 0,
    **unknown: Any,
) -> Dataset:
    """Dataset with tactile, rgb and language. Rows are those of the csv (contact alone), test after train."""
    official.check_options(NAME, unknown, OPTIONS)
    classes = official.choice(NAME, "classes", classes, ("set", "first"))
    crop = official.choice(NAME, "crop", crop, ("official", "none"))
    pad = official.choice(NAME, "pad", pad, ("official", "none"))
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    rows, files, facts, base = _rows(root)
    prefix = f"{base}/" if base else ""
    cells = {
        "tactile": [f"{prefix}{part}/{tactile}" for part, _, _, tactile, _ in rows],
        "rgb": [f"{prefix}{part}/{rgb}" for part, _, rgb, _, _ in rows],
        "language": [prompt + _enumeration(words) + "." for *_, words in rows],
    }
    split = [row[1] for row in rows]
    names, labels, class_facts = _classes(root, split, [words for *_, words in rows], classes)
    facts += [
        *class_facts,
        f"language: the caption ('{prompt}...') lists the adjectives that make the class: it tells the label",
    ]

    def fetch(modality, row, sample):
        x = media.load_image(os.path.join(root, cells[modality][row]))
        if modality == "tactile":
            return turned(x) if pad == "official" else x
        return touched(x, rows[row][0]) if crop == "official" else x

    return official.finish(
        NAME,
        root,
        ids=[f"{part}/{os.path.splitext(tactile)[0]}" for part, _, _, tactile, _ in rows],
        split=official.hold_out(NAME, split, labels, val, seed),
        labels=labels,
        class_names=names,
        modalities={"tactile": "image", "rgb": "image", "language": "text"},
        cells=cells,
        fetch=fetch,
        sizes=official.tree(root, (".jpg", ".jpeg", ".png")),
        mend=MEND,
        files=files,
        facts=facts,
        settings={"classes": classes, "crop": crop, "pad": pad, "prompt": prompt, "val": float(val), "seed": seed},
    )


def _rows(root):
    """([(part, split, rgb, tactile, adjectives)], paths of the csv, [the fact that some are missing], base).

    base: the folder of the parts, relative to root; rgb and tactile are relative to base/part. UserError where no part
    is there.
    """
    base = next((d for d in ("", "tvl_dataset") if any(os.path.isdir(os.path.join(root, d, p)) for p in PARTS)), None)
    if base is None:
        raise UserError(f"--data tvl --root {root}: neither hct/data1 to hct/data3 nor ssvtp is there; {MEND}")
    rows, files, missing = [], [], []
    for split in ("train", "test"):
        for part in PARTS:
            path = os.path.join(root, base, part, f"{split}.csv")
            if not os.path.isfile(path):
                missing.append(f"{part}/{split}.csv")
                continue
            files.append(path)
            rows += [(part, split, *row) for row in _table(path, part)]
    return rows, files, [f"{' and '.join(missing)}: not there, read without"] if missing else [], base


def _classes(root, split, adjectives, classes):
    """(class names, n labels, facts): the classes are what train and test share; UserError for fewer than 2.

    adjectives: n tuples of words. classes: set or first, see OPTIONS.
    """
    keys = [(", ".join(sorted(set(words))) if classes == "set" else words[0]) for words in adjectives]
    train, test = ({k for k, s in zip(keys, split) if s == part} for part in ("train", "test"))
    names = sorted(train & test)
    if len(names) < 2:
        raise UserError(
            f"--data tvl --root {root}: train and test share {len(names)} classes; use another --option "
            f"classes, or get the whole data set ({MEND})"
        )
    index = {n: k for k, n in enumerate(names)}
    labels = [index.get(k, -1) for k in keys]
    what = "adjective sets" if classes == "set" else "first adjectives"
    facts = [f"{len(names):,} classes: the {what} that train ({len(train):,}) and test ({len(test):,}) share"]
    for part in ("train", "test"):
        count = sum(s == part and k < 0 for s, k in zip(split, labels))
        if count:
            facts.append(f"{count:,} of {split.count(part):,} {part} rows have {what} of no class: kept, unlabelled")
    return names, labels, facts


def _table(path, part):
    """[(rgb, tactile, adjectives)] of a csv, paths relative to its folder; columns by name, else by place."""
    table = [r for r in csv.reader(io.StringIO(official.read_text(path))) if r]
    if not table:
        raise UserError(f"{path}: empty; {MEND}")
    has_header = not re.search(r"\.(jpe?g|png)$", table[0][0].strip(), re.I)
    header = [c.strip().lower() for c in table[0]] if has_header else []
    place = lambda *names: next((header.index(n) for n in names if n in header), None)
    rgb, tactile, caption = place("url", "vision", "image"), place("tactile"), place("caption", "label", "labels")
    rgb = 0 if rgb is None else rgb
    if tactile is None and part != "ssvtp":
        tactile = 1
    if caption is None:
        caption = 1 if part == "ssvtp" and tactile is None else 3 if part != "ssvtp" else None
    out = []
    for line, row in enumerate(table[has_header:], 1 + has_header):
        row = [c.strip() for c in row]
        if (
            len(row) <= max(rgb, tactile or 0)
            or not row[rgb]
            or (caption is not None and part != "ssvtp" and len(row) <= caption)
        ):
            raise UserError(f"{path}, row {line}: {row} lacks the image, the touch or the caption; {MEND}")
        touch = row[tactile] if tactile is not None else _tactile_path(row[rgb])
        text = row[caption] if caption is not None and len(row) > caption else _caption(path, row[rgb])
        words = adjectives(text)
        if not words:
            raise UserError(f"{path}, row {line}: the caption of {row[rgb]} is empty; {MEND}")
        out.append((row[rgb], touch, words))
    return out


def _tactile_path(rgb):
    """ssvtp names the photo alone: images_rgb/image_7_rgb.jpg goes with images_tac/image_7_tac.jpg."""
    return rgb.replace("rgb", "tac")


def _caption(table, rgb):
    """The first line of ssvtp's text/labels_7.txt, for a csv without captions."""
    match = re.search(r"image_(\d+)_rgb", rgb)
    path = os.path.join(os.path.dirname(table), "text", f"labels_{match.group(1) if match else '?'}.txt")
    if not os.path.isfile(path):
        raise UserError(f"{table}: {rgb} has no caption, and {path} is not there; {MEND}")
    return (official.read_text(path).splitlines() or [""])[0]


def adjectives(caption):
    """The adjectives of a caption, in its order: small letters, without full stops, none twice."""
    words = [w.strip() for w in caption.replace(".", "").replace("\n", " ").lower().split(",")]
    return tuple(dict.fromkeys(w for w in words if w))


def _enumeration(words):
    """'a', 'a and b', 'a, b and c'."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def turned(x):
    """(C, H, W) padded with 0 to a square and turned by 90 degrees against the clock, as TVL's encoders see touch."""
    _, h, w = x.shape
    side = max(h, w)
    top, left = (side - h) // 2, (side - w) // 2
    x = np.pad(x, ((0, 0), (top, side - h - top), (left, side - w - left)))
    return np.ascontiguousarray(np.rot90(x, axes=(1, 2)))


def touched(x, part):
    """The square of a photo (C, H, W) where the sensor touches: the middle of ssvtp's, the top middle of hct's.

    The side is ceil(sqrt(2) 0.18 max(H, W)); what lies outside the photo is 0.
    """
    _, h, w = x.shape
    side = math.ceil(CROP * max(h, w))
    top = round((h - side) / 2) if part == "ssvtp" else DOWN.get(part, 0)
    left = round((w - side) / 2) if part == "ssvtp" else (w - side) // 2
    y = np.zeros((len(x), side, side), x.dtype)
    y0, x0, y1, x1 = max(0, top), max(0, left), min(h, top + side), min(w, left + side)
    if y1 <= y0 or x1 <= x0:
        raise media.MediaError(f"is {w} x {h}: the part that {part} crops lies outside")
    y[:, y0 - top : y1 - top, x0 - left : x1 - left] = x[:, y0:y1, x0:x1]
    return y
