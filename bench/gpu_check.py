"""All checks of the CUDA operators in one go: build, tests, benchmarks, compute-sanitizer. Under 10 minutes.

    make gpu-check PYTHON=python3        on a GPU machine, no network

It needs torch with CUDA, nvcc, ninja, pybind11, pytest, pytest-benchmark and hypothesis. A step that fails
does not keep the others from running. Writes bench/results/<device>.md (timings) and <device>-check.md (this list with
the outcomes, date, commit). Exit status 1 if any step failed or did not finish in its time.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RAW = "bench/results/.raw.json"
LIMIT = 580  # seconds in all
OPS = ["nearest_anchor", "modality_agreement", "heads_agreement", "top_anchors", "pairwise_distances", "mmd"]
OPS += ["soft_correspondence"]
SANITIZED = "strided or near_copies or ties_to_the_lowest"  # of the tests, by name: small ones of every operator


def steps(python, commit):
    """(name, command, environment, seconds at most) in order. COX_CUDA_SCREEN=1: the bf16 screen, which is off by
    default."""
    names = [*OPS, "nearest_anchor_adversarial", "ops_registration", "cuda"]
    tests = [f"tests/ops/test_{name}.py" for name in names]
    pytest = [python, "-m", "pytest", "-q", "--maxfail=10"]
    bench = [python, "-m", "pytest", "-q", "--benchmark-columns=median,iqr", f"--benchmark-json={RAW}"]
    write = [python, "bench/write_results.py", RAW, "--commit", commit, "--gpu"]
    major, minor = torch.cuda.get_device_capability()
    build = {"COX_CUDA": "1", "TORCH_CUDA_ARCH_LIST": os.environ.get("TORCH_CUDA_ARCH_LIST", f"{major}.{minor}")}
    yield "build", [python, "setup.py", "build_ext", "--inplace"], build, 240
    yield "report", [python, "-m", "cox_ops"], {}, 30
    yield "tests", [*pytest, *tests, "-m", "cuda"], {}, 180
    screen = {"COX_CUDA_SCREEN": "1"}
    yield (
        "tests, bf16 screen",
        [*pytest, *(t for t in tests if "nearest_anchor" in t or "cuda" in t), "-m", "cuda"],
        screen,
        120,
    )
    yield "benchmark at full size", [*bench, "bench/gpu_nearest_anchor.py"], {}, 180
    yield "its results", write, {}, 30
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    )
    for check in ("memcheck", "racecheck", "synccheck"):
        if tool is None:
            yield f"compute-sanitizer {check}", None, {}, 0
        else:
            command = [
                tool,
                "--tool",
                check,
                "--error-exitcode",
                "9",
                *pytest,
                *tests[:-2],
                "-m",
                "cuda",
                "-k",
                SANITIZED,
            ]
            yield f"compute-sanitizer {check}", command, {**screen, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, 60
    for op in OPS:
        yield f"benchmark of {op}", [*bench, f"bench/bench_{op}.py"], {}, 90
        yield "its results", write, {}, 30


def run(command, env, seconds):
    """(outcome, the output's last line); the whole output goes to the terminal."""
    lines = []
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    # One process that ends the command's whole session in time: reading its output below goes on until then.
    guard = subprocess.Popen(
        ["sh", "-c", f"sleep {max(seconds, 1):.0f}; kill -9 -{process.pid}"], start_new_session=True
    )
    for line in process.stdout:
        print(line, end="", flush=True)
        lines = [*lines[-20:], line.strip()]
    code = process.wait()
    late = guard.poll() is not None
    if not late:
        os.killpg(guard.pid, 9)
    guard.wait()
    outcome = "ok" if code == 0 else f"did not finish in {seconds:.0f} s" if code == -9 else f"FAILED ({code})"
    return outcome, next((x for x in reversed(lines) if x), "")


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--commit", default="unknown")
    args = p.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit(f"error: torch {torch.__version__} sees no GPU")
    (ROOT / "bench/results").mkdir(exist_ok=True)
    begin, rows = time.monotonic(), []
    for name, command, env, most in steps(sys.executable, args.commit):
        print(f"\n======== {name}", flush=True)
        left, start = LIMIT - (time.monotonic() - begin), time.monotonic()
        if command is None:
            outcome, last = "skipped", "compute-sanitizer is not on this machine"
        elif left < 5:
            outcome, last = "did not start: no time left", ""
        else:
            outcome, last = run(command, env, min(most, left))
        rows.append((name, outcome, time.monotonic() - start, last))
        if name == "build" and outcome != "ok":
            break
    device = torch.cuda.get_device_name()
    head = f"{time.strftime('%Y-%m-%d')}, commit {args.commit}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    table = [
        "| step | outcome | s | last line |",
        "|:--|:--|--:|:--|",
        *(f"| {n} | {o} | {s:.0f} | {t.strip('= ').replace('|', '/')[:100]} |" for n, o, s, t in rows),
    ]
    path = ROOT / "bench/results" / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + "-check.md")
    path.write_text("\n".join([f"# {device}: make gpu-check", "", head, "", *table]) + "\n")
    print("\n".join(["", f"{device}, {head}", *table, f"wrote {path}"]))
    return int(any(o not in ("ok", "skipped") for _, o, _, _ in rows))


if __name__ == "__main__":
    sys.exit(main())
