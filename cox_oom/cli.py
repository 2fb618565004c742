"""The command line of every stage: types of flags, the flags that several stages have, and the parser."""

import argparse
import math
import re
import signal
import sys
from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import torch

from cox_oom import ranks
from cox_oom.files import UserError, escaped
from cox_oom.run import ended

PARTS = ("connection", "exploration", "warmup", "emergent")  # what an ablation can leave out of COX


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
