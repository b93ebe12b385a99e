"""The metrics against the published code's numbers, naive loops and pytorch-metric-learning."""

import os
import sys
import warnings

import numpy as np
import pytest
import torch

import evaluation
import main
from evaluation import clustering, collapse, retrieval, search

BACKENDS = ["faiss", "torch"] if search.have_faiss() else ["torch"]
ALL = ["e_recall@1", "e_recall@8", "nmi", "f1", "mAP_1000", "mAP@R", "coding_rate@share"]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def data(n=300, d=8, seed=0):
    """Imbalanced classes, some of a single image."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([generator.integers(0, 20, n - 5) ** 2 // 20, np.arange(100, 105)])
    return (generator.normal(size=(n, d)) + generator.normal(size=(200, d))[labels]).astype(np.float32), labels


@pytest.mark.parametrize("backend", BACKENDS)
def test_golden_retrieval(metrics_case, backend):
    embeddings, labels = metrics_case["embeddings"], metrics_case["labels"]
    recalls = retrieval.recall_at_k(embeddings, labels, (1, 2, 4, 8, 10, 100), backend=backend)
    for k, value in recalls.items():
        assert value == pytest.approx(float(metrics_case[f"recall@{k}"]), abs=1e-12)
    assert retrieval.recall_at_k(embeddings, labels, 4) == recalls[4]
    assert retrieval.map_at_k(embeddings, labels, 1000, backend=backend) == pytest.approx(
        float(metrics_case["mAP@1000"]), rel=1e-6
    )


def test_golden_clustering(metrics_case):
    labels, clusters = metrics_case["labels"], metrics_case["cluster_labels"]
    assert clustering.nmi(labels, clusters) == pytest.approx(float(metrics_case["nmi"]), rel=1e-6)
    assert clustering.f1(labels, clusters) == pytest.approx(float(metrics_case["f1"]), rel=1e-6)


def test_retrieval_against_loops():
    embeddings, labels = data()
    hits, average, published = {1: [], 5: []}, [], []
    for i in range(len(labels)):
        order = [j for j in np.argsort(((embeddings - embeddings[i]) ** 2).sum(1), kind="stable") if j != i]
        match = labels[order] == labels[i]
        for k in hits:
            hits[k].append(match[:k].any())
        r = int((labels == labels[i]).sum()) - 1
        published.append(sum(match[: j + 1].mean() for j in range(10) if match[j]) / (r + 1))
        if r:
            average.append(sum(match[: j + 1].mean() for j in range(r) if match[j]) / r)
    assert retrieval.recall_at_k(embeddings, labels, (1, 5)) == pytest.approx({k: np.mean(v) for k, v in hits.items()})
    assert retrieval.map_at_r(embeddings, labels) == pytest.approx(np.mean(average), rel=1e-9)
    assert retrieval.map_at_k(embeddings, labels, 10) == pytest.approx(np.mean(published), rel=1e-9)
    assert retrieval.recall_at_k(embeddings, labels, np.int64(5)) == pytest.approx(np.mean(hits[5]))


def test_retrieval_against_pml():
    pytest.importorskip("faiss")  # theirs needs it
    calculator = pytest.importorskip("pytorch_metric_learning.utils.accuracy_calculator")
    embeddings, labels = (torch.as_tensor(x) for x in data(seed=3))
    theirs = calculator.AccuracyCalculator(
        include=("mean_average_precision_at_r", "precision_at_1"), k="max_bin_count"
    ).get_accuracy(embeddings, labels)
    assert retrieval.map_at_r(embeddings, labels) == pytest.approx(theirs["mean_average_precision_at_r"], rel=1e-6)
    alone = int(
        (retrieval.class_sizes(labels) == 0).sum()
    )  # they leave these out of precision at 1, as a recall they are misses
    assert retrieval.recall_at_k(embeddings, labels, 1) == pytest.approx(
        theirs["precision_at_1"] * (len(labels) - alone) / len(labels), rel=1e-6
    )


def test_f1_against_a_loop():
    generator = np.random.default_rng(1)
    labels, clusters = generator.integers(0, 6, 60), generator.integers(0, 9, 60)
    same = [(labels[i] == labels[j], clusters[i] == clusters[j]) for i in range(60) for j in range(i)]
    tp, fp, fn = (sum(pair == kind for pair in same) for kind in ((True, True), (False, True), (True, False)))
    assert clustering.f1(labels, clusters) == pytest.approx(2 * tp / (2 * tp + fp + fn))


def test_nmi_against_its_formula():
    labels, clusters = np.array([0, 0, 0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 2, 3, 3, 4, 5])

    def entropy(*parts):
        share = np.unique(np.stack(parts), axis=1, return_counts=True)[1] / len(labels)
        return -(share * np.log(share)).sum()

    separate = entropy(labels) + entropy(
        clusters
    )  # the arithmetic mean, which the golden case cannot tell from the others
    assert clustering.nmi(labels, clusters) == pytest.approx(
        2 * (separate - entropy(labels, clusters)) / separate, rel=1e-9
    )


def test_many_small_classes_are_quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluation.compute(torch.randn(41, 4), torch.arange(41) // 1.9, ALL)


def test_duplicates_are_found_and_the_query_itself_is_not():
    embeddings = torch.randn(20, 6).repeat_interleave(3, 0)  # each image three times: the query is anywhere among them
    labels = torch.arange(20).repeat_interleave(3)
    for backend in BACKENDS:
        found = search.nearest_neighbours(embeddings, embeddings, 2, exclude_self=True, backend=backend)
        assert not (found == torch.arange(60)[:, None]).any()
        assert (labels[found] == labels[:, None]).all()
    assert retrieval.recall_at_k(embeddings, labels, 1) == 1


def test_faiss_and_torch_find_the_same():
    pytest.importorskip("faiss")
    embeddings = torch.randn(500, 16)
    assert torch.equal(
        *(
            search.nearest_neighbours(embeddings, embeddings, 20, exclude_self=True, backend=b)
            for b in ("faiss", "torch")
        )
    )
    tied = embeddings[:100].repeat(5, 1)  # the order among copies is the back-end's, the distances are not
    near = [search.nearest_neighbours(tied, tied, 12, exclude_self=True, backend=b) for b in ("faiss", "torch")]
    assert torch.allclose(*((tied[:, None] - tied[found]).norm(dim=2) for found in near), atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_do_not_depend_on_the_origin_or_the_unit(backend):
    embeddings = torch.randn(400, 32)
    distances = torch.cdist(embeddings.double(), embeddings.double()).fill_diagonal_(float("inf"))
    nearest = distances.topk(4, largest=False).indices
    for changed in (embeddings, embeddings + 100, embeddings * 1e25, embeddings * 1e-25):
        found = search.nearest_neighbours(changed, changed, 4, exclude_self=True, backend=backend)
        assert (found == nearest).float().mean() > 0.999  # + 100 itself rounds the embeddings


@pytest.mark.parametrize("backend", BACKENDS)
def test_query_against_gallery(backend):
    queries, gallery = torch.randn(30, 6, requires_grad=True), torch.randn(50, 6)
    expected = torch.cdist(queries, gallery).argsort(1)
    assert torch.equal(search.nearest_neighbours(queries, gallery, 7, backend=backend), expected[:, :7])
    assert torch.equal(search.nearest_neighbours(queries, gallery, 999, backend=backend), expected)
    with pytest.raises(ValueError, match="exclude_self needs the gallery as queries"):
        search.nearest_neighbours(queries, gallery, 7, exclude_self=True, backend=backend)


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


def test_one_search_and_one_clustering_serve_all_and_none_is_made_unasked(monkeypatch):
    calls = []
    for module, name in ((retrieval, "rank"), (clustering, "kmeans")):
        real = getattr(module, name)
        monkeypatch.setattr(
            module,
            name,
            lambda *args, real=real, name=name, **more: (calls.append((name, args[2:4])), real(*args, **more))[1],
        )
    embeddings, labels = data()
    evaluation.compute(embeddings, labels, ["coding_rate@share"])
    assert calls == []
    evaluation.compute(embeddings, labels, ["e_recall@1", "e_recall@200", "mAP@R", "mAP_50"])
    assert calls == [("rank", (68, 200))]  # the largest class, the deepest recall
    evaluation.compute(embeddings, labels, ["nmi", "f1"])
    assert [name for name, _ in calls] == ["rank", "kmeans"]


def test_a_metric_is_added_as_the_readme_says(monkeypatch):
    """Its function and its line as they stand there, and then it has a name everywhere."""
    with open(os.path.join(os.path.dirname(evaluation.__file__), "README.md"), encoding="utf-8") as file:
        blocks = [block.split("```")[0] for block in file.read().split("```python\n")[1:]]
    function, line = (
        next(b for b in blocks if b.startswith(f"# evaluation/{name}.py")) for name in ("retrieval", "metrics")
    )
    embeddings, labels = data()
    with pytest.raises(ValueError, match="precision@10: unknown"):
        evaluation.compute(embeddings, labels, ["precision@10"])
    space = {}
    exec(function, space)
    monkeypatch.setattr(retrieval, "precision_of", space["precision_of"], raising=False)
    for name, entry in eval("{" + line + "}", vars(evaluation.metrics)).items():
        monkeypatch.setitem(evaluation.METRICS, name, entry)
    evaluation.check_names(["precision@10"])
    values = evaluation.compute(embeddings, labels, ["precision@1", "e_recall@1", "precision@10"])
    assert values["precision@1"] == values["e_recall@1"]
    order = np.argsort(((embeddings[:, None] - embeddings) ** 2).sum(2), axis=1, kind="stable")[:, 1:11]
    assert values["precision@10"] == pytest.approx((labels[order] == labels[:, None]).mean())
    lines = main.listing().splitlines()
    assert "  precision@K " in main.listing() and "  rho_spectrum@K " in main.listing()
    metrics = evaluation.METRICS.items()
    begins = {line.index(m.about) for line in lines for name, m in metrics if line.startswith(f"  {name} ")}
    assert len(begins) == 1  # one column, whatever the longest name


@pytest.mark.parametrize("faiss", [True, False])
def test_kmeans(monkeypatch, faiss):
    if not faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    labels = np.arange(400) % 10
    points = torch.as_tensor(np.eye(10, dtype=np.float32)[labels] * 10) + 0.1 * torch.randn(400, 10)
    clusters = clustering.kmeans(points, 10, seed=1)
    assert clusters.shape == (400,) and clustering.nmi(labels, clusters) > 0.8  # random start: not always 1
    assert (clusters == clustering.kmeans(points, 10, seed=1)).all() and (
        clusters != clustering.kmeans(points, 10, seed=2)
    ).any()


@pytest.mark.parametrize("faiss", [True, False])
def test_kmeans_of_a_collapsed_model_is_quiet(monkeypatch, capfd, faiss):
    if not faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clusters = clustering.kmeans(torch.randn(5, 4).repeat(20, 1), 10)
    assert len(np.unique(clusters)) <= 10 and "".join(capfd.readouterr()) == ""


def test_coding_rate_share():
    rows = torch.nn.functional.normalize(torch.randn(40, 6), dim=1).double()
    scale = 6 / (40 * 0.5)
    rate = torch.logdet(torch.eye(6).double() + scale * rows.T @ rows) / 2
    largest = 6 / 2 * np.log(1 + scale * 40 / 6)
    assert collapse.coding_rate_share(7 * rows.float()) == pytest.approx(float(rate / largest), rel=1e-5)
    assert 1 - 1e-6 < collapse.coding_rate_share(torch.eye(8).repeat(3, 1)) <= 1


def test_degenerate_input():
    separated, labels = torch.eye(4).repeat_interleave(2, 0), torch.arange(4).repeat_interleave(2)
    assert all(v == 1 for v in evaluation.compute(separated, labels, ["e_recall@1", "e_recall@999", "mAP@R"]).values())
    single = evaluation.compute(torch.randn(5, 3), torch.arange(5), ["e_recall@1", "mAP@R"])
    assert single == {"e_recall@1": 0, "mAP@R": 0}
    assert (
        evaluation.compute(torch.ones(50, 8), torch.arange(50) // 5, ["coding_rate@share"])["coding_rate@share"] < 0.4
    )
    with pytest.raises(ValueError, match="2 of 5 embeddings are not finite"):
        evaluation.compute(
            torch.tensor([[1.0], [float("nan")], [2.0], [float("inf")], [3.0]]), torch.zeros(5), ["e_recall@1"]
        )
    with pytest.raises(ValueError, match="--evaluation_metrics: 1 image"):
        evaluation.compute(torch.ones(1, 2), torch.zeros(1), ["e_recall@1"])


@pytest.mark.parametrize(
    "name, near",
    [("e_recal@10", "e_recall@10"), ("e_recall@0", "e_recall@K"), ("map@r", "mAP@R"), ("e_recall@1x", "e_recall@1")],
)
def test_unknown_metric(name, near):
    with pytest.raises(ValueError) as error:
        evaluation.check_names(["nmi", name])
    assert str(error.value).startswith(
        f"--evaluation_metrics {name}: unknown (did you mean {near}?); known: e_recall@K, mAP@R"
    )
    assert "\n" not in str(error.value)
    evaluation.check_names(ALL)
