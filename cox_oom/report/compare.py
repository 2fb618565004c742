"""Two runs, or two folders of runs, side by side: evaluate.py --compare A B.

A side is METHOD.pt, METHOD.json, or a folder with such files at any depth. Its records are what METHOD.json holds; a
METHOD.pt that is not evaluated has flags and curves alone.
"""

import html
import json
from pathlib import Path
from typing import Any

from cox_oom import files
from cox_oom.files import UserError
from cox_oom.methods import METHODS
from cox_oom.report.records import flat, read_record, write_text
from cox_oom.report.scores import mean_sd, order, score
from cox_oom.report.tables import markdown

Record = dict[str, Any]
RUN = ("data", "fingerprint", "perceptor", "oom", "setting", "method", "seed", "n_labelled", "paired", "torch")
METRICS = {  # in the order of the rows: words, by what a number is multiplied
    "accuracy": ("test accuracy, %", 100),
    "balanced_accuracy": ("balanced test accuracy, %", 100),
    "hungarian_accuracy": ("Hungarian-matched accuracy, %", 100),
    "nmi": ("NMI, × 100", 100),
    "val_accuracy": ("validation accuracy, %", 100),
    "unlabelled": ("accuracy on unlabelled training items, %", 100),
    "warm_accuracy": ("accuracy of the warm start, %", 100),
    "agreement.before.share": ("heads agree before, %", 100),
    "agreement.before.label_accuracy": ("their labels right before, %", 100),
    "agreement.after_own.share": ("heads agree after, %", 100),
    "agreement.after_own.label_accuracy": ("their labels right after, %", 100),
    "trust.gain": ("gain of correspondences, nat", 1),
    "calibration.ece": ("calibration error, %", 100),
    "retrieval.out.category.r1": ("category R@1, OOM → IM, %", 100),
    "retrieval.out.instance.r1": ("instance R@1, OOM → IM, %", 100),
    "seconds": ("seconds of stage 3", 1),
}


def read_run(folder: Path, method: str) -> Record:
    """The record of a run. Where METHOD.json is missing or of an earlier METHOD.pt: what METHOD.pt says, without
    metrics."""
    path, known = folder / f"{method}.pt", read_record(folder / f"{method}.json")
    if not path.exists():
        if known is None:
            raise UserError(f"{path.with_suffix('.json')} is damaged or of another version; run evaluate.py again")
        return known
    run = files.load(path, keys=("history",), content=False)
    meta = run["meta"]
    if known and known["made_from"] == {method: meta["digest"]}:
        return known
    connect = folder / "connect.pt"
    given = files.load(connect, content=False)["meta"]["args"] if connect.exists() else {}
    return {
        **{k: meta.get(k) for k in RUN},
        **{k: meta["args"].get(k) for k in ("perceptor", "oom", "setting", "seed")},
        "method": method,
        "args": meta["args"],
        "connect_args": given,
        "history": run["history"],
        "seconds": meta.get("seconds"),
        "metrics": {},
    }


def read_side(text: str) -> list[Record]:
    """The records of one side, sorted by method. UserError where there is none."""
    path = Path(text)
    if path.is_dir():
        found = {(p.parent, p.stem) for kind in ("pt", "json") for p in path.rglob(f"*.{kind}")}
        found = {(f, m) for f, m in found if m.partition("-")[0] in METHODS and "." not in m}
    else:
        found = {(path.parent, path.stem)} if path.suffix in (".pt", ".json") and path.exists() else set()
    if not found:
        raise UserError(f"--compare {text}: no run; name a METHOD.pt, a METHOD.json or a folder that has some")
    runs = [read_run(f, m) for f, m in sorted(found, key=lambda k: (str(k[0]), k[1]))]
    return sorted(runs, key=lambda r: order(r["method"]))


def flag_rows(sides: list[list[Record]]) -> list[list[str]]:
    """[[where, flag, of A, of B]] of all that differs between two sides; several values of a side are all named."""
    rows = []
    plain = lambda v: "–" if v is None else v if isinstance(v, str) else json.dumps(v)
    for where, part in (("run", None), ("stage 2", "connect_args"), ("stage 3", "args")):
        of = lambda r: r if part is None else (r.get(part) or {})
        names = RUN if part is None else sorted({k for side in sides for r in side for k in of(r)} - {*RUN, "tag"})
        for name in names:
            short = slice(8) if name == "fingerprint" else slice(None)
            a, b = (sorted({plain(of(r).get(name))[short] for r in side}) for side in sides)
            if a != b:
                flag = name if part is None else "--" + name.replace("_", "-")
                rows.append([where, flag, ", ".join(a), ", ".join(b)])
    return rows


def value(r: Record, metric: str) -> float | None:
    """A number of a record by its name in METRICS, None where it has none."""
    if metric == "seconds":
        return r.get("seconds")
    if metric == "unlabelled" or metric.startswith("retrieval."):
        return score(r, metric) if r["metrics"] else None
    return flat(r["metrics"]).get(metric)


def number(values: list[float], sign: str = "") -> str:
    """ "84.1 ± 1.2" of numbers, without ± of one."""
    mean, sd = mean_sd(values)
    return f"{mean:{sign}.1f}" + (f" ± {sd:.1f}" if sd is not None else "")


def groups(sides: list[list[Record]]) -> list[tuple[str, list[list[Record]]]]:
    """[(name, [records of A, of B])]: by method, or all at once where each side has one alone."""
    names = [list(dict.fromkeys(r["method"] for r in side)) for side in sides]
    if len(names[0]) == len(names[1]) == 1:
        return [(" → ".join(dict.fromkeys([*names[0], *names[1]])), sides)]
    both = [m for m in names[0] if m in names[1]]
    return [(m, [[r for r in side if r["method"] == m] for side in sides]) for m in both]


def difference(a: list[tuple[Record, float]], b: list[tuple[Record, float]]) -> list[float]:
    """B − A of numbers of records: of each pair where both sides have the same data, sensor and seeds once, else of
    the means alone."""
    key = lambda r: tuple(str(r.get(k)) for k in ("data", "oom", "perceptor", "setting", "seed"))
    one, other = ({key(r): v for r, v in side} for side in (a, b))
    if one.keys() == other.keys() and len(one) == len(a) and len(other) == len(b):
        return [other[k] - one[k] for k in one]
    return [mean_sd([v for _, v in b])[0] - mean_sd([v for _, v in a])[0]]


def metric_rows(name: str, sides: list[list[Record]]) -> list[list[str]]:
    """[[method, metric, of A, of B, B − A]] of the metrics that both sides have."""
    rows = []
    for metric, (words, factor) in METRICS.items():
        a, b = ([(r, v * factor) for r in side if (v := value(r, metric)) is not None] for side in sides)
        if a and b:
            texts = [number([v for _, v in side]) for side in (a, b)]
            rows.append([name, words, *texts, number(difference(a, b), "+")])
    return rows


def class_block(sides: list[list[Record]]) -> list[dict[str, Any]]:
    """[the block of the classes' accuracies], or [] where the sides have other classes or none."""
    found = [[r["metrics"].get("per_class") or {} for r in side] for side in sides]
    names = list(found[0][0])
    if not names or any(list(p) != names for side in found for p in side):
        return []
    rows = []
    for name in names:
        a, b = ([100 * p[name] for p in side if p[name] is not None] for side in found)
        if a and b:
            rows.append([name, number(a), number(b), f"{mean_sd(b)[0] - mean_sd(a)[0]:+.1f}"])
    return [{"title": "Accuracy of each class, %", "header": ["class", "A", "B", "B − A"], "rows": rows, "notes": []}]


def metric_notes(sides: list[list[Record]], shared: list[str]) -> list[str]:
    """The lines under the metrics; shared: the methods that are compared."""
    notes = ["Several runs: mean ± sd (n − 1). B − A is paired where both sides have the same data, sensor and seeds."]
    counts = [r["metrics"]["n_test"] for side in sides for r in side if "n_test" in r["metrics"]]
    if counts:
        error = 100 * (0.16 / min(counts)) ** 0.5
        notes.append(
            f"An accuracy of 80% over {min(counts)} test items has a standard error of {error:.1f} points. "
            f"Compare several seeds before you trust a difference."
        )
    for letter, side in zip("AB", sides):
        if any(not r["metrics"] for r in side):
            notes.append(f"{letter} has runs that are not evaluated; evaluate.py --data D gives their metrics.")
    alone = sorted({r["method"] for side in sides for r in side} - {*shared})
    return notes + ([f"On one side alone: {', '.join(alone)}."] if alone else [])


def blocks(sides: list[list[Record]], paths: list[str]) -> list[dict[str, Any]]:
    """The tables of two sides."""
    shared, differ = groups(sides), flag_rows(sides)
    notes = [f"{a}: {path}, {len(side)} run{'s' * (len(side) > 1)}." for a, path, side in zip("AB", paths, sides)]
    notes += [] if differ else ["Flags, data, seed and versions are the same."]
    rows = [row for name, both in shared for row in metric_rows(name, both)]
    methods = [r["method"] for _, both in shared for side in both for r in side]
    return [
        {"title": "What differs", "header": ["where", "flag", "A", "B"], "rows": differ, "notes": notes},
        {
            "title": "Metrics",
            "header": ["method", "metric", "A", "B", "B − A"],
            "rows": rows,
            "notes": metric_notes(sides, methods),
        },
        *(class_block(shared[0][1]) if len(shared) == 1 else []),
    ]


def curves(sides: list[list[Record]]) -> Any:
    """A figure of each term of the loss and the validation accuracy over the epochs, mean over a side's runs; None
    where no run has an epoch."""
    from cox_oom.report import plots

    rows = [[r for r in side if r["history"]] for side in sides]
    keys = list(dict.fromkeys(k for side in rows for r in side for k in r["history"][0] if k != "epoch"))
    if not keys:
        return None
    figure, axes = plots.grid(len(keys), width=3.6, height=2.7, most=3)
    colour = plots.colours({r["method"] for side in rows for r in side})
    for ax, key in zip(axes, keys):
        for letter, style, plain, side in zip("AB", ("-", "--"), ("C0", "C1"), rows):
            for m in plots.method_names(side):
                mine = [r["history"] for r in side if r["method"] == m]
                runs = [[h[key] for h in history] for history in mine if all(key in h for h in history)]
                if runs:
                    n = min(map(len, runs))
                    mean = [sum(r[e] for r in runs) / len(runs) for e in range(n)]
                    look = {"color": colour[m] if len(colour) > 1 else plain, "marker": "." if n < 3 else ""}
                    ax.plot(range(1, n + 1), mean, style, lw=1.3, label=f"{letter} {m}", **look)
        plots.plain(ax, key, "epoch")
    axes[0].legend(fontsize=7, frameon=False)
    return figure


def compare(paths: list[str], out: str | None) -> None:
    """Print two sides' tables; with `out` write compare.html there, with the curves. UserError where a side has no
    run."""
    if out:
        files.optional("matplotlib", "the curves of --compare")  # said before anything is read
        files.writable(out)
    sides = [read_side(path) for path in paths]
    shown = blocks(sides, paths)
    print(markdown(shown))
    if not out:
        print("The curves: --out DIR writes DIR/compare.html.")
        return
    from cox_oom.report import page

    title = f"COX: {paths[0]} and {paths[1]}"
    words = "Each term of the loss and the validation accuracy by epoch, mean over a side's runs; A solid, B dashed."
    body = [f"<h1>{html.escape(title)}</h1>", *map(page.html_table, shown), page.picture(curves(sides), words)]
    write_text(Path(out) / "compare.html", page.whole_page(title, body))
    print(f"wrote {out}/compare.html with the curves")
