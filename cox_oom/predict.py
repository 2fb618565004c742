"""METHOD.pt and recordings to class, confidence and posteriors: what a trained learner is for.

    learner = cox_oom.load("runs/my_robot/bind/oom-sonar/semi/seed0/cox.pt")
    names, confidence = learner(["a.npy", "b.npy"])

Shapes: n recordings, C classes.
"""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cox_oom import confidence, files
from cox_oom.augment import model_of
from cox_oom.data import Dataset, ahead, folder, inputs, media
from cox_oom.files import UserError
from cox_oom.methods import METHODS
from cox_oom.report.records import read_record

CHUNK = 128  # recordings that go through the learner at once
KEYS = ("learner", "head", "class_names", "history", "preparation", "calibration", "novelty")


@dataclass
class Answer:
    """What a learner says of n recordings: posteriors (n, C), NaN where one could not be read; novelty (n,), above 1
    where it is unlike 95% of the training items; notes [n]: why one could not be read, or what is odd about it."""

    posteriors: Tensor
    novelty: Tensor
    notes: list[str]


class Trained:
    """Trained learners (METHOD.pt, one or several of the same inputs, whose posteriors are averaged).

    classes [C]; modality; kind: "image", "audio", "series", "text" or "video"; card: text, "" before stage 4."""

    def __init__(self, paths: Sequence[str | Path], device: str = "cpu") -> None:
        self.paths = [Path(p) for p in paths]
        self.runs = [files.load(p, keys=KEYS, first="train_explore.py --force") for p in self.paths]
        self.preparation = self.runs[0]["preparation"]
        self.classes, self.modality = self.runs[0]["class_names"], self.preparation["modality"]
        self.kind = self.preparation["kind"]
        self.models = [model_of(run, device) for run in self.runs]
        first = files.digest([self.preparation, self.classes])
        for path, run in zip(self.paths, self.runs):
            if files.digest([run["preparation"], run["class_names"]]) != first:
                raise UserError(
                    f"{path} has other inputs or classes than {self.paths[0]}; average runs of one data set"
                )
            if run["preparation"]["reader"] != inputs.READER:
                raise UserError(f"{path}: its recordings were read in another way; run all stages again with --force")

    @property
    def card(self) -> str:
        path = self.paths[0].with_suffix(".card.md")
        return path.read_text(encoding="utf-8") if path.exists() else ""

    @property
    def certainty(self) -> str:
        """What the confidence rests on, in words."""
        found = [run["calibration"] for run in self.runs]
        if not all(c["n"] for c in found):
            return "not calibrated: the confidence is the network's own, often too high; give stage 3 --folds 4"
        n, source = min(c["n"] for c in found), found[0]["source"]
        t = [f"{c['temperature']:.2f} ({c['low']:.2f} to {c['high']:.2f})" for c in found]
        return f"calibrated on {n} labelled items ({source}), temperature {', '.join(t)}"

    def __call__(self, recordings: Sequence[Any]) -> tuple[list[str], Tensor]:
        """Class name and confidence (n,) of each recording: a path, or an array or tensor as Dataset's raw items are;
        of text the sentence itself. Raises UserError for the first that cannot be read."""
        answer = self.answer(recordings)
        if len(unread := answer.posteriors[:, 0].isnan().nonzero()):
            raise UserError(answer.notes[int(unread[0])])
        p, c = answer.posteriors.max(1)
        return [self.classes[i] for i in c.tolist()], p

    def answer(self, recordings: Sequence[Any], workers: int = 0) -> Answer:
        """The Answer to recordings; workers: processes that read them."""
        chunks = list(self.answers(recordings, workers))
        empty = Answer(torch.zeros(0, len(self.classes)), torch.zeros(0), [])
        join = lambda name: torch.cat([getattr(c, name) for c in [empty, *chunks]])
        return Answer(join("posteriors"), join("novelty"), [note for c in chunks for note in c.notes])

    def answers(self, recordings: Sequence[Any], workers: int = 0) -> Iterator[Answer]:
        """Answers to recordings in order, a chunk at a time, so that any number of them goes through memory."""
        items: list[Any] = []
        rows = range(len(recordings))
        for place, item, complaint in ahead.decoded(
            self.data(recordings), self.modality, rows, self.prepared, workers=workers
        ):
            items.append((item, complaint[1] if complaint else item.get("note", "")))
            if len(items) == CHUNK or place == rows[-1]:
                yield self.judge(items)
                items = []

    def prepared(self, raw: Any) -> dict[str, Any]:
        """{"x", "steps"} of a raw item as the learner takes it, or {"note": why it cannot be taken}."""
        try:
            x, steps = inputs.prepared(raw, self.preparation)
        except UserError as e:
            return {"note": str(e)}
        return {"x": x, "steps": steps}

    def data(self, recordings: Sequence[Any]) -> Dataset:
        """The recordings as a Dataset, which worker processes read."""

        def load(modality: str, row: int, sample: Any = None) -> Any:
            what = recordings[row]
            if not isinstance(what, (str, os.PathLike)) or self.kind == "text":
                return raw_item(what, self.kind)
            path = os.fspath(what)
            allowed = folder.EXTENSIONS[self.kind]
            if not os.path.isfile(path):
                raise UserError(f"{path}: it is not there; correct the path")
            if not path.lower().endswith(allowed):
                raise UserError(f"{path}: no file of kind {self.kind}; give one of {' '.join(allowed)}")
            try:
                return media.load_file(path, self.kind, self.modality, self.preparation["frames"])
            except media.MediaError as e:
                raise UserError(f"{path}: {e}; {e.mend or 'replace the file'}") from None

        n = len(recordings)
        cells = [os.fspath(r) if isinstance(r, (str, os.PathLike)) else "an array" for r in recordings]
        return Dataset(
            "recordings",
            [str(i) for i in range(n)],
            ["test"] * n,
            [-1] * n,
            self.classes,
            {self.modality: self.kind},
            {self.modality: cells},
            load,
            "",
            {},
        )

    def judge(self, items: list[tuple[dict[str, Any] | None, str]]) -> Answer:
        """The Answer to a chunk of items (what `prepared` gives, or None; the note about it)."""
        made = [item for item, _ in items if item and "x" in item]
        whole = torch.tensor([bool(item and "x" in item) for item, _ in items])
        posteriors = torch.full((len(items), len(self.classes)), torch.nan)
        novelty = torch.full((len(items),), torch.nan)
        if made:
            x = torch.stack([torch.as_tensor(item["x"]) for item in made])
            steps = torch.tensor([item["steps"] for item in made]) if self.preparation["lengths"] else None
            file = {"kind": "series" if self.kind == "audio" else self.kind, "x": x, "lengths": steps}
            file |= {"mean": self.preparation["mean"], "std": self.preparation["std"]}
            found = [model(file, torch.arange(len(x))) for model in self.models]
            both = list(zip(self.runs, found))
            posteriors[whole] = torch.stack([confidence.posteriors(run, out) for run, (_, out) in both]).mean(0)
            novelty[whole] = torch.stack([confidence.novelty(run, z) for run, (z, _) in both]).mean(0)
        return Answer(posteriors, novelty, [note for _, note in items])


def raw_item(what: Any, kind: str) -> Any:
    """An array, a tensor or a sentence as a raw item. UserError where its values cannot be used."""
    if kind == "text":
        return str(what)
    x = np.ascontiguousarray(what.cpu().numpy() if isinstance(what, Tensor) else what)
    x = x if x.dtype == np.uint8 and kind in ("image", "video") else x.astype(np.float32)
    try:
        media.check_values(x)
    except media.MediaError as e:
        raise UserError(f"a recording {e}; {e.mend or 'replace it'}") from None
    return x


def load(path: str | Path | Sequence[str | Path], device: str = "cpu") -> Trained:
    """A trained learner: METHOD.pt, a list of them to average, or a folder of runs. Of a folder the run is taken that
    is best on its own validation items; a line says which. Raises UserError."""
    if not isinstance(path, (str, Path)):
        return Trained(path, device)
    return Trained([best(Path(path))] if Path(path).is_dir() else [path], device)


def best(where: Path) -> Path:
    """The run in a folder that is best on its own validation items; without those COX's of the lowest seed."""
    paths = [p for p in where.rglob("seed*/*.pt") if not {"folds", "members"} & {*p.relative_to(where).parts}]
    found = sorted((p.parent, p.stem) for p in paths if p.stem.partition("-")[0] in METHODS)
    return choose(found, f"{where} holds no trained learner; give METHOD.pt, or a folder of runs")[0]


def choose(found: Sequence[tuple[Path, str]], none: str) -> list[Path]:
    """Of runs [(folder of a seed, method)] those of one method: the best on items that training held out, without such
    items COX. A line on stderr says which. Raises UserError where they are of several sensors, or `none`."""
    runs: dict[tuple[Path, str], list[Path]] = {}
    for seed, method in found:
        row = METHODS[method.partition("-")[0]]
        if (row.trains or row.classical) and (not row.all_labels or len(found) == 1):
            runs.setdefault((seed.parent, method), []).append(seed / f"{method}.pt")
    if not runs:
        raise UserError(none)
    if len(sensors := sorted({where.parts[-2][4:] for where, _ in runs})) > 1:
        raise UserError(f"there are runs of {', '.join(sensors)}; give --oom, or the folder of one of them")
    held = {k: mean([files.load(p, keys=KEYS)["calibration"].get("accuracy") for p in ps]) for k, ps in runs.items()}
    test = {k: mean([metrics_of(p).get("accuracy") for p in ps]) for k, ps in runs.items()}
    known = lambda scores: not any(map(math.isnan, scores.values()))
    score, why = (held, "best on held-out items") if known(held) else (test, "")
    best = max(runs, key=lambda k: score[k]) if known(score) else None
    key = best if why and best else min(runs, key=lambda k: (k[1] != "cox", k[1]))
    if not why:
        why = "no item was held out to compare them by"
        if best and best != key:
            why += f", test items like {best[1]} better ({100 * test[best]:.1f} against {100 * test[key]:.1f}%)"
    if len(runs) > 1:
        print(f"note: {key[1]} of {', '.join(sorted(m for _, m in runs))}: {why}; --method chooses", file=sys.stderr)
    return runs[key]


def mean(values: Sequence[float | None]) -> float:
    """The mean; NaN, which nothing is better than, where a value is missing."""
    return sum(v if v is not None else math.nan for v in values) / len(values)


def metrics_of(path: Path) -> dict[str, Any]:
    """The metrics of a METHOD.pt's record; {} where stage 4 has not judged it."""
    record = read_record(path.with_suffix(".json"))
    return record["metrics"] if record else {}
