"""Operators of COX in torch's dispatcher (`torch.ops.cox_ops`), on the CPU and, where built, on CUDA.

    from cox_ops import nearest_anchor, top_anchors, modality_agreement, heads_agreement, pairwise_distances, mmd
    from cox_ops import soft_correspondence

`python -m cox_ops` says how they were built. `cox_ops.ref` holds the definition of each in plain torch.
"""

from importlib import metadata
from pathlib import Path

import torch

try:
    __version__ = metadata.version("cox-oom")  # cox_ops and cox_oom are installed together
except metadata.PackageNotFoundError:
    __version__ = "0+not.installed"

try:
    from . import _C as _C  # registers the operators
except ImportError as e:
    raise ImportError(f"cox_ops is not built for this Python ({e}); run: python setup.py build_ext --inplace") from None
# An editable install of another checkout lends its binary to a checkout that has none.
_here, _there = Path(__file__).resolve().parent, Path(str(_C.__file__)).parent.resolve()
if _here != _there:
    raise ImportError(
        f"cox_ops is not built in {_here} (found was that of {_there}); run: python setup.py build_ext --inplace"
    )

# The CUDA operators are a library of their own: a CPU build of torch lacks the CUDA symbols they need.
cuda_library: Path | None = None
if torch.version.cuda:
    cuda_library = next(iter(sorted(Path(__file__).parent.glob("_cuda*.so"))), None)
if cuda_library is not None:
    torch.ops.load_library(str(cuda_library))

try:
    from .ops import (
        heads_agreement,
        mmd,
        modality_agreement,
        nearest_anchor,
        pairwise_distances,
        soft_correspondence,
        top_anchors,
    )
except RuntimeError as e:  # a fake for an operator that the build lacks
    raise ImportError(f"cox_ops was built from other sources ({e}); run: python setup.py build_ext --inplace") from None

__all__ = [
    "pairwise_distances",
    "nearest_anchor",
    "top_anchors",
    "modality_agreement",
    "heads_agreement",
    "mmd",
    "soft_correspondence",
]
