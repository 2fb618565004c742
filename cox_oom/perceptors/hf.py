"""Any model of transformers that gives one vector per image, text, recording or clip (CLIP, SigLIP, CLAP, X-CLIP,
PE-AV, EmbeddingGemma 2, …), or states to make one of (ViT, DINOv2, BERT, wav2vec 2.0, Whisper, AST, VideoMAE, …:
encoders.py), with the processors that come with it.

`--perceptor hf:MODEL`: MODEL is a folder that save_pretrained wrote, or a name that lies in the hub's cache. Nothing is
downloaded and no code of the hub is run. Images go through the processors that work on Pillow, so that torchvision has
no say in the numbers; where a processor would cut an audio at random, its middle is taken.
"""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.files import UserError, optional
from cox_oom.perceptors import encoders, preprocess
from cox_oom.perceptors import weights as files

MODALITIES = {
    "image": "colour or grey image of 8 bits",
    "text": "a sentence",
    "audio": "16 kHz mono",
    "video": "clip of frames",
}
PREPROCESSING = "hf-1"
OPTIONS = {"pooling": f"how an encoder's states become one vector: {', '.join(encoders.POOLINGS)}"}

# What a model calls its features; the first that it has.
METHODS = {
    "image": ("get_image_features",),
    "text": ("get_text_features", "get_text_audio_video_embeds", "get_text_audio_embeds"),
    "audio": ("get_audio_features", "get_audio_embeds"),
    "video": ("get_video_features", "get_video_embeds"),
}
# get_…_features are tokens here; the vector is the mean of the whole model's last states. How each kind of token is put
# into a text, by names of the tokenizer's tokens.
AVERAGED = {
    "embedding_gemma2": {
        "text": (),
        "image": ("boi_token", "image_token", "eoi_token"),
        "audio": ("boa_token", "audio_token", "eoa_token"),
    }
}
PADDED = ("siglip", "siglip2")  # trained on texts padded to one length at their end, and the padding had its say
# Of every from_pretrained. Without trust_remote_code transformers asks, and runs the model's own code after a "y".
LOCAL = {"local_files_only": True, "trust_remote_code": False}
LONGEST = 512  # tokens; what is longer is cut, sooner where the model takes fewer
SECONDS = 10  # of audio, where the model's own processor names no length: its middle
SHORTEST = 1600  # samples: what is shorter is filled up with silence, where a model would take no padding
FRAMES = 8  # of a clip, where the model's config.json names no number
# What tells the vector's size: each role's smallest item.
TRIAL = {
    "image": torch.zeros(3, 64, 64, dtype=torch.uint8),
    "text": "a",
    "audio": torch.zeros(16000),
    "video": torch.zeros(1, 3, 64, 64, dtype=torch.uint8),
}


def load(roles, *, weights=None, device="cpu", dtype=torch.float32, pooling=None):
    """The model in eval mode with its processors for `roles`. weights: what stands behind `hf:`, a folder or a name.
    pooling: see OPTIONS.

    Raises UserError where the model is not there, lacks weights or a role, or needs what is not installed.
    """
    folder, config, model_class = describe(weights)
    try:
        model, info = model_class.from_pretrained(folder, **LOCAL, dtype=dtype, output_loading_info=True)
    except Exception as e:  # OSError, ValueError, KeyError, ImportError, ...
        raise UserError(f"hf:{weights}: cannot be loaded ({one_line(e)})") from None
    has, how = methods(config, type(model)), None
    missing = {*info["missing_keys"], *(k[0] if isinstance(k, tuple) else k for k in info["mismatched_keys"])}
    if not has and (role := encoders.role_of(type(model), config)):
        has, how = {role: "forward"}, encoders.pooling_of(folder, role, pooling)
        missing, no_pooler = encoders.missing(missing)
        if no_pooler and how == ("pooler",):
            raise UserError(f"hf:{weights}: its weights lack the pooler; leave --perceptor-option pooling=pooler out")
        if no_pooler:
            model.pooler = None  # its weights would be random
    elif pooling:
        raise UserError(f"hf:{weights} gives one vector by itself; leave --perceptor-option pooling={pooling} out")
    if missing:
        raise UserError(
            f"hf:{weights}: its weights lack {files.key_list(missing)}, which would be left at random; get it again"
        )
    other = [r for r in roles if r not in has]
    if other:
        raise UserError(
            f"hf:{weights} ({type(model).__name__}) has no {other[0]} features; "
            f"{'it has ' + ', '.join(has) if has else 'none of the kinds that are known here'}"
        )
    if how and getattr(config, "is_encoder_decoder", False):
        model = model.get_encoder()
    if has.get("text", "").endswith("_embeds"):  # PE-AV takes them, without asking its text model for them
        model.text_model.config.output_hidden_states = True
    preparer = Preparer(str(folder), config, roles, weights, encoder=bool(how))
    hashes = {name: files.sha256(path) for name, path in weight_files(roles, weights).items()}
    return Model(model.to(device).eval().requires_grad_(False), has, how, preparer, hashes, weights, device, dtype)


def describe(weights):
    """(folder, configuration, class) of a model: the class that the configuration names, and AutoModel's where this one
    is a head on an encoder."""
    transformers = optional("transformers", "--perceptor hf:MODEL")
    folder = find(weights)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(folder, **LOCAL)
        name = (config.architectures or [""])[0]
        named = getattr(transformers, name, None)
        if named and (methods(config, named) or (name.endswith("Model") and "LMHead" not in name)):
            return folder, config, named
        base = transformers.AutoModel._model_mapping.get(type(config), named or transformers.AutoModel)
        return folder, config, base[0] if isinstance(base, tuple) else base
    except Exception as e:  # OSError, ValueError, KeyError, ImportError, ...
        raise UserError(f"hf:{weights}: cannot be loaded ({one_line(e)})") from None


def methods(config, model_class):
    """{role: what a model of this class calls its features}."""
    if config.model_type in AVERAGED:
        return dict.fromkeys(AVERAGED[config.model_type], "forward")
    return {r: name for r in METHODS if (name := next((n for n in METHODS[r] if hasattr(model_class, n)), None))}


def modalities(weights):
    """The roles that a model can embed, told without its weights."""
    _, config, model_class = describe(weights)
    return tuple(methods(config, model_class)) or tuple(filter(None, [encoders.role_of(model_class, config)]))


class Model:
    """What `load` returns; cox_oom/perceptors/languagebind.py and imagebind.py give the same."""

    def __init__(self, model, methods, pooling, preparer, hashes, name, device, dtype):
        self.model, self.methods, self.weights, self.device, self.dtype = model, methods, hashes, device, dtype
        self.pooling = pooling  # None: the model gives one vector by itself
        self.preparer, self.prepare, self.sample = lambda: preparer, preparer.prepare, preparer.sample
        self.kind = model.config.model_type
        self.dims = {role: self.trial(role, name) for role in preparer.tools}

    def trial(self, role, name):
        """The size of a role's vectors, by its smallest item; says why where there are none."""
        try:
            item: Any = TRIAL[role]
            if role == "video":
                item = item.expand(len(self.sample(role)(100, 25.0)), -1, -1, -1)
            batch = {k: v[None] for k, v in self.prepare(role, item).items()}
            z = self.encode(role, batch)
        except UserError:
            raise
        except Exception as e:  # whatever a model says to inputs that its processor made
            raise UserError(f"hf:{name} cannot embed {role}: {one_line(e)}") from None
        return z.shape[1]

    @torch.inference_mode()
    def encode(self, role, batch):
        """batch {name: (B, …)}, what `prepare` gave, stacked -> (B, d) float32 unit rows."""
        mask = batch.get("attention_mask")
        if mask is not None:  # padding up to the longest of the batch is enough
            keep = mask.any(0)
            batch = {k: v[:, keep] if v.shape[:2] == mask.shape else v for k, v in batch.items()}
        batch = {k: v.to(self.device, self.dtype if v.is_floating_point() else None) for k, v in batch.items()}
        out = getattr(self.model, self.methods[role])(**batch)
        if self.pooling:
            return F.normalize(encoders.pooled(out, batch.get("attention_mask"), self.pooling).float(), dim=-1)
        if self.kind in AVERAGED:
            weight = batch["attention_mask"][..., None].to(out.last_hidden_state.dtype)
            out = (out.last_hidden_state * weight).sum(1) / weight.sum(1)
        out = out if isinstance(out, torch.Tensor) else getattr(out, "pooler_output", None)
        n = len(next(iter(batch.values())))
        if not isinstance(out, torch.Tensor) or out.ndim != 2 or len(out) != n:
            raise UserError(
                f"{type(self.model).__name__}.{self.methods[role]} gives no single vector per item: this "
                f"model feeds a language model with tokens; choose one that was trained to compare"
            )
        return F.normalize(out.float(), dim=-1)


class Preparer:
    """Raw items to model inputs with the model's own processors, without the model: `prepare` and `sample`."""

    def __init__(self, folder, config, roles, name, encoder=False):
        self.kind, self.encoder = config.model_type, encoder
        parts = [config, *(getattr(config, p, None) for p in ("text_config", "vision_config", "video_config"))]
        longest = getattr(parts[1] or config, "max_position_embeddings", None) or LONGEST
        self.frames = next((p.num_frames for p in parts if isinstance(getattr(p, "num_frames", None), int)), FRAMES)
        self.tools = {}
        for role in roles:
            try:
                self.tools[role] = self.tool(role, folder)
            except UserError:
                raise
            except Exception as e:  # OSError, ValueError, ImportError, RuntimeError, ...
                raise UserError(f"hf:{name}: its processor for {role} cannot be loaded ({one_line(e)})") from None
        own = encoders.longest(folder) if encoder and "text" in roles else None
        self.longest = min(
            own or longest, longest, LONGEST, getattr(self.tools.get("text"), "model_max_length", LONGEST)
        )

    def tool(self, role, folder):
        import transformers

        if self.kind in AVERAGED:
            self.words = transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        if role == "text":
            return transformers.AutoTokenizer.from_pretrained(folder, **LOCAL)
        if role == "audio":
            return transformers.AutoFeatureExtractor.from_pretrained(folder, **LOCAL)
        if role == "video" and (Path(folder) / "video_preprocessor_config.json").exists():
            return transformers.AutoVideoProcessor.from_pretrained(folder, **LOCAL)
        said = encoders.read(Path(folder) / "preprocessor_config.json") or {}
        if str(said.get("image_processor_type")).startswith("DINOv3ViTImageProcessor"):
            return said  # transformers has it on torchvision alone
        optional("PIL", "preparing images")
        return transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **LOCAL)

    def sample(self, role):
        """Which frames of a clip: evenly spaced, the first and the last among them."""
        return functools.partial(preprocess.spread, count=self.frames) if role == "video" else None

    def prepare(self, role, item):
        """One raw item (data.Dataset has their forms) -> {name: tensor}, all of one size for all items of a role."""
        tool = self.tools[role]
        if role == "text":
            side = {"padding_side": "right"} if self.kind in PADDED else {}
            x = tool(item, padding="max_length", truncation=True, max_length=self.longest, return_tensors="pt", **side)
            if self.kind in PADDED:
                x.pop("attention_mask", None)
            return {k: v[0] for k, v in x.items()}
        item = torch.as_tensor(item)
        if role == "audio":
            return self.audio(tool, item)
        if isinstance(tool, dict):
            return {"pixel_values": encoders.dinov3_pixels(tool, item)}
        frames = [pillow(f, role) for f in (item if role == "video" else item[None])]
        if role == "image":
            x = tool(images=frames, return_tensors="pt")
            if self.kind in AVERAGED:
                x.update(self.placed("image", int(x.pop("num_soft_tokens_per_image")[0])))
            return {k: v[0] for k, v in x.items()}
        if hasattr(tool, "sample_frames"):  # a video processor
            x = tool(videos=[item], do_sample_frames=False, return_tensors="pt")
            return {k: v[0] for k, v in x.items()}
        x = tool(frames, return_tensors="pt")["pixel_values"]
        return {"pixel_values": x.reshape(-1, *x.shape[-3:])}  # (frames, 3, H, W)

    def audio(self, tool, wave):
        wave = preprocess.resample(wave, preprocess.SAMPLE_RATE, tool.sampling_rate)
        if self.encoder:
            return self.heard(tool, wave)
        own = getattr(tool, "nb_max_samples", None)  # CLAP's
        length = own or SECONDS * tool.sampling_rate
        start = max(0, len(wave) - length) // 2
        options = {} if own else {"padding": "max_length", "max_length": length}
        x = tool(
            [wave[start : start + length].numpy()], sampling_rate=tool.sampling_rate, return_tensors="pt", **options
        )
        if "is_longer" in x:  # nothing is longer now; CLAP's processor says of one at random that it is
            x["is_longer"] = torch.zeros_like(x["is_longer"])
        if self.kind in AVERAGED:
            valid = x["input_features_mask"][0]
            for _ in range(2):  # the model halves the time twice
                valid = valid[::2]
            x.update(self.placed("audio", int(valid.sum())))
        return {k: v[0] for k, v in x.items()}

    def heard(self, tool, wave):
        """The same for an encoder: waves as long as they are, since some models take padding for sound; spectra as
        long as the processor makes them, with a mask of the recording's own states where they are in its frames."""
        length = getattr(tool, "n_samples", None) or SECONDS * tool.sampling_rate  # Whisper's
        start = max(0, len(wave) - length) // 2
        wave, rate = wave[start : start + length].numpy(), tool.sampling_rate
        if tool.model_input_names[0] == "input_values" and tool.feature_size == 1:
            wave = np.pad(wave, (0, max(0, SHORTEST - len(wave))))
            return {"input_values": tool([wave], sampling_rate=rate, return_tensors="pt").input_values[0]}
        x = tool([wave], sampling_rate=rate, return_tensors="pt", return_attention_mask=True)
        if self.kind == "whisper":
            x["attention_mask"] = x["attention_mask"][:, ::2]  # a state for two frames
        return {k: v[0] for k, v in x.items()}

    def placed(self, role, n):
        """The text in which n tokens of an image or a recording stand: {name: (1, LONGEST)}."""
        begin, token, end = (getattr(self.words, name) for name in AVERAGED[self.kind][role])
        return self.words([begin + token * n + end], padding="max_length", max_length=LONGEST, return_tensors="pt")


def pillow(x, role):
    """uint8 (1|3, H, W) -> Pillow's RGB image."""
    optional("PIL", "preparing images")
    from PIL import Image

    if x.dtype != torch.uint8:
        raise UserError(f"{role}: {x.dtype} values; this model's processor takes images of 8 bits")
    return Image.fromarray(preprocess.rgb(x).permute(1, 2, 0).contiguous().numpy())


def find(name):
    """The folder of a model: itself, or the newest snapshot of that name in the hub's cache."""
    if not name:
        raise UserError(
            "--perceptor hf: which model? hf:MODEL, a folder or a name on huggingface.co such as "
            "hf:openai/clip-vit-base-patch32"
        )
    folder = Path(name).expanduser()
    places = [folder] if folder.is_dir() else files.huggingface_snapshots(str(name))
    for place in places:
        if (place / "config.json").is_file():
            return place
    if folder.is_dir():
        raise UserError(f"hf:{name}: this folder has no config.json; give one that save_pretrained wrote")
    raise UserError(
        f"hf:{name}: neither a folder nor in {preprocess.huggingface_cache()}; get it with "
        f"`hf download {name}` (https://huggingface.co/{name} has its size and licence)"
    )


def weight_files(roles, weights):
    """{file name: path} of the weights, configurations and vocabularies of a model."""
    folder, kinds = find(weights), ("*.safetensors", "*.bin", "*.json", "*.txt", "*.model", "*_Pooling/config.json")
    return {
        str(p.relative_to(folder)): p for p in sorted(p for kind in kinds for p in folder.glob(kind) if p.is_file())
    }


def one_line(error):
    return " ".join(str(error).split())[:300] or type(error).__name__
