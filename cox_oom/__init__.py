"""What the four stages of COX share: files, learner, connections, anchors, methods, data sets, perceptors, report."""

from importlib import metadata

try:
    __version__ = metadata.version("cox-oom")
except metadata.PackageNotFoundError:
    __version__ = "0+not.installed"
