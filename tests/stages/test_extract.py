"""Stage 1 with encoders trained here: how it reads a data set, which modalities it embeds."""

import os

import pytest
from worlds import refused, run_dir, stage, write_folder

import extract_features
from cox_oom import files
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")


def test_im_chooses_modalities(folder, tmp_path):
    stage("extract_features", folder, tmp_path, "--im rgb")
    assert os.listdir(Place(tmp_path, folder, "bind", "imu").banks()) == ["rgb.pt"]
    stage("train_connect", folder, tmp_path)
    stage("train_explore", folder, tmp_path)
    assert files.load(run_dir(tmp_path) / "cox.pt")["im"] == ["rgb"]
    rgb = Place(tmp_path, folder, "bind", "imu").banks() / "rgb.pt"
    before = rgb.read_bytes()
    refused("extract_features", folder, tmp_path, "--im language --force", parts=("rgb.pt", "--im"))
    assert rgb.read_bytes() == before and os.listdir(rgb.parent) == ["rgb.pt"]  # refused before any training


def test_synth_by_name(tmp_path):
    line = "--data synth --oom audio --im language --device cpu --bind-epochs 1 --bind-width 8 --image-size 8"
    extract_features.main([*line.split(), "--runs", str(tmp_path)])
    file = files.load(Place(tmp_path, "synth").inputs("audio"))
    assert file["kind"] == "series" and {0, 1, 2} == set(file["split"].tolist())


def test_frames_reach_the_reader(tmp_path, monkeypatch):
    own = write_folder(tmp_path / "toy", n=(9, 3, 6))
    real, seen = extract_features.datasets.read, []

    def look(data, **options):
        seen.append(options)
        return real(data, **options)

    monkeypatch.setattr(extract_features.datasets, "read", look)
    stage("extract_features", own, tmp_path / "runs", "--frames 5")
    assert seen == [{"root": None, "frames": 5}]
