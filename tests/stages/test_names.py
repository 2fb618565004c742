"""Names without labels: clusters start the unsupervised case; what nothing can name is refused or said."""

import shutil

import pytest
from worlds import read_manifest, refused, run_dir, stage, write_folder, write_manifest

from cox_oom import files
from cox_oom.files import Place

pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("flags", ["--init spectral --name-with 1", "--init spectral"])
def test_clusters_start_the_unsupervised_case(folder, runs, flags):
    out = stage("train_connect", folder, runs, "--setting unsup --force", flags)
    assert ("names spread from" in out) == ("--name-with" in flags)
    assert ("correlation" in out) == ("--name-with" not in flags)
    connect = files.load(run_dir(runs, "unsup") / "connect.pt")
    assert connect["labelled"] == [] and connect["naming"]["by"] == ("items" if "--name-with" in flags else "geometry")
    if "--name-with" in flags:
        assert len(connect["naming"]["items"]) == 3
    stage("train_explore", folder, runs, "--setting unsup --method cox --force")


def test_clusters_are_named_by_banks_where_no_inputs_were_written(folder, runs, tmp_path):
    """A pretrained perceptor's modalities have a bank alone."""
    shutil.copytree(runs, tmp_path / "again")
    for m in ("rgb", "language"):
        Place(tmp_path / "again", folder).inputs(m).unlink()
    out = stage("train_connect", folder, tmp_path / "again", "--setting unsup --init spectral --force")
    assert "named by the geometry of 2 known modalities" in out


@pytest.mark.parametrize(
    "flags, parts",
    [("--init spectral --name-with 1", ("--name-with", "has none")), ("--init spectral", ("pen", "--name-with 1"))],
)
def test_names_that_nothing_can_give_are_refused(tmp_path, flags, parts):
    """No reading has a label; no picture and no sentence shows a pen with one."""
    own = write_folder(tmp_path / "toy", separate=("imu",))

    def lose(r):
        return r[1] == "train" and (r[4] if "--name-with" in flags else r[2] == "pen" and not r[4])

    write_manifest(own, [[*r[:2], "" if lose(r) else r[2], *r[3:]] for r in read_manifest(own)])
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    said = refused("train_connect", own, tmp_path / "runs", "--setting unsup", flags, parts=parts)
    assert "cup" not in said and "key" not in said


def test_a_class_without_a_label_can_get_no_name_and_this_is_said(tmp_path):
    own = write_folder(tmp_path / "toy", separate=("imu",))

    def lose(r):
        return r[1] == "train" and r[4] and r[2] == "pen"

    write_manifest(own, [[*r[:2], "" if lose(r) else r[2], *r[3:]] for r in read_manifest(own)])
    stage("extract_features", own, tmp_path / "runs", "--bind-epochs 1")
    out = stage("train_connect", own, tmp_path / "runs", "--setting unsup --init spectral --name-with 1 --per-class 3")
    assert "no item of pen has a label" in out and "these play no part: --per-class" in out
