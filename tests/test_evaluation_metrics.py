"""The published metrics beyond Recall@K: loops, pytorch-metric-learning, golden numbers, query/gallery, the command."""

import json
from types import SimpleNamespace

import evaluation_tools
import numpy as np
import pytest
import torch
from evaluation_tools import options
from scipy.spatial.distance import cdist
from scipy.stats import entropy

import evaluation
from evaluation import __main__ as command
from evaluation import collapse, retrieval


def data(n=90, d=7, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.concatenate([generator.integers(0, 9, n - 2), [50, 51]])  # two classes of one image
    return (generator.normal(size=(n, d)) + generator.normal(size=(60, d))[labels]).astype(np.float32), labels


def test_golden(metrics_case):
    names = ["rho_spectrum@1", "coding_rate@dis", "coding_rate@com", "coding_rate@delta"]
    values = evaluation.compute(metrics_case["embeddings"], metrics_case["labels"], names)
    assert values["rho_spectrum@1"] == pytest.approx(float(metrics_case["rho_spectrum@1"]), rel=1e-6)
    assert values["coding_rate@dis"] == pytest.approx(float(metrics_case["coding_rate_dis"]), rel=1e-6)
    assert values["coding_rate@com"] == pytest.approx(float(metrics_case["coding_rate_com"]), rel=1e-6)
    assert values["coding_rate@delta"] == pytest.approx(values["coding_rate@dis"] - values["coding_rate@com"], rel=1e-9)


def test_spectrum_against_scipy():
    embeddings, _ = data()
    values = np.linalg.svd(embeddings.astype(np.float64), compute_uv=False)
    for k in (1, 2, 5):
        share, uniform = values[k - 1 :] / values[k - 1 :].sum(), np.full(8 - k, 1 / (8 - k))
        assert collapse.rho_spectrum(embeddings, k) == pytest.approx(entropy(uniform, share), rel=1e-6)
        assert collapse.rho_spectrum(embeddings, -k) == pytest.approx(entropy(share, uniform), rel=1e-6)
    assert collapse.rho_spectrum(embeddings, 0) == collapse.rho_spectrum(embeddings, 1)
    assert collapse.effective_rank(embeddings) == pytest.approx(np.exp(entropy(values / values.sum())), rel=1e-6)
    with pytest.raises(ValueError, match="only 7 singular values"):
        collapse.rho_spectrum(embeddings, 8)


def test_distances_uniformity_alignment_against_loops(monkeypatch):
    embeddings, labels = data()
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
    assert collapse.uniformity(embeddings) == pytest.approx(np.log(np.exp(-2 * squared).mean()), rel=1e-6)
    monkeypatch.setattr(collapse, "PAIR_BYTES", 8 * len(rows) * 7)  # blocks of seven rows
    assert collapse.uniformity(embeddings) == pytest.approx(np.log(np.exp(-2 * squared).mean()), rel=1e-6)


def naive_maps(order, labels, label, size):
    """mAP_lim and mAP_c of one query by their definition."""
    match = labels[order] == label
    terms = [match[: j + 1].mean() if match[j] else 0 for j in range(len(match))]
    return sum(terms[:1023]) / size, sum(terms[:size]) / size


def test_published_maps_against_loops():
    embeddings, labels = data()
    expected = []
    for i, distance in enumerate(cdist(embeddings, embeddings)):
        order = np.array([j for j in np.argsort(distance, kind="stable") if j != i])
        expected.append(naive_maps(order, labels, labels[i], (labels == labels[i]).sum()))
    values = evaluation.compute(embeddings, labels, ["mAP_lim", "mAP_c"])
    assert list(values.values()) == pytest.approx(list(np.mean(expected, 0)), rel=1e-9)


def test_against_pml_with_and_without_gallery():
    pytest.importorskip("faiss")  # theirs needs it
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    wanted = ("mean_average_precision_at_r", "r_precision", "precision_at_1")
    theirs = calculator.AccuracyCalculator(include=wanted, k="max_bin_count")
    x, y = (torch.as_tensor(a) for a in data(seed=1))
    other = torch.as_tensor(data(n=40, seed=1)[0]), y[:40] % 9
    own, crossed = theirs.get_accuracy(x, y), theirs.get_accuracy(other[0], other[1], x, y, ref_includes_query=False)
    ours = evaluation.compute(x, y, ["mAP@R", "R-precision"])
    found = evaluation.compute(
        x, y, ["mAP@R", "R-precision", "e_recall@1"], query_embeddings=other[0], query_labels=other[1]
    )
    assert ours["mAP@R"] == pytest.approx(own[wanted[0]], rel=1e-6) and ours["R-precision"] == pytest.approx(
        own[wanted[1]], rel=1e-6
    )
    assert [found[name] for name in ("mAP@R", "R-precision", "e_recall@1")] == pytest.approx(
        [crossed[name] for name in wanted], rel=1e-6
    )
    assert retrieval.r_precision(x, y) == ours["R-precision"]


def test_gallery_keeps_the_querys_copy_and_misses_unknown_classes():
    gallery, labels = torch.randn(6, 4), torch.tensor([0, 0, 1, 1, 2, 2])
    values = evaluation.compute(
        gallery, labels, ["e_recall@1", "mAP@R"], query_embeddings=gallery[:2], query_labels=torch.tensor([0, 9])
    )
    assert (
        values["e_recall@1"] == 0.5 and values["mAP@R"] >= 0.5
    )  # its copy is found; class 9 is a miss, and no part of mAP@R
    with pytest.raises(ValueError, match="go together"):
        evaluation.compute(gallery, labels, ["e_recall@1"], query_embeddings=gallery)
    with pytest.raises(ValueError, match="3 dimensions, the gallery 4"):
        evaluation.compute(gallery, labels, ["e_recall@1"], query_embeddings=gallery[:, :3], query_labels=labels)


def test_cosine_names_are_those_of_normalised_embeddings():
    embeddings, labels = data()
    stretched = embeddings * np.linspace(0.1, 30, len(labels), dtype=np.float32)[:, None]
    rows = stretched / np.linalg.norm(stretched, axis=1, keepdims=True)
    pairs = {"c_recall@1": "e_recall@1", "c_nmi": "nmi", "c_f1": "f1", "c_mAP_1000": "mAP_1000"}
    cosine, plain = (evaluation.compute(e, labels, names) for e, names in ((stretched, pairs), (rows, pairs.values())))
    assert list(cosine.values()) == pytest.approx(list(plain.values()))
    assert cosine["c_recall@1"] != evaluation.compute(stretched, labels, ["e_recall@1"])["e_recall@1"]


def test_an_even_spectrum_has_no_minus_zero():
    for k in (1, -1, 8, -8):
        assert f"{collapse.rho_spectrum(torch.eye(8), k):.3f}" == "0.000"


def test_degenerate():
    ones, one_class = torch.ones(6, 3), torch.zeros(6, dtype=torch.long)
    values = evaluation.compute(
        ones, one_class, ["dists@intra", "dists@inter", "uniformity", "alignment", "effective_rank", "R-precision"]
    )
    assert list(values.values()) == pytest.approx([0, 0, 0, 0, 1, 1], abs=1e-5)
    alone = evaluation.compute(torch.randn(6, 3), torch.arange(6), ["dists@intra", "alignment", "R-precision"])
    assert list(alone.values()) == [0, 0, 0]
    with pytest.raises(ValueError, match="all embeddings are zero"):
        evaluation.compute(torch.zeros(6, 3), one_class, ["effective_rank"])


def test_evaluate_takes_a_query_gallery_split(monkeypatch):
    sets = {"query": data(n=20, seed=2), "gallery": data(seed=2)}
    monkeypatch.setattr(evaluation, "embed", lambda model, split, **_: tuple(map(torch.as_tensor, sets[split])))
    opt = options("e_recall@1")
    split = SimpleNamespace(query="query", gallery="gallery")
    nearest = cdist(sets["query"][0], sets["gallery"][0]).argmin(1)
    assert (
        evaluation.evaluate(None, split, opt)["e_recall@1"] == (sets["gallery"][1][nearest] == sets["query"][1]).mean()
    )


def test_command(tmp_path, capsys):
    embeddings, labels = data()
    path = tmp_path / "e.npz"
    np.savez(path, embeddings=embeddings, labels=labels)
    assert command.main([str(path), "--metrics", "e_recall@1", "mAP@R", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == evaluation.compute(embeddings, labels, ["e_recall@1", "mAP@R"])
    np.savez(tmp_path / "bad.npz", embeddings=embeddings)
    np.savez(tmp_path / "complex.npz", embeddings=embeddings + 1j, labels=labels)
    for arguments, message in (
        ([str(tmp_path / "no.npz")], "no such file"),
        ([str(tmp_path / "bad.npz")], "labels is missing"),
        ([str(tmp_path / "complex.npz")], "complex.npz: embeddings are complex64, expected real numbers"),
        ([str(path), "--metrics", "nope"], "unknown"),
    ):
        assert command.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and message in err and err.count("\n") == 1


def test_nmi_is_that_of_pml_on_the_same_clusters():
    pytest.importorskip("faiss")  # theirs needs it
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = data(n=200)
    clusters = evaluation.clustering.kmeans(embeddings, len(np.unique(labels)), seed=1)
    theirs = calculator.AccuracyCalculator(
        include=("NMI",), k="max_bin_count", kmeans_func=lambda x, n: torch.as_tensor(clusters)
    )
    expected = theirs.get_accuracy(torch.as_tensor(embeddings), torch.as_tensor(labels))["NMI"]
    assert evaluation.clustering.nmi(labels, clusters) == pytest.approx(expected, rel=1e-6)
    assert evaluation.compute(embeddings, labels, ["nmi"], seed=1)["nmi"] == pytest.approx(expected, rel=1e-6)


def test_restarts_do_not_make_the_clustering_worse():
    points = torch.randn(300, 8)

    def spread(restarts):
        clusters = torch.as_tensor(evaluation.clustering.kmeans(points, 12, seed=0, restarts=restarts))
        return sum(
            float((points[clusters == c] - points[clusters == c].mean(0)).square().sum()) for c in clusters.unique()
        )

    assert spread(8) <= spread(1) * 1.0001


SPECTRAL = [*evaluation_tools.SPECTRAL, "rho_spectrum@-1", "rho_spectrum@0"]
EVERY = [*(name for name in evaluation_tools.EVERY if name not in SPECTRAL), "e_recall@999"]


@pytest.mark.parametrize(
    "name, embeddings, labels",
    [
        ("one class", torch.randn(12, 4), torch.zeros(12)),
        ("single images", torch.randn(12, 4), torch.arange(12)),
        ("all equal", torch.ones(12, 4), torch.arange(12) // 3),
        ("some zero vectors", torch.cat([torch.zeros(3, 4), torch.randn(9, 4)]), torch.arange(12) // 3),
        ("all zero", torch.zeros(12, 4), torch.arange(12) // 3),
        ("two images", torch.randn(2, 4), torch.zeros(2)),
    ],
)
def test_every_metric_has_a_value_on_degenerate_input(name, embeddings, labels):
    values = evaluation.compute(embeddings, labels.long(), EVERY)
    assert list(values) == EVERY and all(np.isfinite(v) for v in values.values())
    if name == "one class":
        assert all(values[m] == pytest.approx(1) for m in ("e_recall@1", "mAP@R", "R-precision", "c_recall@1", "nmi"))
    if name == "single images":
        assert all(
            values[m] == 0 for m in ("e_recall@1", "e_recall@999", "mAP@R", "R-precision", "dists@intra", "alignment")
        )
    if name in ("all equal", "all zero"):  # ties by index: image 0 finds image 1, images from 3 on find image 0
        assert values["e_recall@1"] == pytest.approx(3 / 12) and values["uniformity"] == pytest.approx(0, abs=1e-6)
    if name != "all zero":
        assert all(np.isfinite(v) for v in evaluation.compute(embeddings, labels.long(), SPECTRAL).values())


def test_what_cannot_be_measured_is_one_line():
    good, labels = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    bad = good.clone()
    bad[2, 1] = float("nan")
    for arguments in (
        dict(embeddings=bad, labels=labels),
        dict(embeddings=good, labels=labels, query_embeddings=bad, query_labels=labels),
    ):
        with pytest.raises(evaluation.Unmeasurable, match="1 of 6 embeddings are not finite"):
            evaluation.compute(**arguments, names=["e_recall@1"])


@pytest.mark.parametrize("size", [1e-308, 1e-310, 1e-318])
def test_embeddings_below_the_smallest_normal_number_are_measured(size):
    """Their unit of length has no finite inverse; so far down the numbers are those of what rounding has left."""
    x, labels = np.random.default_rng(0).standard_normal((60, 8)) * size, np.repeat(np.arange(15), 4)
    assert evaluation.compute(x, labels, ["e_recall@1"]) == evaluation.compute(x * 2.0**600, labels, ["e_recall@1"])
