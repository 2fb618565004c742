"""Compiles every csrc/cuda/*.cu and csrc/dev/*.cu for sm_80, sm_90 and sm_100, or for the kinds that are given
("90 100"), against any torch, without a GPU and without linking.

Prints registers, shared memory and spills of each kernel as ptxas reports them; a hot kernel (HOT) that spills is a
failure. Without nvcc: says so and succeeds, unless COX_REQUIRE_NVCC=1. nvcc is that of CUDA_HOME, of PATH, or of
/usr/local/cuda*.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS

CUDA_DIR = Path(__file__).resolve().parent / "cuda"
DEV_DIR = CUDA_DIR.parent / "dev"
ARCHS = sys.argv[1:] or [80, 90, 100]
# The kernels in which an operator's time goes.
HOT = ["screen", "direct", "exact", "nearest_parts", "agreement", "distances", "one_side", "kernel_sums", "add_pulls"]
HOT += ["masses", "by_readings", "by_items"]  # of soft_correspondence


def find_nvcc():
    places = [Path(os.environ[v]) for v in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(v)]
    for place in [*places, *sorted(Path("/usr/local").glob("cuda*"), reverse=True)]:
        if (place / "bin" / "nvcc").exists():
            return str(place / "bin" / "nvcc")
    return shutil.which("nvcc")


def compile_one(nvcc, source, out):
    includes = Path(torch.__file__).parent / "include"
    command = [
        nvcc,
        "-c",
        str(source),
        "-o",
        str(Path(out) / f"{source.parents[1].name}-{source.stem}.o"),
        "-std=c++17",  # without -O3, which is for the host's code alone
        *COMMON_NVCC_FLAGS,
        "-lineinfo",
        "-DUSE_CUDA",
        "-DTORCH_TARGET_VERSION=0x020a000000000000",
        "-Xptxas",
        "-v",
        "-I",
        str(includes),
        "-Xcompiler",
        "-fPIC",
        *(f"-gencode=arch=compute_{a},code=sm_{a}" for a in ARCHS),
    ]
    return subprocess.run(command, capture_output=True, text=True)


def summary(log):
    """(arch, kernel, registers, shared bytes, spilled bytes) of each kernel in ptxas' report."""
    rows = []
    for block in re.split(r"(?=Compiling entry function)", log)[1:]:
        name, arch = re.search(r"entry function '(\w+)' for 'sm_(\d+)", block).groups()
        spills = sum(int(n) for n in re.findall(r"(\d+) bytes spill", block))
        regs = re.search(r"Used (\d+) registers", block)
        shared = re.search(r"(\d+) bytes smem", block)
        rows.append((int(arch), name, *(int(m.group(1)) if m else 0 for m in (regs, shared)), spills))
    names = "\n".join(r[1] for r in rows)
    if shutil.which("c++filt"):
        names = subprocess.run(["c++filt", "-p"], input=names, capture_output=True, text=True).stdout
    clutter = r"\(anonymous namespace\)::|cox::cuda::|torch::headeronly::|c10::"
    short = [re.sub(clutter, "", n) for n in names.splitlines()]
    return [(r[0], n, *r[2:]) for r, n in zip(rows, short)]


def main():
    nvcc = find_nvcc()
    if nvcc is None:
        print("nvcc-check: skipped: no nvcc found (set CUDA_HOME)")
        return int(os.environ.get("COX_REQUIRE_NVCC") == "1")
    sources = [*sorted(CUDA_DIR.glob("*.cu")), *sorted(DEV_DIR.glob("*.cu"))]
    failed = []
    spilled = []
    seen = set()
    print(f"nvcc-check: {nvcc}, torch {torch.__version__}, {', '.join(f'sm_{a}' for a in ARCHS)}")
    with tempfile.TemporaryDirectory() as out, ThreadPoolExecutor(os.cpu_count()) as pool:
        for source, done in zip(sources, pool.map(lambda s: compile_one(nvcc, s, out), sources)):
            print(f"{source.relative_to(DEV_DIR.parents[1])}: {'ok' if done.returncode == 0 else 'FAILED'}")
            if done.returncode:
                print(done.stdout + done.stderr)
                failed.append(source.name)
            for arch, name, regs, shared, spills in summary(done.stdout + done.stderr):
                base = re.sub(r"<.*|\(.*", "", name)
                hot = base in HOT
                seen.add(base)
                print(
                    f"  sm_{arch:<4} {regs:4d} registers {shared:6d} B shared {spills:4d} B spilled"
                    f"  {name}{'  (hot)' if hot else ''}"
                )
                if hot and spills:
                    spilled.append(f"{name} on sm_{arch} ({spills} B)")
    fine = len(sources) - len(failed)
    print(f"nvcc-check: {fine} of {len(sources)} files compile; hot kernels that spill: {', '.join(spilled) or 'none'}")
    missing = [] if failed else sorted(set(HOT) - seen)
    if missing:
        print(f"nvcc-check: no kernel is named {', '.join(missing)}: mend HOT")
    return int(bool(failed or spilled or missing))


if __name__ == "__main__":
    sys.exit(main())
