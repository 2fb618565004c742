"""How long the sentences of a document are.

    python -m tests.docs.prose docs/method.md README.md

Prints, for each file, words a sentence, the share of sentences over 25 words, and the longest three sentences.

Sentences are found in running text and in items of lists. Left out are code blocks, tables, headings, HTML comments,
images, the targets of links, and generated parts between `<!-- NAME:begin -->` and `<!-- NAME:end -->`. A short bold
phrase that opens a paragraph and ends in a full stop, as in "**Layout.** The files …", is a heading as well. A word
is a piece of text between spaces that has a letter or a digit; each word of `code` counts."""

import re
import sys
from pathlib import Path

LONG = 25  # words; the share above it is printed
GENERATED = re.compile(r"<!--\s*([\w-]+):begin\s*-->.*?<!--\s*\1:end\s*-->", re.S)
COMMENT = re.compile(r"<!--.*?-->", re.S)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
FENCE = re.compile(r"^ {0,3}(```|~~~)")
CODE = re.compile(r"(`+)(.+?)\1", re.S)
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\([^()]*(?:\([^()]*\)[^()]*)*\)")
MARKER = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+")  # of a list's item
RUN_IN = re.compile(r"^\*\*[^*]{1,60}[.:]\*\*\s*")
END = re.compile(r"[.!?][\"'”’)\]*_]*(?=\s)")
ABBREVIATION = re.compile(r"\b(?:eqs?|figs?|e\.g|i\.e|al|cf|vs)\.$", re.I)
HIDDEN = {ord(c): 0xE000 + i for i, c in enumerate(".!?[]()<>*_|#`")}  # stand for a code span's marks meanwhile
SHOWN = {v: chr(k) for k, v in HIDDEN.items()}


def blocks(text):
    """The paragraphs and list items of a document as lines of plain text; code spans keep their marks hidden."""
    text = COMMENT.sub("", GENERATED.sub("\n\n", text))
    found, lines, fenced, listed = [], [], None, False

    def close():
        if lines:
            found.append(" ".join(lines))
        lines.clear()

    for line in text.splitlines():
        fence = FENCE.match(line.lstrip("> "))
        if fenced or fence:
            close()
            fenced = None if fenced and fence and fence[1] == fenced else fenced or fence[1]
            continue
        if not line.strip():
            close()
            continue
        line = re.sub(r"^\s{0,3}> ?", "", line)
        marker = MARKER.match(line)
        if marker and (listed or not lines or not marker[0].strip()[0].isdigit() or marker[0].strip()[:-1] == "1"):
            close()
            listed = True
        elif not lines:  # a block's first line
            listed = listed and line.startswith(" ")
            if line.startswith("    ") and not listed:  # code by indentation
                continue
        if line.lstrip().startswith("|") or re.match(r"^\s{0,3}(#{1,6}\s|[-=*_]{3,}\s*$)", line):
            close()
            continue
        lines.append(MARKER.sub("", line).strip() if not lines else line.strip())
    close()
    plain = []
    for block in found:
        block = CODE.sub(lambda m: m[2].strip().translate(HIDDEN), block)
        block = TAG.sub(" ", LINK.sub(lambda m: "" if m[1] else m[2], block))
        block = LINK.sub(lambda m: "" if m[1] else m[2], block)  # a link around an image
        plain.append(RUN_IN.sub("", block.strip()))
    return plain


def sentences(markdown_text):
    """The sentences of a document, in order."""
    out = []
    for block in blocks(markdown_text):
        start = 0
        for end in END.finditer(block + " "):
            if ABBREVIATION.search(block[start : end.start() + 1]):
                continue
            out.append(block[start : end.end()])
            start = end.end()
        out.append(block[start:])
    out = (re.sub(r"\*\*|__", "", s).translate(SHOWN).strip() for s in out)
    return [s for s in out if words(s)]


def words(sentence):
    """How many words a sentence has."""
    return sum(bool(re.search(r"[^\W_]", piece)) for piece in sentence.split())


def words_a_sentence(path):
    """The mean number of words of a file's sentences; 0 where there are none."""
    counts = [words(s) for s in sentences(Path(path).read_text(encoding="utf-8"))]
    return sum(counts) / max(1, len(counts))


def main(paths):
    for path in paths:
        found = sentences(Path(path).read_text(encoding="utf-8"))
        long = sum(words(s) > LONG for s in found) / max(1, len(found))
        mean = words_a_sentence(path)
        print(f"{path}: {mean:.1f} words a sentence, {len(found)} sentences, {long:.0%} over {LONG} words")
        for s in sorted(found, key=words, reverse=True)[:3]:
            print(f"  {words(s):3d}  {s}")


if __name__ == "__main__":
    main(sys.argv[1:])
