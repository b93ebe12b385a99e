"""Collapse metrics: how much of the space the embeddings of a split fill, and how classes lie in it."""

import math

import torch

from criteria import coding_rate
from evaluation.search import Unmeasurable

PAIR_BYTES = 256 * 2**20  # memory that a block of pairwise distances may take


def unit(embeddings):
    """L2-normalised rows in float64, whatever their lengths; a zero row stays zero."""
    rows = torch.as_tensor(embeddings).detach().double()
    largest = rows.abs().amax(1, keepdim=True)  # taken out first: squares of the rest do not overflow or vanish
    return torch.nn.functional.normalize(rows / largest.masked_fill(largest == 0, 1), dim=1)


def coding_rate_share(embeddings):
    """R / R_max of the L2-normalised embeddings (n, d), a float in 0..1: 1 is spread evenly, near 0 is collapsed.

    The scale is the published one, s = d / (0.5 n), so that values of splits of one dimension compare.
    Source: Yu et al., MCR², NeurIPS 2020, eq. 1, over its maximum (criteria/coding_rate.py).
    """
    return min(float(coding_rate.coding_rate_share(unit(embeddings))), 1.0)  # a full rate can round above its maximum


def coding_rate_expansion(embeddings):
    """`coding_rate@dis`: R of the L2-normalised embeddings, s = d / (0.5 n), in nats.

    Source: Yu et al., NeurIPS 2020, eq. 7.
    """
    return float(coding_rate.coding_rate(unit(embeddings)))


def coding_rate_compression(embeddings, labels):
    """`coding_rate@com`: Σ over classes of n_c / n · R(Z_c), s = d / (0.5 n_c), in nats: what the classes fill.

    Source: Yu et al., NeurIPS 2020, eq. 8.
    """
    rows = unit(embeddings)
    order = torch.argsort(torch.as_tensor(labels).to(rows.device), stable=True)
    sizes = torch.as_tensor(labels).unique(return_counts=True)[1].tolist()
    return sum(len(part) / len(rows) * float(coding_rate.coding_rate(part)) for part in rows[order].split(sizes))


def coding_rate_reduction(embeddings, labels):
    """`coding_rate@delta`: the expansion minus the compression, in nats. Source: Yu et al., NeurIPS 2020, eq. 9."""
    return coding_rate_expansion(embeddings) - coding_rate_compression(embeddings, labels)


def singular_values(embeddings):
    """Singular values of the embeddings as they come, not centred, largest first: float64 (min(n, d),).

    Those below float32's rounding of the largest count as that, so that a collapsed model gives a large number and not
    infinity. ValueError if all embeddings are zero.
    """
    rows = torch.as_tensor(embeddings).detach().double()
    values = torch.linalg.svdvals(torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows)
    if not values[0] > 0:
        raise Unmeasurable("evaluation: all embeddings are zero; they have no spectrum")
    return values.clamp(min=float(values[0]) * torch.finfo(torch.float32).eps)


def rho_spectrum(embeddings, k=1):
    """Divergence between the singular values (of sum 1) and the uniform distribution, in nats; 0 is spread evenly.

    k ≥ 1: KL(uniform ‖ spectrum) without the k − 1 largest values; k ≤ −1: KL(spectrum ‖ uniform) without
    the |k| − 1 largest; 0: all values, where the published code has the distribution itself instead of a
    number: here as 1. ValueError if no value is left.
    Source: Roth et al., Revisiting Training Strategies, ICML 2020, sec. 5.
    """
    return rho_of(singular_values(embeddings), k)


def rho_of(values, k):
    """rho_spectrum from singular_values."""
    left = values[max(abs(k) - 1, 0) :]
    if not len(left):
        raise ValueError(
            f"--evaluation_metrics rho_spectrum@{k}: the embeddings have only {len(values)} singular values"
        )
    share = left / left.sum()
    logs = (share * len(share)).log()
    return max(float((share * logs).sum() if k < 0 else -logs.mean()), 0.0) + 0.0  # -0 prints as such


def effective_rank(embeddings):
    """exp(entropy of the singular values, of sum 1) of the embeddings as they come, in 1..min(n, d).

    Source: Roy & Vetterli, EUSIPCO 2007.
    """
    return effective_rank_of(singular_values(embeddings))


def effective_rank_of(values):
    share = values / values.sum()
    return float((-(share * share.log()).sum()).exp())


def uniformity(embeddings, t=2.0):
    """log of the mean over pairs of different images of exp(−t |x − y|²), L2-normalised; 0 is collapsed.

    In blocks of rows. Source: Wang & Isola, ICML 2020.
    """
    rows = unit(embeddings)
    if len(rows) < 2:
        raise ValueError("evaluation: uniformity needs two images")
    rows = rows - rows.mean(0)  # about the centre no terms of |x|² - 2 x·y + |y|² cancel where all lie together
    squared = rows.square().sum(1)
    block = max(1, PAIR_BYTES // (16 * len(rows)))
    total = 0.0
    for start in range(0, len(rows), block):
        stop, rest = start + block, rows[start:]  # each pair once
        distances = torch.addmm(squared[start:], rows[start:stop], rest.T, alpha=-2).add_(squared[start:stop, None])
        total += float(distances.clamp_(min=0).mul_(-t).expm1_().triu_(1).sum())
    return math.log1p(total / (len(rows) * (len(rows) - 1) / 2))


def class_means(rows, labels):
    """Mean of the rows of each class (C, d), in float64, the classes' sizes (C,), and the class of each row (n,)."""
    rows = torch.as_tensor(rows).detach().double()
    _, where, sizes = torch.as_tensor(labels).to(rows.device).unique(return_inverse=True, return_counts=True)
    offset = rows[0].clone()  # so that equal rows have exactly their mean
    sums = torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64, device=rows.device)
    return sums.index_add_(0, where, rows - offset) / sizes[:, None] + offset, sizes, where


def scatter(rows, labels):
    """Of each class (C,): Σ |x − mean|² over its rows, their number, and how many of them are zero."""
    means, sizes, where = class_means(rows, labels)
    values = torch.stack([(rows - means[where]).square().sum(1), (rows == 0).all(1).double()])
    within, zeros = values.new_zeros(2, len(sizes)).index_add_(1, where, values)
    return within, sizes, zeros


def alignment(embeddings, labels):
    """Mean |x − y|² over pairs of different images of one class, L2-normalised; 0 where there is no such pair.

    Source: Wang & Isola, ICML 2020.
    """
    within, sizes, _ = scatter(unit(embeddings), labels)
    pairs = float((sizes * (sizes - 1)).sum()) / 2
    return float((sizes * within).sum()) / pairs if pairs else 0.0  # Σ over pairs |x − y|² = n_c Σ |x − mean|²


def intra(embeddings, labels):
    """`dists@intra`: mean over classes of the mean cosine distance between their images, in 0..2.

    Classes of one image are left out (the published code gives them another class's value); 0 where all are.
    A zero vector has cosine 0 with everything. Source: Roth et al., ICML 2020.
    """
    within, sizes, zeros = scatter(unit(embeddings), labels)
    kept = sizes > 1
    if not kept.any():
        return 0.0
    # 1 − cos(x, y) = |x − y|² / 2, to which each zero vector adds 1/2
    return float((within / (sizes - 1) + zeros / sizes)[kept].mean())


def inter(embeddings, labels):
    """`dists@inter`: mean cosine distance between the means of different classes, in 0..2; 0 with one class.

    The means are those of the embeddings as they come, normalised. Source: Roth et al., ICML 2020.
    """
    means, sizes, _ = class_means(embeddings, labels)
    return intra(means, torch.zeros_like(sizes))


def intra_over_inter(embeddings, labels):
    """`dists@intra_over_inter`; the latter is at least 1e-24, float64's rounding (published: 1e-8, float32's)."""
    return intra(embeddings, labels) / max(inter(embeddings, labels), 1e-24)
