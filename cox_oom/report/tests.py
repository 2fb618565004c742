"""COX against every other method, paired by seed and column: the tests and their table. No files, no arguments."""

from collections.abc import Sequence
from typing import Any

from cox_oom.files import optional
from cox_oom.report.scores import condition, mean_sd, order, score


def tests(
    records: list[dict[str, Any]], metric: str, rivals: Sequence[str] = ("erm", "entmin", "moco")
) -> list[dict[str, Any]]:
    """COX against each other method but `aligned`, paired by seed and column (data set, OOM modality, labels).

    [{setting, against, n, columns, ahead, mean, t_p, wilcoxon_p, columns_p, by_data}]: differences COX − other as
    fractions, mean over all n pairs and by data set; two-sided p of the paired t-test and of Wilcoxon's signed ranks
    over the pairs, and of the t-test over the means of the columns, whose runs share their test items; None where
    there are too few or they are all alike; `ahead` counts the columns in which COX's mean is higher. The last line
    of a setting is the best of `rivals`, chosen for each column by its mean."""
    stats = optional("scipy.stats", "testing differences between methods")
    out = []
    for setting in sorted({r["setting"] for r in records}):
        values: dict[str, dict[tuple[str, ...], float]] = {}
        for r in records:
            if r["setting"] == setting and (v := score(r, metric)) is not None:
                values.setdefault(r["method"], {})[r["data"], r["oom"], condition(r), r["seed"]] = v
        cox = values.pop("cox", {})
        others = {m: values[m] for m in sorted(values, key=order) if m != "aligned"}
        best = [others[m] for m in rivals if m in others]
        if len(best) > 1:
            shared, chosen = set.intersection(*map(set, best)), {}
            for column in {k[:3] for k in shared}:
                at = [k for k in shared if k[:3] == column]
                top = max(best, key=lambda of: sum(of[k] for k in at))
                chosen.update({k: top[k] for k in at})
            others[f"best of {', '.join(m for m in rivals if m in others)}"] = chosen
        for name, other in others.items():
            keys = sorted(cox.keys() & other.keys())
            gap = [cox[k] - other[k] for k in keys]
            mean_by = lambda part: {
                p: mean_sd([g for g, k in zip(gap, keys) if part(k) == p])[0] for p in dict.fromkeys(map(part, keys))
            }
            alike = lambda v: len(v) < 2 or max(v) - min(v) < 1e-12
            t_test = lambda v: None if alike(v) else float(stats.ttest_1samp(v, 0).pvalue)
            by_column = list(mean_by(lambda k: k[:3]).values())
            if gap:
                out.append(
                    {
                        "setting": setting,
                        "against": name,
                        "metric": metric,
                        "n": len(gap),
                        "mean": mean_sd(gap)[0],
                        "columns": len(by_column),
                        "ahead": sum(v > 0 for v in by_column),
                        "t_p": t_test(gap),
                        "wilcoxon_p": None if alike(gap) else float(stats.wilcoxon(gap).pvalue),
                        "columns_p": t_test(by_column),
                        "by_data": mean_by(lambda k: k[0]),
                    }
                )
    return out


def tests_table(records: list[dict[str, Any]], metric: str, words: str) -> list[dict[str, Any]]:
    """[the block of tests(records, metric)], or [] where COX has nothing beside it."""
    found = tests(records, metric)
    datas = sorted({d for t in found for d in t["by_data"]})
    show = lambda p: "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
    rows = [
        [
            t["setting"],
            t["against"],
            str(t["n"]),
            f"{t['ahead']} of {t['columns']}",
            f"{100 * t['mean']:+.1f}",
            show(t["t_p"]),
            show(t["wilcoxon_p"]),
            show(t["columns_p"]),
            *(f"{100 * t['by_data'][d]:+.1f}" if d in t["by_data"] else "–" for d in (datas if len(datas) > 1 else ())),
        ]
        for t in found
    ]
    return (
        [
            {
                "title": f"COX against each method, paired: {words}, points",
                "rows": rows,
                "header": [
                    "setting",
                    "method",
                    "n",
                    "columns ahead",
                    "COX − method",
                    "p (t)",
                    "p (Wilcoxon)",
                    "p (columns)",
                    *(datas if len(datas) > 1 else ()),
                ],
                "notes": [
                    "n: pairs of runs with the same seed (labelled items, start) and column; two-sided p of the paired "
                    "t-test and of Wilcoxon's signed ranks over them: would other labelled items give the same. The "
                    "runs of a column share their test items; p (columns), of the t-test over the means of the "
                    "columns: would other sensors."
                ],
            }
        ]
        if rows
        else []
    )
