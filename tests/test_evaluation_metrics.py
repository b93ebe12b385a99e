"""Collapse metrics against scipy and loops, near collapse and at any scale; the rule; k-means."""

import numpy as np
import pytest
import torch
from evaluation_tools import EVERY, clustered
from scipy.spatial.distance import cdist
from scipy.stats import entropy
from sklearn.cluster import KMeans

import evaluation
from evaluation import clustering, collapse

EVERY = [*EVERY, "e_recall@8", "e_recall@150", "c_recall@8", "rho_spectrum@-1", "rho_spectrum@0"]


def test_spectrum_against_scipy():
    embeddings, _ = clustered(d=7)
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    spectrum = collapse.singular_values(embeddings)
    for k in (1, 2, 5):
        share, uniform = values[k - 1 :] / values[k - 1 :].sum(), np.full(8 - k, 1 / (8 - k))
        assert collapse.rho_spectrum(spectrum, k) == pytest.approx(entropy(uniform, share), rel=1e-6)
        assert collapse.rho_spectrum(spectrum, -k) == pytest.approx(entropy(share, uniform), rel=1e-6)
    assert collapse.rho_spectrum(spectrum, 0) == collapse.rho_spectrum(spectrum, 1)
    assert collapse.effective_rank(spectrum) == pytest.approx(np.exp(entropy(values / values.sum())), rel=1e-6)
    assert {f"{collapse.rho_spectrum(torch.ones(8), k):.3f}" for k in (1, -1, 8, -8)} == {"0.000"}  # not -0


def test_distances_uniformity_alignment_against_loops(monkeypatch):
    embeddings, labels = clustered(n=90)
    classes = [embeddings[labels == c].astype(np.float64) for c in np.unique(labels)]
    within = [cdist(z, z, "cosine")[np.triu_indices(len(z), 1)].mean() for z in classes if len(z) > 1]
    between = cdist(*[np.stack([z.mean(0) for z in classes])] * 2, "cosine")[np.triu_indices(len(classes), 1)].mean()
    assert collapse.intra(embeddings, labels) == pytest.approx(np.mean(within), rel=1e-6)
    assert collapse.inter(embeddings, labels) == pytest.approx(between, rel=1e-6)
    assert collapse.intra_over_inter(embeddings, labels) == pytest.approx(np.mean(within) / between, rel=1e-6)
    rows = embeddings.astype(np.float64) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = [(i, j) for i in range(len(rows)) for j in range(i)]
    squared = np.array([((rows[i] - rows[j]) ** 2).sum() for i, j in pairs])
    same = np.array([labels[i] == labels[j] for i, j in pairs])
    assert collapse.alignment(embeddings, labels) == pytest.approx(squared[same].mean(), rel=1e-6)
    for bytes_ in (collapse.PAIR_BYTES, 16 * len(rows) * 7):  # blocks of seven rows
        monkeypatch.setattr(collapse, "PAIR_BYTES", bytes_)
        assert collapse.uniformity(embeddings) == pytest.approx(np.log(np.exp(-2 * squared).mean()), rel=1e-6)


@pytest.mark.parametrize("spread", [1e-2, 1e-4, 1e-6])
def test_distances_near_collapse_are_those_of_float64(spread):
    embeddings, labels = clustered()
    rows = (1 + spread * embeddings).astype(np.longdouble)
    units = rows / np.sqrt((rows**2).sum(1, keepdims=True))
    means = np.stack([rows[labels == c].mean(0) for c in np.unique(labels)])
    means /= np.sqrt((means**2).sum(1, keepdims=True))

    def half_squares(x):
        """1 - cosine of all pairs of unit rows, by differences."""
        return np.concatenate([((x[i + 1 :] - x[i]) ** 2).sum(1) / 2 for i in range(len(x) - 1)])

    within = [half_squares(units[labels == c]) for c in np.unique(labels) if (labels == c).sum() > 1]
    intra, inter = float(np.mean([part.mean() for part in within])), float(half_squares(means).mean())
    rows = rows.astype(np.float64)
    assert collapse.intra(rows, labels) == pytest.approx(intra, rel=1e-6)
    assert collapse.inter(rows, labels) == pytest.approx(inter, rel=1e-6)
    assert collapse.intra_over_inter(rows, labels) == pytest.approx(intra / inter, rel=1e-6)
    assert collapse.alignment(rows, labels) == pytest.approx(2 * float(np.concatenate(within).mean()), rel=1e-6)
    expected = float(np.log1p(np.expm1(-4 * half_squares(units)).mean()))
    assert collapse.uniformity(rows) == pytest.approx(expected, rel=1e-6)


def test_zero_vectors_have_cosine_zero():
    embeddings, labels = clustered()
    embeddings[:60:2] = 0
    rows = embeddings.astype(np.float64)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows, classes = rows / np.where(lengths > 0, lengths, 1), [labels == c for c in np.unique(labels)]
    within = [1 - (rows[c] @ rows[c].T)[np.triu_indices(c.sum(), 1)].mean() for c in classes if c.sum() > 1]
    assert collapse.intra(embeddings, labels) == pytest.approx(np.mean(within), rel=1e-9)


@pytest.mark.parametrize("exponent", [100, -133])  # 1e30, 1e-40
def test_no_metric_depends_on_the_unit_of_length(exponent):
    embeddings, labels = clustered()
    scaled = np.ldexp(embeddings, exponent)  # below 1e-38 float32 has fewer digits
    same = np.ldexp(scaled.astype(np.float64), -exponent).astype(np.float32)
    assert np.abs(scaled).max() > 1e30 or np.abs(scaled).max() < 1e-39
    expected = evaluation.compute(same, labels, EVERY)
    assert evaluation.compute(scaled, labels, EVERY) == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected["coding_rate@share"] < 0.99 and 0.1 < expected["c_recall@8"] < 1
    expected = evaluation.compute(same[50:], labels[50:], EVERY, 0, same[:50], labels[:50])
    crossed = evaluation.compute(scaled[50:], labels[50:], EVERY, 0, scaled[:50], labels[:50])
    assert crossed == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("rank, share, dimensions, expected", [
    (20, 0.5, 512, True), (30, 0.5, 512, False), (30, 0.05, 512, True), (None, None, 512, False), (1.0, None, 8, True),
    (1.2, None, 8, False), (1.0, None, 2, False), (None, 0.09, 2, True),
])  # fmt: skip
def test_the_rule(rank, share, dimensions, expected):
    assert collapse.is_collapse(rank, share, dimensions) == expected
    if rank and share:
        line = collapse.collapse_line(dict(zip(collapse.COLLAPSE, (rank, share))), range(1000), dimensions)
        assert bool(line) == expected


@pytest.mark.parametrize("before, after, expected", [
    ((8.5, 0.027), (8.3, 0.027), False), ((8.5, 0.027), (2.1, 0.027), True), ((8.5, 0.027), (8.4, 0.004), True),
    ((100, 0.5), (8.3, 0.027), True), ((3, 0.02), (200, 0.6), False),
])  # fmt: skip
def test_a_collapse_is_a_fall_since_before_training(before, after, expected):
    before, after = (dict(zip(collapse.COLLAPSE, pair)) for pair in (before, after))
    line = collapse.collapse_line(after, range(1000), 512, before, "multisimilarity")
    assert bool(line) == ("--antico_base multisimilarity" in line) == expected
    assert "--" not in collapse.collapse_line(after, range(1000), 512, before, "antico_pair")


@pytest.mark.parametrize("moved", [0, 1], ids=["", "a cluster that is empty"])
def test_kmeans_against_scikit_learn_from_the_same_centres(moved):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(600, 16, generator=generator).double() + 2 * torch.eye(16).double()[torch.arange(600) % 16]
    centres = points[torch.randperm(600, generator=generator)[:40]]
    centres[:moved] += 100
    theirs = KMeans(40, init=centres.numpy(), n_init=1, max_iter=20, tol=0).fit(points.numpy())
    total, nearest = clustering.lloyd(points, centres)
    assert (nearest.numpy() == theirs.labels_).all() and total == pytest.approx(theirs.inertia_, rel=1e-9)


def test_kmeans():
    labels = torch.arange(400) % 10
    points = 10 * torch.eye(10)[labels] + 0.1 * torch.randn(400, 10)
    clusters = clustering.kmeans(points, 10, seed=1)
    assert clustering.nmi(labels, clusters) > 0.8  # random start: not always 1
    assert (clusters != clustering.kmeans(points, 10, seed=2)).any()
    assert (clusters == clustering.kmeans(points, 10, seed=2**64 + 1)).all()  # any whole number


def test_kmeans_finds_clusters_of_collapsed_embeddings():
    labels = torch.arange(400) % 4
    centres = torch.eye(4)[labels] + 0.05 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    expected = clustering.kmeans(centres, 4, seed=1, restarts=8)  # one start finds 0.8
    assert clustering.nmi(labels, expected) > 0.99
    for embeddings in (3 + 1e-4 * centres, 1e30 * centres, 1e-36 * centres, centres.double() * 1e-200):
        assert clustering.nmi(expected, clustering.kmeans(embeddings, 4, seed=1, restarts=8)) > 0.99


def test_few_distinct_points_are_their_own_clusters():
    assert (clustering.kmeans(torch.full((500, 8), 0.3), 50) == 0).all()
    labels = torch.arange(500) % 7
    assert clustering.nmi(labels, clustering.kmeans(torch.randn(7, 8)[labels], 50)) == pytest.approx(1)
