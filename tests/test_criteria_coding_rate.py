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
    assert float(coding_rate(torch.tensor(metrics_case["embeddings"]).double())) == pytest.approx(
        float(metrics_case["coding_rate_dis"]), rel=1e-9
    )


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


@pytest.mark.parametrize("n, d", [(320, 300), (300, 320), (1, 300)])
def test_rate_and_gradient_are_those_of_the_formula(n, d):
    """Autograd through the definition, in torch, is the reference."""
    Z = normalize(torch.randn(n, d, dtype=torch.float64), dim=1).requires_grad_()
    s = torch.tensor(1.7, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * torch.linalg.slogdet(torch.eye(d, dtype=torch.float64) + s * Z.T @ Z).logabsdet
    ours = coding_rate(Z, s)
    assert float(ours) == pytest.approx(float(expected), rel=1e-10)
    for a, b in zip(torch.autograd.grad(ours, (Z, s)), torch.autograd.grad(expected, (Z, s))):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize(
    "Z",
    [torch.zeros(5, 3), torch.ones(6, 3), torch.ones(1, 3), torch.cat([torch.zeros(2, 3), torch.ones(2, 3)])],
    ids=["zeros", "equal", "one row", "both"],
)
def test_gradcheck_of_degenerate_rows(Z):
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.9), Z.double().requires_grad_())


def test_precision():
    collapsed = normalize(torch.ones(400, 32) + 1e-3 * torch.randn(400, 32), dim=1)
    exact = float(coding_rate(collapsed.double(), 1e6))
    assert coding_rate(collapsed, 1.0).dtype == torch.float32
    assert coding_rate(collapsed, 1.0, dtype=torch.float64).dtype == torch.float64
    assert coding_rate(collapsed, 1e6).dtype == torch.float64  # by itself where float32 would be noise
    assert float(coding_rate(collapsed, 1e6)) == pytest.approx(exact, rel=1e-9)
    for argument, value, words in (
        ("dtype", torch.bfloat16, "dtype must be"),
        ("scale", -1.0, "must not be negative"),
        ("scale", float("nan"), "must not be"),
    ):
        with pytest.raises(ValueError, match=words):
            coding_rate(collapsed, **{argument: value})


def test_compiles_whole():
    compiled = torch.compile(coding_rate, backend="aot_eager", fullgraph=True)
    Z = torch.randn(9, 20, requires_grad=True)
    torch.testing.assert_close(compiled(Z, 0.7), coding_rate(Z, 0.7))
    torch.testing.assert_close(torch.autograd.grad(compiled(Z, 0.7), Z), torch.autograd.grad(coding_rate(Z, 0.7), Z))
