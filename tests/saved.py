"""A small .pt file as the stages write them, and what a refusal of cox_oom/files.py says."""

import pytest
import torch

from cox_oom import files
from cox_oom.files import UserError

META = {"stage": "train_connect", "data": "toy", "fingerprint": "f" * 64, "args": {"epochs": 2, "w_agree": 1.0}}


def content():
    return {
        "features": torch.nn.functional.normalize(torch.arange(12.0).reshape(4, 3)),
        "ids": ["a", "b", "c", "d"],
        "labels": torch.tensor([0, 1, -1, 0]),
        "split": torch.tensor([0, 1, 2, 0]),
        "class_names": ["x", "y"],
        "lengths": None,
        "kind": "series",
        "nested": {"half": torch.ones(2, dtype=torch.bfloat16), "list": [torch.arange(0), 1.5, "t", True]},
    }


def save(path, obj=None, **changes):
    return files.save(path, obj if obj is not None else content(), **{**META, **changes}, quiet=True)


def complaint(call, *parts):
    """call() ends with one line that contains all `parts`."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    return message
