"""Install the wheel where nothing else is, without a compiler, and run the operators' tests on it.

    make wheel-check                        builds dist/* first
    OTHER/python tests/wheel_check.py       the same wheel with the torch of another environment, which has pytest and
                                            hypothesis

The environment is new and holds the wheel, what the wheel requires, pytest and hypothesis. These are links to what
this Python has, so that nothing is downloaded. The tests are copied to another folder, so that the working tree's
packages are out of sight. Exit status 1 where a check fails.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from email.parser import Parser
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
REQUIRED = {"torch", "numpy", "einops", "tqdm"}
IMPORT_ALL = """
import importlib, pkgutil, cox_ops, cox_oom
for module in pkgutil.walk_packages(cox_oom.__path__, "cox_oom."):
    if module.name not in ("cox_oom.report.plots", "cox_oom.report.page"):      # they draw: matplotlib
        importlib.import_module(module.name)
print(cox_ops.__file__, cox_oom.__file__, cox_ops.__version__, cox_oom.__version__)
print(cox_ops._C.build_info()["isa_baseline"])
"""
IN_SOURCE = (
    "setup.py",
    "pyproject.toml",
    "csrc/ops.cpp",
    "csrc/common.h",
    "csrc/cpu/tile.h",
    "csrc/cuda/mma.cuh",
    "LICENSE",
    "README.md",
    "Makefile",
    "train_connect.py",
    "tests/ops/test_mmd.py",
)


def check(right, what):
    if not right:
        raise SystemExit(f"error: {what}")


def only(folder, pattern):
    found = sorted(folder.glob(pattern))
    check(len(found) == 1, f"{folder}/{pattern}: {len(found)} files, one is wanted; run: make wheel")
    return found[0]


def look_into(wheel, source):
    """What the two archives hold; the packages that the wheel requires."""
    names = zipfile.ZipFile(wheel).namelist()
    packages = {top for n in names if not (top := n.split("/")[0]).endswith(".dist-info")}
    check(packages == {"cox_ops", "cox_oom"}, f"{wheel.name} installs {', '.join(sorted(packages))}")
    for wanted in ("cox_ops/py.typed", "cox_oom/py.typed", "cox_ops/_C.pyi", "dist-info/licenses/LICENSE"):
        check(any(n.endswith(wanted) for n in names), f"{wheel.name} lacks {wanted}")
    check(sum(n.endswith(".so") for n in names) >= 1, f"{wheel.name} has no compiled operators")
    with tarfile.open(source) as f:
        held = {n.partition("/")[2] for n in f.getnames()}
    check(held >= set(IN_SOURCE), f"{source.name} lacks {', '.join(sorted(set(IN_SOURCE) - held))}")
    text = next(zipfile.ZipFile(wheel).read(n).decode() for n in names if n.endswith(".dist-info/METADATA"))
    needs = [Requirement(r) for r in Parser().parsestr(text).get_all("Requires-Dist")]
    needs = {r.name for r in needs if r.marker is None or r.marker.evaluate({"extra": ""})}
    check(needs == REQUIRED, f"{wheel.name} requires {', '.join(sorted(needs))}")
    return needs


def closure(names):
    """The distributions of these names here, and all that they require."""
    found, waiting = {}, list(names)
    while waiting:
        key = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if key in found:
            continue
        try:
            found[key] = metadata.distribution(key)
        except metadata.PackageNotFoundError:
            continue  # one that another platform needs, or pip check says so below
        waiting += [
            r.name
            for r in map(Requirement, found[key].requires or ())
            if r.marker is None or r.marker.evaluate({"extra": ""})
        ]
    return found.values()


def link(distributions, site):
    """Their modules and packages as links in `site`."""
    for d in distributions:
        for top in {f.parts[0] for f in d.files or () if f.parts[0] not in ("..", "__pycache__")}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(d.locate_file(top)).resolve())


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--dist", type=Path, default=ROOT / "dist", help="folder of the wheel and the source distribution")
    p.add_argument("--tests", default="tests/ops", help="what pytest runs on the installed wheel")
    args, start = p.parse_args(argv), time.time()
    wheel, source = only(args.dist, "cox_oom-*.whl"), only(args.dist, "cox_oom-*.tar.gz")
    needs = look_into(wheel, source)
    with tempfile.TemporaryDirectory() as place:
        place = Path(place).resolve()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "venv"], check=True)
        python = place / "venv" / "bin" / "python"
        site = next((place / "venv" / "lib").glob("python*/site-packages"))
        link(closure({*needs, "pytest", "hypothesis"}), site)
        pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
        subprocess.run([*pip, "install", "-q", "--no-deps", "--no-index", wheel], check=True)
        subprocess.run([*pip, "check"], check=True)

        (place / "work").mkdir()
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "tests" / "ops", place / "work" / "tests" / "ops", ignore=unwanted)
        shutil.copy(ROOT / "tests" / "conftest.py", place / "work" / "tests")
        shutil.copy(ROOT / "pyproject.toml", place / "work")  # pytest's settings
        env = {k: v for k, v in os.environ.items() if k not in ("CC", "CXX", "PYTHONPATH", "CUDA_HOME")}
        env["PATH"] = str(python.parent)
        compilers = [c for c in ("c++", "g++", "clang++", "cc", "ninja") if shutil.which(c, path=env["PATH"])]
        check(not compilers, f"{', '.join(compilers)} is in sight")

        def run(*command):
            return subprocess.run([python, *command], cwd=place / "work", env=env, stdout=subprocess.PIPE, text=True)

        done = run("-c", IMPORT_ALL)
        check(done.returncode == 0, "the installed packages cannot be imported")
        *files, one, two, baseline = done.stdout.split()
        check(all(Path(f).is_relative_to(site) for f in files), f"imported from elsewhere: {', '.join(files)}")
        check(one == two == wheel.name.split("-")[1], f"versions: cox_ops {one}, cox_oom {two}, {wheel.name}")
        check(baseline == "plain", f"the wheel needs {baseline}: built with -march=native or the like")
        print(run("-m", "cox_ops").stdout)
        sizes = "; ".join(f"{f.name}: {f.stat().st_size / 1e6:.2f} MB" for f in (wheel, source))
        print(f"{sizes}; installed and imported after {time.time() - start:.0f} s", flush=True)
        tests = subprocess.run(
            [python, "-m", "pytest", *args.tests.split(), "-q", "-p", "no:cacheprovider"], cwd=place / "work", env=env
        )
        check(tests.returncode == 0, "the operators' tests fail on the installed wheel")
    print(f"the wheel is good; {time.time() - start:.0f} s")


if __name__ == "__main__":
    main()
