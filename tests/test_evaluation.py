"""The metrics against the published code's numbers, naive loops and pytorch-metric-learning."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import evaluation
from evaluation import clustering, retrieval, search

ALL = ["e_recall@1", "e_recall@8", "nmi", "f1", "mAP_1000", "mAP@R", "coding_rate@share"]


def data(n=300, d=8, seed=0):
    """Imbalanced classes, some of a single image."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([generator.integers(0, 20, n - 5) ** 2 // 20, np.arange(100, 105)])
    return (generator.normal(size=(n, d)) + generator.normal(size=(200, d))[labels]).astype(np.float32), labels


@pytest.mark.parametrize("backend", ["faiss", "torch"])
def test_golden_retrieval(metrics_case, backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    embeddings, labels = metrics_case["embeddings"], metrics_case["labels"]
    recalls = retrieval.recall_at_k(embeddings, labels, (1, 2, 4, 8, 10, 100), backend=backend)
    for k, value in recalls.items():
        assert value == pytest.approx(float(metrics_case[f"recall@{k}"]), abs=1e-12)
    assert retrieval.recall_at_k(embeddings, labels, 4) == recalls[4]
    assert retrieval.map_at_k(embeddings, labels, 1000, backend=backend) == pytest.approx(float(metrics_case["mAP@1000"]), rel=1e-6)


def test_golden_clustering(metrics_case):
    labels, clusters = metrics_case["labels"], metrics_case["cluster_labels"]
    assert clustering.nmi(labels, clusters) == pytest.approx(float(metrics_case["nmi"]), rel=1e-6)
    assert clustering.f1(labels, clusters) == pytest.approx(float(metrics_case["f1"]), rel=1e-6)


def test_retrieval_against_loops():
    embeddings, labels = data()
    hits, average = {1: [], 5: []}, []
    for i in range(len(labels)):
        order = [j for j in np.argsort(((embeddings - embeddings[i]) ** 2).sum(1), kind="stable") if j != i]
        match = labels[order] == labels[i]
        for k in hits:
            hits[k].append(match[:k].any())
        r = int((labels == labels[i]).sum()) - 1
        if r:
            average.append(sum(match[: j + 1].mean() for j in range(r) if match[j]) / r)
    assert retrieval.recall_at_k(embeddings, labels, (1, 5)) == pytest.approx({k: np.mean(v) for k, v in hits.items()})
    assert retrieval.map_at_r(embeddings, labels) == pytest.approx(np.mean(average), rel=1e-9)


def test_retrieval_against_pml():
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = (torch.as_tensor(x) for x in data(seed=3))
    theirs = calculator.AccuracyCalculator(include=("mean_average_precision_at_r", "precision_at_1"), k="max_bin_count").get_accuracy(embeddings, labels)
    assert retrieval.map_at_r(embeddings, labels) == pytest.approx(theirs["mean_average_precision_at_r"], rel=1e-6)
    alone = int((retrieval.class_sizes(labels) == 0).sum())  # they leave these out of precision at 1, as a recall they are misses
    assert retrieval.recall_at_k(embeddings, labels, 1) == pytest.approx(theirs["precision_at_1"] * (len(labels) - alone) / len(labels), rel=1e-6)


def test_f1_against_a_loop():
    generator = np.random.default_rng(1)
    labels, clusters = generator.integers(0, 6, 60), generator.integers(0, 9, 60)
    same = [(labels[i] == labels[j], clusters[i] == clusters[j]) for i in range(60) for j in range(i)]
    tp, fp, fn = (sum(pair == kind for pair in same) for kind in ((True, True), (False, True), (True, False)))
    assert clustering.f1(labels, clusters) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_duplicates_are_found_and_the_query_itself_is_not():
    embeddings = torch.randn(20, 6).repeat_interleave(3, 0)  # each image three times: the query is anywhere among them
    labels = torch.arange(20).repeat_interleave(3)
    for backend in ("faiss", "torch") if search.have_faiss() else ("torch",):
        found = search.nearest_neighbours(embeddings, embeddings, 2, exclude_self=True, backend=backend)
        assert not (found == torch.arange(60)[:, None]).any()
        assert (labels[found] == labels[:, None]).all()
    assert retrieval.recall_at_k(embeddings, labels, 1) == 1


def test_faiss_and_torch_find_the_same():
    pytest.importorskip("faiss")
    embeddings = torch.randn(500, 16)
    assert torch.equal(*(search.nearest_neighbours(embeddings, embeddings, 20, exclude_self=True, backend=b) for b in ("faiss", "torch")))


def test_blocks_do_not_change_what_is_found(monkeypatch):
    queries, gallery = torch.randn(50, 4), torch.randn(70, 4)
    whole = search.nearest_neighbours(queries, gallery, 5, backend="torch")
    monkeypatch.setattr(search, "BLOCK_BYTES", 4 * 70 * 7)
    assert torch.equal(whole, search.nearest_neighbours(queries, gallery, 5, backend="torch"))
    assert torch.equal(whole, torch.cdist(queries, gallery).topk(5, largest=False).indices)


def test_without_faiss(monkeypatch):
    embeddings, labels = data()
    with_faiss = evaluation.compute(embeddings, labels, ALL)
    monkeypatch.setitem(sys.modules, "faiss", None)
    assert not search.have_faiss()
    without = evaluation.compute(embeddings, labels, ALL)
    for name in ALL:
        assert without[name] == pytest.approx(with_faiss[name], abs=0.1 if name in ("nmi", "f1") else 1e-9)


def test_compute_gives_what_was_asked_for_and_the_same_twice():
    embeddings, labels = data()
    first = evaluation.compute(embeddings, labels, ALL, seed=3)
    assert list(first) == ALL and first == evaluation.compute(embeddings, labels, ALL, seed=3)
    assert all(isinstance(v, float) and 0 <= v <= 1 for v in first.values())
    assert first["mAP@R"] == pytest.approx(retrieval.map_at_r(embeddings, labels))
    assert first["mAP_1000"] == pytest.approx(retrieval.map_at_k(embeddings, labels, 1000))
    assert list(evaluation.compute(embeddings, labels, ["nmi"])) == ["nmi"]


def test_degenerate_input():
    separated, labels = torch.eye(4).repeat_interleave(2, 0), torch.arange(4).repeat_interleave(2)
    assert all(v == 1 for v in evaluation.compute(separated, labels, ["e_recall@1", "e_recall@999", "mAP@R"]).values())
    single = evaluation.compute(torch.randn(5, 3), torch.arange(5), ["e_recall@1", "mAP@R"])
    assert single == {"e_recall@1": 0, "mAP@R": 0}
    assert evaluation.compute(torch.ones(50, 8), torch.arange(50) // 5, ["coding_rate@share"])["coding_rate@share"] < 0.4
    with pytest.raises(ValueError, match="2 of 5 embeddings are not finite"):
        evaluation.compute(torch.tensor([[1.0], [float("nan")], [2.0], [float("inf")], [3.0]]), torch.zeros(5), ["e_recall@1"])
    with pytest.raises(ValueError, match="n > 1"):
        evaluation.compute(torch.ones(1, 2), torch.zeros(1), ["e_recall@1"])


@pytest.mark.parametrize("name", ["e_recal@1", "e_recall@0", "recall"])
def test_unknown_metric(name):
    with pytest.raises(ValueError, match=f"--evaluation_metrics {name}: unknown.*known: e_recall@1"):
        evaluation.check_names(["nmi", name])


class Points(torch.utils.data.Dataset):
    def __init__(self, n):
        self.images, self.labels = torch.randint(0, 256, (n, 3, 4, 4), dtype=torch.uint8), torch.arange(n) // 2

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return self.images[i], int(self.labels[i])


def test_evaluate_embeds_in_order_and_restores_the_mode():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.seen = torch.nn.Linear(48, 8), []

        def forward(self, images):
            self.seen.append(self.training)
            return self.linear(images.flatten(1).float())

    model, split = Flat(), Points(601)
    opt = SimpleNamespace(evaluation_metrics=["e_recall@1", "nmi"], seed=0, bs=8, kernels=0, evaluate_on_cpu=False)
    before = torch.get_rng_state()
    model.train()
    metrics = evaluation.evaluate(model, split, opt)
    assert model.training and set(model.seen) == {False} and torch.equal(before, torch.get_rng_state())
    embeddings, labels = evaluation.embed(model, split, 100)
    assert torch.equal(labels, split.labels) and not embeddings.requires_grad
    assert torch.allclose(embeddings, model.linear(split.images.flatten(1).float()), atol=1e-4)
    assert metrics == evaluation.compute(embeddings, labels, ["e_recall@1", "nmi"])
