"""evaluate.py on a tree of runs: the JSON of a run, what is skipped and refused, the report's files."""

import csv
import json
import re

import numpy as np
import pytest
import torch
from records import CLASSES, D, make_world

import evaluate
from cox_oom import files
from cox_oom.files import Place
from cox_oom.learner import Learner


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
    run, oom = files.load(folder / "cox.pt"), files.load(Place(tmp_path, "toy").inputs("sonar"))
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
    connect["labelled"] = ["i4", "i5", "i6"]
    keep = ("stage", "data", "fingerprint", "args", "made_from", "paired", "n_labelled")
    files.save(folder / "connect.pt", connect, quiet=True, **{k: meta[k] for k in keep})
    with pytest.raises(files.UserError, match=r"cox\.pt was made from an earlier connect; make it again"):
        evaluate.main(["--data", "toy", "--runs", str(tmp_path)])


def test_other_data_is_refused(tmp_path):
    make_world(tmp_path)
    inputs = dict(files.load(Place(tmp_path, "toy").inputs("sonar")))
    meta = inputs.pop("meta")
    facts = {"stage": "extract_features", "data": "toy", "fingerprint": "0" * 64, "args": meta["args"]}
    files.save(Place(tmp_path, "toy").inputs("sonar"), inputs, quiet=True, **facts)
    with pytest.raises(files.UserError, match="other data|earlier inputs/sonar"):
        evaluate.main(["--data", "toy", "--runs", str(tmp_path)])


def test_nothing_found_says_what_to_run(tmp_path):
    def say(*more):
        return ["--data", "toy", "--runs", str(tmp_path), *more]

    words = "no finished run .*run first: python extract_features.py --data toy --oom audio"
    with pytest.raises(files.UserError, match=words):
        evaluate.main(say("--oom", "audio"))
    make_world(tmp_path)
    words = "matches --oom sonar --seed 3; run first: python train_connect.py --data toy"
    with pytest.raises(files.UserError, match=words):
        evaluate.main(say("--oom", "sonar", "--seed", "3"))
    with pytest.raises(files.UserError, match="run first: python train_explore.py .*--method moco"):
        evaluate.main(say("--method", "moco", "--table"))
    with pytest.raises(files.UserError, match="--method coxx: there are random, raw,"):
        evaluate.main(say("--method", "coxx"))
    with pytest.raises(files.UserError, match="--oom sonr: .*toy has runs of sonar"):
        evaluate.main(say("--oom", "sonr"))


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
    verdict, said = text.split("## Test accuracy")[0], capsys.readouterr().out
    assert "is best with" in verdict and verdict.strip() in said and text.removeprefix(verdict).strip() in said
    assert "| unsup | cox |" in text and "Agreement (Fig. 6)" in text
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
