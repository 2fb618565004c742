"""Optimizers of torch without the front end of torch.compile.

torch loads that front end (`torch._dynamo`, two to four seconds of each process) as soon as an optimizer is made, for
optimizers that are compiled. None is here, with --compile either: that compiles the learner.
"""

import inspect

import torch
from torch.optim import Optimizer


def eager(kind: type[Optimizer]) -> type:
    """The same optimizer, whose methods are torch's own without what stops a compiler there."""
    names = [name for name, method in inspect.getmembers(kind, inspect.isfunction) if hasattr(method, "__wrapped__")]
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names if name != "step"}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam: type[torch.optim.Adam] = eager(torch.optim.Adam)
AdamW: type[torch.optim.AdamW] = eager(torch.optim.AdamW)
LBFGS: type[torch.optim.LBFGS] = eager(torch.optim.LBFGS)
