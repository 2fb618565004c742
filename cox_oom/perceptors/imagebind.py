"""ImageBind (Girdhar et al. 2023): one space for images, video, text, audio, depth, thermal images and IMU.

The six encoders in plain torch, after the paper's appendix and the layout of the published checkpoint,
imagebind_huge.pth. Sizes are read from the tensors' shapes. There is no dropout and no stochastic depth here, so there
is nothing to switch off. docs/perceptors.md: where the weights are, their licence, and every choice of preprocessing.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from cox_oom.files import UserError
from cox_oom.perceptors import preprocess
from cox_oom.perceptors import weights as files

# role -> encoder
MODALITIES = {
    "image": "vision",
    "video": "vision",
    "text": "text",
    "audio": "audio",
    "depth": "depth",
    "thermal": "thermal",
    "imu": "imu",
}
PREPROCESSING = "imagebind-2"  # changes with any number that `prepare` gives
BIND_TO = "image"  # what an encoder trained beside it is bound to, as in its own training
NAMES = ("imagebind_huge.pth", "model.safetensors", "pytorch_model.bin")
WHERE = (
    "https://dl.fbaipublicfiles.com/imagebind/imagebind_huge.pth (4.8 GB, licence CC BY-NC-SA 4.0: "
    "non-commercial, share alike)"
)

HEADS = {"vision": 16, "text": 16, "audio": 12, "depth": 8, "thermal": 12, "imu": 8}  # not to be read from shapes
# (width, blocks) as published. At that width so many blocks there must be; every other size is read from the tensors.
PUBLISHED = {
    "vision": (1280, 32),
    "text": (1024, 24),
    "audio": (768, 12),
    "depth": (384, 12),
    "thermal": (768, 12),
    "imu": (512, 6),
}
STEM = {
    "vision": "rgbt_stem.proj.1",
    "audio": "rgbt_stem.proj",
    "depth": "depth_stem.proj",
    "thermal": "rgbt_stem.proj",
    "imu": "imu_stem.proj",
}
SIZE = 224  # side of images, video frames, depth and thermal images
MELS, MEL_FRAMES, AUDIO_STRIDE = 128, 204, 10
CLIP_SECONDS, VIDEO_CLIPS, CLIP_FRAMES, AUDIO_CLIPS = 2, 5, 2, 3
AUDIO_MEAN, AUDIO_STD = -4.268, 9.138
IMU_CHANNELS, IMU_STEPS, IMU_PATCH = 6, 2000, 8
CONTEXT, WORDS = 77, 49408  # tokens of a text, CLIP's vocabulary
DEPTH_RANGE, DISPARITY_MAX, DISPARITY_MEAN, DISPARITY_STD = (0.01, 50), 75, 0.0418, 0.0295
# of --perceptor-option
OPTIONS = {
    "baseline": "m between the depth camera's two eyes: 0.075 for Kinect (1 and 2), 0.095 for RealSense, Xtion",
    "focal": "focal length of the depth camera in pixels; 518.857901 for NYU-D",
    "depth_scale": "what depth is multiplied by first; 8: as in the encoder's training data, 1: true disparity",
}


def load(roles, *, weights=None, device="cpu", dtype=torch.float32, baseline=0.075, focal=518.857901, depth_scale=8.0):
    """The perceptor for `roles` (of MODALITIES); only their encoders are read from the file.

    weights: the file or its folder; None: .checkpoints, torch.hub's cache, Hugging Face's cache. dtype: of weights and
    computation. baseline, focal, depth_scale: numbers, see OPTIONS and `disparity`.
    """
    camera = {"baseline": baseline, "focal": focal, "depth_scale": depth_scale}
    for name, value in camera.items():
        try:
            camera[name] = float(value)
        except ValueError:
            camera[name] = 0.0
        if not 0 < camera[name] < math.inf:
            raise UserError(f"imagebind's {name} is {value}; give a positive number ({OPTIONS[name]})")
    for role in roles:
        if role not in MODALITIES:
            raise UserError(f"imagebind has no encoder for {role}; it has {', '.join(MODALITIES)}")
    read = weight_files(roles, weights)
    path = next(iter(read.values()))
    vocabulary = preprocess.find_vocabulary(path.parent) if "text" in roles else None
    if vocabulary:
        preprocess.check_vocabulary(vocabulary, WORDS)
    encoders = encoders_of(path, files.read(path), {MODALITIES[role] for role in roles}, device, dtype)
    return Perceptor(
        {role: encoders[MODALITIES[role]] for role in roles},
        Preparer(vocabulary, **camera),
        {name: files.sha256(p) for name, p in read.items()},
    )


def weight_files(roles, weights=None):
    """{name: path} of what `load` reads, the weights first; its content is not looked at."""
    defaults = [".checkpoints", files.torch_hub(), *files.huggingface_snapshots("nielsr/imagebind-huge")]
    path = files.find("imagebind", NAMES, weights, defaults, WHERE)
    return {path.name: path, **(preprocess.vocabulary_files(path.parent) if "text" in roles else {})}


class Perceptor:
    """dims {role: d}; weights {file name: sha256}; prepare and sample: see Preparer; encode."""

    def __init__(self, encoders, preparer, weights):
        self.encoders, self._preparer, self.weights = encoders, preparer, weights
        self.dims = {role: e.dim for role, e in encoders.items()}
        self.prepare, self.sample = preparer.prepare, preparer.sample

    def preparer(self):
        """What worker processes need: prepare and sample, without the encoders."""
        return self._preparer

    @torch.inference_mode()
    def encode(self, role, batch):
        """batch (B, ...), what `prepare` gave, stacked -> (B, d) float32 unit rows on the encoder's device.

        Each clip of a video (15) or of a recording (3) gives a unit row; these are averaged and the mean is scaled to
        length 1. The model itself multiplies its unit rows by one positive number per encoder, which cancels here.
        """
        encoder = self.encoders[role]
        clips = batch.flatten(0, 1) if role in ("video", "audio") else batch
        z = torch.cat([F.normalize(encoder(part).float(), dim=-1) for part in clips.split(64)])  # bounds the memory
        return z if clips is batch else F.normalize(z.view(len(batch), -1, z.shape[1]).mean(1), dim=-1)


# ------------------------------------------------------------------------------------------------------- encoders


def parts(name):
    """The beginnings of an encoder's keys: of what makes tokens, of the blocks, of the head."""
    return [f"modality_{part}.{name}." for part in ("preprocessors", "trunks", "heads")]


def head_keys(name):
    """(layer norm, last linear map) of an encoder's head."""
    head = parts(name)[2]
    return (f"{head}proj.0", f"{head}proj.1") if name == "text" else (f"{head}0", f"{head}{3 if name == 'imu' else 2}")


class Encoder:
    """One encoder. w {key of the checkpoint: tensor}: its tensors, checked by `encoders_of`."""

    def __init__(self, name, w, device, dtype):
        self.name = name
        self.pre, self.trunk, _ = parts(name)
        self.head_norm, self.head = head_keys(name)
        self.w = {k: t.to(device, dtype) for k, t in w.items() if not k.endswith((".mask", ".log_logit_scale"))}
        self.blocks = count_blocks(name, w)
        self.pos = next(t for k, t in self.w.items() if k.endswith("pos_embed"))
        self.dim = len(self.w[f"{self.head}.weight"])

    def __call__(self, x):
        """A batch -> (B, dim), not normalised.

        vision          (B, 3, 224, 224), as two equal frames, or (B, 3, 2, 224, 224)
        text            (B, 77) int64; the end token has the largest number
        audio           (B, 1, 128, 204)
        depth, thermal  (B, 1, 224, 224)
        imu             (B, 6, 2000)
        """
        x = x.to(self.pos.device)
        y = self.tokens(x) + self.pos  # (B, T, D)
        if self.name == "vision":
            y = self.norm(y, f"{self.trunk}pre_transformer_layer.0")
        for i in range(self.blocks):
            y = self.block(y, f"{self.trunk}blocks.{i}.")
        y = y[torch.arange(len(x), device=x.device), x.argmax(1)] if self.name == "text" else y[:, 0]  # (B, D)
        return F.linear(self.norm(y, self.head_norm), self.w[f"{self.head}.weight"])

    def tokens(self, x):
        """(B, T, D), without positions; the class token comes first, texts have none."""
        if self.name == "text":
            return F.embedding(x, self.w[f"{self.pre}token_embedding.weight"])
        stem = f"{self.pre}{STEM[self.name]}"
        kernel = self.w[f"{stem}.weight"]
        x = x.to(kernel.dtype)
        if self.name == "imu":
            x = x.unfold(2, IMU_PATCH, IMU_PATCH).transpose(1, 2).flatten(2)  # (B, 250, 6 * 8)
            x = F.linear(x, kernel)
        else:
            if self.name == "vision" and x.ndim == 4:
                x = x[:, :, None].expand(-1, -1, kernel.shape[2], -1, -1)
            conv = F.conv3d if self.name == "vision" else F.conv2d
            x = conv(x, kernel, stride=AUDIO_STRIDE if self.name == "audio" else kernel.shape[2:])
            x = x.flatten(2).transpose(1, 2)
        if self.name != "vision":
            x = self.norm(x, f"{self.pre}{STEM[self.name].split('.')[0]}.norm_layer", 1e-5)
        return torch.cat([self.w[f"{self.pre}cls_token"].expand(len(x), -1, -1), x], 1)

    def block(self, x, at):
        """Attention, then an MLP, each behind a layer norm and added to x (B, T, D)."""
        w = self.w
        q, k, v = self.linear(self.norm(x, f"{at}norm_1"), f"{at}attn.in_proj_").chunk(3, -1)
        if f"{at}attn.bias_k" in w:  # one more key and value, learned, that all may look at
            k = torch.cat([k, w[f"{at}attn.bias_k"].expand(len(k), -1, -1)], 1)
            v = torch.cat([v, w[f"{at}attn.bias_v"].expand(len(v), -1, -1)], 1)
        q, k, v = (t.unflatten(2, (HEADS[self.name], -1)).transpose(1, 2) for t in (q, k, v))  # (B, heads, T, d)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.name == "text")
        x = x + self.linear(y.transpose(1, 2).flatten(2), f"{at}attn.out_proj.")
        y = F.gelu(self.linear(self.norm(x, f"{at}norm_2"), f"{at}mlp.fc1."))
        return x + self.linear(y, f"{at}mlp.fc2.")

    def linear(self, x, at):
        return F.linear(x, self.w[f"{at}weight"], self.w[f"{at}bias"])

    def norm(self, x, at, eps=1e-6):
        return F.layer_norm(x, x.shape[-1:], self.w[f"{at}.weight"], self.w[f"{at}.bias"], eps)


# ----------------------------------------------------------------------------------------------------- checkpoint


def encoders_of(path, tensors, needed, device, dtype):
    """{name: Encoder} of the names in `needed`, from a checkpoint's {key: tensor}.

    The keys of all encoders in it are checked, by name and shape, those of the others too: what is missing, unexpected
    or of another shape is a UserError that names it. An encoder that the file leaves out whole may be unneeded.
    """
    by_name = {name: {k: t for k, t in tensors.items() if k.split(".")[1:2] == [name]} for name in HEADS}
    strange = tensors.keys() - set().union(*by_name.values())
    if strange:
        raise UserError(
            f"{path}: {len(strange)} keys that are not imagebind's: {files.key_list(strange)}; give the "
            f"file as it was published"
        )
    for name, w in by_name.items():
        if w:
            check(path, name, w)
    absent = sorted(name for name in needed if not by_name[name])
    if absent:
        names = ", ".join(name for name in by_name if by_name[name]) or "none"
        raise UserError(
            f"{path} has no encoder for {', '.join(absent)} (it has {names}); give the whole file, or "
            f"leave such modalities out with --im"
        )
    return {name: Encoder(name, by_name[name], device, dtype) for name in sorted(needed)}


def count_blocks(name, keys):
    """1 + the highest number of a block among an encoder's keys; 0 where there is none."""
    at = f"{parts(name)[1]}blocks."
    numbers = (k[len(at) :].split(".")[0] for k in keys if k.startswith(at))
    return 1 + max((int(n) for n in numbers if n.isdecimal()), default=-1)


def check(path, name, w):
    """UserError where w {key: tensor} is not exactly one whole encoder."""
    mend = "get the file again"
    norm, last = head_keys(name)
    width, blocks = PUBLISHED[name]
    if f"{norm}.weight" not in w or w[f"{norm}.weight"].numel() != width:
        blocks = count_blocks(name, w)
    keys = layout(name, max(1, blocks)).keys()
    if missing := keys - w.keys():
        raise UserError(
            f"{path}: {len(missing)} keys of the {name} encoder are missing: {files.key_list(missing)}; {mend}"
        )
    if strange := w.keys() - keys:
        raise UserError(
            f"{path}: {len(strange)} keys do not belong to the {name} encoder: {files.key_list(strange)}; {mend}"
        )
    pre, trunk, _ = parts(name)
    out, width = len(w[f"{last}.weight"]), w[f"{norm}.weight"].numel()
    hidden = w[f"{trunk}blocks.0.mlp.fc1.bias"].numel()
    kernel = w[f"{pre}{STEM[name]}.weight"].shape[1:] if name in STEM else ()
    for key, shape in layout(name, blocks, width, hidden, out, kernel).items():
        if w[key].shape != shape:
            raise UserError(f"{path}: {key} has shape {tuple(w[key].shape)}, the {name} encoder needs {shape}; {mend}")
    if width % HEADS[name]:
        raise UserError(
            f"{path}: the {name} encoder is {width} wide, not a multiple of its {HEADS[name]} heads; {mend}"
        )
    if name == "text" and not torch.equal(w[f"{pre}mask"], torch.full((CONTEXT, CONTEXT), -math.inf).triu(1)):
        raise UserError(f"{path}: {pre}mask is not the causal mask; {mend}")


def layout(name, blocks, width=0, hidden=0, out=0, kernel=()):
    """{key: shape} of one encoder; sizes of 0 where the names alone are of interest.

    kernel: the stem's, without the output channels: vision (3, 2, p, p), depth and thermal (1, p, p), audio
    (1, 16, 16), imu (48,).
    """
    pre, trunk, _ = parts(name)
    norm, last = head_keys(name)
    shapes = {f"{norm}.weight": (width,), f"{norm}.bias": (width,), f"{last}.weight": (out, width)}
    if name != "vision":
        shapes[f"modality_postprocessors.{name}.1.log_logit_scale"] = ()
    if name == "text":
        shapes |= {
            f"{pre}token_embedding.weight": (WORDS, width),
            f"{pre}pos_embed": (1, CONTEXT, width),
            f"{pre}mask": (CONTEXT, CONTEXT),
        }
    else:
        stem = STEM[name]
        pos = "pos_embed" if name == "imu" else "pos_embedding_helper.pos_embed"
        shapes |= {
            f"{pre}cls_token": (1, 1, width),
            f"{pre}{pos}": (1, 1 + patches(name, kernel), width),
            f"{pre}{stem}.weight": (width, *kernel),
        }
        after = f"{trunk}pre_transformer_layer.0" if name == "vision" else f"{pre}{stem.split('.')[0]}.norm_layer"
        shapes |= {f"{after}.weight": (width,), f"{after}.bias": (width,)}
    for i in range(blocks):
        at = f"{trunk}blocks.{i}."
        shapes |= {
            f"{at}attn.in_proj_weight": (3 * width, width),
            f"{at}attn.in_proj_bias": (3 * width,),
            f"{at}attn.out_proj.weight": (width, width),
            f"{at}attn.out_proj.bias": (width,),
            f"{at}mlp.fc1.weight": (hidden, width),
            f"{at}mlp.fc1.bias": (hidden,),
            f"{at}mlp.fc2.weight": (width, hidden),
            f"{at}mlp.fc2.bias": (width,),
        }
        shapes |= {f"{at}norm_{n}.{p}": (width,) for n in (1, 2) for p in ("weight", "bias")}
        if name not in ("vision", "text"):
            shapes |= {f"{at}attn.bias_{p}": (1, 1, width) for p in "kv"}
    return shapes


def patches(name, kernel):
    """How many patches a stem's kernel makes of one input."""
    if name == "imu":
        return IMU_STEPS // IMU_PATCH
    side = (MELS, MEL_FRAMES) if name == "audio" else (SIZE, SIZE)
    return math.prod((s - k) // (AUDIO_STRIDE if name == "audio" else k) + 1 for s, k in zip(side, kernel[-2:]))


# -------------------------------------------------------------------------------------------------- preprocessing


@dataclass(frozen=True)
class Preparer:
    """Raw items to model inputs; picklable, without the encoders."""

    vocabulary: str | None = None  # of CLIP's byte pairs, for texts
    baseline: float = 0.075  # of the depth camera, as in OPTIONS
    focal: float = 518.857901
    depth_scale: float = 8.0

    def sample(self, role):
        return {"video": video_frames, "audio": preprocess.sinc_resampled}.get(role)

    def prepare(self, role, item):
        """One raw item (data.Dataset) -> what Encoder takes, without B; several clips are the first axis.

        image (3, 224, 224), video (15, 3, 2, 224, 224), text (77,) int64, audio (3, 1, 128, 204), depth and thermal
        (1, 224, 224), imu (6, 2000); float32 but for texts.
        """
        if role == "text":
            return preprocess.clip_tokens([item], CONTEXT, vocabulary=self.vocabulary, words=WORDS)[0]
        x = torch.as_tensor(item)
        if role in ("image", "thermal", "video") and x.dtype != torch.uint8:
            raise UserError(
                f"imagebind takes 8-bit images for {role}, not {str(x.dtype)[6:]}; convert the files to 8 bits"
            )
        if role == "image":
            return preprocess.normalise(
                preprocess.resize_crop(preprocess.rgb(x), SIZE), preprocess.CLIP_MEAN, preprocess.CLIP_STD
            )
        if role == "thermal":
            return preprocess.resize_crop(preprocess.grey(x), SIZE).float() / 255
        if role == "video":
            return video_clips(x)
        if role == "audio":
            return audio_clips(x)
        if role == "depth":
            return disparity(x, self.baseline * self.focal, self.depth_scale)
        return imu(x)


def video_frames(n, fps):
    """Frames of a video of n at `fps`: the first and the last of each of five clips of two seconds, evenly spread."""
    duration = n / fps
    picks = []
    for start, end in preprocess.even_clips(duration, CLIP_SECONDS, VIDEO_CLIPS):
        first = min(math.ceil(fps * start), n - 1)
        picks += [first, max(first, min(math.ceil(fps * end), n) - 1)]
    return picks


def video_clips(x):
    """x (10, 3, H, W) uint8, frames as `video_frames` picks them -> (15, 3, 2, 224, 224): for each clip three crops
    along the longer side: its beginning, middle and end."""
    if len(x) != VIDEO_CLIPS * CLIP_FRAMES:
        raise UserError(f"imagebind takes {VIDEO_CLIPS * CLIP_FRAMES} frames of a video, this item has {len(x)}")
    h, w = x.shape[-2:]
    h, w = (SIZE, int(w / h * SIZE)) if h <= w else (int(h / w * SIZE), SIZE)
    x = F.interpolate(x.float() / 255, size=(h, w), mode="bilinear", align_corners=False)
    x = preprocess.normalise(x.transpose(0, 1), preprocess.CLIP_MEAN, preprocess.CLIP_STD)  # (3, 10, h, w)
    tops, lefts = ([0, math.ceil((s - SIZE) / 2), s - SIZE] for s in (h, w))
    x = torch.stack([x[..., top : top + SIZE, left : left + SIZE] for top, left in zip(tops, lefts)])  # (3, 3, 10, ...)
    x = x.unflatten(2, (VIDEO_CLIPS, CLIP_FRAMES)).permute(2, 0, 1, 3, 4, 5)  # (5, 3, 3, 2, ...)
    return x.flatten(0, 1).contiguous()


def audio_clips(wave):
    """wave (T,) float32, 16 kHz -> (3, 1, 128, 204): mel energies of three clips of two seconds, evenly spread.

    Clips of less than 204 frames are filled with zeros (198 frames are two seconds), then mean and std.
    """
    rate, clips = preprocess.SAMPLE_RATE, []
    for start, end in preprocess.even_clips(len(wave) / rate, CLIP_SECONDS, AUDIO_CLIPS):
        mel = preprocess.fbank(wave[int(start * rate) : int(end * rate)], MELS, subtract_mean=True)[:MEL_FRAMES].T
        clips.append(F.pad(mel, (0, MEL_FRAMES - mel.shape[1])))
    return (torch.stack(clips)[:, None] - AUDIO_MEAN) / AUDIO_STD


def disparity(metres, camera, scale):
    """metres (1, H, W) float32 -> (1, 224, 224): disparity in pixels, camera (m * pixels) / depth, as the recipe for
    the encoder's training data (SUN RGB-D) has it: depth to 0.01 .. 50, disparity to 75, all by 75, then mean and std.

    Depth is multiplied by `scale` first: that recipe takes SUN RGB-D's files for mm, while they hold 8 times that.
    Where there is no depth (0), the recipe has the nearest.
    """
    if metres.dtype == torch.uint8 or len(metres) != 1:
        raise UserError(
            f"imagebind takes depth as one channel in metres, not {tuple(metres.shape)} "
            f"{str(metres.dtype)[6:]}; give 16-bit images in mm, or .npy in metres"
        )
    x = (camera / (metres.float() * scale).clamp(*DEPTH_RANGE)).clamp(max=DISPARITY_MAX) / DISPARITY_MAX
    return (preprocess.resize_crop(x, SIZE) - DISPARITY_MEAN) / DISPARITY_STD


def imu(x):
    """x (6, T) -> (6, 2000): accelerometer and gyroscope over five seconds, brought to 2,000 steps linearly."""
    if len(x) != IMU_CHANNELS:
        raise UserError(f"imagebind takes {IMU_CHANNELS} IMU channels (accelerometer and gyroscope), not {len(x)}")
    if x.shape[1] == IMU_STEPS:
        return x.float()
    return F.interpolate(x[None].double(), size=IMU_STEPS, mode="linear", align_corners=True)[0].float()
