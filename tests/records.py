"""What stage 4 reads and writes: a tree of runs with random models, and records as METHOD.json holds them."""

import numpy as np
import torch

from cox_oom import files
from cox_oom.connect import Connection
from cox_oom.files import Place
from cox_oom.heads import Head
from cox_oom.learner import Learner

D, CLASSES = 8, ["ape", "bee", "cat"]


def state(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def make_world(runs, data="toy", seeds=(0,), methods=("erm", "cox"), setting="semi", paired="true", im_test=True):
    """Random models in the tree that stages 1 to 3 write: 30 train, 9 val, 21 test rows, one IM bank (im_test=False:
    whose test rows have no label)."""
    g = torch.Generator().manual_seed(7)
    split = torch.tensor([0] * 30 + [1] * 9 + [2] * 21)
    y, ids = torch.arange(60) % 3, [f"i{j}" for j in range(60)]
    x = torch.randn(60, 2, 6, generator=g) + y[:, None, None]
    keep = {"ids": ids, "labels": y, "split": split, "class_names": CLASSES}
    facts = {"data": data, "fingerprint": "f" * 64, "quiet": True}
    inputs = {"kind": "series", "x": x, "lengths": None, "mean": torch.zeros(2, 1), "std": torch.ones(2, 1), **keep}
    of_inputs = files.save(Place(runs, data).inputs("sonar"), inputs, stage="extract_features", args={}, **facts)
    z_im = torch.nn.functional.normalize(torch.randn(60, 5, generator=g) + 2 * torch.eye(5)[y], dim=1)
    bank = {"features": z_im, **keep, "labels": y if im_test else torch.where(split == 2, -1, y)}
    of_bank = files.save(
        Place(runs, data, "bind", "sonar").banks() / "rgb.pt", bank, stage="extract_features", args={}, **facts
    )
    made_from = {"banks/rgb": of_bank, "inputs/sonar": of_inputs}
    facts |= {"paired": paired, "paired_by_class": [], "n_labelled": 3}
    for seed in seeds:
        torch.manual_seed(seed)
        arch = {"kind": "series", "shape": [2, 6], "width": D, "depth": 1, "patch": 16, "slice": 0, "views": []}
        learner, head, mapped_head = Learner(**arch), torch.nn.Linear(D, 3), Head(D, 3)
        connection = Connection(d_im=5, d=D)
        common = {
            "arch": arch,
            "learner": state(learner),
            "head": state(head),
            "im": ["rgb"],
            "class_names": CLASSES,
            "mapped": {"rgb": torch.randn(30, D)},
            "connections": {"rgb": state(connection)},
        }
        connect = {
            **common,
            "im_heads": {"rgb": state(Head(5, 3))},
            "views": {"chosen": ["plain"]},
            "mapped_labels": {"rgb": y[:30]},
            "labelled": ids[:3],
            "pairs": {"rgb": [torch.arange(3), torch.arange(3)]},
            "mapped_ids": {"rgb": ids[:30]},
            "optimizers": {"rgb": torch.optim.Adam(connection.parameters()).state_dict()},
            "curve": [
                {"modality": "rgb", "step": s, "mmd": 1 / (1 + s), "head": state(mapped_head)} for s in (0, 5, 10)
            ],
        }
        folder = Place(runs, data, "bind", "sonar", setting, seed).folder
        args = {"oom": "sonar", "perceptor": "bind", "setting": setting, "seed": seed}
        own = {**args, "labels": 0.1, "per_class": 0, "beta": 0.01, "w_ce": 0.5}
        of_connect = files.save(
            folder / "connect.pt", connect, stage="train_connect", args=own, made_from=made_from, **facts
        )
        for method in methods:
            before = {
                "agree": torch.arange(27) % 2 == 0,
                "label": torch.where(torch.arange(27) % 2 == 0, y[3:30], -1),
                "confidence": torch.rand(27),
                "prediction": torch.zeros(27, dtype=torch.long),
            }
            run = {
                **common,
                "unlabelled": ids[3:30],
                "before": before,
                "after": {**before, "prediction": y[3:30].clone()},
                "history": [{"epoch": e + 1, "loss": 1.0 / (e + 1), "val_accuracy": 0.5} for e in range(2)],
            }
            own = {"method": method, "epochs": 2, "lr": 1e-3, "weight_decay": 0.0, "refreshes": 2, "connect_steps": 3}
            files.save(
                folder / f"{method}.pt",
                run,
                stage="train_explore",
                args={**args, **own},
                made_from={**made_from, "connect": of_connect},
                labels=0.1,
                seconds=1.5,
                **facts,
            )
    return folder


def record(
    accuracy,
    *,
    method="cox",
    seed=0,
    oom="sonar",
    setting="semi",
    labels=0.1,
    paired="true",
    data="toy",
    per_class=0,
    counts=(10, 10, 10),
    **args,
):
    """A record as METHOD.json holds it, of a given accuracy."""
    return {
        "data": data,
        "perceptor": "bind",
        "setting": setting,
        "method": method,
        "oom": oom,
        "seed": seed,
        "labels": labels,
        "per_class": per_class,
        "n_labelled": 3,
        "paired": paired,
        "fingerprint": "f" * 64,
        "history": [],
        "args": {"epochs": 2, **args},
        "metrics": {
            "accuracy": accuracy,
            "balanced_accuracy": accuracy,
            "hungarian_accuracy": 0.5,
            "nmi": 0.25,
            "n_test": sum(counts),
            "per_class": dict.fromkeys([f"c{i}" for i in range(len(counts))], accuracy),
            "confusion": np.diag(counts).tolist(),
            "agreement": None,
            "im_head_accuracy": {"rgb": 0.9},
            "connection": [{"modality": "rgb", "step": 0, "mmd": 0.5, "oom_accuracy": 0.3}],
        },
    }
