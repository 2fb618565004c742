"""Puts device, commit and date on top of a pytest-benchmark file and names it gpu-<date>-<commit>.json.

    python bench/name_result.py bench/results/.gpu.json <commit>

Works without a git checkout: on a GPU machine there may be only a copy of the files.
"""
import json
import os
import sys
import time
from pathlib import Path

import torch

path, commit = Path(sys.argv[1]), sys.argv[2]
if not torch.cuda.is_available():
    sys.exit(f"error: torch {torch.__version__} sees no GPU: {path} holds CPU timings and keeps its name")
result = json.loads(path.read_text())
date = time.strftime("%Y-%m-%d")
head = {"device": torch.cuda.get_device_name(), "commit": commit, "date": date, "torch": torch.__version__,
        "cuda": torch.version.cuda}
named = path.with_name(f"gpu-{date}-{commit}.json")
named.write_text(json.dumps({**head, **result}, indent=1))
os.remove(path)
print(f"wrote {named}: {head['device']}, torch {head['torch']}")
