"""nearest_anchor beside chunked torch.cdist and the norms trick (eager and compiled), at K = 1 also beside FAISS,
scikit-learn and KeOps; the limits are the K products of the same size in float32 and bfloat16."""

import contextlib

import pytest
import torch

import cox_ops

CHUNK = 1024


def kernel(z, v):
    return cox_ops.nearest_anchor(z, v)


def cdist(z, v):
    parts = [sum(torch.cdist(c, vk) for vk in v).div(len(v)).min(1) for c in z.split(CHUNK)]
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])


def chunk_of_norms_trick(c, v, vv):
    cc = c.square().sum(-1, keepdim=True)
    total = sum((cc + vv[k] - 2 * c @ v[k].T).clamp(min=0).sqrt() for k in range(len(v)))
    return (total / len(v)).min(1)


compiled_chunk = torch.compile(chunk_of_norms_trick)


def norms_trick(z, v, chunk=chunk_of_norms_trick):
    vv = v.square().sum(-1)
    parts = [chunk(c, v, vv) for c in z.split(CHUNK)]
    return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])


def compiled_norms_trick(z, v):
    return norms_trick(z, v, compiled_chunk)


def faiss_flat(z, v):
    faiss = pytest.importorskip("faiss")
    index = faiss.IndexFlatL2(z.shape[1])
    index.add(v[0].numpy())
    square, found = index.search(z.numpy(), 1)
    return torch.from_numpy(square[:, 0]).sqrt(), torch.from_numpy(found[:, 0])


def sklearn_argmin_min(z, v):
    metrics = pytest.importorskip("sklearn.metrics")
    index, distance = metrics.pairwise_distances_argmin_min(z.numpy(), v[0].numpy())
    return torch.from_numpy(distance), torch.from_numpy(index)


def keops(z, v):
    pykeops = pytest.importorskip("pykeops.torch")
    x, y = pykeops.LazyTensor(z[:, None]), pykeops.LazyTensor(v[0][None])
    square, found = ((x - y) ** 2).sum(-1).min_argmin(dim=1)
    return square[:, 0].sqrt(), found[:, 0]


def products_alone(z, v):
    return [c @ vk.T for c in z.split(CHUNK) for vk in v]


def bfloat16_products_alone(z, v):
    return products_alone(z, v)


def data(K, D, kind, M, N, device):
    z, v = torch.randn(M, D, device=device), torch.randn(K, N, D, device=device)
    if kind == "agreeing":  # the mappings of an item lie near each other
        v = torch.randn(1, N, D, device=device) + 0.2 * v
    return z, v


def time_it(timed, method, z, v, group):
    if method is bfloat16_products_alone:
        z, v = z.bfloat16(), v.bfloat16()
    K, N, D = v.shape
    result = timed(lambda: method(z, v), group, 2 * K * len(z) * N * D)
    if not method.__name__.endswith("_alone"):
        torch.testing.assert_close(result[0].float(), cox_ops.nearest_anchor(z, v)[0], rtol=1e-3, atol=1e-3)


TORCH = [kernel, cdist, norms_trick, compiled_norms_trick, products_alone, bfloat16_products_alone]
OTHERS = [faiss_flat, sklearn_argmin_min, keops]


@pytest.mark.parametrize("kind", ["gaussian", "agreeing"])
@pytest.mark.parametrize("D", [192, 1024])
@pytest.mark.parametrize("method", TORCH, ids=lambda f: f.__name__)
def bench_nearest_anchor(timed, device, pick, method, D, kind):
    M = N = pick(128, 8192)
    time_it(timed, method, *data(2, D, kind, M, N, device), f"nearest_anchor M=N={M} K=2 D={D} {kind}")


@pytest.mark.parametrize("D", [192, 1024])
@pytest.mark.parametrize("method", TORCH + OTHERS, ids=lambda f: f.__name__)
def bench_one_mapping(timed, device, pick, method, D):
    if device != "cpu" and method in OTHERS:
        pytest.skip("timed on the CPU")
    if method is keops and D > 192:
        pytest.skip("KeOps keeps a row in registers: minutes at this D")
    M = N = pick(128, 8192)
    time_it(timed, method, *data(1, D, "gaussian", M, N, device), f"nearest_anchor M=N={M} K=1 D={D} gaussian")


@contextlib.contextmanager
def instruction_set(name):
    before = cox_ops._C.build_info()["isa_chosen"]
    cox_ops._C.force_isa(name)
    try:
        yield
    finally:
        cox_ops._C.force_isa(before)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "plain"])
@pytest.mark.parametrize("method", [kernel, products_alone], ids=lambda f: f.__name__)
def bench_older_instruction_sets(timed, device, pick, method, isa):
    """The kernel with this set at most, beside products with all that the machine has."""
    if device != "cpu" or isa not in cox_ops._C.build_info()["isa_available"]:
        pytest.skip("not this machine's")
    M = N = pick(128, 4096)
    with instruction_set(isa):
        time_it(timed, method, *data(2, 1024, "gaussian", M, N, device), f"nearest_anchor M=N={M} K=2 D=1024 {isa}")


def bench_large(timed, device, pick):
    """For its memory: the matrix of distances alone would take 37 GiB."""
    M, N = pick(500, 50_000), pick(1000, 200_000)
    time_it(timed, kernel, *data(2, 192, "gaussian", M, N, device), f"nearest_anchor M={M} N={N} K=2 D=192 gaussian")
