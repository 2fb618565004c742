"""A folder of recordings: manifest.csv with the columns id,split,label,<modality>,... (docs/data/folder.md).

read() checks the table and what the first bytes of each file tell (kind, shapes); the contents are checked when an
item is loaded. A file that is not there or that its first bytes show to be of no use is listed (Dataset.absent and
broken), and loading it says why. Every complaint is one line: file, row, id, what, mend.
"""

import hashlib
import io
import os
from typing import Any

import numpy as np

from cox_oom.data import Dataset, media, official, table
from cox_oom.files import UserError

KINDS = {
    "rgb": "image",
    "tactile": "image",
    "thermal": "image",
    "depth": "image",
    "language": "text",
    "audio": "audio",
    "video": "video",
}
EXTENSIONS = {
    "image": media.IMAGE + media.ARRAY,
    "audio": media.AUDIO,
    "video": media.VIDEO,
    None: media.ARRAY + media.IMAGE + media.AUDIO + media.VIDEO,
}
OPTIONS = {
    "frames": "video frames of a clip (default 8)",
    "limit": "factor on the largest image, video and sound that are read (default 1)",
}
READER = b"\0reader 2\0"  # enters the fingerprint with every file that an earlier version read otherwise: _read_anew
EDGE = 4096  # bytes at either end of a file that enter the fingerprint


def read(folder: str, frames: int = 8, columns: list | None = None, limit: float = 1, **unknown: Any) -> Dataset:
    """Dataset of a folder. `frames`: how many frames of each video clip `load` returns. limit: see OPTIONS.

    columns: names of the modality columns to check; None: all. The others need not be modalities; the fingerprint has
    them as well, so that it does not depend on this choice. Raises UserError where the table or a column is not right.
    """
    if unknown:
        raise UserError(f"--data {folder}: the option {sorted(unknown)[0]} is not for folders; leave it out")
    frames = official.number(folder, "frames", frames, 1, 10**6)
    limit = official.number(folder, "limit", limit, 0.001, 10**6, float)
    folder = os.path.normpath(str(folder))
    manifest = os.path.join(folder, "manifest.csv")
    header, rows, content = table.read_table(manifest)
    modalities = [h for h in header if h not in table.REQUIRED]
    checked = [m for m in modalities if columns is None or m in columns]
    table.check_rows(manifest, rows, modalities)
    class_names = table.class_names(manifest, rows)
    for m in checked:
        _check_column(manifest, folder, rows, m)
    cells = {m: [row[m] or None for _, row in rows] for m in modalities}
    missing = {m: _missing(folder, cells[m]) for m in modalities if KINDS.get(m) != "text"}
    absent = {m: missing[m] for m in checked if missing.get(m)}
    faults = _missing_faults(absent)

    # what the first bytes tell: fingerprint, files of no use, kinds of the user's own columns
    digest, kinds, broken = hashlib.sha256(content), {m: KINDS.get(m) for m in modalities}, {}
    for m in missing:
        forms, useless = _inspect(digest, folder, m, cells[m], missing[m])
        if useless:
            broken[m] = list(useless)
            faults.update({(m, i): fault for i, fault in useless.items()})
        if m in checked:
            _check_forms(manifest, rows, m, forms)
        kinds[m] = kinds[m] or next((kind for kind, _, _ in forms.values()), None)
        if kinds[m] is None and m in checked:  # no file tells what the column is
            i = min(i for n, i in faults if n == m)
            what, mend = faults[m, i]
            what = f"{m} {cells[m][i]!r} {what}, and no other file of {m} can be used"
            raise table.row_error(manifest, rows[i], what, mend)

    index = {name: k for k, name in enumerate(class_names)}
    return Dataset(
        name=os.path.basename(os.path.abspath(folder)),
        ids=[row["id"] for _, row in rows],
        split=[row["split"] for _, row in rows],
        labels=[index.get(row["label"], -1) for _, row in rows],
        class_names=class_names,
        modalities={m: kind for m, kind in kinds.items() if kind},
        cells={m: cells[m] for m in modalities if kinds[m]},
        fingerprint=digest.hexdigest(),
        load=_loader(manifest, folder, rows, cells, kinds, faults, frames, limit),
        source={"path": os.path.abspath(folder)},
        absent=absent,
        broken=broken,
    )


def _check_column(manifest, folder, rows, modality):
    """UserError where a column is empty in the train rows, or a cell names no file of its kind below the folder."""
    if not any(cells[modality] and cells["split"] == "train" for _, cells in rows):
        raise UserError(
            f"{manifest}: column {modality} has no filled cell in the train rows; "
            f"fill some, set the split of filled rows to train or remove the column"
        )
    kind = KINDS.get(modality)
    if kind == "text":
        return
    remove = "" if kind else ", or remove the column if it is no modality (--im A,B: only these are checked)"
    folders: dict[str, Any] = {}
    for row in rows:
        cell = row[1][modality]
        if not cell:
            continue
        if _leaves(cell) or _links_out(folder, cell, folders):
            raise table.row_error(
                manifest,
                row,
                f"{modality} {cell!r} leaves the folder{'' if _leaves(cell) else ' by a link'}",
                f"use a path relative to the folder, without '..', to a file inside it{remove}",
            )
        if "\\" in cell and not os.path.exists(os.path.join(folder, cell)):
            mend = f"write / in paths: {cell.replace(chr(92), '/')}"
            raise table.row_error(manifest, row, f"{modality} {cell!r} has a backslash", mend)
        if os.path.splitext(cell)[1].lower() not in EXTENSIONS[kind]:
            text = "" if kind or " " not in cell else "if these are sentences, name the column language; else "
            raise table.row_error(
                manifest,
                row,
                f"{modality} {cell!r} has an extension that is not supported",
                f"{text}convert the file to one of: {' '.join(EXTENSIONS[kind])}{remove}",
            )


def _missing(folder, cells):
    """The rows of a column whose file is not there, or outside the folder."""
    folders: dict[str, Any] = {}

    def is_there(cell):
        return (
            not _leaves(cell) and not _links_out(folder, cell, folders) and os.path.isfile(os.path.join(folder, cell))
        )

    return [i for i, cell in enumerate(cells) if cell and not is_there(cell)]


def _missing_faults(absent):
    """{(modality, row): (what, mend)} of the files in absent {modality: rows}; each tells how many more there are."""
    count = sum(map(len, absent.values()))
    what = "is not there" + (f" (and {count - 1} more missing)" if count > 1 else "")
    mend = "put the file there, correct the path or empty the cell"
    return {(m, i): (what, mend) for m, rows in absent.items() for i in rows}


def _inspect(digest, folder, modality, cells, missing):
    """({row: form} of a column's files, {row: (what, mend)} of those that are of no use), as their first bytes tell.

    missing: the rows whose file is not there. digest: name, size, first and last bytes of every file are added to it.
    """
    forms, faults, missing = {}, {}, set(missing)
    for i, cell in enumerate(cells):
        if cell is None:
            continue
        size, head, tail = -1, b"", b""
        try:
            if i not in missing:
                size, head, tail = _edges(os.path.join(folder, cell))
        except OSError as e:
            faults[i] = (f"cannot be read ({e.strerror})", "allow reading it or empty the cell")
        digest.update(f"\0{modality}\0{cell}\0{size}\0".encode() + head + tail)
        if size < 0:
            continue
        if _read_anew(cell, head):
            digest.update(READER)
        try:
            forms[i] = _form(cell, head, modality)
        except media.MediaError as e:
            faults[i] = (str(e), e.mend or "correct the file or empty the cell")
    return forms, faults


def _check_forms(manifest, rows, modality, forms):
    """UserError for the first file that is unlike the column's first. forms: {row: form}, as _inspect gives them."""
    if not forms:
        return
    first, model = next(iter(forms.items()))
    for i, form in forms.items():
        if form != model and not (form[:2] == model[:2] and None in (form[2], model[2])):
            line, cell = rows[first][0], rows[i][1][modality]
            raise table.row_error(
                manifest,
                rows[i],
                f"{modality} {cell!r} is {_words(form)}, but row {line} has {_words(model)}",
                "make all files of a column alike" + ("; arrays are (channels, time)" if form[0] == "series" else ""),
            )


def _loader(manifest, folder, rows, cells, kinds, faults, frames, limit):
    """Dataset.load of the folder. cells: {modality: n}; faults: {(modality, row): (what, mend)}, files of no use."""

    def load(modality, row, sample=None):
        cell = cells[modality][row]
        if cell is None:
            raise KeyError(f"{modality} is not observed in row {row}")
        if (modality, row) in faults:
            what, mend = faults[modality, row]
            raise table.row_error(manifest, rows[row], f"{modality} {cell!r} {what}", mend)
        kind = kinds[modality]
        if kind == "text":
            return cell
        try:
            return media.load_file(os.path.join(folder, cell), kind, modality, frames, sample, limit)
        except media.MediaError as e:
            raise table.row_error(
                manifest, rows[row], f"{modality} {cell!r} {e}", e.mend or "replace the file or empty the cell"
            ) from None

    return load


def _leaves(cell):
    """Whether a path points out of the folder, on any system."""
    path = cell.replace("\\", "/")
    return path.startswith("/") or ".." in path.split("/") or path[1:2] == ":" or "\0" in path


def _links_out(folder, cell, folders):
    """Whether a link leads out of the folder. folders: {path: whether it lies inside}, kept from call to call."""

    def inside(path):
        root, real = os.path.realpath(folder), os.path.realpath(path)
        return os.path.commonpath([root, real]) == root

    path = os.path.join(folder, cell)
    parent = os.path.dirname(path)
    if parent not in folders:
        folders[parent] = inside(parent)
    return not folders[parent] or (os.path.islink(path) and not inside(path))


def _edges(path):
    """(size, first bytes, last bytes) of a file."""
    size = os.path.getsize(path)
    with open(path, "rb") as f:
        head = f.read(EDGE)
        f.seek(max(0, size - EDGE))
        return size, head, f.read(EDGE)


def _form(cell, head, modality):
    """What all files of a column share, as far as name and first bytes tell: (kind, channels, detail)."""
    extension = os.path.splitext(cell)[1].lower()
    if not head:
        raise media.MediaError("is an empty file")
    if extension in media.AUDIO:
        return ("audio", None, None)
    if extension in media.VIDEO:
        return ("video", None, None)
    if extension in media.IMAGE:
        if extension in (".tif", ".tiff"):
            return ("image", None, None)  # 8 bit or more: seen when it is loaded
        return ("image", None, "of 16 bits" if media.deep_png(head) else "of 8 bits")
    shape, dtype = _npy_header(head)
    problem = media.array_problem(shape, dtype)
    if problem:
        raise media.MediaError(problem)
    if KINDS.get(modality, "image") == "image" and _channels_last(shape):
        raise media.MediaError(
            f"has shape {shape}, the channels last",
            f"transpose to ({shape[2]}, height, width): np.save(file, np.load(file).transpose(2, 0, 1))",
        )
    if KINDS.get(modality) == "image":
        if len(shape) != 3:
            raise media.MediaError(f"has shape {shape}, not (channels, height, width)")
    if modality == "rgb" and shape[0] not in (1, 3):
        raise media.MediaError(f"has shape {shape}, not (3, height, width) or (1, height, width)")
    detail = "in a uint8 array" if len(shape) == 3 and dtype == np.uint8 else "in an array"
    return ("series" if len(shape) == 2 else "image", shape[0], detail)


def _read_anew(cell, head):
    """Whether the decoders gave another item for such a file once; change READER with the next such change."""
    deep = media.deep_png(head) and head[25:26] != b"\0"  # 16 bits, and not grey alone
    return deep or cell.lower().endswith((".mp3", ".ogg", ".tif", ".tiff", *media.VIDEO))


def _channels_last(shape):
    """Whether an array is an image kept as (height, width, channels). Small grids such as (16, 4, 4) tell nothing."""
    return len(shape) == 3 and shape[2] in (1, 3, 4) and shape[0] not in (1, 3, 4) and min(shape[:2]) > shape[2]


def _npy_header(head):
    """(shape, dtype) of an array file by its first bytes; MediaError where they are not those of one."""
    f = io.BytesIO(head)
    try:
        version = np.lib.format.read_magic(f)
        read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(f)
    except Exception as e:
        raise media.MediaError(f"is not a .npy array ({media.reason(e)})") from None
    return shape, dtype


def _words(form):
    """What a complaint says of a form."""
    kind, channels, detail = form
    return f"{kind}{f' with {channels} channels' if channels else ''}{f' {detail}' if detail else ''}"
