"""Stage 1 on broken, missing, empty and silent media: fatal, or left out, counted and listed."""

import csv
import shutil
from pathlib import Path

import fake_perceptor
import numpy as np
import pytest
import torch
from embedded import bank_of, connect, expected_row, extract, refused, stopped

from cox_oom import data as datasets
from cox_oom import files
from cox_oom.files import Place
from cox_oom.perceptors import embed

pytestmark = pytest.mark.usefixtures("quick", "fake")


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
    with open(Place(runs, "toy").media(m), newline="") as f:
        return [row[:2] for row in csv.reader(f)][1:]


def test_broken_media_are_fatal_or_left_out_counted_and_listed(spoilt, weights, tmp_path):
    runs = tmp_path / "runs"
    refused(spoilt, runs, weights, "--oom audio", parts=("audio/6.wav", "(id i6)", ";"))
    out = extract(spoilt, runs, weights, "--oom audio", "--on-error skip")
    rgb, audio = bank_of(runs, "rgb"), files.load(Place(runs, "toy").inputs("audio"))
    assert "i3" not in rgb["ids"] and len(rgb["ids"]) == len(rgb["features"]) == 89
    assert "i6" not in audio["ids"] and "i4" in audio["ids"]
    assert len(audio["ids"]) == len(audio["x"]) == len(audio["lengths"]) == 59
    assert "features (89, 12), 1 broken (left out): see" in out and "1 broken (left out), 1 silent (kept): see" in out
    assert listed(runs, "rgb") == [["i3", "broken"]] and listed(runs, "audio") == [["i4", "silent"], ["i6", "broken"]]
    assert not Place(runs, "toy").media("language").exists()
    assert "1 broken (left out), 1 silent (kept)" in extract(spoilt, runs, weights, "--oom audio", "--on-error skip")
    connect(spoilt, runs)  # rows that lack a modality are nothing new to stage 2
    clean = datasets.read(str(spoilt))
    row = clean.ids.index("i7")
    z = expected_row(clean, "rgb", row, weights, "image")
    torch.testing.assert_close(rgb["features"][rgb["ids"].index("i7")], z)


def test_silence_is_a_choice_of_its_own(spoilt, weights, tmp_path):
    skip = "--on-error skip"
    extract(spoilt, tmp_path / "a", weights, "--im audio", skip, "--on-silence skip")
    assert len(bank_of(tmp_path / "a", "audio")["ids"]) == 58 and listed(tmp_path / "a", "audio")[0] == ["i4", "silent"]
    parts = ("audio/4.wav (id i4): audio is silent", "--on-silence")
    refused(spoilt, tmp_path / "b", weights, "--im audio", skip, "--on-silence fatal", parts=parts)
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
    parts = ("manifest.csv, row 2 (id i0)", "rgb/0.png", "2 more missing", "; put")
    refused(holed, runs, weights, "--oom audio", parts=parts)
    parts = ("row 5 (id i3)", "audio/3.wav", "is not there; put")
    refused(holed, runs, weights, "--oom audio", "--im language", parts=parts)
    assert not runs.exists()
    out = extract(holed, runs, weights, "--oom audio", "--on-error skip")
    rgb, audio = bank_of(runs, "rgb"), files.load(Place(runs, "toy").inputs("audio"))
    assert rgb["ids"] == [f"i{k}" for k in range(2, 90)] and not {"i3", "i4"} & set(audio["ids"])
    assert len(audio["ids"]) == len(audio["x"]) == 58
    assert out.count("1 missing (left out), 1 broken (left out): see") == 2
    assert listed(runs, "rgb") == [["i0", "missing"], ["i1", "broken"]]
    assert listed(runs, "touch") == [["i62", "missing"]]
    assert listed(runs, "audio") == [["i3", "missing"], ["i4", "broken"]]
    assert extract(holed, runs, weights, "--oom audio", "--on-error skip").count("already done") == 6
    connect(holed, runs)
    shutil.copy(holed / "rgb/2.png", holed / "rgb/0.png")  # mended: a row more
    fake_perceptor.encoded.clear()
    extract(holed, runs, weights, "--oom audio", "--on-error skip")
    assert bank_of(runs, "rgb")["ids"][:2] == ["i0", "i2"] and listed(runs, "rgb") == [["i1", "broken"]]
    assert listed(runs, "audio") == [["i3", "missing"], ["i4", "broken"]]
    assert [shape[0] for _, shape in fake_perceptor.encoded] == [1]


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
    assert len(files.load(Place(tmp_path / "runs", "toy").inputs("grip"))["ids"]) == 28
    assert listed(tmp_path / "runs", "grip") == [["i0", "broken"], ["i25", "broken"]]


@pytest.mark.parametrize("content", [None, b"", b"noise"], ids=["missing", "empty", "undecodable"])
@pytest.mark.parametrize("m, flags", [("touch", "--oom audio"), ("touch", "--oom touch"), ("rgb", "--oom audio")])
def test_a_modality_whose_train_items_are_all_left_out_is_named(folder, weights, tmp_path, content, m, flags):
    own = Path(shutil.copytree(folder, tmp_path / "toy"))
    for k in range(60):
        (own / f"{m}/{k}.png").unlink() if content is None else (own / f"{m}/{k}.png").write_bytes(content)
    parts = ("toy", f"all {m} items of the rows of split train, 60 in number", "left out; replace")
    refused(own, tmp_path / "runs", weights, flags, "--on-error skip", parts=parts)
    assert not list((tmp_path / "runs").rglob("banks/*.pt"))


def test_a_sensor_without_a_labelled_test_item_is_refused_before_anything_is_encoded(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [rows[0], *([*r[:2], "" if r[1] == "test" else r[2], *r[3:]] for r in rows[1:])])  # no test label
    parts = ("no row of split test that has a touch item has a label", "stage 4", "label some of them")
    refused(own, tmp_path / "runs", weights, "--oom touch", parts=parts)
    write_table(own, [rows[0], *([*r[:6], "" if r[1] == "test" else r[6]] for r in rows[1:])])  # no test cell
    parts = ("no labelled row of split test has a touch item", "stage 4", "set the split")
    refused(own, tmp_path / "runs", weights, "--oom touch", parts=parts)
    assert not fake_perceptor.encoded and not (tmp_path / "runs").exists()
    extract(own, tmp_path / "runs", weights, "--oom audio", "--im rgb,touch")  # an IM modality may
    fake_perceptor.encoded.clear()
    write_table(own, rows)
    for r in rows[1:]:
        if r[1] == "test":
            (own / r[6]).write_bytes(b"noise")
    parts = ("all touch items of the labelled rows of split test, 25 in number", "stage 4", "replace")
    refused(own, tmp_path / "other", weights, "--oom touch", "--on-error skip", parts=parts)
    assert not fake_perceptor.encoded


def test_a_sensor_without_a_train_item_is_refused_with_table_and_column(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [rows[0], *([*r[:6], "" if r[1] == "train" else r[6]] for r in rows[1:])])
    parts = ("manifest.csv: column touch has no filled cell in the train", "; fill some")
    refused(own, tmp_path / "runs", weights, "--oom touch", parts=parts)


def test_columns_that_are_no_modality_stop_nothing_where_im_leaves_them_out(folder, weights, tmp_path):
    own, rows = Path(shutil.copytree(folder, tmp_path / "toy")), read_table(folder)
    write_table(own, [[*rows[0], "comment", "time"], *([*r, "good", "1:30"] for r in rows[1:])])
    runs, parts = tmp_path / "runs", ("comment 'good'", "remove the column if it is no modality")
    refused(own, runs, weights, "--oom audio", parts=parts)
    refused(own, runs, weights, "--oom audio", "--im rgb,comment", parts=parts[:1] + ("remove the column",))
    extract(own, runs, weights, "--oom audio", "--im rgb")
    assert "already done" in extract(own, runs, weights, "--im rgb,language")  # other columns, the same data
