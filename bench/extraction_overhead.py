"""What stage 1 adds to a perceptor's forward passes: decoding, preprocessing, worker processes, parts, the bank.

    python -m bench.extraction_overhead                  CPU: ImageBind's widths, vision at 4 of 32 blocks
    python -m bench.extraction_overhead --roles image --blocks 8
    python -m bench.extraction_overhead --device cuda --dtype bfloat16 --blocks 0 --items 4000       GPU: whole depth

Media (jpg 640 x 480; mp4 of 10 s, 320 x 240, 25 frames a second, with sound) and an imagebind_huge.pth with ImageBind's
widths and drawn weights are written to a temporary folder. For each role, `--rounds` times in turn:
  forward   the encoder over batches that are preprocessed and in memory already
  stage 1   from the files to the finished bank (embed.features, files.save), the model being loaded
The medians and their ratio go to bench/results/extraction-<device>-<dtype>.md; what was measured before stays in it.
"""

import argparse
import os
import platform
import shutil
import statistics
import tempfile
import time
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch

from cox_oom import data as datasets
from cox_oom import files
from cox_oom.data import ahead
from cox_oom.perceptors import embed, imagebind
from cox_oom.perceptors.banks import DTYPES
from tests import tiny_weights

ROOT = Path(__file__).resolve().parent.parent
ENCODER = {"image": "vision", "video": "vision", "audio": "audio", "text": "text"}
ITEMS = {"image": 24, "video": 4, "audio": 16, "text": 32}  # on two cores a matter of seconds


def get_args():
    p = argparse.ArgumentParser(
        description=__doc__.split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--roles", default="image,video,audio,text", help="which, comma-separated")
    p.add_argument(
        "--items", type=int, default=0, help="items of each; 0: " + ", ".join(f"{n} {r}" for r, n in ITEMS.items())
    )
    p.add_argument(
        "--blocks", type=int, default=4, help="blocks of the vision encoder, 0: all 32; audio and text have all theirs"
    )
    p.add_argument("--batch-size", type=int, default=8)
    p.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    p.add_argument("--rounds", type=int, default=3)
    p.add_argument("--device", default="cpu")
    p.add_argument("--dtype", default="float32", choices=list(DTYPES))
    return p.parse_args()


def picture(rng, height, width):
    """uint8 (height, width, 3): soft shapes and some noise, so that a jpg is as large as a photo's."""
    soft = (
        torch.nn.functional.interpolate(
            torch.from_numpy(rng.random((1, 3, 12, 16), np.float32)), (height, width), mode="bicubic"
        )[0]
        .permute(1, 2, 0)
        .numpy()
    )
    return (255 * soft + rng.normal(0, 6, soft.shape)).clip(0, 255).astype(np.uint8)


def write_clip(path, rng, seconds=10, rate=25):
    import av

    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=rate)
        video.height, video.width, video.pix_fmt = 240, 320, "yuv420p"
        audio = out.add_stream("aac", rate=44100, layout="stereo")
        scene = picture(rng, 240, 640)
        for k in range(seconds * rate):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(scene[:, k : k + 320]), format="rgb24")
            frame.pts, frame.time_base = k, Fraction(1, rate)
            out.mux(video.encode(frame))
        out.mux(video.encode())
        wave = (0.1 * rng.standard_normal((2, seconds * 44100))).astype(np.float32)
        for at in range(0, wave.shape[1], 1024):
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[:, at : at + 1024]), format="fltp", layout="stereo"
            )
            frame.rate, frame.pts, frame.time_base = 44100, at, Fraction(1, 44100)
            out.mux(audio.encode(frame))
        out.mux(audio.encode())


def write_data(folder, role, count):
    """A data set of one modality: `count` items of 12 files, each file linked often enough."""
    from PIL import Image

    rng, cells = np.random.default_rng(0), []
    (folder / role).mkdir(parents=True)
    ending = {"image": "jpg", "video": "mp4", "audio": "mp4"}.get(role)
    for k in range(count):
        path = folder / role / f"{k}.{ending}"
        if role == "text":
            cells.append(
                " ".join(rng.choice(["a", "man", "is", "playing", "the", "guitar", "in", "front", "of", "people"], 10))
            )
            continue
        if k >= 12:
            os.link(folder / role / f"{k % 12}.{ending}", path)
        elif role == "image":
            Image.fromarray(picture(rng, 480, 640)).save(path, quality=90)
        else:
            write_clip(path, rng)
        cells.append(str(path))
    load = {
        "image": lambda c, s: datasets.media.load_image(c),
        "audio": lambda c, s: datasets.media.load_audio(c, resample=s),
        "video": lambda c, s: datasets.media.load_video(c, sample=s),
        "text": lambda c, s: c,
    }[role]
    return datasets.Dataset(
        name="bench",
        ids=[str(k) for k in range(count)],
        split=["train"] * count,
        labels=[0] * count,
        class_names=["x"],
        modalities={role: role},
        cells={role: cells},
        load=lambda m, row, sample=None: load(cells[row], sample),
        fingerprint=role,
        source={},
    )


def stage_1(model, role, data, folder, args):
    z, _ = embed.features(
        model,
        role,
        data,
        role,
        list(range(len(data.ids))),
        folder / "parts",
        batch_size=args.batch_size,
        workers=args.workers,
        device=args.device,
        known={},
        complain=None,
    )
    files.save(folder / "bank.pt", {"features": z}, stage="bench", data="bench", fingerprint="", args={}, quiet=True)
    embed.clear(folder / "parts")
    return z


def forward(model, role, batches):
    return torch.cat([model.encode(role, b) for b in batches]).cpu()


def seconds(f):
    begun = time.perf_counter()
    out = f()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begun, out


def measure(role, folder, args):
    """A row of the table."""
    name, count = ENCODER[role], args.items or ITEMS[role]
    sizes = {name: tiny_weights.IMAGEBIND[name]}
    if name == "vision" and args.blocks:
        sizes = {name: (sizes[name][0], args.blocks, *sizes[name][2:])}
    path = tiny_weights.imagebind(folder / "imagebind_huge.pth", sizes=sizes, out=1024)
    model = imagebind.load([role], weights=path, device=args.device, dtype=DTYPES[args.dtype])
    data, preparer = write_data(folder, role, count), model.preparer()
    alone, items = seconds(
        lambda: [preparer.prepare(role, data.load(role, k, preparer.sample(role))) for k in range(count)]
    )
    batches = [torch.stack(items[k : k + args.batch_size]).to(args.device) for k in range(0, count, args.batch_size)]
    forward(model, role, batches[:1])
    pairs = []
    for _ in range(args.rounds):
        pairs.append(
            (seconds(lambda: forward(model, role, batches)), seconds(lambda: stage_1(model, role, data, folder, args)))
        )
    worst = max((a[1] - b[1]).abs().max().item() for a, b in pairs)
    assert worst < (1e-5 if args.dtype == "float32" else 5e-2), f"stage 1's features differ by {worst}"
    a, b = (statistics.median(p[k][0] for p in pairs) for k in (0, 1))
    depth = f"{sizes[name][1]} of {tiny_weights.IMAGEBIND[name][1]} blocks"
    return (
        f"| {role} | {name}, {sizes[name][0]} wide, {depth} | {count} | {alone:.2f} | {a:.2f} | {b:.2f} | {b / a:.3f} |"
    )


def write(out, fresh, args, device):
    """The table with `fresh` rows; those of other roles and encoders stay."""
    old = (
        [line for line in out.read_text().splitlines() if line[:2] == "| " and line[:6] != "| role"]
        if out.exists()
        else []
    )
    rows = {tuple(line.split("|")[1:3]): line for line in [*old, *fresh]}
    head = [
        "# Stage 1 beside the forward passes alone",
        "",
        "`python -m bench.extraction_overhead`; its docstring says what is measured. Seconds, medians.",
        "",
        "| role | encoder | items | decode and prepare, one process | forward | stage 1 | stage 1 / forward |",
        "|:--|:--|--:|--:|--:|--:|--:|",
    ]
    cores = len(os.sched_getaffinity(0))
    out.parent.mkdir(exist_ok=True)
    out.write_text(
        "\n".join(
            [
                *head,
                *rows.values(),
                "",
                f"{device}, {cores} cores, {args.workers} worker processes for {ahead.FEW} items and more, none for "
                f"fewer, batches of {args.batch_size}, {args.dtype}, {args.rounds} rounds, torch {torch.__version__}, "
                f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}",
            ]
        )
        + "\n"
    )


def main():
    args = get_args()
    device = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    out = ROOT / "bench" / "results" / f"extraction-{device.replace(' ', '-')}-{args.dtype}.md"
    for role in args.roles.split(","):
        folder = Path(tempfile.mkdtemp(prefix="cox-bench-"))
        try:
            row = measure(role, folder, args)
        finally:
            shutil.rmtree(folder)
        print(row, flush=True)
        write(out, [row], args, device)
    print(f"wrote {out}")


if __name__ == "__main__":
    main()
