"""The report in a browser, on a phone's width and on a dark screen; the reliability plot."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
import torch
from records import record

from cox_oom.report import metrics, page, plots, tables

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SURVEY = """<script>
const f = document.querySelector('iframe'), w = f.contentWindow, d = w.document, root = d.documentElement;
const look = e => { const s = w.getComputedStyle(e); return [s.color, parseFloat(s.fontSize)]; };
const wide = [...d.querySelectorAll('.wide')];
document.title = JSON.stringify({
  page: [root.scrollWidth, root.clientWidth], paper: w.getComputedStyle(d.body).backgroundColor,
  text: [...d.querySelectorAll('h1,h2,h3,td,th,p,figcaption')].map(look),
  boxes: wide.map(e => [e.scrollWidth, e.clientWidth, e.getBoundingClientRect().right]),
  pictures: [...d.images].map(e => [e.alt, e.naturalWidth, e.getBoundingClientRect().width,
    w.getComputedStyle(e).filter])});
</script>"""


def calibration(ece=0.05):
    bins = [[c, c - 0.1, 10 * k + 5] for k, c in enumerate(np.linspace(0.4, 0.95, 5).tolist())]
    return {"ece": ece, "ece_before": 0.1, "temperature": 1.5, "bins": bins}


@pytest.fixture(scope="module")
def report():
    """A page with wide tables, several kinds of picture and long names."""
    records = []
    for method in ("erm", "cox"):
        for n in (20, 50, 100):
            r = record(0.5 + n / 400, method=method, labels=n / 4000, oom="a_sensor_with_a_very_long_name_" * 2)
            r["history"] = [{"epoch": e + 1, "loss": 1 / (e + 1), "val_accuracy": 0.5} for e in range(3)]
            a = metrics.agreement(
                torch.arange(9) % 2 == 0, torch.arange(9) % 3, torch.arange(9) % 3, torch.arange(9) % 3
            )
            r["metrics"] |= {"agreement": {"before": a, "after": a, "after_own": a}, "calibration": calibration()}
            records.append(r | {"n_labelled": n})
    return page.page(tables.tables(records), records, {}, "python evaluate.py --data " + "x" * 300)


def survey(report, folder, width, dark):
    """What a browser makes of the page in a window of that width."""
    if BROWSER is None:
        pytest.skip("no chromium here; the page was not looked at")
    frame = f'<iframe width={width} height=900 style="border:0" srcdoc="{html.escape(report)}"></iframe>'
    wrapper = folder / "frame.html"
    script = SURVEY.replace("<script>", "<script>onload = () => {").replace("</script>", "}</script>")
    wrapper.write_text(f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0">{frame}{script}</body>')
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}",
            f"--blink-settings=preferredColorScheme={0 if dark else 1}",
            "--window-size=1400,1000",
            "--virtual-time-budget=5000",
            "--dump-dom",
            wrapper.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    title = re.search(r"<title>(.*?)</title>", done.stdout.split("<iframe")[0], re.S)
    assert title, done.stderr[-2000:]
    return json.loads(html.unescape(title[1]))


def luminance(colour):
    """The relative luminance of "rgb(r, g, b)", as WCAG defines it."""
    c = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
    return float(np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722])


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_can_be_read(report, tmp_path, width, dark):
    seen = survey(report, tmp_path, width, dark)
    assert seen["page"][0] <= seen["page"][1] <= width  # the page itself never scrolls to the side
    assert all(right <= width for *_, right in seen["boxes"])
    if width == 390:
        assert any(inner > outer for inner, outer, _ in seen["boxes"])  # tables do, in boxes of their own
    assert (luminance(seen["paper"]) < 0.05) == dark
    assert all(contrast(colour, seen["paper"]) >= 4.5 and size >= 12 for colour, size in seen["text"])
    assert len(seen["pictures"]) >= 10
    for alt, natural, shown, look in seen["pictures"]:
        assert len(alt) > 20 and natural > 0 and shown >= 0.6 * natural and ("invert" in look) == dark


def test_every_picture_says_what_it_shows(report):
    pictures = re.findall(r"<img [^>]*>", report)
    assert pictures and all(re.search(r'alt="[^"]{20,}"', p) for p in pictures)
    assert '<meta name="viewport"' in report and "<script" not in report


# ------------------------------------------------------------------------------------------------------- reliability


def test_reliability_has_a_panel_for_each_method_with_its_error():
    records = [record(0.7, method=m, seed=s) for m in ("erm", "cox") for s in range(2)]
    for r, ece in zip(records, (0.02, 0.04, 0.1, 0.1)):
        r["metrics"]["calibration"] = calibration(ece)
    figure = plots.reliability(records)
    figure.draw_without_rendering()
    assert [ax.get_title() for ax in figure.axes] == ["erm, 2 seeds", "cox, 2 seeds"]
    said = [ax.get_legend().get_texts()[0].get_text() for ax in figure.axes]
    assert said == ["ECE 3.0 ± 1.4%", "ECE 10.0 ± 0.0%"]
    (points,) = figure.axes[0].collections
    np.testing.assert_allclose(points.get_offsets()[:5], [[100 * c, 100 * a] for c, a, _ in calibration()["bins"]])
    sizes = points.get_sizes()[:5]
    assert (np.diff(sizes) > 0).all()  # the bins with more items have larger points
    (line,) = figure.axes[0].lines
    assert line.get_xdata().tolist() == line.get_ydata().tolist() == [0, 100]


def test_reliability_is_left_out_where_nothing_is_calibrated():
    assert plots.reliability([record(0.7)]) is None
    r = record(0.7)
    r["metrics"]["calibration"] = {**calibration(), "bins": [[0.5, 0.5, 0], [0.9, 0.8, 7]]}
    figure = plots.reliability([record(0.6, method="erm"), r])
    (ax,) = figure.axes
    assert ax.collections[0].get_offsets().tolist() == [[90.0, 80.0]]  # an empty bin has no point
    text = page.page(tables.tables([r]), [r], {}, "")
    assert page.RELIABLE in html.unescape(text)
    assert page.RELIABLE not in html.unescape(page.page([], [record(0.7)], {}, ""))
