"""Encoders in ONNX files as perceptors: the numbers of the network they were made from, chains, errors of one line."""

import json
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
tokenizers = pytest.importorskip("tokenizers")
from tiny_weights import draw  # noqa: E402  after importorskip

from cox_oom import perceptors  # noqa: E402  after importorskip
from cox_oom.files import UserError  # noqa: E402  after importorskip
from cox_oom.perceptors import onnx, preprocess  # noqa: E402  after importorskip

TEXTS = ["the dog and the dog", "a dog", "the dog " * 20]


def fill(network):
    with torch.no_grad():
        for key, p in network.named_parameters():
            p.copy_(draw(key, p.shape))
    return network.eval()


class Picture(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, x):
        z = self.conv(x).relu()
        return z.flatten(1), z.mean((2, 3))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(8, 5)

    def forward(self, input_ids, attention_mask):
        z = self.table(input_ids) * attention_mask[..., None]
        return z + z.sum(1, keepdim=True)  # every token sees the others


class Mel(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(1, 4, 40, stride=20)

    def forward(self, x):
        return self.conv(x[:, None])[:, None].transpose(2, 3)  # (B, 1, frames, 4)


class Windows(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(6 * 4, 3)

    def forward(self, x):
        return self.out(x.flatten(1))[:, None, None]  # (n, 6, 4, 1) -> (n, 1, 1, 3)


def export(network, args, path, inputs, outputs, free):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's older exporter, which is quick
        torch.onnx.export(
            network, args, str(path), dynamo=False, input_names=inputs, output_names=outputs, dynamic_axes=free
        )


def write(folder, **facts):
    (folder / "perceptor.json").write_text(json.dumps(facts))
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{role: (folder, its networks)}."""
    out = {role: tmp_path_factory.mktemp("onnx") for role in ("image", "text", "audio")}
    picture, words, mel, windows = (fill(n()) for n in (Picture, Words, Mel, Windows))
    x = torch.zeros(1, 3, 32, 32)
    export(picture, x, out["image"] / "model.onnx", ["x"], ["all", "mean"], {"x": {0: "B"}})
    ids = torch.zeros(1, 4, dtype=torch.int64)
    free = {"input_ids": {0: "B", 1: "T"}, "attention_mask": {0: "B", 1: "T"}}
    export(words, (ids, ids), out["text"] / "model.onnx", list(free), ["states"], free)
    export(mel, torch.zeros(1, 800), out["audio"] / "mel.onnx", ["wave"], ["mel"], {"wave": {0: "B", 1: "T"}})
    export(windows, torch.zeros(2, 6, 4, 1), out["audio"] / "embed.onnx", ["x"], ["z"], {"x": {0: "n"}})
    write(
        out["image"],
        role="image",
        prepare={"size": 40, "crop": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4]},
        models=[{"file": "model.onnx", "output": "mean"}],
    )
    write(out["text"], role="text", prepare={"longest": 9}, models=[{"file": "model.onnx"}], pooling="mean")
    write(
        out["audio"],
        role="audio",
        prepare={"rate": 8000, "scale": 32767, "before": 60, "shortest": 800, "step": 80, "seconds": 1},
        models=[{"file": "mel.onnx", "scale": 0.001, "shift": 2, "window": 6, "step": 3}, {"file": "embed.onnx"}],
        pooling="mean+max",
    )
    known = ["[PAD]", "[UNK]", "the", "dog", "and", "a"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(out["text"] / "tokenizer.json"))
    networks = {"image": picture, "text": (words, tokenizer), "audio": (mel, windows)}
    return {role: (out[role], networks[role]) for role in out}


def together(p, role, items):
    xs = [p.prepare(role, item) for item in items]
    return p.encode(role, {k: torch.stack([x[k] for x in xs]) for k in xs[0]})


def alone(p, role, items):
    return torch.cat([together(p, role, [item]) for item in items])


def close(a, b):
    torch.testing.assert_close(a, nn.functional.normalize(b, dim=1), rtol=0, atol=1e-5)


def test_pictures(made):
    folder, network = made["image"]
    p = onnx.load(["image"], weights=folder)
    items = [(127.5 + 127 * draw(f"onnx {i}", (3, 45, 60))).to(torch.uint8) for i in range(3)]
    x = torch.stack([preprocess.centre_crop(preprocess.resize(i, 40), 32) for i in items]).float() / 255
    x = (x - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
    with torch.no_grad():
        close(together(p, "image", items), network(x)[1])
    torch.testing.assert_close(together(p, "image", items), alone(p, "image", items), rtol=0, atol=2e-6)
    assert p.dims == {"image": 6} and set(p.weights) == {"perceptor.json", "model.onnx"}
    light = pickle.loads(pickle.dumps(p.preparer()))
    assert torch.equal(light.prepare("image", items[0])["x"], p.prepare("image", items[0])["x"])


@pytest.mark.parametrize("pooling", ["mean", "cls", "last", "max"])
def test_texts(made, tmp_path, pooling):
    """A text is cut at `longest`; in a batch, padded, it has the vector that it has alone."""
    folder, (network, tokenizer) = made["text"]
    for name in ("model.onnx", "tokenizer.json"):
        (tmp_path / name).symlink_to(folder / name)
    write(tmp_path, role="text", prepare={"longest": 9}, models=[{"file": "model.onnx"}], pooling=pooling)
    p = onnx.load(["text"], weights=tmp_path)
    rows = together(p, "text", TEXTS)
    for row, text in zip(rows, TEXTS):
        ids = torch.tensor(tokenizer.encode(text).ids)[None, :9]
        with torch.no_grad():
            z = network(ids, torch.ones_like(ids))
        expected = {"mean": z.mean(1), "cls": z[:, 0], "last": z[:, -1], "max": z.amax(1)}[pooling]
        close(row[None], expected)


def test_a_chain_of_sounds(made):
    """At the rate of the folder, the middle second of a longer one, silence around it; windows of six."""
    from scipy.signal import resample_poly

    folder, (mel, windows) = made["audio"]
    p = onnx.load(["audio"], weights=folder)
    for samples, expected_length in ((1000, 800), (2000, 1120), (40000, 8080)):
        wave = draw(f"wave {samples}", (samples,))
        x = p.prepare("audio", wave)["x"]
        halved = torch.from_numpy(resample_poly(wave.numpy(), 1, 2).astype(np.float32)) * 32767
        halved = torch.cat([torch.zeros(60), halved[max(0, len(halved) - 8000) // 2 :][:8000]])
        assert len(x) == expected_length and not x[len(halved) :].any()
        torch.testing.assert_close(x[: len(halved)], halved)
        with torch.no_grad():
            frames = mel(x[None])[0, 0] * 0.001 + 2
            cut = frames.unfold(0, 6, 3).transpose(1, 2)[..., None]
            z = windows(cut).flatten(1)
        close(p.encode("audio", {"x": x[None]}), torch.cat([z.mean(0), z.amax(0)])[None])
    assert p.dims == {"audio": 6}
    items = [draw(f"wave {i}", (1600,)) for i in range(3)]
    assert torch.equal(together(p, "audio", items), alone(p, "audio", items))


def test_the_choice_takes_a_folder(made):
    kinds = {"rgb": "image", "language": "text", "pen": "series"}
    spec = f"rgb=onnx:{made['image'][0]},language=onnx:{made['text'][0]}"
    choice = perceptors.choose(spec, kinds, list(kinds))
    assert [c and c[1] for c in choice.values()] == ["image", "text", None]
    with pytest.raises(UserError, match="language=onnx:.* it has no encoder for text; it embeds image"):
        perceptors.choose(f"language=onnx:{made['image'][0]}", kinds, list(kinds))


WRONG = {
    "role": ({"role": "touch"}, "it needs role .image, text, audio. and models"),
    "key": ({"prepare": {"side": 3}}, "prepare has side: 3; it takes size, crop"),
    "type": ({"prepare": {"size": "3"}}, "prepare has size: '3'; it takes .*, like 224"),
    "file": ({"models": [{"file": "../model.onnx"}]}, "the file '../model.onnx' is not beside it"),
    "absent": ({"models": [{"file": "other.onnx"}]}, "the file 'other.onnx' is not beside it"),
    "pooling": ({"pooling": "sum"}, "pooling is 'sum'; give one of none, cls"),
    "output": ({"models": [{"file": "model.onnx", "output": "no"}]}, "model.onnx cannot be run"),
    "shape": ({"prepare": {"size": 40, "crop": 24}}, "model.onnx cannot be run"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_folder_that_is_not_right(made, tmp_path, what):
    given, words = WRONG[what]
    (tmp_path / "model.onnx").symlink_to(made["image"][0] / "model.onnx")
    facts = {"role": "image", "prepare": {"size": 32, "crop": 32}, "models": [{"file": "model.onnx"}], **given}
    write(tmp_path, **facts)
    with pytest.raises(UserError, match=words) as e:
        onnx.load(["image"], weights=tmp_path)
    assert "\n" not in str(e.value)


def test_files_that_are_not_right(made, tmp_path):
    with pytest.raises(UserError, match="perceptor.json cannot be read"):
        onnx.load(["image"], weights=tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"no")
    write(tmp_path, role="image", models=[{"file": "model.onnx"}])
    with pytest.raises(UserError, match="model.onnx: cannot be loaded"):
        onnx.load(["image"], weights=tmp_path)
    with pytest.raises(UserError, match="has no text features; it has image"):
        onnx.load(["text"], weights=made["image"][0])
    with pytest.raises(UserError, match="leave --dtype out"):
        onnx.load(["image"], weights=made["image"][0], dtype=torch.bfloat16)
    with pytest.raises(UserError, match="takes images of 8 bits"):
        onnx.load(["image"], weights=made["image"][0]).prepare("image", torch.zeros(3, 32, 32))
