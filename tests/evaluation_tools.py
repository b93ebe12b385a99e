"""Names of metrics, data, and the flags that evaluation.evaluate reads, for the tests of evaluation."""

from types import SimpleNamespace

import numpy as np

from evaluation import METRICS, search

BACKENDS = ["faiss", "torch"] if search.faiss() else ["torch"]
EVERY = [name.replace("@K", "@1").replace("_K", "_1000") for name in METRICS]


def clustered(n=300, d=8, seed=0):
    """Imbalanced classes, five of a single image: float32 embeddings and labels, numpy arrays."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([generator.integers(0, 20, n - 5) ** 2 // 20, np.arange(100, 105)])
    return (generator.normal(size=(n, d)) + generator.normal(size=(200, d))[labels]).astype(np.float32), labels


def options(*metrics):
    return SimpleNamespace(
        evaluation_metrics=list(metrics), dataset="points", seed=0, bs=8, kernels=0, evaluate_on_cpu=False,
        search="auto", kmeans_restarts=1,
    )  # fmt: skip
