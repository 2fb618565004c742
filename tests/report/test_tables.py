"""cox_oom/report/tables.py: rows, columns and cells, and what the notes below a table say."""

import numpy as np
import pytest
from records import record

from cox_oom.report import scores, tables


def row(block, *start):
    return next(r for r in block["rows"] if tuple(r[: len(start)]) == start)[len(start) :]


def test_mean_and_sd():
    three = [record(a, seed=i) for i, a in enumerate((0.80, 0.82, 0.87))]
    blocks = tables.tables([*three, record(0.7, method="erm"), record(0.99, method="aligned")])
    sd = np.std([80, 82, 87], ddof=1)
    assert row(blocks[0], "semi, 10% labels", "cox") == [f"**83.0 ± {sd:.1f}**"]
    assert row(blocks[0], "semi, 10% labels", "erm") == ["70.0 (n = 1)"]  # one seed: no sd
    assert row(blocks[0], "semi, 10% labels", "aligned") == ["99.0 (n = 1)"]  # sees all labels: never bold
    assert [r[1] for r in blocks[0]["rows"]] == ["erm", "cox", "aligned"]
    lucky = tables.tables([record(0.7, seed=0), record(0.8, seed=1), record(0.9, method="ssl", seed=1)])
    assert row(lucky[0], "semi, 10% labels", "cox") == ["**75.0 ± 7.1**"]  # one good seed is not the best method
    assert row(lucky[0], "semi, 10% labels", "ssl") == ["90.0 (n = 1)"]
    assert "over 3 seeds" in blocks[0]["notes"][0] and "chance 33.3%" in " ".join(blocks[0]["notes"])


def test_several_data_sets_and_modalities_are_columns():
    blocks = tables.tables([record(0.5), record(0.6, oom="pen"), record(0.7, data="other")])
    assert blocks[0]["header"] == ["setting", "method", "other sonar", "toy pen", "toy sonar"]
    assert row(blocks[0], "semi, 10% labels", "cox") == ["70.0", "60.0", "50.0"]


def test_a_note_names_all_columns_of_which_it_holds():
    columns = [record(0.5), record(0.6, oom="pen"), record(0.7, data="other"), record(0.5, oom="imu", seed=3)]
    notes = tables.tables(columns)[0]["notes"]
    assert "other sonar; toy imu, pen, sonar: perceptor bind; " in " ".join(notes)
    of_seeds = [n for n in notes if "; seeds " in n]
    assert len(of_seeds) == 2 and of_seeds[0].startswith("other sonar; toy pen, sonar, semi, 10% labels: ")
    assert of_seeds[1].startswith("toy imu, semi, 10% labels: ") and of_seeds[1].endswith("seeds 3.")


@pytest.mark.parametrize(
    "other, name",
    [
        ({"labels": 0.02}, "semi, 2% labels"),
        ({"per_class": 4}, "semi, 4 labels per class"),
        ({"paired": "class", "paired_by_class": ["rgb"]}, "semi, 10% labels, paired by class"),
    ],
)
def test_unlike_runs_are_not_averaged(other, name):
    blocks = tables.tables([record(0.5), record(0.9, seed=1, **other)])
    assert row(blocks[0], "semi, 10% labels", "cox") == ["50.0"] and row(blocks[0], name, "cox") == ["90.0"]
    notes = " ".join(blocks[0]["notes"])
    assert "not averaged" in notes and ("PAIRED BY CLASS" in notes) == ("paired" in other)


def test_the_perceptors_pairs_by_class_are_said_with_the_perceptor():
    one = record(0.5) | {"perceptor_paired_by_class": ["imu", "rgb"]}
    notes = " ".join(tables.tables([one])[0]["notes"])
    assert "perceptor's pairs drawn by class: imu, rgb" in notes and "pairs: true instances;" in notes
    assert scores.condition(one) == "semi, 10% labels"
    assert scores.pairing({"paired": "class", "paired_by_class": ["a"]}).endswith("within the class (a)")


def test_unlike_flags_are_said():
    notes = " ".join(tables.tables([record(0.5, epochs=2), record(0.6, method="erm", epochs=9)])[0]["notes"])
    assert "Not alike" in notes and "--epochs (2, 9)" in notes
    notes = " ".join(tables.tables([record(0.5, w_agree=1), record(0.6, seed=1, w_agree=2)])[0]["notes"])
    assert "the seeds of cox differ in --w-agree (1, 2)" in notes
    notes = " ".join(tables.tables([record(0.5), record(0.6, seed=1, w_agree=2)])[0]["notes"])
    assert "the seeds of cox differ in --w-agree (2, null)" in notes  # an option that came later
    for alike in (record(0.6, seed=1), record(0.1, method="random", epochs=50)):  # random has no training
        assert "Not alike" not in " ".join(tables.tables([record(0.5), alike])[0]["notes"])


def test_balanced_table_only_where_classes_are_skewed():
    def titles(*counts):
        return [b["title"] for b in tables.tables([record(0.5, counts=counts)])]

    assert not any("Balanced" in t for t in titles(10, 12, 14))
    assert any("Balanced" in t for t in titles(10, 12, 16))
    assert any("Balanced" in t for t in titles(0, 12, 12))


def test_unsup_runs_of_other_starts_are_not_averaged():
    unsup = dict(setting="unsup", labels=0.0, paired="none")
    blocks = tables.tables(
        [
            record(0.3, init="literal", **unsup),
            record(0.5, init="spectral", name_with=0, **unsup),
            record(0.7, init="spectral", name_with=1, **unsup),
        ]
    )
    assert [r[0] for r in blocks[0]["rows"]] == ["unsup", "unsup, spectral", "unsup, spectral, names by 1 per class"]
    assert scores.condition(record(0.5, holdout=0.3)) == "semi, 10% labels, 30% of them held out"
    assert scores.condition(record(0.5, labels=1.0)) == "semi, all labels"
    assert scores.condition(record(0.5, holdout=0.0)) == scores.condition(record(0.5)) == "semi, 10% labels"
    assert len(next(b for b in blocks if b["title"].startswith("Without labels"))["notes"]) == 3


def test_unsup_says_at_chance():
    unsup = dict(setting="unsup", labels=0.0, paired="none", counts=(100, 100, 100))

    def said(*accuracies):
        blocks = tables.tables([record(a, seed=i, **unsup) for i, a in enumerate(accuracies)])
        return next(b for b in blocks if b["title"].startswith("Without labels"))

    block = said(0.34, 0.37)
    assert block["header"] == ["setting", "method", "sonar accuracy", "sonar Hungarian", "sonar NMI"]
    assert block["rows"][0][2:] == ["35.5 ± 2.1", "50.0 ± 0.0", "25.0 ± 0.0"]
    assert "at chance" in block["notes"][0] and "chance is 33.3%" in block["notes"][0]
    assert "above chance by" in said(0.60, 0.62)["notes"][0]
    assert "at chance" in said(0.2, 0.9)["notes"][0]  # two seeds far apart prove nothing


def test_the_table_has_the_tests_and_tags_have_rows():
    records = [
        record(a + 0.01 * s, seed=s, method=m, data=d)
        for m, a in (("cox", 0.8), ("cox-soft", 0.7), ("erm", 0.6))
        for d in ("a", "b")
        for s in range(3)
    ]
    blocks = tables.tables([*records, record(0.9, seed=5, method="cox", data="a")])
    assert [r[1] for r in blocks[0]["rows"]] == ["erm", "cox", "cox-soft"]
    block = next(b for b in blocks if b["title"].startswith("COX against"))
    assert block["header"][:5] == ["setting", "method", "n", "columns ahead", "COX − method"]
    assert block["header"][5:] == ["p (t)", "p (Wilcoxon)", "p (columns)", "a", "b"]
    assert [r[:5] for r in block["rows"]] == [
        ["semi", "erm", "6", "2 of 2", "+20.0"],
        ["semi", "cox-soft", "6", "2 of 2", "+10.0"],
    ]


def test_why_cox_left_correspondences_out_stands_under_the_table():
    records = [record(0.5, seed=s) for s in range(3)] + [record(0.4, method="erm", seed=s) for s in range(3)]
    records[1]["metrics"]["fallback"] = {"code": "few_pairs", "pairs": 3, "least": 8, "im": ["rgb"]}

    def say():
        return [n for n in tables.column_notes(records, [("toy", "sonar")]) if "without correspondences" in n]

    assert say() == [
        "toy sonar, semi, 10% labels: cox without correspondences in 1 of 3 runs: 3 labelled items have a pair in all "
        "of rgb, 8 are needed."
    ]
    records[0]["metrics"]["trust"] = {"trusted": False}  # an earlier version's record does not say why
    records.append(record(0.4, method="cox-without-emergent"))
    (note,) = say()
    assert note.endswith(
        "cox without correspondences in 2 of 3 runs: correspondences do worse on held-out pairs than labels alone (1); "
        "3 labelled items have a pair in all of rgb, 8 are needed (1)."
    )
    records[2]["metrics"]["trust"] = {"trusted": True}
    assert "2 of 3" in say()[0]


def connection(r, *points, warm=0.8):
    r["metrics"]["connection"] = [{"modality": "rgb", "step": s, "mmd": m, "oom_accuracy": a} for s, m, a in points]
    r["metrics"]["warm_accuracy"] = warm
    return r


def test_fig5_table_by_hand():
    records = [
        connection(record(0.5, seed=0), (0, 0.5, 0.1), (30, 0.02, 0.7)),
        connection(record(0.5, seed=1), (30, 0.04, 0.8), (0, 0.7, 0.2)),
        connection(record(0.5, oom="pen"), (0, 0.5, 0.1), (30, 0.06, 0.7)),
    ]
    block = tables.connection_table(records, [("toy", "pen"), ("toy", "sonar")])
    pen, sonar = block["rows"]
    sd = f"{np.std([70, 80], ddof=1):.1f}"
    assert sonar[:2] == ["sonar", "semi, 10% labels"]
    assert sonar[2:] == ["rgb", "0.600", "0.030", "20.0×", f"15.0 ± {sd}", f"75.0 ± {sd}", "80.0 ± 0.0", "-5.0", "2"]
    assert pen[5] == "8.3×" and pen[9] == "-10.0"
    assert "tenfold or more for 1 of 2" in block["notes"][1]
    assert "learner for 1 of 2, on average -7.5 points" in block["notes"][1]


def agreeing(r, before, after):
    def part(gap):
        accuracies = {"agree_accuracy": 0.9, "disagree_accuracy": 0.9 - gap, "label_accuracy": 0.9}
        return {"share": 0.5, "gap": gap, **accuracies}

    r["metrics"]["agreement"] = {"before": part(before), "after": part(after), "after_own": part(after)}
    return r


def test_fig6_is_counted_over_the_columns():
    records = [
        agreeing(record(0.5, oom=o), b, a)
        for o, b, a in (("a", 0.4, 0.1), ("b", 0.4, 0.3), ("c", 0.05, 0.0), ("d", 0.2, 0.1))
    ]
    note = tables.gap_note(records, [("toy", o) for o in "abcd"])
    assert "10 points or more in 3 of 4 columns" in note and "in 2 of these, on average 0.50 of it." in note
    other = agreeing({**record(0.5, oom="a"), "data": "toy2"}, 0.2, 0.2)
    note = tables.gap_note([*records, other], [("toy", o) for o in "abcd"] + [("toy2", "a")])
    assert "4 of 5 columns" in note and "on average 0.62 (toy 0.50, toy2 1.00) of it" in note
    assert tables.gap_note(records[2:3], [("toy", "c")]).endswith("in 0 of 1 columns.")
