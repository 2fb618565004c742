"""The `.pt` contract between the stages: where each file lies, how it is written, read and checked.

A file is a dict of tensors and plain types, so that `torch.load(weights_only=True)` reads it. Its `meta` holds
  stage, data, fingerprint (of the data set), args (the flags that shaped it), made_from ({"inputs/rgb": digest} of the
  files it was made from), digest (of its own content), argv, torch, time.
A stage that reads a file compares `made_from` and `fingerprint` along the chain and refuses what is of other data.

Layout under --runs:
  <data>/inputs/<modality>.pt                           OOM learner's inputs, one file per modality   (stage 1)
  <data>/<perceptor>/[no-<oom>/]banks/<modality>.pt     IM features; bind never sees the OOM modality  (stage 1)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/connect.pt                                            (stage 2)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/<method>[-<tag>].pt                                   (stage 3)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/<method>[-<tag>].json                                 (stage 4)
"""
import hashlib
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

SPLITS = ("train", "val", "test")


class UserError(Exception):
    """Bad input, said in one line that names the file, flag or row and the mend. Scripts print it and exit with 2."""


def run(main, argv=None):
    """Call a script's main(argv); a UserError becomes one line on stderr and exit code 2."""
    try:
        main(argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; what was finished is kept, the same command goes on from there", file=sys.stderr)
        sys.exit(130)


# ---------------------------------------------------------------------------------------------------------- paths

def data_name(data):
    """The name of a data set in paths and tables: the name itself, or the last part of a folder's path."""
    return Path(data).resolve().name if os.path.isdir(data) else data.strip("/").split("/")[-1]


def inputs_path(runs, data, modality):
    return Path(runs) / data_name(data) / "inputs" / f"{modality}.pt"


def bank_dir(runs, data, perceptor, oom):
    base = Path(runs) / data_name(data) / perceptor.replace("/", "_").replace(":", "_")
    return base / f"no-{oom}" / "banks" if perceptor == "bind" else base / "banks"


def run_dir(runs, data, perceptor, oom, setting, seed):
    base = Path(runs) / data_name(data) / perceptor.replace("/", "_").replace(":", "_")
    return base / f"oom-{oom}" / setting / f"seed{seed}"


# ---------------------------------------------------------------------------------------------------- write and read

def digest(obj):
    """sha256 (16 hex digits) of a nest of dicts, lists, tensors and plain values, independent of torch.save's bytes.

    Every part is fed with its length or an end mark, so that no two nests give the same bytes.
    """
    h = hashlib.sha256()

    def feed(o):
        if isinstance(o, torch.Tensor):
            h.update(f"{o.dtype}{tuple(o.shape)}".encode())
            flat = o.detach().cpu().contiguous().reshape(-1)
            flat = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
            h.update(memoryview(np.ascontiguousarray(flat.numpy())).cast("B"))
        elif isinstance(o, dict):
            h.update(f"{{{len(o)}:".encode())
            for k in sorted(o):
                h.update(repr(k).encode() + b":")
                feed(o[k])
        elif isinstance(o, (list, tuple)):
            h.update(f"[{len(o)}:".encode())
            for v in o:
                feed(v)
        else:
            h.update(repr(o).encode() + b";")
    feed(obj)
    return h.hexdigest()[:16]


def not_finite(obj, name=""):
    """The dotted name of the first floating tensor in a nest that has NaN or infinite values, else None."""
    if isinstance(obj, torch.Tensor):
        return name if obj.is_floating_point() and not torch.isfinite(obj).all() else None
    parts = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, (list, tuple)) else ()
    return next((bad for k, v in parts if (bad := not_finite(v, f"{name}.{k}" if name else str(k)))), None)


def alive(pid):
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def write_atomic(path, write):
    """Call write(temporary path), then rename: `path` is either whole or absent, whenever the process dies.

    What killed writers of the same path left behind is removed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for old in path.parent.iterdir():
        pid = old.name.removeprefix(f".{path.name}.").removesuffix(".tmp")
        if old.name == f".{path.name}.{pid}.tmp" and pid.isdecimal() and not alive(int(pid)):
            old.unlink(missing_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write(tmp)
        with open(tmp, "rb") as f:
            os.fsync(f.fileno())
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def save(path, obj, *, stage, data, fingerprint, args, made_from=None, quiet=False, **facts):
    """Write `obj` (dict of tensors and plain types) with its meta. Returns the digest of the content.

    Raises UserError where a floating tensor, however deep, is not finite: nothing downstream has to check again.
    """
    if name := not_finite(obj):
        raise UserError(f"{path}: {name} has NaN or infinite values and is not written; lower --lr, or look at the "
                        f"inputs of {stage}")
    meta = {"stage": stage, "data": data, "fingerprint": fingerprint, "args": args, "made_from": made_from or {},
            "digest": digest(obj), "argv": sys.argv, "torch": str(torch.__version__),
            "time": time.strftime("%Y-%m-%d %H:%M:%S"), **facts}
    write_atomic(path, lambda tmp: torch.save({**obj, "meta": meta}, tmp))
    if not quiet:
        print(f"wrote {path} ({os.path.getsize(path) / 1e6:.1f} MB)")
    return meta["digest"]


def load(path, *, first="", keys=()):
    """Read a file written by `save` (memory-mapped, weights_only). `first` says which command makes it.

    Raises UserError where it is missing, damaged, not one of ours, or lacks one of `keys`.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing" + (f"; run first: {first}" if first else ""))
    try:
        obj = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        missing = [k for k in (*keys, "meta") if k not in obj]
        missing += [k for k in ("fingerprint", "args", "made_from", "digest") if not missing and k not in obj["meta"]]
    except Exception as e:
        reason = str(e).split("\n")[0][:120]
        mend = "remove it" + (f" and run: {first}" if first else "")
        raise UserError(f"{path} cannot be read ({reason}); {mend}") from None
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}: it was written by another version; remove it"
                        + (f" and run: {first}" if first else ""))
    return obj


def check_chain(path, meta, made_from, fingerprint=None):
    """Refuse `path` (its meta) if it was made from other data or from files that have changed since.

    made_from: {"inputs/rgb": digest, …} of the files as they are now.
    """
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        raise UserError(f"{path} was made from other data than the inputs now in place (fingerprint "
                        f"{meta['fingerprint'][:8]}, now {fingerprint[:8]}); make it again with --force, or use "
                        f"another --runs")
    for source, d in made_from.items():
        was = meta["made_from"].get(source)
        if was is not None and was != d:
            raise UserError(f"{path} was made from an earlier {source}; make it again with --force, or use another "
                            f"--runs")


def finished(path, args, made_from, fingerprint, force):
    """True where `path` is this very work, done already. UserError where it is other work in the same place."""
    path = Path(path)
    if force or not path.exists():
        return False
    meta = load(path)["meta"]
    check_chain(path, meta, made_from, fingerprint)
    for k in sorted({*meta["args"], *args}):
        if meta["args"].get(k) != args.get(k):
            raise UserError(f"{path} was made with --{k.replace('_', '-')} {meta['args'].get(k)}, now {args.get(k)} is "
                            f"asked; --force redoes it, another --runs keeps both")
    print(f"already done: {path} (--force redoes it)")
    return True


# -------------------------------------------------------------------------------------------------- inputs and banks

def rows(file, splits=("train", "val")):
    """Index (n',) of the rows of an inputs or bank file that lie in `splits`. Training never asks for "test"."""
    wanted = torch.tensor([SPLITS.index(s) for s in splits])
    return torch.isin(file["split"], wanted).nonzero().squeeze(1)


def load_inputs(runs, data, modality, *, first=""):
    """The OOM learner's inputs: kind, x (n, …), lengths (n,) or None, mean, std, ids, labels, split (n,), class_names."""
    path = inputs_path(runs, data, modality)
    return load(path, first=first, keys=("kind", "x", "ids", "labels", "split", "class_names")), path


def load_banks(runs, data, perceptor, oom, *, first=""):
    """Every IM feature bank but the OOM modality's: ({modality: file}, {"banks/<modality>": digest}). features (n, d_k)
    float32, unit rows; labels, ids, split as in the inputs."""
    folder = bank_dir(runs, data, perceptor, oom)
    paths = sorted(p for p in folder.glob("*.pt") if p.stem != oom)
    if not paths:
        raise UserError(f"{folder} holds no feature bank" + (f"; run first: {first}" if first else ""))
    files = {p.stem: load(p, first=first, keys=("features", "ids", "labels", "split", "class_names")) for p in paths}
    for p in paths:
        missing = sorted(set(files[p.stem]["meta"]["args"].get("im", files)) - set(files))
        if missing:                                                    # stage 1 was stopped between two banks
            raise UserError(f"{folder} lacks the bank of {', '.join(missing)}" + (f"; run first: {first}" if first else ""))
    return files, {f"banks/{p.stem}": files[p.stem]["meta"]["digest"] for p in paths}
