"""The same neighbours from every back-end, ties by index: against a stable sort of float64 distances."""

import numpy as np
import pytest
import torch

import evaluation
from evaluation import retrieval, search

BACKENDS = ["faiss", "torch"] if search.have_faiss() else ["torch"]
NAMES = ["e_recall@1", "e_recall@3", "e_recall@90", "e_recall@400", "mAP@R", "R-precision", "mAP_20", "mAP_c"]


def exact_order(queries, gallery, exclude_self):
    """All gallery indices by float64 distance, ties by index, the query itself left out."""
    distances = ((queries[:, None].double() - gallery[None].double()) ** 2).sum(2)
    if exclude_self:
        distances.fill_diagonal_(float("inf"))
    return distances.argsort(dim=1, stable=True)[:, : len(gallery) - exclude_self]


def lattice(n, seed=0):
    """Points with few coordinates of few values: many ties between different points, many duplicates."""
    return torch.randint(3, (n, 4), generator=torch.Generator().manual_seed(seed)).float() / 3


def copies(n, seed=0):
    """Random vectors, each about ten times, in random order."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n // 10, 12, generator=generator)[torch.randint(n // 10, (n,), generator=generator)]


def nearly(n, seed=0):
    """Copies that differ by less than float32 distances can tell."""
    x = torch.nn.functional.normalize(copies(n, seed), dim=1)
    return x + 1e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


SETS = {"lattice": lattice, "copies": copies, "nearly": nearly, "all equal": lambda n: torch.ones(n, 3)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("k", [1, 12, 150, 399])
def test_neighbours_are_those_of_a_stable_sort(name, backend, k):
    points = SETS[name](400)
    found = search.nearest_neighbours(points, points, k, exclude_self=True, backend=backend)
    assert torch.equal(found, exact_order(points, points, True)[:, :k])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SETS)
def test_query_against_gallery_with_ties(name, backend):
    gallery = SETS[name](300)
    queries = gallery[torch.randperm(300)[:50]]
    found = search.nearest_neighbours(queries, gallery, 20, backend=backend)
    assert torch.equal(found, exact_order(queries, gallery, False)[:, :20])


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
@pytest.mark.parametrize("name", [*SETS, "random"])
def test_metrics_are_those_of_the_stable_sort(name, backend, monkeypatch):
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 450 * 37)
    monkeypatch.setattr(retrieval, "TRIED", 2)  # so that first matches are counted, not found
    points = SETS[name](450) if name != "random" else torch.randn(450, 5)
    labels = torch.cat([torch.randint(60, (446,)), torch.tensor([100, 101, 102, 103])])
    values = evaluation.compute(points, labels, NAMES, search=backend)
    assert values == pytest.approx(naive(exact_order(points, points, True), labels, labels, retrieval.class_sizes(labels), 1), rel=1e-12)
    crossed = evaluation.compute(points[50:], labels[50:], NAMES, search=backend, query_embeddings=points[:50], query_labels=labels[:50])
    sizes = retrieval.gallery_sizes(labels[:50], labels[50:])
    assert crossed == pytest.approx(naive(exact_order(points[:50], points[50:], False), labels[50:], labels[:50], sizes, 0), rel=1e-12)


def test_approximate_search_is_near_and_complete():
    pytest.importorskip("faiss")
    points = torch.randn(3000, 16)
    found = search.nearest_neighbours(points, points, 10, exclude_self=True, backend="ivf")
    exact = search.nearest_neighbours(points, points, 10, exclude_self=True)
    assert not (found == torch.arange(3000)[:, None]).any() and bool((found >= 0).all())
    share = (found[:, :, None] == exact[:, None]).any(2).float().mean()
    assert 0.5 < share < 1  # approximate, and not by accident exact
    many = search.nearest_neighbours(points, points, 2000, exclude_self=True, backend="ivf")  # more than the visited lists hold
    assert all(len(row.unique()) == 2000 for row in many[:20])


def test_unknown_and_missing_back_ends(monkeypatch):
    points = torch.randn(5, 2)
    with pytest.raises(ValueError, match="--search fais: must be one of"):
        search.nearest_neighbours(points, points, 1, backend="fais")
    monkeypatch.setattr(search, "have_faiss", lambda: False)
    for backend in ("faiss", "ivf"):
        with pytest.raises(ValueError, match=f"--search {backend}: needs faiss: pip install"):
            search.nearest_neighbours(points, points, 1, backend=backend)
