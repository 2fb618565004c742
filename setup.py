"""Builds cox_ops._C (CPU operators and the build report) and, where torch has CUDA, cox_ops._cuda.

    python setup.py build_ext --inplace        incremental, for working on the kernels
    pip install --no-build-isolation -e .      against the torch that is installed
    make wheel                                 for other machines: a wheel and the source as dist/*

Environment: COX_CUDA=0|1 (never | must; default: where torch has CUDA and a toolkit is found),
COX_DEBUG=1 (-O0 -g), COX_NATIVE=1 (-march=native), COX_SANITIZE=1 (AddressSanitizer and
UndefinedBehaviorSanitizer in the CPU operators; see `make sanitize`), TORCH_CUDA_ARCH_LIST, MAX_JOBS.
"""

import os
import subprocess
import sys
from pathlib import Path

import pybind11
import setuptools
import torch
from torch.utils import cpp_extension

CSRC = Path("csrc")  # relative: setuptools refuses absolute source paths
TARGET = "0x020a000000000000"  # stable libtorch ABI of torch 2.10
ARCHS = ["8.0", "9.0", "10.0"]


def decide_cuda():
    """True where the CUDA library is to be built. A visible GPU plays no part: build machines have none."""
    has_torch, has_toolkit = torch.version.cuda is not None, cpp_extension.CUDA_HOME is not None
    facts = f"torch {torch.__version__} (CUDA {torch.version.cuda}), CUDA_HOME {cpp_extension.CUDA_HOME}"
    wish = os.environ.get("COX_CUDA", "")
    if wish not in ("", "0", "1"):
        raise SystemExit(f"COX_CUDA must be 0 or 1, got {wish!r}")
    cuda = wish != "0" and has_torch and has_toolkit
    if wish == "1" and not cuda:
        raise SystemExit(
            f"COX_CUDA=1, but the CUDA operators cannot be built here: {facts}. They need "
            "a torch built with CUDA and a toolkit (set CUDA_HOME)."
        )
    decision = "building" if cuda else "not building"
    print(f"cox_ops: {decision} the CUDA operators: COX_CUDA={wish or 'unset'}, {facts}")
    return cuda


def arch_list():
    """TORCH_CUDA_ARCH_LIST, set (if unset) to those of ARCHS that this toolkit knows; the newest also as
    PTX."""
    if "TORCH_CUDA_ARCH_LIST" not in os.environ:
        nvcc = Path(cpp_extension.CUDA_HOME) / "bin" / "nvcc"
        known = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True, check=True).stdout
        archs = [a for a in ARCHS if f"compute_{a.replace('.', '')}" in known.split()]
        os.environ["TORCH_CUDA_ARCH_LIST"] = ";".join(archs) + "+PTX"
    return os.environ["TORCH_CUDA_ARCH_LIST"]


def extensions():
    debug, native, sanitized = (os.environ.get(f"COX_{w}") == "1" for w in ("DEBUG", "NATIVE", "SANITIZE"))
    if "bdist_wheel" in sys.argv and (debug or native or sanitized):
        raise SystemExit(
            "COX_NATIVE, COX_DEBUG and COX_SANITIZE are for builds that stay on this machine "
            "(build_ext --inplace, pip install -e .). A wheel runs on others: leave them out."
        )
    cuda = decide_cuda()
    archs = arch_list() if cuda else "none"
    # No fast-math on either side. fp-contract=off: where the CPU kernels want an FMA they say so, so that a sum
    # does not depend on what the compiler made of one loop; nvcc makes FMAs as it likes. -fopenmp: without it
    # torch's parallel_for is silently serial.
    opt = ["-O0", "-g"] if debug else ["-O3"]
    cxx = [
        "-std=c++17",
        "-fopenmp",
        "-ffp-contract=off",
        "-fno-math-errno",
        "-fvisibility=hidden",
        f"-DTORCH_TARGET_VERSION={TARGET}",
        *opt,
    ]
    if not (debug or sanitized):
        cxx.append("-g0")  # Python's own flags often have -g: a library of 10 MB in place of 1 MB
    if native:
        cxx.append("-march=native")
    sanitize = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"] if sanitized else []
    if sanitized:
        cxx += ["-Og", "-g1", "-fno-omit-frame-pointer"]  # compiles in a third of the time that -O1 -g takes
    built = [f"-DCOX_BUILD_TORCH={torch.__version__}", f"-DCOX_BUILD_CUDA={archs.replace(';', ',').replace(' ', ',')}"]
    headers = sorted(str(p) for pattern in ("*.h", "*.cuh") for p in CSRC.rglob(pattern))
    found = [
        cpp_extension.CppExtension(
            "cox_ops._C",
            [str(CSRC / "ops.cpp"), *sorted(str(p) for p in (CSRC / "cpu").glob("*.cpp"))],
            include_dirs=[pybind11.get_include()],
            depends=headers,
            extra_compile_args={"cxx": [*cxx, *built, *sanitize]},
            extra_link_args=["-fopenmp", *sanitize],
        )
    ]
    if cuda:
        nvcc = [
            "-std=c++17",
            "--expt-relaxed-constexpr",
            "-lineinfo",
            "-DUSE_CUDA",
            f"-DTORCH_TARGET_VERSION={TARGET}",
            *opt,
        ]
        found.append(
            cpp_extension.CUDAExtension(
                "cox_ops._cuda",
                sorted(str(p) for p in (CSRC / "cuda").glob("*.cu")),
                depends=headers,
                extra_compile_args={"cxx": cxx, "nvcc": nvcc},
            )
        )
    return found


class WithoutMetadata(setuptools.Distribution):
    """For a setuptools that cannot read pyproject.toml: building in place needs nothing of it."""

    def parse_config_files(self, *args, **kwargs):
        pass


old = int(setuptools.__version__.split(".")[0]) < 77
if old and "build_ext" not in sys.argv:
    raise SystemExit(f"setuptools {setuptools.__version__} is too old: pip install 'setuptools>=77'")
setuptools.setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": cpp_extension.BuildExtension},
    distclass=WithoutMetadata if old else setuptools.Distribution,
)
