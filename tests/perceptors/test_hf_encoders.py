"""Encoders of transformers as perceptors: the states of the plain call, made one vector as the folder says."""

import json

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
import tiny_encoders as tiny  # noqa: E402  after importorskip
import tiny_hf  # noqa: E402  after importorskip
from tiny_weights import draw  # noqa: E402  after importorskip

from cox_oom import perceptors  # noqa: E402  after importorskip
from cox_oom.files import UserError  # noqa: E402  after importorskip
from cox_oom.perceptors import encoders, hf  # noqa: E402  after importorskip

ROLES = {
    **dict.fromkeys(("vit", "vit_head", "dinov2", "dinov3", "siglip_vision", "resnet"), "image"),
    "bert": "text",
    **dict.fromkeys(("wav2vec2", "whisper", "ast"), "audio"),
    "videomae": "video",
}
TEXTS = ["the dog and the dog", "a dog", "the dog " * 20]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (folder, model, its processor)}, each made when first asked for."""

    class Made(dict):
        def __missing__(self, kind):
            folder = tmp_path_factory.mktemp("encoders") / kind
            self[kind] = folder, *tiny.write(folder, kind)
            return self[kind]

    return Made()


def items(role):
    if role == "text":
        return TEXTS
    if role == "audio":
        return [tiny_hf.tone(1.3), tiny_hf.tone(0.7)]
    shape = (3, 45, 60) if role == "image" else (4, 3, 45, 60)
    return [(127.5 + 127 * draw(f"{role} encoder {i}", shape)).to(torch.uint8) for i in range(3)]


def encoded(p, role, item):
    return p.encode(role, {k: v[None] for k, v in p.prepare(role, item).items()})


def plain(model, processor, role, item):
    """The model's own output for one item by its own processor, without padding where it takes none."""
    if role == "text":
        x = processor(item, truncation=True, max_length=64, return_tensors="pt")
    elif role == "audio":
        x = processor(item.numpy(), sampling_rate=16000, return_tensors="pt")
    elif isinstance(processor, dict):
        x = {"pixel_values": dinov3_pixels(item)}
    else:
        frames = [hf.pillow(f, role) for f in (item if role == "video" else [item])]
        x = processor(frames, return_tensors="pt")
    with torch.no_grad():
        return model(**x)


def dinov3_pixels(x):
    from PIL import Image

    side = tiny.DINOV3["size"]["height"]
    bands = [Image.fromarray(band.numpy().astype("float32") / 255) for band in x]  # mode F: Pillow's floats
    y = torch.stack([torch.from_numpy(np.array(b.resize((side, side), Image.BILINEAR))) for b in bands])
    mean, std = (torch.tensor(tiny.DINOV3[k])[:, None, None] for k in ("image_mean", "image_std"))
    return ((y - mean) / std)[None]


BASE = {"vit_head": "vit", "wav2vec2": "wav2vec2"}  # where the encoder lies in a model with a head
EXPECTED = {
    "vit": lambda out: out.pooler_output,
    "vit_head": lambda out: out.last_hidden_state[:, 0],
    "dinov2": lambda out: out.pooler_output,
    "dinov3": lambda out: out.pooler_output,
    "siglip_vision": lambda out: out.pooler_output,
    "resnet": lambda out: out.last_hidden_state.mean((2, 3)),
    "ast": lambda out: out.pooler_output,
}


@pytest.mark.parametrize("kind", ROLES)
def test_a_vector_is_that_of_the_plain_call(made, kind):
    folder, model, processor = made[kind]
    role = ROLES[kind]
    assert hf.modalities(folder) == (role,)
    p = hf.load([role], weights=folder)
    encoder = getattr(model, BASE[kind]) if kind in BASE else model.get_encoder() if kind == "whisper" else model
    rows = []
    for item in items(role):
        out = plain(encoder, processor, role, item)
        n = -(-len(item) // 320) if kind == "whisper" else None  # its states of 20 ms that hear the recording
        expected = EXPECTED.get(kind, lambda out: out.last_hidden_state[:, :n].mean(1))(out).flatten(1)
        rows.append(encoded(p, role, item))
        torch.testing.assert_close(rows[-1], torch.nn.functional.normalize(expected, dim=1), rtol=0, atol=1e-5)
        assert rows[-1].shape == (1, p.dims[role])
    assert (rows[0] - rows[1]).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["bert", "whisper", "ast", "videomae", "dinov3"])
def test_a_row_is_the_same_in_another_batch(made, kind):
    role = ROLES[kind]
    p = hf.load([role], weights=made[kind][0])
    xs = [p.prepare(role, item) for item in items(role)]
    together = p.encode(role, {k: torch.stack([x[k] for x in xs]) for k in xs[0]})
    torch.testing.assert_close(together, torch.cat([encoded(p, role, i) for i in items(role)]), rtol=0, atol=2e-6)


def test_short_sounds_and_long_ones(made):
    """wav2vec 2.0 takes silence for sound, so nothing is padded but what is shorter than its first convolution."""
    p = hf.load(["audio"], weights=made["wav2vec2"][0])
    assert len(p.prepare("audio", torch.zeros(5000))["input_values"]) == 5000
    assert len(p.prepare("audio", torch.ones(7))["input_values"]) == 1600
    long = tiny_hf.tone(12)
    assert torch.equal(encoded(p, "audio", long), encoded(p, "audio", long[16000:-16000]))  # the middle ten seconds
    whisper = hf.load(["audio"], weights=made["whisper"][0])
    assert torch.equal(encoded(whisper, "audio", long), encoded(whisper, "audio", long[64000:-64000]))  # its four


@pytest.mark.parametrize(
    "said, pick",
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda z: z[:, 0]),
        ({"pooling_mode_cls_token": False, "pooling_mode_lasttoken": True}, lambda z: z[:, -1]),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, lambda z: z.mean(1)),
        ({"pooling_mode": "cls"}, lambda z: z[:, 0]),
    ],
    ids=["cls", "last", "root", "name"],
)
def test_pooling_by_what_sentence_transformers_wrote(tmp_path, said, pick):
    """Texts are cut at its max_seq_length; a text in a batch, padded, has the vector that it has alone."""
    model, words = tiny.sentences(tmp_path, said)
    p = hf.load(["text"], weights=tmp_path)
    xs = [p.prepare("text", t) for t in TEXTS]
    z = p.encode("text", {k: torch.stack([x[k] for x in xs]) for k in xs[0]})
    for row, text in zip(z, TEXTS):
        with torch.no_grad():
            ids = words(text, truncation=True, max_length=9, return_tensors="pt")
            expected = torch.nn.functional.normalize(pick(model(**ids).last_hidden_state), dim=1)[0]
        torch.testing.assert_close(row, expected, rtol=0, atol=1e-5)
    assert "1_Pooling/config.json" in p.weights


@pytest.mark.parametrize("name", encoders.POOLINGS)
def test_pooling_on_request(made, name):
    folder, model, words = made["bert"]
    p = hf.load(["text"], weights=folder, pooling=name)
    out = plain(model, words, "text", TEXTS[0])
    z = out.last_hidden_state
    expected = {"cls": z[:, 0], "mean": z.mean(1), "last": z[:, -1], "pooler": out.pooler_output}[name]
    expected = torch.nn.functional.normalize(expected, dim=1)
    torch.testing.assert_close(encoded(p, "text", TEXTS[0]), expected, rtol=0, atol=1e-5)


def test_refusals(made, tmp_path):
    bert, tower = made["bert"][0], tiny_hf.write(tmp_path / "clip", "clip") and tmp_path / "clip"
    with pytest.raises(UserError, match=r"pooling=sum: choose among cls, mean, last, pooler"):
        hf.load(["text"], weights=bert, pooling="sum")
    with pytest.raises(UserError, match=r"gives one vector by itself; leave --perceptor-option pooling=cls out"):
        hf.load(["text"], weights=tower, pooling="cls")
    with pytest.raises(UserError, match=r"weights lack the pooler; leave"):
        hf.load(["image"], weights=made["vit_head"][0], pooling="pooler")
    with pytest.raises(UserError, match=r"cannot embed audio: it has no pooler; give --perceptor-option pooling=NAME"):
        hf.load(["audio"], weights=made["wav2vec2"][0], pooling="pooler")
    with pytest.raises(UserError, match=r"\(BertModel\) has no image features; it has text"):
        hf.load(["image"], weights=bert)
    tiny.sentences(tmp_path / "max", {"pooling_mode_max_tokens": True})
    with pytest.raises(UserError, match=r"1_Pooling/config.json: pooling by max_tokens is not known here; give"):
        hf.load(["text"], weights=tmp_path / "max")
    hf.load(["text"], weights=tmp_path / "max", pooling="mean")
    tiny.sentences(tmp_path / "dense", {"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"))
    with pytest.raises(UserError, match=r"modules.json: its step Dense is not known here"):
        hf.load(["text"], weights=tmp_path / "dense")
    (tmp_path / "max" / "1_Pooling" / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"1_Pooling/config.json: cannot be read"):
        hf.load(["text"], weights=tmp_path / "max")


def test_weights_that_an_encoder_lacks(made, tmp_path):
    """What training alone needs may be missing, and a pooler that is not used; a layer may not."""
    from safetensors.torch import load_file, save_file

    tiny.write(tmp_path, "bert")
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if "pooler" not in k}, path, metadata={"format": "pt"})
    p = hf.load(["text"], weights=tmp_path)
    full = hf.load(["text"], weights=made["bert"][0])
    assert torch.equal(encoded(p, "text", "a dog"), encoded(full, "text", "a dog"))
    save_file({k: v for k, v in tensors.items() if "layer.1" not in k}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="its weights lack encoder.layer.1.*left at random"):
        hf.load(["text"], weights=tmp_path)


def test_the_choice_knows_their_roles(made):
    kinds = {"rgb": "image", "language": "text", "sound": "audio"}
    spec = f"rgb=hf:{made['dinov2'][0]},language=hf:{made['bert'][0]},sound=hf:{made['wav2vec2'][0]}"
    choice = perceptors.choose(spec, kinds, list(kinds))
    assert [choice[m][1] for m in kinds] == ["image", "text", "audio"]
    perceptors.check_options(choice, {"pooling": "mean"})
    assert json.loads((made["bert"][0] / "config.json").read_text())["model_type"] == "bert"
    with pytest.raises(UserError, match="it has no encoder for image"):
        perceptors.choose(f"rgb=hf:{made['bert'][0]}", kinds, list(kinds))
