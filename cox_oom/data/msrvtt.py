"""MSR-VTT, 10,000 video clips with 20 captions each in 20 categories (docs/data/msrvtt.md).

    --data msrvtt --root DIR        train_val_videodatainfo.json, test_videodatainfo.json (or MSRVTT_data.json) and the
                                    videos, anywhere below DIR: TrainValVideo/ and TestVideo/, or videos/all/
"""
import csv
import io
import json
import os

from cox_oom.files import UserError
from cox_oom.data import media, official

NAME = "msrvtt"
OPTIONS = {"split": "official (6,513 / 497 / 2,990) or 9k (JSFUSION's 9,000 / 0 / 1,000, '1k-A'); default official",
           "caption": "first (the first by sen_id), all (the 20 joined), or 0 to 19 (that one by sen_id); default first",
           "audio": "check (each clip's header, kept in .cox-audio.json) or trust (every clip has sound); default check",
           "frames": "video frames of a clip (default 8)"}
MEND = "docs/data/msrvtt.md says where to get it"
CLASSES = ("music", "people", "gaming", "sports/actions", "news/events/politics", "education", "tv shows",
           "movie/comedy", "animation", "vehicles/autos", "howto", "travel", "science/technology", "animals/pets",
           "kids/family", "documentary", "food/drink", "cooking", "beauty/fashion", "advertisement")    # by index
SPLIT = {"train": "train", "validate": "val", "test": "test"}


def read(root, split="official", caption="first", audio="check", frames=8, **unknown):
    """Dataset with video, audio and language. Rows are the annotation's videos, in its order."""
    official.check_options(NAME, unknown, OPTIONS)
    split = official.choice(NAME, "split", split, ("official", "9k"))
    caption = official.choice(NAME, "caption", caption, ("first", "all", *map(str, range(20))))
    frames = official.number(NAME, "frames", frames, 1, 10_000)

    # ------------------------------------------------------------------------------------------- the annotation
    whole = official.annotation(NAME, root, "MSRVTT_data.json", where=MEND, optional=True)
    parts = [official.annotation(NAME, root, f"{p}_videodatainfo.json", where=MEND, optional=bool(whole))
             for p in ("train_val", "test")]
    files = parts if all(parts) else [whole]
    videos, captions = {}, {}
    for path in files:
        try:
            table = json.loads(official.read_text(path))
            for v in table["videos"]:
                videos[v["video_id"]] = (int(v["category"]), SPLIT[v["split"]])
            for s in table["sentences"]:
                captions.setdefault(s["video_id"], []).append((int(s["sen_id"]), s["caption"].strip()))
        except (ValueError, KeyError, TypeError, AttributeError) as e:
            raise UserError(f"{path}: not the official list of videos and sentences ({type(e).__name__}: {e}); "
                            f"{MEND}") from None
    ids = list(videos)
    for i in ids:
        if not 0 <= videos[i][0] < len(CLASSES):
            raise UserError(f"{files[0]}: {i} has category {videos[i][0]}, outside 0 to 19; {MEND}")
        if i not in captions:
            raise UserError(f"{files[0]}: {i} has no sentence; {MEND}")
    text = {i: [c for _, c in sorted(captions[i])] for i in ids}
    language = {i: ". ".join(text[i]) if caption == "all" else text[i][0 if caption == "first" else
                                                                      min(int(caption), len(text[i]) - 1)] for i in ids}
    part = {i: videos[i][1] for i in ids}
    if split == "9k":
        lists = [official.annotation(NAME, root, f"MSRVTT_{n}.csv", where=MEND) for n in ("train.9k", "JSFUSION_test")]
        train, test = ([r for r in csv.DictReader(io.StringIO(official.read_text(p)))] for p in lists)
        for path, rows in zip(lists, (train, test)):
            for r in rows:
                if r.get("video_id") not in videos:
                    raise UserError(f"{path}: video_id {r.get('video_id')!r} is in no videodatainfo.json; {MEND}")
        part = {r["video_id"]: "train" for r in train} | {r["video_id"]: "test" for r in test}
        language.update({r["video_id"]: r["sentence"].strip() for r in test if r.get("sentence")})    # 1k-A's own
        ids, files = [i for i in ids if i in part], [*files, *lists]

    # ------------------------------------------------------------------------------------------------ the media
    sizes = official.tree(root, media.VIDEO + media.AUDIO)
    video, wav = official.by_stem(sizes, media.VIDEO), official.by_stem(sizes, media.AUDIO)
    clips = [video.get(i, f"{i}.mp4") for i in ids]
    sound = official.with_sound(NAME, root, sizes, [c for i, c in zip(ids, clips) if i not in wav], audio)
    heard = [wav.get(i) or (c if sound.get(c, True) else None) for i, c in zip(ids, clips)]
    facts = [f"language: {'the 20 captions of a clip, joined' if caption == 'all' else 'one of the 20 captions'}"
             f" (--option caption={caption})" + ("; for test, the sentence that 1k-A names" if split == "9k" else "")]
    if None in heard:
        facts.append(f"audio: {heard.count(None):,} of {len(ids):,} clips carry no audio: kept, masked")
    cells = {"video": clips, "audio": heard, "language": [language[i] for i in ids]}

    def fetch(modality, row, sample):
        path = os.path.join(root, cells[modality][row])
        return media.load_audio(path) if modality == "audio" else media.load_video(path, frames, sample)

    return official.finish(
        NAME, root, ids=ids, split=[part[i] for i in ids], labels=[videos[i][0] for i in ids], class_names=CLASSES,
        modalities={"video": "video", "audio": "audio", "language": "text"}, cells=cells, fetch=fetch, sizes=sizes,
        mend=MEND, settings={"split": split, "caption": caption, "frames": frames}, files=files, facts=facts)
