"""`--as COLUMN=KIND`: a column is read as what it is told to be, and finished files remember it."""

import json
import shutil

import numpy as np
import pytest
from pets import HEADER, complaint, write
from worlds import read_manifest, refused, run_dir, stage, write_folder, write_manifest

import evaluate
import extract_features
from cox_oom import data as datasets
from cox_oom import files, perceptors
from cox_oom.files import UserError


def note(path):
    """A folder whose sentences stand in the column `note`."""
    return write(path, header=[*HEADER[:4], "note", "pulse"])


def test_sentences_of_any_column(tmp_path):
    message = complaint(note(tmp_path), "note 'a cat'", "name the column language", "--as note=language")
    assert "--im A,B" in message
    for kind in ("language", "text"):
        data = datasets.read(str(tmp_path), kinds={"note": kind})
        assert data.modalities == {"rgb": "image", "note": "text", "pulse": "series"}
        assert data.cells["note"] == ["a cat", None, None, "it barks", None] and data.load("note", 3) == "it barks"
        assert data.source["kinds"] == {"note": "text"}


def test_arrays_in_a_column_called_audio(tmp_path):
    """The name asks for sound files; told that it is series, its arrays are read."""
    write(tmp_path, header=[*HEADER[:5], "audio"])
    complaint(tmp_path, "row 2 (id a)", "audio 'pulse/a.npy'", "--as audio=series", "convert")
    data = datasets.read(str(tmp_path), kinds={"audio": "series"})
    assert data.modalities["audio"] == "series" and data.load("audio", 0).shape[0] == 2


def test_images_that_are_told_to_be_series_do_not_fit(tmp_path):
    write(tmp_path)
    for name in "abde":
        np.save(tmp_path / f"pulse/{name}.npy", np.zeros((2, 5, 5), np.float32))
    assert datasets.read(str(tmp_path)).modalities["pulse"] == "image"
    data = datasets.read(str(tmp_path), kinds={"pulse": "series"})
    assert data.broken == {"pulse": [0, 1, 3, 4]}
    with pytest.raises(UserError, match=r"row 2 \(id a\).* shape \(2, 5, 5\), not \(channels, time\)"):
        data.load("pulse", 0)
    write(tmp_path)
    with pytest.raises(UserError, match=r"row 2 \(id a\).*not \(channels, height, width\)"):
        datasets.read(str(tmp_path), kinds={"pulse": "image"}).load("pulse", 0)


@pytest.mark.parametrize("kind, words", [("audio", ".wav"), ("video", ".mp4"), ("series", ".npy")])
def test_files_of_another_kind_are_refused(tmp_path, kind, words):
    with pytest.raises(UserError, match=rf"row 2 \(id a\): rgb 'rgb/a.png' .* convert the file to one of: .*\{words}"):
        datasets.read(str(write(tmp_path)), kinds={"rgb": kind})


def test_the_fingerprint_knows_what_was_told(tmp_path):
    """And stays as it is where the name says the same, or nothing was told."""
    read = lambda **kinds: datasets.read(str(tmp_path), kinds=kinds).fingerprint
    write(tmp_path)
    plain = datasets.read(str(tmp_path)).fingerprint
    assert read() == read(rgb="image", language="language") == plain
    assert len({plain, read(rgb="language"), read(language="text", pulse="text")}) == 3


@pytest.mark.parametrize(
    "kinds, words",
    [
        ({"nose": "image"}, "--as nose=image: .*manifest.csv has the columns rgb, language, pulse; name one"),
        ({"rgb": "smell"}, "--as rgb=smell: no such kind; give language, image, audio, video or series"),
        ({"label": "language"}, "--as label=language: .*has the columns rgb, language, pulse"),
    ],
)
def test_what_cannot_be_told(tmp_path, kinds, words):
    with pytest.raises(UserError, match=words):
        datasets.read(str(write(tmp_path)), kinds=kinds)


@pytest.mark.parametrize(
    "flags, words",
    [
        (("--as", "rgb"), "--as rgb: write KEY=VALUE"),
        (("--option", "kinds=x"), "--option kinds: no option but a flag of its own"),
        (("--data", "synth", "--as", "rgb=image"), "--data synth: --as tells the kind of a folder's column"),
    ],
)
def test_stage_1_refuses_a_flag_in_one_line(tmp_path, flags, words):
    with pytest.raises(UserError, match=words):
        extract_features.main(["--data", str(write(tmp_path)), "--oom", "pulse", "--runs", str(tmp_path / "r"), *flags])


def test_a_pretrained_perceptor_takes_what_is_told_to_be_language_as_text(tmp_path):
    """Its name does not matter; an image of an unknown name, or a series, has no pretrained encoder."""
    data = datasets.read(str(note(tmp_path)), kinds={"note": "language"})
    assert perceptors.role_of("note", data.modalities["note"]) == "text"
    choice = perceptors.choose("imagebind", data.modalities, ["note", "rgb"])
    assert choice == {"note": ("imagebind", "text"), "rgb": ("imagebind", "image")}
    assert perceptors.role_of("audio", "series") is None and perceptors.role_of("note", "image") is None


@pytest.mark.usefixtures("quick")
def test_all_stages_with_language_of_another_name(tmp_path):
    """The same as of a column `language`, but for the name; a run without --as in the same place is refused."""
    own, runs = write_folder(tmp_path / "toy"), tmp_path / "runs"
    shutil.copytree(own, tmp_path / "told" / "toy")
    told = tmp_path / "told" / "toy"
    rows, header = read_manifest(own), ("id", "split", "label", "rgb", "imu", "note")
    write_manifest(told, rows, header)
    refused("extract_features", told, runs, parts=("note", "--as note=language"))
    stage("extract_features", told, runs, "--as note=language")
    stage("extract_features", own, tmp_path / "plain")
    for name in ("train_connect", "train_explore"):
        stage(name, told, runs)
    evaluate.main(["--data", str(told), "--runs", str(runs)])
    record = json.loads((run_dir(runs) / "cox.json").read_text())
    assert record["method"] == "cox" and files.load(run_dir(runs) / "cox.pt")["im"] == ["note", "rgb"]
    bank = files.load(runs / "toy/inputs/note.pt")
    plain = files.load(tmp_path / "plain/toy/inputs/language.pt")
    assert bank["kind"] == "text" and files.torch.equal(bank["x"], plain["x"])
    write_manifest(
        told, [[*r[:5], "rgb/" + r[0] + ".png"] for r in rows], ("id", "split", "label", "rgb", "imu", "note")
    )
    stage("extract_features", told, tmp_path / "pictures")
    refused(
        "extract_features", told, tmp_path / "pictures", "--as note=language", parts=("--as takes otherwise", "--force")
    )
