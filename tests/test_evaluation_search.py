"""Neighbours and their metrics against a stable sort of float64 distances, from every back-end."""

import time

import numpy as np
import pytest
import torch

import evaluation
from evaluation import retrieval, search

BACKENDS = ["faiss", "torch"] if search.have_faiss() else ["torch"]
NAMES = ["e_recall@1", "e_recall@3", "e_recall@90", "e_recall@400", "mAP@R", "R-precision", "mAP_20", "mAP_c"]


def float64_distances(queries, gallery, exclude_self):
    """Squared distances (n, m), infinite to the query itself, row by row in numpy."""
    q, g = (np.asarray(x, dtype=np.float64) for x in (queries, gallery))
    distances = np.stack([((g - row) ** 2).sum(1) for row in q])
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    return distances


def exact_order(queries, gallery, exclude_self):
    """All gallery indices by (float64 distance, index), the query itself left out."""
    order = np.argsort(float64_distances(queries, gallery, exclude_self), axis=1, kind="stable")
    return torch.from_numpy(order[:, : len(gallery) - exclude_self])


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def lattice(n, seed=0):
    """Points with few coordinates of few values: many ties between different points, many duplicates."""
    return torch.randint(3, (n, 4), generator=drawn(seed)).float() / 3


def copies(n, seed=0, times=10):
    """Random vectors, each about `times` times, in random order."""
    return torch.randn(n // times, 12, generator=drawn(seed))[torch.randint(n // times, (n,), generator=drawn(seed))]


def triples(n, seed=0):
    """Random vectors, each three times or less, in random order: no tie is longer than 8."""
    return torch.randn(-(-n // 3), 12, generator=drawn(seed)).repeat(3, 1)[torch.randperm(n, generator=drawn(seed))]


def mirrored(n, seed=0):
    """Whole numbers and their mirror images: many ties between different points, in the exact order and in no other."""
    x = torch.randint(-9, 10, (n // 4, 6), generator=drawn(seed)).float()
    signs = torch.tensor([[1.0] * 6, [-1.0] * 6, [1, 1, 1, -1, -1, -1], [-1, -1, -1, 1, 1, 1]])
    return torch.cat([x * s for s in signs])


def nearly(n, seed=0):
    """Copies that differ by less than float32 distances can tell."""
    x = torch.nn.functional.normalize(copies(n, seed), dim=1)
    return x + 1e-6 * torch.randn(x.shape, generator=drawn(seed))


def one_long(n, seed=0, times=1e6):
    x = torch.randn(n, 12, generator=drawn(seed))
    x[n // 3] *= times
    return x


def blobs(n, spread, n_blobs=4, d=64):
    """Unit vectors around few centres: nearer to those of their own than float32 distances tell."""
    centres = torch.nn.functional.normalize(torch.randn(n_blobs, d, generator=drawn(0)), dim=1)
    noise = torch.randn(n, d, generator=drawn(1))
    return torch.nn.functional.normalize(centres[torch.arange(n) % n_blobs] + spread * noise, dim=1)


SETS = {
    "random": lambda n: torch.randn(n, 12, generator=drawn(1)),
    "triples": triples,
    "mirrored": mirrored,
    "far from the origin": lambda n: torch.randn(n, 12, generator=drawn(2)) + 100,
    "one long": one_long,
    "lattice": lattice,
    "copies": copies,
    "nearly": nearly,
    "blobs": lambda n: blobs(n, 3e-4),
    "blobs within float32's last places": lambda n: blobs(n, 1e-8),
    "all equal": lambda n: torch.full((n, 3), 0.7),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 12, 150, 395, 399])
def test_neighbours_are_those_of_a_stable_sort(name, backend, k):
    points = SETS[name](400)
    found = search.nearest_neighbours(points, points, k, exclude_self=True, backend=backend)
    assert torch.equal(found, exact_order(points, points, True)[:, :k])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
def test_query_against_gallery_with_ties(name, backend):
    gallery = SETS[name](300)
    queries = gallery[torch.randperm(300, generator=drawn(3))[:50]]
    found = search.nearest_neighbours(queries, gallery, 20, backend=backend)
    assert torch.equal(found, exact_order(queries, gallery, False)[:, :20])


@pytest.mark.parametrize("times", [1e3, 1e6, 1e12])
def test_a_long_row_takes_nothing_from_the_others(times):
    points = one_long(900, times=times)
    order = exact_order(points, points, True)[:, :10]
    for backend in BACKENDS:
        assert torch.equal(search.nearest_neighbours(points, points, 10, exclude_self=True, backend=backend), order)


def test_rows_beyond_float32s_squares():
    points = torch.randn(200, 12, generator=drawn(4))
    order = exact_order(points, points, True)[:, :5]
    for factor in (2.0**120, 2.0**-120):
        assert torch.equal(search.nearest_neighbours(points * factor, points * factor, 5, exclude_self=True), order)
    wide = points.double() * 1e200
    assert torch.equal(search.nearest_neighbours(wide, wide, 5, exclude_self=True), order)
    points[7] *= 1e30
    others = torch.arange(200) != 7
    for backend in BACKENDS:
        found = search.nearest_neighbours(points, points, 5, exclude_self=True, backend=backend)
        assert torch.equal(found[others], exact_order(points, points, True)[others, :5])


def test_float64_embeddings_keep_their_digits():
    points = 1 + 1e-9 * torch.randn(300, 6, generator=drawn(5), dtype=torch.float64)
    labels = torch.arange(300) // 10
    order = exact_order(points, points, True)
    assert torch.equal(search.nearest_neighbours(points, points, 7, exclude_self=True), order[:, :7])
    assert retrieval.recall_at_k(points, labels, 4) == (labels[order[:, :4]] == labels[:, None]).any(1).double().mean()


def test_numpy_arrays_and_bad_arguments():
    points = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    found = search.nearest_neighbours(points, points, 4, exclude_self=True)
    assert torch.equal(found, exact_order(points, points, True)[:, :4])
    assert torch.equal(search.nearest_neighbours(points[:9], points, 4), exact_order(points[:9], points, False)[:, :4])
    broken = points.copy()
    broken[3, 2] = np.nan
    for arguments, message in (
        ((points, points, 0), "k must be at least 1, got 0"),
        ((points[:0], points, 1), "needs queries"),
        ((points, broken, 1), "not finite"),
        ((points, points[:, :3], 1), "needs queries"),
    ):
        with pytest.raises(ValueError, match=message):
            search.nearest_neighbours(*arguments)
    with pytest.raises(ValueError, match="with others"):
        search.nearest_neighbours(points[:1], points[:1], 1, exclude_self=True)


def naive(order, labels, own, sizes, with_query):
    """The metrics of NAMES by their definitions, from whole orders."""
    values = {name: [] for name in NAMES}
    for i in range(len(order)):
        match = (labels[order[i]] == own[i]).numpy()
        precision = match.cumsum() / np.arange(1, len(match) + 1) * match
        r, total = int(sizes[i]), int(sizes[i]) + with_query
        for name in NAMES:
            if name.startswith("e_recall@"):
                values[name].append(match[: int(name.split("@")[1])].any())
            elif name in ("mAP@R", "R-precision") and r:
                values[name].append((precision if name == "mAP@R" else match)[:r].sum() / r)
            elif name in ("mAP_20", "mAP_c") and total:
                values[name].append(precision[: 20 if name == "mAP_20" else total].sum() / total)
    return {name: np.mean(found) for name, found in values.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
def test_metrics_are_those_of_the_stable_sort(name, backend, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 450 * 37)
    monkeypatch.setattr(retrieval, "TRIED", 2)  # so that most first matches are found by the deeper search
    points = SETS[name](452)
    labels = torch.cat([torch.randint(60, (448,), generator=drawn(6)), torch.tensor([100, 101, 102, 103])])
    values = evaluation.compute(points, labels, NAMES, search=backend)
    assert values == pytest.approx(
        naive(exact_order(points, points, True), labels, labels, retrieval.class_sizes(labels), 1), rel=1e-12
    )
    crossed = evaluation.compute(
        points[50:], labels[50:], NAMES, search=backend, query_embeddings=points[:50], query_labels=labels[:50]
    )
    sizes = retrieval.gallery_sizes(labels[:50], labels[50:])
    assert crossed == pytest.approx(
        naive(exact_order(points[:50], points[50:], False), labels[50:], labels[:50], sizes, 0), rel=1e-12
    )


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["lattice", "copies", "mirrored", "all equal"])
def test_deep_recall_on_ties_is_neither_the_best_nor_the_worst_case(name, backend):
    """A count of the strictly nearer images alone would give a collapsed model a perfect Recall@100."""
    points = SETS[name](600)
    labels = torch.randint(60, (600,), generator=drawn(7))
    order = exact_order(points, points, True)
    recalls = retrieval.recall_at_k(points, labels, (70, 100, 200), backend=backend)
    for k, value in recalls.items():
        expected = float((labels[order[:, :k]] == labels[:, None]).any(1).double().mean())
        assert value == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("spread", [1e-2, 3e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("inside", [True, False], ids=["labels inside the blobs", "labels are the blobs"])
def test_tight_blobs_are_measured_exactly_whatever_else_is_asked(spread, inside, backend):
    """Ten points of 60 images each, nearer to each other than float32 tells, and more of them than k + 8."""
    points = blobs(600, spread, n_blobs=10, d=512)
    labels = torch.arange(600) // 20 if inside else torch.arange(600) % 10
    order = exact_order(points, points, True)
    exact = naive(order, labels, labels, retrieval.class_sizes(labels), 1)
    assert evaluation.compute(points, labels, NAMES, search=backend) == pytest.approx(exact, rel=1e-12)
    for k in (1, 3, 90, 400):
        alone = retrieval.recall_at_k(points, labels, k, backend=backend)
        assert alone == pytest.approx(exact[f"e_recall@{k}"], rel=1e-12)
    queries, own, gallery, labels = points[:90], labels[:90], points[90:], labels[90:]
    sizes = retrieval.gallery_sizes(own, labels)
    exact = naive(exact_order(queries, gallery, False), labels, own, sizes, 0)
    crossed = dict(query_embeddings=queries, query_labels=own, search=backend)
    assert evaluation.compute(gallery, labels, NAMES, **crossed) == pytest.approx(exact, rel=1e-12)
    assert evaluation.compute(gallery, labels, NAMES[:1], **crossed)[NAMES[0]] == pytest.approx(exact[NAMES[0]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_float32_alone_would_measure_blobs_wrongly(backend, monkeypatch):
    """That the test above holds what it means to: without float64 the number is another, and plausible."""
    points, labels = blobs(600, 3e-4, n_blobs=10, d=512), torch.arange(600) // 20
    exact = retrieval.recall_at_k(points, labels, 1, backend=backend)
    monkeypatch.setattr(search, "ROUNDING", 0)
    assert retrieval.recall_at_k(points, labels, 1, backend=backend) != exact


@pytest.mark.parametrize("backend", BACKENDS)
def test_equally_far_points_with_many_copies_are_in_the_order_of_rows(backend):
    """Rows 0 and 3 to 42 are one point, 1 and 2 another, as far from the query: no copy goes before a lower row."""
    gallery = torch.tensor([[1.0, 0], [0, 1], [0, 1]] + [[1.0, 0]] * 40 + [[-1.0, 0]] * 30 + [[5.0, 5]])
    queries = torch.tensor([[0.0, 0], [2.0, 0]])
    for k in (1, 2, 5, 60):
        found = search.nearest_neighbours(queries, gallery, k, backend=backend)
        assert torch.equal(found, exact_order(queries, gallery, False)[:, :k])


def seconds(run, repeats=3):
    """CPU seconds in one thread, the least of several: other processes do not count."""
    threads, times = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for _ in range(repeats):
            start = time.process_time()
            run()
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    return min(times)


@pytest.mark.parametrize("backend", BACKENDS)
def test_collapse_costs_what_spread_embeddings_cost(backend):
    spread, labels = torch.randn(2500, 128, generator=drawn(8)), torch.arange(2500) // 5
    names = ["e_recall@1", "e_recall@1000", "mAP@R"]
    usual = seconds(lambda: evaluation.compute(spread, labels, names, search=backend))
    long = spread.clone()
    long[5] *= 1e6
    for points in (spread[:1].repeat(2500, 1), long):  # before: 30 times and more
        assert seconds(lambda: evaluation.compute(points, labels, names, search=backend)) < 2 * usual
