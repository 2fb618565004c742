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

import torch
from tqdm import tqdm

from cox_oom import files
from cox_oom import perceptors
from cox_oom import data as datasets
from cox_oom.run import Parser, known_device, number
from cox_oom.perceptors import bind, embed, weights
from cox_oom.data import ahead, media

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


def told(file, modality, args):
    """What a finished file says of its media, for the line about it."""
    meta = file["meta"]
    counts = [f"{n} {p} ({'kept' if p == 'silent' and 'on_silence' not in meta['args'] else 'left out'})"
              for p, n in meta.get("media", {}).items()]
    return ", ".join(["", *counts]) + (f": see {files.media_path(args.runs, args.data, modality)}" if counts else "")


class Progress(ahead.Items):
    """ahead.Items that move a progress bar: few items in memory at a time, however large the modality."""

    def __getitem__(self, i):
        item = super().__getitem__(i)
        self.bar.update()
        return item


def read_inputs(data, modality, rows, folder, shape, workers, complain):
    """The learner's inputs of one modality at the given rows (media.learner_inputs), but for those left out; an unlike item
    is named by its file; a modality without a train item by its name."""
    kind, train = data.modalities[modality], [data.split[i] == "train" for i in rows]
    passes = 2 if kind == "series" else 1                                   # series: first the lengths, then the values
    items = Progress(data, modality, rows, lambda raw: media.reduced(kind, raw, **shape), workers=workers, complain=complain)
    with tqdm(total=passes * len(rows), desc=f"read {modality}", mininterval=1, disable=None) as items.bar:
        try:
            return media.learner_inputs(kind, items, train, **shape)
        except media.Ragged as e:
            row = rows[e.item]
            cell = data.cells[modality][row]
            where = os.path.join(folder or "", cell) if isinstance(cell, str) else modality
            raise files.UserError(f"{where} (id {data.ids[row]}): {e.what}; make all files of {modality} alike, or empty "
                                 f"the cell") from None
        except media.NoTrainItem:
            check_items(folder, data, modality, [r for r in rows if r not in complain.left_out])
            raise


def left_over(path, fingerprint):
    """Whether a file is of other data and nothing was made from any: stage 1 stopped before its first bank."""
    folder = next(p for p in path.parents if (p / "inputs").is_dir() or p.parent == p)
    made = (p for p in folder.rglob("*.pt") if p.parent.name != "inputs" and p.name != "im.pt" and
            p.parent.suffix != ".parts")
    return path.exists() and files.load(path)["meta"]["fingerprint"] != fingerprint and not any(made)


def columns(data, rows):
    """What inputs and banks say of their rows."""
    return {"ids": [data.ids[i] for i in rows], "class_names": data.class_names,
            "labels": torch.tensor([data.labels[i] for i in rows]),
            "split": torch.tensor([files.SPLITS.index(data.split[i]) for i in rows])}


def pairs(flag, given):
    """{key: value} of a flag's KEY=VALUEs."""
    for text in given:
        if "=" not in text:
            raise files.UserError(f"{flag} {text}: write KEY=VALUE")
    return dict(text.partition("=")[::2] for text in given)


def seen(data, modality):
    return [i for i, cell in enumerate(data.cells[modality]) if cell is not None]


def check_items(name, data, modality, rows, tested=False):
    """Refuses a modality that has, in the `rows` whose items can be used, none in the train split; where it is `tested`, none
    with a label in the test split. name: of the data set, for the message."""
    for part, row, why in (("train", "row", ""), ("test", "labelled row", ", so that stage 4 has nothing to judge by")):
        of_part = [i for i, s in enumerate(data.split) if s == part and (part == "train" or data.labels[i] >= 0)]
        if set(of_part) & set(rows) or part == "test" and not tested:
            continue
        filled = set(seen(data, modality)) | set(data.absent.get(modality, ()))
        n = len(filled & set(of_part))
        if n:
            raise files.UserError(f"{name}: all {modality} items of the {row}s of split {part}, {n} in number, are missing, "
                                 f"broken or silent and left out{why}; replace some of the files (without --on-error skip and "
                                 f"--on-silence skip the first is named)")
        if part == "test" and any(data.split[i] == "test" for i in rows):
            raise files.UserError(f"{name}: no row of split test that has a {modality} item has a label{why}; label some of them")
        raise files.UserError(f"{name}: no {row} of split {part} has a {modality} item{why}; fill its cell in some of them, or "
                             f"set the split of some {row}s that have one to {part}")


def weights_of(name, role, args, path):
    """Digest of the files that a perceptor reads for a role; None where a bank is there and the weights are not."""
    try:
        found = perceptors.module(name).weight_files([role], perceptors.model_of(name, args.weights))
    except files.UserError:
        if path.exists() and not args.weights:
            return None
        raise
    return files.digest({f: weights.sha256(p) for f, p in found.items()})


def main(argv=None):
    args = get_args(argv)
    start = time.time()

    # ------------------------------------------------------------------------------------------------------ data
    if args.perceptor == "bind" and not args.oom:
        raise files.UserError("--perceptor bind needs --oom: its encoders are trained on the other modalities alone")
    if args.bind_width < 8 or args.bind_width % 8:
        raise files.UserError(f"--bind-width {args.bind_width}: give a multiple of 8 (its layers are normalised in groups)")
    synth = {"commonality": args.commonality, "seed": args.data_seed}
    options = synth if args.data == "synth" else {"frames": args.frames} if "frames" in datasets.options(args.data) else {}
    options |= pairs("--option", args.option)
    if args.mosei_classes:
        options["classes"] = args.mosei_classes
    if args.im and not datasets.is_name(args.data):                          # of a folder's columns these alone are checked
        options["columns"] = [*args.im.split(","), args.oom]
    data = datasets.read(args.data, root=args.root, **options)
    for fact in data.facts:
        print(f"  {fact}")
    if args.oom and args.oom not in data.modalities:
        raise files.UserError(f"--oom {args.oom}: {args.data} has {', '.join(data.modalities)}"
                             + ("; one is learnt at a time, the others are known or left out with --im" if "," in args.oom else ""))
    ims = args.im.split(",") if args.im else [m for m in data.modalities if m != args.oom]
    for m in ims:
        if m not in data.modalities or m == args.oom:
            raise files.UserError(f"--im {m}: choose among {', '.join(x for x in data.modalities if x != args.oom)}")
    if not ims:
        raise files.UserError(f"{args.data} has only {args.oom}: COX needs at least one other modality to learn from")
    counts = ", ".join(f"{data.split.count(s)} {s}" for s in files.SPLITS)
    print(f"{data.name}: {len(data.ids)} rows ({counts}), {len(data.class_names)} classes, "
          f"fingerprint {data.fingerprint[:8]}")
    used, where = [*ims, *([args.oom] if args.oom else [])], args.root or args.data
    wrong = [(row, m) for m in used for row in (*data.absent.get(m, ()), *data.broken.get(m, ()))]
    if wrong and args.on_error == "fatal":
        row, m = min(wrong, key=lambda w: w[0])
        data.load(m, row)                                                   # says what is wrong with the file, and the mend
    for m in used:
        for row in data.absent.get(m, ()):
            data.cells[m][row] = None
        check_items(where, data, m, sorted({*seen(data, m)} - {*data.broken.get(m, ())}), tested=m == args.oom)
    choice = perceptors.choose(args.perceptor, data.modalities, ims, args.weights)
    given = pairs("--perceptor-option", args.perceptor_option)
    perceptors.check_options(choice, given)
    trained = [m for m in ims if choice[m] is None]
    frozen = [m for m in ims if choice[m]]
    if trained and not args.oom:
        raise files.UserError(f"--perceptor {args.perceptor} has no encoder for {trained[0]}; one trained here needs --oom, the "
                             f"modality that it must not see; give it, or --im {','.join(frozen)}")

    # -------------------------------------------------------------------- the learner's inputs, one file per modality
    files.writable(args.runs)
    shape = {"image_size": args.image_size, "series_length": args.series_length, "frames": args.frames, "mels": args.mels}
    silence = {"on_silence": "skip"} if args.on_silence == "skip" else {}
    inputs = {}
    for m in [*trained, *([args.oom] if args.oom else [])]:
        path = files.inputs_path(args.runs, args.data, m)
        known = {**shape, **(silence if data.modalities[m] == "audio" else {})}
        redo = args.force or left_over(path, data.fingerprint)
        if not files.finished(path, known, {}, data.fingerprint, redo):
            complain, rows = ahead.Complaints(data, m, args.on_error, args.on_silence), seen(data, m)
            workers = 0 if data.modalities[m] == "text" else args.workers
            made = read_inputs(data, m, rows, where, shape, workers, complain)
            rows = [r for r in rows if r not in complain.left_out]
            check_items(where, data, m, rows, tested=m == args.oom)
            files.save(path, {**made, **columns(data, rows)}, stage="extract_features", data=data.name,
                      fingerprint=data.fingerprint, args=known, source=data.source, dated=False,
                      media=complain.finish(files.media_path(args.runs, args.data, m)))
        inputs[m] = files.load(path)
        print(f"  {m}: {inputs[m]['kind']} {tuple(inputs[m]['x'].shape)} {str(inputs[m]['x'].dtype)[6:]}{told(inputs[m], m, args)}")
        if inputs[m]["kind"] == "series" and inputs[m]["x"].shape[1] > inputs[m]["x"].shape[2]:
            print(f"    more channels ({inputs[m]['x'].shape[1]}) than steps: arrays are (channels, time); if these are not, transpose")

    # ---------------------------------------------------------------------------- banks of the pretrained perceptor
    folder = files.bank_dir(args.runs, args.data, args.perceptor, args.oom, trained=True)
    path = folder.parent / "im.pt"
    if args.oom and frozen and not files.finished(path, {"im": sorted(ims)}, {}, data.fingerprint,
                                                 args.force or left_over(path, data.fingerprint)):
        files.save(path, {"im": sorted(ims)}, stage="extract_features", data=data.name, fingerprint=data.fingerprint,
                  args={"im": sorted(ims)}, dated=False, quiet=True)
    banks = {}
    for m in frozen:
        name, role = choice[m]
        path = files.bank_dir(args.runs, args.data, args.perceptor, args.oom) / f"{m}.pt"
        own = perceptors.options_of(name, given)
        known = {"perceptor": name, "role": role, "dtype": args.dtype, **own,
                 **(silence if data.modalities[m] == "audio" else {})}
        made_from = {"preprocessing": perceptors.module(name).PREPROCESSING}
        if digest := weights_of(name, role, args, path):
            made_from["file of weights"] = digest
        parts = path.with_suffix(".parts")
        if args.force:
            embed.clear(parts)
        if not files.finished(path, known, made_from, data.fingerprint, args.force):
            print(f"{name}: {m} as {role} ({args.dtype}, {args.device}, {args.workers} worker processes)")
            model = perceptors.module(name).load([role], weights=perceptors.model_of(name, args.weights), device=args.device,
                                                 dtype=DTYPES[args.dtype], **own)
            complain = ahead.Complaints(data, m, args.on_error, args.on_silence)
            z, rows = embed.features(model, role, data, m, seen(data, m), parts, batch_size=args.batch_size,
                                     workers=args.workers, device=args.device, known={**known, **made_from},
                                     complain=complain)
            check_items(where, data, m, rows)
            files.save(path, {"features": z, **columns(data, rows)}, stage="extract_features", data=data.name,
                      fingerprint=data.fingerprint, args=known, made_from=made_from, source=data.source,
                      weights=model.weights, media=complain.finish(files.media_path(args.runs, args.data, m)), dated=False)
            del model
        embed.clear(parts)
        banks[m] = files.load(path)
        print(f"  {m}: features {tuple(banks[m]['features'].shape)}{told(banks[m], m, args)}")

    # ---------------------------------------------- encoders trained here: for all (bind), or for what the perceptor lacks
    settings = {"im": sorted(trained), "epochs": args.bind_epochs, "width": args.bind_width,
                "dim": args.bind_dim, "seed": args.seed, "pair_by_class": args.pair_by_class}
    made_from = {f"inputs/{m}": inputs[m]["meta"]["digest"] for m in trained}
    target = None
    if trained and frozen:                          # the image's features (ImageBind) or the language's (LanguageBind), if it may
        prefer = [getattr(perceptors.module(choice[m][0]), "BIND_TO", "image") for m in frozen]
        target = next((m for m, role in zip(frozen, prefer) if choice[m][1] == role), frozen[0])
        settings |= {"dim": banks[target]["features"].shape[1], "target": target}
        made_from[f"banks/{target}"] = banks[target]["meta"]["digest"]
    stale = [p for p in folder.glob("*.pt") if p.stem not in trained]
    if stale:
        raise files.UserError(f"{stale[0]} is a bank that --im {','.join(ims)} leaves out; remove it, or use another --runs")
    done = [files.finished(folder / f"{m}.pt", settings, made_from, data.fingerprint, args.force) for m in trained]
    if not all(done):
        print(f"training {'bind' if target is None else 'encoders'} on {', '.join(trained)}"
              f"{f' against the features of {target}' if target else ''} (seed {args.seed}, {args.bind_epochs} epochs, "
              f"{args.device})")
        encoders, by_class = bind.train({m: inputs[m] for m in trained}, frozen=target and {target: banks[target]},
                                        dim=settings["dim"], width=args.bind_width, epochs=args.bind_epochs, seed=args.seed,
                                        device=args.device, pair_by_class=args.pair_by_class)
        if by_class:
            print(f"paired by class, as asked (--pair-by-class): {', '.join(by_class)} share no row with another modality")
        for m in trained:
            keep = {k: inputs[m][k] for k in ("ids", "class_names", "labels", "split")}
            files.save(folder / f"{m}.pt", {"features": bind.features(encoders[m], inputs[m], device=args.device), **keep,
                                           "encoder": {k: v.cpu() for k, v in encoders[m].state_dict().items()}},
                      stage="extract_features", data=data.name, fingerprint=data.fingerprint, args=settings,
                      made_from=made_from, perceptor="bind", paired_by_class=by_class, dated=False)
    log = files.media_path(args.runs, args.data, "").with_name("extract_features.log")    # not in the files: see files.save
    log.parent.mkdir(exist_ok=True)
    with open(log, "a", encoding="utf-8") as f:
        f.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {time.time() - start:.0f} s: {' '.join(argv or sys.argv[1:])}\n")
    print(f"stage 1 done in {time.time() - start:.0f} s. Next: "
          + files.command("train_connect.py", args.data, args.oom or "M", perceptor=args.perceptor, runs=args.runs))


if __name__ == "__main__":
    files.run(main)
