"""Malformed flags and manifests: one line on stderr and exit status 2, or the work that they say; never a traceback."""

import contextlib
import io
import os
import random
import string

import pytest
import worlds

import evaluate
from cox_oom import cli, run

pytestmark = pytest.mark.usefixtures("quick")
MAINS = {**{name: module.main for name, module in worlds.STAGES.items()}, "evaluate": evaluate.main}
STAGE1, STAGE2, STAGE3 = worlds.STAGES
HUGE = str(10**20)


def ending(name, line):
    """(exit status, stderr) of a script; a traceback is the test's."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            run.script(MAINS[name], line)
        except SystemExit as end:
            return end.code, err.getvalue()
    return 0, err.getvalue()


def line_of(name, folder, runs, *flags):
    if name == "evaluate":
        return ["--data", str(folder), "--runs", str(runs), "--device", "cpu", *flags]
    return [*worlds.argv(name, folder, runs), *flags]


REFUSED = [
    (STAGE1, ["--device", "meta"], "no such device here"),
    (STAGE1, ["--device", ""], "no such device here"),
    (STAGE1, ["--seed", str(2**64)], "from 0 to 9223372036854775807"),
    (STAGE1, ["--seed", "-5"], "from 0"),
    (STAGE1, ["--seed", "1.5"], "whole number"),
    (STAGE1, ["--runs", ""], "--runs '': give a folder"),
    (STAGE1, ["--runs", "a\0b"], "a\\x00b: nothing has a NUL"),
    (STAGE1, ["--data", "a\0b"], "nothing has a NUL"),
    (STAGE1, ["--data", ""], "neither a folder nor a known data set"),
    (STAGE1, ["--data", "no\nwhere"], "no\\nwhere"),
    (STAGE1, ["--data", "\x1b[31mred"], "\\x1b[31mred"),
    (STAGE1, ["--oom", ""], "needs --oom"),
    (STAGE1, ["--oom", "a\x07b"], "--oom a\\x07b"),
    (STAGE1, ["--im", ""], "--im '': an empty name"),
    (STAGE1, ["--im", "rgb,,language"], "an empty name"),
    (STAGE1, ["--im", "imu"], "--im imu: choose among"),
    (STAGE1, ["--root", "/nowhere"], "is a folder itself"),
    (STAGE1, ["--option", "x"], "write KEY=VALUE"),
    (STAGE1, ["--option", "x=1"], "the option x is not for folders"),
    (STAGE1, ["--option", "root=1"], "--option root"),
    (STAGE1, ["--option", "=1"], "the option  is not"),
    (STAGE1, ["--weights", "/nowhere"], "--weights /nowhere: --perceptor bind takes none"),
    (STAGE1, ["--perceptor-option", "x=1"], "--perceptor-option x: bind has no options"),
    (STAGE1, ["--perceptor", ""], "choose bind, imagebind"),
    (STAGE1, ["--perceptor", "hf:"], "choose bind, imagebind"),
    (STAGE1, ["--perceptor", "rgb=,"], "--perceptor"),
    (STAGE1, ["--image-size", HUGE], "from 1 to 4096"),
    (STAGE1, ["--series-length", HUGE], "from 1 to 10000000"),
    (STAGE1, ["--frames", HUGE], "from 1 to 10000"),
    (STAGE1, ["--workers", HUGE], "from 0 to 1024"),
    (STAGE1, ["--batch-size", HUGE], "from 1 to 1000000"),
    (STAGE1, ["--bind-epochs", HUGE], "from 0 to 10000000"),
    (STAGE1, ["--bind-width", HUGE], "from 0 to 65536"),
    (STAGE1, ["--bind-width", "12"], "a multiple of 8"),
    (STAGE1, ["--bind-dim", HUGE], "from 1 to 65536"),
    (STAGE2, ["--device", "meta"], "no such device here"),
    (STAGE2, ["--seed", str(2**64)], "from 0 to"),
    (STAGE2, ["--lr", "1e300"], "from 0 to 1000000"),
    (STAGE2, ["--lr", "1e"], "give a number"),
    (STAGE2, ["--width", HUGE], "from 1 to 65536"),
    (STAGE2, ["--depth", HUGE], "from 1 to 1000"),
    (STAGE2, ["--patch", HUGE], "from 1 to 4096"),
    (STAGE2, ["--slice", HUGE], "from 0 to 10000000"),
    (STAGE2, ["--batch", HUGE], "from 1 to 1000000"),
    (STAGE2, ["--connect-steps", HUGE], "from 0 to 100000000"),
    (STAGE2, ["--warmup-epochs", "9" * 5000], "from 0 to 10000000"),
    (STAGE2, ["--runs", " "], "--runs ' ': give a folder"),
    (STAGE2, ["--runs", "x" * 300], "too long"),
    (STAGE2, ["--without", "\n"], "choose among"),
    (STAGE2, ["--option", "x=1"], "unrecognized arguments: --option"),
    (STAGE3, ["--device", "meta"], "no such device here"),
    (STAGE3, ["--lr", "1e300"], "from 0 to 1000000"),
    (STAGE3, ["--tag", "x" * 300], "80 at most"),
    (STAGE3, ["--tag", "../x"], "letters, digits"),
    (STAGE3, ["--tag", "a\n"], "a\\n: it names a file"),
    (STAGE3, ["--queue", HUGE], "from 1 to 10000000"),
    (STAGE3, ["--w-im", "1e7"], "from 0 to 1000000"),
    (STAGE3, ["--method", "\x1b[2J"], "invalid choice"),
    ("evaluate", ["--device", "meta"], "no such device here"),
    ("evaluate", ["--seed", HUGE], "from 0 to"),
    ("evaluate", ["--runs", ""], "give a folder"),
    ("evaluate", ["--out", "", "--table"], "--out '': give a folder"),
    ("evaluate", ["--data", "a\0b"], "nothing has a NUL"),
    ("evaluate", ["--data", "no\nwhere"], "no finished run in"),
]


@pytest.mark.parametrize("name, flags, words", REFUSED, ids=lambda v: " ".join(v)[:40].__repr__() if v else "")
def test_malformed_flags_are_refused_in_one_line(runs, folder, name, flags, words):
    code, said = ending(name, line_of(name, folder, runs, *flags))
    assert code == 2 and said.startswith("error: ") and said.count("\n") == 1 and words in said, said
    assert said.rstrip("\n").isprintable()


def test_flags_at_an_end_of_their_range_do_what_they_say(folder, tmp_path):
    more = ["--bind-epochs", "0", "--seed", str(2**63 - 1), "--im", "rgb,language,rgb"]
    assert ending(STAGE1, line_of(STAGE1, folder, tmp_path / "r", *more)) == (0, "")
    more = ["--seed", str(2**63 - 1), "--warmup-epochs", "0", "--connect-steps", "0", "--patch", "4096", "--lr", "0"]
    code, said = ending(STAGE2, line_of(STAGE2, folder, tmp_path / "r", *more))
    assert code == 0, said


def test_what_memory_does_not_hold_is_one_line(monkeypatch):
    def main(argv):
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setitem(MAINS, STAGE2, main)
    code, said = ending(STAGE2, [])
    assert code == 2 and said.startswith("error: not enough memory") and said.count("\n") == 1


HEADER = b"id,split,label,rgb,imu,language\n"
MANIFESTS = {
    "empty": b"",
    "header alone": HEADER,
    "NUL": HEADER + b"a\0,train,cup,,,a cup\n",
    "not UTF-8": HEADER + b"\xff\xfe,train,cup,,,a cup\n",
    "UTF-16": "id,split,label,language\na,train,cup,x\n".encode("utf-16"),
    "twice the same column": b"id,split,label,language,language\na,train,cup,x,y\n",
    "no label column": b"id,split,rgb\na,train,rgb/itrain0.png\n",
    "no modality": b"id,split,label\na,train,cup\n",
    "another split": HEADER + b"a,TRAINING,cup,,,x\n",
    "twice the same id": HEADER + b"a,train,cup,,,x\na,train,cup,,,x\n",
    "a row too long": HEADER + b"a,train,cup,,,x,y,z\n",
    "a row too short": HEADER + b"a,train\n",
    "an open quote": HEADER + b'a,train,cup,,,"x\n',
    "a huge cell": HEADER + b"a,train,cup,,," + b"x" * 200_000 + b"\n",
    "a folder as file": HEADER + b"a,train,cup,rgb,,x\n",
    "a path outside": HEADER + b"a,train,cup,../../../etc/passwd,,x\n",
    "a name too long": HEADER + b"a,train,cup," + b"x" * 5000 + b".png,,x\n",
    "escape codes": HEADER + b"\x1b[31m,train,cup,rgb/\x1b[2J.png,,x\n",
    "a pipe column": b"id,split,label,a|b\na,train,cup,x\n",
    "one class": HEADER
    + b"a,train,cup,rgb/itrain0.png,imu/itrain0.npy,x\nb,test,cup,rgb/itest0.png,imu/itest0.npy,x\n",
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_malformed_manifests_are_refused_in_one_line(folder, tmp_path, name):
    own = tmp_path / "own"
    own.mkdir()
    for part in ("rgb", "imu"):
        os.symlink(folder / part, own / part)
    (own / "manifest.csv").write_bytes(MANIFESTS[name])
    code, said = ending(STAGE1, line_of(STAGE1, own, tmp_path / "r"))
    assert code == 2 and said.count("\n") == 1 and said.rstrip("\n").isprintable() or code == 0, said


def generated(rng, n):
    """n (script, flags) of random values for the flags of a script."""
    from cox_oom import methods

    rows = {name: [*module.EVERYDAY, *module.RARE] for name, module in worlds.STAGES.items()}
    rows[STAGE3] += methods.flags()
    rows["evaluate"] = list(evaluate.EVERYDAY)
    values = ["", " ", "-1", "0", "1e300", "1e-300", "nan", "-inf", "0x10", "1_0", "٣", "2" * 30, "true", "None"]
    values += [
        "a,b",
        ",",
        "=",
        "a=b",
        "/",
        ".",
        "..",
        "/dev/null",
        "/proc/self/mem",
        "a\nb",
        "\x1b[2J",
        "a\0",
        "\udc80",
    ]
    values += [
        "hf:x",
        "rgb=bind",
        "rgb=hf:/nowhere",
        "imagebind",
        "languagebind",
        "x" * 300,
        "--data",
        "-",
        "*",
        "'",
        '"',
    ]
    common = list(cli.COMMON)
    for _ in range(n):
        script = rng.choice([STAGE1, STAGE2, STAGE3, "evaluate"])
        flags = []
        for _ in range(rng.choice([1, 1, 2])):
            flag = rng.choice([row[0] for row in rows[script]] + common)
            value = rng.choice([*values, "".join(rng.choices(string.printable, k=5))])
            flags += [flag] if flag == "--force" or rng.random() < 0.05 else [flag, value]
        yield script, flags


def attack(folder, runs, rng, n):
    """{exit status: number} of n generated command lines, each of which ends in at most one line."""
    ends = {}
    for script, flags in generated(rng, n):
        code, said = ending(script, line_of(script, folder, runs, *flags))
        said = [line for line in said.splitlines() if line.startswith(("error", "Traceback"))]
        assert len(said) == (code == 2), (script, flags, said)
        ends[code] = ends.get(code, 0) + 1
    return ends


def test_generated_flags_end_in_a_line_or_do_what_they_say(runs, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ends = attack(folder, runs, random.Random(0), 40)
    assert set(ends) <= {0, 2} and ends[2] > 10
