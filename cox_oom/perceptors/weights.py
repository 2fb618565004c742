"""Weight files of the pretrained perceptors: where they lie, what is in them, their hashes. Nothing is downloaded."""

import functools
import hashlib
import os
from pathlib import Path

import torch

from cox_oom.files import UserError, optional
from cox_oom.perceptors.preprocess import huggingface_cache


def find(what, names, place=None, defaults=(), where=""):
    """Path of the weights of `what`: the first that is there; UserError where none is.

    names: of the file (or folder), the best one first. place: what --weights says: the file or folder itself, or a
    folder that holds it; None: the folders of `defaults` are searched. where: address, size and licence, for the error.
    """
    choice = " or ".join(names)
    if place is not None:
        place = Path(place).expanduser()
        if not place.exists():
            raise UserError(f"--weights {place}: no such file or folder; {what} needs {choice}: {where}")
        for name in names:
            if place.name == name or (place / name).exists():
                return place if place.name == name else place / name
        if place.is_file():  # a copy under another name; its content is checked at load
            return place
        raise UserError(f"--weights {place}: holds no {choice}; {what} needs it: {where}")
    folders = [Path(d).expanduser() for d in defaults]
    for folder in folders:
        for name in names:
            if (folder / name).exists():
                return folder / name
    raise UserError(
        f"the weights of {what} ({choice}) are in none of {', '.join(map(str, folders))}; get them from "
        f"{where}; then --weights PATH"
    )


def huggingface_snapshots(repo):
    """Folders of `owner/name` in Hugging Face's hub cache, newest first."""
    folders = huggingface_cache().glob(f"models--{repo.replace('/', '--')}/snapshots/*")
    return sorted(folders, key=lambda p: p.stat().st_mtime, reverse=True)


def torch_hub():
    """The folder in which torch.hub keeps the files that it downloads."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def read(path):
    """{key: tensor} of a .pth, .pt, .bin or .safetensors file. Tensors are mapped from the file, not read to memory."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tensors = optional("safetensors.torch", "reading .safetensors files").load_file(path)
        else:
            try:
                tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            except RuntimeError as e:
                if "mmap" not in str(e):
                    raise
                tensors = torch.load(path, map_location="cpu", weights_only=True)  # written before torch 1.6
    except UserError:
        raise
    except Exception as e:  # torch raises RuntimeError, UnpicklingError, EOFError, ...
        reason = str(e).strip().split("\n")[0][:120]
        raise UserError(f"{path} cannot be read as weights ({reason}); get the file again") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise UserError(f"{path} is not a plain dict of tensors; give the file as it was published")
    return tensors


def key_list(keys, count=3):
    """'a, b, c and 7 more': keys for one line."""
    keys = sorted(keys)
    return ", ".join(keys[:count]) + (f" and {len(keys) - count} more" if len(keys) > count else "")


def sha256(path):
    """Hex digest of a file's content; not computed again in this process unless its size or time changes."""
    status = os.stat(path)
    return _sha256(str(path), status.st_size, status.st_mtime_ns)


@functools.cache
def _sha256(path, size, time):
    h, block = hashlib.sha256(), bytearray(1 << 22)
    with open(path, "rb") as f:
        while n := f.readinto(block):
            h.update(memoryview(block)[:n])
    return h.hexdigest()
