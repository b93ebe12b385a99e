"""Every metric by name, and the computation of any of them from embeddings and labels.

To add one: a function whose arguments are attributes of `Embedded`, in the file of its family, and a line in METRICS.
"""

import inspect
import re
from functools import cached_property
from typing import Callable, NamedTuple

import torch

from evaluation import clustering, collapse, retrieval
from utilities.registry import near


class Metric(NamedTuple):
    function: Callable  # of what its arguments name, to a float
    about: str  # for --list: what it is, and its source
    k: int | None = None  # its argument k, where its name has none
    cosine: bool = False  # of the L2-normalised embeddings
    signed: bool = False  # K may be 0 or negative


METRICS = {
    "e_recall@K": Metric(retrieval.recall, "Recall@K of the embeddings (Jégou et al., PAMI 2011)"),
    "mAP@R": Metric(retrieval.mean_ap_at_r, "mean average precision at R (Musgrave et al., ECCV 2020)"),
    "R-precision": Metric(retrieval.r_precision, "share of matches among the R nearest (Musgrave et al., ECCV 2020)"),
    "mAP_K": Metric(retrieval.published_map, "mean average precision of K nearest, as in Roth et al., ICML 2020"),
    "mAP_lim": Metric(retrieval.published_map, "mAP_1023, the limit of the published faiss-gpu (Roth et al.)", k=1023),
    "mAP_c": Metric(retrieval.published_map, "mAP_K, K the number of the class's images (Roth et al., ICML 2020)"),
    "nmi": Metric(clustering.nmi, "normalised mutual information with k-means clusters (Manning et al. 2008, 16.3)"),
    "f1": Metric(clustering.f1, "F1 over pairs of images with k-means clusters (Manning et al. 2008, 16.3)"),
    "dists@intra": Metric(collapse.intra, "mean cosine distance within classes (Roth et al., ICML 2020)"),
    "dists@inter": Metric(collapse.inter, "mean cosine distance between class means (Roth et al., ICML 2020)"),
    "dists@intra_over_inter": Metric(collapse.intra_over_inter, "their ratio (Roth et al., ICML 2020)"),
    "rho_spectrum@K": Metric(collapse.rho_spectrum, "how uneven the singular values are (Roth et al.)", signed=True),
    "coding_rate@share": Metric(collapse.coding_rate_share, "R / its maximum (Yu et al., NeurIPS 2020); 0 is collapse"),
    "coding_rate@dis": Metric(collapse.coding_rate_all, "coding rate R of all, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@com": Metric(collapse.coding_rate_classes, "R of the classes, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@delta": Metric(collapse.coding_rate_reduction, "dis - com (Yu et al., NeurIPS 2020)"),
    "effective_rank": Metric(collapse.effective_rank, "exp(entropy of the singular values) (Roy & Vetterli 2007)"),
    "uniformity": Metric(collapse.uniformity, "log mean exp(-2 |x - y|²) (Wang & Isola, ICML 2020)"),
    "alignment": Metric(collapse.alignment, "mean |x - y|² within classes (Wang & Isola, ICML 2020)"),
}
for c_name, plain in {"c_recall@K": "e_recall@K", "c_nmi": "nmi", "c_f1": "f1", "c_mAP_K": "mAP_K"}.items():
    METRICS[c_name] = METRICS[plain]._replace(about=f"{plain} of the L2-normalised embeddings", cosine=True)


def find(name, flag="metric"):
    """The Metric of a name and its k, if it has one. Raises ValueError, one line, for an unknown name."""
    number = re.search(r"(?<=[@_])-?\d{1,18}$", name)
    row, k = (name, None) if number is None else (name[: number.start()] + "K", int(number[0]))
    metric = METRICS.get(row)
    if metric and row.endswith("K") == (k is not None) and (k is None or k > 0 or metric.signed):
        return metric, metric.k if k is None else k
    number = re.search(r"[1-9]\d*", name)
    hint = near(name, [row.replace("K", number[0] if number else "K") for row in METRICS])
    raise ValueError(f"{flag} {name}: unknown{hint}; known: {', '.join(METRICS)}, K from 1 up")


def check_names(names, embed_dim=None, flag="--evaluation_metrics"):
    """ValueError, one line, if `flag` names a metric that is unknown, or that embed_dim dimensions lack."""
    for name in names:
        metric, k = find(name, flag)
        if embed_dim is not None and metric is METRICS["rho_spectrum@K"] and abs(k) > embed_dim:
            raise ValueError(f"{flag} {name}: --embed_dim {embed_dim} has only {embed_dim} singular values")


class Embedded:
    """What a metric can take as an argument, by name. Each is made once, and only if a metric takes it.

    gallery, queries: pairs of embeddings and labels. With queries these are searched in the gallery, and all other
    metrics take both together. metrics: pairs of a Metric and its k, which say how deep the search has to go.
    """

    def __init__(self, gallery, queries, metrics, seed, search, restarts):
        self.gallery, self.queries, self.metrics = gallery, queries, metrics
        self.seed, self.search, self.restarts = seed, search, restarts
        self.embeddings, self.labels = map(torch.cat, zip(queries, gallery)) if queries else gallery

    def value(self, metric, k):
        names = inspect.signature(metric.function).parameters
        return metric.function(**{name: k if name == "k" else getattr(self, name) for name in names})

    @cached_property
    def class_sizes(self):
        """For each query, the number of images of its class that can be found: (q,)."""
        return self.published_sizes - (1 if self.queries is None else 0)

    @cached_property
    def published_sizes(self):
        """The same with the query itself, where it is among the images that are searched: what `mAP_K` divides by."""
        return retrieval.class_sizes((self.queries or self.gallery)[1], self.gallery[1])

    @cached_property
    def matches(self):
        """Whether each of a query's nearest images has its label: bool (q, k of the metrics or the largest class)."""
        ks = [k for metric, k in self.metrics if "matches" in inspect.signature(metric.function).parameters]
        deepest = max(int(self.published_sizes.max()) if k is None else k for k in ks)
        least = min([k for k in ks if k], default=1)
        return retrieval.nearest_matches(self.gallery, self.queries, deepest, least, self.search)

    @cached_property
    def clusters(self):
        """Cluster of each image, of as many as there are classes: (n,)."""
        return clustering.kmeans(self.embeddings, len(self.labels.unique()), self.seed, self.restarts)

    @cached_property
    def spectrum(self):
        """Singular values of the embeddings, largest first: (min(n, d),)."""
        return collapse.singular_values(self.embeddings)


def compute(
    embeddings, labels, names, seed=0, query_embeddings=None, query_labels=None, on_cpu=False, search="auto", restarts=1
):
    """The metrics `names` of embeddings (n, d) and labels (n,), tensors or arrays: {name: float}, in that order.

    With query_embeddings (q, d) and query_labels (q,) these are searched in the embeddings, and nothing is left out.
    Distances are Euclidean; the c_ names are of the L2-normalised embeddings. No metric depends on the unit of length.
    One search and one clustering serve all (one more each for c_ names). search: a back-end of nearest_neighbours;
    seed, restarts: of k-means; on_cpu: measure on the CPU though the embeddings are on a GPU.
    Raises ValueError, one line, for unknown names, fewer than two images or embeddings that are not finite.
    """
    if (query_embeddings is None) != (query_labels is None):
        raise ValueError("evaluation: query_embeddings and query_labels go together; give both")
    asked, apart = {name: find(name) for name in names}, query_embeddings is not None
    sets = [(embeddings, labels), (query_embeddings, query_labels)][: 1 + apart]
    sets = [retrieval.as_tensors(*pair, least=1 if apart else 2) for pair in sets]
    dimensions = [x.shape[1] for x, _ in sets]
    if len(set(dimensions)) > 1:
        raise ValueError(f"evaluation: the gallery has {dimensions[0]} dimensions, the queries {dimensions[1]}")
    sets = [(x.cpu(), y.cpu()) for x, y in sets] if on_cpu else sets
    values = {}
    for cosine in {metric.cosine for metric, _ in asked.values()}:
        its_own = {name: pair for name, pair in asked.items() if pair[0].cosine == cosine}
        pairs = [(collapse.unit(x).to(x.dtype), y) for x, y in sets] if cosine else sets
        data = Embedded(pairs[0], pairs[1] if apart else None, its_own.values(), seed, search, restarts)
        values |= {name: data.value(*pair) for name, pair in its_own.items()}
    return {name: values[name] for name in names}
