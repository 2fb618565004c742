"""Stage 1 with a pretrained perceptor: whose features the banks are, when they are kept, what stage 2 takes of them."""

import os
import shutil
from pathlib import Path

import fake_perceptor
import numpy as np
import pytest
import torch
from embedded import argv, bank_of, connect, expected, extract, refused, written
from PIL import Image

import extract_features
from cox_oom import data as datasets
from cox_oom import files
from cox_oom.files import Place, UserError
from cox_oom.perceptors import embed
from cox_oom.seed import load_banks

pytestmark = pytest.mark.usefixtures("quick", "fake")


def test_banks_are_the_perceptors_features(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 20)
    runs = tmp_path / "runs"
    out = extract(folder, runs, weights, "--im rgb,language,audio", "--batch-size 7")
    for m, role in (("rgb", "image"), ("language", "text"), ("audio", "audio")):
        file = bank_of(runs, m)
        z, ids = expected(folder, m, weights, role)
        assert file["ids"] == ids and len(ids) == (60 if m == "audio" else 90)
        torch.testing.assert_close(file["features"], z, rtol=1e-5, atol=1e-6)
        assert file["meta"]["weights"] == {"seed.pth": files.hashlib.sha256(b"seed 0").hexdigest()}
        assert file["meta"]["made_from"]["preprocessing"] == "fake-1" and file["meta"]["args"]["dtype"] == "float32"
        assert [file["class_names"][k] for k in file["labels"][:2]] == ["cup", "key"]
    assert not list(runs.rglob("*.parts")) and not (runs / "toy" / "inputs").exists()  # nothing learns here: no --oom
    assert "rgb as image" in out
    images = [shape[0] for role, shape in fake_perceptor.encoded if role == "image" and shape[0] > 1]
    assert images == [7, 7, 6] * 4 + [7, 3]
    text = [shape for role, shape in fake_perceptor.encoded if role == "text"]
    assert len({shape[1] for shape in text}) == 5 and max(shape[0] for shape in text) <= 7


def test_only_what_the_learner_needs_is_preprocessed_for_it(folder, weights, tmp_path):
    extract(folder, tmp_path / "runs", weights, "--oom audio")
    assert sorted(os.listdir(tmp_path / "runs/toy/inputs")) == ["audio.pt", "touch.pt"]  # touch: an encoder is trained
    made, _ = load_banks(Place(tmp_path / "runs", "toy", "imagebind", "audio"))
    assert sorted(made) == ["language", "rgb", "touch"] and made["touch"]["features"].shape == (90, 12)


def test_workers_change_nothing_and_two_runs_are_the_same_bytes(folder, weights, tmp_path):
    for runs, workers in (("a", 0), ("b", 2), ("c", 2)):
        extract(folder, tmp_path / runs, weights, "--oom audio", f"--workers {workers}")
    a, b, c = (written(tmp_path / r) for r in "abc")
    assert a.keys() == b.keys() == c.keys() and len(a) == 6
    for path in a:
        assert a[path] == b[path] == c[path], path


def test_video_frames_are_the_perceptors_choice(tmp_path, weights):
    world = datasets.read("synth", n_train=24, n_val=0, n_test=1)
    fake, parts = fake_perceptor.load(["video"], weights=weights), tmp_path / "parts"
    keywords = dict(batch_size=8, workers=0, device="cpu", known={}, complain=None)
    (part,) = embed.features(fake, "video", world, "video", [3, 5], parts, **keywords)
    assert fake_perceptor.encoded == [("video", (2, 2, 3, 8, 8))]
    assert part["rows"] == [3, 5] and part["features"].shape == (2, 12)


def test_a_model_of_transformers_for_each_modality(folder, tmp_path):
    pytest.importorskip("transformers")
    import tiny_hf

    tiny_hf.write(tmp_path / "clip", "clip"), tiny_hf.write(tmp_path / "clap", "clap")
    spec = f"rgb=hf:{tmp_path / 'clip'},audio=hf:{tmp_path / 'clap'}"
    out = extract(folder, tmp_path / "runs", "", "--oom touch", perceptor=spec)
    assert "training encoders on language against the features of rgb" in out
    made, _ = load_banks(Place(tmp_path / "runs", "toy", spec, "touch"))
    assert {m: len(f["features"]) for m, f in made.items()} == {"rgb": 90, "audio": 60, "language": 90}
    assert all(f["features"].shape[1:] == (8,) for f in made.values())
    assert made["rgb"]["meta"]["args"]["perceptor"] == f"hf:{tmp_path / 'clip'}"
    again = extract(folder, tmp_path / "runs", "", "--oom touch", perceptor=spec)
    assert again.count("already done") == 6 and "training" not in again
    spec, parts = f"audio=hf:{tmp_path / 'clip'}", ("audio=hf:", "no encoder for audio; it embeds image, text")
    refused(folder, tmp_path / "runs", "", "--oom touch", perceptor=spec, parts=parts)


def test_options_of_a_perceptor(folder, weights, tmp_path, monkeypatch):
    parts = ("focal", "imagebind has no options")
    refused(folder, tmp_path, weights, "--im rgb", "--perceptor-option focal=5", parts=parts)
    monkeypatch.setattr(fake_perceptor, "OPTIONS", {"focal": "of the camera"}, raising=False)
    refused(folder, tmp_path, weights, "--im rgb", "--perceptor-option tone=5", parts=("tone", "the options focal"))
    real, seen = fake_perceptor.load, []
    monkeypatch.setattr(fake_perceptor, "load", lambda roles, focal=None, **kw: seen.append(focal) or real(roles, **kw))
    extract(folder, tmp_path, weights, "--im rgb", "--perceptor-option focal=5")
    assert seen == ["5"] and bank_of(tmp_path, "rgb")["meta"]["args"]["focal"] == "5"
    refused(folder, tmp_path, weights, "--im rgb", parts=("rgb.pt", "--focal 5", "--force"))


def test_a_finished_bank_is_kept_or_refused(folder, weights, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    extract(folder, runs, weights, "--im rgb")
    fake_perceptor.encoded.clear()
    assert "already done" in extract(folder, runs, weights, "--im rgb", "--batch-size 5") and not fake_perceptor.encoded
    refused(folder, runs, weights, "--im rgb", "--dtype bfloat16", parts=("rgb.pt", "--dtype float32", "--force"))
    with monkeypatch.context() as m:
        m.setattr(fake_perceptor, "PREPROCESSING", "fake-2")
        refused(folder, runs, weights, "--im rgb", parts=("rgb.pt", "preprocessing", "--force"))
    weights.write_bytes(b"seed 1")
    refused(folder, runs, weights, "--im rgb", parts=("rgb.pt", "file of weights", "--force"))
    extract(folder, runs, weights, "--im rgb", "--force")
    torch.testing.assert_close(bank_of(runs, "rgb")["features"], expected(folder, "rgb", weights, "image")[0])
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(own / "rgb/0.png")
    refused(own, runs, weights, "--im rgb", parts=("rgb.pt", "1 items other", "--force"))


def test_banks_made_elsewhere_need_no_weights_here(folder, weights, tmp_path):
    extract(folder, tmp_path / "runs", weights, "--im rgb")
    flags = argv(folder, tmp_path / "runs", weights, "--im rgb")
    at = flags.index("--weights")
    weights.unlink()
    extract_features.main(flags[:at] + flags[at + 2 :])
    refused(folder, tmp_path / "runs", weights, "--im rgb", parts=("--weights", "needs a file"))  # named, and not there


def test_bfloat16_is_computed_in_bfloat16(folder, weights, tmp_path):
    extract(folder, tmp_path / "runs", weights, "--im rgb", "--dtype bfloat16")
    z, exact = bank_of(tmp_path / "runs", "rgb")["features"], expected(folder, "rgb", weights, "image")[0]
    assert z.dtype == torch.float32 and 1e-4 < (z - exact).abs().max() < 2e-2


def test_features_that_are_not_finite_are_named(folder, weights, tmp_path, monkeypatch):
    def nothing(self, role, batch):
        return torch.full((len(batch), 12), torch.nan)

    monkeypatch.setattr(fake_perceptor.Perceptor, "encode", nothing)
    refused(folder, tmp_path / "runs", weights, "--im rgb", parts=("not finite", "--dtype"))


def test_stage_2_takes_the_banks_that_stage_1_chose(folder, weights, tmp_path):
    runs = tmp_path / "runs"
    extract(folder, runs, weights, "--im rgb,language,audio")
    extract(folder, runs, weights, "--oom audio", "--im rgb")
    made, made_from = load_banks(Place(runs, "toy", "imagebind", "audio"))
    assert list(made) == ["rgb"] and set(made_from) == {"banks/rgb", "choice of IM modalities"}
    assert "audio from rgb:" in connect(folder, runs)
    refused(folder, runs, weights, "--oom audio", "--im rgb,touch", parts=("im.pt", "--im ['rgb']", "--force"))
    extract(folder, runs, weights, "--oom audio", "--im rgb,touch", "--force")
    with pytest.raises(UserError, match="connect.pt was made from an earlier choice of IM modalities"):
        connect(folder, runs)


def test_some_of_the_banks_are_not_taken_for_all(folder, weights, tmp_path):
    extract(folder, tmp_path / "runs", weights, "--oom audio")
    (Place(tmp_path / "runs", "toy", "imagebind", "audio").banks() / "rgb.pt").unlink()
    words = "lacks the bank of rgb; run first: .*extract_features.py.*--perceptor imagebind"
    with pytest.raises(UserError, match=words):
        connect(folder, tmp_path / "runs")


def test_jobs_that_share_a_disk_alone_make_the_same_bank(folder, weights, tmp_path, monkeypatch):
    """--share: each embeds its parts, in any order and some twice; the plain command joins them and embeds nothing."""
    monkeypatch.setattr(embed, "PART", 20)
    extract(folder, tmp_path / "a", weights, "--im rgb,language --oom audio")
    for k in (2, 0, 1, 2):
        begun = len(fake_perceptor.encoded)
        out = extract(folder, tmp_path / "b", weights, f"--im rgb,language --oom audio --share {k}/3")
        assert f"part {k} of 3 done" in out and not list((tmp_path / "b").rglob("rgb.pt"))
    assert len(fake_perceptor.encoded) == begun  # the second time nothing was left to it
    extract(folder, tmp_path / "b", weights, "--im rgb,language --oom audio")
    assert len(fake_perceptor.encoded) == begun
    a, b = written(tmp_path / "a"), written(tmp_path / "b")
    assert a == b and len(a) == 4
