"""The report's figures, and the page around them."""

import subprocess
import sys
import warnings

import pytest
import torch
from records import record
from worlds import ROOT

from cox_oom.report import metrics, page, plots, scores, tables


def test_the_legend_of_the_bars_is_within_the_figure():
    every = tuple(scores.METHODS)
    tagged = (*every, "selftrain-plain", "cox-without-connection", "cox-without-exploration")
    for ooms, methods in (("a", every), ("a", every[:6]), ("abcd", every), ("a", tagged)):
        rows = [record(0.7 + 0.1 * s, method=m, oom=o, seed=s) for m in methods for o in ooms for s in range(2)]
        figure = plots.method_bars(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
        (legend,), (axes,) = figure.legends, figure.axes
        box, within = legend.get_window_extent(), axes.get_window_extent()
        assert [t.get_text() for t in legend.get_texts()] == sorted(methods, key=scores.order)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and within.y1 <= box.y0 and box.y1 <= figure.bbox.y1
        assert within.width > 0.85 * figure.bbox.x1


def test_names_are_drawn_as_they_are(monkeypatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *a, **k: pytest.fail("read as mathematics"))
    classes = ["$a_$", "$x^2$", "_b"]
    r = record(0.5, oom="$o$", data="$d_$")
    r["metrics"]["per_class"] = dict.fromkeys(classes, 0.5)
    r["metrics"]["connection"][0]["modality"] = "_imu"
    z, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    planes = plots.bank_planes({"classes": classes, "im": {"$m$": (z, y)}})
    curves, cells = plots.connection_curves([r]), plots.confusions([r])
    for figure in (planes, curves, cells, plots.method_bars([r]), plots.training_curves([r])):
        figure and figure.draw_without_rendering()
    assert [t.get_text().strip() for t in planes.legends[0].get_texts()] == classes
    assert [t.get_text() for t in cells.axes[0].get_yticklabels()] == classes
    assert [t.get_text().strip() for t in curves.axes[1].get_legend().get_texts()] == ["_imu"]


def test_names_that_no_font_has_do_not_warn():
    """In a process of its own, for pytest has filters of its own."""
    code = (
        "import logging; from cox_oom.report import plots; logging.basicConfig(); f, (ax,) = plots.grid(1); "
        "ax.set_title('杯子 フォーク 접시 \U0010fffd'); f.draw_without_rendering()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_plane_is_deterministic_and_ordered():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=g) * torch.tensor([9.0, 4, 1, 1, 1, 1])
    mean, axes = plots.plane(z)
    spread = ((z - mean) @ axes).std(0)
    assert spread[0] > spread[1] > 3 and torch.equal(axes, plots.plane(z)[1])
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    assert plots.plane(torch.randn(3, 1))[1].shape == (1, 2)
    assert plots.plane(torch.randn(1, 4))[1].shape == (4, 2)


def test_runs_with_a_tag_have_colours_of_their_own():
    tags = "kl-literal without-connection without-emergent kl-matched without-exploration refresh-once no-im two soft"
    methods = ["erm", "cox", *(f"cox-{tag}" for tag in tags.split())]
    colours = plots.colours(methods)
    assert list(colours) == methods and len(set(colours.values())) == len(methods)
    assert plots.colours(["cox"])["cox"] == colours["cox"]


def test_words_from_the_data_are_escaped():
    records = [record(0.5, oom="<b>&", data='x"y')]
    text = page.page(tables.tables(records), records, {}, "python <x>")
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text and "python &lt;x&gt;" in text


def test_captions_keep_their_capitals():
    records = [record(0.5)]
    y = torch.arange(6) % 3
    way = metrics.retrieval((torch.eye(6), y, list("abcdef")), (torch.eye(6), y, list("uvwxyz")), 3)
    records[0]["metrics"]["retrieval"] = {"rgb": {"out": way, "back": way}}
    text = page.page(tables.tables(records, "retrieval"), records, {}, "", "retrieval")
    assert "<figcaption>Category-level R@1, OOM → IM, mean and sd over seeds." in text
