"""Names from the data in a report: none makes a formula, a tag, a cell, a line, or steers the terminal."""

import csv
import io
import sys

import pytest
from records import record

from cox_oom import run
from cox_oom.files import escaped
from cox_oom.report import page, records, tables

NASTY = [
    "=cmd|' /C calc'!A0",
    "+1+1",
    "-2+3",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "a|b",
    "<script>alert(1)</script>",
    "<img src=x onerror=y>",
    "a\nb",
    "`rm`",
    "[x](http://y)",
    "![x](http://y)",
    "\\|x",
    "\x1b[2Jgone",
    "&lt;b&gt;",
    "'=1",
]


def report(tmp_path, name):
    """The records of a data set and a modality of that name, their blocks, and the folder of their tables."""
    some = [record(0.5, oom=name, data=name), record(0.6, oom=name, data=name, method="erm"), record(0.7, oom="pen")]
    blocks = tables.tables(some)
    records.write_tables(tmp_path, some, blocks)
    return some, blocks


@pytest.mark.parametrize("name", NASTY)
def test_no_cell_of_table_csv_is_a_formula(tmp_path, name):
    report(tmp_path, name)
    with open(tmp_path / "table.csv", newline="", encoding="utf-8") as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 3 and rows[0]["data"] in (name, "'" + name)
    for row in rows:
        for v in row.values():
            assert not v.startswith(tuple("=+@\t\r-")) or float(v) < 0


def test_numbers_stay_numbers():
    assert [records.cell(v) for v in (-0.5, "-0.5", "+1e3", None, True, 3)] == [-0.5, "-0.5", "+1e3", None, True, 3]
    assert records.cell("-0.5x") == "'-0.5x" and records.cell("a=b") == "a=b" and records.cell("'x") == "'x"


@pytest.mark.parametrize("name", NASTY)
def test_records_csv_gives_the_names_back(tmp_path, name):
    some = [record(0.5, oom=name, data=name), record(0.6, oom=name, data=name, method="erm")]
    records.write_records(tmp_path / "records.csv", some)
    again = records.read_records(tmp_path / "records.csv")
    assert [(r["data"], r["oom"]) for r in again] == [(name.replace("\r", "\\r"),) * 2] * 2


@pytest.mark.parametrize("name", NASTY)
def test_table_md_keeps_its_cells_and_holds_no_html(tmp_path, name):
    _, blocks = report(tmp_path, name)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text == tables.markdown(blocks)
    assert all(c.isprintable() or c == "\n" for c in text)
    lines = text.split("\n")
    for block in blocks:
        at = lines.index(f"## {tables.plain(block['title'])}")
        for line in lines[at + 2 : at + 4 + len(block["rows"])]:
            bars = len(line.replace("\\\\", "").replace("\\|", "").split("|")) - 2
            assert bars == len(block["header"]), line
    for bad in ("<script", "<img", "</script"):
        assert bad not in text
    assert "](http" not in text.replace("\\[x](http", "")
    assert text.count("`") == text.count("\\`")


@pytest.mark.parametrize("name", NASTY)
def test_report_html_holds_no_tag_of_a_name(tmp_path, name):
    some, blocks = report(tmp_path, name)
    html = page.page(blocks, some, {}, "python evaluate.py")
    assert "<script" not in html and "<img src=x" not in html


def test_plain_words_of_the_tables_stay_as_they_are():
    for text in ("< 0.001", "**84.1 ± 1.2**", "OOM → IM", "a & b", "5 < 6", "x_y", "semi, 10% labels (n = 2)"):
        assert tables.plain(text) == text


def test_control_characters_are_written_out_on_the_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    run.script(lambda argv: print("a\x1b[2J\r\x07b\tc\udc80"))
    assert sys.stdout.getvalue() == "a\\x1b[2J\\r\\x07b\tc\\udc80\n"
    assert escaped("é → ±") == "é → ±"


def test_an_error_is_one_line_whatever_its_names(capsys):
    def main(argv):
        raise run.UserError("x\n\x1b[31m: no")

    with pytest.raises(SystemExit):
        run.script(main)
    assert capsys.readouterr().err == "error: x\\n\\x1b[31m: no\n"
