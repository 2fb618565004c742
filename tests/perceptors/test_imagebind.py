"""ImageBind: the numbers of the official code at tiny sizes and of its preprocessing, the checkpoint's keys, dtypes."""

import hashlib
import json
import math
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tiny_weights
import torch
from small_media import annotations

from cox_oom.files import UserError
from cox_oom.perceptors import imagebind, preprocess, weights

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "imagebind.json").read_text())
ROLES = list(imagebind.MODALITIES)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_weights.imagebind(tmp_path_factory.mktemp("weights") / "imagebind_huge.pth")


@pytest.fixture(scope="module")
def perceptor(checkpoint):
    tensors = weights.read(checkpoint)
    encoders = imagebind.encoders_of(checkpoint, tensors, set(imagebind.HEADS), "cpu", torch.float32)
    return imagebind.Perceptor({r: encoders[imagebind.MODALITIES[r]] for r in ROLES}, imagebind.Preparer(), {})


@pytest.mark.parametrize("role", ROLES)
def test_encoder_gives_what_the_official_code_gives(perceptor, role):
    """The fixture's rows are the official model's, with the same tensors and batches."""
    z = perceptor.encode(role, tiny_weights.imagebind_batches()[role])
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, torch.tensor(FIXTURE["encoders"]["rows"][role]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("role", ROLES)
def test_rows_are_unit_and_repeatable_and_independent_of_the_batch(perceptor, role):
    batch = tiny_weights.imagebind_batches()[role]
    z = perceptor.encode(role, batch)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
    assert torch.equal(z, perceptor.encode(role, batch))
    torch.testing.assert_close(perceptor.encode(role, batch[1:]), z[1:], rtol=0, atol=1e-6)
    assert (z[0] - z[1]).abs().max() > 0.05


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("role", ["image", "text", "audio"])
def test_half_precision_on_request(checkpoint, perceptor, role, dtype):
    batch = tiny_weights.imagebind_batches()[role]
    encoders = imagebind.encoders_of(checkpoint, weights.read(checkpoint), {imagebind.MODALITIES[role]}, "cpu", dtype)
    assert {t.dtype for e in encoders.values() for t in e.w.values()} == {dtype}
    half = imagebind.Perceptor({role: encoders[imagebind.MODALITIES[role]]}, imagebind.Preparer(), {})
    z, full = half.encode(role, batch), perceptor.encode(role, batch)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))
    assert ((z * full).sum(1) > 0.99).all() and not torch.equal(z, full)


def test_an_image_is_a_clip_of_two_equal_frames(perceptor):
    image = tiny_weights.imagebind_batches()["image"]
    clips = image[:, None, :, None].expand(-1, 15, -1, 2, -1, -1)
    torch.testing.assert_close(perceptor.encode("video", clips), perceptor.encode("image", image), rtol=0, atol=1e-6)


def test_clips_are_averaged_as_unit_rows(perceptor):
    audio = tiny_weights.imagebind_batches()["audio"]
    audio[:, 1] *= 3  # a clip of another length before it is normalised
    clips = torch.stack([perceptor.encode("audio", audio[:, k : k + 1]) for k in range(3)])
    torch.testing.assert_close(perceptor.encode("audio", audio), torch.nn.functional.normalize(clips.mean(0), dim=1))


def test_text_looks_back_only_and_is_read_at_its_end_token(perceptor):
    ids = tiny_weights.imagebind_batches()["text"][:1].repeat(2, 1)
    ids[1, 6:] = 7  # behind the end token
    z = perceptor.encode("text", ids)
    assert torch.equal(z[0], z[1])
    ids[1, 3] = 7
    z = perceptor.encode("text", ids)
    assert (z[0] - z[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(imagebind.HEADS))
def test_every_tensor_of_the_checkpoint_has_its_effect(name):
    """Each tensor, changed alone, changes the row; not so the output's scale, and the mask: it is checked instead."""
    role = {"vision": "image"}.get(name, name)
    batch = tiny_weights.imagebind_batches()[role][:1]
    tensors = {k: t for k, t in tiny_weights.imagebind_tensors().items() if f".{name}." in k}
    encoder = imagebind.encoders_of("x", tensors, {name}, "cpu", torch.float32)[name]
    perceptor = imagebind.Perceptor({role: encoder}, imagebind.Preparer(), {})
    z = perceptor.encode(role, batch)
    assert len(encoder.w) == len(tensors) - {"vision": 0, "text": 2}.get(name, 1)
    for key, t in encoder.w.items():
        before = t.clone()
        t += 0.3 * tiny_weights.draw(f"other {key}", t.shape)
        assert (perceptor.encode(role, batch) - z).abs().max() > 1e-5, key
        t.copy_(before)
    assert torch.equal(perceptor.encode(role, batch), z)


# -------------------------------------------------------------------------------------------------- preprocessing


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
        (45, 10.0, [0, 19, 7, 26, 13, 32, 19, 38, 25, 44]),
    ],
)  # clips begin at 0, 0.625, ... 2.5 s
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


# ----------------------------------------------------------------------------------------------------- checkpoint


def test_published_layout_is_accounted_for():
    """1,311 keys, 1,200.8 million numbers: shapes alone, on torch's meta device."""
    shapes = tiny_weights.imagebind_shapes()
    assert len(shapes) == 1311 and round(sum(math.prod(s) for s in shapes.values()) / 1e5) == 12008
    tensors = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    tensors["modality_preprocessors.text.mask"] = torch.full((77, 77), -math.inf).triu(1)
    assert imagebind.encoders_of("x", tensors, set(), "cpu", torch.float32) == {}


AUDIO = "modality_trunks.audio.blocks.1.attn.bias_k"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.pop(AUDIO), f"1 keys of the audio encoder are missing: {AUDIO}"),
        (
            lambda t: t.pop("modality_heads.imu.3.weight"),
            "keys of the imu encoder are missing: modality_heads.imu.3.weight",
        ),
        (lambda t: t.update({f"{AUDIO}s": t[AUDIO]}), f"1 keys do not belong to the audio encoder: {AUDIO}s"),
        (lambda t: t.update({"visual.proj": t[AUDIO]}), "1 keys that are not imagebind's: visual.proj"),
        (
            lambda t: t.update({AUDIO: t[AUDIO][..., :-1]}),
            f"{AUDIO} has shape (1, 1, 23), the audio encoder needs (1, 1, 24)",
        ),
        (
            lambda t: t.update({"modality_heads.text.proj.1.weight": torch.zeros(8)}),
            "modality_heads.text.proj.1.weight has shape",
        ),
        (
            lambda t: t["modality_preprocessors.text.mask"].zero_(),
            "modality_preprocessors.text.mask is not the causal mask",
        ),
    ],
    ids=["missing", "missing head", "unexpected", "of another model", "shape", "dimensions", "mask"],
)
def test_keys_that_do_not_fit_are_named(tmp_path, change, says):
    """Also those of an encoder that is not needed."""
    tensors = tiny_weights.imagebind_tensors()
    change(tensors)
    torch.save(tensors, tmp_path / "imagebind_huge.pth")
    with pytest.raises(UserError) as e:
        imagebind.load(["depth"], weights=tmp_path)
    assert says in str(e.value) and "imagebind_huge.pth" in str(e.value) and "\n" not in str(e.value)


def test_width_must_fit_the_heads():
    sizes = {"audio": (30, 1, (1, 16, 16), 229)}
    with pytest.raises(UserError, match="audio encoder is 30 wide, not a multiple of its 12 heads"):
        imagebind.encoders_of("x", tiny_weights.imagebind_tensors(sizes), {"audio"}, "cpu", torch.float32)


def test_only_what_is_needed_is_loaded(tmp_path, checkpoint):
    p = imagebind.load(["audio", "image", "video"], weights=checkpoint)
    assert p.dims == {"audio": 8, "image": 8, "video": 8} and p.encoders["image"] is p.encoders["video"]
    assert {k.split(".")[1] for e in p.encoders.values() for k in e.w} == {"audio", "vision"}
    torch.save(tiny_weights.imagebind_tensors({"imu": tiny_weights.IMAGEBIND_TINY["imu"]}), tmp_path / "part.pth")
    assert imagebind.load(["imu"], weights=tmp_path / "part.pth").dims == {"imu": 8}
    with pytest.raises(UserError, match=r"has no encoder for audio \(it has imu\)"):
        imagebind.load(["imu", "audio"], weights=tmp_path / "part.pth")
    with pytest.raises(UserError, match="imagebind has no encoder for touch; it has image, video, text"):
        imagebind.load(["touch"], weights=checkpoint)


def test_safetensors_and_other_outputs(tmp_path):
    """The same tensors in the mirror's format, 12 numbers a row."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    tensors = tiny_weights.imagebind_tensors({"depth": tiny_weights.IMAGEBIND_TINY["depth"]}, out=12)
    save_file(tensors, tmp_path / "model.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    batch = tiny_weights.imagebind_batches()["depth"]
    rows = [imagebind.load(["depth"], weights=p).encode("depth", batch) for p in (tmp_path, tmp_path / "a.pth")]
    assert rows[0].shape == (2, 12) and torch.equal(*rows)


def test_workers_get_no_weights(checkpoint):
    p = imagebind.load(["audio", "video"], weights=checkpoint)
    light = pickle.dumps(p.preparer())
    assert len(light) < 2000
    wave = torch.sin(torch.arange(20000.0) / 7)
    assert torch.equal(pickle.loads(light).prepare("audio", wave), p.prepare("audio", wave))
    assert pickle.loads(light).sample("video")(300, 30.0) == p.sample("video")(300, 30.0) and p.sample("audio") is None


# --------------------------------------------------------------------------------------------------- weight files


def test_missing_weights_say_where_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    with pytest.raises(UserError) as e:
        imagebind.load(["image"])
    for part in ("imagebind_huge.pth", "https://", "4.8 GB", "CC BY-NC-SA 4.0", "--weights", ".checkpoints"):
        assert part in str(e.value)
    with pytest.raises(UserError, match="no such file or folder.*https://"):
        imagebind.load(["image"], weights=tmp_path / "gone.pth")
    with pytest.raises(UserError, match="holds no imagebind_huge.pth or .*https://"):
        imagebind.load(["image"], weights=tmp_path)


@pytest.mark.parametrize(
    "place",
    [
        ".checkpoints/imagebind_huge.pth",
        "hub/checkpoints/imagebind_huge.pth",
        "huggingface/hub/models--nielsr--imagebind-huge/snapshots/ab12/pytorch_model.bin",
    ],
)
def test_usual_places_are_searched(tmp_path, monkeypatch, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (tmp_path / place).parent.mkdir(parents=True)
    tiny_weights.imagebind(tmp_path / place, sizes={"imu": tiny_weights.IMAGEBIND_TINY["imu"]})
    assert imagebind.load(["imu"]).weights == {Path(place).name: weights.sha256(tmp_path / place)}


def test_broken_weights_are_one_line(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"<html>404")
    torch.save({"state_dict": {"x": torch.zeros(2)}}, tmp_path / "b.pth")
    torch.save([1, 2], tmp_path / "c.pth")
    for name, says in (
        ("a.pth", "cannot be read as weights"),
        ("b.pth", "not a plain dict"),
        ("c.pth", "not a plain dict"),
    ):
        with pytest.raises(UserError, match=says) as e:
            imagebind.load(["imu"], weights=tmp_path / name)
        assert "\n" not in str(e.value) and name in str(e.value)


def test_sha256_of_a_file(tmp_path):
    """Against hashlib's published example; a changed file has another hash."""
    (tmp_path / "x").write_bytes(b"abc")
    assert weights.sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    (tmp_path / "x").write_bytes(b"")
    assert weights.sha256(tmp_path / "x") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_files_of_the_old_format_are_read(tmp_path):
    torch.save({"x": torch.arange(3)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(weights.read(tmp_path / "x.pth")["x"], torch.arange(3))
