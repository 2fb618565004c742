"""bank.py: the .pt contract. What is read is whole, finite, and of the data and the work asked for."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cox_oom import files
from cox_oom.files import UserError

ROOT = Path(__file__).resolve().parents[2]
META = {"stage": "train_connect", "data": "toy", "fingerprint": "f" * 64, "args": {"epochs": 2, "w_agree": 1.0}}


def content():
    return {
        "features": torch.arange(12.0).reshape(4, 3),
        "ids": ["a", "b", "c", "d"],
        "labels": torch.tensor([0, 1, -1, 0]),
        "split": torch.tensor([0, 1, 2, 0]),
        "class_names": ["x", "y"],
        "lengths": None,
        "kind": "series",
        "nested": {"half": torch.ones(2, dtype=torch.bfloat16), "list": [torch.arange(0), 1.5, "t", True]},
    }


def save(path, obj=None, **changes):
    return files.save(path, obj if obj is not None else content(), **{**META, **changes}, quiet=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


def complaint(call, *parts):
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    return message


# --------------------------------------------------------------------------------------------- write and read


def test_what_is_saved_is_loaded(tmp_path):
    path = tmp_path / "deep" / "er" / "x.pt"
    digest = save(path, made_from={"inputs/rgb": "abc"}, paired="true")
    read = files.load(path, keys=("features", "ids"))
    meta = read.pop("meta")
    assert same(read, content())
    assert meta["digest"] == digest == files.digest(read)
    assert meta["made_from"] == {"inputs/rgb": "abc"} and meta["paired"] == "true" and meta["args"] == META["args"]
    assert {"stage", "data", "fingerprint", "argv", "torch", "time"} <= meta.keys()
    assert set(torch.load(path, weights_only=True)) == {*content(), "meta"}  # plain types only
    assert os.listdir(path.parent) == ["x.pt"]


def test_says_what_it_wrote(tmp_path, capsys):
    files.save(tmp_path / "x.pt", content(), **META)
    assert str(tmp_path / "x.pt") in capsys.readouterr().out


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_refuses_what_is_not_finite(tmp_path, bad, dtype):
    path = tmp_path / "x.pt"
    features = torch.ones(5, 2, dtype=dtype)
    features[3, 1] = bad
    complaint(lambda: save(path, {"features": features}), path, "features", "train_connect")
    assert not os.listdir(tmp_path)


def test_refuses_weights_that_are_not_finite(tmp_path):
    """A diverged learner lies one level down, in a state dict."""
    path = tmp_path / "connect.pt"
    complaint(lambda: save(path, {"learner": {"norm.weight": torch.tensor([1.0, float("nan")])}}), path, "learner")
    assert not path.exists()


def test_refuses_what_is_not_finite_in_a_list(tmp_path):
    deep = {"optimizers": {"rgb": {"state": {0: {"exp_avg": [torch.ones(2), torch.tensor([float("inf")])]}}}}}
    complaint(lambda: save(tmp_path / "x.pt", deep), "optimizers.rgb.state.0.exp_avg.1")


@pytest.mark.parametrize("error", [RuntimeError("disk full"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("old", [False, True])
def test_a_writer_that_fails_midway_leaves_the_old_file_or_none(tmp_path, monkeypatch, error, old):
    path = tmp_path / "x.pt"
    if old:
        save(path)
    before = path.read_bytes() if old else None
    real = torch.save

    def half(obj, f, **kw):
        real(obj, f, **kw)
        os.truncate(f, os.path.getsize(f) // 2)
        raise error

    monkeypatch.setattr(torch, "save", half)
    disk = isinstance(error, RuntimeError)
    with pytest.raises(UserError if disk else type(error), match="x.pt cannot be written .disk full" if disk else None):
        save(path, {"features": torch.zeros(1000)})
    assert os.listdir(tmp_path) == (["x.pt"] if old else [])  # no temporary file either
    assert (path.read_bytes() if path.exists() else None) == before


KILLED = """
import os
import signal
import sys
import torch
from cox_oom import files
real = torch.save
def half(obj, f, **kw):
    real(obj, f, **kw)
    if sys.argv[2] == "truncated":
        os.truncate(f, os.path.getsize(f) // 2)
    os.kill(os.getpid(), signal.SIGKILL)
torch.save = half
files.save(sys.argv[1], {"features": torch.zeros(100000, 2)}, stage="s", data="d", fingerprint="f", args={})
"""


@pytest.mark.parametrize("moment", ["truncated", "before the rename"])
def test_a_writer_killed_midway_leaves_the_old_file_or_none(tmp_path, moment):
    banks = files.bank_dir(tmp_path, "toy", "bind", "audio")
    old, new = banks / "rgb.pt", banks / "depth.pt"
    save(old)
    before = old.read_bytes()
    for path in (old, new):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert old.read_bytes() == before and not new.exists()
    assert len(os.listdir(banks)) == 3, "the two killed writers should have left their temporary files"
    found, _ = files.load_banks(tmp_path, "toy", "bind", "audio")  # … which nothing takes for banks
    assert list(found) == ["rgb"]
    assert not files.finished(new, {}, {}, None, False)
    save(new)
    assert list(files.load_banks(tmp_path, "toy", "bind", "audio")[0]) == ["depth", "rgb"]
    assert len(os.listdir(banks)) == 3 and any(p.startswith(".rgb.pt.") for p in os.listdir(banks))
    save(old)
    assert sorted(os.listdir(banks)) == ["depth.pt", "rgb.pt"]  # each writer clears what was left for its file


def test_another_writer_at_work_keeps_its_temporary_file(tmp_path):
    working, note = tmp_path / f".x.pt.{os.getppid()}.tmp", tmp_path / ".x.pt.notes.tmp"
    working.touch(), note.touch()
    save(tmp_path / "x.pt")
    assert working.exists() and note.exists()


def test_an_open_file_survives_its_replacement(tmp_path):
    """load maps the file into memory; --force in another window must not change what is mapped."""
    path = tmp_path / "x.pt"
    save(path, {"features": torch.full((100000,), 1.0)})
    read = files.load(path)["features"]
    save(path, {"features": torch.full((100000,), 2.0)})
    assert (read == 1).all() and (files.load(path)["features"] == 2).all()


# -------------------------------------------------------------------------------------------- files to refuse


def test_missing_file_names_the_command(tmp_path):
    complaint(
        lambda: files.load(tmp_path / "x.pt", first="python extract_features.py --data d"),
        tmp_path / "x.pt",
        "is missing",
        "python extract_features.py --data d",
    )


def damage_text(path):
    path.write_text("id,split,label\n")


def damage_empty(path):
    path.write_bytes(b"")


def damage_truncated(path):
    save(path)
    os.truncate(path, os.path.getsize(path) // 2)


def damage_tail(path):
    save(path)
    os.truncate(path, os.path.getsize(path) - 1)


def damage_directory(path):
    path.mkdir()


def damage_pickle(path):
    torch.save({"meta": {}, "features": Path("/")}, path)  # needs more than weights_only allows


def damage_tensor(path):
    torch.save(torch.zeros(3), path)


def damage_list(path):
    torch.save([1, 2], path)


def damage_state_dict(path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def damage_lacks_key(path):
    save(path, {"ids": ["a"]})


def damage_meta(path):
    torch.save({"features": torch.zeros(1), "meta": {"epoch": 3}}, path)  # somebody else's checkpoint


DAMAGES = [v for k, v in sorted(globals().items()) if k.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__[7:])
def test_what_is_no_whole_file_of_ours_is_refused(tmp_path, damage):
    path = tmp_path / "x.pt"
    damage(path)
    complaint(
        lambda: files.load(path, first="python extract_features.py", keys=("features",)),
        path,
        "remove it",
        "python extract_features.py",
    )


def test_no_bank_names_the_command(tmp_path):
    message = complaint(
        lambda: files.load_banks(tmp_path, "toy", "bind", "audio", first="python extract_features.py --oom audio"),
        files.bank_dir(tmp_path, "toy", "bind", "audio"),
        "python extract_features.py --oom audio",
    )
    assert "bank" in message


def test_damaged_bank_among_good_ones_is_named(tmp_path):
    banks = files.bank_dir(tmp_path, "toy", "bind", "audio")
    save(banks / "depth.pt"), save(banks / "rgb.pt")
    (banks / "rgb.pt").write_bytes(b"x")
    complaint(
        lambda: files.load_banks(tmp_path, "toy", "bind", "audio", first="python extract_features.py"),
        banks / "rgb.pt",
        "python extract_features.py",
    )


# -------------------------------------------------------------------------------------------------- the chain


def test_check_chain():
    meta = {"stage": "train_connect", "fingerprint": "a" * 64, "made_from": {"inputs/rgb": "1", "banks/depth": "2"}}
    assert files.check_chain("x.pt", meta, {"inputs/rgb": "1", "banks/depth": "2"}, "a" * 64) is None
    assert files.check_chain("x.pt", meta, {}, None) is None
    complaint(
        lambda: files.check_chain("x.pt", meta, {"banks/depth": "3"}, "a" * 64),
        "x.pt",
        "banks/depth",
        "train_connect.py --force",
    )
    complaint(
        lambda: files.check_chain("x.pt", meta, {}, "b" * 64), "x.pt", "aaaaaaaa", "bbbbbbbb", "--force", "--runs"
    )


def test_finished(tmp_path, capsys):
    path, args, made = tmp_path / "x.pt", {"epochs": 2, "w_agree": 1.0}, {"inputs/rgb": "1"}

    def ask(a=args, m=made, f="f" * 64, force=False):
        return files.finished(path, a, m, f, force)

    assert not ask()  # nothing there
    save(path, made_from=made)
    assert ask() and "already done" in capsys.readouterr().out
    assert ask({**args}, dict(made))
    assert not ask(force=True)
    complaint(lambda: ask({**args, "w_agree": 0.5}), path, "--w-agree", "1.0", "0.5", "--force")
    complaint(lambda: ask({**args, "new_flag": 3}), path, "--new-flag", "3")
    complaint(lambda: ask({"w_agree": 1.0}), path, "--epochs", "2")
    complaint(lambda: ask(f="e" * 64), path, "--force")
    complaint(lambda: ask(m={"inputs/rgb": "2"}), path, "inputs/rgb", "--force")
    assert not ask({"epochs": 9}, {"inputs/rgb": "2"}, "e" * 64, force=True)  # force never looks


def test_finished_does_not_take_a_damaged_file_for_done(tmp_path):
    path = tmp_path / "x.pt"
    damage_truncated(path)
    complaint(lambda: files.finished(path, META["args"], {}, None, False), path, "remove it")
    assert not files.finished(path, META["args"], {}, None, True)


# ----------------------------------------------------------------------------------------------------- digest


def test_digest_is_of_the_content():
    base = {"a": torch.arange(6.0), "b": {"c": [1, 2.5, None, "t"]}}
    d = files.digest(base)
    assert d == files.digest({"b": {"c": [1, 2.5, None, "t"]}, "a": torch.arange(6.0)})  # not of the order
    assert d == files.digest(
        {"a": torch.arange(12.0)[::2].div(2), "b": {"c": (1, 2.5, None, "t")}}
    )  # nor of the strides
    others = [
        {"a": torch.arange(6.0) + 1e-6, "b": base["b"]},
        {"a": torch.arange(6.0).reshape(2, 3), "b": base["b"]},
        {"a": torch.arange(6.0).double(), "b": base["b"]},
        {"a": torch.arange(6), "b": base["b"]},
        {"a": base["a"], "b": {"c": [2.5, 1, None, "t"]}},
        {"a": base["a"], "b": {"c": [1, 2.5, None, "u"]}},
        {"a": base["a"], "b": {"d": [1, 2.5, None, "t"]}},
        {"a": base["a"], "b": {"c": ["1", 2.5, None, "t"]}},
        {"a": base["a"]},
        {"a": base["a"], "b": {"c": [1, 2.5, None, "t"]}, "e": []},
    ]
    digests = [d, *map(files.digest, others)]
    assert len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    "one, other",
    [
        ({"a": {}, "b": 1}, {"a": {"b": 1}}),
        ({"a": {"b": 1}, "c": 2}, {"a": {"b": 1, "c": 2}}),
        ({"ab": 1}, {"a": {"b": 1}}),
        ({"a": []}, {"a": {}}),
        ({"a": [[], 1]}, {"a": [[1]]}),
        ({1: 2}, {"1": 2}),
        ({"a1": 2}, {"a": 12}),
    ],
)
def test_digest_tells_nests_apart(one, other):
    assert files.digest(one) != files.digest(other)


def test_digest_tells_int_and_float_of_the_same_bytes():
    bits = torch.tensor([1.5, -2.0])
    assert files.digest({"x": bits}) != files.digest({"x": bits.view(torch.int32)})


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.uint8, torch.int64, torch.bool])
def test_digest_takes_every_dtype_and_size(dtype):
    digests = {
        files.digest({"x": torch.zeros(shape, dtype=dtype)}) for shape in [(), (0,), (0, 3), (3, 0), (2,), (1, 2)]
    }
    assert len(digests) == 6


# --------------------------------------------------------------------------------------------- paths and rows


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my robot").mkdir()
    assert files.data_name("synth") == "synth"
    assert (
        files.data_name("my robot")
        == files.data_name("my robot/")
        == files.data_name(str(tmp_path / "my robot"))
        == "my robot"
    )
    monkeypatch.chdir(tmp_path / "my robot")
    assert files.data_name(".") == "my robot"  # never runs/./
    assert files.inputs_path("runs", "synth", "rgb") == Path("runs/synth/inputs/rgb.pt")
    assert files.bank_dir("runs", "synth", "bind", "audio") == Path("runs/synth/bind/no-audio/banks")
    assert files.bank_dir("runs", "synth", "hf:google/vit", "audio") == Path("runs/synth/hf_google_vit/banks")
    assert files.run_dir("runs", "synth", "bind", "audio", "semi", 3) == Path("runs/synth/bind/oom-audio/semi/seed3")


def test_banks_of_different_oom_modalities_never_meet():
    dirs = {files.bank_dir("runs", "synth", "bind", m) for m in ("audio", "rgb")}
    assert len(dirs) == 2
    runs = {
        files.run_dir("runs", "synth", p, m, s, k)
        for p in ("bind", "x")
        for m in ("audio", "rgb")
        for s in ("semi", "unsup")
        for k in (0, 1)
    }
    assert len(runs) == 16


def test_rows_are_test_rows_only_when_asked_for():
    file = {"split": torch.tensor([2, 0, 1, 0, 2])}
    assert files.rows(file).tolist() == [1, 2, 3]
    assert files.rows(file, ("train",)).tolist() == [1, 3]
    assert files.rows(file, ("val",)).tolist() == [2]
    assert files.rows(file, ("test",)).tolist() == [0, 4]
    assert files.rows({"split": torch.tensor([2, 2])}).shape == (0,)


def test_load_banks_leaves_the_oom_modality_out(tmp_path):
    folder = files.bank_dir(tmp_path, "toy", "shared/one", "audio")  # a perceptor whose banks all share
    digests = {m: save(folder / f"{m}.pt", {**content(), "kind": m}) for m in ("audio", "rgb", "depth")}
    found, made_from = files.load_banks(tmp_path, "toy", "shared/one", "audio")
    assert list(found) == ["depth", "rgb"]
    assert made_from == {"banks/depth": digests["depth"], "banks/rgb": digests["rgb"]}


# -------------------------------------------------------------------------------------------------------- run


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
    assert (
        files.command("train_connect.py", "my data", "imu", perceptor="hf:a/b", runs="out", seed=1)
        == "python train_connect.py --data 'my data' --oom imu --perceptor hf:a/b --seed 1 --runs out"
    )


def test_a_missing_file_is_answered_by_a_command_that_makes_it(tmp_path, monkeypatch):
    files.save(
        files.inputs_path(tmp_path, "toy", "imu"),
        {"x": torch.zeros(1)},
        stage="extract_features",
        data="toy",
        fingerprint="f",
        args={},
        quiet=True,
    )
    monkeypatch.setattr(
        files, "load_inputs", lambda *a, **k: (files.load(files.inputs_path(tmp_path, "toy", "imu")), None)
    )
    monkeypatch.setattr(files, "load_banks", lambda *a, **k: ({}, {}))
    with pytest.raises(
        files.UserError,
        match=f"run first: python train_connect.py --data toy --oom imu --perceptor clip "
        f"--setting semi --seed 3 --runs {tmp_path}",
    ):
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


def test_names_of_perceptors_are_folders():
    two = files.perceptor_name("rgb=hf:google/siglip2-base,audio=hf:laion/clap")
    assert two == "rgb=hf_google_siglip2-base,audio=hf_laion_clap"
    long = [files.perceptor_name(f"hf:{'x' * 200}{k}") for k in range(2)]
    assert len(set(long)) == 2 and all(len(n) < 130 for n in long) and files.perceptor_name(long[0]) == long[0]
