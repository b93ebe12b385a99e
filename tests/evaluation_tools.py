"""Names of metrics, and the flags that evaluation.evaluate reads, for the tests of evaluation."""

from types import SimpleNamespace

from evaluation import METRICS

EVERY = [name.replace("@K", "@1").replace("_K", "_1000") for name in METRICS]
SPECTRAL = [name for name, metric in zip(EVERY, METRICS.values()) if metric.needs == "spectrum"]  # not of zeros alone


def options(*metrics):
    return SimpleNamespace(
        evaluation_metrics=list(metrics), seed=0, bs=8, kernels=0, evaluate_on_cpu=False, search="auto",
        kmeans_restarts=1,
    )  # fmt: skip
