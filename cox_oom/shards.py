"""Large files of stage 1 in shards: at most 4,096 items and 256 MiB each, a file with a digest of its own, written by
rename. A file of one shard stays one file.

RUNS/DATA/inputs/rgb.pt is then an index: what it says of its rows, and in "shards" which tensor lies in which shards.
These are RUNS/DATA/inputs/rgb.shards/00000-<digest>.pt and so on; the index's digest covers theirs. `load` in
cox_oom/files.py gives the tensor as `Shards`, which reads the rows that are asked for.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cox_oom import files
from cox_oom.files import UserError

ITEMS, BYTES = 4096, 1 << 28  # of a shard at most


def most(nbytes: int) -> int:
    """Items of a shard, where one has so many bytes."""
    return max(1, min(ITEMS, BYTES // max(1, nbytes)))


def split(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """The rows of each shard, `size` in each but the last."""
    return [rows[k : k + size] for k in range(0, len(rows), size)] or [rows]


def folder(path: str | Path) -> Path:
    """Where the shards of an index lie."""
    return Path(path).with_suffix(".shards")


def write(path: str | Path, k: int, obj: dict[str, Any], about: dict[str, Any], data: str) -> str:
    """Write shard k of the index `path`, made from `about` (plain values); its name. Its bytes follow from the content
    and what it was made from alone."""
    name = f"{k:05d}-{files.digest(obj)}"
    facts: dict[str, Any] = {"stage": "extract_features", "data": data, "fingerprint": "", "args": about}
    files.save(folder(path) / f"{name}.pt", obj, **facts, quiet=True, dated=False)
    return name


def find(path: str | Path, k: int, about: dict[str, Any]) -> dict[str, Any] | None:
    """Shard k of the index `path`, if one is there that is whole and made from the same."""
    for own in sorted(folder(path).glob(f"{k:05d}-*.pt")):
        try:
            obj = files.load(own)
        except UserError:
            continue
        if obj["meta"]["args"] == about:
            return obj
    return None


def sweep(path: str | Path, names: Sequence[str] = ()) -> None:
    """Remove all from the folder of shards but those of these names; without any the folder, too."""
    if not names:
        shutil.rmtree(folder(path), ignore_errors=True)
        return
    kept = {f"{name}.pt" for name in names}
    for own in list(folder(path).iterdir()):
        if own.name not in kept and (not own.name.startswith(".") or old_temporary(own)):
            shutil.rmtree(own, ignore_errors=True) if own.is_dir() else own.unlink(missing_ok=True)


def tidy(path: str | Path) -> None:
    """Remove from the folder of shards of a finished file what is not of it."""
    sweep(path, files.load(path, content=False).get("shards", {}).get("names", ()))


def old_temporary(own: Path) -> bool:
    """Whether a hidden entry is what a killed writer of some shard left."""
    found = re.fullmatch(r"\.(.+)\.[^.]+\.tmp", own.name)
    return found is not None and files.abandoned(own, own.with_name(found[1]))


def entry(of: str, names: list[str], sizes: list[int], shape: Sequence[int], dtype: torch.dtype) -> dict[str, Any]:
    """What an index says in "shards": the tensor `of` with items of a shape lies in shards of so many items."""
    return {"of": of, "names": names, "sizes": sizes, "shape": list(shape), "dtype": str(dtype)[6:]}


class Shards:
    """The tensor (n, *shape) that lies in the shards of an index. `x[rows]` is a tensor in memory; shards are
    memory-mapped, each from its first use on.

    A shard of grey images is read as the colour of the others; one of shorter series or texts is padded with zeros.
    """

    def __init__(self, path: str | Path, facts: dict[str, Any]) -> None:
        """path: the index; facts: what `entry` gave. Raises UserError where these are no such facts."""
        names, sizes, shape = facts["names"], facts["sizes"], facts["shape"]
        whole = all(isinstance(n, int) and n > 0 for n in (*sizes, *shape)) and len(sizes) == len(names) > 0
        if not whole or not all(re.fullmatch("[0-9]{5,}-[0-9a-f]{16}", name) for name in names):
            raise UserError("its list of shards is not what was written")
        self.index, self.of, self.sizes, self.names = Path(path), facts["of"], sizes, names
        self.paths = [folder(path) / f"{name}.pt" for name in names]
        self.starts = torch.tensor([0, *sizes]).cumsum(0)
        self.shape, self.dtype = torch.Size((sum(sizes), *shape)), getattr(torch, facts["dtype"])
        self.parts: list[Tensor | None] = [None] * len(sizes)

    def __len__(self) -> int:
        return self.shape[0]

    def dim(self) -> int:
        return len(self.shape)

    def verify(self) -> None:
        """UserError where a shard is missing, damaged or another one. One at a time is in memory."""
        for k in range(len(self.paths)):
            self.read(k, content=True)

    def read(self, k: int, content: bool = False) -> Tensor:
        """The tensor in shard k, memory-mapped. content: its bytes are compared with its digest, once a process."""
        obj = files.load(self.paths[k], keys=(self.of,), content=content)
        x = obj[self.of]
        same = obj["meta"]["digest"] == self.names[k].split("-")[1] and isinstance(x, Tensor) and x.dtype == self.dtype
        same = same and x.dim() == self.dim() and len(x) == self.sizes[k]
        if not same or any(n > most for n, most in zip(x.shape[1:], self.shape[1:])):
            raise UserError(f"{self.paths[k]} is not what {self.index.name} names")
        return x

    def part(self, k: int) -> Tensor:
        """The tensor in shard k, read where it was not."""
        x = self.parts[k]
        if x is None:
            try:
                x = self.parts[k] = self.read(k)
            except UserError as e:
                raise UserError(f"{e}; or make {self.index} again by extract_features.py --force") from None
        return x

    def __getitem__(self, rows: Any) -> Tensor:
        """Rows by number, slice, list, index (R,) or mask (n,): a tensor (R, *shape), of one number (*shape)."""
        if isinstance(rows, int):
            return self[torch.tensor([rows])][0]
        rows = torch.arange(len(self))[rows] if isinstance(rows, slice) else torch.as_tensor(rows)
        rows = rows.nonzero().squeeze(1) if rows.dtype == torch.bool else rows.long().cpu()
        rows = torch.where(rows < 0, rows + len(self), rows)
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(self):
            raise IndexError(f"a row is none of {len(self)}")
        return take(self, rows)

    def split(self, size: int) -> Iterator[Tensor]:
        """The rows in order, `size` at a time, as tensors in memory."""
        for k in range(0, len(self), size):
            yield self[k : k + size]


def take(x: Tensor | Shards, rows: Tensor, out: Tensor | None = None) -> Tensor:
    """Rows (R,) of a tensor (n, *shape) or of Shards as a tensor (R, *shape): `out` where it is given, which may be
    pinned. Item by item: for large ones ten times as fast as x[rows], which gathers number by number."""
    out = torch.empty((len(rows), *x.shape[1:]), dtype=x.dtype) if out is None else out
    if isinstance(x, Tensor):
        copy(out, torch.arange(len(rows)), x, rows)
        return out
    of = torch.bucketize(rows, x.starts, right=True) - 1
    for k in of.unique().tolist():
        at = (of == k).nonzero().squeeze(1)
        copy(out, at, x.part(k), rows[at] - x.starts[k])
    return out


def copy(out: Tensor, at: Tensor, x: Tensor, rows: Tensor) -> None:
    """out[at] = x[rows], grey as colour, padded with zeros at the end of the last axis."""
    to, of, last = out.numpy(), x.numpy(), x.shape[-1]
    if x.shape[1:] == out.shape[1:]:
        for i, r in zip(at.tolist(), rows.tolist()):
            to[i] = of[r]
        return
    for i, r in zip(at.tolist(), rows.tolist()):  # (C, H, W) of one channel, (C, T) or (T,) of fewer steps
        to[i, ..., :last] = of[r]
        to[i, ..., last:] = 0
