"""The teacher: what names the unlabelled recordings for the learner, from the known items where they can be trusted,
else from the labels alone.

Shapes: M OOM items, C classes, p dimensions of the IM vectors.
"""

from argparse import Namespace
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from cox_oom.connect import Bridge, Known
from cox_oom.correspond import Source, class_posteriors, held_out, held_out_gain, known_items, labels_alone, whiten
from cox_oom.gauge import gauge, in_words
from cox_oom.heads import fit_head, move_head
from cox_oom.labels import Items, Start, class_frequencies, coverage_of, groups_of
from cox_oom.readings import choose, coarse_and_fine, raw_views, words
from cox_oom.seed import Seed


class Teacher:
    """What names the readings for the learner: `posteriors` (M, C) and `expected` IM vectors (M, p) of all items, by
    a Source and two kinds of view, the raw readings (M, 2 `components`) and the learner's features."""

    def __init__(
        self,
        source: Source,
        raw: Tensor,
        components: int,
        y: Tensor,
        *,
        temper: float,
        rounds: int,
        cross: bool,
    ) -> None:
        self.source, self.raw, self.components, self.y = source, raw, components, y
        self.temper, self.rounds = temper, rounds
        self.width = source.x.shape[1] if cross else 0  # p; 0: there are no IM vectors to expect

    def look(self, z: Tensor) -> None:
        """Take in the learner's features z (M, d) as they are now."""
        views = coarse_and_fine(self.raw, whiten(z, 40), self.components)
        self.posteriors, self.expected = class_posteriors(
            views, self.y, self.source, temper=self.temper, rounds=self.rounds
        )

    def refit(self, head: nn.Linear, z: Tensor, share: float) -> None:
        """Move the learner's head by `share` to the optimal classifier of the posteriors of all items, z (M, d)."""
        self.look(z)
        move_head(head, fit_head(z, self.posteriors, self.posteriors.shape[1], weight_decay=1e-2), share)


def components_of(items: int) -> int:
    """How many whitened components of so many recordings tell most, about."""
    return max(10, min(50, items // 20))


def views_of(
    oom: dict[str, Any], rows: Tensor, start: Start | None, known: Mapping[str, Known], device: str
) -> dict[str, Any]:
    """readings.choose's facts of the recordings, rows (M,) of an inputs file. Taken are the views under which labels
    alone, those of the Start, tell held-out labels best, at the class frequencies of the `known` side; the usual one
    where there are none."""
    y = torch.full((len(rows),), -1)
    if start:
        y[torch.searchsorted(rows, start.rows)] = start.y
    on_im_side, groups = torch.cat([k.y.cpu() for k in known.values()]), groups_of(oom, rows)
    shares, _ = class_frequencies(on_im_side, y[y >= 0], len(oom["class_names"]))
    part = coverage_of([k.ids for k in known.values()], len(rows))

    def judge(x: Tensor, places: Tensor) -> Tensor:
        alone = replace(labels_alone(y[places].to(device), shares.to(device)), coverage=part)
        apart = None if groups is None else groups[places].to(device)
        return held_out(whiten(x, components_of(len(rows))).to(device), y[places].to(device), alone, groups=apart)[0]

    with torch.random.fork_rng(devices=[]):  # how many views are tried must not change the training's batches
        facts = choose(oom, rows, y, judge)
    print(f"  {words(facts)}")
    return facts


def teacher_of(
    seed: Seed, items: Items, bridge: Bridge, args: Namespace, earlier: dict[str, Any]
) -> tuple[Teacher, dict[str, Any]]:
    """The Teacher of a run, and facts of it: {"trust": held_out_gain's, "fallback": why COX has no correspondences,
    "gauge": what they have in common with the IM items}.

    COX's is told by the IM items, where there are pairs enough and they do not do worse on held-out pairs than labels
    alone; else, and for selftrain, by labels alone. earlier: the facts that an earlier part of the same run found."""
    y = items.y.to(args.device)
    groups = None if items.groups is None else items.groups.to(args.device)
    components = components_of(len(items.rows))
    shares = items.frequencies.to(args.device)
    alone, source = labels_alone(y, shares), None
    facts: dict[str, Any] = {"trust": {}, "fallback": {}}
    raw = whiten(raw_views(seed.connect["views"]["chosen"], seed.oom, items.rows), 2 * components).to(args.device)
    if args.method == "cox" and bridge.common:
        source, found = known_items(items.ids, y, bridge.common, bridge.common_banks(), bridge.y_common, shares)
        for c in found["lacking"]:
            print(
                f"  no labelled item that all of {', '.join(bridge.names)} show is {seed.oom['class_names'][c]}: "
                f"this the labels alone tell"
            )
        if not source:
            facts["fallback"] = {
                "code": "few_pairs",
                "pairs": found["pairs"],
                "least": found["least"],
                "im": bridge.names,
            }
    for each in filter(None, (alone, source)):
        each.coverage = items.coverage if args.shares == "known" else 0.0
        each.fit, each.seed = args.fit_items, args.seed
    if source:
        trust = facts["trust"] = earlier.get("trust") or held_out_gain(
            raw[:, :components], y, source, alone, groups=groups, rounds=args.rounds
        )
        print(
            "  held-out pairs: correspondences name {right:.1%} of the raw readings, labels alone {right_alone:.1%}; "
            "gain {gain:+.3f} ± {error:.3f} nat".format(**trust)
        )
        if not trust["trusted"]:
            facts["fallback"] = {"code": "not_trusted"}
        own = (source.partner >= 0) & (source.partner < len(bridge.common))  # true pairs
        facts["gauge"] = gauge(raw[own, :components], source.x[source.partner[own]], y[own])
        print(f"  {in_words(facts['gauge'])}")
    cross = bool(facts["trust"].get("trusted"))
    return Teacher(
        source if cross and source else alone,
        raw,
        components,
        y,
        temper=args.temper,
        rounds=args.rounds,
        cross=cross,
    ), facts


def explain(fallback: dict[str, Any]) -> str:
    """A fallback in words: why COX goes without correspondences; "" where it has them."""
    return {
        "few_pairs": "{pairs} labelled items have a pair in all of {names}, {least} are needed: "
        "COX goes by labels and agreement",
        "not_trusted": "correspondences do worse on held-out pairs than labels alone: COX goes by labels and agreement",
        "none_common": "no instance is in all of {names}: agreement alone, without emergent correspondences",
        "": "",
    }[fallback.get("code", "")].format(**fallback, names=", ".join(fallback.get("im", ())))
