"""What the readers of the six public data sets share: files, options, splits, facts (docs/data/<name>.md).

Nothing of the media is decoded when a data set is read. Their names and sizes are listed once; what the annotation
names and the folder lacks becomes a fact and `Dataset.absent`, and loading it a UserError.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tqdm import tqdm

from cox_oom import files
from cox_oom.data import Dataset, media
from cox_oom.files import UserError

VERSION = "official-2"  # enters every fingerprint: change it with anything that changes an item
CACHE = ".cox-audio.json"  # in --root: which videos carry sound, by path and size


# ------------------------------------------------------------------------------------------------------- options


def check_options(name, unknown, options):
    """UserError where `unknown`, what a reader was given beside its `options`, is not empty."""
    if unknown:
        have = f"it has {', '.join(sorted(options))}" if options else "it has none"
        raise UserError(f"--data {name}: there is no option {sorted(unknown)[0]}; {have}")


def choice(name, option, value, allowed):
    """`value` as text, where it is one of `allowed`; else UserError."""
    if str(value) not in allowed:
        raise UserError(f"--data {name}: the option {option} is {value!r}; give one of {', '.join(allowed)}")
    return str(value)


def number(name, option, value, least, most, kind=int):
    """`value`, perhaps given as text, as a number in least...most; else UserError."""
    try:
        x = kind(value)
    except (TypeError, ValueError):
        x = None
    if x is None or not least <= x <= most or (kind is int and x != float(value)):
        what = "a whole number" if kind is int else "a number"
        raise UserError(f"--data {name}: the option {option} is {value!r}; give {what} from {least} to {most}")
    return x


def sentences(name, template, words, ids, seed=0):
    """One sentence per row: `template`, or one of several between |, drawn by seed and id; {} is the row's word."""
    templates = [t.strip() for t in str(template).split("|")]
    for t in templates:
        if t.count("{}") != 1 or "{" in t.replace("{}", "") or "}" in t.replace("{}", ""):
            raise UserError(
                f"--data {name}: the option template has {t!r}; write {{}} once where the class goes, and "
                f"| between templates"
            )
    return [templates[draw(f"{seed} template {i}", len(templates))].format(w) for w, i in zip(words, ids)]


def oracle_fact(template):
    """The fact that language made by `sentences` is no independent observation."""
    return (
        f"language: made from the class ('{template}'), as in the paper: it tells the label, so IM language is an "
        f"oracle and OOM language is nearly solved by its labels"
    )


def draw(text, n):
    """A number in 0...n-1, always the same for a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % n


# --------------------------------------------------------------------------------------------------------- files


def tree(root, extensions):
    """{path relative to root, with /: size} of the files below root with one of the extensions, sorted.

    Links are followed, but not into a folder that was listed already.
    """
    sizes, stack, real_paths = {}, [""], set()
    while stack:
        folder = stack.pop()
        where = os.path.join(root, folder)
        real_path = os.path.realpath(where)
        if real_path in real_paths:  # a link that leads back
            continue
        real_paths.add(real_path)
        try:
            with os.scandir(where) as entries:
                for entry in entries:
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        stack.append(path)
                    elif entry.name.lower().endswith(extensions):
                        try:
                            sizes[path] = entry.stat().st_size
                        except OSError:  # a link to nowhere: as good as not there
                            pass
        except OSError as e:
            raise UserError(f"{where}: cannot be listed ({e.strerror}); allow reading it") from None
    return dict(sorted(sizes.items()))


def by_stem(files, extensions=None):
    """{file name without folder and extension: path}, the first of each; of some extensions only where given."""
    out: dict[str, str] = {}
    for path in files:
        stem, extension = os.path.splitext(path.rsplit("/", 1)[-1])
        if extensions is None or extension.lower() in extensions:
            out.setdefault(stem, path)
    return out


def annotation(name, root, *names, where, optional=False):
    """Path of the first of `names` at root or below, at most three folders deep; `where` says where to get it.

    UserError where there is none, or None if it is optional.
    """
    for depth in range(4):
        folders = [""]
        for _ in range(depth):
            folders = [os.path.join(f, d) for f in folders for d in _folders(os.path.join(root, f))]
        for file_name in names:
            for folder in folders:
                path = os.path.join(root, folder, file_name)
                if os.path.isfile(path):
                    return path
    if optional:
        return None
    raise UserError(f"--data {name} --root {root}: {' or '.join(names)} is not there, nor in its folders; {where}")


def _folders(path):
    """Names of the folders in a folder, sorted; none where it has 200 entries or more, or cannot be listed."""
    try:
        # folders with thousands of entries hold media, not annotations
        entries = os.listdir(path)
        return sorted(e for e in entries if os.path.isdir(os.path.join(path, e))) if len(entries) < 200 else []
    except OSError:
        return []


def read_text(path, encoding="utf-8-sig"):
    """The text of an annotation file; UserError where it cannot be read."""
    try:
        with open(path, encoding=encoding, newline="") as f:
            return f.read()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8; get the file again") from None
    except OSError as e:
        raise UserError(f"{path}: cannot be read ({e.strerror}); allow reading it") from None


def with_sound(name, root, sizes, paths, audio):
    """{path: whether the video has an audio track}. audio = 'check': its header is read, 'trust': yes.

    The answers are kept in root/.cox-audio.json where that can be written. A file that does not open counts as yes:
    loading it tells what is wrong.
    """
    import json

    choice(name, "audio", audio, ("check", "trust"))
    paths = sorted(p for p in set(paths) if p in sizes)
    if audio == "trust":
        return dict.fromkeys(paths, True)
    cache, sound = os.path.join(root, CACHE), {}
    try:
        with open(cache, encoding="utf-8") as f:
            sound = {p: has for p, (size, has) in json.load(f).items() if sizes.get(p) == size}
    except (OSError, ValueError, AttributeError, TypeError):
        pass

    def look(path):
        try:
            return media.has_audio(os.path.join(root, path))
        except media.MediaError:
            return None

    todo = [p for p in paths if p not in sound]
    if todo:
        with ThreadPoolExecutor(min(8, 2 * (os.cpu_count() or 1))) as pool:
            answers = list(
                tqdm(pool.map(look, todo), total=len(todo), desc="which clips carry sound", mininterval=1, disable=None)
            )
        sound.update({p: has for p, has in zip(todo, answers) if has is not None})
        try:
            text = json.dumps({p: [sizes[p], has] for p, has in sound.items()})
            files.write_atomic(cache, lambda tmp: tmp.write_text(text))
        except OSError:
            pass  # a folder that cannot be written is looked through each time
    return {p: sound.get(p, True) for p in paths}


# ---------------------------------------------------------------------------------------------------- the data set


def silent_fact(cells):
    """What a data set says of clips without sound; cells: an audio path or None for each clip."""
    return f"audio: {cells.count(None):,} of {len(cells):,} clips carry no audio: kept, masked"


def clips(root, cells, frames):
    """The fetch of a data set of clips: the sound of an audio cell, else `frames` frames of the video."""

    def fetch(modality, row, sample):
        path = os.path.join(root, cells[modality][row])
        if modality == "audio":
            return media.load_audio(path, resample=sample)
        return media.load_video(path, frames, sample)

    return fetch


def hold_out(name, split, labels, share, seed=0):
    """The split with `share` of each class's train rows moved to val: where a data set has no val rows of its own."""
    share = number(name, "val", share, 0, 0.5, float)
    if not share:
        return split
    groups: dict[Any, list[int]] = {}
    split = list(split)
    for row, (part, label) in enumerate(zip(split, labels)):
        if part == "train" and label >= 0:
            groups.setdefault(label, []).append(row)
    for label, rows in groups.items():
        rows.sort(key=lambda row: hashlib.sha256(f"{seed} val {label} {row}".encode()).digest())
        for row in rows[: int(share * len(rows) + 0.5)] if len(rows) > 1 else []:
            split[row] = "val"
    return split


def finish(
    name, root, *, ids, split, labels, class_names, modalities, cells, fetch, sizes, mend, settings, files, facts=()
):
    """The Dataset. fetch(modality, row, sample) gives an item or raises media.MediaError.

    sizes: {path relative to root: bytes} of the media there are; cells of other kinds than text are such paths, perhaps
      followed by `::` and a place in the file.
    mend: what to do about files that are not there. settings: the options. files: the annotations' paths.
    """
    _check_rows(name, root, ids, split, mend)
    absent, absent_facts = _absent(name, root, ids, modalities, cells, sizes, mend)
    return Dataset(
        name=name,
        ids=ids,
        split=split,
        labels=labels,
        class_names=list(class_names),
        modalities=modalities,
        cells=cells,
        load=_loader(root, ids, modalities, cells, fetch, mend),
        fingerprint=_fingerprint(name, ids, split, labels, modalities, cells, sizes, settings, files),
        facts=[*facts, *absent_facts],
        absent=absent,
        source={"path": os.path.abspath(root), **settings},
    )


def _check_rows(name, root, ids, split, mend):
    """UserError where there is no train row or no test row, or an id is there twice."""
    for part in ("train", "test"):
        if part not in split:
            raise UserError(f"--data {name} --root {root}: the annotation gives no {part} rows; get it whole ({mend})")
    unique = set()
    for i in ids:
        if i in unique:
            raise UserError(f"--data {name} --root {root}: the annotation lists {i} twice; get it anew")
        unique.add(i)


def _fingerprint(name, ids, split, labels, modalities, cells, sizes, settings, files):
    """Hex digest of the settings, the annotation files, all rows and their media's paths and sizes."""
    digest = hashlib.sha256(f"{VERSION} {name} {sorted(settings.items())}".encode())
    for path in files:
        with open(path, "rb") as f:
            digest.update(hashlib.sha256(f.read()).digest())
    for m, kind in modalities.items():
        for row, cell in enumerate(cells[m]):
            place = cell if cell is None or kind == "text" else f"{cell}\0{sizes.get(cell.split('::')[0], -1)}"
            digest.update(f"\0{m}\0{ids[row]}\0{split[row]}\0{labels[row]}\0{place}".encode())
    return digest.hexdigest()


def _absent(name, root, ids, modalities, cells, sizes, mend):
    """({modality: rows whose file is not there}, the facts about them); UserError where a modality has no file."""
    absent, facts = {}, []
    for m, kind in modalities.items():
        if kind == "text":
            continue
        filled = [r for r, cell in enumerate(cells[m]) if cell is not None]
        rows = [r for r in filled if cells[m][r].split("::")[0] not in sizes]
        if not rows:
            continue
        first = f"{cells[m][rows[0]]} (id {ids[rows[0]]})"
        if len(rows) == len(filled):
            raise UserError(
                f"--data {name} --root {root}: none of the {len(filled):,} {m} files is there, the first "
                f"is {first}; {mend}"
            )
        absent[m] = rows
        facts.append(
            f"{m}: {len(rows):,} of {len(filled):,} files are not there, the first is {first}; {mend}, or "
            f"leave their rows out with --on-error skip"
        )
    return absent, facts


def _loader(root, ids, modalities, cells, fetch, mend):
    """Dataset.load: `fetch` with the complaints that name file, id and mend."""

    def load(modality, row, sample=None):
        cell = cells[modality][row]
        if cell is None:
            raise KeyError(f"{modality} is not observed in row {row}")
        if modalities[modality] == "text":
            return cell
        path = cell.split("::")[0]
        if not os.path.isfile(os.path.join(root, path)):
            raise UserError(
                f"{os.path.join(root, path)} (id {ids[row]}): the {modality} file is not there; {mend}, or "
                f"leave its row out with --on-error skip"
            )
        try:
            return fetch(modality, row, sample)
        except media.MediaError as e:
            raise UserError(
                f"{os.path.join(root, path)} (id {ids[row]}): {modality} {e}; get the file again, or leave "
                f"its row out with --on-error skip"
            ) from None

    return load
