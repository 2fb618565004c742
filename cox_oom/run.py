"""What every stage's run is made of: its flags, the wrapper of its main, the file that it makes with checkpoint and
log."""

import argparse
import contextlib
import datetime
import json
import math
import os
import re
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn

import torch
import torch.distributed as distributed

from cox_oom import ranks, watch
from cox_oom.files import UserError, data_name, escaped, finished, load, save, sweep, writable
from cox_oom.seed import size_of

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
PARTS = ("connection", "exploration", "warmup", "emergent")  # what an ablation can leave out of COX


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


# --------------------------------------------------------------------------------------------------------- flags


def leave_out(text: str) -> list[str]:
    """--without's comma-separated list, sorted."""
    found = sorted({p for p in text.split(",") if p})
    if set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(
            f"{', '.join(sorted(set(found) - set(PARTS)))}: choose among {', '.join(PARTS)}"
        )
    return found


def known_device(text: str) -> str:
    """The name of a device that torch has here."""
    try:
        known = torch.empty(0, device=text).device.type != "meta"  # a device without memory
    except (RuntimeError, AssertionError, NotImplementedError):
        known = False
    if not known:
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise argparse.ArgumentTypeError(f"{text}: no such device here; give {here}")
    return text


def folder(text: str) -> str:
    """The type of a folder's path."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r}: give a folder, . is the one that you are in")
    return text


def number(
    kind: type[int] | type[float], low: float, high: float = math.inf, ends: str = "[]"
) -> Callable[[str], float]:
    """The type of an int or float (`kind`) from `low` to `high`; `ends` as an interval is written: "(]" leaves low
    out."""
    bounds = f"from {low}" if ends[0] == "[" else f"above {low}"
    bounds += (
        ""
        if high == math.inf
        else f" to {high}"
        if ends == "[]"
        else f", {'below' if ends[1] == ')' else 'at most'} {high}"
    )

    def check(text: str) -> float:
        try:
            n = kind(text)
        except ValueError:
            n = math.nan
        inside = (low <= n if ends[0] == "[" else low < n) and (
            n <= high if ends[1] == "]" else n < high
        )  # NaN: neither
        if not inside or n == math.inf:
            raise argparse.ArgumentTypeError(f"{text}: give a {'whole ' if kind is int else ''}number {bounds}")
        return n

    return check


def key_values(flag: str, given: Iterable[str]) -> dict[str, str]:
    """{key: value} of a flag's KEY=VALUEs."""
    for text in given:
        if "=" not in text:
            raise UserError(f"{flag} {text}: write KEY=VALUE")
    return dict(text.partition("=")[::2] for text in given)


EPOCHS, STEPS, SIZE, ITEMS = 10**7, 10**8, 2**16, 10**9  # what is absurd beyond
# Steps at least of stage 3 and of the warm-up, where their epochs are left out; a study is in docs/experiments.md.
MIN_STEPS, WARM_STEPS = 1000, 200
LARGE = 10**6  # the same of a learning rate, a weight, a batch
SEED = number(int, 0, 2**63 - 1)
IDLE = ("runs", "force", "device", "data", "log")  # flags that shape no file
REQUIRED = object()  # as a flag's default: it has none and must be given
COMMON = {  # flags that several stages have: default, type, help
    "--data": (REQUIRED, str, "a folder with manifest.csv, or the name of a public data set (docs/data/)"),
    "--oom": (REQUIRED, str, "the out-of-modal modality, the one to learn"),
    "--perceptor": (
        "bind",
        str,
        "frozen IM perceptor: bind (trained here), imagebind, languagebind, hf:MODEL, onnx:FOLDER",
    ),
    "--setting": ("semi", ("semi", "unsup"), "semi: few labels and pairs; unsup: none"),
    "--seed": (0, SEED, "labelled items, initial weights, order of batches"),
    "--runs": ("runs", folder, "folder under which all stages write"),
    "--device": ("cuda" if torch.cuda.is_available() else "cpu", known_device, "cpu or cuda"),
    "--force": (False, None, "redo finished work"),
}
LOG = ("--log", None, ("tensorboard",), "write TensorBoard's event files to NAME.tensorboard/, beside NAME.log.jsonl")


class Parser(argparse.ArgumentParser):
    """A parser of flags that are given as rows (name, default, type, help): --help shows the everyday ones,
    --help-all all of them, and a complaint is one line that names the flag.

    A type is what argparse calls on the text, a tuple of choices, or None for a switch.
    """

    def __init__(self, doc: str, then: str) -> None:
        super().__init__(
            description=doc.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, add_help=False
        )
        self.rare: list[argparse.Action] = []
        self.then = then
        self.add_argument("-h", "--help", action="help", help="show the everyday flags")
        self.add_argument("--help-all", action="help", help="show all flags")

    def common(self, *names: str) -> None:
        """Add flags of COMMON."""
        self.rows([(name, *COMMON[name]) for name in names])

    def rows(self, rows: Iterable[tuple[Any, ...]], rare: bool = False) -> None:
        """Add flags; `rare` ones are shown by --help-all alone. A fifth entry of a row holds further arguments for
        argparse."""
        for name, default, kind, text, *more in rows:
            how = {"choices": kind} if isinstance(kind, tuple) else {"type": kind} if kind else {"action": "store_true"}
            how |= {"required": True} if default is REQUIRED else {"default": default}
            action = self.add_argument(name, help=text, **how, **(more[0] if more else {}))
            self.rare += [action] if rare else []

    def parse_args(self, argv: Any = None, namespace: Any = None) -> Any:
        for text in sys.argv[1:] if argv is None else argv:
            if "\0" in text:
                self.error(f"{text}: nothing has a NUL character in its name; leave it out")
        hide = self.rare if "--help-all" not in (sys.argv[1:] if argv is None else argv) else []
        for action in hide:
            action.help = argparse.SUPPRESS
        self.epilog = (f"--help-all shows {len(hide)} more flags. " if hide else "") + self.then
        args = super().parse_args(argv, namespace)
        if "device" in args:
            args.device = ranks.begin(args.device)[2]
            if ranks.world > 1:  # until here, while it waits for the others, the signal ends it at once
                signal.signal(signal.SIGTERM, ended)
        return args

    def error(self, message: str) -> NoReturn:
        message = re.sub(r"^argument (\S+): (?!invalid|expected|not allowed)", r"\1 ", message).removeprefix(
            "argument "
        )
        self.exit(2, f"error: {escaped(message)} (--help-all shows every flag)\n")


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
