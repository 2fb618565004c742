"""cox_oom/perceptors/bind.py: what it pairs, that its joint space is one, and that it sees IM training rows alone."""

import pytest
import torch
import torch.nn.functional as F

from cox_oom.files import UserError
from cox_oom.perceptors import bind


def toy(n=240, classes=4, seed=0, splits=(0.7, 0.1)):
    """Three modalities of one latent vector: an image, a series of varying length, a feature vector."""
    g = torch.Generator().manual_seed(seed)
    latent = torch.randn(n, 6, generator=g)
    labels = latent[:, :2].gt(0).long() @ torch.tensor([1, 2])
    maps = [torch.randn(6, d, generator=torch.Generator().manual_seed(7 + d)) for d in (64, 3, 12)]
    split = torch.full((n,), 2)
    split[: round(splits[0] * n)] = 0
    split[round(splits[0] * n) : round(sum(splits) * n)] = 1
    common = {
        "ids": [f"i{k}" for k in range(n)],
        "labels": labels,
        "split": split,
        "class_names": list("abcd")[:classes],
    }
    image = (latent @ maps[0]).view(n, 1, 8, 8)
    lengths = torch.randint(12, 25, (n,), generator=g)
    series = (
        torch.stack(
            [
                (latent @ maps[1][:, :1]).repeat(1, 24),
                latent[:, :1] * torch.linspace(-1, 1, 24),
                latent[:, 1:2].repeat(1, 24),
                latent[:, 2:3].repeat(1, 24),
            ],
            1,
        )
        * (torch.arange(24) < lengths[:, None])[:, None]
    )
    vector = (latent @ maps[2]).unsqueeze(1)

    def normal(kind, x, t=None):
        return {"kind": kind, "x": x, "lengths": t, "mean": x.mean(), "std": x.std(), **common}

    return {
        "rgb": normal("image", image),
        "imu": normal("series", series, lengths),
        "fourier": normal("series", vector),
    }


def keep(file, rows):
    """The rows of an inputs file where this modality was observed."""
    rows = torch.as_tensor(rows)
    out = {
        k: (
            v[rows]
            if isinstance(v, torch.Tensor) and v.dim() and len(v) == len(file["ids"]) and k not in ("mean", "std")
            else v
        )
        for k, v in file.items()
    }
    return {**out, "ids": [file["ids"][r] for r in rows.tolist()]}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


TINY = dict(dim=16, width=32, batch_size=64)


# -------------------------------------------------------------------------------------------------- the pairs


def test_pair_table_of_complete_rows():
    inputs = toy(20)
    names, table, by_class = bind.pair_table(inputs, False, generator())
    assert names == ["fourier", "imu", "rgb"] and by_class == []
    assert table.shape == (14, 3)  # training rows alone
    for row in table.tolist():
        assert len({inputs[m]["ids"][r] for m, r in zip(names, row)}) == 1


def test_pair_table_knows_missing_cells():
    inputs = toy(20)
    inputs["rgb"] = keep(inputs["rgb"], range(5, 20))  # rows 0-4 lack the image
    inputs["imu"] = keep(inputs["imu"], [*range(8), 19])  # rows 8-18 lack the series
    names, table, by_class = bind.pair_table(inputs, False, generator())
    assert by_class == [] and len(table) == 14
    seen = {}
    for row in table.tolist():
        ids = {m: inputs[m]["ids"][r] for m, r in zip(names, row) if r >= 0}
        assert len(set(ids.values())) == 1
        seen[ids["fourier"]] = set(ids)
    assert (
        seen["i0"] == {"fourier", "imu"}
        and seen["i5"] == {"fourier", "imu", "rgb"}
        and seen["i9"] == {"fourier", "rgb"}
    )
    assert not {"i14", "i19"} & seen.keys()


def apart():
    """rgb and imu share rows; the feature vector has instances of its own."""
    inputs = toy(60)
    other = keep(toy(60, seed=3)["fourier"], range(60))
    other["ids"] = [f"other{k}" for k in range(60)]
    return {**inputs, "fourier": other}


def test_a_modality_that_shares_no_row_is_refused():
    with pytest.raises(UserError) as caught:
        bind.pair_table(apart(), False, generator())
    message = str(caught.value)
    assert "fourier" in message and "--pair-by-class" in message and "manifest.csv" in message and "\n" not in message


def test_sharing_test_rows_alone_is_sharing_none():
    inputs = apart()
    for r in range(60):
        if inputs["fourier"]["split"][r] == 2:
            inputs["fourier"]["ids"][r] = f"i{r}"
    with pytest.raises(UserError, match="fourier"):
        bind.pair_table(inputs, False, generator())


def test_pair_by_class_pairs_within_the_class_and_says_so():
    inputs = apart()
    inputs["fourier"]["labels"][3] = -1
    names, table, by_class = bind.pair_table(inputs, True, generator())
    assert by_class == ["fourier"]
    k = names.index("fourier")
    drawn = 0
    for row in table.tolist():
        present = {m: r for m, r in zip(names, row) if r >= 0}
        if len(present) < 2:
            continue
        assert len({int(inputs[m]["labels"][r]) for m, r in present.items()}) == 1
        assert all(inputs[m]["split"][r] == 0 for m, r in present.items())
        assert row[k] != 3  # its label is unknown
        drawn += row[k] >= 0
    assert drawn == 42
    again = bind.pair_table(inputs, True, generator())[1]
    assert torch.equal(table, again)
    assert not torch.equal(table, bind.pair_table(inputs, True, generator(1))[1])


@pytest.mark.parametrize("labels, said", [(-1, "no labelled training row"), (7, "shares no class")])
def test_pair_by_class_needs_labelled_rows_of_a_shared_class(labels, said):
    inputs = apart()
    inputs["fourier"] = {**inputs["fourier"], "labels": torch.full_like(inputs["fourier"]["labels"], labels)}
    with pytest.raises(UserError, match=f"fourier {'has ' if labels < 0 else ''}{said}.*--pair-by-class"):
        bind.pair_table(inputs, True, generator())


def test_pair_by_class_touches_no_modality_that_has_true_pairs():
    inputs = toy(30)
    inputs["rgb"] = keep(inputs["rgb"], range(3, 30))
    plain, asked = (bind.pair_table(inputs, flag, generator()) for flag in (False, True))
    assert asked[2] == [] and torch.equal(plain[1], asked[1])


def test_a_single_modality_needs_no_pairs():
    inputs = {"rgb": toy(20)["rgb"]}
    names, table, by_class = bind.pair_table(inputs, False, generator())
    assert names == ["rgb"] and table.squeeze(1).tolist() == sorted(range(14), key=lambda r: f"i{r}") and by_class == []


# --------------------------------------------------------------------------------------------------- training


def bank_of(encoders, inputs):
    return {m: bind.features(encoders[m], inputs[m]) for m in encoders}


@pytest.fixture(scope="module")
def trained():
    inputs = toy(600)
    encoders, by_class = bind.train(inputs, epochs=25, seed=0, **TINY)
    return inputs, encoders, by_class


def test_features_are_unit_rows_of_all_items(trained):
    inputs, encoders, by_class = trained
    assert by_class == []
    for f in bank_of(encoders, inputs).values():
        assert f.shape == (600, 16) and f.dtype == torch.float32
        torch.testing.assert_close(f.norm(dim=1), torch.ones(600))
        assert not f.requires_grad
    assert not any(p.requires_grad for e in encoders.values() for p in e.parameters())


def test_features_do_not_depend_on_the_batches(trained):
    inputs, encoders, _ = trained
    for m in inputs:
        torch.testing.assert_close(
            bind.features(encoders[m], inputs[m], batch_size=7),
            bind.features(encoders[m], inputs[m]),
            atol=1e-5,
            rtol=1e-4,
        )


@pytest.mark.parametrize("a, b", [("rgb", "imu"), ("rgb", "fourier"), ("imu", "fourier")])
def test_partners_find_each_other_on_rows_never_seen(trained, a, b):
    inputs, encoders, _ = trained
    held = inputs["rgb"]["split"] == 2  # 120 rows: chance is 5 of 120
    banks = bank_of(encoders, inputs)
    rank = banks[a][held] @ banks[b][held].T
    hits = (rank.topk(5).indices == torch.arange(int(held.sum()))[:, None]).any(1).float().mean()
    assert hits > 0.4, hits


def test_only_training_rows_are_touched():
    """With NaN in all other rows training is the same bit for bit."""
    clean, poisoned = toy(120), toy(120)
    for file in poisoned.values():
        file["mean"], file["std"] = file["mean"].clone(), file["std"].clone()
        file["x"][file["split"] != 0] = float("nan")
        file["labels"][file["split"] != 0] = -1
    one, two = (bind.train(inputs, epochs=2, seed=0, **TINY)[0] for inputs in (clean, poisoned))
    for m in clean:
        for (name, a), b in zip(one[m].state_dict().items(), two[m].state_dict().values()):
            assert torch.equal(a, b), (m, name)
            assert a.isfinite().all()


def test_no_label_is_used_without_pair_by_class():
    clean, unlabelled = toy(120), toy(120)
    for file in unlabelled.values():
        file["labels"] = torch.full((120,), -1)
    one, two = (bind.train(inputs, epochs=2, seed=0, **TINY)[0] for inputs in (clean, unlabelled))
    for m in clean:
        assert all(torch.equal(a, b) for a, b in zip(one[m].state_dict().values(), two[m].state_dict().values())), m


def test_the_seed_decides():
    inputs = toy(120)
    runs = [bank_of(bind.train(inputs, epochs=2, seed=seed, **TINY)[0], inputs) for seed in (3, 3, 4)]
    for m in inputs:
        assert torch.equal(runs[0][m], runs[1][m]) and not torch.allclose(runs[0][m], runs[2][m])


def test_training_changes_with_pairs():
    """Partners exchanged at random: the held-out retrieval is lost, so it was the pairs that taught it."""
    inputs = toy(600)
    shuffled = dict(inputs)
    order = torch.randperm(420, generator=generator()).tolist()
    shuffled["rgb"] = {**inputs["rgb"], "ids": [f"i{k}" for k in order] + inputs["rgb"]["ids"][420:]}
    encoders, _ = bind.train(shuffled, epochs=8, seed=0, **TINY)
    held = inputs["rgb"]["split"] == 2
    banks = bank_of(encoders, inputs)
    rank = banks["rgb"][held] @ banks["imu"][held].T
    assert (rank.topk(5).indices == torch.arange(120)[:, None]).any(1).float().mean() < 0.2


def test_a_single_modality_is_trained_on_two_views():
    """Views of one held-out item are nearer to each other than to other items."""
    inputs = {"rgb": toy(400)["rgb"]}
    encoders, by_class = bind.train(inputs, epochs=10, seed=0, **TINY)
    assert by_class == [] and list(encoders) == ["rgb"]
    file = inputs["rgb"]
    held = (file["split"] == 2).nonzero().squeeze(1)
    x, _ = bind.batch(file, held, "cpu")
    a, b = (encoders["rgb"](bind.augment("image", x)[0]) for _ in range(2))
    hits = ((a @ b.T).topk(3).indices == torch.arange(len(held))[:, None]).any(1).float().mean()
    assert hits > 0.5  # chance is 3 of 80
    before = bind.train(inputs, epochs=1, seed=0, **{**TINY, "batch_size": 400})[0]["rgb"]
    assert not torch.equal(bind.features(before, file), bind.features(encoders["rgb"], file))


def test_pairs_by_class_bring_classes_together():
    """Modalities that share no row: in the end the nearest items of the other one are of the same class."""
    inputs = toy(400)
    other = toy(400, seed=3)["fourier"]
    other["ids"] = [f"other{k}" for k in range(400)]
    inputs = {"rgb": inputs["rgb"], "fourier": other}
    encoders, by_class = bind.train(inputs, epochs=25, seed=0, pair_by_class=True, **TINY)
    assert set(by_class) == {"rgb", "fourier"}
    banks = bank_of(encoders, inputs)
    a, b = ((inputs[m]["split"] == 2).nonzero().squeeze(1) for m in ("rgb", "fourier"))
    nearest = (banks["rgb"][a] @ banks["fourier"][b].T).argmax(1)
    assert (inputs["rgb"]["labels"][a] == other["labels"][b][nearest]).float().mean() > 0.5  # chance is 0.25


@pytest.mark.parametrize("epochs", [1, 2, 5, 9, 10, 11, 20])
def test_any_number_of_epochs(epochs):
    inputs = {m: keep(f, range(8)) for m, f in toy(40).items()}
    encoders, _ = bind.train(inputs, epochs=epochs, dim=8, width=8)
    assert all(bind.features(encoders[m], inputs[m]).isfinite().all() for m in inputs)


def test_more_rows_than_a_batch_and_gaps():
    """Rows with a single observed modality, and batches in which a modality does not occur."""
    inputs = toy(60)
    inputs["imu"] = keep(inputs["imu"], [0, 1, 59])
    inputs["fourier"] = keep(inputs["fourier"], [*range(30), 59])
    encoders, _ = bind.train(inputs, epochs=2, dim=8, width=8, batch_size=5)
    assert all(p.isfinite().all() for e in encoders.values() for p in e.parameters())


# --------------------------------------------------------------------------------------------------- encoders


@pytest.mark.parametrize(
    "kind, shape, lengths",
    [
        ("image", (1, 3, 5), False),
        ("image", (3, 32, 32), False),
        ("video", (3, 2, 16, 16), False),
        ("series", (2, 100), True),
        ("series", (1, 1), False),
        ("series", (40, 100), False),
        ("text", (9,), True),
    ],
)
def test_encoder_shapes_and_gradients(kind, shape, lengths):
    encoder = bind.Encoder(kind=kind, shape=shape, lengths=lengths, dim=8, width=16)
    x = torch.randint(1, 200, (3, *shape), dtype=torch.uint8) if kind == "text" else torch.randn(3, *shape)
    z = encoder(x, torch.tensor([1, 3, shape[-1]]) if lengths else None)
    assert z.shape == (3, 8)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(3))
    (z * torch.randn(3, 8)).sum().backward()
    for name, p in encoder.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all(), name
        assert p.grad.abs().max() > 0 or (kind == "series" and shape == (1, 1)), name


def test_encoder_of_text_ignores_padding():
    encoder = bind.Encoder(kind="text", shape=(12,), lengths=True, dim=8, width=16)
    x = torch.randint(1, 200, (3, 12), dtype=torch.uint8) * (torch.arange(12) < torch.tensor([[1], [3], [7]]))
    torch.testing.assert_close(encoder(F.pad(x, (0, 6))), encoder(x))


def test_encoder_tells_lengths_apart():
    """Zeros that are padding are not zeros that were measured."""
    encoder = bind.Encoder(kind="series", shape=(2, 64), lengths=True, dim=8, width=16)
    x = torch.randn(1, 2, 64) * (torch.arange(64) < 32)
    assert (encoder(x, torch.tensor([32])) - encoder(x, torch.tensor([64]))).abs().max() > 1e-4
