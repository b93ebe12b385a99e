"""Embed a split, search it, and return a flat {metric name: float}.

To add a metric: its function in the file of its family, and one line in METRICS.
"""

import difflib
import re
from functools import cached_property
from typing import Callable, NamedTuple

import numpy as np
import torch

from evaluation import clustering, collapse, retrieval, search
from evaluation.embedding import embed
from evaluation.search import Unmeasurable
from utilities import distributed
from utilities.files import write_whole

__all__ = [
    "METRICS",
    "Unmeasurable",
    "check_names",
    "compute",
    "compute_opt",
    "embed",
    "embed_split",
    "evaluate",
    "save_embeddings",
    "retrieval",
    "clustering",
    "collapse",
    "search",
]


class Shared:
    """What several metrics need, made once and only if one asks: the ranking of each image's neighbours, a clustering.

    With query_embeddings and query_labels the search is of them in `embeddings`, the gallery; all other metrics take
    queries and gallery together.
    """

    def __init__(
        self, embeddings, labels, seed, on_cpu, query_embeddings=None, query_labels=None, search="auto", restarts=1
    ):
        self.gallery, self.gallery_labels = retrieval.as_tensors(
            embeddings, labels, least=1 if query_embeddings is not None else 2
        )
        self.embeddings, self.labels = self.gallery, self.gallery_labels
        self.queries = self.query_labels = None
        if query_embeddings is not None:
            self.queries, self.query_labels = retrieval.as_tensors(query_embeddings, query_labels, least=1)
            if self.queries.shape[1] != self.gallery.shape[1]:
                raise ValueError(
                    f"evaluation: queries have {self.queries.shape[1]} dimensions, the gallery {self.gallery.shape[1]}"
                )
            self.embeddings = torch.cat([self.queries, self.gallery])
            self.labels = torch.cat([self.query_labels, self.gallery_labels])
        self.seed, self.on_cpu, self.search, self.restarts, self.depth, self.deepest = (
            seed,
            on_cpu,
            search,
            restarts,
            1,
            0,
        )

    def cosine(self):
        """The same of the L2-normalised embeddings."""
        gallery, queries = (None if x is None else collapse.unit(x).to(x.dtype) for x in (self.gallery, self.queries))
        return Shared(
            gallery, self.gallery_labels, self.seed, self.on_cpu, queries, self.query_labels, self.search, self.restarts
        )

    @cached_property
    def sizes(self):
        """For each query, the number of images of its class that can be found."""
        return (
            retrieval.class_sizes(self.labels)
            if self.queries is None
            else retrieval.gallery_sizes(self.query_labels, self.gallery_labels)
        )

    @cached_property
    def published_sizes(self):
        """What the published mAPs divide by: the class with the query in it; in query/gallery the query is no part of it."""
        return self.sizes + 1 if self.queries is None else self.sizes

    @cached_property
    def ranked(self):
        return retrieval.rank(
            self.gallery,
            self.gallery_labels,
            self.depth,
            self.deepest,
            query_embeddings=self.queries,
            query_labels=self.query_labels,
            backend=self.search,
            on_cpu=self.on_cpu,
        )

    @property
    def matches(self):
        """Whether each of the `depth` nearest has the query's label: bool (n, depth)."""
        return self.ranked[0]

    @property
    def first(self):
        """Rank of the nearest match (n,), as far as `deepest`."""
        return self.ranked[1]

    @cached_property
    def clusters(self):
        return clustering.kmeans(self.embeddings, len(self.labels.unique()), self.seed, self.on_cpu, self.restarts)

    @cached_property
    def classes(self):
        return self.labels.cpu().numpy()

    @cached_property
    def spectrum(self):
        return collapse.singular_values(self.embeddings)


class Metric(NamedTuple):
    about: str
    of: Callable  # (Shared, the numbers in the name) → float in 0..1
    depth: Callable = lambda s, *numbers: 0  # likewise → how many of the nearest images' matches it looks at
    deepest: Callable = lambda s, *numbers: 0  # likewise → how far down it wants to know of the first match


# the pattern of a name, each group of digits in which is a number → the metric
METRICS = {
    r"e_recall@(\d+)": Metric(
        "Recall@K of the embeddings (Jégou et al., PAMI 2011)",
        lambda s, k: retrieval.recall_of(s.first, k),
        deepest=lambda s, k: k,
    ),
    r"mAP@R": Metric(
        "mean average precision at R (Musgrave et al., ECCV 2020)",
        lambda s: retrieval.map_at_r_of(s.matches, s.sizes),
        lambda s: int(s.sizes.max()),
    ),
    r"R-precision": Metric(
        "share of matches among the R nearest (Musgrave et al., ECCV 2020)",
        lambda s: retrieval.r_precision_of(s.matches, s.sizes),
        lambda s: int(s.sizes.max()),
    ),
    r"mAP_(\d+)": Metric(
        "mean average precision over the K nearest, as published (Roth et al., ICML 2020)",
        lambda s, k: retrieval.average_precision(s.matches[:, :k], s.published_sizes),
        lambda s, k: k,
    ),
    r"mAP_lim": Metric(
        "mAP_1023, the published faiss-gpu's limit (Roth et al., ICML 2020)",
        lambda s: retrieval.average_precision(s.matches[:, :1023], s.published_sizes),
        lambda s: 1023,
    ),
    r"mAP_c": Metric(
        "mean average precision over as many as the class has images, as published (Roth et al., ICML 2020)",
        lambda s: retrieval.map_at_r_of(s.matches, s.published_sizes),
        lambda s: int(s.published_sizes.max()),
    ),
    r"nmi": Metric(
        "normalised mutual information with k-means clusters (Manning et al. 2008, 16.3)",
        lambda s: clustering.nmi(s.classes, s.clusters),
    ),
    r"f1": Metric(
        "F1 over pairs of images with k-means clusters (Manning et al. 2008, 16.3)",
        lambda s: clustering.f1(s.classes, s.clusters),
    ),
    r"dists@intra": Metric(
        "mean cosine distance within classes (Roth et al., ICML 2020)", lambda s: collapse.intra(s.embeddings, s.labels)
    ),
    r"dists@inter": Metric(
        "mean cosine distance between class means (Roth et al., ICML 2020)",
        lambda s: collapse.inter(s.embeddings, s.labels),
    ),
    r"dists@intra_over_inter": Metric(
        "their ratio (Roth et al., ICML 2020)", lambda s: collapse.intra_over_inter(s.embeddings, s.labels)
    ),
    r"rho_spectrum@(-?\d+)": Metric(
        "divergence of the singular values from uniform (Roth et al., ICML 2020)",
        lambda s, k: collapse.rho_of(s.spectrum, k),
    ),
    r"coding_rate@share": Metric(
        "coding rate as a share of its maximum (Yu et al., NeurIPS 2020); near 0 is collapse",
        lambda s: collapse.coding_rate_share(s.embeddings),
    ),
    r"coding_rate@dis": Metric(
        "coding rate of all, nats (Yu et al., NeurIPS 2020)", lambda s: collapse.coding_rate_expansion(s.embeddings)
    ),
    r"coding_rate@com": Metric(
        "coding rate of the classes, nats (Yu et al., NeurIPS 2020)",
        lambda s: collapse.coding_rate_compression(s.embeddings, s.labels),
    ),
    r"coding_rate@delta": Metric(
        "dis - com (Yu et al., NeurIPS 2020)",
        lambda s: (
            collapse.coding_rate_expansion(s.embeddings) - collapse.coding_rate_compression(s.embeddings, s.labels)
        ),
    ),
    r"effective_rank": Metric(
        "exp(entropy of the singular values) (Roy & Vetterli 2007)", lambda s: collapse.effective_rank_of(s.spectrum)
    ),
    r"uniformity": Metric(
        "log mean exp(-2 |x - y|²) (Wang & Isola, ICML 2020)", lambda s: collapse.uniformity(s.embeddings)
    ),
    r"alignment": Metric(
        "mean |x - y|² within classes (Wang & Isola, ICML 2020)", lambda s: collapse.alignment(s.embeddings, s.labels)
    ),
}
COSINE = {
    "c_recall@": "e_recall@",
    "c_nmi": "nmi",
    "c_f1": "f1",
    "c_mAP_": "mAP_",
}  # c_ name → the metric of the L2-normalised embeddings


def plain(name):
    """(name without c_, whether it had one): c_recall@1 → e_recall@1."""
    for prefix, stem in COSINE.items():
        if name.startswith(prefix):
            return stem + name[len(prefix) :], True
    return name, False


def find(name):
    """The metric of a name and the numbers in the name; ValueError, one line, for an unknown name."""
    for pattern, metric in METRICS.items():
        match = re.fullmatch(pattern, plain(name)[0])
        if match and (pattern.startswith("rho") or all(int(number) > 0 for number in match.groups())):
            limit = 1 << 62  # of torch's whole numbers; no data set has as many images
            return metric, [max(-limit, min(int(number), limit)) for number in match.groups()]
    known = [re.sub(r"\(.*\)", "K", pattern) for pattern in METRICS] + ["c_recall@K", "c_nmi", "c_f1", "c_mAP_K"]
    near = difflib.get_close_matches(re.sub(r"\d+", "K", name), known, 1, 0.4)
    number = re.search(r"[1-9]\d*", name)
    hint = f" (did you mean {near[0].replace('K', number[0] if number else 'K')}?)" if near else ""
    raise ValueError(f"--evaluation_metrics {name}: unknown{hint}; known: {', '.join(known)}, K from 1 up")


def check_names(names, embed_dim=None):
    """ValueError, one line, if --evaluation_metrics names something unknown, or that embed_dim dimensions lack."""
    for name in names:
        _, numbers = find(name)
        if embed_dim is not None and name.startswith("rho_spectrum@") and abs(numbers[0]) > embed_dim:
            raise ValueError(
                f"--evaluation_metrics {name}: --embed_dim {embed_dim} has only {embed_dim} singular values"
            )


def compute(
    embeddings, labels, names, seed=0, on_cpu=False, query_embeddings=None, query_labels=None, search="auto", restarts=1
):
    """The metrics `names` of embeddings (n, d) and labels (n,): {name: float}, in that order.

    e_recall@K, nmi, f1 and the mAPs take the embeddings as they come, with Euclidean distance; their c_ names
    (c_recall@K, c_nmi, c_f1, c_mAP_K) are the same of the L2-normalised embeddings.
    With query_embeddings (q, d) and query_labels (q,) the embeddings are the gallery and no self-match is removed.
    Only what they need is computed: one neighbour search, as deep as the deepest, and one clustering serve them all
    (one more each for c_ names). search: a back-end of search.nearest_neighbours; restarts: of k-means.
    No metric depends on the unit of length: embeddings of any size that their dtype holds are measured alike.
    Raises ValueError, one line, for unknown names, fewer than two images or embeddings that are not finite.
    """
    if (query_embeddings is None) != (query_labels is None):
        raise ValueError("evaluation: query_embeddings and query_labels go together; give both")
    metrics = {name: (*find(name), plain(name)[1]) for name in names}
    euclidean = Shared(embeddings, labels, seed, on_cpu, query_embeddings, query_labels, search, restarts)
    shares = {c: euclidean.cosine() if c else euclidean for c in {cosine for *_, cosine in metrics.values()}}
    for c, shared in shares.items():
        asked = [(metric, numbers) for metric, numbers, cosine in metrics.values() if cosine == c]
        shared.depth = max([1] + [metric.depth(shared, *numbers) for metric, numbers in asked])
        shared.deepest = max(metric.deepest(shared, *numbers) for metric, numbers in asked)
    return {name: metric.of(shares[cosine], *numbers) for name, (metric, numbers, cosine) in metrics.items()}


def embed_split(model, split, opt):
    """The arrays that `compute` takes, by name: embeddings and labels, of a query/gallery split also those of the queries."""
    how = dict(batch_size=max(opt.bs, 256), workers=opt.kernels)
    if not hasattr(split, "query"):
        return dict(zip(("embeddings", "labels"), embed(model, split, **how)))
    return {
        **dict(zip(("embeddings", "labels"), embed(model, split.gallery, **how))),
        **dict(zip(("query_embeddings", "query_labels"), embed(model, split.query, **how))),
    }


def save_embeddings(model, split, path, opt):
    """Write embed_split's arrays and the images' paths to an npz file, for python -m evaluation."""
    parts = {"": split.gallery, "query_": split.query} if hasattr(split, "query") else {"": split}
    arrays = {name: values.cpu().numpy() for name, values in embed_split(model, split, opt).items()}
    arrays.update(
        {f"{prefix}paths": np.array([str(path) for path in part.paths or ()]) for prefix, part in parts.items()}
    )
    distributed.on_first(lambda: write_whole(path, lambda file: np.savez(file, **arrays), "wb"))


def compute_opt(arrays, opt):
    """`compute` of embed_split's arrays with the flags' settings."""
    return compute(
        **arrays,
        names=opt.evaluation_metrics,
        seed=opt.seed,
        on_cpu=opt.evaluate_on_cpu,
        search=opt.search,
        restarts=opt.kmeans_restarts,
    )


def evaluate(model, split, opt):
    """Embed `split` with `model` and compute opt.evaluation_metrics: flat {name: float}. The model's mode is restored.

    A split with .query and .gallery (In-Shop) is evaluated query against gallery. Several processes embed a share each,
    the first measures, and all have its numbers, or its error.
    """
    arrays = embed_split(model, split, opt)
    return distributed.on_first(lambda: compute_opt(arrays, opt))
