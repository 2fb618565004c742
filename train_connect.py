"""Stage 2: warm up the OOM learner, train IM heads, connect every IM modality to the OOM feature space.

    python train_connect.py --oom audio --data synth
    python train_connect.py --oom sonar --data my_robot/ --labels 0.1 --width 64 --depth 4 --patch 8

Reads   RUNS/DATA/inputs/<oom>.pt and the feature banks of stage 1 (never their test rows)
Writes  RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/connect.pt: learner g and head h after the warm-up, IM heads h_k,
        connections, heads h*_k on mapped items, mapped items v (K modalities, N_k, d), the labelled ids, Fig. 5's curve
semi    a class-balanced share of the OOM items keeps label and pairing; all other OOM items lose both
unsup   no OOM item has either: anchors are the items on which the IM heads agree (Eq. 14), class centroids the pairs
"""
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tqdm import tqdm

import cox_ops
from cox_oom import files, labels, naming, run
from cox_oom.augment import augment, batch, embed
from cox_oom.connect import Connection, Head, fit_head, map_items, train_connection
from cox_oom.files import Place, UserError
from cox_oom.learner import Learner
from cox_oom.run import PARTS, Parser, known_device, leave_out, number


def get_args(argv=None):
    p = Parser(__doc__, epilog="Next: python train_explore.py --data D --oom M")
    p.add_argument("--data", required=True, help="as in stage 1")
    p.add_argument("--oom", required=True, help="out-of-modal modality, the one to learn")
    p.add_argument("--perceptor", default="bind", help="as in stage 1")
    p.add_argument("--setting", default="semi", choices=["semi", "unsup"], help="few correspondences, or none")
    p.add_argument("--labels", type=number(float, 0, 1, "(]"), default=0.1,
                   help="semi: share of the OOM training items that keeps label and pair: of each class the same "
                   "number, one at least; what a small class is short of, the larger ones give; 1 keeps all")
    p.add_argument("--per-class", type=number(int, 0), default=0, help="semi: this many per class instead of a share, or all "
                   "that a class has")
    p.add_argument("--holdout", type=number(float, 0, 1, "[)"), default=0.0,
                   help="semi: share of the labelled items of each class that training "
                   "does not see at all; stage 3 validates on them, to choose its flags by")
    p.add_argument("--pair-by-class", action="store_true", help="pair labelled items within a class where the data have no "
                   "pairs; noted in all results")
    p.add_argument("--runs", default="runs", help="where stage 1 wrote, and where this writes")
    p.add_argument("--width", type=number(int, 1), default=192, help="learner: width (192, 12, 16 make ViT-T/16)")
    p.add_argument("--depth", type=number(int, 1), default=12, help="learner: blocks")
    p.add_argument("--patch", type=number(int, 1), default=16, help="learner: side of an image patch or video tubelet")
    p.add_argument("--slice", type=number(int, 0), default=0, help="learner: steps of a time slice; 0: at most 32 tokens, one "
                   "token for a feature vector or binned sensor (fixed length, at most 512 values)")
    p.add_argument("--warmup-epochs", type=number(int, 0), default=10,
                   help="epochs on the labelled items, or on the anchors (unsup)")
    p.add_argument("--batch", type=number(int, 1), default=128,
                   help="items of a step; an epoch is M / batch steps for every method")
    p.add_argument("--labelled-batch", type=number(int, 1), default=64, help="labelled items of a step")
    p.add_argument("--lr", type=number(float, 0), default=1e-3, help="Adam's learning rate")
    p.add_argument("--weight-decay", type=number(float, 0), default=1e-5, help="Adam's weight decay")
    p.add_argument("--anchors", type=number(float, 0, 1), default=0.1, help="unsup: share of the items taken as anchors (T)")
    p.add_argument("--init", default="literal", choices=["literal", "spectral"], help="unsup: where class names come from; "
                   "literal: the IM heads judge a random learner (Eq. 14 as printed; stays at chance); spectral: clusters of "
                   "the raw readings, named by the classes' geometry on the IM side")
    p.add_argument("--name-with", type=number(int, 0), default=0, help="unsup, spectral: this many labelled items per class give "
                   "the readings their names, along the graph of their neighbours, and serve nothing else")
    p.add_argument("--without", type=leave_out, action="extend", default=[], metavar="PART,…",
                   help=f"ablation, here and in stage 3: leave out some of {', '.join(PARTS)}")
    p.add_argument("--connect-steps", type=number(int, 0), default=300, help="steps of each connection")
    p.add_argument("--beta", type=number(float, 0), default=1e-4, help="weight of KL(v, N(0, I)); the paper has no prior")
    p.add_argument("--w-ce", type=number(float, 0), default=0.0, help="weight of the head's cross-entropy on the reconstruction")
    p.add_argument("--w-kl", type=number(float, 0), default=0.0, help="weight of KL(p(y|x_im), h(y|x)) on the pairs in the warm-up")
    p.add_argument("--seed", type=number(int, 0), default=0, help="labelled items, initial weights, order")
    p.add_argument("--device", type=known_device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    p.add_argument("--force", action="store_true", help="redo finished work")
    return p.parse_args(argv)


@dataclass
class Known:
    """The labelled training items of one IM modality: features z (N, d_k), labels y (N,), ids [N], the IM head h_k."""
    z: torch.Tensor
    y: torch.Tensor
    ids: list
    head: Head


def known_side(ims, classes, device, generator):
    """{modality: Known} of the banks; prints how well a head does on a fifth of the items that it has not seen."""
    known = {}
    for m in sorted(ims):
        r = files.rows(ims[m], ("train",))
        r = r[ims[m]["labels"][r] >= 0]
        if not len(r):
            raise UserError(f"IM modality {m} has no labelled training item; label some, or leave it out with --im in stage 1")
        z, y = ims[m]["features"][r].to(device), ims[m]["labels"][r].to(device)
        fold, words = torch.rand(len(r), generator=generator) < 0.2, "too few to hold out a fifth"
        if fold.any() and not fold.all():
            probe = fit_head(z[~fold], y[~fold], classes)
            words = f"{100 * (probe(z[fold]).argmax(1) == y[fold]).float().mean():.1f}% on a fifth held out"
        known[m] = Known(z, y, [ims[m]["ids"][i] for i in r.tolist()], fit_head(z, y, classes))
        print(f"  IM head {m}: N = {len(r)}, d = {z.shape[1]}, {words}")
    return known


def learner_of(oom, args):
    """An OOM learner with random weights, its head, and what a Learner is made from."""
    shape = list(oom["x"].shape[1:])
    fixed = oom["kind"] == "series" and oom["lengths"] is None and math.prod(shape) <= 512
    arch = {"kind": oom["kind"], "shape": shape, "width": args.width, "depth": args.depth, "patch": args.patch,
            "slice": args.slice or (shape[-1] if fixed else 0)}
    learner = Learner(**arch).to(args.device)
    print(f"  learner: ViT width {args.width}, depth {args.depth}, {learner.position.shape[1]} tokens, "
          f"{sum(p.numel() for p in learner.parameters()) / 1e6:.2f} M parameters")
    return learner, torch.nn.Linear(args.width, len(oom["class_names"])).to(args.device), arch


def warm_up(work, learner, head, oom, start, *, steps, every, args, generator):
    """`steps` of cross-entropy on the start's rows with weak augmentation, and --w-kl times KL(p(y | x_im) ‖ h(y | x)) on the
    pairs (after Eq. 9). A checkpoint `every` so many steps. Returns the mean loss of each tenth."""
    optimizer = torch.optim.Adam([*learner.parameters(), *head.parameters()], lr=args.lr, weight_decay=args.weight_decay)
    parts = {"learner": learner, "head": head, "optimizer": optimizer}
    state = work.resume(parts, generator) or {"step": 0, "losses": []}
    losses, amp = state["losses"], torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled="cuda" in args.device)
    learner.train()
    for step in tqdm(range(state["step"] + 1, steps + 1), desc="warm-up", mininterval=1, disable=None):
        i = torch.randint(len(start.rows), (args.labelled_batch,), generator=generator)
        x, lengths = augment(oom["kind"], *batch(oom, start.rows[i], args.device))
        with amp:
            logits = head(learner(x, lengths)).float()
            terms = {"labelled": F.cross_entropy(logits, start.y[i].to(args.device))}
            if args.w_kl and start.teacher is not None:
                terms["teacher"] = args.w_kl * F.kl_div(logits.log_softmax(-1), start.teacher[i.to(args.device)],
                                                        reduction="batchmean")
        losses.append(run.descend(optimizer, terms, args.lr).item())
        if step % every == 0 or step == steps:
            work.log(epoch=math.ceil(step / every), loss=sum(losses[-every:]) / len(losses[-every:]))
            work.checkpoint({"step": step, "losses": losses}, parts, generator)
    return [t.mean().item() for t in torch.tensor(losses).tensor_split(min(10, steps))] if steps else []


def pairs_of(learner, head, oom, train, start, known, args):
    """What a connection is trained on: {modality: IM features (P, d_k), OOM features (V, P, d) in V views, labels (P,)}, and the
    labelled OOM items' own z (L, d), y (L,). unsup: class centroids in the place of pairs."""
    if args.setting == "semi":
        z, y = embed(learner, oom, start.rows, args.device, views=3), start.y.to(args.device)               # (V, L, d)
        return {m: (known[m].z[im], z[:, own], y[own]) for m, (own, im) in start.pairs.items()}, z[0], y
    z_all = embed(learner, oom, train, args.device)[0]
    guess = head(z_all).argmax(1)
    classes = [c for c in range(len(oom["class_names"])) if (guess == c).any() and all((k.y == c).any() for k in known.values())]
    if not classes:
        raise UserError(f"no class that the {args.oom} items are given has a labelled item in each of {', '.join(known)}, "
                        f"so there are no centroids to pair; choose --im in stage 1 so that classes are common")
    z, y = torch.stack([z_all[guess == c].mean(0) for c in classes])[None], torch.tensor(classes, device=args.device)
    return {m: (torch.stack([k.z[k.y == c].mean(0) for c in classes]), z, y) for m, k in known.items()}, None, None


def connect(m, known, pair, head, z_oom, points, args, generator, chance):
    """The connection of modality m, trained on `pair`, and its optimizer; Fig. 5's curve at the steps `points`: MMD of mapped and
    OOM items, and the head fitted to mapped items alone."""
    c = Connection(d_im=known.z.shape[1], d=args.width).to(args.device)
    c.standardise(known.z)
    optimizer = torch.optim.Adam(c.parameters(), lr=args.lr, weight_decay=args.weight_decay)
    sample, curve = torch.randperm(len(known.z), generator=chance)[:2000].to(args.device), []
    for at, following in zip(points, [*points[1:], None]):
        v = map_items(c, known.z)
        h = fit_head(v, known.y, head.out_features, steps=60)
        curve.append({"modality": m, "step": at, "mmd": float(cox_ops.mmd(v[sample], z_oom)), "head": files.state_of(h)})
        if following is not None and "connection" not in args.without:
            train_connection(c, optimizer, *pair, head, steps=following - at, beta=args.beta, w_ce=args.w_ce, generator=generator)
    print(f"  connection {m}: MMD {curve[0]['mmd']:.3f} -> {curve[-1]['mmd']:.3f}")
    return c, optimizer, v, curve


def check(args, oom, train):
    """Say which flags play no part, and refuse what cannot be run."""
    idle = [f for f in ("per_class", "holdout", "pair_by_class") if args.setting == "unsup" and getattr(args, f)]
    idle += ["init"] if args.setting == "semi" and args.init != "literal" else []
    if idle:
        print(f"note: with --setting {args.setting} these play no part: {', '.join('--' + f.replace('_', '-') for f in idle)}")
    if args.name_with and (args.init != "spectral" or args.setting != "unsup"):
        raise UserError("--name-with names the readings: give it with --setting unsup --init spectral")
    if args.setting == "semi" and not (oom["labels"][train] >= 0).any():
        raise UserError(f"no training row of {args.oom} has a label, so --setting semi has nothing to start from; label "
                        f"some and extract again, or give --setting unsup")


def main(argv=None):
    args = get_args(argv)
    args.without = sorted(set(args.without))

    # ------------------------------------------------------------------------------------------ what stage 1 left
    place = Place.of(args)
    oom, ims, made_from = files.load_sources(place)
    train = files.rows(oom, ("train",))                                                  # M rows of the inputs
    check(args, oom, train)
    work = run.Work(place.connect, args, fingerprint=oom["meta"]["fingerprint"], made_from=made_from)
    if work.done():
        return
    print(f"{args.oom} from {', '.join(sorted(ims))}: M = {len(train)}, {len(oom['class_names'])} classes, {args.setting}, "
          f"seed {args.seed}, {args.device}, torch {torch.__version__}")

    # ------------------------------------------------------------------- IM heads, a random learner, labels or names
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    known = known_side(ims, len(oom["class_names"]), args.device, generator)
    learner, head, arch = learner_of(oom, args)
    initial = {"learner": files.state_of(learner), "head": files.state_of(head)}
    if args.setting == "semi":
        start = labels.few(args, oom, train, known, generator)
        held = set(start.held)
        train = train[torch.tensor([oom["ids"][r] not in held for r in train.tolist()])]
    else:
        readings = lambda: {m: files.load_inputs(place, m) if place.inputs(m).exists() else ims[m] for m in known}
        start = naming.none(args, oom, train, known, learner, readings, generator)

    # ------------------------------------------------------------------------------------------------- warm-up
    epoch = max(1, round(len(files.rows(oom, ("train",))) / args.batch))                 # steps, the same for every method
    losses = warm_up(work, learner, head, oom, start, steps=0 if "warmup" in args.without else args.warmup_epochs * epoch,
                     every=epoch, args=args, generator=generator)
    pairs, z_own, y_own = pairs_of(learner, head, oom, train, start, known, args)

    # ------------------------------------------------- connect: one bottleneck per IM modality, Fig. 5 at seven points
    torch.manual_seed(args.seed + 1)
    sample = train[torch.randperm(len(train), generator=generator)[:2000]]
    z_oom = embed(learner, oom, sample, args.device)[0]
    connections, optimizers, mapped, heads, curve = {}, {}, {}, {}, []
    chance = torch.Generator().manual_seed(args.seed)                        # its own: the sample for the MMD changes no run
    points = sorted({0, *(round(args.connect_steps * f) for f in (0.02, 0.07, 0.15, 0.3, 0.6, 1.0))})
    for m, k in known.items():
        connections[m], optimizers[m], v, points_of_m = connect(m, k, pairs[m], head, z_oom, points, args, generator, chance)
        own = args.setting == "semi" and "connection" not in args.without
        heads[m] = fit_head(torch.cat([v, z_own]) if own else v, torch.cat([k.y, y_own]) if own else k.y, head.out_features)
        mapped[m], curve = v, curve + points_of_m

    # ---------------------------------------------------------------------------------------------------- save
    paired = "by class: " + ", ".join(start.by_class) if start.by_class else "true" if args.setting == "semi" else "none"
    bind_by_class = sorted({i for im in ims.values() for i in im["meta"].get("paired_by_class", [])})
    paired += "; bind by class: " + ", ".join(bind_by_class) if bind_by_class else ""
    work.save({
        "arch": arch, "learner": files.state_of(learner), "head": files.state_of(head), "initial": initial, "im": list(known),
        "class_names": oom["class_names"], "im_heads": {m: files.state_of(k.head) for m, k in known.items()},
        "connections": {m: files.state_of(c) for m, c in connections.items()},
        "optimizers": {m: o.state_dict() for m, o in optimizers.items()},
        "mapped_heads": {m: files.state_of(h) for m, h in heads.items()},
        "mapped": {m: v.cpu() for m, v in mapped.items()}, "mapped_labels": {m: k.y.cpu() for m, k in known.items()},
        "mapped_ids": {m: k.ids for m, k in known.items()}, "pairs": {m: list(p) for m, p in start.pairs.items()},
        "labelled": list(start.labelled), "held": list(start.held), "curve": curve, "warmup_loss": losses, "naming": start.naming,
    }, stage="train_connect", paired=paired, n_labelled=len(start.labelled))
    print(f"stage 2 done in {work.seconds:.0f} s. Next: {place.command('train_explore.py', method='cox')}")


if __name__ == "__main__":
    run.script(main)
