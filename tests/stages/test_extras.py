"""What works with torch, numpy, einops and tqdm alone, and how a library that is missing is named."""

import ast
import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

from cox_oom import files

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("extract_features.py", "train_connect.py", "train_explore.py", "evaluate.py")
REQUIRED = ("torch", "numpy", "einops", "tqdm")
DRAWING = ("cox_oom.report.plots", "cox_oom.report.page")  # imported by stage 4 once matplotlib is known to be here

# Runs in a process that has none of LIBRARIES: every command of a list, with its output and exit status.
ALONE = """
import contextlib, importlib, importlib.machinery, io, json, pkgutil, runpy, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in LIBRARIES:  # looking for it is allowed, as torch does; importing it is not
            return importlib.machinery.ModuleSpec(name, self)

    def create_module(self, spec):
        raise ModuleNotFoundError(f"No module named {spec.name!r}", name=spec.name)

    def exec_module(self, module):
        pass

LIBRARIES, COMMANDS, DRAWING = json.loads(sys.argv[1])
sys.meta_path.insert(0, Blocked())
import cox_ops, cox_oom
from cox_oom import run
for module in pkgutil.walk_packages(cox_oom.__path__, "cox_oom."):
    if module.name not in DRAWING:
        importlib.import_module(module.name)
found = {}
for name, (script, argv) in COMMANDS.items():
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if script.endswith(".py"):
                sys.argv = [script, *argv]
                runpy.run_path(script, run_name="__main__")
            else:                                                 # a function: module:name, its arguments
                module, _, function = script.partition(":")
                run.script(lambda argv: getattr(importlib.import_module(module), function)(*argv), argv)
        except SystemExit as e:
            status = e.code or 0
    found[name] = (status, out.getvalue(), err.getvalue())
loaded = sorted({m.partition(".")[0] for m in sys.modules} & set(LIBRARIES))
print("RESULT" + json.dumps([found, loaded]))
"""

# name of a command below: the error that it ends with
MISSING = {
    "image": "reading images needs Pillow: pip install cox-oom[stages]",
    "image, broken files skipped": "reading images needs Pillow: pip install cox-oom[stages]",
    "sound": "reading sound needs soundfile: pip install cox-oom[stages]",
    "video": "reading video needs av: pip install cox-oom[stages]",
    "spectrogram": "the spectrogram of sound needs kaldi-native-fbank: pip install cox-oom[stages]",
    "resampling": "resampling sound needs scipy: pip install cox-oom[stages]",
    "mosei": "reading a .csd file (HDF5) needs h5py: pip install cox-oom[stages]",
    "nyud": "reading a .mat file of MATLAB 7.3 (HDF5) needs h5py: pip install cox-oom[stages]",
    "synth as a folder": "writing video needs av: pip install cox-oom[stages]",
    "clusters": "naming classes without labels needs scipy: pip install cox-oom[stages]",
    "judge": "judging a run needs scipy: pip install cox-oom[stages]",
    "table": "the report needs matplotlib: pip install cox-oom[stages]",
    "hf": "--perceptor hf:MODEL needs transformers: pip install cox-oom[perceptors]",
    "languagebind": "--perceptor languagebind needs transformers: pip install cox-oom[perceptors]",
    "text": "CLIP's tokenizer needs ftfy: pip install cox-oom[perceptors]",
    "vocabulary": "CLIP's tokenizer needs tokenizers: pip install cox-oom[perceptors]",
    "weights": "reading .safetensors files needs safetensors: pip install cox-oom[perceptors]",
}
WORKS = ("stage 1", "stage 2", "stage 3")


def write_folder(folder):
    """Two sensors as arrays, sentences, and media files that are never decoded. 72 training rows: enough for worker
    processes."""
    rng, table = np.random.default_rng(0), ["id,split,label,sonar,imu,language,rgb,audio,video"]
    for m in ("sonar", "imu", "rgb", "audio", "video"):
        (folder / m).mkdir(parents=True)
    for i in range(96):
        c, split = i % 3, "train" if i < 72 else "val" if i < 81 else "test"
        for m in ("sonar", "imu"):
            np.save(folder / m / f"{i}.npy", (rng.normal(size=(2, 12)) + c).astype(np.float32))
        for m, end in (("rgb", "png"), ("audio", "wav"), ("video", "mp4")):
            (folder / m / f"{i}.{end}").write_bytes(bytes(48))
        table.append(
            f"{i},{split},{'cup key pen'.split()[c]},sonar/{i}.npy,imu/{i}.npy,a {'cup key pen'.split()[c]},"
            f"rgb/{i}.png,audio/{i}.wav,video/{i}.mp4"
        )
    (folder / "manifest.csv").write_text("\n".join(table) + "\n")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """({command: (exit status, stdout, stderr)}, libraries that were imported all the same)."""
    place = tmp_path_factory.mktemp("alone")
    data, runs = place / "robot", place / "runs"
    write_folder(data)
    (place / "mosei").mkdir()
    (place / "mosei" / "CMU_MOSEI_Labels.csd").write_bytes(b"\x89HDF")
    (place / "nyud").mkdir()
    (place / "nyud" / "nyu_depth_v2_labeled.mat").write_bytes(b"\x89HDF")
    (place / "nyud" / "splits.mat").write_bytes(b"MATLAB")
    (place / "model.safetensors").write_bytes(bytes(8))

    def stage(script, *argv, data=data):
        return script, ["--data", str(data), "--runs", str(runs), "--device", "cpu", *argv]

    def extract(im, *more, data=data):
        small = ("--bind-epochs", "1", "--bind-width", "8", "--bind-dim", "8", "--image-size", "8")
        return stage("extract_features.py", "--oom", "sonar", "--im", im, *small, *more, data=data)

    def root(name, *more):
        return stage("extract_features.py", "--root", str(place / name), "--oom", "rgb", *more, data=name)

    small = "--oom sonar --width 16 --depth 1 --slice 4 --warmup-epochs 1 --connect-steps 2".split()
    short = "--oom sonar --epochs 2 --refreshes 2 --connect-steps 2".split()
    commands = {
        "stage 1": extract("imu,language"),
        "stage 2": stage("train_connect.py", *small),
        "stage 3": stage("train_explore.py", *short),
        "judge": stage("evaluate.py"),
        "table": stage("evaluate.py", "--table"),
        "clusters": stage("train_connect.py", *small, "--setting", "unsup", "--init", "spectral"),
        "image": extract("rgb", "--workers", "2"),
        "image, broken files skipped": extract("rgb", "--workers", "0", "--on-error", "skip"),
        "sound": extract("audio"),
        "video": extract("video"),
        "spectrogram": stage("extract_features.py", "--oom", "audio", "--im", "language", data="synth"),
        "resampling": ("cox_oom.perceptors.preprocess:resample", [[0.0] * 441, 44100, 16000]),
        "mosei": root("mosei", "--option", "classes=emotion"),
        "nyud": root("nyud"),
        "synth as a folder": ("cox_oom.data.synth:main", [[str(place / "synth")]]),
        "hf": extract("language", "--perceptor", f"hf:{place}"),
        "languagebind": ("cox_oom.perceptors.languagebind:load", [["text"]]),
        "text": ("cox_oom.perceptors.preprocess:clean", ["a cup"]),
        "vocabulary": ("cox_oom.perceptors.preprocess:_tokenizer", [str(place)]),
        "weights": ("cox_oom.perceptors.weights:read", [str(place / "model.safetensors")]),
    }
    given = json.dumps([sorted(files.LIBRARIES), commands, DRAWING])
    run = subprocess.run([sys.executable, "-c", ALONE, given], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.rpartition("RESULT")[2])


@pytest.mark.parametrize("name", MISSING)
def test_a_missing_library_is_named_in_one_line(alone, name):
    status, _, err = alone[0][name]
    assert (status, err) == (2, f"error: {MISSING[name]}\n")


@pytest.mark.parametrize("name", WORKS)
def test_three_stages_need_no_extra(alone, name):
    status, out, err = alone[0][name]
    assert (status, "error" in err) == (0, False), err
    assert alone[1] == []


def test_a_library_that_cannot_be_imported_says_why(monkeypatch, tmp_path):
    (tmp_path / "h5py.py").write_text("raise ImportError('libhdf5.so:\\nnot found')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "h5py", raising=False)
    with pytest.raises(files.MissingLibrary) as e:
        files.optional("h5py", "reading it")
    assert str(e.value) == (
        "reading it needs h5py, which is here but cannot be imported (libhdf5.so: not found): "
        "pip install cox-oom[stages]"
    )


def imports(path):
    """(name, whether at the module's top level) of every import of a file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        names = (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [node.module]
            if isinstance(node, ast.ImportFrom) and not node.level
            else []
        )
        yield from ((n.partition(".")[0], node in tree.body) for n in names)


def test_every_other_library_is_known_and_imported_where_it_is_used():
    own = {"cox_ops", "cox_oom"}
    for path in [*(ROOT / "cox_oom").rglob("*.py"), *(ROOT / "cox_ops").glob("*.py"), *(ROOT / s for s in SCRIPTS)]:
        for name, top in imports(path):
            if name not in (*sys.stdlib_module_names, *REQUIRED, *own):
                assert name in files.LIBRARIES, f"{path}: {name}"
                module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
                assert not top or module in DRAWING, f"{path} imports {name} at the top"


def test_without_an_installation_the_version_says_so():
    code = (
        "from importlib import metadata\n"
        "def version(name): raise metadata.PackageNotFoundError(name)\n"
        "metadata.version = version\n"
        "import cox_ops, cox_oom; print(cox_ops.__version__, cox_oom.__version__)"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["0+not.installed"] * 2


def test_the_extras_are_those_of_the_distribution():
    try:
        needs = metadata.requires("cox-oom")
    except metadata.PackageNotFoundError:
        pytest.skip("cox-oom is not installed")
    of = {"": set()}
    for line in needs:
        name, _, marker = line.partition(";")
        extra = marker.partition("==")[2].strip().strip("\"'")
        of.setdefault(extra, set()).add(name.split(">")[0].split("<")[0].strip())
    assert of[""] == set(REQUIRED)
    for extra in ("stages", "perceptors"):
        assert of[extra] == {package for package, e in files.LIBRARIES.values() if e == extra}
