"""Collapse metrics: how much of the space the embeddings of a split fill, and how classes lie in it; and the rule.

Sources: Yu et al., MCR², NeurIPS 2020 (coding rates, of the scale d / (0.5 n)); Roth et al., ICML 2020 (rho, intra,
inter); Wang & Isola, ICML 2020 (uniformity, alignment). All but the spectrum's are of L2-normalised embeddings (n, d).
"""

import math

import torch

from criteria import rate

COLLAPSE = ("effective_rank", "coding_rate@share")  # the metrics that the rule asks for
FALL = 0.8  # a rank or a share below this part of its value before training has fallen
PAIR_BYTES = 256 * 2**20  # memory that a block of pairwise distances may take


def is_collapse(rank, share, dimensions):
    """Whether an effective rank is under 5% of the dimensions, or a coding rate's share under 0.1; None: unmeasured."""
    least = max(0.05 * dimensions, 1.1 if dimensions > 2 else 0)  # one direction is a collapse in few dimensions too
    return (rank is not None and rank < least) or (share is not None and share < 0.1)


def collapse_line(metrics, split, embed_dim, before=None, loss=None):
    """A line that says that a split with these metrics has collapsed; "" where it has not, or where neither has
    fallen since those `before` training. loss: --loss, for the advice; AntiCo's own get none."""
    (rank, share), first = ([of[name] for name in COLLAPSE] for of in (metrics, before or metrics))
    dimensions = min(embed_dim, len(getattr(split, "gallery", split)))  # few images span no more
    stayed = before and rank >= FALL * first[0] and share >= FALL * first[1]
    if stayed or not is_collapse(rank, share, dimensions):
        return ""
    line = f"effective rank {rank:.1f} of {dimensions}, coding rate {share:.1%} of its maximum"
    line += f" (before training {first[0]:.1f} and {first[1]:.1%})" if before else ""
    advice = f"; --loss antico_pair --antico_base {loss} is made against that, and allows a higher --lr"
    return f"\nthe embeddings have collapsed: {line}{'' if not loss or loss.startswith('antico') else advice}"


def unit(embeddings):
    """L2-normalised rows in float64, whatever their lengths; a zero row stays zero."""
    rows = torch.as_tensor(embeddings).detach().double()
    largest = rows.abs().amax(1, keepdim=True)  # taken out first: squares of the rest do not overflow or vanish
    return torch.nn.functional.normalize(rows / largest.masked_fill(largest == 0, 1), dim=1)


def coding_rate_share(embeddings):
    """R / R_max, a float in 0..1: 1 is spread evenly, near 0 is collapsed."""
    return min(float(rate.coding_rate_share(unit(embeddings))), 1.0)  # a full rate can round above its maximum


def coding_rate_all(embeddings):
    """`coding_rate@dis`: R, in nats (eq. 7)."""
    return float(rate.coding_rate(unit(embeddings)))


def coding_rate_classes(embeddings, labels):
    """`coding_rate@com`: Σ over classes of n_c / n · R(Z_c), in nats: what the classes fill (eq. 8)."""
    rows, labels = unit(embeddings), torch.as_tensor(labels)
    parts = rows[labels.argsort()].split(labels.unique(return_counts=True)[1].tolist())
    return sum(len(part) / len(rows) * float(rate.coding_rate(part)) for part in parts)


def coding_rate_reduction(embeddings, labels):
    """`coding_rate@delta`: R of all minus R of the classes, in nats (eq. 9)."""
    return coding_rate_all(embeddings) - coding_rate_classes(embeddings, labels)


def singular_values(embeddings):
    """Singular values of embeddings as they come, largest first: float64 (min(n, d),); all zero is one direction."""
    rows = torch.as_tensor(embeddings).detach().double()
    values = torch.linalg.svdvals(torch.linalg.qr(rows, mode="r").R if rows.shape[0] > rows.shape[1] else rows)
    values[0] = values[0] if values[0] > 0 else 1.0
    return values.clamp(min=float(values[0]) * torch.finfo(torch.float32).eps)  # float32's rounding; 0 has no logarithm


def rho_spectrum(spectrum, k):
    """Divergence between singular_values, of sum 1, and the uniform distribution, in nats; 0 is spread evenly.

    k ≥ 1: KL(uniform ‖ spectrum) without the k − 1 largest values; k ≤ −1: KL(spectrum ‖ uniform) without the |k| − 1
    largest; 0: as 1 (published: the distribution itself).
    """
    share = spectrum[max(abs(k) - 1, 0) :]
    share = share / share.sum()
    logs = (share * len(share)).log()
    return max(float((share * logs).sum() if k < 0 else -logs.mean()), 0.0) + 0.0  # -0 prints as such


def effective_rank(spectrum):
    """exp(entropy of singular_values, of sum 1), in 1..min(n, d). Source: Roy & Vetterli, EUSIPCO 2007."""
    share = spectrum / spectrum.sum()
    return float((-(share * share.log()).sum()).exp())


def uniformity(embeddings):
    """log of the mean over pairs of different images of exp(−2 |x − y|²); 0 is collapsed."""
    rows = unit(embeddings)
    rows = rows - rows.mean(0)  # about the centre no terms of |x|² - 2 x·y + |y|² cancel where all lie together
    squared, total = rows.square().sum(1), 0.0
    for start in range(0, len(rows), block := max(1, PAIR_BYTES // (16 * len(rows)))):
        part, rest = slice(start, start + block), slice(start, None)  # each pair once
        distances = torch.addmm(squared[rest], rows[part], rows[rest].T, alpha=-2).add_(squared[part, None])
        total += float(distances.clamp_(min=0).mul_(-2).expm1_().triu_(1).sum())
    return math.log1p(total / (len(rows) * (len(rows) - 1) / 2))


def class_means(rows, labels):
    """Mean of the rows (n, d) of each class (C, d), the classes' sizes (C,), and the class of each row (n,)."""
    _, where, sizes = torch.as_tensor(labels).to(rows.device).unique(return_inverse=True, return_counts=True)
    offset = rows[0].clone()  # so that equal rows have exactly their mean
    sums = rows.new_zeros(len(sizes), rows.shape[1]).index_add_(0, where, rows - offset)
    return sums / sizes[:, None] + offset, sizes, where


def pairs_within(rows, labels):
    """Of each class with several rows (n, d), of length 1 or 0: its pairs' mean |x − y|², mean 1 − cos, and number."""
    means, sizes, where = class_means(rows, labels)
    per_row = torch.stack([(rows - means[where]).square().sum(1), (rows == 0).all(1).double()], 1)
    (squares, zeros), several = class_means(per_row, labels)[0].T, sizes > 1
    # the mean over pairs is 2 n / (n − 1) of that to the mean; a zero row, of cosine 0, adds 1/2 to each of its pairs
    half = squares * sizes / (sizes - 1)
    return [values[several] for values in (2 * half, half + zeros, sizes * (sizes - 1) / 2)]


def alignment(embeddings, labels):
    """Mean |x − y|² over pairs of different images of one class; 0 where there is no such pair."""
    squares, _, pairs = pairs_within(unit(embeddings), labels)
    return float((squares * pairs).sum() / pairs.sum()) if len(pairs) else 0.0


def intra(embeddings, labels):
    """`dists@intra`: mean over classes of several images of the mean cosine distance between these; 0 without such."""
    distances = pairs_within(unit(embeddings), labels)[1]
    return float(distances.mean()) if len(distances) else 0.0


def inter(embeddings, labels):
    """`dists@inter`: mean cosine distance between different classes' means of embeddings as they come, in 0..2."""
    means, sizes, _ = class_means(torch.as_tensor(embeddings).double(), labels)
    return intra(means, torch.zeros_like(sizes))


def intra_over_inter(embeddings, labels):
    """`dists@intra_over_inter`; the latter is at least 1e-24, float64's rounding (published: 1e-8, float32's)."""
    return intra(embeddings, labels) / max(inter(embeddings, labels), 1e-24)
