"""A folder of 400 echo recordings: what a robot with a sonar might bring. Run it to look at the folder.

    python -m tests.echo DIR            DIR/manifest.csv, DIR/sonar, DIR/rgb, DIR/audio: about 9 MB

Eight materials ring at two resonances each and fall silent after a while of their own. An echo arrives late by chance,
has a chance phase and gain, and noise. So its bands tell the class, and its samples do not. The known modalities are a
picture, a sentence and a knock on the object; they show the class well, and some cells of each are missing."""

import csv
import sys
from pathlib import Path

import numpy as np

CLASSES = ("brass", "brick", "cork", "felt", "glass", "oak", "slate", "tin")
RESONANCES = (  # of each class, cycles a step
    (0.05, 0.13),
    (0.05, 0.17),
    (0.08, 0.13),
    (0.08, 0.21),
    (0.11, 0.17),
    (0.11, 0.25),
    (0.15, 0.21),
    (0.15, 0.29),
)
DECAY = (90, 40, 30, 20, 110, 50, 60, 130)  # steps until a ring has fallen to a third
TRAIN, TEST, LABELS = 280, 120, 101
RATE = 16000  # Hz, of the knocks


def echo(rng, c):
    """One sonar recording of class c: float32 (2, T), T between 192 and 480."""
    steps = int(rng.integers(192, 481))
    t = np.arange(steps) - rng.integers(8, 60)
    wave = np.zeros((2, steps))
    for f, loud in zip(RESONANCES[c], (1.0, 0.8)):
        f *= 1 + 0.03 * rng.standard_normal()
        for channel in wave:
            channel += loud * rng.uniform(0.6, 1.4) * np.sin(2 * np.pi * f * t + rng.uniform(0, 2 * np.pi))
    ring = np.where(t >= 0, np.exp(-np.maximum(t, 0) / (DECAY[c] * rng.uniform(0.7, 1.4))), 0)
    return (rng.uniform(0.5, 2) * (wave * ring + 0.35 * rng.standard_normal(wave.shape))).astype(np.float32)


def picture(rng, c):
    """uint8 (32, 32, 3): stripes of the class's colour and width on a ground that changes."""
    colour = 60 + 120 * np.array([c & 1, c >> 1 & 1, c >> 2 & 1])
    stripes = (np.arange(32) + rng.integers(8)) // (2 + c % 4) % 2
    image = rng.integers(30, 90, 3) + stripes[:, None, None] * (colour - 40) * rng.uniform(0.5, 1)
    return (image + 35 * rng.standard_normal((32, 32, 3))).clip(0, 255).astype(np.uint8)


def sentence(rng, c):
    """It tells the class nine times of ten."""
    look = ("heavy", "dull", "light", "soft", "clear", "brown", "grey", "thin")[
        c if rng.random() < 0.9 else rng.integers(8)
    ]
    return f"a {look} {rng.choice(('thing', 'piece', 'part'))} on shelf {rng.integers(20)}"


def knock(rng, c):
    """float32 (4000,): a quarter of a second at 16 kHz."""
    t = np.arange(RATE // 4) / RATE
    tone = sum(np.sin(2 * np.pi * f * t + rng.uniform(0, 6)) for f in (300 + 220 * c, 900 + 310 * c))
    return (0.2 * np.exp(-t * (10 + 6 * (c % 3))) * tone + 0.02 * rng.standard_normal(len(t))).astype(np.float32)


def write(folder, seed=0):
    """The folder, as Path. Its rows are in random order; ids say nothing of the class."""
    import soundfile
    from PIL import Image

    folder, rng = Path(folder), np.random.default_rng(seed)
    for m in ("sonar", "rgb", "audio"):
        (folder / m).mkdir(parents=True, exist_ok=True)
    labelled = set(rng.permutation(TRAIN)[:LABELS].tolist())
    rows = [("id", "split", "label", "rgb", "language", "audio", "sonar")]
    for i in range(TRAIN + TEST):
        c, name = int(rng.integers(8)), f"{i:04d}"
        np.save(folder / "sonar" / f"{name}.npy", echo(rng, c))
        Image.fromarray(picture(rng, c)).save(folder / "rgb" / f"{name}.png")
        soundfile.write(folder / "audio" / f"{name}.wav", knock(rng, c), RATE)
        cells = [f"rgb/{name}.png", sentence(rng, c), f"audio/{name}.wav"]
        cells = ["" if rng.random() < 0.08 else cell for cell in cells]
        known = i in labelled or i >= TRAIN
        rows.append((name, "train" if i < TRAIN else "test", CLASSES[c] if known else "", *cells, f"sonar/{name}.npy"))
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)
    return folder


if __name__ == "__main__":
    print(write(sys.argv[1]))
