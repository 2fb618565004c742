"""What only a GPU can show: no synchronisation with the host, the current stream, scratch memory."""

import pytest
import torch

import cox_ops

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]


def inputs():
    z, v = torch.randn(300, 40, device="cuda"), torch.randn(3, 700, 40, device="cuda")
    v[:, 100:400] = v[:, 7:8]  # many equal items: every kernel of nearest_anchor has work
    z[:20] = v[0, 7]
    logits, bias = torch.randn(3, 300, 33, device="cuda"), torch.randn(3, 33, device="cuda")
    classes = torch.randint(0, 5, (300,), device="cuda")
    return [z, v, logits, bias, classes]


def every_operator(z, v, logits, bias, classes):
    score, index = cox_ops.nearest_anchor(z, v)
    bandwidths = torch.full((2,), 40.0, dtype=torch.float64, device="cuda")
    return [
        score,
        index,
        *cox_ops.modality_agreement(logits),
        *cox_ops.heads_agreement(z, v[:, :33].contiguous(), bias),
        cox_ops.top_anchors(score, 50),
        cox_ops.top_anchors(score, 50, classes=classes, quota=7),
        cox_ops.pairwise_distances(z, v[0]),
        torch.ops.cox_ops.mmd(z, v[0], bandwidths),
        *cox_ops.soft_correspondence(v[1], z, z[:, :7], classes, bias[0, :5], freedom=5.0),
    ]


def test_captured_in_a_graph():
    """A kernel that waits for the host, or runs on another stream, is not captured; a replay must follow its inputs."""
    static = inputs()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        every_operator(*static)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = every_operator(*static)
    for _ in range(2):
        fresh = inputs()
        for s, f in zip(static, fresh):
            s.copy_(f)
        graph.replay()
        for got, want in zip(captured, every_operator(*fresh)):
            torch.testing.assert_close(got, want)  # heads_agreement: torch may take another product in a graph


def test_runs_on_the_current_stream():
    side = torch.cuda.Stream()
    args = inputs()
    want = every_operator(*args)
    torch.cuda.synchronize()
    with torch.cuda.stream(side):
        late = [a.clone() for a in args]  # on the side stream, behind a long wait
        torch.cuda._sleep(50_000_000)
        for a in late:
            a.zero_()
        for a, b in zip(late, args):
            a.copy_(b)
        got = every_operator(*late)
    side.synchronize()
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("screen", ["0", "1"])
def test_scratch_is_linear(screen, monkeypatch):
    monkeypatch.setenv("COX_CUDA_SCREEN", screen)
    z, v = torch.randn(20_000, 16, device="cuda"), torch.randn(2, 60_000, 16, device="cuda")
    cox_ops.nearest_anchor(z[:9], v[:, :9])
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    cox_ops.nearest_anchor(z, v)
    grown = torch.cuda.max_memory_allocated() - before
    assert grown < (12 << 20 if screen == "1" else 2 << 20)  # the matrix would be 4.8e9; the screen's copies are 9e6


def test_screen_and_direct_agree_bitwise(monkeypatch):
    for K, D in ((1, 7), (2, 100), (3, 64), (5, 33)):
        z, v = torch.randn(1000, D, device="cuda"), torch.randn(K, 5000, D, device="cuda")
        v[:, ::7] = z[:715] + 1e-4 * torch.randn(K, 715, D, device="cuda")
        results = []
        for screen in ("0", "1", "1"):
            monkeypatch.setenv("COX_CUDA_SCREEN", screen)
            results.append(cox_ops.nearest_anchor(z, v))
        for score, index in results[1:]:
            assert torch.equal(score, results[0][0]) and torch.equal(index, results[0][1])
