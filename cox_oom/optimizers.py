"""Optimizers of torch without the front end of torch.compile.

torch loads that front end (`torch._dynamo`) as soon as an optimizer is made, in case someone compiles it. This takes
two to four seconds of each process. Here no optimizer is compiled: --compile is for the learner alone. Some operations
on tensors of the device "meta", which have shapes and no numbers, load it as well, and are not used.
"""

import inspect

import torch
from torch.optim import Optimizer


def eager(kind: type[Optimizer]) -> type:
    """The same optimizer without the wrappers by which torch's methods tell a compiler to stop. Its step takes no
    gradient, as torch's own takes none without `differentiable`."""
    names = [name for name, method in inspect.getmembers(kind, inspect.isfunction) if hasattr(method, "__wrapped__")]
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in names if name != "step"}
    return type(kind.__name__, (kind,), {**plain, "step": torch.no_grad()(inspect.unwrap(kind.step))})


Adam: type[torch.optim.Adam] = eager(torch.optim.Adam)
AdamW: type[torch.optim.AdamW] = eager(torch.optim.AdamW)
LBFGS: type[torch.optim.LBFGS] = eager(torch.optim.LBFGS)
