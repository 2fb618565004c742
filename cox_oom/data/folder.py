"""A folder of recordings: manifest.csv with the columns id,split,label,<modality>,... (docs/data/folder.md).

read() checks the table and what the first bytes of each file tell (kind, shapes); the contents are checked when an
item is loaded. A file that is not there or that its first bytes show to be of no use is listed (Dataset.absent and
broken), and loading it says why. Every complaint is one line: file, row, id, what, mend.
"""

import hashlib
import io
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from cox_oom.data import Dataset, mark, media, official, sound, table
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
TOLD = {"language": "text", "text": "text", **{k: k for k in ("image", "audio", "video", "series")}}  # what --as takes
EXTENSIONS = {
    "image": media.IMAGE + media.ARRAY,
    "audio": media.AUDIO,
    "video": media.VIDEO,
    "series": media.ARRAY,
    None: media.ARRAY + media.IMAGE + media.AUDIO + media.VIDEO,
}
OPTIONS = {
    "frames": "video frames of a clip (default 8)",
    "limit": "factor on the largest image, video and sound that are read (default 1)",
}
# These enter the fingerprint with every file that an earlier version read otherwise (_readers): add one for a change.
READER_2, READER_3 = b"\0reader 2\0", b"\0reader 3\0"
EDGE = 4096  # bytes at either end of a file that enter the fingerprint


def read(
    folder: str,
    frames: int = 8,
    columns: list | None = None,
    limit: float = 1,
    kinds: dict[str, str] | None = None,
    groups: str | None = None,
    **unknown: Any,
) -> Dataset:
    """Dataset of a folder. `frames`: how many frames of each video clip `load` returns. limit: see OPTIONS.

    columns: names of the modality columns to check; None: all. The others need not be modalities; the fingerprint has
    them as well, so that it does not depend on this choice. kinds: {column: what --as says it holds, of TOLD}. groups:
    a column that is no modality, but names the object, person or place of a row.
    Raises UserError where the table or a column is not right.
    """
    if unknown:
        raise UserError(f"--data {folder}: the option {sorted(unknown)[0]} is not for folders; leave it out")
    return collect(folder, None, frames, columns, limit, kinds, groups)


def collect(
    folder: str,
    complain: Callable[[UserError], object] | None,
    frames: int = 8,
    columns: list | None = None,
    limit: float = 1,
    kinds: dict[str, str] | None = None,
    groups: str | None = None,
) -> Dataset:
    """The Dataset that `read` gives, without what is wrong. complain: takes every error of those that `read` raises the
    first of; None: as `read`. Files that are not there or of no use are listed in the Dataset, as ever."""
    frames = official.number(folder, "frames", frames, 1, 10**6)
    limit = official.number(folder, "limit", limit, 0.001, 10**6, float)
    folder, tell = os.path.normpath(str(folder)), complain or table.stop
    manifest = os.path.join(folder, "manifest.csv")
    header, rows, content = table.read_table(manifest, tell)
    modalities = [h for h in header if h not in table.REQUIRED and h != groups]
    if groups is not None and (groups not in header or groups in table.REQUIRED):
        others = ", ".join(modalities)
        raise UserError(f"--groups {groups}: {manifest} has the columns {others}; name the one with the groups")
    told = _told(manifest, modalities, kinds or {})
    checked = [m for m in modalities if columns is None or m in columns]
    rows = table.check_rows(manifest, rows, modalities, tell)
    class_names = table.class_names(manifest, rows, tell)
    cells = {m: [row[m] or None for _, row in rows] for m in modalities}
    named = {m: told.get(m, KINDS.get(m)) for m in modalities}
    for m in checked:
        _empty(cells[m], _check_column(manifest, folder, rows, m, named[m], tell))
    digest = hashlib.sha256(content)
    if told:
        digest.update(f"\0kinds\0{sorted(told.items())}".encode())
    found = _files(digest, manifest, folder, rows, cells, named, checked, complain)

    index = {name: k for k, name in enumerate(class_names)}
    return Dataset(
        name=os.path.basename(os.path.abspath(folder)),
        ids=[row["id"] for _, row in rows],
        split=[row["split"] for _, row in rows],
        labels=[index.get(row["label"], -1) for _, row in rows],
        class_names=class_names,
        modalities={m: kind for m, kind in found.kinds.items() if kind},
        cells={m: cells[m] for m in modalities if found.kinds[m]},
        fingerprint=digest.hexdigest(),
        load=_loader(manifest, folder, rows, cells, found.kinds, found.faults, frames, limit),
        source={"path": os.path.abspath(folder), **({"kinds": told} if told else {})},
        facts=found.facts,
        absent=found.absent,
        broken=found.broken,
        groups=[row[groups] for _, row in rows] if groups else None,
        marks=found.marks,
    )


def _told(manifest, modalities, kinds):
    """{column: kind} of what --as says, without what the column's name says as well."""
    for column, kind in kinds.items():
        if column not in modalities:
            raise UserError(
                f"--as {column}={kind}: {manifest} has the columns {', '.join(modalities)}; name one of them"
            )
        if kind not in TOLD:
            raise UserError(f"--as {column}={kind}: no such kind; give language, image, audio, video or series")
    return {m: TOLD[kind] for m, kind in kinds.items() if TOLD[kind] != KINDS.get(m)}


def _empty(cells, rows):
    """Empty the cells at the rows of which was complained."""
    for i in rows:
        cells[i] = None


class _Files(NamedTuple):
    """What a folder's files are, by their first bytes."""

    kinds: dict[str, str | None]  # of every column, None where nothing tells it
    absent: dict[str, list[int]]  # see Dataset
    broken: dict[str, list[int]]
    faults: dict[tuple[str, int], tuple[str, str]]  # {(modality, row): (what, mend)} of both
    facts: list[str]  # see Dataset
    marks: dict[str, list[str]]  # see Dataset


def _files(digest, manifest, folder, rows, cells, named, checked, complain):
    """_Files of the columns {modality: n cells}. named: {modality: its kind by name or --as, or None}; digest: name,
    size, first and last bytes of every file are added to it."""
    missing = {m: _missing(folder, cells[m]) for m in cells if named[m] != "text"}
    absent = {m: missing[m] for m in checked if missing.get(m)}
    facts = [fact for m in checked if named[m] == "text" for fact in _no_sentences(manifest, rows, m)]
    sentences = {m: [mark(m, "text", cell or "") for cell in cells[m]] for m in cells if named[m] == "text"}
    found = _Files(dict(named), absent, {}, _missing_faults(absent, counted=complain is None), facts, sentences)
    tell = complain or table.stop
    for m in missing:
        forms, useless, cut, found.marks[m] = _inspect(digest, folder, m, named[m], cells[m], missing[m])
        if cut and m in checked:
            facts.append(_cut_short(manifest, m, cut, rows, len(forms)))
        if useless:
            found.broken[m] = list(useless)
            found.faults.update({(m, i): fault for i, fault in useless.items()})
        if m in checked:
            _empty(cells[m], _check_forms(manifest, rows, m, forms, tell))
        found.kinds[m] = named[m] or next((kind for kind, _, _ in forms.values()), None)
        if found.kinds[m] is None and m in checked and not complain:  # no file tells what the column is
            i = min(i for n, i in found.faults if n == m)
            what, mend = found.faults[m, i]
            what = f"{m} {cells[m][i]!r} {what}, and no other file of {m} can be used"
            tell(table.row_error(manifest, rows[i], what, mend))
    return found


def _check_column(manifest, folder, rows, modality, kind, complain):
    """The rows whose cells are refused: they name no file of the column's kind below the folder. Complains of each, and
    of a column that is empty in the train rows."""
    if not any(cells[modality] and cells["split"] == "train" for _, cells in rows):
        complain(
            UserError(
                f"{manifest}: column {modality} has no filled cell in the train rows; "
                f"fill some, set the split of filled rows to train or remove the column"
            )
        )
    if kind == "text":
        return []
    folders: dict[str, Any] = {}
    refused = []
    for i, row in enumerate(rows):
        fault = row[1][modality] and _cell_fault(folder, modality, row[1][modality], kind, folders)
        if fault:
            complain(table.row_error(manifest, row, f"{modality} {row[1][modality]!r} {fault[0]}", fault[1]))
            refused.append(i)
    return refused


def _cell_fault(folder, modality, cell, kind, folders):
    """(what, mend) of a cell that names no file of its kind below the folder; None where it does."""
    remove = "" if kind else ", or remove the column if it is no modality (--im A,B: only these are checked)"
    if _leaves(cell) or _links_out(folder, cell, folders):
        return (
            f"leaves the folder{'' if _leaves(cell) else ' by a link'}",
            f"use a path relative to the folder, without '..', to a file inside it{remove}",
        )
    if "\\" in cell and not os.path.exists(os.path.join(folder, cell)):
        return "has a backslash", f"write / in paths: {cell.replace(chr(92), '/')}"
    extension = os.path.splitext(cell)[1].lower()
    if extension in EXTENSIONS[kind]:
        return None
    told = ""
    if not kind and " " in cell:
        told = f"if these are sentences, name the column language or give --as {modality}=language; else "
    elif kind and extension in media.ARRAY:
        told = f"if these are series, give --as {modality}=series; else "
    mend = f"{told}convert the file to one of: {' '.join(EXTENSIONS[kind])}{remove}"
    return "has an extension that is not supported", mend


def _no_sentences(manifest, rows, modality):
    """A line on the sentences of a column that may stand for none; none where there are none."""
    odd = [row for row in rows if row[1][modality] and table.stands_for_none(row[1][modality])]
    if odd:
        line, cells = odd[0]
        yield (
            f"{manifest}: {len(odd)} cells of {modality} may mean that nothing was said, the first is "
            f"{cells[modality]!r} in row {line}; they are read as sentences: empty them if they are none"
        )


def _missing(folder, cells):
    """The rows of a column whose file is not there, or outside the folder."""
    folders: dict[str, Any] = {}

    def is_there(cell):
        return (
            not _leaves(cell) and not _links_out(folder, cell, folders) and os.path.isfile(os.path.join(folder, cell))
        )

    return [i for i, cell in enumerate(cells) if cell and not is_there(cell)]


def _missing_faults(absent, counted):
    """{(modality, row): (what, mend)} of the files in absent {modality: rows}. counted: each tells how many more there
    are."""
    count = sum(map(len, absent.values()))
    what = "is not there" + (f" (and {count - 1} more missing)" if counted and count > 1 else "")
    mend = "put the file there, correct the path or empty the cell"
    return {(m, i): (what, mend) for m, rows in absent.items() for i in rows}


def _inspect(digest, folder, modality, kind, cells, missing):
    """({row: form} of a column's files, {row: (what, mend)} of those that are of no use, {row: bytes that are missing}
    of recordings that end early, [mark of each row]), as their first bytes tell.

    kind: what the column's name or --as says. missing: the rows whose file is not there.
    digest: name, size, first and last bytes of every file are added to it.
    """
    forms, faults, cut, missing, marks = {}, {}, {}, set(missing), [""] * len(cells)
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
        marks[i] = mark(modality, kind, cell, size, head, tail, _readers(cell, head))
        if size < 0:
            continue
        digest.update(_readers(cell, head))
        try:
            forms[i] = _form(cell, head, modality, kind)
        except media.MediaError as e:
            faults[i] = (str(e), e.mend or "correct the file or empty the cell")
        if lost := sound.missing_bytes(head, size):
            cut[i] = lost
    return forms, faults, cut, marks


def _cut_short(manifest, modality, cut, rows, count):
    """A line on the recordings of a column that hold less than their headers claim. cut: {row: missing bytes}."""
    first, lost = next(iter(cut.items()))
    line, cells = rows[first]
    return (
        f"{manifest}: {len(cut)} of {count} files of {modality} end before the length in their header, the first is "
        f"{cells[modality]!r} in row {line}, {lost} bytes short; they are read to their end: copy them anew if they "
        f"were cut"
    )


def _check_forms(manifest, rows, modality, forms, complain):
    """The rows whose files are unlike the column's first; complains of each. forms: {row: form}, as _inspect gives
    them."""
    if not forms:
        return []
    refused = []
    first, model = next(iter(forms.items()))
    for i, form in forms.items():
        if form != model and not (form[:2] == model[:2] and None in (form[2], model[2])):
            line, cell = rows[first][0], rows[i][1][modality]
            mend = "make all files of a column alike"
            mend += "; arrays are (channels, time)" if form[0] == "series" else ""
            what = f"{modality} {cell!r} is {_words(form)}, but row {line} has {_words(model)}"
            complain(table.row_error(manifest, rows[i], what, mend))
            refused.append(i)
    return refused


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


def _form(cell, head, modality, kind):
    """What all files of a column share, as far as name and first bytes tell: (kind, channels, detail). kind: what the
    column's name or --as says."""
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
    if kind in ("image", None) and _channels_last(shape):
        raise media.MediaError(
            f"has shape {shape}, the channels last",
            f"transpose to ({shape[2]}, height, width): np.save(file, np.load(file).transpose(2, 0, 1))",
        )
    if kind == "image" and len(shape) != 3:
        raise media.MediaError(f"has shape {shape}, not (channels, height, width)")
    if kind == "series" and len(shape) != 2:
        raise media.MediaError(
            f"has shape {shape}, not (channels, time)", f"make it so, or leave --as {modality}=series out"
        )
    if modality == "rgb" and kind == "image" and shape[0] not in (1, 3):
        raise media.MediaError(f"has shape {shape}, not (3, height, width) or (1, height, width)")
    detail = "in a uint8 array" if len(shape) == 3 and dtype == np.uint8 else "in an array"
    return ("series" if len(shape) == 2 else "image", shape[0], detail)


def _readers(cell, head):
    """The marks of the decoders that gave another item for such a file than the version before."""
    deep = media.deep_png(head) and head[25:26] != b"\0"  # 16 bits, and not grey alone
    second = deep or cell.lower().endswith((".mp3", ".ogg", ".tif", ".tiff", *media.VIDEO))
    third = cell.lower().endswith((".tif", ".tiff")) or cell.lower().endswith(".wav") and sound.compressed(head)
    return READER_2 * second + READER_3 * third


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
