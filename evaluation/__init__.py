"""Embed a split, search it, and return a flat {metric name: float}."""

import os

import numpy as np

from evaluation import clustering, collapse, retrieval, search
from evaluation.embedding import embed
from evaluation.metrics import METRICS, Metric, check_names, compute
from evaluation.search import Unmeasurable
from utilities import distributed
from utilities.files import write_whole

__all__ = [
    "METRICS", "Metric", "Unmeasurable", "check_names", "compute", "embed", "embed_split", "evaluate",
    "save_embeddings", "retrieval", "clustering", "collapse", "search",
]  # fmt: skip


def embed_split(model, split, opt):
    """The arrays that `compute` takes, by name: embeddings and labels, of a query/gallery split also the queries'."""
    how = dict(batch_size=max(opt.bs, 256), workers=opt.kernels)
    parts = {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}
    arrays = {}
    for prefix, part in parts.items():
        arrays[f"{prefix}embeddings"], arrays[f"{prefix}labels"] = embed(model, part, **how)
    return arrays


def save_embeddings(model, split, path, opt):
    """Write embed_split's arrays and the images' paths to an npz file, for python -m evaluation."""
    parts = {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}
    arrays = {name: values.cpu().numpy() for name, values in embed_split(model, split, opt).items()}
    for prefix, part in parts.items():
        paths = [str(path) for path in part.paths or ()]
        arrays[f"{prefix}paths"] = np.array([os.path.abspath(path) if os.path.exists(path) else path for path in paths])
    distributed.on_first(lambda: write_whole(path, lambda file: np.savez(file, **arrays), "wb"))


def evaluate(model, split, opt):
    """Embed `split` with `model` and compute opt.evaluation_metrics: flat {name: float}. The model's mode is restored.

    A split with .query and .gallery (In-Shop) is evaluated query against gallery. Several processes embed a share each,
    the first measures, and all have its numbers, or its error.
    """
    arrays = embed_split(model, split, opt)
    how = dict(seed=opt.seed, on_cpu=opt.evaluate_on_cpu, search=opt.search, restarts=opt.kmeans_restarts)
    return distributed.on_first(lambda: compute(**arrays, names=opt.evaluation_metrics, **how))
