"""The coding rate of a set of vectors, and its maximum: the quantity the Anti-Collapse loss acts on."""

import math

import torch
from torch.nn.functional import normalize

# of the trace of s ZᵀZ, which one eigenvalue has alone where Z is collapsed: float32 products then err by more than
LARGE, LARGEST = 1e6, 1e14  # 1/10 of the identity's 1, and float64 products by 1/100


def full_precision(x):
    """x in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class HalfLogDet(torch.autograd.Function):
    """1/2 logdet(I + s ZᵀZ), gradient s Z (I + s ZᵀZ)⁻¹; NaN where the rounding of s ZᵀZ loses the identity."""

    @staticmethod
    def forward(ctx, Z, s):
        ctx.wide = Z.shape[0] < Z.shape[1]
        A = s * (Z @ Z.T if ctx.wide else Z.T @ Z)
        trace, squares = A.diagonal().sum(), torch.linalg.vector_norm(A).square()
        A.diagonal().add_(1)
        # _ex does not wait for the device to report success; a NaN in Z stays a NaN in the rate
        factor, failed = torch.linalg.cholesky_ex(A)
        s = s if torch.is_tensor(s) else torch.full((), s, dtype=Z.dtype, device=Z.device)  # torch.as_tensor waits
        ctx.save_for_backward(Z, factor, s)
        rate = factor.diagonal().log().sum()  # 1/2 logdet = the sum of the logs of the factor's diagonal
        # near 0 the two terms of log(1 + x) = x - x²/2 + ..., up to where the third is as small as the 1's rounding
        eps = torch.finfo(Z.dtype).eps
        rate = torch.where(trace < (3 * eps) ** (1 / 3), (trace - squares / 2) / 2, rate)
        return rate.masked_fill((failed > 0) | (trace > 0.5 / eps), torch.nan)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        Z, factor, s = ctx.saved_tensors
        with torch.autocast(Z.device.type, enabled=False):
            inverse = grad * torch.cholesky_inverse(factor)
            product = inverse @ Z if ctx.wide else Z @ inverse
        # the derivative by s is 1/2 tr(A⁻¹ ZᵀZ)
        return s * product, (product * Z).sum() / 2 if ctx.needs_input_grad[1] else None


def coding_rate(Z, scale=None, dtype=None):
    """R(Z; s) = 1/2 logdet(I + s ZᵀZ), in nats: a scalar tensor, differentiable (once).

    The determinant is that of the smaller Gram matrix (Sylvester: logdet(I_d + s ZᵀZ) = logdet(I_n + s ZZᵀ)), by
    Cholesky and never in half precision, whatever the autocast state; duplicated or zero rows do no harm. Source: Yu et
    al., MCR², NeurIPS 2020, eq. 1 (there s = d / (n eps²)); Jiang et al., arXiv 2407.03106.

    Z : tensor or numpy array (n, d), rows as they come, usually L2-normalised
    scale : s, float or scalar tensor; default d / (n · 0.5), the published scale of the pair variant
    dtype : torch.float32 or float64, in which NaN is where that loses the identity; default float64 for float64 input
        and where s ‖Z‖² > 1e6, else float32. Finding out waits for Z's device; a compiled call does not look.

    Raises ValueError if Z is not a non-empty matrix, the scale is negative, dtype is below float32, or (without dtype)
    if s ‖Z‖² > 1e14, where float64 loses the identity too.
    """
    Z = torch.as_tensor(Z)
    fits = Z.ndim == 2 and Z.numel() > 0 and dtype in (None, torch.float32, torch.float64)
    if not fits or not (scale is None or torch.is_tensor(scale) or scale >= 0):
        wanted = "a non-empty (n, d) matrix, a scale of 0 or more, and as dtype torch.float32 or torch.float64"
        raise ValueError(f"coding_rate: takes {wanted}, got {tuple(Z.shape)}, {scale} and {dtype}")
    s = Z.shape[1] / (Z.shape[0] * 0.5) if scale is None else scale
    if dtype is None:
        Z = full_precision(Z)
        length = 0.0 if torch.compiler.is_compiling() else float(torch.linalg.vector_norm(Z.detach()))
        trace = float(s) * length**2 if length else 0.0
        if trace > LARGEST:
            size = f"scale times the squared norm of Z is {trace:.0e}, beyond {LARGEST:.0e}"
            raise ValueError(f"coding_rate: {size}, where float64 loses the identity; L2-normalise the rows")
        dtype = torch.float64 if trace > LARGE else Z.dtype
    with torch.autocast(Z.device.type, enabled=False):
        return HalfLogDet.apply(Z.to(dtype), s)


def max_coding_rate(n, d, scale=None):
    """R_max = r/2 · log(1 + s n / r), r = min(n, d): the largest R(Z; s) of n unit rows in d dimensions, in nats.

    Reached when the n units of energy are spread evenly over r orthogonal directions (log is concave). n may be a
    scalar tensor, a count left on its device; the result is then one too.
    """
    s = d / (n * 0.5) if scale is None else scale
    r, log1p = (n.clamp(max=d), torch.log1p) if torch.is_tensor(n) else (min(n, d), math.log1p)
    return r / 2 * log1p(s * n / r)


def coding_rate_share(Z, scale=None):
    """R(Z; s) / R_max of the L2-normalised rows of Z (n, d), tensor or array: 1 = spread evenly, near 0 = collapsed."""
    Z = full_precision(torch.as_tensor(Z))
    largest = Z.detach().abs().amax(1, keepdim=True)  # a length of 1e30 has no square in float32, and 1e-30 neither
    Z = normalize(Z / largest.masked_fill(largest == 0, 1), dim=1)
    return coding_rate(Z, scale) / max_coding_rate(*Z.shape, scale=scale)
