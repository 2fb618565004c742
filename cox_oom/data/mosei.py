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

import numpy as np
from tqdm import tqdm

from cox_oom.files import UserError, optional
from cox_oom.data import media, official

NAME = "mosei"
OPTIONS = {"classes": "emotion (strongest of six, or neutral; needs the .csd), emotion6 (as the .csv has it) or "
                      "sentiment7 (-3 to 3); default emotion",
           "language": "class (a sentence made from the class, as in the paper) or transcript (what is said); default "
                       "class",
           "template": "sentence of language, {} is the class; several separated by |; default 'the person speaking is "
                       "{}.' or, for sentiment7, 'a person is speaking, the sentiment is {}.'",
           "audio": "check (each clip's header, kept in .cox-audio.json) or trust (every clip has sound); default check",
           "seed": "draws templates (default 0)",
           "frames": "video frames of a clip (default 8)"}
MEND = "docs/data/mosei.md says where to get it"
EMOTIONS = ("happy", "sad", "angry", "surprised", "disgusted", "fearful")       # the order of the .csd and of label6
SENTIMENTS = ("highly negative", "negative", "weakly negative", "neutral", "weakly positive", "positive",
              "highly positive")
SPLITS = {"0": "train", "1": "val", "2": "test"}                                # 3: in no official fold
CLOSE = 0.02            # seconds by which the times of two lists may differ


def read(root, classes="emotion", language="class", template=None, audio="check", seed=0, frames=8, **unknown):
    """Dataset with video, audio and language; rows are the sentences of the official folds."""
    official.check_options(NAME, unknown, OPTIONS)
    classes = official.choice(NAME, "classes", classes, ("emotion", "emotion6", "sentiment7"))
    language = official.choice(NAME, "language", language, ("class", "transcript"))
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    frames = official.number(NAME, "frames", frames, 1, 10_000)
    if template is None:
        template = "the person speaking is {}."
        if classes == "sentiment7":
            template = "a person is speaking, the sentiment is {}."

    # ------------------------------------------------------------------------- sentences, splits and labels
    table = official.annotation(NAME, root, "CMU_MOSEI_Labels.csv", where=MEND, optional=True)
    csd = official.annotation(NAME, root, "CMU_MOSEI_Labels.csd", where=MEND, optional=True)
    if not table and not csd:
        raise UserError(f"--data mosei --root {root}: neither CMU_MOSEI_Labels.csv nor CMU_MOSEI_Labels.csd is there; "
                        f"{MEND}")
    if classes == "emotion" and not csd:
        raise UserError(f"--data mosei --root {root}: seven emotions need CMU_MOSEI_Labels.csd (the .csv counts sentences "
                        f"without emotion as happy); get it, or use --mosei-classes emotion6 or sentiment7")
    if classes == "emotion6" and not table:
        raise UserError(f"--data mosei --root {root}: emotion6 is a column of CMU_MOSEI_Labels.csv; get it, or use "
                        f"--mosei-classes emotion")
    strengths = _csd(csd) if csd and (classes == "emotion" or not table) else None
    files, facts = [p for p in (table, csd if strengths is not None else None) if p], []
    if table:
        rows, unused = _csv(table)              # [(video, number, start, end, split, label6, label7)]
        if unused:
            facts.append(f"{unused:,} sentences of {table} lie in no official fold (split 3): left out")
    else:
        folds = official.annotation(NAME, root, "cmu_mosei_std_folds.py", where=f"it has the splits, as has "
                                    f"CMU_MOSEI_Labels.csv; {MEND}")
        files.append(folds)
        part = _folds(folds)
        rows = [(v, k, s, e, part[v], None, None) for v, found in strengths.items() if v in part
                for k, (s, e, _) in enumerate(found)]
    if classes == "emotion":
        names, labels, ties = (*EMOTIONS, "neutral"), [], 0
        for video, k, start, end, *_ in rows:
            six = _same(strengths.get(video, ()), start, end)
            if six is None:
                raise UserError(f"{csd}: no sentence of {video} from second {start:g} to {end:g}, which {table} has; "
                                f"{MEND}")
            six = six[1:7]
            labels.append(6 if not (six > 0).any() else int(six.argmax()))
            ties += int((six > 0).any() and (six == six.max()).sum() > 1)
        facts.append(f"classes: the strongest of six emotions, neutral where all are 0 ({labels.count(6):,} rows); in "
                     f"{ties:,} rows two or more are strongest: the first of {', '.join(EMOTIONS)}")
    elif classes == "emotion6":
        names, labels = EMOTIONS, [r[5] for r in rows]
        facts.append("classes: label6 of CMU_MOSEI_Labels.csv, which counts sentences without emotion as happy")
    else:
        names = SENTIMENTS
        labels = [r[6] if r[6] is not None else _sentiment(_same(strengths[r[0]], r[2], r[3])[0]) for r in rows]
        facts.append("classes: sentiment, rounded away from 0 to -3...3")

    # ------------------------------------------------------------------------------------------------ the media
    sizes = official.tree(root, media.VIDEO + media.AUDIO)
    said = _transcripts(root)
    cut = official.by_stem([p for p in sizes if "Segmented" in p.split("/")], media.VIDEO)
    full = official.by_stem([p for p in sizes if "Segmented" not in p.split("/")], media.VIDEO)
    wav = official.by_stem([p for p in sizes if "Segmented" not in p.split("/")], media.AUDIO)
    cells = {"video": [], "audio": [], "language": []}
    for video, k, start, end, *_ in rows:
        clip = _same(said.get(video, ()), start, end)       # (number of the segment, words): not the row's own number
        time = f"::{max(0.0, start):.3f}-{end:.3f}"
        segment = cut.get(f"{video}_{clip[0]}") if clip else None
        cells["video"].append(segment or f"{full.get(video, f'{video}.mp4')}{time}")
        cells["audio"].append(f"{wav[video]}{time}" if video in wav else cells["video"][-1])
        cells["language"].append(clip[1] if clip else None)
    tracks = [c.split("::")[0] for c in cells["audio"]]
    sound = official.with_sound(NAME, root, sizes, [t for t in tracks if t.lower().endswith(media.VIDEO)], audio)
    cells["audio"] = [c if sound.get(t, True) else None for c, t in zip(cells["audio"], tracks)]
    if None in cells["audio"]:
        facts.append(f"audio: {cells['audio'].count(None):,} of {len(rows):,} clips carry no audio: kept, masked")
    if not said and cut:
        facts.append("the segmented videos cannot be told apart without Raw/Transcript/Segmented/Combined/*.txt: full "
                     "videos are cut instead")
    ids = [f"{r[0]}_{r[1]}" for r in rows]
    if language == "class":
        cells["language"] = official.sentences(NAME, template, [names[k] for k in labels], ids, seed)
        facts.append(official.told(template))
    elif not any(cells["language"]):
        raise UserError(f"--data mosei --root {root}: language=transcript needs Raw/Transcript/Segmented/Combined/*.txt "
                        f"with the lines of these videos; {MEND}, or leave the option out")
    elif None in cells["language"]:
        facts.append(f"language: {cells['language'].count(None):,} of {len(rows):,} rows have no transcript: kept, masked")

    def fetch(modality, row, sample):
        file, _, time = cells[modality][row].partition("::")
        start, end = map(float, time.split("-")) if time else (None, None)
        path = os.path.join(root, file)
        if modality == "audio":
            return media.load_audio(path, start, end)
        return media.load_video(path, frames, sample, start, end)

    return official.finish(
        NAME, root, ids=ids, split=[r[4] for r in rows], labels=labels, class_names=names,
        modalities={"video": "video", "audio": "audio", "language": "text"}, cells=cells, fetch=fetch, sizes=sizes,
        mend=MEND, files=files, facts=facts,
        settings={"classes": classes, "language": language, "template": template, "seed": seed, "frames": frames})


def _csv(path):
    """([(video, number, start, end, split, label6, label7 as 0...6)] of the official folds, how many lie in none)."""
    rows, unused = [], 0
    for line, r in enumerate(csv.DictReader(io.StringIO(official.read_text(path))), 2):
        try:
            if r["split"] not in SPLITS:
                unused += 1
                continue
            row = (r["file"], int(r["index"]), float(r["start"]), float(r["end"]), SPLITS[r["split"]], int(r["label6"]),
                   int(r["label7"]) + 3)
            if not (0 <= row[5] < 6 and 0 <= row[6] < 7):
                raise ValueError("label6 is 0...5, label7 is -3...3")
            rows.append(row)
        except (KeyError, TypeError, ValueError) as e:
            raise UserError(f"{path}, row {line}: not file, index, start, end, label6, label7, split "
                            f"({media.reason(e)}); {MEND}") from None
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
    out = {}
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


def _same(found, start, end):
    """What goes with the interval of `found` [(start, end, it)] that is this one, else None."""
    near = min(found, key=lambda f: abs(f[0] - start) + abs(f[1] - end), default=None)
    return near[2] if near is not None and abs(near[0] - start) <= CLOSE and abs(near[1] - end) <= CLOSE else None


def _sentiment(x):
    """0...6 of a sentiment in -3...3: 3 for 0 alone, else rounded away from 0, as the toolkit's own rounding."""
    x = min(3.0, max(-3.0, float(x)))
    return 3 + (math.ceil(x) if x > 0 else math.floor(x))
