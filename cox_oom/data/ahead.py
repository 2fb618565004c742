"""Items decoded ahead of their use, in worker processes, in the order of the rows.

What is wrong with an item's media is a value in a worker, not an exception: Complaints counts it, lists it, and leaves
the row out or stops, as the flags say.
"""

import csv
import io
import multiprocessing
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from cox_oom import files
from cox_oom.data import media
from cox_oom.files import MissingLibrary, UserError

CHUNK = {"video": 1, "text": 64}  # rows that a worker takes at a time; neighbours may share a file (LLVIP's images)
LIGHT = 1 << 16  # bytes: smaller tensors travel through the pipe, larger ones in shared memory
FEW = 64  # items that are not worth starting processes for


class Rows(torch.utils.data.Dataset):
    """What a worker does with the row at a place of `rows`: (place, then(raw item), None), or (place, None, complaint).

    A complaint is ("broken", the UserError's text); a silent recording gives (place, item, ("silent", what)), one with
    values that may mean 'no data' (place, item, ("marked", what)). What `then` itself complains of is no fault of a
    file: ("refused", its text). Nor is a library that is not installed.
    """

    def __init__(self, dataset, modality, rows, then, sample=None):
        self.dataset, self.modality, self.rows, self.then, self.sample = dataset, modality, rows, then, sample

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, place):
        row, complaint = self.rows[place], None
        try:
            raw = self.dataset.load(self.modality, row, self.sample)
        except MissingLibrary as e:
            return place, None, ("refused", str(e))
        except UserError as e:
            return place, None, ("broken", str(e))
        where = place_of(self.dataset, self.modality, row)
        if self.dataset.modalities[self.modality] == "audio" and np.abs(raw).max(initial=0) < media.SILENCE:
            complaint = ("silent", f"{where}: {self.modality} is silent")
        elif mark := media.mark(raw, self.modality):
            complaint = ("marked", f"{where}: {mark}")
        try:
            return place, light(self.then(raw)), complaint
        except MissingLibrary as e:
            return place, None, ("refused", str(e))
        except UserError as e:
            return place, None, ("refused", f"{where}: {e}")


def place_of(dataset, modality, row):
    """What a line says of a row's item: its file and its id."""
    cell = dataset.cells[modality][row]
    is_file = isinstance(cell, str) and dataset.modalities[modality] != "text"
    return f"{cell if is_file else modality} (id {dataset.ids[row]})"


def light(item):
    """Small tensors as arrays: a tensor sent to another process costs it a file descriptor."""
    if isinstance(item, dict):
        return {k: light(v) for k, v in item.items()}
    return item.numpy() if isinstance(item, torch.Tensor) and item.nbytes <= LIGHT else item


def decoded(dataset, modality, rows, then, *, workers, ahead=64, sample=None):
    """Yields what Rows has to say of each of `rows`, in order; raises what is "refused". workers: processes, 0: none.

    then(raw item) is what they do with an item. `ahead`: at least so many items are decoded before they are asked for.
    """
    work = Rows(dataset, modality, list(rows), then, sample)
    if len(work) < FEW or "fork" not in multiprocessing.get_all_start_methods():
        workers = 0
    chunk = CHUNK.get(dataset.modalities[modality], 8)
    places = [list(range(k, min(k + chunk, len(work)))) for k in range(0, len(work), chunk)]
    chunks: Any = ([work[i] for i in chunk_places] for chunk_places in places)
    if workers:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # or transformers' tokenizers complain of the fork
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more workers than cores: the user's choice
        chunks = DataLoader(
            work,
            batch_sampler=places,
            collate_fn=list,
            num_workers=workers,
            multiprocessing_context="fork",
            prefetch_factor=max(2, -(-ahead // (workers * chunk))),
        )
    try:
        for results in chunks:
            for place, item, complaint in results:
                if complaint and complaint[0] == "refused":
                    raise UserError(complaint[1])
                yield place, item, complaint
    except RuntimeError as e:  # a worker was killed, or ran out of shared memory
        reason = str(e).strip().split("\n")[0]
        if "worker" not in reason and "shared memory" not in reason:
            raise
        raise UserError(
            f"reading {modality}: a worker process died ({reason}); give fewer --workers, 0 for none"
        ) from None


class Complaints:
    """What is wrong with the media of one modality. Called with (row, (problem, what)), it stops or says whether the
    row is left out; `finish` counts, and lists in a file."""

    def __init__(self, data, modality, on_error, on_silence):
        self.data, self.modality, self.on_error, self.on_silence = data, modality, on_error, on_silence
        self.problems = {row: ("missing", "the file is not there") for row in data.absent.get(modality, ())}
        self.left_out = set()

    def recall(self, path, rows):
        """Take in what `finish` listed at `path` of the rows that need not be decoded again."""
        if not path.exists():
            return
        at = {self.data.ids[row]: row for row in rows}
        with open(path, newline="", encoding="utf-8") as f:
            for i, problem, what in list(csv.reader(f))[1:]:
                if i in at:
                    self.problems[at[i]] = (problem, what)

    def __call__(self, row, complaint):
        problem, what = complaint
        if problem == "broken" and self.on_error == "fatal":
            raise UserError(what)
        if problem == "silent" and self.on_silence == "fatal":
            raise UserError(f"{what}; replace it, or give --on-silence skip or warn")
        self.problems[row] = complaint
        if problem != "marked" and (problem != "silent" or self.on_silence == "skip"):
            self.left_out.add(row)
        return row in self.left_out

    def finish(self, path):
        """{problem: count}; the problems are listed in the csv file `path`."""
        path.unlink(missing_ok=True)
        if self.problems:
            table = io.StringIO()
            rows = [(self.data.ids[r], problem, what) for r, (problem, what) in sorted(self.problems.items())]
            csv.writer(table, lineterminator="\n").writerows([("id", "problem", "what"), *rows])
            files.write_atomic(path, lambda tmp: tmp.write_text(table.getvalue(), encoding="utf-8"))
        counts = Counter(problem for problem, _ in self.problems.values())
        return {p: counts[p] for p in ("missing", "broken", "silent", "marked") if counts[p]}
