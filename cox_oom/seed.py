"""What a stage reads of the earlier ones: inputs and banks of stage 1, connect.pt of stage 2, checked along the
chain."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cox_oom.files import SPLITS, Place, UserError, check_chain, load
from cox_oom.shapes import check, check_bank, check_connect, check_inputs, texts


def split_rows(file: dict[str, Any], splits: Sequence[str] = ("train", "val")) -> Tensor:
    """Index (n',) of the rows of an inputs or bank file that lie in `splits`. Training never asks for "test"."""
    wanted = torch.tensor([SPLITS.index(s) for s in splits])
    return torch.isin(file["split"], wanted).nonzero().squeeze(1)


def size_of(oom: dict[str, Any]) -> dict[str, int]:
    """How many rows and labels an inputs file has."""
    return {"rows": len(oom["ids"]), "labels": int((oom["labels"] >= 0).sum())}


def load_inputs(place: Place, modality: str) -> dict[str, Any]:
    """The inputs file of a modality."""
    path = place.inputs(modality)
    keys = ("kind", "x", "ids", "labels", "split", "class_names")
    file = load(path, first=place.command("extract_features.py"), keys=keys)
    check_inputs(path, file)
    return file


def load_banks(place: Place) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The IM feature banks of an OOM modality: ({modality: file}, {"banks/<modality>": digest, …}). Stage 1's im.pt
    says which; without it all but the OOM's."""
    first = place.command("extract_features.py")
    folders = [place.banks(), place.banks(trained=True)]
    paths = {p.stem: p for folder in folders for p in sorted(folder.glob("*.pt")) if p.stem != place.oom}
    if not paths:
        raise UserError(f"{folders[0]} holds no feature bank; run first: {first}")
    choice = load(place.choice, first=first, keys=("im",)) if place.choice.exists() else None
    if choice:
        check(place.choice, choice, [(texts(choice["im"]), "im is not a list of modalities")])
    banks = {
        m: load(paths[m], first=first, keys=("features", "ids", "labels", "split", "class_names"))
        for m in sorted(paths)
        if choice is None or m in choice["im"]
    }
    for m, bank in banks.items():
        check_bank(paths[m], bank)
    expected = choice["im"] if choice else {m for f in banks.values() for m in f["meta"]["args"].get("im", ())}
    missing = sorted(set(expected) - set(banks))
    if missing:  # stage 1 was stopped between two banks
        raise UserError(f"{folders[0]} lacks the bank of {', '.join(missing)}; run first: {first}")
    together = [m for m in banks if banks[m]["meta"].get("perceptor") == "bind"]
    for m in together[1:]:
        if banks[m]["meta"]["args"] != banks[together[0]]["meta"]["args"]:
            raise UserError(
                f"{paths[m]} and {paths[together[0]].name} were not trained together: "
                f"stage 1 was stopped between them, or other flags were given; "
                f"make them again by extract_features.py --force"
            )
    made_from = {f"banks/{m}": banks[m]["meta"]["digest"] for m in banks}
    if choice:
        made_from["choice of IM modalities"] = choice["meta"]["digest"]
    return banks, made_from


def load_sources(place: Place) -> tuple[dict[str, Any], dict[str, dict[str, Any]], dict[str, str]]:
    """What stage 1 left: the OOM inputs, the IM banks {modality: file}, the digests of all; UserError where a bank
    was made from other inputs than those in place."""
    assert place.oom is not None  # stages 2 to 4 have --oom
    oom = load_inputs(place, place.oom)
    ims, made_from = load_banks(place)
    paths = {m: place.inputs(m) for m in ims if place.inputs(m).exists()}
    in_place = {f"inputs/{m}": load(path, content=False)["meta"]["digest"] for m, path in paths.items()}
    for m, im in ims.items():
        check_chain(place.banks() / f"{m}.pt", im["meta"], {**in_place, **made_from}, oom["meta"]["fingerprint"])
    return oom, ims, {**made_from, f"inputs/{place.oom}": oom["meta"]["digest"]}


def state_of(module: nn.Module) -> dict[str, Tensor]:
    """A module's state as it is saved, on the CPU."""
    return {k: t.detach().cpu().clone() for k, t in module.state_dict().items()}


def features_of(bank: dict[str, Any], ids: list[str]) -> Tensor:
    """Features (n, d_k) of a bank's items by their ids [n]."""
    at = {i: r for r, i in enumerate(bank["ids"])}
    return bank["features"][torch.tensor([at[i] for i in ids], dtype=torch.long)]


@dataclass
class Seed:
    """What every method of a seed goes on from: the OOM inputs, the IM banks, stage 2's connect.pt, the digests of
    all."""

    place: Place
    oom: dict[str, Any]
    ims: dict[str, dict[str, Any]]
    connect: dict[str, Any]
    made_from: dict[str, str]


def load_seed(place: Place, keys: Iterable[str] = ()) -> Seed:
    """The Seed of a place, `keys` in its connect.pt; UserError where a file is missing or connect.pt was made from
    others."""
    assert place.oom is not None  # stages 2 to 4 have --oom
    oom = load_inputs(place, place.oom)
    ims, made_from = load_banks(place)
    made_from[f"inputs/{place.oom}"] = oom["meta"]["digest"]
    connect = load(place.connect, keys=keys, first=place.command("train_connect.py"))
    check_chain(place.connect, connect["meta"], made_from, oom["meta"]["fingerprint"], size_of(oom))
    check_connect(place.connect, connect, oom, ims)
    return Seed(place, oom, ims, connect, {**made_from, "connect": connect["meta"]["digest"]})
