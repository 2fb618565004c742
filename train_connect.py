"""Stage 2: warm up the OOM learner, train IM heads, connect every IM modality to the OOM feature space.

    python train_connect.py --oom audio --data synth
    python train_connect.py --oom sonar --data my_robot/ --labels 0.1 --width 64 --depth 4 --patch 8

Reads   RUNS/DATA/inputs/<oom>.pt and the feature banks of stage 1 (never their test rows)
Writes  RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/connect.pt: learner g and head h after the warm-up, IM heads h_k,
        connections, heads h*_k on mapped items, mapped items v (K modalities, N_k, d), the labelled ids, Fig. 5's curve
semi    a class-balanced share of the OOM items keeps label and pairing; all other OOM items lose both
unsup   no OOM item has either: anchors are the items on which the IM heads agree (Eq. 14), class centroids the pairs
A stopped run goes on from its last checkpoint (connect.checkpoint.pt, an epoch of the warm-up each).
"""

import cox_oom  # noqa: F401  before torch, whose threads it tells to sleep

# isort: split
import torch
import torch.nn.functional as F
from tqdm import tqdm

from cox_oom import cli, labels, loader, naming, readings, run
from cox_oom.augment import augment, embed
from cox_oom.cli import PARTS, Parser, leave_out, number
from cox_oom.connect import connect, known_side, pairs_of
from cox_oom.descent import FAST, Descent
from cox_oom.files import Place, UserError
from cox_oom.heads import fit_head
from cox_oom.learner import new_learner
from cox_oom.seed import load_inputs, load_sources, split_rows, state_of
from cox_oom.teacher import views_of

EVERYDAY = (
    ("--labels", None, number(float, 0, 1, "(]"), "semi: share kept labelled; left out: 1 if some lack it, else 0.1"),
    ("--per-class", 0, number(int, 0, cli.ITEMS), "semi: this many per class instead of a share"),
    (
        "--pair-by-class",
        False,
        None,
        "pair labelled items within a class where the data have no pairs; told in results",
    ),
    ("--width", 192, number(int, 1, cli.SIZE), "learner: width (192, 12, 16 make ViT-T/16)"),
    ("--depth", 12, number(int, 1, 1000), "learner: blocks"),
    ("--patch", 16, number(int, 1, 4096), "learner: side of an image patch or video tubelet"),
    (
        "--warmup-epochs",
        None,
        number(int, 0, cli.EPOCHS),
        f"epochs on the labelled items, or anchors (unsup); left out: 10, or more for {cli.WARM_STEPS} steps",
    ),
)
RARE = (
    ("--holdout", 0.0, number(float, 0, 1, "[)"), "semi: share of a class's labelled items kept to validate alone"),
    ("--fold", None, labels.fold, "semi: hold out part K of N, K/N, of the labelled items (stage 3's --folds does it)"),
    ("--labelled-ids", None, str, "semi: a file with an id a line; these items keep their labels, in place of a draw"),
    ("--slice", 0, number(int, 0, 10**7), "learner: steps of a time slice; 0: so long that a series has about 32"),
    ("--batch", 128, number(int, 1, cli.LARGE), "items of a step; an epoch is M / batch steps for every method"),
    ("--labelled-batch", 64, number(int, 1, cli.LARGE), "labelled items of a step"),
    ("--lr", 1e-3, number(float, 0, cli.LARGE), "Adam's learning rate"),
    ("--weight-decay", 1e-5, number(float, 0, cli.LARGE), "Adam's weight decay"),
    ("--init", "literal", ("literal", "spectral"), "unsup: class names by IM heads (Eq. 14), or by clusters' geometry"),
    ("--name-with", 0, number(int, 0, cli.ITEMS), "unsup, spectral: this many labelled items per class give the names"),
    (
        "--without",
        [],
        leave_out,
        f"ablation: leave out some of {', '.join(PARTS)}",
        {"action": "extend", "metavar": "PART,…"},
    ),
    ("--connect-steps", 300, number(int, 0, cli.STEPS), "steps of each connection"),
    ("--beta", 1e-4, number(float, 0, cli.LARGE), "weight of KL(v, N(0, I)); the paper has no prior"),
    ("--w-ce", 0.0, number(float, 0, cli.LARGE), "weight of the head's cross-entropy on the reconstruction (Eq. 9)"),
    ("--w-kl", 0.0, number(float, 0, cli.LARGE), "weight of KL(p(y|x_im), h(y|x)) on the pairs in the warm-up"),
)


def get_args(argv=None):
    p = Parser(__doc__, "Next: python train_explore.py --data D --oom M")
    p.common("--data", "--oom", "--perceptor", "--setting")
    p.rows(EVERYDAY)
    p.common("--seed", "--runs", "--device", "--force")
    p.rows((*RARE, *FAST, cli.LOG), rare=True)
    args = p.parse_args(argv)
    args.without = sorted(set(args.without))
    return args


def warm_up(work, learner, head, oom, start, epochs, every, args, generator):
    """`epochs` of `every` steps of cross-entropy on the start's rows with weak augmentation, and --w-kl times KL(p(y |
    x_im) ‖ h(y | x)) on the pairs (after Eq. 9). A checkpoint an epoch. Returns the mean loss of each."""
    descent = Descent(torch.nn.ModuleDict({"learner": learner, "head": head}), args, 2)
    parts = {"learner": learner, "head": head, "optimizer": descent.optimizer}
    losses = (work.resume(parts, generator) or {"losses": []})["losses"]
    learner.train()

    def terms(part):
        share = len(part.i) / args.labelled_batch
        logits = head(learner(*augment(oom["kind"], part.x, part.lengths, views=learner.views))).float()
        found = {"labelled": share * F.cross_entropy(logits, part.y)}
        if args.w_kl and start.teacher is not None:
            kl = F.kl_div(logits.log_softmax(-1), start.teacher[part.i], reduction="batchmean")
            found["teacher"] = share * args.w_kl * kl
        return found

    bar = tqdm(total=epochs * every, initial=len(losses) * every, desc="warm-up", mininterval=1, disable=None)
    for epoch in range(len(losses), epochs):
        draws = start.draw(every, args.labelled_batch, generator)
        for step, its in enumerate(loader.steps(oom, draws, descent.count, args.device), epoch * every):
            descent.step(step, args.lr, its, terms)
            bar.update()
        means = descent.means(every)
        losses.append(means["loss"])
        work.log(epoch=len(losses), **means, lr=args.lr)
        work.checkpoint({"step": len(losses) * every, "losses": losses}, parts, generator)
    bar.close()
    return losses


def check(args, oom, train):
    """Say which flags play no part, and refuse what cannot be run."""
    of_semi = ("per_class", "holdout", "fold", "pair_by_class", "labelled_ids")
    idle = [f for f in of_semi if args.setting == "unsup" and getattr(args, f)]
    idle += ["init"] if args.setting == "semi" and args.init != "literal" else []
    if idle:
        names = ", ".join("--" + f.replace("_", "-") for f in idle)
        print(f"note: with --setting {args.setting} these play no part: {names}")
    if args.name_with and (args.init != "spectral" or args.setting != "unsup"):
        raise UserError("--name-with names the readings: give it with --setting unsup --init spectral")
    if args.setting == "semi" and not (oom["labels"][train] >= 0).any():
        raise UserError(
            f"no training row of {args.oom} has a label, so --setting semi has nothing to start from; label "
            f"some and extract again, or give --setting unsup"
        )


def main(argv=None):
    args = get_args(argv)

    # ------------------------------------------------------------------------------------------ what stage 1 left
    place = Place.of(args)
    oom, ims, made_from = load_sources(place)
    train = split_rows(oom, ("train",))  # M rows of the inputs
    check(args, oom, train)
    labels.settle_share(args, oom, train)
    epoch = labels.steps_of(len(train), args.batch)  # steps of one, the same for every method
    args.warmup_epochs = run.enough(args.warmup_epochs, 10, cli.WARM_STEPS, epoch)
    work = run.Work("train_connect", place.connect, args, oom, made_from | labels.ids_read(args))
    if work.done():
        return
    classes = len(oom["class_names"])
    print(f"{args.oom} from {', '.join(sorted(ims))}: M = {len(train)}, {classes} classes, {args.setting}")

    # ------------------------------------------------------------------- IM heads, a random learner, labels or names
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    known = known_side(ims, classes, args.device, generator)
    start = labels.few(args, oom, train, known, generator) if args.setting == "semi" else None
    train = train[~torch.isin(train, start.rows_held)] if start else train
    views = views_of(oom, train, start, known, args.device)
    learner, head, arch = new_learner(oom, views["chosen"], args.width, args.depth, args.patch, args.slice, args.device)
    readings.standardise(learner, oom, train)
    size = sum(p.numel() for p in learner.parameters()) / 1e6
    print(f"  learner: ViT width {args.width}, depth {args.depth}, {size:.2f} M parameters; an epoch is {epoch} steps")
    initial = {"learner": state_of(learner), "head": state_of(head)}
    if not start:
        others = {m: load_inputs(place, m) if place.inputs(m).exists() else ims[m] for m in known}
        start = naming.none(args, oom, train, known, learner, others, generator)

    # ------------------------------------------------------------------------------------------------- warm-up
    epochs = 0 if "warmup" in args.without else args.warmup_epochs
    losses = warm_up(work, learner, head, oom, start, epochs, epoch, args, generator)
    pairs, z_own, y_own = pairs_of(learner, head, oom, train, start, known, args)

    # ------------------------------------------------- connect: one bottleneck per IM modality, Fig. 5 at seven points
    torch.manual_seed(args.seed + 1)
    sample = train[torch.randperm(len(train), generator=generator)[:2000]]
    z_oom = embed(learner, oom, sample, args.device)[0]
    connections, optimizers, mapped, heads, curve = {}, {}, {}, {}, []
    chance = torch.Generator().manual_seed(args.seed)
    for m, k in known.items():
        c, optimizer, v, points = connect(m, k, pairs[m], head, z_oom, args, generator, chance, work.log)
        own = args.setting == "semi" and "connection" not in args.without
        h = fit_head(torch.cat([v, z_own]) if own else v, torch.cat([k.y, y_own]) if own else k.y, classes)
        connections[m], optimizers[m], mapped[m], heads[m] = state_of(c), optimizer.state_dict(), v.cpu(), state_of(h)
        curve += points

    # ---------------------------------------------------------------------------------------------------- save
    paired = {"paired": "class" if start.by_class else "true" if args.setting == "semi" else "none"}
    paired |= {"paired_by_class": start.by_class}
    kept = {"arch": arch, "learner": state_of(learner), "head": state_of(head), "initial": initial, "im": list(known)}
    kept |= {"class_names": oom["class_names"], "im_heads": {m: state_of(k.head) for m, k in known.items()}}
    kept |= {"connections": connections, "optimizers": optimizers, "mapped": mapped, "mapped_heads": heads}
    kept |= {"mapped_labels": {m: k.y.cpu() for m, k in known.items()}}
    kept |= {"mapped_ids": {m: k.ids for m, k in known.items()}}
    kept |= {"pairs": start.pairs, "labelled": start.labelled, "held": start.held, "naming": start.naming}
    work.save({**kept, "views": views, "curve": curve, "warmup_loss": losses}, **paired, n_labelled=len(start.labelled))
    print(f"stage 2 done in {work.seconds:.0f} s. Next: {place.command('train_explore.py', method='cox')}")


if __name__ == "__main__":
    run.script(main, together=True)
