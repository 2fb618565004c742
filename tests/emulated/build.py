"""Builds csrc/cuda as C++ for the CPU (emulate.h) into one library, whose operators replace cox_ops' CPU ones when it
is loaded; a file that did not change is not compiled again.

    python tests/emulated/build.py                       prints the library's path
    COX_EMULATED=1 pytest tests/ops/test_nearest_anchor.py   the tests on the CUDA kernels' source (tests/conftest.py)
"""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CUDA = HERE.parent.parent / "csrc" / "cuda"
OUT = HERE.parent.parent / "build" / "emulated"


def build():
    """The library's path. CXX: the compiler; COX_EMULATED_FLAGS: more flags for it."""
    OUT.mkdir(parents=True, exist_ok=True)
    headers = [*CUDA.glob("*.cuh"), *CUDA.parent.glob("*.h"), HERE / "emulate.h"]
    newest = max(h.stat().st_mtime for h in headers)
    torch_dir = Path(torch.__file__).parent
    more = os.environ.get("COX_EMULATED_FLAGS", "").split()
    flags = "-std=c++17 -O1 -fPIC -ffp-contract=off -fno-math-errno -fno-gnu-unique -Wall -Wno-unknown-pragmas".split()
    flags += ["-DCOX_EMULATED", "-DTORCH_TARGET_VERSION=0x020a000000000000"]
    flags += [f"-I{HERE}", f"-I{torch_dir / 'include'}", *more]
    compiler = os.environ.get("CXX", "c++")
    sources = sorted(CUDA.glob("*.cu"))
    objects = [OUT / (s.stem + ".o") for s in sources]
    old = [
        (s, o) for s, o in zip(sources, objects) if not o.exists() or o.stat().st_mtime < max(newest, s.stat().st_mtime)
    ]

    def compile_one(pair):
        subprocess.run([compiler, *flags, "-x", "c++", "-c", str(pair[0]), "-o", str(pair[1])], check=True)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(compile_one, old))
    library = OUT / "emulated.so"
    if old or not library.exists():
        libraries = [f"-L{torch_dir / 'lib'}", "-ltorch", "-ltorch_cpu", "-lc10"]
        subprocess.run([compiler, "-shared", "-o", str(library), *map(str, objects), *libraries, *more], check=True)
    return library


if __name__ == "__main__":
    print(build())
    sys.exit(0)
