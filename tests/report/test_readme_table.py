"""experiments/readme_table.py: the tables of README.md and docs/method.md from the JSON."""

import json

import numpy as np
import readme_table
from records import record
from scipy import stats

from cox_oom.report import tests


def test_readme_table_is_made_from_the_json(tmp_path):
    def write(name, records, **more):
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps(records))
        (tmp_path / name / "COMMAND").write_text(f"`bash {name}.sh`\n")
        for file, content in more.items():
            (tmp_path / name / f"{file}.json").write_text(json.dumps(content))

    two = [record(0.8 + 0.02 * s, seed=s) for s in range(2)] + [record(0.7, method="erm", seed=s) for s in range(2)]
    two += [record(0.9, method="cox-kl-literal"), record(0.99, method="aligned")]
    write("table2", two, tests=tests.tests(two, "accuracy"))
    other = [record(a, data="other", oom=o) for a, o in ((0.4, "pen"), (0.2, "sonar"))]
    write("demo", [record(0.1), *other])  # toy: table2's
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{readme_table.BEGIN}\nold 99.9\n{readme_table.END}\nafter\n")
    write("table2_paired", two, tests=[t for m in ("accuracy", "unlabelled") for t in tests.tests(two, m)])
    method = tmp_path / "docs" / "method.md"
    method.parent.mkdir()
    method.write_text(readme.read_text())
    readme_table.main(readme, tmp_path)
    text = readme.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "99.9" not in text and "p (columns)" in text
    sd = f"{np.std([80, 82], ddof=1):.1f}"
    assert "| data | new sensors | labels | erm | cox | aligned | gap before | gap after |" in text
    assert f"| toy | sonar | 10% labels | 70.0 ± 0.0 | **81.0 ± {sd}** | 99.0 (n = 1) | – | – |" in text
    assert "| other | pen, sonar | 10% labels | – | **30.0** | – | – | – |" in text
    assert "| erm | semi | 2 | 1 of 1 | +11.0 |" in text and "cox-kl" not in text
    assert "`table2`: seeds 0, 1; `bash table2.sh`" in text and "retrieval" not in text
    page = method.read_text()
    assert page.startswith("before\n") and page.endswith("\nafter\n") and "99.9" not in page
    assert "| erm | test | semi | 2 | 1 of 1 | +11.0 | 0.058 | 0.5 | – | +11.0 |" in page and "unlabelled" not in page
    shared = {"out": {"category": {"r1": 0.5, "r5": 0.75, "chance_r1": 0.1, "chance_r5": 0.5}, "instance": None}}
    three = [record(0.5, method=m, seed=s) for s in range(2) for m in ("erm", "cox")]
    for r, extra in zip(three, (0.0, 0.125, 0.0, 0.25)):
        r["metrics"]["retrieval"] = {
            m: {"out": {"category": {**shared["out"]["category"], "r1": a + extra}, "instance": None}}
            for m, a in (("rgb", 0.5), ("imu", 0.25))
        }
    at_instance = {**shared["out"], "instance": {"r1": 0.5, "r5": 0.75, "chance_r1": 0.1, "chance_r5": 0.5}}
    drawn = [record(0.5, method="cox", data="digits", seed=s) for s in range(3)]  # within a class: no instances
    for r in drawn:
        r["metrics"]["retrieval"] = {"rgb": {"out": at_instance}}
    write("table3", three + drawn)
    unsup = [{**record(0.12 + 0.01 * s, setting="unsup", seed=s), "condition": "unsup, spectral"} for s in range(2)]
    write("unsup", [{k: v for k, v in r.items() if k != "args"} for r in unsup])  # as evaluate.py writes them
    readme_table.main(readme, tmp_path)
    text = readme.read_text()
    p = f"{stats.ttest_1samp([0.125, 0.25], 0).pvalue:.2g}"
    assert f"| erm | 37.5 ± 0.0 | **75.0 ± 0.0** | +18.8 ({p}, –) | – | – | – |" in text
    sd = f"{np.std([50, 56.25], ddof=1):.1f}"  # of the two seeds that have both columns
    assert f"| cox | **53.1 ± {sd}** | **75.0 ± 0.0** | – | – | – | – |" in text
    assert "| chance | 10 | 50 | – | – | – | – |" in text
    assert "| toy | sonar | unsup, spectral |" in text and "toy sonar, spectral: COX" in text


def test_readme_retrieval_of_instances():
    """Mean over the columns, spread over the seeds that have them all, fewer seeds marked, not bold, no drawn pairs."""

    def shown(data, method, seed, r1, oom="sonar"):
        def at(v):
            return {"r1": v, "r5": 0.75, "chance_r1": 0.02, "chance_r5": 0.1}

        r = record(0.5, method=method, seed=seed, data=data, oom=oom)
        r["metrics"]["retrieval"] = {"rgb": {"out": {"category": at(0.5), "instance": at(r1)}}}
        return r

    records = [
        shown("toy", m, s, v + 0.02 * s, oom)
        for m, v in (("selftrain", 0.1), ("cox", 0.3))
        for s in range(2)
        for oom in ("sonar", "imu")
    ]
    records += [shown("toy", "erm", 0, 0.9, oom) for oom in ("sonar", "imu")]  # one seed of two
    records += [shown("digits", m, s, 1.0) for m in ("selftrain", "cox", "erm") for s in range(2)]
    lines = readme_table.retrieval_lines(records)
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    cells = {row[0]: row[4:] for row in rows}
    sd = f"{np.std([30, 32], ddof=1):.1f}"
    assert cells["cox"] == [f"**31.0 ± {sd}**", "**75.0 ± 0.0**", "–"] and cells["chance"] == ["2", "10", "–"]
    assert cells["selftrain"] == [f"11.0 ± {sd}", "**75.0 ± 0.0**", "+20.0 (–, –)"]  # all differences alike
    assert cells["erm"] == ["90.0 (n = 1)", "75.0 (n = 1)", "-60.0 (–, –)"]
    assert lines[-1].endswith(f"COX against `selftrain`: toy 31.0 ± {sd} against 11.0 ± {sd}, 16 times chance.")
