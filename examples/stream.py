"""What live.py and live_onnx.py share: reading a recording while it grows, and a window that slides over it.

The recording is a .wav file (one channel, 16 bits, 16000 Hz), a .npy file (channels, time) that is written anew as it
grows, or -: raw float32 from standard input, of each sample all channels. Only numpy is needed.
"""

import argparse
import contextlib
import sys
import time

import numpy as np

WAV = (
    b"\1\0\1\0\x80\x3e\0\0\x10\0data"  # in a header of 44 bytes: PCM, one channel, 16000 Hz, 16 bits, then the samples
)


def arguments(doc, learner):
    p = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("learner", help=learner)
    p.add_argument("source", help="a .wav or .npy file that may grow, or - for raw float32 from standard input")
    p.add_argument("--window", type=int, help="samples; left out: as the longest training item")
    p.add_argument("--hop", type=int, help="samples from window to window; left out: half a window")
    p.add_argument("--rate", type=float, default=16000, help="samples a second")
    p.add_argument("--wait", type=float, default=5, help="seconds after which a file that stands still has ended")
    return p.parse_args()


def new(path, seen):
    """Samples (channels, n) of a file beyond its first `seen`. ValueError or OSError while it is being written."""
    if path.endswith(".npy"):
        return np.load(path)[:, seen:].astype(np.float32)
    with open(path, "rb") as f:
        head = f.read(44)
        if len(head) == 44 and head[20:28] + head[34:40] != WAV:
            sys.exit(f"error: {path}: record one channel of 16 bits at 16000 Hz, without tags")
        f.seek(44 + 2 * seen)
        data = f.read()
    return np.frombuffer(data[: len(data) & ~1], "<i2")[None] / np.float32(32768)


def pieces(source, channels, wait):
    """New samples (channels, n) as they come."""
    rest, seen, last = b"", 0, time.monotonic()
    while source == "-" and (data := sys.stdin.buffer.read1(1 << 16)):
        rest += data
        n = len(rest) // (4 * channels)
        yield np.frombuffer(rest, "<f4", n * channels).reshape(n, channels).T
        rest = rest[4 * channels * n :]
    while source != "-" and time.monotonic() - last < wait:
        x = np.zeros((channels, 0), np.float32)
        with contextlib.suppress(OSError, EOFError, ValueError):
            x = new(source, seen)
        if x.shape[1]:
            seen, last = seen + x.shape[1], time.monotonic()
            yield x
        time.sleep(0.05)


def windows(args, channels, window, hop):
    """(end, x (channels, window)) each `hop` samples."""
    end, held = window, np.zeros((channels, 0), np.float32)
    for piece in pieces(args.source, channels, args.wait):
        if len(piece) != channels:
            sys.exit(f"error: {args.source} has {len(piece)} channels, the learner takes {channels}")
        held = np.concatenate([held, piece], 1)
        while held.shape[1] >= window:
            yield end, held[:, :window]
            held, end = held[:, hop:], end + hop


def follow(args, preparation, classes, answer):
    """Print the answer to each window: its end in seconds, class, confidence; at the end what a second costs.

    answer(x (channels, window)) -> (posteriors (C,), novelty)."""
    kind, longest, spent = preparation["kind"], preparation["longest"], []
    window = args.window or (160 * longest + 240 if kind == "audio" else longest)  # a frame is 25 ms, each 10 ms
    hop = min(args.hop or max(1, window // 2), window)
    if kind not in ("audio", "series") or hop < 1:
        sys.exit(f"error: a window of {kind}, {window} samples each {hop}, is none; give sound or series, 1 or more")
    with contextlib.suppress(KeyboardInterrupt):
        for end, x in windows(args, 1 if kind == "audio" else preparation["shape"][0], window, hop):
            begun = time.perf_counter()
            posteriors, novelty = answer(x)
            spent.append(time.perf_counter() - begun)
            note = " (unlike the training items)" if novelty > 1 else ""
            print(f"{end / args.rate:8.2f} s  {classes[posteriors.argmax()]} {posteriors.max():.2f}{note}", flush=True)
    if not spent:
        sys.exit(f"error: {args.source} has no {window} samples, which are one window; give --window")
    each = 1000 * float(np.median(spent))
    print(f"{len(spent)} windows, {each:.1f} ms each: {each * args.rate / hop:.1f} ms for a second of the recording")
