"""ImageBind's encoders: the numbers of the official code at tiny sizes, the checkpoint's keys, dtypes, what is read."""

import json
import math
import pickle
from pathlib import Path

import pytest
import tiny_weights
import torch

from cox_oom.files import UserError
from cox_oom.perceptors import imagebind, weights

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


def test_published_layout_is_accounted_for():
    """1,311 keys, 1,200.8 million numbers: shapes alone, on torch's meta device."""
    shapes = tiny_weights.imagebind_shapes()
    assert len(shapes) == 1311 and round(sum(math.prod(s) for s in shapes.values()) / 1e5) == 12008
    tensors = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
    tensors["modality_preprocessors.text.mask"] = torch.full((77, 77), -math.inf).triu(1)
    assert imagebind.encoders_of("x", tensors, set(), "cpu", torch.float32) == {}


@pytest.mark.parametrize("name", sorted(imagebind.HEADS))
def test_published_depths_are_whole(name):
    """A file without an encoder's last block was read as one that is a block shorter; with one more it is no better."""
    assert imagebind.PUBLISHED == {k: (width, blocks) for k, (width, blocks, *_) in tiny_weights.IMAGEBIND.items()}
    width, blocks, *rest = tiny_weights.IMAGEBIND[name]
    for change, says in ((-1, "keys of the"), (1, "keys do not belong to the")):
        sizes = {**tiny_weights.IMAGEBIND, name: (width, blocks + change, *rest)}
        shapes = tiny_weights.imagebind_shapes(sizes)
        tensors = {k: torch.empty(s, device="meta") for k, s in shapes.items()}
        tensors["modality_preprocessors.text.mask"] = torch.full((77, 77), -math.inf).triu(1)
        count = abs(len(tiny_weights.imagebind_shapes()) - len(shapes))
        with pytest.raises(UserError, match=f"{count} {says}.* {name} encoder.*blocks.{blocks + min(change, 0)}."):
            imagebind.encoders_of("x", tensors, set(), "cpu", torch.float32)


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


def test_the_vocabulary_is_among_the_weights_and_checked(tmp_path, checkpoint):
    pytest.importorskip("tokenizers")
    import tiny_languagebind

    (tmp_path / "imagebind_huge.pth").symlink_to(checkpoint)
    tiny_languagebind.vocabulary(tmp_path, 49408)
    p = imagebind.load(["text", "imu"], weights=tmp_path)
    names = ["imagebind_huge.pth", "vocab.json", "merges.txt"]
    assert p.weights == {n: weights.sha256(tmp_path / n) for n in names}
    assert list(imagebind.weight_files(["text"], tmp_path)) == names
    assert (
        list(imagebind.weight_files(["imu"], tmp_path))
        == names[:1]
        == list(imagebind.load(["imu"], weights=tmp_path).weights)
    )
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "imagebind_huge.pth").symlink_to(checkpoint)
    tiny_languagebind.vocabulary(cut, 49407)
    with pytest.raises(UserError, match="49407 tokens and 48893 merges, not 49408 and 48894"):
        imagebind.load(["text"], weights=cut)
    imagebind.load(["imu"], weights=cut)


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
    assert pickle.loads(light).sample("video")(300, 30.0) == p.sample("video")(300, 30.0)
