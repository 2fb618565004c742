"""LanguageBind's towers and preprocessing: the numbers of the official code at tiny sizes, low-rank updates, keys."""

import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest
import tiny_languagebind as tiny
import torch
from tiny_weights import draw

pytest.importorskip("transformers")
from cox_oom.files import UserError  # noqa: E402  after importorskip
from cox_oom.perceptors import languagebind, preprocess, weights  # noqa: E402  after importorskip

FIXTURE = json.loads((Path(__file__).parents[1] / "fixtures" / "languagebind.json").read_text())
ROLES = list(languagebind.MODALITIES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.write(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def perceptor(folder):
    return languagebind.load(ROLES, weights=folder)


@pytest.mark.parametrize("role", ROLES)
def test_tower_gives_what_the_official_code_gives(perceptor, role):
    """The fixture's rows are the official model's, of the same tensors and batches; depth, thermal, video: updates."""
    z = perceptor.encode(role, tiny.batch(role))
    assert z.dtype == torch.float32 and perceptor.dims[role] == 8
    torch.testing.assert_close(z, torch.tensor(FIXTURE["towers"]["rows"][role]), rtol=0, atol=2e-6)
    assert torch.equal(z, perceptor.encode(role, tiny.batch(role)))
    torch.testing.assert_close(perceptor.encode(role, tiny.batch(role)[1:]), z[1:], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name, v15", [("video_ft", False), ("video_v15", True)])
def test_fully_tuned_video_towers(tmp_path, name, v15):
    """Without updates; V1.5 has a class token per frame and a kernel with an axis of time."""
    at = tmp_path / ("LanguageBind_Video_V1.5_FT" if v15 else "LanguageBind_Video_FT")
    write_tower(at, tiny.config("video", v15=v15))
    p = languagebind.load(["video"], weights=tmp_path)
    assert list(p.weights) == [f"{at.name}/pytorch_model.bin", f"{at.name}/config.json"]
    torch.testing.assert_close(
        p.encode("video", tiny.batch("video")), torch.tensor(FIXTURE["towers"]["rows"][name]), rtol=0, atol=2e-6
    )


def write_tower(at, config, state=None):
    at.mkdir()
    (at / "config.json").write_text(json.dumps(config))
    torch.save(tiny.tensors(config) if state is None else state, at / "pytorch_model.bin")
    tiny.vocabulary(at, config["text_config"]["vocab_size"])


@pytest.mark.parametrize("name", ["image", "thermal", "depth", "video", "audio", "audio short", "text"])
def test_preprocessing_gives_what_the_official_code_gives(perceptor, name):
    expected = FIXTURE["preprocessing"][name]
    if name == "text":
        for text, ids in zip(tiny.TEXTS, expected, strict=True):
            x = perceptor.prepare("text", text)
            assert x.dtype == torch.int64 and x.tolist() == ids + [519] * (77 - len(ids)), text
        return
    role = name.split()[0]
    x = perceptor.prepare(role, tiny.item(role)[:50000] if name == "audio short" else tiny.item(role))
    assert x.dtype == torch.float32 and x.shape == tiny.batch(role)[0].shape
    # the filter banks' absolute tolerance is that of their logarithms where there is next to no energy
    torch.testing.assert_close(
        tiny.probe(x), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-4 if role == "audio" else 1e-6
    )
    assert torch.equal(x, perceptor.prepare(role, tiny.item(role))) or name == "audio short"


# ------------------------------------------------------------------------------------------------ low-rank updates


def test_update_is_alpha_by_r_times_b_a():
    """Against the unmerged sum of the two paths, in float64."""
    g = torch.Generator().manual_seed(0)
    w, b, a = torch.randn(6, 5, generator=g), torch.randn(6, 3, generator=g), torch.randn(3, 5, generator=g)
    x = torch.randn(4, 5, generator=g, dtype=torch.float64)
    at = "vision_model.encoder.base_model.model.layers.0.self_attn.q_proj"
    state = {f"{at}.weight": w, f"{at}.lora_A.default.weight": a, f"{at}.lora_B.default.weight": b, "other": a}
    plain = languagebind.merge_lora(state, 16)
    assert set(plain) == {"vision_model.encoder.layers.0.self_attn.q_proj.weight", "other"}
    merged = plain["vision_model.encoder.layers.0.self_attn.q_proj.weight"]
    expected = x @ w.double().T + 16 / 3 * (x @ a.double().T @ b.double().T)
    torch.testing.assert_close(x @ merged.double().T, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("role", ["thermal", "video"])
def test_todays_layout_of_updates_is_the_same_model(tmp_path, perceptor, role):
    """peft calls an adapted layer's own weights base_layer since 0.7."""
    tiny.write(tmp_path, [role], layout=tiny.today)
    assert any(".base_layer." in k for k in torch.load(tmp_path / tiny.NAMES[role] / "pytorch_model.bin"))
    p = languagebind.load([role], weights=tmp_path)
    assert torch.equal(p.encode(role, tiny.batch(role)), perceptor.encode(role, tiny.batch(role)))


def test_an_update_changes_the_features(tmp_path, perceptor):
    c = tiny.config("thermal", lora=2)
    state = {k: torch.zeros_like(v) if ".lora_B." in k else v for k, v in tiny.tensors(c).items()}
    write_tower(tmp_path / "LanguageBind_Thermal", c, state)
    z = languagebind.load(["thermal"], weights=tmp_path).encode("thermal", tiny.batch("thermal"))
    assert (z - perceptor.encode("thermal", tiny.batch("thermal"))).abs().max() > 0.05


# ------------------------------------------------------------------------------------------------------ towers


def test_every_tensor_of_a_tower_has_its_effect(folder):
    """Each tensor, changed alone, changes the rows (V1.5, the one with most kinds of tensors, and text)."""
    c = tiny.config("video", v15=True)
    towers = {
        "video": languagebind.new_vision({**languagebind.VISION, **languagebind.EXTRA, **c["vision_config"]}, 8),
        "text": languagebind.new_text({**languagebind.TEXT, **c["text_config"]}, 8),
    }
    state = tiny.tensors(c)
    for role, tower in towers.items():
        tower.eval().requires_grad_(False)
        tower.load_state_dict({k: state[k] for k in tower.state_dict()})
        x = tiny.batch(role)[:1]
        z = tower(x)
        for key, t in tower.state_dict().items():
            if "k_proj.bias" in key:  # softmax does not see what is the same for all keys
                continue
            before = t.clone()
            t += 0.3 * draw(f"other {key}", t.shape)
            assert (tower(x) - z).abs().max() > 1e-4, key
            t.copy_(before)


def test_frames_keep_their_order(perceptor):
    x = tiny.batch("video")[:1]
    z = perceptor.encode("video", x)
    assert (perceptor.encode("video", x.flip(1)) - z).abs().max() > 1e-3


def test_text_looks_back_only_and_is_read_at_its_first_end_token(perceptor):
    ids = tiny.batch("text")[:1].repeat(3, 1)
    ids[1, 7:] = 9  # behind the end token at 6
    ids[2, 5] = 9
    z = perceptor.encode("text", ids)
    torch.testing.assert_close(z[0], z[1], rtol=0, atol=1e-6)
    assert (z[0] - z[2]).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("role", ["video", "text"])
def test_half_precision_on_request(folder, perceptor, role, dtype):
    p = languagebind.load([role], weights=folder, dtype=dtype)
    assert {t.dtype for t in p.model.parameters()} == {dtype}
    z, full = p.encode(role, tiny.batch(role)), perceptor.encode(role, tiny.batch(role))
    assert z.dtype == torch.float32 and ((z * full).sum(1) > 0.99).all() and not torch.equal(z, full)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(2))


# ------------------------------------------------------------------------------------------------- files and keys


def test_only_what_is_needed_is_read(folder, perceptor):
    p = languagebind.load(["depth"], weights=folder)
    at = folder / "LanguageBind_Depth"
    assert p.dims == {"depth": 8} and p.weights == {
        f"LanguageBind_Depth/{n}": weights.sha256(at / n) for n in ("pytorch_model.bin", "config.json")
    }
    p = languagebind.load(["text", "audio"], weights=folder)  # one of the needed folders gives the text tower
    assert {n.split("/")[0] for n in p.weights} == {"LanguageBind_Audio_FT", "vocab.json", "merges.txt"}
    assert p.weights["merges.txt"] == weights.sha256(folder / "LanguageBind_Audio_FT" / "merges.txt")
    assert torch.equal(p.encode("text", tiny.batch("text")), perceptor.encode("text", tiny.batch("text")))
    p = languagebind.load(["text"], weights=folder)  # any other
    assert {n.split("/")[0] for n in p.weights} == {"LanguageBind_Image", "vocab.json", "merges.txt"}
    assert list(p.weights) == list(languagebind.weight_files(["text"], folder))
    with pytest.raises(UserError, match="languagebind has no imu; it has image, video, audio, depth, thermal, text"):
        languagebind.load(["imu"], weights=folder)


def test_a_cut_vocabulary_ends_the_load(tmp_path, folder):
    shutil.copytree(folder / "LanguageBind_Image", tmp_path / "LanguageBind_Image")
    merges = tmp_path / "LanguageBind_Image" / "merges.txt"
    merges.write_text("".join(merges.read_text().splitlines(keepends=True)[:-1]))
    languagebind.load(["image"], weights=tmp_path)
    with pytest.raises(UserError, match="520 tokens and 5 merges, not 520 and 6"):
        languagebind.load(["text"], weights=tmp_path)


@pytest.mark.parametrize(
    "role, size", [("image", [224, 224]), ("audio", [112, 1036]), ("audio", [224, 224]), ("video", [224, 224])]
)
def test_the_image_size_may_be_a_list(tmp_path, perceptor, role, size):
    """The official constructors leave it so in their config: both sides, for audio those of the spectrogram."""
    c = tiny.config(role, lora=2 if role == "video" else 0)
    c["vision_config"]["image_size"] = size
    write_tower(tmp_path / tiny.NAMES[role], c)
    p = languagebind.load([role], weights=tmp_path)
    assert torch.equal(p.encode(role, tiny.batch(role)), perceptor.encode(role, tiny.batch(role)))
    assert torch.equal(p.prepare(role, tiny.item(role)), perceptor.prepare(role, tiny.item(role)))


@pytest.mark.parametrize("size", [[224, 336], [], [224, 224, 3, 4], ["a", "a"], [112, 1036]])
def test_other_lists_are_refused(tmp_path, size):
    c = tiny.config("image")
    c["vision_config"]["image_size"] = size
    write_tower(tmp_path / "LanguageBind_Image", c)
    with pytest.raises(UserError, match=r"config.json: image_size \[.*\]; only square images are known here"):
        languagebind.load(["image"], weights=tmp_path)


def test_workers_get_no_weights(perceptor):
    light = pickle.dumps(perceptor.preparer())
    assert len(light) < 5000
    light = pickle.loads(light)
    assert torch.equal(light.prepare("audio", tiny.item("audio")), perceptor.prepare("audio", tiny.item("audio")))
    assert (
        light.sample("video")(100, 25.0) == [0, 14, 28, 42, 56, 70, 84, 99]
        and light.sample("audio") is preprocess.sinc_resampled
    )
    assert pickle.loads(pickle.dumps(light.sample("video")))(3, 25.0) == [0, 0, 0, 0, 1, 1, 1, 2]


@pytest.mark.parametrize(
    "place",
    [
        "cache_dir/models--LanguageBind--LanguageBind_Image/snapshots/ab12",
        "huggingface/hub/models--LanguageBind--LanguageBind_Image/snapshots/ab12",
        "mine/LanguageBind_Image",
        "mine/models--LanguageBind--LanguageBind_Image/snapshots/1",
    ],
)
def test_usual_places_are_searched(tmp_path, monkeypatch, folder, place):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "huggingface"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    shutil.copytree(folder / "LanguageBind_Image", tmp_path / place)
    p = languagebind.load(["image", "text"], weights="mine" if place.startswith("mine") else None)
    own = {"LanguageBind_Image/pytorch_model.bin", "LanguageBind_Image/config.json"}
    assert set(p.weights) == own | {"vocab.json", "merges.txt"}


def test_missing_towers_say_where_they_are(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    for roles, names in (
        (["audio", "image"], ["LanguageBind_Image"]),
        (["audio"], ["LanguageBind_Audio_FT"]),
        (["text"], []),
    ):
        with pytest.raises(UserError) as e:
            languagebind.load(roles)
        for part in ("https://huggingface.co/LanguageBind/", "1.7 GB", "MIT", "--weights", "cache_dir", *names):
            assert part in str(e.value) and "\n" not in str(e.value)
    shutil.copytree(folder / "LanguageBind_Depth", tmp_path / "LanguageBind_Depth")
    with pytest.raises(UserError, match="holds no LanguageBind_Audio_FT or .*https://"):
        languagebind.load(["depth", "audio"], weights=tmp_path)
    (tmp_path / "LanguageBind_Depth" / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds neither model.safetensors nor pytorch_model.bin"):
        languagebind.load(["depth"], weights=tmp_path)


def test_safetensors_and_parts(tmp_path, folder, perceptor):
    """The same tensors in two files of the other format."""
    from safetensors.torch import save_file

    at = tmp_path / "LanguageBind_Image"
    shutil.copytree(folder / at.name, at)
    state = torch.load(at / "pytorch_model.bin")
    (at / "pytorch_model.bin").unlink()
    for i, part in enumerate((sorted(state)[::2], sorted(state)[1::2])):
        save_file({k: state[k] for k in part}, at / f"model-0000{i + 1}-of-00002.safetensors")
    p = languagebind.load(["image"], weights=tmp_path)
    assert len(p.weights) == 3 and torch.equal(
        p.encode("image", tiny.batch("image")), perceptor.encode("image", tiny.batch("image"))
    )


Q = "vision_model.encoder.base_model.model.layers.1.temporal_attn.q_proj"
P = "vision_model.encoder.layers.1.temporal_attn.q_proj"


@pytest.mark.parametrize(
    "change, says",
    [
        (lambda t: t.pop(f"{Q}.bias"), f"missing: {P}.bias"),
        (lambda t: t.update({"vision_model.extra": t["logit_scale"]}), "unknown: vision_model.extra"),
        (lambda t: t.update({"text_model.extra": t["logit_scale"]}), "unknown: text_model.extra"),
        (lambda t: t.update({f"{Q}.bias": t[f"{Q}.bias"][1:]}), f"{P}.bias is (31,), by config.json (32,)"),
        (lambda t: t.pop(f"{Q}.lora_B.default.weight"), f"{P} has only a part of its low-rank update"),
        (lambda t: t.pop(f"{Q}.weight"), f"{P} has only a part of its low-rank update"),
    ],
    ids=["missing", "unknown", "unknown to the other tower", "shape", "half an update", "update of nothing"],
)
def test_keys_that_do_not_fit_are_named(tmp_path, change, says):
    c = tiny.config("video", lora=2)
    state = tiny.tensors(c)
    change(state)
    write_tower(tmp_path / "LanguageBind_Video", c, state)
    with pytest.raises(UserError) as e:
        languagebind.load(["video"], weights=tmp_path)
    assert says in str(e.value) and "LanguageBind_Video/pytorch_model.bin" in str(e.value) and "\n" not in str(e.value)


def test_sizes_come_from_config_json(tmp_path):
    """Other filter banks and lengths, and a tube that no published tower has."""
    write_tower(tmp_path / "LanguageBind_Audio", tiny.config("audio", mels=64, length=300))
    p = languagebind.load(["audio"], weights=tmp_path)
    assert p.prepare("audio", tiny.item("audio")).shape == (3, 64, 300)
    assert p.encode("audio", p.prepare("audio", tiny.item("audio"))[None]).shape == (1, 8)
    c = tiny.config("video", v15=True)
    c["vision_config"]["tube_size"] = 2
    write_tower(tmp_path / "LanguageBind_Video_FT", c)
    with pytest.raises(UserError, match="tube_size 2"):
        languagebind.load(["video"], weights=tmp_path)
    (tmp_path / "LanguageBind_Video_FT" / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: cannot be read"):
        languagebind.load(["video"], weights=tmp_path)


# ------------------------------------------------------------------------------------------------------ raw items


def test_audio_crops_front_middle_back():
    mel = torch.arange(100.0)[:, None].expand(-1, 4)
    assert [int(c[0, 0]) for c in languagebind.crops(mel, 40)] == [10, 30, 50]
    assert languagebind.crops(mel, 40)[2].shape == (40, 4)
    assert [int(c[0, 0]) for c in languagebind.crops(mel, 99)] == [0, 1, 0]  # two places for three crops
    assert [int(c[-1, 0]) for c in languagebind.crops(mel, 250)] == [49, 49, 49]  # repeated from its start
    assert torch.equal(languagebind.crops(mel, 100)[1], mel)


def test_unusual_items(perceptor):
    grey = tiny.item("thermal")[:1]
    assert torch.equal(perceptor.prepare("thermal", grey), perceptor.prepare("thermal", grey.expand(3, -1, -1)))
    assert torch.equal(perceptor.prepare("image", grey.float() / 255), perceptor.prepare("image", grey))
    with pytest.raises(UserError, match="thermal: values .* give images of 8 bits"):
        perceptor.prepare("thermal", grey.float())
    with pytest.raises(UserError, match="depth: torch.uint8 .* give metres"):
        perceptor.prepare("depth", grey)
    with pytest.raises(UserError, match="a clip of 3 frames: this video tower takes 8"):
        perceptor.prepare("video", tiny.item("video")[:3])
    far = perceptor.prepare("depth", torch.full((1, 230, 230), 99.0))  # clipped at config.json's max_depth
    white = perceptor.prepare("image", torch.full((3, 230, 230), 255, dtype=torch.uint8))
    torch.testing.assert_close(far, white)


def test_without_transformers_one_line(monkeypatch, folder):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers.*: pip install cox-oom\[perceptors\]$"):
        languagebind.load(["image"], weights=folder)
    assert preprocess.clip_tokens(["the"], 77, "eot", folder / "LanguageBind_Image", 520).shape == (1, 77)
