"""Data sets as stage 1 sees them: `read(data)` gives a Dataset, whatever the source.

`data` is the name of a data set (a module of this package with a `read` function and its `OPTIONS`) or the path
of a folder with `manifest.csv` (folder.py). A reader lists what there is and checks it; items are loaded one at a time.
"""

import hashlib
import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from cox_oom.files import UserError

ROOTED = ("tvl", "llvip", "nyud", "vggs", "msrvtt", "mosei")  # read from --root (official.py, docs/data/<name>.md)
NAMES = ("synth", "emoji", *ROOTED)
SPLITS = ("train", "val", "test")


@dataclass
class Dataset:
    """n instances, each observed by some of the modalities.

    Raw items, as `load(modality, row)` returns them, by kind:
      image   uint8 (C, H, W) with C = 1 or 3; float32 (C, H, W) for 16-bit images (depth: metres) and `.npy`
      series  float32 (C, T)
      audio   float32 (T,), mono, 16 kHz
      text    str
      video   uint8 (F, 3, H, W)
    `load` takes a third argument `sample`, which only two kinds look at. Video: a callable (n_frames, fps) -> frame
    indices in place of the reader's even choice of F frames. Audio: a callable (wave float32 (T,), rate) -> wave at
    16 kHz in place of the reader's resampling.
    """

    name: str  # 'synth' or the folder's base name
    ids: list[str]  # n, unique
    split: list[str]  # n of 'train' | 'val' | 'test'
    labels: list[int]  # n indices into class_names, -1 = unlabelled
    class_names: list[str]  # sorted, or in the data set's own order
    modalities: dict[str, str]  # name -> kind, in column order
    cells: dict[str, list[str | None]]  # modality -> n entries, None where not observed
    load: Callable[..., Any]  # (modality, row, sample=None); raises UserError naming file, row and mend
    fingerprint: str  # sha256 (hex) of the content
    source: dict[str, Any]  # plain facts for logs and meta: {'path': ...} or {'seed': ..., ...}
    facts: list[str] = field(default_factory=list)  # lines that a user should see once
    absent: dict[str, list[int]] = field(default_factory=dict)  # modality -> rows whose file was not there
    broken: dict[str, list[int]] = field(default_factory=dict)  # the same of files useless by their first bytes
    groups: list[str] | None = None  # n: what --groups names, an object, a person, a place; "" of none
    marks: dict[str, list[str]] = field(default_factory=dict)  # modality -> n `mark`s; none: rows are not told apart


def mark(*facts: str | int | bytes | None) -> str:
    """16 hex digits that change with anything that changes an item: what is known of its cell and file."""
    digest = hashlib.sha256()
    for fact in facts:
        part = fact if isinstance(fact, bytes) else repr(fact).encode()
        digest.update(b"%d:" % len(part) + part)
    return digest.hexdigest()[:16]


def options(data):
    """{option: one line of help} of the data set that `--data` names."""
    return importlib.import_module(f"cox_oom.data.{data if is_name(data) else 'folder'}").OPTIONS


def is_name(data):
    """Whether `--data` names a data set; a folder of that name with a manifest.csv goes first."""
    return data in NAMES and not os.path.exists(os.path.join(data, "manifest.csv"))


def read(data: str, root: str | None = None, **options: Any) -> Dataset:
    """Reads the data set that `--data` names. Options with the value None count as not given.

    root: the folder of the official files, for the data sets in ROOTED alone. Raises UserError where data, root or an
    option is not one that can be read.
    """
    options = {k: v for k, v in options.items() if v is not None}
    if is_name(data):
        if "kinds" in options:
            raise UserError(f"--data {data}: --as tells the kind of a folder's column; leave it out")
        if "groups" in options:
            raise UserError(f"--data {data}: --groups names a folder's column; leave it out")
        module = importlib.import_module(f"cox_oom.data.{data}")
        if data not in ROOTED:
            if root is not None:
                raise UserError(f"--data {data} has no files; leave --root {root} out")
            return module.read(**options)
        if root is None:
            raise UserError(
                f"--data {data}: where are its files? docs/data/{data}.md says what to get; then: "
                f"--data {data} --root DIR"
            )
        if not os.path.isdir(root):
            raise UserError(
                f"--root {root}: not a folder; give the one of docs/data/{data}.md: --data {data} --root DIR"
            )
        return module.read(os.path.normpath(str(root)), **options)
    if os.path.isdir(data):
        if root is not None:
            raise UserError(f"--data {data} is a folder itself; leave --root {root} out")
        from cox_oom.data import folder

        return folder.read(data, **options)
    if os.path.exists(data):
        raise UserError(f"--data {data}: this is a file; give the folder that contains manifest.csv")
    raise UserError(
        f"--data {data}: neither a folder nor a known data set; "
        f"give the path of a folder with manifest.csv, or one of: {', '.join(NAMES)}"
    )
