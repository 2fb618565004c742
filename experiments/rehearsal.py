"""The parts of experiments/rehearsal.sh: media and files of the paper's sizes, and what a command costs.

    python experiments/rehearsal.py clips  --annot /work/shared/data/annot --to DIR --count 200
    python experiments/rehearsal.py files  --runs RUNS --rows 100000
    python experiments/rehearsal.py run    --out DIR --part "stage 2" --rows 100000 -- python train_connect.py …

clips   MSR-VTT's true annotation, VGGSound's true list of test clips (a tenth of its rows as test, the others as train:
        its list of train clips was not to be had), and generated clips of 320 x 240 pixels, 30 frames a second, 10 s
        with sound for some of their rows. Twelve differ, the others are links to them.
files   Stage 1's files of M rows that nothing has decoded: audio (64, 499) float32, banks video and language of 1,024
        features; 309 classes, drawn around their means from one hidden vector a row. A row in twenty more is test.
run     Runs a command; adds a line to DIR/rehearsal.csv: part, rows, minutes, CPU minutes, peak memory of its own and
        with mapped files, in MB.
"""

import argparse
import csv
import os
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom import files, shards
from cox_oom.data import inputs
from cox_oom.files import Place, UserError

CLASSES, HIDDEN, MELS, STEPS, WIDTH, DIFFERENT = 309, 32, 64, 499, 1024, 12
SIZE, RATE, SECONDS, SOUND = (240, 320), 30, 10, 44100


def clip(path, rng):
    """Write a clip of moving noise with a tone."""
    av = files.optional("av", "the rehearsal's clips")
    with av.open(str(path), "w") as out:
        video, audio = out.add_stream("libx264", rate=RATE), out.add_stream("aac", rate=SOUND)
        video.height, video.width = SIZE
        video.options = {"preset": "ultrafast"}
        still = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
        still = np.repeat(np.repeat(still[::8, ::8], 8, 0), 8, 1)
        for k in range(RATE * SECONDS):
            out.mux(video.encode(av.VideoFrame.from_ndarray(np.roll(still, 2 * k, 1), format="rgb24")))
        t = np.arange(SOUND * SECONDS, dtype=np.float32) / SOUND
        wave = 0.3 * np.sin(2 * np.pi * rng.uniform(100, 1000) * t) + 0.05 * rng.standard_normal(len(t))
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), format="fltp", layout="mono")
        frame.sample_rate = SOUND
        out.mux(audio.encode(frame))
        out.mux(video.encode())
        out.mux(audio.encode())


def clips(args):
    """Both data sets below args.to, with args.count clips each."""
    rng, annot = np.random.default_rng(0), Path(args.annot)
    pool = [args.to / f"pool/{k}.mp4" for k in range(DIFFERENT)]
    for path in pool:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            clip(path, rng)
    for archive in sorted((annot / "msrvtt").glob("*.zip")):
        zipfile.ZipFile(archive).extractall(args.to / "msrvtt")
    names = [f"video{k}" for k in range(2 * args.count // 3)]
    names += [f"video{k}" for k in range(7010, 7010 + args.count - len(names))]
    with open(annot / "vggsound/test.csv", newline="") as f:
        rows = [(name.removesuffix(".mp4"), label) for name, label in csv.reader(f)]
    (args.to / "vggs").mkdir(exist_ok=True)
    with open(args.to / "vggs/vggsound.csv", "w", newline="") as f:
        lines = [(i[:11], int(i[12:]), label, "train" if k % 10 else "test") for k, (i, label) in enumerate(rows)]
        csv.writer(f).writerows(lines)
    for folder, given in (("msrvtt", names), ("vggs", [name for name, _ in rows[: args.count]])):
        (args.to / folder / "clips").mkdir(exist_ok=True)
        for k, name in enumerate(given):
            link = args.to / folder / f"clips/{name}.mp4"
            if not link.exists():
                os.link(pool[k % DIFFERENT], link)


def drawn(rows, width, seed):
    """(len(rows), width) standard normal numbers, the same for a row in every call."""
    return torch.from_numpy(
        np.random.default_rng([seed, rows[0]]).standard_normal((len(rows), width), dtype=np.float32)
    )


def generate(args):
    """The inputs and banks of args.rows train rows and a twentieth as many test rows."""
    place, n = Place(args.runs, "rehearsal", "generated", "audio"), args.rows + args.rows // 20
    y = torch.arange(n) % CLASSES
    about = {"ids": [f"r{k:07d}" for k in range(n)], "class_names": [f"class {c:03d}" for c in range(CLASSES)]}
    about |= {"labels": y, "split": torch.where(torch.arange(n) < args.rows, 0, 2)}
    per = shards.most(4 * MELS * STEPS)
    means, mix = drawn([0] * CLASSES, HIDDEN, 1), drawn([0] * MELS, HIDDEN, 2) / HIDDEN**0.5
    maps = {m: drawn([0] * WIDTH, HIDDEN, k) for k, m in enumerate(("video", "language"), 3)}
    hidden = torch.cat([means[y[list(r)]] + drawn(r, HIDDEN, 5) for r in shards.split(range(n), per)])
    facts = {"stage": "extract_features", "data": "rehearsal", "fingerprint": f"generated {n}", "dated": False}
    moments, names, sizes = inputs.Moments(), [], []
    for k, rows in enumerate(shards.split(range(n), per)):
        t = torch.arange(STEPS) / STEPS
        x = (hidden[list(rows)] @ mix.T)[:, :, None] * (1 + 0.5 * torch.sin(6.28 * 3 * t + y[list(rows), None]))[
            :, None
        ]
        x += drawn(rows, MELS * STEPS, 6).view(len(rows), MELS, STEPS)
        moments.add(x.transpose(0, 1).flatten(1), (1,))
        names.append(shards.write(place.inputs("audio"), k, {"x": x}, {}, "rehearsal"))
        sizes.append(len(x))
    mean, std = moments.result()
    audio = {"kind": "series", "lengths": torch.full((n,), STEPS), "mean": mean, "std": std, **about}
    audio["shards"] = shards.entry("x", names, sizes, (MELS, STEPS), torch.float32)
    preparation = {"kind": "audio", "image_size": 224, "series_length": 512, "frames": 8, "mels": MELS}
    preparation |= {"longest": STEPS, "reader": inputs.READER}
    files.save(place.inputs("audio"), audio, args={}, preparation=preparation, **facts)
    for m, to in maps.items():
        names, sizes = [], []
        for k, rows in enumerate(shards.split(range(n), shards.ITEMS)):
            z = F.normalize(torch.tanh(hidden[list(rows)] @ to.T / HIDDEN**0.5) + 0.3 * drawn(rows, WIDTH, 7), dim=1)
            names.append(shards.write(place.bank(m), k, {"features": z}, {}, "rehearsal"))
            sizes.append(len(z))
        bank = {"shards": shards.entry("features", names, sizes, (WIDTH,), torch.float32), **about}
        files.save(place.bank(m), bank, args={}, **facts)


def own_memory(pid):
    """Bytes that a process holds besides what it maps from files; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem")))


def run(args):
    """Run the command; its exit code."""
    begun, peak = time.time(), 0
    process = subprocess.Popen(args.command)
    while not (ended := os.wait4(process.pid, os.WNOHANG))[0]:
        peak = max(peak, own_memory(process.pid))
        time.sleep(0.2)
    _, status, used = ended
    code = os.waitstatus_to_exitcode(status)
    table = args.out / "rehearsal.csv"
    args.out.mkdir(parents=True, exist_ok=True)
    header = [] if table.exists() else [("part", "rows", "minutes", "cpu_minutes", "own_mb", "peak_mb", "exit")]
    minutes = [f"{seconds / 60:.2f}" for seconds in (time.time() - begun, used.ru_utime + used.ru_stime)]
    line = (args.part, args.rows, *minutes, round(peak / 1e6), round(used.ru_maxrss * 1024 / 1e6), code)
    with open(table, "a", newline="") as f:
        csv.writer(f, lineterminator="\n").writerows([*header, line])
    return code


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("what", choices=("clips", "files", "run"))
    p.add_argument("--annot", default="/work/shared/data/annot", help="folder of the true annotation files")
    p.add_argument("--to", type=Path, help="folder of the data sets that are made")
    p.add_argument("--count", type=int, default=200, help="generated clips of each data set")
    p.add_argument("--runs", help="folder under which the stages write")
    p.add_argument("--rows", type=int, default=100_000, help="train rows")
    p.add_argument("--out", type=Path, help="folder of rehearsal.csv")
    p.add_argument("--part", default="", help="what the line of the table is called")
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    args = p.parse_args(sys.argv[1:at])
    args.command = sys.argv[at + 1 :]
    if args.what == "run":
        sys.exit(run(args))
    try:
        clips(args) if args.what == "clips" else generate(args)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
