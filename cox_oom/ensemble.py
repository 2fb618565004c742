"""--method ensemble: the mean posterior of several learners of `selftrain` (or cox, --of), all with the same labels.

A member is stages 2 and 3 once more with another seed: other initial weights, other batches, but the labelled and the
held-out items of this seed. Members lie in SEED/members and go on after a stop."""

from argparse import Namespace
from typing import Any

from cox_oom import again, files
from cox_oom.augment import model_of
from cox_oom.files import UserError
from cox_oom.labels import Items
from cox_oom.seed import Seed

APART = 1000  # between the seeds of members


def train(args: Namespace, seed: Seed, items: Items) -> dict[str, Any]:
    """What METHOD.pt keeps of an ensemble: the first member's whole content, but `members` [{learner, head}], and the
    classes that all together name in `after`. UserError: a member fails."""
    labelled = seed.place.folder / "members" / "labelled.txt"
    ids = [*seed.connect["labelled"], *seed.connect["held"]]
    files.write_atomic(labelled, lambda tmp: tmp.write_text("\n".join(ids), encoding="utf-8"))
    own = {k: v for k, v in vars(args).items() if k not in ("members", "of", "folds", "tag")} | {"method": args.of}
    runs = []
    for k in range(args.members):
        print(f"  member {k + 1} of {args.members}", flush=True)
        start = {"seed": seed.place.seed + APART * k, "labelled_ids": str(labelled)}
        try:
            place = again.stages(seed, labelled.parent, start, own)
        except UserError as e:
            raise UserError(f"--method ensemble, member {k + 1}, {e}") from None
        runs.append(files.load(place.method(args.of)))
    kept = {k: v for k, v in runs[0].items() if k != "meta"}
    kept["members"] = [{"learner": run["learner"], "head": run["head"]} for run in runs]
    logits = model_of(kept, args.device)(seed.oom, items.rows[items.unlabelled])[1]
    kept["after"] = {**kept["after"], "prediction": logits.argmax(1)}
    return kept
