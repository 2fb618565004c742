"""What every wrapper of cox_ops/ops.py asks of its tensors before the dispatcher sees them.

Shapes and dtypes are not looked at here: csrc/common.h checks those.
"""

import numbers
from typing import Any

import torch
from torch import Tensor


def tensors(op: str, **named: Any) -> list[Any]:
    """The tensors that were given, as the operator takes them. None stands for an optional one that was left out.

    TypeError where one is no tensor, RuntimeError where they lie on different devices, both with its name.
    """
    for name, t in named.items():
        if not isinstance(t, Tensor):
            raise TypeError(f"{op}: {name} must be a Tensor, got {type(t).__name__}")
    (first, at), *others = ((name, t.device) for name, t in named.items())
    for name, device in others:
        if device != at:
            raise RuntimeError(f"{op}: devices differ: {first} is on {at}, {name} on {device}")
    return list(named.values())


def integers(op: str, **named: Any) -> None:
    """TypeError where one is no integer, with its name."""
    for name, n in named.items():
        if not isinstance(n, (numbers.Integral, torch.SymInt)):
            raise TypeError(f"{op}: {name} must be an int, got {type(n).__name__}")


def positive(op: str, bandwidths: Any, device: torch.device) -> Tensor:
    """bandwidths, a tensor or a sequence of numbers -> float64 on `device`, without a gradient.

    Values of a sequence are looked at here, those of a tensor by the CPU's operator (CUDA's waits for no value).
    """
    if isinstance(bandwidths, Tensor):
        return bandwidths.detach().to(device, torch.float64)
    try:
        values = [float(b) for b in bandwidths]
    except (TypeError, ValueError):
        raise TypeError(f"{op}: bandwidths must be a Tensor, a sequence of numbers or None, got {bandwidths!r}") from None
    if not all(b > 0 for b in values):
        raise ValueError(f"{op}: bandwidths must be positive, got {values}")
    return torch.tensor(values, dtype=torch.float64, device=device)
