"""A first manifest.csv from folders of files that are named by class (`python -m cox_oom.check FOLDER --make`).

Below FOLDER, or below FOLDER/train, FOLDER/val and FOLDER/test, lie <class>/<file> or <modality>/<class>/<file>. Files
of one class and one stem in several modalities are one row, a pair. The class `unlabelled` or `_` is none.
"""

import csv
import io
import os
from collections import Counter, defaultdict

import numpy as np

from cox_oom import files
from cox_oom.data import SPLITS, folder, media, table
from cox_oom.files import UserError

UNLABELLED = ("unlabelled", "_")
COLUMNS = {"image": "rgb", "audio": "audio", "video": "video", "series": "sensor"}  # a column's name by its kind
KINDS = {"image": media.IMAGE, "audio": media.AUDIO, "video": media.VIDEO, "series": media.ARRAY}
LAYOUT = "<class>/<file> or <modality>/<class>/<file>, perhaps below train, val and test"
SHARE = 0.2  # of the rows that become test rows


def make(root, oom, seed):
    """Write FOLDER/manifest.csv; prints what is in it. oom: the column's name where folders name none. Raises UserError
    where there is a manifest already, or the folders have another layout."""
    manifest = os.path.join(root, "manifest.csv")
    if os.path.lexists(manifest):
        raise UserError(f"{manifest} is there already and stays as it is; leave --make out, or rename that file")
    paths, others = _media(root)
    if not paths:
        raise UserError(f"{root}: no image, sound, video or .npy file in it; lay them out as {LAYOUT}")
    if others:
        kinds = ", ".join(f"{n} {e or 'without extension'}" for e, n in others.most_common(5))
        print(f"left out, for no modality has such files: {kinds}")
    rows, modalities, divided = _rows(root, paths, oom)
    table.check_header(manifest, ["id", "split", "label", *modalities])
    if not divided:
        _divide(rows, seed)
        print(
            f"split: {SHARE:.0%} of the rows of each class are test rows, drawn at random (--seed {seed}); rows of one "
            f"session may be on both sides"
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "split", "label", *modalities])
    writer.writerows([name, r["split"], r["label"], *(r["cells"].get(m, "") for m in modalities)] for name, r in rows)
    files.write_atomic(manifest, lambda tmp: tmp.write_text(text.getvalue(), encoding="utf-8"))
    _say(manifest, [r for _, r in rows], modalities)


def _media(root):
    """(relative paths of the media files below a folder, parts apart and in order; {extension: number} of the
    others); hidden files and folders count for nothing."""
    paths: list[tuple[str, ...]] = []
    others: Counter[str] = Counter()
    for place, folders, names in os.walk(root):
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != "__MACOSX")
        for name in sorted(n for n in names if not n.startswith(".")):
            extension = os.path.splitext(name)[1].lower()
            if extension in folder.EXTENSIONS[None]:
                path = os.path.relpath(os.path.join(place, name), root)
                if path != path.strip() or not path.isprintable() or "\\" in path:
                    raise UserError(f"{root}: {path!r} has a name that no cell can hold; rename it")
                paths.append(tuple(path.split(os.sep)))
            else:
                others[extension] += 1
    return paths, others


def _kind(name):
    extension = os.path.splitext(name)[1].lower()
    return next(kind for kind, extensions in KINDS.items() if extension in extensions)


def _rows(root, paths, oom):
    """([(id, {"split", "label", "cells" {modality: path}})] in order, modalities, whether folders tell the split)."""
    tops = {p[0] for p in paths}
    divided = tops <= set(SPLITS)
    if divided and not {"train", "test"} <= tops:
        raise UserError(f"{root} has files in {', '.join(sorted(tops))} alone; give it the folders train and test")
    depth = len(paths[0])
    odd = next((p for p in paths if len(p) != depth), None)
    if odd or depth - divided not in (2, 3):
        raise UserError(f"{root}: {'/'.join(odd or paths[0])} lies elsewhere than in {LAYOUT}; move it")
    named = depth - divided == 3
    if named and not divided and tops & set(SPLITS):
        beside = ", ".join(sorted(tops - set(SPLITS)))
        raise UserError(
            f"{root}: {beside} lies beside {', '.join(sorted(tops & set(SPLITS)))}; move it into one of these"
        )
    if named and oom and oom not in {p[-3] for p in paths}:
        raise UserError(f"--oom {oom}: {root} has the modalities {', '.join(sorted({p[-3] for p in paths}))}")
    if not named and {p[-2] for p in paths} <= set(folder.KINDS):
        raise UserError(f"{root}: the folders of files are named by modality, not by class; lay them out as {LAYOUT}")
    columns = {p: p[-3] if named else oom or COLUMNS[_kind(paths[0][-1])] for p in paths}
    _check_columns(root, columns)
    found: dict[tuple, dict] = {}
    for p in paths:
        stem = os.path.splitext(p[-1])[0]
        label = "" if p[-2] in UNLABELLED else p[-2]
        row = found.setdefault(
            (p[0] if divided else "", p[-2], stem), {"split": p[0] if divided else "", "label": label, "cells": {}}
        )
        if other := row["cells"].get(columns[p]):
            raise UserError(f"{root}: {'/'.join(p)} and {other} would be one cell of {columns[p]}; rename one of them")
        row["cells"][columns[p]] = "/".join(p)
    stems = Counter(stem for _, _, stem in found)
    name = lambda key: key[-1] if stems[key[-1]] == 1 else "/".join(part for part in key if part)
    return [(name(key), row) for key, row in found.items()], sorted(set(columns.values())), divided


def _check_columns(root, columns):
    """UserError where a column {path: column} would hold two kinds of files, or not those that its name asks for."""
    first: dict[str, tuple] = {}
    for p, column in columns.items():
        named = folder.KINDS.get(column)
        if column in table.REQUIRED or named == "text" or not p[-1].lower().endswith(folder.EXTENSIONS[named]):
            raise UserError(f"{root}: a column {column} cannot hold {'/'.join(p)}; call the modality by another name")
        other = first.setdefault(column, p)
        if _kind(p[-1]) != _kind(other[-1]):
            raise UserError(
                f"{root}: {'/'.join(other)} and {'/'.join(p)} are of two kinds in the one column {column}; if they are "
                f"two modalities, lay them out as <modality>/<class>/<file>"
            )


def _divide(rows, seed):
    """Make SHARE of the labelled rows test rows, the others train rows: within each class, and within the rows of a
    class that hold the same modalities; of two or more at least one."""
    rng, groups = np.random.default_rng(seed), defaultdict(list)
    for _, row in rows:
        row["split"] = "train"
        if row["label"]:
            groups[row["label"], tuple(sorted(row["cells"]))].append(row)
    for group in groups.values():
        count = max(1, round(SHARE * len(group))) if len(group) > 1 else 0
        for k in rng.permutation(len(group))[:count]:
            group[k]["split"] = "test"


def _say(manifest, rows, modalities):
    """Print what is in the table, and what comes next."""
    counts = ", ".join(f"{n} {s}" for s in SPLITS if (n := sum(r["split"] == s for r in rows)))
    pairs = sum(len(r["cells"]) > 1 for r in rows)
    print(
        f"wrote {manifest}: {len(rows)} rows ({counts}), {sum(not r['label'] for r in rows)} of them unlabelled, "
        f"{len({r['label'] for r in rows} - {''})} classes, {pairs} pairs, columns {', '.join(modalities)}"
    )
    if len(modalities) == 1:
        print(
            f"COX needs at least one other modality than {modalities[0]}: add a column, such as rgb or language, in "
            f"some of the rows"
        )
