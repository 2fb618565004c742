"""LanguageBind checkpoints in their published form (a folder per tower: config.json, pytorch_model.bin, vocab.json,
merges.txt), of any size, with weights drawn from the keys by tiny_weights.draw."""

import json

import torch
from tiny_weights import draw

NAMES = {
    "image": "LanguageBind_Image",
    "video": "LanguageBind_Video",
    "audio": "LanguageBind_Audio_FT",
    "depth": "LanguageBind_Depth",
    "thermal": "LanguageBind_Thermal",
}
TINY = {
    "width": 32,
    "layers": 2,
    "heads": 4,
    "patch": 56,
    "text_width": 24,
    "text_heads": 3,
    "dim": 8,
    "mels": 112,
    "length": 1036,
    "frames": 8,
    "vocabulary": 520,
    "context": 77,
}
FULL_WIDTH = {
    **TINY,
    "width": 1024,
    "heads": 16,
    "patch": 14,
    "text_width": 768,
    "text_heads": 12,
    "dim": 768,
    "vocabulary": 49408,
}
ALPHA = 16


def config(role, *, lora=0, v15=False, **sizes):
    """config.json of a tower; lora: the updates' rank, 0: none. Facts that have their default are left out."""
    s = {**TINY, **sizes}
    vision = {
        "hidden_size": s["width"],
        "intermediate_size": 4 * s["width"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "patch_size": s["patch"],
        "hidden_act": "gelu",
        "lora_r": lora,
        "lora_alpha": ALPHA,
    }
    if role == "audio":
        vision |= {"num_mel_bins": s["mels"], "target_length": s["length"]}
        vision |= {"audio_mean": -4.2677393, "audio_std": 4.5689974}
    if role == "video":
        vision |= {"add_time_attn": True, "num_frames": s["frames"], **({"clip_type": "vl_new"} if v15 else {})}
    if role == "depth":
        vision |= {"max_depth": 10}
    text = {
        "hidden_size": s["text_width"],
        "intermediate_size": 4 * s["text_width"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["text_heads"],
        "vocab_size": s["vocabulary"],
        "hidden_act": "gelu",
        "max_position_embeddings": s["context"],
    }
    kind = f"LanguageBind{role.capitalize()}"
    return {
        "architectures": [kind],
        "model_type": kind,
        "projection_dim": s["dim"],
        "logit_scale_init_value": 2.6592,
        "text_config": text,
        "vision_config": vision,
    }


def shapes(c):
    """{key: shape} of the weights that config.json `c` describes, written down after the published layout."""
    v, t, dim = c["vision_config"], c["text_config"], c["projection_dim"]
    d, e, r = v["hidden_size"], t["hidden_size"], v["lora_r"]
    video, v15 = v.get("add_time_attn"), v.get("clip_type") == "vl_new"
    grid = (v["num_mel_bins"], v["target_length"]) if "num_mel_bins" in v else (224, 224)
    p = v["patch_size"]
    out = {"logit_scale": (), "visual_projection.weight": (dim, d), "text_projection.weight": (dim, e)}
    at = "vision_model.embeddings."
    out |= {
        f"{at}class_embedding": (v["num_frames"], d) if v15 else (d,),
        f"{at}patch_embedding.weight": (d, 3, 1, p, p) if v15 else (d, 3, p, p),
        f"{at}position_embedding.weight": (1 + (grid[0] // p) * (grid[1] // p), d),
    }
    out |= {
        f"text_model.embeddings.{k}.weight": (n, e)
        for k, n in (("token_embedding", t["vocab_size"]), ("position_embedding", t["max_position_embeddings"]))
    }

    def norm(name, width):
        return {f"{name}.weight": (width,), f"{name}.bias": (width,)}

    def linear(name, width, into):
        return {f"{name}.weight": (into, width), f"{name}.bias": (into,)}

    def layer(at, width, over_time=False):
        attention = ["self_attn", *(["temporal_attn"] if over_time else [])]
        adapted = attention[-1:] if r and at.startswith("vision") else []
        keys = norm(f"{at}layer_norm1", width) | norm(f"{at}layer_norm2", width)
        keys |= linear(f"{at}mlp.fc1", width, 4 * width) | linear(f"{at}mlp.fc2", 4 * width, width)
        for a in attention:
            for q in ("q_proj", "k_proj", "v_proj", "out_proj"):
                keys |= linear(f"{at}{a}.{q}", width, width)
                if a in adapted:
                    keys |= {
                        f"{at}{a}.{q}.lora_A.default.weight": (r, width),
                        f"{at}{a}.{q}.lora_B.default.weight": (width, r),
                    }
        if over_time:
            keys |= {f"{at}temporal_embedding": (1, v["num_frames"], width), **norm(f"{at}temporal_layer_norm1", width)}
        return keys

    encoder = "vision_model.encoder." + ("base_model.model." if r else "")
    for i in range(v["num_hidden_layers"]):
        out |= layer(f"{encoder}layers.{i}.", d, video)
    for i in range(t["num_hidden_layers"]):
        out |= layer(f"text_model.encoder.layers.{i}.", e)
    return (
        out
        | norm("vision_model.pre_layrnorm", d)
        | norm("vision_model.post_layernorm", d)
        | norm("text_model.final_layer_norm", e)
    )


def tensors(c):
    """{key: tensor} in the layout of 2023, position_ids included. Updates are about a third of what they add to."""
    return {k: draw(k, s) / (32 if ".lora_B." in k else 1) for k, s in shapes(c).items()} | {
        f"{m}.embeddings.position_ids": torch.arange(n)[None]
        for m, n in (
            ("text_model", c["text_config"]["max_position_embeddings"]),
            ("vision_model", shapes(c)["vision_model.embeddings.position_embedding.weight"][0]),
        )
    }


def today(state):
    """The same weights with the keys that peft gives them since 0.7: an adapted layer's own weights are base_layer."""
    adapted = {k.removesuffix(".lora_A.default.weight") for k in state if k.endswith(".lora_A.default.weight")}
    return {
        f"{k.rpartition('.')[0]}.base_layer.{k.rpartition('.')[2]}" if k.rpartition(".")[0] in adapted else k: v
        for k, v in state.items()
    }


def write(folder, roles=tuple(NAMES), *, layout=dict, **kwargs):
    """The towers of `roles` under `folder`, one folder each; depth, thermal and video have updates of rank 2."""
    for role in roles:
        c = config(role, lora=2 if role in ("depth", "thermal", "video") else 0, **kwargs)
        at = folder / NAMES[role]
        at.mkdir(parents=True)
        (at / "config.json").write_text(json.dumps(c))
        torch.save(layout(tensors(c)), at / "pytorch_model.bin")
        vocabulary(at, c["text_config"]["vocab_size"])
    return folder


def vocabulary(folder, size):
    """vocab.json and merges.txt of `size` tokens: bytes, the same as ends of words, merges, start and end."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]
    merges = [("t", "h"), ("th", "e</w>"), ("a", "n"), ("an", "d</w>"), ("i", "n"), ("in", "g</w>")]
    merges += [(a, b) for b in letters[128:] for a in letters[128:]][: max(0, size - 514 - len(merges))]  # of no text
    merges += [(a, b + "</w>") for b in letters[128:] for a in letters[::]][: max(0, size - 514 - len(merges))]
    merges = merges[: size - 514]
    names = [*letters, *(c + "</w>" for c in letters), *("".join(m) for m in merges)]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({n: i for i, n in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")


TEXTS = ["The dog and the singing thing", "A Man, in 1999: don't!", "  ", "and " * 90, "näive – ﬁne\tsmile 😀"]


def batch(role, vocabulary=TINY["vocabulary"]):
    """A batch of two, as languagebind's `prepare` would give it, drawn like the weights."""
    if role == "text":
        ids = torch.full((2, TINY["context"]), vocabulary - 1)
        ids[:, 0] = vocabulary - 2
        ids[0, 1:6], ids[1, 1:76] = torch.tensor([40, 7, 333, 7, 514]), torch.arange(75) * 6
        return ids
    shape = {"audio": (3, TINY["mels"], TINY["length"]), "video": (TINY["frames"], 3, 224, 224)}.get(
        role, (3, 224, 224)
    )
    return torch.stack([draw(f"{role} embed {i}", shape) for i in range(2)])


def item(role):
    """A raw item of every role but text (see TEXTS), with structure at every scale."""
    if role == "audio":  # 12.3 s, and an offset
        t = torch.arange(196800) / 16000
        x = 0.1 + 0.3 * torch.sin(2000 * t + 300 * t**2) * (0.5 + 0.5 * torch.cos(3 * t))
        return x + 0.05 * draw("noise", t.shape)
    frames = {"video": TINY["frames"]}.get(role, 1)
    h, w = {"image": (331, 250), "video": (130, 244), "depth": (240, 320), "thermal": (512, 640)}[role]
    x = torch.arange(w) / w + torch.arange(frames * 3).view(-1, 3, 1, 1) / 7
    x = 0.5 + 0.3 * torch.sin(9 * x) * torch.cos(torch.arange(h)[:, None] / h * 11)
    x = x + 0.2 * draw(f"{role} embed", x.shape)
    if role == "depth":
        return (12 * x[0, :1]).clamp(min=0)  # metres; some beyond 10
    x = (255 * x).round().clamp(0, 255).to(torch.uint8)
    return x if role == "video" else x[0]


def probe(x):
    """81 numbers of a prepared item: spread over it, and its mean."""
    x = x.double().flatten()
    return torch.cat([x[torch.linspace(0, len(x) - 1, 80).long()], x.mean()[None]])
