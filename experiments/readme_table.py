"""Write the result tables of experiments/results/*/table.json into README.md, between its two markers.

    python experiments/readme_table.py

One row per data set and OOM modality, one column per method, mean ± sd (n - 1) over seeds; nothing is typed by hand.
"""
import json
from pathlib import Path
from statistics import mean, stdev

HERE = Path(__file__).resolve().parent
METHODS = ("random", "erm", "selftrain", "cox")
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"


def cell(values):
    return "" if not values else f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def gap(records, when):
    found = [r["metrics"]["agreement"][when]["gap"] for r in records if r["metrics"]["agreement"]]
    return cell([100 * g for g in found if g is not None])


def main():
    rows, seeds, commits = {}, set(), []
    for path in sorted(HERE.glob("results/*/table.json")):
        for r in json.loads(path.read_text()):
            rows.setdefault((r["data"], r["oom"], r["setting"], r["labels"]), {}).setdefault(r["method"], []).append(r)
            seeds.add(r["seed"])
        commits.append(f"`{path.parent.name}`: {(path.parent / 'COMMAND').read_text().strip()}")
    lines = ["| data | new sensor | labels | " + " | ".join(METHODS) + " | gap before | gap after |",
             "|:--|:--|--:|" + "--:|" * (len(METHODS) + 2)]
    for (data, oom, setting, labels), by in sorted(rows.items(), key=lambda r: (r[0][2], r[0])):
        accuracy = [cell([100 * r["metrics"]["accuracy"] for r in by.get(m, [])]) for m in METHODS]
        share = f"{100 * labels:g}%" if setting == "semi" else "none"
        lines.append(f"| {data} | {oom} | {share} | " + " | ".join(accuracy)
                     + f" | {gap(by['cox'], 'before')} | {gap(by['cox'], 'after')} |")
    lines += ["", f"Test accuracy in %, mean ± sd over seeds {', '.join(map(str, sorted(seeds)))}. `selftrain` has COX's "
              "losses and schedule without other modalities. Gap: COX's accuracy on unlabelled items whose modalities agree "
              "minus that on the others, before and after exploration. Without labels (`none`, `--init literal`) COX stays at "
              "chance. The digits' pairs are drawn within a class, the other worlds' are true.  ", "  \n".join(commits)]
    readme = HERE.parent / "README.md"
    text = readme.read_text()
    head, rest = text.split(BEGIN)
    readme.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END)[1])


if __name__ == "__main__":
    main()
