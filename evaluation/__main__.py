"""Metrics of saved embeddings, without a model: python -m evaluation FILE.npz --metrics e_recall@1 mAP@R [--json]

FILE.npz holds `embeddings` (n, d) and `labels` (n,); with `query_embeddings` and `query_labels`, query against gallery.
"""

import argparse
import json
import math
import sys

import numpy as np

import evaluation

DEFAULT = "e_recall@1 e_recall@2 e_recall@4 e_recall@8 mAP@R R-precision nmi f1 coding_rate@share".split()
ARRAYS = ("embeddings", "labels", "query_embeddings", "query_labels")


def load(path):
    """The arrays of a file by name; ValueError, one line, where it does not hold what is needed."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file.files}
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except Exception as problem:  # numpy has many for a damaged file
        reason = (str(problem).splitlines() or [type(problem).__name__])[0]
        raise ValueError(f"{path}: cannot be read as npz of plain arrays ({reason})") from None
    missing = [name for name in ("embeddings", "labels") if name not in arrays]
    if missing or ("query_embeddings" in arrays) != ("query_labels" in arrays):
        raise ValueError(
            f"{path}: {missing[0] if missing else 'one of query_embeddings, query_labels'} is missing; "
            "expected embeddings (n, d), labels (n,), and for query/gallery query_embeddings, query_labels"
        )
    for name in arrays:
        dtype, whole = arrays[name].dtype, "labels" in name
        if not np.issubdtype(dtype, np.integer if whole else np.number):
            raise ValueError(f"{path}: {name} are {dtype}, expected {'whole numbers' if whole else 'numbers'}")
        arrays[name] = arrays[name].astype(np.int64 if whole else np.float64 if dtype.itemsize >= 8 else np.float32)
    return arrays


def main(argv=None):
    class OneLine(argparse.ArgumentParser):
        def error(self, message):
            self.exit(2, f"error: {message} (python -m evaluation --help)\n")

    parser = OneLine(prog="python -m evaluation", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="npz of embeddings (n, d) and labels (n,)")
    parser.add_argument("--metrics", nargs="+", default=DEFAULT, help="metrics by name, see evaluation/__init__.py")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    parser.add_argument(
        "--search",
        default="auto",
        choices=["auto", "faiss", "torch", "ivf"],
        help="search back-end; ivf is approximate",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of k-means")
    parser.add_argument("--restarts", type=int, default=1, help="starts of k-means (1 or more): the best counts")
    given = parser.parse_args(argv)
    try:
        evaluation.check_names(given.metrics)
        evaluation.search.check_backend(given.search)
        evaluation.clustering.check_restarts(given.restarts)
        values = evaluation.compute(
            **load(given.file), names=given.metrics, seed=given.seed, search=given.search, restarts=given.restarts
        )
        broken = [name for name, value in values.items() if not math.isfinite(value)]
        if broken:
            raise ValueError(f"{given.file}: {broken[0]} is not finite")
    except ValueError as problem:
        flags = str(problem).replace("--evaluation_metrics", "--metrics").replace("--kmeans_restarts", "--restarts")
        print(f"error: {flags}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps(values))
    else:
        mark = " (approximate search)" if given.search == "ivf" else ""
        print("\n".join(f"{name:24s} {value:.6f}{mark}" for name, value in values.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
