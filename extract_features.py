"""Stage 1: frozen IM perceptor -> feature banks; the OOM learner's preprocessed inputs.

    python extract_features.py --data synth --oom audio
    python extract_features.py --data my_robot/ --oom sonar --image-size 32
    python extract_features.py --data msrvtt --root DIR --oom audio --perceptor imagebind --dtype bfloat16

Reads   a data set by name, or a folder with manifest.csv (docs/data/folder.md); a pretrained perceptor's weights
Writes  RUNS/DATA/inputs/<modality>.pt          kind, x (n, …), lengths (n,), mean, std, ids, labels (n,), split (n,): of the
                                                OOM modality, and of those for which an encoder is trained here
        RUNS/DATA/PERCEPTOR/…/banks/<im>.pt     features (n, d_k) float32 unit rows, ids, labels (n,), split (n,)
        RUNS/DATA/log/media-<modality>.csv      broken, missing and silent media, where there are any
`--perceptor bind` decodes and checks every file before anything is trained. The OOM modality takes no part in training.
The same command gives the same bytes, and goes on from where it was stopped.
"""
import os
import sys
import time
from dataclasses import replace

import torch
from tqdm import tqdm

from cox_oom import data as datasets
from cox_oom import files, perceptors, run
from cox_oom.data import ahead, inputs
from cox_oom.files import Place, UserError
from cox_oom.perceptors import bind, embed, weights
from cox_oom.run import Parser, known_device, number

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def get_args(argv=None):
    p = Parser(__doc__, epilog="Next: python train_connect.py --data D --oom M")
    p.add_argument("--data", required=True, help=f"a folder with manifest.csv, or one of {', '.join(datasets.NAMES)}")
    p.add_argument("--root", help="where a named data set lies, as its publishers lay it out (docs/data/)")
    p.add_argument("--mosei-classes", help="mosei only: emotion, emotion6 or sentiment7")
    p.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the data set's reader "
                   "(docs/data/); may be given several times")
    p.add_argument("--on-error", default="fatal", choices=["fatal", "skip"], help="broken and missing media: stop at the "
                   "first, or leave them out of their row; they are counted and listed in RUNS/DATA/log/")
    p.add_argument("--on-silence", default="warn", choices=["warn", "skip", "fatal"], help="silent recordings: keep them, "
                   "counted and listed; leave them out; stop at the first")
    p.add_argument("--perceptor", default="bind", help="frozen IM perceptor: bind (trained here), imagebind, languagebind, "
                   "hf:MODEL of transformers, or one for each modality: rgb=hf:MODEL,audio=imagebind")
    p.add_argument("--weights", help="file or folder of imagebind's or languagebind's weights; default: the usual caches")
    p.add_argument("--perceptor-option", action="append", default=[], metavar="KEY=VALUE", help="an option of the perceptor "
                   "(docs/perceptors.md); may be given several times")
    p.add_argument("--dtype", default="float32", choices=list(DTYPES), help="of a pretrained perceptor's weights and forward "
                   "pass; its features are float32 in any case")
    p.add_argument("--batch-size", type=number(int, 1), default=32, help="items that a pretrained perceptor takes at once")
    p.add_argument("--workers", type=number(int, 0),
                   default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
                   help="processes that decode and preprocess; 0: none besides this one")
    p.add_argument("--oom", help="out-of-modal modality; no encoder trained here sees it. Without it, a pretrained perceptor "
                   "makes the banks of all modalities")
    p.add_argument("--im", help="IM modalities, comma-separated; default: every other one")
    p.add_argument("--runs", default="runs", help="where everything is written")
    p.add_argument("--image-size", type=number(int, 1), default=224,
                   help="side of images and video frames after resize and centre crop")
    p.add_argument("--series-length", type=number(int, 1), default=512,
                   help="longest series (spectrogram frames, sensor steps) kept as "
                   "it is; a data set with longer ones is resampled by one factor")
    p.add_argument("--frames", type=number(int, 1), default=8, help="video frames per clip")
    p.add_argument("--mels", type=number(int, 1), default=64, help="mel bands of audio")
    p.add_argument("--pair-by-class", action="store_true", help="pair labelled items within a class where the data have no "
                   "pairs; noted in all results")
    p.add_argument("--bind-epochs", type=number(int, 0), default=40, help="epochs of the encoders trained here")
    p.add_argument("--bind-width", type=number(int, 0), default=64, help="their width")
    p.add_argument("--bind-dim", type=number(int, 1), default=64, help="dimension of bind's joint space")
    p.add_argument("--commonality", type=number(float, 0, 1), default=0.7,
                   help="synth only: instance information that the modalities "
                   "share beyond the class, 0 to 1; one value per --runs")
    p.add_argument("--data-seed", type=int, default=0, help="synth only: which world")
    p.add_argument("--seed", type=int, default=0, help="seed of the encoders trained here")
    p.add_argument("--device", type=known_device, default="cuda" if torch.cuda.is_available() else "cpu", help="where the encoders run")
    p.add_argument("--force", action="store_true", help="redo finished work")
    return p.parse_args(argv)


class Progress(ahead.Items):
    """ahead.Items that move a progress bar: few items in memory at a time, however large the modality."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        self.bar.update()
        return item


# -------------------------------------------------------------------------------------------------------- read, check

def key_values(flag, given):
    """{key: value} of a flag's KEY=VALUEs."""
    for text in given:
        if "=" not in text:
            raise UserError(f"{flag} {text}: write KEY=VALUE")
    return dict(text.partition("=")[::2] for text in given)


def rows_of(data, modality):
    """Rows in which a modality is observed."""
    return [i for i, cell in enumerate(data.cells[modality]) if cell is not None]


def read(args):
    """The Dataset that the flags name, the IM modalities among its own."""
    synth = {"commonality": args.commonality, "seed": args.data_seed}
    options = synth if args.data == "synth" else {"frames": args.frames} if "frames" in datasets.options(args.data) else {}
    options |= key_values("--option", args.option)
    if args.mosei_classes:
        options["classes"] = args.mosei_classes
    if args.im and not datasets.is_name(args.data):                          # of a folder's columns these alone are checked
        options["columns"] = [*args.im.split(","), args.oom]
    data = datasets.read(args.data, root=args.root, **options)
    for fact in data.facts:
        print(f"  {fact}")
    if args.oom and args.oom not in data.modalities:
        raise UserError(f"--oom {args.oom}: {args.data} has {', '.join(data.modalities)}"
                        + ("; one is learnt at a time, the others are known or left out with --im" if "," in args.oom else ""))
    ims = args.im.split(",") if args.im else [m for m in data.modalities if m != args.oom]
    for m in ims:
        if m not in data.modalities or m == args.oom:
            raise UserError(f"--im {m}: choose among {', '.join(x for x in data.modalities if x != args.oom)}")
    if not ims:
        raise UserError(f"{args.data} has only {args.oom}: COX needs at least one other modality to learn from")
    counts = ", ".join(f"{data.split.count(s)} {s}" for s in files.SPLITS)
    print(f"{data.name}: {len(data.ids)} rows ({counts}), {len(data.class_names)} classes, fingerprint {data.fingerprint[:8]}")
    return data, ims


def check(args, data, ims):
    """Refuse a data set of which files are missing or broken (--on-error fatal), and a modality without a train or test item."""
    used = [*ims, *([args.oom] if args.oom else [])]
    wrong = [(row, m) for m in used for row in (*data.absent.get(m, ()), *data.broken.get(m, ()))]
    if wrong and args.on_error == "fatal":
        row, m = min(wrong, key=lambda w: w[0])
        data.load(m, row)                                                   # says what is wrong with the file, and the mend
    for m in used:
        for row in data.absent.get(m, ()):
            data.cells[m][row] = None
        check_items(args, data, m, sorted({*rows_of(data, m)} - {*data.broken.get(m, ())}))


def check_items(args, data, modality, rows):
    """Refuse a modality that has, in the `rows` whose items can be used, none in the train split; and the OOM modality where none
    has a label in the test split."""
    name = args.root or args.data
    for part, row, why in (("train", "row", ""), ("test", "labelled row", ", so that stage 4 has nothing to judge by")):
        of_part = [i for i, s in enumerate(data.split) if s == part and (part == "train" or data.labels[i] >= 0)]
        if set(of_part) & set(rows) or part == "test" and modality != args.oom:
            continue
        filled = set(rows_of(data, modality)) | set(data.absent.get(modality, ()))
        n = len(filled & set(of_part))
        if n:
            raise UserError(f"{name}: all {modality} items of the {row}s of split {part}, {n} in number, are missing, "
                            f"broken or silent and left out{why}; replace some of the files (without --on-error skip and "
                            f"--on-silence skip the first is named)")
        if part == "test" and any(data.split[i] == "test" for i in rows):
            raise UserError(f"{name}: no row of split test that has a {modality} item has a label{why}; label some of them")
        raise UserError(f"{name}: no {row} of split {part} has a {modality} item{why}; fill its cell in some of them, or "
                        f"set the split of some {row}s that have one to {part}")


# -------------------------------------------------------------------------------------------------------------- inputs

def columns(data, rows):
    """What inputs and banks say of their rows."""
    return {"ids": [data.ids[i] for i in rows], "class_names": data.class_names,
            "labels": torch.tensor([data.labels[i] for i in rows]),
            "split": torch.tensor([files.SPLITS.index(data.split[i]) for i in rows])}


def media_counts(place, modality, file):
    """What a finished file says of its media, for the line about it."""
    meta = file["meta"]
    counts = [f"{n} {p} ({'kept' if p == 'silent' and 'on_silence' not in meta['args'] else 'left out'})"
              for p, n in meta.get("media", {}).items()]
    return ", ".join(["", *counts]) + (f": see {place.media(modality)}" if counts else "")


def silence(args, data, modality):
    return {"on_silence": "skip"} if args.on_silence == "skip" and data.modalities[modality] == "audio" else {}


def read_inputs(args, data, modality, rows, shape, complain):
    """The learner's inputs of one modality at the given rows (inputs.learner_inputs), but for those left out; an unlike item
    is named by its file; a modality without a train item by its name."""
    kind, train = data.modalities[modality], [data.split[i] == "train" for i in rows]
    passes = 2 if kind == "series" else 1                                   # series: first the lengths, then the values
    items = Progress(data, modality, rows, lambda raw: inputs.reduced(kind, raw, **shape),
                     workers=0 if kind == "text" else args.workers, complain=complain)
    with tqdm(total=passes * len(rows), desc=f"read {modality}", mininterval=1, disable=None) as items.bar:
        try:
            return inputs.learner_inputs(kind, items, train, **shape)
        except inputs.Ragged as e:
            row = rows[e.item]
            cell = data.cells[modality][row]
            where = os.path.join(args.root or args.data, cell) if isinstance(cell, str) else modality
            raise UserError(f"{where} (id {data.ids[row]}): {e.what}; make all files of {modality} alike, or empty "
                            f"the cell") from None
        except inputs.NoTrainItem:
            check_items(args, data, modality, [r for r in rows if r not in complain.left_out])
            raise


def unused(path, fingerprint):
    """Whether a file is of other data and nothing was made from any: stage 1 stopped before its first bank."""
    folder = next(p for p in path.parents if (p / "inputs").is_dir() or p.parent == p)
    made = (p for p in folder.rglob("*.pt") if p.parent.name != "inputs" and p.name != "im.pt" and
            p.parent.suffix != ".parts")
    return path.exists() and files.load(path)["meta"]["fingerprint"] != fingerprint and not any(made)


def inputs_of(args, place, data, modality):
    """The inputs file of a modality, made where it is not there."""
    shape = {"image_size": args.image_size, "series_length": args.series_length, "frames": args.frames, "mels": args.mels}
    path, known = place.inputs(modality), {**shape, **silence(args, data, modality)}
    if not files.finished(path, known, {}, data.fingerprint, args.force or unused(path, data.fingerprint)):
        complain, rows = ahead.Complaints(data, modality, args.on_error, args.on_silence), rows_of(data, modality)
        made = read_inputs(args, data, modality, rows, shape, complain)
        rows = [r for r in rows if r not in complain.left_out]
        check_items(args, data, modality, rows)
        files.save(path, {**made, **columns(data, rows)}, stage="extract_features", data=data.name, fingerprint=data.fingerprint,
                   args=known, source=data.source, dated=False, media=complain.finish(place.media(modality)))
    file = files.load(path)
    print(f"  {modality}: {file['kind']} {tuple(file['x'].shape)} {str(file['x'].dtype)[6:]}{media_counts(place, modality, file)}")
    if file["kind"] == "series" and file["x"].shape[1] > file["x"].shape[2]:
        print(f"    more channels ({file['x'].shape[1]}) than steps: arrays are (channels, time); if these are not, transpose")
    return file


# --------------------------------------------------------------------------------------------------------------- banks

def weights_digest(name, role, args, path):
    """Digest of the files that a perceptor reads for a role; None where a bank is there and the weights are not."""
    try:
        found = perceptors.module(name).weight_files([role], perceptors.model_of(name, args.weights))
    except UserError:
        if path.exists() and not args.weights:
            return None
        raise
    return files.digest({f: weights.sha256(p) for f, p in found.items()})


def frozen_bank(args, place, data, modality, name, role, own):
    """The bank of a modality by the pretrained perceptor `name` in a role, with its `own` options; made where it is not there."""
    path = place.bank(modality)
    known = {"perceptor": name, "role": role, "dtype": args.dtype, **own, **silence(args, data, modality)}
    made_from = {"preprocessing": perceptors.module(name).PREPROCESSING}
    if digest := weights_digest(name, role, args, path):
        made_from["file of weights"] = digest
    parts = path.with_suffix(".parts")
    if args.force:
        embed.clear(parts)
    if not files.finished(path, known, made_from, data.fingerprint, args.force):
        print(f"{name}: {modality} as {role} ({args.dtype}, {args.device}, {args.workers} worker processes)")
        model = perceptors.module(name).load([role], weights=perceptors.model_of(name, args.weights), device=args.device,
                                             dtype=DTYPES[args.dtype], **own)
        complain = ahead.Complaints(data, modality, args.on_error, args.on_silence)
        z, rows = embed.features(model, role, data, modality, rows_of(data, modality), parts, batch_size=args.batch_size,
                                 workers=args.workers, device=args.device, known={**known, **made_from}, complain=complain)
        check_items(args, data, modality, rows)
        files.save(path, {"features": z, **columns(data, rows)}, stage="extract_features", data=data.name,
                   fingerprint=data.fingerprint, args=known, made_from=made_from, source=data.source, weights=model.weights,
                   media=complain.finish(place.media(modality)), dated=False)
    embed.clear(parts)
    bank = files.load(path)
    print(f"  {modality}: features {tuple(bank['features'].shape)}{media_counts(place, modality, bank)}")
    return bank


def target_of(choice, frozen):
    """The frozen modality to whose features encoders trained here are bound: the image's (ImageBind) or the language's
    (LanguageBind), if there is one."""
    prefer = [getattr(perceptors.module(choice[m][0]), "BIND_TO", "image") for m in frozen]
    return next((m for m, role in zip(frozen, prefer) if choice[m][1] == role), frozen[0])


def train_banks(args, place, data, inputs, target, bank):
    """The banks of the encoders trained here, on `inputs` {modality: file}: together (bind), or against the frozen features in
    `bank` of the modality `target`."""
    settings = {"im": sorted(inputs), "epochs": args.bind_epochs, "width": args.bind_width,
                "dim": args.bind_dim, "seed": args.seed, "pair_by_class": args.pair_by_class}
    made_from = {f"inputs/{m}": file["meta"]["digest"] for m, file in inputs.items()}
    if target:
        settings |= {"dim": bank["features"].shape[1], "target": target}
        made_from[f"banks/{target}"] = bank["meta"]["digest"]
    path = lambda m: place.bank(m, trained=True)
    if all([files.finished(path(m), settings, made_from, data.fingerprint, args.force) for m in inputs]):
        return
    print(f"training {'encoders' if target else 'bind'} on {', '.join(inputs)}"
          f"{f' against the features of {target}' if target else ''} (seed {args.seed}, {args.bind_epochs} epochs, {args.device})")
    encoders, by_class = bind.train(inputs, frozen=target and {target: bank}, dim=settings["dim"], width=args.bind_width,
                                    epochs=args.bind_epochs, seed=args.seed, device=args.device, pair_by_class=args.pair_by_class)
    if by_class:
        print(f"paired by class, as asked (--pair-by-class): {', '.join(by_class)} share no row with another modality")
    for m, file in inputs.items():
        files.save(path(m), {"features": bind.features(encoders[m], file, device=args.device),
                             **{k: file[k] for k in ("ids", "class_names", "labels", "split")},
                             "encoder": {k: v.cpu() for k, v in encoders[m].state_dict().items()}},
                   stage="extract_features", data=data.name, fingerprint=data.fingerprint, args=settings,
                   made_from=made_from, perceptor="bind", paired_by_class=by_class, dated=False)


def main(argv=None):
    args = get_args(argv)
    begun, place = time.time(), Place.of(args)
    if args.perceptor == "bind" and not args.oom:
        raise UserError("--perceptor bind needs --oom: its encoders are trained on the other modalities alone")
    if args.bind_width < 8 or args.bind_width % 8:
        raise UserError(f"--bind-width {args.bind_width}: give a multiple of 8 (its layers are normalised in groups)")

    # ------------------------------------------------------------------------------------------------ read, check
    data, ims = read(args)
    check(args, data, ims)
    choice = perceptors.choose(args.perceptor, data.modalities, ims, args.weights)
    options = key_values("--perceptor-option", args.perceptor_option)
    perceptors.check_options(choice, options)
    trained, frozen = [m for m in ims if choice[m] is None], [m for m in ims if choice[m]]
    if trained and not args.oom:
        raise UserError(f"--perceptor {args.perceptor} has no encoder for {trained[0]}; one trained here needs --oom, the "
                        f"modality that it must not see; give it, or --im {','.join(frozen)}")

    # ------------------------------------------------------------------------------------------- learner's inputs
    files.writable(args.runs)
    inputs = {m: inputs_of(args, place, data, m) for m in [*trained, *([args.oom] if args.oom else [])]}

    # ----------------------------------------------------------------------- banks of the pretrained perceptor
    known = {"im": sorted(ims)}
    if args.oom and frozen and not files.finished(place.choice, known, {}, data.fingerprint,
                                                  args.force or unused(place.choice, data.fingerprint)):
        files.save(place.choice, known, stage="extract_features", data=data.name, fingerprint=data.fingerprint, args=known,
                   dated=False, quiet=True)
    banks = {m: frozen_bank(args, place, data, m, *choice[m], perceptors.options_of(choice[m][0], options)) for m in frozen}

    # ------------------------------------------- banks of encoders trained here: all (bind), or what the perceptor lacks
    stale = [p for p in place.banks(trained=True).glob("*.pt") if p.stem not in trained]
    if stale:
        raise UserError(f"{stale[0]} is a bank that --im {','.join(ims)} leaves out; remove it, or use another --runs")
    if trained:
        target = target_of(choice, frozen) if frozen else None
        train_banks(args, place, data, {m: inputs[m] for m in trained}, target, banks.get(target))
    log = place.media("").with_name("extract_features.log")                # time and command are not in the files: see files.save
    log.parent.mkdir(exist_ok=True)
    with open(log, "a", encoding="utf-8") as f:
        f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {time.time() - begun:.0f} s: {' '.join(argv or sys.argv[1:])}\n")
    print(f"stage 1 done in {time.time() - begun:.0f} s. Next: {replace(place, oom=args.oom or 'M').command('train_connect.py')}")


if __name__ == "__main__":
    run.script(main)
