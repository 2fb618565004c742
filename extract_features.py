"""Stage 1: frozen IM perceptor -> feature banks; the OOM learner's preprocessed inputs.

    python extract_features.py --data synth --oom audio
    python extract_features.py --data my_robot/ --oom sonar --image-size 32
    python extract_features.py --data msrvtt --root DIR --oom audio --perceptor imagebind --dtype bfloat16

Reads   a data set by name, or a folder with manifest.csv (docs/data/folder.md); a pretrained perceptor's weights
Writes  RUNS/DATA/inputs/<modality>.pt          the learner's inputs: of the OOM modality, and of those for which an
                                                encoder is trained here (cox_oom/files.py lists the keys)
        RUNS/DATA/PERCEPTOR/…/banks/<im>.pt     features (n, d_k) float32 unit rows, ids, labels (n,), split (n,)
        RUNS/DATA/log/media-<modality>.csv      broken, missing, silent and marked media, where there are any
`--perceptor bind` decodes and checks every file before anything is trained. The OOM modality takes no part in training.
The same command gives the same bytes, and goes on from where it was stopped.
"""

import sys
import time
from dataclasses import replace

from cox_oom import cli, files, labels, perceptors, ranks, run
from cox_oom import data as datasets
from cox_oom.cli import Parser, key_values, number
from cox_oom.data import rows
from cox_oom.files import Place, UserError
from cox_oom.perceptors import banks

KEY = {"action": "append", "metavar": "KEY=VALUE"}
EVERYDAY = (
    (
        "--oom",
        None,
        str,
        "the out-of-modal modality, which no encoder trained here sees; none: banks of all modalities",
    ),
    ("--im", None, str, "IM modalities, comma-separated; left out: every other one"),
    ("--root", None, str, "where a named data set lies, as its publishers lay it out (docs/data/)"),
    ("--option", [], str, "an option of the data set (docs/data/); may be given several times", KEY),
    ("--weights", None, str, "file or folder of imagebind's or languagebind's weights; left out: the usual caches"),
    ("--image-size", 224, number(int, 1, 4096), "side of images and video frames after resize and centre crop"),
    (
        "--series-length",
        512,
        number(int, 1, 10**7),
        "longest series kept as it is; longer ones are resampled by one factor",
    ),
    ("--frames", 8, number(int, 1, 10**4), "video frames per clip"),
    ("--on-error", "fatal", ("fatal", "skip"), "broken and missing media: stop, or leave out, count and list"),
    ("--workers", run.CORES, number(int, 0, 1024), "processes that decode and preprocess; 0: none besides this one"),
)
RARE = (
    (
        "--as",
        [],
        str,
        "read a folder's column as language, image, audio, video or series; may be repeated",
        {"action": "append", "metavar": "COLUMN=KIND", "dest": "kinds"},
    ),
    ("--groups", None, str, "a folder's column of objects, persons or places: none is on both sides of a split"),
    ("--on-silence", "warn", ("warn", "skip", "fatal"), "silent recordings: keep and list; leave out; stop"),
    ("--perceptor-option", [], str, "an option of the perceptor (docs/perceptors.md); may be repeated", KEY),
    (
        "--dtype",
        "float32",
        tuple(banks.DTYPES),
        "of a pretrained perceptor's weights; its features are float32 in any case",
    ),
    ("--batch-size", 32, number(int, 1, cli.LARGE), "items that a pretrained perceptor takes at once"),
    (
        "--pair-by-class",
        False,
        None,
        "pair labelled items within a class where the data have no pairs; told in results",
    ),
    ("--bind-epochs", 40, number(int, 0, cli.EPOCHS), "epochs of the encoders trained here"),
    ("--bind-width", 64, number(int, 0, cli.SIZE), "their width, a multiple of 8"),
    ("--bind-dim", 64, number(int, 1, cli.SIZE), "dimension of bind's joint space"),
    ("--seed", 0, cli.SEED, "seed of the encoders trained here"),
    ("--share", None, labels.share, "K/N: embed part K of N of the pretrained perceptor's banks alone, one of N jobs"),
)


def get_args(argv=None):
    p = Parser(__doc__, "Next: python train_connect.py --data D --oom M")
    p.common("--data", "--perceptor")
    p.rows(EVERYDAY)
    p.common("--runs", "--device", "--force")
    p.rows(RARE, rare=True)
    args = p.parse_args(argv)
    if args.perceptor == "bind" and not args.oom:
        raise UserError("--perceptor bind needs --oom: its encoders are trained on the other modalities alone")
    if args.im is not None:
        args.im = ",".join(dict.fromkeys(args.im.split(",")))
    if args.im is not None and not all(args.im.split(",")):
        raise UserError(f"--im {args.im!r}: an empty name; give modalities with a comma between, or leave --im out")
    if args.bind_width < 8 or args.bind_width % 8:
        raise UserError(f"--bind-width {args.bind_width}: give a multiple of 8 (its layers are normalised in groups)")
    return args


def read(args):
    """The Dataset that the flags name, the IM modalities among its own."""
    options = {"frames": args.frames} if "frames" in datasets.options(args.data) else {}
    given = key_values("--option", args.option)
    for name in ("root", "data", "kinds", "groups"):
        if name in given:
            raise UserError(f"--option {name}: no option but a flag of its own")
    options |= given
    if args.kinds:
        options["kinds"] = key_values("--as", args.kinds)
    if args.groups:
        options["groups"] = args.groups
    if args.im and not datasets.is_name(args.data):  # of a folder's columns these alone are checked
        options["columns"] = [*args.im.split(","), args.oom]
    data = datasets.read(args.data, root=args.root, **options)
    for fact in data.facts:
        print(f"  {fact}")
    if args.oom and args.oom not in data.modalities:
        raise UserError(
            f"--oom {args.oom}: {args.data} has {', '.join(data.modalities)}"
            + ("; one is learnt at a time, the others are known or left out with --im" if "," in args.oom else "")
        )
    ims = args.im.split(",") if args.im else [m for m in data.modalities if m != args.oom]
    for m in ims:
        if m not in data.modalities or m == args.oom:
            raise UserError(f"--im {m}: choose among {', '.join(x for x in data.modalities if x != args.oom)}")
    if not ims:
        raise UserError(f"{args.data} has only {args.oom}: COX needs at least one other modality to learn from")
    counts = ", ".join(f"{data.split.count(s)} {s}" for s in files.SPLITS)
    print(
        f"{data.name}: {len(data.ids)} rows ({counts}), {len(data.class_names)} classes, "
        f"fingerprint {data.fingerprint[:8]}"
    )
    return data, ims


def main(argv=None):
    args = get_args(argv)
    begun, place = time.time(), Place.of(args)

    # ----------------------------------------------------------------------------------------------- read, check
    data, ims = read(args)
    rows.check(args, data, ims)
    choice = perceptors.choose(args.perceptor, data.modalities, ims, args.weights)
    if args.weights and not {c[0] for c in choice.values() if c} & {"imagebind", "languagebind"}:
        raise UserError(f"--weights {args.weights}: --perceptor {args.perceptor} takes none; leave it out")
    options = key_values("--perceptor-option", args.perceptor_option)
    perceptors.check_options(choice, options)
    trained, frozen = [m for m in ims if choice[m] is None], [m for m in ims if choice[m]]
    if trained and not args.oom:
        raise UserError(
            f"--perceptor {args.perceptor} has no encoder for {trained[0]}; one trained here needs --oom, the "
            f"modality that it must not see; give it, or --im {','.join(frozen)}"
        )

    # ------------------------------------------------------------------------------------------ learner's inputs
    files.writable(args.runs)
    of_learner = [] if args.share else [*trained, *([args.oom] if args.oom else [])]
    inputs = {m: ranks.lead(rows.inputs_of, args, place, data, m) for m in of_learner}

    # ------------------------------------------------------------------------- banks of the pretrained perceptor
    known = {"im": sorted(ims)}
    if args.oom and frozen and not args.share:
        force = args.force or rows.outdated(place.choice, known, data.fingerprint)
        if not files.finished(place.choice, known, {}, data.fingerprint, force):
            ranks.first(
                files.save,
                place.choice,
                known,
                stage="extract_features",
                data=data.name,
                fingerprint=data.fingerprint,
                args=known,
                dated=False,
                quiet=True,
            )
    made = {
        m: banks.frozen(args, place, data, m, *choice[m], perceptors.options_of(choice[m][0], options)) for m in frozen
    }
    if args.share:
        k, n = args.share
        print(f"part {k} of {n} done in {time.time() - begun:.0f} s; after all of them: this command without --share")
        return

    # ----------------------------------- banks of encoders trained here: all (bind), or what the perceptor lacks
    stale = [p for p in place.banks(trained=True).glob("*.pt") if p.stem not in trained]
    if stale:
        raise UserError(f"{stale[0]} is a bank that --im {','.join(ims)} leaves out; remove it, or use another --runs")
    if trained:
        target = banks.target_of(choice, frozen) if frozen else None
        ranks.lead(banks.trained, args, place, data, {m: inputs[m] for m in trained}, target, made.get(target))
    log = place.media("").with_name("extract_features.log")  # time and command are not in the files: see files.save
    log.parent.mkdir(exist_ok=True)
    said = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {time.time() - begun:.0f} s: {' '.join(argv or sys.argv[1:])}\n"
    ranks.first(lambda: log.open("a", encoding="utf-8").write(said))
    then = replace(place, oom=args.oom or "M").command("train_connect.py")
    print(f"stage 1 done in {time.time() - begun:.0f} s. Next: {then}")


if __name__ == "__main__":
    run.script(main, together=True)
