"""Which rows of a data set stage 1 can use: observed, whole, of the splits that the later stages need."""

from contextlib import contextmanager

import torch

from cox_oom import shards
from cox_oom.data import ahead, grown, inputs, units
from cox_oom.files import SPLITS, UserError, digest, finished, load, save
from cox_oom.shapes import check_inputs

LONG = 20  # times the median length: what one line is said of


def observed(data, modality):
    """Rows in which a modality is observed."""
    return [i for i, cell in enumerate(data.cells[modality]) if cell is not None]


def check(args, data, ims):
    """Refuse a data set of which files are missing or broken (--on-error fatal), and a modality without a train or
    test item."""
    used = [*ims, *([args.oom] if args.oom else [])]
    wrong = [(row, m) for m in used for row in (*data.absent.get(m, ()), *data.broken.get(m, ()))]
    if wrong and args.on_error == "fatal":
        row, m = min(wrong, key=lambda w: w[0])
        data.load(m, row)  # says what is wrong with the file, and the mend
    for m in used:
        for row in data.absent.get(m, ()):
            data.cells[m][row] = None
        check_items(args, data, m, sorted({*observed(data, m)} - {*data.broken.get(m, ())}))


def check_items(args, data, modality, rows):
    """Refuse a modality that has, in the `rows` whose items can be used, none in the train split; and the OOM
    modality where none has a label in the test split."""
    name = args.root or args.data
    for part, row, why in (("train", "row", ""), ("test", "labelled row", ", so that stage 4 has nothing to judge by")):
        of_part = [i for i, s in enumerate(data.split) if s == part and (part == "train" or data.labels[i] >= 0)]
        if set(of_part) & set(rows) or part == "test" and modality != args.oom:
            continue
        filled = set(observed(data, modality)) | set(data.absent.get(modality, ()))
        n = len(filled & set(of_part))
        if n:
            raise UserError(
                f"{name}: all {modality} items of the {row}s of split {part}, {n} in number, are missing, "
                f"broken or silent and left out{why}; replace some of the files (without --on-error skip and "
                f"--on-silence skip the first is named)"
            )
        if part == "test" and any(data.split[i] == "test" for i in rows):
            raise UserError(
                f"{name}: no row of split test that has a {modality} item has a label{why}; label some of them"
            )
        raise UserError(
            f"{name}: no {row} of split {part} has a {modality} item{why}; fill its cell in some of them, or "
            f"set the split of some {row}s that have one to {part}"
        )


def columns(data, rows):
    """What inputs and banks say of their rows."""
    return {
        "ids": [data.ids[i] for i in rows],
        "class_names": data.class_names,
        "labels": torch.tensor([data.labels[i] for i in rows]),
        "split": torch.tensor([SPLITS.index(data.split[i]) for i in rows]),
    }


def silence(args, data, modality):
    """What a file's args say of silent recordings."""
    return {"on_silence": "skip"} if args.on_silence == "skip" and data.modalities[modality] == "audio" else {}


def media_counts(place, modality, file):
    """What a finished file says of its media, for the line about it."""
    meta = file["meta"]
    kept = {"marked", *(() if "on_silence" in meta["args"] else ("silent",))}
    counts = [f"{n} {p} ({'kept' if p in kept else 'left out'})" for p, n in meta.get("media", {}).items()]
    return ", ".join(["", *counts]) + (f": see {place.media(modality)}" if counts else "")


def unused(path, fingerprint):
    """Whether a file is of other data and nothing was made from any: stage 1 stopped before its first bank."""
    folder = next(p for p in path.parents if (p / "inputs").is_dir() or p.parent == p)
    made = (
        p
        for p in folder.rglob("*.pt")
        if p.parent.name != "inputs" and p.name != "im.pt" and p.parent.suffix not in (".parts", ".shards")
    )
    return path.exists() and load(path, content=False)["meta"]["fingerprint"] != fingerprint and not any(made)


def outdated(path, known, fingerprint):
    """Whether a file that follows from the flags alone is of other data, and nothing else speaks against it."""
    if not path.exists() or (meta := load(path, content=False)["meta"])["fingerprint"] == fingerprint:
        return False
    return meta["args"] == known or unused(path, fingerprint)


@contextmanager
def by_another(args, path, data):
    """What goes wrong while a file is made is no matter where another process at the same work has finished it
    meanwhile, and removed what both need."""
    try:
        yield
    except (UserError, FileNotFoundError):
        if args.force or not path.exists() or load(path, content=False)["meta"]["fingerprint"] != data.fingerprint:
            raise


def inputs_of(args, place, data, modality):
    """The inputs file of a modality, made where it is not there; extended where the data have grown."""
    shape = {
        "image_size": args.image_size,
        "series_length": args.series_length,
        "frames": args.frames,
    }
    path, known = place.inputs(modality), {**shape, **silence(args, data, modality)}
    known |= {"groups": args.groups} if data.groups else {}
    anew = args.force or unused(path, data.fingerprint)
    old = grown.kept(args, path, data, modality, known, refuse=not anew)
    if old or not finished(path, known, {}, data.fingerprint, anew):
        with by_another(args, path, data):
            make_inputs(args, place, data, modality, shape, known, old)
    file = load(path)
    check_inputs(path, file)
    shards.tidy(path)
    form = f"{file['kind']} {tuple(file['x'].shape)} {str(file['x'].dtype)[6:]}"
    print(f"  {modality}: {form}{media_counts(place, modality, file)}")
    if file["kind"] == "series" and file["x"].shape[1] > file["x"].shape[2]:
        print(
            f"    more channels ({file['x'].shape[1]}) than steps: arrays are (channels, time); "
            f"if these are not, transpose"
        )
    if file["kind"] == "series" and file["lengths"] is not None:
        overlong(data, modality, file)
    return file


def make_inputs(args, place, data, modality, shape, known, old):
    """Write the inputs file of a modality; rows that the Kept `old` has are taken from there."""
    path, rows = place.inputs(modality), observed(data, modality)
    complain = ahead.Complaints(data, modality, args.on_error, args.on_silence)
    complain.recall(place.media(modality), old.places)
    work = units.Units(args, path, data, modality, rows, shape, known, complain, old)
    try:
        made, used, longest = work.make()
    except units.LongerThanBefore:
        print(f"  {modality}: a new recording is longer than all before, so all are read again")
        return make_inputs(args, place, data, modality, shape, known, grown.Kept())
    except inputs.NoTrainItem:
        check_items(args, data, modality, [r for r in rows if r not in complain.left_out])
        raise
    check_items(args, data, modality, used)
    made |= columns(data, used) | ({"groups": [data.groups[r] for r in used]} if data.groups else {})
    preparation = {**shape, "kind": data.modalities[modality], "mels": inputs.MELS, "longest": longest}
    save(
        path,
        made,
        stage="extract_features",
        data=data.name,
        fingerprint=data.fingerprint,
        args=known,
        source=data.source,
        dated=False,
        media=complain.finish(place.media(modality)),
        preparation={**preparation, "reader": inputs.READER},
        per=work.per,
        items=digest({k: v for k, v in made.items() if k not in ("labels", "class_names", "groups")}),
        **grown.marks(data, modality, used),
    )


def overlong(data, modality, file):
    """Say which recording is so much longer than the others that these lose their steps to it."""
    lengths = file["lengths"]
    longest, median = int(lengths.max()), int(lengths.median())
    if longest <= LONG * median:
        return
    row = data.ids.index(file["ids"][int(lengths.argmax())])
    raw = data.load(modality, row)
    steps = raw.shape[-1] if raw.ndim == 2 else inputs.mel_frames(len(raw))
    shortened = f"all are averaged down by {steps / longest:.3g}, " if steps > longest else ""
    print(
        f"    {ahead.place_of(data, modality, row)} has {steps} steps, more than {LONG} times as many as the median "
        f"item: {shortened}the median item keeps {median}; cut that recording, or empty its cell"
    )
