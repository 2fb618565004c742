"""Which perceptor embeds which modality, in which role."""

import pytest

from cox_oom import perceptors
from cox_oom.files import UserError

pytestmark = pytest.mark.usefixtures("fake")


def test_role_by_name_and_kind():
    for name, kind, role in (
        ("rgb", "image", "image"),
        ("rgb_left", "image", "image"),
        ("vision", "image", "image"),
        ("language", "text", "text"),
        ("transcript", "text", "text"),
        ("sound", "audio", "audio"),
        ("mic2", "audio", "audio"),
        ("sound", "series", None),
        ("depth", "image", "depth"),
        ("infrared", "image", "thermal"),
        ("imu", "series", "imu"),
        ("grip", "series", None),
        ("tactile", "image", None),
        ("radar", "image", None),
        ("rgb", "video", "video"),
        ("clip", "video", "video"),
    ):
        assert perceptors.role_of(name, kind) == role, (name, kind)


def test_choice_of_perceptors(weights):
    kinds = {"rgb": "image", "language": "text", "touch": "image", "audio": "audio"}

    def choose(spec, ims=("rgb", "language", "touch")):
        return perceptors.choose(spec, kinds, list(ims), weights)

    assert choose("bind") == dict.fromkeys(("rgb", "language", "touch"))
    assert choose("imagebind") == {"rgb": ("imagebind", "image"), "language": ("imagebind", "text"), "touch": None}
    assert choose("rgb=imagebind") == {"rgb": ("imagebind", "image"), "language": None, "touch": None}
    assert choose("rgb=imagebind,language=bind,audio=imagebind")["language"] is None  # audio: not an IM modality here
    for spec, words in (
        ("clip", "choose bind, imagebind"),
        ("hf:", "choose bind"),
        ("imagebind:x", "choose bind"),
        ("rgb=clip", "--perceptor 'clip'"),
        ("smell=imagebind", "the modalities are rgb, language"),
        ("touch=imagebind", "--perceptor touch=imagebind: it has no encoder for touch .image.; it embeds"),
    ):
        with pytest.raises(UserError, match=words):
            choose(spec)
    with pytest.raises(UserError, match="embeds none of touch; use --perceptor bind"):
        choose("imagebind", ["touch"])
