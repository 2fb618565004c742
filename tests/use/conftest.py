"""A folder with every kind of recording, and a learner of each kind, trained once for all files here."""

import csv
import shutil

import numpy as np
import pytest
import torch
import worlds
from PIL import Image
from scipy.io import wavfile
from small_media import write_clip

import cox_oom
import evaluate
from cox_oom import export, files

KINDS = {"thermal": "image", "imu": "series", "pose": "series", "note": "text", "audio": "audio", "video": "video"}
CLASSES = ("cup", "key")
MODALITIES = ("thermal", "imu", "pose", "language", "audio", "video")


def write_folder(path, n=(24, 6, 8)):
    """One column of each of KINDS beside rgb; the items of imu differ in length and are longer than 16 steps; those of
    pose do not. The text column is named language."""
    rng, rows = np.random.default_rng(0), []
    columns = ["rgb", *("language" if m == "note" else m for m in KINDS)]
    for c in columns:
        (path / c).mkdir(parents=True)
    for split, count in zip(("train", "val", "test"), n):
        for k in range(count):
            c, name = k % 2, f"{split}{k}"
            for column, grey in (("rgb", False), ("thermal", k % 3 > 0)):
                picture = rng.integers(0, 200, (12, 10) if grey else (12, 10, 3)) + 50 * c
                Image.fromarray(picture.astype(np.uint8)).save(path / column / f"{name}.png")
            t = np.arange(rng.integers(12, 30))
            np.save(path / "imu" / f"{name}.npy", np.stack([np.sin(t * (0.4 + 0.5 * c)), t / 30]).astype(np.float32))
            np.save(path / "pose" / f"{name}.npy", (rng.standard_normal((1, 9)) + c).astype(np.float32))
            tone = np.sin(np.arange(int(16000 * rng.uniform(0.1, 0.3))) * (0.05 + 0.2 * c)) * 8000
            wavfile.write(path / "audio" / f"{name}.wav", 16000, tone.astype(np.int16))
            write_clip(path / "video" / f"{name}.mp4", seconds=0.4 + 0.4 * (k % 4), sound=False, size=(32, 32))
            files = [
                f"{m}/{name}{e}" for m, e in (("rgb", ".png"), ("thermal", ".png"), ("imu", ".npy"), ("pose", ".npy"))
            ]
            text = f"a {('red', 'long')[c]} {CLASSES[c]} number {rng.integers(99)} ü"
            rows.append([name, split, CLASSES[c], *files, text, f"audio/{name}.wav", f"video/{name}.mp4"])
    with open(path / "manifest.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows([["id", "split", "label", *columns], *rows])
    return path


def train(place):
    folder = write_folder(place / "many")
    with worlds.quickly():
        for m in MODALITIES:
            extract = "--im rgb --frames 2 --series-length 16 --workers 0"
            worlds.stage("extract_features", folder, place / "runs", extract, oom=m)
            worlds.stage("train_connect", folder, place / "runs", "--labels 0.5", oom=m)
            worlds.stage("train_explore", folder, place / "runs", "--method erm --epochs 3", oom=m)


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(folder, {modality: METHOD.pt}): erm of every modality of the folder, in a copy for this process."""
    place = worlds.once(tmp_path_factory, "use", train)
    runs = shutil.copytree(place / "runs", tmp_path_factory.mktemp("own") / "runs")
    return place / "many", {m: worlds.run_dir(runs, data="many", oom=m) / "erm.pt" for m in MODALITIES}


def changed(path, out, seed):
    """A copy of a METHOD.pt with other weights, whose temperature leaves its posteriors sure."""
    run, generator = files.load(path), torch.Generator().manual_seed(seed)
    for part in ("learner", "head"):
        run[part] = {k: v + 0.1 * torch.randn(v.shape, generator=generator) for k, v in run[part].items()}
    run["calibration"]["temperature"] = 0.2 + 0.1 * seed
    facts = {k: run["meta"][k] for k in ("stage", "data", "fingerprint", "args", "made_from")}
    files.save(out, {k: v for k, v in run.items() if k != "meta"}, **facts, quiet=True)
    return out


def learner_of(place, modality):
    return cox_oom.load(sorted(place.glob(f"{modality}[12].pt")))


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """{modality: (Trained, recordings, arguments of the exported file)} of the test rows, and the folder in which
    MODALITY.onnx and MODALITY.pt2 lie. Learners of pose are the average of two runs."""
    (folder, paths), found = trained, {}

    def export_all(place):
        for m in MODALITIES:
            for seed in (1, 2) if m == "pose" else (1,):
                changed(paths[m], place / f"{m}{seed}.pt", seed)
            for ending in (".onnx", ".pt2"):
                export.export(learner_of(place, m), place / (m + ending))

    out = worlds.once(tmp_path_factory, "exported", export_all)
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as f:
        rows = [row for row in csv.DictReader(f) if row["split"] == "test"]
    for m in MODALITIES:
        learner = learner_of(out, m)
        recordings = [row[m] if m == "language" else folder / row[m] for row in rows]
        items = [learner.prepared(learner.data(recordings).load(m, i)) for i in range(len(recordings))]
        args = (torch.stack([torch.as_tensor(item["x"]) for item in items]),)
        if learner.preparation["lengths"]:
            args += (torch.tensor([item["steps"] for item in items]),)
        found[m] = learner, recordings, args
    return found, out


@pytest.fixture
def named(capsys):
    """named(flags) -> (exit status, what it printed) of stage 4 with these flags."""

    def call(*flags):
        status = 0
        try:
            evaluate.main([str(f) for f in flags])
        except SystemExit as e:
            status = int(e.code or 0)
        return status, capsys.readouterr().out

    return call
