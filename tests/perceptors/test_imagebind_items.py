"""ImageBind's preprocessing: the numbers of the official code, for every role, and the items that it refuses."""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_weights
import torch
from small_media import annotations

from cox_oom.files import UserError
from cox_oom.perceptors import imagebind, preprocess

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "imagebind.json").read_text())


def items():
    """{role: raw item}, by integer arithmetic, the same everywhere; recordings of six seconds, so that the clips of two
    seconds do not overlap (where they do, the official loader takes each clip's mean from the next one, too)."""
    y, x, k = np.arange(120)[:, None], np.arange(161)[None], np.arange(10)[:, None, None, None]
    picture = np.stack([(3 * x + 5 * y + 40 * c + x * y // 17) % 256 for c in range(3)])
    t = np.arange(96000)
    wave = np.sin(t * t / 2.0e7) / 4 + ((t * t * 7919) % 65536 / 65536 - 0.5) / 20 + 0.01
    return {
        "image": picture.astype(np.uint8),
        "thermal": picture.astype(np.uint8),
        "video": ((picture[None] + 9 * k) % 256).astype(np.uint8),
        "audio": wave.astype(np.float32),
        "depth": (0.3 + (x * y % 4001) / 400).astype(np.float32)[None],
        "text": "A dog\u2019s caf\u00e9 &amp; 2 birds, don't they?  <b>x</b>",
    }


def few(x):
    """Some numbers of a tensor: 40 entries from the first to the last, mean, standard deviation, largest."""
    x = x.double()
    at = torch.arange(40) * (x.numel() - 1) // 39
    return [*x.flatten()[at].tolist(), x.mean().item(), x.std().item(), x.abs().max().item()]


@pytest.mark.parametrize("role", ["image", "thermal", "video", "audio", "depth"])
def test_preprocessing_gives_what_the_official_code_gives(role):
    expected = FIXTURE["preprocessing"][role]
    x = imagebind.Preparer().prepare(role, torch.from_numpy(items()[role]))
    assert x.dtype == torch.float32 and list(x.shape) == expected["shape"]
    torch.testing.assert_close(few(x), expected["few"], rtol=0, atol=1e-4)


def vocabulary():
    try:
        return preprocess.find_vocabulary()
    except UserError as e:
        pytest.skip(str(e))


def test_text_gives_the_official_tokens():
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    ids = imagebind.Preparer(vocabulary()).prepare("text", items()["text"])
    assert ids.dtype == torch.int64 and ids.tolist() == FIXTURE["preprocessing"]["text"]["ids"]


def test_a_thousand_captions_of_msrvtt_have_the_official_tokens(data):
    """sha256 of the ids of the first thousand captions, by number, as the official tokenizer gave them."""
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    with zipfile.ZipFile(annotations(data, "msrvtt") / "train_val_annotation.zip") as z:
        sentences = json.loads(z.read("train_val_videodatainfo.json"))["sentences"]
    captions = [s["caption"] for s in sorted(sentences, key=lambda s: s["sen_id"])[:1000]]
    preparer = imagebind.Preparer(vocabulary())
    ids = torch.stack([preparer.prepare("text", c) for c in captions])
    digest = hashlib.sha256(ids.numpy().astype("<i8").tobytes()).hexdigest()
    assert digest == FIXTURE["preprocessing"]["msrvtt"]["sha256"]


def test_long_texts_keep_their_end_token_and_special_tokens_are_letters():
    pytest.importorskip("ftfy"), pytest.importorskip("tokenizers")
    preparer = imagebind.Preparer(vocabulary())
    ids = preparer.prepare("text", "bird " * 200)
    assert ids[0] == 49406 and ids[76] == 49407 and len(set(ids[1:76].tolist())) == 1
    ids = preparer.prepare("text", "a <|endoftext|> b")
    assert (ids == 49407).sum() == 1 and ids.argmax() > 4
    assert preparer.prepare("text", "").tolist() == [49406, 49407] + [0] * 75


@pytest.mark.parametrize(
    "n, fps, picks",
    [
        (300, 30.0, [0, 59, 60, 119, 120, 179, 180, 239, 240, 299]),  # ten seconds: clip after clip
        (40, 20.0, [0, 39] * 5),  # exactly one clip
        (15, 10.0, [0, 14] * 5),
        (1, 25.0, [0, 0] * 5),  # shorter ones
        (45, 10.0, [0, 19, 7, 26, 13, 32, 19, 38, 25, 44]),  # clips begin at 0, 0.625, ... 2.5 s
    ],
)
def test_video_frames_are_the_ends_of_five_clips(n, fps, picks):
    assert imagebind.video_frames(n, fps) == picks


@pytest.mark.parametrize("size", [(224, 224), (300, 224), (224, 301), (64, 48)])
def test_video_crops_lie_along_the_longer_side(size):
    """Frames of one value each: every crop of a clip has its two frames' values."""
    frames = torch.arange(10, dtype=torch.uint8)[:, None, None, None].expand(10, 3, *size) * 20
    x = imagebind.Preparer().prepare("video", frames)
    assert x.shape == (15, 3, 2, 224, 224)
    mean, std = (torch.tensor(v)[:, None] for v in (preprocess.CLIP_MEAN, preprocess.CLIP_STD))
    for clip in range(5):
        expected = (torch.tensor([[2.0 * clip, 2.0 * clip + 1]]) * 20 / 255 - mean) / std  # (3, 2)
        for crop in x[3 * clip : 3 * clip + 3]:
            torch.testing.assert_close(crop, expected[..., None, None].expand_as(crop))


def test_three_crops_begin_middle_end():
    """A ramp along the longer side: the crops begin at 0, half of what is left (rounded up) and all of it."""
    ramp = torch.arange(229, dtype=torch.uint8).expand(10, 3, 224, 229)
    x = imagebind.Preparer().prepare("video", ramp)[:3, 0, 0, 0, 0] * preprocess.CLIP_STD[0] + preprocess.CLIP_MEAN[0]
    torch.testing.assert_close(x * 255, torch.tensor([0.0, 3.0, 5.0]), rtol=0, atol=1e-3)


def test_depth_is_the_disparity_of_the_camera(tmp_path):
    """0.075 m * 518.857901 px / (8 * 2 m) by hand; other cameras; no depth is the nearest; refusals."""
    prepare = imagebind.Preparer().prepare
    flat = torch.full((1, 240, 320), 2.0)
    assert prepare("depth", flat).mean().item() == pytest.approx(
        (0.075 * 518.857901 / 16 / 75 - 0.0418) / 0.0295, abs=1e-4
    )
    assert prepare("depth", 0 * flat).mean().item() == pytest.approx((1 - 0.0418) / 0.0295, abs=1e-4)
    assert prepare("depth", 9 * flat).mean().item() == pytest.approx(
        (0.075 * 518.857901 / 50 / 75 - 0.0418) / 0.0295, abs=1e-4
    )
    tiny_weights.imagebind(tmp_path / "a.pth", sizes={"depth": tiny_weights.IMAGEBIND_TINY["depth"]})
    p = imagebind.load(["depth"], weights=tmp_path / "a.pth", baseline=0.095, focal="570", depth_scale=1)
    assert p.prepare("depth", flat).mean().item() == pytest.approx((0.095 * 570 / 2 / 75 - 0.0418) / 0.0295, abs=1e-4)
    for options in ({"focal": "wide"}, {"baseline": 0}, {"depth_scale": "nan"}):
        with pytest.raises(UserError, match=f"imagebind's {[*options][0]} is .*positive number"):
            imagebind.load(["depth"], weights=tmp_path / "a.pth", **options)
    for item in (torch.zeros(3, 240, 320), torch.zeros(1, 240, 320, dtype=torch.uint8)):
        with pytest.raises(UserError, match="one channel in metres"):
            prepare("depth", item)


def test_imu_is_brought_to_2000_steps():
    x = torch.randn(6, 700)
    expected = np.stack([np.interp(np.linspace(0, 699, 2000), np.arange(700), row) for row in x.double().numpy()])
    y = imagebind.Preparer().prepare("imu", x)
    torch.testing.assert_close(y.double(), torch.from_numpy(expected), rtol=0, atol=1e-4)
    assert torch.equal(imagebind.Preparer().prepare("imu", y), y)
    with pytest.raises(UserError, match="takes 6 IMU channels .* not 3"):
        imagebind.Preparer().prepare("imu", x[:3])


def test_grey_and_colour_and_depths_of_bits():
    grey = torch.from_numpy(items()["image"][:1])
    prepare = imagebind.Preparer().prepare
    assert torch.equal(prepare("image", grey), prepare("image", grey.expand(3, -1, -1)))
    assert torch.equal(prepare("thermal", grey), prepare("thermal", grey.expand(3, -1, -1)))
    for role in ("image", "thermal", "video"):
        with pytest.raises(UserError, match=f"8-bit images for {role}, not float32"):
            prepare(role, grey.float())
    with pytest.raises(UserError, match="takes 10 frames of a video, this item has 8"):
        prepare("video", grey.expand(8, 3, -1, -1))


@pytest.mark.parametrize("mels", [40, 80])
def test_filter_banks_are_kaldis(mels):
    """Against kaldi-native-fbank, where Kaldi allows as many bands; and waves shorter than a window."""
    import kaldi_native_fbank as knf

    wave = items()["audio"][:20000]
    options = knf.FbankOptions()
    options.frame_opts.dither, options.frame_opts.window_type, options.mel_opts.num_bins = 0, "hanning", mels
    options.use_energy = False
    kaldi = knf.OnlineFbank(options)
    kaldi.accept_waveform(16000, wave)
    kaldi.input_finished()
    expected = torch.from_numpy(np.stack([kaldi.get_frame(i) for i in range(kaldi.num_frames_ready)]))
    torch.testing.assert_close(preprocess.fbank(wave, mels), expected, rtol=0, atol=1e-3)
    assert preprocess.fbank(wave[:100], mels).shape == (1, mels)
