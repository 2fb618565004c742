"""Name a live stream: a window slides over a recording that grows, and each window gives a line.

    arecord -q -f FLOAT_LE -r 16000 -c 1 | python examples/live.py runs/my_robot/bind/oom-audio/semi/seed0/cox.pt -
    python examples/live.py imu/cox.pt log.npy --window 200 --hop 50 --rate 100

stream.py beside it says what the recording may be.
"""

import sys

import stream
import torch

import cox_oom
from cox_oom.files import UserError


def main():
    args = stream.arguments(__doc__, "METHOD.pt, or a folder of runs")
    torch.set_num_threads(1)  # one window at a time has no work for more
    learner = cox_oom.load(args.learner)

    def answer(x):
        """Posteriors (C,) and novelty of a window (channels, n); sound is (n,)."""
        found = learner.answer([x[0] if learner.kind == "audio" else x])
        return found.posteriors[0].numpy(), found.novelty[0].item()

    stream.follow(args, learner.preparation, learner.classes, answer)


if __name__ == "__main__":
    try:
        main()
    except UserError as e:
        sys.exit(f"error: {e}")
