"""Stage 3: train the OOM learner with COX or a baseline, from the warm start of stage 2.

    python train_explore.py --oom audio --data synth --method cox
    python train_explore.py --oom audio --data synth --method erm

Reads   connect.pt of stage 2, RUNS/DATA/inputs/<oom>.pt and the feature banks (never their test rows)
Writes  RUNS/DATA/PERCEPTOR/oom-OOM/SETTING/seedK/METHOD.pt (--tag T: METHOD-T.pt): learner, head, connections, heads
        h*_k, the agreement masks before and after (Fig. 6), one record per epoch; METHOD.log.jsonl as it runs

Every method has the same learner, start, augmentation, steps, batches and learning rate; cox_oom/methods.py has them.
A stopped run goes on from its last checkpoint (METHOD.checkpoint.pt, at every refresh), on the CPU to the same bits.
torchrun starts it on several processes and machines, to the same bits (docs/scale.md).
"""

import re

import cox_oom  # noqa: F401  before torch, whose threads it tells to sleep

# isort: split
import torch
from tqdm import tqdm

from cox_oom import anchors, cli, confidence, labels, loader, methods, run
from cox_oom.cli import PARTS, Parser, leave_out, number
from cox_oom.connect import Bridge
from cox_oom.descent import FAST, Descent
from cox_oom.files import Place, UserError
from cox_oom.learner import load_learner
from cox_oom.methods import METHODS
from cox_oom.objectives import Model
from cox_oom.seed import load_seed, state_of
from cox_oom.teacher import explain, teacher_of

WITHOUT = {"action": "extend", "metavar": "PART,…"}
EVERYDAY = (
    ("--method", "cox", tuple(METHODS), "COX or a baseline (docs/method.md)"),
    ("--tag", "", str, "write METHOD-TAG.pt: a run with other flags beside the first, in a row of its own"),
    ("--epochs", None, number(int, 0, cli.EPOCHS), "epochs of M / batch steps; left out: 50, or more for --min-steps"),
    ("--min-steps", None, number(int, 0, cli.STEPS), f"steps at least; left out: {cli.MIN_STEPS} without --epochs"),
    ("--batch", 128, number(int, 1, cli.LARGE), "unlabelled items of a step"),
    ("--lr", 1e-3, number(float, 0, cli.LARGE), "Adam's learning rate, which a cosine takes down to 0"),
    ("--refreshes", 5, number(int, 1, cli.EPOCHS), "cox, selftrain: how often anchors are chosen anew"),
)
RARE = (
    ("--labelled-batch", 64, number(int, 1, cli.LARGE), "labelled items of a step"),
    ("--weight-decay", 1e-5, number(float, 0, cli.LARGE), "Adam's weight decay"),
    ("--connect-steps", 50, number(int, 0, cli.STEPS), "cox, selftrain: steps of each connection at a refresh"),
    ("--w-agree", 1.0, number(float, 0, cli.LARGE), "cox, selftrain: weight of the anchors' labels on A"),
    ("--w-disagree", None, number(float, 0, cli.LARGE), "the same of D's term; left out: 1, in unsup 0.2"),
    ("--kl", "expected", ("expected", "literal"), "what an item of D is drawn to (docs/method.md, Eq. 13)"),
    ("--rounds", 6, number(int, 0, 10**4), "of the soft correspondence; 0: the heads' agreement chooses anchors"),
    ("--fit-items", 20000, number(int, 0, cli.LARGE), "readings and items that its rounds but the last take; 0: all"),
    ("--temper", 0.4, number(float, 0, cli.LARGE, ends="(]"), "exponent of its posteriors, which are too confident"),
    ("--refit", 0.5, number(float, 0, 1), "how far the head moves, at the end, to the classifier of its posteriors"),
    ("--w-im", 3.0, number(float, 0, cli.LARGE), "cox: weight of predicting IM features"),
    ("--shares", "known", ("known", "free"), "known: classes are as frequent as among the IM items; free: not so"),
    ("--folds", None, number(int, 2, 100), "calibrate by this many further runs, each without a part of the labels"),
    ("--without", [], leave_out, f"ablation: leave out some of {', '.join(PARTS)}", WITHOUT),
)


def get_args(argv=None):
    p = Parser(__doc__, "Next: python evaluate.py --data D --table --out DIR")
    p.common("--data", "--oom", "--perceptor", "--setting")
    p.rows(EVERYDAY)
    p.common("--seed", "--runs", "--device", "--force")
    p.rows((*RARE, *FAST, cli.LOG, *methods.flags()), rare=True)
    args = p.parse_args(argv)
    if args.tag and not re.fullmatch(r"[\w-]{1,80}", args.tag):
        raise UserError(f"--tag {args.tag}: it names a file; use letters, digits, - and _ alone, 80 at most")
    for flag in methods.flags_of_others(args.method):  # a new method must not outdate the runs of the others
        delattr(args, flag)
    return args


def check(args, plan, seed, items):
    """Refuse what cannot be run; say which classes the sensor will not be taken to show."""
    if args.setting == "unsup" and METHODS[args.method].labels:
        raise UserError(
            f"--method {args.method} needs labels: use --setting semi, or one of {', '.join(methods.names('unsup'))}"
        )
    if METHODS[args.method].learn and not len(items.unlabelled):
        raise UserError(
            f"all {len(items.rows)} training items are labelled, nothing is left to explore; lower --labels in stage 2"
        )
    if items.unseen.any() and args.shares == "known" and plan.explores:
        names = ", ".join(seed.oom["class_names"][c] for c in items.unseen.nonzero())
        print(
            f"  note: no labelled {args.oom} item shows {names}: no reading will be taken for one; label one if the "
            f"sensor has recorded it, or give --shares free"
        )


def warm_start(args, plan, seed, items, work):
    """What training begins with: the Model, the Bridge, the Teacher or None, and facts about it."""
    begin = seed.connect if METHODS[args.method].trains else seed.connect["initial"]
    learner, head = load_learner(seed.connect["arch"], begin, args.device)
    bridge = Bridge(
        seed, device=args.device, lr=args.lr, weight_decay=args.weight_decay, start="connection" not in plan.without
    )
    start = METHODS[args.method].start
    extra = start and start(args, learner, head, bridge, seed, items)
    teacher, facts = teacher_of(seed, items, bridge, args, work.state) if plan.soft else (None, {})
    predicts = teacher and teacher.width and args.w_im
    predict = torch.nn.Linear(learner.width, teacher.width).to(args.device) if predicts else None
    if args.method == "cox" and not bridge.common:
        facts["fallback"] = {"code": "none_common", "im": bridge.names}
    print(
        f"{args.method} on {args.oom}, {args.setting}, seed {args.seed}: {len(items.labelled)} labelled, "
        f"{len(items.unlabelled)} unlabelled, {plan.epochs} epochs of {items.steps(args.batch)} steps, {args.device}"
    )
    if facts.get("fallback"):
        print(f"  note: {explain(facts['fallback'])}")
    return Model(learner, head, predict, extra), bridge, teacher, facts


def main(argv=None):
    args = get_args(argv)

    # ------------------------------------------------------------------------------- what stages 1 and 2 left
    seed = load_seed(Place.of(args), keys=("learner", "connections", "mapped", "labelled", "views"))
    plan = methods.plan(args, seed)  # parts left out, losses, refreshes: settled once
    work = run.Work("train_explore", seed.place.method(args.method, args.tag), args, seed.oom, seed.made_from)
    if work.done():
        return
    items = labels.items(seed, METHODS[args.method].all_labels)  # no label of an unlabelled item is read after this
    check(args, plan, seed, items)

    # --------------------------------------------------------------------------------------------- warm start
    torch.manual_seed(args.seed + 2)
    generator = torch.Generator().manual_seed(args.seed + 2)
    model, bridge, teacher, facts = warm_start(args, plan, seed, items, work)
    learner, head, descent = model.learner, model.head, Descent(model, args, 3)
    parts = {"model": model, "optimizer": descent.optimizer, **bridge.parts()}
    state = work.resume(parts, generator) or {"epoch": 0, "before": None, "history": [], "emergent": anchors.no_pairs()}
    bridge.remap()
    first, before, history, chosen = state["epoch"], state["before"], state["history"], None
    emergent = {k: t.to(args.device) for k, t in state["emergent"].items()}

    # ------------------------------------------------------------------------------------------------ explore
    follow = {"generator": generator, "train": "connection" not in plan.without}
    steps = items.steps(args.batch)  # of an epoch
    bar = tqdm(total=plan.epochs * steps, initial=first * steps, desc=args.method, mininterval=1, disable=None)
    for epoch in range(first, plan.epochs):
        if epoch > first and epoch in plan.refreshes:
            state = {"epoch": epoch, "before": before, "history": history, "emergent": emergent, **facts}
            work.checkpoint(state, parts, generator)
        if plan.explores and epoch in plan.refreshes:
            z = items.embed(learner, args.device)
            bridge.follow(z, items, emergent, head, steps=args.connect_steps if epoch else 0, **follow)  # Eqs. 4-9
            chosen = anchors.choose(z, head, bridge, teacher, items, args, plan)  # Eqs. 13-15
            before, emergent = before or chosen.agreement, chosen.emergent
            tqdm.write(f"  epoch {epoch}: {chosen}")
        elif before is None:
            z = items.embed(learner, args.device, labelled=False)
            before = anchors.agreement(z, head, bridge, items, args).agreement
        learner.train()
        terms = lambda part: methods.terms(args, plan, model, items, chosen, teacher, part)
        draws = items.draw(steps, args.labelled_batch, args.batch, generator, methods.learns(args, plan))
        for step, its in enumerate(loader.steps(items.oom, draws, descent.count, args.device), epoch * steps):
            lr = run.cosine(args.lr, step / (plan.epochs * steps))
            descent.step(step, lr, its, terms)
            model.follow()
            bar.update()
        history.append({"epoch": epoch + 1, **descent.means(steps), **items.validate(learner, head, args.device)})
        work.log(**history[-1], lr=lr, **(chosen.counts() if chosen else {}))
    bar.close()

    # --------------------------------------------------------------------------------------------------- save
    z = items.embed(learner, args.device, labelled=plan.explores)
    if plan.explores:
        bridge.follow(z, items, emergent, head, steps=args.connect_steps if plan.epochs else 0, **follow)
    if teacher and args.refit and "exploration" not in plan.without:
        teacher.refit(head, z, args.refit)
        history[-1:] = [record | items.validate(learner, head, args.device) for record in history[-1:]]
    after = anchors.agreement(z, head, bridge, items, args).agreement
    kept = {"arch": seed.connect["arch"], "learner": state_of(learner), "head": state_of(head), **bridge.saved()}
    kept |= {"class_names": seed.oom["class_names"], "unlabelled": [items.ids[i] for i in items.unlabelled.tolist()]}
    kept |= {"before": before or after, "after": after, "history": history, "trust": facts.get("trust", {})}
    kept |= {k: facts.get(k, {}) for k in ("fallback", "gauge")} | methods.instead(args, seed, items)
    kept |= confidence.of_run(seed, args, items, kept)
    work.save(kept, n_labelled=len(items.labelled))
    print(f"stage 3 done in {work.seconds:.0f} s. Next: {Place(args.runs, args.data).command('evaluate.py')} --table")


if __name__ == "__main__":
    run.script(main, together=True)
