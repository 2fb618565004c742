"""Encoders of transformers that give states, not one vector: which role they have, and how states become a vector.

A folder of sentence-transformers says it itself (modules.json, 1_Pooling/config.json, sentence_bert_config.json).
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from cox_oom.files import UserError
from cox_oom.perceptors import preprocess

POOLINGS = ("cls", "mean", "last", "pooler")
# By role, the first that the model has. An image's class token is what its training shaped; a text's is not always.
DEFAULT = {"image": ("pooler", "cls"), "text": ("mean",), "audio": ("pooler", "mean"), "video": ("pooler", "mean")}
INPUTS = {"input_ids": "text", "input_values": "audio", "input_features": "audio", "pixel_values_videos": "video"}
MODES = {  # of 1_Pooling/config.json; the rows get length 1, so that a sum over √n is the mean
    "cls_token": "cls",
    "mean_tokens": "mean",
    "mean_sqrt_len_tokens": "mean",
    "lasttoken": "last",
}
UNUSED = ("masked_spec_embed", "mask_token")  # weights that stand for what training hides


def role_of(model_class, config):
    """The role of an encoder by the name of its input; None where it is none of those known here."""
    name = str(getattr(model_class, "main_input_name", None))
    if name == "pixel_values":
        moving = "video" in (model_class.input_modalities or ()) or isinstance(getattr(config, "num_frames", None), int)
        return "video" if moving else "image"
    return INPUTS.get(name)


def missing(keys):
    """({weights that an encoder needs and its file lacks}, whether its pooler is among what is missing)."""
    needed = {k for k in keys if k.split(".")[-1] not in UNUSED}
    pooler = {k for k in needed if k.split(".")[0] == "pooler"}
    return needed - pooler, bool(pooler)


def read(path):
    """The content of a .json file of the model's folder; None where it is not there."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as e:
        raise UserError(f"{path}: cannot be read ({' '.join(str(e).split())[:120]}); get it again") from None


def pooling_of(folder, role, asked=None):
    """The names of POOLINGS to try in turn: the one that was asked for, the folder's own, or the role's."""
    if asked is not None and asked not in POOLINGS:
        raise UserError(f"--perceptor-option pooling={asked}: choose among {', '.join(POOLINGS)}")
    modules = read(Path(folder) / "modules.json")
    if role != "text" or modules is None:
        return (asked,) if asked else DEFAULT[role]
    kinds = {m["type"].split(".")[-1]: m["path"] for m in modules}
    if other := [k for k in kinds if k not in ("Transformer", "Pooling", "Normalize")]:
        raise UserError(f"{folder}/modules.json: its step {other[0]} is not known here; choose another model")
    if asked or "Pooling" not in kinds:
        return (asked,) if asked else DEFAULT[role]
    path = Path(folder) / kinds["Pooling"] / "config.json"
    said = read(path) or {}
    modes = [k.removeprefix("pooling_mode_") for k, on in said.items() if k.startswith("pooling_mode_") and on]
    modes = modes or [said.get("pooling_mode")]
    if len(modes) != 1 or MODES.get(modes[0], modes[0]) not in POOLINGS:
        names = " and ".join(str(m) for m in modes)
        raise UserError(f"{path}: pooling by {names} is not known here; give --perceptor-option pooling=NAME")
    return (MODES.get(modes[0], modes[0]),)


def longest(folder):
    """How many tokens a folder of sentence-transformers cuts its texts at; None where it says nothing."""
    return (read(Path(folder) / "sentence_bert_config.json") or {}).get("max_seq_length")


def pooled(out, mask, names):
    """(B, d) of a model's output by the first of `names` that it has; ValueError where it has none.

    out.last_hidden_state (B, T, d), or (B, d, H, W) of convolutions; mask (B, T') of ones up to where an item ends:
    states behind it, and behind T', do not count; None: all count.
    """
    states = out.last_hidden_state
    flat = states.ndim == 4
    if flat:
        states = states.flatten(2).transpose(1, 2)
    if mask is None:
        mask = torch.ones(states.shape[:2], device=states.device)
    states, mask = states[:, : mask.shape[1]], mask[:, : states.shape[1]]
    for name in names:
        if name == "pooler" and (vector := getattr(out, "pooler_output", None)) is not None:
            return vector.flatten(1)
        if name == "cls" and not flat:
            return states[:, 0]
        if name == "last" and not flat:
            steps = torch.arange(mask.shape[1], device=mask.device)
            return states[torch.arange(len(states), device=states.device), (steps * (mask > 0)).argmax(1)]
        if name == "mean":
            weight = mask[..., None].to(states.dtype)
            return (states * weight).sum(1) / weight.sum(1).clamp(min=1)
    raise ValueError(f"it has no {' or '.join(names)}; give --perceptor-option pooling=NAME, of {', '.join(POOLINGS)}")


def dinov3_pixels(facts, x):
    """x uint8 (1|3, H, W) -> (3, h, w) float32 as DINOv3's processor makes them, `facts` its preprocessor_config.json:
    to [0, 1], then resized as torchvision resizes tensors (bilinear, antialiased), then mean and std."""
    if x.dtype != torch.uint8:
        raise UserError(f"image: {x.dtype} values; this model's processor takes images of 8 bits")
    x = preprocess.rgb(x).float() * facts.get("rescale_factor", 1 / 255)
    size = tuple((facts.get("size") or {"height": 224, "width": 224})[k] for k in ("height", "width"))
    x = F.interpolate(x[None], size=size, mode="bilinear", align_corners=False, antialias=True)[0]
    mean, std = facts.get("image_mean", (0.485, 0.456, 0.406)), facts.get("image_std", (0.229, 0.224, 0.225))
    return preprocess.normalise(x, mean, std)
