"""Frozen IM perceptors, one file each: imagebind, languagebind, hf (any model of transformers), onnx, and bind.

bind's encoders are trained here on the data set's own pairs. embed.py runs the pretrained ones over a data set.
A pretrained one is a module with

  MODALITIES      the roles that it can embed (hf, onnx: `modalities(MODEL)`)
  PREPROCESSING   the version of prepare's numbers
  OPTIONS         perhaps: {keyword of load: help}
  BIND_TO         perhaps: the role that encoders trained beside it are bound to
  weight_files(roles, weights) -> {name: path} of what load reads
  load(roles, *, weights, device, dtype) -> a perceptor with
      dims {role: d}, weights {name: sha256}
      preparer(), light enough for worker processes: prepare(role, raw item) -> tensor or dict of tensors,
          sample(role) -> None or what Dataset.load takes: video (n_frames, fps) -> frame indices, audio
          (wave, rate) -> wave at 16 kHz
      encode(role, batch) -> (B, d) float32 unit rows
"""

import importlib
import re

from cox_oom.files import UserError

WORDS = {
    "image": ("rgb", "image", "vision", "photo", "camera"),
    "text": ("language", "caption", "text"),
    "audio": ("audio", "sound"),
    "depth": ("depth",),
    "thermal": ("thermal", "infrared"),
    "imu": ("imu",),
    "video": ("video",),
}  # role: words of a modality's name
KINDS = {
    "image": "image",
    "text": "text",
    "audio": "audio",
    "depth": "image",
    "thermal": "image",
    "imu": "series",
    "video": "video",
}  # role: kind of its items


def role_of(modality, kind):
    """The role in which a perceptor may take a modality, by the words of its name and its kind; None: as none.

    Text, audio and video are told by their kind alone; an image of an unknown name may show anything (touch, radar).
    """
    words = re.split(r"[^a-z]+", modality.lower())
    named = [role for role, names in WORDS.items() if KINDS[role] == kind and any(n in words for n in names)]
    return named[0] if named else kind if kind in ("text", "audio", "video") else None


def module(name):
    """The module of imagebind, languagebind, hf:MODEL or onnx:FOLDER."""
    return importlib.import_module(f"cox_oom.perceptors.{name.split(':')[0]}")


def can_embed(name, weights):
    """The roles of a perceptor."""
    perceptor = module(name)
    if hasattr(perceptor, "modalities"):
        return set(perceptor.modalities(model_of(name, weights)))
    return set(perceptor.MODALITIES)


def model_of(name, weights):
    """What load() takes as its weights: what stands behind the colon, else what --weights says."""
    return name.partition(":")[2] if ":" in name else weights


def options_of(name, given):
    """The part of --perceptor-option that a perceptor takes."""
    return {k: v for k, v in given.items() if k in getattr(module(name), "OPTIONS", {})}


def check_options(choice, given):
    """Refuses what no chosen perceptor takes."""
    names = sorted({c[0] for c in choice.values() if c})
    for k in given:
        if not any(k in getattr(module(n), "OPTIONS", {}) for n in names):
            have = sorted({o for n in names for o in getattr(module(n), "OPTIONS", {})})
            raise UserError(
                f"--perceptor-option {k}: {', '.join(names) or 'bind'} has "
                f"{'the options ' + ', '.join(have) if have else 'no options'}"
            )


def choose(spec, modalities, ims, weights=None):
    """Who embeds the IM modalities: {modality: (perceptor, role), or None where an encoder has to be trained here}.

    spec: `bind`, one perceptor for all, or `modality=perceptor,…`. modalities: {name: kind} of the data set.
    """
    table, each = dict.fromkeys(ims, spec), re.match(r"[^:]*=", spec)
    if each:
        table = dict(part.partition("=")[::2] for part in spec.split(","))
    out = dict.fromkeys(ims)
    for m, name in table.items():
        if m not in modalities:
            raise UserError(f"--perceptor {m}=…: the modalities are {', '.join(modalities)}")
        if name == "bind":
            continue
        if name not in ("imagebind", "languagebind") and not re.fullmatch("(hf|onnx):.+", name):
            raise UserError(
                f"--perceptor {name or spec!r}: choose bind, imagebind, languagebind, hf:MODEL or onnx:FOLDER, or one "
                f"for each modality as in rgb=hf:MODEL,audio=imagebind"
            )
        role = role_of(m, modalities[m])
        if m in ims and role in can_embed(name, weights):
            out[m] = (name, role)
        elif m in ims and each:
            raise UserError(
                f"--perceptor {m}={name}: it has no encoder for {role or f'{m} ({modalities[m]})'}; it "
                f"embeds {', '.join(sorted(can_embed(name, weights)))}"
            )
    if spec != "bind" and not any(out.values()):
        raise UserError(f"--perceptor {spec}: it embeds none of {', '.join(ims)}; use --perceptor bind, or other --im")
    return out
