"""Which rows of a data set stage 1 can use: observed, whole, of the splits that the later stages need."""

import os

import torch
from tqdm import tqdm

from cox_oom.data import ahead, inputs
from cox_oom.files import SPLITS, UserError, finished, load, save
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


class Progress(ahead.Items):
    """ahead.Items that move a progress bar: few items in memory at a time, however large the modality."""

    bar: tqdm

    def __getitem__(self, i):
        item = super().__getitem__(i)
        self.bar.update()
        return item


def read_inputs(args, data, modality, rows, shape, complain):
    """The learner's inputs of one modality at the given rows (inputs.learner_inputs), but for those left out; an
    unlike item is named by its file; a modality without a train item by its name."""
    kind, train = data.modalities[modality], [data.split[i] == "train" for i in rows]
    passes = 2 if kind == "series" else 1  # series: first the lengths, then the values
    items = Progress(
        data,
        modality,
        rows,
        lambda raw: inputs.reduced(kind, raw, **shape),
        workers=0 if kind == "text" else args.workers,
        complain=complain,
    )
    with tqdm(total=passes * len(rows), desc=f"read {modality}", mininterval=1, disable=None) as items.bar:
        try:
            return inputs.learner_inputs(kind, items, train, **shape)
        except inputs.Ragged as e:
            row = rows[e.item]
            cell = data.cells[modality][row]
            where = os.path.join(args.root or args.data, cell) if isinstance(cell, str) else modality
            raise UserError(
                f"{where} (id {data.ids[row]}): {e.what}; make all files of {modality} alike, or empty the cell"
            ) from None
        except inputs.NoTrainItem:
            check_items(args, data, modality, [r for r in rows if r not in complain.left_out])
            raise


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
        if p.parent.name != "inputs" and p.name != "im.pt" and p.parent.suffix != ".parts"
    )
    return path.exists() and load(path, content=False)["meta"]["fingerprint"] != fingerprint and not any(made)


def refuse_changed(args, place, data, modality):
    """UserError where the inputs of a modality were made before rows or labels of the data changed: what changed, and
    the two ways to go on."""
    path = place.inputs(modality)
    if args.force or not path.exists() or unused(path, data.fingerprint):
        return
    old = load(path, content=False)
    if old["meta"]["fingerprint"] == data.fingerprint:
        return
    names, was = [*old["class_names"], ""], dict(zip(old["ids"], old["labels"].tolist()))
    now = dict(zip(data.ids, data.labels))
    new = [i for i in observed(data, modality) if data.ids[i] not in was]
    changed = sum(names[was[i]] != [*data.class_names, ""][now[i]] for i in was if i in now)
    gone = sum(i not in now for i in was)
    counts = f"{len(new)} rows with {modality} more, {gone} fewer, {changed} labels other"
    other = "other files, another split, or columns that --as takes otherwise"
    raise UserError(
        f"{args.root or args.data} has changed since {path} was made: "
        f"{counts if new or gone or changed else other}. To go on, run the same commands with "
        f"--force in stages 1 to 3: results made so far are replaced; or with another --runs: they are kept"
    )


def inputs_of(args, place, data, modality):
    """The inputs file of a modality, made where it is not there."""
    shape = {
        "image_size": args.image_size,
        "series_length": args.series_length,
        "frames": args.frames,
    }
    path, known = place.inputs(modality), {**shape, **silence(args, data, modality)}
    known |= {"groups": args.groups} if data.groups else {}
    refuse_changed(args, place, data, modality)
    if not finished(path, known, {}, data.fingerprint, args.force or unused(path, data.fingerprint)):
        complain, used = ahead.Complaints(data, modality, args.on_error, args.on_silence), observed(data, modality)
        made = read_inputs(args, data, modality, used, shape, complain)
        preparation = {**shape, "kind": data.modalities[modality], "mels": inputs.MELS, "longest": made.pop("longest")}
        used = [r for r in used if r not in complain.left_out]
        check_items(args, data, modality, used)
        save(
            path,
            {**made, **columns(data, used), **({"groups": [data.groups[r] for r in used]} if data.groups else {})},
            stage="extract_features",
            data=data.name,
            fingerprint=data.fingerprint,
            args=known,
            source=data.source,
            dated=False,
            media=complain.finish(place.media(modality)),
            preparation={**preparation, "reader": inputs.READER},
        )
    file = load(path)
    check_inputs(path, file)
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
