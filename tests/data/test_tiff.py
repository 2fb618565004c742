"""TIFF files of every sample format, byte order and orientation: the numbers that they hold, upright, or one line."""

import struct

import numpy as np
import pytest
from PIL import Image

from cox_oom.data import media

RNG = np.random.default_rng(0)


def write(path, x, form, endian="<", orientation=1, photometric=1, more=()):
    """An uncompressed TIFF of x (H, W) or (H, W, C). form: 1 unsigned, 2 signed, 3 float; more: others."""
    h, w, c = (*x.shape, 1)[:3]
    data = x.astype(x.dtype.newbyteorder(endian)).tobytes()
    at, end = 8, 8 + len(data) + len(data) % 2
    tags = [(256, [w]), (257, [h]), (258, [8 * x.dtype.itemsize] * c), (259, [1]), (262, [photometric]), (273, [at])]
    tags += [(274, [orientation]), (277, [c]), (278, [h]), (279, [len(data)]), (284, [1]), *more, (339, [form] * c)]
    entries, blob = b"", b""
    for tag, values in sorted(tags):
        wide = tag in (256, 257, 273, 278, 279)
        packed = struct.pack(endian + ("I" if wide else "H") * len(values), *values)
        if len(packed) > 4:
            place = end + 2 + 12 * len(tags) + 4 + len(blob)
            blob, packed = blob + packed, struct.pack(endian + "I", place)
        entries += struct.pack(endian + "HHI", tag, 4 if wide else 3, len(values)) + packed.ljust(4, b"\0")
    begin = (b"II*\0" if endian == "<" else b"MM\0*") + struct.pack(endian + "I", end)
    table = struct.pack(endian + "H", len(tags)) + entries + struct.pack(endian + "I", 0)
    path.write_bytes(begin + data + bytes(len(data) % 2) + table + blob)
    return path


def numbers(dtype, *shape):
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def upright(x, orientation):
    """What EXIF asks for, by Pillow's own turns of an image in memory."""
    turn = Image.Transpose
    ways = [turn.FLIP_LEFT_RIGHT, turn.ROTATE_180, turn.FLIP_TOP_BOTTOM, turn.TRANSPOSE, turn.ROTATE_270]
    ways = [None, *ways, turn.TRANSVERSE, turn.ROTATE_90]
    way = ways[orientation - 1]
    return x if way is None else np.asarray(Image.fromarray(x).transpose(way))


@pytest.mark.parametrize("endian", "<>")
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "f4"])
def test_grey_keeps_its_numbers_or_is_refused(tmp_path, dtype, endian):
    """8-bit signed ones were read as unsigned: -1 as 255."""
    x = RNG.normal(size=(5, 7)).astype("f4") if dtype == "f4" else numbers(dtype, 5, 7)
    form = {"u": 1, "i": 2, "f": 3}[dtype[0]]
    try:
        y = media.load_image(write(tmp_path / "x.tif", x, form, endian))
    except media.MediaError as e:
        assert "cannot be read as an image" in str(e) and dtype == "u4"  # some are unknown to Pillow
        return
    np.testing.assert_array_equal(y, x[None].astype(np.float32))
    assert y.dtype == (np.uint8 if dtype == "u1" else np.float32)


@pytest.mark.parametrize("dtype", ["u1", "u2", "rgb"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
def test_rotation_marks(tmp_path, dtype, orientation, compression):
    """Pillow scrambles grey ones that are neither compressed nor upright."""
    x = numbers("u1" if dtype == "rgb" else dtype, *((5, 7, 3) if dtype == "rgb" else (5, 7)))
    if compression:
        Image.fromarray(x).save(tmp_path / "x.tif", tiffinfo={274: orientation}, compression=compression)
    else:
        write(tmp_path / "x.tif", x, 1, orientation=orientation, photometric=2 if dtype == "rgb" else 1)
    want = upright(x, orientation)
    want = want[None] if want.ndim == 2 else want.transpose(2, 0, 1)
    np.testing.assert_array_equal(media.load_image(tmp_path / "x.tif"), want)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotation_marks_of_16_bit_colours(tmp_path, orientation):
    pytest.importorskip("av")
    x = numbers("u2", 5, 7, 3)
    y = media.load_image(write(tmp_path / "x.tif", x, 1, orientation=orientation, photometric=2))
    np.testing.assert_array_equal(
        y, np.stack([upright(np.ascontiguousarray(p), orientation) for p in x.transpose(2, 0, 1)])
    )


def test_16_bit_colours_that_are_not_rgb_are_refused(tmp_path):
    """Cyan, magenta and yellow were taken for red, green and blue."""
    path = write(tmp_path / "x.tif", numbers("u2", 5, 7, 4), 1, photometric=5)
    with pytest.raises(media.MediaError, match="colours that are not RGB"):
        media.load_image(path)
