"""evaluate.py --suggest: which recordings to label next; stage 2's --labelled-ids, which takes such a list."""

import numpy as np
import pytest
import torch
import worlds
from scipy.stats import entropy
from sklearn.cluster import KMeans

import train_connect
from cox_oom import files, suggest
from cox_oom.augment import model_of
from cox_oom.files import UserError
from cox_oom.predict import Trained


@pytest.fixture
def imu(trained):
    folder, paths = trained
    flags = ["--data", folder, "--runs", paths["imu"].parents[5], "--oom", "imu"]
    return flags, files.load(paths["imu"]), files.load(paths["imu"].parents[4] / "inputs" / "imu.pt")


def test_the_list_says_what_the_learner_thinks_of_unlabelled_items(imu, named, tmp_path):
    flags, run, oom = imu
    status, said = named(*flags, "--suggest", 4, "--out", tmp_path)
    rows = worlds.read_rows(tmp_path / "suggest.csv")
    at = {i: r for r, i in enumerate(oom["ids"])}
    ids = [r["id"] for r in rows]
    assert status == 0 and len(set(ids)) == 4 and set(ids) <= set(run["unlabelled"])
    logits = model_of(run, "cpu")(oom, torch.tensor([at[i] for i in ids]))[1]
    p = (logits.double() / run["calibration"]["temperature"]).softmax(1).numpy()
    assert [r["guess"] for r in rows] == [run["class_names"][c] for c in p.argmax(1)]
    np.testing.assert_allclose([float(r["confidence"]) for r in rows], p.max(1), atol=1e-4)
    np.testing.assert_allclose([float(r["score"]) for r in rows], entropy(p, axis=1), atol=1e-4)
    agree = dict(zip(run["unlabelled"], run["after"]["agree"].tolist()))
    assert [("disagree" in r["reason"]) for r in rows] == [not agree[i] for i in ids]
    assert all(f"  {i}: " in said for i in ids) and "the data have their labels" in said


def test_more_than_there_are_gives_all_the_unlabelled(imu, named, tmp_path):
    flags, run, _ = imu
    named(*flags, "--suggest", 1000, "--out", tmp_path)
    assert sorted(r["id"] for r in worlds.read_rows(tmp_path / "suggest.csv")) == sorted(run["unlabelled"])


def test_only_what_the_data_have_no_label_of_where_there_is_such(named, tmp_path):
    """Half of the training rows have no label in the manifest, and stage 2 hides most of the others' labels."""
    folder, runs = worlds.write_folder(tmp_path / "toy"), tmp_path / "runs"
    rows, bare = worlds.read_manifest(folder), {f"itrain{k}" for k in range(30)}
    worlds.write_manifest(folder, [[*r[:2], "" if r[0] in bare else r[2], *r[3:]] for r in rows])
    with worlds.quickly():
        worlds.stage("extract_features", folder, runs, "--workers 0")
        for seed in (0, 1):
            worlds.stage("train_connect", folder, runs, f"--per-class 2 --seed {seed}")
            worlds.stage("train_explore", folder, runs, f"--method selftrain --seed {seed}")
    status, said = named("--data", folder, "--runs", runs, "--suggest", 10, "--out", tmp_path)
    found = {r["id"] for r in worlds.read_rows(tmp_path / "suggest.csv")}
    assert status == 0 and len(found) == 10 and found <= bare and "of 30 unlabelled" in said


def test_near_duplicates_count_once():
    """Five groups of items that are about equally uncertain, of sizes 1 to 200: one item of each."""
    g = torch.Generator().manual_seed(0)
    group = torch.repeat_interleave(torch.arange(5), torch.tensor([1, 5, 20, 50, 200]))
    z = 10 * torch.eye(5)[group] + 0.01 * torch.randn(len(group), 5, generator=g)
    weight = 1 + 0.01 * torch.rand(len(group), generator=g)
    assert sorted(group[suggest.spread(z, weight, 5)].tolist()) == [0, 1, 2, 3, 4]
    assert len(group[weight.topk(5).indices].unique()) < 5  # of the five heaviest some are duplicates


def test_the_items_are_the_nearest_to_the_centres_of_weighted_k_means():
    g = torch.Generator().manual_seed(1)
    z = torch.randn(60, 3, generator=g, dtype=torch.double) + 4 * torch.eye(3).repeat(20, 1)
    weight = torch.rand(60, generator=g, dtype=torch.double) ** 4
    chosen = suggest.spread(z, weight, 3).tolist()
    items = lambda w: (
        KMeans(3, n_init=10, random_state=0).fit(z.numpy(), sample_weight=w).transform(z.numpy()).argmin(0)
    )
    assert sorted(chosen) == sorted(items(weight.numpy())) != sorted(items(np.ones(60)))
    assert chosen == sorted(chosen, key=lambda i: -weight[i])  # the heaviest first


@pytest.mark.parametrize("same", [True, False])
def test_n_distinct_items_even_where_all_look_alike_or_nothing_is_uncertain(same):
    z = torch.zeros(9, 2) if same else torch.arange(18.0).view(9, 2)
    assert len(suggest.spread(z, torch.zeros(9), 4).unique()) == 4


def test_a_list_of_ids_takes_the_place_of_the_draw(imu, named, tmp_path):
    """The round of a user: a list, its labels, stage 2 with them; a list that has changed is noticed."""
    flags, run, oom = imu
    named(*flags, "--suggest", 6, "--out", tmp_path)
    ids = [r["id"] for r in worlds.read_rows(tmp_path / "suggest.csv")]
    (tmp_path / "ids.txt").write_text("\n".join([*ids, "", ids[0]]) + "\n")
    runs = tmp_path / "runs" / "many"
    (runs / "bind").mkdir(parents=True)
    old = flags[3] / "many"
    (runs / "inputs").symlink_to(old / "inputs")
    (runs / "bind" / "no-imu").symlink_to(old / "bind" / "no-imu")
    with worlds.quickly():
        worlds.stage("train_connect", flags[1], runs.parent, f"--labelled-ids {tmp_path / 'ids.txt'}")
        made = files.load(runs / "bind" / "oom-imu" / "semi" / "seed0" / "connect.pt")
        assert sorted(made["labelled"]) == sorted(ids) and made["meta"]["n_labelled"] == 6
        worlds.stage("train_explore", flags[1], runs.parent, "--method erm")
        left = files.load(runs / "bind" / "oom-imu" / "semi" / "seed0" / "erm.pt")["unlabelled"]
        assert sorted([*left, *ids]) == sorted(i for i, s in zip(oom["ids"], oom["split"].tolist()) if s == 0)
        (tmp_path / "ids.txt").write_text("\n".join(ids[:5]))
        with pytest.raises(UserError, match="earlier labelled ids.*--force"):
            worlds.stage("train_connect", flags[1], runs.parent, f"--labelled-ids {tmp_path / 'ids.txt'}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train0\nnobody\n", "nobody is no training row"),
        ("test0\n", "test0 is no training row"),
        ("\n \n", "has no id"),
        (None, "No such file"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_line(imu, tmp_path, text, words):
    flags, path = [str(f) for f in imu[0]], tmp_path / "ids.txt"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=words) as caught:
        train_connect.main([*flags, "--device", "cpu", "--force", "--labelled-ids", str(path)])
    assert "\n" not in str(caught.value)


def test_a_learner_of_other_inputs_is_refused(imu, trained):
    _, _, oom = imu
    changed = {**oom, "meta": {**oom["meta"], "digest": "0" * 16}}
    with pytest.raises(UserError, match="earlier inputs/imu"):
        suggest.unlabelled(Trained([trained[1]["imu"]]), changed)
