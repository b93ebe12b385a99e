"""Embed a split, search it, and return a flat {metric name: float}.

To add a metric: one line in METRICS, and its function in the file of its family.
"""

import difflib
import re

from criteria.coding_rate import coding_rate_share
from evaluation import clustering, retrieval, search
from evaluation.embedding import embed

__all__ = ["METRICS", "check_names", "compute", "embed", "evaluate", "retrieval", "clustering", "search"]

# pattern of the name: what it is. One neighbour search and one clustering serve all that need them.
METRICS = {
    r"e_recall@(\d+)": "Recall@K of the embeddings (Jégou et al. 2011)",
    r"mAP@R": "mean average precision at R (Musgrave et al. 2020)",
    r"mAP_(\d+)": "mean average precision over the K nearest, as published",
    r"nmi": "normalised mutual information with k-means clusters",
    r"f1": "pairwise F1 with k-means clusters",
    r"coding_rate@share": "coding rate as a share of its maximum (Yu et al. 2020); near 0 is collapse",
}


def check_names(names):
    """ValueError, one line, if --evaluation_metrics names something unknown."""
    for name in names:
        found = [re.fullmatch(pattern, name) for pattern in METRICS]
        if not any(found) or any(m and m.groups() and int(m.group(1)) < 1 for m in found):
            known = ["e_recall@1", "mAP@R", "mAP_1000", "nmi", "f1", "coding_rate@share"]
            near = difflib.get_close_matches(name, known, 1, 0.4)
            raise ValueError(f"--evaluation_metrics {name}: unknown{f' (did you mean {near[0]}?)' if near else ''}; known: {', '.join(known)}")


def compute(embeddings, labels, names, seed=0, on_cpu=False):
    """The metrics `names` of embeddings (n, d) and labels (n,): {name: float in 0..1}, in that order.

    Raises ValueError, one line, for unknown names, fewer than two images or embeddings that are not finite.
    """
    check_names(names)
    embeddings, labels = retrieval.as_tensors(embeddings, labels)
    sizes = retrieval.class_sizes(labels)
    depth = [int(n.partition("@")[2]) for n in names if n.startswith("e_recall@")] + [int(n[4:]) for n in names if n.startswith("mAP_")]
    depth += [int(sizes.max())] if "mAP@R" in names else []
    matches = retrieval.rank_matches(embeddings, labels, max(1, *depth), on_cpu=on_cpu).to(sizes.device) if depth else None
    clusters = clustering.kmeans(embeddings, len(labels.unique()), seed, on_cpu) if {"nmi", "f1"} & set(names) else None
    values = {}
    for name in names:
        if name.startswith("e_recall@"):
            k = int(name.partition("@")[2])
            values[name] = retrieval.recall_of(matches, (k,))[k]
        elif name.startswith("mAP_"):
            k = int(name[4:])
            values[name] = retrieval.average_precision(matches[:, :k], sizes + 1)
        elif name == "mAP@R":
            values[name] = retrieval.map_at_r_of(matches, sizes)
        elif name == "coding_rate@share":
            values[name] = float(coding_rate_share(embeddings))
        else:
            values[name] = {"nmi": clustering.nmi, "f1": clustering.f1}[name](labels.cpu().numpy(), clusters)
    return values


def evaluate(model, split, opt):
    """Embed `split` with `model` and compute opt.evaluation_metrics: flat {name: float}. The model's mode is restored."""
    embeddings, labels = embed(model, split, batch_size=max(opt.bs, 256), workers=opt.kernels)
    return compute(embeddings, labels, opt.evaluation_metrics, seed=opt.seed, on_cpu=opt.evaluate_on_cpu)
