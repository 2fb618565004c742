"""Stage 4's page: results.py's tables and plots.py's figures in one HTML file. No files, no arguments.

A record is what METHOD.json holds (evaluate.py); page(...) -> one HTML page. Figures are PNG inside it, nothing is
fetched."""

import base64
import html
import io
import time

import torch

from cox_oom.report.learning import best, predicted
from cox_oom.report.learning import words as told
from cox_oom.report.plots import (
    agreement_bars,
    bank_planes,
    confusions,
    connection_curves,
    learning_curves,
    method_bars,
    oom_planes,
    reliability,
    training_curves,
)
from cox_oom.report.scores import condition
from cox_oom.report.tables import word_columns


def picture(figure, words):
    """A figure as an <img> whose PNG lies in the page, in a box of its own that scrolls where it is too wide."""
    if figure is None:
        return ""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=120, metadata={"Software": None})
    say = html.escape(words)
    data = base64.b64encode(png.getvalue()).decode()
    size = f'style="--w:{round(100 * figure.get_figwidth())}px"'  # 100 pixels of a screen for an inch
    img = f'<img alt="{say}" {size} src="data:image/png;base64,{data}">'
    return f"<figure><div class=wide tabindex=0>{img}</div><figcaption>{say}</figcaption></figure>"


def html_table(block):
    def inner(text):
        bold = text.startswith("**")
        text = html.escape(text.replace("**", "") if bold else text.strip("*"))
        return f"<b>{text}</b>" if bold else text

    words = word_columns(block)
    start = lambda tag, word: f"<{tag} class=w>" if word else f"<{tag}>"
    cells = lambda row, tag: [f"{start(tag, w)}{inner(t)}</{tag}>" for t, w in zip(row, words)]
    line = lambda row, tag: "<tr>" + "".join(cells(row, tag)) + "</tr>"
    if not block["header"]:
        lines = "".join(f"<p>{html.escape(n)}</p>" for n in block["notes"])
        return f"<h2>{html.escape(block['title'])}</h2>{lines}"
    return (
        f"<h2>{html.escape(block['title'])}</h2>"
        f"<div class=wide tabindex=0><table><thead>{line(block['header'], 'th')}</thead><tbody>"
        + "".join(line(r, "td") for r in block["rows"])
        + "</tbody></table></div>"
        + "".join(f"<p class=note>{html.escape(n)}</p>" for n in block["notes"])
    )


# Colours are named once and given again for dark screens; pictures are turned dark with their hues kept. Tables and
# pictures scroll in boxes of their own, so that the page itself never does; a picture shrinks to 3/4 before its box
# scrolls, so that its letters can be read on a phone.
STYLE = """:root{color-scheme:light dark;--ink:#222;--soft:#555;--paper:#fafafa;--line:#e3e3e3;--rule:#999}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper)}
body{max-width:1080px;margin:2em auto;padding:0 1.2em;overflow-wrap:anywhere}
h1{font-size:1.5em}h2{font-size:1.12em;margin:2em 0 .5em}h3{font-size:1em;margin:1.6em 0 .3em}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}.wide{overflow-x:auto}
th,td{padding:.22em .8em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th.w,td.w{text-align:left}
thead th{border-bottom:2px solid var(--rule);font-weight:600}.note{margin:.25em 0;color:var(--soft);font-size:13px}
figure{margin:.8em 0 1.6em}img{display:block;width:var(--w);max-width:max(100%,.75*var(--w));background:#fff}
figcaption{color:var(--soft);font-size:13px}
footer{margin-top:3em;border-top:1px solid var(--line);color:var(--soft);font-size:12px}
@media(max-width:600px){body{margin:1em auto;padding:0 .8em}th,td{padding:.22em .5em}}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#aaa;--paper:#181818;--line:#3a3a3a;--rule:#777}
img{filter:invert(.9) hue-rotate(180deg)}}"""

BARS = {
    "classification": [("accuracy", "test accuracy")],
    "retrieval": [
        ("retrieval.out.category.r1", "category-level R@1, OOM → IM"),
        ("retrieval.out.instance.r1", "instance-level R@1, OOM → IM"),
    ],
}
CONFUSION = "Confusion on the test items, summed over seeds; rows add to 100%."
CONNECT = (
    "Connecting (Fig. 5): the gap between mapped IM items and OOM items, and what heads trained on "
    "the mapped items alone know of OOM items."
)
EXPLORE = (
    "Exploring (Fig. 6): accuracy on unlabelled training items on which the heads agreed or disagreed "
    "before exploration, before and after it."
)
RELIABLE = (
    "Reliability on the test items: how many named with a confidence are right. On the dashed line confidence means "
    "what it says. A larger point stands for more items; ECE is the mean distance from the line."
)
LEARN = (
    "Labels and accuracy, mean and sd over seeds; the dashed curves are fitted power laws, the open points what they "
    "predict for twice as many labels."
)
BANKS = "Frozen features of the IM training items, each in its bank's first two principal components."
PLANE = (
    "first two principal components of its OOM test items; the IM items that its connections map there, "
    "over the test items in grey."
)


def page(blocks, records, clouds, command, task="classification"):
    """report.html as a string. clouds: {(data, perceptor, oom, condition): what evaluate.cloud returns}."""
    body = [
        "<h1>COX: " + html.escape(", ".join(sorted({r["data"] for r in records}))) + "</h1>",
        *map(html_table, blocks),
    ]
    for perceptor in sorted({r["perceptor"] for r in records}):
        body += learning([r for r in records if r["perceptor"] == perceptor], task)
        for k in sorted({condition(r) for r in records}):
            rows = [r for r in records if r["perceptor"] == perceptor and condition(r) == k]
            if rows:
                body.append(f"<h2>{html.escape(f'{k} (perceptor {perceptor})')}</h2>")
                body += [
                    picture(method_bars(rows, metric, words), f"{words[0].upper()}{words[1:]}, mean and sd over seeds.")
                    for metric, words in BARS[task]
                ]
            for data, oom in sorted({(r["data"], r["oom"]) for r in rows}):
                some = [r for r in rows if (r["data"], r["oom"]) == (data, oom)]
                body += [
                    f"<h3>{html.escape(f'{data}: {oom} left out of the perceptor')}</h3>",
                    picture(training_curves(some), "Training curves, mean over seeds."),
                    picture(confusions(some), CONFUSION),
                    picture(connection_curves(some), CONNECT),
                    picture(agreement_bars(some), EXPLORE),
                    picture(reliability(some), RELIABLE),
                ]
                cloud = clouds.get((data, perceptor, oom, k))
                if cloud:
                    learner = f"Features of the learner ({cloud['method']}, seed {cloud['seed']}) in the "
                    body += [picture(bank_planes(cloud), BANKS), picture(oom_planes(cloud), learner + PLANE)]
    prints = "; ".join(f"{d} {f[:16]}" for d, f in sorted({(r["data"], r["fingerprint"]) for r in records}))
    facts = " · ".join(
        [
            command,
            time.strftime("%Y-%m-%d %H:%M"),
            f"torch {torch.__version__}",
            f"data {prints}",
            f"{len(records)} runs",
        ]
    )
    body.append(f"<footer><p>{html.escape(facts)}</p></footer>")
    return whole_page("COX report", body)


def learning(records, task):
    """The pictures of labels and accuracy, where runs have several numbers of labels."""
    found = predicted(records) if task == "classification" else {}
    title = lambda key: f"{' '.join(key)}. {LEARN}"
    return [picture(learning_curves(some), f"{title(key)} {told(*best(some))}") for key, some in found.items()]


def whole_page(title, body):
    """A page that stands alone, of a title and the parts of its body."""
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>" + "\n".join(body) + "</body></html>\n"
    )
