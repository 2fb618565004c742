"""Benchmarks: each operator beside its peers and beside the limit, in one run; a table with the ratios at the end.

    pytest bench                            times everything, medians of 5
    pytest bench --benchmark-disable        runs each once on small inputs: that they still work
    make bench                              writes bench/results/<device>.md

A benchmark module has one function per method: `kernel` is ours, a name that ends in `_alone` is a limit (the product
or the read that the operator cannot do without), all others are peers. COX_BENCH_SCALE=4 enlarges the inputs."""

import ctypes
import gc
import os
import time
from pathlib import Path

import pytest
import torch

from bench.write_results import facts, table


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def scale():
    return int(os.environ.get("COX_BENCH_SCALE", "1"))


@pytest.fixture
def pick(request, device, scale):
    """pick(small, cpu, cuda): a size: small where each benchmark runs once, else the device's, times the scale."""

    def size(small, cpu, cuda=None):
        if request.config.getoption("benchmark_disable"):
            return small
        return scale * (cuda if device == "cuda" and cuda else cpu)

    return size


def status(field):
    """A size of /proc/self/status in bytes."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field + ":"))
    return 1024 * int(line.split()[1])


def peak_memory(f, device):
    """Bytes that f() holds at most beyond what is held before it, its result included; None where unknown."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        f()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    try:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would be used again unseen
        Path("/proc/self/clear_refs").write_text("5")  # from here VmHWM is the peak
        before = status("VmRSS")
        f()
        return max(status("VmHWM") - before, 0)
    except (OSError, AttributeError, StopIteration):
        f()
        return None


@pytest.fixture
def timed(benchmark, device, request):
    """timed(f, group, work): median time of f() over 5 rounds with the device idle before and after, and its memory.

    group names operator and size; work = operations or bytes, for a rate. Returns f()'s result.
    """

    def run(f, group, work=None):
        benchmark.group = group

        def once():
            result = f()
            if device == "cuda":
                torch.cuda.synchronize()
            return result

        if benchmark.disabled:
            return benchmark.pedantic(once, rounds=1, iterations=1)
        begin = time.perf_counter()
        peak = peak_memory(once, device)
        if time.perf_counter() - begin < 5:  # without what only a first call takes
            peak = peak_memory(once, device)
        result = benchmark.pedantic(once, rounds=5, iterations=1)
        method = request.node.callspec.params["method"].__name__ if "method" in request.fixturenames else "kernel"
        benchmark.extra_info.update(facts(), method=method, peak_bytes=peak)
        if work:
            benchmark.extra_info["gops"] = work / benchmark.stats.stats.median / 1e9
        return result

    return run


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    rows = [
        dict(group=b.group, name=b.name, median=b.stats.median, iqr=b.stats.iqr, **b.extra_info)
        for b in (session.benchmarks if session else [])
        if "method" in b.extra_info
    ]
    if rows:
        terminalreporter.section("ratios")
        for line in table(rows):
            terminalreporter.write_line(line)
