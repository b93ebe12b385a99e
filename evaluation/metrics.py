"""Every metric by name, and `compute`. To add one: a function of what `Embedded` has, and a line in METRICS."""

import inspect
import re
from functools import cached_property
from typing import Callable, NamedTuple

from evaluation import clustering, collapse, retrieval
from utilities.command_line import near


class Metric(NamedTuple):
    function: Callable  # of what its arguments name, to a float
    about: str  # for --list: what it is, and its source
    k: int | None = None  # its argument k, where its name has none
    cosine: bool = False  # of the L2-normalised embeddings


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
    "rho_spectrum@K": Metric(collapse.rho_spectrum, "how uneven the singular values are (Roth et al.)"),
    "coding_rate@share": Metric(collapse.coding_rate_share, "R / its maximum (Yu et al., NeurIPS 2020); 0 is collapse"),
    "coding_rate@dis": Metric(collapse.coding_rate_all, "coding rate R of all, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@com": Metric(collapse.coding_rate_classes, "R of the classes, nats (Yu et al., NeurIPS 2020)"),
    "coding_rate@delta": Metric(collapse.coding_rate_reduction, "dis - com (Yu et al., NeurIPS 2020)"),
    "effective_rank": Metric(collapse.effective_rank, "exp(entropy of the singular values) (Roy & Vetterli 2007)"),
    "uniformity": Metric(collapse.uniformity, "log mean exp(-2 |x - y|²) (Wang & Isola, ICML 2020)"),
    "alignment": Metric(collapse.alignment, "mean |x - y|² within classes (Wang & Isola, ICML 2020)"),
}
RHO = METRICS["rho_spectrum@K"]  # the only one whose K may be 0 or negative
for c_name, plain in {"c_recall@K": "e_recall@K", "c_nmi": "nmi", "c_f1": "f1", "c_mAP_K": "mAP_K"}.items():
    METRICS[c_name] = METRICS[plain]._replace(about=f"{plain} of the L2-normalised embeddings", cosine=True)


def check_names(names, embed_dim=None, flag="--evaluation_metrics"):
    """{name: (its Metric, its k)}; ValueError, one line, for one that is unknown, or that embed_dim dimensions lack."""
    found = {}
    for name in names:
        number = re.search(r"(?<=[@_])-?\d{1,18}$", name)
        metric = METRICS.get(f"{name[: number.start()]}K" if number else name)
        if metric is None or name.endswith("K") or (number and int(number[0]) < 1 and metric is not RHO):
            raise ValueError(f"{flag} {name}: unknown{near(name, METRICS)}; known: {', '.join(METRICS)}, K from 1 up")
        found[name] = metric, int(number[0]) if number else metric.k
        if embed_dim is not None and metric is RHO and abs(found[name][1]) > embed_dim:
            raise ValueError(f"{flag} {name}: {embed_dim} dimensions have only {embed_dim} singular values")
    return found


class Embedded:
    """What a metric can take as an argument, by name: each is made once, and only if a metric takes it."""

    def __init__(self, gallery, queries, asked, seed, search, restarts):
        self.gallery, self.queries, self.asked = gallery, queries, asked
        self.seed, self.search, self.restarts = seed, search, restarts
        self.embeddings, self.labels = retrieval.together(gallery, queries)

    def value(self, metric, k):
        arguments = inspect.signature(metric.function).parameters
        return metric.function(**{name: k if name == "k" else getattr(self, name) for name in arguments})

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
        """Whether each of a query's nearest images has its label: bool (q, the largest k, or class)."""
        ks = [k for metric, k in self.asked if "matches" in inspect.signature(metric.function).parameters]
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


def compute(embeddings, labels, names, seed=0, query_embeddings=None, query_labels=None, search="auto", restarts=1):
    """The metrics `names` of embeddings (n, d) and labels (n,), tensors or arrays: {name: float}, in that order.

    With query_embeddings (q, d) and query_labels (q,) these are searched in the embeddings, and nothing is left out.
    search: a back-end of nearest_neighbours; seed, restarts: of k-means. ValueError for unknown names and shapes.
    """
    sets = retrieval.as_sets(embeddings, labels, query_embeddings, query_labels)
    asked, values = check_names(names, min(retrieval.together(*sets)[0].shape), "evaluation:"), {}
    for cosine in {metric.cosine for metric, _ in asked.values()}:
        pairs = [pair and (collapse.unit(pair[0]).to(pair[0].dtype), pair[1]) for pair in sets] if cosine else sets
        its_own = {name: pair for name, pair in asked.items() if pair[0].cosine == cosine}
        data = Embedded(*pairs, its_own.values(), seed, search, restarts)
        values |= {name: float(data.value(*pair)) for name, pair in its_own.items()}
    return {name: values[name] for name in names}
