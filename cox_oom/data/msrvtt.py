"""MSR-VTT, 10,000 video clips with 20 captions each in 20 categories (docs/data/msrvtt.md).

--data msrvtt --root DIR        train_val_videodatainfo.json, test_videodatainfo.json (or MSRVTT_data.json) and the
                                videos, anywhere below DIR: TrainValVideo/ and TestVideo/, or videos/all/
"""

import csv
import io
import json
from typing import Any

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError

NAME = "msrvtt"
OPTIONS = {
    "split": "official (6,513 / 497 / 2,990) or 9k (JSFUSION's 9,000 / 0 / 1,000, '1k-A'); default official",
    "caption": "first (the first by sen_id), all (the 20 joined), or 0 to 19 (that one by sen_id); default first",
    "audio": "check (each clip's header, kept in .cox-audio.json) or trust (every clip has sound); default check",
    "frames": "video frames of a clip (default 8)",
}
MEND = "docs/data/msrvtt.md says where to get it"
CLASSES = (
    "music",
    "people",
    "gaming",
    "sports/actions",
    "news/events/politics",
    "education",
    "tv shows",
    "movie/comedy",
    "animation",
    "vehicles/autos",
    "howto",
    "travel",
    "science/technology",
    "animals/pets",
    "kids/family",
    "documentary",
    "food/drink",
    "cooking",
    "beauty/fashion",
    "advertisement",
)  # by index
SPLIT = {"train": "train", "validate": "val", "test": "test"}


def read(
    root: str,
    split: str = "official",
    caption: str = "first",
    audio: str = "check",
    frames: int | str = 8,
    **unknown: Any,
) -> Dataset:
    """Dataset with video, audio and language. Rows are the annotation's videos, in its order."""
    official.check_options(NAME, unknown, OPTIONS)
    split = official.choice(NAME, "split", split, ("official", "9k"))
    caption = official.choice(NAME, "caption", caption, ("first", "all", *map(str, range(20))))
    frames = official.number(NAME, "frames", frames, 1, 10_000)

    files = _annotations(root)
    categories, parts, captions = _videos(files)
    language = {i: _caption(captions[i], caption) for i in categories}
    if split == "9k":
        lists, parts, own = _lists_9k(root, categories)
        files += lists
        language.update(own)
    ids = [i for i in categories if i in parts]

    sizes = official.tree(root, media.VIDEO + media.AUDIO)
    videos, sounds = official.by_stem(sizes, media.VIDEO), official.by_stem(sizes, media.AUDIO)
    clips = [videos.get(i, f"{i}.mp4") for i in ids]
    sound = official.with_sound(NAME, root, sizes, [c for i, c in zip(ids, clips) if i not in sounds], audio)
    audio_cells = [sounds.get(i) or (c if sound.get(c, True) else None) for i, c in zip(ids, clips)]
    facts = [
        f"language: {'the 20 captions of a clip, joined' if caption == 'all' else 'one of the 20 captions'}"
        f" (--option caption={caption})" + ("; for test, the sentence that 1k-A names" if split == "9k" else "")
    ]
    if None in audio_cells:
        facts.append(official.silent_fact(audio_cells))
    cells = {"video": clips, "audio": audio_cells, "language": [language[i] for i in ids]}

    return official.finish(
        NAME,
        root,
        ids=ids,
        split=[parts[i] for i in ids],
        labels=[categories[i] for i in ids],
        class_names=CLASSES,
        modalities={"video": "video", "audio": "audio", "language": "text"},
        cells=cells,
        fetch=official.clips(root, cells, frames),
        sizes=sizes,
        mend=MEND,
        settings={"split": split, "caption": caption, "frames": frames},
        files=files,
        facts=facts,
    )


def _annotations(root):
    """Paths of the official json files: the two, or the one that holds both. UserError where neither are there."""
    whole = official.annotation(NAME, root, "MSRVTT_data.json", where=MEND, optional=True)
    parts = [
        official.annotation(NAME, root, f"{p}_videodatainfo.json", where=MEND, optional=bool(whole))
        for p in ("train_val", "test")
    ]
    return parts if all(parts) else [whole]


def _videos(files):
    """({video: category 0...19}, {video: split}, {video: its captions by sen_id}) of the official json files."""
    videos: dict[str, Any] = {}
    captions: dict[str, Any] = {}
    for path in files:
        try:
            table = json.loads(official.read_text(path))
            for v in table["videos"]:
                videos[v["video_id"]] = (int(v["category"]), SPLIT[v["split"]])
            for s in table["sentences"]:
                captions.setdefault(s["video_id"], []).append((int(s["sen_id"]), s["caption"].strip()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(
                f"{path}: not the official list of videos and sentences ({type(e).__name__}: {e}); {MEND}"
            ) from None
    for i, (category, _) in videos.items():
        if not 0 <= category < len(CLASSES):
            raise UserError(f"{files[0]}: {i} has category {category}, outside 0 to 19; {MEND}")
        if i not in captions:
            raise UserError(f"{files[0]}: {i} has no sentence; {MEND}")
    return (
        {i: category for i, (category, _) in videos.items()},
        {i: split for i, (_, split) in videos.items()},
        {i: [text for _, text in sorted(captions[i])] for i in videos},
    )


def _caption(captions, choice):
    """The caption of a video by the option caption: first, all (joined) or a number; the last where it has fewer."""
    if choice == "all":
        return ". ".join(captions)
    return captions[0 if choice == "first" else min(int(choice), len(captions) - 1)]


def _lists_9k(root, videos):
    """(paths of JSFUSION's two lists, {video: train or test}, {test video: the sentence that 1k-A names})."""
    lists = [official.annotation(NAME, root, f"MSRVTT_{n}.csv", where=MEND) for n in ("train.9k", "JSFUSION_test")]
    train, test = (list(csv.DictReader(io.StringIO(official.read_text(p)))) for p in lists)
    for path, rows in zip(lists, (train, test)):
        for r in rows:
            if r.get("video_id") not in videos:
                raise UserError(f"{path}: video_id {r.get('video_id')!r} is in no videodatainfo.json; {MEND}")
    parts = {r["video_id"]: "train" for r in train} | {r["video_id"]: "test" for r in test}
    return lists, parts, {r["video_id"]: r["sentence"].strip() for r in test if r.get("sentence")}
