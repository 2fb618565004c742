"""LanguageBind (Zhu et al. 2024): image, video, audio, depth, thermal and text, each tower from its own folder.

A folder is what the hub holds under LanguageBind/LanguageBind_<Tower>: config.json and pytorch_model.bin or
model.safetensors. Every size is read from config.json, every key of the weights is used or accounted for, low-rank
updates are added to the weights they belong to when loading. What runs is transformers' CLIP; the audio tower's grid
and the video towers' attention over time are added here.

Where the published preprocessing draws at random (audio crops, a mirrored video), a fixed choice takes its place.
docs/perceptors.md has the numbers of the comparison with the official code.
"""

import functools
import json
import re
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cox_oom.files import UserError, optional
from cox_oom.perceptors import preprocess
from cox_oom.perceptors import weights as files

MODALITIES = {
    "image": "colour or grey image",
    "video": "clip of frames",
    "audio": "16 kHz mono",
    "depth": "metres",
    "thermal": "infrared image",
    "text": "a sentence",
}
PREPROCESSING = "languagebind-2"
BIND_TO = "text"  # what an encoder trained beside it is bound to: the language, as in its own training

# The hub's folders by role, the one that LanguageBind's own examples take first.
FOLDERS = {
    "image": ("LanguageBind_Image",),
    "video": (
        "LanguageBind_Video_FT",
        "LanguageBind_Video_V1.5_FT",
        "LanguageBind_Video",
        "LanguageBind_Video_Huge_V1.5_FT",
    ),
    "audio": ("LanguageBind_Audio_FT", "LanguageBind_Audio"),
    "depth": ("LanguageBind_Depth",),
    "thermal": ("LanguageBind_Thermal",),
}
# What config.json leaves out has the value that LanguageBind's own configuration classes give it.
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
EXTRA = {
    "add_time_attn": False,
    "num_frames": 1,
    "clip_type": "vl",
    "tube_size": 1,
    "lora_alpha": 16,
    "num_mel_bins": 0,
    "target_length": 0,
    "audio_sample_rate": 16000,
    "audio_mean": 0.5,
    "audio_std": 0.5,
    "max_depth": 10,
}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
HUB = "models--LanguageBind--"  # how Hugging Face's cache calls them
MIN_DEPTH = 0.01  # metres


def load(roles, *, weights=None, device="cpu", dtype=torch.float32):
    """The towers of `roles` (see MODALITIES), in eval mode. weights: the folder that holds one folder per tower.

    Text takes the text tower of the first folder that is needed anyway (in the order of FOLDERS): all folders ship the
    same frozen one. Raises UserError where a role, a file or a key is not there.
    """
    optional("transformers", "--perceptor languagebind")
    unknown = [r for r in roles if r not in MODALITIES]
    if unknown:
        raise UserError(f"languagebind has no {unknown[0]}; it has {', '.join(MODALITIES)}")
    towers = find_all(roles, weights)
    model, hashes = nn.ModuleDict(), {}
    for role, (folder, name) in towers.items():
        model[role], paths = load_tower(role, folder)
        hashes.update({f"{name}/{path.name}": files.sha256(path) for path in paths})
    vocabulary = None
    facts = {role: read_config(folder)[0 if role != "text" else 1] for role, (folder, _) in towers.items()}
    if "text" in roles:
        vocabulary = preprocess.find_vocabulary(vocabulary_places(towers, weights))
        preprocess.check_vocabulary(vocabulary, facts["text"]["vocab_size"])
        hashes |= {n: files.sha256(p) for n, p in preprocess.vocabulary_files(vocabulary).items()}
    return LanguageBind(
        model.to(device=device, dtype=dtype).eval().requires_grad_(False),
        Preparer(facts, vocabulary),
        hashes,
        device,
        dtype,
    )


class LanguageBind:
    """What `load` returns."""

    def __init__(self, model, preparer, hashes, device, dtype):
        self.model, self.weights, self.device, self.dtype = model, hashes, device, dtype
        self.dims = {role: tower.dim for role, tower in model.items()}
        self.preparer, self.prepare, self.sample = lambda: preparer, preparer.prepare, preparer.sample

    @torch.inference_mode()
    def encode(self, role, batch):
        """batch (B, …), what `prepare` gave, stacked -> (B, d) float32 unit rows."""
        batch = batch.to(self.device) if role == "text" else batch.to(self.device, self.dtype)
        return F.normalize(self.model[role](batch).float(), dim=-1)


class Preparer:
    """Raw items to model inputs, without the model: `prepare` and `sample`. facts: each role's part of config.json."""

    def __init__(self, facts, vocabulary):
        self.facts, self.vocabulary = facts, vocabulary

    def sample(self, role):
        """Which frames of a clip: evenly spaced, the first and the last among them. How sound is resampled."""
        if role == "video":
            return functools.partial(preprocess.spread, count=self.facts[role]["num_frames"])
        return preprocess.sinc_resampled if role == "audio" else None

    def prepare(self, role, item):
        """One raw item (data.Dataset has their forms) -> its input.

        image, thermal, depth (3, S, S) float32; video (frames, 3, S, S) float32; audio (3, mels, length) float32;
        text (77,) int64.
        """
        c = self.facts[role]
        if role == "text":
            length, words = c["max_position_embeddings"], c["vocab_size"]
            return preprocess.clip_tokens([item], length, "eot", self.vocabulary, words)[0]
        item = torch.as_tensor(item)
        if role == "audio":
            return self.audio(item)
        if role == "video":
            return self.video(item)
        if role == "depth":
            x, antialias = metres(item, c["max_depth"]), False
        else:  # thermal as trained, image as OpenCLIP was trained
            x, antialias = preprocess.rgb(unit(item, role)), role == "image"
        x = preprocess.resize_crop(x, c["image_size"], antialias)
        return preprocess.normalise(x, preprocess.CLIP_MEAN, preprocess.CLIP_STD)

    def audio(self, wave):
        """wave (T,) float32, 16 kHz -> (3, mels, length) float32, one for each of three crops."""
        c = self.facts["audio"]
        wave = preprocess.resample(wave, preprocess.SAMPLE_RATE, c["audio_sample_rate"])
        mel = preprocess.fbank(
            wave, c["num_mel_bins"], subtract_mean=True, rate=c["audio_sample_rate"]
        )  # (frames, mels)
        x = torch.stack([crop.T for crop in crops(mel, c["target_length"])])
        return (x - c["audio_mean"]) / (2 * c["audio_std"])

    def video(self, frames):
        """frames (F, 3, H, W) uint8, as many as the tower takes (else UserError) -> (F, 3, S, S) float32."""
        c = self.facts["video"]
        if len(frames) != c["num_frames"]:
            raise UserError(
                f"a clip of {len(frames)} frames: this video tower takes {c['num_frames']} (its config.json)"
            )
        x = preprocess.normalise(frames.transpose(0, 1), preprocess.CLIP_MEAN, preprocess.CLIP_STD)  # (3, F, H, W)
        h, w = x.shape[-2:]
        size = c["image_size"]
        to = (int(h / w * size), size) if w < h else (size, int(w / h * size))
        x = F.interpolate(x, size=to, mode="bilinear", align_corners=False)
        return preprocess.centre_crop(x, size).transpose(0, 1).contiguous()


# ------------------------------------------------------------------------------------------------ raw items to inputs


def unit(x, role):
    """uint8 (C, H, W) -> float32 in [0, 1]; float32 has to lie there already."""
    if x.dtype == torch.uint8:
        return x.float() / 255
    if x.min() < 0 or x.max() > 1:
        raise UserError(f"{role}: values {x.min():g} … {x.max():g}; give images of 8 bits, or floats within 0 … 1")
    return x


def metres(x, max_depth):
    """Depth (1, H, W) float32 in metres -> (3, H, W) in [0, 1]: of `max_depth`, or of the image's own if that is 0."""
    if x.dtype == torch.uint8 or len(x) != 1:
        raise UserError(f"depth: {x.dtype} with {len(x)} channels; give metres: .npy, or PNG of 16 bits in mm")
    x = x.clamp(min=MIN_DEPTH)
    x = x.clamp(max=max_depth) / max_depth if max_depth else x / x.max()
    return x.expand(3, -1, -1)


def crops(mel, length):
    """mel (frames, mels) -> three of (length, mels): of its front, middle and back; a shorter one is repeated.

    The possible first frames are split into three equal ranges, as in the official code, which draws one in each; taken
    here is the middle of each.
    """
    if len(mel) <= length:
        mel = mel.repeat(length // len(mel) + 1, 1)[:length]
        return [mel] * 3
    ranges = np.array_split(np.arange(len(mel) - length + 1), 3)
    starts = [int(r[(len(r) - 1) // 2]) if len(r) else 0 for r in ranges]
    return [mel[s : s + length] for s in starts]


# --------------------------------------------------------------------------------------------------------------- towers


def new_time_layers(config, frames):
    """CLIP's layers, each after attention over time; config: the vision tower's CLIPVisionConfig, frames: T."""
    from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer

    class TimeLayer(CLIPEncoderLayer):
        """(B·T, tokens, d) -> the same: each token attends to its T frames, then as in CLIP."""

        def __init__(self):
            super().__init__(config)
            self.temporal_embedding = nn.Parameter(torch.zeros(1, frames, config.hidden_size))
            self.temporal_attn = CLIPAttention(config)
            self.temporal_layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        def forward(self, x, attention_mask, **kwargs):
            bt, n, d = x.shape
            t = self.temporal_embedding.shape[1]
            x = x.view(-1, t, n, d).transpose(1, 2).reshape(-1, t, d)  # (B·tokens, T, d)
            if t > 1:
                x = x + self.temporal_embedding
            x = x + self.temporal_attn(self.temporal_layer_norm1(x))[0]
            x = x.view(-1, n, t, d).transpose(1, 2).reshape(bt, n, d)
            return super().forward(x, attention_mask, **kwargs)

    return nn.ModuleList([TimeLayer() for _ in range(config.num_hidden_layers)])


def new_vision(c, dim):
    """The vision tower of one role from its part of config.json, with the keys of the published weights."""
    from transformers import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    class Vision(nn.Module):
        """(B, 3, H, W) or (B, T, 3, H, W) -> (B, dim): the class tokens' mean over the T frames, projected."""

        def __init__(self):
            super().__init__()
            self.dim = dim
            self.vision_model = CLIPVisionModel(CLIPVisionConfig(**{k: c[k] for k in VISION}))
            config, embeddings = self.vision_model.config, self.vision_model.embeddings
            grid = (
                (c["num_mel_bins"], c["target_length"])
                if c["num_mel_bins"] and c["target_length"]
                else (c["image_size"], c["image_size"])
            )
            positions = 1 + (grid[0] // c["patch_size"]) * (grid[1] // c["patch_size"])
            embeddings.position_embedding = nn.Embedding(positions, config.hidden_size)
            if c["add_time_attn"]:
                self.vision_model.encoder.layers = new_time_layers(config, c["num_frames"])
            if c["clip_type"] == "vl_new":  # V1.5: a class token per frame, and a kernel of one frame's depth
                kernel = (1, c["patch_size"], c["patch_size"])
                embeddings.patch_embedding = nn.Conv3d(
                    config.num_channels, config.hidden_size, kernel, kernel, bias=False
                )
                embeddings.class_embedding = nn.Parameter(torch.zeros(c["num_frames"], config.hidden_size))
            self.visual_projection = nn.Linear(config.hidden_size, dim, bias=False)

        def forward(self, x):
            t = x.shape[1] if x.ndim == 5 else 1
            m, x = self.vision_model, x.flatten(0, 1) if x.ndim == 5 else x  # (B·T, 3, H, W)
            kernel, cls = m.embeddings.patch_embedding.weight, m.embeddings.class_embedding
            kernel = kernel.squeeze(2) if kernel.ndim == 5 else kernel
            x = F.conv2d(x, kernel, stride=kernel.shape[-2:]).flatten(2).transpose(1, 2)  # (B·T, patches, d)
            cls = cls.repeat(len(x) // t, 1)[:, None] if cls.ndim == 2 else cls.expand(len(x), 1, -1)
            x = torch.cat([cls, x], 1) + m.embeddings.position_embedding.weight
            x = m.encoder(inputs_embeds=m.pre_layrnorm(x)).last_hidden_state[:, 0]
            return self.visual_projection(m.post_layernorm(x).view(-1, t, x.shape[-1]).mean(1))

    if c["clip_type"] == "vl_new" and c["tube_size"] != 1:
        raise UserError(
            f"config.json: tube_size {c['tube_size']}; only 1, that of the published weights, is known here"
        )
    return Vision()


def new_text(c, dim):
    """The text tower from its part of config.json, with the keys of the published weights."""
    from transformers import CLIPTextConfig
    from transformers.models.clip.modeling_clip import CLIPTextModel

    class Text(nn.Module):
        """Tokens (B, L) int64 -> (B, dim): the end token's state, projected. The end token has the highest number."""

        def __init__(self):
            super().__init__()
            self.dim = dim
            self.text_model = CLIPTextModel(
                CLIPTextConfig(**{k: c[k] for k in TEXT}, bos_token_id=None, pad_token_id=None, eos_token_id=2)
            )  # 2: by argmax
            self.text_projection = nn.Linear(c["hidden_size"], dim, bias=False)

        def forward(self, tokens):
            # no mask but the causal one: what is behind the first end token has no say in it
            return self.text_projection(self.text_model(input_ids=tokens).pooler_output)

    return Text()


# -------------------------------------------------------------------------------------------------------------- loading


def find(role, place):
    """(path of the folder of a role's tower, its name on the hub): in `place`, or in the usual caches."""
    names = FOLDERS[role]
    where = (
        f"https://huggingface.co/LanguageBind/{names[0]} (hf download LanguageBind/{names[0]}), about "
        f"{'2.1' if role == 'video' else '1.7'} GB; LanguageBind's code is MIT, its weights' licence is on that "
        f"page"
    )
    path = files.find(
        f"LanguageBind's {role} tower",
        [p + n for n in names for p in ("", HUB)],
        place,
        defaults=["cache_dir", preprocess.huggingface_cache()],
        where=where,
    )
    name = path.name.removeprefix(HUB)
    if path.name.startswith(HUB):
        configs = sorted(path.glob("snapshots/*/config.json"), key=lambda p: p.stat().st_mtime)
        path = configs[-1].parent if configs else path
    if not (path / "config.json").is_file():
        raise UserError(f"{path}: holds no config.json; give the folder that holds {names[0]}/, which is from {where}")
    return path, name


def find_all(roles, place):
    """{role: (folder, name)} of the towers of `roles`."""
    towers = {r: find(r, place) for r in FOLDERS if r in roles}
    if "text" in roles:
        towers["text"] = next(iter(towers.values()), None) or find_text(place)
    return towers


def weight_files(roles, weights=None):
    """{name: path} of what `load` reads; its content is not looked at."""
    towers = find_all(roles, weights)
    read = {f"{name}/{path.name}": path for folder, name in towers.values() for path in tower_files(folder)}
    return read | (preprocess.vocabulary_files(vocabulary_places(towers, weights)) if "text" in roles else {})


def vocabulary_places(towers, weights):
    """Where CLIP's vocabulary is looked for first: in the text's folder, the others, the folder of the weights."""
    return [towers["text"][0], *(folder for folder, _ in towers.values()), *([weights] if weights else [])]


def tower_files(folder):
    """The files of a tower's weights, and its config.json."""
    paths = sorted(folder.glob("model*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    if not paths:
        raise UserError(
            f"{folder}: holds neither model.safetensors nor pytorch_model.bin; get one beside its config.json"
        )
    return [*paths, folder / "config.json"]


def find_text(place):
    """The first folder of any tower that is there; where none is, the UserError about the first one, the image's."""
    errors = []
    for role in FOLDERS:
        try:
            return find(role, place)
        except UserError as e:
            errors.append(e)
    raise errors[0]


def read_config(folder):
    """(vision part, text part, joint dimension) of config.json, each value that the code uses filled in."""
    path = folder / "config.json"
    try:
        c = json.loads(path.read_text())
        vision, text = c.get("vision_config") or {}, c.get("text_config") or {}
        vision = {**VISION, **EXTRA, **{k: v for k, v in vision.items() if k in {**VISION, **EXTRA}}}
        text = {**TEXT, **{k: v for k, v in text.items() if k in TEXT}}
    except (OSError, ValueError, AttributeError) as e:
        raise UserError(f"{path}: cannot be read ({e}); get it again") from None
    size = vision["image_size"]
    if isinstance(size, list):  # as the official models leave it: both sides, or those of the audio tower's input
        if size == [vision["num_mel_bins"], vision["target_length"]]:
            size = [VISION["image_size"]]  # its grid follows from these two
        if len(set(map(str, size))) != 1 or not isinstance(size[0], int):
            raise UserError(f"{path}: image_size {size}; only square images are known here")
        vision["image_size"] = size[0]
    return vision, text, c.get("projection_dim", 512)


def load_tower(role, folder):
    """(tower with its weights, [files read]): every key of the folder's weights is used or known, else UserError."""
    vision, text, dim = read_config(folder)
    *paths, _ = tower_files(folder)
    state = merge_lora({k: v for path in paths for k, v in files.read(path).items()}, vision["lora_alpha"], paths[0])
    with torch.device("meta"):
        towers = {"vision": new_vision(vision, dim), "text": new_text(text, dim)}
    tower = towers["text" if role == "text" else "vision"]
    keys = {k for t in towers.values() for k in t.state_dict()} | {"logit_scale"}
    extra = [k for k in state if k not in keys and not k.endswith(".position_ids")]
    missing = [k for k in tower.state_dict() if k not in state]
    if extra or missing:
        what = [f"{how}: {files.key_list(part)}" for how, part in (("unknown", extra), ("missing", missing)) if part]
        raise UserError(
            f"{paths[0]}: its keys are not those of the {role} tower that config.json describes "
            f"({'; '.join(what)}); get both files again"
        )
    for k, v in tower.state_dict().items():
        if v.shape != state[k].shape:
            raise UserError(
                f"{paths[0]}: {k} is {tuple(state[k].shape)}, by config.json {tuple(v.shape)}; get both files again"
            )
    tower.load_state_dict({k: state[k] for k in tower.state_dict()}, assign=True)
    for m in tower.modules():  # not in the weights: made on no device, above
        if isinstance(getattr(m, "position_ids", None), torch.Tensor):
            m.position_ids = torch.arange(m.position_embedding.num_embeddings)[None]
    return tower, [*paths, folder / "config.json"]


def merge_lora(state, alpha, path=""):
    """Weights with low-rank updates (peft's keys of 2023 and of today) -> plain keys: W + alpha / r · B A.

    The sum is made in float32. path: their file, for the UserError about an update that is not whole.
    """
    plain: dict[str, Any] = {}
    lora: dict[str, dict[str, Any]] = {}
    for key, value in state.items():
        key = key.replace(".base_model.model.", ".").replace(".base_layer.", ".")
        match = re.fullmatch(r"(.+)\.lora_([AB])\.default\.weight", key)
        if match:
            lora.setdefault(match[1], {})[match[2]] = value
        else:
            plain[key] = value
    for name, parts in lora.items():
        if set(parts) != {"A", "B"} or f"{name}.weight" not in plain:
            raise UserError(f"{path}: {name} has only a part of its low-rank update or of its weight; get it again")
        a, b, w = parts["A"], parts["B"], plain[f"{name}.weight"]
        plain[f"{name}.weight"] = (w.float() + alpha / len(a) * (b.float() @ a.float())).to(w.dtype)
    return plain
