"""The operators' Python side: for each one wrapper, one fake and, where differentiable, its autograd formula.

Shapes and dtypes are checked in C++ (csrc/common.h), once for every device. Dtypes: float32, float64,
float16 and bfloat16; arithmetic is in float64 for float64 and, where nothing else is said, in float32 for
the others. Any strides; sizes may be 0 where the docstring does not say otherwise; offsets are 64-bit. On
the CPU a result is bitwise the same for any number of threads. Distances are sums of squared differences
wherever norms minus twice the product would cancel.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .arguments import booleans, integers, number, positive, rescaled, tensors

ops = torch.ops.cox_ops  # mypy: of type Any, as the operators that are found in it


MOST = 2**24  # indices that top_anchors gives of fewer scores: t is then a slip, and would take any memory
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def _acc(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _no_second_derivative(name: str) -> Callable[..., None]:
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(f"cox_ops.{name} has no second derivative: no create_graph=True through it")

    return backward


# ---------------------------------------------------------------- pairwise_distances


def pairwise_distances(x: Tensor, y: Tensor, squared: bool = False) -> Tensor:
    """Euclidean distances between the rows of x and of y: d_ij = ||x_i - y_j||, squared if asked.

    x (M, D) and y (N, D) -> (M, N); x (B, M, D) and y (B, N, D) -> (B, M, N); the result has the inputs'
    dtype. Equivalent to torch.cdist in its direct mode: the error of an entry is relative to that entry, also
    for near copies. Time O(B M N D), memory that of the result; the gradient's, a copy of x and y as well. On
    the CPU an entry depends on its two rows alone, bit for bit. NaN or Inf in a row reaches that row's
    distances. Differentiable once in x and y, with subgradient 0 where a distance is 0, so never NaN for
    finite inputs.

    >>> pairwise_distances(torch.tensor([[0., 0.]]), torch.tensor([[3., 4.], [0., 0.]]))
    tensor([[5., 0.]])
    """
    booleans("pairwise_distances", squared=squared)
    return ops.pairwise_distances(*tensors("pairwise_distances", x=x, y=y), squared)


@torch.library.register_fake("cox_ops::pairwise_distances")
def _(x: Tensor, y: Tensor, squared: bool = False) -> Tensor:
    return x.new_empty((*x.shape[:-1], y.shape[-2]))


@torch.library.register_fake("cox_ops::pairwise_distances_backward")
def _(grad: Tensor, x: Tensor, y: Tensor, dist: Tensor, squared: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _pairwise_setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, y, ctx.squared = inputs
    ctx.save_for_backward(x, y, output)


def _pairwise_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    gx, gy = ops.pairwise_distances_backward(grad, *ctx.saved_tensors, ctx.squared)
    return gx, gy, None


torch.library.register_autograd("cox_ops::pairwise_distances", _pairwise_backward, setup_context=_pairwise_setup)
torch.library.register_autograd("cox_ops::pairwise_distances_backward", _no_second_derivative("pairwise_distances"))


# ---------------------------------------------------------------- nearest_anchor


def nearest_anchor(z: Tensor, v: Tensor, *, tile: int = 0) -> tuple[Tensor, Tensor]:
    """The bank item whose K mappings lie nearest to each query on average.

        score_j = min_i 1/K sum_k ||z_j - v_{k,i}||        index_j = the lowest i that reaches it

    z (M, D), v (K, N, D) with K >= 1 -> score (M,) float32 (float64 for float64 inputs), index (M,) int64.
    For float32, float16 and bfloat16 inputs the score of a pair is that of direct differences in float64,
    rounded once to float32, and the index is the lowest i among the least rounded scores: ties, and
    differences that float32 does not hold, go to the lowest i. float64 inputs: the same, unrounded. An item
    with NaN or Inf, or with a squared distance that overflows the score's dtype, is never chosen; a query
    without any finite candidate (also N = 0) gets index -1, score +inf. A result is bitwise the same however
    queries are batched and, on the CPU, for any number of threads and any instruction set; `tile` (rows per
    block, for tests) changes nothing either. Time O(K M N D), in 8-bit integers where a bound can rule a pair
    out; the M x N matrix is never formed. Differentiable in z and v through the chosen anchors (subgradient 0
    at distance 0), any number of times.

    >>> z = torch.tensor([[0., 0.], [5., 5.]])
    >>> v = torch.tensor([[[1., 0.], [5., 4.], [1., 0.]]])
    >>> nearest_anchor(z, v)
    (tensor([1., 1.]), tensor([0, 1]))
    """
    integers("nearest_anchor", tile=tile)
    return ops.nearest_anchor(*tensors("nearest_anchor", z=z, v=v), tile)


@torch.library.register_fake("cox_ops::nearest_anchor")
def _(z: Tensor, v: Tensor, tile: int = 0) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape[:1], dtype=_acc(z.dtype)), z.new_empty(z.shape[:1], dtype=torch.int64)


def _nearest_setup(ctx: Any, inputs: Any, output: Any) -> None:
    z, v, _ = inputs
    ctx.save_for_backward(z, v, output[1])


def _nearest_backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    # In plain torch and O(K M D): the chosen anchors are gathered and the mean distance is differentiated.
    z, v, index = ctx.saved_tensors
    K, N, _ = v.shape
    if N == 0:
        return torch.zeros_like(z), torch.zeros_like(v), None
    found = (index >= 0)[None, :, None]  # a query without an anchor passes nothing on
    at = index.clamp(min=0)
    diff = (z.to(grad.dtype)[None] - v[:, at].to(grad.dtype)).masked_fill(~found, 0)  # (K, M, D)
    square = diff.square().sum(-1, keepdim=True)
    zero = square == 0
    pull = torch.where(zero, 0, diff / torch.where(zero, 1, square).sqrt()) * (grad / K)[None, :, None]
    gz = gv = None
    if ctx.needs_input_grad[0]:
        gz = pull.sum(0).to(z.dtype)
    if ctx.needs_input_grad[1]:
        zeros = torch.zeros(v.shape, dtype=grad.dtype, device=v.device)
        # Each device's own addition of repeated indices in a fixed order: the other one's uses atomics.
        if v.is_cuda:
            rows = torch.arange(K, device=v.device)[:, None].expand(K, at.shape[0])
            gv = zeros.index_put((rows, at.expand(K, -1)), -pull, accumulate=True)
        else:
            gv = zeros.index_add(1, at, -pull)
        gv = gv.to(v.dtype)
    return gz, gv, None


torch.library.register_autograd("cox_ops::nearest_anchor", _nearest_backward, setup_context=_nearest_setup)


# ---------------------------------------------------------------- top_anchors


def top_anchors(
    score: Tensor,
    t: int,
    *,
    largest: bool = False,
    classes: Tensor | None = None,
    quota: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    """Indices of the t best scores (smallest, or largest if asked), sorted by (score, index).

    score (M,), mask (M,) bool, classes (M,) int64 -> (t,) int64. Ties go to the lowest index. Never chosen:
    NaN; the worst infinity (+inf, or -inf with largest); items outside mask; items of a negative class. With
    quota at most that many per class, the best ones. Fewer than t candidates: the rest is -1, so the size is
    never in question. t is at most M, or 2^24 where M is less. Time O(M + t) on the CPU (a radix
    select and sort; more passes where a quota turns many away), O(M log M) on CUDA. Not differentiable.

    >>> top_anchors(torch.tensor([3., 1., 1., float("nan"), 2.]), 3)
    tensor([1, 2, 4])
    """
    optional = {name: x for name, x in (("classes", classes), ("mask", mask)) if x is not None}
    tensors("top_anchors", differentiable=False, score=score, **optional)
    integers("top_anchors", most=max(MOST, score.numel()), t=t)
    integers("top_anchors", **({} if quota is None else {"quota": quota}))
    booleans("top_anchors", largest=largest)
    return ops.top_anchors(score, t, largest=largest, classes=classes, quota=quota, mask=mask)


@torch.library.register_fake("cox_ops::top_anchors")
def _(
    score: Tensor,
    t: int,
    *,
    largest: bool = False,
    classes: Tensor | None = None,
    quota: int | None = None,
    mask: Tensor | None = None,
) -> Tensor:
    return score.new_empty((t,), dtype=torch.int64)


# ---------------------------------------------------------------- modality_agreement


def modality_agreement(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the heads of all modalities name the same class.

    logits (K, M, C), K >= 1 heads, C >= 1 classes ->
        mask (M,) bool        all K argmax are equal (argmax ties: the lowest class)
        label (M,) int64      the agreed class, -1 without agreement
        confidence (M,)       1/K sum_k max_c softmax_c, float32 (float64 for float64 inputs), agreed or not
    A row in which a head has no softmax (any NaN, any +inf, or nothing but -inf) is no agreement: mask False,
    label -1, confidence NaN. Time O(K M C), memory O(M). Confidence is differentiable, any number of times.

    >>> modality_agreement(torch.tensor([[[0., 9.], [9., 0.]], [[0., 9.], [0., 9.]]]))[:2]
    (tensor([ True, False]), tensor([ 1, -1]))
    """
    confidence, mask, label = ops.modality_agreement(*tensors("modality_agreement", logits=logits))
    return mask, label, confidence


# The operator itself returns its differentiable output first: opcheck adds the outputs up in place, in order.
@torch.library.register_fake("cox_ops::modality_agreement")
def _(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    M = logits.shape[1]
    return (
        logits.new_empty(M, dtype=_acc(logits.dtype)),
        logits.new_empty(M, dtype=torch.bool),
        logits.new_empty(M, dtype=torch.int64),
    )


def _agreement_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(inputs[0], output[0])


def _confidence_pull(logits: Tensor, confidence: Tensor, grad: Tensor) -> Tensor:
    """d confidence / d logits (K, M, C), times grad (M,); 0 in rows without a confidence."""
    K, _, C = logits.shape
    bad = confidence.isnan()[None, :, None]
    p = logits.masked_fill(bad, 0).softmax(-1)  # (K, M, C)
    top = p.argmax(-1, keepdim=True)
    best = p.gather(-1, top)
    is_top = torch.arange(C, device=p.device) == top
    return (best * (is_top.to(p.dtype) - p) * (grad / K)[None, :, None]).masked_fill(bad, 0)


def _agreement_backward(ctx: Any, grad: Tensor, *_: Tensor) -> Tensor:
    logits, confidence = ctx.saved_tensors
    return _confidence_pull(logits.to(grad.dtype), confidence, grad).to(logits.dtype)


torch.library.register_autograd("cox_ops::modality_agreement", _agreement_backward, setup_context=_agreement_setup)


# ---------------------------------------------------------------- heads_agreement


def heads_agreement(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """modality_agreement of linear heads' logits, logits_k = z weight_k^T + bias_k, which are never all in memory.

    z (M, D), weight (K, C, D), bias (K, C), K >= 1 heads, C >= 1 classes -> mask (M,), label (M,), confidence (M,)
    as in modality_agreement. The products are torch's own, in float32 (float64 for float64 inputs): logits agree with
    torch.mm's to rounding, which may name another class where two logits are that close. Time O(K M C D), memory
    O(M + K C D). Confidence is differentiable in z, weight and bias, any number of times.

    >>> z, weight = torch.eye(2), torch.tensor([[[9., 0.], [0., 9.]], [[9., 0.], [0., 1.]]])
    >>> heads_agreement(z, weight, torch.tensor([[0., 0.], [0., -5.]]))[:2]
    (tensor([ True, False]), tensor([ 0, -1]))
    """
    confidence, mask, label = ops.heads_agreement(*tensors("heads_agreement", z=z, weight=weight, bias=bias))
    return mask, label, confidence


@torch.library.register_fake("cox_ops::heads_agreement")
def _(z: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    M = z.shape[0]
    return (z.new_empty(M, dtype=_acc(z.dtype)), z.new_empty(M, dtype=torch.bool), z.new_empty(M, dtype=torch.int64))


def _heads_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs, output[0])


def _heads_backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # In plain torch, the logits again by blocks of rows.
    z, weight, bias, confidence = ctx.saved_tensors
    K, C, _ = weight.shape
    if z.shape[0] == 0:  # torch 2.10 cannot trace a split of no rows
        return torch.zeros_like(z), torch.zeros_like(weight), torch.zeros_like(bias)
    w, b = weight.to(grad.dtype), bias.to(grad.dtype)
    gz, gw, gb = [], torch.zeros_like(w), torch.zeros_like(b)
    for zb, cb, g in zip(*(t.split(max(1, 2**20 // (K * C))) for t in (z.to(grad.dtype), confidence, grad))):
        pull = _confidence_pull(zb @ w.mT + b[:, None], cb, g)  # (K, rows, C)
        gz.append((pull @ w).sum(0))
        gw = gw + pull.mT @ zb
        gb = gb + pull.sum(1)
    return torch.cat(gz).to(z.dtype), gw.to(weight.dtype), gb.to(bias.dtype)


torch.library.register_autograd("cox_ops::heads_agreement", _heads_backward, setup_context=_heads_setup)


# ---------------------------------------------------------------- soft_correspondence


class Correspondence(NamedTuple):
    """What soft_correspondence gives, by readings (M) and by items (N)."""

    posterior: Tensor
    expected: Tensor
    margin: Tensor
    evidence: Tensor
    use: Tensor
    total: Tensor
    scatter: Tensor


def soft_correspondence(
    z: Tensor,
    means: Tensor,
    x: Tensor,
    classes: Tensor,
    bias: Tensor,
    labels: Tensor | None = None,
    *,
    freedom: float = float("inf"),
) -> Correspondence:
    """Which of N items each of M readings may come from, and what that adds up to, without a matrix M x N.

        q_ji = softmax_i (bias[classes_i] - (freedom + d)/2 log(1 + ||z_j - means_i||^2 / freedom))
        w_ji = q_ji (freedom + d) / (freedom + ||z_j - means_i||^2)

    Student's t; freedom = inf: Gaussian, q_ji = softmax_i (bias[classes_i] - ||z_j - means_i||^2 / 2), w = q.
    A reading with a label >= 0 is spread over the items of that class alone.

    z (M, d), means (N, d), both whitened by the noise, x (N, p), bias (C,), classes (N,) int64 in 0 ... C - 1,
    labels (M,) int64 below C; N and C are at least 1 ->
        posterior (M, C)    sum of q over the items of each class
        expected (M, p)     sum_i q_ji x_i
        margin (M,)         the best posterior minus the second-best
        evidence (M,)       the log of the softmax' denominator
        use (N,)            sum_j w_ji
        total (N, d)        sum_j w_ji z_j
        scatter (d, d)      sum_ji w_ji z_j z_j^T
    float32, for float64 inputs float64. A label that no item has: posterior, expected, margin 0, evidence -inf, and
    the reading adds to no sum. A share below e^-40 counts as 0. Time O(M N (d + p)), memory O(M (d + C + p) + N (d
    + p)). Products are in float32, sums beyond a block in float64; on the CPU a result is bitwise the same for any
    number of threads. bfloat16 inputs take a CPU's products of bfloat16 where it has them. float64 inputs on the
    CPU: directly, by one thread. NaN, Inf, and squared distances beyond 1e30 are refused on the CPU; on CUDA no
    value is looked at, and an item whose class is none counts as absent. Not differentiable: inputs that require a
    gradient are taken as constants.

    >>> z, means = torch.tensor([[0.], [1.]]), torch.tensor([[0.], [2.]])
    >>> soft_correspondence(z, means, means, torch.tensor([0, 1]), torch.zeros(2)).posterior
    tensor([[0.8808, 0.1192],
            [0.5000, 0.5000]])
    """
    optional: dict[str, Any] = {} if labels is None else {"labels": labels}
    given = tensors("soft_correspondence", z=z, means=means, x=x, classes=classes, bias=bias, **optional)
    number("soft_correspondence", freedom=freedom)
    return Correspondence(*ops.soft_correspondence(*(t.detach() for t in given), freedom=float(freedom)))


@torch.library.register_fake("cox_ops::soft_correspondence")
def _(
    z: Tensor,
    means: Tensor,
    x: Tensor,
    classes: Tensor,
    bias: Tensor,
    labels: Tensor | None = None,
    *,
    freedom: float,
) -> tuple[Tensor, ...]:
    (M, d), (N, p), C = z.shape, x.shape, bias.shape[0]
    sizes = [(M, C), (M, p), (M,), (M,), (N,), (N, d), (d, d)]
    return tuple(z.new_empty(size, dtype=_acc(z.dtype)) for size in sizes)


# ---------------------------------------------------------------- mmd


def mmd(x: Tensor, y: Tensor, bandwidths: Tensor | Sequence[float] | None = None) -> Tensor:
    """Squared maximum mean discrepancy between two samples: biased V-statistic, several Gaussian kernels.

        k(a, b) = 1/B sum_s exp(-||a - b||^2 / bandwidth_s)
        mmd = mean_ij k(x_i, x_j) + mean_ij k(y_i, y_j) - 2 mean_ij k(x_i, y_j)

    x (N, D), y (M, D), N and M >= 1 -> scalar, float32 (float64 for float64 inputs). Note that bandwidths are
    in the squared units of the data (bandwidth = 2 sigma^2); they are constants, positive, a sequence or a
    vector (values of a CUDA tensor are not looked at). None: 1/4, 1/2, 1, 2 and 4 times the mean squared distance
    between two distinct points of the pooled sample, which has a closed form in O(N + M) time (1 where all points
    coincide). The data may be of any scale: where squares would leave the dtype, a unit is chosen in which they do
    not. NaN in the samples gives NaN. The value is >= 0 up to rounding. Kernel values are summed in float64 (on the
    CPU those of one row and up to 1,024 others in float32 first). In float32 on the CPU, samples of more than 256
    rows go through products of centred rows, unless a bandwidth is so small against the largest squared norm R^2 that
    a kernel value could be off by more than 5e-5: 2^-22 sqrt(D) R^2 > 5e-5 bandwidth. Such errors have either sign
    and cancel in the means. Time O((N + M)^2 (D + B)), memory O((N + M) D). Differentiable once in x and y.

    >>> mmd(torch.zeros(3, 2), torch.zeros(5, 2))
    tensor(0.)
    """
    x, y = tensors("mmd", x=x, y=y)
    given = None if bandwidths is None else positive("mmd", bandwidths, x.device)
    fits = x.dtype in FLOATS and x.dtype == y.dtype and x.dim() == y.dim() == 2 and x.shape[1] == y.shape[1]
    if not fits or len(x) == 0 or len(y) == 0 or (given is not None and given.numel() == 0):
        return ops.mmd(x, y, x.new_ones(1, dtype=torch.float64) if given is None else given)  # which says what is wrong
    x, y, given = rescaled(x, y, given)
    if given is not None:
        return ops.mmd(x, y, given)
    scale = mean_squared_distance(x, y)
    return ops.mmd(x, y, torch.where(scale > 0, scale, 1) * scale.new_tensor([0.25, 0.5, 1, 2, 4]))


def mean_squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """Mean of ||a - b||^2 over pairs of distinct points of the pooled rows of x and y: float64, no gradient.

    sum_ij ||p_i - p_j||^2 = 2 P sum_i ||p_i - mean||^2, over P (P - 1) ordered pairs.
    """
    pooled = torch.cat((x.detach(), y.detach())).double()
    centred = pooled - pooled.mean(0)
    return 2 * centred.square().sum() / max(len(pooled) - 1, 1)


@torch.library.register_fake("cox_ops::mmd")
def _(x: Tensor, y: Tensor, bandwidths: Tensor) -> Tensor:
    return x.new_empty((), dtype=_acc(x.dtype))


@torch.library.register_fake("cox_ops::mmd_backward")
def _(grad: Tensor, x: Tensor, y: Tensor, bandwidths: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), y.new_empty(y.shape)


def _mmd_setup(ctx: Any, inputs: Any, output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _mmd_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    gx, gy = ops.mmd_backward(grad, *ctx.saved_tensors)
    return gx, gy, None


torch.library.register_autograd("cox_ops::mmd", _mmd_backward, setup_context=_mmd_setup)
torch.library.register_autograd("cox_ops::mmd_backward", _no_second_derivative("mmd"))
