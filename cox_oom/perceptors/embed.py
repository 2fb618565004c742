"""A data set's modality through a frozen perceptor: decoding and preprocessing in worker processes while the model
runs, in parts from which a killed run continues.

The result depends on the rows and the batch size alone: batches are formed within a part, in the order of the rows, of
items of equal shape, however many workers and processes there are and wherever a run was stopped. Parts go round the
processes of torchrun, or round jobs that share a disk alone (--share).
"""

import shutil
from typing import Any

import torch
from tqdm import tqdm

from cox_oom import files, ranks
from cox_oom.data import ahead
from cox_oom.files import UserError

PART = 256  # rows of a part


def features(model, role, data, modality, rows, folder, *, batch_size, workers, device, known, complain, share=None):
    """An iterator over the parts of a bank in order, what one_part gives: features (n, d) float32 unit rows on the CPU,
    and the rows of the data set (n) that they are of. All lie on the disk, one at a time is in memory. None on a
    process that has made its share of the parts alone: all but rank 0, or with `share` (k, n), part k of n.

    model: what a perceptor's load() gave. rows: those that are to be embedded. folder: where the parts lie meanwhile.
    known: what makes the features ({...} plain values): parts made from anything else are made again.
    complain(row, complaint) tells whether a row whose media are not right is left out; a part keeps what was wrong.
    """
    starts = range(0, len(rows), PART)
    about = {**known, "data": data.fingerprint, "batch_size": batch_size, "part": PART, "rows": files.digest(rows)}
    path = lambda k: folder / f"{k:08d}.pt"
    there = set()
    for k in starts:
        if part := read_part(path(k), about):
            there.add(k)
            for row, *complaint in part["complaints"]:
                complain(row, tuple(complaint))
    turn, turns = share or (ranks.rank, ranks.world)
    mine = [k for k in starts if k not in there and k // PART % turns == turn]
    todo = [row for k in mine for row in rows[k : k + PART]]
    preparer = model.preparer()
    stream = ahead.decoded(
        data, modality, todo, Prepare(preparer, role), workers=workers, ahead=batch_size, sample=preparer.sample(role)
    )
    with tqdm(
        total=len(rows), initial=len(rows) - len(todo), desc=f"embed {modality}", mininterval=1, disable=None
    ) as bar:
        for k in mine:
            part = one_part(model, role, rows[k : k + PART], stream, bar, batch_size, device, complain)
            save_part(path(k), about, data, part)
    ranks.wait()
    if ranks.rank or share:
        return None
    for k in sorted({*starts} - there - {*mine}):  # another process's, which has complained for itself alone
        for row, *complaint in files.load(path(k))["complaints"]:
            complain(row, tuple(complaint))
    return (files.load(path(k)) for k in starts)


class Prepare:
    """What a worker does with a raw item."""

    def __init__(self, preparer, role):
        self.preparer, self.role = preparer, role

    def __call__(self, raw):
        return self.preparer.prepare(self.role, raw)


def one_part(model, role, rows, stream, bar, batch_size, device, complain):
    """{"features" (n, d), "rows" (n), "complaints"} of the next len(rows) items of the stream."""
    waiting: dict[Any, list] = {}  # {shape: [(row, item)]}
    out, kept, complaints = [], [], []
    for row, (_, item, complaint) in zip(rows, stream):
        bar.update()
        if complaint:
            complaints.append([row, *complaint])
            if complain(row, complaint):
                continue
        kept.append(row)
        group = waiting.setdefault(shape_of(item), [])
        group.append((row, item))
        if len(group) == batch_size:
            out.append(encode(model, role, waiting.pop(shape_of(item)), device))
    out += [encode(model, role, group, device) for group in waiting.values()]
    if not kept:
        return {"features": torch.zeros(0, model.dims[role]), "rows": [], "complaints": complaints}
    z = torch.cat([z for _, z in out]).float().cpu()  # until here a GPU need not be waited for
    place = {row: k for k, row in enumerate(row for group_rows, _ in out for row in group_rows)}
    z = z[torch.tensor([place[row] for row in kept])].contiguous()
    bad = (~torch.isfinite(z).all(1)).nonzero().flatten().tolist()
    if bad:
        raise UserError(
            f"the perceptor's features of row {kept[bad[0]]} ({role}) are not finite; use --dtype bfloat16 or float32"
        )
    return {"features": z, "rows": kept, "complaints": complaints}


def encode(model, role, group, device):
    """([row], (B, d) features, perhaps still on the device) of [(row, item)] of equal shape."""
    items = [item for _, item in group]
    if isinstance(items[0], dict):
        batch = {k: stack([item[k] for item in items], device) for k in items[0]}
    else:
        batch = stack(items, device)
    return [row for row, _ in group], model.encode(role, batch)


def stack(items, device):
    """Items of equal shape as one tensor on the device."""
    return torch.stack([torch.as_tensor(item) for item in items]).to(device, non_blocking=True)


def shape_of(item):
    """What items of one batch have in common: a tensor's shape, or names and shapes of a dict of tensors."""
    return tuple((k, tuple(v.shape)) for k, v in item.items()) if isinstance(item, dict) else tuple(item.shape)


def save_part(path, about, data, part):
    """Writes a part, what one_part gave; about: what it is made from, which read_part compares."""
    files.save(
        path,
        part,
        stage="extract_features",
        data=data.name,
        fingerprint=data.fingerprint,
        args=about,
        quiet=True,
        dated=False,
    )


def read_part(path, about):
    """The part at `path` if it is whole and made from the same, else None."""
    try:
        part = files.load(path)
    except UserError:
        return None
    return part if part["meta"]["args"] == about else None


def clear(folder):
    """Remove the parts: the bank is there."""
    shutil.rmtree(folder, ignore_errors=True)
