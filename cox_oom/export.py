"""A trained learner as one file that runs without this repository: ONNX (onnxruntime) or .pt2 (torch.export).

Normalisation, temperature and the average over several runs are inside. Beside it learner.json says how to prepare a
raw file. Shapes: B batch, C classes.
"""

import contextlib
import json
import logging
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cox_oom import files
from cox_oom.data import inputs
from cox_oom.data.media import SAMPLE_RATE
from cox_oom.files import UserError
from cox_oom.learner import load_learner
from cox_oom.predict import Trained
from cox_oom.report import card
from cox_oom.report.judge import labelled_rows
from cox_oom.report.records import read_record, write_text

NAMES = ("posteriors", "novelty")


class Whole(nn.Module):
    """Prepared items to (posteriors (B, C), novelty (B,)): x (B, …) as in stage 1's inputs, uint8 or float32; where
    items differ in length, x is (B, channels, time) of any time up to the longest, or bytes (B, time), and steps (B,)
    int64 are the valid ones."""

    mean: Tensor
    std: Tensor

    def __init__(self, trained: Trained) -> None:
        super().__init__()
        made = [load_learner(run["arch"], run, "cpu") for run in trained.runs]
        self.learners = nn.ModuleList(m[0] for m in made).eval()
        self.heads = nn.ModuleList(m[1] for m in made)
        self.temperatures = [run["calibration"]["temperature"] for run in trained.runs]
        self.text, self.longest = trained.kind == "text", trained.preparation["shape"][-1]
        for name in ("mean", "std"):
            self.register_buffer(name, trained.preparation[name])
        for i, run in enumerate(trained.runs):
            self.register_buffer(f"means{i}", run["novelty"]["means"].double())
            self.register_buffer(
                f"precision{i}", run["novelty"]["precision"].double() / run["novelty"]["distance"] ** 2
            )
        self.requires_grad_(False)

    def forward(self, x: Tensor, steps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        at = torch.arange(self.longest, device=x.device)
        if steps is not None:  # to the longest item's length
            x = torch.cat([x, x.new_zeros(*x.shape[:-1], self.longest)], -1)[..., : self.longest]
        if not self.text:
            x = (x.float() - self.mean) / self.std
        if steps is not None:
            valid = at < steps[:, None]
            x = x * (valid if self.text else valid[:, None, :])
        posteriors, novelty = [], []
        for i, (learner, head) in enumerate(zip(self.learners, self.heads)):
            z = learner(x, steps)
            posteriors.append((head(z) / self.temperatures[i]).softmax(-1))
            off = z.double()[:, None] - getattr(self, f"means{i}")
            far = ((off @ getattr(self, f"precision{i}")) * off).sum(-1).clamp(min=0).amin(1)
            novelty.append(far.sqrt())
        return torch.stack(posteriors).mean(0), torch.stack(novelty).mean(0).float()


def facts_of(trained: Trained) -> dict[str, Any]:
    """What learner.json says: classes, inputs and outputs with shape and dtype, and how a raw file becomes an input."""
    to = {k: v for k, v in trained.preparation.items() if k not in ("mean", "std")}
    square = f"cut the centre square, resize it to {to['image_size']} x {to['image_size']}, bilinear with antialiasing"
    time = []
    if to["longest"] > to["series_length"]:
        parts = f"ceil(steps * {to['series_length']} / {to['longest']})"
        time = [f"average time over {parts} equal parts (adaptive average pooling)"]
    if to["lengths"]:
        time += [f"cut what is beyond {to['shape'][-1]} steps; in a batch fill up with 0 at the end; steps: valid ones"]
    mel = (
        f"mono float32 in -1 to 1 at {SAMPLE_RATE} Hz, with 0 at the end to {inputs.WINDOW} ms at least; "
        f"{to['mels']} log mel energies of {inputs.WINDOW} ms windows each {inputs.SHIFT} ms "
        "(kaldi-native-fbank: dither 0, snip_edges True, use_energy False)"
    )
    how = {
        "image": ["(channels, height, width), values as in the file", square],
        "video": [f"take {to['frames']} frames evenly over time, RGB", square, "(3, frames, height, width)"],
        "series": ["(channels, time) float32", *time],
        "audio": [mel, *time],
        "text": [f"UTF-8 bytes, {to['shape'][0]} at most, cut between characters", *time],
    }
    batch = {"x": {"shape": ["B", *to["shape"]], "dtype": to["dtype"]}, "steps": {"shape": ["B"], "dtype": "int64"}}
    return {
        "classes": trained.classes,
        "modality": trained.modality,
        "made_from": [str(p) for p in trained.paths],
        "inputs": batch if to["lengths"] else {"x": batch["x"]},
        "outputs": {
            "posteriors": {"shape": ["B", len(trained.classes)], "dtype": "float32"},
            "novelty": {"shape": ["B"], "dtype": "float32", "above 1": "unlike 95% of the training items"},
        },
        "prepare": how[trained.kind],
        "preparation": to,
        "certainty": trained.certainty,
    }


def example(trained: Trained, n: int = 2) -> tuple[Tensor, ...]:
    """Zeros in the form of Whole's arguments."""
    to = trained.preparation
    x = torch.zeros((n, *to["shape"]), dtype=getattr(torch, to["dtype"]))
    return (x, torch.full((n,), to["shape"][-1])) if to["lengths"] else (x,)


def export(trained: Trained, path: Path) -> dict[str, Any]:
    """Write the learners to `path`, .onnx or .pt2, and learner.json (NAME.json) beside it. Returns {"file", "bytes"}.
    UserError for another ending, or where NAME.json is there and was not written by this function."""
    if path.suffix not in (".onnx", ".pt2"):
        raise UserError(f"--export {path}: the name ends in .onnx or .pt2")
    if any("classical" in run for run in trained.runs):
        raise UserError(f"{trained.paths[0]} is no network; --export needs a method that trains one")
    if any("members" in run for run in trained.runs):
        raise UserError(f"{trained.paths[0]} is several networks; --export takes one: selftrain, or another method")
    beside = path.with_suffix(".json")
    if beside.exists() and '"prepare"' not in beside.read_text(encoding="utf-8", errors="replace"):
        raise UserError(f"--export {path}: {beside} would be replaced, a record of a run; give another name")
    facts = facts_of(trained)
    text = json.dumps(facts, indent=1, ensure_ascii=False)
    with quietly():
        if path.suffix == ".onnx":
            write_onnx(trained, path, facts)
        else:
            write_pt2(trained, path, text)
    files.write_atomic(beside, lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return {"file": str(path), "bytes": path.stat().st_size}


def sizes(args: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Any, ...]]:
    """Whole's arguments, and which of their dimensions are free: the batch, and the time of items with steps."""
    batch, longest = torch.export.Dim("batch", min=1), args[0].shape[-1]
    if len(args) == 1 or longest <= 2:
        return args, ({0: batch},) * len(args)
    time = torch.export.Dim("time", min=1, max=longest)
    shorter = (args[0][..., :-1].contiguous(), args[1] - 1)  # the full length itself would be taken for fixed
    return shorter, ({0: batch, args[0].dim() - 1: time}, {0: batch})


def write_pt2(trained: Trained, path: Path, text: str) -> None:
    """The .pt2 file; `text`, that of learner.json, is in it as an extra file of this name."""
    args, free = sizes(example(trained))
    program = torch.export.export(Whole(trained), args, dynamic_shapes=free)
    files.write_atomic(path, lambda tmp: torch.export.save(program, tmp, extra_files={"learner.json": text}))


def write_onnx(trained: Trained, path: Path, facts: dict[str, Any]) -> None:
    """The ONNX file; its metadata hold `classes` and `preparation` as JSON."""
    onnx = files.optional("onnx", "--export to ONNX")
    files.optional("onnxscript", "--export to ONNX")
    args, free = sizes(example(trained))
    names = ["x", "steps"][: len(args)]
    program: Any = torch.onnx.export(
        Whole(trained),
        args,
        dynamo=True,
        dynamic_shapes=free,
        input_names=names,
        output_names=NAMES,
        verbose=False,
    )
    model = program.model_proto
    for key in ("classes", "preparation"):
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=json.dumps(facts[key])))
    files.write_atomic(path, lambda tmp: onnx.save_model(model, str(tmp)))


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the exporters' remarks about libraries of theirs."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def quantize(path: Path) -> Path:
    """An ONNX file with its products in int8 (dynamic quantisation): NAME.int8.onnx beside it."""
    quantization = files.optional("onnxruntime.quantization", "--int8")
    new = path.with_suffix(".int8.onnx")
    with quietly():
        files.write_atomic(new, lambda tmp: quantization.quantize_dynamic(path, tmp, reduce_range=True))
    return new


class Exported:
    """An exported file, .onnx or .pt2, as a function of Whole's arguments; one thread."""

    def __init__(self, path: Path) -> None:
        self.session: Any = None
        if path.suffix == ".onnx":
            ort = files.optional("onnxruntime", "running an ONNX file")
            options = ort.SessionOptions()
            options.intra_op_num_threads = 1
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        else:
            self.module = torch.export.load(path).module()

    def __call__(self, *args: Tensor) -> tuple[Tensor, Tensor]:
        if self.session is None:
            return self.module(*args)
        names = [i.name for i in self.session.get_inputs()]
        p, far = self.session.run(NAMES, {n: a.numpy() for n, a in zip(names, args)})
        return torch.from_numpy(p), torch.from_numpy(far)


def measure(trained: Trained, path: Path, oom: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """An exported file beside its learner on rows (R,) of the inputs: the largest difference of a posterior, accuracy,
    milliseconds of one item at one thread (the median of 30), bytes."""
    run, whole = Exported(path), Whole(trained)
    to = trained.preparation
    off, guess = 0.0, []
    for r in rows.split(256):
        args = (oom["x"][r], oom["lengths"][r].long()) if to["lengths"] else (oom["x"][r],)
        with torch.no_grad():
            p = run(*args)[0]
            off = max(off, (p - whole(*args)[0]).abs().max().item())
        guess.append(p.argmax(1))
    one = tuple(a[:1] for a in args)
    seconds = []
    for _ in range(30):
        begun = time.perf_counter()
        run(*one)
        seconds.append(time.perf_counter() - begun)
    accuracy = (torch.cat(guess) == oom["labels"][rows]).double().mean().item()
    return {
        "file": str(path),
        "bytes": path.stat().st_size,
        "difference": off,
        "accuracy": accuracy,
        "ms": 1000 * sorted(seconds)[len(seconds) // 2],
    }


def command(trained: Trained, path: Path, int8: bool) -> None:
    """Export a learner, measure the files on its test items, print that and add it to its card."""
    if int8 and path.suffix != ".onnx":
        raise UserError(f"--int8 with --export {path}: give a name that ends in .onnx")
    export(trained, path)
    oom = files.load(trained.paths[0].parents[4] / "inputs" / f"{trained.modality}.pt")
    rows = labelled_rows(oom, "test")
    found = [measure(trained, p, oom, rows) for p in (path, *([quantize(path)] if int8 else []))]
    for f in found:
        print(
            f"wrote {f['file']}: {f['bytes'] / 1e6:.2f} MB, {f['ms']:.2f} ms for one item at one thread, accuracy "
            f"{100 * f['accuracy']:.1f}%, a posterior differs by {f['difference']:.1e} at most"
        )
    print(f"wrote {path.with_suffix('.json')}: how to prepare a recording")
    for p in trained.paths:
        record = read_record(p.with_suffix(".json"))
        if record:
            write_text(p.with_suffix(".card.md"), card.card(record, found))
