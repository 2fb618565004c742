"""How a stage ends: one line and an exit status; the command that a line advises."""

import os

import pytest
import torch

from cox_oom import files, run
from cox_oom.files import Place, UserError
from cox_oom.seed import load_seed


def test_run_prints_one_line_and_exits_with_2(capsys):
    def main(argv):
        raise UserError(f"{argv[0]} is bad; mend it")

    with pytest.raises(SystemExit) as exit:
        run.script(main, ["this"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: this is bad; mend it\n"


def test_run_ends_an_interrupt_without_a_traceback(capsys):
    def main(argv):
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        run.script(main)
    assert exit.value.code == 130
    assert "Traceback" not in capsys.readouterr().err


def test_advised_commands_leave_defaults_out_and_quote():
    assert Place("runs", "toy").command("evaluate.py") == "python evaluate.py --data toy"
    place = Place("out", "my data", "hf:a/b", "imu", "unsup", 1)
    first = "--data 'my data' --oom imu --perceptor hf:a/b"
    assert place.command("train_connect.py", init="spectral") == (
        f"python train_connect.py {first} --setting unsup --seed 1 --init spectral --runs out"
    )
    assert place.command("extract_features.py") == f"python extract_features.py {first} --runs out"


def test_a_missing_file_is_answered_by_a_command_that_makes_it(tmp_path):
    place, facts = Place(tmp_path, "toy", "clip", "imu", "semi", 3), {"data": "toy", "fingerprint": "f", "args": {}}
    with pytest.raises(UserError, match=f"run first: python extract_features.py --data toy .* --runs {tmp_path}"):
        load_seed(place)
    keep = {"ids": [], "labels": torch.arange(0), "split": torch.arange(0), "class_names": []}
    inputs = {"kind": "text", "x": torch.zeros(0, 4, dtype=torch.uint8), **keep}
    files.save(place.inputs("imu"), inputs, stage="extract_features", quiet=True, **facts)
    files.save(
        place.bank("rgb"), {"features": torch.zeros(0, 2), **keep}, stage="extract_features", quiet=True, **facts
    )
    command = "python train_connect.py --data toy --oom imu --perceptor clip --setting semi --seed 3"
    with pytest.raises(UserError, match=f"run first: {command} --runs {tmp_path}"):
        load_seed(place)


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
        run.script(main)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and said.startswith("error: ") and "nothing" in said and said.count("\n") == 1
