"""Write docs/results.md, the tables between markers in README and docs, and most table.md, from records.csv alone.

    python experiments/write_results.py

The prose of docs/results.md is in results_page.md beside this file; a line {{name}} there is a table that is made
here, a section whose tables have no records is left out. A folder of results/ is of the experiment with which its
name begins."""

import re
from pathlib import Path

import collect
import commonality

from cox_oom import methods
from cox_oom.report import scores, tables
from cox_oom.report.records import read_records, write_text
from cox_oom.report.tests import tests

HERE = Path(__file__).resolve().parent
DRAWN = {"digits"}  # its rows are drawn within a class: no instance is to be found
# Folders whose records.csv have a form of their own.
OWN = ("search", "suggest", "gauge", "geometry", "trust", "without_labels")
IN_TEXT = ("emoji", "controls", "present")  # their tables are long, and docs/experiments.md has what they say
SMALL = ("erm", "fixmatch", "selftrain", "cox", "aligned")  # README's columns
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def read(folder):
    """The records of a folder of results, [] where there is none."""
    return read_records(folder / "records.csv") if (folder / "records.csv").exists() else []


def plain(records):
    """The runs without a tag."""
    return [r for r in records if "-" not in r["method"]]


# ------------------------------------------------------------------------------------------------------ numbers


def bold_best(values, texts):
    """The texts, bold where the value (None: takes no part) is the highest as printed."""
    best = max((round(v, 3) for v in values if v is not None), default=None)
    return [f"**{t}**" if v is not None and round(v, 3) == best else t for v, t in zip(values, texts)]


def show(p):
    """A p-value; – for None."""
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}"


def equals(p):
    """A p-value in a sentence."""
    return f"p {show(p)}" if p is not None and p < 0.001 else f"p = {show(p)}"


def points(fraction):
    return f"{100 * fraction:+.1f}"


def column(r):
    return r["data"], r["oom"], scores.condition(r)


def over_seeds(records, columns, value):
    """Of each seed that has all of `columns`: the mean over them of value(record); None values leave a seed out."""
    by = {}
    for r in records:
        by.setdefault(r["seed"], {})[column(r)] = value(r)
    full = [v for _, v in sorted(by.items()) if set(v) == set(columns) and None not in v.values()]
    return [sum(v.values()) / len(v) for v in full]


def over_all(records, value):
    """The same over all columns that the records have."""
    return over_seeds(records, {column(r) for r in records}, value)


def accuracy(r):
    return r["metrics"]["accuracy"]


def gap(when):
    return lambda r: (r["metrics"]["agreement"] or {}).get(when, {}).get("gap")


def rank(level, k, way="out"):
    return lambda r: scores.score(r, f"retrieval.{way}.{level}.{k}")


def tested(records, *metrics, **rivals):
    """The paired tests of one metric or several, without those against tagged runs but selftrain-plain."""
    perceptors = sorted({r["perceptor"] for r in records})
    of = {p: [r for r in records if r["perceptor"] == p] for p in perceptors}
    found = [t for p in perceptors for m in metrics for t in tests(of[p], m, **rivals)]
    return [t for t in found if "-" not in t["against"] or t["against"] == "selftrain-plain"]


def epochs(records):
    """How long stage 3 took, in words."""
    return " or ".join(map(str, sorted({scores.flags(r)["epochs"] for r in records}))) + " epochs"


# ------------------------------------------------------------------------------------------------------- tables


def apart(values):
    """Points of a mean ± its standard error; the mean alone where there is one difference, – where there is none."""
    if not values:
        return "–"
    mean, sd = scores.mean_sd(values)
    return points(mean) + ("" if sd is None else f" ± {100 * sd / len(values) ** 0.5:.1f}")


def table(heads, words, rows):
    """The lines of a table whose first `words` columns are words, the others numbers; [] where there is no row."""
    rule = "|" + ":--|" * words + "--:|" * (len(heads) - words)
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return ["| " + " | ".join(heads) + " |", rule, *lines] if lines else []


def accuracy_lines(records, methods=None, gaps=True):
    """Accuracy, a row for each data set and condition: mean over the OOM modalities ± sd over seeds."""
    rows = {}
    for r in records:
        rows.setdefault((r["data"], scores.condition(r)), {}).setdefault(r["method"], []).append(r)
    methods = [m for m in methods or scores.METHODS if any(m in by for by in rows.values())]
    whens = ("before", "after") if gaps else ()
    lines = []
    for (data, condition), by in sorted(rows.items(), key=lambda r: (r[0][1], r[0])):
        ooms = sorted({r["oom"] for found in by.values() for r in found})
        columns = {(data, oom, condition) for oom in ooms}
        values = {m: over_seeds(by.get(m, []), columns, accuracy) for m in methods}
        most = max(map(len, values.values()), default=0)
        full = lambda m: values[m] and len(values[m]) == most and m != "aligned"
        means = [scores.mean_sd(values[m])[0] if full(m) else None for m in methods]
        texts = bold_best(means, [scores.percent(values[m], most) for m in methods])
        cox = [scores.percent(over_seeds(by.get("cox", []), columns, gap(when))) for when in whens]
        lines.append([data, ", ".join(ooms), condition.removeprefix("semi, "), *texts, *cox])
    return table(["world", "new sensors", "labels", *methods, *(f"gap {when}" for when in whens)], 3, lines)


def test_lines(records, *metrics, **rivals):
    """The paired tests: on test accuracy, or on several metrics, by data set as well."""
    found = tested(records, *(metrics or ("accuracy",)), **rivals)
    datas = sorted({d for t in found for d in t["by_data"]}) if metrics else []
    on = {"accuracy": "test", "unlabelled": "unlabelled items"}
    rows = [
        [
            t["against"],
            *([on[t["metric"]]] if metrics else []),
            t["setting"],
            str(t["n"]),
            f"{t['ahead']} of {t['columns']}",
            points(t["mean"]),
            show(t["t_p"]),
            show(t["wilcoxon_p"]),
            show(t["columns_p"]),
            *(points(t["by_data"][d]) if d in t["by_data"] else "–" for d in datas),
        ]
        for t in found
    ]
    heads = [
        "COX −",
        *(["accuracy on"] if metrics else []),
        "setting",
        "n",
        "columns ahead",
        "points",
        "p (t)",
        "p (Wilcoxon)",
        "p (columns)",
        *datas,
    ]
    return table(heads, 3 if metrics else 2, rows)


def control_tables(records):
    """control_lines of the methods that have all seeds; then, where others lack some, of the seeds that all have."""
    methods_of = {seed: {r["method"] for r in records if r["seed"] == seed} for seed in {r["seed"] for r in records}}
    common, every = set.intersection(*methods_of.values()), set.union(*methods_of.values())
    lines = control_lines([r for r in records if r["method"] in common])
    whole = sorted(seed for seed, methods in methods_of.items() if methods == every)
    if common == every or not whole:
        return lines
    more = ", ".join(f"`{m}`" for m in sorted(every - common, key=scores.order))
    said = f"The same with {more} as well, by seed {', '.join(map(str, whole))} alone:"
    return [*lines, "", said, "", *control_lines([r for r in records if r["seed"] in whole])]


def control_lines(records):
    """The controls by world, and the tests of COX against each and against the best."""
    order = sorted({r["method"] for r in records}, key=scores.order)
    rivals = tuple(m for m in order if m != "cox")
    by_world, paired = accuracy_lines(records, order, gaps=False), test_lines(records, "accuracy", rivals=rivals)
    return [*by_world, "", *(line.replace(f"best of {', '.join(rivals)}", "best of these") for line in paired)]


def differences(new, old, value=accuracy):
    """{method: [(record, new - old)]} of the same runs (column, method, seed) of two collections, in value(record)."""
    key = lambda r: (*column(r), r["method"], r["seed"])
    before, found = {key(r): value(r) for r in old}, {}
    for k, r in {key(r): r for r in new}.items():  # a run that both collections of `new` have counts once
        if None not in (value(r), before.get(k)):
            found.setdefault(r["method"], []).append((r, value(r) - before[k]))
    return {m: found[m] for m in sorted(found, key=scores.order)}


def latest(new):
    """The later runs of COX and selftrain, each once, of the columns that have more than one seed."""
    runs = {(*column(r), r["method"], r["seed"]): r for r in new if r["method"] in ("cox", "selftrain")}  # each once
    seeds = {at: {k[-1] for k in runs if k[:-2] == at} for at in {k[:-2] for k in runs}}
    return [r for k, r in runs.items() if len(seeds[k[:-2]]) > 1]


def difference_lines(new, old):
    """By how many points test accuracy differs, a row for each method: mean ± standard error over the runs."""
    of = differences(new, old)
    datas = sorted({r["data"] for runs in of.values() for r, _ in runs})
    part = lambda runs, d: apart([v for r, v in runs if d in ("", r["data"])])
    rows = [[m, str(len(runs)), *(part(runs, d) for d in ("", *datas))] for m, runs in of.items()]
    return table(["method", "runs", "all", *datas], 1, rows)


def rank_difference_lines(new, old):
    """The same of R@1 in retrieval."""
    ways = [(level, way) for level in ("category", "instance") for way in ("out", "back")]
    of = [differences(new, old, rank(level, "r1", way)) for level, way in ways]
    cell = lambda m, found: apart([v for _, v in found.get(m, [])])
    rows = [[m, str(len(runs)), *(cell(m, found) for found in of)] for m, runs in of[0].items()]
    return table(["method", "runs", *(f"{level} R@1, {way}" for level, way in ways)], 1, rows)


def gain_lines(records):
    """COX - selftrain in test accuracy, a row for each column: points, mean ± standard error over the seeds; then the
    mean of the columns ± its standard error over them."""
    of = {(r["data"], r["oom"], r["method"], r["seed"]): accuracy(r) for r in records if r["setting"] == "semi"}
    rows, gains = [], []
    for data, oom in sorted({k[:2] for k in of}):
        seeds = sorted(s for d, o, m, s in of if (d, o, m) == (data, oom, "cox") and (d, o, "selftrain", s) in of)
        ours, theirs = ([of[data, oom, m, s] for s in seeds] for m in ("cox", "selftrain"))
        mine = [a - b for a, b in zip(ours, theirs)]
        gains.append(scores.mean_sd(mine)[0])
        rows.append([data, oom, str(len(seeds)), scores.percent(theirs), scores.percent(ours), apart(mine)])
    rows.append(["all", *[""] * 4, apart(gains)])
    return table(["world", "sensor", "seeds", "selftrain", "cox", "COX − selftrain"], 2, rows)


RANKS = [(k, way) for k in ("category.r1", "instance.r1", "instance.r10") for way in ("out", "back")]


def perceptor_lines(records):
    """Accuracy and retrieval of the methods with each perceptor: mean ± sd over the seeds, of retrieval the mean alone.
    Then COX - each method, and each method with pretrained encoders - with bind: points, mean ± standard error."""
    scored = [accuracy, *((lambda r, at=f"retrieval.{way}.{k}": scores.score(r, at)) for k, way in RANKS)]
    of = {}  # {(data, perceptor, method): {seed: scores}}
    for r in records:
        which = "bind" if r["perceptor"] == "bind" else "pretrained"
        of.setdefault((r["data"], which, r["method"]), {})[r["seed"]] = [score(r) for score in scored]
    order = sorted(of, key=lambda k: (k[0], k[1], scores.order(k[2])))

    def difference(a, b):
        seeds = sorted(set(of[a]) & set(of[b]))
        both = zip(zip(*(of[a][s] for s in seeds)), zip(*(of[b][s] for s in seeds)))
        return ["–" if None in (*x, *y) else apart([v - w for v, w in zip(x, y)]) for x, y in both]

    means = [(k, [*zip(*of[k].values())]) for k in order if k[1:] != ("pretrained", "raw")]  # raw knows no perceptor
    mean = lambda values: "–" if None in values else f"{100 * scores.mean_sd(values)[0]:.1f}"
    rows = [[*k, str(len(v[0])), scores.percent(v[0]), *map(mean, v[1:])] for k, v in means]
    ours = [(k, (*k[:2], "cox")) for k in order if k[2] != "cox"]
    rows_of = [[*k[:2], f"cox − {k[2]}", *difference(cox, k)] for k, cox in ours if cox in of]
    better = [(k, (k[0], "pretrained", k[2])) for k in order if k[1] == "bind" and k[2] != "raw"]
    rows_of += [[k[0], "pretrained − bind", k[2], *difference(other, k)] for k, other in better if other in of]
    heads = ["accuracy", *(f"{k.replace('.r', ' R@')}, {way}" for k, way in RANKS)]
    first = table(["data", "perceptor", "method", "seeds", *heads], 3, rows)
    return [*first, "", *table(["data", "perceptor", "method", *heads], 3, rows_of)]


def retrieval_lines(records):
    """R@1 and R@5, OOM -> IM, a row for each method: mean over its columns ± sd over the seeds that have all of them;
    COX - it with p over the runs and over the columns."""
    methods = sorted({r["method"] for r in records}, key=scores.order)
    rows = {m: [m] for m in (*methods, "chance") if records}
    for level, some in (("category", records), ("instance", [r for r in records if r["data"] not in DRAWN])):
        for k in ("r1", "r5"):
            values = [over_all([r for r in some if r["method"] == m], rank(level, k)) for m in methods]
            most = max(map(len, values), default=0)
            full = lambda m, v: v and len(v) == most and m != "aligned"
            means = [scores.mean_sd(v)[0] if full(m, v) else None for m, v in zip(methods, values)]
            chance = over_all([r for r in some if r["method"] == "cox"], rank(level, f"chance_{k}"))
            cells = bold_best(means, [scores.percent(v, most) for v in values])
            for m, cell in zip(rows, [*cells, f"{100 * scores.mean_sd(chance)[0]:.2g}" if chance else "–"]):
                rows[m].append(cell)
        ahead = {
            t["against"]: f"{points(t['mean'])} ({show(t['t_p'])}, {show(t['columns_p'])})"
            for t in tests(some, f"retrieval.out.{level}.r1")
        }
        for m, cells in rows.items():
            cells.append(ahead.get(m, "–"))
    pair = "COX − it (p, p of columns), R@1"
    return table(["method", "category R@1", "R@5", pair, "instance R@1", "R@5", pair], 1, rows.values())


def instance_lines(records):
    """Instance R@1 of COX and selftrain by data set, and how many times chance COX's is."""
    rows = []
    for data in sorted({r["data"] for r in records} - DRAWN):
        of = {m: [r for r in records if (r["data"], r["method"]) == (data, m)] for m in ("cox", "selftrain")}
        ours, theirs = (over_all(of[m], rank("instance", "r1")) for m in ("cox", "selftrain"))
        chance = over_all(of["cox"], rank("instance", "chance_r1"))
        if ours and theirs:
            times = scores.mean_sd(ours)[0] / scores.mean_sd(chance)[0]
            rows.append([data, scores.percent(theirs), scores.percent(ours), f"{times:.0f}"])
    return table(["world", "selftrain", "cox", "times chance"], 1, rows)


def ablation_lines(records):
    """Table 4 by data set, and the tests of COX against each row."""
    datas = sorted({r["data"] for r in records})
    against = {t["against"]: t for t in tests(records, "accuracy")}
    rows = []
    for m in sorted({r["method"] for r in records}, key=scores.order):
        mine = [over_all([r for r in records if (r["method"], r["data"]) == (m, d)], accuracy) for d in datas]
        t = against.get(m)
        last = [points(t["mean"]), f"{t['ahead']} of {t['columns']}", show(t["columns_p"])] if t else ["–"] * 3
        rows.append([m, *map(scores.percent, mine), *last])
    return table(["method", *datas, "COX − it", "columns ahead", "p (columns)"], 1, rows)


def unsup_lines(records):
    """Accuracy, accuracy under the best renaming, NMI and the gaps, a row for each start and method."""
    rows = []
    for c in sorted({column(r) for r in records}):
        for m in sorted({r["method"] for r in records}, key=scores.order):
            mine = [r for r in records if column(r) == c and r["method"] == m]
            scored = [[r["metrics"][k] for r in mine] for k in ("accuracy", "hungarian_accuracy", "nmi")]
            gaps = [list(map(gap(when), mine)) for when in ("before", "after")]
            start = c[2].removeprefix("unsup").removeprefix(", ") or "literal"
            rows.append([*c[:2], start, m, *map(scores.percent, (*scored, *gaps))])
    heads = [
        "world",
        "new sensor",
        "start",
        "method",
        "accuracy",
        "after the best renaming",
        "NMI × 100",
        "gap before",
        "gap after",
    ]
    return table(heads, 4, rows)


def unsup_notes(records):
    """Of each start: is COX above chance."""
    lines = []
    for c in sorted({column(r) for r in records}):
        mean, chance, error = tables.against_chance([r for r in records if column(r) == c and r["method"] == "cox"])
        said = "above" if mean - chance > 2 * error else "at"
        lines.append(
            f"- {c[0]} {c[1]}{c[2].removeprefix('unsup')}: COX reaches {100 * mean:.1f}%, chance is "
            f"{100 * chance:.1f}%. With a standard error of {100 * error:.1f} points it is {said} chance."
        )
    return lines


def connection_lines(records):
    """Fig. 5 by data set: means over its connections."""
    found, rows = tables.connections(records, sorted({(r["data"], r["oom"]) for r in records})), []
    first = lambda values: scores.mean_sd(values)[0]
    for data in sorted({c["column"][0] for c in found}):
        mine = [c for c in found if c["column"][0] == data]
        mean = lambda value: sum(map(value, mine)) / len(mine)
        apart = lambda c: first(c["head"][1]) - first(c["learner"])
        falls, near = (
            sum(first(c["mmd"][0]) >= 10 * first(c["mmd"][1]) for c in mine),
            sum(apart(c) >= -0.05 - 1e-11 for c in mine),
        )
        rows.append(
            [
                data,
                str(len(mine)),
                *(f"{mean(lambda c: first(c['mmd'][i])):.3f}" for i in (0, 1)),
                f"{falls} of {len(mine)}",
                *(f"{100 * mean(lambda c: first(c['head'][i])):.1f}" for i in (0, 1)),
                f"{100 * mean(lambda c: first(c['learner'])):.1f}",
                points(mean(apart)),
                f"{near} of {len(mine)}",
            ]
        )
    return table(
        [
            "world",
            "connections",
            "MMD first",
            "MMD last",
            "falls tenfold",
            "head first",
            "head last",
            "learner",
            "head − learner",
            "at most 5 below",
        ],
        1,
        rows,
    )


def agreement_lines(records, longer):
    """Fig. 6 by data set, of COX; below it that of a longer exploration."""
    rows = []
    for some, words in ((records, ""), (longer, f", {epochs(longer)}")):
        for data in sorted({r["data"] for r in some if r["method"] == "cox"}):
            mine = [r for r in some if (r["data"], r["method"]) == (data, "cox")]
            take = lambda when, key: scores.percent(over_all(mine, lambda r: r["metrics"]["agreement"][when][key]))
            keys = [(when, k) for when in ("before", "after") for k in ("agree_accuracy", "disagree_accuracy", "gap")]
            rows.append(
                [data + words, str(len({r["oom"] for r in mine})), take("before", "share"), *(take(*k) for k in keys)]
            )
    parts = [f"{when}: {part}" for when in ("before", "after") for part in ("agreeing", "disagreeing", "gap")]
    return table(["world", "sensors", "agree", *parts], 1, rows)


def agreement_notes(records):
    """How much of the gap exploration leaves."""
    found, left = tables.gaps_left(records, sorted({(r["data"], r["oom"]) for r in records}))
    wide = sum(left.values(), [])
    half = sum(x <= 0.5 + 1e-9 for x in wide)
    return [
        f"- Before exploration the gap is 10 points or more in {len(wide)} of {found} columns.",
        *(
            [f"- After it at most half is left in {half} of these, on average {tables.by_data(left, '.2f')} of it."]
            if wide
            else []
        ),
    ]


def commonality_lines(records):
    """Gains by commonality, a column for each modality and number of pairs; then of each metric the trend over all."""
    if not records:
        return []
    found = {metric: commonality.gains(records, metric) for metric in commonality.ON}
    block = commonality.block("", "gain", found["accuracy"], by=lambda oom, n: f"{oom}, {n} pairs")
    rows = []
    for gains, words in zip(found.values(), ("test accuracy", "accuracy on unlabelled recordings", "instance R@10")):
        rho, p, n = commonality.trend(gains, "commonality", "per_class")
        ends = [[v for g in gains for v in g["gain"] if g["commonality"] == c] for c in (0, 1)]
        rows += [[words, *map(scores.percent, ends), f"{rho:+.2f}", show(p), str(n)]] if n else []
    return [
        f"Exploration takes {epochs(records)}.",
        "",
        *table(block["header"], 1, block["rows"]),
        "",
        *table(["gain in", "at 0", "at 1", "rank correlation", "p", "means"], 1, rows),
    ]


def provenance_lines(folder):
    """What each folder's COMMAND says, and its seeds."""
    lines = ["```"]
    for p in sorted(folder.glob("*/COMMAND")):
        own = p.parent.name.startswith(OWN)
        seeds = [] if own else sorted({r["seed"] for r in read(p.parent)})
        said = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}; " if seeds else ""
        lines += [f"{p.parent.name}: {said}{line.replace('`', '')}" for line in p.read_text().splitlines()]
    return [*lines, "```"]


# --------------------------------------------------------------------------------------------------------- pages


def readme_lines(records, later=()):
    """README's part: accuracy by world, the gain over erm and over selftrain, the latter of later runs as well."""
    records = [r for r in plain(records) if r["setting"] == "semi"]
    against = {t["against"]: t for t in tested(records, "accuracy")}
    gain = []
    for m, words in (("erm", "`erm`, labels alone"), ("selftrain", "`selftrain`, COX without other modalities")):
        if t := against.get(m):
            gain.append(
                f"On average COX is {100 * abs(t['mean']):.1f} points {'above' if t['mean'] >= 0 else 'below'} {words} "
                f"({equals(t['t_p'])} over {t['n']} pairs of runs, {equals(t['columns_p'])} over "
                f"{t['columns']} sensors)."
            )
    for t in tested(later, "accuracy") if "selftrain" in against else ():
        gain[-1] += f" Later runs give {points(t['mean'])} ({equals(t['columns_p'])} over {t['columns']} sensors)."
    seeds = len({r["seed"] for r in records})
    return [
        f"Test accuracy in %: mean over a world's sensors, ± standard deviation over {seeds} seeds. "
        "`aligned` sees all labels.",
        "",
        *accuracy_lines(records, SMALL, gaps=False),
        "",
        *gain,
        "All methods, tests and figures: [docs/results.md](docs/results.md).",
    ]


def results_page(folder):
    """docs/results.md."""
    of = lambda name: read(folder / name)
    ranked = [r for r in plain(of("table3")) if r["setting"] == "semi"]
    lines = {
        "accuracy": accuracy_lines(plain(of("table2"))),
        "tests": test_lines(of("table2")),
        "retrieval": retrieval_lines(ranked),
        "instances": instance_lines(ranked),
        "ablations": ablation_lines(of("table4")),
        "variants": ablation_lines(of("table4_variants")),
        "unsup": unsup_lines(of("unsup")),
        "unsup_notes": unsup_notes(of("unsup")),
        "connections": connection_lines(of("fig5")),
        "agreement": agreement_lines(of("fig6"), of("fig6_twice")),
        "agreement_notes": agreement_notes(of("fig6")),
        "commonality_seven": commonality_lines(of("commonality_seven")),
        "commonality": commonality_lines(of("commonality")),
        "provenance": provenance_lines(folder),
    }
    sections = re.split(r"^(?=##)", (HERE / "results_page.md").read_text(), flags=re.M)
    names = [re.findall(r"^{{(\w+)}}$", s, re.M) for s in sections]
    shown = [s for s, mine in zip(sections, names) if not mine or lines[mine[0]]]
    return re.sub(r"^{{(\w+)}}$", lambda m: "\n".join(lines[m[1]]), "".join(shown), flags=re.M)


def put(page, lines, begin=BEGIN, end=END):
    """The lines between the page's two markers, in the place of what is there."""
    head, rest = page.read_text().split(begin)
    write_text(page, head + begin + "\n" + "\n".join(lines) + "\n" + end + rest.split(end)[1])


def main(root=HERE.parent, folder=HERE / "results"):
    for p in sorted(folder.glob("*/records.csv")):
        experiment = p.parent.name.partition("_")[0]
        if experiment in collect.TITLES and experiment not in IN_TEXT:
            write_text(p.with_name("table.md"), tables.markdown(collect.blocks(experiment, read_records(p))))
    write_text(root / "docs" / "results.md", results_page(folder))
    controls = read(folder / "controls")
    new = controls + read(folder / "present")
    put(root / "README.md", readme_lines(read(folder / "table2"), latest(new)))
    if "<!-- methods:begin -->" in (method := root / "docs" / "method.md").read_text():
        put(method, [methods.table()], "<!-- methods:begin -->", "<!-- methods:end -->")
    text = lambda name, lines: put(
        root / "docs" / "experiments.md", lines, f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    )
    paired = read(folder / "table2_paired")  # two methods with more seeds than table2 has
    columns, own = {column(r) for r in paired}, {r["method"] for r in paired}
    paired += [r for r in read(folder / "table2") if column(r) in columns and r["method"] not in own]
    if (starts := folder / "geometry" / "table.md").exists():
        text("geometry", starts.read_text().splitlines())
    if controls:
        text("controls", control_tables(controls))
    old = read(folder / "table4") + read(folder / "table2") + paired
    if new and old:
        ranks = rank_difference_lines(new, read(folder / "table3"))
        text("differences", [*difference_lines(new, old), *([""] if ranks else []), *ranks])
        text("later", test_lines(latest(new), "accuracy"))
    if emoji := read(folder / "emoji") + read(folder / "emoji_digits"):
        text("emoji", perceptor_lines(emoji))
    if robots := [r for r in paired if r["data"].startswith("robot_")]:
        text("robots", gain_lines(robots))
    if paired:
        put(root / "docs" / "method.md", test_lines(paired, "accuracy", "unlabelled"))


if __name__ == "__main__":
    main()
