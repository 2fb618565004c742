"""Checkpoints of the pretrained perceptors in their true formats, tiny, for tests without the weights.

Every tensor is drawn by a rule from its key and shape alone, so that it is the same on every machine and in every
file that has it; only uniform numbers are used, which torch draws bit for bit alike everywhere.
"""

import hashlib
import math

import torch

# encoder: width, blocks, stem's kernel without the output channels, tokens; the sizes as published and tiny ones
IMAGEBIND = {
    "vision": (1280, 32, (3, 2, 14, 14), 257),
    "text": (1024, 24, (), 77),
    "audio": (768, 12, (1, 16, 16), 229),
    "depth": (384, 12, (1, 16, 16), 197),
    "thermal": (768, 12, (1, 16, 16), 197),
    "imu": (512, 6, (48,), 251),
}
IMAGEBIND_TINY = {
    "vision": (32, 2, (3, 2, 56, 56), 17),
    "text": (32, 2, (), 77),
    "audio": (24, 2, (1, 16, 16), 229),
    "depth": (16, 2, (1, 32, 32), 50),
    "thermal": (24, 2, (1, 32, 32), 50),
    "imu": (16, 2, (48,), 251),
}


def draw(key, shape):
    """A tensor of this key: scales around 1, biases around 0, everything else of a size that keeps signals alive."""
    seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "big")
    u = 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1  # uniform in [-1, 1)
    if key.endswith("logit_scale"):
        return torch.full(shape, math.log(20.0))
    if len(shape) == 1:
        return 1 + 0.3 * u if key.endswith("weight") else 0.3 * u
    embedding = any(word in key for word in ("embed", "token", "bias_", "position"))
    return u if embedding else u * 1.5 * math.sqrt(3 / math.prod(shape[1:]))


def imagebind_shapes(sizes=IMAGEBIND, out=1024):
    """{key: shape} of an ImageBind checkpoint, written down after the published file's 1,311 keys."""
    shapes = {}
    for m, (d, blocks, kernel, tokens) in sizes.items():
        pre, trunk, head = (f"modality_{p}.{m}." for p in ("preprocessors", "trunks", "heads"))
        if m == "text":
            shapes |= {
                f"{pre}pos_embed": (1, tokens, d),
                f"{pre}mask": (tokens, tokens),
                f"{pre}token_embedding.weight": (49408, d),
            }
        elif m == "imu":
            shapes |= {
                f"{pre}pos_embed": (1, tokens, d),
                f"{pre}cls_token": (1, 1, d),
                f"{pre}imu_stem.proj.weight": (d, 48),
                f"{pre}imu_stem.norm_layer.weight": (d,),
                f"{pre}imu_stem.norm_layer.bias": (d,),
            }
        else:
            stem = "depth_stem" if m == "depth" else "rgbt_stem"
            shapes |= {
                f"{pre}cls_token": (1, 1, d),
                f"{pre}pos_embedding_helper.pos_embed": (1, tokens, d),
                f"{pre}{stem}.proj.{'1.' * (m == 'vision')}weight": (d, *kernel),
            }
            if m != "vision":
                shapes |= {f"{pre}{stem}.norm_layer.weight": (d,), f"{pre}{stem}.norm_layer.bias": (d,)}
        if m == "vision":
            shapes |= {f"{trunk}pre_transformer_layer.0.{p}": (d,) for p in ("weight", "bias")}
        for i in range(blocks):
            at = f"{trunk}blocks.{i}."
            shapes |= {
                f"{at}attn.in_proj_weight": (3 * d, d),
                f"{at}attn.in_proj_bias": (3 * d,),
                f"{at}attn.out_proj.weight": (d, d),
                f"{at}attn.out_proj.bias": (d,),
                f"{at}norm_1.weight": (d,),
                f"{at}norm_1.bias": (d,),
                f"{at}norm_2.weight": (d,),
                f"{at}norm_2.bias": (d,),
                f"{at}mlp.fc1.weight": (4 * d, d),
                f"{at}mlp.fc1.bias": (4 * d,),
                f"{at}mlp.fc2.weight": (d, 4 * d),
                f"{at}mlp.fc2.bias": (d,),
            }
            if m not in ("vision", "text"):
                shapes |= {f"{at}attn.bias_k": (1, 1, d), f"{at}attn.bias_v": (1, 1, d)}
        norm, linear = {"text": ("proj.0", "proj.1"), "imu": ("0", "3")}.get(m, ("0", "2"))
        shapes |= {f"{head}{norm}.weight": (d,), f"{head}{norm}.bias": (d,), f"{head}{linear}.weight": (out, d)}
        if m != "vision":
            shapes[f"modality_postprocessors.{m}.1.log_logit_scale"] = ()
    return shapes


def imagebind_tensors(sizes=IMAGEBIND_TINY, out=8):
    tensors = {k: draw(k, shape) for k, shape in imagebind_shapes(sizes, out).items()}
    for k in tensors:
        if k.endswith(".mask"):
            tensors[k] = torch.full(tensors[k].shape, -math.inf).triu(1)
    return tensors


def imagebind(path, **kwargs):
    """Write a tiny imagebind_huge.pth."""
    torch.save(imagebind_tensors(**kwargs), path)
    return path


def imagebind_batches():
    """{role: a batch of two}, as imagebind's `prepare` would give it, drawn like the weights."""
    shapes = {
        "image": (3, 224, 224),
        "video": (15, 3, 2, 224, 224),
        "audio": (3, 1, 128, 204),
        "depth": (1, 224, 224),
        "thermal": (1, 224, 224),
        "imu": (6, 2000),
    }
    text = torch.zeros(2, 77, dtype=torch.int64)
    text[0, :6], text[1, :77] = torch.tensor([49406, 320, 1125, 539, 320, 49407]), 49406 - torch.arange(77)
    text[1, 76] = 49407
    batches = {
        role: torch.stack([draw(f"{role} embed {i}", shape) for i in range(2)]) for role, shape in shapes.items()
    }
    return {**batches, "text": text}
