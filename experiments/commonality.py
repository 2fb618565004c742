"""The experiment on commonality: the gain of COX over selftrain over what the modalities have in common and the pairs per
class, in tables and drawn. No files, no arguments; collect.py writes them for commonality.sh.
"""
import math

import numpy as np
from matplotlib import colormaps
from scipy import stats

from plots import grid, plain
from scores import mean_sd, percent, score

ON = {"accuracy": "test items", "unlabelled": "the unlabelled training items"}


def gains(records, metric="accuracy"):
    """[{commonality, per_class, world, cox, selftrain, gain}]: lists over the (OOM modality, fingerprint, seed) that both have,
    of one of `ON`; world is the first two of these, gain is COX − selftrain."""
    key = lambda r: (r.get("commonality"), r["per_class"])
    out = []
    for k in sorted({key(r) for r in records if r.get("commonality") is not None}):
        of = {m: {(r["oom"], r.get("fingerprint", ""), r["seed"]): score(r, metric) for r in records
                  if key(r) == k and r["method"] == m and score(r, metric) is not None} for m in ("cox", "selftrain")}
        both = sorted(of["cox"].keys() & of["selftrain"].keys())
        if both:
            cox, alone = ([of[m][i] for i in both] for m in ("cox", "selftrain"))
            out.append({"commonality": k[0], "per_class": k[1], "world": [i[:2] for i in both], "cox": cox,
                        "selftrain": alone, "gain": [a - b for a, b in zip(cox, alone)]})
    return out


def tables(records):
    """The gain of COX over selftrain by commonality (rows) and pairs per class (columns), on test items and on unlabelled ones,
    and both accuracies on test items."""
    found = gains(records)
    hidden = gains(records, "unlabelled")
    words = "COX − selftrain, points of accuracy on {}"
    return [block(words.format(ON["accuracy"]), "gain", found, notes(found)),
            *([block(words.format(ON["unlabelled"]), "gain", hidden, notes(hidden))] if hidden else []),
            block("COX, test accuracy, %", "cox", found), block("selftrain, test accuracy, %", "selftrain", found)]


def block(title, key, found, notes=()):
    """A table of what gains(records) found."""
    common, pairs = ([*sorted({g[k] for g in found})] for k in ("commonality", "per_class"))
    mine = lambda c, n: [v for g in found if (g["commonality"], g["per_class"]) == (c, n) for v in g[key]]
    return {"title": title, "header": ["commonality", *(f"{n} per class" for n in pairs)], "notes": [*notes],
            "rows": [[f"{c:g}", *(percent(mine(c, n)) for n in pairs)] for c in common]}


def notes(found):
    """What a table of gains averages over, and whether the gain grows with commonality and with the pairs."""
    ooms = sorted({o for g in found for o, _ in g["world"]})
    said = [f"Mean ± sd over seeds, OOM modalities ({', '.join(ooms)}) and worlds (--data-seed), "
            f"{' or '.join(map(str, sorted({len(g['gain']) for g in found})))} pairs of runs a cell."]
    for words, key, unit in (("commonality", "commonality", "of a modality in a world, whose runs share encoders and test "
                              "items, less the mean of that modality"),
                             ("the number of pairs", "per_class", "of a modality in a world with one number of pairs, less "
                              "the mean of that modality in that world")):
        by = {}                                          # {(what is compared within, x, world): gains}
        for g in found:
            for world, v in zip(g["world"], g["gain"]):
                within = world[0] if key == "commonality" else (g["commonality"], world)
                by.setdefault((within, g[key], world), []).append(v)
        mean = {k: mean_sd(v)[0] for k, v in by.items()}
        level = {w: mean_sd([m for k, m in mean.items() if k[0] == w])[0] for w, _, _ in mean}
        x, y = zip(*((k[1], m - level[k[0]]) for k, m in mean.items()))
        if len(set(x)) > 1 and max(y) - min(y) > 1e-12:
            rho = stats.spearmanr(x, y)
            said.append(f"Rank correlation of the gain with {words}: {rho.statistic:+.2f}, p = {rho.pvalue:.3g} "
                        f"(n = {len(x)} means, each {unit}).")
    return said


def curves(found):
    """The gain of COX over selftrain, what gains(records) found: over commonality, a line for each modality and number of pairs
    per class, and the other way round for the modalities that have several numbers; None where nothing was found."""
    if not found:
        return None
    by = {}                                                     # {(modality, commonality, pairs per class): gains}
    for g in found:
        for (oom, _), v in zip(g["world"], g["gain"]):
            by.setdefault((oom, g["commonality"], g["per_class"]), []).append(v)
    ooms = sorted({k[0] for k in by})
    several = [oom for oom in ooms if len({k[2] for k in by if k[0] == oom}) > 1]
    figure, axes = grid(1 + bool(several), width=4.6, height=3.2)
    for ax, x, other, shown, words in zip(axes, (1, 2), (2, 1), (ooms, several), ("pairs per class", "commonality")):
        values = sorted({k[other] for k in by if k[0] in shown})
        for colour_, value in zip(colormaps["viridis"](np.linspace(0, 0.85, len(values))), values):
            for oom, marker in zip(ooms, ".xs^v+*" * len(ooms)):
                some = {k[x]: by[k] for k in sorted(by) if k[0] == oom and k[other] == value and oom in shown}
                mean = [mean_sd(v) for v in some.values()]
                error = [100 * (s or 0) / math.sqrt(len(v)) for (_, s), v in zip(mean, some.values())]
                if some:
                    ax.errorbar([*some], [100 * m for m, _ in mean], error if any(error) else None, marker=marker, lw=1.3,
                                markersize=4, elinewidth=0.7, color=colour_, label=f"{value:g}" + f" ({oom})" * (len(ooms) > 1))
        ax.axhline(0, color="#999", lw=0.8)
        ax.legend(title=words, title_fontsize=7, fontsize=7, frameon=False)
    plain(axes[0], "", "commonality of the modalities", "COX − selftrain, points of accuracy")
    if several:
        plain(axes[1], "", "pairs per class", "")
        axes[1].set_xscale("log", base=2)
        ticks = sorted({k[2] for k in by if k[0] in several})
        axes[1].set_xticks(ticks, [str(t) for t in ticks])
        axes[1].minorticks_off()
    return figure
