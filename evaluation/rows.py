"""Rows of embeddings before search and clustering: scaled so that float32 can tell them apart; equal ones found."""

import math

import torch

SAMPLE = 1000  # rows that the centre and the unit are taken from
LONGEST = 1e15  # in that unit: longer rows are shortened to it, or their squares would overflow
ROWS = 1024  # rows copied as float64 at a time: they stay in the cache


class Unmeasurable(ValueError):
    """Embeddings that a metric is not defined for: not finite, or all zero."""


def well_scaled(sets):
    """Sets of rows (n_i, d), moved and scaled alike, in float32; and the scale. Their neighbours stay the same.

    Squared distances from products cancel far from the origin and overflow beyond 1e19. The centre and the unit of
    length are medians of the first set, so that a few rows far away take no precision from the others.
    """
    bounds = [abs(float(bound)) for x in sets for bound in x.aminmax()]
    if not all(map(math.isfinite, bounds)):
        raise Unmeasurable("evaluation: embeddings are not finite")
    unit = 2.0 ** -math.frexp(max(bounds))[1]  # powers of two do not round: what is equally far stays so
    sample = sets[0][:: -(-len(sets[0]) // SAMPLE)].double()
    centre = sample.median(0).values
    lengths = ((sample - centre) * unit).norm(dim=1)
    scale = unit * 2.0 ** -math.frexp(lengths[lengths > 0].median())[1] if lengths.any() else unit

    def move(part):
        part = (part.double() - centre).mul_(scale)
        return part.mul_((LONGEST / part.norm(dim=1, keepdim=True)).clamp_(max=1)).float()

    return [torch.cat([move(part) for part in x.split(ROWS)]) for x in sets], scale


def same_rows(x):
    """A number from 0 for each row (n,), the same for equal rows."""
    weights = torch.rand(x.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(x.device)
    order = torch.cat([(part.double() * weights).sum(1) for part in x.split(ROWS)]).argsort(stable=True)
    pairs = zip(order[:-1].split(ROWS), order[1:].split(ROWS))  # equal rows have equal sums, so they lie side by side
    changes = torch.cat([order[:0] > 0, *((x[a] != x[b]).any(1) for a, b in pairs)])
    return torch.zeros_like(order).index_copy_(0, order[1:], changes.cumsum(0))
