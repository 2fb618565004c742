"""What the four stages of COX share: files, learner, connections, anchors, methods, data sets, perceptors, report."""

import os
from importlib import metadata

# Threads that wait for work sleep: beside other work up to ten times faster. OpenMP reads it as torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

try:
    __version__ = metadata.version("cox-oom")
except metadata.PackageNotFoundError:
    __version__ = "0+not.installed"


def load(path, device="cpu"):
    """A trained learner, ready to name recordings: cox_oom.predict.load."""
    from cox_oom import predict  # here, so that importing the package is light

    return predict.load(path, device)
