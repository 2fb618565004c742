"""The learner's inputs of a modality in units of rows, each made by itself and kept as a shard: stage 1 holds one of
them, goes on at one after a stop, and takes the rows that a file holds already from there.

Series are decoded once: a unit's items go to the disk as they come (raw-K.bin). When all are there, and with them the
length of the longest, they are shortened and padded unit by unit.
"""

import os
import secrets
import tempfile
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from cox_oom import files, shards
from cox_oom.data import ahead, grown, inputs
from cox_oom.files import UserError


class LongerThanBefore(Exception):
    """A new series is longer than those that were shortened before: all have to be decoded again."""


class Units:
    """The rows of a modality in units, on their way to the file `path`.

    shape: sizes of the items. known: all that shapes the file. complain: ahead.Complaints. old: grown.Kept, what of the
    rows need not be decoded. `made` fills with {"rows", "lengths", "moments", "shape", "dtype", "name" or "x"} a unit.
    """

    def __init__(self, args, path, data, modality, rows, shape, known, complain, old):
        self.args, self.path, self.data, self.modality = args, path, data, modality
        self.shape, self.complain, self.old = shape, complain, old
        self.kind = data.modalities[modality]
        self.known = {**shape, **known, "kind": self.kind, "mels": inputs.MELS, "reader": inputs.READER}
        self.per = old.file["meta"]["per"] if old else shards.most(self.item_bytes(rows))
        self.units = shards.split(rows, self.per)
        self.alone = len(self.units) == 1  # it stays in memory, and one file
        self.made: list[dict[str, Any]] = []

    def item_bytes(self, rows):
        """Bytes that an item takes, as the first one tells that can be read."""
        if self.kind == "video":
            return 3 * self.shape["frames"] * self.shape["image_size"] ** 2
        for row in rows if self.kind != "text" and len(rows) > ahead.FEW else ():
            with suppress(UserError):
                item = inputs.reduced(self.kind, self.data.load(self.modality, row), **self.shape)
                steps = min(item.shape[-1], self.shape["series_length"])
                return 4 * len(item) * steps if item.ndim == 2 else item.nbytes // len(item) * max(3, len(item))
        return 0

    def about(self, rows, **more):
        """What a unit of these rows is made from."""
        mark = lambda r: [self.data.ids[r], self.data.split[r], grown.mark_of(self.data, self.modality, r)]
        return {**self.known, "rows": files.digest([mark(r) for r in rows]), **more}

    def train(self, rows):
        return [self.data.split[r] == "train" for r in rows]

    def complaints(self, rows):
        """What is wrong with the media of a unit, as its file keeps it."""
        problems = self.complain.problems
        return [[self.data.ids[r], *problems[r]] for r in rows if r in problems]

    def recall(self, rows, complaints):
        """Take in what a unit's file kept."""
        at = {self.data.ids[r]: r for r in rows}
        for i, *complaint in complaints:
            self.complain(at[i], tuple(complaint))

    def fresh(self, rows):
        """Those of the rows that have to be decoded."""
        return [r for r in rows if r not in self.old.places]

    def stream(self, rows):
        """Decodes the fresh ones of the rows, in order: (row, item), the item None where it is left out."""
        rows = self.fresh(rows)
        reduce = lambda raw: inputs.reduced(self.kind, raw, **self.shape)
        workers = 0 if self.kind == "text" else self.args.workers
        for place, item, complaint in ahead.decoded(self.data, self.modality, rows, reduce, workers=workers):
            self.bar.update()
            left_out = complaint and self.complain(rows[place], complaint)
            yield rows[place], None if left_out else item

    def items(self, rows, stream):
        """The items of a unit's rows, from the stream or from the file that has them already."""
        for row in rows:
            yield self.old_item(row) if row in self.old.places else next(stream)[1]

    def old_item(self, row):
        """An item that was made before, in a form that comes out as it is."""
        if self.kind == "text":
            return self.data.load(self.modality, row)
        place, lengths = self.old.places[row], self.old.file["lengths"]
        x = self.old.file["x"][place]
        if self.kind in ("series", "audio"):
            return x if lengths is None else x[:, : int(lengths[place])]
        return x.transpose(0, 1) if self.kind == "video" else x

    @contextmanager
    def named(self, rows):
        """An unlike item among the rows is named by its file."""
        try:
            yield
        except inputs.Ragged as e:
            row = rows[e.item]
            cell = self.data.cells[self.modality][row]
            root = self.args.root or self.args.data
            where = os.path.join(root, cell) if isinstance(cell, str) else self.modality
            mend = f"make all files of {self.modality} alike, or empty the cell"
            raise UserError(f"{where} (id {self.data.ids[row]}): {e.what}; {mend}") from None

    def add(self, k, made, about):
        """Keep what unit k was made into, nothing where all is left out: its file is written, unless it is alone."""
        rows, x = [r for r in self.units[k] if r not in self.complain.left_out], made["x"]
        if not rows:
            return
        part = {"rows": rows, "lengths": made["lengths"], "moments": made["moments"]}
        part |= {"shape": x.shape[1:], "dtype": x.dtype, "x": x}
        if self.kind == "image" and self.made:
            before = max(self.made, key=lambda p: p["shape"][0])
            if what := inputs.unlike((x.shape[1], x.dtype), (before["shape"][0], before["dtype"])):
                with self.named(rows):
                    raise inputs.Ragged(0, what)
        if not self.alone:
            name = made.get("name")
            if not name:
                obj = {k: made[k] for k in ("x", "lengths", "moments")} | {"complaints": self.complaints(self.units[k])}
                name = shards.write(self.path, k, obj, about, self.data.name)
            part["name"] = name
            del part["x"]
        self.made.append(part)

    def find(self, k, about):
        """Unit k where its file is there already, made from the same."""
        if self.alone or not (found := shards.find(self.path, k, about)):
            return None
        self.recall(self.units[k], found["complaints"])
        return {**found, "name": f"{k:05d}-{found['meta']['digest']}"}

    def make_plain(self):
        """Images, clips and texts."""
        about = [self.about(rows) for rows in self.units]
        there = {k for k in range(len(about)) if not self.alone and shards.find(self.path, k, about[k])}
        stream = self.stream([r for k, rows in enumerate(self.units) if k not in there for r in rows])
        for k, rows in enumerate(self.units):
            if k in there:
                made = self.find(k, about[k])
                self.bar.update(len(self.fresh(rows)))
            else:
                with self.named(rows):
                    made = inputs.unit(self.kind, self.items(rows, stream), self.train(rows), **self.shape)
            self.add(k, made, about[k])
            del made  # before the next one takes its memory

    def make_series(self):
        """Series and sound: all are decoded first, then shortened by one factor. Returns their inputs.Form."""
        raws = self.decode()
        limit, old = self.shape["series_length"], self.old
        steps = {r: t for raw in raws for r, t in zip(raw["rows"], raw["steps"])}
        longest = old.file["meta"]["preparation"]["longest"] if old else 0
        shortened = longest > limit  # those of before, whose steps are not known any more
        if shortened and max(steps.values(), default=0) > longest:
            raise LongerThanBefore
        longest = max([longest, *steps.values()])
        lengths = {r: inputs.shorter(t, longest, limit) for r, t in steps.items()}
        for r, place in old.places.items():
            t = old.file["x"].shape[-1] if old.file["lengths"] is None else int(old.file["lengths"][place])
            lengths[r] = t if shortened else inputs.shorter(t, longest, limit)
        kept = [r for rows in self.units for r in rows if r in lengths]
        form = inputs.Form.of(self.kind, [lengths[r] for r in kept], self.train(kept), longest)
        for k, rows in enumerate(self.units):
            about = self.about(rows, form=[longest if longest > limit else 0, form.even])
            here = [r for r in rows if r in lengths]
            if not here:
                continue
            made = self.find(k, about)
            if made is None:
                items = self.items(here, raw_items(raws[k], self.raw_path(k)))
                made = inputs.series_unit(items, [lengths[r] for r in here], self.train(here), form)
            self.add(k, made, about)
            del made  # before the next one takes its memory
        return form

    def raw_path(self, k):
        return shards.folder(self.path) / f"raw-{k:05d}.bin"

    def decode(self):
        """[{"rows", "steps", "channels"}, of one unit alone "file", too] of the fresh rows: their items are on the
        disk."""
        about = [self.about(self.fresh(rows)) for rows in self.units]
        there = {k: raw for k in range(len(about)) if (raw := self.find_raw(k, about[k]))}
        stream = self.stream([r for k, rows in enumerate(self.units) if k not in there for r in rows])
        raws: list[dict[str, Any]] = []
        channels = len(self.old_item(next(iter(self.old.places)))) if self.old else None
        for k, rows in enumerate(self.units):
            rows = self.fresh(rows)
            raw = there.get(k)
            if raw:
                self.recall(rows, raw["complaints"])
                self.bar.update(len(rows))
            else:
                raw = self.spill(k, rows, stream, about[k], channels)
            at = {self.data.ids[r]: r for r in rows}
            raws.append({**raw, "rows": [at[i] for i in raw["ids"]]})
            if raw["ids"]:
                channels = channels or raw["channels"]
                with self.named(raws[-1]["rows"]):
                    inputs.unlike_series(0, raw["channels"], channels)
        return raws

    def find_raw(self, k, about):
        """What was decoded of unit k, if that is whole and of the same rows."""
        path = self.raw_path(k)
        if self.alone or not path.exists():
            return None
        try:
            raw = files.load(path.with_suffix(".pt"))
        except UserError:
            return None
        size = 4 * raw["channels"] * sum(raw["steps"])
        return raw if raw["meta"]["args"] == about and path.stat().st_size == size else None

    def spill(self, k, rows, stream, about, channels):
        """Decode the rows of unit k to the disk: {"ids", "steps", "channels", "complaints"} of those that are kept."""
        path = self.raw_path(k)
        ids: list[str] = []
        steps: list[int] = []
        if not rows:
            return {"ids": ids, "steps": steps, "channels": channels or 0, "complaints": []}
        files.writable(self.path.parent if self.alone else path.parent)
        hidden = path.with_name(f".{path.name}.{files.host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
        file: Any = tempfile.TemporaryFile(dir=self.path.parent) if self.alone else open(hidden, "wb")
        try:
            for i, row in enumerate(rows):
                item = next(stream)[1]
                if item is not None:
                    item = inputs.as_tensor(item).float().numpy()
                    channels = channels or len(item)
                    with self.named(rows):
                        inputs.unlike_series(i, len(item), channels)
                    file.write(np.ascontiguousarray(item).data)
                    ids.append(self.data.ids[row])
                    steps.append(item.shape[1])
            raw = {"ids": ids, "steps": steps, "channels": channels or 0, "complaints": self.complaints(rows)}
            if self.alone:
                return {**raw, "file": file}
            file.close()
            os.replace(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
        facts: dict[str, Any] = {"stage": "extract_features", "data": self.data.name, "fingerprint": "", "args": about}
        files.save(path.with_suffix(".pt"), raw, **facts, quiet=True, dated=False)
        return raw

    def make(self):
        """(the file's content but for what it says of its rows, the rows [n], the steps of the longest series)."""
        with tqdm(
            total=len(self.fresh([r for rows in self.units for r in rows])),
            desc=f"read {self.modality}",
            mininterval=1,
            disable=None,
        ) as self.bar:
            form = self.make_series() if self.kind in ("series", "audio") else self.make_plain()
        common = inputs.joined(self.kind, self.made, form)
        longest, used = common.pop("longest"), [r for part in self.made for r in part["rows"]]
        if self.alone:
            return {**common, "x": self.made[0]["x"]}, used, longest
        shape = torch.Size(max(sizes) for sizes in zip(*(part["shape"] for part in self.made)))
        names, sizes = [part["name"] for part in self.made], [len(part["rows"]) for part in self.made]
        return {**common, "shards": shards.entry("x", names, sizes, shape, self.made[0]["dtype"])}, used, longest


def raw_items(raw, path):
    """(row, item) of what was decoded of a unit, one by one."""
    if not raw["steps"]:
        return
    with raw.get("file") or open(path, "rb") as file:
        file.seek(0)
        for row, steps in zip(raw["rows"], raw["steps"]):
            yield row, np.fromfile(file, np.float32, raw["channels"] * steps).reshape(raw["channels"], steps)
