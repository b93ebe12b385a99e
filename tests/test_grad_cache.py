"""--grad_cache: the gradient of a batch that is embedded in chunks is the whole batch's (Gao et al., 2021)."""

import pytest
import ranks
import torch
from torch import nn

from architectures import batchnorm

LOSSES = ["margin --batch_mining distance", "proxyanchor", "antico", "antico_pair", "antico_batch_proxy"]
LOSSES += ["antico_all_proxy", "antico_class_means"]


def step(flags, model=None):
    """(loss, gradients) of one training step on a batch of 24, in float64."""
    run = ranks.make_run(flags, (model or ranks.network("frozen")).double())
    batchnorm.check_chunks(run.model, run.opt)  # frozen, it is not refused
    return ranks.train_epoch(run, 1), ranks.gradients(run)


def difference(a, b):
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).norm() / b[name].norm()) for name in b)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("chunk", [1, 5, 8, 100])  # of 24: two that divide it, one that does not, one larger
def test_gradient_is_that_of_the_whole_batch(loss, chunk):
    expected, found = step(f"--loss {loss}"), step(f"--loss {loss} --grad_cache {chunk}")
    assert found[0] == pytest.approx(expected[0], rel=1e-12) and difference(found[1], expected[1]) < 1e-10


class Watched(nn.Dropout):
    """Dropout that keeps its factors."""

    def forward(self, x):
        factors = super().forward(torch.ones_like(x))
        self.factors = [*getattr(self, "factors", []), factors]
        return x * factors


def test_dropout_is_the_same_when_a_chunk_is_embedded_again():
    model, dropout = ranks.network("frozen"), Watched(0.5)
    model.features = nn.Sequential(model.features, dropout)
    step("--loss proxyanchor --grad_cache 5", model)
    first, again = dropout.factors[:5], dropout.factors[5:]
    assert all(map(torch.equal, first, again)) and len(again) == 5 and not torch.equal(first[0], first[1])
