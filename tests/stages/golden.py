"""Golden digests: what about eighty small runs of the four stages write, so that a change of structure can show that no
bit moved.

    python -m tests.stages.golden            compare with tests/stages/golden.json; exit status 1 where a digest differs
    python -m tests.stages.golden --write    write that file anew (say in the commit why numbers changed)

Every run is of seconds, at one thread, on the CPU. A digest is the content digest of a `.pt` file (its `meta` aside),
or of a METHOD.json without times and versions. Digests are kept by the arithmetic of the machine: `probe` runs a few
torch functions and hashes the results, since another processor rounds differently. The shapes of all tensors are kept
once for all machines.
"""

import argparse
import contextlib
import csv
import hashlib
import importlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from cox_oom import files
from cox_oom.report import page

FILE = Path(__file__).resolve().with_name("golden.json")
EXTRACT = "--image-size 8 --bind-epochs 2 --bind-width 8 --bind-dim 8 --workers 0"
CONNECT = (
    "--width 16 --depth 1 --patch 4 --warmup-epochs 2 --batch 16 --labelled-batch 8 --connect-steps 4 --labels 0.2"
)
EXPLORE = "--epochs 3 --batch 16 --labelled-batch 8 --connect-steps 3 --refreshes 2 --queue 64 --rounds 2"
METHODS = {"semi": "random erm entmin moco ssl fixmatch selftrain cox aligned", "unsup": "random moco ssl cox aligned"}
NOT_COMPARED = ("seconds", "connect_seconds", "torch", "command", "correct")  # the last: accuracy has its mean


def write_folder(path, alone=()):
    """A folder with manifest.csv: rgb (8 x 8 png), imu (2, T) of varying T, language; 60 train, 12 val, 30 test rows
    that have all three, and as many more that have only one of `alone`, which the first then lack."""
    from PIL import Image

    rng, rows, words = np.random.default_rng(0), [], ("cup", "key", "pen")
    for part in [(), *((m,) for m in alone)]:
        for split, count in zip(("train", "val", "test"), (60, 12, 30)):
            for k in range(count):
                c, name = k % 3, f"{'_'.join(part) or 'i'}{split}{k}"
                picture = rng.integers(0, 120, (8, 8, 3))
                picture[:, :, c] += 100
                t = np.arange(rng.integers(8, 21))
                wave = np.stack([np.sin(t * (0.3 + 0.5 * c)), t / 20 * (c - 1)])
                wave = wave + 0.3 * rng.standard_normal(wave.shape)
                cells = {
                    "rgb": f"rgb/{name}.png",
                    "imu": f"imu/{name}.npy",
                    "language": f"a {('red', 'long', 'small')[c]} {words[c]} number {rng.integers(9)}",
                }
                cells = {m: v if (m in part if part else m not in alone) else "" for m, v in cells.items()}
                for m in ("rgb", "imu"):
                    (path / m).mkdir(parents=True, exist_ok=True)
                if cells["rgb"]:
                    Image.fromarray(picture.astype(np.uint8)).save(path / cells["rgb"])
                if cells["imu"]:
                    np.save(path / cells["imu"], wave.astype(np.float32))
                rows.append([name, split, words[c], *(cells[m] for m in ("rgb", "imu", "language"))])
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([("id", "split", "label", "rgb", "imu", "language"), *rows])
    return path


class Tree:
    """The stages on one data set and modality, written under one folder of runs."""

    def __init__(self, runs, data, oom, extract="", connect="", setting="semi"):
        self.where = ["--runs", str(runs), "--data", str(data)]
        self.oom, self.setting = oom, setting
        self("extract_features", "--oom", oom, *EXTRACT.split(), *extract.split())
        self("train_connect", "--oom", oom, "--setting", setting, *CONNECT.split(), *connect.split())

    def __call__(self, script, *flags):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            importlib.import_module(script).main([*self.where, "--device", "cpu", *flags])

    def explore(self, method, tag="", flags=""):
        which = ["--oom", self.oom, "--setting", self.setting, "--method", method]
        self("train_explore", *which, *EXPLORE.split(), *(["--tag", tag] if tag else []), *flags.split())

    def evaluate(self, *flags):
        self("evaluate", *flags)


def stopped(tree, method, tag):
    """A run that is interrupted while its second checkpoint is written, then goes on from the first."""
    save, count = torch.save, [0]

    def interrupt(obj, file, *more, **options):
        count[0] += ".checkpoint.pt" in str(file)
        if count[0] == 2:
            raise KeyboardInterrupt
        return save(obj, file, *more, **options)

    torch.save = interrupt
    try:
        tree.explore(method, tag, "--refreshes 3")
    except KeyboardInterrupt:
        pass
    else:
        raise RuntimeError("the run was to be stopped")
    finally:
        torch.save = save
    tree.explore(method, tag, "--refreshes 3")


def make(base):
    """All runs, under the folder `base`."""
    world, apart = write_folder(base / "world"), write_folder(base / "apart", alone=("imu",))

    semi = Tree(base / "runs" / "semi", world, "imu")
    for method in METHODS["semi"].split():
        semi.explore(method)
    for part in ("connection", "exploration", "emergent"):
        semi.explore("cox", f"no-{part}", f"--without {part}")
    semi.explore("cox", "no-two", "--without connection,emergent")
    for method in ("cox", "selftrain"):
        semi.explore(method, "literal", "--kl literal")
        semi.explore(method, "rounds-0", "--rounds 0")
        semi.explore(method, "free", "--shares free")
        semi.explore(method, "refit-0", "--refit 0")
        semi.explore(method, "weights", "--w-agree 0.5 --w-disagree 0 --temper 0.7")
        stopped(semi, method, "stopped")
    semi.explore("cox", "no-im", "--w-im 0")
    semi.explore("cox", "once", "--refreshes 1")
    semi.explore("cox", "no-epoch", "--epochs 0")
    semi.explore("cox", "no-steps", "--connect-steps 0")
    semi.explore("moco", "flags", "--w-entropy 0.1 --momentum 0.9 --temperature 0.5")
    semi.explore("fixmatch", "low", "--threshold 0.4")
    semi.explore("ssl", "flags", "--noise 0.1 --w-ssl 3")
    stopped(semi, "moco", "stopped")
    stopped(semi, "erm", "stopped")
    semi.evaluate("--task", "retrieval", "--table")
    semi.evaluate("--table")

    for name, connect, methods in (
        ("seed1", "--seed 1", "erm cox"),
        ("holdout", "--holdout 0.4", "erm selftrain cox"),
        ("per-class", "--per-class 2", "erm selftrain cox"),
        ("all", "--labels 1", "aligned"),
        ("no-warmup", "--without warmup", "erm cox"),
        ("no-connection", "--without connection", "erm cox"),
        ("losses", "--w-ce 0.5 --w-kl 0.5 --beta 0.01", "erm cox"),
    ):
        tree = Tree(base / "runs" / name, world, "imu", connect=connect)
        for method in methods.split():
            tree.explore(method, flags="--seed 1" if name == "seed1" else "")
        tree.evaluate("--task", "retrieval")

    classes = Tree(base / "runs" / "by-class", apart, "imu", connect="--pair-by-class")
    for method in ("erm", "selftrain", "cox"):
        classes.explore(method)
    classes.evaluate("--table")

    for name, connect in (("literal", ""), ("spectral", "--init spectral"), ("named", "--init spectral --name-with 1")):
        tree = Tree(base / "runs" / name, world, "imu", connect=connect, setting="unsup")
        for method in METHODS["unsup"].split() if name == "literal" else ("cox",):
            tree.explore(method)
        for part in ("connection", "exploration", "emergent"):
            tree.explore("cox", f"no-{part}", f"--without {part}")
        tree.evaluate("--task", "retrieval", "--table")
    tree = Tree(base / "runs" / "no-warmup-unsup", world, "imu", connect="--without warmup", setting="unsup")
    tree.explore("cox", flags="--without warmup")

    tree = Tree(base / "runs" / "text", world, "language")
    for method in METHODS["semi"].split():
        tree.explore(method)

    synth = Tree(
        base / "runs" / "synth", "synth", "tactile", extract="--im rgb,language", connect="--labels 0.05 --batch 128"
    )
    for method in METHODS["semi"].split():
        synth.explore(method, flags="--batch 128")
    synth.evaluate("--table")
    synth = Tree(
        base / "runs" / "synth", "synth", "tactile", extract="--im rgb,language", connect="--batch 128", setting="unsup"
    )
    for method in METHODS["unsup"].split():
        synth.explore(method, flags="--batch 128")
    synth.evaluate("--table")


def hashed(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def outline(obj, name=""):
    """The keys, shapes and dtypes of a nest, as text; of novelty's means how many there are is left out: it is how many
    classes a learner names, which differs by machine."""
    if isinstance(obj, torch.Tensor):
        return f"{obj.dtype}{tuple(obj.shape)[name == 'means' :]}"
    if isinstance(obj, dict):
        return {str(k): outline(v, str(k)) for k, v in sorted(obj.items(), key=lambda i: str(i[0])) if k != "meta"}
    if isinstance(obj, (list, tuple)):
        return [outline(v) for v in obj]
    return type(obj).__name__


def digest_of(path):
    """The digests of a .pt file's content and of its outline, without what is later than the golden file."""
    file = {k: v for k, v in torch.load(path, weights_only=True).items() if k != "meta"}
    return files.digest(file), hashed(json.dumps(outline(file)))


def digests(base):
    """({path: digest}, {path: digest of its outline}) of everything under base/runs that is compared."""
    bits, shapes = {}, {}
    for path in sorted((base / "runs").rglob("*")):
        name = path.relative_to(base / "runs").as_posix()
        if path.suffix == ".pt":
            bits[name], shapes[name] = digest_of(path)
        elif path.suffix == ".json" and path.parent.name.startswith("seed"):
            record = {k: v for k, v in json.loads(path.read_text()).items() if k not in NOT_COMPARED}
            record["made_from"] = {path.stem: digest_of(path.with_suffix(".pt"))[0]}
            bits[name] = hashed(json.dumps(record, sort_keys=True))
        elif path.name == "table.md":
            bits[name] = hashed(path.read_text())
    return bits, shapes


def probe():
    """What names this machine's arithmetic: a digest of a few torch functions at one thread."""
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(65, 65, generator=g) for _ in range(2))
    parts = [
        a @ b,
        a.exp(),
        a.softmax(1),
        torch.linalg.svd(a.double())[1],
        torch.nn.functional.gelu(a),
        a.std(0),
        torch.tanh(b),
        torch.nn.functional.conv1d(a[None], b[:, :, None]),
        torch.nn.functional.scaled_dot_product_attention(*(t.view(1, 5, 13, 65) for t in (a, b, a))),
        torch.linalg.inv(a),
    ]
    return f"{torch.__version__.split('+')[0]}-" + hashed(json.dumps([p.flatten().tolist() for p in parts]))


@contextlib.contextmanager
def one_thread():
    """One thread, and pages without pictures, which nothing here compares."""
    before, drawn = torch.get_num_threads(), page.picture
    torch.set_num_threads(1)
    page.picture = lambda figure, words: ""
    try:
        yield
    finally:
        torch.set_num_threads(before)
        page.picture = drawn


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--write", action="store_true", help="write golden.json in place of comparing with it")
    p.add_argument("--keep", metavar="DIR", help="a new folder for the runs; left out: a temporary one")
    args = p.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary, one_thread():
        base = Path(args.keep or temporary)
        make(base)
        bits, shapes = digests(base)
        machine = probe()
    known = json.loads(FILE.read_text()) if FILE.exists() else {"shapes": {}, "bits": {}}
    print(f"{len(bits)} digests on {machine}")
    if args.write:
        same = known["shapes"] == shapes
        FILE.write_text(
            json.dumps({"shapes": shapes, "bits": {**(known["bits"] if same else {}), machine: bits}}, indent=0) + "\n"
        )
        return 0
    wrong = differences(known, machine, bits, shapes)
    print("\n".join(wrong) or "all equal")
    return bool(wrong)


def differences(known, machine, bits, shapes):
    """What differs from golden.json, a line each; the bits only where this machine's arithmetic is known there."""
    found = [("shapes", known["shapes"], shapes)]
    if machine in known["bits"]:
        found.append(("bits", known["bits"][machine], bits))
    else:
        print(f"golden.json has no bits for {machine}: only shapes are compared")
    return [
        f"{what} of {name}: {old.get(name)} -> {new.get(name)}"
        for what, old, new in found
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


if __name__ == "__main__":
    sys.exit(main())
