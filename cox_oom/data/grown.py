"""Data that have grown since stage 1 made a file: what it holds of the rows now there, and what has to be made anew.

Each row's item has a mark (data.Dataset.marks), and a file keeps those of its rows in meta["marks"]. New rows and other
labels extend a file. Where an item or a split changed, or a row is gone, nothing is kept unless --force says so.
"""

from dataclasses import dataclass, field
from typing import Any

from cox_oom.files import SPLITS, UserError, check_chain, load, same_args


@dataclass
class Kept:
    """A file of stage 1 and the places in it {row of the data: place} of the rows that it holds; without one none."""

    file: dict[str, Any] = field(default_factory=dict)
    places: dict[int, int] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.file)


def marks(data, modality, rows):
    """The facts that a file's meta keeps of its rows' items; none where the data set does not tell them apart."""
    known = data.marks.get(modality)
    return {"marks": "".join(known[r] for r in rows)} if known else {}


def mark_of(data, modality, row):
    """What changes with a row's item, or else with the whole data set."""
    return data.marks[modality][row] if modality in data.marks else data.fingerprint


def kept(args, path, data, modality, known, made_from=None, refuse=True):
    """What the file at `path`, made before the data changed, holds of them: Kept, empty where there is no such file.

    known, made_from: what the file is to be made with and from now. UserError where that differs, and where rows
    changed or vanished; with refuse=False such a file is as if it were not there.
    """
    if args.force or not path.exists():
        return Kept()
    old = load(path, content=False)
    meta, at = old["meta"], {i: place for place, i in enumerate(old["ids"])}
    if meta["fingerprint"] == data.fingerprint:
        return Kept()
    made_from = made_from or {}
    if refuse:
        check_chain(path, meta, made_from)
        same_args(path, meta, known)
    elif meta["args"] != known or any(meta["made_from"].get(k, v) != v for k, v in made_from.items()):
        return Kept()
    rows = [r for r, cell in enumerate(data.cells[modality]) if cell is not None]
    places = {r: at[data.ids[r]] for r in rows if data.ids[r] in at}
    was, now, splits = meta.get("marks", ""), data.marks.get(modality), old["split"].tolist()
    told = now is not None and len(was) == 16 * len(at)
    moved = sum(SPLITS[splits[p]] != data.split[r] for r, p in places.items())
    other = sum(now[r] != was[16 * p : 16 * p + 16] for r, p in places.items()) if told else 0
    names = [*old["class_names"], ""], [*data.class_names, ""]
    relabelled = sum(names[0][int(old["labels"][p])] != names[1][data.labels[r]] for r, p in places.items())
    counts = f"{len(rows) - len(places)} rows with {modality} more, {len(at) - len(places)} fewer, "
    counts += f"{relabelled} labels other, {other} items other (files, or columns that --as takes otherwise), "
    counts += f"{moved} splits other"
    if not told or len(places) < len(at) or moved or other:
        if not refuse:
            return Kept()
        why = "" if told else "; which items changed is not known"
        raise UserError(
            f"{args.root or args.data} has changed since {path} was made: {counts}{why}. To go on, run the same "
            f"commands with --force in stages 1 to 3: results made so far are replaced; or with another --runs: they "
            f"are kept"
        )
    print(f"  {modality}: {counts.split(',')[0]}, {relabelled} labels other; the {len(at)} items made so far are kept")
    return Kept(load(path), places)
