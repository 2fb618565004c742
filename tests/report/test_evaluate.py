"""Stage 4: metrics by hand and against scikit-learn, the chain, the table's rules, a report alone."""

import csv
import json
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn import metrics as sk

import evaluate
import train_explore
from cox_oom import files
from cox_oom.model import Connection, Head, Learner
from cox_oom.report import metrics, page, plots, scores, tables, tests

D, CLASSES = 8, ["ape", "bee", "cat"]


def state(module):
    return {k: v.detach().clone() for k, v in module.state_dict().items()}


def make_world(
    runs,
    data="toy",
    seeds=(0,),
    methods=("erm", "cox"),
    setting="semi",
    fingerprint="f" * 64,
    labels=0.1,
    paired="true",
    per_class=0,
    oom="sonar",
    im_test=True,
):
    """Random models in the tree that stages 1 to 3 write: 30 train, 9 val, 21 test rows, one IM bank (im_test=False:
    whose test rows have no label)."""
    g = torch.Generator().manual_seed(7)
    split = torch.tensor([0] * 30 + [1] * 9 + [2] * 21)
    y, ids = torch.arange(60) % 3, [f"i{j}" for j in range(60)]
    x = torch.randn(60, 2, 6, generator=g) + y[:, None, None]
    keep = {"ids": ids, "labels": y, "split": split, "class_names": CLASSES}
    facts = {"data": data, "fingerprint": fingerprint, "quiet": True}
    inputs = {"kind": "series", "x": x, "lengths": None, "mean": torch.zeros(2, 1), "std": torch.ones(2, 1), **keep}
    d_inputs = files.save(files.inputs_path(runs, data, oom), inputs, stage="extract_features", args={}, **facts)
    z_im = torch.nn.functional.normalize(torch.randn(60, 5, generator=g) + 2 * torch.eye(5)[y], dim=1)
    d_bank = files.save(
        files.bank_dir(runs, data, "bind", oom) / "rgb.pt",
        {"features": z_im, **keep, "labels": y if im_test else torch.where(split == 2, -1, y)},
        stage="extract_features",
        args={},
        **facts,
    )
    made_from = {"banks/rgb": d_bank, f"inputs/{oom}": d_inputs}
    for seed in seeds:
        torch.manual_seed(seed)
        arch = {"kind": "series", "shape": [2, 6], "width": D, "depth": 1, "patch": 16, "slice": 0}
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
        folder = files.run_dir(runs, data, "bind", oom, setting, seed)
        args = {"oom": oom, "perceptor": "bind", "setting": setting, "seed": seed}
        d_connect = files.save(
            folder / "connect.pt",
            {
                **common,
                "im_heads": {"rgb": state(Head(5, 3))},
                "mapped_labels": {"rgb": y[:30]},
                "labelled": ids[:3],
                "pairs": {"rgb": [torch.arange(3), torch.arange(3)]},
                "mapped_ids": {"rgb": ids[:30]},
                "optimizers": {"rgb": torch.optim.Adam(connection.parameters()).state_dict()},
                "curve": [
                    {"modality": "rgb", "step": s, "mmd": 1 / (1 + s), "head": state(mapped_head)} for s in (0, 5, 10)
                ],
            },
            stage="train_connect",
            args={**args, "labels": labels, "per_class": per_class, "beta": 0.01, "w_ce": 0.5},
            made_from=made_from,
            paired=paired,
            n_labelled=3,
            **facts,
        )
        for method in methods:
            snapshot = {
                "agree": torch.arange(27) % 2 == 0,
                "label": torch.where(torch.arange(27) % 2 == 0, y[3:30], -1),
                "confidence": torch.rand(27),
                "prediction": torch.zeros(27, dtype=torch.long),
            }
            files.save(
                folder / f"{method}.pt",
                {
                    **common,
                    "unlabelled": ids[3:30],
                    "before": snapshot,
                    "after": {**snapshot, "prediction": y[3:30].clone()},
                    "history": [{"epoch": e + 1, "loss": 1.0 / (e + 1), "val_accuracy": 0.5} for e in range(2)],
                },
                stage="train_explore",
                args={
                    **args,
                    "method": method,
                    "epochs": 2,
                    "lr": 1e-3,
                    "weight_decay": 0.0,
                    "refreshes": 2,
                    "connect_steps": 3,
                },
                paired=paired,
                labels=labels,
                made_from={**made_from, "connect": d_connect},
                n_labelled=3,
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
    names = [f"c{i}" for i in range(len(counts))]
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
            "per_class": dict.fromkeys(names, accuracy),
            "confusion": np.diag(counts).tolist(),
            "agreement": None,
            "im_head_accuracy": {"rgb": 0.9},
            "connection": [{"modality": "rgb", "step": 0, "mmd": 0.5, "oom_accuracy": 0.3}],
        },
    }


# ---------------------------------------------------------------------------------------------------- metrics


def test_methods_are_those_of_stage_3():
    assert set(scores.METHODS) == set(train_explore.METHODS)


@pytest.mark.parametrize("classes", [2, 5, 12])
def test_metrics_agree_with_sklearn(classes):
    g = torch.Generator().manual_seed(classes)
    truth = torch.randint(classes, (300,), generator=g)
    guess = torch.where(torch.rand(300, generator=g) < 0.6, truth, torch.randint(classes, (300,), generator=g))
    m = evaluate.class_metrics(guess, truth, [f"c{i}" for i in range(classes)])
    assert m["accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert m["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(truth, guess))
    assert m["confusion"] == sk.confusion_matrix(truth, guess).tolist()
    assert m["nmi"] == pytest.approx(sk.normalized_mutual_info_score(truth, guess))
    recall = sk.recall_score(truth, guess, average=None)
    assert list(m["per_class"].values()) == pytest.approx(recall.tolist())
    assert m["n_test"] == 300


def test_hungarian_undoes_a_renaming():
    truth = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    guess = torch.tensor([1, 1, 1, 2, 2, 2, 0, 0, 1])  # renamed, one item wrong
    m = evaluate.class_metrics(guess, truth, CLASSES)
    assert m["accuracy"] == 0 and m["hungarian_accuracy"] == pytest.approx(8 / 9)


def test_class_without_test_items_and_constant_guesses():
    m = evaluate.class_metrics(torch.zeros(4, dtype=torch.long), torch.tensor([0, 0, 0, 1]), CLASSES)
    assert m["per_class"] == {"ape": 1.0, "bee": 0.0, "cat": None}
    assert m["balanced_accuracy"] == 0.5 and m["nmi"] == 0.0


def test_agreement_by_hand():
    agree = torch.tensor([True, True, True, False, False])
    guess, truth = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, -1, 1, 1])
    a = evaluate.agreement(agree, guess, truth, torch.tensor([0, 0, 0, -1, -1]))  # one has no hidden label
    assert a == pytest.approx(
        {
            "share": 0.6,
            "accuracy": 0.75,
            "agree_accuracy": 1.0,
            "disagree_accuracy": 0.5,
            "gap": 0.5,
            "label_accuracy": 0.5,
        }
    )
    assert evaluate.agreement(torch.ones(5, dtype=torch.bool), guess, truth)["gap"] is None


# -------------------------------------------------------------------------------------------------- retrieval


def test_retrieval_by_hand():
    """Three categories on a line; the second query's nearest category is a wrong one, the third's own is the last."""
    gallery = (torch.tensor([[0.0], [1.0], [10.0], [12.0], [20.0]]), torch.tensor([0, 0, 1, 1, 2]), list("abcde"))
    query = (torch.tensor([[0.9], [6.0], [3.0], [9.0]]), torch.tensor([0, 0, 2, 1]), ["a", "b", "e", "z"])
    r = metrics.retrieval(query, gallery, 4)
    # category ranks 1, 2, 3, 1; instance ranks of a, b, e: 2 (b is nearer), 2 (c), 5; z has no instance
    assert r["category"] == pytest.approx(
        {
            "r1": 0.5,
            "r5": 1.0,
            "r10": 1.0,
            "median_rank": 1.5,
            "chance_r1": 1 / 3,
            "chance_r5": 1.0,
            "n_query": 4,
            "n_candidates": 3,
        }
    )
    assert r["instance"] == pytest.approx(
        {
            "r1": 0.0,
            "r5": 1.0,
            "r10": 1.0,
            "median_rank": 2.0,
            "chance_r1": 0.2,
            "chance_r5": 1.0,
            "n_query": 3,
            "n_candidates": 5,
            "class_r1": (1 / 2 + 1 / 2 + 1) / 3,
        }
    )


def test_a_category_that_the_gallery_lacks_is_not_asked_for():
    r = metrics.retrieval(
        (torch.zeros(2, 1), torch.tensor([0, 1]), ["a", "b"]), (torch.ones(2, 1), torch.tensor([0, 0]), ["c", "d"]), 2
    )
    assert r["category"]["n_query"] == 1 and r["category"]["r1"] == 1.0 and r["instance"] is None


def test_no_query_of_a_known_category_is_no_category_level():
    r = metrics.retrieval(
        (torch.zeros(2, 1), torch.tensor([1, 1]), ["a", "b"]), (torch.ones(2, 1), torch.tensor([0, 0]), ["a", "d"]), 2
    )
    assert r["category"] is None and r["instance"]["n_query"] == 1


def test_collapsed_features_retrieve_nothing():
    y, ids = torch.arange(20) % 10, [f"i{j}" for j in range(20)]
    r = metrics.retrieval((torch.ones(20, 3), y, ids), (torch.ones(20, 3), y, ids), 10)
    assert r["category"]["r5"] == 0.0 and r["category"]["median_rank"] == 10
    assert r["instance"]["r10"] == 0.0 and r["instance"]["median_rank"] == 20


def test_retrieval_agrees_with_sorting():
    g = torch.Generator().manual_seed(3)
    z, v = torch.randn(700, 4, generator=g, dtype=torch.float64), torch.randn(300, 4, generator=g, dtype=torch.float64)
    y, c = torch.randint(12, (700,), generator=g), torch.randint(12, (300,), generator=g)
    r = metrics.retrieval((z, y, [f"{i}" for i in range(700)]), (v, c, [f"{i}" for i in range(300)]), 12)
    order = torch.cdist(z, v).argsort(1)
    item = [order[i].tolist().index(i) + 1 for i in range(300)]
    seen = [list(dict.fromkeys(c[o].tolist())).index(t) + 1 for o, t in zip(order, y.tolist())]
    for found, rank in ((r["instance"], item), (r["category"], seen)):
        for k in (1, 5, 10):
            assert found[f"r{k}"] == pytest.approx(np.mean(np.array(rank) <= k))
        assert found["median_rank"] == np.median(rank)


def test_retrieval_of_every_kind_of_run(tmp_path, monkeypatch):
    folder = make_world(tmp_path, seeds=(0, 1), methods=("random", "erm", "cox", "aligned"))
    line = ["--data", "toy", "--runs", str(tmp_path)]
    evaluate.main(line)
    assert "retrieval" not in json.loads((folder / "erm.json").read_text())["metrics"]
    evaluate.main([*line, "--task", "retrieval"])  # what lacks it is evaluated again
    found = {m: json.loads((folder / f"{m}.json").read_text()) for m in ("random", "erm", "cox", "aligned")}
    for r in found.values():
        for way in ("out", "back"):
            assert r["metrics"]["retrieval"]["rgb"][way]["category"]["n_query"] == 21
            assert r["metrics"]["retrieval"]["rgb"][way]["instance"]["n_candidates"] == 21
    # COX maps by its own connection; erm by stage 2's, trained on; all three learners are alike here
    assert len({json.dumps(r["metrics"]["retrieval"]) for r in found.values()}) == 4
    run, connect = files.load(folder / "cox.pt"), files.load(folder / "connect.pt")
    oom, im = (
        files.load(files.inputs_path(tmp_path, "toy", "sonar")),
        files.load(files.bank_dir(tmp_path, "toy", "bind", "sonar") / "rgb.pt"),
    )
    v, y, ids = evaluate.mapped_test_items(run, connect, oom, {"rgb": im}, "cpu")["rgb"]
    own = Connection(d_im=5, d=D).eval()
    own.load_state_dict(run["connections"]["rgb"])
    with torch.no_grad():
        torch.testing.assert_close(v, own(im["features"][39:])[0])
    assert ids == [f"i{j}" for j in range(39, 60)]
    told, train = [], evaluate.train_connection
    monkeypatch.setattr(evaluate, "train_connection", lambda *a, **k: told.append(k) or train(*a, **k))
    run = files.load(folder / "erm.pt")
    for epochs, refreshes, steps in ((2, 2, 6), (6, 5, 9), (20, 5, 15)):  # 6 epochs: refreshed after 2, 4 and 6
        run["meta"]["args"].update(epochs=epochs, refreshes=refreshes)
        evaluate.mapped_test_items(run, connect, oom, {"rgb": im}, "cpu")
        assert (told[-1]["steps"], told[-1]["beta"], told[-1]["w_ce"]) == (steps, 0.01, 0.5)  # as COX's
    monkeypatch.undo()
    before = (folder / "erm.json").read_text()
    evaluate.main([*line, "--force", "--task", "retrieval"])
    assert (folder / "erm.json").read_text() == before  # the same again
    out = tmp_path / "out"
    evaluate.main([*line, "--task", "retrieval", "--table", "--out", str(out)])
    text = (out / "table.md").read_text()
    assert "| setting | method | sonar R@1 | sonar R@5 |" in text and "instance level, IM → OOM" in text
    with open(out / "table.csv", newline="") as f:
        assert "retrieval.rgb.back.instance.median_rank" in next(csv.reader(f))


def test_no_retrieval_without_a_labelled_im_test_item(tmp_path, capsys):
    folder = make_world(tmp_path, im_test=False)
    line = ["--data", "toy", "--runs", str(tmp_path), "--task", "retrieval"]
    evaluate.main(line)
    assert json.loads((folder / "cox.json").read_text())["metrics"]["retrieval"] == {}
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and all("accuracy" in s and "nothing to retrieve: no IM modality has" in s for s in said[:2])
    evaluate.main([*line, "--table"])
    assert "Nothing to retrieve" in (tmp_path / "toy" / "report-retrieval" / "table.md").read_text()


@pytest.mark.parametrize("method", ["erm", "cox"])
def test_an_im_modality_without_a_labelled_test_item_is_left_out(tmp_path, method):
    folder = make_world(tmp_path)
    run, connect = dict(files.load(folder / f"{method}.pt")), dict(files.load(folder / "connect.pt"))
    oom = files.load(files.inputs_path(tmp_path, "toy", "sonar"))
    rgb = files.load(files.bank_dir(tmp_path, "toy", "bind", "sonar") / "rgb.pt")
    of_connect = ("mapped_ids", "mapped_labels", "pairs", "connections", "optimizers")
    for part, keys in ((run, ("connections",)), (connect, of_connect)):
        part.update({k: {**part[k], "imu": part[k]["rgb"]} for k in keys})
    run["im"] = ["imu", "rgb"]
    for imu in (
        {**rgb, "labels": rgb["labels"].masked_fill(rgb["split"] == 2, -1)},  # rows without label
        {**rgb, **{k: rgb[k][:39] for k in ("features", "labels", "split", "ids")}},
    ):  # no test row
        assert list(evaluate.mapped_test_items(run, connect, oom, {"imu": imu, "rgb": rgb}, "cpu")) == ["rgb"]


def test_retrieval_is_said_and_has_a_folder_of_its_own(tmp_path, capsys):
    folder = make_world(tmp_path, methods=("cox",))
    line, written = ["--data", "toy", "--runs", str(tmp_path)], tmp_path / "toy" / "report" / "table.md"
    evaluate.main([*line, "--table"])
    accuracies = written.read_text()
    capsys.readouterr()
    evaluate.main([*line, "--task", "retrieval"])
    run, after = capsys.readouterr().out.splitlines()
    found = json.loads((folder / "cox.json").read_text())["metrics"]["retrieval"]["rgb"]["out"]
    assert "accuracy" in run and run.endswith(
        f"R@1, OOM → IM: category {100 * found['category']['r1']:.1f}%, instance {100 * found['instance']['r1']:.1f}%"
    )
    assert after == f"Next: python evaluate.py --data toy --runs {tmp_path} --task retrieval --table"
    evaluate.main([*line, "--task", "retrieval", "--table"])
    assert written.read_text() == accuracies
    text = (tmp_path / "toy" / "report-retrieval" / "table.md").read_text()
    assert "Retrieval, category level" in text and "R@5 100%" in text and "e+02" not in text


# ------------------------------------------------------------------------------------------------------- runs


def test_json_of_a_run(tmp_path, capsys):
    folder = make_world(tmp_path, methods=("random", "cox"))
    (folder / "cox.checkpoint.pt").write_bytes(b"half")
    (folder / ".erm.pt.12.tmp").write_bytes(b"half")
    (folder / "notes.pt").write_bytes(b"no run")
    evaluate.main(["--data", "toy", "--runs", str(tmp_path)])
    assert sorted(p.name for p in folder.glob("*.json")) == ["cox.json", "random.json"]
    r = json.loads((folder / "cox.json").read_text())
    said = {
        "data": "toy",
        "perceptor": "bind",
        "setting": "semi",
        "method": "cox",
        "oom": "sonar",
        "seed": 0,
        "labels": 0.1,
        "n_labelled": 3,
        "paired": "true",
        "seconds": 1.5,
    }
    assert {k: r[k] for k in said} == said
    assert r["fingerprint"] == "f" * 64 and len(r["history"]) == 2 and r["command"].startswith("python ")
    assert r["made_from"] == {"cox": files.load(folder / "cox.pt")["meta"]["digest"]}
    m = r["metrics"]
    assert m["n_test"] == 21 and list(m["per_class"]) == CLASSES and np.sum(m["confusion"]) == 21
    assert set(m["im_head_accuracy"]) == {"rgb"} and 0 <= m["val_accuracy"] <= 1 and 0 <= m["nmi"] <= 1
    assert [c["step"] for c in m["connection"]] == [0, 5, 10]
    assert set(m["connection"][0]) == {"modality", "step", "mmd", "oom_accuracy"}
    a = m["agreement"]
    assert a["before"]["share"] == pytest.approx(14 / 27) and a["before"]["label_accuracy"] == 1.0
    assert a["after"]["agree_accuracy"] == a["after"]["disagree_accuracy"] == 1.0
    assert set(a["after_own"]) == set(a["before"])
    assert json.loads((folder / "random.json").read_text())["metrics"]["agreement"] is None
    assert len(capsys.readouterr().out.splitlines()) == 3  # one line per run, and the next step


def test_accuracy_is_that_of_the_saved_learner(tmp_path):
    folder = make_world(tmp_path)
    evaluate.main(["--data", "toy", "--runs", str(tmp_path), "--method", "cox"])
    run, oom = files.load(folder / "cox.pt"), files.load(files.inputs_path(tmp_path, "toy", "sonar"))
    learner, head = Learner(**run["arch"]).eval(), torch.nn.Linear(D, 3)
    learner.load_state_dict(run["learner"])
    head.load_state_dict(run["head"])
    with torch.no_grad():
        right = head(learner(oom["x"][39:])).argmax(1) == oom["labels"][39:]
    found = json.loads((folder / "cox.json").read_text())["metrics"]["accuracy"]
    assert found == pytest.approx(right.double().mean().item())
    assert not (folder / "erm.json").exists()


def test_skip_and_force(tmp_path, capsys):
    folder = make_world(tmp_path, methods=("erm",))
    line = ["--data", "toy", "--runs", str(tmp_path)]
    evaluate.main(line)
    made = json.loads((folder / "erm.json").read_text())
    (folder / "erm.json").write_text(json.dumps({**made, "mark": 1}))
    evaluate.main(line)
    assert "already evaluated" in capsys.readouterr().out
    assert "mark" in json.loads((folder / "erm.json").read_text())
    evaluate.main([*line, "--force"])
    assert json.loads((folder / "erm.json").read_text()) == made
    (folder / "erm.json").write_text('{"data": "to')  # cut off: not taken for whole
    evaluate.main(line)
    assert json.loads((folder / "erm.json").read_text()) == made
    (folder / "erm.json").write_text(json.dumps({**made, "made_from": {"erm": "of another .pt"}}))
    evaluate.main(line)
    assert json.loads((folder / "erm.json").read_text()) == made


def test_stale_chain_is_refused(tmp_path):
    folder = make_world(tmp_path, methods=("cox",))
    evaluate.main(["--data", "toy", "--runs", str(tmp_path)])  # evaluated before, and refused still
    connect = dict(files.load(folder / "connect.pt"))
    meta = connect.pop("meta")
    connect["labelled"] = ["i4"]
    files.save(
        folder / "connect.pt",
        connect,
        quiet=True,
        **{k: meta[k] for k in ("stage", "data", "fingerprint", "args", "made_from", "paired", "n_labelled")},
    )
    with pytest.raises(files.UserError, match=r"cox\.pt was made from an earlier connect; make it again"):
        evaluate.main(["--data", "toy", "--runs", str(tmp_path)])


def test_other_data_is_refused(tmp_path):
    make_world(tmp_path)
    inputs = dict(files.load(files.inputs_path(tmp_path, "toy", "sonar")))
    meta = inputs.pop("meta")
    files.save(
        files.inputs_path(tmp_path, "toy", "sonar"),
        inputs,
        stage="extract_features",
        data="toy",
        fingerprint="0" * 64,
        args=meta["args"],
        quiet=True,
    )
    with pytest.raises(files.UserError, match="other data|earlier inputs/sonar"):
        evaluate.main(["--data", "toy", "--runs", str(tmp_path)])


def test_nothing_found_says_what_to_run(tmp_path):
    def say(*more):
        return ["--data", "toy", "--runs", str(tmp_path), *more]

    with pytest.raises(
        files.UserError, match="no finished run .*run first: python extract_features.py --data toy --oom audio"
    ):
        evaluate.main(say("--oom", "audio"))
    make_world(tmp_path)
    with pytest.raises(
        files.UserError, match="matches --oom sonar --seed 3; run first: python train_connect.py --data toy"
    ):
        evaluate.main(say("--oom", "sonar", "--seed", "3"))
    with pytest.raises(files.UserError, match="run first: python train_explore.py .*--method moco"):
        evaluate.main(say("--method", "moco", "--table"))
    with pytest.raises(files.UserError, match="--method coxx: there are random, erm,"):
        evaluate.main(say("--method", "coxx"))
    with pytest.raises(files.UserError, match="--oom sonr: .*toy has runs of sonar"):
        evaluate.main(say("--oom", "sonr"))


# ----------------------------------------------------------------------------------------------------- tables


def row(block, *start):
    return next(r for r in block["rows"] if tuple(r[: len(start)]) == start)[len(start) :]


def test_mean_and_sd():
    blocks = tables.tables(
        [record(a, seed=i) for i, a in enumerate((0.80, 0.82, 0.87))]
        + [record(0.7, method="erm"), record(0.99, method="aligned")]
    )
    sd = np.std([80, 82, 87], ddof=1)
    assert row(blocks[0], "semi, 10% labels", "cox") == [f"**83.0 ± {sd:.1f}**"]
    assert row(blocks[0], "semi, 10% labels", "erm") == ["70.0 (n = 1)"]  # one seed: no sd
    assert row(blocks[0], "semi, 10% labels", "aligned") == ["99.0 (n = 1)"]  # sees all labels: never bold
    assert [r[1] for r in blocks[0]["rows"]] == ["erm", "cox", "aligned"]
    lucky = tables.tables([record(a, seed=i) for i, a in enumerate((0.7, 0.8))] + [record(0.9, method="ssl", seed=1)])
    assert row(lucky[0], "semi, 10% labels", "cox") == ["**75.0 ± 7.1**"]  # one good seed is not the best method
    assert row(lucky[0], "semi, 10% labels", "ssl") == ["90.0 (n = 1)"]
    assert "over 3 seeds" in blocks[0]["notes"][0] and "chance 33.3%" in " ".join(blocks[0]["notes"])


def test_several_data_sets_and_modalities_are_columns():
    blocks = tables.tables([record(0.5), record(0.6, oom="pen"), record(0.7, data="other")])
    assert blocks[0]["header"] == ["setting", "method", "other sonar", "toy pen", "toy sonar"]
    assert row(blocks[0], "semi, 10% labels", "cox") == ["70.0", "60.0", "50.0"]


@pytest.mark.parametrize(
    "other, name",
    [
        ({"labels": 0.02}, "semi, 2% labels"),
        ({"per_class": 4}, "semi, 4 labels per class"),
        ({"paired": "by class: rgb"}, "semi, 10% labels, paired by class"),
    ],
)
def test_unlike_runs_are_not_averaged(other, name):
    blocks = tables.tables([record(0.5), record(0.9, seed=1, **other)])
    assert row(blocks[0], "semi, 10% labels", "cox") == ["50.0"] and row(blocks[0], name, "cox") == ["90.0"]
    notes = " ".join(blocks[0]["notes"])
    assert "not averaged" in notes and ("PAIRED BY CLASS" in notes) == ("paired" in other)


def test_the_perceptors_pairs_by_class_are_said_with_the_perceptor():
    one = record(0.5, paired="true; bind by class: imu, rgb") | {"perceptor_paired_by_class": ["imu", "rgb"]}
    notes = " ".join(tables.tables([one])[0]["notes"])
    assert "perceptor's pairs drawn by class: imu, rgb" in notes and "pairs: true instances;" in notes
    assert scores.condition(one) == "semi, 10% labels"
    assert scores.pairing("by class: a; bind by class: b").endswith("within the class (a)")


def test_unlike_flags_are_said():
    notes = " ".join(tables.tables([record(0.5, epochs=2), record(0.6, method="erm", epochs=9)])[0]["notes"])
    assert "Not alike" in notes and "--epochs (2, 9)" in notes
    notes = " ".join(tables.tables([record(0.5, w_agree=1), record(0.6, seed=1, w_agree=2)])[0]["notes"])
    assert "the seeds of cox differ in --w-agree (1, 2)" in notes
    notes = " ".join(tables.tables([record(0.5), record(0.6, seed=1, w_agree=2)])[0]["notes"])
    assert "the seeds of cox differ in --w-agree (2, null)" in notes  # an option that came later
    for alike in (record(0.6, seed=1), record(0.1, method="random", epochs=50)):  # random has no training
        assert "Not alike" not in " ".join(tables.tables([record(0.5), alike])[0]["notes"])


def test_balanced_table_only_where_classes_are_skewed():
    def titles(*counts):
        return [b["title"] for b in tables.tables([record(0.5, counts=counts)])]

    assert not any("Balanced" in t for t in titles(10, 12, 14))
    assert any("Balanced" in t for t in titles(10, 12, 16))
    assert any("Balanced" in t for t in titles(0, 12, 12))


def test_unsup_runs_of_other_starts_are_not_averaged():
    unsup = dict(setting="unsup", labels=0.0, paired="none")
    blocks = tables.tables(
        [
            record(0.3, init="literal", **unsup),
            record(0.5, init="spectral", name_with=0, **unsup),
            record(0.7, init="spectral", name_with=1, **unsup),
        ]
    )
    assert [r[0] for r in blocks[0]["rows"]] == ["unsup", "unsup, spectral", "unsup, spectral, names by 1 per class"]
    assert scores.condition(record(0.5, holdout=0.3)) == "semi, 10% labels, 30% of them held out"
    assert scores.condition(record(0.5, labels=1.0)) == "semi, all labels"
    assert scores.condition(record(0.5, holdout=0.0)) == scores.condition(record(0.5)) == "semi, 10% labels"
    assert len(next(b for b in blocks if b["title"].startswith("Without labels"))["notes"]) == 3


def test_unsup_says_at_chance():
    unsup = dict(setting="unsup", labels=0.0, paired="none", counts=(100, 100, 100))

    def said(*accuracies):
        blocks = tables.tables([record(a, seed=i, **unsup) for i, a in enumerate(accuracies)])
        return next(b for b in blocks if b["title"].startswith("Without labels"))

    block = said(0.34, 0.37)
    assert block["header"] == ["setting", "method", "sonar accuracy", "sonar Hungarian", "sonar NMI"]
    assert block["rows"][0][2:] == ["35.5 ± 2.1", "50.0 ± 0.0", "25.0 ± 0.0"]
    assert "at chance" in block["notes"][0] and "chance is 33.3%" in block["notes"][0]
    assert "above chance by" in said(0.60, 0.62)["notes"][0]
    assert "at chance" in said(0.2, 0.9)["notes"][0]  # two seeds far apart prove nothing


# ----------------------------------------------------------------------------------------------- paired tests


def test_accuracy_on_unlabelled_items_is_that_of_both_parts():
    r = record(0.5)
    assert scores.score(r, "unlabelled") is None
    r["metrics"]["agreement"] = metrics.agreement(
        torch.tensor([True, True, True, False]), torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, 0, 2])
    )
    r["metrics"]["agreement"] = {"after": r["metrics"]["agreement"]}
    assert scores.score(r, "unlabelled") == pytest.approx(0.75)
    del r["metrics"]["agreement"]["after"]["accuracy"]  # the record of an earlier version
    assert scores.score(r, "unlabelled") == pytest.approx(0.75)
    r["metrics"]["agreement"]["after"].update(share=1.0, disagree_accuracy=None)  # all agree
    assert scores.score(r, "unlabelled") == pytest.approx(2 / 3)


def test_unlabelled_items_without_a_hidden_label_are_not_counted():
    agree, guess = torch.tensor([True, True, True, False, False]), torch.tensor([1, 1, 0, 2, 0])

    def after(truth):
        return {"after": metrics.agreement(agree, guess, torch.tensor(truth))}

    r = record(0.5)
    for truth, accuracy in (([1, -1, -1, 0, 0], 2 / 3), ([-1, -1, -1, 0, 0], 1 / 2), ([1, 0, 0, -1, -1], 2 / 3)):
        r["metrics"]["agreement"] = after(truth)
        assert scores.score(r, "unlabelled") == pytest.approx(accuracy)
    unknown = [record(0.5, method=m, seed=s) for m in ("erm", "cox") for s in range(3)]
    for r in unknown:
        r["metrics"]["agreement"] = dict.fromkeys(
            ("before", "after", "after_own"), metrics.agreement(agree, guess, torch.full((5,), -1), guess)
        )
    assert scores.score(unknown[0], "unlabelled") is None and plots.agreement_bars(unknown) is None
    titles = [b["title"] for b in tables.tables(unknown)]
    assert any("paired: test accuracy" in t for t in titles) and not any("unlabelled" in t for t in titles)


def test_paired_tests_against_scipy():
    g = np.random.default_rng(0)
    cox, erm = g.random((2, 4)), g.random((2, 4)) - 0.2  # two columns, four seeds
    records = [
        record(a, seed=s, oom=o, method=m)
        for m, t in (("cox", cox), ("erm", erm))
        for o, row in zip(("sonar", "pen"), t)
        for s, a in enumerate(row)
    ]
    records += [record(0.9, method="aligned"), record(0.1, seed=7, method="erm")]  # neither takes part
    (t,) = tests.tests(records, "accuracy")
    assert (t["setting"], t["against"], t["n"], t["columns"]) == ("semi", "erm", 8, 2)
    assert t["mean"] == pytest.approx((cox - erm).mean())
    assert t["ahead"] == ((cox - erm).mean(1) > 0).sum()
    assert t["t_p"] == pytest.approx(stats.ttest_rel(cox.ravel(), erm.ravel()).pvalue)
    assert t["wilcoxon_p"] == pytest.approx(stats.wilcoxon((cox - erm).ravel()).pvalue)
    assert t["columns_p"] == pytest.approx(stats.ttest_1samp((cox - erm).mean(1), 0).pvalue)


def test_the_best_rival_is_chosen_for_each_column():
    of = {"cox": (0.9, 0.5), "erm": (0.8, 0.3), "entmin": (0.6, 0.6), "ssl": (1.0, 1.0)}
    records = [
        record(v[i] + 0.01 * s, seed=s, data=d, method=m)
        for m, v in of.items()
        for i, d in enumerate(("a", "b"))
        for s in range(3)
    ]
    best = tests.tests(records, "accuracy")[-1]
    assert best["against"] == "best of erm, entmin"
    assert best["mean"] == pytest.approx((0.1 - 0.1) / 2)
    assert best["by_data"] == pytest.approx({"a": 0.1, "b": -0.1})
    assert best["t_p"] is not None


def test_no_p_where_there_is_nothing_to_test():
    (t,) = tests.tests([record(0.5), record(0.25, method="erm")], "accuracy")
    assert t["n"] == 1 and t["mean"] == 0.25 and t["t_p"] is t["wilcoxon_p"] is t["columns_p"] is None
    alike = [record(0.5, method=m, seed=s) for m in ("cox", "erm") for s in range(4)]
    (t,) = tests.tests(alike, "accuracy")
    assert t["mean"] == 0 and t["t_p"] is None
    unlike = [record(0.5), record(0.4, method="erm", labels=0.02)]  # other labels: no pair
    assert tests.tests(unlike, "accuracy") == []


def test_the_table_has_the_tests_and_tags_have_rows():
    records = [
        record(a + 0.01 * s, seed=s, method=m, data=d)
        for m, a in (("cox", 0.8), ("cox-soft", 0.7), ("erm", 0.6))
        for d in ("a", "b")
        for s in range(3)
    ]
    blocks = tables.tables([*records, record(0.9, seed=5, method="cox", data="a")])
    assert [r[1] for r in blocks[0]["rows"]] == ["erm", "cox", "cox-soft"]
    block = next(b for b in blocks if b["title"].startswith("COX against"))
    assert block["header"] == [
        "setting",
        "method",
        "n",
        "columns ahead",
        "COX − method",
        "p (t)",
        "p (Wilcoxon)",
        "p (columns)",
        "a",
        "b",
    ]
    assert [r[:5] for r in block["rows"]] == [
        ["semi", "erm", "6", "2 of 2", "+20.0"],
        ["semi", "cox-soft", "6", "2 of 2", "+10.0"],
    ]


# ----------------------------------------------------------------------------------------------------- report


def test_table_and_report_are_written(tmp_path, capsys):
    make_world(tmp_path, seeds=(0, 1), methods=("random", "erm", "cox"))
    make_world(tmp_path, data="other", setting="unsup", paired="none", methods=("cox",))
    out = tmp_path / "out"
    evaluate.main(["--data", "toy", "other", "--runs", str(tmp_path), "--table", "--out", str(out)])
    records = json.loads((out / "table.json").read_text())
    assert len(records) == 7
    assert {"data", "perceptor", "setting", "method", "oom", "seed", "labels", "paired", "metrics"} <= set(records[0])
    with open(out / "table.csv", newline="") as f:
        lines = list(csv.DictReader(f))
    assert len(lines) == 7 and float(lines[0]["accuracy"]) == records[0]["metrics"]["accuracy"]
    assert {"agreement.before.gap", "im_head_accuracy.rgb", "nmi"} <= set(lines[0])
    text = (out / "table.md").read_text()
    assert text in capsys.readouterr().out and "| unsup | cox |" in text and "Agreement (Fig. 6)" in text
    page = (out / "report.html").read_text()
    page = re.sub(r'src="data:image/png;base64,[^"]+"', "img-data", page)
    assert not re.search(r"(src|href|url|@import)\b|https?:|<script|<link", page)
    assert page.count("img-data") == 2 + 6 * 2 and "ffffffffffffffff" in page
    assert not list(out.glob(".*"))


def test_default_folder_and_results_whose_pt_is_gone(tmp_path, capsys):
    folder = make_world(tmp_path)
    line = ["--data", "toy", "--runs", str(tmp_path), "--table"]
    evaluate.main(line)
    assert (tmp_path / "toy" / "report" / "report.html").exists()
    for path in folder.glob("*.pt"):
        path.unlink()
    evaluate.main(line)
    assert "taken as it is" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "toy" / "report" / "table.json").read_text())) == 2
    (folder / "cox.json").write_text("{")
    with pytest.raises(files.UserError, match="cox.json is damaged"):
        evaluate.main(line)


def test_words_from_the_data_are_escaped():
    records = [record(0.5, oom="<b>&", data='x"y')]
    text = page.page(tables.tables(records), records, {}, "python <x>")
    assert "<b>&" not in text and "&lt;b&gt;&amp;" in text and "python &lt;x&gt;" in text


def test_the_legend_of_the_bars_is_within_the_figure():
    tagged = (*scores.METHODS, "selftrain-plain", "cox-without-connection", "cox-without-exploration")
    for ooms, methods in (("a", scores.METHODS), ("a", scores.METHODS[:6]), ("abcd", scores.METHODS), ("a", tagged)):
        rows = [record(0.7 + 0.1 * s, method=m, oom=o, seed=s) for m in methods for o in ooms for s in range(2)]
        figure = plots.method_bars(rows)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            figure.draw_without_rendering()
        (legend,), (axes,) = figure.legends, figure.axes
        box, within = legend.get_window_extent(), axes.get_window_extent()
        assert [t.get_text() for t in legend.get_texts()] == sorted(methods, key=scores.order)
        assert box.x0 >= 0 and box.x1 <= figure.bbox.x1 and within.y1 <= box.y0 and box.y1 <= figure.bbox.y1
        assert within.width > 0.85 * figure.bbox.x1


def test_captions_keep_their_capitals():
    records = [record(0.5)]
    y = torch.arange(6) % 3
    way = metrics.retrieval((torch.eye(6), y, list("abcdef")), (torch.eye(6), y, list("uvwxyz")), 3)
    records[0]["metrics"]["retrieval"] = {"rgb": {"out": way, "back": way}}
    text = page.page(tables.tables(records, "retrieval"), records, {}, "", "retrieval")
    assert "<figcaption>Category-level R@1, OOM → IM, mean and sd over seeds." in text


def test_names_are_drawn_as_they_are(monkeypatch):
    monkeypatch.setattr("matplotlib.mathtext.MathTextParser.parse", lambda *a, **k: pytest.fail("read as mathematics"))
    classes = ["$a_$", "$x^2$", "_b"]
    r = record(0.5, oom="$o$", data="$d_$")
    r["metrics"]["per_class"] = dict.fromkeys(classes, 0.5)
    r["metrics"]["connection"][0]["modality"] = "_imu"
    z, y = torch.randn(9, 4, generator=torch.Generator().manual_seed(0)), torch.arange(9) % 3
    planes = plots.bank_planes({"classes": classes, "im": {"$m$": (z, y)}})
    curves, cells = plots.connection_curves([r]), plots.confusions([r])
    for figure in (planes, curves, cells, plots.method_bars([r]), plots.training_curves([r])):
        figure and figure.draw_without_rendering()
    assert [t.get_text().strip() for t in planes.legends[0].get_texts()] == classes
    assert [t.get_text() for t in cells.axes[0].get_yticklabels()] == classes
    assert [t.get_text().strip() for t in curves.axes[1].get_legend().get_texts()] == ["_imu"]


def test_names_that_no_font_has_do_not_warn():
    """In a process of its own, for pytest has filters of its own."""
    code = (
        "import logging; from cox_oom.report import plots; logging.basicConfig(); f, (ax,) = plots.grid(1); "
        "ax.set_title('杯子 フォーク 접시 \U0010fffd'); f.draw_without_rendering()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_plane_is_deterministic_and_ordered():
    g = torch.Generator().manual_seed(0)
    z = torch.randn(200, 6, generator=g) * torch.tensor([9.0, 4, 1, 1, 1, 1])
    mean, axes = plots.plane(z)
    spread = ((z - mean) @ axes).std(0)
    assert spread[0] > spread[1] > 3 and torch.equal(axes, plots.plane(z)[1])
    assert (axes.gather(0, axes.abs().argmax(0, keepdim=True)) > 0).all()
    assert plots.plane(torch.randn(3, 1))[1].shape == (1, 2)
    assert plots.plane(torch.randn(1, 4))[1].shape == (4, 2)


def test_runs_with_a_tag_have_colours_of_their_own():
    methods = [
        "erm",
        "cox",
        *(
            f"cox-{tag}"
            for tag in (
                "kl-literal",
                "without-connection",
                "without-emergent",
                "kl-matched",
                "without-exploration",
                "refresh-once",
                "no-im",
                "two",
                "soft",
            )
        ),
    ]
    colours = plots.colours(methods)
    assert list(colours) == methods and len(set(colours.values())) == len(methods)
    assert plots.colours(["cox"])["cox"] == colours["cox"]


def test_why_cox_left_correspondences_out_stands_under_the_table():
    records = [record(0.5, seed=s) for s in range(3)] + [record(0.4, method="erm", seed=s) for s in range(3)]
    records[1]["metrics"]["fallback"] = (
        "3 labelled items have a pair in all of rgb, 8 are needed: COX goes by labels and agreement"
    )

    def say():
        return [n for n in tables.column_notes(records, [("toy", "sonar")]) if "without correspondences" in n]

    assert say() == [
        "toy sonar, semi, 10% labels: cox without correspondences in 1 of 3 runs: 3 labelled items have a pair in all "
        "of rgb, 8 are needed."
    ]
    records[0]["metrics"]["trust"] = {"trusted": False}  # an earlier version's record does not say why
    records.append(record(0.4, method="cox-without-emergent"))
    assert (
        say()[0].endswith(
            "cox without correspondences in 2 of 3 runs: they do worse on held-out pairs than labels alone (1); "
            "3 labelled items have a pair in all of rgb, 8 are needed (1)."
        )
        and len(say()) == 1
    )
    records[2]["metrics"]["trust"] = {"trusted": True}
    assert "2 of 3" in say()[0]
