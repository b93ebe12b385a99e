"""Collapsed and coincident embeddings: distances and their losses against differences in float64."""

import pytest
import torch
from criteria_tools import build
from torch.nn.functional import normalize

from criteria import coding_rate
from criteria.base import distances

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
    return mean_above_0(torch.cat([torch.relu(D[a, p] - 1.2 + 0.2), torch.relu(1.2 - D[a, n] + 0.2)]))


@pytest.mark.parametrize("between_classes", [False, True], ids=["all", "classes"])
@pytest.mark.parametrize("spread", [1e-2, 1e-3, 3e-4, 1e-4, 1e-5])
@pytest.mark.parametrize("name", ["contrastive", "triplet", "margin"])
def test_distance_losses_keep_their_gradient_near_collapse(name, spread, between_classes):
    """float32 against differences in float64; torch.cdist's matrix form is 10% off at 1e-3 and all of it at 3e-4."""
    x = collapsed(spread, between_classes).requires_grad_()
    loss = build(f"{name} --batch_mining all --loss_triplet_margin 2", 8)
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


def test_backward_under_autocast_is_in_full_precision():
    """Of the two gradients that are written out here; torch's own are as it pleases there."""
    x = torch.randn(32, 16, requires_grad=True)
    for function in (lambda x: distances(x).square().sum(), lambda x: coding_rate(x, 3.0)):
        (expected,) = torch.autograd.grad(function(x), x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.equal(torch.autograd.grad(function(x), x)[0], expected)
