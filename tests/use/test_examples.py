"""The examples name a stream as the learner names the same windows; the one for ONNX without torch and this package."""

import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from scipy.io import wavfile
from worlds import ROOT, heed_interrupts

LINE = re.compile(r" *([\d.]+) s  (\w+) ([\d.]+)( \(unlike the training items\))?")
ALONE = """
import runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "cox_oom", "cox_ops", "scipy", "soundfile"):
            raise ModuleNotFoundError(f"{name} is not on this machine")
sys.meta_path.insert(0, Absent())
sys.path.insert(0, "examples")
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
WINDOWS = {"audio": (1600, 800, 16000), "imu": (14, 7, 100)}  # samples, samples between two, samples a second


def started(exported, script, modality, source, *flags):
    """An example as a process; live_onnx.py where neither torch nor this package can be imported."""
    found, out = exported
    window, hop, rate = WINDOWS.get(modality, (10, 5, 1))
    given = [source, "--window", window, "--hop", hop, "--rate", rate, "--wait", 100, *flags]
    if script == "live":
        command = [sys.executable, "examples/live.py", found[modality][0].paths[0], *given]
    else:
        command = [sys.executable, "-I", "-c", ALONE, "examples/live_onnx.py", out / f"{modality}.onnx", *given]
    return subprocess.Popen(
        [str(c) for c in command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=heed_interrupts,
    )


def recording(modality):
    """float32 (channels, time) of five windows, more or less; of audio as 16 bits hold it."""
    rng, n = np.random.default_rng(1), 3 * WINDOWS[modality][0] + 3
    t = np.arange(n)
    if modality == "audio":
        tone = np.sin(t * np.where(t < n // 2, 0.05, 0.25)) * 8000 + rng.normal(0, 100, n)
        return tone.astype(np.int16)[None] / np.float32(32768)
    return np.stack([np.sin(t * 0.9), t / 30]).astype(np.float32) + rng.normal(0, 0.1, (2, n)).astype(np.float32)


def write(path, modality, x):
    if modality == "audio":
        wavfile.write(path, 16000, (x[0] * 32768).astype(np.int16))
    else:
        np.save(path, x)


def expected(learner, modality, x):
    """[(seconds at the window's end, class, confidence, whether it is unlike the training items)]."""
    window, hop, rate = WINDOWS[modality]
    ends = range(window, x.shape[1] + 1, hop)
    parts = [x[:, e - window : e] for e in ends]
    answer = learner.answer([p[0] if modality == "audio" else p for p in parts])
    p, c = answer.posteriors.max(1)
    return [(e / rate, learner.classes[i], v, a > 1) for e, i, v, a in zip(ends, c.tolist(), p, answer.novelty)]


def compare(lines, wanted):
    assert len(lines) == len(wanted)
    for line, (end, name, confidence, far) in zip(lines, wanted):
        found = LINE.fullmatch(line)
        assert found, line
        assert float(found[1]) == pytest.approx(end, abs=0.006) and found[2] == name and bool(found[4]) == bool(far)
        assert float(found[3]) == pytest.approx(float(confidence), abs=0.006)


@pytest.mark.parametrize("script", ("live", "live_onnx"))
@pytest.mark.parametrize("modality", ("audio", "imu"))
def test_a_growing_recording_is_named_window_by_window(exported, tmp_path, script, modality):
    x = recording(modality)
    path = tmp_path / ("a.wav" if modality == "audio" else "a.npy")
    write(path, modality, x[:, : WINDOWS[modality][0] + 1])
    process = started(exported, script, modality, path)
    lines = [process.stdout.readline().decode().rstrip()]  # the first window's, before the second is there
    whole = tmp_path / f"whole{path.suffix}"
    write(whole, modality, x)
    if modality == "audio":  # a recorder appends to it; its header is of the beginning
        with open(path, "ab") as f:
            f.write(whole.read_bytes()[path.stat().st_size :])
    else:
        os.replace(whole, path)
    wanted = expected(exported[0][modality][0], modality, x)
    lines += [process.stdout.readline().decode().rstrip() for _ in wanted[1:]]
    process.send_signal(signal.SIGINT)  # as Ctrl-C: the cost is said all the same
    rest, error = process.communicate(timeout=100)
    compare(lines, wanted)
    assert process.returncode == 0 and not error
    said = re.fullmatch(r"(\d+) windows, ([\d.]+) ms each: ([\d.]+) ms for a second of the recording\n", rest.decode())
    each, rate = float(said[2]), WINDOWS[modality][2] / WINDOWS[modality][1]
    assert int(said[1]) == len(wanted) and float(said[3]) == pytest.approx(each * rate, abs=0.06 * (1 + rate))


@pytest.mark.parametrize("modality", ("audio", "imu"))
def test_standard_input_in_pieces_of_any_size(exported, modality):
    x = recording(modality)
    process, data = started(exported, "live_onnx", modality, "-"), np.ascontiguousarray(x.T).tobytes()
    for k in range(0, len(data), 1001):
        process.stdin.write(data[k : k + 1001])
        process.stdin.flush()
    out, error = process.communicate(timeout=100)
    assert process.returncode == 0 and not error
    compare(out.decode().splitlines()[:-1], expected(exported[0][modality][0], modality, x))


def test_bad_input_is_one_line(exported, tmp_path):
    stereo, three, short = tmp_path / "a.wav", tmp_path / "a.npy", tmp_path / "b.npy"
    wavfile.write(stereo, 16000, np.zeros((4000, 2), np.int16))
    np.save(three, np.zeros((3, 40), np.float32))
    np.save(short, np.zeros((2, 5), np.float32))
    cases = (
        ("audio", stereo, "one channel of 16 bits at 16000 Hz"),
        ("imu", three, "has 3 channels, the learner takes 2"),
        ("imu", short, "no 14 samples"),
        ("thermal", three, "give sound or series"),
    )
    running = [started(exported, "live_onnx", m, path, "--wait", 0.2) for m, path, _ in cases]
    for process, (_, _, words) in zip(running, cases):
        out, error = process.communicate(timeout=100)
        assert process.returncode == 1 and not out and error.decode().count("\n") == 1 and words in error.decode()


def test_torch_is_barred_from_the_tests_of_live_onnx():
    command = [sys.executable, "-I", "-c", ALONE, "examples/live.py", "x", "-"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert said.returncode == 1 and "torch is not on this machine" in said.stderr
