"""When embeddings count as collapsed: the same rule while training and in a report."""

LEAST_SHARE = 0.1  # of the coding rate's maximum


def is_collapse(rank, share, dimensions):
    """Whether an effective rank is under 5% of the dimensions, or a coding rate under a tenth of its maximum.

    None for what was not measured. One direction is a collapse in few dimensions too.
    """
    least = max(0.05 * dimensions, 1.1 if dimensions > 2 else 0)
    return (rank is not None and rank < least) or (share is not None and share < LEAST_SHARE)
