"""Neighbours against float64 distances, from every back-end."""

import logging
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from evaluation_tools import BACKENDS
from pretend_gpu import PretendGpu

import evaluation
from evaluation import retrieval, search


def distances64(queries, gallery, exclude_self):
    """Squared distances (n, m), infinite to the query itself, row by row in numpy."""
    q, g = (np.asarray(x, dtype=np.float64) for x in (queries, gallery))
    distances = np.stack([((g - row) ** 2).sum(1) for row in q])
    if exclude_self:
        np.fill_diagonal(distances, np.inf)
    return distances


def drawn(seed):
    return torch.Generator().manual_seed(seed)


def one_long(n, times=1e6):
    x = torch.randn(n, 12, generator=drawn(0))
    x[n // 3] *= times
    return x


def blobs(n, spread, n_blobs=4, d=64):
    """Unit vectors around few centres."""
    centres = torch.nn.functional.normalize(torch.randn(n_blobs, d, generator=drawn(0)), dim=1)
    noise = torch.randn(n, d, generator=drawn(1))
    return torch.nn.functional.normalize(centres[torch.arange(n) % n_blobs] + spread * noise, dim=1)


X = torch.randn(400, 32, generator=drawn(1))
DISTINCT = {  # float32 tells all their neighbours apart once they are centred and scaled
    "random": X,
    "far from the origin": X.double() + 1e6,
    "near collapse": 1 + 1e-4 * X,
    "very near": 1 + 1e-6 * X.double(),
    "digits of float64": 1 + 1e-12 * X.double(),
    "large": X * 1e25,
    "beyond float32": X.double() * 1e200,
    "small": X * 1e-25,
    "below the smallest normal number": X.double() * 1e-310,
}
WITH_SQUARES = {  # the same distances, where squares of those would overflow or vanish
    "beyond float32": X,
    "below the smallest normal number": DISTINCT["below the smallest normal number"] * 2.0**600,
}
TIED = {  # many equal distances, or such as float32 cannot tell apart
    "lattice": torch.randint(3, (400, 4), generator=drawn(0)).float() / 3,
    "copies": X[torch.randint(40, (400,), generator=drawn(0))],
    "triples": X[:134].repeat(3, 1)[torch.randperm(400, generator=drawn(0))],
    "blobs": blobs(400, 3e-4),
    "all equal": torch.full((400, 3), 0.7),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", DISTINCT)
@pytest.mark.parametrize("k", [1, 12, 150, 399])
def test_neighbours_are_those_of_float64(name, backend, k):
    points = DISTINCT[name]
    found = search.nearest_neighbours(points, points, k, exclude_self=True, backend=backend)
    same = WITH_SQUARES.get(name, points)
    order = np.argsort(distances64(same, same, True), axis=1)
    assert (found.numpy() == order[:, :k]).mean() > 0.999


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", TIED)
@pytest.mark.parametrize("k", [1, 12, 399, 999])
def test_among_ties_others_as_near_are_found(name, backend, k):
    """Each neighbour once, never the query itself, and none farther than the k-th nearest, to rounding."""
    points = TIED[name]
    distances = distances64(points, points, True)
    found = search.nearest_neighbours(points, points, k, exclude_self=True, backend=backend).numpy()
    assert found.shape == (400, min(k, 399)) and all(len(set(row)) == len(row) for row in found)
    assert not (found == np.arange(400)[:, None]).any()
    assert np.allclose(np.take_along_axis(distances, found, 1), np.sort(distances, 1)[:, : min(k, 399)], atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_against_gallery(backend, monkeypatch):
    queries, gallery = torch.randn(50, 6, requires_grad=True), torch.randn(70, 6)
    expected = torch.from_numpy(np.argsort(distances64(queries.detach(), gallery, False), axis=1))
    for k in (7, 999):
        assert torch.equal(search.nearest_neighbours(queries, gallery, k, backend=backend), expected[:, :k])
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 70 * 7)  # blocks of seven queries
    assert torch.equal(search.nearest_neighbours(queries, gallery, 7, backend=backend), expected[:, :7])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("times", [1e3, 1e6, 1e12, 1e30])
def test_a_long_row_takes_nothing_from_the_others(times, backend):
    points, others = one_long(900, times), torch.arange(900) != 300
    order = torch.from_numpy(np.argsort(distances64(points[others], points[others], True), axis=1)[:, :10])
    found = search.nearest_neighbours(points, points, 10, exclude_self=True, backend=backend)
    assert torch.equal(found[others], order + (order >= 300))


@pytest.mark.parametrize("most, searches", [(2048, 2), (12, 0)])
def test_faiss_on_a_gpu_takes_tensors_there_with_one_resource(most, searches, monkeypatch):
    """A stand-in for its build for GPUs, of which no more than `most` neighbours can be asked; then torch searches."""
    calls = []

    class Resources:
        def setTempMemory(self, size):
            calls.append(size)

    def knn_gpu(resources, queries, gallery, k, device):
        assert isinstance(resources, Resources) and queries.is_cuda and gallery.is_cuda and device == 0
        calls.append("search")
        return torch.cdist(queries, gallery).square().topk(k, largest=False)

    library = SimpleNamespace(StandardGpuResources=Resources, knn_gpu=knn_gpu)
    monkeypatch.setattr(search, "faiss", lambda: library)
    monkeypatch.setattr(search, "FAISS_GPU_K", most)
    monkeypatch.setitem(sys.modules, "faiss.contrib.torch_utils", sys)
    search.gpu_resources.cache_clear()
    expected = search.nearest_neighbours(X, X, 12, True, backend="torch")
    with PretendGpu():
        there = X.to("cuda")
        found = [search.nearest_neighbours(there, there, 12, True).cpu() for _ in range(2)]
    search.gpu_resources.cache_clear()
    assert torch.equal(found[0], expected) and torch.equal(found[1], expected)
    assert calls.count("search") == searches and calls.count(256 * 2**20) == min(searches, 1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("names", [["e_recall@1"], ["e_recall@1", "e_recall@300", "mAP@R"]])
def test_a_warning_where_recall_is_chance(backend, names, caplog):
    """Once, and where over one query in a hundred has more than K images, some of other classes, at one distance."""
    labels = torch.arange(400) % 10
    some = X.clone()
    some[:3] = some[0]
    quiet = {**DISTINCT, "pairs": X[:200].repeat(2, 1), "one long": one_long(400), "a triple": some}
    quiet["copies in one class"] = X[:10].repeat(40, 1)
    warned = TIED | {"blobs of float32's digits": blobs(400, 1e-8)}
    with caplog.at_level(logging.WARNING, logger="antico"):
        for points in quiet.values():
            retrieval.warn_once.cache_clear()
            evaluation.compute(points, labels, names, search=backend)
        assert not caplog.records
        for name, points in warned.items():
            retrieval.warn_once.cache_clear()
            caplog.clear()
            for _ in range(2):
                evaluation.compute(points, labels, names, search=backend)
            assert [record.message.count("Recall@K is chance") for record in caplog.records] == [1], name
