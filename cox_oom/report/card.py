"""METHOD.card.md: what a trained learner is, how good it was, and what that does not say. Written from its record."""

import math
from collections.abc import Sequence
from typing import Any

from cox_oom.files import escaped
from cox_oom.report.scores import condition
from cox_oom.report.tables import plain
from cox_oom.teacher import explain


def wilson(right: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The 95% interval of a share of `n` items that was found to be `right` (Wilson, 1927)."""
    if not n:
        return 0.0, 1.0
    centre = (right + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(right * (1 - right) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def share(right: float, n: int) -> str:
    """ "84.0% (80.1 to 87.3)" of n items."""
    low, high = wilson(right, n)
    return f"{100 * right:.1f}% ({100 * low:.1f} to {100 * high:.1f})"


def card(record: dict[str, Any], exports: Sequence[dict[str, Any]] = ()) -> str:
    """The card in Markdown, of METHOD.json's record and of what export.measure says of exported files."""
    m, n = record["metrics"], record["metrics"]["n_test"]
    facts = [
        ("data", f"{record['data']} (fingerprint {record['fingerprint'][:8]})"),
        ("new sensor", record["oom"]),
        ("method", f"{record['method']}, seed {record['seed']}"),
        ("setting", condition(record)),
        ("labelled recordings", record["n_labelled"]),
        (
            "pairs",
            {"true": "recordings of the same thing", "class": "drawn within a class", "none": "none"}[record["paired"]],
        ),
        ("perceptor", record["perceptor"]),
        ("accuracy on test items", f"{share(m['accuracy'], n)}, 95% interval, of {n}"),
        ("mean over classes", f"{100 * m['balanced_accuracy']:.1f}%"),
        ("warm start alone", f"{100 * m['warm_accuracy']:.1f}%"),
        *confidence(m),
        ("correspondences", correspondences(record)),
    ]
    lines = [f"# {plain(record['oom'])} by {plain(record['method'])}", "", "| | |", "|:--|:--|"]
    lines += [f"| {name} | {plain(words)} |" for name, words in facts]
    lines += ["", "## Each class", "", "| class | test items | found | mistaken most for |", "|:--|--:|--:|:--|"]
    names = list(m["per_class"])
    for name, row in zip(names, m["confusion"]):
        count, right = sum(row), row[names.index(name)]
        wrong = max(((c, other) for c, other in zip(row, names) if other != name and c), default=None)
        found = share(right / count, count) if count else "–"
        lines.append(f"| {plain(name)} | {count} | {found} | {f'{plain(wrong[1])} ({wrong[0]})' if wrong else ''} |")
    if exports:
        lines += ["", "## Exported files", "", "| file | MB | one item, one thread | accuracy | largest difference |"]
        lines += ["|:--|--:|--:|--:|--:|"]
        lines += [
            f"| {plain(e['file'])} | {e['bytes'] / 1e6:.2f} | {e['ms']:.2f} ms | {100 * e['accuracy']:.1f}% "
            f"| {e['difference']:.1e} |"
            for e in exports
        ]
    lines += ["", "## What this does not say", "", *(f"- {line}" for line in limits(record)), ""]
    lines += ["## How it was made", "", "```", escaped(record["command"]), "```", ""]
    return "\n".join(lines)


def confidence(m: dict[str, Any]) -> list[tuple[str, str]]:
    """The card's lines on calibration and novelty."""
    c = m.get("calibration")
    if c is None:
        return []
    error = (
        f"{100 * c['ece']:.1f} points of expected calibration error on test items, {100 * c['ece_before']:.1f} before"
    )
    if c["n"]:
        words = (
            f"temperature {c['temperature']:.2f} (90% interval {c['low']:.2f} to {c['high']:.2f}) "
            f"from {c['n']} items ({c['source']}); {error}"
        )
    else:
        words = f"not calibrated (stage 3: --folds 4); {100 * c['ece']:.1f} points of expected calibration error"
    kept, right = c["abstain"]["0.8"]
    sure = f"{100 * kept:.0f}% of the test items" + (f", {100 * right:.1f}% of them right" if right is not None else "")
    return [
        ("confidence", words),
        ("at confidence 0.8 or more", sure),
        ("test items said to be unlike the training items", f"{100 * m['novelty']:.1f}% (5% were to be expected)"),
    ]


def correspondences(record: dict[str, Any]) -> str:
    """Whether stage 3 trusted its correspondences, in words."""
    m = record["metrics"]
    if record["method"].partition("-")[0] != "cox":
        return "not used by this method"
    if fallback := m.get("fallback"):
        return f"left out: {explain(fallback)}"
    trust = m.get("trust") or {}
    return "used" + (
        f": {', '.join(f'{k} {v:.3g}' for k, v in trust.items() if isinstance(v, float))}" if trust else ""
    )


def limits(record: dict[str, Any]) -> list[str]:
    """What the learner was not tested on."""
    lines = [
        "The test items are those of its own data set. Another place, person, device or season was not tested.",
        "A recording of none of these classes still gets one of them; the column novelty is the only warning.",
        "It was trained once, with one seed. Other seeds give other figures; the table of stage 4 has their spread.",
    ]
    if groups := record["metrics"].get("groups"):
        lines.append(
            f"Every split inside the training kept each {plain(groups['column'])} on one side (--groups). Of the test "
            f"items {100 * groups['seen']:.0f}% are of one that training has seen."
        )
    else:
        lines.append(
            "Nothing said which recordings are of one object, person or place (--groups in stage 1). So the checks "
            "inside the training cannot tell how it does on new ones."
        )
    if empty := [
        name for name, row in zip(record["metrics"]["per_class"], record["metrics"]["confusion"]) if not sum(row)
    ]:
        lines.append(f"No test item is of {', '.join(map(plain, empty))}.")
    if record["paired"] == "class":
        lines.append("No recording was a true pair, so the other modalities could only help by class.")
    return lines
