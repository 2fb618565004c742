"""Stage 4's tables and report: what evaluate.py shows of its records. No files, no arguments, no printing.

tables(records) -> blocks {title, header, rows, notes}; markdown(blocks) -> text; page(...) -> one HTML page.
A record is what METHOD.json holds (evaluate.py). Figures are PNG inside the page, nothing is fetched.
"""
import base64
import html
import io
import json
import math
import time

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

METHODS = ("random", "erm", "entmin", "ssl", "moco", "fixmatch", "selftrain", "cox", "aligned")   # rows
SHARED = ("epochs", "batch", "labelled_batch", "lr", "weight_decay", "width", "depth", "patch", "slice",
          "warmup_epochs")
COLOUR = {"random": "#c9c9c9", "erm": "#7f8fa6", "entmin": "#8fb996", "ssl": "#b5a1d0", "moco": "#d9b26f",
          "fixmatch": "#c98f8f", "selftrain": "#5f9ea0", "cox": "#c0392b", "aligned": "#444444"}


# ----------------------------------------------------------------------------------------------------- tables

def mean_sd(values):
    """(mean, sd with n - 1 or None)."""
    mean = sum(values) / len(values)
    square = sum((v - mean) ** 2 for v in values)
    return mean, math.sqrt(square / (len(values) - 1)) if len(values) > 1 else None


def percent(values, n=0):
    """"84.1 ± 1.2" of fractions, – where there are none; with their number where that is not n."""
    values = [v for v in values if v is not None]
    if not values:
        return "–"
    mean, sd = mean_sd(values)
    return f"{100 * mean:.1f}" + (f" ± {100 * sd:.1f}" if sd is not None else "") \
        + (f" (n = {len(values)})" if n and len(values) != n else "")


def condition(r):
    """Setting, labels and pairing of a record in words: what may stand in one row."""
    if r["setting"] == "unsup":
        return "unsup"
    labels = f"{r['per_class']} labels per class" if r["per_class"] else f"{100 * r['labels']:g}% labels"
    return f"semi, {labels}" + (", paired by class" if r["paired"].startswith("by class") else "")


def skewed(r):
    counts = [sum(row) for row in r["metrics"]["confusion"]]
    return max(counts) > 1.5 * min(counts)


def tables(records):
    """[{title, header, rows, notes}] for each perceptor; rows setting × method, columns OOM modality."""
    out = []
    for perceptor in sorted({r["perceptor"] for r in records}):
        some = [r for r in records if r["perceptor"] == perceptor]
        columns = sorted({(r["data"], r["oom"]) for r in some})
        uneven = [c for c in columns if any(skewed(r) for r in some if (r["data"], r["oom"]) == c)]
        blocks = [accuracy_table(some, columns, "accuracy", "Test accuracy, %", column_notes(some, columns))]
        if uneven:
            blocks.append(accuracy_table(some, uneven, "balanced_accuracy", "Balanced test accuracy, %",
                                         ["The classes of these test sets differ by more than 1.5 in size."]))
        if any(r["setting"] == "unsup" for r in some):
            blocks.append(unsup_table([r for r in some if r["setting"] == "unsup"]))
        if any(r["metrics"]["agreement"] for r in some):
            blocks.append(agreement_table(some, columns))
        blocks.append(heads_table(some, columns))
        out += [{**b, "title": f"{b['title']} (perceptor {perceptor})"} for b in blocks]
    return out


def names(columns):
    """OOM modalities as headings, with the data set where there are several."""
    return [" ".join(c) for c in columns] if len({d for d, _ in columns}) > 1 else [c[1] for c in columns]


def row_keys(records):
    """(condition, method) of each row, in the paper's order."""
    return sorted({(condition(r), r["method"]) for r in records}, key=lambda k: (k[0], METHODS.index(k[1])))


def cell(records, row, column):
    """The records, one per seed, that a cell averages."""
    return [r for r in records if (condition(r), r["method"], r["data"], r["oom"]) == (*row, *column)]


def most_seeds(records, columns):
    return max(len(cell(records, row, c)) for row in row_keys(records) for c in columns)


def accuracy_table(records, columns, metric, title, notes):
    """Mean ± sd of one metric; bold: the best of a column and condition that does not see all labels."""
    n, lines = most_seeds(records, columns), []
    mean = lambda row, c: round(100 * mean_sd([r["metrics"][metric] for r in cell(records, row, c)])[0], 1)
    for row in row_keys(records):
        texts = []
        for c in columns:
            text = percent([r["metrics"][metric] for r in cell(records, row, c)], n)
            rivals = [k for k in row_keys(records)
                      if k[0] == row[0] and k[1] != "aligned" and cell(records, k, c)]
            bold = row in rivals and len(rivals) > 1 and mean(row, c) >= max(mean(k, c) for k in rivals)
            texts.append(f"**{text}**" if bold else text)
        if set(texts) != {"–"}:
            lines.append([*row, *texts])
    return {"title": title, "header": ["setting", "method", *names(columns)], "rows": lines, "notes": notes}


def unsup_table(records):
    """Accuracy, Hungarian-matched accuracy and NMI side by side, and whether COX is above chance."""
    columns = sorted({(r["data"], r["oom"]) for r in records})
    n = most_seeds(records, columns)
    lines = [[row[1], *(percent([r["metrics"][k] for r in cell(records, row, c)], n) for c in columns
                        for k in ("accuracy", "hungarian_accuracy", "nmi"))] for row in row_keys(records)]
    said = [at_chance(cell(records, ("unsup", "cox"), c), name) for c, name in zip(columns, names(columns))]
    return {"title": "Without labels: accuracy, Hungarian-matched accuracy and NMI, × 100", "rows": lines,
            "header": ["method", *(f"{name} {k}" for name in names(columns)
                                   for k in ("accuracy", "Hungarian", "NMI"))],
            "notes": [s for s in said if s]}


def agreement_table(records, columns):
    """Fig. 6 in figures."""
    lines = []
    for c, name in zip(columns, names(columns)):
        for row in row_keys(records):
            a = [r["metrics"]["agreement"] for r in cell(records, row, c) if r["metrics"]["agreement"]]
            take = lambda part, *keys: [percent([x[part][k] for x in a]) for k in keys]
            if a:
                lines.append([name, *row, *take("before", "share", "label_accuracy"),
                              *take("before", "agree_accuracy", "disagree_accuracy", "gap"),
                              *take("after", "agree_accuracy", "disagree_accuracy", "gap"),
                              *take("after_own", "share", "label_accuracy")])
    return {"title": "Agreement (Fig. 6), %", "rows": lines, "header": [
        "OOM", "setting", "method", "A", "labels of A right", "before: on A", "on D", "gap", "after: on A",
        "on D", "gap", "A after", "labels of A after right"], "notes": [
        "Unlabelled training items, judged by their hidden labels. A: the share on which the heads agree "
        "before exploration, D: the rest; the learner's accuracy on this A and D before and after "
        "exploration; last the agreement after it."]}


def heads_table(records, columns):
    """Test accuracy of the IM heads."""
    ims = sorted({m for r in records for m in r["metrics"]["im_head_accuracy"]})
    value = lambda c, m: {(r["setting"], r["seed"]): r["metrics"]["im_head_accuracy"].get(m) for r in records
                          if (r["data"], r["oom"]) == c}.values()
    return {"title": "IM heads, test accuracy on the frozen features, %", "header": ["OOM left out", *ims],
            "rows": [[name, *(percent(value(c, m)) for m in ims)]
                     for c, name in zip(columns, names(columns))],
            "notes": ["A weak head explains a weak result."]}


def column_notes(records, columns):
    """The lines under the main table: what each column is, what was not averaged, whose flags differ."""
    n, conditions = most_seeds(records, columns), sorted({condition(r) for r in records})
    notes = [f"Mean ± sd (n − 1) over {n} seeds, (n = …) where there are fewer." if n > 1
             else "One seed: no sd.",
             "Bold: the best method that does not see all labels."]
    for c in columns:
        some = [r for r in records if (r["data"], r["oom"]) == c]
        m = some[0]["metrics"]
        by_class = sorted({i for r in some for i in r.get("perceptor_paired_by_class", [])})
        notes.append("; ".join([
            f"{c[0]} {c[1]}: perceptor {some[0]['perceptor']}", f"{m['n_test']} test items",
            f"{len(m['per_class'])} classes", f"chance {100 / len(m['per_class']):.1f}%",
            *([f"perceptor's pairs drawn by class: {', '.join(by_class)}"] if by_class else [])]) + ".")
        for k in conditions:
            rows = [r for r in some if condition(r) == k]
            if not rows:
                continue
            labelled = sorted({r["n_labelled"] for r in rows if r["method"] != "aligned"}) or ["all"]
            notes.append(f"{c[0]} {c[1]}, {k}: {' or '.join(map(str, labelled))} items labelled; pairs: "
                         f"{', '.join(sorted({pairing(r['paired']) for r in rows}))}; "
                         f"seeds {', '.join(map(str, sorted({r['seed'] for r in rows})))}.")
            # random has no training
            groups = [("these runs", [r for r in rows if r["method"] != "random"], SHARED)]
            for method in dict.fromkeys(r["method"] for r in rows):
                same = [r for r in rows if r["method"] == method]
                own = set().union(*(r["args"] for r in same)) - {*SHARED}
                groups.append((f"the seeds of {method}", same, own))
            for who, mine, flags in groups:
                for flag in sorted(flags):
                    values = sorted({json.dumps(r["args"].get(flag)) for r in mine})
                    if len(values) > 1:
                        notes.append(f"Not alike: {c[0]} {c[1]}, {k}: {who} differ in "
                                     f"--{flag.replace('_', '-')} ({', '.join(values)}).")
    semi = [k for k in conditions if k != "unsup"]
    if len(semi) > 1:
        notes.append(f"Runs with different labels or pairing are not averaged, they have rows of their own: "
                     f"{'; '.join(semi)}.")
    return notes


def pairing(paired):
    """The pairing of a record in words; the perceptor's own is said with the perceptor."""
    paired = paired.partition("; bind by class")[0]
    return {"true": "true instances", "none": "none"}.get(paired) or \
        f"PAIRED BY CLASS, drawn at random within the class ({paired.removeprefix('by class: ')})"


def at_chance(records, name):
    """Is unsup COX above chance by two standard errors? In words; skewed classes: balanced accuracy."""
    if not records:
        return ""
    uneven = skewed(records[0])
    values = [r["metrics"]["balanced_accuracy" if uneven else "accuracy"] for r in records]
    chance, items = 1 / len(records[0]["metrics"]["per_class"]), records[0]["metrics"]["n_test"]
    mean, sd = mean_sd(values)
    p = max(mean, chance)                       # two seeds can be alike by luck: at least the items' error
    error = max(math.sqrt(p * (1 - p) / items), (sd or 0.0) / math.sqrt(len(values)))
    said = (f"{name}: COX without labels reaches {100 * mean:.1f}%{' balanced' if uneven else ''}, "
            f"chance is {100 * chance:.1f}%")
    if mean - chance > 2 * error:
        times = (mean - chance) / error
        return f"{said}: above chance by {times:.1f} standard errors of {100 * error:.1f} points."
    return f"{said}: at chance (not above it by two standard errors of {100 * error:.1f} points)."


def word_columns(block):
    """Per column: does it hold words (left-aligned) rather than numbers."""
    leading = [h in ("setting", "method", "OOM", "OOM left out") for h in block["header"]]
    return [w and all(leading[:i]) for i, w in enumerate(leading)]


def markdown(blocks):
    lines = []
    for b in blocks:
        lines += [f"## {b['title']}", "", "| " + " | ".join(b["header"]) + " |",
                  "|" + "|".join(":--" if w else "--:" for w in word_columns(b)) + "|",
                  *("| " + " | ".join(row) + " |" for row in b["rows"]), "",
                  *(f"{note}  " for note in b["notes"]), ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------------- figures

def plane(z):
    """The first two principal components of z (n, d): mean (d,), axes (d, 2) of fixed signs."""
    z = z.float()
    mean = z.mean(0)
    axes = torch.linalg.svd((z - mean)[:: max(1, len(z) // 4000)], full_matrices=False)[2][:2].T
    axes = torch.nn.functional.pad(axes, (0, 2 - axes.shape[1]))
    return mean, axes * axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()


def thin(z, y, most=1200):
    """At most `most` rows of z (n, d), y (n,), evenly spaced."""
    i = torch.linspace(0, len(z) - 1, min(len(z), most)).round().long() if len(z) else torch.arange(0)
    return z[i].float(), y[i]


def palette(classes):
    """One colour per class, (C, 4)."""
    if classes <= 20:
        return np.array([colormaps["tab10" if classes <= 10 else "tab20"](i) for i in range(classes)])
    return colormaps["turbo"](np.linspace(0.03, 0.97, classes))


def scatter(ax, points, y, colours, **look):
    ax.scatter(points[:, 0], points[:, 1], c=[colours[c] if c >= 0 else (0.6, 0.6, 0.6, 1)
                                              for c in y.tolist()],
               linewidths=0, **look)


def grid(count, width=3.1, height=2.9, most=4):
    """A figure with `count` axes, at most `most` in a row."""
    columns = min(count, most)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for ax in axes[count:]:
        ax.remove()
    return figure, axes[:count]


def short(name, most=14):
    """A class name for an axis or legend; both ends are kept, names often differ in the last letters."""
    return name if len(name) <= most else f"{name[:most - 6]}…{name[-5:]}"


def plain(ax, title="", x="", y=""):
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def method_bars(rows):
    """Mean accuracy with sd per OOM modality (groups) and method (bars)."""
    columns = sorted({(r["data"], r["oom"]) for r in rows})
    methods = [m for m in METHODS if any(r["method"] == m for r in rows)]
    figure = Figure(figsize=(max(4.5, min(12, 1 + 0.42 * len(methods) * len(columns))), 3.4),
                    layout="constrained")
    ax = figure.subplots()
    width = 0.85 / len(methods)
    for i, m in enumerate(methods):
        at, mean, sd = [], [], []
        for j, c in enumerate(columns):
            values = [100 * r["metrics"]["accuracy"] for r in rows
                      if (r["data"], r["oom"], r["method"]) == (*c, m)]
            if values:
                a, s = mean_sd(values)
                at, mean, sd = [*at, j + (i - (len(methods) - 1) / 2) * width], [*mean, a], [*sd, s or 0]
        ax.bar(at, mean, width * 0.92, yerr=sd if any(sd) else None, color=COLOUR[m], label=m, capsize=2,
               error_kw={"lw": 0.8})
        for x, a, s in zip(at, mean, sd):
            ax.text(x, a + s + 1, f"{a:.0f}", ha="center", fontsize=7)
    several = len({d for d, _ in columns}) > 1
    ax.set_xticks(range(len(columns)), [f"{d}\n{o}" if several else o for d, o in columns])
    ax.set_ylim(0, 105)
    plain(ax, y="test accuracy, %")
    ax.tick_params(axis="x", labelsize=8)
    ax.legend(fontsize=7, ncols=min(9, len(methods)), frameon=False, loc="lower left",
              bbox_to_anchor=(0, 1.0))
    return figure


def training_curves(rows):
    """Loss per epoch, and validation accuracy where there are such items; mean over seeds."""
    rows = [r for r in rows if r["history"]]
    keys = [k for k in ("loss", "val_accuracy") if any(k in r["history"][0] for r in rows)]
    if not keys:
        return None
    figure, axes = grid(len(keys), width=4.6, height=3.0)
    for ax, key in zip(axes, keys):
        for m in METHODS:
            runs = [[h[key] for h in r["history"]] for r in rows
                    if r["method"] == m and key in r["history"][0]]
            if runs:
                n = min(map(len, runs))
                mean = [sum(r[e] for r in runs) / len(runs) * (100 if key != "loss" else 1) for e in range(n)]
                ax.plot(range(1, n + 1), mean, color=COLOUR[m], label=m, lw=1.8 if m == "cox" else 1.2,
                        marker="." if n < 3 else "")
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        plain(ax, x="epoch", y="validation accuracy, %" if key != "loss" else "loss (each method's own)")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def confusions(rows):
    """Row-normalised confusion matrices of erm and cox, or else of what there is, summed over seeds."""
    methods = [m for m in ("erm", "cox") if any(r["method"] == m for r in rows)] or [rows[0]["method"]]
    names = list(rows[0]["metrics"]["per_class"])
    n = len(names)
    side = min(5.2, max(3.2, 0.34 * n + 1.4))
    figure, axes = grid(len(methods), width=side + 0.6, height=side)
    small = max(2.5, min(8, 72 * (side - 1.4) / n * 0.8))                              # points that a row has
    for ax, m in zip(axes, methods):
        mine = [r for r in rows if r["method"] == m]
        counts = np.sum([r["metrics"]["confusion"] for r in mine], 0).astype(float)
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        ax.imshow(share, cmap="Blues", vmin=0, vmax=1)
        title = f"{m}, {len(mine)} seed{'s' * (len(mine) > 1)}"
        plain(ax, title, "named", "true class" if m == methods[0] else "")
        if n <= 60:
            ax.set_xticks(range(n), [short(c) for c in names], rotation=90)
            ax.set_yticks(range(n), [short(c) for c in names])
            ax.tick_params(labelsize=small, length=2)
        if n <= 14:
            for i, j in np.argwhere(share >= 0.005):
                ax.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=min(7, small),
                        color="white" if share[i, j] > 0.6 else "#333")
    return figure


def connection_curves(rows):
    """Fig. 5: MMD of mapped IM items and OOM items, accuracy of the heads on OOM test items, over steps."""
    seeds = {r["seed"]: r["metrics"]["connection"] for r in rows}.values()  # the same for every method
    names = sorted({c["modality"] for s in seeds for c in s})
    figure, axes = grid(2, width=4.6, height=3.0)
    for i, m in enumerate(names):
        for ax, key, factor in zip(axes, ("mmd", "oom_accuracy"), (1, 100)):
            steps = sorted({c["step"] for s in seeds for c in s if c["modality"] == m})
            at = lambda t: [c[key] * factor for s in seeds for c in s if (c["modality"], c["step"]) == (m, t)]
            values = [mean_sd(at(t)) for t in steps]
            spread = [s or 0 for _, s in values] if len(seeds) > 1 else None
            ax.errorbar(steps, [v for v, _ in values], spread, marker=".", lw=1.3, elinewidth=0.7,
                        color=palette(len(names))[i], label=m)
    plain(axes[0], "mapped IM items against OOM items", "steps of the connection", "MMD")
    plain(axes[1], "heads h* on OOM test items (warm-started learner)", "steps of the connection",
          "accuracy, %")
    for ax in axes:
        ax.set_ylim(bottom=0)
    axes[1].legend(fontsize=7, frameon=False)
    return figure


def agreement_bars(rows):
    """Fig. 6: accuracy on the agreement and the disagreement part before and after exploration."""
    methods = [m for m in METHODS if any(r["method"] == m and r["metrics"]["agreement"] for r in rows)]
    if not methods:
        return None
    figure, axes = grid(len(methods), width=2.3, height=2.7, most=5)
    for ax, m in zip(axes, methods):
        mine = [r["metrics"]["agreement"] for r in rows if r["method"] == m and r["metrics"]["agreement"]]
        for i, (part, colour) in enumerate((("agree_accuracy", "#2c7fb8"), ("disagree_accuracy", "#d95f0e"))):
            for j, when in enumerate(("before", "after")):
                values = [100 * a[when][part] for a in mine if a[when][part] is not None]
                if values:
                    mean, sd = mean_sd(values)
                    ax.bar(j + (i - 0.5) * 0.38, mean, 0.36, yerr=sd, color=colour, capsize=2,
                           error_kw={"lw": 0.8},
                           label=("agreement" if i == 0 else "disagreement") if j == 0 else None)
                    ax.text(j + (i - 0.5) * 0.38, mean + (sd or 0) + 1, f"{mean:.0f}", ha="center",
                            fontsize=7)
        ax.set_xticks([0, 1], ["before", "after"])
        ax.set_ylim(0, 110)
        title = f"{m}: {percent([a['before']['share'] for a in mine])}% agree"
        plain(ax, title, y="accuracy, %" if m == methods[0] else "")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, frameon=False, loc="outside lower center",
                  ncols=2)
    return figure


def bank_planes(cloud):
    """Each IM bank's features in its own two principal components, coloured by class."""
    colours = palette(len(cloud["classes"]))
    figure, axes = grid(len(cloud["im"]))
    for ax, (m, (z, y)) in zip(axes, cloud["im"].items()):
        mean, axis = plane(z)
        z, y = thin(z, y)
        scatter(ax, (z - mean) @ axis, y, colours, s=6)
        frame(ax, m)
    class_legend(figure, cloud["classes"], colours)
    return figure


def oom_planes(cloud):
    """The learner's OOM test features in their plane, and each IM modality's mapped items over them."""
    colours = palette(len(cloud["classes"]))
    figure, axes = grid(1 + len(cloud["mapped"]))
    mean, axis = plane(cloud["oom"][0])
    z, y = thin(*cloud["oom"])
    p = (z - mean) @ axis
    scatter(axes[0], p, y, colours, s=7)
    frame(axes[0], "OOM test items")
    for ax, (m, (v, c)) in zip(axes[1:], cloud["mapped"].items()):
        v, c = thin(v, c)
        ax.scatter(p[:, 0], p[:, 1], c="#dddddd", s=7, linewidths=0)
        scatter(ax, (v - mean) @ axis, c, colours, s=5)
        frame(ax, f"{m}, mapped")
    class_legend(figure, cloud["classes"], colours)
    return figure


def frame(ax, title):
    ax.set_title(title, fontsize=9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_aspect("equal", "datalim")


def class_legend(figure, names, colours):
    """Below the axes, in as many columns as fit; beyond 40 classes a legend says nothing."""
    if len(names) <= 40:
        width = 0.25 + 0.075 * min(14, max(map(len, names)))  # inches of one entry at 7 points
        dots = [figure.axes[0].plot([], [], ".", color=c, label=short(n))[0] for n, c in zip(names, colours)]
        figure.legend(handles=dots, fontsize=7, frameon=False, loc="outside lower left", markerscale=1.2,
                      columnspacing=1, handletextpad=0.2,
                      ncols=max(1, min(len(names), int(figure.get_figwidth() / width))))


# ------------------------------------------------------------------------------------------------------- page

def picture(figure, words):
    """A figure as an <img> whose PNG lies in the page."""
    if figure is None:
        return ""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    say = html.escape(words)
    data = base64.b64encode(png.getvalue()).decode()
    return (f'<figure><img alt="{say}" src="data:image/png;base64,{data}">'
            f"<figcaption>{say}</figcaption></figure>")


def html_table(block):
    def inner(text):
        bold = text.startswith("**")
        text = html.escape(text.strip("*"))
        return f"<b>{text}</b>" if bold else text
    words = word_columns(block)
    start = lambda tag, word: f"<{tag} class=w>" if word else f"<{tag}>"
    cells = lambda row, tag: [f"{start(tag, w)}{inner(t)}</{tag}>" for t, w in zip(row, words)]
    line = lambda row, tag: "<tr>" + "".join(cells(row, tag)) + "</tr>"
    return (f"<h2>{html.escape(block['title'])}</h2>"
            f"<div class=wide><table><thead>{line(block['header'], 'th')}</thead><tbody>"
            + "".join(line(r, "td") for r in block["rows"]) + "</tbody></table></div>"
            + "".join(f"<p class=note>{html.escape(n)}</p>" for n in block["notes"]))


STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#222;background:#fafafa}
body{max-width:1080px;margin:2em auto;padding:0 1.2em}
h1{font-size:1.5em}h2{font-size:1.12em;margin:2em 0 .5em}h3{font-size:1em;margin:1.6em 0 .3em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}.wide{overflow-x:auto}
th,td{padding:.22em .8em;text-align:right;border-bottom:1px solid #e3e3e3;white-space:nowrap}
th.w,td.w{text-align:left}
thead th{border-bottom:2px solid #999;font-weight:600}.note{margin:.25em 0;color:#555;font-size:13px}
figure{margin:.8em 0 1.6em}img{max-width:100%;height:auto;background:#fff;border:1px solid #eee}
figcaption{color:#555;font-size:13px}
footer{margin-top:3em;border-top:1px solid #ccc;color:#666;font-size:12px;word-break:break-word}"""

CONFUSION = "Confusion on the test items, summed over seeds; rows add to 100%."
CONNECT = ("Connecting (Fig. 5): the gap between mapped IM items and OOM items, and what heads trained on "
           "the mapped items (semi: and the labelled ones) know of OOM items.")
EXPLORE = ("Exploring (Fig. 6): accuracy on unlabelled training items on which the heads agreed or disagreed "
           "before exploration, before and after it.")
BANKS = "Frozen features of the IM training items, each in its bank's first two principal components."
PLANE = ("first two principal components of its OOM test items; the IM items that its connections map there, "
         "over the test items in grey.")


def page(blocks, records, clouds, command):
    """report.html as a string. clouds: {(data, perceptor, oom, condition): what evaluate.cloud returns}."""
    body = ["<h1>COX: " + html.escape(", ".join(sorted({r["data"] for r in records}))) + "</h1>",
            *map(html_table, blocks)]
    for perceptor in sorted({r["perceptor"] for r in records}):
        for k in sorted({condition(r) for r in records}):
            rows = [r for r in records if r["perceptor"] == perceptor and condition(r) == k]
            if rows:
                body.append(f"<h2>{html.escape(f'{k} (perceptor {perceptor})')}</h2>")
                body.append(picture(method_bars(rows), "Test accuracy, mean and sd over seeds."))
            for data, oom in sorted({(r["data"], r["oom"]) for r in rows}):
                some = [r for r in rows if (r["data"], r["oom"]) == (data, oom)]
                body += [f"<h3>{html.escape(f'{data}: {oom} left out of the perceptor')}</h3>",
                         picture(training_curves(some), "Training curves, mean over seeds."),
                         picture(confusions(some), CONFUSION), picture(connection_curves(some), CONNECT),
                         picture(agreement_bars(some), EXPLORE)]
                cloud = clouds.get((data, perceptor, oom, k))
                if cloud:
                    learner = f"Features of the learner ({cloud['method']}, seed {cloud['seed']}) in the "
                    body += [picture(bank_planes(cloud), BANKS), picture(oom_planes(cloud), learner + PLANE)]
    prints = "; ".join(f"{d} {f[:16]}" for d, f in sorted({(r["data"], r["fingerprint"]) for r in records}))
    facts = " · ".join([command, time.strftime("%Y-%m-%d %H:%M"), f"torch {torch.__version__}",
                        f"data {prints}", f"{len(records)} runs"])
    body.append(f"<footer><p>{html.escape(facts)}</p></footer>")
    return ('<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>COX report</title>'
            f"<style>{STYLE}</style></head><body>" + "\n".join(body) + "</body></html>\n")
