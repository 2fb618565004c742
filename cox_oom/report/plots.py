"""Stage 4's figures: how records and features are drawn. No files, no arguments.

A record is what METHOD.json holds (evaluate.py); None where there is nothing to draw.
"""

import math
import unicodedata
import warnings

import numpy as np
import torch
from matplotlib import colormaps, font_manager, rcParams
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cox_oom.methods import METHODS
from cox_oom.report.scores import mean_sd, order, percent, score

# for what matplotlib's own font lacks, names in Chinese, Japanese or Korean above all: those that are installed
FONTS = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans SC",
    "Noto Sans JP",
    "Noto Sans KR",
    "Source Han Sans",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "IPAGothic",
    "NanumGothic",
    "Hiragino Sans",
    "PingFang SC",
    "Apple SD Gothic Neo",
    "Microsoft YaHei",
    "Yu Gothic",
    "Malgun Gothic",
    "Noto Sans",
    "Arial Unicode MS",
)

rcParams["text.parse_math"] = False  # names are data: a $ is a dollar
rcParams["font.family"] = [*rcParams["font.family"], *(f for f in FONTS if f in {*font_manager.get_font_names()})]
warnings.filterwarnings("ignore", "Glyph .* missing from")  # said in docs/data/folder.md


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
    ax.scatter(
        points[:, 0],
        points[:, 1],
        c=[colours[c] if c >= 0 else (0.6, 0.6, 0.6, 1) for c in y.tolist()],
        linewidths=0,
        **look,
    )


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
    return name if len(name) <= most else f"{name[: most - 6]}…{name[-5:]}"


def legend_name(name):
    """matplotlib leaves out of a legend what begins with _."""
    return f" {name}" if name.startswith("_") else name


def legend_columns(figure, names):
    """How many columns a legend of these names at 7 points has, so that it lies within the figure and its rows are
    alike."""
    letters = max(sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in n) for n in names)
    fit = max(1, int((figure.get_figwidth() - 0.15) / (0.25 + 0.075 * letters)))  # inches
    return math.ceil(len(names) / math.ceil(len(names) / fit))


def plain(ax, title="", x="", y=""):
    ax.set_title(title, fontsize=9)
    ax.set_xlabel(x, fontsize=8)
    ax.set_ylabel(y, fontsize=8)
    ax.tick_params(labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def method_names(rows):
    return sorted({r["method"] for r in rows}, key=order)


def colours(methods):
    """{method: its colour}; runs with a --tag have paler ones, unlike one another as far as there are enough."""
    tagged = sorted(m for m in methods if "-" in m)
    paler = dict(zip(tagged, colormaps["Set3"](np.arange(len(tagged)) % 12)[:, :3]))
    return {m: tuple(paler.get(m, to_rgb(METHODS[m.partition("-")[0]].colour))) for m in methods}


def method_bars(rows, metric="accuracy", words="test accuracy"):
    """Mean of a metric with sd per OOM modality (groups) and method (bars); None where no record has it."""
    rows = [r for r in rows if score(r, metric) is not None]
    if not rows:
        return None
    columns = sorted({(r["data"], r["oom"]) for r in rows})
    methods = method_names(rows)
    lines = [columns]  # many columns: a line for each data set
    if len(columns) * len(methods) > 40:
        lines = [[c for c in columns if c[0] == d] for d in sorted({d for d, _ in columns})]
    widest = max(map(len, lines))
    figure = Figure(
        figsize=(max(4.5, min(12, 1 + 0.42 * len(methods) * widest)), 0.8 + 2.6 * len(lines)), layout="constrained"
    )
    wide = legend_columns(figure, methods)
    figure.set_figheight(figure.get_figheight() + 0.15 * (math.ceil(len(methods) / wide) - 1))
    colour = colours(methods)
    width, top = 0.85 / len(methods), 100 * max(v for r in rows if (v := score(r, metric)) is not None)
    limit = 105 if top > 40 else 1.25 * top + 0.1
    for ax, line in zip(figure.subplots(len(lines), squeeze=False)[:, 0], lines):
        for i, m in enumerate(methods):
            at, mean, sd = list[float](), list[float](), list[float]()
            for j, c in enumerate(line):
                own = [r for r in rows if (r["data"], r["oom"], r["method"]) == (*c, m)]
                values = [100 * v for r in own if (v := score(r, metric)) is not None]
                if values:
                    a, s = mean_sd(values)
                    at, mean, sd = [*at, j + (i - (len(methods) - 1) / 2) * width], [*mean, a], [*sd, s or 0]
            look = {"color": colour[m], "label": m, "capsize": 2, "error_kw": {"lw": 0.8}}
            ax.bar(at, mean, width * 0.92, yerr=sd if any(sd) else None, **look)
            digits, size = 0 if top > 10 else 1, 7 if widest < 6 else 5.5
            for x, a, s in zip(at, mean, sd):
                ax.text(x, a + s + limit / 105, f"{a:.{digits}f}", ha="center", fontsize=size)
        several = len({d for d, _ in columns}) > 1
        ax.set_xticks(range(len(line)), [f"{d}\n{o}" if several else o for d, o in line])
        ax.set_xlim(-0.6, widest - 0.4)
        ax.set_ylim(0, limit)
        plain(ax, y=f"{words}, %")
        ax.tick_params(axis="x", labelsize=8)
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        fontsize=7,
        ncols=wide,
        frameon=False,
        loc="outside upper left",
        handlelength=1,
        handletextpad=0.4,
        columnspacing=1,
    )
    return figure


def training_curves(rows):
    """Loss per epoch, and validation accuracy where there are such items; mean over seeds."""
    rows = [r for r in rows if r["history"]]
    keys = [k for k in ("loss", "val_accuracy") if any(k in r["history"][0] for r in rows)]
    if not keys:
        return None
    figure, axes = grid(len(keys), width=4.6, height=3.0)
    colour = colours(method_names(rows))
    for ax, key in zip(axes, keys):
        for m in method_names(rows):
            runs = [[h[key] for h in r["history"]] for r in rows if r["method"] == m and key in r["history"][0]]
            if runs:
                n = min(map(len, runs))
                mean = [sum(r[e] for r in runs) / len(runs) * (100 if key != "loss" else 1) for e in range(n)]
                ax.plot(
                    range(1, n + 1),
                    mean,
                    color=colour[m],
                    label=m,
                    lw=1.8 if m == "cox" else 1.2,
                    marker="." if n < 3 else "",
                )
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        plain(ax, x="epoch", y="validation accuracy, %" if key != "loss" else "loss (each method's own)")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def learning_curves(some):
    """Accuracy over the number of labels, mean and sd over seeds, with the law that was fitted and what it predicts for
    twice the last number; some: [(curve, prediction)] of learning.predicted."""
    figure = Figure(figsize=(4.6, 3.6), layout="constrained")
    names = [curve["method"] for curve, _ in some]
    ax, colour = figure.subplots(), colours(names)
    for curve, found in some:
        n, look = np.array(curve["labels"]), {"color": colour[curve["method"]]}
        mean, sd = zip(*(mean_sd([100 * v for v in values]) for values in curve["accuracy"]))
        ax.errorbar(n, mean, [s or 0 for s in sd], fmt="o", ms=3.5, capsize=2, label=curve["method"], **look)
        if found["law"]:
            a, b, c = found["law"]
            x = np.geomspace(n[0], 2 * n[-1], 60)
            ax.plot(x, 100 * (a - b * (x / n[-1]) ** -c), lw=1.2, ls="--", **look)
            span = [[100 * (found["accuracy"] - found["lowest"])], [100 * (found["highest"] - found["accuracy"])]]
            ax.errorbar([2 * n[-1]], [100 * found["accuracy"]], span, fmt="o", ms=4, mfc="none", capsize=2, **look)
        else:
            ax.plot(n, mean, lw=1.2, **look)
    if some[0][0]["aligned"] is not None:
        ax.axhline(100 * some[0][0]["aligned"], color="#444", lw=1, ls=":", label="aligned, all labels")
    counts = sorted({round(n) for curve, _ in some for n in curve["labels"]})
    ax.set_xscale("log")
    ax.set_xticks([*counts, 2 * counts[-1]], [*map(str, counts), f"{2 * counts[-1]}\npredicted"])
    ax.minorticks_off()
    plain(ax, x="labelled items", y="test accuracy, %")
    wide = legend_columns(figure, [*names, "aligned, all labels"])
    figure.legend(fontsize=7, frameon=False, loc="outside upper left", ncols=wide)
    return figure


def reliability(rows):
    """How often the learner is right where it is so confident: a panel for each method with a point for each bin, its
    area by the items in it; each seed has points of its own. None where no record has metrics.calibration."""
    rows = [r for r in rows if r["metrics"].get("calibration")]
    if not rows:
        return None
    methods = method_names(rows)
    figure, axes = grid(len(methods), width=2.6, height=2.7)
    colour = colours(methods)
    for ax, m in zip(axes, methods):
        mine = [r["metrics"]["calibration"] for r in rows if r["method"] == m]
        bins = np.array([b for c in mine for b in c["bins"] if b[2] > 0], dtype=float).reshape(-1, 3)
        ax.plot([0, 100], [0, 100], color="#999", lw=1, ls="--")
        ax.scatter(
            100 * bins[:, 0],
            100 * bins[:, 1],
            s=4 + 180 * bins[:, 2] / max(1, bins[:, 2].max(initial=0)),
            color=colour[m],
            alpha=0.6,
            linewidths=0,
            label=f"ECE {percent([c['ece'] for c in mine])}%",
        )
        ax.set_xlim(0, 103)
        ax.set_ylim(0, 103)
        plain(ax, f"{m}, {len(mine)} seed{'s' * (len(mine) > 1)}", "confidence, %", "right, %" if ax is axes[0] else "")
        ax.legend(fontsize=7, frameon=False, loc="upper left", handlelength=0, markerscale=0.3)
    return figure


def confusions(rows):
    """Row-normalised confusion matrices of erm and cox, or else of what there is, summed over seeds."""
    methods = [m for m in ("erm", "cox") if any(r["method"] == m for r in rows)] or [rows[0]["method"]]
    names = list(rows[0]["metrics"]["per_class"])
    n = len(names)
    side = min(5.2, max(3.2, 0.34 * n + 1.4))
    figure, axes = grid(len(methods), width=side + 0.6, height=side)
    small = max(2.5, min(8, 72 * (side - 1.4) / n * 0.8))  # points that a row has
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
                ax.text(
                    j,
                    i,
                    f"{100 * share[i, j]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=min(7, small),
                    color="white" if share[i, j] > 0.6 else "#333",
                )
    return figure


def connection_curves(rows):
    """Fig. 5, a column for each data set and OOM modality: MMD of mapped IM items and OOM items, and accuracy of the
    heads on OOM test items, over the steps of the connection."""
    columns = sorted({(r["data"], r["oom"]) for r in rows})
    figure = Figure(
        figsize=(max(4.6, 2.9 * len(columns)), 5.4) if len(columns) > 1 else (9.2, 3.0), layout="constrained"
    )
    grid_of = figure.subplots(2, len(columns), squeeze=False) if len(columns) > 1 else figure.subplots(1, 2)[:, None]
    for i, (data, oom) in enumerate(columns):
        some = [r for r in rows if (r["data"], r["oom"]) == (data, oom)]
        seeds = {r["seed"]: r["metrics"] for r in some}.values()  # the same for every method
        names = sorted({c["modality"] for s in seeds for c in s["connection"]})
        mmd, accuracy = grid_of[:, i]
        for j, m in enumerate(names):
            for ax, key, factor in ((mmd, "mmd", 1), (accuracy, "oom_accuracy", 100)):
                steps = sorted({c["step"] for s in seeds for c in s["connection"] if c["modality"] == m})
                at = lambda t: [
                    c[key] * factor for s in seeds for c in s["connection"] if (c["modality"], c["step"]) == (m, t)
                ]
                values = [mean_sd(at(t)) for t in steps]
                spread = [s or 0 for _, s in values] if len(seeds) > 1 else None
                ax.errorbar(
                    steps,
                    [v for v, _ in values],
                    spread,
                    marker=".",
                    lw=1.3,
                    elinewidth=0.7,
                    color=palette(len(names))[j],
                    label=legend_name(m),
                )
        warm = [100 * s["warm_accuracy"] for s in seeds if s.get("warm_accuracy") is not None]
        if warm:
            accuracy.axhline(mean_sd(warm)[0], color="#444", lw=1, ls="--", label="the learner's own head")
        name = f"{data} {oom}: " if len(columns) > 1 else ""
        plain(mmd, f"{name}mapped IM items against OOM items", "steps of the connection", "MMD")
        plain(accuracy, "heads h* on OOM test items (warm-started learner)", "steps of the connection", "accuracy, %")
        if len(columns) > 1:
            mmd.set_title(f"{data} {oom}", fontsize=9)
            accuracy.set_title("")
        for ax in (mmd, accuracy):
            ax.set_ylim(bottom=0)
        accuracy.legend(fontsize=6 if len(columns) > 1 else 7, frameon=False)
    return figure


def agreement_bars(rows, by="method"):
    """Fig. 6: accuracy on the agreement and the disagreement part before and after exploration, a panel for each
    method, or with by="column" for each data set and OOM modality (rows of one method)."""
    judged = lambda a: a and any(a["before"][part] is not None for part in ("agree_accuracy", "disagree_accuracy"))
    rows = [r for r in rows if judged(r["metrics"]["agreement"])]
    panel = (lambda r: r["method"]) if by == "method" else lambda r: f"{r['data']} {r['oom']}"
    panels = method_names(rows) if by == "method" else sorted({panel(r) for r in rows})
    if not panels:
        return None
    figure, axes = grid(len(panels), width=2.3, height=2.7, most=6 if by == "column" else 5)
    for ax, name in zip(axes, panels):
        mine = [r["metrics"]["agreement"] for r in rows if panel(r) == name]
        for i, (part, shade) in enumerate((("agree_accuracy", "#2c7fb8"), ("disagree_accuracy", "#d95f0e"))):
            for j, when in enumerate(("before", "after")):
                values = [100 * a[when][part] for a in mine if a[when][part] is not None]
                if values:
                    mean, sd = mean_sd(values)
                    ax.bar(
                        j + (i - 0.5) * 0.38,
                        mean,
                        0.36,
                        yerr=sd,
                        color=shade,
                        capsize=2,
                        error_kw={"lw": 0.8},
                        label=("agreement" if i == 0 else "disagreement") if j == 0 else None,
                    )
                    ax.text(j + (i - 0.5) * 0.38, mean + (sd or 0) + 1, f"{mean:.0f}", ha="center", fontsize=7)
        ax.set_xticks([0, 1], ["before", "after"])
        ax.set_ylim(0, 110)
        plain(
            ax,
            f"{name}: {percent([a['before']['share'] for a in mine])}% agree",
            y="accuracy, %" if ax is axes[0] else "",
        )
        if by == "column":
            ax.set_title(f"{name}\n{percent([a['before']['share'] for a in mine])}% agree", fontsize=8)
    bars = {label: bar for ax in axes for bar, label in zip(*ax.get_legend_handles_labels())}
    figure.legend(bars.values(), bars.keys(), fontsize=7, frameon=False, loc="outside lower center", ncols=2)
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
        names = [legend_name(short(n)) for n in names]
        dots = [figure.axes[0].plot([], [], ".", color=c, label=n)[0] for n, c in zip(names, colours)]
        figure.legend(
            handles=dots,
            fontsize=7,
            frameon=False,
            loc="outside lower left",
            markerscale=1.2,
            columnspacing=1,
            handletextpad=0.2,
            ncols=legend_columns(figure, names),
        )
