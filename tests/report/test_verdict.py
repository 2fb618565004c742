"""cox_oom/report/verdict.py: intervals against scipy, what is more than noise, and the words."""

import numpy as np
import pytest
from records import record
from scipy import stats

from cox_oom.report import page, tables, verdict


def runs(seeds=(0,), items=120, history=(), trust=None, n_labelled=101, **shares):
    """Records of methods {name: share of right test items}, or {name: words of "0" and "1" by seed}."""
    out = []
    for method, share in shares.items():
        for s in seeds:
            if isinstance(share, float):
                right = np.random.default_rng([s, len(method)]).permutation(items) < round(share * items)
                word = "".join("01"[int(v)] for v in right)
            else:
                word = share[s]
            r = record(word.count("1") / len(word), method=method, seed=s, counts=(items // 2, items - items // 2))
            r |= {"correct": word, "history": list(history), "n_labelled": n_labelled}
            r["metrics"] |= {"n_test": len(word)} | ({"trust": trust} if trust and method == "cox" else {})
            out.append(r)
    return out


def said(records):
    return " ".join(verdict.blocks(records)[0]["notes"])


def test_the_interval_of_one_seed_is_the_binomial_one():
    found = verdict.draws(runs(cox=0.8, items=400))["cox"]
    low, high = verdict.interval(found)
    exact = stats.binomtest(320, 400).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((exact.low, exact.high), abs=0.01)


def test_seeds_are_drawn_too():
    """Seeds far apart make a mean unsure, however many test items there are."""
    narrow, wide = (
        verdict.draws(runs((0, 1, 2), cox=["1" * k + "0" * (1000 - k) for k in of]))["cox"].std()
        for of in ((500, 500, 500), (300, 500, 700))
    )
    assert wide > 3 * narrow and wide == pytest.approx(np.std([0.3, 0.5, 0.7]) / 3**0.5, rel=0.1)


def test_differences_are_paired_by_item():
    """Two methods that err on the same items, but for ten of 200: sure. On items of their own: not."""
    a, b = "1" * 150 + "0" * 50, "1" * 140 + "0" * 60
    assert verdict.clear_best(runs(cox=[a], erm=[b])) == "cox"
    assert verdict.clear_best(runs(cox=[a], erm=["0" * 60 + "1" * 140])) is None
    assert verdict.clear_best(runs(cox=["1" * 31 + "0" * 9], erm=["1" * 30 + "0" * 10])) is None  # one item


def test_raw_comes_first_where_it_wins():
    text = said(runs((0, 1, 2), raw=0.97, cox=0.62, selftrain=0.65, erm=0.6))
    assert text.startswith("toy sonar, semi, 10% labels: raw, which trains no network, is best with 96.7%")
    assert "ahead of selftrain, the next, by 31.7 points" in text and "more than noise" in text
    assert (
        "cox reaches 61.7%: behind by 35.0 points" in text and "take raw" in text and "120 test items, 3 seeds" in text
    )


def test_the_distance_of_cox_and_raw_is_always_said():
    text = said(runs(selftrain=0.95, cox=0.9, raw=0.8))
    assert "cox is ahead of raw by 10.0 points" in text


def test_advice_follows_the_records():
    rising = [{"epoch": e, "loss": 1.0, "val_accuracy": e / 20} for e in range(20)]
    flat = [{**h, "val_accuracy": 0.5} for h in rising]
    assert "Train longer: validation of erm, cox was still rising" in said(runs(cox=0.9, erm=0.5, history=rising))
    assert "Train longer" not in said(runs(cox=0.9, erm=0.5, history=flat))
    assert "--holdout" in said(runs(raw=0.9, erm=0.5, history=[{"epoch": 1, "loss": 1.0}]))
    assert "Label more: 12 labels" in said(runs(cox=0.9, n_labelled=12))
    assert "Label more" not in said(runs(cox=0.9))
    assert "in 0 of 1 runs" in said(runs(cox=0.9, erm=0.5, trust={"trusted": False}))
    nothing, much = ({"trusted": True, "gain": g, "error": 0.005} for g in (0.001, 0.3))
    assert "nothing beyond noise: gain +0.001 nat" in said(runs(cox=0.9, erm=0.5, trust=nothing))
    assert "nat" not in said(runs(cox=0.9, erm=0.5, trust=much))
    assert "more seeds would tell" in said(runs(cox=0.51, erm=0.5))


def test_records_that_do_not_say_which_items_were_right():
    old = [record(0.9), record(0.5, method="erm")]
    assert verdict.clear_best(old) is None and "cannot be told" in said(old)
    other = runs(cox=0.9, erm=0.5)
    other[1]["fingerprint"] = "e" * 64  # other test items: nothing is paired
    assert verdict.draws(other) is None


def test_tables_bold_what_is_more_than_noise_and_mark_what_was_rising():
    cells = lambda rs: {r[1]: r[2] for r in tables.tables(rs)[0]["rows"]}
    assert cells(runs(cox=0.9, erm=0.5)) == {"erm": "50.0", "cox": "**90.0**"}
    assert cells(runs(cox=0.51, erm=0.5)) == {"erm": "50.0", "cox": "50.8"}
    rising = [{"epoch": e, "loss": 1.0, "val_accuracy": e / 20} for e in range(20)]
    block = tables.tables(runs(cox=0.9, erm=0.5, history=rising))[0]
    assert {r[1]: r[2] for r in block["rows"]} == {"erm": "50.0 ↑", "cox": "**90.0** ↑"}
    assert any("still rising" in n for n in block["notes"]) and any("more than noise" in n for n in block["notes"])
    assert "<b>90.0 ↑</b>" in page.html_table(block)


def test_the_verdict_has_no_table_around_it():
    (block,) = verdict.blocks(runs(cox=0.9, erm=0.5))
    assert "|" not in tables.markdown([block]) and tables.markdown([block]).startswith("## Verdict\n\ntoy sonar")
    assert "<table" not in page.html_table(block) and "<p>toy sonar" in page.html_table(block)
