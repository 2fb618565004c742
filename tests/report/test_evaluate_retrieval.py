"""evaluate.py --task retrieval: by which connection each method maps, and where there is nothing to retrieve."""

import csv
import json

import pytest
import torch
from records import D, make_world

import evaluate
from cox_oom import connect as connections
from cox_oom import files
from cox_oom.connect import Connection
from cox_oom.files import Place
from cox_oom.report import judge
from cox_oom.seed import Seed


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
    oom = files.load(Place(tmp_path, "toy").inputs("sonar"))
    im = files.load(Place(tmp_path, "toy", "bind", "sonar").banks() / "rgb.pt")
    v, y, ids = judge.mapped_test_items(run, Seed(None, oom, {"rgb": im}, connect, {}), "cpu")["rgb"]
    own = Connection(d_im=5, d=D).eval()
    own.load_state_dict(run["connections"]["rgb"])
    with torch.no_grad():
        torch.testing.assert_close(v, own(im["features"][39:])[0])
    assert ids == [f"i{j}" for j in range(39, 60)]
    told, train = [], connections.train_connection
    monkeypatch.setattr(connections, "train_connection", lambda *a, **k: told.append(k) or train(*a, **k))
    run = files.load(folder / "erm.pt")
    for epochs, refreshes, steps in ((2, 2, 6), (6, 5, 9), (20, 5, 15)):  # 6 epochs: refreshed after 2, 4 and 6
        run["meta"]["args"].update(epochs=epochs, refreshes=refreshes)
        judge.mapped_test_items(run, Seed(None, oom, {"rgb": im}, connect, {}), "cpu")
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
    oom = files.load(Place(tmp_path, "toy").inputs("sonar"))
    rgb = files.load(Place(tmp_path, "toy", "bind", "sonar").banks() / "rgb.pt")
    of_connect = ("mapped_ids", "mapped_labels", "pairs", "connections", "optimizers")
    for part, keys in ((run, ("connections",)), (connect, of_connect)):
        part.update({k: {**part[k], "imu": part[k]["rgb"]} for k in keys})
    run["im"] = ["imu", "rgb"]
    no_label = {**rgb, "labels": rgb["labels"].masked_fill(rgb["split"] == 2, -1)}
    no_row = {**rgb, **{k: rgb[k][:39] for k in ("features", "labels", "split", "ids")}}
    for imu in (no_label, no_row):
        seed = Seed(None, oom, {"imu": imu, "rgb": rgb}, connect, {})
        assert list(judge.mapped_test_items(run, seed, "cpu")) == ["rgb"]


def test_retrieval_is_said_and_has_a_folder_of_its_own(tmp_path, capsys):
    folder = make_world(tmp_path, methods=("cox",))
    line, written = ["--data", "toy", "--runs", str(tmp_path)], tmp_path / "toy" / "report" / "table.md"
    evaluate.main([*line, "--table"])
    accuracies = written.read_text()
    capsys.readouterr()
    evaluate.main([*line, "--task", "retrieval"])
    run, after = capsys.readouterr().out.splitlines()
    found = json.loads((folder / "cox.json").read_text())["metrics"]["retrieval"]["rgb"]["out"]
    category, instance = (f"{level} {100 * found[level]['r1']:.1f}%" for level in ("category", "instance"))
    assert "accuracy" in run and run.endswith(f"R@1, OOM → IM: {category}, {instance}")
    assert after == f"Next: python evaluate.py --data toy --runs {tmp_path} --task retrieval --table"
    evaluate.main([*line, "--task", "retrieval", "--table"])
    assert written.read_text() == accuracies
    text = (tmp_path / "toy" / "report-retrieval" / "table.md").read_text()
    assert "Retrieval, category level" in text and "R@5 100%" in text and "e+02" not in text
