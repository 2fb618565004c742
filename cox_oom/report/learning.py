"""How many labels are enough: accuracy against the number of labels, and what twice as many would bring. No files, no
arguments.

A record is what METHOD.json holds (evaluate.py). Runs that differ in their labels alone make a curve.
"""

from typing import Any

import numpy as np

from cox_oom.files import optional
from cox_oom.methods import METHODS
from cox_oom.report.scores import flags, mean_sd, order, percent

DRAWS, INSIDE = 1000, 0.9  # simulated curves behind an interval, and the share of them that it holds
POWERS = np.geomspace(0.05, 3, 150)  # exponents that the law may have
BOUNDS = ("low", "high", "lowest", "highest")
MISFIT = 0.01  # probability of a worse fit, below which the power law is not used


def curves(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """[{data, oom, perceptor, method, labels [n], accuracy [[a fraction for each seed]], n_test, aligned}] of the runs
    that exist with several numbers of labels. labels: rising, means over the seeds; aligned: mean accuracy with all
    labels, None where it was not run."""
    groups: dict[tuple, dict[str, dict[tuple, list]]] = {}
    for r in records:
        if r["setting"] == "semi" and METHODS[r["method"].partition("-")[0]].trains:
            column = (r["data"], r["oom"], r["perceptor"])
            more = (r.get("fingerprint"), r.get("commonality"), r["paired"], flags(r).get("holdout"))
            share = (r["labels"], r["per_class"])
            groups.setdefault((column, more), {}).setdefault(r["method"], {}).setdefault(share, []).append(r)
    out = []
    for (column, _), methods in sorted(groups.items(), key=repr):
        upper = [r["metrics"]["accuracy"] for rows in methods.get("aligned", {}).values() for r in rows]
        for method in sorted(methods, key=order):
            points: dict[int, list] = {}
            for rows in methods[method].values():
                points.setdefault(round(mean_sd([r["n_labelled"] for r in rows])[0]), []).extend(rows)
            if len(points) > 1 and not METHODS[method.partition("-")[0]].all_labels:
                out.append(
                    {
                        **dict(zip(("data", "oom", "perceptor"), column)),
                        "method": method,
                        "labels": sorted(points),
                        "accuracy": [[r["metrics"]["accuracy"] for r in points[n]] for n in sorted(points)],
                        "n_test": rows[0]["metrics"]["n_test"],
                        "aligned": mean_sd(upper)[0] if upper else None,
                    }
                )
    return out


def law(n: Any, a: float, b: float, c: float) -> Any:
    """The power law a − b n^−c of labels n (in units of some number), accuracy as a fraction."""
    return a - b * n**-c


def fit(n: np.ndarray, y: np.ndarray, error: np.ndarray) -> np.ndarray:
    """(a, b, c) of the law with a ≤ 1, b ≥ 0 and c in POWERS, (D, 3), by weighted least squares: D curves of
    accuracies y (D, k) ≤ 1 at n (k,) labels, k ≥ 3, with standard errors `error` (k,). For each c the rest is linear,
    hence all curves are fitted at once, and no start can mislead (Golub and Pereyra, SIAM J. Numer. Anal. 1973)."""
    w, least, out = 1 / error**2, np.full(len(y), np.inf), np.empty((len(y), 3))
    mean = y @ w / w.sum()
    for c in POWERS:
        x = n**-c
        middle = x @ w / w.sum()
        b = np.maximum(-(y - mean[:, None]) @ (w * (x - middle)) / ((x - middle) ** 2 @ w), 0)
        a = mean + b * middle
        b = np.where(a > 1, (1 - y) @ (w * x) / (x**2 @ w), b)  # the best with a = 1
        a = np.minimum(a, 1)
        loss = (a[:, None] - b[:, None] * x - y) ** 2 @ w
        better = loss < least
        out[better] = np.stack([a, b, np.full(len(y), c)], 1)[better]
        least = np.minimum(least, loss)
    return out


def last_step(n: np.ndarray, y: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """(accuracy at the last n, gain of a doubling) of the rising steps nearest to y: the slope of the last step goes
    on. Curves flatten, so that this promises too much rather than too little."""
    steps = optional("scipy.optimize", "the learning curve").isotonic_regression(y, weights=1 / error**2).x
    gain = (steps[-1] - steps[-2]) / np.log2(n[-1] / n[-2])
    return float(steps[-1]), float(min(gain, 1 - steps[-1]))


def standard_errors(curve: dict[str, Any]) -> tuple[np.ndarray, int]:
    """Standard errors of a curve's means by the sd over seeds, pooled over its points, and its degrees of freedom; of
    one seed: of the test items alone, and 0."""
    accuracy = curve["accuracy"]
    freedom = sum(len(a) - 1 for a in accuracy)
    square = sum(float(np.var(a)) * len(a) for a in accuracy)
    y = np.array([np.mean(a) for a in accuracy])
    of_items = np.sqrt(np.maximum(y * (1 - y), 0.01) / curve["n_test"])
    if not freedom:
        return of_items, 0
    sd = np.sqrt(square / freedom)
    return np.maximum(sd / np.sqrt([len(a) for a in accuracy]), 1e-3), freedom


def prediction(curve: dict[str, Any], times: float = 2.0) -> dict[str, Any]:
    """{law, accuracy, gain, low, high, lowest, highest}: what `times` the last number of labels would bring, as
    fractions, with the interval of the gain (low, high) and of the accuracy. law: the fitted (a, b, c) in units of the
    last number; None: the last step goes on, and the interval is None. The gain is over the measured mean.

    The interval holds INSIDE of DRAWS curves whose means are moved by Student's t of their standard errors, the wider
    the worse the law fits: other labelled items, the same test items and law."""
    n, y = np.array(curve["labels"]), np.array([np.mean(a) for a in curve["accuracy"]])
    error, freedom = standard_errors(curve)
    found, square = fit(n / n[-1], y[None], error) if len(n) > 2 else None, 1.0
    if found is not None and len(n) > 3:
        square = float((((law(n / n[-1], *found[0]) - y) / error) ** 2).sum()) / (len(n) - 3)
        worse = optional("scipy.stats", "the learning curve").f.sf(square, len(n) - 3, freedom or 1000)
        found = found if worse >= MISFIT else None
    if found is None:
        level, gain = last_step(n, y, error)
        gain *= float(np.log2(times))
        return {"law": None, "accuracy": min(1.0, level + gain), "gain": gain} | dict.fromkeys(BOUNDS)
    noise = np.random.default_rng(0).standard_t(freedom or 1000, (DRAWS, len(n))) * error * max(1.0, square) ** 0.5
    moved = np.clip(y + noise, 0, 1)
    accuracy = law(times, *np.concatenate([found, fit(n / n[-1], moved, error)]).T)
    gain = accuracy - np.append(y[-1], moved[:, -1])
    between = lambda v: [
        f(w, v[0]) for f, w in zip((min, max), np.quantile(v[1:], (0.5 - INSIDE / 2, 0.5 + INSIDE / 2)))
    ]
    bounds = map(float, [*between(gain), *between(accuracy)])
    return {"law": tuple(found[0].tolist()), "accuracy": float(accuracy[0]), "gain": float(gain[0])} | dict(
        zip(BOUNDS, bounds)
    )


def words(curve: dict[str, Any], found: dict[str, Any]) -> str:
    """A curve's prediction in sentences."""
    n, last = curve["labels"], 100 * mean_sd(curve["accuracy"][-1])[0]
    text = f"{curve['method']}: {n[-1]:.0f} labels give {last:.1f}%."
    if not found["law"]:
        why = "no power law fits" if len(n) > 2 else "a forecast needs three numbers of labels"
        return (
            f"{text} Twice as many would bring at most about {100 * found['gain']:+.1f} points, as the last step "
            + (f"did ({why}).")
        )
    text += f" Twice as many would bring {100 * found['gain']:+.1f} points, "
    text += f"between {100 * found['low']:+.1f} and {100 * found['high']:+.1f} with {INSIDE:.0%} probability."
    if len(n) > 3:
        before = {**curve, "labels": n[:-1], "accuracy": curve["accuracy"][:-1]}
        told = prediction(before, n[-1] / n[-2])
        if told["law"]:
            text += f" Check: the runs with at most {n[-2]:.0f} labels predict {100 * told['accuracy']:.1f}% for "
            text += f"{n[-1]:.0f} ({100 * told['lowest']:.1f} to {100 * told['highest']:.1f}); {last:.1f}% came."
    return text


def predicted(records: list[dict[str, Any]]) -> dict[tuple[str, str], list[tuple[dict[str, Any], dict[str, Any]]]]:
    """{(data, oom): [(curve, its prediction)]} of the records' curves."""
    out: dict[tuple[str, str], list] = {}
    for curve in curves(records):
        out.setdefault((curve["data"], curve["oom"]), []).append((curve, prediction(curve)))
    return out


def best(some: list[tuple[dict[str, Any], dict[str, Any]]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """COX's curve and prediction, without it those of the highest end."""
    return next((p for p in some if p[0]["method"] == "cox"), max(some, key=lambda p: mean_sd(p[0]["accuracy"][-1])[0]))


def learning_tables(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A block {title, header, rows, notes} for each data set and OOM modality with several numbers of labels."""
    blocks = []
    for (data, oom), some in predicted(records).items():
        counts = sorted({f"{n:.0f}" for curve, _ in some for n in curve["labels"]}, key=int)
        rows = []
        for curve, found in some:
            by = dict(zip([f"{n:.0f}" for n in curve["labels"]], curve["accuracy"]))
            rows.append(
                [
                    curve["method"],
                    *(percent(by.get(n, [])) for n in counts),
                    f"{2 * curve['labels'][-1]:.0f}",
                    f"{100 * found['accuracy']:.1f}",
                    f"{100 * found['gain']:+.1f}",
                    f"{100 * found['low']:+.1f} to {100 * found['high']:+.1f}" if found["law"] else "–",
                ]
            )
        notes = [
            "Test accuracy, mean ± sd (n − 1) over seeds. The last columns extend each row by the power law "
            "a − b n^−c. They are a forecast, not a measurement.",
            f"The interval holds {INSIDE:.0%} of curves that other labelled items could have given; it supposes the "
            "law, and it does not cover other test items.",
            words(*best(some)),
        ]
        if not all(found["law"] for _, found in some):
            notes.append("Without an interval: no law was fitted, the last step goes on. This is rather too much.")
        upper = some[0][0]["aligned"]
        notes += [f"With all labels, aligned reaches {100 * upper:.1f}%."] if upper is not None else []
        heads = [f"{n} labels" for n in counts]
        blocks.append(
            {
                "title": f"How many labels are enough: {data} {oom}, test accuracy, %",
                "header": ["method", *heads, "twice as many", "predicted", "gain, points", f"{INSIDE:.0%} interval"],
                "rows": rows,
                "notes": notes,
            }
        )
    return blocks
