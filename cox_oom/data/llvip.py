"""LLVIP, street scenes at night in visible light and infrared: crops of persons and of background (docs/data/llvip.md).

    --data llvip --root DIR         DIR/Annotations/*.xml, DIR/visible/{train,test}/*.jpg,
                                    DIR/infrared/{train,test}/*.jpg

The data set is one of detection. As in LanguageBind it becomes two classes: each annotated person is cropped, and for
each person a place of the same size in the same image that no person touches, drawn by seed and image. Both images show
the same places: a row is one crop in both.
"""

import functools
import os
import xml.etree.ElementTree as ET
from typing import Any

import numpy as np
from tqdm import tqdm

from cox_oom.data import Dataset, media, official
from cox_oom.files import UserError, optional

NAME = "llvip"
OPTIONS = {
    "template": "sentence of language, {} is the class; several separated by |; default 'a photo of a {}.'",
    "persons": "at most so many persons of an image, the largest (and as many background crops); default 0: all",
    "val": "share of the train images whose rows become val (default 0: the official split has none)",
    "seed": "draws background crops, val images and templates (default 0)",
}
MEND = "docs/data/llvip.md says where to get it"
CLASSES = ("background", "person")
LIGHTS = {"rgb": "visible", "thermal": "infrared"}  # modality: its folder
TRIES = 50  # random places before all free ones are listed


def read(
    root: str,
    template: str = "a photo of a {}.",
    persons: int | str = 0,
    val: float | str = 0,
    seed: int | str = 0,
    **unknown: Any,
) -> Dataset:
    """Dataset with rgb, thermal (uint8 crops of both images) and language."""
    official.check_options(NAME, unknown, OPTIONS)
    persons = official.number(NAME, "persons", persons, 0, 1000)
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    share = official.number(NAME, "val", val, 0, 0.5, float)
    folder = os.path.join(root, "Annotations")
    if not os.path.isdir(folder):
        raise UserError(f"--data llvip --root {root}: the folder Annotations is not there; {MEND}")
    sizes = official.tree(root, (".jpg", ".jpeg", ".png"))
    images = _image_pairs(sizes)
    stems = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".xml"))
    if not stems:
        raise UserError(f"{folder}: no .xml file; {MEND}")

    rows, files, empty, crowded = _rows(root, stems, images, persons, share, seed)
    ids = [f"{stem}-{CLASSES[label]}{k}" for stem, _, label, k, _ in rows]
    labels = [label for _, _, label, _, _ in rows]
    cells = {m: [places[m] for *_, places in rows] for m in LIGHTS}
    cells["language"] = official.sentences(NAME, template, [CLASSES[k] for k in labels], ids, seed)
    facts = [*_facts(images, labels, len(stems), len(files), empty, crowded), official.oracle_fact(template)]

    def fetch(modality, row, sample):
        file, place = cells[modality][row].split("::")
        return _crop(os.path.join(root, file), *map(int, place.split(",")))

    return official.finish(
        NAME,
        root,
        ids=ids,
        split=[split for _, split, _, _, _ in rows],
        labels=labels,
        class_names=CLASSES,
        modalities={"rgb": "image", "thermal": "image", "language": "text"},
        cells=cells,
        fetch=fetch,
        sizes=sizes,
        mend=MEND,
        settings={"template": template, "persons": persons, "val": share, "seed": seed},
        files=files,
        facts=facts,
    )


def _facts(images, labels, stems, files, empty, crowded):
    """What a user should know of the rows, a line each."""
    parts = [part for part, _ in images.values()]
    counts = (
        (len(images) - files, "images have no annotation: left out"),
        (stems - files, "annotations have no image: left out"),
        (empty, "images show no person: no row"),
        (crowded, "persons leave no free place of their size in the image: no background crop"),
    )
    return [
        f"{parts.count('train'):,} train and {parts.count('test'):,} test images: {labels.count(1):,} person "
        f"crops, {labels.count(0):,} background crops",
        *(f"{count:,} {words}" for count, words in counts if count),
    ]


def _image_pairs(sizes):
    """{stem: (train or test, {modality: path})} of the images among the paths in sizes."""
    images: dict[str, Any] = {}
    for path in sizes:
        light, part, *rest = path.split("/")
        for modality, folder in LIGHTS.items():
            if light == folder and part in ("train", "test") and len(rest) == 1:
                _, paths = images.setdefault(os.path.splitext(rest[0])[0], (part, {}))
                paths[modality] = path
    return images


def _rows(root, stems, images, persons, share, seed):
    """([(stem, split, label, number of the person, {modality: cell})] of all crops, the annotations' paths, counts).

    The counts: images without a person; persons without a background crop. persons, share, seed: see OPTIONS.
    """
    rows, files, empty, crowded = [], [], 0, 0
    for stem in tqdm(stems, desc="annotations", mininterval=1, disable=None):
        if stem not in images:  # neither image: its split is unknown
            continue
        path = os.path.join(root, "Annotations", f"{stem}.xml")
        files.append(path)
        part, paths = images[stem]
        width, height, boxes = _boxes(path, [os.path.join(root, p) for p in paths.values()])
        split = part
        if part == "train" and share and official.draw(f"{seed} val {stem}", 2**32) < share * 2**32:
            split = "val"
        places = _places(stem, width, height, boxes, persons, seed)
        empty += not places
        for k, (person, background) in enumerate(places):
            crowded += background is None
            for label, place in ((1, person), (0, background)):
                if place is not None:
                    cells = {
                        m: f"{paths.get(m, f'{light}/{part}/{stem}.jpg')}::{','.join(map(str, place))}"
                        for m, light in LIGHTS.items()
                    }
                    rows.append((stem, split, label, k, cells))
    return rows, files, empty, crowded


def _places(stem, width, height, boxes, persons, seed):
    """[(a person's box, a place of its size that touches none of the boxes, or None)] of an image's persons."""
    rng = np.random.default_rng([seed, official.draw(stem, 2**32)])
    largest = sorted(boxes, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1]))[:persons] if persons else boxes
    return [(b, _background(rng, width, height, b[2] - b[0], b[3] - b[1], boxes)) for b in largest]


def _crop(path, x0, y0, x1, y1):
    """uint8 (C, y1 - y0, x1 - x0) of an image; MediaError where it is smaller than that."""
    x = _image(path)
    if x.shape[1] < y1 or x.shape[2] < x1:
        raise media.MediaError(f"is {x.shape[2]} x {x.shape[1]}, but its annotation reaches {x1}, {y1}")
    return x[:, y0:y1, x0:x1].copy()


@functools.lru_cache(maxsize=2)
def _image(path):
    """The rows of an image follow one another: it is decoded once. Both modalities may take turns."""
    return media.load_image(path)


def _boxes(path, images):
    """(width, height, [(x0, y0, x1, y1)]) of a VOC annotation: the persons, within the image, x1 and y1 exclusive."""
    try:
        tree: Any = ET.parse(path).getroot()  # what lacks a part is caught below
        size = tree.find("size")
        if size is None:
            optional("PIL", "reading images")
            from PIL import Image

            with Image.open(images[0]) as image:
                width, height = image.size
        else:
            width, height = (int(float(size.findtext(k))) for k in ("width", "height"))
        boxes = []
        for thing in tree.iter("object"):
            if (thing.findtext("name") or "").strip() != "person":
                continue
            x0, y0, x1, y1 = (round(float(thing.find("bndbox").findtext(k))) for k in ("xmin", "ymin", "xmax", "ymax"))
            x0, y0, x1, y1 = max(0, x0), max(0, y0), min(width, x1), min(height, y1)
            if x1 - x0 >= 1 and y1 - y0 >= 1:
                boxes.append((x0, y0, x1, y1))
    except OSError as e:
        raise UserError(f"{path}: it or its image cannot be read ({media.reason(e)}); get them again") from None
    except (ET.ParseError, AttributeError, TypeError, ValueError) as e:
        raise UserError(f"{path}: not a VOC annotation with bndbox ({media.reason(e)}); {MEND}") from None
    return width, height, boxes


def _background(rng, width, height, w, h, boxes):
    """(x0, y0, x1, y1) of size w x h, uniform over all places that touch no box; None where there is none."""
    b = np.array(boxes)
    for _ in range(TRIES):
        x, y = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
        if not ((b[:, 0] < x + w) & (b[:, 2] > x) & (b[:, 1] < y + h) & (b[:, 3] > y)).any():
            return x, y, x + w, y + h
    free = np.ones((height - h + 1, width - w + 1), bool)
    for x0, y0, x1, y1 in boxes:
        free[max(0, y0 - h + 1) : y1, max(0, x0 - w + 1) : x1] = False
    places = np.flatnonzero(free)
    if not len(places):
        return None
    y, x = divmod(int(places[rng.integers(len(places))]), free.shape[1])
    return x, y, x + w, y + h
