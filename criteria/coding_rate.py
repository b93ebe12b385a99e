"""The coding rate of a set of vectors, and its maximum: the quantity the Anti-Collapse loss acts on."""

import math

import torch

__all__ = ["coding_rate", "max_coding_rate", "coding_rate_share"]


def default_scale(n, d, eps=0.5):
    """s = d / (n eps): the published scale of the pair variant, and of the evaluation."""
    return d / (n * eps)


def coding_rate(Z, scale=None):
    """R(Z; s) = 1/2 logdet(I + s ZᵀZ), in nats.

    The determinant is that of the smaller Gram matrix (Sylvester: logdet(I_d + s ZᵀZ) = logdet(I_n + s ZZᵀ)),
    taken by Cholesky in float32 or better whatever the autocast state, since PyTorch has no factorisation in
    half precision. The matrix is I plus a positive semidefinite one, so the factor exists for duplicated or zero rows.

    Parameters
    ----------
    Z : tensor (n, d)
        Rows are usually L2-normalised; they are taken as they come. Half precision is promoted to float32.
    scale : float, optional
        s. Default d / (n · 0.5), the published scale of the pair variant.

    Returns
    -------
    scalar tensor, float32 (float64 for float64 input); differentiable.

    Raises
    ------
    ValueError
        If Z is not a non-empty matrix, or if the scale is negative.

    Source: Yu et al., MCR², NeurIPS 2020, eq. 1 (there s = d / (n eps²)); Jiang et al., arXiv 2407.03106.
    """
    if Z.ndim != 2 or Z.shape[0] == 0:
        raise ValueError(f"coding_rate: Z must be a non-empty (n, d) matrix, got {tuple(Z.shape)}")
    n, d = Z.shape
    s = default_scale(n, d) if scale is None else scale
    if not torch.is_tensor(s) and s < 0:
        raise ValueError(f"coding_rate: scale must not be negative, got {s}")
    with torch.autocast(Z.device.type, enabled=False):
        Z = Z.to(torch.promote_types(Z.dtype, torch.float32))
        gram = Z.T @ Z if d <= n else Z @ Z.T
        eye = torch.eye(len(gram), dtype=Z.dtype, device=Z.device)
        # _ex does not wait for the device to report success; a NaN in Z stays a NaN in the rate
        factor = torch.linalg.cholesky_ex(eye + s * gram).L
        return factor.diagonal().log().sum()  # 1/2 logdet = the sum of the logs of the factor's diagonal


def max_coding_rate(n, d, scale=None):
    """R_max = r/2 · log(1 + s n / r), r = min(n, d): the largest R(Z; s) of n unit rows in d dimensions, in nats.

    n may be a scalar tensor, the result is then one too. Reached when the n units of energy are spread evenly over r orthogonal directions (log is concave).
    """
    s = default_scale(n, d) if scale is None else scale
    if torch.is_tensor(n):  # a count left on its device: no wait for it
        r = n.clamp(max=d)
        return r / 2 * torch.log1p(s * n / r)
    r = min(n, d)
    return r / 2 * math.log1p(s * n / r)


def coding_rate_share(Z, scale=None):
    """R(Z; s) / R_max of the L2-normalised rows of Z: 1 = spread evenly, near 0 = collapsed. A scalar tensor in [0, 1]."""
    Z = torch.nn.functional.normalize(Z.to(torch.promote_types(Z.dtype, torch.float32)), dim=1)
    return coding_rate(Z, scale) / max_coding_rate(*Z.shape, scale=scale)
