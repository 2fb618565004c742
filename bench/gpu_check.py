"""All checks on a GPU in one go: build, tests, stage 3, compute-sanitizer, benchmarks. Under 10 minutes.

    make gpu-check PYTHON=python3        on a GPU machine, no network

It needs torch with CUDA, nvcc, ninja, pybind11, einops, tqdm, pytest, pytest-benchmark and hypothesis. A step that
fails does not keep the others from running. Writes bench/results/<device>.md (timings) and, after each step,
<device>-check.md (this list with the outcomes, date, commit). COX_GPU_CHECK_SECONDS: how long it may take. Benchmarks
of single operators come last, and those for which no time is left are left out. Exit status 1 if any other step failed
or did not finish in its time.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
RAW = "bench/results/.raw.json"
LIMIT = float(os.environ.get("COX_GPU_CHECK_SECONDS", "540"))  # seconds in all, without this process's own start
OPS = ["soft_correspondence", "nearest_anchor", "modality_agreement", "heads_agreement", "top_anchors"]
OPS += ["pairwise_distances", "mmd"]
SPARE = "benchmark of "  # how the names of the steps begin that are left out where their whole time is not left
# Of the tests, by name: small ones of every operator, of both passes of mmd and of nearest_anchor's exact search.
SANITIZED = "strided or near_copies or ties_to_the_lowest or all_rows_equal or bandwidths_are_constants"
# Of compute-sanitizer, where this version has them: failed calls by which torch looks for what a driver can do, and the
# kernels of other libraries are not looked at.
FILTERS = (("--report-api-errors", "no", ("memcheck",)), ("--kernel-name", "kernel_substring=3cox4cuda", ()))


def sanitizer(tool, check):
    """The command that runs another under a check of compute-sanitizer."""
    known = subprocess.run([tool, "--help"], capture_output=True, text=True).stdout
    of = [(flag, value) for flag, value, checks in FILTERS if flag in known and check in (checks or (check,))]
    return [tool, "--tool", check, *(word for pair in of for word in pair), "--error-exitcode", "9"]


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
    step = [python, "bench/training_step.py", "--device", "cuda", "--which", "demo,image,vit", "--repeats", "5"]
    yield "a step of stage 3, waits for the GPU", step, {"PYTHONPATH": "."}, 90
    small = dict(METHODS="cox", EXTRACT="--im rgb,language --image-size 16 --bind-epochs 3", EVALUATE="none", SEEDS="0")
    small |= dict(CONNECT="--width 32 --depth 2", EXPLORE="--epochs 4 --fast", RUNS="build/gpu-check", OOM="depth")
    yield "stages 1 to 3", ["bash", "run.sh"], {**small, "DATA": "synth", "PYTHON": python}, 90
    yield "benchmark at full size", [*bench, "bench/gpu_nearest_anchor.py"], {}, 180
    yield "its results", write, {}, 30
    tool = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path=os.path.join(os.environ.get("CUDA_HOME", "/usr/local/cuda"), "bin")
    )
    for check in ("memcheck", "racecheck", "synccheck"):
        if tool is None:
            yield f"compute-sanitizer {check}", None, {}, 0
        else:
            command = [*sanitizer(tool, check), *pytest, *tests[:-2], "-m", "cuda", "-k", SANITIZED]
            yield f"compute-sanitizer {check}", command, {**screen, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, 120
    for op in OPS:
        both = f"{shlex.join([*bench, f'bench/bench_{op}.py'])} && {shlex.join(write)}"
        yield f"{SPARE}{op}", ["bash", "-c", both], {}, 120


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
    (ROOT / "bench/results").mkdir(parents=True, exist_ok=True)
    begin, rows = time.monotonic(), []
    for name, command, env, most in steps(sys.executable, args.commit):
        print(f"\n======== {name}", flush=True)
        left, start = LIMIT - (time.monotonic() - begin), time.monotonic()
        if command is None:
            outcome, last = "skipped", "compute-sanitizer is not on this machine"
        elif name.startswith(SPARE) and left < most:
            outcome, last = "left out", "no time left"
        elif left < 5:
            outcome, last = "did not start", "no time left"
        else:
            outcome, last = run(command, env, min(most, left))
        rows.append((name, outcome, time.monotonic() - start, last))
        write_report(args.commit, rows)
        if name == "build" and outcome != "ok":
            break
    return int(any(outcome not in ("ok", "skipped", "left out") for _, outcome, _, _ in rows))


def write_report(commit, rows):
    """bench/results/<device>-check.md of the steps so far."""
    device = torch.cuda.get_device_name()
    head = f"{time.strftime('%Y-%m-%d')}, commit {commit}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    table = [
        "| step | outcome | s | last line |",
        "|:--|:--|--:|:--|",
        *(f"| {n} | {o} | {s:.0f} | {t.strip('= ').replace('|', '/')[:160]} |" for n, o, s, t in rows),
    ]
    path = ROOT / "bench/results" / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + "-check.md")
    path.write_text("\n".join([f"# {device}: make gpu-check", "", head, "", *table]) + "\n")
    print("\n".join(["", f"{device}, {head}", *table, f"wrote {path}"]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
