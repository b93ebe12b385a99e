"""Two and three processes against one: gradients, 10 steps of training, BatchNorm, the evaluation's shards."""

import logging

import pytest
import ranks
import torch
from torch import nn

from utilities import batchnorm, distributed
from utilities import device as devices

TINY = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 1e-5}


@pytest.fixture(scope="module")
def one():
    disabled = logging.root.manager.disable
    logging.disable()  # the published form of antico has something to say
    yield ranks.everything()
    logging.disable(disabled)


@pytest.fixture(scope="module")
def several(server, tmp_path_factory):
    """{number of processes: the results of each}."""
    results = {}
    for world in (2, 3):
        folder = tmp_path_factory.mktemp(f"world{world}")
        ends = server.ranks(world, [folder], folder, "ranks")
        assert [status for status, _ in ends] == [0] * world, ends
        results[world] = [torch.load(folder / f"{r}.pt", weights_only=True) for r in range(world)]
    return results


def error(ours, theirs):
    ours, theirs = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


@pytest.mark.parametrize("case", ranks.CASES)
@pytest.mark.parametrize("world", [2, 3])
def test_ten_steps_are_those_of_one_process(one, several, world, case):
    expected = one["train"][case]
    assert abs(expected["losses"][-1] - expected["losses"][0]) > 1e-3  # it learns
    for result in (r["train"][case] for r in several[world]):
        assert error(result["losses"], expected["losses"]) < 1e-10
        for part in ("model", "criterion"):
            assert result[part].keys() == expected[part].keys()
            assert all(error(result[part][name], value) < 1e-10 for name, value in expected[part].items())


@pytest.mark.parametrize("case", ranks.CASES)
def test_the_gradient_is_that_synchronize(several, case):
    """Against autograd alone: no gather, no leaf, no factor."""
    flags, frozen, warmup = ranks.CASES[case]
    model = ranks.network(frozen)
    model.warm_up(warmup > 0)
    run = ranks.make_run(flags, model.train())
    images, labels = ranks.batch(100)
    torch.manual_seed(ranks.main.derive(0, 1, 0))  # what mining draws
    run.criterion(model(images), labels).backward()
    expected = ranks.gradients(run)
    for world, results in several.items():
        for result in results:
            found = result["train"][case]["first"]
            assert found.keys() == expected.keys()
            assert all(error(found[name], value) < 1e-10 for name, value in expected.items()), world


@pytest.mark.parametrize("dtype", TINY)
def test_batchnorm_is_that_synchronize(one, several, dtype):
    expected = one["batchnorm"][dtype]
    assert expected["class"] == "BatchNorm2d"  # torch's own
    for results in several.values():
        for found in (r["batchnorm"][dtype] for r in results):
            assert found["class"] == "WholeBatchNorm2d" and found["dtype"] == expected["dtype"]
            assert all(error(a, b) < TINY[dtype] for a, b in zip(found["values"], expected["values"], strict=True))


def test_a_network_may_have_parameters_that_it_does_not_use(one, several):
    assert all(error(r["unused"], one["unused"]) < 1e-10 for results in several.values() for r in results)


def test_shards_of_an_evaluation_come_together_in_order(one, several):
    for n, (embeddings, labels) in one["embeddings"].items():
        assert embeddings.shape == (n, 4)
        for results in several.values():
            for found in (r["embeddings"][n] for r in results):
                assert error(found[0], embeddings) < 1e-6 and torch.equal(found[1], labels)


def test_one_process_measures_and_all_have_its_result_or_error(one, several):
    for results in several.values():
        for error_line, first, any_set, metrics, unmeasurable in (r["measured"] for r in results):
            assert error_line == "seen by process 0" and first == 0 and any_set is True
            assert metrics == one["measured"][3] and "not finite" in unmeasurable
        assert all(r["bad data"] == "no such folder" for r in results)
        said = [r["said"] for r in results]
        assert sum(same for same, _ in said) == 1 and all(own for _, own in said)  # the same line once, others each


def test_an_empty_split_is_told():
    with pytest.raises(ValueError, match="the split has no image"):
        ranks.evaluation.embed(nn.Linear(1, 1), ranks.Pixels(0))


def test_batchnorm_without_a_whole_batch_form_is_refused_unless_frozen(monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm1d(4))
    with pytest.raises(ValueError, match="BatchNorm1d .* suffix _frozen"):
        batchnorm.synchronize(model)
    assert batchnorm.synchronize(model.eval()) is model


def test_timms_batchnorm_keeps_its_activation_on_gpus():
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model, images = timm.create_model("test_resnet").eval(), torch.randn(2, 3, 64, 64)
    expected = model(images)
    found = batchnorm.with_sync_batchnorm(model)
    assert any(isinstance(m, nn.SyncBatchNorm) for m in found.modules()) and torch.equal(found(images), expected)
    plain = batchnorm.with_sync_batchnorm(nn.Sequential(nn.BatchNorm2d(3)))
    assert type(plain[0]) is nn.SyncBatchNorm


def test_more_processes_than_gpus_is_one_line(monkeypatch):
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match="torchrun --nproc_per_node=4: this machine has 2 GPUs, one a process"):
        devices.choose_device(ranks.parameters.parse([]))
    assert not distributed.first_to_report("that line")  # the machine's first process tells it
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert distributed.first_to_report("that line")
