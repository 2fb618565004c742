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
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from cox_oom import files
import cox_ops
from cox_oom.augment import augment, batch, embed
from cox_oom.run import PARTS, Parser, known_device, leave_out, number
from cox_oom.connect import Connection, fit_head, map_items, train_connection
from cox_oom.learner import Learner
from cox_oom.labels import choose_labelled, find_pairs, hold_out
from cox_oom.naming import literal_space, name_by_clusters, name_by_items


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


def warm_up(learner, head, oom, rows, labels, *, steps, args, generator, name, teacher=None):
    """Cross-entropy on OOM rows (L,), labels (L,) with weak augmentation, and --w-kl times KL(p(y | x_im) ‖ h(y | x)) on
    the pairs (after Eq. 9), teacher (L, C), zeros where an item has no pair. Returns the mean loss of each tenth."""
    optimizer = torch.optim.Adam([*learner.parameters(), *head.parameters()], lr=args.lr, weight_decay=args.weight_decay)
    learner.train()
    losses, amp = [], torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled="cuda" in args.device)
    for _ in tqdm(range(steps), desc=name, mininterval=1, disable=None):
        i = torch.randint(len(rows), (args.labelled_batch,), generator=generator)
        x, lengths = augment(oom["kind"], *batch(oom, rows[i], args.device))
        with amp:
            logits = head(learner(x, lengths)).float()
            loss = F.cross_entropy(logits, labels[i].to(args.device))
            if args.w_kl and teacher is not None:
                loss = loss + args.w_kl * F.kl_div(logits.log_softmax(-1), teacher[i.to(args.device)],
                                                   reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return [t.mean().item() for t in torch.tensor(losses).tensor_split(min(10, steps))] if steps else []


def main(argv=None):
    args = get_args(argv)
    start = time.time()
    first = files.command("extract_features.py", args.data, args.oom, perceptor=args.perceptor, runs=args.runs)

    # ------------------------------------------------------------------------------------------------------ data
    oom, inputs_file = files.load_inputs(args.runs, args.data, args.oom, first=first)
    ims, made_from = files.load_banks(args.runs, args.data, args.perceptor, args.oom, first=first)
    fingerprint = oom["meta"]["fingerprint"]
    sources = {m: files.inputs_path(args.runs, args.data, m) for m in ims}
    now = {f"inputs/{m}": files.load(p, first=first)["meta"]["digest"] for m, p in sources.items() if p.exists()}
    for m, im in ims.items():
        file = files.bank_dir(args.runs, args.data, args.perceptor, args.oom) / f"{m}.pt"
        files.check_chain(file, im["meta"], {**now, **made_from}, fingerprint)
    made_from[f"inputs/{args.oom}"] = oom["meta"]["digest"]
    path = files.run_dir(args.runs, args.data, args.perceptor, args.oom, args.setting, args.seed) / "connect.pt"
    args.without = sorted(set(args.without))
    idle = [f for f in ("per_class", "holdout", "pair_by_class") if args.setting == "unsup" and getattr(args, f)]
    idle += ["init"] if args.setting == "semi" and args.init != "literal" else []
    if idle:
        print(f"note: with --setting {args.setting} these play no part: {', '.join('--' + f.replace('_', '-') for f in idle)}")
    if args.name_with and (args.init != "spectral" or args.setting != "unsup"):
        raise files.UserError("--name-with names the readings: give it with --setting unsup --init spectral")
    settings = {k: v for k, v in vars(args).items() if k not in ("runs", "force", "device", "data")}
    if files.finished(path, settings, made_from, fingerprint, args.force):
        return
    files.writable(path.parent)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)
    classes, names = len(oom["class_names"]), sorted(ims)
    train = files.rows(oom, ("train",))                                                  # M rows of the inputs
    if args.setting == "semi" and not (oom["labels"][train] >= 0).any():
        raise files.UserError(f"no training row of {args.oom} has a label, so --setting semi has nothing to start from; label "
                             f"some and extract again, or give --setting unsup")
    print(f"{args.oom} from {', '.join(names)}: M = {len(train)}, {classes} classes, {args.setting}, seed {args.seed}, "
          f"{args.device}, torch {torch.__version__}")

    # ----------------------------------------------------------------- IM side: every labelled training item, N_k
    z_im, y_im, ids_im, im_heads = {}, {}, {}, {}
    for m in names:
        r = files.rows(ims[m], ("train",))
        r = r[ims[m]["labels"][r] >= 0]
        if not len(r):
            raise files.UserError(f"IM modality {m} has no labelled training item; label some, or leave it out with --im "
                                 f"in stage 1")
        z_im[m], y_im[m] = ims[m]["features"][r].to(args.device), ims[m]["labels"][r].to(args.device)
        ids_im[m] = [ims[m]["ids"][i] for i in r.tolist()]
        fold = torch.rand(len(r), generator=generator) < 0.2
        said = "too few to hold out a fifth"
        if fold.any() and not fold.all():
            probe = fit_head(z_im[m][~fold], y_im[m][~fold], classes)
            held = (probe(z_im[m][fold]).argmax(1) == y_im[m][fold]).float().mean()
            said = f"{100 * held:.1f}% on a fifth held out"
        im_heads[m] = fit_head(z_im[m], y_im[m], classes)
        print(f"  IM head {m}: N = {len(r)}, d = {z_im[m].shape[1]}, {said}")

    # ---------------------------------------------------------------------------------------------- OOM side: warm up
    shape = list(oom["x"].shape[1:])
    fixed = oom["kind"] == "series" and oom["lengths"] is None and math.prod(shape) <= 512
    arch = {"kind": oom["kind"], "shape": shape, "width": args.width, "depth": args.depth, "patch": args.patch,
            "slice": args.slice or (shape[-1] if fixed else 0)}
    learner = Learner(**arch).to(args.device)
    head = torch.nn.Linear(args.width, classes).to(args.device)
    initial = {"learner": {k: v.cpu().clone() for k, v in learner.state_dict().items()},
               "head": {k: v.cpu().clone() for k, v in head.state_dict().items()}}
    epoch_steps = max(1, round(len(train) / args.batch))
    print(f"  learner: ViT width {args.width}, depth {args.depth}, {learner.position.shape[1]} tokens, "
          f"{sum(p.numel() for p in learner.parameters()) / 1e6:.2f} M parameters; an epoch is {epoch_steps} steps")
    warmup_steps = 0 if "warmup" in args.without else args.warmup_epochs * epoch_steps
    naming = {}                                                                     # unsup: how the clusters got their names
    if args.setting == "semi":
        in_im = [set(ids_im[m]) for m in names]
        shown = torch.tensor([[oom["ids"][r] in ids for ids in in_im] for r in train.tolist()])          # (M, K): has a pair
        some = shown[oom["labels"][train] >= 0].any(0)                                                   # (K,)
        chosen = choose_labelled(oom["labels"][train], args.labels * len(train), args.per_class, generator, shown)
        labelled, y, held, had = train[chosen], oom["labels"][train[chosen]], train[:0], (oom["labels"][train] >= 0).sum()
        if args.holdout:
            aside = hold_out(y, args.holdout)
            labelled, y, held = labelled[~aside], y[~aside], labelled[aside]
            train = train[~torch.isin(train, held)]
            print(f"  {len(held)} labelled items held out (--holdout)")
        of_class = torch.bincount(y, minlength=classes)
        print(f"  {len(labelled)} labelled items, {of_class.min()}-{of_class.max()} per class, of {had} with a label")
        pairs, by_class = {}, []
        for m, known in zip(names, some.tolist()):
            drawn = args.pair_by_class and not known                                             # the data have none of it
            has, paired = find_pairs([oom["ids"][r] for r in labelled.tolist()], y, ids_im[m], y_im[m], drawn, generator)
            if not len(has):
                raise files.UserError(f"no labelled {args.oom} item has a pair in {m}; give {'' if known else '--pair-by-class, '}"
                                     f"more --labels, or leave {m} out with --im in stage 1")
            pairs[m] = (has, paired)
            by_class += [m] if drawn else []
            print(f"  {len(has)} pairs with {m}{', drawn within the class (--pair-by-class)' if drawn else ''}")
        teacher = torch.zeros(len(labelled), classes, device=args.device)                      # mean of p(y | x_im)
        for m, (has, paired) in pairs.items():
            teacher[has] += im_heads[m](z_im[m][paired]).softmax(-1)
        losses = warm_up(learner, head, oom, labelled, y, steps=warmup_steps, args=args, generator=generator, name="warm-up",
                         teacher=F.normalize(teacher, p=1, dim=-1))
        z = embed(learner, oom, labelled, args.device, views=3)                                 # (views, L, d)
        y = y.to(args.device)
    else:
        labelled, held, by_class, pairs = train[:0], train[:0], [], {m: (torch.arange(0), torch.arange(0)) for m in names}
        count = max(1, round(args.anchors * len(train)))
        if args.init == "literal":
            z = embed(learner, oom, train, args.device)[0]                                      # (M, d)
            logits = torch.stack([im_heads[m](literal_space(z, z_im[m].shape[1], args.seed)) for m in names])
            mask, label, confidence = cox_ops.modality_agreement(logits)
            anchors = cox_ops.top_anchors(confidence, count, largest=True, mask=mask)
            anchors = anchors[anchors >= 0]
            if not len(anchors):
                raise files.UserError(f"the IM heads of {', '.join(names)} agree on no {args.oom} item, so there is no anchor; "
                                     f"try another --seed, or --setting semi")
            print(f"  literal start: the IM heads agree on {mask.float().mean():.1%} of the items, {len(anchors)} anchors in "
                  f"{label[anchors].unique().numel()} of {classes} classes. A random network carries no class names: "
                  f"expect chance")
        else:
            if args.name_with:
                label, doubt, naming, said = name_by_items(oom, train, classes, args.name_with, generator)
            else:
                inputs = {m: files.load_inputs(args.runs, args.data, m)[0]                   # a pretrained perceptor: its bank
                          if files.inputs_path(args.runs, args.data, m).exists() else ims[m] for m in names}
                label, doubt, naming, said = name_by_clusters(oom, train, inputs, classes, args.seed)
            print(f"  {said}")
            of_class = [(label == c).nonzero().squeeze(1) for c in range(classes)]
            anchors = torch.cat([i[doubt[i].argsort()[:(len(i) + 1) // 2]] for i in of_class])           # the surer half
        losses = warm_up(learner, head, oom, train[anchors.cpu()], label[anchors].cpu(), steps=warmup_steps, args=args,
                         generator=generator, name="warm-up on anchors")
        z_all = embed(learner, oom, train, args.device)[0]
        guess = head(z_all).argmax(1)
        seen = [c for c in range(classes) if (guess == c).any() and all((y_im[m] == c).any() for m in names)]
        if not seen:
            raise files.UserError(f"no class that the {args.oom} items are given has a labelled item in each of {', '.join(names)}, "
                                 f"so there are no centroids to pair; choose --im in stage 1 so that classes are common")
        z = torch.stack([z_all[guess == c].mean(0) for c in seen])[None]                        # (1, classes seen, d)
        y = torch.tensor(seen, device=args.device)
        centroids = {m: torch.stack([z_im[m][y_im[m] == c].mean(0) for c in seen]) for m in names}

    # ---------------------------------------------------------- connect: one VIB per IM modality, Fig. 5 at 7 points
    torch.manual_seed(args.seed + 1)
    oom_sample = train[torch.randperm(len(train), generator=generator)[:2000]]
    z_oom = embed(learner, oom, oom_sample, args.device)[0]
    connections, optimizers, mapped, heads, curve = {}, {}, {}, {}, []
    chance = torch.Generator().manual_seed(args.seed)                        # its own: the sample for the MMD changes no run
    points = sorted({0, *(round(args.connect_steps * f) for f in (0.02, 0.07, 0.15, 0.3, 0.6, 1.0))})
    for m in names:
        c = Connection(d_im=z_im[m].shape[1], d=args.width).to(args.device)
        c.standardise(z_im[m])
        optimizer = torch.optim.Adam(c.parameters(), lr=args.lr, weight_decay=args.weight_decay)
        has, paired = pairs[m]
        some = torch.randperm(len(z_im[m]), generator=chance)[:2000].to(args.device)
        semi = args.setting == "semi"
        z_pair, im_pair, y_pair = (z[:, has], z_im[m][paired], y[has]) if semi else (z, centroids[m], y)
        for at, following in zip(points, [*points[1:], None]):
            v = map_items(c, z_im[m])
            h = fit_head(v, y_im[m], classes, steps=60)                         # Fig. 5's: of the mapped items alone
            curve.append({"modality": m, "step": at, "mmd": float(cox_ops.mmd(v[some], z_oom)),
                          "head": {k: t.cpu() for k, t in h.state_dict().items()}})
            if following is not None and "connection" not in args.without:
                train_connection(c, optimizer, im_pair, z_pair, y_pair, head, steps=following - at, beta=args.beta,
                                 w_ce=args.w_ce, generator=generator)
        own = semi and "connection" not in args.without
        h = fit_head(torch.cat([v, z[0]]) if own else v, torch.cat([y_im[m], y]) if own else y_im[m], classes)
        connections[m], optimizers[m], mapped[m], heads[m] = c, optimizer, v, h
        print(f"  connection {m}: MMD {curve[-len(points)]['mmd']:.3f} -> {curve[-1]['mmd']:.3f}")

    # ------------------------------------------------------------------------------------------------------ save
    paired = "by class: " + ", ".join(by_class) if by_class else "true" if args.setting == "semi" else "none"
    bind_by_class = sorted({i for im in ims.values() for i in im["meta"].get("paired_by_class", [])})
    paired += "; bind by class: " + ", ".join(bind_by_class) if bind_by_class else ""
    state = lambda module: {k: v.detach().cpu() for k, v in module.state_dict().items()}
    files.save(path, {
        "arch": arch,
        "learner": state(learner), "head": state(head), "initial": initial, "im": names,
        "class_names": oom["class_names"], "im_heads": {m: state(h) for m, h in im_heads.items()},
        "connections": {m: state(c) for m, c in connections.items()},
        "optimizers": {m: o.state_dict() for m, o in optimizers.items()},
        "mapped_heads": {m: state(h) for m, h in heads.items()},
        "mapped": {m: v.cpu() for m, v in mapped.items()}, "mapped_labels": {m: t.cpu() for m, t in y_im.items()},
        "mapped_ids": ids_im, "pairs": {m: list(p) for m, p in pairs.items()},
        "labelled": [oom["ids"][r] for r in labelled.tolist()], "held": [oom["ids"][r] for r in held.tolist()],
        "curve": curve, "warmup_loss": losses,
        "naming": naming,
    }, stage="train_connect", data=files.data_name(args.data), fingerprint=fingerprint, args=settings,
        made_from=made_from,
        paired=paired, n_labelled=len(labelled), seconds=round(time.time() - start, 1))
    print(f"stage 2 done in {time.time() - start:.0f} s. Next: " + files.command(
        "train_explore.py", args.data, args.oom, perceptor=args.perceptor, runs=args.runs, method="cox", setting=args.setting,
        seed=args.seed))


if __name__ == "__main__":
    files.run(main)
