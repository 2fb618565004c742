"""--without: each part of COX left out, and nothing else."""

import pytest
from worlds import assert_same, differ, refused, run_dir, stage

from cox_oom import files
from cox_oom.files import UserError

pytestmark = pytest.mark.usefixtures("quick")


def test_without_connection_maps_by_an_untrained_connection(runs, folder):
    before = files.load(run_dir(runs) / "connect.pt")
    stage("train_explore", folder, runs, "--method cox --without connection --tag alone")
    alone = files.load(run_dir(runs) / "cox-alone.pt")
    assert differ(before["connections"], alone["connections"])
    stage("train_connect", folder, runs, "--without connection --force")
    after = files.load(run_dir(runs) / "connect.pt")
    assert_same(before["learner"], after["learner"])
    assert differ(before["connections"], after["connections"])
    assert len({c["mmd"] for c in after["curve"] if c["modality"] == "rgb"}) == 1


def test_without_warmup_leaves_the_learner_at_its_initial_weights(runs, folder):
    parts = ("train_connect.py", "--without warmup")
    refused("train_explore", folder, runs, "--without warmup --tag cold", parts=parts)
    stage("train_connect", folder, runs, "--without warmup --force")
    connect = files.load(run_dir(runs) / "connect.pt")
    assert_same(connect["initial"]["learner"], connect["learner"])
    assert_same(connect["initial"]["head"], connect["head"])


def test_without_emergent_has_no_emergent_pairs_and_without_exploration_is_labels_alone(runs, folder):
    out = stage("train_explore", folder, runs, "--method cox --without emergent --force")
    assert "0 emergent pairs" in out
    stage("train_explore", folder, runs, "--method cox --without exploration,emergent --force")
    cox = files.load(run_dir(runs) / "cox.pt")
    assert cox["meta"]["args"]["without"] == ["emergent", "exploration"]
    assert set(cox["history"][-1]) & {"agree", "disagree"} == set()


@pytest.mark.parametrize("flags", ["--without connexion", "--name-with 1"])
def test_unknown_parts_and_names_without_clusters_are_refused(runs, folder, flags, capsys):
    with pytest.raises((SystemExit, UserError)) as error:
        stage("train_connect", folder, runs, flags)
    assert "connexion" in capsys.readouterr().err or "--init spectral" in str(error.value)
