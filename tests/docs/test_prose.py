"""The documents: sentences that a stranger can read, and no path or link that leads nowhere."""

import re
from pathlib import Path

import pytest

from tests.docs.prose import COMMENT, GENERATED, sentences, words, words_a_sentence

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("docs/**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
MEAN, LONGEST = 16, 40  # words of a sentence

FENCED = re.compile(r"^```.*?^```", re.S | re.M)
TARGET = re.compile(r"\]\(([^()\s]+)\)")
SPAN = re.compile(r"`([^`\n]+)`")
FILE = re.compile(r"[\w.-]+(?:/[\w.-]+)+\.(?:py|sh|md|cpp|cuh?|h)")
FOLDERS = "cox_oom|cox_ops|csrc|tests|bench|experiments|docs"
OWN = re.compile(rf"(?<![\w./-])(?:{FOLDERS})(?:/[\w.-]+)+\.(?:py|sh|md|cpp|cuh?|h)(?![\w/])")
FOLDER = re.compile(rf"(?:{FOLDERS})(?:/[\w.-]+)*/")
NAME = re.compile(r"`(\w+)` in `([\w/]+\.py)`")  # a function or class and its file

every_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))


def paths_of(text):
    """The repository's files and folders that a document names: in backticks, or anywhere files of its folders."""
    tokens = {t for span in SPAN.findall(FENCED.sub("", text)) for t in span.split()}
    return {t for t in tokens if FILE.fullmatch(t) or FOLDER.fullmatch(t)} | set(OWN.findall(text))


def headings(path):
    """The anchors of a document's headings, as GitHub makes them."""
    lines = re.findall(r"^#+ +(.*)$", FENCED.sub("", path.read_text(encoding="utf-8")), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", line) for line in lines)
    return {re.sub(r"[^\w\- ]", "", line.lower()).strip().replace(" ", "-") for line in plain}


@every_document
def test_sentences_are_short(path):
    found = sentences(path.read_text(encoding="utf-8"))
    assert found
    assert words_a_sentence(path) <= MEAN
    longest = max(found, key=words)
    assert words(longest) <= LONGEST, longest


@every_document
def test_links_lead_somewhere(path):
    text = FENCED.sub("", COMMENT.sub("", path.read_text(encoding="utf-8")))
    for target in TARGET.findall(text):
        if re.match(r"[a-z]+:", target):  # of the web
            continue
        file, _, heading = target.partition("#")
        there = path.parent / file if file else path
        assert there.exists(), target
        assert not heading or heading in headings(there), target


@every_document
def test_named_files_exist(path):
    lost = sorted(p for p in paths_of(GENERATED.sub("", path.read_text(encoding="utf-8"))) if not (ROOT / p).exists())
    assert not lost


@every_document
def test_named_functions_are_in_their_files(path):
    for name, file in NAME.findall(path.read_text(encoding="utf-8")):
        code = (ROOT / file).read_text(encoding="utf-8")
        assert re.search(rf"^\s*(?:(?:def|class) {name}\b|{name} = )", code, re.M), f"{name} in {file}"


def test_operators_page():
    """Its examples run, and each operator's section names the program's files that call it."""
    import cox_ops

    page = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
    exec("\n".join(re.findall(r"^```python\n(.*?)^```", page, re.S | re.M)), {})
    parts = dict(re.findall(r"^## `(\w+)\(.*?\*\*Callers\.\*\*(.*?)(?=^## |\Z)", page, re.S | re.M))
    assert set(parts) == set(cox_ops.__all__)
    for name, said in parts.items():
        callers = {
            str(p.relative_to(ROOT))
            for p in (*ROOT.glob("*.py"), *ROOT.glob("cox_oom/**/*.py"))
            if f"cox_ops.{name}(" in p.read_text(encoding="utf-8")
        }
        assert callers == set(OWN.findall(said)) | set(re.findall(r"`(\w+\.py)`", said)), name
        assert callers or "The program does not call it" in said, name


def test_what_counts_as_a_sentence():
    text = """# A heading of six words in all

One two three. Four `a.b/c.py --flag x`, five (Eq. 15, Fig. 5). `x.y` begins here.
It goes on, at 0.5 and `stops.`

**Layout.** The [files of a folder](a/long/target.md) lie here. **A bold phrase** is text.

- an item of a list
  that goes on
- another. With two!

<!-- results:begin -->
Not this. Nor this.
<!-- results:end -->
<!-- a comment. -->

| a table | has no sentence. |
|---|---|

```
python not_this.py. Nor this.
```

The formula:

    z ~ t(x). Nor this.

1. First.
2. Second; ![an image.](x.png) done — yes
"""
    assert sentences(text) == [
        "One two three.",
        "Four a.b/c.py --flag x, five (Eq. 15, Fig. 5).",
        "x.y begins here.",
        "It goes on, at 0.5 and stops.",
        "The files of a folder lie here.",
        "A bold phrase is text.",
        "an item of a list that goes on",
        "another.",
        "With two!",
        "The formula:",
        "First.",
        "Second;  done — yes",
    ]
    assert [words(s) for s in sentences(text)[:2]] == [3, 9]
    assert words("a – b & 0.5 * x") == 4
    assert sentences("") == [] and sentences("# Only a heading") == []


def test_paths_that_a_document_names():
    text = "`cox_oom/no.py`, `bash experiments/x.sh 1`, `tests/<op>.py`, `a.py`, `bench/results/`, `DIR/x/`,"
    text += " docs/method.md."
    assert paths_of(f"{text}\n```\ncsrc/no/such.cu\n```\n") == {
        "cox_oom/no.py",
        "experiments/x.sh",
        "bench/results/",
        "docs/method.md",
        "csrc/no/such.cu",
    }
