"""Write the results in experiments/results/ into README.md and docs/method.md, between their markers: nothing there is typed.

    python experiments/readme_table.py

Accuracies from table2/ and unsup/ (data sets that they lack: from demo/), one row per data set, one column per method: the
mean over its OOM modalities, mean ± sd (n - 1) over seeds, the best in bold; the paired tests of table2/; retrieval from
table3/.
"""
import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
from cox_oom.report import tests
from cox_oom.report import tables
from cox_oom.report import scores

DRAWN = {"digits"}                                  # its rows are drawn within a class: no instance is to be found
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


def show(p):
    """A p-value; – for None."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def words(r):
    """In words, as evaluate.py wrote it beside the record."""
    return r.get("condition") or scores.condition(r)


def column(r):
    return r["data"], r["oom"], words(r)


def over_seeds(records, columns, value):
    """Of each seed that has all of `columns`: the mean over them of value(record); None values leave a seed out."""
    by = {}
    for r in records:
        by.setdefault(r["seed"], {})[column(r)] = value(r)
    return [sum(v.values()) / len(v) for _, v in sorted(by.items()) if set(v) == set(columns) and None not in v.values()]


def accuracy_lines(sources):
    """The table of accuracies over the folders' records; a data set is taken from the first folder that has it."""
    rows = {}
    for records in sources:
        here = {}
        for r in records:
            here.setdefault((r["data"], words(r)), {}).setdefault(r["method"], []).append(r)
        rows = {**here, **rows}
    methods = [m for m in scores.METHODS if any(m in by for by in rows.values())]
    lines = ["| data | new sensors | labels | " + " | ".join(methods) + " | gap before | gap after |",
             "|:--|:--|:--|" + "--:|" * (len(methods) + 2)]
    for (data, condition), by in sorted(rows.items(), key=lambda r: (r[0][1], r[0])):
        ooms = sorted({r["oom"] for records in by.values() for r in records})
        columns = {(data, oom, condition) for oom in ooms}
        accuracy = [over_seeds(by.get(m, []), columns, lambda r: r["metrics"]["accuracy"]) for m in methods]
        most = max(map(len, accuracy), default=0)
        means = [scores.mean_sd(v)[0] if v and len(v) == most and m != "aligned" else None for m, v in zip(methods, accuracy)]
        fewer = [f" (n = {len(v)})" if 0 < len(v) < most else "" for v in accuracy]
        gap = lambda when: over_seeds(by.get("cox", []), columns, lambda r: (r["metrics"]["agreement"] or {}).get(when, {}).get("gap"))
        lines.append("| " + " | ".join([data, ", ".join(ooms), condition.removeprefix("semi, "),
                                        *bold_best(means, [scores.percent(v) + n for v, n in zip(accuracy, fewer)]),
                                        *(scores.percent(gap(when)) for when in ("before", "after"))]) + " |")
    return lines


def test_lines(folder, *metrics):
    """The paired tests beside a table: on test accuracy, or on several metrics, by data set as well."""
    if not (folder / "tests.json").exists():
        return []
    found = [t for t in json.loads((folder / "tests.json").read_text()) if t["metric"] in (metrics or ("accuracy",))
             and ("-" not in t["against"] or t["against"] == "selftrain-plain")]
    datas = sorted({d for t in found for d in t["by_data"]}) if metrics else []
    what = {"accuracy": ["test"], "unlabelled": ["unlabelled items"]} if metrics else {"accuracy": []}
    heads = ["COX −", *(["accuracy on"] if metrics else []), "setting", "n", "columns ahead", "points", "p (t)", "p (Wilcoxon)",
             "p (columns)", *datas]
    words = 3 if metrics else 2
    lines = ["", "| " + " | ".join(heads) + " |", "|" + ":--|" * words + "--:|" * (len(heads) - words)]
    return lines + ["| " + " | ".join([
        t["against"], *what[t["metric"]], t["setting"], str(t["n"]), f"{t['ahead']} of {t['columns']}", f"{100 * t['mean']:+.1f}",
        show(t["t_p"]), show(t["wilcoxon_p"]), show(t["columns_p"]),
        *(f"{100 * t['by_data'][d]:+.1f}" if d in t["by_data"] else "–" for d in datas)])
        + " |" for t in found]


def retrieval_lines(records):
    """R@1 and R@5, OOM -> IM, a row for each method: mean over its columns, ± sd over the seeds that have all of them; COX - it
    with the p of paired_tests.py, over the runs and over the columns. Below: COX's instances by data set, times chance."""
    records = [r for r in records if r["setting"] == "semi"]
    if not records:
        return []
    methods = sorted({r["method"] for r in records}, key=scores.order)
    true = [r for r in records if r["data"] not in DRAWN]

    def means(some, level, k):
        return over_seeds(some, {column(r) for r in some}, lambda r: scores.score(r, f"retrieval.out.{level}.{k}"))
    pair = "COX − it (p, p of columns), R@1"
    head = f"| retrieval, OOM → IM | category R@1 | R@5 | {pair} | instance R@1 | R@5 | {pair} |"
    rows = {m: [m] for m in (*methods, "chance")}
    for level, some in (("category", records), ("instance", true)):
        for k in ("r1", "r5"):
            values = [means([r for r in some if r["method"] == m], level, k) for m in methods]
            most = max(map(len, values))
            best = [scores.mean_sd(v)[0] if v and len(v) == most and m != "aligned" else None for m, v in zip(methods, values)]
            chance = means([r for r in some if r["method"] == "cox"], level, k.replace("r", "chance_r"))
            for m, cell in zip(rows, [*bold_best(best, [scores.percent(v, most) for v in values]),
                                      f"{100 * scores.mean_sd(chance)[0]:.2g}" if chance else "–"]):
                rows[m].append(cell)
        ahead = {t["against"]: f"{100 * t['mean']:+.1f} ({show(t['t_p'])}, {show(t['columns_p'])})"
                 for t in tests.tests(some, f"retrieval.out.{level}.r1")}
        for m, cells in rows.items():
            cells.append(ahead.get(m, "–"))
    found = []
    for data in sorted({r["data"] for r in true}):
        cox, other = ([r for r in true if (r["data"], r["method"]) == (data, m)] for m in ("cox", "selftrain"))
        ours, theirs, chance = (means(some, "instance", k) for some, k in ((cox, "r1"), (other, "r1"), (cox, "chance_r1")))
        if ours and theirs:
            found.append(f"{data} {scores.percent(ours)} against {scores.percent(theirs)}, "
                         f"{scores.mean_sd(ours)[0] / scores.mean_sd(chance)[0]:.0f} times chance")
    return ["", head, "|:--|--:|--:|--:|--:|--:|--:|", *("| " + " | ".join(cells) + " |" for cells in rows.values()),
            *(["", f"Instance R@1 by data set, COX against `selftrain`: {'; '.join(found)}."] if found else [])]


def put(page, lines):
    """The lines between the page's two markers, in the place of what is there."""
    head, rest = page.read_text().split(BEGIN)
    page.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


def main(readme=HERE.parent / "README.md", folder=HERE / "results"):
    sources = {name: read(folder / name) for name in ("table2", "unsup", "demo", "table3")}
    lines = [*accuracy_lines([sources[n][0] for n in ("table2", "unsup", "demo")]), *test_lines(folder / "table2"),
             *retrieval_lines(sources["table3"][0]), "",
             "Test accuracy in %, the mean over the data set's sensors, ± sd over seeds ((n = …): fewer seeds than the "
             "row's others); bold: the best that does not see all labels. "
             "`selftrain` has COX's losses, schedule and model of the readings without other modalities, `selftrain-plain` takes "
             "the learner's confidence alone. Gap: COX's accuracy on unlabelled items whose modalities agree minus that on the "
             "others, before and after exploration. The digits' pairs are drawn within a class, the other worlds' are true; instance "
             "R@1 is of the others. Retrieval: mean over sensors and IM modalities, of the seeds that have all sensors. p (t), p "
             "(Wilcoxon): over the n runs; p (columns): over the means of the columns, whose runs "
             "share their test items.  ",
             "  \n".join(line for _, line in sources.values() if line)]
    unsup = {}
    for r in (r for records, _ in sources.values() for r in records if (r["setting"], r["method"]) == ("unsup", "cox")):
        unsup.setdefault(f"{r['data']} {r['oom']}{words(r).removeprefix('unsup')}", {}).setdefault(r["seed"], r)
    lines[-1:] = [said + "  " for name, by in unsup.items() if (said := tables.at_chance([*by.values()], name))] + lines[-1:]
    put(readme, lines)
    if (folder / "table2_paired" / "tests.json").exists():
        put(readme.parent / "docs" / "method.md", test_lines(folder / "table2_paired", "accuracy", "unlabelled")[1:])


if __name__ == "__main__":
    main()
