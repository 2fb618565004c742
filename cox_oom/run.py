"""What every stage's run is made of: its flags, the wrapper of its main, the file that it makes with checkpoint and log."""
import argparse
import json
import math
import os
import re
import sys
import time
from pathlib import Path

import torch

from cox_oom.files import UserError, data_name, finished, load, save, writable

PARTS = ("connection", "exploration", "warmup", "emergent")                     # what an ablation can leave out of COX


def script(main, argv=None):
    """Call a script's main(argv); a UserError becomes one line on stderr and exit code 2."""
    try:
        main(argv)
    except (UserError, OSError) as error:              # OSError: what the system refuses, with the file and its reason
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------------- flags


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


def cosine(lr, done):
    """A learning rate after the share `done` of all steps: from lr down to 0."""
    return lr * 0.5 * (1 + math.cos(math.pi * done))


def descend(optimizer, terms, lr):
    """One step down the sum of the terms {name: loss}, at a learning rate. Returns the loss, detached."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    loss = sum(terms.values())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.detach()


# ------------------------------------------------------------------------------------------------------ work in the making

class Work:
    """One file of stage 2 or 3 in the making: `path` itself, its checkpoint and its log beside it.

    args: the stage's flags; those that shape the file are kept in its meta, and other ones are refused where it is done.
    """

    def __init__(self, path, args, *, fingerprint, made_from):
        self.path, self.force, self.begun, self.saved = Path(path), args.force, time.time(), {}
        self.checkpoint_path, self.log_path = self.path.with_suffix(".checkpoint.pt"), self.path.with_suffix(".log.jsonl")
        settings = {k: v for k, v in vars(args).items() if k not in ("runs", "force", "device", "data")}
        self.facts = {"data": data_name(args.data), "fingerprint": fingerprint, "args": settings, "made_from": made_from}

    @property
    def seconds(self):
        return time.time() - self.begun

    def done(self):
        """True where the file is there, made by the same flags from the same files; else the last checkpoint of this very
        work is read, if there is one."""
        facts = self.facts
        if finished(self.path, facts["args"], facts["made_from"], facts["fingerprint"], self.force):
            return True
        writable(self.path.parent)
        saved = load(self.checkpoint_path) if self.checkpoint_path.exists() else {}
        same = saved and all(saved["meta"][k] == facts[k] for k in ("args", "made_from"))
        if same and (saved["forced"] or not self.force):
            self.saved, self.begun = saved, self.begun - saved["seconds"]
        else:
            self.log_path.unlink(missing_ok=True)
        return False

    @property
    def state(self):
        """The plain state in the last checkpoint of this very work; {} where there is none."""
        return self.saved.get("state", {})

    def checkpoint(self, state, parts, generator):
        """Write the plain `state`, the state of `parts` {name: module or optimizer} and the random generators: a stopped run
        goes on from here, on the CPU to the same bits."""
        save(self.checkpoint_path, {
            "state": state, "parts": {name: part.state_dict() for name, part in parts.items()}, "forced": self.force,
            "seconds": self.seconds, "rng": torch.get_rng_state(), "generator": generator.get_state(),
            "log": self.log_path.stat().st_size if self.log_path.exists() else 0},
            stage=self.path.stem, **self.facts, quiet=True)

    def resume(self, parts, generator):
        """Restore `parts` and the random generators from the last checkpoint of this very work. Returns its plain state."""
        if self.saved:
            for name, part in parts.items():
                part.load_state_dict(self.saved["parts"][name])
            torch.set_rng_state(self.saved["rng"])
            generator.set_state(self.saved["generator"])
            if self.log_path.exists():
                os.truncate(self.log_path, self.saved["log"])
            print(f"  going on from {self.checkpoint_path}")
        return self.state

    def log(self, **line):
        """One line of JSON at the end of the log."""
        with open(self.log_path, "a", encoding="utf-8") as f:
            f.write(json.dumps({**line, "seconds": round(self.seconds, 1)}) + "\n")

    def save(self, obj, *, stage, **facts):
        """Write the file; the checkpoint goes."""
        save(self.path, obj, stage=stage, **self.facts, **facts, seconds=round(self.seconds, 1))
        self.checkpoint_path.unlink(missing_ok=True)
