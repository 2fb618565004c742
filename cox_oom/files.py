"""The `.pt` contract between the stages: where each file lies, what it holds, how it is written, read and checked.

A file is a dict of tensors and plain types, so that `torch.load(weights_only=True)` reads it. Its `meta` holds
  stage, data, fingerprint (of the data set), args (the flags that shaped it), made_from ({"inputs/rgb": digest} of the
  files it was made from), digest (of its own content), torch, proof (digest of all else in meta); but for stage 1,
  whose files are the same bytes in every run of the same command, argv and time.
A stage that reads a file compares `made_from` and `fingerprint` along the chain and refuses what is of other data.

Layout under --runs, and what each file holds (M OOM training items, N_k labelled items of IM modality k, C classes):
  <data>/inputs/<modality>.pt                           what the OOM learner is given                 (stage 1)
      kind, x (n, ...), lengths (n,) or None, mean, std, ids [n], labels (n,), split (n,), class_names [C]; --groups:
      groups [n] texts
  <data>/<perceptor>/banks/<modality>.pt                features of a pretrained perceptor            (stage 1)
  <data>/<perceptor>/no-<oom>/banks/<modality>.pt       of encoders trained here, without the OOM modality (stage 1)
      features (n, d_k) float32 unit rows, ids, labels, split, class_names; encoder, where it was trained here
  <data>/<perceptor>/no-<oom>/im.pt                     which banks stages 2 to 4 take: im [K]        (stage 1)
  <data>/…/<modality>.shards/                           x or features, where these are large: the file beside it has
                                                        shards in their place (cox_oom/shards.py)     (stage 1)
  <data>/<perceptor>/banks/<modality>.parts/            a bank that is being made                     (stage 1)
  <data>/log/media-<modality>.csv                       broken, missing and silent media              (stage 1)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/connect.pt                                           (stage 2)
      arch, learner, head, initial {learner, head}, im [K], class_names, labelled [L] ids, held [H] ids, naming,
      views (cox_oom/readings.py), warmup_loss, curve (Fig. 5), and by modality: im_heads, connections, optimizers,
      mapped (N_k, d), mapped_labels (N_k,), mapped_ids [N_k], mapped_heads, pairs [places among the labelled (P,),
      items of the bank (P,)]
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/<method>[-<tag>].pt                                  (stage 3)
      arch, learner, head, im [K], class_names, unlabelled [U] ids, before and after {agree, label, confidence,
      prediction: (U,)} (Fig. 6), history [a dict an epoch], trust, fallback, gauge, and by modality:
      connections, mapped, mapped_heads; for new recordings preparation {how stage 1 made an item, mean, std},
      calibration {temperature, low, high, n, source}, novelty {means (C', d), precision (d, d), distance, trained};
      raw, labelprop: classical (cox_oom/classical.py); ensemble: members [{learner, head}]
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/folds/<k>of<n>/…                 its cross-fits (stage 3, --folds)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/members/…                        an ensemble's (stage 3)
  <data>/<perceptor>/oom-<oom>/<setting>/seed<k>/<method>[-<tag>].json                                (stage 4)
      the record: what it is of, metrics as fractions, correct ("0110…", a digit a test item, 1: its class was named),
      history, seconds, command, args; NAME.card.md: its card
  <data>/predictions.csv                                classes of new recordings                     (stage 4, --new)
  beside them, while stage 2 or 3 runs: NAME.checkpoint.pt, from which a stopped run goes on, and NAME.log.jsonl, a line
  an epoch; with --log tensorboard NAME.tensorboard/, the same lines as TensorBoard's event files
"""

import hashlib
import importlib
import os
import re
import secrets
import shlex
import shutil
import socket
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

SPLITS = ("train", "val", "test")
META = {"fingerprint": str, "args": dict, "made_from": dict, "digest": str, "proof": str, "stage": str, "data": str}
DAY = 24 * 3600  # seconds
BLOCK = 1 << 20  # numbers that are checked at once
VERIFIED: dict[str, tuple] = {}  # {path: what stat said of it when its content was compared with its digest}
# The libraries that only some uses need: {what Python calls it: (what pip calls it, the extra that brings it)}.
LIBRARIES = {
    **{name: (name, "stages") for name in ("soundfile", "av", "scipy", "matplotlib", "h5py")},
    **{name: (name, "perceptors") for name in ("transformers", "tokenizers", "safetensors", "ftfy")},
    **{name: (name, "export") for name in ("onnx", "onnxruntime", "onnxscript")},
    "PIL": ("Pillow", "stages"),
    "sklearn": ("scikit-learn", "stages"),
    "kaldi_native_fbank": ("kaldi-native-fbank", "stages"),
    "tensorboard": ("tensorboard", "watch"),
    "svgelements": ("svgelements", "emoji"),
}


class UserError(Exception):
    """Bad input, said in one line that names the file, flag or row and the mend. Scripts print it and exit with 2."""


def escaped(text: object, keep: str = "") -> str:
    """A text whose control characters, but those in `keep`, are written out (\\x1b): what a name holds shall not steer
    a terminal, nor make two lines of one."""
    words = str(text)
    if words.isprintable():
        return words
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode() for c in words)


class MissingLibrary(UserError):
    """A library of LIBRARIES is not installed. No file is at fault, so none is left out for it."""


def optional(name: str, what: str) -> Any:
    """Import a library of LIBRARIES and return it. `what` needs it: "reading images". Raises MissingLibrary.

    It is called where the library is used, so that every module can be imported without it.
    """
    package, extra = LIBRARIES[name.partition(".")[0]]
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as e:  # OSError: its shared library is not there (libsndfile)
        absent = isinstance(e, ModuleNotFoundError) and e.name == name.partition(".")[0]
        broken = "" if absent else f", which is here but cannot be imported ({' '.join(str(e).split())})"
        raise MissingLibrary(f"{what} needs {package}{broken}: pip install cox-oom[{extra}]") from None


# ---------------------------------------------------------------------------------------------------------- paths


def data_name(data: str) -> str:
    """The name of a data set in paths and tables: the name itself, or the last part of a folder's path."""
    return Path(data).resolve().name if os.path.isdir(data) else data.strip("/").split("/")[-1]


def perceptor_name(perceptor: str) -> str:
    """What --perceptor says, as the name of a folder: hf:google/vit -> hf_google_vit. Such a name stays as it is."""
    name = re.sub(r"[^\w.,=+-]", "_", perceptor)
    return name if len(name) <= 120 else f"{name[:100]}-{hashlib.sha256(perceptor.encode()).hexdigest()[:16]}"


@dataclass(frozen=True)
class Place:
    """Which run: where its files lie, and the commands that make them."""

    runs: str
    data: str
    perceptor: str = "bind"
    oom: str | None = None
    setting: str = "semi"
    seed: int = 0

    @classmethod
    def of(cls, args: Namespace) -> "Place":
        """From a stage's flags; those that it lacks keep their defaults."""
        return cls(**{f.name: getattr(args, f.name) for f in fields(cls) if hasattr(args, f.name)})

    @property
    def base(self) -> Path:
        return Path(self.runs) / data_name(self.data)

    def inputs(self, modality: str) -> Path:
        return self.base / "inputs" / f"{modality}.pt"

    def banks(self, trained: bool = False) -> Path:
        """Folder of the banks of a pretrained perceptor, one for all OOM modalities; of the encoders trained here
        (bind, or `trained`), one for each."""
        folder = self.base / perceptor_name(self.perceptor)
        return folder / f"no-{self.oom}" / "banks" if trained or self.perceptor == "bind" else folder / "banks"

    def bank(self, modality: str, trained: bool = False) -> Path:
        return self.banks(trained) / f"{modality}.pt"

    @property
    def choice(self) -> Path:
        """The file that says which banks stages 2 to 4 take."""
        return self.banks(trained=True).parent / "im.pt"

    @property
    def folder(self) -> Path:
        """What stages 2 to 4 write for this seed."""
        return self.base / perceptor_name(self.perceptor) / f"oom-{self.oom}" / self.setting / f"seed{self.seed}"

    @property
    def connect(self) -> Path:
        return self.folder / "connect.pt"

    def method(self, method: str, tag: str = "") -> Path:
        """METHOD.pt, or METHOD-TAG.pt."""
        return self.folder / f"{'-'.join(filter(None, (method, tag)))}.pt"

    def media(self, modality: str) -> Path:
        return self.base / "log" / f"media-{modality}.csv"

    def command(self, script: str, **more: Any) -> str:
        """A stage's command line, as messages advise it: `more` are further flags, the stages' defaults are left
        out."""
        flags: dict[str, Any] = {
            "data": self.data,
            "oom": self.oom,
            "perceptor": None if self.perceptor == "bind" else self.perceptor,
        }
        flags |= {"setting": self.setting, "seed": self.seed} if script.startswith("train") else {}
        flags |= {**more, "runs": None if str(self.runs) == "runs" else self.runs}
        return " ".join(
            ["python", script, *(f"--{k} {shlex.quote(str(v))}" for k, v in flags.items() if v is not None)]
        )


# ---------------------------------------------------------------------------------------------------- write and read


def digest(obj: Any) -> str:
    """sha256 (16 hex digits) of a nest of dicts, lists, tensors and plain values, independent of torch.save's bytes.

    Every part is fed with its length or an end mark, so that no two nests give the same bytes.
    """
    h = hashlib.sha256()

    def feed(o: Any) -> None:
        if isinstance(o, torch.Tensor):
            h.update(f"{o.dtype}{tuple(o.shape)}".encode())
            flat = o.detach().cpu().contiguous().reshape(-1)
            flat = flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat
            h.update(np.ascontiguousarray(flat.numpy()).data.cast("B"))
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


def not_finite(obj: Any, name: str = "") -> str | None:
    """The dotted name of the first floating tensor in a nest that has NaN or infinite values, else None. Large tensors
    are looked at block by block, so that little memory is needed besides them."""
    if isinstance(obj, torch.Tensor):
        blocks = obj.detach().reshape(-1).split(BLOCK) if obj.is_floating_point() else ()
        return None if all(bool(torch.isfinite(block).all()) for block in blocks) else name
    parts = obj.items() if isinstance(obj, dict) else enumerate(obj) if isinstance(obj, (list, tuple)) else ()
    return next((bad for k, v in parts if (bad := not_finite(v, f"{name}.{k}" if name else str(k)))), None)


def alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def writable(folder: str | Path) -> None:
    """Make a folder to write to, before anything is computed for it. UserError where that is not allowed."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as e:
        raise UserError(f"{folder} cannot be written to ({os.strerror(e.errno or 0)}); name another folder") from None


def host() -> str:
    """Names this machine in the names of temporary files; of two containers, which count processes each on their own,
    each has a name."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        space = 0
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def abandoned(old: Path, path: Path) -> bool:
    """Whether `old` is a temporary folder for `path` whose writer is dead, by its name; of another machine's writer:
    whether it is older than a day."""
    found = re.fullmatch(rf"\.{re.escape(path.name)}\.(?:(\w+)-)?(\d+)(?:-\w+)?\.tmp", old.name)
    if not found:
        return False
    if found[1] == host() and (int(found[2]) == os.getpid() or not alive(int(found[2]))):
        return True  # this process writes one file at a time
    try:
        return time.time() - old.stat().st_mtime > DAY
    except OSError:  # its writer has just ended
        return False


def sweep(path: Path) -> None:
    """Remove what killed writers of `path` left behind."""
    for old in path.parent.iterdir():
        if abandoned(old, path):
            shutil.rmtree(old, ignore_errors=True)


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call write(temporary path), then rename: `path` is either whole or absent, whenever the process dies.

    The temporary file has the same name in a folder of this process's, because torch.save writes a file's name into the
    file. What killed writers of the same path left behind is removed.
    """
    path = Path(path)
    writable(path.parent)
    sweep(path)
    folder = path.with_name(f".{path.name}.{host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        folder.mkdir()
        write(folder / path.name)
        with open(folder / path.name, "rb") as f:
            os.fsync(f.fileno())
        os.replace(folder / path.name, path)
    except (OSError, RuntimeError) as e:  # RuntimeError: torch.save on a full disk
        errno = getattr(e, "errno", None)
        reason = os.strerror(errno) if errno else str(e).split("\n")[0][:80]
        free = shutil.disk_usage(path.parent).free / 1e6
        raise UserError(
            f"{path} cannot be written ({reason}; {free:.0f} MB are free); make room, or write elsewhere"
        ) from e
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def save(
    path: str | Path,
    obj: dict[str, Any],
    *,
    stage: str,
    data: str,
    fingerprint: str,
    args: dict[str, Any],
    made_from: dict[str, str] | None = None,
    quiet: bool = False,
    dated: bool = True,
    **facts: Any,
) -> str:
    """Write `obj` (dict of tensors and plain types) with its meta. Returns the digest of the content.

    dated=False leaves argv and time out: the same content gives the same bytes.

    Raises UserError where a floating tensor, however deep, is not finite: nothing downstream has to check again.
    """
    if name := not_finite(obj):
        mend = "look at its inputs" if stage == "extract_features" else f"lower --lr, or look at the inputs of {stage}"
        raise UserError(f"{path}: {name} has NaN or infinite values and is not written; {mend}")
    facts.pop("proof", None)  # of another file, whose facts are taken over
    meta = {
        "stage": stage,
        "data": data,
        "fingerprint": fingerprint,
        "args": args,
        "made_from": made_from or {},
        "digest": digest(obj),
        "torch": str(torch.__version__),
        **facts,
    }
    if dated:
        meta.update(argv=sys.argv, time=time.strftime("%Y-%m-%d %H:%M:%S"))
    meta["proof"] = digest(meta)
    write_atomic(path, lambda tmp: torch.save({**obj, "meta": meta}, tmp))
    if not quiet:
        print(f"wrote {path} ({os.path.getsize(path) / 1e6:.1f} MB)")
    return meta["digest"]


def wrong(path: Path, obj: dict[str, Any], seen: os.stat_result, content: bool) -> str | None:
    """What is wrong with a file's dict by its digests, None if nothing is. seen: what stat said before it was read.

    The content is hashed once in a process, and again when stat says otherwise: that reads the whole file.
    """
    meta = obj["meta"]
    if digest({k: v for k, v in meta.items() if k != "proof"}) != meta["proof"]:
        return "its meta is not what was written"
    key, state = os.path.abspath(path), (seen.st_dev, seen.st_ino, seen.st_size, seen.st_mtime_ns, seen.st_ctime_ns)
    if content and VERIFIED.get(key) != state:
        if digest({k: v for k, v in obj.items() if k != "meta"}) != meta["digest"]:
            return "its content is not what was written"
        VERIFIED[key] = state
    return None


def load(path: str | Path, *, first: str = "", keys: Iterable[str] = (), content: bool = True) -> dict[str, Any]:
    """Read a file written by `save` (memory-mapped, weights_only). `first` says which command makes it.

    Raises UserError where it is missing, damaged, changed since it was written, not one of ours, or lacks one of
    `keys`. content=False, for who takes the meta alone: the content is not compared with its digest.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} is missing" + (f"; run first: {first}" if first else ""))
    mend = "remove it" + (f" and run: {first}" if first else "")
    try:
        seen = os.stat(path)
        obj = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        present = {*obj, obj["shards"]["of"]} if "shards" in obj else obj
        missing = [k for k in (*keys, "meta") if k not in present]
        missing += [k for k, kind in META.items() if not missing and not isinstance(obj["meta"].get(k), kind)]
        reason = None if missing else wrong(path, obj, seen, content)
        if "shards" in obj and not missing and not reason:
            from cox_oom.shards import Shards  # here, since it imports this module

            x = Shards(path, obj["shards"])
            obj = {**obj, x.of: x}
            if content:
                x.verify()
    except Exception as e:
        missing, reason = [], (str(e).split("\n")[0] or type(e).__name__)[:120]
    if reason:
        raise UserError(f"{path} cannot be read ({reason}); {mend}")
    if missing:
        raise UserError(f"{path} has no {missing[0]!r}: it was written by another version; {mend}")
    return obj


def check_chain(
    path: str | Path,
    meta: dict[str, Any],
    made_from: dict[str, str],
    fingerprint: str | None = None,
    size: dict[str, int] | None = None,
) -> None:
    """Refuse `path` (its meta) if it was made from other data or from files that have changed since.

    made_from: {"inputs/rgb": digest, …} of the files as they are now. size: {"rows", "labels"}, how many the OOM inputs
    have now; then it is said where they have grown.
    """
    if fingerprint is not None and meta["fingerprint"] != fingerprint:
        was = meta.get("size")
        if size and isinstance(was, dict) and was != size and all(was.get(k, -1) <= n for k, n in size.items()):
            raise UserError(
                f"the data have grown since {path} was made, from {was['rows']} rows and {was['labels']} labels to "
                f"{size['rows']} and {size['labels']}; inputs and banks were kept, this is trained anew by "
                f"{meta['stage']}.py --force, or beside it in another --runs"
            )
        raise UserError(
            f"{path} was made from other data than the inputs now in place (fingerprint "
            f"{meta['fingerprint'][:8]}, now {fingerprint[:8]}); make it again by {meta['stage']}.py --force, or "
            f"use another --runs"
        )
    for source, d in made_from.items():
        was = meta["made_from"].get(source)
        if was is not None and was != d:
            raise UserError(
                f"{path} was made from an earlier {source}; make it again by {meta['stage']}.py --force, "
                f"or use another --runs"
            )


def same_args(path: str | Path, meta: dict[str, Any], args: dict[str, Any]) -> None:
    """Refuse `path` (its meta) if it was made with other flags."""
    for k in sorted({*meta["args"], *args}):
        if meta["args"].get(k) != args.get(k):
            raise UserError(
                f"{path} was made with --{k.replace('_', '-')} {meta['args'].get(k)}, now {args.get(k)} is "
                f"asked; --force redoes it, another --runs keeps both"
            )


def finished(
    path: str | Path,
    args: dict[str, Any],
    made_from: dict[str, str],
    fingerprint: str,
    force: bool,
    size: dict[str, int] | None = None,
) -> bool:
    """True where `path` is this very work, done already. UserError where it is other work in the same place (made_from,
    fingerprint and size: see check_chain)."""
    path = Path(path)
    if force or not path.exists():
        return False
    meta = load(path)["meta"]
    check_chain(path, meta, made_from, fingerprint, size)
    same_args(path, meta, args)
    sweep(path)
    print(f"already done: {path} (--force redoes it)")
    return True
