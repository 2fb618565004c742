"""LLVIP, street scenes at night in visible light and infrared: crops of persons and of background (docs/data/llvip.md).

    --data llvip --root DIR         DIR/Annotations/*.xml, DIR/visible/{train,test}/*.jpg, DIR/infrared/{train,test}/*.jpg

The data set is one of detection. As in LanguageBind it becomes two classes: each annotated person is cropped, and for
each person a place of the same size in the same image that no person touches, drawn by seed and image. Both images show
the same places: a row is one crop in both.
"""
import functools
import os
import xml.etree.ElementTree as ET

import numpy as np
from tqdm import tqdm

from cox_oom.files import UserError
from cox_oom.data import media, official

NAME = "llvip"
OPTIONS = {"template": "sentence of language, {} is the class; several separated by |; default 'a photo of a {}.'",
           "persons": "at most so many persons of an image, the largest (and as many background crops); default 0: all",
           "val": "share of the train images whose rows become val (default 0: the official split has none)",
           "seed": "draws background crops, val images and templates (default 0)"}
MEND = "docs/data/llvip.md says where to get it"
CLASSES = ("background", "person")
TRIES = 50      # random places before all free ones are listed


def read(root, template="a photo of a {}.", persons=0, val=0, seed=0, **unknown):
    """Dataset with rgb, thermal (uint8 crops of both images) and language."""
    official.check_options(NAME, unknown, OPTIONS)
    persons = official.number(NAME, "persons", persons, 0, 1000)
    seed = official.number(NAME, "seed", seed, 0, 2**31)
    share = official.number(NAME, "val", val, 0, 0.5, float)
    folder = os.path.join(root, "Annotations")
    if not os.path.isdir(folder):
        raise UserError(f"--data llvip --root {root}: the folder Annotations is not there; {MEND}")
    sizes = official.tree(root, (".jpg", ".jpeg", ".png"))
    images = {}     # name -> (split, {modality: path})
    for path in sizes:
        light, part, *rest = path.split("/")
        if light in ("visible", "infrared") and part in ("train", "test") and len(rest) == 1:
            pair = images.setdefault(os.path.splitext(rest[0])[0], [part, {}])
            pair[1]["rgb" if light == "visible" else "thermal"] = path
    stems = sorted(name[:-4] for name in os.listdir(folder) if name.endswith(".xml"))
    if not stems:
        raise UserError(f"{folder}: no .xml file; {MEND}")

    # ------------------------------------------------------------------------------------------ the crops
    ids, split, labels, cells, files = [], [], [], {"rgb": [], "thermal": []}, []
    lonely = crowded = empty = 0
    for stem in tqdm(stems, desc="annotations", mininterval=1, disable=None):
        if stem not in images:      # neither image: its split is unknown
            lonely += 1
            continue
        path = os.path.join(folder, f"{stem}.xml")
        files.append(path)
        part, places = images[stem]
        width, height, everyone = _boxes(path, [os.path.join(root, p) for p in places.values()])
        boxes = sorted(everyone, key=lambda b: -(b[2] - b[0]) * (b[3] - b[1]))[:persons] if persons else everyone
        empty += not boxes
        rng = np.random.default_rng([seed, official.draw(stem, 2**32)])
        if part == "train" and share and official.draw(f"{seed} val {stem}", 2**32) < share * 2**32:
            part = "val"
        for k, box in enumerate(boxes):
            free = _background(rng, width, height, box[2] - box[0], box[3] - box[1], everyone)
            crowded += free is None
            for what, place in ((1, box), (0, free)):
                if place is None:
                    continue
                ids.append(f"{stem}-{CLASSES[what]}{k}")
                split.append(part)
                labels.append(what)
                for m, light in (("rgb", "visible"), ("thermal", "infrared")):
                    file = places.get(m, f"{light}/{images[stem][0]}/{stem}.jpg")
                    cells[m].append(f"{file}::{','.join(map(str, place))}")
    n = {p: sum(v[0] == p for v in images.values()) for p in ("train", "test")}
    facts = [f"{n['train']:,} train and {n['test']:,} test images: {labels.count(1):,} person crops, "
             f"{labels.count(0):,} background crops", official.oracle_fact(template)]
    for count, words in ((len(images) - len(files), "images have no annotation: left out"),
                         (lonely, "annotations have no image: left out"), (empty, "images show no person: no row"),
                         (crowded, "persons leave no free place of their size in the image: no background crop")):
        if count:
            facts.append(f"{count:,} {words}")
    cells["language"] = official.sentences(NAME, template, [CLASSES[k] for k in labels], ids, seed)

    def fetch(modality, row, sample):
        file, place = cells[modality][row].split("::")
        x0, y0, x1, y1 = map(int, place.split(","))
        x = _image(os.path.join(root, file))
        if x.shape[1] < y1 or x.shape[2] < x1:
            raise media.MediaError(f"is {x.shape[2]} x {x.shape[1]}, but its annotation reaches {x1}, {y1}")
        return x[:, y0:y1, x0:x1].copy()

    return official.finish(
        NAME, root, ids=ids, split=split, labels=labels, class_names=CLASSES,
        modalities={"rgb": "image", "thermal": "image", "language": "text"}, cells=cells, fetch=fetch, sizes=sizes,
        mend=MEND, settings={"template": template, "persons": persons, "val": share, "seed": seed}, files=files, facts=facts)


@functools.lru_cache(maxsize=2)
def _image(path):
    """The rows of an image follow one another: it is decoded once. Both modalities may take turns."""
    return media.load_image(path)


def _boxes(path, images):
    """(width, height, [(x0, y0, x1, y1)]) of a VOC annotation: the persons, within the image, x1 and y1 exclusive."""
    try:
        tree = ET.parse(path).getroot()
        size = tree.find("size")
        if size is None:
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
        free[max(0, y0 - h + 1):y1, max(0, x0 - w + 1):x1] = False
    places = np.flatnonzero(free)
    if not len(places):
        return None
    y, x = divmod(int(places[rng.integers(len(places))]), free.shape[1])
    return x, y, x + w, y + h
