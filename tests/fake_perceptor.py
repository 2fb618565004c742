"""A perceptor of no use but to tests: the interface of cox_oom/perceptors/__init__.py on a seed in a file, in
milliseconds. COX_FAKE_SLEEP: seconds that a batch takes."""

import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from cox_oom.files import UserError
from cox_oom.perceptors import weights as hashes

MODALITIES = {"image": "", "text": "", "audio": "", "video": ""}
PREPROCESSING = "fake-1"
BIND_TO = "image"
D = {"image": 12, "video": 12, "text": 12, "audio": 12}
encoded = []  # (role, shape of the batch) of every batch


def weight_files(roles, weights):
    if weights is None or not Path(weights).is_file():
        raise UserError(f"--weights {weights}: the fake perceptor needs a file; write any")
    return {Path(weights).name: Path(weights)}


def load(roles, *, weights=None, device="cpu", dtype=torch.float32):
    return Perceptor(roles, *weight_files(roles, weights).values(), dtype)


class Perceptor:
    def __init__(self, roles, path, dtype):
        seed = int.from_bytes(path.read_bytes()[:6], "big")
        self.maps = {
            r: torch.randn(64, D[r], generator=torch.Generator().manual_seed(seed + len(r))).to(dtype) for r in roles
        }
        self.dims, self.weights = {r: D[r] for r in roles}, {path.name: hashes.sha256(path)}

    def preparer(self):
        return Preparer()

    def encode(self, role, batch):
        encoded.append((role, tuple(batch.shape)))
        time.sleep(float(os.environ.get("COX_FAKE_SLEEP", 0)))
        x = batch.float().flatten(1)
        x = F.adaptive_avg_pool1d(x[:, None], 64)[:, 0] + 0.1
        return F.normalize((x.to(self.maps[role].dtype) @ self.maps[role]).float(), dim=-1)


class Preparer:
    def sample(self, role):
        return last_two if role == "video" else None

    def prepare(self, role, item):
        if role == "text":  # unpadded: items of unlike lengths
            return torch.tensor(list(item.encode()), dtype=torch.int64)
        x = torch.from_numpy(np.ascontiguousarray(item)).float()
        if role == "audio":
            return x[:4000] if len(x) >= 4000 else F.pad(x, (0, 4000 - len(x)))
        x = F.adaptive_avg_pool2d(x / 255, 8)
        return x.expand(3, -1, -1) if x.shape[0] == 1 else x


def last_two(n_frames, fps):
    return [n_frames - 2, n_frames - 1]
