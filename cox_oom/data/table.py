"""The table of a folder of recordings: manifest.csv, its columns, rows, ids, splits and labels (docs/data/folder.md).

Every complaint is a UserError of one line: file, row, id, what, mend. Each check hands its complaints to a function:
`stop` ends with the first, a list's append collects them all.
"""

import csv
import io
import os
import re
import unicodedata
from typing import Any

from cox_oom.files import SPLITS, UserError

REQUIRED = ("id", "split", "label")
NO_LABEL = {
    "nan",
    "none",
    "null",
    "na",
    "n/a",
    "n.a.",
    "#n/a",
    "<na>",
    "nat",
    "nil",
    "<null>",
    "(null)",
    "\\n",
    "undefined",
    "?",
    "-",
    "--",
}  # what programs write for no value


# Marks without width that unicodedata does not call formats (Cf): joiners, fillers, choices of a glyph.
UNSEEN = re.compile("[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff]")


class RowError(UserError):
    """A complaint about one row: line (its number in the file), mend."""

    line: int
    mend: str


def stop(error):
    """What is done with a complaint where nothing else is said: it ends the reading."""
    raise error


def read_table(manifest, complain=stop):
    """(header, [(line number in the file, {column: cell})], the file's bytes); cells lose outer spaces.

    complain takes the errors about rows of a wrong length, which are left out. What is wrong with the file as a whole
    is raised.
    """
    if not os.path.isfile(manifest):
        raise UserError(
            f"{manifest}: not there; a data folder needs this table with the columns id,split,label,<modality>,..."
        )
    with open(manifest, "rb") as f:
        data = f.read()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = data[: e.start].count(b"\n") + 1
        raise UserError(f"{manifest}, row {line}: not UTF-8; save the table as UTF-8") from None
    reader, header, rows, start = csv.reader(io.StringIO(text, newline=""), strict=True), None, [], 1
    try:
        for record in reader:
            line, start = start, reader.line_num + 1  # a quoted cell may span lines: name the first
            record = [cell.strip() for cell in record]
            if not any(record):  # a blank line, or commas alone
                continue
            if header is None:
                header = check_header(manifest, record)
            elif len(record) != len(header):
                name = _short((record[header.index("id") :] or [""])[0]) or "empty"
                mend = "add the commas" if len(record) < len(header) else "put cells with commas in quotes"
                what = f"{len(record)} cells, but the header has {len(header)} columns"
                complain(row_error(manifest, (line, {"id": name}), what, mend))
            else:
                rows.append((line, dict(zip(header, record))))
    except csv.Error as e:
        raise UserError(f"{manifest}, row {start}: not a valid csv table ({e}); correct the quotes") from None
    if header is None:
        raise UserError(f"{manifest}: empty; the first line names the columns id,split,label,<modality>,...")
    if not rows:
        raise UserError(f"{manifest}: no rows below the header; add one row per instance")
    return header, rows, data


def check_header(manifest, record):
    """The first line's cells, the names of the columns, where they are right; else UserError."""
    if len(record) == 1 and (other := next((c for c in ";\t|" if c in record[0]), None)):
        raise UserError(
            f"{manifest}, row 1: the cells are separated by {other!r}; save the table with commas between them"
        )
    for name in REQUIRED:
        if name not in record:
            raise UserError(
                f"{manifest}, row 1: column {name} is missing; the columns are id,split,label,<modality>,..."
            )
    for name in record:
        if not name:
            raise UserError(f"{manifest}, row 1: a column has no name; name it or remove it")
        if record.count(name) > 1:
            raise UserError(
                f"{manifest}, row 1: column {name} is there {record.count(name)} times; rename or remove one"
            )
    for name in record:  # modality names become file names under runs/
        look = _look(name, fold=False)
        if look and look != name:
            raise UserError(
                f"{manifest}, row 1: column name {_short(name)!a} is not what it looks like; type it anew: {look}"
            )
        if any(c in name for c in "/\\") or name[0] == "." or not look or len(name.encode()) > 100:
            raise UserError(f"{manifest}, row 1: column name {_short(name)!r} cannot name a file; rename it")
    if len(record) == len(REQUIRED):
        raise UserError(f"{manifest}, row 1: no modality column; add one per modality, as in id,split,label,rgb,audio")
    return record


def stands_for_none(text):
    """Whether a cell holds what programs write for no value."""
    return _look(text) in NO_LABEL


def row_error(manifest, row, what, mend):
    """The RowError about a row: file, line, id, what, mend."""
    line, cells = row
    error = RowError(
        f"{manifest}, row {line} (id {_short(cells['id']) or 'empty'}): {_short(what, 400)}; {_short(mend, 400)}"
    )
    error.line, error.mend = line, mend
    return error


def _short(text, most=100):
    """A text for a line, without its middle where it is long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 4 :]}"


def check_rows(manifest, rows, modalities, complain=stop):
    """The rows that can be used. Complains of an empty or repeated id, an unknown split, an empty row; and where no row
    is of train or of test. A split such as Train or validation is complained of, and then read as it is meant."""
    lines: dict[str, int] = {}  # id -> line
    usable = []
    for row in rows:
        faults = list(_row_faults(row, modalities, lines))
        for fault in faults:
            complain(row_error(manifest, row, *fault))
        lines.setdefault(row[1]["id"], row[0])
        meant = next((s for s in SPLITS if row[1]["split"].lower().startswith(s)), None)
        if meant and all(what.startswith("split") for what, _ in faults):
            usable.append((row[0], {**row[1], "split": meant}) if faults else row)
    splits = {cells["split"] for _, cells in rows}
    for part in ("train", "test"):
        if part not in splits and splits <= set(SPLITS):
            complain(UserError(f"{manifest}: no row has split {part}; set the split of some rows to {part}"))
    return usable


def _row_faults(row, modalities, lines):
    """(what, mend) of each fault of a row by itself. lines: {id: line} of the rows before it."""
    _, cells = row
    if not cells["id"]:
        yield "the id is empty", "give every row an id of its own"
    elif cells["id"] in lines:
        yield (
            f"the id is already in row {lines[cells['id']]}",
            "put all modalities of an instance into its one row; give another instance an id of its own",
        )
    if cells["split"] not in SPLITS:
        yield f"split {cells['split']!r} is unknown", "use train, val or test"
    if not any(cells[m] for m in modalities):
        yield "no modality is filled", "fill a cell or delete the row"


def class_names(manifest, rows, complain=stop):
    """The train rows' labels, sorted. Complains where they are fewer than 2, and of a label of val or test that is none
    of them."""
    _check_labels(manifest, rows, complain)
    of_train = {cells["label"] for _, cells in rows if cells["split"] == "train"}
    names = sorted(label for label in of_train if _look(label) not in {"", *NO_LABEL})
    if len(names) < 2:
        complain(
            UserError(
                f"{manifest}: the train rows have {len(names)} class{'es' if not names else ''} "
                f"({', '.join(names) or 'no labels'}); label train rows with at least 2 classes"
            )
        )
    for row in rows:
        _, cells = row
        if cells["label"] not in names and _look(cells["label"]) not in {"", *NO_LABEL}:
            complain(
                row_error(
                    manifest,
                    row,
                    f"the {cells['split']} label {cells['label']!r} is in no train row",
                    "label train rows with it or remove this row",
                )
            )
    return names


def _check_labels(manifest, rows, complain):
    """Complains of a label that stands for none, and of two that look the same but are not."""
    seen: dict[str, Any] = {}  # how a label looks -> the first such label, its line
    told: set[str] = set()
    for row in rows:
        line, label = row[0], row[1]["label"]
        look = _look(label)
        if look in NO_LABEL or label and not look:
            complain(
                row_error(
                    manifest,
                    row,
                    f"the label is {_short(label)!r}; is it unlabelled?",
                    "empty the cell then, or give the class another name, such as 'nothing'",
                )
            )
            continue
        if not label:
            continue
        first, where = seen.setdefault(look, (label, line))
        if first != label and label not in told:
            told.add(label)
            case = _look(label, fold=False) != _look(first, fold=False)
            show = repr if case else ascii
            complain(
                row_error(
                    manifest,
                    row,
                    f"the label {show(label)} and {show(first)} of row {where} differ only in "
                    f"{'case' if case else 'what cannot be seen'}",
                    "write one of them in both, or give the classes names that differ",
                )
            )


def _look(label, fold=True):
    """A label as a reader sees it, without case where `fold`: composed letters, no invisible marks, single spaces."""
    seen = (
        c for c in unicodedata.normalize("NFC", label) if c.isspace() or unicodedata.category(c) not in ("Cf", "Cc")
    )
    look = unicodedata.normalize("NFC", " ".join(UNSEEN.sub("", "".join(seen)).split()))
    return unicodedata.normalize("NFC", look.casefold()) if fold else look
