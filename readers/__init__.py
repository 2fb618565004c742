"""Data sets as stage 1 sees them: `read(data)` gives a Dataset, whatever the source.

`data` is the name of a data set (a module of this package with a `read` function) or the path of a folder
with `manifest.csv` (folder.py). A reader lists what there is and checks it; items are loaded one at a time.
"""
import os
from dataclasses import dataclass
from typing import Any, Callable

from bank import UserError

NAMES = ("synth",)
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
    """
    name: str                          # 'synth' or the folder's base name
    ids: list[str]                     # n, unique
    split: list[str]                   # n of 'train' | 'val' | 'test'
    labels: list[int]                  # n indices into class_names, -1 = unlabelled
    class_names: list[str]             # sorted
    modalities: dict[str, str]         # name -> kind, in column order
    cells: dict[str, list]             # modality -> n entries, None where not observed
    load: Callable[[str, int], Any]    # raises UserError naming file, row and mend
    fingerprint: str                   # sha256 (hex) of the content
    source: dict                       # plain facts for logs and meta: {'path': ...} or {'seed': ..., ...}


class Items:
    """The raw items of one modality at the given rows, loaded on access: what media.learner_inputs takes.

    Nothing is kept, so a whole modality goes through memory one item at a time.
    """

    def __init__(self, dataset, modality, rows):
        self.dataset, self.modality, self.rows = dataset, modality, list(rows)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, i):
        return self.dataset.load(self.modality, self.rows[i])


def read(data, **options):
    """Reads the data set that `--data` names. Options with the value None count as not given."""
    options = {k: v for k, v in options.items() if v is not None}
    if data in NAMES and not os.path.exists(os.path.join(data, "manifest.csv")):
        from readers import synth
        return synth.read(**options)
    if os.path.isdir(data):
        from readers import folder
        return folder.read(data, **options)
    if os.path.exists(data):
        raise UserError(f"--data {data}: this is a file; give the folder that contains manifest.csv")
    raise UserError(f"--data {data}: neither a folder nor a known data set; "
                    f"give the path of a folder with manifest.csv, or one of: {', '.join(NAMES)}")
