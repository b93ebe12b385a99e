"""Collapse metrics: how much of the space the embeddings of a split fill, and how classes lie in it."""

import math

import torch

from criteria import coding_rate
from evaluation.search import Unmeasurable

PAIR_BYTES = 256 * 2**20  # memory that a block of pairwise distances may take


def unit(embeddings):
    """L2-normalised rows in float32; a zero row stays zero."""
    return torch.nn.functional.normalize(torch.as_tensor(embeddings).detach().float(), dim=1)


def coding_rate_share(embeddings):
    """R / R_max of the L2-normalised embeddings (n, d), a float in 0..1: 1 is spread evenly, near 0 is collapsed.

    The scale is the published one of the evaluation, s = d / (0.5 n), so that values of splits of one dimension compare.
    Source: Yu et al., MCR², NeurIPS 2020, eq. 1, over its maximum (criteria/coding_rate.py).
    """
    share = float(coding_rate.coding_rate_share(torch.as_tensor(embeddings).detach()))
    return min(share, 1.0)  # float32 can round a full rate above its maximum


def coding_rate_expansion(embeddings):
    """`coding_rate@dis`: R of the L2-normalised embeddings, s = d / (0.5 n), in nats. Source: Yu et al., NeurIPS 2020, eq. 7."""
    return float(coding_rate.coding_rate(unit(embeddings).double()))


def coding_rate_compression(embeddings, labels):
    """`coding_rate@com`: Σ over classes of n_c / n · R(Z_c), s = d / (0.5 n_c), in nats: what the classes fill by themselves.

    Source: Yu et al., NeurIPS 2020, eq. 8. `coding_rate@delta` is the expansion minus this.
    """
    rows = unit(embeddings).double()
    order = torch.argsort(torch.as_tensor(labels).to(rows.device), stable=True)
    sizes = torch.as_tensor(labels).unique(return_counts=True)[1].tolist()
    return sum(len(part) / len(rows) * float(coding_rate.coding_rate(part)) for part in rows[order].split(sizes))


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
    """Divergence between the singular values (normalised to sum 1) and the uniform distribution, in nats; 0 is spread evenly.

    k ≥ 1: KL(uniform ‖ spectrum) without the k − 1 largest values; k ≤ −1: KL(spectrum ‖ uniform) without the |k| − 1
    largest; 0: all values, where the published code has the distribution itself instead of a number: here as 1.
    ValueError if no value is left. Source: Roth et al., Revisiting Training Strategies, ICML 2020, sec. 5.
    """
    return rho_of(singular_values(embeddings), k)


def rho_of(values, k):
    """rho_spectrum from singular_values."""
    left = values[max(abs(k) - 1, 0):]
    if not len(left):
        raise ValueError(f"evaluation: rho_spectrum@{k}: the embeddings have only {len(values)} singular values")
    share = left / left.sum()
    logs = (share * len(share)).log()
    return max(float((share * logs).sum() if k < 0 else -logs.mean()), 0.0)


def effective_rank(embeddings):
    """exp(entropy of the normalised singular values) of the embeddings as they come, in 1..min(n, d). Source: Roy & Vetterli 2007."""
    return effective_rank_of(singular_values(embeddings))


def effective_rank_of(values):
    share = values / values.sum()
    return float((-(share * share.log()).sum()).exp())


def uniformity(embeddings, t=2.0):
    """log of the mean over pairs of different images of exp(−t |x − y|²), L2-normalised; 0 is collapsed, lower is more uniform.

    In blocks of rows. Source: Wang & Isola, ICML 2020.
    """
    rows = unit(embeddings)
    if len(rows) < 2:
        raise ValueError("evaluation: uniformity needs two images")
    squared = rows.square().sum(1)
    total = 0.0
    for start in range(0, len(rows), max(1, PAIR_BYTES // (8 * len(rows)))):
        stop = min(start + max(1, PAIR_BYTES // (8 * len(rows))), len(rows))
        rest = rows[start:]  # each pair once
        block = torch.addmm(squared[start:], rows[start:stop], rest.T, alpha=-2).add_(squared[start:stop, None])
        block.clamp_(min=0).mul_(-t).exp_()
        total += float(block.triu_(1).sum(1, dtype=torch.float64).sum())
    return math.log(total / (len(rows) * (len(rows) - 1) / 2))


def class_sums(rows, labels):
    """Sum of the rows of each class (C, d) and the classes' sizes (C,), in float64."""
    _, where, sizes = torch.as_tensor(labels).to(rows.device).unique(return_inverse=True, return_counts=True)
    return torch.zeros(len(sizes), rows.shape[1], dtype=torch.float64, device=rows.device).index_add_(0, where, rows.double()), sizes, where


def alignment(embeddings, labels):
    """Mean |x − y|² over pairs of different images of one class, L2-normalised; 0 where there is no such pair. Source: Wang & Isola, ICML 2020."""
    rows = unit(embeddings)
    sums, sizes, where = class_sums(rows, labels)
    # Σ over pairs |x − y|² = n_c Σ |x|² − |Σ x|²
    energy = torch.zeros(len(sizes), dtype=torch.float64, device=rows.device).index_add_(0, where, rows.double().square().sum(1))
    pairs = float((sizes * (sizes - 1)).sum()) / 2
    return max(float((sizes * energy - sums.square().sum(1)).sum()) / pairs, 0.0) if pairs else 0.0


def intra(embeddings, labels):
    """`dists@intra`: mean over classes of the mean cosine distance between their images, in 0..2.

    Classes of one image are left out (the published code gives them another class's value); 0 where all are.
    A zero vector has cosine 0 with everything. Source: Roth et al., ICML 2020.
    """
    rows = unit(embeddings)
    sums, sizes, where = class_sums(rows, labels)
    energy = torch.zeros(len(sizes), dtype=torch.float64, device=rows.device).index_add_(0, where, rows.double().square().sum(1))
    kept = sizes > 1
    if not kept.any():
        return 0.0
    sums, sizes, energy = sums[kept], sizes[kept].double(), energy[kept]
    cosine = (sums.square().sum(1) - energy) / (sizes * (sizes - 1))
    return max(float((1 - cosine).mean()), 0.0)


def inter(embeddings, labels):
    """`dists@inter`: mean cosine distance between the means of different classes, in 0..2; 0 with one class.

    The means are those of the embeddings as they come, normalised. Source: Roth et al., ICML 2020.
    """
    sums, sizes, _ = class_sums(torch.as_tensor(embeddings).detach(), labels)
    n = len(sizes)
    means = torch.nn.functional.normalize(sums / sizes[:, None], dim=1)
    return max(1 - float(means.sum(0).square().sum() - means.square().sum()) / (n * (n - 1)), 0.0) if n > 1 else 0.0


def intra_over_inter(embeddings, labels):
    """`dists@intra_over_inter`, the latter at least 1e-8 as published."""
    return intra(embeddings, labels) / max(inter(embeddings, labels), 1e-8)
