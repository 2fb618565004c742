"""Which recordings to label next: unlabelled items that stand for many of which a learner is unsure.

Shapes: U unlabelled items, C classes, d features of the learner, n items that are asked for.
"""

import csv
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cox_oom import confidence
from cox_oom.files import Place, UserError, check_chain, optional
from cox_oom.predict import Trained
from cox_oom.report.records import cell, write_text
from cox_oom.seed import load_inputs

TURNS = 20  # of k-means
SHOWN = 20  # lines on the screen


def entropy(p: Tensor) -> Tensor:
    """Entropy (U,) in nats of posteriors p (U, C)."""
    return torch.special.entr(p).sum(-1)


def spread(z: Tensor, weight: Tensor, n: int) -> Tensor:
    """Places (n,) of items that stand for many of great weight (U,), the heaviest first; all where U < n.

    k-means on z (U, d), in which an item counts by its weight, makes n clusters. Each gives the item nearest to its
    centre, so that near duplicates count once (Zhdanov, Diverse mini-batch active learning, 2019)."""
    order = weight.argsort(descending=True, stable=True)
    z, weight = z[order].double(), weight[order].double().clamp(min=1e-12)
    start, near = [0], (z - z[0]).square().sum(1)
    while len(start) < min(n, len(z)):  # again and again what is heavy and far from the others
        start.append(int((weight * near).index_fill(0, torch.tensor(start), -1.0).argmax()))
        near = torch.minimum(near, (z - z[start[-1]]).square().sum(1))
    means = optional("sklearn.cluster", "--suggest").KMeans(len(start), init=z[start].numpy(), n_init=1, max_iter=TURNS)
    with warnings.catch_warnings():  # of fewer different items than clusters
        warnings.simplefilter("ignore")
        centres = torch.from_numpy(means.fit(z.numpy(), sample_weight=weight.numpy()).cluster_centers_)
    far, taken = torch.cdist(z, centres), torch.zeros(len(z), dtype=torch.bool)
    for c in range(len(centres)):
        taken[far[:, c].masked_fill(taken, torch.inf).argmin()] = True
    return order[taken]


def unlabelled(learner: Trained, oom: dict[str, Any]) -> list[str]:
    """The ids of the items that no run of a learner had a label of. Where the data, the inputs file `oom`, lack the
    label of some, these alone. Raises UserError where there is none, or where the data have changed."""
    for path, run in zip(learner.paths, learner.runs):
        made_from = {f"inputs/{learner.modality}": oom["meta"]["digest"]}
        check_chain(path, run["meta"], made_from, oom["meta"]["fingerprint"])
    common = set.intersection(*(set(run["unlabelled"]) for run in learner.runs))
    label = dict(zip(oom["ids"], oom["labels"].tolist()))
    found = [i for i in learner.runs[0]["unlabelled"] if i in common]
    if not found:
        raise UserError(f"{learner.paths[0]}: every training item has a label; there is none to suggest")
    return [i for i in found if label[i] < 0] or found


def reason(p: Tensor, agree: bool, novelty: float, classes: Sequence[str]) -> str:
    """Why an item with posteriors p (C,) is suggested, in words."""
    best = [classes[c] for c in p.topk(min(2, len(p))).indices.tolist()]
    said = [f"{' or '.join(best)}", *([] if agree else ["the modalities disagree"])]
    return "; ".join(said + (["unlike the other training items"] if novelty > 1 else []))


def name(learner: Trained, inputs: Place, n: int, out: Path) -> None:
    """Write OUT/suggest.csv, a line for each of the n recordings to label next: id, guess, confidence, score (entropy
    in nats), reason. Print the first lines. inputs: where the inputs are that the learner was trained on."""
    oom = load_inputs(inputs, learner.modality)
    ids = unlabelled(learner, oom)
    place = {i: r for r, i in enumerate(oom["ids"])}
    found = [model(oom, torch.tensor([place[i] for i in ids])) for model in learner.models]
    both = list(zip(learner.runs, found))
    p = torch.stack([confidence.posteriors(run, logits) for run, (_, logits) in both]).mean(0)
    novelty = torch.stack([confidence.novelty(run, z) for run, (z, _) in both]).mean(0)
    agree = dict(zip(learner.runs[0]["unlabelled"], learner.runs[0]["after"]["agree"].tolist()))
    score = entropy(p)
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "guess", "confidence", "score", "reason"])
    chosen = spread(torch.cat([z for z, _ in found], 1), score, n).tolist()
    for i in chosen:
        sure, c = p[i].max(0)
        why = reason(p[i], agree[ids[i]], novelty[i].item(), learner.classes)
        line = [ids[i], learner.classes[int(c)], f"{sure.item():.4f}", f"{score[i].item():.4f}", why]
        writer.writerow([cell(v) for v in line])
        if i in chosen[:SHOWN]:
            print(f"  {line[0]}: {line[1]} {line[2]} ({why})")
    write_text(out / "suggest.csv", table.getvalue())
    known = "" if oom["labels"][place[ids[0]]] < 0 else "; the data have their labels, which the learner was not given"
    print(f"wrote {out / 'suggest.csv'}: {len(chosen)} of {len(ids)} unlabelled recordings{known}")
