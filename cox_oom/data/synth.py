"""The embedded data set `synth`: one procedural world seen by seven modalities (docs/data/synth.md).

An object has a shape (4) and a material (3), which make its class (12), and seven continuous latents: size,
pose, stretch, corner, roughness, tone, damping. Every modality renders shape, material, latents its own way
and hides some of them. Items are rendered when they are loaded, each from a generator seeded by (seed, split,
index in the split, modality): the same whatever else is rendered, and whatever the sizes of the splits.
Only numpy is used.

    python -m cox_oom.data.synth DIR [--seed 0] [--commonality 0.7] [--n-train 60 --n-val 12 --n-test 24]
writes the data set as a folder with manifest.csv, as an example of what --data takes.
"""

import argparse
import csv
import hashlib
import math
import os
import sys
from typing import Any

import numpy as np

from cox_oom.data import SPLITS, Dataset, official
from cox_oom.files import UserError, optional

OPTIONS = {
    "seed": "which world",
    "commonality": "instance information that modalities share beyond the class, 0 to 1",
    "n_train": "train rows",
    "n_val": "val rows",
    "n_test": "test rows",
}
VERSION = "synth-1"  # enters the fingerprint: change it with anything that changes an item
SHAPES = ("ball", "ring", "rod", "wedge")
MATERIALS = ("metal", "stone", "wood")
CLASSES = tuple(f"{s}-{m}" for s in SHAPES for m in MATERIALS)  # sorted; class = 3 * shape + material
MODALITIES = {
    "rgb": "image",
    "language": "text",
    "tactile": "image",
    "thermal": "image",
    "depth": "image",
    "audio": "audio",
    "video": "video",
}
SIZE, POSE, STRETCH, CORNER, ROUGH, TONE, DAMP = range(7)  # the continuous latents, each standard normal
SIDE, CLIP_SIDE, FRAMES, RATE, SAMPLES = 32, 24, 8, 16000, 8000


def read(
    seed: int = 0, commonality: float = 0.7, n_train: int = 1500, n_val: int = 120, n_test: int = 600, **unknown: Any
) -> Dataset:
    """The Dataset. `commonality` in 0...1: how far the latents of two modalities of a row correlate."""
    official.check_options("synth", unknown, OPTIONS)
    commonality = official.number("synth", "commonality", commonality, 0, 1, float)
    seed = official.number("synth", "seed", seed, 0, 2**63 - 1)
    sizes = {"n_train": (n_train, 2 * len(CLASSES)), "n_val": (n_val, 0), "n_test": (n_test, 1)}
    n_train, n_val, n_test = (official.number("synth", k, n, least, 10**7) for k, (n, least) in sizes.items())
    rows = [(part, k) for part, n in enumerate((n_train, n_val, n_test)) for k in range(n)]
    labels = _labels(seed, n_train, n_val, n_test)
    codes = list(MODALITIES)

    def load(modality, row, sample=None):
        part, k = rows[row]
        shared = np.random.default_rng([seed, part, k, 0]).standard_normal(7)
        rng = np.random.default_rng([seed, part, k, 1 + codes.index(modality)])
        own = rng.standard_normal(7)
        z = math.sqrt(commonality) * shared + math.sqrt(1 - commonality) * own  # standard normal for every c
        item = RENDER[modality](labels[row] // 3, labels[row] % 3, z, rng)
        return item[sample(FRAMES, float(FRAMES))] if sample and modality == "video" else item

    source = {
        "seed": int(seed),
        "commonality": float(commonality),
        "n_train": int(n_train),
        "n_val": int(n_val),
        "n_test": int(n_test),
    }
    ids = [f"{SPLITS[part]}-{k:05d}" for part, k in rows]
    return Dataset(
        name="synth",
        ids=ids,
        split=[SPLITS[part] for part, _ in rows],
        labels=labels,
        class_names=list(CLASSES),
        modalities=dict(MODALITIES),
        cells={m: list(ids) for m in MODALITIES},
        load=load,
        fingerprint=hashlib.sha256(f"{VERSION} {sorted(source.items())}".encode()).hexdigest(),
        source=source,
    )


def _labels(seed, *sizes):
    """Every 12 rows of a split are a permutation of the classes."""
    labels = []
    for part, n in enumerate(sizes):
        blocks = [
            np.random.default_rng([seed, part, b, 99]).permutation(len(CLASSES)) for b in range(-(-n // len(CLASSES)))
        ]
        labels += [int(c) for c in np.concatenate(blocks)[:n]] if n else []
    return labels


# -------------------------------------------------------- geometry and texture that several modalities show


def _grid(side):
    """x, y of the pixel centres, float32 (side, side), in [-1, 1]."""
    a = (np.arange(side, dtype=np.float32) + 0.5) / side * 2 - 1
    return np.meshgrid(a, a)


GRID, CLIP_GRID = _grid(SIDE), _grid(CLIP_SIDE)
LOBES = (0.0, 0.0, 0.0, 0.22)  # wedge: r(phi) = R (1 + lobes cos 3 phi)
LONG = (1.0, 1.05, 1.45, 1.05)  # rod: long axis over R, and R over short axis
HOLE = (0.0, 0.5, 0.0, 0.0)  # ring: radius of the hole over R
TALL = (1.25, 0.8, 1.0, 0.9)  # height over radius
DENSE = (1.4, 1.0, 0.7)  # by material: things weigh about the same, so dense ones are flat


def _radius(z):
    return 0.55 * math.exp(0.15 * z[SIZE])


def _angle(z):
    return 0.25 * z[POSE]


def _outline(shape, z, x, y, radius, angle):
    """(u, a, b): u = distance from the centre relative to the outline (1 on it); a, b = the object's own
    coordinates in radii. x, y (..., H, W): relative to the object's centre; radius, angle broadcast."""
    c, s = np.cos(angle), np.sin(angle)
    stretch = LONG[shape] * math.exp(0.10 * z[STRETCH])
    a = (c * x + s * y) / (radius * stretch)
    b = (-s * x + c * y) / (radius / stretch)
    u = np.sqrt(a * a + b * b) + 1e-6
    if LOBES[shape]:
        u = u / (1 + LOBES[shape] * math.exp(0.3 * z[CORNER]) * np.cos(3 * np.arctan2(a, -b)))
    if HOLE[shape]:
        hole = min(HOLE[shape] * math.exp(0.2 * z[CORNER]), 0.8)
        u = np.abs(2 * u - 1 - hole) / (1 - hole)  # 0 on the middle of the ring, 1 on both outlines
    return u, a, b


def _inside(u, soft):
    """Mask of the object, 1 inside, soft over `soft` radii at the outline."""
    return 1 / (1 + np.exp(np.clip((u - 1) / soft, -30, 30)))


def _smooth_noise(rng, side, cells):
    """(side, side) smooth noise of unit variance: `cells` random values per side, bilinear between them."""
    v = rng.standard_normal((cells + 1, cells + 1)).astype(np.float32)
    p = (np.arange(side, dtype=np.float32) + 0.5) / side * cells
    i = p.astype(int)
    f = (p - i)[:, None]
    v = v[i] * (1 - f) + v[i + 1] * f
    v = v[:, i] * (1 - f.T) + v[:, i + 1] * f.T
    return v * 1.5


def _texture(material, z, a, b, rng):
    """Unit-scale texture (..., H, W) of a material in the object's coordinates."""
    f, p = math.exp(0.25 * z[ROUGH]), rng.uniform(0, 2 * math.pi, 4)
    if material == 0:  # fine parallel scratches
        return np.sin(9 * f * a + p[0]) * np.cos(1.5 * b + p[1])
    if material == 1:  # speckle: crossed waves without a common direction
        return (
            np.sin(7 * f * a + 4 * b + p[0])
            + np.sin(7 * f * b - 5 * a + p[1])
            + np.sin(6 * f * (a + b) + p[2])
            + np.sin(8 * f * (a - b) + p[3])
        ) * 0.7
    return np.sin(5 * f * b + 1.2 * np.sin(1.6 * a + p[0]) + p[1])  # wide wavy grain across


# -------------------------------------------------------- the modalities: (shape, material, z, rng) -> item


def _surface(shape, material, z, rng, x, y, radius, angle, light):
    """(mask, shade (..., H, W)): outline and grey level of a lit object, shared by rgb and video."""
    u, a, b = _outline(shape, z, x, y, radius, angle)
    mask = _inside(u, 0.08)
    dome = np.sqrt(np.clip(1 - np.minimum(u, 1) ** 2, 0, 1))
    lambert = 0.35 * dome + 0.4 * (light[0] * a + light[1] * b)
    relief = (0.10, 0.16, 0.14)[material] * math.exp(0.25 * z[ROUGH])
    shade = 0.5 + lambert + relief * _texture(material, z, a, b, rng)
    gloss = (0.5, 0.05, 0.15)[material] * math.exp(0.4 * z[DAMP])
    highlight = np.exp(-((a - 0.8 * light[0]) ** 2 + (b - 0.8 * light[1]) ** 2) / 0.06)
    return mask, shade + gloss * highlight


TINT = np.array([[-0.04, 0.0, 0.14], [-0.08, 0.02, -0.06], [0.14, 0.0, -0.14]], np.float32)  # by material


def _colour(material, z, rng):
    """RGB of an object: little of the material, much of the tone latent and of chance."""
    tone = np.array([math.cos(0.8 * z[TONE]), math.cos(0.8 * z[TONE] + 2.1), math.cos(0.8 * z[TONE] + 4.2)])
    return 0.75 + TINT[material] + 0.08 * tone + 0.06 * rng.standard_normal(3)


def _light(rng):
    """(x, y) of the direction from which the light comes, of length 0.35."""
    angle = rng.uniform(0, 2 * math.pi)
    return 0.35 * math.cos(angle), 0.35 * math.sin(angle)


def rgb(shape, material, z, rng):
    """uint8 (3, 32, 32): a lit, textured object before a random background."""
    x, y = GRID
    cx, cy = rng.uniform(-0.1, 0.1, 2)
    mask, shade = _surface(shape, material, z, rng, x - cx, y - cy, _radius(z), _angle(z), _light(rng))
    tilt = rng.uniform(-0.1, 0.1, 2)
    back = (
        (rng.uniform(0.05, 0.3) + rng.uniform(-0.05, 0.05, 3))[:, None, None]
        + tilt[0] * x
        + tilt[1] * y
        + 0.04 * _smooth_noise(rng, SIDE, 5)
    )
    image = back * (1 - mask) + mask * shade * _colour(material, z, rng)[:, None, None]
    image = image * rng.uniform(0.8, 1.1) + 0.05 * rng.standard_normal((3, SIDE, SIDE))
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def depth(shape, material, z, rng):
    """float32 (1, 32, 32), metres: a dome on a tilted table; of the material only the bumps."""
    x, y = GRID
    cx, cy = rng.uniform(-0.1, 0.1, 2)
    radius = _radius(z)
    u, a, b = _outline(shape, z, x - cx, y - cy, radius, _angle(z))
    dome = np.sqrt(np.clip(1 - np.minimum(u, 1) ** 2, 0, 1))
    height = 0.10 * TALL[shape] / DENSE[material] * radius * dome
    bumps = (0.001, 0.006, 0.003)[material] * math.exp(0.3 * z[ROUGH])
    height = height + bumps * _texture(material, z, a, b, rng)
    tilt = rng.uniform(-0.01, 0.01, 2)
    table = rng.uniform(0.63, 0.67) + tilt[0] * x + tilt[1] * y
    noise = 0.003 * rng.standard_normal((SIDE, SIDE))
    return (table - height * _inside(u, 0.06) + noise).astype(np.float32)[None]


_FREQ = (np.fft.fftfreq(SIDE)[:, None] ** 2 + np.fft.rfftfreq(SIDE)[None] ** 2).astype(np.float32)


def _blur(x, sigma):
    """Gaussian blur of (32, 32) by sigma pixels, periodic."""
    return np.fft.irfft2(np.fft.rfft2(x) * np.exp(-2 * math.pi**2 * sigma**2 * _FREQ), s=x.shape)


def thermal(shape, material, z, rng):
    """float32 (1, 32, 32), degrees Celsius: a warm object, blurred by conduction; the print of a touch."""
    x, y = GRID
    cx, cy = rng.uniform(-0.1, 0.1, 2)
    radius = _radius(z)
    u, a, b = _outline(shape, z, x - cx, y - cy, radius, _angle(z))
    conduct = (1.0, 0.5, 0.2)[material] * math.exp(0.15 * z[DAMP])
    warm = (2.0 + 2.5 * conduct) * (0.5 / radius) * (1 + 0.08 * z[TONE])  # small ones stand out more
    field = _blur(warm * _inside(u, 0.08), 0.4 + 0.8 * conduct)
    px, py = rng.uniform(-0.3, 0.3, 2) * radius
    spread = 0.10 + 0.22 * conduct
    touch = 0.5 / spread * np.exp(-((x - cx - px) ** 2 + (y - cy - py) ** 2) / (2 * spread**2))
    grain = 0.3 * math.exp(0.3 * z[ROUGH]) * _texture(material, z, a, b, rng) * _inside(u, 0.1)  # emissivity
    ambient = 21 + 0.5 * rng.standard_normal() + 0.2 * _smooth_noise(rng, SIDE, 3)
    noise = 0.2 * rng.standard_normal((SIDE, SIDE))
    return (ambient + field + touch + grain + noise).astype(np.float32)[None]


def tactile(shape, material, z, rng):
    """float32 (1, 32, 32), millimetres pressed in: a patch beside the middle of the object, magnified."""
    x, y = GRID
    radius, angle = 1.3 * _radius(z), _angle(z)
    slip = rng.uniform(-0.1, 0.1, 2)
    away = 0.25 * radius  # the sensor lies off centre, on the object's b axis
    x, y = x + slip[0] - away * math.sin(angle), y + slip[1] + away * math.cos(angle)
    u, a, b = _outline(shape, z, x, y, radius, angle)
    press = rng.uniform(0.7, 1.3)
    dome = 1 - 0.5 * np.minimum(u, 1.5) ** 2
    relief = (0.10, 0.20, 0.15)[material] * math.exp(0.3 * z[ROUGH])
    skin = relief * _texture(material, z, a * 1.5, b * 1.5, rng)
    soft = (0.05, 0.08, 0.15)[material] * math.exp(0.3 * z[DAMP])
    height = press * _inside(u, soft) * (dome + skin)
    return (height + 0.10 * rng.standard_normal((SIDE, SIDE)) + 0.05 * _smooth_noise(rng, SIDE, 4)).astype(np.float32)[
        None
    ]


# partials of ideal bodies: circular membrane, free bar, square plate, harmonic tube
PARTIALS = np.array(
    [[1, 1.59, 2.14, 2.65, 3.16], [1, 2.76, 5.40, 8.93, 13.3], [1, 2.5, 4.0, 5.0, 6.5], [1, 2, 3, 4, 5]]
)


def audio(shape, material, z, rng):
    """float32 (8000,), 16 kHz: a knock. Pitch: size, material; partials: shape; decay: material."""
    t = np.arange(SAMPLES, dtype=np.float32) / RATE
    pitch = 420 * (1.35, 1.0, 0.75)[material] * math.exp(-0.25 * z[SIZE])
    ratio = PARTIALS[shape] * np.exp(0.02 * z[CORNER] * np.arange(5) + 0.01 * rng.standard_normal(5))
    decay = (8, 20, 50)[material] * math.exp(0.25 * z[DAMP]) * (1 + 0.25 * np.arange(5))  # per second
    level = np.exp(-(0.2, 0.45, 0.8)[material] * np.arange(5) * math.exp(0.3 * z[ROUGH]) + 0.2 * rng.standard_normal(5))
    frequency = pitch * ratio
    level = level * (frequency < 0.45 * RATE)
    phase = rng.uniform(0, 2 * math.pi, 5)
    onset = rng.uniform(0.0, 0.04)
    s = np.maximum(t - onset, 0)
    wave = np.zeros(SAMPLES, np.float32)
    for f, d, loud, p in zip(frequency, decay, level, phase):
        if loud:
            tone = np.sin(np.float32(2 * math.pi * f) * s + np.float32(p))
            wave += np.float32(loud) * np.exp(np.float32(-d) * s) * tone
    wave *= t >= onset
    click = rng.standard_normal(SAMPLES, dtype=np.float32) * np.exp(-s * 200) * (t >= onset)
    hiss = 0.02 * rng.standard_normal(SAMPLES, dtype=np.float32)
    wave = wave + 0.3 * math.exp(0.3 * z[TONE]) * click + hiss
    return (0.25 * math.exp(0.4 * rng.standard_normal()) * wave).astype(np.float32)


def video(shape, material, z, rng):
    """uint8 (8, 3, 24, 24): the object slides and turns; how it slows down is the material's."""
    x, y = CLIP_GRID
    t = np.arange(FRAMES, dtype=np.float32)[:, None, None]
    slow = (0.08, 0.45, 0.22)[material] * math.exp(0.3 * z[DAMP])
    way = (1 - np.exp(-slow * t)) / slow  # distance in frames of initial speed
    heading = rng.uniform(0, 2 * math.pi)
    cx = -0.3 * math.cos(heading) + 0.09 * math.cos(heading) * way
    cy = -0.3 * math.sin(heading) + 0.09 * math.sin(heading) * way
    angle = _angle(z) + rng.choice([-1, 1]) * 0.12 * way
    mask, shade = _surface(shape, material, z, rng, x - cx, y - cy, _radius(z), angle, _light(rng))
    back = (rng.uniform(0.05, 0.3) + rng.uniform(-0.05, 0.05, 3))[:, None, None] + 0.04 * _smooth_noise(
        rng, CLIP_SIDE, 5
    )
    colour = _colour(material, z, rng)[:, None, None]
    clip = back * (1 - mask[:, None]) + mask[:, None] * shade[:, None] * colour
    exposure = rng.uniform(0.8, 1.1)
    clip = clip * exposure + 0.05 * rng.standard_normal(clip.shape, dtype=np.float32)
    return (np.clip(clip, 0, 1) * 255).astype(np.uint8)


SHAPE_WORDS = (
    ("ball", "sphere", "bead"),
    ("ring", "hoop", "loop"),
    ("rod", "bar", "stick"),
    ("wedge", "prism", "cone"),
)
MATERIAL_WORDS = (("metal", "steel", "iron"), ("stone", "granite", "marble"), ("wood", "oak", "timber"))
SIZE_WORDS = (("tiny", "small"), ("medium",), ("big", "large"))
TONE_WORDS = (("dark", "dull"), ("pale", "bright"))
TEMPLATES = ("a {} {} {} {}", "there is a {} {} {} {}", "I see a {} {} {} {}", "this is a {} {} {} {}")


def language(shape, material, z, rng):
    """A sentence that names size, tone, material and shape by one of several words, or leaves one out."""

    def pick(words, keep):
        return str(rng.choice(words)) if rng.random() < keep else ""

    size = pick(SIZE_WORDS[int(z[SIZE] > -0.5) + int(z[SIZE] > 0.5)], 0.7)
    tone = pick(TONE_WORDS[int(z[TONE] > 0)], 0.5)
    what = pick(MATERIAL_WORDS[material], 0.92)
    kind = pick(SHAPE_WORDS[shape], 0.92) or "object"
    return " ".join(str(rng.choice(TEMPLATES)).format(size, tone, what, kind).split())


RENDER = {
    "rgb": rgb,
    "language": language,
    "tactile": tactile,
    "thermal": thermal,
    "depth": depth,
    "audio": audio,
    "video": video,
}


# ---------------------------------------------------------------- the same as a folder


def write_folder(dataset, path):
    """Writes a Dataset of this module as a data folder: PNG (depth: 16 bit, mm), npy, wav, mp4."""
    av, soundfile = optional("av", "writing video"), optional("soundfile", "writing sound")
    optional("PIL", "writing images")
    from PIL import Image

    if os.path.exists(os.path.join(path, "manifest.csv")):
        raise UserError(f"{path}/manifest.csv: there already; name another folder or remove it")
    form = {"rgb": "png", "depth": "png", "tactile": "npy", "thermal": "npy", "audio": "wav", "video": "mp4"}
    for m in form:
        os.makedirs(os.path.join(path, m), exist_ok=True)
    table = [["id", "split", "label", *dataset.modalities]]
    for row, name in enumerate(dataset.ids):
        cells = []
        for m in dataset.modalities:
            item = dataset.load(m, row)
            if m == "language":
                cells.append(item)
                continue
            cell = f"{m}/{name}.{form[m]}"
            file = os.path.join(path, cell)
            if m == "rgb":
                Image.fromarray(np.ascontiguousarray(item.transpose(1, 2, 0))).save(file)
            elif m == "depth":
                Image.fromarray(np.round(item[0] * 1000).astype(np.uint16)).save(file)
            elif m == "audio":
                soundfile.write(file, np.clip(item, -1, 1), RATE, subtype="PCM_16")
            elif m == "video":
                with av.open(file, "w") as out:
                    stream = out.add_stream("mpeg4", rate=8)
                    stream.width = stream.height = CLIP_SIDE
                    stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
                    for frame in item:
                        frame = np.ascontiguousarray(frame.transpose(1, 2, 0))
                        out.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
                    out.mux(stream.encode())
            else:
                np.save(file, item)
            cells.append(cell)
        table.append([name, dataset.split[row], dataset.class_names[dataset.labels[row]], *cells])
    temporary = os.path.join(path, "manifest.csv.part")  # the table comes last, and whole
    with open(temporary, "w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows(table)
    os.replace(temporary, os.path.join(path, "manifest.csv"))


def main(argv=None):
    """Writes synth as a data folder."""
    p = argparse.ArgumentParser(prog="python -m cox_oom.data.synth", description="writes synth as a data folder")
    p.add_argument("folder")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--commonality", type=float, default=0.7, help="0...1: shared beyond the class")
    p.add_argument("--n-train", type=int, default=60)
    p.add_argument("--n-val", type=int, default=12)
    p.add_argument("--n-test", type=int, default=24)
    args = p.parse_args(argv)
    try:
        data = read(args.seed, args.commonality, args.n_train, args.n_val, args.n_test)
        write_folder(data, args.folder)
    except UserError as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(2) from None
    print(f"{args.folder}: {len(data.ids)} rows, {len(data.modalities)} modalities")


if __name__ == "__main__":
    main()
