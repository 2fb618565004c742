"""What a folder of recordings holds and what is wrong with it, all at once: the findings of `python -m cox_oom.check`.

A fault is what the stages stop at, a warning what they go on with.
"""

import hashlib
import os
import re
from argparse import Namespace
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import numpy as np

from cox_oom.data import Dataset, ahead, folder, inputs, media, rows, table
from cox_oom.files import UserError

# ---------------------------------------------------------------------------------------------------------------- items


class Facts(NamedTuple):
    """What is kept of a raw item."""

    shape: tuple[int, ...]  # of a text: (characters,)
    dtype: str
    constant: bool
    mark: str | None  # values that may stand for 'no data': media.mark
    digest: str  # the same for the same content


def facts(modality, raw):
    """The Facts of a raw item (data.Dataset)."""
    if isinstance(raw, str):
        return Facts((len(raw),), "text", False, None, raw)
    x = np.ascontiguousarray(raw)
    digest = hashlib.blake2b(x.data.cast("B"), digest_size=16).hexdigest()
    return Facts(x.shape, str(x.dtype), constant(x), media.mark(x, modality), digest)


def constant(x):
    """Whether no channel of an item ever changes; items of one value a channel: whether all these are equal."""
    x = np.moveaxis(x, 1, 0) if x.ndim == 4 else x  # video (F, 3, H, W): channels first
    each = x.reshape(len(x), -1) if x.ndim > 1 else x[None]
    each = each if each.shape[1] > 1 else each.reshape(1, -1)
    return bool(each.size > 1 and (each == each[:, :1]).all())


def decoded(data, modality, rows, workers, complain):
    """{row: Facts} of the items at the given rows. complain(row, problem, what): "broken" (what: the reader's line),
    "silent" or "marked"; broken items are left out."""
    found = {}
    for place, item, complaint in ahead.decoded(data, modality, rows, partial(facts, modality), workers=workers):
        if complaint:
            complain(rows[place], complaint[0], item.mark if complaint[0] == "marked" else complaint[1])
        if item:
            found[rows[place]] = item
    return found


def repeated(data, found):
    """[(row, row of train)]: rows of val and test whose item a train row holds as well. found: {row: Facts}; constant
    items are left out."""
    key = lambda f: (f.shape, f.dtype, f.digest)
    first: dict[tuple, int] = {}
    for row, f in found.items():
        if data.split[row] == "train" and not f.constant:
            first.setdefault(key(f), row)
    return [(row, first[key(f)]) for row, f in found.items() if data.split[row] != "train" and key(f) in first]


# ----------------------------------------------------------------------------------------------------------- the folder


@dataclass
class Found:
    """What is wrong: {kind: [line]} of faults and of warnings, each in the order of the finding."""

    faults: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    warnings: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def fault(self, error: UserError, kind: str = "") -> None:
        self.faults[kind or getattr(error, "mend", str(error))].append(str(error))

    def warn(self, error: UserError | str, kind: str) -> None:
        self.warnings[kind].append(str(error))


class Folder:
    """A folder as it was read: data, the modalities `oom` and `ims`, lines {id: (line of the table, its cells)}, and of
    the items that can be used facts {modality: {row: Facts}}."""

    def __init__(self, args: Namespace, data: Dataset, lines: dict[str, tuple]) -> None:
        self.args, self.data, self.lines = args, data, lines
        self.facts: dict[str, dict[int, Facts]] = {}
        self.manifest = os.path.join(args.folder, "manifest.csv")
        asked = args.im.split(",") if args.im else []
        names = list(data.modalities)
        self.oom = args.oom or next((m for m in reversed(names) if m not in folder.KINDS), (names or [""])[-1])
        self.ims = [m for m in asked or data.modalities if m in data.modalities and m != self.oom]

    @property
    def used(self) -> list[str]:
        return [*self.ims, *([self.oom] if self.oom in self.data.modalities else [])]

    def error(self, modality: str, row: int, what: str, mend: str) -> UserError:
        """The line about an item."""
        what = f"{modality} {self.data.cells[modality][row]!r} {what}"
        return table.row_error(self.manifest, self.lines[self.data.ids[row]], what, mend)

    def count(self, *modalities: str, split: str = "train", labelled: bool = False) -> int:
        """How many rows hold all of the modalities."""
        held = set.intersection(*(set(self.facts.get(m, ())) for m in modalities))
        return sum(self.data.split[r] == split and (not labelled or self.data.labels[r] >= 0) for r in held)


def read(args: Namespace, found: Found) -> Folder | None:
    """The Folder, its table checked; None where the table cannot be read at all."""
    try:
        header, lines, _ = table.read_table(os.path.join(args.folder, "manifest.csv"), lambda error: None)
    except UserError as error:
        found.fault(error)
        return None
    named = [h for h in header if h not in table.REQUIRED]
    for flag, names in (("--oom", args.oom), ("--im", args.im)):
        for name in names.split(",") if names else ():
            if name not in named:
                raise UserError(f"{flag} {name}: {args.folder} has the columns {', '.join(named)}; name one of them")
    checked = [*args.im.split(","), args.oom] if args.im else None
    data = folder.collect(
        args.folder, found.fault, columns=checked, kinds=args.kinds, groups=args.groups, **args.option
    )
    return Folder(args, data, {cells["id"]: (line, cells) for line, cells in reversed(lines)})


def look(own: Folder, found: Found) -> None:
    """Decode every item: faults and warnings about files, and own.facts."""
    data = own.data
    checked = [*own.args.im.split(","), own.oom] if own.args.im else {**data.absent, **data.broken}
    for m in checked:
        for row in unusable(data, m):
            try:
                data.load(m, row)
            except UserError as error:
                broken(own, found, error)
    for m in own.used:
        own.facts[m] = items_of(own, found, m)
        for row, what in unlike(data, m, own.facts[m]):
            del own.facts[m][row]
            found.fault(own.error(m, row, f"is unlike: {what}", f"make all files of {m} alike, or empty the cell"))


def unusable(data: Dataset, m: str) -> list[int]:
    """The rows of a modality whose file is not there or of no use by its first bytes."""
    return sorted({*data.absent.get(m, ()), *data.broken.get(m, ())})


def broken(own: Folder, found: Found, error: UserError, kind: str = "") -> None:
    """A missing or broken file is a fault, or a warning with --on-error skip."""
    if own.args.on_error == "fatal":
        found.fault(error, kind)
    else:
        found.warn(error, kind or "broken")


def items_of(own: Folder, found: Found, m: str) -> dict[int, Facts]:
    """The facts of a modality's items that can be used."""
    args, data = own.args, own.data
    silent: set[int] = set()

    def complain(row: int, problem: str, what: str) -> None:
        if problem == "broken":
            broken(own, found, UserError(what), f"broken {m}")
        elif problem == "marked":
            found.warn(own.error(m, row, f"has {what}", "fill these values, or empty the cell"), "marked")
        else:
            silent.add(row)
            error = own.error(m, row, "is silent", "replace the file, or give --on-silence skip")
            found.fault(error) if args.on_silence == "fatal" else found.warn(error, "silent")

    observed = sorted({*rows.observed(data, m)} - {*unusable(data, m)})
    facts = decoded(data, m, observed, 0 if data.modalities[m] == "text" else args.workers, complain)
    for row, fact in facts.items():
        if fact.constant and row not in silent:
            found.warn(own.error(m, row, "never changes", "replace the file, or empty the cell"), "constant")
    return {row: f for row, f in facts.items() if row not in silent or args.on_silence != "skip"}


def unlike(data: Dataset, m: str, facts: dict[int, Facts]) -> list[tuple[int, str]]:
    """[(row, what is unlike)] of the images that do not go with the first one."""
    if data.modalities[m] != "image" or not facts:
        return []
    forms = {row: (f.shape[0], f.dtype) for row, f in facts.items()}
    first = next(iter(forms.values()))
    return [(row, what) for row, form in forms.items() if (what := inputs.unlike(form, first))]


def judge(own: Folder, found: Found) -> None:
    """Faults and warnings about the folder as a whole: what a modality lacks, repeated items, classes, pairs."""
    data, oom = own.data, own.oom
    if not own.ims:
        what = f"no modality besides {oom} can be used" if oom else "no modality can be used"
        found.fault(UserError(f"{own.manifest}: {what}; COX needs at least one besides the sensor: add a column"))
    if not own.used:
        return
    for m in own.used:
        try:
            rows.check_items(Namespace(root=None, data=own.args.folder, oom=oom), data, m, list(own.facts[m]))
        except UserError as error:
            found.fault(error)
        for row, first in repeated(data, own.facts[m]) if data.modalities[m] != "text" else ():
            what = f"of {data.split[row]} holds the same as row {own.lines[data.ids[first]][0]} of train"
            found.warn(own.error(m, row, what, "take one of the two rows out"), f"repeated {m}")
    for a, b in alike(data.class_names):
        found.warn(f"{own.manifest}: the labels {a!r} and {b!r} look alike; if they are one class, write one", "alike")
    judge_classes(own, found)
    judge_pairs(own, found)


def judge_classes(own: Folder, found: Found) -> None:
    """Warnings about classes that the new sensor can hardly learn, or is not judged by; a fault where all its items are
    labelled and stage 2 would take them all."""
    data, oom = own.data, own.oom
    if not own.count(oom, labelled=True):
        what = f"no train row that holds {oom} has a label; label some, or expect chance from --setting unsup"
        found.warn(f"{own.manifest}: {what}", "unlabelled")
        return
    held = Counter((data.split[r], data.labels[r]) for r in own.facts[oom])
    if max(n for (split, _), n in held.items() if split == "train") < 2 and not held["train", -1]:
        what = f"each train row that holds {oom} is the only one of its class, so none is left to explore"
        found.fault(UserError(f"{own.manifest}: {what}; add train rows, with a label or without"))
    for c, name in enumerate(data.class_names):
        train, test = held["train", c], held["test", c]
        if train < 2:
            what = f"class {name!r} has {train} train row{'s' * (train != 1)} with {oom}; label two or more"
            found.warn(f"{own.manifest}: {what}", "few")
        if not test:
            what = f"class {name!r} has no test row with {oom}, so nothing judges it; move some to test"
            found.warn(f"{own.manifest}: {what}", "untested")


def judge_pairs(own: Folder, found: Found) -> None:
    """Faults where a modality has no pairs, and none can be drawn within a class."""
    for m in own.ims:
        others = [k for k in own.ims if k != m]
        if others and not shares(own, m) and not any(by_class(own, m, k) for k in others):
            what = f"no train row holds {m} and {' or '.join(others)}, and no class has labelled rows of both"
            found.fault(UserError(f"{own.manifest}: {what}; label some, or leave {m} out with --im"))
        labelled = own.count(own.oom, labelled=True)
        if labelled and not own.count(own.oom, m, labelled=True) and not by_class(own, own.oom, m):
            what = f"no labelled train row holds {own.oom} and {m}, and no class has labelled rows of both"
            found.fault(UserError(f"{own.manifest}: {what}; label some, or leave {m} out with --im"))


def shares(own: Folder, m: str) -> bool:
    """Whether an IM modality shares a train row with another one."""
    return any(own.count(m, k) for k in own.ims if k != m)


def by_class(own: Folder, a: str, b: str) -> bool:
    """Whether some class has labelled train rows of both modalities, so that --pair-by-class finds pairs."""
    of_a, of_b = (
        {own.data.labels[r] for r in own.facts.get(m, ()) if own.data.split[r] == "train"} - {-1} for m in (a, b)
    )
    return bool(of_a & of_b)


# ---------------------------------------------------------------------------------------------------------- class names


def alike(names):
    """[(name, name)] of class names that may be one class: a plural, one letter's slip, other marks between words."""
    words = {name: tuple(re.findall(r"[^\W_]+", name.casefold())) for name in names}
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if _alike(words[a], words[b])]


def _alike(a, b):
    """Whether two names, as tuples of their words, may be one class."""
    if "".join(a) == "".join(b):
        return True
    differ = [(x, y) for x, y in zip(a, b) if x != y]
    if len(a) != len(b) or len(differ) != 1:
        return False
    x, y = sorted(differ[0], key=len)
    if y in (x + "s", x + "es"):
        return len(x) > 2
    return len(x) > 4 and _one_slip(x, y)


def _one_slip(x, y):
    """Whether two words differ by one letter: another, a missing one, or two exchanged; a number is no letter."""
    start = len(os.path.commonprefix([x, y]))
    x, y = x[start:], y[start:]
    end = len(os.path.commonprefix([x[::-1], y[::-1]]))
    x, y = x[: len(x) - end], y[: len(y) - end]
    letters = not any(c.isdigit() for c in x + y)
    return letters and (max(len(x), len(y)) == 1 or len(x) == len(y) == 2 and x == y[::-1])
