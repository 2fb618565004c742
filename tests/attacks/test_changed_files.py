"""A .pt file that was changed after it was written: refused in one line, or read to the very same content."""

import random
import zipfile
from pathlib import Path

import pytest
import torch
from saved import complaint

from cox_oom import files
from cox_oom.files import Place, UserError

KINDS = ("inputs/imu", "inputs/rgb", "banks/rgb", "banks/language", "connect", "cox")


def paths(runs, folder):
    """{kind: path} of a file of each kind."""
    place = Place(runs, folder, "bind", "imu")
    return {
        **{f"inputs/{m}": place.inputs(m) for m in ("imu", "rgb")},
        **{f"banks/{m}": place.bank(m) for m in ("rgb", "language")},
        "connect": place.connect,
        "cox": place.method("cox"),
    }


def outcome(path, known):
    """ "refused", or "the same" where what is read has the digests `known` of all of it; else what differs."""
    try:
        read = files.load(path)
    except UserError as error:
        assert "\n" not in str(error) and str(path) in str(error) and "remove it" in str(error)
        return "refused"
    return "the same" if files.digest(read) == known else "OTHER CONTENT"


def flip(path, sound, bit):
    changed = bytearray(sound)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)


def flips(path, n, rng):
    """How many of n random flips of one bit of a file end how: {outcome: number}."""
    sound, ends = path.read_bytes(), {}
    known = files.digest(files.load(path))
    for _ in range(n):
        flip(path, sound, rng.randrange(8 * len(sound)))
        end = outcome(path, known)
        ends[end] = ends.get(end, 0) + 1
    path.write_bytes(sound)
    return ends


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_is_refused_or_changes_nothing(runs, folder, kind):
    """A file has bytes that say nothing, which torch pads tensors with: a flip there may pass."""
    ends = flips(paths(runs, folder)[kind], 10, random.Random(kind))
    assert set(ends) <= {"refused", "the same"} and ends["refused"] >= 5, ends


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_bit_of_a_tensor_is_refused(runs, folder, kind):
    path, rng = paths(runs, folder)[kind], random.Random(kind)
    sound = path.read_bytes()
    with zipfile.ZipFile(path) as z:
        inside = [i for i in z.infolist() if "/data/" in i.filename and i.file_size]
    for i in rng.sample(inside, min(5, len(inside))):
        name, extra = (
            int.from_bytes(sound[i.header_offset + at : i.header_offset + at + 2], "little") for at in (26, 28)
        )
        start = i.header_offset + 30 + name + extra
        flip(path, sound, 8 * start + rng.randrange(8 * i.file_size))
        complaint(lambda: files.load(path), path, "its content is not what was written", "remove it")


def rewritten(path, change):
    """The file saved again by torch.save, after `change` of its dict: all its digests stay as they were."""
    file = torch.load(path, weights_only=True)
    change(file)
    torch.save(file, path)


def exchange_ids(file):
    ids = file["ids"] if "ids" in file else file["labelled"] if "labelled" in file else file["unlabelled"]
    ids[0], ids[1] = ids[1], ids[0]


def exchange_class_names(file):
    file["class_names"] = file["class_names"][::-1]


def halve(file):
    key = "ids" if "ids" in file else "class_names"
    file[key] = file[key][: len(file[key]) // 2]


def one_more(file):
    file["more"] = 1


def other_type(file):
    key = next(k for k, v in file.items() if isinstance(v, str | list))
    file[key] = {"of": file[key]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", [exchange_ids, exchange_class_names, halve, one_more, other_type])
def test_other_content_under_the_old_digest_is_refused(runs, folder, kind, change):
    path = paths(runs, folder)[kind]
    rewritten(path, change)
    complaint(lambda: files.load(path), path, "its content is not what was written", "remove it")


def mutations(meta, rng, n):
    """n changes of a meta, each as a function of it: a key gone, new or of another type, another value, two
    exchanged, and the same in its args and made_from."""
    other = [None, 0, -1, 2**70, 1.5, "", "x", [], {}, {"a": {}}, True, float("nan"), "f" * 64, b"x"]
    made = []
    for _ in range(n):
        within = rng.choice([(), (), ("args",), ("made_from",)])
        spot = meta
        for k in within:
            spot = spot[k]
        keys = sorted(spot) or ["new"]
        key, how, value = rng.choice(keys), rng.choice(["drop", "set", "set", "new", "exchange"]), rng.choice(other)
        made.append((within, key, rng.choice(keys), how, value))
    return made


def mutate(meta, within, key, second, how, value):
    for k in within:
        meta = meta[k]
    if how == "drop":
        meta.pop(key, None)
    elif how == "new":
        meta["new"] = value
    elif how == "exchange":
        meta[key], meta[second] = meta.get(second), meta.get(key)
    else:
        meta[key] = value


@pytest.mark.parametrize("kind", KINDS)
def test_another_meta_is_refused(runs, folder, kind):
    path = paths(runs, folder)[kind]
    sound, meta = path.read_bytes(), files.load(path)["meta"]
    for how in mutations(meta, random.Random(kind), 12):
        path.write_bytes(sound)
        rewritten(path, lambda file, how=how: mutate(file["meta"], *how))
        mutated = torch.load(path, weights_only=True)["meta"]
        if files.digest(mutated) != files.digest(meta):
            complaint(lambda: files.load(path), path, "remove it")


@pytest.mark.parametrize("meta", [None, [], "meta", 3, {}, {"stage": {}}])
def test_a_meta_that_is_none_is_refused(runs, folder, meta):
    path = paths(runs, folder)["cox"]
    rewritten(path, lambda file: file.update(meta=meta))
    complaint(lambda: files.load(path), path, "remove it")


def test_a_record_zipped_again_is_refused_or_the_same(runs, folder):
    """The archive unpacked and packed anew by another program: whole, compressed, without or with a halved record."""
    path = paths(runs, folder)["cox"]
    known = files.digest(files.load(path))
    with zipfile.ZipFile(path) as z:
        records = {i.filename: z.read(i) for i in z.infolist()}
    big = max(records, key=lambda k: len(records[k]) if "/data/" in k else 0)
    changes = {
        "whole": records,
        "halved": {**records, big: records[big][: len(records[big]) // 2]},
        "zeros": {**records, big: bytes(len(records[big]))},
        "gone": {k: v for k, v in records.items() if k != big},
        "no pickle": {k: v for k, v in records.items() if not k.endswith("data.pkl")},
        "half a pickle": {k: v[: len(v) // 2] if k.endswith("data.pkl") else v for k, v in records.items()},
    }
    for name, some in changes.items():
        for how in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            with zipfile.ZipFile(path, "w", how) as z:
                for k, v in some.items():
                    z.writestr(k, v)
            end = outcome(path, known)
            assert end == "refused" or name == "whole" and end == "the same", (name, how, end)


def test_exchanged_files_are_refused(runs, folder):
    """Each is whole and what its digests say, but stands in the other's place."""
    at = paths(runs, folder)
    a, b = at["banks/rgb"], at["banks/language"]
    swap = a.with_name("swap")
    a.rename(swap), b.rename(a), swap.rename(b)
    from cox_oom.seed import load_seed

    with pytest.raises(UserError, match="earlier banks/"):
        load_seed(Place(runs, folder, "bind", "imu"))


def test_a_file_is_hashed_once_and_again_when_it_changes(runs, folder, monkeypatch):
    path = paths(runs, folder)["inputs/imu"]
    files.VERIFIED.clear()
    hashed, digest = [], files.digest
    monkeypatch.setattr(files, "digest", lambda o: hashed.append("x" in o) or digest(o))
    files.load(path, content=False)
    assert hashed == [False]
    files.load(path), files.load(Path(path))
    assert hashed.count(True) == 1
    path.write_bytes(path.read_bytes())
    files.load(path)
    assert hashed.count(True) == 2


def test_a_file_without_proof_is_of_another_version(runs, folder):
    path = paths(runs, folder)["connect"]
    rewritten(path, lambda file: file["meta"].pop("proof"))
    complaint(lambda: files.load(path, first="python x.py"), "another version; remove it and run: python x.py")


def test_facts_taken_over_from_another_file_bring_no_proof(tmp_path):
    meta = {"stage": "s", "data": "d", "fingerprint": "f", "args": {}, "more": 1}
    files.save(tmp_path / "a.pt", {"x": torch.ones(2)}, **meta, proof="0" * 16, quiet=True)
    assert files.load(tmp_path / "a.pt")["meta"]["more"] == 1
