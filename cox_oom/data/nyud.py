"""NYU Depth v2, 1,449 labelled rooms: colour, depth, and the name of the scene (docs/data/nyud.md).

--data nyud --root DIR          nyu_depth_v2_labeled.mat and splits.mat, or the images exported from them:
                                {train,test}/<scene type>/rgb_00045.jpg and sync_depth_00045.png
"""

import os
from typing import Any

import numpy as np

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError, optional

NAME = "nyud"
OPTIONS = {
    "depth": "filled (the data set's in-painted depths) or raw (as measured, 0 = none); the .mat alone; default filled",
    "template": "sentence of language, {} is the class; several separated by |; default 'a photo of a {}.'",
    "val": "share of the train rows that becomes val, per class (default 0: the official split has none)",
    "seed": "draws val rows and templates (default 0)",
}
MEND = "docs/data/nyud.md says where to get it"
CLASSES = (
    "bathroom",
    "bedroom",
    "bookstore",
    "classroom",
    "dining room",
    "home office",
    "kitchen",
    "living room",
    "office",
    "others",
)  # the ten of the scene benchmark; the other 17 scene types are 'others'
MAT = "nyu_depth_v2_labeled.mat"


def read(
    root: str,
    depth: str = "filled",
    template: str = "a photo of a {}.",
    val: float | str = 0,
    seed: int | str = 0,
    **unknown: Any,
) -> Dataset:
    """Dataset with rgb (uint8 (3, H, W)), depth (float32 (1, H, W), metres) and language."""
    official.check_options(NAME, unknown, OPTIONS)
    depth = official.choice(NAME, "depth", depth, ("filled", "raw"))
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    mat = official.annotation(NAME, root, MAT, where=MEND, optional=True)
    exported = next(
        (d for d in ("", "official_splits") if all(os.path.isdir(os.path.join(root, d, p)) for p in ("train", "test"))),
        None,
    )
    if mat is None and exported is None:
        raise UserError(f"--data nyud --root {root}: neither {MAT} nor the folders train and test are there; {MEND}")
    ids, scenes, split, cells, sizes, files, fetch = (_mat if mat else _folders)(root, mat or exported, depth)
    index = {name.replace(" ", "_"): k for k, name in enumerate(CLASSES)}
    labels = [index.get(s, len(CLASSES) - 1) for s in scenes]
    split = official.hold_out(NAME, split, labels, val, seed)
    names = ["room of another kind" if k == len(CLASSES) - 1 else CLASSES[k] for k in labels]
    cells["language"] = official.sentences(NAME, template, names, ids, seed)
    return official.finish(
        NAME,
        root,
        ids=ids,
        split=split,
        labels=labels,
        class_names=CLASSES,
        modalities={"rgb": "image", "depth": "image", "language": "text"},
        cells=cells,
        fetch=fetch,
        sizes=sizes,
        mend=MEND,
        settings={"depth": depth, "template": template, "val": float(val), "seed": seed},
        files=files,
        facts=[official.oracle_fact(template)],
    )


def _mat(root, mat, depth):
    """Rows of the official file (MATLAB 7.3, which is HDF5), in its order; splits.mat counts them from 1."""
    h5py = optional("h5py", "reading a .mat file of MATLAB 7.3 (HDF5)")
    loadmat = optional("scipy.io", "reading a .mat file").loadmat
    key = "depths" if depth == "filled" else "rawDepths"
    splits = official.annotation(NAME, root, "splits.mat", where=MEND)
    try:
        with h5py.File(mat, "r") as f:
            shapes = {k: f[k].shape for k in ("images", key)}
            scenes = ["".join(map(chr, np.asarray(f[r]).ravel())) for r in np.asarray(f["sceneTypes"]).ravel()]
    except (OSError, KeyError, RuntimeError) as e:
        raise UserError(f"{mat}: not the labelled data set ({media.reason(e)}); {MEND}") from None
    n = len(scenes)
    if shapes["images"][:2] != (n, 3) or shapes[key][0] != n or shapes["images"][2:] != shapes[key][1:]:
        raise UserError(f"{mat}: images are {shapes['images']}, {key} {shapes[key]}, sceneTypes {n}; {MEND}")
    try:
        table = loadmat(splits)
        part = {int(k): p for p, name in (("train", "trainNdxs"), ("test", "testNdxs")) for k in table[name].ravel()}
    except Exception as e:
        raise UserError(f"{splits}: not the official split ({media.reason(e)}); {MEND}") from None
    if not part or min(part) < 1 or max(part) > n:
        raise UserError(
            f"{splits}: numbers rows {min(part, default=0)} to {max(part, default=0)}, but {mat} has {n}; {MEND}"
        )
    rows = sorted(part)
    where = os.path.relpath(mat, root).replace(os.sep, "/")
    cells = {m: [f"{where}::{k}/{i}" for i in rows] for m, k in (("rgb", "images"), ("depth", key))}

    def fetch(modality, row, sample):
        try:
            with h5py.File(mat, "r") as f:  # opened anew: a handle does not survive a fork
                x = f["images" if modality == "rgb" else key][rows[row] - 1]
        except (OSError, RuntimeError) as e:
            raise media.MediaError(f"cannot be read ({media.reason(e)})") from None
        if modality == "rgb":
            return np.ascontiguousarray(x.transpose(0, 2, 1))  # (3, W, H) in the file
        if not np.isfinite(x).all():
            raise media.MediaError("contains NaN or Inf")
        return np.ascontiguousarray(x.T, dtype=np.float32)[None]  # (W, H) in the file, metres

    return (
        [f"{i:04d}" for i in rows],
        [scenes[i - 1] for i in rows],
        [part[i] for i in rows],
        cells,
        {where: os.path.getsize(mat)},
        [splits],
        fetch,
    )


def _folders(root, base, depth):
    """Rows of exported images: their folder is the scene type, depth is 16-bit PNG in millimetres."""
    if depth != "filled":
        raise UserError(f"--data nyud: the option depth={depth} needs {MAT}; leave it out for exported images")
    sizes = official.tree(os.path.join(root, base), (".png", ".jpg"))
    prefix = f"{base}/" if base else ""
    ids, scenes, split = [], [], []
    cells: dict[str, list] = {"rgb": [], "depth": []}
    for path in sizes:
        part, *middle, name = path.split("/")
        if part not in ("train", "test") or len(middle) != 1 or not name.startswith("rgb_"):
            continue
        number = os.path.splitext(name)[0][4:]
        ids.append(f"{middle[0]}/{number}")
        scenes.append(middle[0])
        split.append(part)
        cells["rgb"].append(prefix + path)
        cells["depth"].append(f"{prefix}{part}/{middle[0]}/sync_depth_{number}.png")

    def fetch(modality, row, sample):
        return media.load_image(os.path.join(root, cells[modality][row]), modality)

    return ids, scenes, split, cells, {prefix + p: s for p, s in sizes.items()}, [], fetch
