"""Folders of data, runs of the stages on them, and what two runs are compared by."""

import contextlib
import csv
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import extract_features
import train_connect
import train_explore
from cox_oom import files
from cox_oom.files import Place, UserError
from cox_oom.heads import fit_head
from cox_oom.methods import METHODS

ROOT = Path(__file__).resolve().parent.parent
STAGES = {"extract_features": extract_features, "train_connect": train_connect, "train_explore": train_explore}
FLAGS = {
    "extract_features": "--image-size 8 --bind-epochs 2 --bind-width 8 --bind-dim 8",
    "train_connect": "--width 16 --depth 1 --patch 4 --warmup-epochs 2 --batch 16 --labelled-batch 8 "
    "--connect-steps 2 --labels 0.2",
    "train_explore": "--epochs 2 --batch 16 --labelled-batch 8 --connect-steps 2 --refreshes 2 --queue 64",
}
CLASSES = ("cup", "key", "pen")
UNSUP_REFUSED = tuple(m for m, row in METHODS.items() if row.labels)


def write_folder(path, n=(60, 12, 30), separate=(), seed=0):
    """rgb 8x8 png, imu (2, T) npy of varying T, language; every row has all three, but for the modalities in
    `separate`, which have rows of their own."""
    rng = np.random.default_rng(seed)
    rows = []
    for part in [(), *((m,) for m in separate)]:
        for split, count in zip(("train", "val", "test"), n):
            for k in range(count):
                c, name = k % 3, f"{'_'.join(part) or 'i'}{split}{k}"
                cells = {
                    "rgb": f"rgb/{name}.png",
                    "imu": f"imu/{name}.npy",
                    "language": f"a {('red', 'long', 'small')[c]} {CLASSES[c]} number {rng.integers(9)}",
                }
                cells = {m: v if (m in part if part else m not in separate) else "" for m, v in cells.items()}
                if cells["rgb"]:
                    (path / "rgb").mkdir(parents=True, exist_ok=True)
                    picture = rng.integers(0, 120, (8, 8, 3))
                    picture[:, :, c] += 100
                    Image.fromarray(picture.astype(np.uint8)).save(path / cells["rgb"])
                if cells["imu"]:
                    (path / "imu").mkdir(parents=True, exist_ok=True)
                    t = np.arange(rng.integers(8, 21))
                    wave = np.stack([np.sin(t * (0.3 + 0.5 * c)), t / 20 * (c - 1)])
                    wave = wave + 0.3 * rng.standard_normal(wave.shape)
                    np.save(path / cells["imu"], wave.astype(np.float32))
                rows.append([name, split, CLASSES[c], *(cells[m] for m in ("rgb", "imu", "language"))])
    write_manifest(path, rows)
    return path


def write_manifest(path, rows, header=("id", "split", "label", "rgb", "imu", "language")):
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([header, *rows])


def read_manifest(path):
    with open(path / "manifest.csv", newline="") as f:
        return list(csv.reader(f))[1:]


def read_rows(path):
    """The rows of a csv file with a header, each a dict."""
    with open(path, newline="", encoding="utf-8") as f:
        return list(csv.DictReader(f))


def once(tmp_path_factory, name, make):
    """A folder that make(folder) fills, once for all processes of a test run (pytest-xdist), which only read it."""
    place = tmp_path_factory.getbasetemp()
    place = (place.parent if "PYTEST_XDIST_WORKER" in os.environ else place) / name
    with FileLock(f"{place}.lock"):
        if not (place / "made").exists():
            place.mkdir()
            make(place)
            (place / "made").touch()
    return place


def argv(stage, folder, runs, *flags, oom="imu"):
    where = ["--data", str(folder), "--oom", oom, "--runs", str(runs), "--device", "cpu"]
    return [*where, *FLAGS[stage].split(), *(w for f in flags for w in str(f).split())]


def stage(name, folder, runs, *flags, oom="imu"):
    """main() in this process; what it printed."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        STAGES[name].main(argv(name, folder, runs, *flags, oom=oom))
    return out.getvalue()


def command(name, folder, runs, *flags, oom="imu", **environment):
    """The keywords of a subprocess that runs the stage."""
    return dict(
        args=[sys.executable, "-u", f"{name}.py", *argv(name, folder, runs, *flags, oom=oom)],
        cwd=ROOT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )


def in_process(command, **_):
    """In the place of subprocess.run, for stages that a stage starts: main() in this process."""
    with contextlib.redirect_stdout(io.StringIO()):
        STAGES[Path(command[1]).stem].main([str(word) for word in command[2:]])
    return subprocess.CompletedProcess(command, 0, "", "")


def heed_interrupts():
    """They are ignored where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def refused(name, folder, runs, *flags, oom="imu", parts=()):
    """The stage ends with one line that contains all `parts`."""
    with pytest.raises(UserError) as caught:
        stage(name, folder, runs, *flags, oom=oom)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    return message


@contextlib.contextmanager
def quickly():
    """Heads of 20 steps instead of 200, and one thread: where nothing asks how good a head is."""
    threads, steps = torch.get_num_threads(), fit_head.__kwdefaults__["steps"]
    torch.set_num_threads(1)
    fit_head.__kwdefaults__["steps"] = 20
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        fit_head.__kwdefaults__["steps"] = steps


def run_dir(runs, setting="semi", seed=0, data="toy", oom="imu"):
    return Place(runs, data, "bind", oom, setting, seed).folder


def tensors(o, prefix=""):
    """{path: tensor} of a nest."""
    if isinstance(o, torch.Tensor):
        return {prefix: o}
    items = o.items() if isinstance(o, dict) else enumerate(o) if isinstance(o, (list, tuple)) else ()
    return {k: v for key, value in items for k, v in tensors(value, f"{prefix}/{key}").items()}


def assert_same(a, b, what=""):
    a, b = tensors(a), tensors(b)
    assert a.keys() == b.keys() and a
    for k in a:
        assert torch.equal(a[k], b[k]), f"{what} {k} differs"


def differ(a, b):
    a, b = tensors(a), tensors(b)
    return any(not torch.equal(a[k], b[k]) for k in a)


def digests(runs):
    return {str(p.relative_to(runs)): files.load(p)["meta"]["digest"] for p in sorted(Path(runs).rglob("*.pt"))}


def no_leftovers(runs):
    assert not [p for p in Path(runs).rglob("*") if p.suffix == ".tmp"]
