"""What a table's runs amount to, in words: the best method, how sure that is, what to do next. No files, no arguments.

Intervals hold 95% of DRAWS bootstrap draws: test items are drawn with replacement, and so are seeds where there are
several. All methods get the same draws, so a difference is paired by seed and test item. More than noise: the interval
of a difference does not hold 0. Records are those of METHOD.json; `correct` of each says which test items were right.
"""

from typing import Any

import numpy as np

from cox_oom.methods import METHODS
from cox_oom.report.scores import classes, condition, order
from cox_oom.run import rising

DRAWS = 2000
FEW = 10  # labels of a class: more may help most
UNKNOWN = (
    "what is noise cannot be told, since some records do not say which test items were right; make those runs again"
)


def row_of(method: str) -> Any:
    return METHODS[method.partition("-")[0]]


def draws(records: list[dict[str, Any]]) -> dict[str, np.ndarray] | None:
    """{method: accuracy in each bootstrap draw (DRAWS,)} of one column and condition: of the methods that do not see
    all labels and have as many seeds as any. None where a record does not say which items were right, or where the
    runs have different test items."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for r in sorted(records, key=lambda r: r["seed"]):
        if not row_of(r["method"]).all_labels:
            rows.setdefault(r["method"], []).append(r)
    most = max(map(len, rows.values()), default=0)
    used = {m: rows[m] for m in sorted(rows, key=order) if len(rows[m]) == most}
    words: list[str] = [r.get("correct") or "" for mine in used.values() for r in mine]
    alike = len({r.get("fingerprint") for mine in used.values() for r in mine}) == 1
    if not words or not all(words) or len(set(map(len, words))) > 1 or not alike:
        return None
    items, rng, out = len(words[0]), np.random.default_rng(0), {}
    by_item = rng.multinomial(items, np.full(items, 1 / items), DRAWS) / items  # (DRAWS, items)
    by_seed = rng.multinomial(most, np.full(most, 1 / most), DRAWS) / most if most > 1 else np.ones((DRAWS, 1))
    for m, mine in used.items():
        right = np.array([np.frombuffer(r["correct"].encode(), np.uint8) == ord("1") for r in mine], float)
        out[m] = (by_seed * (by_item @ right.T)).sum(1)
    return out


def interval(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def accuracies(records: list[dict[str, Any]], names: Any) -> dict[str, float]:
    """{method: mean test accuracy over seeds}, the best first; of equals the earlier of METHODS."""
    mean = {m: float(np.mean([r["metrics"]["accuracy"] for r in records if r["method"] == m])) for m in names}
    return dict(sorted(mean.items(), key=lambda v: -round(v[1], 9)))


def clear_best(records: list[dict[str, Any]]) -> str | None:
    """The method whose distance to every other one is more than noise, of one column and condition; None: there is
    none, or it cannot be told."""
    found = draws(records) or {}
    names = list(accuracies(records, found))
    clear = len(names) > 1 and all(interval(found[names[0]] - found[m])[0] > 0 for m in names[1:])
    return names[0] if clear else None


def spread(values: np.ndarray) -> str:
    return "({:.1f} to {:.1f})".format(*(100 * v for v in interval(values)))


def distance(found: dict[str, np.ndarray], mean: dict[str, float], a: str, b: str) -> str:
    """How far the better method a is from b, in words."""
    gap, low = 100 * (mean[a] - mean[b]), interval(found[a] - found[b])[0]
    noise = "more than noise" if low > 0 else "no more than noise"
    return f"{gap:.1f} points {spread(found[a] - found[b])}, {noise}"


def advice(records: list[dict[str, Any]], names: list[str], clear: bool) -> list[str]:
    """What to do next, the most urgent first."""
    lines, best = [], row_of(names[0])
    mine = [r for r in records if row_of(r["method"]).trains and r["history"]]
    still = sorted({r["method"] for r in mine if rising(r["history"])}, key=order)
    if still:
        lines.append(f"Train longer: validation of {', '.join(still)} was still rising (more --min-steps).")
    elif best.classical and mine and not any("val_accuracy" in r["history"][-1] for r in mine):
        lines.append("Train longer (more --min-steps); --holdout 0.2 in stage 2 shows whether validation still rises.")
    if best.classical:
        name = names[0]
        lines.append(f"Until a learner passes {name}, take {name}.")
    n_classes, n = classes(records[0]["metrics"]), max(r["n_labelled"] for r in records)
    if n_classes and n < FEW * n_classes:
        lines.append(f"Label more: {n} labels are fewer than {FEW} a class.")
    if not clear:
        lines.append("More labelled test items and more seeds would tell the best methods apart.")
    return [*lines, *trust_lines([t for r in records if r["method"] == "cox" and (t := r["metrics"].get("trust"))])]


def trust_lines(trust: list[dict[str, Any]]) -> list[str]:
    """What stage 3's check on held-out pairs says of the known modalities; trust: that of each run of COX."""
    if not all(t["trusted"] for t in trust):
        n = sum(t["trusted"] for t in trust)
        return [f"Held-out pairs spoke for the known modalities in {n} of {len(trust)} runs: do not count on them."]
    told = [t for t in trust if "gain" in t]
    if not told:
        return []
    gain, error = (float(np.mean([t[k] for t in told])) for k in ("gain", "error"))
    if gain > 2 * error:
        return []
    return [
        f"On held-out pairs the known modalities tell nothing beyond noise: gain {gain:+.3f} nat, error {error:.3f}."
    ]


def lines_of(records: list[dict[str, Any]], name: str) -> list[str]:
    """The verdict on one column and condition, a sentence a line. name: of the column."""
    records = [r for r in records if not row_of(r["method"]).all_labels]
    found = draws(records)
    if found is None:
        return [f"{name}: {UNKNOWN}."] if records and not all(r.get("correct") for r in records) else []
    mean = accuracies(records, found)
    first, *others = mean
    seeds = len({r["seed"] for r in records if r["method"] == first})
    what = ", which trains no network," if row_of(first).classical else ""
    test = f"{records[0]['metrics']['n_test']} test items, {seeds} seed{'s' * (seeds > 1)}"
    lines = [f"{name}: {first}{what} is best with {100 * mean[first]:.1f}% {spread(found[first])} on {test}."]
    if others:
        lines.append(f"It is ahead of {others[0]}, the next, by {distance(found, mean, first, others[0])}.")
    for m in ("raw", "cox"):
        if m in others[1:]:
            lines.append(f"{m} reaches {100 * mean[m]:.1f}%: behind by {distance(found, mean, first, m)}.")
    ours, theirs = ("cox", "raw")
    if {ours, theirs} <= set(others):
        a, b = sorted((ours, theirs), key=lambda m: -mean[m])
        lines.append(f"{a} is ahead of {b} by {distance(found, mean, a, b)}.")
    left_out = sorted({r["method"] for r in records} - set(found), key=order)
    if left_out:
        lines.append(f"Not compared, since they have fewer seeds: {', '.join(left_out)}.")
    return [*lines, *advice(records, list(mean), clear_best(records) is not None)]


def blocks(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """[the verdict as a block without a table {title, header, rows, notes}]; [] where there is nothing to say."""
    keys = sorted({(r["data"], r["oom"], r["perceptor"], condition(r)) for r in records})
    several, notes = len({k[2] for k in keys}) > 1, []
    for data, oom, perceptor, k in keys:
        mine = [r for r in records if (r["data"], r["oom"], r["perceptor"], condition(r)) == (data, oom, perceptor, k)]
        notes += lines_of(mine, f"{data} {oom}, {k}" + (f", {perceptor}" if several else ""))
    told = "In parentheses: 95% of the bootstrap draws over test items and seeds."
    return [{"title": "Verdict", "header": [], "rows": [], "notes": [*notes, told]}] if notes else []
