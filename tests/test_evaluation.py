"""Metrics by name: against the published code's numbers, naive loops and pytorch-metric-learning."""

import functools
import logging
import re
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_tools import BACKENDS, EVERY, clustered

import evaluation
import main
from evaluation import clustering, retrieval

ALL = ["e_recall@1", "e_recall@8", "nmi", "f1", "mAP_1000", "mAP@R", "coding_rate@share"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_retrieval(metrics_case, backend):
    embeddings, labels = metrics_case["embeddings"], metrics_case["labels"]
    recalls = retrieval.recall_at_k(embeddings, labels, (1, 2, 4, 8, 10, 100), backend=backend)
    for k, value in recalls.items():
        assert value == pytest.approx(float(metrics_case[f"recall@{k}"]), abs=1e-12)
    assert retrieval.recall_at_k(embeddings, labels, 4) == recalls[4]
    values = evaluation.compute(embeddings, labels, ["mAP_1000", "e_recall@4"], search=backend)
    assert values["mAP_1000"] == pytest.approx(float(metrics_case["mAP@1000"]), rel=1e-6)
    assert values["e_recall@4"] == recalls[4]


def test_golden_clustering(metrics_case):
    labels, clusters = metrics_case["labels"], metrics_case["cluster_labels"]
    assert clustering.nmi(labels, clusters) == pytest.approx(float(metrics_case["nmi"]), rel=1e-6)
    assert clustering.f1(labels, clusters) == pytest.approx(float(metrics_case["f1"]), rel=1e-6)


def test_golden_collapse(metrics_case):
    names = ["rho_spectrum@1", "coding_rate@dis", "coding_rate@com", "coding_rate@delta"]
    values = evaluation.compute(metrics_case["embeddings"], metrics_case["labels"], names)
    golden = [float(metrics_case[name]) for name in ("rho_spectrum@1", "coding_rate_dis", "coding_rate_com")]
    assert list(values.values())[:3] == pytest.approx(golden, rel=1e-6)
    assert values["coding_rate@delta"] == pytest.approx(golden[1] - golden[2], rel=1e-6)


NAMES = ["e_recall@1", "e_recall@5", "e_recall@400", "mAP@R", "R-precision", "mAP_10", "mAP_lim", "mAP_c"]


def naive(queries, own, gallery, labels, with_query):
    """The metrics of NAMES by their definitions, a query at a time."""
    values = {name: [] for name in NAMES}
    for i, query in enumerate(queries):
        order = np.argsort(((gallery.astype(np.float64) - query) ** 2).sum(1), kind="stable")
        match = labels[order[order != i] if with_query else order] == own[i]
        precision = np.cumsum(match) / np.arange(1, len(match) + 1) * match
        r, total = match.sum(), match.sum() + with_query
        for name in NAMES:
            if name.startswith("e_recall@"):
                values[name].append(match[: int(name.split("@")[1])].any())
            elif name in ("mAP@R", "R-precision") and r:
                values[name].append((precision if name == "mAP@R" else match)[:r].sum() / r)
            elif name.startswith("mAP_") and total:
                values[name].append(precision[: {"mAP_10": 10, "mAP_lim": 1023, "mAP_c": total}[name]].sum() / total)
    return {name: np.mean(found) for name, found in values.items()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_retrieval_against_loops(backend, monkeypatch):
    monkeypatch.setattr(evaluation.search, "BLOCK_BYTES", 4 * 300 * 37)  # blocks of 37 queries
    x, y = clustered()
    expected = naive(x, y, x, y, 1)
    assert evaluation.compute(x, y, NAMES, search=backend) == pytest.approx(expected, rel=1e-9)
    assert retrieval.recall_at_k(x, y, np.int64(5), backend) == pytest.approx(expected["e_recall@5"])
    assert retrieval.map_at_r(torch.as_tensor(x), y.tolist(), backend) == pytest.approx(expected["mAP@R"])
    for name in NAMES:  # the depth that one asks for does not change another
        assert evaluation.compute(x, y, [name], search=backend) == pytest.approx({name: expected[name]}, rel=1e-9)
    queries = dict(query_embeddings=x[:90], query_labels=y[:90])
    crossed = evaluation.compute(x[90:], y[90:], NAMES, search=backend, **queries)
    assert crossed == pytest.approx(naive(x[:90], y[:90], x[90:], y[90:], 0), rel=1e-9)


def test_against_pml_with_and_without_gallery():
    pytest.importorskip("faiss")  # theirs needs it
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    wanted = ("mean_average_precision_at_r", "r_precision", "precision_at_1")
    theirs = calculator.AccuracyCalculator(include=wanted, k="max_bin_count")
    x, y = (torch.as_tensor(a) for a in clustered(seed=1))
    other = torch.as_tensor(clustered(n=40, seed=1)[0]), y[:40] % 9
    own, crossed = theirs.get_accuracy(x, y), theirs.get_accuracy(other[0], other[1], x, y, ref_includes_query=False)
    names, queries = ["mAP@R", "R-precision", "e_recall@1"], dict(query_embeddings=other[0], query_labels=other[1])
    ours, found = evaluation.compute(x, y, names), evaluation.compute(x, y, names, **queries)
    own["precision_at_1"] *= float((retrieval.class_sizes(y, y) > 1).double().mean())  # theirs without single images
    assert list(ours.values()) == pytest.approx([own[name] for name in wanted], rel=1e-6)
    assert list(found.values()) == pytest.approx([crossed[name] for name in wanted], rel=1e-6)


def test_cosine_names_are_those_of_normalised_embeddings():
    embeddings, labels = clustered()
    stretched = embeddings * np.linspace(0.1, 30, len(labels), dtype=np.float32)[:, None]
    rows = stretched / np.linalg.norm(stretched, axis=1, keepdims=True)
    pairs = {"c_recall@1": "e_recall@1", "c_nmi": "nmi", "c_f1": "f1", "c_mAP_1000": "mAP_1000"}
    cosine = evaluation.compute(stretched, labels, ["e_recall@1", *pairs])
    plain = evaluation.compute(rows, labels, pairs.values())
    assert [cosine[name] for name in pairs] == pytest.approx(list(plain.values()))
    assert cosine["c_recall@1"] != cosine["e_recall@1"]


def test_faiss_that_cannot_be_loaded_is_as_if_not_installed(monkeypatch, tmp_path, caplog):
    embeddings, labels = clustered()
    expected = evaluation.compute(embeddings, labels, ALL)
    (tmp_path / "faiss.py").write_text("raise SystemError('built for another NumPy')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faiss", raising=False)
    monkeypatch.setattr(evaluation.search, "faiss", functools.cache(evaluation.search.faiss.__wrapped__))
    with caplog.at_level(logging.WARNING, logger="antico"):
        for _ in range(2):
            assert evaluation.compute(embeddings, labels, ALL) == expected
            with pytest.raises(ValueError, match="--search faiss: "):
                evaluation.compute(embeddings, labels, ALL, search="faiss")
    assert [record.message.count("built for another NumPy") for record in caplog.records] == [1]


def test_a_metric_is_added_as_the_readme_says(monkeypatch):
    """Its function and its line as they stand there, and then it has a name everywhere."""
    text = Path(evaluation.__file__).with_name("README.md").read_text(encoding="utf-8")
    function, line = re.findall(r"```python\n(# evaluation/.*?)```", text, re.S)
    embeddings, labels = clustered()
    exec(function, space := {})
    monkeypatch.setattr(retrieval, "precision", space["precision"], raising=False)
    for name, entry in eval("{" + line + "}", vars(evaluation.metrics)).items():
        monkeypatch.setitem(evaluation.METRICS, name, entry)
    evaluation.check_names(["precision@10"])
    values = evaluation.compute(embeddings, labels, ["precision@1", "e_recall@1", "precision@10"])
    assert values["precision@1"] == values["e_recall@1"]
    order = np.argsort(((embeddings[:, None] - embeddings) ** 2).sum(2), axis=1, kind="stable")[:, 1:11]
    assert values["precision@10"] == pytest.approx((labels[order] == labels[:, None]).mean())
    assert "  precision@K " in main.listing()


@pytest.mark.parametrize(
    "name, embeddings, labels",
    [
        ("one class", torch.randn(12, 4), torch.zeros(12)),
        ("single images", torch.randn(12, 4), torch.arange(12)),
        ("all equal", torch.ones(12, 4), torch.arange(12) // 3),
        ("some zero vectors", torch.cat([torch.zeros(3, 4), torch.randn(9, 4)]), torch.arange(12) // 3),
        ("all zero", torch.zeros(12, 4), torch.arange(12) // 3),
        ("two images", torch.randn(2, 4), torch.zeros(2)),
        ("many small classes", torch.randn(41, 4), torch.arange(41) // 1.9),
    ],
)
def test_every_metric_has_a_value_on_degenerate_input(name, embeddings, labels):
    names = [*EVERY, "e_recall@9999999999999"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = evaluation.compute(embeddings, labels, names)
    assert list(values) == names and all(np.isfinite(v) for v in values.values())
    if name == "one class":
        assert all(values[m] == pytest.approx(1) for m in ("e_recall@1", "mAP@R", "R-precision", "c_recall@1", "nmi"))
    if name == "single images":
        nothing = ("e_recall@1", "e_recall@9999999999999", "mAP@R", "R-precision", "dists@intra", "alignment")
        assert all(values[m] == 0 for m in nothing)
    if name == "all equal":
        assert [values[m] for m in ("dists@intra", "dists@inter", "uniformity", "alignment")] == [0, 0, 0, 0]
    if name in ("all equal", "all zero"):
        assert values["effective_rank"] == pytest.approx(1, abs=1e-5)


def test_what_cannot_be_measured_is_one_line():
    good, labels = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    bad = good.clone()
    bad[2, 1], bad[3, 0] = float("nan"), float("inf")
    for embeddings, more, message in (
        (bad, {}, "2 of 6 embeddings are not finite"),
        (good, dict(query_embeddings=bad, query_labels=labels), "2 of 6 embeddings are not finite"),
        (good[:1], dict(labels=labels[:1]), r"at least 2, got \(1, 4\)"),
        (good, dict(labels=labels[:5]), r"got \(6, 4\) and \(5,\)"),
        (good, dict(query_embeddings=good), "go together"),
        (good, dict(query_embeddings=good[:, :3], query_labels=labels), "of the gallery's 4 dimensions"),
        (good, dict(names=["rho_spectrum@-5"]), "rho_spectrum@-5: .* only 4 singular values"),
        (good, dict(search="ivf"), "--search ivf"),
    ):
        with pytest.raises(evaluation.Unmeasurable if "finite" in message else ValueError, match=message):
            evaluation.compute(embeddings, **dict(labels=labels, names=["e_recall@1"]) | more)
    with pytest.raises(ValueError, match="K must be at least 1"):
        retrieval.recall_at_k(good, labels, [1, 0])


@pytest.mark.parametrize("name, near", [("e_recal@10", "e_recall@K"), ("e_recall@0", "e_recall@K"), ("map@r", "mAP@R")])
def test_unknown_metric(name, near):
    with pytest.raises(ValueError, match=rf"^--evaluation_metrics {name}: unknown \(did you mean {near}\?\); known: "):
        evaluation.check_names(["nmi", name])
    evaluation.check_names([*ALL, "rho_spectrum@12", "rho_spectrum@-12", "e_recall@9999"], 12)
