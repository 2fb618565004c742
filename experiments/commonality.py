"""The experiment on commonality: the gain of COX over selftrain over what the modalities have in common and the pairs
per class, in tables and drawn. No files, no arguments; collect.py writes them for commonality.sh."""

import math

import numpy as np
from matplotlib import colormaps
from scipy import stats

from cox_oom.report.plots import grid, plain
from cox_oom.report.scores import mean_sd, percent, score

ON = {
    "accuracy": "accuracy on test items",
    "unlabelled": "accuracy on the unlabelled training items",
    "retrieval.out.instance.r10": "R@10 of the very instance among the known modalities' test items",
}


def gains(records, metric="accuracy"):
    """[{commonality, per_class, world, cox, selftrain, gain}]: lists over the (OOM modality, seed of synth, seed) that
    both have, of one of `ON`; world is the first two of these, gain is COX − selftrain."""
    key = lambda r: (r.get("commonality"), r["per_class"])
    out = []
    for k in sorted({key(r) for r in records if r.get("commonality") is not None}):
        of = {
            m: {
                (r["oom"], str(r.get("data_seed", r.get("fingerprint"))), r["seed"]): score(r, metric)
                for r in records
                if key(r) == k and r["method"] == m and score(r, metric) is not None
            }
            for m in ("cox", "selftrain")
        }
        both = sorted(of["cox"].keys() & of["selftrain"].keys())
        if both:
            cox, alone = ([of[m][i] for i in both] for m in ("cox", "selftrain"))
            out.append(
                {
                    "commonality": k[0],
                    "per_class": k[1],
                    "world": [i[:2] for i in both],
                    "cox": cox,
                    "selftrain": alone,
                    "gain": [a - b for a, b in zip(cox, alone)],
                }
            )
    return out


def tables(records):
    """The gain of COX over selftrain by commonality (rows) and pairs per class (columns), on each of `ON`, of all
    modalities and of each by itself, and both accuracies on test items."""
    each, out = {metric: gains(records, metric) for metric in ON}, []
    for metric, found in each.items():
        title = f"COX − selftrain, points of {ON[metric]}"
        if found:
            out.append(block(title, "gain", found, notes(found)))
            if len({oom for g in found for oom, _ in g["world"]}) > 1:
                out.append(block(f"{title}, by modality", "gain", found, by=lambda oom, n: f"{oom}, {n} per class"))
    return out + [block(f"{m}, test accuracy, %", m.lower(), each["accuracy"]) for m in ("COX", "selftrain")]


def block(title, key, found, notes=(), by=lambda oom, n: f"{n} per class"):
    """A table of what gains(records) found, a column for each that `by` names by modality and pairs per class."""
    cells = {}
    for g in found:
        for (oom, _), v in zip(g["world"], g[key]):
            cells.setdefault((g["per_class"], by(oom, g["per_class"])), {}).setdefault(g["commonality"], []).append(v)
    rows = [
        [f"{c:g}", *(percent(cells[k].get(c, [])) for k in sorted(cells))]
        for c in sorted({g["commonality"] for g in found})
    ]
    return {
        "title": title,
        "header": ["commonality", *(name for _, name in sorted(cells))],
        "notes": [*notes],
        "rows": rows,
    }


def notes(found):
    """What a table of gains averages over, and whether the gain grows with commonality and with the pairs."""
    ooms = sorted({o for g in found for o, _ in g["world"]})
    said = [
        f"Mean ± sd over seeds, OOM modalities ({', '.join(ooms)}) and worlds (seed of synth), "
        f"{' or '.join(map(str, sorted({len(g['gain']) for g in found})))} pairs of runs a cell."
    ]
    for words, key, other, unit in (
        (
            "commonality",
            "commonality",
            "per_class",
            "of a modality in a world at one commonality, compared within modality "
            "and world, which shares labels and latents, at equal numbers of pairs",
        ),
        (
            "the number of pairs",
            "per_class",
            "commonality",
            "of a modality in a world with one number of pairs, compared "
            "within modality and world at equal commonality",
        ),
    ):
        rho, p, n = trend(found, key, other)
        if n:
            said.append(
                f"Rank correlation of the gain with {words}: {rho:+.2f}, p = {p:.3g} ({n} means, each {unit}; p by "
                f"exchanging these)."
            )
    return said


def trend(found, key, other, exchanges=20000):
    """Whether the gain grows with `key` ("commonality" or "per_class") within worlds: (Spearman's rho, two-sided p,
    number of means). Gains are averaged over seeds, less their mean over `key` at the same (modality, seed of synth,
    `other`); then over `other`, which shares labels and latents. p: how often rho is as large when the means of each
    world are exchanged."""
    cells, groups = {}, {}
    for g in found:
        for world, v in zip(g["world"], g["gain"]):
            cells.setdefault((world, g[other]), {}).setdefault(g[key], []).append(v)
    for (world, _), by in cells.items():
        mean = {x: mean_sd(v)[0] for x, v in by.items()}
        level = mean_sd([*mean.values()])[0]
        if len(mean) > 1:
            for x, m in mean.items():
                groups.setdefault(world, {}).setdefault(x, []).append(m - level)
    x = np.concatenate([[0.0], *(sorted(by) for by in groups.values())])[1:]
    y = [np.round([mean_sd(by[k])[0] for k in sorted(by)], 12) for by in groups.values()]
    if not groups or np.ptp(np.concatenate(y)) == 0:
        return 0.0, 1.0, 0
    standard = lambda r: (r - r.mean()) / r.std() / len(r) ** 0.5
    x, ranks = (
        standard(stats.rankdata(x)),
        np.split(standard(stats.rankdata(np.concatenate(y))), np.cumsum([*map(len, y)])[:-1]),
    )
    rng, rho = np.random.default_rng(0), x @ np.concatenate(ranks)
    exchanged = np.concatenate([rng.permuted(np.tile(r, (exchanges, 1)), axis=1) for r in ranks], 1) @ x
    return rho, (1 + (abs(exchanged) >= abs(rho) - 1e-9).sum()) / (1 + exchanges), len(x)


def curves(found):
    """The gain of COX over selftrain, what gains(records) found: over commonality, a line for each modality and
    number of pairs per class, and the other way round for the modalities that have several numbers; None where
    nothing was found."""
    if not found:
        return None
    by = {}  # {(modality, commonality, pairs per class): gains}
    for g in found:
        for (oom, _), v in zip(g["world"], g["gain"]):
            by.setdefault((oom, g["commonality"], g["per_class"]), []).append(v)
    ooms = sorted({k[0] for k in by})
    several = [oom for oom in ooms if len({k[2] for k in by if k[0] == oom}) > 1]
    figure, axes = grid(1 + bool(several), width=4.6, height=3.2)
    for ax, x, other, shown, words in zip(axes, (1, 2), (2, 1), (ooms, several), ("pairs per class", "commonality")):
        lines = {
            line: {k[x]: by[k] for k in sorted(by) if (k[other], k[0]) == line}
            for line in sorted({(k[other], k[0]) for k in by if k[0] in shown})
        }  # a line for each of these
        values = sorted({value for value, _ in lines})
        one = len(values) == 1
        shades = colormaps["viridis"](np.linspace(0, 0.85, len(lines if one else values)))
        for n, ((value, oom), some) in enumerate(lines.items()):
            mean = [mean_sd(v) for v in some.values()]
            error = [100 * (s or 0) / math.sqrt(len(v)) for (_, s), v in zip(mean, some.values())]
            ax.errorbar(
                [*some],
                [100 * m for m, _ in mean],
                error if any(error) else None,
                marker=".xs^v+*"[ooms.index(oom) % 7],
                lw=1.3,
                markersize=4,
                elinewidth=0.7,
                color=shades[n if one else values.index(value)],
                label=f"{value:g}" + f" ({oom})" * (len(ooms) > 1),
            )
        if one and len(lines) > 2:  # what the modalities gain on the average
            at = sorted(set.intersection(*map(set, lines.values())))
            mean = [mean_sd([mean_sd(some[a])[0] for some in lines.values()])[0] for a in at]
            ax.errorbar(at, [100 * m for m in mean], color="black", lw=2.5, label=f"{values[0]:g} (mean)")
        ax.axhline(0, color="#999", lw=0.8)
        ax.legend(title=words, title_fontsize=7, fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    plain(axes[0], "", "commonality of the modalities", "COX − selftrain, points")
    if several:
        plain(axes[1], "", "pairs per class", "")
        axes[1].set_xscale("log", base=2)
        ticks = sorted({k[2] for k in by if k[0] in several})
        axes[1].set_xticks(ticks, [str(t) for t in ticks])
        axes[1].minorticks_off()
    return figure
