"""The miners against their definitions, triplet by triplet."""

import numpy as np
import pytest
import torch
from criteria_tools import build, imbalanced

from criteria import MINERS, miners
from criteria.base import Criterion


def naive_distances(embeddings):
    return [[(x - y).norm().item() for y in embeddings] for x in embeddings.detach()]


def pairs(labels):
    """The positive pairs; each anchor of `imbalanced` has a negative."""
    labels = labels.tolist()
    return [(i, j) for i, a in enumerate(labels) for j, b in enumerate(labels) if i != j and a == b]


def triplets(mine, embeddings, labels, **settings):
    return list(zip(*(t.tolist() for t in mine(embeddings, labels, **settings))))


def drawn(mine, embeddings, labels, **settings):
    """{(anchor, positive): {negatives}} of 150 calls."""
    torch.manual_seed(0)
    seen = {}
    for a, p, n in [t for _ in range(150) for t in triplets(mine, embeddings, labels, **settings)]:
        seen.setdefault((a, p), set()).add(n)
    return seen


def others(labels, a):
    return {j for j in range(len(labels)) if labels[j] != labels[a]}


@pytest.mark.parametrize("name", MINERS)
def test_triplets_are_triplets(name):
    embeddings, labels = imbalanced()
    a, p, n = MINERS[name](embeddings, labels)
    assert bool((labels[a] == labels[p]).all()) and not a.is_floating_point()
    assert name == "rho_distance" or bool(((labels[a] != labels[n]) & (a != p)).all())
    assert set(a.tolist()) == {i for i, _ in pairs(labels)}
    if name not in ("all", "softhard", "rho_distance"):
        assert list(zip(a.tolist(), p.tolist())) == pairs(labels)


@pytest.mark.parametrize("name", MINERS)
def test_nothing_to_mine_and_equal_embeddings(name):
    for labels in (torch.zeros(6, dtype=torch.long), torch.arange(6), torch.arange(1)):
        assert [len(t) for t in MINERS[name](torch.randn(len(labels), 4), labels)] == [0, 0, 0]
    labels = torch.arange(8) // 2
    a, p, n = MINERS[name](torch.ones(8, 4), labels)
    assert len(a) >= 8 and bool((labels[a] == labels[p]).all())


@pytest.mark.parametrize("name", MINERS)
def test_an_embedding_with_nan_reaches_the_loss_and_no_index_past_the_end(name, monkeypatch):
    """Between two looks at the values, as on a GPU."""
    monkeypatch.setattr(Criterion, "check_values", lambda *_: None)
    x, labels = torch.randn(8, 4), torch.arange(8) // 2
    x[3, 1] = torch.nan
    indices = torch.cat(MINERS[name](x, labels))
    assert 0 <= indices.min() and indices.max() < 8
    assert all(torch.isnan(build(f"{loss} --batch_mining {name}")(x, labels)) for loss in ("triplet", "margin"))


def test_every_is_all_of_them():
    lmu = pytest.importorskip("pytorch_metric_learning.utils.loss_and_miner_utils")
    embeddings, labels = imbalanced()
    theirs = zip(*(t.tolist() for t in lmu.get_all_triplets_indices(labels)))
    assert sorted(triplets(miners.every, embeddings, labels)) == sorted(theirs)


def test_random_draws_all_negatives_alike():
    embeddings, labels = imbalanced(n=14)
    for (a, _), negatives in drawn(miners.random, embeddings, labels).items():
        assert negatives == others(labels, a)


def test_semihard_draws_from_the_band():
    embeddings, labels = imbalanced(n=20, d=6)
    D, fallbacks = naive_distances(embeddings), 0
    for (a, p), negatives in drawn(miners.semihard, embeddings, labels, margin=0.3).items():
        band = {j for j in others(labels, a) if D[a][p] < D[a][j] < D[a][p] + 0.3}
        fallbacks += not band
        assert negatives == (band or others(labels, a))
    assert 0 < fallbacks < 60  # both cases occurred


def test_softhard_draws_what_is_on_the_wrong_side():
    embeddings, labels = imbalanced(n=20, d=6, seed=3)
    D = naive_distances(embeddings)
    positives, negatives = {}, {}
    for (a, p), found in drawn(miners.softhard, embeddings, labels).items():
        positives.setdefault(a, set()).add(p)
        negatives.setdefault(a, set()).update(found)
    for a in positives:
        other = others(labels, a)
        same = set(range(len(labels))) - other - {a}
        assert positives[a] == ({j for j in same if D[a][j] > min(D[a][k] for k in other)} or same)
        assert negatives[a] == ({j for j in other if D[a][j] < max(D[a][k] for k in same)} or other)


@pytest.mark.parametrize("cutoff", [1.4, 2.0])
def test_distance_weighted_frequencies(cutoff):
    """One anchor's negatives against the densities of the formula."""
    embeddings, labels = imbalanced(d=5)
    anchor, d = 0, 5
    counts, weights = np.zeros(len(labels)), np.zeros(len(labels))
    torch.manual_seed(0)
    for _ in range(600):
        a, p, n = miners.distance_weighted(embeddings, labels, upper_cutoff=cutoff)
        np.add.at(counts, n[a == anchor].numpy(), 1)
    for j in others(labels, anchor):
        t = (embeddings[anchor] - embeddings[j]).norm().item()
        if t < cutoff:
            t = max(t, 0.5)
            weights[j] = 1 / (t ** (d - 2) * (1 - t * t / 4) ** ((d - 3) / 2))
    assert np.abs(counts / counts.sum() - weights / weights.sum()).max() < 0.02


def test_distance_weighted_out_of_reach_draws_from_all_negatives():
    """Anchors 0 and 1 have all negatives at distance 2; anchor 2 has one within reach, 4, and draws only that."""
    embeddings = torch.tensor([[1.0, 0, 0], [1, 0, 0], [-1, 0, 0], [-1, 0, 0], [-0.8, 0.6, 0]])
    seen = drawn(miners.distance_weighted, embeddings, torch.tensor([0, 0, 1, 1, 2]))
    assert seen[0, 1] == seen[1, 0] == {2, 3, 4} and seen[2, 3] == {4}


@pytest.mark.parametrize("cp", [0.0, 0.2, 1.0])
def test_rho_switches_a_share_of_the_negatives(cp):
    embeddings, labels = imbalanced()
    torch.manual_seed(0)
    switched = []
    for _ in range(30):
        a, p, n = miners.rho_distance(embeddings, labels, cp=cp)
        same = labels[n] == labels[a]
        assert bool((n != a).all()) and torch.equal(same, a == p)  # the anchor is its own positive there
        assert list(zip(a.tolist(), torch.where(same, n, p).tolist())) == pairs(labels)
        switched.append(same.double().mean().item())
    assert np.mean(switched) == pytest.approx(cp, abs=0.02)
