"""Files to raw items: the decoders of images, sound, video and arrays.

The loaders raise MediaError with the bare reason; the reader that knows file and row adds those (folder.py).
"""

import numpy as np

from cox_oom.data.decode import ARRAY, AUDIO, IMAGE, VIDEO, MediaError, reason
from cox_oom.data.sound import SAMPLE_RATE, SILENCE, has_audio, load_audio
from cox_oom.data.video import even_indices, load_video
from cox_oom.files import optional

__all__ = [
    "ARRAY",
    "AUDIO",
    "IMAGE",
    "SAMPLE_RATE",
    "SILENCE",
    "VIDEO",
    "MediaError",
    "even_indices",
    "has_audio",
    "load_audio",
    "load_video",
    "reason",
]


def load_image(path, modality=""):
    """uint8 (1|3, H, W); float32 for images of more than 8 bits, which for `depth` are mm and become metres.

    Transparency is dropped, palettes and other colour spaces become RGB, grey stays one channel; the
    rotation that EXIF asks for is applied.
    """
    optional("PIL", "reading images")
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image.load()
            image = ImageOps.exif_transpose(image)
            mode = image.mode
            if mode == "F":
                x = np.asarray(image, dtype=np.float32)
            elif mode.startswith("I"):  # I, I;16, I;16B: 16 or 32 bit grey
                x = np.asarray(image).astype(np.float32)
                if modality == "depth":
                    x /= 1000
            elif mode in ("1", "L", "LA", "La"):
                x = np.asarray(image.convert("L"))
            else:
                x = np.asarray(image.convert("RGB"))
    except Exception as e:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ...
        raise MediaError(f"cannot be read as an image ({reason(e)})") from None
    x = x[None] if x.ndim == 2 else x.transpose(2, 0, 1)
    if not np.isfinite(x).all():
        raise MediaError("contains NaN or Inf")
    return np.array(x, order="C")  # a copy: Pillow lends its memory read-only


def load_array(path):
    """float32 (channels, time) or (channels, height, width); a uint8 image stays uint8."""
    try:
        x = np.load(path, allow_pickle=False)
    except Exception as e:
        raise MediaError(f"cannot be read as an array ({reason(e)})") from None
    problem = array_problem(x.shape, x.dtype)
    if problem:
        raise MediaError(problem)
    if not (x.dtype == np.uint8 and x.ndim == 3):
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            raise MediaError("contains NaN or Inf")
    return np.ascontiguousarray(x)


def array_problem(shape, dtype):
    """What is wrong with an array of this shape and dtype as an item; None where it is fine."""
    if dtype.kind not in "fiub":
        return f"has dtype {dtype}, not numbers"
    if len(shape) not in (2, 3):
        return f"has shape {tuple(shape)}, not (channels, time) or (channels, height, width)"
    if 0 in shape:
        return f"has shape {tuple(shape)}, which is empty"
    return None
