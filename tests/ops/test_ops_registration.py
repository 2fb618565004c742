"""Every operator of the namespace: checked by opcheck, with a fake, a reference, a kernel, an autograd
formula."""

import doctest
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cox_ops
from cox_ops import ops, ref

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(cox_ops.__file__).parent  # installed, or the working tree's
NAMES = sorted(
    {n.split("::")[1].split(".")[0] for n in torch._C._dispatch_get_all_op_names() if n.startswith("cox_ops::")}
)


def samples(name, device):
    """Arguments of two calls of each operator: small, and empty or strided where the operator allows."""

    def r(*shape, grad=True):
        return torch.randn(*shape, device=device).requires_grad_(grad)

    classes, mask = torch.tensor([0, 1, 0, -1], device=device), torch.ones(4, dtype=torch.bool, device=device)
    names = torch.tensor([2, 0, 1, 0, 2], device=device)
    x, y = r(4, 3, grad=False), r(5, 3, grad=False)
    bandwidths = torch.tensor([1.0, 4.0], dtype=torch.float64, device=device)
    return {
        "pairwise_distances": [((r(4, 3), r(5, 3)), {}), ((r(2, 3, 4).transpose(1, 2), r(2, 0, 3), True), {})],
        "pairwise_distances_backward": [
            ((r(4, 5, grad=False), x, y, ref.pairwise_distances(x, y, squared), squared), {})
            for squared in (False, True)
        ],
        "nearest_anchor": [((r(4, 3), r(2, 5, 3)), {}), ((r(0, 3), r(1, 5, 3).half().float(), 2), {})],
        "top_anchors": [((r(4), 2), {}), ((r(4), 6), dict(largest=True, classes=classes, quota=1, mask=mask))],
        "modality_agreement": [((r(2, 4, 3),), {}), ((r(1, 0, 3),), {})],
        "heads_agreement": [((r(4, 3), r(2, 5, 3), r(2, 5)), {}), ((r(0, 3), r(1, 3, 2).mT, r(2, 1).T), {})],
        "soft_correspondence": [
            ((x, y, r(5, 2, grad=False), names, r(3, grad=False), classes), dict(freedom=5.0)),
            ((r(0, 3, grad=False), y, r(2, 5, grad=False).T, names, r(3, grad=False)), dict(freedom=float("inf"))),
        ],
        "mmd": [((r(4, 3), r(5, 3), bandwidths), {}), ((r(1, 3), r(3, 2).T, bandwidths[:1]), {})],
        "mmd_backward": [((torch.tensor(2.0, device=device), x, y, bandwidths), {})],
    }[name]


def test_the_namespace_is_what_the_package_offers():
    assert set(cox_ops.__all__) <= set(NAMES)
    assert set(NAMES) == set(cox_ops.__all__) | {"pairwise_distances_backward", "mmd_backward"}


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name, device):
    for args, kwargs in samples(name, device):
        torch.library.opcheck(getattr(torch.ops.cox_ops, name).default, args, kwargs)


@pytest.mark.parametrize("name", NAMES)
def test_has_kernel_fake_and_reference(name, device):
    assert torch._C._dispatch_has_kernel_for_dispatch_key(f"cox_ops::{name}", device.upper())
    op = getattr(torch.ops.cox_ops, name)
    for args, kwargs in samples(name, device):
        real = op(*args, **kwargs)
        meta = [a.detach().to("meta") if isinstance(a, torch.Tensor) else a for a in args]
        fake = op(*meta, **{k: a.to("meta") if isinstance(a, torch.Tensor) else a for k, a in kwargs.items()})
        double = [a.detach().double() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args]
        want = getattr(ref, name)(*double, **kwargs)
        if name in ("modality_agreement", "heads_agreement"):  # the operator's order; ref puts the mask first
            want = (want[2], *want[:2])
        flat = [(t,) if isinstance(t, torch.Tensor) else tuple(t) for t in (real, fake, want)]
        for r, f, w in zip(*flat, strict=True):
            assert f.is_meta and (f.shape, f.dtype) == (r.shape, r.dtype)
            torch.testing.assert_close(r.to(w.dtype), w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", sorted(set(cox_ops.__all__) - {"top_anchors", "soft_correspondence"}))
def test_gives_a_gradient(name, device):
    """An operator without an autograd formula passes opcheck and returns None: so ask for the gradient
    itself."""
    args, kwargs = samples(name, device)[0]
    inputs = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    output = getattr(torch.ops.cox_ops, name)(*args, **kwargs)
    output = output if isinstance(output, torch.Tensor) else output[0]
    for grad in torch.autograd.grad(output.sum(), inputs):
        assert grad is not None and grad.abs().sum() > 0


def test_torch_compile(device):
    def f(z, v, logits):
        score, index = cox_ops.nearest_anchor(z, v)
        mask, label, confidence = cox_ops.modality_agreement(logits)
        best = cox_ops.top_anchors(score, 3, classes=label, mask=mask | True)
        loss = (score + confidence).sum() + cox_ops.mmd(z, v[0]) + cox_ops.pairwise_distances(z, v[1]).mean()
        return loss, index, best

    args = [torch.randn(s, device=device, requires_grad=True) for s in ((6, 4), (2, 7, 4), (2, 6, 3))]
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    results = []
    for g in (f, compiled):
        loss, index, best = g(*args)
        results.append((loss, index, best, *torch.autograd.grad(loss, args)))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


def test_build_report():
    run = subprocess.run([sys.executable, "-m", "cox_ops"], cwd=ROOT, capture_output=True, text=True, check=True)
    rows = dict(line.split(":", 1) for line in run.stdout.splitlines())
    info = cox_ops._C.build_info()
    assert torch.__version__ in rows["torch"] and "torch >= 2.10" in rows["ABI"]
    assert info["isa_chosen"] in info["isa_available"] and info["isa_chosen"] in rows["instruction sets"]
    assert int(rows["OpenMP"]) > 0 and int(rows["threads"]) >= 1 and rows["CUDA architectures"].strip()
    assert all("CPU" in rows[name] for name in NAMES)


def test_forced_instruction_set():
    code = "import cox_ops; print(cox_ops._C.build_info()['isa_chosen'])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env={**os.environ, "COX_ISA": "plain"}
    )
    assert run.stdout.strip() == "plain"


def test_missing_build_says_what_to_run(tmp_path):
    package = tmp_path / "cox_ops"
    package.mkdir()
    for name in ("__init__.py", "arguments.py", "ops.py", "ref.py"):
        (package / name).write_text((PACKAGE / name).read_text())
    # An editable install's finder would lend this package the built module of the installed one.
    code = "import sys; sys.meta_path = [f for f in sys.meta_path if 'Editable' not in repr(f)]; import cox_ops"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("ImportError: cox_ops is not built")
    assert "python setup.py build_ext --inplace" in last


def test_another_checkouts_build_is_not_taken(tmp_path):
    """As an editable install's finder does: a module that is asked for where it is not is found elsewhere."""
    package = tmp_path / "cox_ops"
    package.mkdir()
    for path in PACKAGE.glob("*.py"):
        (package / path.name).write_text(path.read_text())
    code = f"""
import sys
from importlib.machinery import PathFinder
class Lender:
    def find_spec(fullname, path=None, target=None):
        return PathFinder.find_spec(fullname, path=[{str(PACKAGE)!r}]) if fullname == "cox_ops._C" else None
sys.meta_path.insert(0, Lender)
import cox_ops
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith(f"ImportError: cox_ops is not built in {package}")
    assert str(PACKAGE) in last and "python setup.py build_ext --inplace" in last


def test_build_of_other_sources_says_what_to_run(tmp_path):
    package = tmp_path / "cox_ops"
    package.mkdir()
    for path in PACKAGE.glob("*.py"):
        (package / path.name).write_text(path.read_text())
    library = Path(cox_ops._C.__file__)
    (package / library.name).symlink_to(library)
    with open(package / "ops.py", "a") as f:
        f.write('torch.library.register_fake("cox_ops::newer")(lambda x: x)\n')
    run = subprocess.run([sys.executable, "-c", "import cox_ops"], cwd=tmp_path, capture_output=True, text=True)
    last = run.stderr.strip().splitlines()[-1]
    assert run.returncode == 1 and last.startswith("ImportError: cox_ops was built from other sources")
    assert "cox_ops::newer" in last and "python setup.py build_ext --inplace" in last


def test_reference_needs_no_build(tmp_path):
    spec = importlib.util.spec_from_file_location("ref_alone", PACKAGE / "ref.py")
    alone = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(alone)
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
    assert alone.pairwise_distances(x, x).tolist() == [[0, 5], [5, 0]]


def test_docstring_examples():
    names = {"cox_ops.ops." + n for n in cox_ops.__all__}
    tests = [t for t in doctest.DocTestFinder().find(ops) if t.name in names]
    assert {t.name for t in tests if t.examples} == names
    runner = doctest.DocTestRunner()
    for test in tests:
        test.globs["torch"] = torch
        assert runner.run(test).failed == 0, test.name
