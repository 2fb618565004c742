"""Encoders in ONNX files, run by onnxruntime on the CPU: `--perceptor onnx:FOLDER`.

The folder holds the files and perceptor.json, which tells how an item becomes their input (docs/perceptors.md):

  {"role": "audio",                                   image, text or audio
   "prepare": {"rate": 16000, "scale": 32768},        of KEYS[role]
   "models": [{"file": "mel.onnx", "scale": 0.1, "shift": 2, "window": 76, "step": 8},
              {"file": "embedding.onnx", "output": "conv2d_19"}],
   "pooling": "mean+max",                             of POOLINGS: how an item's last output (T, d) becomes a vector
   "about": {…}}                                      free: where it is from, its licence

One file, or a chain of them: an output (…, d) times scale plus shift is cut into windows of `window` steps of time,
each `step` steps, and the windows are the next file's batch. A text has tokenizer.json beside it.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.files import UserError, optional
from cox_oom.perceptors import encoders, preprocess
from cox_oom.perceptors import weights as files

PREPROCESSING = "onnx-1"
NAME = "perceptor.json"
KEYS: dict[str, dict[str, Any]] = {  # of "prepare" by role, with their defaults
    "image": {"size": 224, "crop": 224, "interpolation": "bicubic", "mean": [0.0] * 3, "std": [1.0] * 3},
    "text": {"longest": 256},  # tokens
    # values times scale; the middle `seconds` of a sound, `before` samples of silence before it, and behind it as many
    # as make shortest + k step samples
    "audio": {"rate": 16000, "scale": 1.0, "before": 0, "shortest": 1, "step": 1, "seconds": 10},
}
MODEL: dict[str, Any] = {"file": "", "output": "", "scale": 1.0, "shift": 0.0, "window": 0, "step": 1}
POOLINGS = ("none", "cls", "last", "mean", "max", "mean+max")
TRIAL = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "text": "a", "audio": torch.zeros(1600)}


def modalities(folder):
    """The role of a folder's encoder, alone in a tuple."""
    return (describe(folder)["role"],)


def weight_files(roles, folder):
    """{file name: path} of what an encoder is made of."""
    facts, folder = describe(folder), Path(folder)
    names = [NAME, *(m["file"] for m in facts["models"])] + ["tokenizer.json"] * (facts["role"] == "text")
    names += [p.name for m in facts["models"] for p in folder.glob(f"{m['file']}?data")]  # weights apart from the graph
    return {name: folder / name for name in names}


def load(roles, *, weights=None, device="cpu", dtype=torch.float32):
    """The encoder in the folder `weights`. Raises UserError where it has another role, or a file is not right."""
    facts = describe(weights)
    if other := [r for r in roles if r != facts["role"]]:
        raise UserError(f"onnx:{weights} has no {other[0]} features; it has {facts['role']}")
    if dtype != torch.float32:
        raise UserError(f"onnx:{weights} has the dtype of its file; leave --dtype out")
    return Encoder(Path(weights), facts)


def describe(folder):
    """The content of perceptor.json with the defaults filled in; UserError where it is not right."""
    path = Path(folder or "") / NAME
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise UserError(
            f"onnx:{folder}: {path} cannot be read ({' '.join(str(e).split())[:120]}); see docs/perceptors.md"
        ) from None
    if not isinstance(facts, dict) or facts.get("role") not in KEYS or not isinstance(facts.get("models"), list):
        raise UserError(f"{path}: it needs role ({', '.join(KEYS)}) and models (a list); see docs/perceptors.md")
    facts["prepare"] = filled(path, "prepare", facts.get("prepare", {}), KEYS[facts["role"]])
    facts["models"] = [filled(path, "models", m, MODEL) for m in facts["models"]]
    facts.setdefault("pooling", "none")
    if facts["pooling"] not in POOLINGS:
        raise UserError(f"{path}: pooling is {facts['pooling']!r}; give one of {', '.join(POOLINGS)}")
    for name in [m["file"] for m in facts["models"]] + ["tokenizer.json"] * (facts["role"] == "text"):
        if not name or Path(name).name != name or not (path.parent / name).is_file():
            raise UserError(f"{path}: the file {name!r} is not beside it; put it there")
    return facts


def filled(path, what, given, defaults):
    """The dict `given` with `defaults` where it says nothing; UserError for an unknown key or another type."""
    if not isinstance(given, dict):
        raise UserError(f"{path}: {what} holds {given!r}; write {{…}} with {', '.join(defaults)}")
    for k, v in given.items():
        like = defaults.get(k)
        number = isinstance(like, float) and isinstance(v, (int, float)) and not isinstance(v, bool)
        row = isinstance(like, list) and isinstance(v, list) and len(v) == len(like)
        if k not in defaults or not (number or row or (type(v) is type(like) and not isinstance(v, list))):
            raise UserError(f"{path}: {what} has {k}: {v!r}; it takes {', '.join(defaults)}, like {like!r}")
    return {**defaults, **given}


class Encoder:
    """What `load` returns; hf.py and imagebind.py give the same."""

    def __init__(self, folder, facts):
        ort = optional("onnxruntime", "--perceptor onnx:FOLDER")
        options = ort.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.name, self.role, self.pooling, self.chain = f"onnx:{folder}", facts["role"], facts["pooling"], []
        for model in facts["models"]:
            try:
                session = ort.InferenceSession(str(folder / model["file"]), options, providers=["CPUExecutionProvider"])
            except Exception as e:  # its errors have no common class
                reason = " ".join(str(e).split())[:200]
                raise UserError(f"{folder / model['file']}: cannot be loaded ({reason}); get it again") from None
            self.chain.append((model, session))
        preparer = Preparer(folder, facts)
        self.preparer, self.prepare, self.sample = lambda: preparer, preparer.prepare, preparer.sample
        self.weights = {name: files.sha256(path) for name, path in weight_files([], folder).items()}
        trial = self.prepare(self.role, TRIAL[self.role])
        self.dims = {self.role: self.encode(self.role, {k: v[None] for k, v in trial.items()}).shape[1]}

    def encode(self, role, batch):
        """batch {name: (B, …)}, what `prepare` gave, stacked -> (B, d) float32 unit rows."""
        batch = {k: v.cpu() for k, v in batch.items()}
        mask = batch.get("attention_mask")
        if mask is not None:  # padding up to the longest of the batch is enough
            batch = {k: v[:, mask.any(0)] for k, v in batch.items()}
        n = len(next(iter(batch.values())))
        free = not isinstance(self.chain[0][1].get_inputs()[0].shape[0], int)
        pieces = [slice(0, n)] if free and role != "audio" else [slice(i, i + 1) for i in range(n)]
        out = []
        for piece in pieces:
            part = {k: v[piece].numpy() for k, v in batch.items()}
            out.append(self.pooled(self.run(part, len(next(iter(part.values())))), part.get("attention_mask")))
        return F.normalize(torch.from_numpy(np.concatenate(out)).float(), dim=-1)

    def run(self, part, n):
        """The last file's output for n items, (n, …, d)."""
        try:
            for model, session in self.chain:
                names = [i.name for i in session.get_inputs()]
                inputs = {k: v for k, v in part.items() if k in names} if len(names) > 1 or "input_ids" in part else {}
                inputs = inputs or {names[0]: fitting(next(iter(part.values())), session.get_inputs()[0].shape)}
                x = session.run([model["output"]] if model["output"] else None, inputs)[0]
                x = x * np.float32(model["scale"]) + np.float32(model["shift"])
                if model["window"]:
                    steps = x.reshape(-1, x.shape[-1])
                    starts = range(0, len(steps) - model["window"] + 1, model["step"])
                    x = np.stack([steps[s : s + model["window"]] for s in starts])
                part = {"x": x}
        except Exception as e:  # what onnxruntime says to an input of another name, type or shape
            raise UserError(f"{self.name}: {model['file']} cannot be run ({' '.join(str(e).split())[:200]})") from None
        return x if len(x) == n and self.role != "audio" else x.reshape(n, -1, x.shape[-1])

    def pooled(self, x, mask):
        """(B, …, d) of the last file -> (B, d). mask (B, T) of a text's tokens, or None."""
        if self.pooling == "none":
            if x.size != len(x) * x.shape[-1]:
                raise UserError(f"{self.name}: its output is {x.shape}, no vector an item; name another pooling")
            return x.reshape(len(x), -1)
        states = torch.from_numpy(x.reshape(len(x), -1, x.shape[-1]))
        mask = torch.ones(states.shape[:2]) if mask is None else torch.from_numpy(mask)
        top = states.masked_fill(mask[..., None] == 0, -torch.inf).amax(1)
        own = lambda name: encoders.pooled(SimpleNamespace(last_hidden_state=states), mask, (name,))
        parts = [top if name == "max" else own(name) for name in self.pooling.split("+")]
        return torch.cat(parts, 1).numpy()


def fitting(x, shape):
    """x in the form of an input whose sizes behind the batch are fixed, as (n, 76, 32) for (?, 76, 32, 1); else x."""
    return x.reshape(-1, *shape[1:]) if len(shape) > 1 and all(isinstance(s, int) for s in shape[1:]) else x


class Preparer:
    """Raw items to a file's inputs, without the file: `prepare` and `sample`."""

    def __init__(self, folder, facts):
        self.facts = facts["prepare"]
        self.words: Any = None  # the tokenizer
        if facts["role"] == "text":
            tokenizers = optional("tokenizers", "texts of --perceptor onnx:FOLDER")
            try:
                self.words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
            except Exception as e:  # tokenizers raises bare Exception
                reason = " ".join(str(e).split())[:200]
                raise UserError(f"{folder / 'tokenizer.json'}: cannot be read ({reason}); get it again") from None
            self.words.enable_truncation(self.facts["longest"])
            self.words.enable_padding(length=self.facts["longest"], pad_id=self.words.token_to_id("[PAD]") or 0)

    def sample(self, role):
        return None

    def prepare(self, role, item):
        """One raw item (data.Dataset has their forms) -> {name: tensor}: image x (3, S, S) float32; audio x (T,)
        float32; text input_ids, attention_mask, token_type_ids (longest,) int64."""
        to = self.facts
        if role == "text":
            e = self.words.encode(item)
            made = {"input_ids": e.ids, "attention_mask": e.attention_mask, "token_type_ids": e.type_ids}
            return {k: torch.tensor(v) for k, v in made.items()}
        item = torch.as_tensor(item)
        if role == "image":
            if item.dtype != torch.uint8:
                raise UserError(f"image: {item.dtype} values; an encoder of onnx:FOLDER takes images of 8 bits")
            x = preprocess.resize(preprocess.rgb(item).contiguous(), to["size"], mode=to["interpolation"])
            return {"x": preprocess.normalise(preprocess.centre_crop(x, to["crop"]), to["mean"], to["std"])}
        x = preprocess.resample(item, preprocess.SAMPLE_RATE, to["rate"]) * to["scale"]
        length = to["seconds"] * to["rate"]
        start = max(0, len(x) - length) // 2
        x = F.pad(x[start : start + length], (to["before"], 0))
        more = max(0, len(x) - to["shortest"])
        return {"x": F.pad(x, (0, to["shortest"] + -(-more // to["step"]) * to["step"] - len(x)))}
