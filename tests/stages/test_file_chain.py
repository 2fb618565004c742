"""cox_oom/files.py: digests, from what a file was made, where it lies, which rows and banks are read of it."""

from pathlib import Path

import pytest
import torch
from saved import complaint, content, save

from cox_oom import files
from cox_oom.files import Place
from cox_oom.seed import load_banks, split_rows


def test_check_chain():
    meta = {"stage": "train_connect", "fingerprint": "a" * 64, "made_from": {"inputs/rgb": "1", "banks/depth": "2"}}
    assert files.check_chain("x.pt", meta, {"inputs/rgb": "1", "banks/depth": "2"}, "a" * 64) is None
    assert files.check_chain("x.pt", meta, {}, None) is None
    parts = ("x.pt", "banks/depth", "train_connect.py --force")
    complaint(lambda: files.check_chain("x.pt", meta, {"banks/depth": "3"}, "a" * 64), *parts)
    parts = ("x.pt", "aaaaaaaa", "bbbbbbbb", "--force", "--runs")
    complaint(lambda: files.check_chain("x.pt", meta, {}, "b" * 64), *parts)


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


def test_digest_is_of_the_content():
    base = {"a": torch.arange(6.0), "b": {"c": [1, 2.5, None, "t"]}}
    d = files.digest(base)
    assert d == files.digest({"b": {"c": [1, 2.5, None, "t"]}, "a": torch.arange(6.0)})  # not of the order
    strided = {"a": torch.arange(12.0)[::2].div(2), "b": {"c": (1, 2.5, None, "t")}}
    assert d == files.digest(strided)  # nor of the strides
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


def test_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my robot").mkdir()
    assert files.data_name("synth") == "synth"
    assert {files.data_name(at) for at in ("my robot", "my robot/", str(tmp_path / "my robot"))} == {"my robot"}
    monkeypatch.chdir(tmp_path / "my robot")
    assert files.data_name(".") == "my robot"  # never runs/./
    assert Place("runs", "synth").inputs("rgb") == Path("runs/synth/inputs/rgb.pt")
    assert Place("runs", "synth", "bind", "audio").banks() == Path("runs/synth/bind/no-audio/banks")
    assert Place("runs", "synth", "hf:google/vit", "audio").banks() == Path("runs/synth/hf_google_vit/banks")
    assert Place("runs", "synth", "bind", "audio", "semi", 3).folder == Path("runs/synth/bind/oom-audio/semi/seed3")


def test_names_of_perceptors_are_folders():
    two = files.perceptor_name("rgb=hf:google/siglip2-base,audio=hf:laion/clap")
    assert two == "rgb=hf_google_siglip2-base,audio=hf_laion_clap"
    long = [files.perceptor_name(f"hf:{'x' * 200}{k}") for k in range(2)]
    assert len(set(long)) == 2 and all(len(n) < 130 for n in long) and files.perceptor_name(long[0]) == long[0]


def test_banks_of_different_oom_modalities_never_meet():
    dirs = {Place("runs", "synth", "bind", m).banks() for m in ("audio", "rgb")}
    assert len(dirs) == 2
    runs = {
        Place("runs", "synth", p, m, s, k).folder
        for p in ("bind", "x")
        for m in ("audio", "rgb")
        for s in ("semi", "unsup")
        for k in (0, 1)
    }
    assert len(runs) == 16


def test_rows_are_test_rows_only_when_asked_for():
    file = {"split": torch.tensor([2, 0, 1, 0, 2])}
    assert split_rows(file).tolist() == [1, 2, 3]
    assert split_rows(file, ("train",)).tolist() == [1, 3]
    assert split_rows(file, ("val",)).tolist() == [2]
    assert split_rows(file, ("test",)).tolist() == [0, 4]
    assert split_rows({"split": torch.tensor([2, 2])}).shape == (0,)


def test_load_banks_leaves_the_oom_modality_out(tmp_path):
    folder = Place(tmp_path, "toy", "shared/one", "audio").banks()  # a perceptor whose banks all share
    digests = {m: save(folder / f"{m}.pt", {**content(), "kind": m}) for m in ("audio", "rgb", "depth")}
    found, made_from = load_banks(Place(tmp_path, "toy", "shared/one", "audio"))
    assert list(found) == ["depth", "rgb"]
    assert made_from == {"banks/depth": digests["depth"], "banks/rgb": digests["rgb"]}
