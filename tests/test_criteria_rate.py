"""The coding rate against determinants, singular values, finite differences and golden numbers."""

import math

import numpy as np
import pytest
import torch
from criteria_tools import build
from torch.nn.functional import normalize

from criteria import coding_rate, coding_rate_share, max_coding_rate


def by_singular_values(Z, s):
    return 0.5 * np.log1p(s * np.linalg.svd(Z.detach().double().numpy(), compute_uv=False) ** 2).sum()


@pytest.mark.parametrize("n, d", [(7, 20), (20, 7), (1, 5), (6, 6)])
def test_coding_rate_is_the_determinant(n, d):
    Z = torch.randn(n, d, dtype=torch.float64, requires_grad=True)
    expected = 0.5 * np.linalg.slogdet(np.eye(d) + 0.7 * Z.detach().numpy().T @ Z.detach().numpy())[1]
    assert float(coding_rate(Z, 0.7)) == pytest.approx(expected, rel=1e-12)
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.7), Z)


def test_coding_rate_of_golden_embeddings(metrics_case):
    rate = float(coding_rate(torch.tensor(metrics_case["embeddings"]).double()))
    assert rate == pytest.approx(float(metrics_case["coding_rate_dis"]), rel=1e-9)


@pytest.mark.parametrize("n, d", [(90, 512), (512, 90)])
def test_rate_lies_below_its_maximum_and_reaches_it(n, d):
    rows = torch.eye(d, dtype=torch.float64).repeat(math.ceil(n / d), 1)[: n if n < d else n // d * d]
    assert float(coding_rate(rows, 1.3)) == pytest.approx(max_coding_rate(*rows.shape, 1.3), rel=1e-9)
    assert 0.9 < float(coding_rate_share(torch.randn(n, d))) < 1
    assert float(coding_rate_share(torch.ones(n, d))) < 0.06
    assert float(max_coding_rate(torch.tensor(n), d, 1.3)) == pytest.approx(max_coding_rate(n, d, 1.3))


ZEROS, ONES = torch.zeros(5, 3), torch.ones(6, 3)


@pytest.mark.parametrize("Z", [ZEROS, ONES, ONES[:1], torch.cat([ZEROS, ONES])], ids=["0", "equal", "one row", "both"])
def test_gradcheck_of_degenerate_rows(Z):
    assert torch.autograd.gradcheck(lambda z: coding_rate(z, 0.9), Z.double().requires_grad_())


def test_coding_rate_takes_duplicates_zero_rows_and_half_precision_under_autocast():
    Z = normalize(torch.randn(6, 32), dim=1)
    Z = torch.cat([Z, Z, torch.zeros(2, 32)]).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rate = coding_rate(Z.bfloat16(), 2.0)
    rate.backward()
    assert rate.dtype == torch.float32 and torch.isfinite(Z.grad).all()
    assert float(rate) == pytest.approx(float(coding_rate(Z.double(), 2.0)), rel=1e-2)


def test_numpy_arrays_are_taken():
    Z = np.random.default_rng(0).normal(size=(7, 5))
    for dtype, rel in ((np.float64, 1e-12), (np.float32, 1e-6)):
        rate = coding_rate(Z.astype(dtype), 0.7)
        assert rate.dtype == getattr(torch, np.dtype(dtype).name)
        assert float(rate) == pytest.approx(by_singular_values(torch.tensor(Z), 0.7), rel=rel)
    assert float(coding_rate_share(Z)) == pytest.approx(float(coding_rate_share(torch.tensor(Z))))
    assert float(coding_rate(np.eye(3, dtype=np.int64), 1.0)) == pytest.approx(1.5 * np.log(2))


# precision


@pytest.mark.parametrize("length", [1, 100, 1e3, 1e4, 1e5])
def test_float64_is_chosen_by_the_length_of_the_rows(length):
    """Of the published pair variant, which takes the embeddings as they come, and of the function."""
    x = (length * normalize(torch.ones(90, 512) + 1e-6 * torch.randn(90, 512), dim=1)).requires_grad_()
    expected = by_singular_values(x, 512 / (90 * 0.5))
    assert float(coding_rate(x)) == pytest.approx(expected, rel=2e-3)
    loss = build("antico --antico_type pair --antico_form neg --embed_dim 512 --bs 90", 45)
    value = loss(x, torch.arange(90) // 2)
    value.backward()
    assert loss.logs["coding_rate"] == pytest.approx(expected, rel=2e-3)
    assert value.dtype == torch.float32 and torch.isfinite(x.grad).all()


def test_rows_too_long_for_float64():
    """One line from the function, NaN from the loss, which trains on where it normalises them itself."""
    x = 1e8 * normalize(torch.ones(12, 16) + 1e-3 * torch.randn(12, 16), dim=1)
    for Z in (x, 1e12 * x, x.double(), 1e12 * x.double()):
        with pytest.raises(ValueError, match="L2-normalise"):
            coding_rate(Z, 1.0)
    assert all(torch.isnan(coding_rate(x, 1.0, dtype=dtype)) for dtype in (torch.float64, torch.float32))
    labels = torch.arange(12) // 2
    assert torch.isnan(build("antico --antico_type pair --embed_dim 16", 6)(x, labels))
    assert torch.isfinite(build("antico_pair --embed_dim 16", 6)(x, labels))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)], ids=str)
@pytest.mark.parametrize("n, d", [(6, 20), (20, 6)])
def test_a_tiny_rate_is_not_lost_in_the_identity(n, d, dtype, tolerance):
    """float32's 1 + x is 1 for x below 6e-8."""
    rows = normalize(torch.randn(n, d, dtype=torch.float64), dim=1)
    Z = rows.to(dtype).requires_grad_()
    rows = rows.detach().numpy()
    for trace in 10.0 ** np.arange(-25, 3):
        s = torch.tensor(trace / n, dtype=dtype, requires_grad=True)
        rate = coding_rate(Z, s)
        assert float(rate) == pytest.approx(by_singular_values(Z, trace / n), rel=tolerance), trace
        inverse = np.linalg.inv(np.eye(d) + trace / n * rows.T @ rows)
        of_Z, of_s = torch.autograd.grad(rate, (Z, s))
        np.testing.assert_allclose(of_Z.numpy(), trace / n * rows @ inverse, rtol=tolerance, atol=tolerance * trace / n)
        assert float(of_s) == pytest.approx(0.5 * np.trace(inverse @ rows.T @ rows), rel=tolerance)


def test_share_of_rows_of_any_length():
    Z = normalize(torch.randn(40, 16), dim=1)
    expected = by_singular_values(Z, 16 / (40 * 0.5)) / max_coding_rate(40, 16)
    lengths = torch.logspace(-30, 30, 40)[:, None]
    for scaled in (Z, 1e30 * Z, 1e-30 * Z, lengths * Z):
        assert float(coding_rate_share(scaled)) == pytest.approx(expected, rel=1e-5)
    assert float(coding_rate_share(1e-40 * Z)) == pytest.approx(expected, rel=1e-2)  # float32 has few digits there
    assert float(coding_rate_share(torch.zeros(4, 3))) == 0


def test_bad_arguments():
    settings = [{"dtype": torch.bfloat16}, {"scale": -1.0}, {"scale": math.nan}]
    for Z, more in [(np.zeros((0, 4)), {}), (np.ones(3), {}), *((ONES, setting) for setting in settings)]:
        with pytest.raises(ValueError):
            coding_rate(Z, **more)
