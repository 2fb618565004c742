"""Exported learners, ONNX and .pt2, answer as cox_oom.load does, with no other file of this repository."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from worlds import ROOT

import cox_oom
from cox_oom import export, files
from cox_oom.data import inputs
from cox_oom.files import UserError
from cox_oom.learner import Learner
from cox_oom.seed import split_rows

KINDS = ("thermal", "imu", "pose", "language", "audio", "video")
ENDINGS = (".onnx", ".pt2")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("modality", KINDS)
def test_it_answers_as_the_learner_does_at_any_batch(exported, modality, ending):
    found, out = exported
    learner, recordings, args = found[modality]
    answer, run = learner.answer(recordings), export.Exported(out / (modality + ending))
    assert answer.posteriors.std(0).min() > 0.01  # so that the comparison means something
    for n in (1, 3, 7, len(recordings)):
        posteriors, novelty = run(*(a[:n] for a in args))
        assert posteriors.shape == (n, 2) and novelty.shape == (n,)
        torch.testing.assert_close(posteriors, answer.posteriors[:n], atol=1e-5, rtol=0)
        torch.testing.assert_close(novelty, answer.novelty[:n], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("modality", ("imu", "audio", "language"))
def test_an_item_alone_at_its_own_length_has_the_same_answer(exported, modality, ending):
    found, out = exported
    x, steps = found[modality][2]
    run = export.Exported(out / (modality + ending))
    whole = run(x, steps)
    assert len(set(steps.tolist())) > 1
    for i, n in enumerate(steps.tolist()):
        for a, b in zip(run(x[i : i + 1, ..., :n].contiguous(), steps[i : i + 1]), whole):
            torch.testing.assert_close(a[0], b[i], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("modality", ("imu", "audio", "language"))
def test_what_is_behind_an_item_does_not_count(exported, modality):
    found, out = exported
    x, steps = found[modality][2]
    other = torch.where(torch.arange(x.shape[-1]) < steps.view(-1, *[1] * (x.dim() - 1)), x, torch.full_like(x, 77))
    assert not torch.equal(other, x)
    run = export.Exported(out / f"{modality}.onnx")
    torch.testing.assert_close(run(other, steps)[0], run(x, steps)[0], atol=1e-6, rtol=0)


def test_two_runs_are_averaged(exported):
    found, out = exported
    learner, recordings, args = found["pose"]
    alone = [cox_oom.load(path).answer(recordings).posteriors for path in learner.paths]
    assert (alone[0] - alone[1]).abs().max() > 0.01
    expected = torch.stack(alone).mean(0)
    torch.testing.assert_close(export.Exported(out / "pose.onnx")(*args)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("modality", KINDS)
def test_its_metadata_say_how_to_prepare_a_file(exported, modality):
    """An item made by learner.json's preparation alone has the learner's bits."""
    found, out = exported
    learner, recordings, args = found[modality]
    facts = json.loads((out / f"{modality}.json").read_text(encoding="utf-8"))
    assert facts["classes"] == learner.classes and facts["prepare"] and facts["certainty"]
    assert facts["inputs"]["x"]["shape"][1:] == list(args[0].shape[1:])
    assert facts["inputs"]["x"]["dtype"] == str(args[0].dtype).removeprefix("torch.")
    assert ("steps" in facts["inputs"]) == (len(args) > 1)
    raw = learner.data(recordings).load(modality, 0)
    assert torch.equal(torch.as_tensor(inputs.prepared(raw, facts["preparation"])[0]), args[0][0])
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out / f"{modality}.onnx"), providers=["CPUExecutionProvider"])
    kept = session.get_modelmeta().custom_metadata_map
    for key in ("classes", "preparation"):
        assert json.loads(kept[key]) == facts[key]
    extra = {"learner.json": ""}
    torch.export.load(out / f"{modality}.pt2", extra_files=extra)
    assert json.loads(extra["learner.json"]) == facts


@pytest.mark.parametrize("modality", KINDS)
def test_int8_names_as_before(exported, modality, tmp_path):
    """Its posteriors are near, and no item that was named with confidence has another name."""
    found, out = exported
    learner, recordings, args = found[modality]
    (tmp_path / "a.onnx").write_bytes((out / f"{modality}.onnx").read_bytes())
    small = export.quantize(tmp_path / "a.onnx")
    p, expected = export.Exported(small)(*args)[0], learner.answer(recordings).posteriors
    assert small.name == "a.int8.onnx" and small.stat().st_size < (tmp_path / "a.onnx").stat().st_size
    torch.testing.assert_close(p.sum(1), torch.ones(len(p)), atol=1e-5, rtol=0)
    assert not torch.equal(p, expected) and (p - expected).abs().max() < 0.1
    sure = expected.max(1).values > 0.6
    assert torch.equal(p.argmax(1)[sure], expected.argmax(1)[sure])


def test_the_command_writes_measures_and_says_no_more(trained, named, tmp_path):
    """evaluate.py --export --int8: its figures are those of the files on the test rows; the exporters are silent."""
    folder, paths = trained
    flags = ["--data", folder, "--runs", paths["pose"].parents[5], "--oom", "pose"]
    named(*flags)
    command = [sys.executable, "evaluate.py", *flags, "--export", tmp_path / "learner.onnx", "--int8"]
    said = subprocess.run([str(c) for c in command], cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 0 and {p.name for p in tmp_path.iterdir()} == {
        "learner.onnx",
        "learner.int8.onnx",
        "learner.json",
    }
    oom = files.load(paths["pose"].parents[4] / "inputs" / "pose.pt")
    rows = split_rows(oom, ("test",))
    card = paths["pose"].with_suffix(".card.md").read_text(encoding="utf-8")
    lines = said.stdout.splitlines()
    assert len(lines) == 3 and said.stderr.startswith("note: ") and said.stderr.count("\n") == 1
    for name, line in zip(("learner.onnx", "learner.int8.onnx"), lines):
        path = tmp_path / name
        right = export.Exported(path)(oom["x"][rows])[0].argmax(1) == oom["labels"][rows]
        figures = rf".*{name}: {path.stat().st_size / 1e6:.2f} MB, .* accuracy {100 * right.double().mean():.1f}%"
        assert re.match(figures, line) and name in card


def test_refusals_are_one_line(exported, tmp_path):
    found, out = exported
    learner = found["imu"][0]
    with pytest.raises(UserError, match=r"ends in \.onnx or \.pt2"):
        export.export(learner, tmp_path / "learner.pb")
    record = tmp_path / "erm.json"
    record.write_text("{}")
    with pytest.raises(UserError, match=r"erm\.json would be replaced"):
        export.export(learner, tmp_path / "erm.onnx")
    assert record.read_text() == "{}" and not (tmp_path / "erm.onnx").exists()
    with pytest.raises(UserError, match=r"--int8 .* ends in \.onnx"):
        export.command(learner, tmp_path / "learner.pt2", int8=True)
    assert [p.name for p in tmp_path.iterdir()] == ["erm.json"]


@pytest.mark.parametrize("library", ("onnx", "onnxscript", "onnxruntime"))
def test_a_missing_library_is_one_line(exported, tmp_path, monkeypatch, library):
    found, out = exported
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(files.MissingLibrary, match=rf"needs {library}.*pip install cox-oom\[export\]") as caught:
        if library == "onnxruntime":
            export.Exported(out / "imu.onnx")
        else:
            export.export(found["imu"][0], tmp_path / "learner.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_pt2_is_written_and_run_in_silence(exported, tmp_path, capfd, recwarn):
    learner, _, args = exported[0]["pose"]
    export.export(learner, tmp_path / "a.pt2")
    export.Exported(tmp_path / "a.pt2")(*args)
    assert capfd.readouterr() == ("", "") and not recwarn.list


def test_it_runs_on_arrays_of_numpy(exported):
    """As on a robot: onnxruntime and numpy alone."""
    found, out = exported
    import onnxruntime

    x, steps = (a.numpy() for a in found["imu"][2])
    session = onnxruntime.InferenceSession(str(out / "imu.onnx"), providers=["CPUExecutionProvider"])
    posteriors, _ = session.run(["posteriors", "novelty"], {"x": x, "steps": steps})
    assert posteriors.dtype == np.float32
    np.testing.assert_allclose(posteriors.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize(
    "kind, shape, views",
    [
        ("series", (2, 480), ["spectrum", "statistics"]),
        ("series", (3, 100), ["spectrum"]),
        ("series", (1, 5), ["statistics"]),
        ("image", (3, 28, 30), ["spectrum"]),
        ("video", (3, 4, 16, 16), ["spectrum"]),
    ],
)
def test_a_learner_that_looks_at_spectra_is_the_same_in_onnx(kind, shape, views, tmp_path):
    """Transforms of any length, of items of any length."""
    import onnxruntime

    torch.manual_seed(0)
    learner = Learner(kind=kind, shape=shape, width=32, depth=2, patch=8, views=views).eval()
    x, lengths = torch.randn(5, *shape), torch.tensor([shape[-1], shape[-1] // 2, 3, 7, 1])
    args = (x * (torch.arange(shape[-1]) < lengths[:, None])[:, None], lengths) if kind == "series" else (x,)
    free = ({0: torch.export.Dim("batch", min=1)},) * len(args)
    with export.quietly():
        torch.onnx.export(
            learner, args, tmp_path / "a.onnx", dynamo=True, dynamic_shapes=free, input_names=["x", "n"][: len(args)]
        )
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 5):
        found = session.run(None, {k: a[:n].numpy() for k, a in zip(("x", "n"), args)})[0]
        torch.testing.assert_close(torch.from_numpy(found), learner(*(a[:n] for a in args)).detach(), atol=1e-5, rtol=0)
