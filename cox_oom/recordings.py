"""New recordings: which ones a folder, a list or a manifest names, and what a learner says of them as a table."""

import csv
import io
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from cox_oom import files
from cox_oom.data import folder
from cox_oom.files import UserError
from cox_oom.predict import Answer, Trained
from cox_oom.report.records import cell
from cox_oom.run import CORES


@dataclass
class Recordings:
    """ids [n], recordings [n] (paths; of text the sentences), labels [n], "" where there is none."""

    ids: list[str]
    items: list[Any]
    labels: list[str] = field(default_factory=list)


def find(source: str, kind: str, modality: str) -> Recordings:
    """The recordings of a kind that `source` names: a file, a folder of files, or a folder with manifest.csv, in which
    a column has the modality's name. Of text: a file with a sentence a line. Raises UserError where there is none."""
    where = Path(source)
    if (where / "manifest.csv").is_file():
        return of_manifest(where, kind, modality)
    if kind == "text" and where.is_file():
        lines = [line for line in where.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return Recordings([str(i + 1) for i in range(len(lines))], lines)
    if where.is_file():
        return Recordings([source], [source])
    if not where.is_dir():
        raise UserError(f"--new {source}: it is not there; give a file, a folder, or - for paths from standard input")
    wanted = (".txt",) if kind == "text" else folder.EXTENSIONS[kind]
    found = sorted(p for p in where.rglob("*") if p.suffix.lower() in wanted and p.is_file())
    if not found:
        raise UserError(f"--new {source}: no file of kind {kind} in it; its names end in {' '.join(wanted)}")
    items = [p.read_text(encoding="utf-8-sig").strip() for p in found] if kind == "text" else [str(p) for p in found]
    return Recordings([p.relative_to(where).as_posix() for p in found], items)


def of_manifest(where: Path, kind: str, modality: str) -> Recordings:
    """The filled cells of a modality's column; the columns id and label are taken where they are there."""
    path = where / "manifest.csv"
    try:
        with open(path, encoding="utf-8-sig", newline="") as f:
            rows = list(csv.DictReader(f, strict=True))
    except (UnicodeDecodeError, csv.Error) as e:
        raise UserError(f"{path} is no table in UTF-8 ({e}); save it as one") from None
    if not rows or modality not in rows[0]:
        raise UserError(f"{path} has no column {modality}; name the one with the recordings so")
    rows = [{k: (v or "").strip() for k, v in row.items() if isinstance(k, str)} for row in rows]
    rows = [row for row in rows if row[modality]]
    if not rows:
        raise UserError(f"{path}: the column {modality} is empty; fill some of its cells")
    cells = [row[modality] for row in rows]
    items = cells if kind == "text" else [os.path.join(where, c) for c in cells]
    return Recordings([row.get("id") or row[modality] for row in rows], items, [row.get("label", "") for row in rows])


def line(answer: Answer, i: int, classes: Sequence[str], abstain: float) -> tuple[str, str, str]:
    """Class, confidence and note of recording i: no class where it could not be read, or is less sure than
    `abstain`."""
    p = answer.posteriors[i]
    if p[0].isnan():
        return "", "", answer.notes[i]
    best, c = p.max(0)
    notes = [answer.notes[i]] if answer.notes[i] else []
    if answer.novelty[i] > 1:
        notes.append("unlike the training items")
    if best < abstain:
        notes.append(f"less sure than {abstain:g}")
    return ("" if best < abstain else classes[int(c)]), f"{best.item():.4f}", "; ".join(notes)


def write(path: Path, ids: Sequence[str], answer: Answer, classes: Sequence[str], abstain: float) -> None:
    """predictions.csv: id, class, confidence, novelty, note, and a column of posteriors for each class."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "class", "confidence", "novelty", "note", *map(cell, classes)])
    for i, name in enumerate(ids):
        guess, sure, note = line(answer, i, classes, abstain)
        read = not answer.posteriors[i, 0].isnan()
        values = [f"{v:.6f}" for v in answer.posteriors[i].tolist()] if read else [""] * len(classes)
        far = f"{answer.novelty[i].item():.3f}" if read else ""
        writer.writerow([cell(name), cell(guess), sure, far, cell(note), *values])
    files.write_atomic(path, lambda tmp: tmp.write_text(table.getvalue(), encoding="utf-8"))


def name(learner: Trained, source: str, out: Path, abstain: float) -> bool:
    """Write OUT/predictions.csv of the recordings that `source` names and print the first lines. Returns whether all
    could be read."""
    found = find(source, learner.kind, learner.modality)
    answer = learner.answer(found.items, workers=CORES)
    write(out / "predictions.csv", found.ids, answer, learner.classes, abstain)
    lines = [line(answer, i, learner.classes, abstain) for i in range(len(found.ids))]
    for i, (guess, sure, note) in list(zip(found.ids, lines))[:10]:
        print(f"  {i}: {guess or 'no class'}{f' {sure}' if sure else ''}{f' ({note})' if note else ''}")
    unread = int(answer.posteriors[:, 0].isnan().sum())
    print(f"wrote {out / 'predictions.csv'}: {len(lines)} recordings, {unread} of them could not be read")
    if right := [guess == label for (guess, _, _), label in zip(lines, found.labels) if label]:
        print(f"{100 * sum(right) / len(right):.1f}% of the {len(right)} recordings with a label are named by it")
    return not unread


def stream(learner: Trained, lines: TextIO, abstain: float) -> bool:
    """Print a line "path,class,confidence,note" for each line of a stream, as it comes. Returns whether all could be
    read."""
    writer, whole = csv.writer(sys.stdout, lineterminator="\n"), True
    for text in iter(lines.readline, ""):
        if item := text.rstrip("\r\n"):
            answer = learner.answer([item])
            writer.writerow([item, *line(answer, 0, learner.classes, abstain)])
            sys.stdout.flush()
            whole &= not bool(answer.posteriors[0, 0].isnan())
    return whole
