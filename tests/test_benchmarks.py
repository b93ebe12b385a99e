"""The benchmarks of training run, and a step leaves nothing behind."""

import re

import pytest
import torch

from benchmarks import training
from utilities import device


@pytest.fixture
def built(tmp_path):
    return training.build(
        str(tmp_path), "--dataset", "glyphs", "--arch", "conv4_normalize", "--kernels", "0", "--bs", "8", "--embed_dim", "8",
        "--loss", "multisimilarity", "--evaluation_metrics", "e_recall@1",
    )  # fmt: skip


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


@pytest.mark.parametrize("tuned", [False, True])
def test_our_loop_and_the_plain_one_learn_the_same(built, tuned):
    """Without augmentation, which draws otherwise in the plain loop, they differ by rounding alone."""
    built.loader.dataset.augmented = False
    network = training.network_of(built, tuned)
    began, copy = weights(built.model), weights(network[0])
    assert torch.equal(began, copy)
    training.ours(built, 3)()
    training.plain(built, 3, network, tuned)()
    assert built.progress.step == 3 and built.progress.first_bad_step() is None
    mine, theirs = weights(built.model), weights(network[0])
    # Adam moves a weight by its rate however small the gradient, so that rounding shows in some
    assert (mine - theirs).norm() < 0.1 * (mine - began).norm()
    assert (mine - began).abs().max() > 1e-5  # the rate


def test_a_step_of_ours_keeps_nothing_for_a_gpu_that_is_not_in_use(built):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    epoch = training.ours(built, 3)
    epoch()
    before = len(torch.cuda._queued_calls)
    epoch()
    assert len(torch.cuda._queued_calls) == before


def test_seed_seeds_what_torch_draws():
    device.seed(2**63 - 1, torch.device("cpu"))
    drawn = torch.rand(4)
    torch.manual_seed(2**63 - 1)
    assert torch.equal(drawn, torch.rand(4))


def test_training_in_miniature(capsys):
    assert training.main(["--quick"]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row[2].strip() for row in rows] == ["plain", "plain, tuned"] * 2
    for row in rows:
        assert all(re.fullmatch(r"\d+\.\d+", row[i].strip()) and float(row[i]) > 0 for i in (1, 3, 4, 5))
