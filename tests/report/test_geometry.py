"""experiments/geometry.py, without_labels.py, gauge.py: maps of two sides, partners found by them, R² over columns."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import worlds


def experiment(name):
    spec = importlib.util.spec_from_file_location(name, worlds.ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sides():
    """x (300, 12) and z (300, 10), a rotated copy of its leading dimensions with noise; twelve clumps."""
    g = torch.Generator().manual_seed(0)
    x = 3 * torch.randn(12, 12, generator=g)[torch.arange(300) % 12] + torch.randn(300, 12, generator=g)
    x = x * torch.linspace(2, 0.3, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=g))[0][:, :10]
    z = x @ turn + 0.3 * torch.randn(300, 10, generator=g)
    return x - x.mean(0), z - z.mean(0)


def test_foscttm_and_recall_are_those_of_a_loop():
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(40, 5, generator=g), torch.randn(40, 5, generator=g)
    near = F.cosine_similarity(a[:, None], b[None], dim=2).numpy()
    ranks = [(near[i] > near[i, i]).sum() for i in range(40)] + [(near[:, i] > near[i, i]).sum() for i in range(40)]
    share, ten = experiment("geometry").found(a, b)
    assert share == pytest.approx(np.mean(ranks) / 40) and ten == pytest.approx(np.mean(np.array(ranks) < 10))


def test_shared_geometry_finds_partners_that_few_pairs_alone_do_not(sides):
    geometry = experiment("geometry")
    (x, z), pair = sides, torch.arange(3)
    rest = torch.arange(3, 300)
    few = geometry.procrustes(x[pair].T @ z[pair])
    more = geometry.geometry(x, z, x[pair], z[pair], rest, rest)
    torch.testing.assert_close(more.T @ more, torch.eye(10), atol=1e-4, rtol=0)
    by_pairs, shared = (geometry.found(x[rest] @ turn, z[rest])[0] for turn in (few, more))
    assert shared < 0.05 and shared < by_pairs / 2


def test_assignment_puts_a_mixed_order_right():
    geometry, g = experiment("geometry"), torch.Generator().manual_seed(0)
    a, order = torch.randn(15, 6, generator=g), torch.randperm(15, generator=g)
    b = a[order]
    mapped = geometry.assignment(a @ a.T, b @ b.T, torch.zeros(15, 15))
    assert torch.equal(order[torch.from_numpy(mapped)], torch.arange(15))


def test_r2_of_a_gauge_has_an_interval_around_it():
    rng = np.random.default_rng(0)
    x = rng.standard_normal(25)
    r2, low, high, r, p = experiment("gauge").fit(x, 2 * x + rng.standard_normal(25))
    assert low < r2 < high <= 1 and r > 0 and p < 0.01
    assert r2 == pytest.approx(np.corrcoef(x, 2 * x + np.random.default_rng(0).standard_normal(50)[25:])[0, 1] ** 2)


def test_each_column_has_the_regime_that_its_gauge_names_and_what_came_of_it():
    def of(oom, p, gain):
        values = {k: v for name in ("cka", "neighbours", "left_out") for k, v in ((name, 0.1), (f"p.{name}", p))}
        return {"world": "toy", "oom": oom, **values, "trust": 0.2, "gain": gain, "error": 0.5}

    lines = experiment("gauge").of_columns([of("touch", 0.2, -1.5), of("sonar", 0.01, 0.9), of("echo", 0.01, 1.1)])
    assert lines[2] == "| toy | echo | **0.100** | **0.100** | **0.100** | +0.200 | shared | +1.1 ± 0.5 | gains |"
    assert lines[4].endswith("| 0.100 | 0.100 | 0.100 | +0.200 | not shared | -1.5 ± 0.5 | loses |")
    assert lines[6:] == [
        "shared: 2 columns, 1 gains, 1 neither, 0 loses, on the mean +1.0 points.  ",
        "not shared: 1 columns, 0 gains, 0 neither, 1 loses, on the mean -1.5 points.  ",
    ]


def test_a_map_without_pairs_is_found_twice_where_the_geometry_is_shared_and_the_gate_says_so():
    """And not where the other side has a geometry of its own."""
    blind, g = experiment("without_labels"), torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=g).exp() * torch.linspace(2, 0.5, 6)
    x = x - x.mean(0)
    y = (x[:, 0] > 0).long()
    turn, order = torch.linalg.qr(torch.randn(6, 6, generator=g))[0], torch.randperm(400, generator=g)
    z = (x @ turn + 0.1 * torch.randn(400, 6, generator=g))[order]
    own, agreement = blind.agreed([blind.search(x, z, k) for k in range(3)], x)
    assert agreement > blind.AGREE
    assert blind.found(x[order] @ own, z)[0] < 0.001
    assert (blind.names(x, y, z, own, 2) == y[order]).float().mean() > 0.9
    other = torch.randn(400, 6, generator=g) * torch.linspace(2, 0.3, 6)
    assert blind.agreed([blind.search(x, other, k) for k in range(3)], x)[1] < blind.AGREE


def test_starts_are_compared_by_sensor_and_number_of_pairs_over_the_seeds():
    geometry, far = experiment("geometry"), {"ridge": (0.4, 0.2), "procrustes": (0.2, 0.3), "geometry": (0.1, 0.1)}
    records = [
        {"world": world, "oom": oom, "seed": seed, "pairs": pairs, "start": start, "foscttm": v, "r10": 0.5}
        for world in ("toy", "emoji, bind")
        for oom in ("imu", "sonar")
        for pairs in (16, 40)
        for start, both in {**far, "soft": (0.5, 0.3) if oom == "imu" else (0.1, 0.2)}.items()
        for seed, v in enumerate(both)
    ]
    assert geometry.table(records)[2] == (
        "| toy | 16 | 2 | 2 | 0.300 · 50.0 | 0.250 · 50.0 | 0.100 · 50.0 | 0.275 · 50.0 |"
    )
    assert geometry.cases(records) == [
        "| of 4 cases, nearer than | procrustes | geometry | soft |",
        "|:--|--:|--:|--:|",
        "| ridge | 4 | 4 | 2 |",
        "| procrustes | – | 4 | 2 |",
        "| geometry | 0 | – | 0 |",
    ]


def test_of_several_maps_one_is_taken_that_another_is_like():
    blind = experiment("without_labels")
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    turn = torch.eye(4)[[1, 0, 3, 2]]
    found, agreement = blind.agreed([torch.eye(4), turn, -torch.eye(4), turn], x)
    assert torch.equal(found, turn) and agreement == pytest.approx(1)


def test_a_camera_gives_pictures_of_the_same_size_and_the_pen_draws_only_where_it_is_down():
    blind, rng = experiment("without_labels"), np.random.default_rng(0)
    picture = rng.integers(0, 256, (3, 136, 136), dtype=np.uint8)
    strokes = np.array([[0.1, 0.9, 0.9, 0.1], [0.2, 0.2, 0.8, 0.8], [1, 0, 1, 0]])
    for name in blind.CAMERAS:
        seen = blind.camera(name, picture, strokes, rng)
        assert seen.shape == (3, 136, 136) and seen.dtype == np.uint8 and (seen[0] == seen[2]).all()
    pen = blind.camera("pen", picture, strokes, rng)[0]
    assert pen[27, 68] < 50 and pen[109, 68] < 50 and pen[68, 122] == 255 and pen[68, 68] == 255
    assert (blind.camera("negative", picture, strokes, rng) == 255 - blind.camera("grey", picture, strokes, rng)).all()
