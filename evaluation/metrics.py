"""Every metric by name, and the computation of any of them from embeddings and labels.

To add one: a function in the file of its family, and a line in METRICS.
"""

import re
from functools import cached_property
from typing import Callable, NamedTuple

import torch

from evaluation import clustering, collapse, retrieval
from utilities.registry import near

LARGEST = 1 << 62  # of the numbers in names: no data set has as many images


class Metric(NamedTuple):
    function: Callable  # of what it needs, and of K if its name has one, to a float
    needs: str  # attributes of Embedded, in the order of the function's arguments
    about: str  # for --list: what it is, and its source
    depth: int | str = 0  # how many nearest images `matches` or `first_match` must reach: a number, "K", "R" or "R + 1"
    cosine: bool = False  # of the L2-normalised embeddings
    signed: bool = False  # K may be 0 or negative


METRICS = {
    "e_recall@K": Metric(retrieval.recall_of, "first_match", depth="K",
        about="Recall@K of the embeddings (Jégou et al., PAMI 2011)"),
    "mAP@R": Metric(retrieval.map_at_r_of, "matches class_sizes", depth="R",
        about="mean average precision at R (Musgrave et al., ECCV 2020)"),
    "R-precision": Metric(retrieval.r_precision_of, "matches class_sizes", depth="R",
        about="share of matches among the R nearest (Musgrave et al., ECCV 2020)"),
    "mAP_K": Metric(retrieval.map_at_k_of, "matches published_sizes", depth="K",
        about="mean average precision over the K nearest, as published (Roth et al., ICML 2020)"),
    "mAP_lim": Metric(retrieval.map_lim_of, "matches published_sizes", depth=1023,
        about="mAP_1023, the published faiss-gpu's limit (Roth et al., ICML 2020)"),
    "mAP_c": Metric(retrieval.map_at_r_of, "matches published_sizes", depth="R + 1",
        about="mean average precision over as many as the class has images, as published (Roth et al., ICML 2020)"),
    "nmi": Metric(clustering.nmi, "labels clusters",
        about="normalised mutual information with k-means clusters (Manning et al. 2008, 16.3)"),
    "f1": Metric(clustering.f1, "labels clusters",
        about="F1 over pairs of images with k-means clusters (Manning et al. 2008, 16.3)"),
    "dists@intra": Metric(collapse.intra, "embeddings labels",
        about="mean cosine distance within classes (Roth et al., ICML 2020)"),
    "dists@inter": Metric(collapse.inter, "embeddings labels",
        about="mean cosine distance between class means (Roth et al., ICML 2020)"),
    "dists@intra_over_inter": Metric(collapse.intra_over_inter, "embeddings labels",
        about="their ratio (Roth et al., ICML 2020)"),
    "rho_spectrum@K": Metric(collapse.rho_of, "spectrum", signed=True,
        about="divergence of the singular values from uniform (Roth et al., ICML 2020)"),
    "coding_rate@share": Metric(collapse.coding_rate_share, "embeddings",
        about="coding rate as a share of its maximum (Yu et al., NeurIPS 2020); near 0 is collapse"),
    "coding_rate@dis": Metric(collapse.coding_rate_expansion, "embeddings",
        about="coding rate of all, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@com": Metric(collapse.coding_rate_compression, "embeddings labels",
        about="coding rate of the classes, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@delta": Metric(collapse.coding_rate_reduction, "embeddings labels",
        about="dis - com (Yu et al., NeurIPS 2020)"),
    "effective_rank": Metric(collapse.effective_rank_of, "spectrum",
        about="exp(entropy of the singular values) (Roy & Vetterli 2007)"),
    "uniformity": Metric(collapse.uniformity, "embeddings", "log mean exp(-2 |x - y|²) (Wang & Isola, ICML 2020)"),
    "alignment": Metric(collapse.alignment, "embeddings labels",
        about="mean |x - y|² within classes (Wang & Isola, ICML 2020)"),
}  # fmt: skip
for c_name, plain in {"c_recall@K": "e_recall@K", "c_nmi": "nmi", "c_f1": "f1", "c_mAP_K": "mAP_K"}.items():
    METRICS[c_name] = METRICS[plain]._replace(about=f"{plain} of the L2-normalised embeddings", cosine=True)


def find(name):
    """The Metric of a name and its number for K, or None. Raises ValueError, one line, for an unknown name."""
    number = re.search(r"(?<=[@_])-?\d+$", name)
    row, k = (name, None) if number is None else (name[: number.start()] + "K", int(number[0]))
    metric = METRICS.get(row)
    if metric and row.endswith("K") == (k is not None) and (k is None or k > 0 or metric.signed):
        return metric, k if k is None else max(-LARGEST, min(k, LARGEST))
    number = re.search(r"[1-9]\d*", name)
    hint = near(name, [row.replace("K", number[0] if number else "K") for row in METRICS])
    raise ValueError(f"--evaluation_metrics {name}: unknown{hint}; known: {', '.join(METRICS)}, K from 1 up")


def check_names(names, embed_dim=None):
    """ValueError, one line, if --evaluation_metrics names something unknown, or that embed_dim dimensions lack."""
    for name in names:
        metric, k = find(name)
        if embed_dim is not None and metric is METRICS["rho_spectrum@K"] and abs(k) > embed_dim:
            raise ValueError(
                f"--evaluation_metrics {name}: --embed_dim {embed_dim} has only {embed_dim} singular values"
            )


class Embedded:
    """Embeddings, labels, and what several metrics need of them, made once and only if one asks.

    With queries the search is of them in the gallery; all other metrics take queries and gallery together.
    """

    def __init__(self, gallery, queries, how_to_search, how_to_cluster):
        """Two pairs of embeddings (n, d) and labels (n,), or None for queries; arguments of `rank` and of `kmeans`."""
        self.gallery = retrieval.as_tensors(*gallery, least=1 if queries else 2)
        self.queries = retrieval.as_tensors(*queries, least=1) if queries else None
        self.embeddings, self.labels = self.gallery
        if queries:
            of_queries, of_gallery = self.queries[0].shape[1], self.gallery[0].shape[1]
            if of_queries != of_gallery:
                raise ValueError(f"evaluation: queries have {of_queries} dimensions, the gallery {of_gallery}")
            self.embeddings, self.labels = (torch.cat(pair) for pair in zip(self.queries, self.gallery))
        self.how_to_search, self.how_to_cluster = how_to_search, how_to_cluster
        self.depth = {"matches": 1, "first_match": 0}  # how many nearest images they look at

    def normalised(self):
        """The same of the L2-normalised embeddings."""
        sets = [s and (collapse.unit(s[0]).to(s[0].dtype), s[1]) for s in (self.gallery, self.queries)]
        return Embedded(*sets, self.how_to_search, self.how_to_cluster)

    def look_as_deep_as(self, metric, k):
        """Let the one search reach what a metric needs."""
        for need in self.depth.keys() & metric.needs.split():
            r = int(self.class_sizes.max())
            self.depth[need] = max(self.depth[need], {"K": k, "R": r, "R + 1": r + 1}.get(metric.depth, metric.depth))

    @cached_property
    def class_sizes(self):
        """For each query, the number of images of its class that can be found: (n,)."""
        if self.queries:
            return retrieval.gallery_sizes(self.queries[1], self.gallery[1])
        return retrieval.class_sizes(self.labels)

    @property
    def published_sizes(self):
        """What the published mAPs divide by: the class with the query in it; in query/gallery the query is no part."""
        return self.class_sizes if self.queries else self.class_sizes + 1

    @cached_property
    def ranked(self):
        queries = self.queries or (None, None)
        return retrieval.rank(*self.gallery, *self.depth.values(), *queries, **self.how_to_search)

    @property
    def matches(self):
        """Whether each of a query's nearest images has its label: bool (n, depth)."""
        return self.ranked[0]

    @property
    def first_match(self):
        """Rank of each query's nearest match: (n,), from 1, beyond any K where it lies too deep."""
        return self.ranked[1]

    @cached_property
    def clusters(self):
        """Cluster of each image, of as many as there are classes: (n,)."""
        return clustering.kmeans(self.embeddings, len(self.labels.unique()), **self.how_to_cluster)

    @cached_property
    def spectrum(self):
        """Singular values of the embeddings, largest first: (min(n, d),)."""
        return collapse.singular_values(self.embeddings)


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
    asked = {name: find(name) for name in names}
    queries = None if query_embeddings is None else (query_embeddings, query_labels)
    how_to_search = dict(backend=search, on_cpu=on_cpu)
    how_to_cluster = dict(seed=seed, on_cpu=on_cpu, restarts=restarts)
    plain = Embedded((embeddings, labels), queries, how_to_search, how_to_cluster)
    cosine = plain.normalised() if any(metric.cosine for metric, _ in asked.values()) else None
    for metric, k in asked.values():
        (cosine if metric.cosine else plain).look_as_deep_as(metric, k)

    def value(metric, k):
        needed = [getattr(cosine if metric.cosine else plain, name) for name in metric.needs.split()]
        return metric.function(*needed, *([] if k is None else [k]))

    return {name: value(metric, k) for name, (metric, k) in asked.items()}
