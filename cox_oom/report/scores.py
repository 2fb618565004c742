"""A record's scores, the row of a table in which they stand, mean and sd over seeds. No files, no arguments.

A record is what METHOD.json holds (evaluate.py).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from cox_oom.methods import METHODS


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """(mean, sd with n - 1 or None)."""
    mean = sum(values) / len(values)
    square = sum((v - mean) ** 2 for v in values)
    return mean, math.sqrt(square / (len(values) - 1)) if len(values) > 1 else None


def percent(values: Iterable[float | None], n: int = 0) -> str:
    """ "84.1 ± 1.2" of fractions, – where there are none; with their number where that is not n."""
    given = [v for v in values if v is not None]
    if not given:
        return "–"
    mean, sd = mean_sd(given)
    return (
        f"{100 * mean:.1f}"
        + (f" ± {100 * sd:.1f}" if sd is not None else "")
        + (f" (n = {len(given)})" if n and len(given) != n else "")
    )


def flags(r: dict[str, Any]) -> dict[str, Any]:
    """The flags of a record's stages 2 and 3 by name, {} where they were not recorded."""
    return {**(r.get("connect_args") or {}), **(r.get("args") or {})}


def classes(metrics: dict[str, Any]) -> int | None:
    """Number of classes, None where a record's metrics do not say it."""
    return len(metrics["per_class"]) if "per_class" in metrics else metrics.get("classes")


def condition(r: dict[str, Any]) -> str:
    """Setting, labels and pairing of a record in words: what may stand in one row."""
    given = flags(r)
    if r["setting"] == "unsup":
        init, named = given.get("init") or "literal", given.get("name_with")
        return "unsup" + (f", {init}" if init != "literal" else "") + (f", names by {named} per class" if named else "")
    labels = (
        f"labels of {given['labelled_ids']}"
        if given.get("labelled_ids")
        else f"{r['per_class']} labels per class"
        if r["per_class"]
        else "all labels"
        if r["labels"] == 1
        else f"{100 * r['labels']:g}% labels"
    )
    held = f", {100 * given['holdout']:g}% of them held out" if given.get("holdout") else ""
    return f"semi, {labels}{held}" + (", paired by class" if r["paired"] == "class" else "")


def pairing(r: dict[str, Any]) -> str:
    """The pairing of a record in words; the perceptor's own is said with the perceptor."""
    if r["paired"] != "class":
        return {"true": "true instances", "none": "none"}[r["paired"]]
    return f"PAIRED BY CLASS, drawn at random within the class ({', '.join(r.get('paired_by_class', []))})"


def order(method: str) -> tuple[int, str]:
    """Sorts methods as in the paper, METHOD-TAG behind METHOD."""
    return list(METHODS).index(method.partition("-")[0]), method


def score(r: dict[str, Any], metric: str) -> float | None:
    """One number of a record: a metric by name, or "retrieval.WAY.LEVEL.KEY", the mean over the IM modalities, or
    "unlabelled", accuracy on the unlabelled training items with a hidden label after exploration; None where the
    record has none."""
    if metric == "unlabelled":
        a = (r["metrics"].get("agreement") or {}).get("after")
        if not a or "accuracy" in a:
            return a and a["accuracy"]
        # an earlier version's record, of data labelled throughout: a part without accuracy is empty
        return a["share"] * (a["agree_accuracy"] or 0) + (1 - a["share"]) * (a["disagree_accuracy"] or 0)
    if not metric.startswith("retrieval."):
        return r["metrics"].get(metric)
    _, way, level, key = metric.split(".")
    found = [m[way][level][key] for m in r["metrics"].get("retrieval", {}).values() if m[way][level]]
    return sum(found) / len(found) if found else None
