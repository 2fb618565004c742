"""Benchmarks: `pytest bench` times, `pytest bench --benchmark-disable` runs each once. COX_BENCH_SCALE=4 for
larger sizes."""
import os

import pytest
import torch


@pytest.fixture(scope="session")
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def scale():
    return int(os.environ.get("COX_BENCH_SCALE", "1"))


@pytest.fixture
def timed(benchmark, device):
    """timed(f, group=..., work=...): time f() with the device idle before and after; work = operations, for a
    rate."""
    def run(f, group, work=None):
        benchmark.group = group

        def once():
            result = f()
            if device == "cuda":
                torch.cuda.synchronize()
            return result
        result = benchmark.pedantic(once, rounds=5, iterations=1, warmup_rounds=1)
        benchmark.extra_info.update(device=torch.cuda.get_device_name() if device == "cuda" else "cpu",
                                    threads=torch.get_num_threads(), torch=torch.__version__)
        if work and benchmark.stats:
            benchmark.extra_info["gops"] = work / benchmark.stats.stats.median / 1e9
        return result
    return run
