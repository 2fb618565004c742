"""The stages' flags: a parser that complains in one line, and the types that it calls on a flag's text.
"""
import argparse
import math
import re

import torch

PARTS = ("connection", "exploration", "warmup", "emergent")                     # what an ablation can leave out of COX


class Parser(argparse.ArgumentParser):
    """A parser with defaults in its --help, whose complaint is one line that names the flag, as every stage's are."""

    def __init__(self, doc, **more):
        super().__init__(description=doc.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter, **more)

    def error(self, message):
        message = re.sub(r"^argument (\S+): (?!invalid|expected|not allowed)", r"\1 ", message).removeprefix("argument ")
        self.exit(2, f"error: {message} (--help shows every flag)\n")



def leave_out(text):
    """--without's comma-separated list, sorted."""
    found = sorted({p for p in text.split(",") if p})
    if set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(set(found) - set(PARTS)))}: choose among {', '.join(PARTS)}")
    return found


def known_device(text):
    """The name of a device that torch has here."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError, NotImplementedError):
        here = "cpu, cuda" if torch.cuda.is_available() else "cpu"
        raise argparse.ArgumentTypeError(f"{text}: no such device here; give {here}") from None
    return text


def number(kind, low, high=math.inf, ends="[]"):
    """The type of an int or float (`kind`) from `low` to `high`; `ends` as an interval is written: "(]" leaves low out."""
    bounds = f"from {low}" if ends[0] == "[" else f"above {low}"
    bounds += "" if high == math.inf else f" to {high}" if ends == "[]" else f", {'below' if ends[1] == ')' else 'at most'} {high}"

    def check(text):
        try:
            n = kind(text)
        except ValueError:
            n = math.nan
        inside = (low <= n if ends[0] == "[" else low < n) and (n <= high if ends[1] == "]" else n < high)     # NaN: neither
        if not inside or n == math.inf:
            raise argparse.ArgumentTypeError(f"{text}: give a {'whole ' if kind is int else ''}number {bounds}")
        return n
    return check
