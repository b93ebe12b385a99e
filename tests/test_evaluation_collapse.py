"""Every metric of embeddings that have collapsed, or are very large, very small or few: right, or one line."""

import json

import evaluation_tools
import numpy as np
import pytest
import torch

import evaluation
from evaluation import __main__ as command
from evaluation import clustering, collapse, retrieval, search

EVERY = [*evaluation_tools.EVERY, "e_recall@8", "e_recall@150", "c_recall@8", "rho_spectrum@-1"]


def clustered(n=240, d=12, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.arange(n) % 24
    x = generator.normal(size=(24, d))[labels] + 0.8 * generator.normal(size=(n, d))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)


@pytest.mark.parametrize("exponent", [100, -133])  # 1e30, 1e-40
def test_no_metric_depends_on_the_unit_of_length(exponent):
    embeddings, labels = clustered()
    scaled = torch.ldexp(embeddings.double(), torch.tensor(exponent)).float()  # below 1e-38 float32 has fewer digits
    same = torch.ldexp(scaled.double(), torch.tensor(-exponent)).float()
    assert scaled.abs().max() > 1e30 or scaled.abs().max() < 1e-39
    expected = evaluation.compute(same, labels, EVERY)
    assert evaluation.compute(scaled, labels, EVERY) == pytest.approx(expected, rel=1e-9)
    assert 0.1 < expected["coding_rate@share"] < 0.99 and 0.1 < expected["c_recall@8"] < 1
    crossed = dict(query_embeddings=scaled[:50], query_labels=labels[:50])
    expected = evaluation.compute(same[50:], labels[50:], EVERY, query_embeddings=same[:50], query_labels=labels[:50])
    assert evaluation.compute(scaled[50:], labels[50:], EVERY, **crossed) == pytest.approx(expected, rel=1e-9)


def test_functions_alone_do_not_depend_on_it_either():
    embeddings, labels = clustered()
    for factor in (2.0**100, 2.0**-100):
        for metric in (
            collapse.coding_rate_share,
            collapse.coding_rate_expansion,
            collapse.uniformity,
            collapse.effective_rank,
            collapse.rho_spectrum,
        ):
            assert metric(embeddings * factor) == pytest.approx(metric(embeddings), rel=1e-9)
        for metric in (
            collapse.intra,
            collapse.inter,
            collapse.alignment,
            collapse.coding_rate_compression,
            retrieval.recall_at_k,
            retrieval.map_at_r,
        ):
            assert metric(embeddings * factor, labels) == pytest.approx(metric(embeddings, labels), rel=1e-9)


@pytest.mark.parametrize("spread", [1e-2, 1e-3, 1e-4, 1e-6])
def test_distances_near_collapse_are_those_of_float64(spread):
    embeddings, labels = clustered()
    rows = (1 + spread * embeddings).numpy()
    units = rows.astype(np.longdouble) / np.sqrt((rows.astype(np.longdouble) ** 2).sum(1, keepdims=True))
    means = np.stack([rows[labels.numpy() == c].astype(np.longdouble).mean(0) for c in range(24)])
    means /= np.sqrt((means**2).sum(1, keepdims=True))

    def half_squares(x):
        """1 - cosine of all pairs of unit rows, by differences."""
        return np.concatenate([((x[i + 1 :] - x[i]) ** 2).sum(1) / 2 for i in range(len(x) - 1)])

    within = [half_squares(units[labels.numpy() == c]) for c in range(24)]
    intra, inter = float(np.mean([part.mean() for part in within])), float(half_squares(means).mean())
    assert collapse.intra(rows, labels) == pytest.approx(intra, rel=1e-6)
    assert collapse.inter(rows, labels) == pytest.approx(inter, rel=1e-6)
    assert collapse.intra_over_inter(rows, labels) == pytest.approx(intra / inter, rel=1e-6)
    assert collapse.alignment(rows, labels) == pytest.approx(2 * float(np.concatenate(within).mean()), rel=1e-6)
    expected = float(np.log1p(np.expm1(-4 * half_squares(units)).mean()))
    assert collapse.uniformity(rows) == pytest.approx(expected, rel=1e-6)


def test_zero_vectors_have_cosine_zero_and_equal_rows_no_distance():
    embeddings, labels = clustered()
    embeddings[:60:2] = 0
    rows = embeddings.double().numpy()
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(lengths > 0, lengths, 1)
    within = [1 - (rows[labels == c] @ rows[labels == c].T)[np.triu_indices(10, 1)].mean() for c in range(24)]
    assert collapse.intra(embeddings, labels) == pytest.approx(np.mean(within), rel=1e-9)
    equal = torch.full((240, 12), 0.37)
    assert [
        collapse.intra(equal, labels),
        collapse.inter(equal, labels),
        collapse.intra_over_inter(equal, labels),
        collapse.alignment(equal, labels),
        collapse.uniformity(equal),
    ] == [0, 0, 0, 0, 0]


@pytest.mark.parametrize("faiss", [True, False])
def test_kmeans_leaves_early_where_points_coincide(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(clustering, "have_faiss", lambda: False)
    library = "faiss.Kmeans" if faiss and search.have_faiss() else "sklearn.cluster.KMeans"
    calls = []
    monkeypatch.setattr(library, lambda *args, **more: calls.append(args) or 1 / 0)
    assert (clustering.kmeans(torch.full((500, 8), 0.3), 50) == 0).all()
    labels = torch.arange(500) % 7
    found = clustering.kmeans(torch.randn(7, 8)[labels], 50)  # seven points, each its own cluster
    assert clustering.nmi(labels, found) == pytest.approx(1) and calls == []
    with pytest.raises(ZeroDivisionError):
        clustering.kmeans(torch.randn(500, 8), 50)


@pytest.mark.parametrize("faiss", [True, False])
def test_kmeans_finds_clusters_of_collapsed_embeddings(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(clustering, "have_faiss", lambda: False)
    labels = torch.arange(400) % 4
    centres = torch.eye(4)[labels] + 0.05 * torch.randn(400, 4, generator=torch.Generator().manual_seed(0))
    expected = clustering.kmeans(centres, 4, seed=2, restarts=8)
    assert clustering.nmi(labels, expected) > 0.99
    for embeddings in (3 + 1e-4 * centres, 1e30 * centres, 1e-36 * centres, centres.double() * 1e-200):
        assert clustering.nmi(expected, clustering.kmeans(embeddings, 4, seed=2, restarts=8)) > 0.99


@pytest.mark.parametrize("faiss", [True, False])
def test_any_whole_number_is_a_seed(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setattr(clustering, "have_faiss", lambda: False)
    points = torch.randn(120, 4, generator=torch.Generator().manual_seed(1))
    for seed in (2**31, 2**32 + 5, 2**64 + 5, 10**30, -1, np.int64(7)):
        found = clustering.kmeans(points, 9, seed=seed)
        assert (found == clustering.kmeans(points, 9, seed=seed)).all()
        assert (found == clustering.kmeans(points, 9, seed=int(seed) % 2**31)).all()
    assert (clustering.kmeans(points, 9, seed=2**40 + 1) != clustering.kmeans(points, 9, seed=2**40 + 2)).any()
    for restarts in (0, -3, 10**22):
        with pytest.raises(ValueError, match=f"^--kmeans_restarts {restarts}: must be from 1"):
            clustering.kmeans(points, 9, restarts=restarts)


def test_recall_of_a_number_beyond_every_image():
    embeddings, alone = torch.randn(9, 3), torch.arange(9)
    for k in (8, 9, 2**62 - 1, 2**62, 2**63, 10**30):
        assert retrieval.recall_at_k(embeddings, alone, k) == 0
        assert retrieval.recall_at_k(embeddings, alone // 9, k) == 1
        values = evaluation.compute(embeddings, alone, [f"e_recall@{k}", f"mAP_{k}", f"c_mAP_{k}"])
        assert list(values) == [f"e_recall@{k}", f"mAP_{k}", f"c_mAP_{k}"] and set(values.values()) == {0}
    for backend in ("faiss", "torch", "ivf") if search.have_faiss() else ("torch",):
        crossed = evaluation.compute(
            embeddings,
            alone,
            ["e_recall@4611686018427387904"],
            search=backend,
            query_embeddings=embeddings[:2],
            query_labels=alone[:2] + 100,
        )
        assert crossed == {"e_recall@4611686018427387904": 0}
    with pytest.raises(ValueError, match="K must be at least 1"):
        retrieval.recall_at_k(embeddings, alone, [1, 0])


@pytest.mark.parametrize("least", [-(2**63), 2**63 - 24, 2**53, 0])
def test_labels_may_be_any_whole_number(least):
    embeddings, labels = clustered()
    expected = evaluation.compute(embeddings, labels, EVERY)
    for moved in (labels + least, (labels + least).numpy()):
        assert evaluation.compute(embeddings, moved, EVERY) == pytest.approx(expected, rel=1e-12)
    for dtype in (np.uint8, np.uint16, np.uint32, np.uint64, np.int32):
        assert evaluation.compute(embeddings, labels.numpy().astype(dtype), EVERY) == pytest.approx(expected, rel=1e-12)


def test_too_little_to_measure_is_one_line_that_names_the_flag():
    embeddings, labels = clustered()
    for bad, message in (
        (lambda: evaluation.compute(embeddings[:1], labels[:1], ["e_recall@1"]), "--evaluation_metrics: 1 image"),
        (
            lambda: evaluation.compute(embeddings, labels, ["rho_spectrum@100"]),
            "--evaluation_metrics rho_spectrum@100: the embeddings have only 12 singular values",
        ),
        (
            lambda: evaluation.check_names(["nmi", "rho_spectrum@-13"], 12),
            "--evaluation_metrics rho_spectrum@-13: --embed_dim 12 has only 12",
        ),
        (lambda: evaluation.compute(embeddings, labels, ["nmi"], restarts=0), "--kmeans_restarts 0: "),
    ):
        with pytest.raises(ValueError) as error:
            bad()
        assert str(error.value).startswith(message) and "\n" not in str(error.value)
    evaluation.check_names(["rho_spectrum@12", "rho_spectrum@-12", "e_recall@9999"], 12)


def test_command_says_what_is_wrong_with_its_own_flags(tmp_path, capsys, monkeypatch):
    embeddings, labels = clustered()
    path = str(tmp_path / "e.npz")
    np.savez(path, embeddings=embeddings.double() * 1e200, labels=labels)  # float64, and not squeezed into float32
    assert command.main([path, "--metrics", "e_recall@1", "nmi", "--seed", str(2**64 + 1), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == evaluation.compute(embeddings, labels, ["e_recall@1", "nmi"], seed=1)
    monkeypatch.setattr(search, "have_faiss", lambda: False)
    for arguments, message in (
        (["--restarts", "0"], "--restarts 0: must be from 1"),
        (["--metrics", "rho_spectrum@100"], "--metrics rho_spectrum@100: the embeddings have"),
        (["--metrics", "mAP@K"], "--metrics mAP@K: unknown"),
        (["--search", "faiss"], "--search faiss: needs faiss"),
    ):
        assert command.main([path, *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith(f"error: {message}") and err.count("\n") == 1
