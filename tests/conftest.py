"""Fixtures of all tests: every device present, the folder of real recordings, a fixed seed, any number of
threads, any instruction set."""

import contextlib
import os
from pathlib import Path

import hypothesis
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
# So that a failing assert of a helper says its values, as those of a test do.
pytest.register_assert_rewrite("echo", "embedded", "grown", "pets", "records", "saved", "worlds")

if os.environ.get("COX_EMULATED") == "1":  # the CUDA kernels' source on the CPU in place of the CPU kernels
    from emulated import build

    import cox_ops  # noqa: F401  its library first: the emulated one takes its operators' place

    torch.ops.load_library(str(build.build()))

# Scripts run in the process of the tests, and what they set for a process of their own would hold in all later tests.
with contextlib.suppress(ImportError):  # the operators' tests need no more than torch
    from cox_oom import run

    run.flush_subnormals = lambda: None

# The same examples in every run: a failure on one machine is a failure on all.
hypothesis.settings.register_profile("cox", deadline=None, derandomize=True, max_examples=40, database=None)
hypothesis.settings.load_profile("cox")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)], scope="session")
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU here")
    return request.param


@pytest.fixture(params=[torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture(scope="session")
def data():
    """Folder of real recordings: COX_TEST_DATA, or ../shared/data beside the repository."""
    folder = Path(os.environ.get("COX_TEST_DATA", ROOT.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no recordings at {folder}; set COX_TEST_DATA")
    return folder


@pytest.fixture(scope="session")
def cases():
    """Folder of files that people reported trouble with: COX_TEST_CASES, or ../shared/cases beside the repository."""
    folder = Path(os.environ.get("COX_TEST_CASES", ROOT.parent / "shared" / "cases")).resolve()
    if not folder.is_dir():
        pytest.skip(f"no cases at {folder}; set COX_TEST_CASES")
    return folder


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """with threads(n): torch uses n threads inside."""

    @contextlib.contextmanager
    def use(n):
        before = torch.get_num_threads()
        torch.set_num_threads(n)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    return use


@pytest.fixture(scope="session")
def instruction_set():
    """with instruction_set(name): the CPU's operators use it."""
    from cox_ops import _C

    @contextlib.contextmanager
    def use(name):
        before = _C.build_info()["isa_chosen"]
        _C.force_isa(name)
        try:
            yield
        finally:
            _C.force_isa(before)

    return use


@pytest.fixture
def far():
    """far(tensor, dtype): the same 2-D values in rows 2**29 elements apart, so that offsets pass 2**31.

    The memory between the rows is never touched, hence never really allocated.
    """

    def spread(t, dtype):
        rows, columns = t.shape
        try:
            buffer = torch.empty((rows - 1) * 2**29 + columns, dtype=dtype)
        except RuntimeError:
            pytest.skip("this machine does not reserve 5 GiB of address space at once")
        view = buffer.as_strided((rows, columns), (2**29, 1))
        view.copy_(t)
        assert (rows - 1) * 2**29 > 2**31
        return view

    return spread


@pytest.fixture(scope="module")
def quick():
    """Heads of 20 steps instead of 200, and one thread: for files in which nothing asks how good a head is."""
    from worlds import quickly  # here, since the operators' tests go without what the stages need

    with quickly():
        yield
