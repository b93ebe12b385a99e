"""The search's back-ends: approximate, automatic, missing."""

import pytest
import torch

from evaluation import retrieval, search


def test_approximate_search_is_near_and_complete():
    pytest.importorskip("faiss")
    points = torch.randn(3000, 16)
    found = search.nearest_neighbours(points, points, 10, exclude_self=True, backend="ivf")
    exact = search.nearest_neighbours(points, points, 10, exclude_self=True)
    assert not (found == torch.arange(3000)[:, None]).any() and bool((found >= 0).all())
    share = (found[:, :, None] == exact[:, None]).any(2).float().mean()
    assert 0.5 < share < 1  # approximate, and not by accident exact
    many = search.nearest_neighbours(
        points, points, 2000, exclude_self=True, backend="ivf"
    )  # more than the visited lists hold
    assert all(len(row.unique()) == 2000 for row in many[:20])
    labels = torch.arange(3000) % 40
    assert 0 < retrieval.recall_at_k(points, labels, 100, backend="ivf") <= 1


def test_auto_is_faiss_where_it_is_installed(monkeypatch):
    points, used = torch.randn(30, 4), []
    for name in ("faiss_index", "torch_index"):
        real = getattr(search, name)
        monkeypatch.setattr(search, name, lambda *args, real=real, name=name: (used.append(name), real(*args))[1])
    search.nearest_neighbours(points, points, 3)
    assert used == ["faiss_index" if search.have_faiss() else "torch_index"]
    monkeypatch.setattr(search, "have_faiss", lambda: False)
    search.nearest_neighbours(points, points, 3)
    assert used[1:] == ["torch_index"]


def test_unknown_and_missing_back_ends(monkeypatch):
    points = torch.randn(5, 2)
    with pytest.raises(ValueError, match="--search fais: must be one of"):
        search.nearest_neighbours(points, points, 1, backend="fais")
    monkeypatch.setattr(search, "have_faiss", lambda: False)
    for backend in ("faiss", "ivf"):
        with pytest.raises(ValueError, match=f"--search {backend}: needs faiss: pip install"):
            search.nearest_neighbours(points, points, 1, backend=backend)
