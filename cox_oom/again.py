"""Stages 2 and 3 once more beside a run, in other processes and under a --runs of their own: the cross-fits of --folds
and the members of --method ensemble."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from cox_oom import ranks
from cox_oom.files import Place, UserError
from cox_oom.seed import Seed


def flags_of(args: dict[str, Any]) -> list[str]:
    """The command line that gives a stage these args."""
    words = []
    for name, value in args.items():
        flag = "--" + name.replace("_", "-")
        if isinstance(value, bool):
            words += [flag] if value else []
        elif isinstance(value, list):
            words += [flag, ",".join(value)] if value else []
        elif value is not None and value != "":
            words += [flag, str(value)]
    return words


def stages(seed: Seed, runs: Path, connect: dict[str, Any], explore: dict[str, Any]) -> Place:
    """Run stages 2 and 3 under `runs`, on links to stage 1's files: with the flags that made a Seed but for those in
    `connect`, and with `explore`. Returns where they lie; finished work is skipped. UserError: a stage fails."""
    place, scripts = seed.place, Path(__file__).resolve().parent.parent
    shared = {"data": place.data, "runs": str(runs), "device": explore["device"], "force": explore["force"]}
    first = {**seed.connect["meta"]["args"], **connect, **shared}
    part = replace(place, runs=str(runs), seed=first["seed"])
    for name in ("inputs", str(place.banks().relative_to(place.base).parts[0])):
        link_tree(place.base / name, part.base / name, skip=f"oom-{place.oom}")
    alone = {k: v for k, v in os.environ.items() if k not in ranks.NAMES}
    for script, its in (("train_connect.py", first), ("train_explore.py", {**explore, **shared, "seed": part.seed})):
        words: list[Any] = [sys.executable, scripts / script, *flags_of(its)]
        done = subprocess.run(words, capture_output=True, text=True, env=alone)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1].removeprefix("error: ")
            raise UserError(f"{script}: {said}")
    return part


def link_tree(old: Path, new: Path, skip: str) -> None:
    """Links in the folder `new` to everything in `old`, but for the folder `skip`."""
    for path in sorted(old.iterdir()):
        if path.name != skip and not path.name.startswith("."):
            new.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(new / path.name):
                (new / path.name).symlink_to(path.resolve())
