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
        "--loss", "margin", "--evaluation_metrics", "e_recall@1",
    )  # fmt: skip


def test_both_loops_train_the_same_network_alike_but_for_the_augmentation(built):
    """On images that augmentation leaves as they are, ours and the plain loop end with the same loss and weights."""
    built.opt.batch_mining = "all"
    split = built.loader.dataset
    split.augmented = False  # the seeds then do nothing
    ours, plain = training.ours(built, 3), training.plain(built, 3, tuned=True)
    torch.manual_seed(built.opt.seed)
    weights = {name: w.clone() for name, w in built.model.state_dict().items()}
    ours()
    assert built.progress.step == 3 and built.progress.first_bad_step() is None
    moved = {name: (w - weights[name]).abs().max() for name, w in built.model.state_dict().items() if w.is_floating_point()}
    assert moved["last_linear.weight"] > 0
    plain()


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
