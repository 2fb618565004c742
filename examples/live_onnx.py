"""Name a live stream with an exported learner: no torch, and nothing of this repository but stream.py beside it.

    arecord -q -f FLOAT_LE -r 16000 -c 1 | python live_onnx.py learner.onnx -
    python live_onnx.py learner.int8.onnx log.npy --window 200 --hop 50 --rate 100

It needs numpy and onnxruntime, and for sound kaldi-native-fbank. learner.json lies beside learner.onnx.
"""

import json
import sys

import numpy as np
import onnxruntime
import stream


def log_mel(wave, mels):
    """Log mel energies (mels, frames) of a wave (n,): windows of 25 ms each 10 ms, as Kaldi makes them."""
    import kaldi_native_fbank as knf

    options = knf.FbankOptions()
    options.frame_opts.dither, options.mel_opts.num_bins, options.use_energy = 0, mels, False
    bank = knf.OnlineFbank(options)
    bank.accept_waveform(16000, np.pad(wave, (0, max(0, 400 - len(wave)))))
    bank.input_finished()
    return np.stack([bank.get_frame(i) for i in range(bank.num_frames_ready)], 1)


def prepared(x, to):
    """{"x", "steps"} of a window (channels, n), as learner.json says under "prepare"."""
    if to["kind"] == "audio":
        x = log_mel(x[0], to["mels"])
    if to["longest"] > to["series_length"]:
        n = x.shape[1]
        parts = -(-n * to["series_length"] // to["longest"])
        x = np.stack([x[:, i * n // parts : -(-(i + 1) * n // parts)].mean(1) for i in range(parts)], 1)
    x = x[None, :, : to["shape"][1]].astype(np.float32)
    return {"x": x, "steps": np.array([x.shape[2]])} if to["lengths"] else {"x": x}


def main():
    args = stream.arguments(__doc__, "learner.onnx")
    with open(args.learner.removesuffix(".onnx").removesuffix(".int8") + ".json", encoding="utf-8") as f:
        facts = json.load(f)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # one window at a time has no work for more
    session = onnxruntime.InferenceSession(args.learner, options, providers=["CPUExecutionProvider"])

    def answer(x):
        posteriors, novelty = session.run(["posteriors", "novelty"], prepared(x, facts["preparation"]))
        return posteriors[0], novelty[0]

    stream.follow(args, facts["preparation"], facts["classes"], answer)


if __name__ == "__main__":
    try:
        main()
    except OSError as e:
        sys.exit(f"error: {e}")
