"""CMU-MOSEI, 3,228 monologues cut into 23,000 sentences, with emotions and sentiment (docs/data/mosei.md).

--data mosei --root DIR         CMU_MOSEI_Labels.csd (emotions) and CMU_MOSEI_Labels.csv (sentences and splits), and
                                Raw/Videos/{Segmented,Full}/Combined/*.mp4, Raw/Audio/Full/WAV_16000/*.wav,
                                Raw/Transcript/Segmented/Combined/*.txt, anywhere below DIR
"""

import ast
import csv
import io
import math
import os
from typing import Any

import numpy as np
from tqdm import tqdm

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError, optional

NAME = "mosei"
TEMPLATES = {"sentiment7": "a person is speaking, the sentiment is {}."}
OPTIONS = {
    "classes": "emotion (strongest of six, or neutral; needs the .csd), emotion6 (as the .csv has it) or "
    "sentiment7 (-3 to 3); default emotion",
    "language": "class (a sentence made from the class, as in the paper) or transcript (what is said); default class",
    "template": "sentence of language, {} is the class; several separated by |; default 'the person speaking is "
    "{}.' or, for sentiment7, 'a person is speaking, the sentiment is {}.'",
    "audio": "check (each clip's header, kept in .cox-audio.json) or trust (every clip has sound); default check",
    "seed": "draws templates (default 0)",
    "frames": "video frames of a clip (default 8)",
}
MEND = "docs/data/mosei.md says where to get it"
EMOTIONS = ("happy", "sad", "angry", "surprised", "disgusted", "fearful")  # the order of the .csd and of label6
SENTIMENTS = (
    "highly negative",
    "negative",
    "weakly negative",
    "neutral",
    "weakly positive",
    "positive",
    "highly positive",
)
SPLITS = {"0": "train", "1": "val", "2": "test"}  # 3: in no official fold
CLOSE = 0.02  # seconds by which the times of two lists may differ


def read(
    root: str,
    classes: str = "emotion",
    language: str = "class",
    template: str | None = None,
    audio: str = "check",
    seed: int | str = 0,
    frames: int | str = 8,
    **unknown: Any,
) -> Dataset:
    """Dataset with video, audio and language; rows are the sentences of the official folds."""
    official.check_options(NAME, unknown, OPTIONS)
    classes = official.choice(NAME, "classes", classes, ("emotion", "emotion6", "sentiment7"))
    language = official.choice(NAME, "language", language, ("class", "transcript"))
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    frames = official.number(NAME, "frames", frames, 1, 10_000)
    if template is None:
        template = TEMPLATES.get(classes, "the person speaking is {}.")
    table, csd = _annotations(root, classes)
    strengths = _csd(csd) if csd and (classes == "emotion" or not table) else None
    rows, folds, facts = _sentences(root, table, strengths)
    names, labels, fact = _classes(classes, rows, strengths, table, csd)
    facts.append(fact)

    sizes = official.tree(root, media.VIDEO + media.AUDIO)
    transcripts = _transcripts(root)
    segments, videos, sounds = _media(sizes)
    cells = _cells(rows, transcripts, segments, videos, sounds)
    cells["audio"] = _with_sound(root, sizes, cells["audio"], audio)
    if None in cells["audio"]:
        facts.append(f"audio: {cells['audio'].count(None):,} of {len(rows):,} clips carry no audio: kept, masked")
    if not transcripts and segments:
        facts.append(
            "the segmented videos cannot be told apart without Raw/Transcript/Segmented/Combined/*.txt: full "
            "videos are cut instead"
        )
    ids = [f"{r[0]}_{r[1]}" for r in rows]
    if language == "class":
        cells["language"] = official.sentences(NAME, template, [names[k] for k in labels], ids, seed)
        facts.append(official.oracle_fact(template))
    else:
        facts += _check_transcripts(root, cells["language"])

    return official.finish(
        NAME,
        root,
        ids=ids,
        split=[r[4] for r in rows],
        labels=labels,
        class_names=names,
        modalities={"video": "video", "audio": "audio", "language": "text"},
        cells=cells,
        fetch=_fetch(root, cells, frames),
        sizes=sizes,
        mend=MEND,
        files=[p for p in (table, csd if strengths is not None else None, folds) if p],
        facts=facts,
        settings={"classes": classes, "language": language, "template": template, "seed": seed, "frames": frames},
    )


# ------------------------------------------------------------------------------- sentences, splits and labels


def _annotations(root, classes):
    """Paths of CMU_MOSEI_Labels.csv and .csd, None for one that is not there; UserError where `classes` needs it."""
    table = official.annotation(NAME, root, "CMU_MOSEI_Labels.csv", where=MEND, optional=True)
    csd = official.annotation(NAME, root, "CMU_MOSEI_Labels.csd", where=MEND, optional=True)
    if not table and not csd:
        raise UserError(
            f"--data mosei --root {root}: neither CMU_MOSEI_Labels.csv nor CMU_MOSEI_Labels.csd is there; {MEND}"
        )
    if classes == "emotion" and not csd:
        raise UserError(
            f"--data mosei --root {root}: seven emotions need CMU_MOSEI_Labels.csd (the .csv counts "
            f"sentences without emotion as happy); get it, or use --option classes=emotion6 or classes=sentiment7"
        )
    if classes == "emotion6" and not table:
        raise UserError(
            f"--data mosei --root {root}: emotion6 is a column of CMU_MOSEI_Labels.csv; get it, or use "
            f"--option classes=emotion"
        )
    return table, csd


def _sentences(root, table, strengths):
    """([(video, number, start, end, split, label6, label7)], path of the standard folds or None, facts).

    table: path of the .csv; None: the rows are those of strengths, which _csd gives, without label6 and label7, and the
    standard folds have the splits.
    """
    if table:
        rows, unused = _csv(table)
        facts = [f"{unused:,} sentences of {table} lie in no official fold (split 3): left out"] if unused else []
        return rows, None, facts
    folds = official.annotation(
        NAME, root, "cmu_mosei_std_folds.py", where=f"it has the splits, as has CMU_MOSEI_Labels.csv; {MEND}"
    )
    split = _folds(folds)
    rows = [
        (video, k, start, end, split[video], None, None)
        for video, intervals in strengths.items()
        if video in split
        for k, (start, end, _) in enumerate(intervals)
    ]
    return rows, folds, []


def _classes(classes, rows, strengths, table, csd):
    """(class names, n labels, the fact about them) of the rows that _sentences gives."""
    if classes == "emotion":
        labels, ties = _emotions(rows, strengths, table, csd)
        return (
            (*EMOTIONS, "neutral"),
            labels,
            (
                f"classes: the strongest of six emotions, neutral where all are 0 ({labels.count(6):,} rows); in "
                f"{ties:,} rows two or more are strongest: the first of {', '.join(EMOTIONS)}"
            ),
        )
    if classes == "emotion6":
        fact = "classes: label6 of CMU_MOSEI_Labels.csv, which counts sentences without emotion as happy"
        return EMOTIONS, [r[5] for r in rows], fact
    labels = [r[6] if r[6] is not None else _sentiment(_same(strengths[r[0]], r[2], r[3])[0]) for r in rows]
    return SENTIMENTS, labels, "classes: sentiment, rounded away from 0 to -3...3"


def _emotions(rows, strengths, table, csd):
    """(n labels 0...6, how many rows have two strongest emotions); UserError for a row that strengths lack."""
    labels, ties = [], 0
    for video, _, start, end, *_ in rows:
        vector = _same(strengths.get(video, ()), start, end)
        if vector is None:
            raise UserError(
                f"{csd}: no sentence of {video} from second {start:g} to {end:g}, which {table} has; {MEND}"
            )
        six = vector[1:7]
        labels.append(6 if not (six > 0).any() else int(six.argmax()))
        ties += int((six > 0).any() and (six == six.max()).sum() > 1)
    return labels, ties


# ------------------------------------------------------------------------------------------------ the media


def _media(sizes):
    """({segment: path of its video}, {video: path of the full one}, {video: path of the full sound})."""
    segments = [p for p in sizes if "Segmented" in p.split("/")]
    full = [p for p in sizes if "Segmented" not in p.split("/")]
    return (
        official.by_stem(segments, media.VIDEO),
        official.by_stem(full, media.VIDEO),
        official.by_stem(full, media.AUDIO),
    )


def _cells(rows, transcripts, segments, videos, sounds):
    """{modality: n cells}: a sentence's segment, else the full file and seconds; its transcript or None."""
    cells: dict[str, list] = {"video": [], "audio": [], "language": []}
    for video, _, start, end, *_ in rows:
        clip = _same(transcripts.get(video, ()), start, end)  # (number of the segment, not of the row; words)
        time = f"::{max(0.0, start):.3f}-{end:.3f}"
        segment = segments.get(f"{video}_{clip[0]}") if clip else None
        cells["video"].append(segment or f"{videos.get(video, f'{video}.mp4')}{time}")
        cells["audio"].append(f"{sounds[video]}{time}" if video in sounds else cells["video"][-1])
        cells["language"].append(clip[1] if clip else None)
    return cells


def _with_sound(root, sizes, cells, audio):
    """The audio cells, None for those of a video without an audio track. audio: as official.with_sound takes it."""
    paths = [c.split("::")[0] for c in cells]
    sound = official.with_sound(NAME, root, sizes, [p for p in paths if p.lower().endswith(media.VIDEO)], audio)
    return [c if sound.get(p, True) else None for c, p in zip(cells, paths)]


def _check_transcripts(root, cells):
    """[the fact that some rows have no transcript], empty where all have one; UserError where none has."""
    if not any(cells):
        raise UserError(
            f"--data mosei --root {root}: language=transcript needs "
            f"Raw/Transcript/Segmented/Combined/*.txt with the lines of these videos; "
            f"{MEND}, or leave the option out"
        )
    if None not in cells:
        return []
    return [f"language: {cells.count(None):,} of {len(cells):,} rows have no transcript: kept, masked"]


def _fetch(root, cells, frames):
    """The function that official.finish takes: (modality, row, sample) -> the raw item."""

    def fetch(modality, row, sample):
        file, _, time = cells[modality][row].partition("::")
        start, end = map(float, time.split("-")) if time else (None, None)
        path = os.path.join(root, file)
        if modality == "audio":
            return media.load_audio(path, start, end, resample=sample)
        return media.load_video(path, frames, sample, start, end)

    return fetch


# --------------------------------------------------------------------------------------- the annotation files


def _csv(path):
    """([(video, number, start, end, split, label6, label7 as 0...6)] of the official folds, how many lie in none)."""
    rows, unused = [], 0
    for line, r in enumerate(csv.DictReader(io.StringIO(official.read_text(path))), 2):
        try:
            if r["split"] not in SPLITS:
                unused += 1
                continue
            row = (
                r["file"],
                int(r["index"]),
                float(r["start"]),
                float(r["end"]),
                SPLITS[r["split"]],
                int(r["label6"]),
                int(r["label7"]) + 3,
            )
            if not (0 <= row[5] < 6 and 0 <= row[6] < 7):
                raise ValueError("label6 is 0...5, label7 is -3...3")
            rows.append(row)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(
                f"{path}, row {line}: not file, index, start, end, label6, label7, split ({media.reason(e)}); {MEND}"
            ) from None
    return rows, unused


def _csd(path):
    """{video: [(start, end, strengths (7,): sentiment, six emotions)]} of the labels' computational sequence (HDF5)."""
    h5py = optional("h5py", "reading a .csd file (HDF5)")
    out = {}
    try:
        with h5py.File(path, "r") as f:
            data = f["All Labels/data"]
            for video in tqdm(data, desc="labels", mininterval=1, disable=None):
                strength, time = np.asarray(data[video]["features"]), np.asarray(data[video]["intervals"])
                if strength.shape != (len(time), 7) or time.shape[1] != 2:
                    raise ValueError(f"{video} has features {strength.shape}, intervals {time.shape}")
                out[video] = [(float(s), float(e), x) for (s, e), x in zip(time, strength)]
    except (OSError, KeyError, ValueError, RuntimeError) as e:
        raise UserError(f"{path}: not the labels' sequence 'All Labels' ({media.reason(e)}); {MEND}") from None
    return out


def _folds(path):
    """{video: split} of the standard folds, three lists in a Python file; it is parsed, never run."""
    names = {"standard_train_fold": "train", "standard_valid_fold": "val", "standard_test_fold": "test"}
    out = {}
    try:
        for node in ast.parse(official.read_text(path)).body:
            for target in getattr(node, "targets", ()):
                if getattr(target, "id", None) in names:
                    out.update(dict.fromkeys(ast.literal_eval(node.value), names[target.id]))
    except (SyntaxError, ValueError, TypeError) as e:
        raise UserError(f"{path}: not the standard folds ({media.reason(e)}); {MEND}") from None
    return out


def _transcripts(root):
    """{video: [(start, end, (segment, words))]} of all lines video___segment___start___end___words below root."""
    out: dict[str, list] = {}
    for path in official.tree(root, (".txt",)):
        if "Transcript" not in path.split("/"):
            continue
        video = os.path.splitext(path.rsplit("/", 1)[-1])[0]
        with open(os.path.join(root, path), encoding="utf-8", errors="replace") as f:
            for line in f:
                # names begin and end with _, too, and the words may hold ___ themselves
                cells = line.strip().removeprefix(f"{video}___").split("___", 3)
                try:
                    clip, start, end, words = cells[0], float(cells[1]), float(cells[2]), cells[3].strip("_ ")
                except (IndexError, ValueError):
                    continue
                out.setdefault(video, []).append((start, end, (clip, words)))
    return out


def _same(intervals, start, end):
    """What goes with the one of `intervals` [(start, end, it)] that is this one, else None."""
    near = min(intervals, key=lambda i: abs(i[0] - start) + abs(i[1] - end), default=None)
    return near[2] if near is not None and abs(near[0] - start) <= CLOSE and abs(near[1] - end) <= CLOSE else None


def _sentiment(x):
    """0...6 of a sentiment in -3...3: 3 for 0 alone, else rounded away from 0, as the toolkit's own rounding."""
    x = min(3.0, max(-3.0, float(x)))
    return 3 + (math.ceil(x) if x > 0 else math.floor(x))
