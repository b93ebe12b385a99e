"""Collapsed, coincident, very long and very short embeddings: against differences and singular values in float64."""

import numpy as np
import pytest
import torch
from criteria_tools import select
from torch.nn.functional import normalize

import criteria
import parameters
from criteria.antico import AntiCo
from criteria.base import Criterion, distances
from criteria.coding_rate import coding_rate, coding_rate_share, max_coding_rate

LABELS = torch.arange(32) // 4  # torch.cdist takes the matrix form from 26 rows on


def collapsed(spread, between_classes=False, d=64):
    """32 embeddings of 8 classes, their distances about `spread`: all of them, or those within the classes."""
    torch.manual_seed(0)
    centre = torch.randn(8, d)[LABELS] if between_classes else torch.randn(1, d)
    return normalize(normalize(centre, dim=1) + spread * normalize(torch.randn(32, d), dim=1), dim=1)


def exact_distances(x):
    """By differences, in the dtype of x; a coincident pair has distance and gradient 0."""
    x = normalize(x, dim=1)
    squared = (x[:, None] - x[None]).square().sum(-1)
    apart = squared > 0
    return torch.where(apart, squared, 1).sqrt() * apart


def mean_above_0(terms):
    return terms.sum() / (terms > 0).sum().clamp(min=1)


def naive(name, x):
    D = exact_distances(x)
    same = LABELS[:, None] == LABELS[None, :]
    positive, negative = same & ~torch.eye(32, dtype=torch.bool), ~same
    if name == "contrastive":
        return mean_above_0(D[positive]) + mean_above_0(torch.relu(1 - D[negative]))
    a, p, n = (positive[:, :, None] & negative[:, None, :]).nonzero(as_tuple=True)
    if name == "triplet":
        return mean_above_0(torch.relu(D[a, p] - D[a, n] + 2))
    terms = torch.cat([torch.relu(D[a, p] - 1.2 + 0.2), torch.relu(1.2 - D[a, n] + 0.2)])
    return mean_above_0(terms)


@pytest.mark.parametrize("between_classes", [False, True], ids=["all", "classes"])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5])
@pytest.mark.parametrize("name", ["contrastive", "triplet", "margin"])
def test_distance_losses_keep_their_gradient_near_collapse(name, spread, between_classes):
    """float32 against differences in float64; torch.cdist's matrix form is 10% off at 1e-3 and all of it at 3e-4."""
    x = collapsed(spread, between_classes).requires_grad_()
    loss = criteria.select(parameters.parse(["--loss", name, "--batch_mining", "all", "--loss_triplet_margin", "2"]), 8)
    reference = x.detach().double().requires_grad_()
    expected = naive(name, reference)
    (exact,) = torch.autograd.grad(expected, reference)
    value = loss(x, LABELS)
    (gradient,) = torch.autograd.grad(value, x)
    assert float(value) == pytest.approx(float(expected), rel=1e-5)
    assert float((gradient - exact).norm() / exact.norm()) < 1e-3 + 2e-7 / spread  # the embeddings' own rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coincident_points_have_distance_and_gradient_0(dtype):
    x = torch.cat([torch.randn(3, 16, dtype=dtype).repeat(2, 1), torch.zeros(2, 16, dtype=dtype)]).requires_grad_()
    D = distances(x)
    assert all(D[i, j] == 0 for i, j in ((0, 0), (0, 3), (4, 1), (6, 6), (6, 7))) and float(D[6, 0]) == pytest.approx(1)
    assert torch.equal(torch.autograd.grad(D[0, 3] + D[2, 2] + D[4, 1], x, retain_graph=True)[0], torch.zeros_like(x))
    (gradient,) = torch.autograd.grad(D.sum(), x)
    assert torch.isfinite(gradient).all() and gradient[:6].norm() > 0


def test_distances_are_differences_in_value_and_gradient():
    x = torch.randn(9, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(9, 9, dtype=torch.float64)
    torch.testing.assert_close(distances(x), exact_distances(x), rtol=1e-10, atol=1e-10)
    ours, exact = (torch.autograd.grad((weight * f(x)).sum(), x)[0] for f in (distances, exact_distances))
    torch.testing.assert_close(ours, exact)


# the coding rate


def rate_by_singular_values(Z, s):
    return 0.5 * np.log1p(s * np.linalg.svd(Z.detach().double().numpy(), compute_uv=False) ** 2).sum()


@pytest.mark.parametrize("length", [1, 100, 1e3, 1e4, 1e5])
def test_float64_is_chosen_by_the_length_of_the_rows(length):
    """Of the published pair variant, which takes the embeddings as they come, and of the function."""
    x = (length * normalize(torch.ones(90, 512) + 1e-6 * torch.randn(90, 512), dim=1)).requires_grad_()
    expected = rate_by_singular_values(x, 512 / (90 * 0.5))
    assert float(coding_rate(x)) == pytest.approx(expected, rel=2e-3)
    loss = criteria.select(
        parameters.parse(
            ["--loss", "antico", "--antico_type", "pair", "--antico_form", "neg", "--embed_dim", "512", "--bs", "90"]
        ),
        45,
    )
    value = loss(x, torch.arange(90) // 2)
    value.backward()
    assert loss.logs["coding_rate"] == pytest.approx(expected, rel=2e-3)
    assert value.dtype == torch.float32 and torch.isfinite(x.grad).all()


def test_rows_too_long_for_float64_are_told():
    x = 1e8 * normalize(torch.ones(12, 16) + 1e-3 * torch.randn(12, 16), dim=1)
    for Z in (x, 1e12 * x, x.double(), 1e12 * x.double()):
        with pytest.raises(ValueError, match="scale times the squared norm of Z is .*L2-normalise the rows"):
            coding_rate(Z, 1.0)
    assert all(torch.isnan(coding_rate(x, 1.0, dtype=dtype)) for dtype in (torch.float64, torch.float32))
    loss = criteria.select(parameters.parse(["--loss", "antico", "--antico_type", "pair", "--embed_dim", "16"]), 6)
    with pytest.raises(criteria.NonFinite, match="antico_pair: .*L2-normalise .*: an --arch .* _normalize") as told:
        loss(x, torch.arange(12) // 2)
    assert "\n" not in str(told.value)
    own = criteria.select(parameters.parse(["--loss", "antico_pair", "--embed_dim", "16"]), 6)
    assert torch.isfinite(own(x, torch.arange(12) // 2))  # normalises them


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
        assert float(rate) == pytest.approx(rate_by_singular_values(Z, trace / n), rel=tolerance), trace
        inverse = np.linalg.inv(np.eye(d) + trace / n * rows.T @ rows)
        of_Z, of_s = torch.autograd.grad(rate, (Z, s))
        np.testing.assert_allclose(of_Z.numpy(), trace / n * rows @ inverse, rtol=tolerance, atol=tolerance * trace / n)
        assert float(of_s) == pytest.approx(0.5 * np.trace(inverse @ rows.T @ rows), rel=tolerance)


def test_numpy_arrays_are_taken():
    Z = np.random.default_rng(0).normal(size=(7, 5))
    for dtype, rel in ((np.float64, 1e-12), (np.float32, 1e-6)):
        rate = coding_rate(Z.astype(dtype), 0.7)
        assert rate.dtype == getattr(torch, np.dtype(dtype).name)
        assert float(rate) == pytest.approx(rate_by_singular_values(torch.tensor(Z), 0.7), rel=rel)
    assert float(coding_rate_share(Z)) == pytest.approx(float(coding_rate_share(torch.tensor(Z))))
    assert float(coding_rate(np.eye(3, dtype=np.int64), 1.0)) == pytest.approx(1.5 * np.log(2))
    with pytest.raises(ValueError, match=r"non-empty \(n, d\) matrix, got \(3,\)"):
        coding_rate(np.ones(3))


def test_share_of_rows_of_any_length():
    Z = normalize(torch.randn(40, 16), dim=1)
    expected = rate_by_singular_values(Z, 16 / (40 * 0.5)) / max_coding_rate(40, 16)
    lengths = torch.logspace(-30, 30, 40)[:, None]
    for scaled in (Z, 1e30 * Z, 1e-30 * Z, lengths * Z):
        assert float(coding_rate_share(scaled)) == pytest.approx(expected, rel=1e-5)
    assert float(coding_rate_share(1e-40 * Z)) == pytest.approx(expected, rel=1e-2)  # float32 has few digits there
    assert float(coding_rate_share(torch.zeros(4, 3))) == 0


def test_training_reads_nothing_back(monkeypatch):
    """A step after the first of a hundred, as on a GPU: no criterion turns a tensor into a number."""
    embeddings, labels = normalize(torch.randn(12, 16), dim=1).requires_grad_(), torch.arange(12) // 2

    def refuse(*_):
        raise AssertionError("read back")

    losses = [
        select(10, "--loss", name, "--embed_dim", 16).float()
        for name in ("antico", "antico_pair", "antico_batch_proxy", "antico_all_proxy", "antico_class_means", "oproxy")
    ]
    losses.append(select(10, "--loss", "antico", "--antico_type", "pair", "--embed_dim", 16).float())
    for loss in losses:
        loss(embeddings, labels)
    monkeypatch.setattr(Criterion, "check_values", lambda *_: None)  # what a GPU skips
    monkeypatch.setattr(AntiCo, "check_values", lambda *_: None)
    for name in ("__float__", "__int__", "__bool__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, refuse)
    for loss in losses:
        loss(embeddings, labels).backward()
