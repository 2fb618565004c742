"""Stage 1 with a pretrained perceptor: what is embedded and by whom, parts, workers, stops, broken media. The
perceptor is tests/fake_perceptor.py in the place of imagebind."""

import contextlib
import csv
import io
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import fake_perceptor
import numpy as np
import pytest
import torch
from PIL import Image

import extract_features
import train_connect
from cox_oom import data as datasets
from cox_oom import files, model, perceptors
from cox_oom.data import ahead
from cox_oom.files import UserError
from cox_oom.perceptors import embed

HEADER = ("id", "split", "label", "rgb", "language", "audio", "touch")
N = 90


def write_folder(path, n=N, seed=0):
    """rgb and touch 8 x 8 png, language of unlike lengths, audio wav; a third of the rows have no audio."""
    import soundfile

    rng, rows = np.random.default_rng(seed), []
    for folder in ("rgb", "audio", "touch"):
        (path / folder).mkdir(parents=True)
    for k in range(n):
        c, split = k % 3, "train" if k < 2 * n // 3 else "val" if k % 6 == 0 else "test"
        picture = rng.integers(0, 100, (8, 8, 3))
        picture[:, :, c] += 120
        Image.fromarray(picture.astype(np.uint8)).save(path / f"rgb/{k}.png")
        felt = rng.integers(0, 100, (8, 8))
        felt[2 * c : 2 * c + 3] += 120
        Image.fromarray(felt.astype(np.uint8)).save(path / f"touch/{k}.png")
        if k % 3 != 2:
            t = np.arange(rng.integers(800, 6000)) / 16000
            soundfile.write(path / f"audio/{k}.wav", 0.3 * np.sin(2 * np.pi * (200 + 300 * c) * t), 16000)
        rows.append(
            [
                f"i{k}",
                split,
                ("cup", "key", "pen")[c],
                f"rgb/{k}.png",
                f"{'a' * (1 + k % 5)} thing {c}",
                f"audio/{k}.wav" if k % 3 != 2 else "",
                f"touch/{k}.png",
            ]
        )
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows([HEADER, *rows])
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("data") / "toy")


@pytest.fixture
def weights(tmp_path):
    (tmp_path / "seed.pth").write_bytes(b"seed 0")
    return tmp_path / "seed.pth"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Heads of 20 steps and one thread: nothing here asks how good a head is."""
    threads, steps = torch.get_num_threads(), model.fit_head.__kwdefaults__["steps"]
    torch.set_num_threads(1)
    model.fit_head.__kwdefaults__["steps"] = 20
    yield
    torch.set_num_threads(threads)
    model.fit_head.__kwdefaults__["steps"] = steps


@pytest.fixture(autouse=True)
def fake(monkeypatch):
    monkeypatch.setitem(sys.modules, "cox_oom.perceptors.imagebind", fake_perceptor)
    monkeypatch.setattr(perceptors, "imagebind", fake_perceptor, raising=False)
    fake_perceptor.encoded.clear()


def argv(folder, runs, weights, *flags, perceptor="imagebind"):
    return [
        "--data",
        str(folder),
        "--runs",
        str(runs),
        "--device",
        "cpu",
        "--image-size",
        "8",
        "--bind-epochs",
        "2",
        "--bind-width",
        "8",
        "--perceptor",
        perceptor,
        "--weights",
        str(weights),
        *(word for f in flags for word in f.split()),
    ]


def extract(folder, runs, weights, *flags, perceptor="imagebind"):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        extract_features.main(argv(folder, runs, weights, *flags, perceptor=perceptor))
    return out.getvalue()


def refused(*args, parts, **kw):
    with pytest.raises(UserError) as caught:
        extract(*args, **kw)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value), f"{part!r} is not in: {caught.value}"


def bank_of(runs, m, trained=False, oom="audio"):
    return files.load(files.bank_dir(runs, "toy", "imagebind", oom, trained=trained) / f"{m}.pt")


def written(runs):
    """{path: bytes} of everything that stage 1 wrote but its log."""
    return {
        str(p.relative_to(runs)): p.read_bytes()
        for p in sorted(Path(runs).rglob("*"))
        if p.is_file() and p.suffix != ".log"
    }


# ------------------------------------------------------------------------------------------------ who embeds what


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


def test_names_of_perceptors_are_folders():
    assert (
        files.perceptor_name("rgb=hf:google/siglip2-base,audio=hf:laion/clap")
        == "rgb=hf_google_siglip2-base,audio=hf_laion_clap"
    )
    long = [files.perceptor_name(f"hf:{'x' * 200}{k}") for k in range(2)]
    assert len(set(long)) == 2 and all(len(n) < 130 for n in long) and files.perceptor_name(long[0]) == long[0]


# ------------------------------------------------------------------------------------------------------ the banks


def expected(folder, m, weights, role):
    """One item at a time, in this process."""
    data, fake = datasets.read(str(folder)), fake_perceptor.load([role], weights=weights)
    rows = [i for i, c in enumerate(data.cells[m]) if c is not None]
    z = [fake.encode(role, fake.preparer().prepare(role, data.load(m, r))[None]) for r in rows]
    return torch.cat(z), [data.ids[r] for r in rows]


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
    made, _ = files.load_banks(tmp_path / "runs", "toy", "imagebind", "audio")
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
    z, rows = embed.features(
        fake_perceptor.load(["video"], weights=weights),
        "video",
        world,
        "video",
        [3, 5],
        tmp_path / "parts",
        batch_size=8,
        workers=0,
        device="cpu",
        known={},
        complain=None,
    )
    assert fake_perceptor.encoded == [("video", (2, 2, 3, 8, 8))] and rows == [3, 5] and z.shape == (2, 12)


def test_a_model_of_transformers_for_each_modality(folder, tmp_path):
    pytest.importorskip("transformers")
    import tiny_hf

    tiny_hf.write(tmp_path / "clip", "clip"), tiny_hf.write(tmp_path / "clap", "clap")
    spec = f"rgb=hf:{tmp_path / 'clip'},audio=hf:{tmp_path / 'clap'}"
    out = extract(folder, tmp_path / "runs", "", "--oom touch", perceptor=spec)
    assert "training encoders on language against the features of rgb" in out
    made, _ = files.load_banks(tmp_path / "runs", "toy", spec, "touch")
    assert {m: tuple(f["features"].shape) for m, f in made.items()} == {
        "rgb": (90, 8),
        "audio": (60, 8),
        "language": (90, 8),
    }
    assert made["rgb"]["meta"]["args"]["perceptor"] == f"hf:{tmp_path / 'clip'}"
    again = extract(folder, tmp_path / "runs", "", "--oom touch", perceptor=spec)
    assert again.count("already done") == 6 and "training" not in again
    refused(
        folder,
        tmp_path / "runs",
        "",
        "--oom touch",
        perceptor=f"audio=hf:{tmp_path / 'clip'}",
        parts=("audio=hf:", "no encoder for audio; it embeds image, text"),
    )


def test_options_of_a_perceptor(folder, weights, tmp_path, monkeypatch):
    refused(
        folder, tmp_path, weights, "--im rgb", "--perceptor-option focal=5", parts=("focal", "imagebind has no options")
    )
    monkeypatch.setattr(fake_perceptor, "OPTIONS", {"focal": "of the camera"}, raising=False)
    refused(folder, tmp_path, weights, "--im rgb", "--perceptor-option tone=5", parts=("tone", "the options focal"))
    real, seen = fake_perceptor.load, []
    monkeypatch.setattr(fake_perceptor, "load", lambda roles, focal=None, **kw: seen.append(focal) or real(roles, **kw))
    extract(folder, tmp_path, weights, "--im rgb", "--perceptor-option focal=5")
    assert seen == ["5"] and bank_of(tmp_path, "rgb")["meta"]["args"]["focal"] == "5"
    refused(folder, tmp_path, weights, "--im rgb", parts=("rgb.pt", "--focal 5", "--force"))


# ---------------------------------------------------------------------------------------------------------- stops


def in_child(work, seconds=None):
    """work() in a forked process, killed after so many seconds; its exit status."""
    child = os.fork()
    if child == 0:
        try:
            torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    until = time.time() + (60 if seconds is None else seconds)
    while time.time() < until:
        if (done := os.waitpid(child, os.WNOHANG)) != (0, 0):
            return done[1]
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def test_killed_at_any_moment_the_same_command_gives_the_same_bytes(folder, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 10)
    monkeypatch.setenv("COX_FAKE_SLEEP", "0.01")

    def work(runs):
        return lambda: extract(folder, tmp_path / runs, weights, "--oom audio", "--batch-size 4", "--workers 2")

    begun = time.time()
    assert in_child(work("whole")) == 0
    took, whole, draw, parts = time.time() - begun, written(tmp_path / "whole"), random.Random(3), set()
    for k in range(3):
        for kill in range(8):
            if in_child(work(f"killed{k}"), took * draw.uniform(0.05, 0.9)) == 0:
                break
            parts |= set((tmp_path / f"killed{k}").rglob("*.parts/*.pt"))
        assert in_child(work(f"killed{k}")) == 0
        again = written(tmp_path / f"killed{k}")
        assert again.keys() == whole.keys()
        for path in whole:
            assert again[path] == whole[path], path
    assert parts, "no run was killed between two parts"


def stopped(folder, runs, weights, monkeypatch, after, *flags):
    """Stage 1 over rgb in parts of 20, interrupted when `after` batches were encoded."""
    monkeypatch.setattr(embed, "PART", 20)
    real = fake_perceptor.Perceptor.encode

    def encode(self, role, batch):
        if len(fake_perceptor.encoded) == after:
            raise KeyboardInterrupt
        return real(self, role, batch)

    with monkeypatch.context() as m:
        m.setattr(fake_perceptor.Perceptor, "encode", encode)
        with pytest.raises(KeyboardInterrupt):
            extract(folder, runs, weights, "--im rgb", *flags)
    return files.bank_dir(runs, "toy", "imagebind", None) / "rgb.parts"


def test_finished_parts_are_not_made_again(folder, weights, tmp_path, monkeypatch):
    parts = stopped(folder, tmp_path / "runs", weights, monkeypatch, 3)
    assert sorted(os.listdir(parts)) == ["00000000.pt", "00000020.pt", "00000040.pt"]
    (parts / "00000020.pt").write_bytes(b"torn")
    fake_perceptor.encoded.clear()
    extract(folder, tmp_path / "runs", weights, "--im rgb")
    assert [shape[0] for _, shape in fake_perceptor.encoded] == [20, 20, 10]  # the torn one, and the two that lacked
    assert not parts.exists()
    torch.testing.assert_close(
        bank_of(tmp_path / "runs", "rgb")["features"], expected(folder, "rgb", weights, "image")[0]
    )


@pytest.mark.parametrize("change", ["weights", "batch", "dtype", "data", "force"])
def test_parts_of_other_work_are_made_again(folder, weights, tmp_path, monkeypatch, change):
    stopped(folder, tmp_path / "runs", weights, monkeypatch, 3)
    fake_perceptor.encoded.clear()
    flags = {"batch": ["--batch-size 10"], "dtype": ["--dtype bfloat16"], "force": ["--force"]}.get(change, [])
    own = folder
    if change == "weights":
        weights.write_bytes(b"seed 1")
    if change == "data":
        own = Path(shutil.copytree(folder, tmp_path / "toy"))
        Image.fromarray(np.full((8, 8, 3), 7, np.uint8)).save(own / "rgb/0.png")
    extract(own, tmp_path / "runs", weights, "--im rgb", *flags)
    assert sum(shape[0] for _, shape in fake_perceptor.encoded) == 90


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
    refused(own, runs, weights, "--im rgb", parts=("rgb.pt", "other data", "--force"))


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
    monkeypatch.setattr(
        fake_perceptor.Perceptor, "encode", lambda self, role, batch: torch.full((len(batch), 12), torch.nan)
    )
    refused(folder, tmp_path / "runs", weights, "--im rgb", parts=("not finite", "--dtype"))


# ----------------------------------------------------------------------------------------------- what later stages take

CONNECT = (
    "--width 16 --depth 1 --patch 4 --warmup-epochs 1 --batch 16 --labelled-batch 8 --connect-steps 2 --labels 0.3"
)


def connect(folder, runs, perceptor="imagebind"):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        train_connect.main(
            [
                "--data",
                str(folder),
                "--runs",
                str(runs),
                "--oom",
                "audio",
                "--device",
                "cpu",
                "--perceptor",
                perceptor,
                *CONNECT.split(),
            ]
        )
    return out.getvalue()


def test_stage_2_takes_the_banks_that_stage_1_chose(folder, weights, tmp_path):
    runs = tmp_path / "runs"
    extract(folder, runs, weights, "--im rgb,language,audio")
    extract(folder, runs, weights, "--oom audio", "--im rgb")
    made, made_from = files.load_banks(runs, "toy", "imagebind", "audio")
    assert list(made) == ["rgb"] and set(made_from) == {"banks/rgb", "choice of IM modalities"}
    assert "audio from rgb:" in connect(folder, runs)
    refused(folder, runs, weights, "--oom audio", "--im rgb,touch", parts=("im.pt", "--im ['rgb']", "--force"))
    extract(folder, runs, weights, "--oom audio", "--im rgb,touch", "--force")
    with pytest.raises(UserError, match="connect.pt was made from an earlier choice of IM modalities"):
        connect(folder, runs)


def test_some_of_the_banks_are_not_taken_for_all(folder, weights, tmp_path):
    extract(folder, tmp_path / "runs", weights, "--oom audio")
    (files.bank_dir(tmp_path / "runs", "toy", "imagebind", "audio") / "rgb.pt").unlink()
    with pytest.raises(
        UserError, match="lacks the bank of rgb; run first: .*extract_features.py.*--perceptor imagebind"
    ):
        connect(folder, tmp_path / "runs")


def test_touch_bound_to_features_that_have_changed_is_refused(folder, weights, tmp_path):
    runs = tmp_path / "runs"
    extract(folder, runs, weights, "--oom audio")
    weights.write_bytes(b"seed 1")
    extract(folder, runs, weights, "--im rgb,language", "--force")
    with pytest.raises(UserError, match="touch.pt was made from an earlier banks/rgb"):
        connect(folder, runs)
    refused(folder, runs, weights, "--oom audio", parts=("touch.pt", "banks/rgb", "--force"))


# ----------------------------------------------------------------------------------------- encoders trained beside it


def test_touch_is_bound_to_the_image_or_else_to_what_there_is(folder, weights, tmp_path):
    out = extract(folder, tmp_path / "a", weights, "--oom audio")
    assert "training encoders on touch against the features of rgb" in out
    file = bank_of(tmp_path / "a", "touch", trained=True)
    assert file["meta"]["args"]["target"] == "rgb" and file["features"].shape == (90, 12) and "encoder" in file
    assert set(file["meta"]["made_from"]) == {"inputs/touch", "banks/rgb"}
    out = extract(folder, tmp_path / "b", weights, "--oom rgb", "--im language,touch")
    assert "training encoders on touch against the features of language" in out  # the image is what is to be learnt


def test_bound_features_find_their_partners(folder, weights, tmp_path):
    """On rows never trained on, the touch of a class lies nearer to the images of that class."""
    extract(folder, tmp_path / "r", weights, "--oom audio", "--bind-epochs 60", "--bind-width 32")
    touch, rgb = bank_of(tmp_path / "r", "touch", trained=True), bank_of(tmp_path / "r", "rgb")
    rows = files.rows(touch, ("test",))
    near = touch["features"][rows] @ rgb["features"][rows].T
    same = touch["labels"][rows][:, None] == rgb["labels"][rows]
    assert near[same].mean() > near[~same].mean() + 0.1
    torch.testing.assert_close(touch["features"].norm(dim=1), torch.ones(90))


def test_encoders_see_neither_test_rows_nor_the_oom_modality(folder, weights, tmp_path):
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    for k in range(60, 90):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(own / f"rgb/{k}.png")
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8), dtype=np.uint8)).save(own / f"touch/{k}.png")
    for path in (own / "audio").iterdir():
        path.write_bytes((own / "audio/0.wav").read_bytes())
    extract(folder, tmp_path / "a", weights, "--oom audio"), extract(own, tmp_path / "b", weights, "--oom audio")
    a, b = (bank_of(tmp_path / r, "touch", trained=True) for r in "ab")
    assert all(torch.equal(a["encoder"][k], b["encoder"][k]) for k in a["encoder"])
    assert torch.equal(a["features"][:60], b["features"][:60]) and not torch.equal(a["features"], b["features"])


def test_an_encoder_trained_here_needs_to_know_the_oom_modality(folder, weights, tmp_path):
    refused(folder, tmp_path, weights, parts=("no encoder for touch", "--oom", "--im rgb,language,audio"))


# --------------------------------------------------------------------------------- broken, missing and silent media


@pytest.fixture
def spoilt(folder, tmp_path):
    """A broken image in row 3, a silent sound in row 4, a torn one in row 6."""
    import soundfile

    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    (own / "rgb/3.png").write_bytes((own / "rgb/3.png").read_bytes()[:60])
    soundfile.write(own / "audio/4.wav", np.full(4000, 2e-5), 16000)
    (own / "audio/6.wav").write_bytes(b"RIFF")
    return own


def listed(runs, m):
    with open(files.media_path(runs, "toy", m), newline="") as f:
        return [row[:2] for row in csv.reader(f)][1:]


def test_broken_media_are_fatal_or_left_out_counted_and_listed(spoilt, weights, tmp_path):
    runs = tmp_path / "runs"
    refused(spoilt, runs, weights, "--oom audio", parts=("audio/6.wav", "(id i6)", ";"))
    out = extract(spoilt, runs, weights, "--oom audio", "--on-error skip")
    rgb, audio = bank_of(runs, "rgb"), files.load(files.inputs_path(runs, "toy", "audio"))
    assert "i3" not in rgb["ids"] and len(rgb["ids"]) == len(rgb["features"]) == 89
    assert (
        "i6" not in audio["ids"]
        and "i4" in audio["ids"]
        and len(audio["ids"]) == len(audio["x"]) == len(audio["lengths"]) == 59
    )
    assert "features (89, 12), 1 broken (left out): see" in out and "1 broken (left out), 1 silent (kept): see" in out
    assert listed(runs, "rgb") == [["i3", "broken"]] and listed(runs, "audio") == [["i4", "silent"], ["i6", "broken"]]
    assert not files.media_path(runs, "toy", "language").exists()
    assert "1 broken (left out), 1 silent (kept)" in extract(spoilt, runs, weights, "--oom audio", "--on-error skip")
    connect(spoilt, runs)  # rows that lack a modality are nothing new to stage 2
    clean = datasets.read(str(spoilt))
    row = clean.ids.index("i7")
    z = expected_row(clean, "rgb", row, weights, "image")
    torch.testing.assert_close(rgb["features"][rgb["ids"].index("i7")], z)


def expected_row(data, m, row, weights, role):
    fake = fake_perceptor.load([role], weights=weights)
    return fake.encode(role, fake.preparer().prepare(role, data.load(m, row))[None])[0]


def test_silence_is_a_choice_of_its_own(spoilt, weights, tmp_path):
    skip = "--on-error skip"
    extract(spoilt, tmp_path / "a", weights, "--im audio", skip, "--on-silence skip")
    assert len(bank_of(tmp_path / "a", "audio")["ids"]) == 58 and listed(tmp_path / "a", "audio")[0] == ["i4", "silent"]
    refused(
        spoilt,
        tmp_path / "b",
        weights,
        "--im audio",
        skip,
        "--on-silence fatal",
        parts=("audio/4.wav (id i4): audio is silent", "--on-silence"),
    )
    refused(spoilt, tmp_path / "a", weights, "--im audio", skip, parts=("audio.pt", "--on-silence skip", "--force"))
    out = extract(spoilt, tmp_path / "c", weights, "--oom audio", "--im rgb", skip, "--on-silence skip")
    assert "1 broken (left out), 1 silent (left out)" in out


def test_what_parts_left_out_is_listed_after_a_stop(spoilt, weights, tmp_path, monkeypatch):
    stopped(spoilt, tmp_path / "runs", weights, monkeypatch, 3, "--on-error skip")
    extract(spoilt, tmp_path / "runs", weights, "--im rgb", "--on-error skip")
    assert listed(tmp_path / "runs", "rgb") == [["i3", "broken"]]
    extract(spoilt, tmp_path / "other", weights, "--im rgb", "--on-error skip")
    assert bank_of(tmp_path / "runs", "rgb")["meta"]["digest"] == bank_of(tmp_path / "other", "rgb")["meta"]["digest"]


def test_a_broken_file_found_late_costs_nothing_that_was_done(spoilt, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(embed, "PART", 2)
    refused(spoilt, tmp_path / "runs", weights, "--im rgb", parts=("rgb/3.png",))
    fake_perceptor.encoded.clear()
    extract(spoilt, tmp_path / "runs", weights, "--im rgb", "--on-error skip")
    assert sum(shape[0] for _, shape in fake_perceptor.encoded) == 87


def read_table(path):
    with open(path / "manifest.csv", newline="") as f:
        return list(csv.reader(f))


def write_table(path, rows):
    with open(path / "manifest.csv", "w", newline="") as f:
        csv.writer(f).writerows(rows)


@pytest.fixture
def holed(folder, tmp_path):
    """Row 0's image is missing, row 1's empty, row 3's sound missing, row 4's empty, row 62's touch missing."""
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    for name in ("rgb/0.png", "audio/3.wav", "touch/62.png"):
        (own / name).unlink()
    for name in ("rgb/1.png", "audio/4.wav"):
        (own / name).write_bytes(b"")
    return own


def test_missing_and_empty_files_of_a_folder_are_fatal_or_left_out_counted_and_listed(holed, weights, tmp_path):
    runs = tmp_path / "runs"
    refused(
        holed,
        runs,
        weights,
        "--oom audio",
        parts=("manifest.csv, row 2 (id i0)", "rgb/0.png", "2 more missing", "; put"),
    )
    refused(
        holed,
        runs,
        weights,
        "--oom audio",
        "--im language",
        parts=("row 5 (id i3)", "audio/3.wav", "is not there; put"),
    )
    assert not runs.exists()
    out = extract(holed, runs, weights, "--oom audio", "--on-error skip")
    rgb, audio = bank_of(runs, "rgb"), files.load(files.inputs_path(runs, "toy", "audio"))
    assert rgb["ids"] == [f"i{k}" for k in range(2, 90)] and not {"i3", "i4"} & set(audio["ids"])
    assert (
        len(audio["ids"]) == len(audio["x"]) == 58 and out.count("1 missing (left out), 1 broken (left out): see") == 2
    )
    assert listed(runs, "rgb") == [["i0", "missing"], ["i1", "broken"]] and listed(runs, "touch") == [
        ["i62", "missing"]
    ]
    assert listed(runs, "audio") == [["i3", "missing"], ["i4", "broken"]]
    assert extract(holed, runs, weights, "--oom audio", "--on-error skip").count("already done") == 6
    connect(holed, runs)
    shutil.copy(holed / "rgb/2.png", holed / "rgb/0.png")  # mended: other data
    refused(holed, runs, weights, "--oom audio", "--on-error skip", parts=("other data", "--force"))
    extract(holed, runs, weights, "--oom audio", "--on-error skip", "--force")
    assert bank_of(runs, "rgb")["ids"][:2] == ["i0", "i2"]


def test_empty_headers_of_arrays_are_left_out(tmp_path, weights):
    own, rng = tmp_path / "toy", np.random.default_rng(0)
    (own / "grip").mkdir(parents=True)
    rows = [["id", "split", "label", "language", "grip"]]
    for k in range(30):
        np.save(own / f"grip/{k}.npy", rng.standard_normal((2, 9)))
        rows.append([f"i{k}", "train" if k < 20 else "test", "ab"[k % 2], f"thing {k % 2}", f"grip/{k}.npy"])
    write_table(own, rows)
    (own / "grip/0.npy").write_bytes(b""), (own / "grip/25.npy").write_bytes(b"noise")
    refused(own, tmp_path / "runs", weights, "--oom grip", parts=("row 2 (id i0)", "grip/0.npy", "is an empty file"))
    extract(own, tmp_path / "runs", weights, "--oom grip", "--on-error skip")
    assert len(files.load(files.inputs_path(tmp_path / "runs", "toy", "grip"))["ids"]) == 28
    assert listed(tmp_path / "runs", "grip") == [["i0", "broken"], ["i25", "broken"]]


@pytest.mark.parametrize("content", [None, b"", b"noise"], ids=["missing", "empty", "undecodable"])
@pytest.mark.parametrize("m, flags", [("touch", "--oom audio"), ("touch", "--oom touch"), ("rgb", "--oom audio")])
def test_a_modality_whose_train_items_are_all_left_out_is_named(folder, weights, tmp_path, content, m, flags):
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    for k in range(60):
        (own / f"{m}/{k}.png").unlink() if content is None else (own / f"{m}/{k}.png").write_bytes(content)
    refused(
        own,
        tmp_path / "runs",
        weights,
        flags,
        "--on-error skip",
        parts=("toy", f"all {m} items of the rows of split train, 60 in number", "left out; replace"),
    )
    assert not list((tmp_path / "runs").rglob("banks/*.pt"))


def test_a_sensor_without_a_labelled_test_item_is_refused_before_anything_is_encoded(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [rows[0], *([*r[:2], "" if r[1] == "test" else r[2], *r[3:]] for r in rows[1:])])  # no test label
    refused(
        own,
        tmp_path / "runs",
        weights,
        "--oom touch",
        parts=("no row of split test that has a touch item has a label", "stage 4", "label some of them"),
    )
    write_table(own, [rows[0], *([*r[:6], "" if r[1] == "test" else r[6]] for r in rows[1:])])  # no test cell
    refused(
        own,
        tmp_path / "runs",
        weights,
        "--oom touch",
        parts=("no labelled row of split test has a touch item", "stage 4", "set the split"),
    )
    assert not fake_perceptor.encoded and not (tmp_path / "runs").exists()
    extract(own, tmp_path / "runs", weights, "--oom audio", "--im rgb,touch")  # an IM modality may
    fake_perceptor.encoded.clear()
    write_table(own, rows)
    for r in rows[1:]:
        if r[1] == "test":
            (own / r[6]).write_bytes(b"noise")
    refused(
        own,
        tmp_path / "other",
        weights,
        "--oom touch",
        "--on-error skip",
        parts=("all touch items of the labelled rows of split test, 25 in number", "stage 4", "replace"),
    )
    assert not fake_perceptor.encoded


def test_a_sensor_without_a_train_item_is_refused_with_table_and_column(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [rows[0], *([*r[:6], "" if r[1] == "train" else r[6]] for r in rows[1:])])
    refused(
        own,
        tmp_path / "runs",
        weights,
        "--oom touch",
        parts=("manifest.csv: column touch has no filled cell in the train", "; fill some"),
    )


def test_columns_that_are_no_modality_stop_nothing_where_im_leaves_them_out(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [[*rows[0], "comment", "time"], *([*r, "good", "1:30"] for r in rows[1:])])
    refused(
        own,
        tmp_path / "runs",
        weights,
        "--oom audio",
        parts=("comment 'good'", "remove the column if it is no modality"),
    )
    refused(
        own,
        tmp_path / "runs",
        weights,
        "--oom audio",
        "--im rgb,comment",
        parts=("comment 'good'", "remove the column"),
    )
    extract(own, tmp_path / "runs", weights, "--oom audio", "--im rgb")
    assert "already done" in extract(
        own, tmp_path / "runs", weights, "--im rgb,language"
    )  # other columns, the same data


# ------------------------------------------------------------------------------------------------ decoding ahead


def test_items_come_in_order_from_any_number_of_workers():
    world, rows = datasets.read("synth", n_train=100, n_val=0, n_test=1), list(range(99, 10, -1))
    alone = list(ahead.decoded(world, "rgb", rows, lambda x: x[:, ::4, ::4], workers=0))
    side = list(ahead.decoded(world, "rgb", rows, lambda x: x[:, ::4, ::4], workers=2))
    assert [place for place, _, _ in side] == list(range(89)) and len(alone) == 89
    assert all((a[1] == b[1]).all() and a[2] is b[2] is None for a, b in zip(alone, side))


def refuse(raw):
    raise UserError("has 3 channels, 6 are needed")


@pytest.mark.parametrize("workers", [0, 2])
def test_what_preprocessing_refuses_stops_with_one_line(workers):
    world = datasets.read("synth", n_train=100, n_val=0, n_test=1)
    with pytest.raises(UserError, match=r"^train-00000 \(id train-00000\): has 3 channels, 6 are needed$"):
        list(ahead.decoded(world, "rgb", range(100), refuse, workers=workers))


def die(raw):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_dies_is_said_in_one_line():
    world = datasets.read("synth", n_train=100, n_val=0, n_test=1)
    with pytest.raises(UserError, match="reading rgb: a worker process died .*--workers"):
        list(ahead.decoded(world, "rgb", range(100), die, workers=2))
