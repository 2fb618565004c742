"""Flags that cannot be: one line that names the flag, its text and what may be given, before anything is read."""

import argparse
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worlds import STAGES

import train_explore
from cox_oom import methods
from cox_oom.cli import number

BAD = [
    ("extract_features", "--batch-size 0", "from 1"),
    ("extract_features", "--frames 1.5", "whole number from 1"),
    ("extract_features", "--workers -1", "from 0"),
    ("train_connect", "--labels 0", "above 0, at most 1"),
    ("train_connect", "--labels 1.5", "at most 1"),
    ("train_connect", "--labels nan", "above 0"),
    ("train_connect", "--holdout 1", "from 0, below 1"),
    ("train_connect", "--lr -0.1", "from 0"),
    ("train_connect", "--lr inf", "from 0"),
    ("train_connect", "--batch 0", "from 1"),
    ("train_explore", "--refreshes 0", "from 1"),
    ("train_explore", "--batch 0", "from 1"),
    ("train_explore", "--epochs ten", "from 0"),
    ("train_explore", "--rounds -1", "from 0"),
    ("train_explore", "--temper 0", "above 0"),
    ("train_explore", "--refit -0.1", "from 0 to 1"),
    ("train_explore", "--refit 1.5", "from 0 to 1"),
    ("train_explore", "--temperature 0", "above 0"),
    ("train_explore", "--queue 0", "from 1"),
    ("train_explore", "--seed -1", "from 0"),
    ("train_connect", "--seed -1", "from 0"),
    ("train_connect", "--device gpu", "no such device here"),
    ("train_explore", "--device meta:x", "no such device here"),
    ("train_explore", "--without connection,heads", "heads: choose among"),
]


@pytest.mark.parametrize("stage, flag, words", BAD)
def test_a_flag_that_cannot_be_is_named_before_anything_is_read(stage, flag, words, capsys):
    with pytest.raises(SystemExit) as ended:
        STAGES[stage].get_args(f"--data nowhere --oom imu {flag}".split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.count("\n") == 1 and words in said
    assert flag in said or "," in flag and said.startswith(f"error: {flag.split()[0]} ")


@pytest.mark.parametrize(
    "line, words",
    [
        ("--oom imu", "--data"),
        ("--data x --oom imu --bogus 1", "unrecognized arguments: --bogus 1"),
        ("--data x --oom imu --method sgd", "--method: invalid choice: 'sgd'"),
        ("--data x --oom imu --lr", "--lr: expected one argument"),
    ],
)
def test_every_complaint_of_the_parser_is_one_line(line, words, capsys):
    with pytest.raises(SystemExit) as ended:
        train_explore.get_args(line.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said


def test_help_shows_defaults_and_what_comes_next(capsys):
    with pytest.raises(SystemExit) as ended:
        train_explore.get_args(["--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0 and "(default: 0.001)" in said and "Next: python evaluate.py" in said
    assert said.splitlines()[0].startswith("usage: ") and "Stage 3" in said


def test_a_run_records_the_flags_of_its_own_method_alone():
    """So that a new method with new flags does not outdate the runs of the others."""
    given = train_explore.get_args("--data x --oom y --method fixmatch --queue 64 --threshold 0.5".split())
    assert given.threshold == 0.5 and not hasattr(given, "queue") and hasattr(given, "kl")
    assert train_explore.get_args("--data x --oom y --method moco --queue 64".split()).queue == 64


def test_every_number_among_the_flags_has_a_range():
    """`int` and `float` themselves take any number: a row has number(...), but for seeds and a switch of two values."""
    free = {"--seed"}
    for module in STAGES.values():
        for name, _, kind, *_ in (*module.EVERYDAY, *module.RARE):
            assert kind not in (int, float) or name in free, f"{module.__name__}: {name}"
    assert all(kind not in (int, float) for _, _, kind, _ in methods.flags())


@given(st.floats(), st.floats(-5, 5), st.floats(0, 5), st.sampled_from(["[]", "(]", "[)", "()"]))
def test_a_number_is_taken_just_where_its_interval_holds_it(x, low, wide, ends):
    high = low + wide
    inside = {"[]": low <= x <= high, "(]": low < x <= high, "[)": low <= x < high, "()": low < x < high}[ends]
    if inside:
        assert number(float, low, high, ends)(repr(x)) == x
    else:
        with pytest.raises(argparse.ArgumentTypeError, match=re.escape(repr(x))):
            number(float, low, high, ends)(repr(x))


def test_no_end_means_any_finite_number():
    assert number(float, 0)("1e300") == 1e300 and number(int, 1)("12") == 12
    for text in ("inf", "nan", "-1", "", "x", str(-math.inf)):
        with pytest.raises(argparse.ArgumentTypeError, match="number from 0"):
            number(float, 0)(text)


@pytest.mark.parametrize("name", STAGES)
def test_help(name, capsys):
    with pytest.raises(SystemExit) as exit:
        STAGES[name].get_args(["--help"])
    out = capsys.readouterr().out
    assert exit.value.code == 0
    assert all(flag in out for flag in ("--data", "--oom", "--perceptor", "--runs", "--force", "--help-all"))
    with pytest.raises(SystemExit):
        STAGES[name].get_args(["--help-all"])
    whole, flag = capsys.readouterr().out, re.compile(r"^  (?:-h, )?(--[\w-]+)", re.MULTILINE)
    everyday, every = flag.findall(out), flag.findall(whole)
    assert set(everyday) < set(every) and len(everyday) <= 2 + 15  # --help, --help-all and 15 more
    rare = {row[0] for row in STAGES[name].RARE} | (
        {f[0] for f in methods.flags()} if name == "train_explore" else set()
    )
    rare |= {"--log", "--fast", "--compile"} if name.startswith("train") else set()
    assert set(every) - set(everyday) == rare and f"--help-all shows {len(rare)} more flags" in " ".join(out.split())
