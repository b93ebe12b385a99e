"""Two and three processes against one: gradients, steps of training, BatchNorm, the evaluation's shards."""

import copy

import pytest
import ranks
import runs
import torch

from architectures import batchnorm
from utilities import device as devices
from utilities import distributed


@pytest.fixture(scope="module")
def one():
    return ranks.everything()


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """{number of processes: the results of each}."""
    results = {}
    for world in (2, 3):
        folder = tmp_path_factory.mktemp(f"world{world}")
        ends = runs.run_ranks(world, [folder], folder, "ranks")
        assert [status for status, _ in ends] == [0] * world, ends
        results[world] = [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(world)]
    return results


def error(ours, theirs):
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize("world", [2, 3])
def test_epochs_are_those_of_one_process(one, several, world, case):
    expected = one["train"][case]
    assert abs(expected["losses"][-1] - expected["losses"][0]) > 1e-4  # it learns
    for result in (r["train"][case] for r in several[world]):
        assert error(result["losses"], expected["losses"]) < 1e-10
        for part in ("first", "model", "criterion"):
            assert result[part].keys() == expected[part].keys()
            assert all(error(result[part][name], value) < 1e-10 for name, value in expected[part].items())


@pytest.mark.parametrize("case", ranks.CASES)
def test_the_gradient_is_that_of_the_whole_batch(one, case):
    """Against autograd alone: no gather, no chunks, no factor."""
    flags, kind, *_ = ranks.CASES[case]
    model = ranks.network(kind)
    model.warm_up("--warmup" in flags)
    run = ranks.make_run(flags, model.train())
    images, labels = ranks.batch(100)
    torch.manual_seed(ranks.main.derive(0, 1, 0))  # what mining draws
    run.criterion(model(images), labels).backward()
    expected, found = ranks.gradients(run), one["train"][case]["first"]
    assert found.keys() == expected.keys()
    assert all(error(found[name], value) < 1e-10 for name, value in expected.items())


def test_batchnorm_is_that_of_the_whole_batch(one, several):
    """In float32, and in bfloat16, whose statistics are float32 too; of rows and of maps."""
    for results in several.values():
        for result in results:
            for (*found, dtype), (*expected, own) in zip(result["batchnorm"], one["batchnorm"], strict=True):
                assert dtype == own and all(error(a, b) < 1e-5 for a, b in zip(found, expected, strict=True))


def test_shards_of_an_evaluation_come_together_in_order(one, several):
    for n, (embeddings, labels) in one["embeddings"].items():
        for results in several.values():
            for found in (r["embeddings"][n] for r in results):
                assert error(found[0], embeddings) < 1e-6 and torch.equal(found[1], labels)


def test_timms_batchnorm_keeps_its_activation(monkeypatch):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet").eval(), torch.randn(2, 3, 64, 64)
    found = batchnorm.with_sync_batchnorm(copy.deepcopy(model))  # on GPUs
    assert any(isinstance(m, torch.nn.SyncBatchNorm) for m in found.modules())
    assert torch.equal(found(images), model(images))
    monkeypatch.setattr(distributed, "world", lambda: 2)
    whole = batchnorm.synchronize(copy.deepcopy(model).train())  # on CPUs
    monkeypatch.undo()
    monkeypatch.setattr(batchnorm.dist, "all_reduce", lambda x: None)  # of one process
    assert torch.allclose(whole(images), model.train()(images), atol=1e-5)
    assert torch.allclose(whole.eval()(images), model.eval()(images), atol=1e-5)


def test_more_processes_than_gpus_is_an_error(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node=4: this machine has 2 GPUs"):
        devices.choose_device(ranks.parameters.parse([]))
