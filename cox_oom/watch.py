"""What one sees of work while it goes on: progress with the time left, and event files that TensorBoard shows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from cox_oom.files import optional

DELAY = 2  # seconds before a bar is shown: what is done sooner stays silent


def progress(items: Iterable[Any] | None, what: str, total: int | None = None, keep: bool = False) -> tqdm:
    """A tqdm bar over `items`, or with None a bar of `total` to be updated. It is shown on a terminal alone, after
    DELAY seconds, and `keep` leaves it there at its end."""
    return tqdm(items, desc=what, total=total, leave=keep, delay=DELAY, mininterval=1, disable=None)


def scalars(line: dict[str, Any]) -> tuple[int, dict[str, float]]:
    """A line of NAME.log.jsonl as TensorBoard shows it: (step, {tag: number}). A line of a connection has tags of its
    own, connection/MODALITY/KEY, over the connection's steps; the others count epochs."""
    prefix = f"connection/{line['connection']}/" if "connection" in line else ""
    numbers = {k: v for k, v in line.items() if isinstance(v, (int, float)) and k not in ("epoch", "step")}
    return int(line["step" if prefix else "epoch"]), {prefix + k: float(v) for k, v in numbers.items()}


class Events:
    """TensorBoard's event files in `folder`, written from the lines of a log. Raises MissingLibrary without
    tensorboard."""

    def __init__(self, folder: Path) -> None:
        optional("tensorboard", "--log tensorboard")
        self.folder = folder
        self.writer: Any = None  # a SummaryWriter from the first line on

    def follow(self, log: Path, started: float) -> None:
        """Write the last line of `log`, at first all of them in place of older files: a run that goes on after a stop
        repeats no step. It is on the disk when this returns. started: when the run began, in seconds of time.time()."""
        lines = log.read_text(encoding="utf-8").splitlines()
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            clear(self.folder)
            self.writer = SummaryWriter(str(self.folder))
        else:
            lines = lines[-1:]
        for line in map(json.loads, lines):
            step, numbers = scalars(line)
            for tag, value in numbers.items():
                self.writer.add_scalar(tag, value, step, walltime=started + line["seconds"])
        self.writer.flush()


def clear(folder: Path) -> None:
    """Remove the event files of an earlier run."""
    for old in folder.glob("events.out.tfevents.*"):
        old.unlink()
