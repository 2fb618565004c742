"""Files to raw items: the decoders of images, sound, video and arrays.

The loaders raise MediaError with the bare reason; the reader that knows file and row adds those (folder.py).
"""

from typing import Any

import numpy as np

from cox_oom.data import decode
from cox_oom.data.decode import ARRAY, AUDIO, IMAGE, VIDEO, MediaError, reason
from cox_oom.data.sound import SAMPLE_RATE, SILENCE, has_audio, load_audio
from cox_oom.data.video import even_indices, load_video
from cox_oom.files import MissingLibrary, optional

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

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # Pillow's names: it starts no other program for these
DEEP = 3  # times the memory that a pixel of 16 bits and several channels takes
NO_DATA = 0.99e18  # no sensor measures this: 3.4e38, 9.97e36, 1e20 and 1e18 mark what is missing


def load_file(path, kind, modality="", frames=8, sample=None, limit=1):
    """The raw item in a file, as Dataset.load gives it (cox_oom/data/__init__.py); MediaError where it is of no use."""
    if str(path).lower().endswith(ARRAY):
        return load_array(path)
    if kind == "image":
        return load_image(path, modality, limit)
    if kind == "audio":
        return load_audio(path, limit=limit, resample=sample)
    return load_video(path, frames, sample, limit=limit)


def load_image(path, modality="", limit=1):
    """uint8 (1|3, H, W); float32 for images of more than 8 bits, which for `depth` are mm and become metres.

    Transparency is dropped, palettes and other colour spaces become RGB, grey stays one channel; the
    rotation that EXIF asks for is applied. limit: what the limits are multiplied by.
    """
    optional("PIL", "reading images")
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit below takes its place
    try:
        with _opened(path) as image:
            _check_size(image, limit)
            x = _pixels(image, str(path), modality, limit)
    except (MediaError, MissingLibrary):
        raise
    except Exception as e:  # broken files raise OSError, SyntaxError, ValueError, struct.error, ...
        raise MediaError(f"cannot be read as an image ({reason(e)})") from None
    check_values(x)
    return np.ascontiguousarray(x)


def _opened(path):
    """A file as Pillow opens it. Its own decoder scrambles a TIFF that is neither compressed nor upright."""
    from PIL import Image, TiffImagePlugin

    image = Image.open(path, formats=FORMATS)
    if image.format == "TIFF" and image.tag_v2.get(259, 1) == 1 and image.tag_v2.get(274, 1) > 4:
        image.close()
        before, TiffImagePlugin.READ_LIBTIFF = TiffImagePlugin.READ_LIBTIFF, True
        try:
            return Image.open(path, formats=FORMATS)
        finally:
            TiffImagePlugin.READ_LIBTIFF = before
    return image


def _check_size(image, limit):
    """TooLarge where an image has more pixels than `limit` allows."""
    if image.width * image.height > decode.IMAGE_PIXELS * limit:
        most = f"{decode.IMAGE_PIXELS * limit / 1e6:.0f} megapixels"
        raise decode.TooLarge(f"has {image.width} x {image.height} pixels, more than {most}")


def _pixels(image, path, modality, limit):
    """uint8 or float32 (1|3, H, W) of an opened image."""
    from PIL import ImageOps

    metres = 1000 if modality == "depth" else 1
    if _deep_colours(image, path):  # Pillow would keep 8 bits of each value
        _check_size(image, limit / DEEP)
        return _exif_transposed(_deep_planes(path, metres), image.getexif().get(0x0112, 1))
    forms = set(image.tag_v2.get(339, (1,))) if image.format == "TIFF" else {1}  # 1: unsigned, 2: signed
    image.load()
    unsigned = image.mode == "I" and image.format == "TIFF" and forms == {1}
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode == "F":
        return _array(image, np.float32)
    if image.mode.startswith("I"):  # I, I;16, I;16B: 16 or 32 bit grey
        x = _array(image, np.float32, np.uint32 if unsigned and image.mode == "I" else None)
        return np.divide(x, metres, out=x)
    if forms == {2}:  # 8 bits, which Pillow takes for unsigned ones
        return _array(image, np.float32, np.int8)
    return _array(image, np.uint8, mode="L" if image.mode in ("1", "L", "LA", "La") else "RGB")


def _array(image, dtype, view=None, mode=None):
    """A loaded image as an array (C, H, W), strip by strip: a large one is in memory once besides. view: the type that
    its values are of, where Pillow takes them for another of that size; mode: the one to convert to."""
    out: Any = None
    rows = max(1, (1 << 20) // image.width)
    for top in range(0, image.height, rows):
        part = image.crop((0, top, image.width, min(image.height, top + rows)))
        x = np.asarray(part if mode in (None, part.mode) else part.convert(mode))
        x = (x.view(view) if view else x)[None] if x.ndim == 2 else x.transpose(2, 0, 1)
        out = np.empty((len(x), image.height, image.width), dtype) if out is None else out
        out[:, top : top + rows] = x
    return out


def _deep_colours(image, path):
    """Whether an image has more than 8 bits and more than one channel, alpha counted."""
    if image.format == "PNG":
        with open(path, "rb") as f:
            return deep_png(f.read(26)) and image.mode not in ("I", "I;16", "I;16B")
    bits = image.tag_v2.get(258, (1,)) if image.format == "TIFF" else (8,)
    deep = len(bits) > 1 and max(bits) > 8
    if deep and image.tag_v2.get(262, 2) not in (1, 2):
        raise MediaError("has more than 8 bits in colours that are not RGB", "save it as a 16-bit RGB image")
    return deep


def deep_png(head):
    """Whether a file that begins so is a PNG of 16 bits."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10"


def _deep_planes(path, divisor):
    """float32 (1|3, H, W) of a 16-bit image, without alpha, by `divisor`."""
    optional("av", "reading 16-bit colour images")
    with decode.open_container(path, "png_pipe,tiff_pipe") as container:
        frame = next(container.decode(video=0))
    layout = frame.format.name
    channels = {"gray16": 1, "ya16": 2, "rgb48": 3, "rgba64": 4}.get(layout[:-2])
    if channels is None:
        raise MediaError(
            f"has {layout} pixels, more than 8 bits and not RGB",
            "save it as a 16-bit PNG, or as .npy with channels first",
        )
    x = np.frombuffer(frame.planes[0], np.dtype(np.uint16).newbyteorder(">" if layout.endswith("be") else "<"))
    x = x.reshape(frame.height, -1)[:, : frame.width * channels].reshape(frame.height, frame.width, channels)
    out = x[:, :, : 1 if channels < 3 else 3].transpose(2, 0, 1).astype(np.float32, order="C")
    return np.divide(out, divisor, out=out)


def _exif_transposed(x, orientation):
    """x (C, H, W) as EXIF's number asks: 1 upright ... 8."""
    if orientation in (5, 6, 7, 8):
        x = x.transpose(0, 2, 1)
    x = x[:, :, ::-1] if orientation in (2, 3, 6, 7) else x
    return x[:, ::-1] if orientation in (3, 4, 7, 8) else x


def check_values(x):
    """MediaError where numbers of an item are NaN or infinite, or so large that they stand for 'no data'."""
    if x.dtype.kind != "f" or not x.size:
        return
    least, most = float(x.min()), float(x.max())
    if not np.isfinite(least) or not np.isfinite(most):
        raise MediaError("contains NaN or Inf")
    far = most if most > -least else least
    if abs(far) >= NO_DATA:
        raise MediaError(f"contains {far:.3g}, a mark of 'no data'", "fill these values, or empty the cell")


def mark(x, modality):
    """What a line says of an item's values that may stand for 'no data', and may be real; None where there are none."""
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim < 2:
        return None
    for value in (-9999, *((65.535, 65535) if modality == "depth" else ())):
        if n := int((x == np.float32(value)).sum()):
            return f"{n} of {x.size} values are {value:g}, which may mean 'no data'"
    return None


def load_array(path):
    """float32 (channels, time) or (channels, height, width); a uint8 image stays uint8."""
    try:
        x = np.load(path, allow_pickle=False)
    except Exception as e:
        why = "it is no .npy array of numbers" if "pickle" in str(e) else reason(e)  # numpy advises to allow pickles
        raise MediaError(f"cannot be read as an array ({why})") from None
    problem = array_problem(x.shape, x.dtype)
    if problem:
        raise MediaError(problem)
    if not (x.dtype == np.uint8 and x.ndim == 3):
        with np.errstate(over="ignore"):
            x = x.astype(np.float32)
        check_values(x)
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
