"""Types of the stages' flags: what argparse calls on a flag's text, and what it says of one that cannot be.
"""
import argparse
import math

PARTS = ("connection", "exploration", "warmup", "emergent")                     # what an ablation can leave out of COX


def leave_out(text):
    """--without's comma-separated list, sorted."""
    found = sorted({p for p in text.split(",") if p})
    if set(found) - set(PARTS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(set(found) - set(PARTS)))}: choose among {', '.join(PARTS)}")
    return found


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
