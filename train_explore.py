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
import re

import torch
from tqdm import tqdm

from cox_oom import anchors, files, labels, methods, run
from cox_oom.augment import embed
from cox_oom.connect import Bridge
from cox_oom.correspond import explain, teacher_of
from cox_oom.files import Place, UserError
from cox_oom.learner import Learner
from cox_oom.methods import METHODS, Model
from cox_oom.run import PARTS, Parser, known_device, leave_out, number


def get_args(argv=None):
    p = Parser(__doc__, epilog="Next: python evaluate.py --data D --table --out DIR")
    p.add_argument("--data", required=True, help="as in stages 1 and 2")
    p.add_argument("--oom", required=True, help="out-of-modal modality")
    p.add_argument("--perceptor", default="bind", help="as in stage 1")
    p.add_argument("--setting", default="semi", choices=["semi", "unsup"], help="as in stage 2")
    p.add_argument("--method", default="cox", choices=list(METHODS), help="COX or a baseline")
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


def learner_of(seed, args):
    """The learner and its head as stage 2 left them; for a method that trains nothing as they were before."""
    begin = seed.connect if METHODS[args.method].trains else seed.connect["initial"]
    learner = Learner(**seed.connect["arch"]).to(args.device)
    head = torch.nn.Linear(learner.width, len(seed.oom["class_names"])).to(args.device)
    learner.load_state_dict(begin["learner"])
    head.load_state_dict(begin["head"])
    return learner, head


def features(learner, seed, items, args, plan):
    """The learner's features z (M, d) of the items; a method that does not explore needs those of the unlabelled ones alone."""
    z = torch.zeros(len(items.rows), learner.width, device=args.device)
    for places in (items.labelled, items.unlabelled) if plan.explores else (items.unlabelled,):
        z[places.to(args.device)] = embed(learner, seed.oom, items.rows[places], args.device)[0]
    return z


def accuracy(model, seed, items, args):
    """Accuracy on the validation items."""
    guess = model.head(embed(model.learner, seed.oom, items.val, args.device)[0]).argmax(1).cpu()
    return (guess == items.y_val).float().mean().item()


def check(args, items):
    """Refuse what cannot be run."""
    if args.setting == "unsup" and METHODS[args.method].labels:
        raise UserError(f"--method {args.method} needs labels: use --setting semi, or one of {', '.join(methods.names('unsup'))}")
    if not METHODS[args.method].all_labels and not len(items.unlabelled):
        raise UserError(f"all {len(items.rows)} training items are labelled, nothing is left to explore; lower --labels in stage 2")


def main(argv=None):
    args = get_args(argv)
    if args.tag and not re.fullmatch(r"[\w-]+", args.tag):
        raise UserError(f"--tag {args.tag}: it becomes part of a file's name; use letters, digits, - and _ alone")

    # ------------------------------------------------------------------------------- what stages 1 and 2 left
    seed = files.load_seed(Place.of(args), keys=("learner", "connections", "mapped", "labelled"))
    plan = methods.plan(args, seed)                       # parts left out, losses, refreshes: settled once
    work = run.Work(seed.place.method(args.method, args.tag), args, fingerprint=seed.oom["meta"]["fingerprint"],
                    made_from=seed.made_from)
    if work.done():
        return
    items = labels.items(seed, all_labels=METHODS[args.method].all_labels)  # no label of an unlabelled item is read after this
    check(args, items)

    # --------------------------------------------------------------------------------------------- warm start
    torch.manual_seed(args.seed + 2)
    generator = torch.Generator().manual_seed(args.seed + 2)
    learner, head = learner_of(seed, args)
    bridge = Bridge(seed, device=args.device, lr=args.lr, weight_decay=args.weight_decay, start="connection" not in plan.without)
    extra = METHODS[args.method].start and METHODS[args.method].start(args, learner)
    if items.unseen.any() and args.shares == "known" and plan.explores:
        print(f"  no labelled {args.oom} item shows {', '.join(seed.oom['class_names'][c] for c in items.unseen.nonzero())}: no "
              f"reading will be taken for one; label one if the sensor has recorded it, or give --shares free")
    teacher, facts = teacher_of(seed, items, bridge, args, work.state.get("trust")) if plan.soft else (None, {})
    predict = torch.nn.Linear(learner.width, teacher.width).to(args.device) if teacher and teacher.width and args.w_im else None
    if args.method == "cox" and not bridge.common:
        facts["fallback"] = {"code": "none_common", "im": bridge.names}
    model = Model(learner, head, predict, extra)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=args.lr, weight_decay=args.weight_decay)
    print(f"{args.method} on {args.oom}, {args.setting}, seed {args.seed}: {len(items.labelled)} labelled, {len(items.unlabelled)} "
          f"unlabelled, {plan.epochs} epochs, {args.device}")
    if facts.get("fallback"):
        print(f"  {explain(facts['fallback'])}")
    parts = {"model": model, "optimizer": optimizer, **bridge.parts()}
    state = work.resume(parts, generator) or {"epoch": 0, "before": None, "history": [], "emergent": anchors.no_pairs()}
    bridge.remap()
    before, history, chosen = state["before"], state["history"], None
    emergent = {k: t.to(args.device) for k, t in state["emergent"].items()}

    # ------------------------------------------------------------------------------------------------ explore
    follow = dict(generator=generator, train="connection" not in plan.without, w_mapped=args.w_mapped)
    steps = max(1, round(len(items.rows) / args.batch))                                            # of an epoch
    amp = torch.autocast(torch.device(args.device).type, torch.bfloat16, enabled="cuda" in args.device)
    bar = tqdm(total=plan.epochs * steps, initial=state["epoch"] * steps, desc=args.method, mininterval=1, disable=None)
    for epoch in range(state["epoch"], plan.epochs):
        if epoch > state["epoch"] and epoch in plan.refreshes:
            work.checkpoint({"epoch": epoch, "before": before, "history": history, "emergent": emergent, **facts}, parts, generator)
        if before is None or plan.explores and epoch in plan.refreshes:
            z = features(learner, seed, items, args, plan)
            if plan.explores:
                bridge.follow(z, items, emergent, head, steps=args.connect_steps if epoch else 0, **follow)
                if teacher:
                    teacher.look(z)
                chosen = anchors.choose(z, head, bridge, teacher, items, args, plan)
                emergent = chosen.emergent
                tqdm.write(f"  epoch {epoch}: {chosen.mask.float().mean():.1%} of the unlabelled are anchors, "
                           f"{len(emergent['item'])} emergent pairs")
            before = before or (chosen or anchors.agreement(z, head, bridge, items, args)).agreement
        learner.train()
        losses = []
        for step, (i, j) in enumerate(items.draw(steps, args.labelled_batch, args.batch, generator)):
            done = (epoch * steps + step) / (plan.epochs * steps)
            with amp:
                terms = methods.terms(args, plan, model, seed, items, chosen, teacher, i, j)
            losses.append(run.descend(optimizer, terms, run.cosine(args.lr, done)).item())
            bar.update()
        record = {"epoch": epoch + 1, "loss": sum(losses) / steps, **{k: t.item() for k, t in terms.items()}}
        if len(items.val):
            record["val_accuracy"] = accuracy(model, seed, items, args)
        history.append(record)
        work.log(**record)
    bar.close()

    # --------------------------------------------------------------------------------------------------- save
    z = features(learner, seed, items, args, plan)
    if plan.explores:
        bridge.follow(z, items, emergent, head, steps=args.connect_steps if plan.epochs else 0, **follow)
    if teacher and args.refit and "exploration" not in plan.without:
        teacher.look(z)
        teacher.refit(head, z, args.refit)
        if history and len(items.val):
            history[-1]["val_accuracy"] = accuracy(model, seed, items, args)
    after = anchors.agreement(z, head, bridge, items, args).agreement
    work.save({
        "arch": seed.connect["arch"], "learner": files.state_of(learner), "head": files.state_of(head), "im": bridge.names,
        "class_names": seed.oom["class_names"], "connections": {m: files.state_of(c) for m, c in bridge.connections.items()},
        "mapped_heads": {m: files.state_of(h) for m, h in bridge.heads.items()},
        "mapped": {m: t.cpu() for m, t in bridge.v.items()}, "unlabelled": [items.ids[i] for i in items.unlabelled.tolist()],
        "before": before or after, "after": after, "history": history, "trust": facts.get("trust", {}),
        "fallback": explain(facts.get("fallback", {})),
    }, stage="train_explore", paired=seed.connect["meta"]["paired"], labels=seed.connect["meta"]["args"]["labels"],
        n_labelled=len(items.labelled))
    print(f"stage 3 done in {work.seconds:.0f} s. Next: {Place(args.runs, args.data).command('evaluate.py')} --table")


if __name__ == "__main__":
    run.script(main)
