"""Every command in README and docs/ could run as it is printed: its flags, targets and files exist."""

import importlib.util
import re
import shlex

import pytest
from test_prose import DOCUMENTS, ROOT

import evaluate
import extract_features
import train_connect
import train_explore
from cox_oom import methods

STAGES = {s.__name__: s for s in (extract_features, train_connect, train_explore, evaluate)}
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def commands(path):
    """The command lines in a document's code blocks, continued lines joined, comments cut."""
    for block in re.findall(r"^```(?:sh|bash)?\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # no command: the line of an error message, a formula
                continue
            while words and re.match(r"[A-Z_a-z0-9]+=", words[0]):
                words.pop(0)
            if words and words[0] in ("python", "make", "bash", ".venv/bin/python", "pip", "source"):
                yield words


ALL = [(path, words) for path in DOCUMENTS for words in commands(path)]


def test_there_are_commands():
    assert len(ALL) > 30 and any(words[0] == "make" for _, words in ALL)


@pytest.mark.parametrize("path, words", ALL, ids=[" ".join(words)[:60] for _, words in ALL])
def test_a_command_could_run(path, words):
    words = [w for w in words if w not in ("\u2026", "...")]
    if words[0] == "make":
        assert all(w in TARGETS or "=" in w for w in words[1:])
    elif words[0] == "bash":
        assert (ROOT / words[1]).is_file()
    elif words[0].endswith("python") and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file()
        if words[1].removesuffix(".py") in STAGES and not {"--help", "--help-all"} & set(words):
            given = words[2:]
            for flag in ("--data", "--oom"):  # a line that shows one flag leaves the others out
                given += [] if flag in given or flag == "--oom" and "evaluate" in words[1] else [flag, "x"]
            STAGES[words[1].removesuffix(".py")].get_args(given)


def test_the_methods_are_those_of_the_program():
    text = (ROOT / "docs" / "method.md").read_text()
    assert text.split("<!-- methods:begin -->\n")[1].split("\n<!-- methods:end -->")[0] == methods.table()


def test_the_picture_is_what_its_script_draws():
    spec = importlib.util.spec_from_file_location("draw", ROOT / "docs" / "draw.py")
    draw = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(draw)
    assert (ROOT / "docs" / "cox.svg").read_text() == draw.picture()
