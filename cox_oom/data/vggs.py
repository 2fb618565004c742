"""VGGSound, 10-second YouTube clips of 309 sounds (docs/data/vggs.md).

--data vggs --root DIR          vggsound.csv and the clips {YouTube id}_{start, six digits}.mp4 anywhere below DIR;
                                wav files of the same names, where there are some, are the audio
"""

import csv
import io
from typing import Any

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError

NAME = "vggs"
OPTIONS = {
    "audio": "check (each clip's header, kept in .cox-audio.json) or trust (every clip has sound); default check",
    "template": "sentence of language, {} is the class; several separated by |; default 'a video of {}.'",
    "val": "share of the train rows that becomes val, per class (default 0: the official split has none)",
    "seed": "draws val rows and templates (default 0)",
    "frames": "video frames of a clip (default 8)",
}
MEND = "docs/data/vggs.md says where to get it"


def read(
    root: str,
    audio: str = "check",
    template: str = "a video of {}.",
    val: float | str = 0,
    seed: int | str = 0,
    frames: int | str = 8,
    **unknown: Any,
) -> Dataset:
    """Dataset with video, audio and language. Rows are those of vggsound.csv, in its order; classes are sorted."""
    official.check_options(NAME, unknown, OPTIONS)
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    frames = official.number(NAME, "frames", frames, 1, 10_000)

    table = official.annotation(
        NAME,
        root,
        "vggsound.csv",
        where="it alone lists the train rows (test.csv does not); "
        "get it from https://www.robots.ox.ac.uk/~vgg/data/vggsound/vggsound.csv",
    )
    ids, names, split = _rows(table)
    classes = sorted(set(names))
    index = {n: k for k, n in enumerate(classes)}
    labels = [index[n] for n in names]
    split = official.hold_out(NAME, split, labels, val, seed)

    sizes = official.tree(root, media.VIDEO + media.AUDIO)
    videos, sounds = official.by_stem(sizes, media.VIDEO), official.by_stem(sizes, media.AUDIO)
    clips = [videos.get(i, f"{i}.mp4") for i in ids]
    sound = official.with_sound(NAME, root, sizes, [c for i, c in zip(ids, clips) if i not in sounds], audio)
    audio_cells = [sounds.get(i) or (c if sound.get(c, True) else None) for i, c in zip(ids, clips)]
    facts = [official.oracle_fact(template)]
    if None in audio_cells:
        facts.append(official.silent_fact(audio_cells))
    cells = {"video": clips, "audio": audio_cells, "language": official.sentences(NAME, template, names, ids, seed)}

    return official.finish(
        NAME,
        root,
        ids=ids,
        split=split,
        labels=labels,
        class_names=classes,
        modalities={"video": "video", "audio": "audio", "language": "text"},
        cells=cells,
        fetch=official.clips(root, cells, frames),
        sizes=sizes,
        mend=MEND,
        settings={"template": template, "val": float(val), "seed": seed, "frames": frames},
        files=[table],
        facts=facts,
    )


def _rows(table):
    """(ids, class names, splits) of the rows of vggsound.csv; UserError for a row of another form."""
    ids, names, split = [], [], []
    for line, row in enumerate(csv.reader(io.StringIO(official.read_text(table))), 1):
        if not row:
            continue
        if len(row) != 4 or not row[1].strip().isdigit() or row[3].strip() not in ("train", "test"):
            raise UserError(f"{table}, row {line}: {row} is not YouTube id, start second, label, train|test; {MEND}")
        ids.append(f"{row[0].strip()}_{int(row[1]):06d}")
        names.append(row[2].strip())
        split.append(row[3].strip())
    return ids, names, split
