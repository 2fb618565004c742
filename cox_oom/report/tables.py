"""What runs amount to beside each other: stage 4's tables. No files, no arguments, no drawing.

Tables take records, each what METHOD.json holds (evaluate.py): tables(records) -> blocks {title, header, rows, notes};
markdown(blocks).
"""

import collections
import json
import math
import re
from typing import Any

from cox_oom.files import escaped
from cox_oom.methods import METHODS
from cox_oom.report.learning import learning_tables
from cox_oom.report.scores import classes, condition, flags, mean_sd, order, pairing, percent, score
from cox_oom.report.tests import tests_table
from cox_oom.report.verdict import clear_best
from cox_oom.run import rising
from cox_oom.teacher import explain

SHARED = (
    "epochs",
    "batch",
    "labelled_batch",
    "lr",
    "weight_decay",
    "width",
    "depth",
    "patch",
    "slice",
    "warmup_epochs",
)


def skewed(r):
    """Do the test classes of a record differ by more than 1.5 in size; False where it does not say."""
    if "confusion" not in r["metrics"]:
        return bool(r["metrics"].get("skewed"))
    counts = [sum(row) for row in r["metrics"]["confusion"]]
    return max(counts) > 1.5 * min(counts)


def tables(records, task="classification"):
    """[{title, header, rows, notes}] for each perceptor; rows setting × method, columns OOM modality."""
    out = []
    for perceptor in sorted({r["perceptor"] for r in records}):
        some = [r for r in records if r["perceptor"] == perceptor]
        columns = sorted({(r["data"], r["oom"]) for r in some})
        blocks = (retrieval_tables if task == "retrieval" else accuracy_tables)(some, columns)
        blocks += learning_tables(some) if task == "classification" else []
        out += [{**b, "title": f"{b['title']} (perceptor {perceptor})"} for b in blocks]
    return out


def accuracy_tables(records, columns):
    uneven = [c for c in columns if any(skewed(r) for r in records if (r["data"], r["oom"]) == c)]
    blocks = [
        score_table(records, columns, {"": "accuracy"}, "Test accuracy, %", accuracy_notes(records, columns)),
        *tests_table(records, "accuracy", "test accuracy"),
        *tests_table(records, "unlabelled", "accuracy on the unlabelled training items"),
    ]
    if uneven:
        blocks.append(
            score_table(
                records,
                uneven,
                {"": "balanced_accuracy"},
                "Balanced test accuracy, %",
                ["The classes of these test sets differ by more than 1.5 in size."],
            )
        )
    if any(r["setting"] == "unsup" for r in records):
        blocks.append(unsup_table([r for r in records if r["setting"] == "unsup"]))
    if any("before" in (r["metrics"]["agreement"] or ()) for r in records):
        blocks.append(agreement_table(records, columns))
    if any("gain" in r["metrics"].get("trust", ()) for r in records):
        blocks.append(trust_table(records, columns))
    return [*blocks, heads_table(records, columns)]


def retrieval_tables(records, columns):
    """The paper's Table 3 for both directions and levels, the mean over the columns, tests on category-level R@1."""
    records = [r for r in records if r["metrics"].get("retrieval")]
    columns = [c for c in columns if any((r["data"], r["oom"]) == c for r in records)]
    blocks, wide, share = list[dict[str, Any]](), {}, {"R@1": "r1", "R@5": "r5"}
    for level in ("category", "instance"):
        for way, words in (("out", "OOM → IM"), ("back", "IM → OOM")):
            mine = [r for r in records if score(r, f"retrieval.{way}.{level}.r1") is not None]
            if mine:
                notes = column_notes(mine, columns) if not blocks else []
                notes += [chance_note(mine, c, name, way, level) for c, name in zip(columns, names(columns))]
                blocks.append(
                    score_table(
                        mine,
                        columns,
                        {k: f"retrieval.{way}.{level}.{v}" for k, v in share.items()},
                        f"Retrieval, {level} level, {words}, mean over the IM modalities, %",
                        [n for n in notes if n],
                    )
                )
                wide[f"{level}, {words}"] = f"retrieval.{way}.{level}"
    if not blocks:
        return [
            {
                "title": "Retrieval",
                "header": ["setting", "method"],
                "rows": [],
                "notes": [
                    "Nothing to retrieve: no IM modality has a labelled test item of a class of the OOM test items."
                ],
            }
        ]
    blocks[0]["notes"].append(
        "Test items alone. Category level: a hit is any of the first k categories, ranked by their nearest item; "
        "instance level: the query's own row. COX uses its last connections; the other methods go on from stage 2's "
        "connections, on their own features of the same labelled pairs, for as many steps; random is untrained, its "
        "connections too."
    )
    return [
        *blocks,
        retrieval_means(records, columns, wide),
        *tests_table(records, "retrieval.out.category.r1", "category-level R@1, OOM → IM"),
        *tests_table(records, "retrieval.out.instance.r1", "instance-level R@1, OOM → IM"),
    ]


def retrieval_means(records, columns, metrics):
    """R@k and median rank, the mean over the columns, for each direction and level in metrics {words: metric}."""
    keys = {"R@1": "r1", "R@5": "r5", "R@10": "r10", "median rank": "median_rank"}
    lines = []
    for name, metric in metrics.items():
        for key, of_row in cells(records).items():
            by_column = {
                k: [
                    mean_sd(v)[0]
                    for c in columns
                    if (v := [x for r in of_row[c] if (x := score(r, f"{metric}.{k}")) is not None])
                ]
                for k in keys.values()
            }
            if by_column["r1"]:
                lines.append(
                    [
                        key[0],
                        name,
                        key[1],
                        str(len(by_column["r1"])),
                        *(f"{mean_sd(v)[0] * (1 if k == 'median_rank' else 100):.1f}" for k, v in by_column.items()),
                    ]
                )
    return {
        "title": "Retrieval, mean over the columns, %",
        "notes": [],
        "rows": lines,
        "header": ["setting", "direction", "method", "columns", *keys],
    }


def chance_note(records, column, name, way, level):
    """What chance gives in a column, and at instance level what the class alone gives."""
    some = [r for r in records if (r["data"], r["oom"]) == column]
    if not some:
        return ""
    values = lambda key: [v for r in some if (v := score(r, f"retrieval.{way}.{level}.{key}")) is not None]
    mean = lambda key: 100 * mean_sd(values(key))[0]
    say = lambda key: f"{float(f'{mean(key):.2g}'):g}%"  # 100, not 1e+02
    return f"{name}: chance R@1 {say('chance_r1')}, R@5 {say('chance_r5')}" + (
        f"; R@1 of who knows the class alone {say('class_r1')}." if level == "instance" else "."
    )


def names(columns):
    """OOM modalities as headings, with the data set where there are several."""
    return [" ".join(c) for c in columns] if len({d for d, _ in columns}) > 1 else [c[1] for c in columns]


def cells(records):
    """{(condition, method): {(data, oom): [a record for each seed]}}: a table's rows, in the paper's order."""
    found: Any = collections.defaultdict(lambda: collections.defaultdict(list))
    for r in records:
        found[condition(r), r["method"]][r["data"], r["oom"]].append(r)
    return {row: found[row] for row in sorted(found, key=lambda k: (k[0], order(k[1])))}


def most_seeds(records, columns):
    return max(len(row[c]) for row in cells(records).values() for c in columns)


def score_table(records, columns, metrics, title, notes):
    """Mean ± sd of metrics {heading: name} in every column. Bold: of accuracy the method whose distance to every
    other is more than noise, where records say which test items were right; else the best. Of a column and condition,
    of the methods that do not see all labels and have as many seeds as any."""
    table, n, lines = cells(records), most_seeds(records, columns), []
    places = [(c, m) for c in columns for m in metrics.values()]
    values = {
        (row, c, m): [v for r in of_row[c] if (v := score(r, m)) is not None]
        for row, of_row in table.items()
        for c, m in places
    }
    mean = lambda row, c, m: round(100 * mean_sd(values[row, c, m])[0], 1)
    for row, of_row in table.items():
        texts, alike = [], [k for k in table if k[0] == row[0]]
        for c, m in places:
            text = percent(values[row, c, m], n)
            seeds = {k: len(values[k, c, m]) for k in alike if k[1] != "aligned" and values[k, c, m]}
            rivals = [k for k, n_seeds in seeds.items() if n_seeds == max(seeds.values())]
            bold = row in rivals and len(seeds) > 1 and mean(row, c, m) >= max(mean(k, c, m) for k in rivals)
            mine = [r for k in alike for r in table[k][c]]
            if bold and m == "accuracy" and all(r.get("correct") for r in mine):
                bold = clear_best(mine) == row[1]
            mark = " ↑" if m == "accuracy" and any(rising(r.get("history", [])) for r in of_row[c]) else ""
            texts.append((f"**{text}**" if bold else text) + mark)
        if set(texts) != {"–"}:
            lines.append([*row, *texts])
    heads = [f"{name} {label}".strip() for name in names(columns) for label in metrics]
    return {"title": title, "header": ["setting", "method", *heads], "rows": lines, "notes": notes}


def unsup_table(records):
    """Accuracy, Hungarian-matched accuracy and NMI side by side, and whether COX is above chance."""
    columns = sorted({(r["data"], r["oom"]) for r in records})
    table, n = cells(records), most_seeds(records, columns)
    lines = [
        [
            *row,
            *(
                percent([r["metrics"][k] for r in of_row[c]], n)
                for c in columns
                for k in ("accuracy", "hungarian_accuracy", "nmi")
            ),
        ]
        for row, of_row in table.items()
    ]
    said = [
        at_chance(of_row[c], name + row[0].removeprefix("unsup"))
        for row, of_row in table.items()
        if row[1] == "cox"
        for c, name in zip(columns, names(columns))
    ]
    return {
        "title": "Without labels: accuracy, Hungarian-matched accuracy and NMI, × 100",
        "rows": lines,
        "header": [
            "setting",
            "method",
            *(f"{name} {k}" for name in names(columns) for k in ("accuracy", "Hungarian", "NMI")),
        ],
        "notes": [s for s in said if s],
    }


def agreement_table(records, columns):
    """Fig. 6 in figures."""
    lines = []
    for c, name in zip(columns, names(columns)):
        for row, of_row in cells(records).items():
            a = [r["metrics"]["agreement"] for r in of_row[c] if r["metrics"]["agreement"]]
            take = lambda part, *keys: [percent([x[part][k] for x in a]) for k in keys]
            if a:
                lines.append(
                    [
                        name,
                        *row,
                        *take("before", "share", "label_accuracy"),
                        *take("before", "agree_accuracy", "disagree_accuracy", "gap"),
                        *take("after", "agree_accuracy", "disagree_accuracy", "gap"),
                        *take("after_own", "share", "label_accuracy"),
                    ]
                )
    return {
        "title": "Agreement (Fig. 6), %",
        "rows": lines,
        "header": [
            "OOM",
            "setting",
            "method",
            "A",
            "labels of A right",
            "before: on A",
            "on D",
            "gap",
            "after: on A",
            "on D",
            "gap",
            "A after",
            "labels of A after right",
        ],
        "notes": [
            "Unlabelled training items, judged by their hidden labels. A: the share on which the heads agree "
            "before exploration, D: the rest; the learner's accuracy on this A and D before and after "
            "exploration; last the agreement after it.",
            *filter(None, [gap_note(records, columns)]),
        ],
    }


def trust_table(records, columns):
    """What the IM items tell of raw readings that the labels alone do not: stage 3's check on held-out pairs."""
    lines = []
    for c, name in zip(columns, names(columns)):
        for row, of_row in cells(records).items():
            t = [r["metrics"]["trust"] for r in of_row[c] if r["metrics"].get("trust")]
            if t:
                lines.append(
                    [
                        name,
                        *row,
                        *(percent([x[k] for x in t]) for k in ("right", "right_alone")),
                        f"{mean_sd([x['gain'] for x in t])[0]:+.3f}",
                        f"{mean_sd([x['error'] for x in t])[0]:.3f}",
                        f"{sum(x['trusted'] for x in t)} of {len(t)}",
                    ]
                )
    return {
        "title": "What the known modalities tell, on held-out pairs",
        "rows": lines,
        "header": [
            "OOM",
            "setting",
            "method",
            "correspondences right, %",
            "labels alone right, %",
            "gain, nat",
            "its error",
            "trusted",
        ],
        "notes": [
            "Raw readings of labelled items whose label and pair were withheld. Gain: mean log-likelihood of the label "
            "over that of the same model without IM data; error: its standard error within a run (mean over runs)."
        ],
    }


def connections(records, columns):
    """[{column, condition, modality, mmd, head, learner}], Fig. 5's of each: mmd and head are ([first of every seed],
    [last]), of the MMD and of the head's accuracy; learner is the accuracy of each seed's own head."""
    out = []
    for c in columns:
        for k in sorted({condition(r) for r in records if (r["data"], r["oom"]) == c}):
            seeds = {
                r["seed"]: r["metrics"] for r in records if (r["data"], r["oom"], condition(r)) == (*c, k)
            }.values()
            for m in sorted({p["modality"] for s in seeds for p in s["connection"]}):
                points = [
                    sorted((p for p in s["connection"] if p["modality"] == m), key=lambda p: p["step"]) for s in seeds
                ]
                mmd, head = (tuple([p[i][key] for p in points] for i in (0, -1)) for key in ("mmd", "oom_accuracy"))
                out.append(
                    {
                        "column": c,
                        "condition": k,
                        "modality": m,
                        "mmd": mmd,
                        "head": head,
                        "learner": [s["warm_accuracy"] for s in seeds],
                    }
                )
    return out


def connection_table(records, columns):
    """Fig. 5 in figures: the first and the last point of every connection, and the learner that it was made for."""
    lines, falls = [], 0
    apart: dict[str, list[float]] = {}  # head − learner in points, by data set
    name = dict(zip(columns, names(columns)))
    for one in connections(records, columns):
        c, (first, last) = one["column"], (mean_sd(v)[0] for v in one["mmd"])
        falls += first >= 10 * last
        apart.setdefault(c[0], []).append(100 * (mean_sd(one["head"][1])[0] - mean_sd(one["learner"])[0]))
        lines.append(
            [
                name[c],
                one["condition"],
                one["modality"],
                f"{first:.3f}",
                f"{last:.3f}",
                f"{first / max(last, 1e-9):.1f}×",
                *map(percent, (*one["head"], one["learner"])),
                f"{apart[c[0]][-1]:+.1f}",
                str(len(one["learner"])),
            ]
        )
    return {
        "title": "Connection (Fig. 5)",
        "rows": lines,
        "header": [
            "OOM",
            "setting",
            "IM",
            "MMD first",
            "MMD last",
            "falls by",
            "head first, %",
            "head last, %",
            "learner, %",
            "head − learner",
            "seeds",
        ],
        "notes": [
            "MMD of mapped IM training items and OOM training items; accuracy on OOM test items of a head fitted "
            "to the mapped items alone, before the first step of the connection and after its last; learner: the "
            "warm-started learner's own head.",
            f"MMD falls tenfold or more for {falls} of {len(lines)} connections; the head ends at most 5 points below "
            f"the learner for {sum(x >= -5 - 1e-9 for each in apart.values() for x in each)} of {len(lines)}, on "
            f"average {by_data(apart, '+.1f')} points from it.",
        ],
    }


def by_data(values, form):
    """Mean of the values {data set: [numbers]}, and in brackets each data set's where there are several."""
    mean = lambda x: format(sum(x) / len(x), form)
    each = ", ".join(f"{data} {mean(x)}" for data, x in values.items())
    return mean([v for x in values.values() for v in x]) + (f" ({each})" if len(values) > 1 else "")


def gaps_left(records, columns):
    """Fig. 6's claim over the columns of COX: (their number, {data set: gap after over gap before, of those where the
    latter is 10 points or more})."""
    found = 0
    left: dict[str, list[float]] = {}
    for c in columns:
        for of_row in (of_row for row, of_row in cells(records).items() if row[1] == "cox"):
            a = [r["metrics"]["agreement"] for r in of_row[c] if r["metrics"]["agreement"]]
            gaps = [[x[when]["gap"] for x in a if x[when]["gap"] is not None] for when in ("before", "after")]
            if all(gaps):
                found, (first, last) = found + 1, (mean_sd(g)[0] for g in gaps)
                if first >= 0.10:
                    left.setdefault(c[0], []).append(last / first)
    return found, left


def gap_note(records, columns):
    """gaps_left in words."""
    found, left = gaps_left(records, columns)
    wide: list[float] = sum(left.values(), [])
    said = f"COX: the gap before exploration is 10 points or more in {len(wide)} of {found} columns"
    said += (
        f"; after it, it is at most half of that in {sum(x <= 0.5 + 1e-9 for x in wide)} of these, on average "
        f"{by_data(left, '.2f')} of it"
        if wide
        else ""
    )
    return f"{said}." if found else ""


def heads_table(records, columns):
    """Test accuracy of the IM heads."""
    heads = lambda r: r["metrics"].get("im_head_accuracy", {})
    ims = sorted({m for r in records for m in heads(r)})
    value = lambda c, m: {
        (r["setting"], r["seed"]): heads(r)[m] for r in records if (r["data"], r["oom"]) == c and m in heads(r)
    }.values()
    return {
        "title": "IM heads, test accuracy on the frozen features, %",
        "header": ["OOM left out", *ims],
        "rows": [[name, *(percent(value(c, m)) for m in ims)] for c, name in zip(columns, names(columns))],
        "notes": ["A weak head explains a weak result."],
    }


def fallback(metrics):
    """Why a run of COX went without correspondences, None where it had them (or was told to leave them out)."""
    distrust = {} if metrics.get("trust", {}).get("trusted", True) else {"code": "not_trusted"}
    return explain(metrics.get("fallback") or distrust).partition(": ")[0] or None


def accuracy_notes(records, columns):
    """column_notes, and what bold and ↑ mean in a table of accuracy."""
    notes = column_notes(records, columns)
    if any(r.get("correct") for r in records):
        notes[1] = notes[1][:-1] + ", if its distance to every other one is more than noise (see the verdict)."
    if any(rising(r.get("history", [])) for r in records):
        notes.insert(2, "↑: validation accuracy was still rising at the end; longer training may bring more.")
    return notes


def column_notes(records, columns):
    """The lines under the main table: what each column is, what was not averaged, whose flags differ."""
    n, conditions = most_seeds(records, columns), sorted({condition(r) for r in records})
    notes = [
        f"Mean ± sd (n − 1) over {n} seeds, (n = …) where there are fewer." if n > 1 else "One seed: no sd.",
        "Bold: the best method that does not see all labels" + (", of those with the most seeds." if n > 1 else "."),
    ]
    said = []
    for c in columns:
        some = [r for r in records if (r["data"], r["oom"]) == c]
        m = next((r["metrics"] for r in some if classes(r["metrics"])), None) or some[0]["metrics"]
        by_class = sorted({i for r in some for i in r.get("perceptor_paired_by_class", [])})
        facts = [
            f"perceptor {some[0]['perceptor']}",
            f"{m['n_test']} test items",
            *([f"{n_classes} classes", f"chance {100 / n_classes:.1f}%"] if (n_classes := classes(m)) else []),
            *([f"perceptor's pairs drawn by class: {', '.join(by_class)}"] if by_class else []),
        ]
        said.append(("", c, "", "; ".join(facts) + "."))
        for k in conditions:
            rows = [r for r in some if condition(r) == k]
            if not rows:
                continue
            labelled = sorted({r["n_labelled"] for r in rows if r["method"] != "aligned"}) or ["all"]
            words = [
                f"{' or '.join(map(str, labelled))} items labelled; "
                f"pairs: {', '.join(sorted({pairing(r) for r in rows}))}; "
                f"seeds {', '.join(map(str, sorted({r['seed'] for r in rows})))}."
            ]
            for method in sorted({r["method"] for r in rows if r["method"].partition("-")[0] == "cox"}):
                mine = [r["metrics"] for r in rows if r["method"] == method]
                why = collections.Counter(filter(None, map(fallback, mine)))
                if why:
                    reasons = "; ".join(f"{reason} ({n})" if len(why) > 1 else reason for reason, n in why.items())
                    words.append(
                        f"{method} without correspondences in {sum(why.values())} of {len(mine)} runs: {reasons}."
                    )
            said += [("", c, k, w) for w in words]
            said += [(before, c, k, w) for before, w in [*added_notes(rows), *unlike_notes(rows)]]
    notes += together(said)
    semi = [k for k in conditions if not k.startswith("unsup")]
    if len(semi) > 1:
        notes.append(
            f"Runs with different labels or pairing are not averaged, they have rows of their own: {'; '.join(semi)}."
        )
    return notes


def together(said):
    """Lines of [(before, column, condition or "", words)]; the columns of which the same is said stand in one."""
    lines: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for before, column, k, words in said:
        lines.setdefault((before, k, words), {}).setdefault(column[0], []).append(column[1])
    who = lambda by: "; ".join(f"{data} {', '.join(ooms)}" for data, ooms in by.items())
    return [f"{before}{who(by)}{k and f', {k}'}: {words}" for (before, k, words), by in lines.items()]


def added_notes(rows):
    """[("", words)] where runs of a column were added from elsewhere."""
    added = [r for r in rows if r.get("added")]
    if not added:
        return []
    sources, blind = sorted({r["added"] for r in added}), sum(not flags(r) for r in added)
    words = f"{', '.join(sorted({r['method'] for r in added}, key=order))} added from {', '.join(sources)}"
    return [("", words + (f"; the flags of {blind} of these runs were not recorded." if blind else "."))]


def unlike_notes(rows):
    """[("Not alike: ", words)] for every flag in which the runs of a column differ that should not."""
    told, notes = [r for r in rows if flags(r)], []
    trained = [r for r in told if METHODS[r["method"].partition("-")[0]].trains]
    groups = [("these runs", trained, set(SHARED))]
    for method in dict.fromkeys(r["method"] for r in told):
        same = [r for r in told if r["method"] == method]
        groups.append((f"the seeds of {method}", same, set().union(*map(flags, same)) - {*SHARED}))
    for who, mine, names_of in groups:
        for flag in sorted(names_of):
            values = sorted({json.dumps(flags(r).get(flag)) for r in mine})
            if len(values) > 1:
                notes.append(("Not alike: ", f"{who} differ in --{flag.replace('_', '-')} ({', '.join(values)})."))
    return notes


def against_chance(records):
    """(mean, chance, standard error) of runs without labels, as fractions; of skewed classes: of the balanced
    accuracy."""
    uneven = skewed(records[0])
    values = [r["metrics"]["balanced_accuracy" if uneven else "accuracy"] for r in records]
    number, items = classes(records[0]["metrics"]), records[0]["metrics"]["n_test"]
    assert number is not None  # every record says it, records.csv too
    chance = 1 / number
    mean, sd = mean_sd(values)
    p = max(mean, chance)  # two seeds can be alike by luck: at least the items' error
    return mean, chance, max(math.sqrt(p * (1 - p) / items), (sd or 0.0) / math.sqrt(len(values)))


def at_chance(records, name):
    """Is unsup COX above chance by two standard errors? In words."""
    if not records:
        return ""
    (mean, chance, error), uneven = against_chance(records), skewed(records[0])
    said = (
        f"{name}: COX without labels reaches {100 * mean:.1f}%{' balanced' if uneven else ''}, "
        f"chance is {100 * chance:.1f}%"
    )
    if mean - chance > 2 * error:
        times = (mean - chance) / error
        return f"{said}: above chance by {times:.1f} standard errors of {100 * error:.1f} points."
    return f"{said}: at chance (not above it by two standard errors of {100 * error:.1f} points)."


def word_columns(block):
    """Per column: does it hold words (left-aligned) rather than numbers."""
    leading = [
        h
        in ("setting", "direction", "method", "OOM", "IM", "OOM left out", "flags", "where", "flag", "metric", "class")
        for h in block["header"]
    ]
    return [w and all(leading[:i]) for i, w in enumerate(leading)]


def plain(text):
    """A text in a table of Markdown: what would end its cell, start HTML, a link or code, or break the line, written
    out."""
    text = re.sub(r"([\\\\|`\[])", r"\\\1", escaped(text))
    return re.sub(r"<(?=[A-Za-z/!?])", "&lt;", re.sub(r"&(?=#?\w+;)", "&amp;", text))


def markdown(blocks):
    """Blocks as Markdown."""
    lines, row = [], lambda cells: "| " + " | ".join(map(plain, cells)) + " |"
    for b in blocks:
        table = [row(b["header"]), "|" + "|".join(":--" if w else "--:" for w in word_columns(b)) + "|"]
        lines += [
            f"## {plain(b['title'])}",
            "",
            *([*table, *map(row, b["rows"]), ""] if b["header"] else []),
            *(f"{plain(note)}  " for note in b["notes"]),
            "",
        ]
    return "\n".join(lines)
