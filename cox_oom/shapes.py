"""What a stage needs of the files of earlier ones: shapes, dtypes and ranges, checked where they are read.

Each check_ function takes a file's path and dict, and raises UserError, one line, for the first claim that fails.
"""

import functools
import json

import torch

from cox_oom.files import UserError
from cox_oom.heads import Head
from cox_oom.learner import Learner
from cox_oom.shards import Shards
from cox_oom.views import OF

DIMS = {"image": 4, "video": 5, "series": 3, "text": 2}  # of x, by kind
WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
UNIT = 1e-3  # how far a row of a bank may be from length 1


def check(path, file, claims):
    """claims: an iterable of (does it hold, what is said where it does not), each after those that it builds on."""
    said = None
    try:
        for holds, words in claims:
            if not holds:
                said = words
                break
    except Exception as e:  # a type that nobody foresaw
        said = f"it is not what it should be ({(str(e).splitlines() or [''])[0] or type(e).__name__})"[:160]
    if said:
        raise UserError(f"{path}: {said}; make it again by {file['meta']['stage']}.py --force")


def texts(value):
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def plain(value):
    """Is it what JSON can hold."""
    if isinstance(value, dict):
        return all(isinstance(k, str) and plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(plain, value))
    return value is None or isinstance(value, (str, int, float))


def tensor(value, shape, dtypes):
    """Is it a tensor, perhaps in shards, of that shape, None for any size, and of one of the dtypes."""
    return (
        isinstance(value, (torch.Tensor, Shards))
        and value.dtype in dtypes
        and len(value.shape) == len(shape)
        and all(want in (None, have) for want, have in zip(shape, value.shape))
    )


def within(value, low, high):
    """Do all entries of a tensor lie in low…high; true where it has none."""
    return not value.numel() or bool(value.min() >= low and value.max() <= high)


def skeleton(module, **sizes):
    """module(**sizes) without numbers, made once. Nothing may change it."""
    return made(module, json.dumps(sizes))


@functools.cache
def made(module, sizes):
    with torch.device("meta"):
        return module(**json.loads(sizes))


def fits(state, module):
    """Has a state dict the names, shapes and dtypes of a module."""
    own = module.state_dict()
    return (
        isinstance(state, dict)
        and state.keys() == own.keys()
        and all(tensor(t, own[k].shape, (own[k].dtype,)) for k, t in state.items())
    )


def of_rows(file):
    """Claims about what inputs and banks say of their rows."""
    yield plain(file["meta"]), "its meta has more than plain values"
    ids, n = file["ids"], len(file["ids"])
    yield texts(ids), "ids are not texts"
    yield len(set(ids)) == n, "an id stands twice"
    yield texts(file["class_names"]), "class names are not texts"
    yield tensor(file["labels"], (n,), WHOLE), f"labels are not {n} whole numbers, one for each id"
    yield within(file["labels"], -1, len(file["class_names"]) - 1), "a label is none of the classes, nor -1"
    yield tensor(file["split"], (n,), WHOLE), f"split is not {n} whole numbers, one for each id"
    yield within(file["split"], 0, 2), "a split is none of 0 to 2"


def of_inputs(file):
    yield from of_rows(file)
    kind, x, lengths, n = file["kind"], file["x"], file.get("lengths"), len(file["ids"])
    yield kind in DIMS, f"its kind is none of {', '.join(DIMS)}"
    dtypes = (torch.uint8,) if kind == "text" else (torch.uint8, torch.float32)
    yield tensor(x, (n, *[None] * (DIMS[kind] - 1)), dtypes), f"x is not {n} items of kind {kind}, one for each id"
    groups = file.get("groups")
    yield groups is None or texts(groups) and len(groups) == n, f"groups are not {n} texts, one for each id"
    if lengths is not None:
        yield kind in ("series", "text"), f"lengths, which kind {kind} has not"
        yield tensor(lengths, (n,), WHOLE), f"lengths are not {n} whole numbers, one for each id"
        yield within(lengths, 0, x.shape[-1]), f"a length is not within 0 to {x.shape[-1]}, the length of x"
    for name in ("mean", "std") if kind != "text" else ():
        t = file.get(name)
        yield isinstance(t, torch.Tensor) and t.dtype == torch.float32, f"{name} is not a float32 tensor"
        fit = t.dim() == x.dim() - 1 and all(a in (1, b) for a, b in zip(t.shape, x.shape[1:]))
        yield fit, f"{name} {tuple(t.shape)} does not fit x {tuple(x.shape)}"
        yield bool(torch.isfinite(t).all()), f"{name} is not finite"
        yield name == "mean" or bool((t > 0).all()), "std is not above 0"


def check_inputs(path, file):
    """An inputs file of stage 1."""
    check(path, file, of_inputs(file))


def of_bank(file):
    yield from of_rows(file)
    yield texts(file["meta"]["args"].get("im", [])), "its args have no right im"
    z, n = file["features"], len(file["ids"])
    yield tensor(z, (n, None), (torch.float32,)), f"features are not {n} rows of float32, one for each id"
    off = lambda part: (torch.linalg.vector_norm(part, dim=1) - 1).abs()
    yield all(bool((off(part) <= UNIT).all()) for part in z.split(65536) if n), "features are not rows of length 1"


def check_bank(path, file):
    """A feature bank of stage 1."""
    check(path, file, of_bank(file))


def of_model(file, arch, classes):
    """Claims about a learner and its head in a dict."""
    learner = skeleton(Learner, **arch)
    head = skeleton(torch.nn.Linear, in_features=arch["width"], out_features=classes)
    yield fits(file["learner"], learner), "the learner's weights are not of its arch"
    yield fits(file["head"], head), f"the head's weights are not of {classes} classes and width {arch['width']}"


def of_modalities(file, connect, ims, classes):
    """Claims about a file's connections, heads and mapped items; connect: stage 2's dict, ims: the banks."""
    from cox_oom.connect import Connection  # here, since connect.py imports seed.py, which imports this file

    d = connect["arch"]["width"]
    for m in file["im"]:
        ids, width = connect["mapped_ids"][m], ims[m]["features"].shape[1]
        connection = skeleton(Connection, d_im=width, d=d)
        head, im_head = skeleton(Head, d=d, classes=classes), skeleton(Head, d=width, classes=classes)
        yield fits(file["connections"][m], connection), f"the connection of {m} does not fit its bank and the learner"
        yield tensor(file["mapped"][m], (len(ids), d), (torch.float32,)), f"mapped {m} is not ({len(ids)}, {d}) float32"
        if "mapped_heads" in file:
            yield fits(file["mapped_heads"][m], head), f"mapped_heads {m} is not of {classes} classes and width {d}"
        if "im_heads" in file:
            yield fits(file["im_heads"][m], im_head), f"im_heads {m} does not fit the bank's {width} features"
        if "optimizers" in file:
            yield of_optimizer(file["optimizers"][m], connection), f"the optimizer of {m} does not fit its connection"


def of_optimizer(state, module):
    """Is it the state of an Adam of a module's parameters."""
    groups, shapes = state["param_groups"], [p.shape for p in module.parameters()]
    return (
        len(groups) == 1
        and groups[0]["params"] == list(range(len(shapes)))
        and set(state["state"]) <= set(range(len(shapes)))
        and all(
            tensor(s[k], shape, (torch.float32,)) and bool((s[k] >= 0).all() or k == "exp_avg")
            for i, s in state["state"].items()
            for k, shape in (("step", ()), ("exp_avg", shapes[i]), ("exp_avg_sq", shapes[i]))
        )
    )


def of_shared(file, oom, ims):
    """Claims about what connect.pt and METHOD.pt both hold."""
    arch, args = file["arch"], file["meta"]["args"]
    yield plain(file["meta"]), "its meta has more than plain values"
    kinds = {"oom": str, "perceptor": str, "setting": str, "seed": int}
    wrong = [k for k, kind in kinds.items() if not isinstance(args.get(k), kind)]
    yield not wrong, f"its args have no right {', '.join(wrong)}"
    yield isinstance(arch, dict), "its arch is not a dict"
    same = arch["kind"] == oom["kind"] and list(arch["shape"]) == list(oom["x"].shape[1:])
    yield same, f"the learner was made for other inputs than {oom['kind']} {tuple(oom['x'].shape[1:])}"
    yield file["class_names"] == oom["class_names"], "its classes are not those of the inputs"
    known = texts(file["im"]) and file["im"] and set(file["im"]) <= set(ims)
    yield known, f"its IM modalities are not among {', '.join(sorted(ims))}"
    yield from of_model(file, arch, len(oom["class_names"]))


def of_connect(file, oom, ims):
    yield from of_shared(file, oom, ims)
    classes, known = len(oom["class_names"]), set(oom["ids"])
    views, known_views = file["views"], {"plain", *OF[oom["kind"]]}
    yield isinstance(views, dict) and plain(views) and texts(views["chosen"]), "views is not a dict of plain values"
    chosen = views["chosen"] and set(views["chosen"]) <= known_views
    yield chosen, f"views has others than {', '.join(sorted(known_views))}"
    if "initial" in file:
        yield from of_model(file["initial"], file["arch"], classes)
    yield isinstance(file.get("naming", {}), dict), "naming is not a dict"
    for name in ("labelled", "held"):
        ids = file.get(name, [])
        yield texts(ids) and set(ids) <= known, f"{name} names an id that the inputs lack"
    for m in file["im"]:
        ids, y = file["mapped_ids"][m], file["mapped_labels"][m]
        yield texts(ids) and set(ids) <= set(ims[m]["ids"]), f"mapped_ids {m} names an id that the bank lacks"
        yield tensor(y, (len(ids),), WHOLE), f"mapped_labels {m} are not {len(ids)}, one for each id"
        yield within(y, 0, classes - 1), f"mapped_labels {m} has a label that is no class"
        if m in file["pairs"]:
            own, im = file["pairs"][m]
            yield tensor(own, (None,), WHOLE) and tensor(im, own.shape, WHOLE), f"pairs {m} are not two alike columns"
            inside = within(own, 0, len(file["labelled"]) - 1) and within(im, 0, len(ids) - 1)
            yield inside, f"pairs {m} has a place that is none"
    yield from of_modalities(file, file, ims, classes)
    for point in file.get("curve", []):
        head = skeleton(Head, d=file["arch"]["width"], classes=classes)
        whole = point["modality"] in ims and isinstance(point["step"], int) and isinstance(point["mmd"], float)
        yield whole and fits(point["head"], head), "a point of its curve is not one"


def check_connect(path, file, oom, ims):
    """connect.pt, beside the OOM inputs and the IM banks {modality: file}."""
    check(path, file, of_connect(file, oom, ims))


def of_classical(state, classes):
    """Claims about what a method without a learner keeps, None of the others."""
    if state is None:
        return
    known = texts(state["views"]) and state["views"] and set(state["views"]) <= {"plain", "spectrum", "grams"}
    yield known, "its views are none"
    yield isinstance(state["steps"], int) and state["steps"] > 0, "its steps are no number of steps"
    n = state["mean"].shape[0]
    sizes: dict = {"mean": (n,), "scale": (n,)}
    if "points" in state:  # labelprop
        m, p = state["points"].shape
        sizes |= {"points": (m, p), "project": (n, p), "values": (m, classes)}
    else:
        sizes |= {"weight": (classes, n), "bias": (classes,)}
    for name, size in sizes.items():
        yield tensor(state[name], size, (torch.float32,)), f"classical {name} is not {size} float32"


def of_method(file, seed):
    yield from of_shared(file, seed.oom, seed.ims)
    yield file["arch"] == seed.connect["arch"], "its learner is not that of connect.pt"
    yield set(file["im"]) <= set(seed.connect["im"]), "its IM modalities are not those of connect.pt"
    classes, ids = len(seed.oom["class_names"]), file["unlabelled"]
    yield texts(ids) and set(ids) <= set(seed.oom["ids"]), "unlabelled names an id that the inputs lack"
    dtypes = {"agree": (torch.bool,), "label": WHOLE, "confidence": (torch.float32,), "prediction": WHOLE}
    for when in ("before", "after"):
        for name, some in dtypes.items():
            t = file[when][name]
            yield tensor(t, (len(ids),), some), f"{when}.{name} is not of {len(ids)}, one for each unlabelled id"
            if some is WHOLE:
                yield (
                    within(t, -1 if name == "label" else 0, classes - 1),
                    f"{when}.{name} has a value that is no class",
                )
    for name in ("trust", "fallback", "gauge"):
        yield isinstance(file.get(name, {}), dict) and plain(file.get(name)), f"{name} is not a dict of plain values"
    history = file["history"]
    epochs = isinstance(history, list) and all(isinstance(h, dict) for h in history) and plain(history)
    yield epochs, "history is not a list of epochs"
    yield from of_modalities(file, seed.connect, seed.ims, classes)
    yield from of_classical(file.get("classical"), classes)
    yield from of_use(file, seed.oom)
    method = file["meta"]["args"].get("method")
    yield isinstance(method, str), "its args have no right method"


def of_use(file, oom):
    """Claims about what METHOD.pt keeps for new recordings; none about a file of an earlier state."""
    if "preparation" not in file:
        return
    to = {k: v for k, v in file["preparation"].items() if k not in ("mean", "std")}
    yield plain(to) and plain(file["calibration"]), "preparation or calibration has more than plain values"
    yield list(to["shape"]) == list(oom["x"].shape[1:]), "its preparation is of other inputs"
    yield 0 < file["calibration"]["temperature"] < 1e3, "its temperature is not above 0"
    means, precision = file["novelty"]["means"], file["novelty"]["precision"]
    fit = tensor(means, (None, None), (torch.float32,)) and tensor(precision, (means.shape[1],) * 2, (torch.float32,))
    yield fit and file["novelty"]["distance"] > 0, "novelty is not means, a precision and a distance above 0"


def check_method(path, file, seed):
    """METHOD.pt, beside the Seed that it was made from."""
    check(path, file, of_method(file, seed))
