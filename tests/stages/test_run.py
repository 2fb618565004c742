"""How a stage ends: one line and an exit status; the command that a line advises."""

import os

import pytest
import torch

from cox_oom import files
from cox_oom.files import UserError


def test_run_prints_one_line_and_exits_with_2(capsys):
    def main(argv):
        raise UserError(f"{argv[0]} is bad; mend it")

    with pytest.raises(SystemExit) as exit:
        files.run(main, ["this"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: this is bad; mend it\n"


def test_run_ends_an_interrupt_without_a_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        files.run(main)
    assert exit.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_advised_commands_leave_defaults_out_and_quote():
    assert files.command("evaluate.py", "toy", None) == "python evaluate.py --data toy"
    other = files.command("train_connect.py", "my data", "imu", perceptor="hf:a/b", runs="out", seed=1)
    assert other == "python train_connect.py --data 'my data' --oom imu --perceptor hf:a/b --seed 1 --runs out"


def test_a_missing_file_is_answered_by_a_command_that_makes_it(tmp_path, monkeypatch):
    inputs, facts = files.inputs_path(tmp_path, "toy", "imu"), {"data": "toy", "fingerprint": "f", "args": {}}
    files.save(inputs, {"x": torch.zeros(1)}, stage="extract_features", quiet=True, **facts)
    monkeypatch.setattr(files, "load_inputs", lambda *a, **k: (files.load(inputs), None))
    monkeypatch.setattr(files, "load_banks", lambda *a, **k: ({}, {}))
    command = "python train_connect.py --data toy --oom imu --perceptor clip --setting semi --seed 3"
    with pytest.raises(UserError, match=f"run first: {command} --runs {tmp_path}"):
        files.load_seed(tmp_path, "toy", "clip", "imu", "semi", 3)


def test_what_cannot_be_written_to_is_said_before_anything_is_computed(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "runs"):
        with pytest.raises(UserError, match="cannot be written to .*; name another folder"):
            files.writable(folder)
    files.writable(tmp_path / "new" / "runs")
    assert os.listdir(tmp_path / "new" / "runs") == []

    def main(argv):
        open(tmp_path / "nothing", "rb")

    with pytest.raises(SystemExit) as stop:
        files.run(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and "nothing" in said and said.count("\n") == 1
