"""Stage 3: train the OOM learner with COX or a baseline, from the warm start of stage 2.

    python train_explore.py --oom audio --data synth --method cox
    python train_explore.py --oom audio --data synth --method erm

Reads   connect.pt of stage 2, RUNS/DATA/inputs/<oom>.pt and the feature banks (never their test rows)
Writes  RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/METHOD.pt (--tag T: METHOD-T.pt): learner, head, connections, heads
        h*_k, the agreement masks before and after (Fig. 6), one record per epoch
Every method has the same learner, start, augmentation, steps, batches and learning rate:
  cox       as many anchors as the heads h*_k and the nearest IM items agree on, the items whose correspondences with IM
            items are surest; labels on A, expected classes on D (Eqs. 13-15); every item's IM features are predicted as well
  selftrain the same losses, schedule and number of anchors, chosen by the same model of the readings without IM data
  erm       labelled items alone                          entmin    + entropy of the posteriors
  fixmatch  + confident pseudo-labels
  moco      + momentum contrast, and entropy in semi      ssl       + consistency under Gaussian noise
  aligned   all labels: the upper limit  random    untrained
A stopped run goes on from its last checkpoint (METHOD.checkpoint.pt, at every refresh), on the CPU to the same bits.
"""
import math
import re
import time

import torch
import torch.nn.functional as F
from tqdm import tqdm

from cox_oom import anchors
from cox_oom import files
from cox_oom import methods
from cox_oom.augment import augment, batch, embed
from cox_oom.correspond import (class_posteriors, coarse_and_fine, common_items, held_out_gain, known_items, labels_alone, plain_vectors,
                        whiten)
from cox_oom.run import PARTS, Parser, known_device, leave_out, number
from cox_oom.connect import Head, fit_head, fit_mapped_head, map_items, move_head, train_connection, warm_connection
from cox_oom.learner import Learner
from cox_oom.labels import class_frequencies, training_rows

METHODS = ("cox", "random", "erm", "entmin", "moco", "ssl", "fixmatch", "selftrain", "aligned")


def get_args(argv=None):
    p = Parser(__doc__, epilog="Next: python evaluate.py --data D --table --out DIR")
    p.add_argument("--data", required=True, help="as in stages 1 and 2")
    p.add_argument("--oom", required=True, help="out-of-modal modality")
    p.add_argument("--perceptor", default="bind", help="as in stage 1")
    p.add_argument("--setting", default="semi", choices=["semi", "unsup"], help="as in stage 2")
    p.add_argument("--method", default="cox", choices=METHODS, help="COX or a baseline")
    p.add_argument("--tag", default="", help="write METHOD-TAG.pt: a run with other flags beside the first, in a row of its own")
    p.add_argument("--runs", default="runs", help="where the stages write")
    p.add_argument("--epochs", type=number(int, 0), default=50, help="epochs of M / batch steps, for every method")
    p.add_argument("--batch", type=number(int, 1), default=128, help="unlabelled items of a step")
    p.add_argument("--labelled-batch", type=number(int, 1), default=64, help="labelled items of a step")
    p.add_argument("--lr", type=number(float, 0), default=1e-3, help="Adam's learning rate, decayed to 0 by a cosine")
    p.add_argument("--weight-decay", type=number(float, 0), default=1e-5, help="Adam's weight decay")
    p.add_argument("--anchors", type=number(float, 0, 1), default=0.1, help="share of the items with an emergent "
                   "correspondence (S)")
    p.add_argument("--refreshes", type=number(int, 1), default=5, help="cox, selftrain: how often anchors are chosen anew")
    p.add_argument("--connect-steps", type=number(int, 0), default=50, help="cox: steps of each connection at a refresh")
    p.add_argument("--w-agree", type=number(float, 0), default=1.0, help="cox, selftrain: weight of the anchors' labels on A")
    p.add_argument("--w-disagree", type=number(float, 0), help="cox, selftrain: weight of the term on D; left out, it is 1 with "
                   "--kl expected, 0.5 with the others (default: %(default)s)")
    p.add_argument("--kl", default="expected", choices=["expected", "matched", "literal"],
                   help="cox, selftrain: what an item of D is drawn to (Eq. 13): its own expected class under its "
                   "correspondences (where there are none: matched); the posteriors of the anchors of its class; of all anchors")
    p.add_argument("--rounds", type=number(int, 0), default=6, help="semi, cox and selftrain: rounds of the soft correspondence "
                   "(selftrain: of its counterpart without IM data) that chooses anchors; 0: the heads' agreement (confidence) does")
    p.add_argument("--temper", type=number(float, 0, ends="(]"), default=0.4, help="cox, selftrain: exponent of the "
                   "posteriors of soft correspondence, which are too sure")
    p.add_argument("--refit", type=number(float, 0, 1), default=0.5, help="cox, selftrain: how far the learner's head goes, at the "
                   "end, to the optimal classifier of the expected classes of all readings (where there are correspondences); "
                   "0: not at all")
    p.add_argument("--w-im", type=number(float, 0), default=3.0, help="cox: weight of predicting IM features: of a pair its own, "
                   "of another item the expected ones under its correspondences")
    p.add_argument("--w-mapped", type=number(float, 0), default=1.0, help="cox: weight of a mapped IM item beside a labelled "
                   "OOM item in fitting the heads h*_k")
    p.add_argument("--gate", type=int, default=1, choices=[0, 1], help="cox: the learner's own head must agree as well")
    p.add_argument("--shares", default="known", choices=["known", "free"], help="cox, selftrain: known: heads and "
                   "correspondences are held to the IM items' class frequencies, without the classes that no labelled reading has; "
                   "free: they are not")
    p.add_argument("--without", type=leave_out, action="extend", default=[], metavar="PART,…",
                   help=f"cox, ablation: leave out some of {', '.join(PARTS)}; connection and warmup as in stage 2")
    methods.add_flags(p)
    p.add_argument("--seed", type=number(int, 0), default=0, help="as in stage 2; order and augmentation here")
    p.add_argument("--device", type=known_device, default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    p.add_argument("--force", action="store_true", help="redo finished work; stopped, the same command goes on with it")
    return p.parse_args(argv)


def main(argv=None):
    args = get_args(argv)
    start = time.time()

    # ------------------------------------------------------------------------------------------------------ data
    oom, ims, connect, made_from = files.load_seed(args.runs, args.data, args.perceptor, args.oom, args.setting, args.seed,
                                                  keys=("learner", "connections", "mapped", "labelled"),
                                                  first=files.command("extract_features.py", args.data, args.oom,
                                                                     perceptor=args.perceptor, runs=args.runs))
    folder = files.run_dir(args.runs, args.data, args.perceptor, args.oom, args.setting, args.seed)
    if args.tag and not re.fullmatch(r"[\w-]+", args.tag):
        raise files.UserError(f"--tag {args.tag}: it becomes part of a file's name; use letters, digits, - and _ alone")
    run = "-".join(filter(None, (args.method, args.tag)))
    path, checkpoint = folder / f"{run}.pt", folder / f"{run}.checkpoint.pt"
    args.without = sorted(set(args.without))
    if "warmup" in args.without and "warmup" not in connect["meta"]["args"]["without"]:
        raise files.UserError(f"{folder / 'connect.pt'} was made with the warm-up; run first, under another --runs or with "
                             f"--force: python train_connect.py --data {args.data} --oom {args.oom} --setting {args.setting} "
                             f"--seed {args.seed} --without warmup")
    without = {*args.without, *connect["meta"]["args"]["without"]} if args.method == "cox" else set()
    soft = args.setting == "semi" and args.rounds and not without & {"connection", "emergent"}      # correspondences to be had
    args.kl = "matched" if args.kl == "expected" and not soft else args.kl
    args.w_disagree = (1.0 if args.kl == "expected" else 0.5) if args.w_disagree is None else args.w_disagree
    settings = {k: v for k, v in vars(args).items() if k not in ("runs", "force", "device", "data")}
    facts = {"stage": "train_explore", "data": files.data_name(args.data), "fingerprint": oom["meta"]["fingerprint"],
             "args": settings, "made_from": made_from}
    if files.finished(path, settings, made_from, facts["fingerprint"], args.force):
        return
    files.writable(folder)
    if args.setting == "unsup" and args.method in ("erm", "entmin", "fixmatch", "selftrain"):
        raise files.UserError(f"--method {args.method} needs labels: use --setting semi, or one of cox, moco, ssl, "
                             f"random, aligned")
    torch.manual_seed(args.seed + 2)
    generator = torch.Generator().manual_seed(args.seed + 2)
    device, kind, classes, names = args.device, oom["kind"], len(oom["class_names"]), connect["im"]
    train, is_labelled, val = training_rows(oom, connect["labelled"], connect.get("held", ()))    # nothing is chosen by val
    if args.method == "aligned":
        is_labelled = oom["labels"][train] >= 0
    labelled, unlabelled = train[is_labelled], train[~is_labelled]
    y = oom["labels"][labelled]                    # from here on no label of an unlabelled training item is read
    if args.method != "aligned" and not len(unlabelled):
        raise files.UserError(f"all {len(train)} training items are labelled, nothing is left to explore; lower "
                             f"--labels in stage 2")

    # --------------------------------------------------------------------------------- model: stage 2's warm start
    learner = Learner(**connect["arch"]).to(device)
    head = torch.nn.Linear(learner.width, classes).to(device)
    begin = connect["initial"] if args.method == "random" else connect
    learner.load_state_dict(begin["learner"])
    head.load_state_dict(begin["head"])
    connections, connection_optimizers, heads, z_im = {}, {}, {}, {}
    for m in names:
        z_im[m] = files.features_of(ims[m], connect["mapped_ids"][m]).to(device)
        connections[m], connection_optimizers[m] = warm_connection(
            connect, m, z_im[m], lr=args.lr, weight_decay=args.weight_decay, trained="connection" not in without)
        heads[m] = Head(learner.width, classes).to(device)
        heads[m].load_state_dict(connect["mapped_heads"][m])
    v = {m: map_items(connections[m], z_im[m]) for m in names}                               # (N_k, d) each
    y_im = {m: connect["mapped_labels"][m].to(device) for m in names}
    frequent, unseen = class_frequencies(torch.cat([y_im[m] for m in names]), y, classes)     # all that selftrain is told of IM
    shares = None if args.shares == "free" else frequent
    if unseen.any() and shares is not None and args.method in ("cox", "selftrain"):
        print(f"  no labelled {args.oom} item shows {', '.join(oom['class_names'][c] for c in unseen.nonzero())}: no reading will "
              f"be taken for one; label one if the sensor has recorded it, or give --shares free")
    common, shared = common_items({m: connect["mapped_ids"][m] for m in names}, device)
    moco = methods.MomentumContrast(learner, queue=args.queue, momentum=args.momentum,
                                      temperature=args.temperature).to(device) if args.method == "moco" else None

    saved = files.load(checkpoint) if checkpoint.exists() else {}                                  # of a stopped run
    if saved and (saved["meta"]["args"] != settings or saved["meta"]["made_from"] != made_from or
                  args.force and not saved.get("forced")):
        saved = {}
    start -= saved.get("seconds", 0.0)

    # ------------------------------------------- soft correspondences: what names the readings, and how far it is trusted
    named = args.setting == "semi" or bool(connect["naming"])                # the heads know class names: their word counts
    y_of = torch.full((len(train),), -1).masked_scatter(is_labelled, y).to(device)                  # (M,), -1: unlabelled
    in_order = torch.cat([(y_of >= 0).nonzero(), (y_of < 0).nonzero()]).squeeze(1).argsort()         # labelled, unlabelled -> train
    y_common = y_im[names[0]][shared[names[0]]]
    witness, trust, fallback, predict = None, {}, "", None
    if soft and args.method in ("cox", "selftrain"):
        components = max(10, min(50, len(train) // 20))
        raw = whiten(plain_vectors(oom, train), 2 * components).to(device)
        witness, seen = labels_alone(y_of, frequent), None
        if args.method == "cox" and common:
            seen, said = known_items([oom["ids"][r] for r in train.tolist()], y_of, common,
                                     {m: z_im[m][shared[m]] for m in names}, y_common, frequent, oom["class_names"])
            print("".join(f"  {line}\n" for line in said), end="")
            fallback = "" if seen else said[0]
        for world in filter(None, (witness, seen)):
            world["held"] = shares is not None
        if seen:
            trust = saved.get("trust") or held_out_gain(raw[:, :components], y_of, seen, witness, rounds=args.rounds)
            print("  held-out pairs: correspondences name {right:.1%} of the raw readings, labels alone {right_alone:.1%}; gain "
                  "{gain:+.3f} ± {error:.3f} nat".format(**trust))
            if not trust["trusted"]:
                fallback = "correspondences do worse on held-out pairs than labels alone: COX goes by labels and agreement"
                print(f"  {fallback}")
        if trust.get("trusted"):
            witness = seen
            predict = torch.nn.Linear(learner.width, seen["x"].shape[1]).to(device) if args.w_im else None
    parameters = [*learner.parameters(), *head.parameters(), *(predict.parameters() if predict else []),
                  *(moco.project.parameters() if moco else [])]
    optimizer = torch.optim.Adam(parameters, lr=args.lr, weight_decay=args.weight_decay)
    epoch_steps = max(1, round(len(train) / args.batch))
    idle = args.method == "random" or args.setting == "unsup" and "exploration" in without
    epochs = 0 if idle else args.epochs
    refresh_every = max(1, math.ceil(args.epochs / args.refreshes))
    amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled="cuda" in device)
    print(f"{args.method} on {args.oom}, {args.setting}, seed {args.seed}: {len(labelled)} labelled, {len(unlabelled)} "
          f"unlabelled, {epochs} epochs of {epoch_steps} steps, {device}")
    if args.method == "cox" and not common:
        fallback = f"no instance is in all of {', '.join(names)}: agreement alone, without emergent correspondences"
        print(f"  {fallback}")

    # ----------------------------------------------------------------------------- go on from the checkpoint, if any
    before, history, sets, begin_epoch = None, [], {}, 0
    parts = {"learner": learner, "head": head, "optimizer": optimizer,
             **{f"connection {m}": connections[m] for m in names},
             **{f"connection optimizer {m}": connection_optimizers[m] for m in names}}
    parts.update({name: part for name, part in (("predict", predict), ("moco", moco)) if part})
    if saved:
        for name, part in parts.items():
            part.load_state_dict(saved["parts"][name])
        v = {m: t.to(device) for m, t in saved["v"].items()}
        sets = {k: t.to(device) for k, t in saved["sets"].items()}
        before, history, begin_epoch = saved["before"], saved["history"], saved["epoch"]
        torch.set_rng_state(saved["rng"])
        generator.set_state(saved["generator"])
        print(f"  going on from epoch {begin_epoch} ({checkpoint})")

    def accuracy(rows):
        return (head(embed(learner, oom, rows, device)[0]).argmax(1).cpu() == oom["labels"][rows]).float().mean().item()

    progress = tqdm(total=epochs * epoch_steps, initial=begin_epoch * epoch_steps, desc=args.method, mininterval=1,
                    disable=None)
    for epoch in range(begin_epoch, epochs + 1):
        if begin_epoch < epoch < epochs and epoch % refresh_every == 0:
            state = {name: part.state_dict() for name, part in parts.items()}
            files.save(checkpoint, {"parts": state, "v": v, "sets": {k: t for k, t in sets.items() if k in anchors.EMERGENT},
                                   "before": before, "history": history, "epoch": epoch, "trust": trust,
                                   "forced": args.force, "seconds": time.time() - start,
                                   "rng": torch.get_rng_state(), "generator": generator.get_state()}, **facts, quiet=True)

        # ------------------------------------------------- anchors: agreement, emergent correspondence, refresh (6-9)
        choosing = args.method in ("cox", "selftrain") and epoch < epochs and epoch % refresh_every == 0
        if choosing or epoch == 0 or epoch == epochs:
            z = embed(learner, oom, unlabelled, device)[0]
            if args.method in ("cox", "selftrain"):
                z_own = embed(learner, oom, labelled, device)[0]
                y_own = y.to(device)
                for m in names:
                    own, own_im = (t.to(device) for t in connect["pairs"][m])
                    found, found_im, found_y = (sets.get(k, own[:0]) for k in anchors.EMERGENT)     # of the last refresh
                    z_pair, y_pair = torch.cat([z_own[own], z[found]]), torch.cat([y_own[own], found_y])
                    im_pair = torch.cat([z_im[m][own_im], z_im[m][shared[m][found_im]]])
                    if epoch and len(z_pair) and "connection" not in without:
                        train_connection(connections[m], connection_optimizers[m], im_pair, z_pair[None], y_pair, head,
                                         steps=args.connect_steps, beta=connect["meta"]["args"]["beta"],
                                         w_ce=connect["meta"]["args"]["w_ce"], generator=generator)
                        v[m] = map_items(connections[m], z_im[m])
                    used = slice(0 if "connection" in without else None)         # without: mapped items alone
                    heads[m] = fit_mapped_head(v[m], y_im[m], z_own[used], y_own[used], classes, w_mapped=args.w_mapped)
            if witness and (choosing or epoch == epochs):
                z_train = torch.cat([z_own, z])[in_order]                                                        # (M, d)
                views = coarse_and_fine(raw, whiten(z_train, 40), components)
                q, expected = class_posteriors(views, y_of, witness, shares, temper=args.temper, rounds=args.rounds)
            if witness and epoch == epochs and args.refit and "exploration" not in without:
                move_head(head, fit_head(z_train, q, classes, weight_decay=1e-2), args.refit)
                if history and len(val):
                    history[-1]["val_accuracy"] = accuracy(val)
            mask, label, confidence, posteriors = anchors.judge(z, head, [heads[m] for m in names], shares, args.gate)
            snapshot = {"agree": mask.cpu(), "label": label.cpu(), "confidence": confidence.cpu(),
                        "prediction": head(z).argmax(1).cpu()}
            before = before or snapshot
        if choosing:
            sets = {"emergent": torch.empty(0, dtype=torch.long, device=device)}
            if common and "emergent" not in without:
                mask, label, new = anchors.emergent(z, torch.stack([v[m][shared[m]] for m in names]), y_common, mask, label,
                                                    max(1, round(args.anchors * len(train))), named)
                sets.update(new if args.method == "cox" else {})
            if witness:                                                            # as many anchors, the surest under it
                expected_own, expected_other = expected[y_of >= 0], expected[y_of < 0]                  # of every IM feature
                posteriors = q[None, y_of < 0]
            elif args.method == "selftrain":
                posteriors = anchors.judge(z, head, [], shares, True)[3]
            if witness or args.method == "selftrain":
                mask, label = anchors.surest_classes(posteriors[0], int(mask.sum()))
            sets.update(mask=mask, label=label, posteriors=posteriors, **anchors.statistics(head(z), mask, label))
            tqdm.write(f"  epoch {epoch}: {mask.float().mean():.1%} of the unlabelled are anchors, "
                       f"{len(sets['emergent'])} emergent pairs")
        if epoch == epochs:
            break

        # ----------------------------------------------------------------------------------------------- an epoch
        learner.train()
        total, terms = 0.0, {}
        for step in range(epoch_steps):
            done = (epoch * epoch_steps + step) / (epochs * epoch_steps)
            for group in optimizer.param_groups:
                group["lr"] = args.lr * 0.5 * (1 + math.cos(math.pi * done))
            i = torch.randint(max(1, len(labelled)), (args.labelled_batch,), generator=generator)
            j = torch.randint(max(1, len(unlabelled)), (args.batch,), generator=generator)
            terms = {}
            with amp:
                if len(labelled):
                    x, lengths = augment(kind, *batch(oom, labelled[i], device))
                    z_i = learner(x, lengths)
                    terms["labelled"] = F.cross_entropy(head(z_i).float(), y[i].to(device))
                    if predict:
                        terms["im"] = args.w_im * F.mse_loss(predict(z_i).float(), expected_own[i])
                if args.method in ("cox", "selftrain") and "exploration" not in without:
                    x, lengths = batch(oom, unlabelled[j], device)
                    j = j.to(device)
                    z_j = learner(*augment(kind, x, lengths, "strong"))
                    logits = head(z_j).float()
                    if predict:
                        terms["im"] = terms["im"] + args.w_im * F.mse_loss(predict(z_j).float(), expected_other[j])
                    agree, disagree = anchors.losses(logits, sets, j, args.kl)
                    terms["agree"] = args.w_agree * agree
                    if args.w_disagree and disagree is not None:
                        terms["disagree"] = args.w_disagree * disagree
                elif args.method in methods.UNLABELLED:
                    terms.update(methods.terms(args, learner, head, moco, kind, *batch(oom, unlabelled[j], device),
                                                 labelled=len(labelled) > 0))
            loss = sum(terms.values())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
            progress.update()
        record = {"epoch": epoch + 1, "loss": total / epoch_steps, **{k: t.item() for k, t in terms.items()}}
        if len(val):
            record["val_accuracy"] = accuracy(val)
        history.append(record)
        progress.set_postfix(loss=f"{record['loss']:.3f}", refresh=False)
    progress.close()

    # ------------------------------------------------------------------------------------------------------ save
    state = lambda module: {k: t.detach().cpu() for k, t in module.state_dict().items()}
    files.save(path, {
        "arch": connect["arch"], "learner": state(learner), "head": state(head), "im": names,
        "class_names": oom["class_names"], "connections": {m: state(c) for m, c in connections.items()},
        "mapped_heads": {m: state(h) for m, h in heads.items()},
        "mapped": {m: t.cpu() for m, t in v.items()}, "unlabelled": [oom["ids"][r] for r in unlabelled.tolist()],
        "before": before, "after": snapshot, "history": history, "trust": trust, "fallback": fallback,
    }, **facts, paired=connect["meta"]["paired"], labels=connect["meta"]["args"]["labels"], n_labelled=len(labelled),
        seconds=round(time.time() - start, 1))
    checkpoint.unlink(missing_ok=True)
    print(f"stage 3 done in {time.time() - start:.0f} s. Next: "
          f"{files.command('evaluate.py', args.data, None, runs=args.runs)} --table")


if __name__ == "__main__":
    files.run(main)
