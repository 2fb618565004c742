"""Files whose digests are right but whose content is not what the next stage needs: one line, before anything is
computed, never a traceback."""

import contextlib
import copy
import io
import random

import pytest
import torch
from worlds import argv, stage

import evaluate
import train_connect
import train_explore
from cox_oom import files
from cox_oom.files import Place, UserError

pytestmark = pytest.mark.usefixtures("quick")
OWN = ("digest", "argv", "torch", "time", "proof")


def rewrite(path, change):
    """The file saved again by `save` after a change of its dict: all digests are right."""
    file = dict(copy.deepcopy(files.load(path)))
    change(file)
    meta = {k: v for k, v in file.pop("meta").items() if k not in OWN}
    files.save(path, file, quiet=True, **meta)


def follow(kind, folder, runs):
    """The stage that reads a file of that kind."""
    with contextlib.redirect_stdout(io.StringIO()):
        if kind in ("inputs", "bank"):
            train_connect.main(argv("train_connect", folder, runs, "--force --warmup-epochs 1 --connect-steps 1"))
        elif kind == "connect":
            train_explore.main(argv("train_explore", folder, runs, "--force --epochs 1 --refreshes 1"))
        else:
            line = ["--data", str(folder), "--runs", str(runs), "--force", "--device", "cpu"]
            evaluate.main([*line, "--task", "retrieval"])


def path_of(kind, runs, folder):
    place = Place(runs, folder, "bind", "imu")
    known = {"inputs": place.inputs("imu"), "bank": place.bank("rgb"), "connect": place.connect}
    return known.get(kind, place.method("cox"))


def set_to(*where):
    *way, last, value = where

    def change(file):
        for k in way:
            file = file[k]
        file[last] = value(file[last]) if callable(value) else value

    return change


CHANGES = [
    ("inputs", "x", lambda x: x[:-1], "x is not"),
    ("inputs", "x", lambda x: x[:, 0], "x is not"),
    ("inputs", "x", lambda x: x.double(), "x is not"),
    ("inputs", "kind", "smell", "its kind is none of"),
    ("inputs", "kind", "image", "x is not"),
    ("inputs", "labels", lambda y: y[1:], "labels are not"),
    ("inputs", "labels", lambda y: y + 1, "a label is none of the classes"),
    ("inputs", "labels", lambda y: y - 2, "a label is none of the classes"),
    ("inputs", "labels", lambda y: y.float(), "labels are not"),
    ("inputs", "split", lambda s: s + 1, "a split is none of 0 to 2"),
    ("inputs", "split", lambda s: s[None], "split is not"),
    ("inputs", "ids", lambda i: i[:-1], "labels are not"),
    ("inputs", "ids", lambda i: [*i[:-1], i[0]], "an id stands twice"),
    ("inputs", "ids", lambda i: [*i[:-1], 7], "ids are not texts"),
    ("inputs", "ids", 3, "it is not what it should be"),
    ("inputs", "class_names", lambda c: c[:2], "a label is none of the classes"),
    ("inputs", "lengths", lambda t: t + 100, "a length is not within"),
    ("inputs", "lengths", lambda t: t[:-1], "lengths are not"),
    ("inputs", "mean", lambda t: t[:1, :1, None], "mean (1, 1, 1) does not fit"),
    ("inputs", "mean", None, "mean is not a float32 tensor"),
    ("inputs", "std", lambda t: 0 * t, "std is not above 0"),
    ("bank", "features", lambda z: z[:-1], "features are not"),
    ("bank", "features", lambda z: z * 2, "rows of length 1"),
    ("bank", "features", lambda z: z.half(), "float32"),
    ("bank", "features", lambda z: z[0], "features are not"),
    ("bank", "features", [1.0], "features are not"),
    ("connect", "arch", "width", 17, "the learner's weights are not of its arch"),
    ("connect", "arch", "shape", [3, 20], "the learner was made for other inputs"),
    ("connect", "arch", {}, "it is not what it should be ('kind')"),
    ("connect", "class_names", ["a", "b", "c"], "its classes are not those of the inputs"),
    ("connect", "im", ["rgb", "smell"], "its IM modalities are not among language, rgb"),
    ("connect", "labelled", ["nobody"], "labelled names an id that the inputs lack"),
    ("connect", "learner", "norm.weight", torch.ones(3), "the learner's weights are not of its arch"),
    ("connect", "head", "bias", torch.ones(2), "the head's weights are not of 3 classes"),
    ("connect", "connections", "rgb", {}, "the connection of rgb does not fit"),
    ("connect", "mapped", "rgb", lambda v: v[:, 1:], "mapped rgb is not"),
    ("connect", "mapped_ids", "rgb", lambda i: i[1:], "mapped_labels rgb are not"),
    ("connect", "pairs", "rgb", lambda p: [p[0] + 99, p[1]], "pairs rgb has a place that is none"),
    ("connect", "optimizers", "rgb", "param_groups", 0, "params", [0], "the optimizer of rgb does not fit"),
    ("cox", "arch", "depth", 2, "the learner's weights are not of its arch"),
    ("cox", "before", "agree", lambda t: t[1:], "before.agree is not of"),
    ("cox", "after", "prediction", lambda t: t + 3, "after.prediction has a value that is no class"),
    ("cox", "unlabelled", lambda i: ["nobody", *i[1:]], "unlabelled names an id that the inputs lack"),
    ("cox", "history", 3, "history is not a list"),
    ("cox", "mapped_heads", "rgb", {}, "mapped_heads rgb is not of 3 classes"),
    ("cox", "meta", "args", {}, "its args have no right oom, perceptor, setting, seed"),
    ("cox", "meta", "args", "method", 3, "its args have no right method"),
    ("cox", "fallback", torch.zeros(1), "fallback is not a dict"),
    ("bank", "meta", "args", "im", 3, "its args have no right im"),
    ("bank", "meta", "args", "dim", torch.zeros(0), "its meta has more than plain values"),
    ("connect", "im", [], "its IM modalities are not among"),
    ("connect", "naming", -1, "naming is not a dict"),
    ("connect", "views", [], "views is not a dict"),
    ("connect", "views", "chosen", ["plain", "smell"], "views has others than plain, spectrum, statistics"),
    ("connect", "arch", "views", ["smell"], "it is not what it should be (views ['smell'] of series"),
    ("connect", "learner", "norm.weight", lambda t: t.long(), "the learner's weights are not of its arch"),
]


@pytest.mark.parametrize("case", CHANGES, ids=lambda c: " ".join(str(p) for p in (*c[:-2], c[-1])).replace("/", ""))
def test_what_a_stage_cannot_use_is_refused(runs, folder, case):
    kind, *where, words = case
    path = path_of(kind, runs, folder)
    rewrite(path, set_to(*where))
    with pytest.raises(UserError) as caught:
        follow(kind, folder, runs)
    said = str(caught.value)
    assert "\n" not in said and words in said and str(path) in said and "make it again by" in said, said


def leaves(value, way=()):
    """The ways to all parts of a nest."""
    yield way
    for k, v in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(v, (*way, k))


def another(value, rng):
    """Something else in place of a value."""
    made = [None, 0, -1, 2**40, "", [], {}, torch.zeros(0), torch.ones(2, 3), True]
    if isinstance(value, torch.Tensor):
        made = [*made, value[None], value.flatten()[1:], value.double(), value.long() + 1, -value.int(), value == 0] * 2
    if isinstance(value, list):
        made += [value[:-1], value[::-1], [*value, None], [*value, *value]]
    if isinstance(value, dict):
        made += [{**value, "new": 1}, dict(list(value.items())[1:])]
    return rng.choice(made)


def mutate(file, rng):
    ways = [w for w in leaves(file) if w and (w[0] != "meta" or w[1:2] == ("args",) or w[1:2] in (("source",), ()))]
    top = rng.choice(sorted({str(w[0]) for w in ways}))
    *way, last = rng.choice([w for w in ways if str(w[0]) == top and w != ("meta",)])
    for k in way:
        file = file[k]
    file[last] = another(file[last], rng)
    return [*way, last, repr(file[last])[:60]]


def ending(kind, folder, runs, rng):
    """("refused" or "taken", what was changed) after a random change of a file of that kind."""
    path, changed = path_of(kind, runs, folder), []
    sound = path.read_bytes()
    try:
        rewrite(path, lambda file: changed.extend(mutate(file, rng)))
        follow(kind, folder, runs)
    except UserError as error:
        assert "\n" not in str(error)
        return "refused", changed
    except Exception as error:
        raise AssertionError(f"{kind} {changed}: {error!r}") from error
    finally:
        path.write_bytes(sound)
    return "taken", changed


@pytest.mark.parametrize("kind", ["inputs", "bank", "connect", "cox"])
def test_a_random_change_never_ends_in_a_traceback(runs, folder, kind):
    rng = random.Random(kind)
    ends = [ending(kind, folder, runs, rng)[0] for _ in range(8)]
    assert "refused" in ends


def test_all_that_the_stages_write_passes(runs, folder):
    stage("train_connect", folder, runs, "--setting unsup")
    for method in ("random", "aligned", "moco"):
        stage("train_explore", folder, runs, f"--method {method}")
    stage("train_explore", folder, runs, "--setting unsup --method cox")
    follow("cox", folder, runs)
