"""cox_oom/files.py: a .pt file is written whole or not at all; what is no whole, finite file of ours is refused."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from saved import META, complaint, content, save

from cox_oom import files
from cox_oom.files import Place, UserError
from cox_oom.seed import load_banks

ROOT = Path(__file__).resolve().parents[2]


def same(a, b):
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b and type(a) is type(b)


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
    banks = Place(tmp_path, "toy", "bind", "audio").banks()
    old, new = banks / "rgb.pt", banks / "depth.pt"
    save(old)
    before = old.read_bytes()
    for path in (old, new):
        done = subprocess.run([sys.executable, "-c", KILLED, str(path), moment], cwd=ROOT, capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert old.read_bytes() == before and not new.exists()
    assert len(os.listdir(banks)) == 3, "the two killed writers should have left their temporary files"
    found, _ = load_banks(Place(tmp_path, "toy", "bind", "audio"))  # … which nothing takes for banks
    assert list(found) == ["rgb"]
    assert not files.finished(new, {}, {}, None, False)
    save(new)
    assert list(load_banks(Place(tmp_path, "toy", "bind", "audio"))[0]) == ["depth", "rgb"]
    assert len(os.listdir(banks)) == 3 and any(p.startswith(".rgb.pt.") for p in os.listdir(banks))
    save(old)
    assert sorted(os.listdir(banks)) == ["depth.pt", "rgb.pt"]  # each writer clears what was left for its file


def test_another_writer_at_work_keeps_its_temporary_file(tmp_path):
    here, there = files.host(), "0" * 8
    kept = [f"{here}-{os.getppid()}-ab12", f"{there}-999999999-ab12", f"{there}-{os.getpid()}-ab12", "notes", "9-x-9"]
    dead = [f"{here}-999999999-ab12", f"{here}-{os.getpid()}-ab12"]
    for name in kept + dead:
        (tmp_path / f".x.pt.{name}.tmp").mkdir()
    save(tmp_path / "x.pt")
    assert sorted(os.listdir(tmp_path)) == sorted([*(f".x.pt.{name}.tmp" for name in kept), "x.pt"])


def test_what_another_machine_left_is_removed_after_a_day(tmp_path):
    """Also what an earlier version left, whose names did not tell the machine."""
    for name in ("00000000-1-ab12", "1", "notes"):
        for age, suffix in ((25 * 3600, "pt"), (3600, "young.pt")):
            folder = tmp_path / f".{suffix}.{name}.tmp"
            folder.mkdir()
            os.utime(folder, (time.time() - age, time.time() - age))
    save(tmp_path / "pt"), save(tmp_path / "young.pt")
    left = {".pt.notes.tmp", *(f".young.pt.{name}.tmp" for name in ("00000000-1-ab12", "1", "notes"))}
    assert set(os.listdir(tmp_path)) == {"pt", "young.pt"} | left


def test_writers_of_equal_number_have_folders_of_their_own(tmp_path, monkeypatch):
    """Two containers, each with the same process number, write the same file at once."""
    path, seen = tmp_path / "x.pt", []

    def write(tmp):
        tmp.write_text("outer")
        with monkeypatch.context() as other:
            other.setattr(files, "host", lambda: "0" * 8)
            files.write_atomic(path, lambda inner: (seen.append(inner), inner.write_text("inner")))
        seen.append(tmp)

    files.write_atomic(path, write)
    assert path.read_text() == "outer" and len({p.parent for p in seen}) == 2
    assert {p.name for p in seen} == {"x.pt"}  # torch.save writes it into the file
    assert os.listdir(tmp_path) == ["x.pt"]


def test_an_open_file_survives_its_replacement(tmp_path):
    """load maps the file into memory; --force in another window must not change what is mapped."""
    path = tmp_path / "x.pt"
    save(path, {"features": torch.full((100000,), 1.0)})
    read = files.load(path)["features"]
    save(path, {"features": torch.full((100000,), 2.0)})
    assert (read == 1).all() and (files.load(path)["features"] == 2).all()


def test_missing_file_names_the_command(tmp_path):
    path, first = tmp_path / "x.pt", "python extract_features.py --data d"
    complaint(lambda: files.load(path, first=first), path, "is missing", first)


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
    first = "python extract_features.py"
    complaint(lambda: files.load(path, first=first, keys=("features",)), path, "remove it", first)


def test_finished_does_not_take_a_damaged_file_for_done(tmp_path):
    path = tmp_path / "x.pt"
    damage_truncated(path)
    complaint(lambda: files.finished(path, META["args"], {}, None, False), path, "remove it")
    assert not files.finished(path, META["args"], {}, None, True)


def test_no_bank_names_the_command(tmp_path):
    banks, first = Place(tmp_path, "toy", "bind", "audio").banks(), "python extract_features.py --data toy --oom audio"
    complaint(lambda: load_banks(Place(tmp_path, "toy", "bind", "audio")), banks, first, "bank")


def test_damaged_bank_among_good_ones_is_named(tmp_path):
    banks = Place(tmp_path, "toy", "bind", "audio").banks()
    save(banks / "depth.pt"), save(banks / "rgb.pt")
    (banks / "rgb.pt").write_bytes(b"x")
    first = "python extract_features.py"
    complaint(lambda: load_banks(Place(tmp_path, "toy", "bind", "audio")), banks / "rgb.pt", first)
