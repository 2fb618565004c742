"""Stage 1: frozen IM perceptor -> feature banks; the OOM learner's preprocessed inputs.

    python extract_features.py --data synth --oom audio
    python extract_features.py --data my_robot/ --oom sonar --image-size 32

Reads   a data set by name, or a folder with manifest.csv (docs/data/folder.md)
Writes  RUNS/DATA/inputs/<modality>.pt          kind, x (n, …), lengths (n,), mean, std, ids, labels (n,), split (n,)
        RUNS/DATA/PERCEPTOR/…/banks/<im>.pt     features (n, d_k) float32 unit rows, ids, labels (n,), split (n,)
Every file of the data set is decoded and checked before anything is trained. The OOM modality takes no part in `bind`.
"""
import argparse
import os
import time

import torch
from tqdm import tqdm

import bank
import readers
from perceptors import bind
from readers import media


def get_args(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0],
                                epilog="Next: python train_connect.py --data D --oom M",
                                formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    p.add_argument("--data", required=True, help=f"a folder with manifest.csv, or one of {', '.join(readers.NAMES)}")
    p.add_argument("--root", help="where a named data set lies, as its publishers lay it out (docs/data/)")
    p.add_argument("--mosei-classes", help="mosei only: emotion, emotion6 or sentiment7")
    p.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="an option of the data set's reader "
                   "(docs/data/); may be given several times")
    p.add_argument("--on-error", default="fatal", choices=["fatal", "skip"], help="a named data set's missing files: stop at "
                   "the first, or leave them out; a file that is there but broken always stops")
    p.add_argument("--perceptor", default="bind", choices=["bind"], help="frozen IM perceptor")
    p.add_argument("--oom", help="out-of-modal modality; bind must not see it")
    p.add_argument("--im", help="IM modalities, comma-separated; default: every other one")
    p.add_argument("--runs", default="runs", help="where everything is written")
    p.add_argument("--image-size", type=int, default=224, help="side of images and video frames after resize and centre crop")
    p.add_argument("--series-length", type=int, default=512, help="longest series (spectrogram frames, sensor steps) kept as "
                   "it is; a data set with longer ones is resampled by one factor")
    p.add_argument("--frames", type=int, default=8, help="video frames per clip")
    p.add_argument("--mels", type=int, default=64, help="mel bands of audio")
    p.add_argument("--pair-by-class", action="store_true", help="pair labelled items within a class where the data have no "
                   "pairs; noted in all results")
    p.add_argument("--bind-epochs", type=int, default=40, help="epochs of the bind encoders")
    p.add_argument("--bind-width", type=int, default=64, help="their width")
    p.add_argument("--bind-dim", type=int, default=64, help="dimension of the joint space")
    p.add_argument("--commonality", type=float, default=0.7, help="synth only: instance information that the modalities "
                   "share beyond the class, 0 to 1; one value per --runs")
    p.add_argument("--data-seed", type=int, default=0, help="synth only: which world")
    p.add_argument("--seed", type=int, default=0, help="seed of the bind encoders")
    p.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="where the encoders run")
    p.add_argument("--force", action="store_true", help="redo finished work")
    return p.parse_args(argv)


class Progress(readers.Items):
    """readers.Items that move a progress bar: one item in memory at a time, however large the modality."""

    def __init__(self, dataset, modality, rows, bar):
        super().__init__(dataset, modality, rows)
        self.bar = bar

    def __getitem__(self, i):
        item = super().__getitem__(i)
        self.bar.update()
        return item


def read_inputs(data, modality, rows, folder, shape):
    """The learner's inputs of one modality at the given rows (media.learner_inputs); an unlike item is named by its file."""
    kind, train = data.modalities[modality], [data.split[i] == "train" for i in rows]
    passes = 2 if kind == "series" else 1                                   # series: first the lengths, then the values
    with tqdm(total=passes * len(rows), desc=f"read {modality}", mininterval=1, disable=None) as bar:
        try:
            return media.learner_inputs(kind, Progress(data, modality, rows, bar), train, **shape)
        except media.Ragged as e:
            row = rows[e.item]
            cell = data.cells[modality][row]
            where = os.path.join(folder or "", cell) if isinstance(cell, str) else modality
            raise bank.UserError(f"{where} (id {data.ids[row]}): {e.what}; make all files of {modality} alike, or empty "
                                 f"the cell") from None


def left_over(path, fingerprint):
    """Whether an inputs file is of other data and nothing was made from any: stage 1 stopped before its first bank."""
    others = (p for p in path.parent.parent.rglob("*.pt") if p.parent != path.parent)
    return path.exists() and bank.load(path)["meta"]["fingerprint"] != fingerprint and not any(others)


def main(argv=None):
    args = get_args(argv)
    start = time.time()

    # ------------------------------------------------------------------------------------------------------ data
    if args.perceptor == "bind" and not args.oom:
        raise bank.UserError("--perceptor bind needs --oom: its encoders are trained on the other modalities alone")
    if args.bind_width < 8 or args.bind_width % 8:
        raise bank.UserError(f"--bind-width {args.bind_width}: give a multiple of 8 (its layers are normalised in groups)")
    synth = {"commonality": args.commonality, "seed": args.data_seed}
    options = synth if args.data == "synth" else {"frames": args.frames} if "frames" in readers.options(args.data) else {}
    for given in args.option:
        key, equals, value = given.partition("=")
        if not equals:
            raise bank.UserError(f"--option {given}: write KEY=VALUE")
        options[key] = value
    if args.mosei_classes:
        options["classes"] = args.mosei_classes
    data = readers.read(args.data, root=args.root, **options)
    for fact in data.facts:
        print(f"  {fact}")
    for m, gone in data.absent.items():
        if gone and args.on_error == "fatal" and (not args.im or m in [*args.im.split(","), args.oom]):
            data.load(m, gone[0])                                          # says which file is missing, and the mend
        for row in gone:
            data.cells[m][row] = None
        print(f"  {m}: {len(gone)} missing files, these rows go without it (--on-error skip)")
    if args.oom and args.oom not in data.modalities:
        raise bank.UserError(f"--oom {args.oom}: {args.data} has {', '.join(data.modalities)}")
    ims = args.im.split(",") if args.im else [m for m in data.modalities if m != args.oom]
    for m in ims:
        if m not in data.modalities or m == args.oom:
            raise bank.UserError(f"--im {m}: choose among {', '.join(x for x in data.modalities if x != args.oom)}")
    if not ims:
        raise bank.UserError(f"{args.data} has only {args.oom}: COX needs at least one other modality to learn from")
    counts = ", ".join(f"{data.split.count(s)} {s}" for s in bank.SPLITS)
    print(f"{data.name}: {len(data.ids)} rows ({counts}), {len(data.class_names)} classes, "
          f"fingerprint {data.fingerprint[:8]}")

    # -------------------------------------------------------------------- the learner's inputs, one file per modality
    shape = {"image_size": args.image_size, "series_length": args.series_length, "frames": args.frames, "mels": args.mels}
    files = {}
    for m in [*ims, *([args.oom] if args.oom else [])]:
        path = bank.inputs_path(args.runs, args.data, m)
        redo = args.force or left_over(path, data.fingerprint)
        if not bank.finished(path, shape, {}, data.fingerprint, redo):
            seen = [i for i, cell in enumerate(data.cells[m]) if cell is not None]
            made = read_inputs(data, m, seen, args.root or args.data, shape)
            bank.save(path, {**made, "ids": [data.ids[i] for i in seen], "class_names": data.class_names,
                             "labels": torch.tensor([data.labels[i] for i in seen]),
                             "split": torch.tensor([bank.SPLITS.index(data.split[i]) for i in seen])},
                      stage="extract_features", data=data.name, fingerprint=data.fingerprint, args=shape,
                      source=data.source)
        files[m] = bank.load(path)
        print(f"  {m}: {files[m]['kind']} {tuple(files[m]['x'].shape)} {str(files[m]['x'].dtype)[6:]}")

    # ------------------------------------------------------------------------------------------- perceptor and banks
    folder = bank.bank_dir(args.runs, args.data, args.perceptor, args.oom)
    settings = {"im": sorted(ims), "epochs": args.bind_epochs, "width": args.bind_width,
                "dim": args.bind_dim, "seed": args.seed, "pair_by_class": args.pair_by_class}
    made_from = {f"inputs/{m}": files[m]["meta"]["digest"] for m in ims}
    done = [bank.finished(folder / f"{m}.pt", settings, made_from, data.fingerprint, args.force) for m in ims]
    if not all(done):
        print(f"training bind on {', '.join(ims)} (seed {args.seed}, {args.bind_epochs} epochs, {args.device})")
        encoders, by_class = bind.train({m: files[m] for m in ims}, dim=args.bind_dim, width=args.bind_width,
                                        epochs=args.bind_epochs, seed=args.seed, device=args.device,
                                        pair_by_class=args.pair_by_class)
        if by_class:
            print(f"paired by class, as asked (--pair-by-class): {', '.join(by_class)} share no row with another modality")
        for m in ims:
            keep = {k: files[m][k] for k in ("ids", "class_names", "labels", "split")}
            bank.save(folder / f"{m}.pt", {"features": bind.features(encoders[m], files[m], device=args.device), **keep,
                                           "encoder": {k: v.cpu() for k, v in encoders[m].state_dict().items()}},
                      stage="extract_features", data=data.name, fingerprint=data.fingerprint, args=settings,
                      made_from=made_from, perceptor=args.perceptor, paired_by_class=by_class)
    stale = [p for p in folder.glob("*.pt") if p.stem not in ims]
    if stale:
        raise bank.UserError(f"{stale[0]} is a bank that --im {','.join(ims)} leaves out; remove it, or use another --runs")
    print(f"stage 1 done in {time.time() - start:.0f} s. Next: python train_connect.py --data {args.data} --oom {args.oom}")


if __name__ == "__main__":
    bank.run(main)
