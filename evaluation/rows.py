"""Rows of embeddings before search and clustering: scaled so that float32 can tell them apart; equal ones numbered."""

import math

import torch

SAMPLE = 1000  # rows that the centre and the unit of length are taken from
LONGEST = 1e15  # in that unit: coordinates beyond are cut to it, or their squares would overflow
ROWS = 1024  # rows copied as float64 at a time: they stay in the cache


class Unmeasurable(ValueError):
    """Embeddings that a metric is not defined for: not finite, or all zero."""


def well_scaled(sets, dtype=torch.float32):
    """Sets of rows (n_i, d), moved and scaled alike, in dtype; and the scale. Their neighbours stay the same.

    Squared distances from products cancel far from the origin and overflow beyond 1e19. The centre and the unit of
    length are medians of the first set, so that a few rows far away take no precision from the others.
    """
    largest = max(abs(float(bound)) for x in sets for bound in x.aminmax())
    if not math.isfinite(largest):
        raise Unmeasurable("evaluation: embeddings are not finite")
    sample = sets[0][:: -(-len(sets[0]) // SAMPLE)].double()
    centre = sample.median(0).values
    lengths = (sample - centre).abs().amax(1)  # no squares: these may overflow
    length = float(lengths[lengths > 0].median()) if lengths.any() else largest
    scale = 2.0 ** min(-math.frexp(length)[1], 1000)  # powers of two do not round: what is equally far stays so

    def move(part):
        return ((part.double() - centre) * scale).clamp_(-LONGEST, LONGEST).to(dtype)

    return [torch.cat([move(part) for part in x.split(ROWS)]) for x in sets], scale


def same_rows(x):
    """A number for each row (n,), the same for equal rows, from 0 in the order in which they first come."""
    numbers = {}
    rows = (x.cpu() + 0).numpy()  # + 0: -0 equals 0
    return torch.tensor([numbers.setdefault(row.tobytes(), len(numbers)) for row in rows]).to(x.device)
