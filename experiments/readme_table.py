"""Write the results in experiments/results/ into README.md, between its two markers: nothing there is typed by hand.

    python experiments/readme_table.py

Accuracies from table2/ (rows that it lacks: from demo/ and own_sensor/), one row per data set and OOM modality, one column
per method, mean ± sd (n - 1) over seeds, the best in bold; the paired tests of table2/; retrieval from table3/.
"""
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import results  # noqa: E402

BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def read(folder):
    """(records, line of COMMAND) of a folder of results, or ([], "") where there is none."""
    if not (folder / "table.json").exists():
        return [], ""
    records = [r for r in json.loads((folder / "table.json").read_text()) if "-" not in r["method"]]
    seeds = ", ".join(map(str, sorted({r["seed"] for r in records})))
    return records, f"`{folder.name}`: seeds {seeds}; {(folder / 'COMMAND').read_text().strip()}"


def bold_best(values, texts):
    """The texts, bold where the value (None: takes no part) is the highest as printed."""
    best = max((round(v, 3) for v in values if v is not None), default=None)
    return [f"**{t}**" if v is not None and round(v, 3) == best else t for v, t in zip(values, texts)]


def accuracy_lines(sources):
    """The table of accuracies over the folders' records; a row is taken from the first folder that has it."""
    rows = {}
    for records in sources:
        here = {}
        for r in records:
            here.setdefault((r["data"], r["oom"], r["setting"], r["labels"]), {}).setdefault(r["method"], []).append(r)
        rows = {**here, **rows}
    methods = [m for m in results.METHODS if any(m in by for by in rows.values())]
    lines = ["| data | new sensor | labels | " + " | ".join(methods) + " | gap before | gap after |",
             "|:--|:--|--:|" + "--:|" * (len(methods) + 2)]
    for (data, oom, setting, labels), by in sorted(rows.items(), key=lambda r: (r[0][2], r[0])):
        accuracy = [[r["metrics"]["accuracy"] for r in by.get(m, [])] for m in methods]
        means = [results.mean_sd(v)[0] if v and m != "aligned" else None for m, v in zip(methods, accuracy)]
        agreement = [r["metrics"]["agreement"] for r in by.get("cox", []) if r["metrics"]["agreement"]]
        share = f"{100 * labels:g}%" if setting == "semi" else "none"
        lines.append("| " + " | ".join([data, oom, share, *bold_best(means, [results.percent(v) for v in accuracy]),
                                        *(results.percent([a[when]["gap"] for a in agreement]) for when in ("before", "after"))]) + " |")
    return lines


def test_lines(folder):
    """The paired tests beside a table."""
    if not (folder / "tests.json").exists():
        return []
    show = lambda p: "–" if p is None else f"{p:.1g}"
    lines = ["", "| COX − | setting | n | columns ahead | points | p (t) | p (Wilcoxon) |", "|:--|:--|--:|--:|--:|--:|--:|"]
    return lines + [f"| {t['against']} | {t['setting']} | {t['n']} | {t['ahead']} of {t['columns']} | {100 * t['mean']:+.1f} | "
                    f"{show(t['t_p'])} | {show(t['wilcoxon_p'])} |"
                    for t in json.loads((folder / "tests.json").read_text()) if "-" not in t["against"]]


def retrieval_lines(records):
    """Mean over columns and seeds of R@1 and R@5, OOM -> IM, a row for each method."""
    if not records:
        return []
    keys = [(level, k) for level in ("category", "instance") for k in ("r1", "r5")]
    lines = ["", "| retrieval, OOM → IM | category R@1 | R@5 | instance R@1 | R@5 |", "|:--|--:|--:|--:|--:|"]
    name = lambda level, k: f"retrieval.out.{level}.{k}"
    mean = lambda some, metric: results.mean_sd(v)[0] if (v := [x for r in some if (x := results.score(r, metric)) is not None]) else None
    methods = sorted({r["method"] for r in records}, key=results.order)
    values = {m: [mean([r for r in records if r["method"] == m], name(*k)) for k in keys] for m in methods}
    best = [max(v[i] or 0 for m, v in values.items() if m != "aligned") for i in range(len(keys))]
    for m, found in values.items():
        lines.append(f"| {m} | " + " | ".join("–" if v is None else f"**{100 * v:.1f}**" if v == b and m != "aligned" else f"{100 * v:.1f}"
                                              for v, b in zip(found, best)) + " |")
    chance = [mean(records, name(level, k.replace("r", "chance_r"))) for level, k in keys]
    return [*lines, "| chance | " + " | ".join("–" if c is None else f"{100 * c:.2g}" for c in chance) + " |"]


def main(readme=HERE.parent / "README.md", folder=HERE / "results"):
    sources = {name: read(folder / name) for name in ("table2", "demo", "own_sensor", "table3")}
    lines = [*accuracy_lines([sources[n][0] for n in ("table2", "demo", "own_sensor")]), *test_lines(folder / "table2"),
             *retrieval_lines(sources["table3"][0]), "",
             "Test accuracy in %, mean ± sd over seeds; bold: the best that does not see all labels. `selftrain` has COX's losses "
             "and schedule without other modalities. Gap: COX's accuracy on unlabelled items whose modalities agree minus that on "
             "the others, before and after exploration. Without labels: `none`. The digits' pairs are drawn within a class, the "
             "other worlds' are true.  ", "  \n".join(line for _, line in sources.values() if line)]
    unsup = {}
    for r in (r for records, _ in sources.values() for r in records if (r["setting"], r["method"]) == ("unsup", "cox")):
        unsup.setdefault(f"{r['data']} {r['oom']}", {}).setdefault(r["seed"], r)
    lines[-1:] = [said + "  " for name, by in unsup.items() if (said := results.at_chance([*by.values()], name))] + lines[-1:]
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    readme.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
