"""What every wrapper of cox_ops/ops.py asks of its arguments before the dispatcher sees them.

Shapes and dtypes of tensors are not looked at here: csrc/common.h checks those.
"""

import numbers
from typing import Any

import numpy as np
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor


def tensors(op: str, *, differentiable: bool = True, **named: Any) -> list[Any]:
    """The tensors that were given, as the operator takes them. None stands for an optional one that was left out.

    TypeError where one is no tensor, RuntimeError where they lie on different devices, both with its name.
    Under torch.autocast of their device float16 and bfloat16 are cast to float32, as torch.cdist does.
    differentiable: whether derivatives are asked for that the operator lacks (`no_other_derivative`).
    """
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    (first, at), *others = ((name, t.device) for name, t in named.items())
    for name, device in others:
        if device != at:
            raise RuntimeError(f"{op}: devices differ: {first} is on {at}, {name} on {device}")
    if differentiable:
        no_other_derivative(op, list(named.values()))
    cast = at.type in ("cpu", "cuda") and torch.is_autocast_enabled(at.type)
    half = (torch.float16, torch.bfloat16)
    return [t.float() if cast and t.dtype in half else t for t in named.values()]


def integers(op: str, most: int = 2**63 - 1, **named: Any) -> None:
    """TypeError where one is no integer (a bool is none), RuntimeError where it is not in 0 ... most, with its name."""
    for name, n in named.items():
        if isinstance(n, bool) or not isinstance(n, (numbers.Integral, torch.SymInt)):
            raise TypeError(f"{op}: {name} must be an int, got {type(n).__name__}")
        if isinstance(n, torch.SymInt):  # of a compiled call: the operator looks at its value
            continue
        if not 0 <= int(n) <= most:
            bound = f">= 0, got {n}" if int(n) < 0 else f"<= {most}, got {n}"
            raise RuntimeError(f"{op}: expected {name} {bound}")


def number(op: str, **named: Any) -> None:
    """TypeError where one is no real number (a bool is none), with its name."""
    for name, a in named.items():
        if isinstance(a, (bool, np.bool_)) or not isinstance(a, (numbers.Real, torch.SymFloat)):
            raise TypeError(f"{op}: {name} must be a number, got {type(a).__name__}")


def booleans(op: str, **named: Any) -> None:
    """TypeError where one is no bool, with its name."""
    for name, b in named.items():
        if not isinstance(b, (bool, np.bool_, torch.SymBool)):
            raise TypeError(f"{op}: {name} must be a bool, got {type(b).__name__}")


def no_other_derivative(op: str, given: list[Tensor]) -> None:
    """Refuse forward mode, which would give zeros in silence, and torch.func's reverse mode, which torch refuses in
    words of its own. Where torch.compile traces, tangents cannot be seen: any level of forward mode is refused, and
    without fullgraph the call goes on uncompiled, where they are looked at."""
    if forward_ad._current_level >= 0 and (
        torch.compiler.is_compiling() or any(forward_ad.unpack_dual(t).tangent is not None for t in given)
    ):
        raise NotImplementedError(f"{op} has no forward-mode derivative (torch.func.jvp, forward_ad); use backward()")
    if not torch.compiler.is_compiling() and any(torch._C._functorch.is_gradtrackingtensor(t) for t in given):
        raise NotImplementedError(f"{op} has no derivative in torch.func (grad, vjp, jacrev); use torch.autograd.grad")


def positive(op: str, bandwidths: Any, device: torch.device) -> Tensor:
    """bandwidths, a tensor or a sequence of numbers -> float64 on `device`, without a gradient.

    Values of a sequence are looked at here, those of a tensor by the CPU's operator (CUDA's waits for no value).
    """
    if isinstance(bandwidths, Tensor):
        return bandwidths.detach().to(device, torch.float64)
    try:
        values = [float(b) for b in bandwidths]
    except (TypeError, ValueError):
        shown = " ".join(repr(bandwidths).split())[:80]
        raise TypeError(f"{op}: bandwidths must be a Tensor, a sequence of numbers or None, got {shown}") from None
    if not all(b > 0 for b in values):
        raise ValueError(f"{op}: bandwidths must be positive, got {values}")
    return torch.tensor(values, dtype=torch.float64, device=device)


def rescaled(x: Tensor, y: Tensor, bandwidths: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same samples and bandwidths (B,) in a unit in which squares stay within the dtype; mmd is the same.

    The unit is a power of two, so that nothing is rounded; 1 where nothing else is needed. By it the bandwidths come
    about 1, or, without any, the largest absolute value. Bandwidths beyond 2**120 (float64: 2**1000) of it, or below
    the inverse, are set to that. float16 stays as it is: float32 holds its squares.
    """
    near, most, widest = {torch.float16: (99, 0, 120), torch.float64: (400, 1000, 1000)}.get(x.dtype, (32, 126, 120))
    largest = x.new_zeros((), dtype=torch.float64)
    if x.shape[1] > 0:
        largest = torch.stack([torch.linalg.vector_norm(t.detach(), float("inf")) for t in (x, y)]).amax().double()
    largest = largest.log2()
    power = (largest if bandwidths is None else bandwidths.log2().mean() / 2).round()
    limited = torch.maximum(power, largest.ceil() - 0.75 * most).clamp(-most, most)  # nothing may overflow by it
    needed = power.isfinite() & (power.abs() > near) & (largest.abs() > near)
    c = torch.pow(2.0, -torch.where(needed, limited, 0))
    if bandwidths is not None:
        scaled = bandwidths * c * c
        bandwidths = torch.where(bandwidths > 0, scaled.clamp(2.0**-widest, 2.0**widest), bandwidths)
    return x * c.to(x.dtype), y * c.to(x.dtype), bandwidths
