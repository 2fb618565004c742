"""Models of transformers as perceptors: the numbers of the models' own calls, no chance, errors of one line."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")
import tiny_hf as tiny  # noqa: E402  after importorskip
from tiny_weights import draw  # noqa: E402  after importorskip

from cox_oom.files import UserError  # noqa: E402  after importorskip
from cox_oom.perceptors import hf, preprocess  # noqa: E402  after importorskip

KINDS = {
    "clip": ("image", "text"),
    "siglip": ("image", "text"),
    "siglip2": ("image", "text"),
    "clap": ("audio", "text"),
    "clap_fused": ("audio", "text"),
    "x_clip": ("video", "text"),
    "pe_audio": ("audio", "text"),
    "embedding_gemma2": ("image", "audio", "text"),
}
TEXTS = ["the dog and the singing thing", "a dog", "the " * 90]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """{kind: (folder, model, its processors, what hf.load gives)}, each made when first asked for."""

    class Made(dict):
        def __missing__(self, kind):
            folder = tmp_path_factory.mktemp("hf") / kind
            model, parts = tiny.write(folder, kind)
            self[kind] = folder, model, parts, hf.load(KINDS[kind], weights=folder)
            return self[kind]

    return Made()


def items(role, p):
    if role == "text":
        return TEXTS
    if role == "audio":
        return [tiny.tone(3.3), tiny.tone(0.7), tiny.tone(2)]
    shape = (3, 45, 60) if role == "image" else (p.preparer().frames, 3, 45, 60)
    return [(127.5 + 127 * draw(f"{role} embed {i}", shape)).to(torch.uint8) for i in range(3)]


def encoded(p, role):
    xs = [p.prepare(role, item) for item in items(role, p)]
    return p.encode(role, {k: torch.stack([x[k] for x in xs]) for k in xs[0]})


def close(a, b, tolerance=2e-6):
    torch.testing.assert_close(a, torch.nn.functional.normalize(b, dim=1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_unit_rows_again_and_again(made, kind):
    """Two preparations and two passes give the same bytes, whatever numpy's and torch's generators are at."""
    p = made[kind][3]
    for role in KINDS[kind]:
        z = encoded(p, role)
        assert z.dtype == torch.float32 and z.shape == (3, p.dims[role])
        torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
        assert torch.equal(encoded(p, role), z) and (z[0] - z[1]).abs().max() > 1e-3
        alone = p.prepare(role, items(role, p)[1])
        close(p.encode(role, {k: v[None] for k, v in alone.items()}), z[1:2])


@pytest.mark.parametrize("kind", ["clip", "clap", "x_clip", "pe_audio"])
def test_texts_are_what_the_model_gives_to_its_own_tokens(made, kind):
    _, model, parts, p = made[kind]
    with torch.no_grad():
        for i, text in enumerate(TEXTS):  # alone, without any padding
            ids = parts["tokenizer"](text, truncation=True, max_length=p.preparer().longest, return_tensors="pt")
            if kind == "pe_audio":
                states = model.text_model(**ids).last_hidden_state[:, 0]
                expected = model.text_audio_head(states)
            else:
                expected = model.get_text_features(**ids).pooler_output
            close(encoded(p, "text")[i : i + 1], expected)


@pytest.mark.parametrize("kind", ["siglip", "siglip2"])
def test_siglips_texts_are_padded_to_their_length(made, kind):
    """Padding is attended to, as in its training: no mask, always 64 tokens, the text first."""
    _, model, parts, p = made[kind]
    ids = parts["tokenizer"](TEXTS, padding="max_length", truncation=True, max_length=64, return_tensors="pt").input_ids
    with torch.no_grad():
        close(encoded(p, "text"), model.get_text_features(input_ids=ids).pooler_output)


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
def test_images_are_what_the_model_gives_to_its_own_pixels(made, kind):
    from PIL import Image

    _, model, parts, p = made[kind]
    images = [Image.fromarray(x.permute(1, 2, 0).numpy()) for x in items("image", p)]
    with torch.no_grad():
        expected = model.get_image_features(**parts["images"](images=images, return_tensors="pt")).pooler_output
    close(encoded(p, "image"), expected)
    grey = items("image", p)[0][:1]
    assert torch.equal(
        p.prepare("image", grey)["pixel_values"], p.prepare("image", grey.expand(3, -1, -1))["pixel_values"]
    )
    with pytest.raises(UserError, match="image: torch.float32 values; .* 8 bits"):
        p.prepare("image", grey / 255)


def test_clips_are_what_the_model_gives_to_its_own_frames(made):
    from PIL import Image

    _, model, parts, p = made["x_clip"]
    assert p.sample("video")(10, 25.0) == [0, 3, 6, 9] and p.sample("text") is None  # config.json: four frames
    clips = [[Image.fromarray(f.permute(1, 2, 0).numpy()) for f in clip] for clip in items("video", p)]
    pixels = torch.stack([parts["images"](images=frames, return_tensors="pt").pixel_values for frames in clips])
    with torch.no_grad():
        close(encoded(p, "video"), model.get_video_features(pixels).pooler_output)


@pytest.mark.parametrize("kind", ["clap", "clap_fused"])
def test_recordings_are_what_clap_gives_to_their_middle(made, kind):
    """At 48 kHz; its processor takes 2 s here, repeats what is shorter, and would cut what is longer at random."""
    from scipy.signal import resample_poly

    _, model, parts, p = made[kind]
    waves = [resample_poly(w.numpy(), 3, 1) for w in items("audio", p)]
    assert len(waves[0]) == 158400
    waves[0] = waves[0][31200:127200]
    x = parts["audio"](waves, sampling_rate=48000, return_tensors="pt")
    with torch.no_grad():
        x["is_longer"] = torch.zeros(3, 1, dtype=torch.bool)
        expected = model.get_audio_features(**x).pooler_output
    close(encoded(p, "audio"), expected, 1e-5)


def test_recordings_of_a_model_without_a_length(made):
    """PE-AV takes any: the middle ten seconds, what is shorter is filled up and masked."""
    _, model, parts, p = made["pe_audio"]
    x = p.prepare("audio", tiny.tone(12))
    assert x["input_values"].shape == (1, 480000) and x["padding_mask"].all()
    wave = preprocess.resample(tiny.tone(12), 16000, 48000)
    assert torch.equal(x["input_values"][0], wave[48000:-48000])
    short = p.prepare("audio", tiny.tone(2))
    assert int(short["padding_mask"].sum()) == 96000 and not short["input_values"][0, 96000:].any()


def test_embedding_gemma_is_the_mean_of_its_last_states(made):
    """Each item alone, its tokens placed between those that begin and end them; nothing is padded."""
    _, model, parts, p = made["embedding_gemma2"]
    assert p.preparer().longest == 512

    def mean(text, **inputs):
        ids = parts["tokenizer"]([text], return_tensors="pt")
        with torch.no_grad():
            return model(**ids, **inputs).last_hidden_state.mean(1)

    for i, text in enumerate(TEXTS):
        close(encoded(p, "text")[i : i + 1], mean(text))
    for i, image in enumerate(items("image", p)):
        x = parts["images"](images=[image], return_tensors="pt")
        n = int(x.pop("num_soft_tokens_per_image")[0])
        assert n > 20
        close(encoded(p, "image")[i : i + 1], mean("<boi_token>" + "<image_token>" * n + "<eoi_token>", **x))
    for i, (wave, n) in enumerate(zip(items("audio", p), (83, 18, 50))):  # a token for each 40 ms
        x = parts["audio"]([wave.numpy()], return_tensors="pt")
        expected = mean("<boa_token>" + "<audio_token>" * n + "<eoa_token>", **x)
        close(encoded(p, "audio")[i : i + 1], expected, 1e-5)


@pytest.mark.parametrize("kind, role", [("clip", "image"), ("clip", "text"), ("siglip", "text"), ("clap", "audio")])
def test_workers_get_no_weights(made, kind, role):
    p = made[kind][3]
    light = pickle.loads(pickle.dumps(p.preparer()))
    assert not any(isinstance(v, torch.nn.Module) for v in vars(light).values())
    a, b = light.prepare(role, items(role, p)[0]), p.prepare(role, items(role, p)[0])
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_half_precision_on_request(made):
    folder, _, _, p = made["clip"]
    half = hf.load(["image"], weights=folder, dtype=torch.bfloat16)
    z, full = encoded(half, "image"), encoded(p, "image")
    assert {t.dtype for t in half.model.parameters()} == {torch.bfloat16}
    assert z.dtype == torch.float32 and ((z * full).sum(1) > 0.99).all() and not torch.equal(z, full)


# ----------------------------------------------------------------------------------------------- what is not there


def test_a_role_that_the_model_lacks(made):
    with pytest.raises(UserError, match=r"hf:.*clip \(CLIPModel\) has no audio features; it has image, text"):
        hf.load(["text", "audio"], weights=made["clip"][0])
    with pytest.raises(UserError, match=r"\(ClapModel\) has no depth features; it has text, audio"):
        hf.load(["depth"], weights=made["clap"][0])


def test_names_are_looked_for_in_the_cache(made, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as e:
        hf.load(["image"], weights="someone/clip-tiny")
    for part in (
        "hf:someone/clip-tiny",
        str(tmp_path),
        "hf download someone/clip-tiny",
        "https://huggingface.co/someone",
    ):
        assert part in str(e.value) and "\n" not in str(e.value)
    snapshot = tmp_path / "models--someone--clip-tiny" / "snapshots" / "ab12"
    shutil.copytree(made["clip"][0], snapshot)
    p = hf.load(["image"], weights="someone/clip-tiny")
    assert torch.equal(encoded(p, "image"), encoded(made["clip"][3], "image"))
    assert p.weights == made["clip"][3].weights and {"model.safetensors", "config.json"} <= p.weights.keys()
    with pytest.raises(UserError, match="which model"):
        hf.load(["image"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no config.json"):
        hf.load(["image"], weights=tmp_path / "empty")


def test_weights_that_are_missing_are_not_drawn_at_random(made, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(made["clip"][0], tmp_path / "m")
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    save_file(
        {k: v for k, v in tensors.items() if k != "visual_projection.weight"},
        tmp_path / "m" / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(UserError, match="its weights lack visual_projection.weight, which would be left at random"):
        hf.load(["text"], weights=tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="hf:.*cannot be loaded"):
        hf.load(["text"], weights=tmp_path / "m")


def test_processors_that_are_missing(made, tmp_path):
    shutil.copytree(made["clip"][0], tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    hf.load(["text"], weights=tmp_path / "m")  # what is not needed is not asked for
    with pytest.raises(UserError, match="its processor for image cannot be loaded") as e:
        hf.load(["image", "text"], weights=tmp_path / "m")
    assert "\n" not in str(e.value)


def test_generative_models_are_refused(tmp_path):
    """Their image features are tokens for a language model, not one vector per image."""
    folder = tmp_path / "llava"
    vision = transformers.CLIPVisionConfig(**tiny.VISION)
    text = transformers.LlamaConfig(**tiny.TEXT, vocab_size=64)
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=63, vision_feature_layer=-1
    )
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)
    tiny.square_images().save_pretrained(folder)
    with pytest.raises(UserError, match="gives no single vector per item") as e:
        hf.load(["image"], weights=folder)
    assert "\n" not in str(e.value)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava"


RUN = """
from pathlib import Path
Path({mark!r}).write_text("run")
from transformers import {base}
class Mine({base}):
    model_type = "mine"
"""
CODE = {  # file, its entry, what it names, what it is derived from
    "config": ("config.json", "AutoConfig", "image", "PretrainedConfig"),
    "model": ("config.json", "AutoModel", "image", "CLIPModel"),
    "tokenizer": ("tokenizer_config.json", "AutoTokenizer", "text", "CLIPTokenizer"),
    "images": ("preprocessor_config.json", "AutoImageProcessor", "image", "CLIPImageProcessorPil"),
    "audio": ("preprocessor_config.json", "AutoFeatureExtractor", "audio", "ClapFeatureExtractor"),
    "video": ("video_preprocessor_config.json", "AutoVideoProcessor", "video", "CLIPImageProcessorPil"),
}


@pytest.mark.parametrize("what", CODE)
def test_a_models_own_code_is_never_run(made, tmp_path, monkeypatch, what):
    """Neither by a "y" to transformers' question, which is not asked."""
    file, entry, role, base = CODE[what]
    source = made[{"audio": "clap", "video": "x_clip"}.get(role, "clip")][0]
    shutil.copytree(source, tmp_path / "m")
    mark = tmp_path / "mark"
    (tmp_path / "m" / "mine.py").write_text(RUN.format(mark=str(mark), base=base))
    at = tmp_path / "m" / file
    facts = json.loads(at.read_text()) if at.exists() else {}
    named = [None, "mine.Mine"] if what == "tokenizer" else "mine.Mine"
    facts = {**facts, "auto_map": {entry: named}}
    if what == "config":
        facts["model_type"] = "mine"
    for key in ("tokenizer_class", "image_processor_type", "feature_extractor_type", "video_processor_type"):
        if what not in ("config", "model"):
            facts |= {key: "Mine"} if key in facts else {}
    at.write_text(json.dumps(facts))
    asked = []
    monkeypatch.setattr("builtins.input", lambda *a: asked.append(a) or "y")
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    try:
        hf.load([role], weights=tmp_path / "m")
    except UserError as e:
        assert "\n" not in str(e) and "cannot be loaded" in str(e)
    assert not mark.exists() and not asked


def test_every_call_of_transformers_refuses_code(made, monkeypatch):
    given = []
    for name in ("AutoConfig", "AutoTokenizer", "AutoFeatureExtractor", "AutoImageProcessor", "CLIPModel", "ClapModel"):
        kind, real = getattr(transformers, name), getattr(transformers, name).from_pretrained

        def spy(*args, real=real, **kwargs):
            given.append(kwargs)
            return real(*args, **kwargs)

        monkeypatch.setattr(kind, "from_pretrained", spy)
    hf.load(["image", "text"], weights=made["clip"][0])
    hf.load(["audio", "text"], weights=made["clap"][0])
    ours = [k for k in given if k.get("local_files_only")]
    assert len(ours) >= 8 and all(k.get("trust_remote_code") is False for k in ours)
    source = Path(hf.__file__).read_text()
    assert source.count(".from_pretrained(") == source.count("**LOCAL")


def test_without_transformers_one_line(monkeypatch, made):
    folder = made["clip"][0]
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*: pip install cox-oom\[perceptors\]$"):
        hf.load(["image"], weights=folder)
