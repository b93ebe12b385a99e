"""Embed a split, search it, and return a flat {metric name: float}.

To add a metric: its function in the file of its family, and one line in METRICS.
"""

import difflib
import re
from functools import cached_property
from typing import Callable, NamedTuple

from evaluation import clustering, collapse, retrieval, search
from evaluation.embedding import embed

__all__ = ["METRICS", "check_names", "compute", "embed", "evaluate", "retrieval", "clustering", "collapse", "search"]


class Shared:
    """What several metrics need, made once and only if one asks: `depth` neighbours of each image, a clustering."""

    def __init__(self, embeddings, labels, seed, on_cpu):
        self.embeddings, self.labels = retrieval.as_tensors(embeddings, labels)
        self.seed, self.on_cpu, self.depth = seed, on_cpu, 1

    @cached_property
    def sizes(self):
        return retrieval.class_sizes(self.labels)

    @cached_property
    def matches(self):
        return retrieval.rank_matches(self.embeddings, self.labels, self.depth, on_cpu=self.on_cpu).to(self.labels.device)

    @cached_property
    def clusters(self):
        return clustering.kmeans(self.embeddings, len(self.labels.unique()), self.seed, self.on_cpu)

    @cached_property
    def classes(self):
        return self.labels.cpu().numpy()


class Metric(NamedTuple):
    about: str
    of: Callable  # (Shared, the numbers in the name) → float in 0..1
    depth: Callable = lambda s, *numbers: 0  # likewise → how many neighbours of each image it looks at


# the pattern of a name, each (\d+) of which is a number from 1 up → the metric
METRICS = {
    r"e_recall@(\d+)": Metric("Recall@K of the embeddings (Jégou et al., PAMI 2011)",
                              lambda s, k: retrieval.recall_of(s.matches, (k,))[k], lambda s, k: k),
    r"mAP@R": Metric("mean average precision at R (Musgrave et al., ECCV 2020)",
                     lambda s: retrieval.map_at_r_of(s.matches, s.sizes), lambda s: int(s.sizes.max())),
    r"mAP_(\d+)": Metric("mean average precision over the K nearest, as published (Roth et al., ICML 2020)",
                         lambda s, k: retrieval.average_precision(s.matches[:, :k], s.sizes + 1), lambda s, k: k),
    r"nmi": Metric("normalised mutual information with k-means clusters (Manning et al. 2008, 16.3)",
                   lambda s: clustering.nmi(s.classes, s.clusters)),
    r"f1": Metric("F1 over pairs of images with k-means clusters (Manning et al. 2008, 16.3)",
                  lambda s: clustering.f1(s.classes, s.clusters)),
    r"coding_rate@share": Metric("coding rate as a share of its maximum (Yu et al., NeurIPS 2020); near 0 is collapse",
                                 lambda s: collapse.coding_rate_share(s.embeddings)),
}


def find(name):
    """The metric of a name and the numbers in the name; ValueError, one line, for an unknown name."""
    for pattern, metric in METRICS.items():
        match = re.fullmatch(pattern, name)
        if match and all(int(number) > 0 for number in match.groups()):
            return metric, [int(number) for number in match.groups()]
    known = [pattern.replace(r"(\d+)", "K") for pattern in METRICS]
    near = difflib.get_close_matches(re.sub(r"\d+", "K", name), known, 1, 0.4)
    number = re.search(r"[1-9]\d*", name)
    hint = f" (did you mean {near[0].replace('K', number[0] if number else 'K')}?)" if near else ""
    raise ValueError(f"--evaluation_metrics {name}: unknown{hint}; known: {', '.join(known)}, K from 1 up")


def check_names(names):
    """ValueError, one line, if --evaluation_metrics names something unknown."""
    for name in names:
        find(name)


def compute(embeddings, labels, names, seed=0, on_cpu=False):
    """The metrics `names` of embeddings (n, d) and labels (n,): {name: float in 0..1}, in that order.

    Only what they need is computed: one neighbour search, as deep as the deepest, and one clustering serve them all.
    Raises ValueError, one line, for unknown names, fewer than two images or embeddings that are not finite.
    """
    metrics = {name: find(name) for name in names}
    shared = Shared(embeddings, labels, seed, on_cpu)
    shared.depth = max([1] + [metric.depth(shared, *numbers) for metric, numbers in metrics.values()])
    return {name: metric.of(shared, *numbers) for name, (metric, numbers) in metrics.items()}


def evaluate(model, split, opt):
    """Embed `split` with `model` and compute opt.evaluation_metrics: flat {name: float}. The model's mode is restored."""
    embeddings, labels = embed(model, split, batch_size=max(opt.bs, 256), workers=opt.kernels)
    return compute(embeddings, labels, opt.evaluation_metrics, seed=opt.seed, on_cpu=opt.evaluate_on_cpu)
