"""What every stage's run is made of: the wrapper of its main, the file that it makes with checkpoint and log."""

import contextlib
import datetime
import json
import math
import os
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as distributed

from cox_oom import ranks, watch
from cox_oom.files import UserError, data_name, escaped, finished, load, save, sweep, writable
from cox_oom.seed import size_of

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
IDLE = ("runs", "force", "device", "data", "log")  # flags that shape no file


class Escaped:
    """A text stream to which control characters are written as escapes."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> Any:
        return self.stream.write(escaped(text, keep="\n\t"))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was not to be had."""
    return isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)) or "allocate" in str(error)


class Ended(BaseException):
    """torchrun's signal to end; as KeyboardInterrupt no error of what it interrupts."""


def ended(*_: Any) -> NoReturn:
    """What this signal calls."""
    raise Ended


def lost(error: BaseException) -> bool:
    """Whether an error of several processes says that one is gone: by torchrun's signal, or by a collective."""
    said = "onnection" in str(error) or isinstance(error, distributed.DistError)
    return isinstance(error, Ended) or ranks.world > 1 and said


def speaks() -> bool:
    """Whether this process is the first of a run to meet an error, and so the one that says it."""
    if ranks.world == 1 or not distributed.is_initialized():
        return ranks.rank == 0
    try:
        at = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        wait = datetime.timedelta(seconds=3)
        store = distributed.TCPStore(*at, is_master=False, timeout=wait)  # type: ignore[attr-defined]
        return store.add("the first error", 1) == 1
    except (RuntimeError, KeyError):  # the store has gone with rank 0
        return True


def flush_subnormals() -> None:
    """Numbers below 1e-38 count as 0 in this thread and in those that it starts later: in all of a process, where no
    parallel loop has run yet."""
    torch.set_flush_denormal(True)


def script(main: Callable[[list[str] | None], object], argv: list[str] | None = None, together: bool = False) -> None:
    """Call a script's main(argv); a UserError becomes one line on stderr and exit code 2. Of several processes that
    work `together` rank 0 prints, and the first that meets an error says it; else rank 0 does all of it. Numbers below
    1e-38 count as 0 in it: processors take up to 15 times longer with them."""
    flush_subnormals()
    if not together:
        ranks.world = 1
        if ranks.rank:
            return
    with contextlib.ExitStack() as quiet:
        if ranks.rank:
            silence = quiet.enter_context(open(os.devnull, "w"))
            quiet.enter_context(contextlib.redirect_stderr(silence))  # bars, and what all processes note
        quiet.enter_context(contextlib.redirect_stdout(silence if ranks.rank else Escaped(sys.stdout)))
        said, code = problem(main, argv)
    if code:
        if speaks():
            print(said, file=sys.stderr, flush=True)
        sys.exit(code)


def problem(main: Callable[[list[str] | None], object], argv: list[str] | None) -> tuple[str, int]:
    """Call main(argv): what to say of what went wrong and the exit code, ("", 0) where all went well."""
    try:
        main(argv)
    except (UserError, OSError) as error:  # OSError: what the system refuses, with the file and its reason
        return f"error: {escaped(error)}", 2
    except (MemoryError, RuntimeError, Ended) as error:
        said = escaped((str(error).splitlines() or [""])[0])[:120]
        if lost(error):
            return "error: another process of this run has ended; the same command goes on from the last checkpoint", 1
        if not out_of_memory(error):
            raise
        return f"error: not enough memory ({said}); give smaller sizes or batches", 2
    except KeyboardInterrupt:
        return "\nstopped; what was finished is kept, the same command goes on from there", 130
    return "", 0


def enough(given: int | None, usual: int, least: int, steps: int) -> int:
    """Epochs of `steps` steps: those given, or the usual ones and at least so many that they make `least` steps."""
    return max(usual, math.ceil(least / steps)) if given is None else given


def rising(history: list[dict[str, Any]]) -> bool | None:
    """Was the validation accuracy of a history [a dict an epoch] still rising at its end: is the mean of its last
    quarter over a point above that of the quarter before. None where nothing was validated, or for too few epochs."""
    values = [h["val_accuracy"] for h in history if "val_accuracy" in h]
    part = len(values) // 4
    if not part:
        return None
    return sum(values[-part:]) / part > sum(values[-2 * part : -part]) / part + 0.01


def cosine(lr: float, done: float) -> float:
    """A learning rate after the share `done` of all steps: from lr down to 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * done))


# -------------------------------------------------------------------------------------------- work in the making


class Work:
    """One file of stage 2 or 3 in the making: `path` itself, its checkpoint, its log and its events beside it.

    args: the stage's flags; those that shape the file are kept in its meta, and other ones are refused where it is
    done. oom: the OOM inputs; made_from: the digests of all files that it is made from."""

    def __init__(
        self, stage: str, path: str | Path, args: Namespace, oom: dict[str, Any], made_from: dict[str, str]
    ) -> None:
        self.path, self.force, self.begun = Path(path), args.force, time.time()
        self.saved: dict[str, Any] = {}
        self.checkpoint_path, self.log_path = (
            self.path.with_suffix(".checkpoint.pt"),
            self.path.with_suffix(".log.jsonl"),
        )
        self.events_path = self.path.with_suffix(".tensorboard")
        self.events = watch.Events(self.events_path) if args.log and ranks.rank == 0 else None
        settings = {k: v for k, v in vars(args).items() if k not in IDLE}
        self.facts = {
            "stage": stage,
            "data": data_name(args.data),
            "fingerprint": oom["meta"]["fingerprint"],
            "args": settings,
            "made_from": made_from,
            "size": size_of(oom),
        }

    @property
    def seconds(self) -> float:
        return time.time() - self.begun

    def done(self) -> bool:
        """True where the file is there, made by the same flags from the same files; else the last checkpoint of this
        very work is read, if there is one."""
        facts = self.facts
        ranks.wait()  # before one of them removes anything
        if finished(self.path, facts["args"], facts["made_from"], facts["fingerprint"], self.force, facts["size"]):
            sweep(self.checkpoint_path)
            if (
                ranks.rank == 0
                and self.checkpoint_path.exists()
                and not load(self.checkpoint_path, keys=("forced",))["forced"]
            ):
                self.checkpoint_path.unlink(missing_ok=True)  # killed between the file and the end
            return True
        writable(self.path.parent)
        saved = load(self.checkpoint_path) if self.checkpoint_path.exists() else {}
        same = saved and all(saved["meta"][k] == facts[k] for k in ("args", "made_from"))
        if same and (saved["forced"] or not self.force):
            self.saved, self.begun = saved, self.begun - saved["seconds"]
        elif ranks.rank == 0:
            self.log_path.unlink(missing_ok=True)
            watch.clear(self.events_path)
        return False

    @property
    def state(self) -> dict[str, Any]:
        """The plain state in the last checkpoint of this very work; {} where there is none."""
        return self.saved.get("state", {})

    def checkpoint(self, state: dict[str, Any], parts: dict[str, Any], generator: torch.Generator) -> None:
        """Write the plain `state`, the state of `parts` {name: module or optimizer} and the random generators: a
        stopped run goes on from here, on the CPU to the same bits, and with any number of processes."""
        ranks.first(
            save,
            self.checkpoint_path,
            {
                "state": state,
                "parts": {name: part.state_dict() for name, part in parts.items()},
                "forced": self.force,
                "seconds": self.seconds,
                "rng": torch.get_rng_state(),
                "generator": generator.get_state(),
                "log": self.log_path.stat().st_size if self.log_path.exists() else 0,
            },
            **self.facts,
            quiet=True,
        )

    def resume(self, parts: dict[str, Any], generator: torch.Generator) -> dict[str, Any]:
        """Restore `parts` and the random generators from the last checkpoint of this very work. Returns its plain
        state."""
        if self.saved:
            for name, part in parts.items():
                part.load_state_dict(self.saved["parts"][name])
            torch.set_rng_state(self.saved["rng"])
            generator.set_state(self.saved["generator"])
            if self.log_path.exists() and ranks.rank == 0:
                os.truncate(self.log_path, self.saved["log"])
            unit = next(k for k in ("epoch", "step") if k in self.state)
            print(f"  going on from {unit} {self.state[unit]} ({self.checkpoint_path})")
        return self.state

    def log(self, **line: Any) -> None:
        """One line of JSON at the end of the log, on the disk when this returns; a line of TensorBoard's, too."""
        if ranks.rank:
            return
        with open(self.log_path, "a", encoding="utf-8") as f:
            f.write(json.dumps({**line, "seconds": round(self.seconds, 1)}) + "\n")
        if self.events:
            self.events.follow(self.log_path, self.begun)

    def save(self, obj: dict[str, Any], **facts: Any) -> None:
        """Write the file; the checkpoint goes. Say it where validation was still rising."""
        if rising(obj.get("history", [])):
            print("  note: validation accuracy was still rising at the end; more --min-steps may bring more")
        ranks.first(save, self.path, obj, **self.facts, **facts, seconds=round(self.seconds, 1))
        sweep(self.checkpoint_path)
        self.checkpoint_path.unlink(missing_ok=True)
