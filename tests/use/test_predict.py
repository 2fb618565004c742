"""A trained learner names new recordings exactly as it named the test rows of its own data."""

import csv

import numpy as np
import pytest
import torch

import cox_oom
from cox_oom import files
from cox_oom.augment import model_of
from cox_oom.data import media
from cox_oom.files import UserError
from cox_oom.seed import split_rows

MODALITIES = ("thermal", "imu", "pose", "language", "audio", "video")


def rows_of_stage_4(folder, path, modality):
    """(recordings, posteriors by stage 4's way) of the test rows."""
    run, oom = files.load(path), files.load(path.parents[4] / "inputs" / f"{modality}.pt")
    rows = split_rows(oom, ("test",))
    logits = model_of(run, "cpu")(oom, rows)[1]
    with open(folder / "manifest.csv", newline="", encoding="utf-8") as f:
        cells = [row[modality] for row in csv.DictReader(f) if row["split"] == "test"]
    cells = cells if modality == "language" else [folder / c for c in cells]
    return cells, (logits / run["calibration"]["temperature"]).softmax(1)


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_test_rows_by_path_are_named_as_in_stage_4(trained, modality):
    folder, paths = trained
    recordings, expected = rows_of_stage_4(folder, paths[modality], modality)
    learner = cox_oom.load(paths[modality])
    names, confidence = learner(recordings)
    torch.testing.assert_close(learner.answer(recordings).posteriors, expected, atol=1e-6, rtol=1e-5)
    assert names == [learner.classes[i] for i in expected.argmax(1).tolist()]
    torch.testing.assert_close(confidence, expected.max(1).values, atol=1e-6, rtol=1e-5)
    assert learner.modality == modality


@pytest.mark.parametrize("modality", MODALITIES)
def test_prepared_items_have_the_bits_of_stage_1(trained, modality):
    folder, paths = trained
    recordings, _ = rows_of_stage_4(folder, paths[modality], modality)
    learner = cox_oom.load(paths[modality])
    oom = files.load(paths[modality].parents[4] / "inputs" / f"{modality}.pt")
    rows, data = split_rows(oom, ("test",)), learner.data(recordings)
    for i, row in enumerate(rows.tolist()):
        item = learner.prepared(data.load(modality, i))
        assert torch.equal(torch.as_tensor(item["x"]), oom["x"][row])
        assert item["steps"] == (None if oom["lengths"] is None else oom["lengths"][row])


def test_arrays_and_tensors_are_named_as_files_are(trained):
    folder, paths = trained
    for modality, load in (("imu", np.load), ("thermal", media.load_image), ("audio", media.load_audio)):
        recordings, _ = rows_of_stage_4(folder, paths[modality], modality)
        learner, raw = cox_oom.load(paths[modality]), [load(r) for r in recordings]
        expected = learner.answer(recordings).posteriors
        assert torch.equal(learner.answer(raw).posteriors, expected)
        assert torch.equal(learner.answer([torch.from_numpy(x) for x in raw]).posteriors, expected)


def test_many_recordings_go_through_in_chunks_and_by_workers(trained):
    folder, paths = trained
    recordings, expected = rows_of_stage_4(folder, paths["thermal"], "thermal")
    many = recordings * 20
    answer = cox_oom.load(paths["thermal"]).answer(many, workers=2)
    torch.testing.assert_close(answer.posteriors, expected.repeat(20, 1), atol=1e-6, rtol=1e-5)


def test_no_recordings_are_an_empty_answer(trained):
    answer = cox_oom.load(trained[1]["imu"]).answer([])
    assert answer.posteriors.shape == (0, 2) and answer.notes == []


@pytest.mark.parametrize(
    ("modality", "item", "words"),
    [
        ("imu", np.zeros((3, 20), np.float32), "2 channels"),
        ("imu", np.zeros(20, np.float32), "dimensions"),
        ("pose", np.zeros((1, 10), np.float32), "9 steps"),
        ("thermal", np.zeros((4, 8, 8), np.uint8), "channels"),
        ("thermal", np.zeros((3, 8, 8), np.float32), "float32"),
        ("imu", np.full((2, 20), np.nan, np.float32), "NaN"),
        ("audio", "no_such.wav", "not there"),
        ("audio", __file__, "no file of kind audio"),
    ],
)
def test_another_kind_or_shape_is_one_line(trained, modality, item, words):
    learner = cox_oom.load(trained[1][modality])
    with pytest.raises(UserError, match=words) as caught:
        learner([item])
    assert "\n" not in str(caught.value)


def test_a_longer_recording_than_any_before_loses_its_end(trained):
    learner, t = cox_oom.load(trained[1]["imu"]), np.arange(58)
    long = np.stack([np.sin(t * 0.4), t / 30]).astype(np.float32)
    x = learner.prepared(long)["x"]
    assert x.shape == (2, learner.preparation["shape"][1])
    assert torch.isfinite(learner.answer([long]).posteriors).all()


def test_runs_are_averaged_and_others_refused(trained, tmp_path):
    _, paths = trained
    learner, recordings = cox_oom.load([paths["imu"], paths["imu"]]), [np.ones((2, 20), np.float32)]
    assert torch.equal(learner.answer(recordings).posteriors, cox_oom.load(paths["imu"]).answer(recordings).posteriors)
    with pytest.raises(UserError, match="other inputs or classes"):
        cox_oom.load([paths["imu"], paths["pose"]])


def test_a_folder_of_runs_gives_its_only_run_and_an_empty_one_a_line(trained, tmp_path):
    path = trained[1]["imu"]
    assert cox_oom.load(path.parent.parent).paths == [path]
    with pytest.raises(UserError, match="several|runs of"):
        cox_oom.load(path.parents[4])
    with pytest.raises(UserError, match="no trained learner"):
        cox_oom.load(tmp_path)


def test_a_file_made_before_says_how_to_mend_it(trained, tmp_path):
    run = files.load(trained[1]["imu"])
    meta = run["meta"]
    old = {k: v for k, v in run.items() if k not in ("meta", "preparation")}
    files.save(tmp_path / "erm.pt", old, **{k: meta[k] for k in ("stage", "data", "fingerprint", "args", "made_from")})
    with pytest.raises(UserError, match="preparation.*--force"):
        cox_oom.load(tmp_path / "erm.pt")
