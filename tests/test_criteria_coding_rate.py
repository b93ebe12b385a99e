"""The coding rate against determinants, finite differences and golden numbers."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from criteria.coding_rate import coding_rate, coding_rate_share, max_coding_rate


@pytest.mark.parametrize("n, d", [(7, 20), (20, 7), (1, 5), (6, 6)])
def test_coding_rate_is_the_determinant(n, d):
    Z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * np.linalg.slogdet(np.eye(d) + 0.7 * Z.detach().numpy().T @ Z.detach().numpy())[1]
    assert float(coding_rate(Z, 0.7)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.7), Z)


def test_coding_rate_of_golden_embeddings(metrics_case):
    assert float(coding_rate(torch.tensor(metrics_case["embeddings"]).double())) == pytest.approx(float(metrics_case["coding_rate_dis"]), rel=1e-9)


@pytest.mark.parametrize("n, d", [(90, 512), (512, 90)])
def test_rate_lies_below_its_maximum_and_reaches_it(n, d):
    spread = torch.eye(max(n, d), dtype=torch.float64)[:n, :d]
    if n > d:
        spread = torch.eye(d, dtype=torch.float64).repeat(math.ceil(n / d), 1)[: n // d * d]
    scale = 1.3
    assert float(coding_rate(spread, scale)) == pytest.approx(max_coding_rate(*spread.shape, scale), rel=1e-9)
    assert 0.9 < float(coding_rate_share(torch.randn(n, d))) < 1
    assert float(coding_rate_share(torch.ones(n, d))) < 0.06
    assert float(max_coding_rate(torch.tensor(n), d, scale)) == pytest.approx(max_coding_rate(n, d, scale))


def test_coding_rate_takes_duplicates_zero_rows_and_half_precision_under_autocast():
    Z = normalize(torch.randn(6, 32), dim=1)
    Z = torch.cat([Z, Z, torch.zeros(2, 32)]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rate = coding_rate(Z.bfloat16(), 2.0)
    rate.backward()
    assert rate.dtype == torch.float32 and torch.isfinite(Z.grad).all()
    assert float(rate) == pytest.approx(float(coding_rate(Z.double(), 2.0)), rel=1e-2)
    with pytest.raises(ValueError, match="non-empty"):
        coding_rate(torch.zeros(0, 4))
