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
    "save_embeddings", "save_all_embeddings", "retrieval", "clustering", "collapse", "search",
]  # fmt: skip


def parts_of(split):
    """{prefix of the arrays' names: the images}: of a split with .query and .gallery (In-Shop) there are two."""
    return {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}


def embed_split(model, split, opt):
    """The arrays that `compute` takes, by name: embeddings and labels, of a query/gallery split also the queries'."""
    arrays = {}
    for prefix, part in parts_of(split).items():
        embedded = embed(model, part, batch_size=max(opt.bs, 256), workers=opt.kernels)
        arrays[f"{prefix}embeddings"], arrays[f"{prefix}labels"] = embedded
    return arrays


def evaluate(model, split, opt, also=()):
    """Embed `split` with `model` and compute opt.evaluation_metrics, and `also`: {name: float}.

    A split with .query and .gallery is evaluated query against gallery. Several processes embed a share each, the first
    measures, and all have its numbers, or its error.
    """
    arrays, names = embed_split(model, split, opt), list(dict.fromkeys([*opt.evaluation_metrics, *also]))
    how = dict(seed=opt.seed, on_cpu=opt.evaluate_on_cpu, search=opt.search, restarts=opt.kmeans_restarts)
    return distributed.on_first(lambda: compute(**arrays, names=names, **how))


def save_embeddings(model, split, path, opt, name="test", first_label=0):
    """Write an npz file for python -m evaluation: embed_split's arrays, the images' paths, and what they are of.

    name: of the split. Labels are counted from first_label, the number of classes of the splits before it, so that no
    two splits share one; class_names[label - first_label] is the name of a class.
    """
    arrays = {key: values.cpu().numpy() for key, values in embed_split(model, split, opt).items()}
    arrays |= dict(dataset=opt.dataset, split=name, first_label=first_label)
    for prefix, part in parts_of(split).items():
        paths = [str(path) for path in part.paths or ()]
        arrays[f"{prefix}paths"] = np.array([os.path.abspath(path) if os.path.exists(path) else path for path in paths])
        arrays[f"{prefix}labels"] = arrays[f"{prefix}labels"] + first_label
        arrays["class_names"] = np.array(part.class_names)  # a query and a gallery have the same
    distributed.on_first(lambda: write_whole(path, lambda file: np.savez(file, **arrays), "wb"))


def save_all_embeddings(model, evaluated, opt, folder, n_classes):
    """embeddings_<split>.npz of each of the splits {name: split}; labels go on after the n_classes training classes."""
    first = 0 if "train" in evaluated else n_classes
    for name, split in evaluated.items():
        path = os.path.join(folder, f"embeddings_{name}.npz")
        save_embeddings(model, split, path, opt, name, first)
        first += len(getattr(split, "gallery", split).class_names)
        distributed.print_once(f"written: {path}")
