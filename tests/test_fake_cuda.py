"""What a GPU would refuse or wait for, without a GPU: shapes, devices and reads of values under torch's FakeTensorMode.

No operation may mix devices, and a training step's forward reads nothing back to the host: under the mode a read value
raises. Backward does not run there.
"""

import importlib.util

import pytest
import torch
from criteria_tools import parse
from pretend_gpu import PretendGpu
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

import architectures
import criteria
import evaluation
import parameters

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
CLASSES, BS, DIMENSIONS = 10, 24, 16
MINED = [f"{loss} --batch_mining {miner}" for loss in ("contrastive", "triplet", "margin") for miner in criteria.MINERS]
LOSSES = [name for name in criteria.CRITERIA if name not in ("contrastive", "triplet", "margin")] + MINED
MINED.remove("contrastive --batch_mining all")  # takes every pair of the batch and mines nothing


@pytest.fixture
def cuda():
    """Everything is made on a GPU that is not there."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


@pytest.fixture
def number_of_triplets(monkeypatch):
    """The one thing that a step may wait for: how many triplets a miner found (nonzero), on which all shapes depend."""

    def nonzero(mask, as_tuple=False):
        found = torch.zeros(7, mask.dim(), dtype=torch.long, device=mask.device)
        return found.unbind(1) if as_tuple else found

    monkeypatch.setattr(torch.Tensor, "nonzero", nonzero)


def on_gpu(tensor):
    return isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"


def make(words):
    """A criterion between two looks at its values (Criterion.check_values: the first call and every 100th after it)."""
    if words == "nir" and importlib.util.find_spec("FrEIA") is None:  # its import makes tensors
        pytest.skip("FrEIA is not installed")
    criterion = criteria.select(parse(f"{words} --embed_dim {DIMENSIONS}"), CLASSES)
    for module in criterion.modules():
        if isinstance(module, criteria.Criterion):
            module.calls = 1
    return criterion


def inputs(dtype=torch.float32):
    return torch.randn(BS, DIMENSIONS, dtype=dtype).requires_grad_(), torch.randint(CLASSES, (BS,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", LOSSES)
def test_a_criterion_stays_on_the_device_and_reads_nothing(cuda, number_of_triplets, words, dtype):
    criterion = make(words)
    value = criterion(*inputs(dtype))
    assert on_gpu(value) and value.dtype == torch.float32 and value.dim() == 0
    # FrEIA's permutations, which do not learn, are made by numpy and moved
    assert all(on_gpu(p) for p in criterion.parameters() if p.requires_grad)
    assert all(on_gpu(term) or isinstance(term, (int, float)) for term in criterion.terms.values())


@pytest.mark.parametrize("form", ["exp", "neg", "normalized"])
@pytest.mark.parametrize("scale", ["published", "mcr2"])
@pytest.mark.parametrize("variant", ["pair", "batch_proxy", "all_proxy", "class_means"])
def test_every_form_of_antico(cuda, variant, scale, form):
    assert on_gpu(make(f"antico_{variant} --antico_form {form} --antico_scale {scale}")(*inputs()))


@pytest.mark.parametrize("words", MINED)
def test_miners_wait_for_the_number_of_triplets_alone(cuda, words):
    with pytest.raises(DynamicOutputShapeException, match="nonzero"):
        make(words)(*inputs())


@pytest.mark.parametrize("loss", ["proxyanchor", "antico_pair"])
def test_the_mode_finds_what_it_is_here_for(cuda, loss):
    """A look at the values, and two devices in one operation, do raise."""
    criterion = make(loss)
    criterion.calls = 100
    with pytest.raises(DataDependentOutputException):
        criterion(*inputs())
    with pytest.raises(RuntimeError, match="at least two devices|two different devices"):
        make(loss)(inputs()[0], torch.randint(CLASSES, (BS,), device="cpu"))


def network(arch):
    return architectures.select(parameters.parse(["--arch", arch, "--not_pretrained", "--embed_dim", str(DIMENSIONS)]))


@pytest.mark.parametrize("suffixes", ["", "_frozen_normalize_double"])
@pytest.mark.parametrize("name", [name for name in architectures.BACKBONES if "<" not in name])
def test_a_network_stays_on_the_device(cuda, name, suffixes):
    net = network(name + suffixes)
    assert all(map(on_gpu, [*net.parameters(), *net.buffers()]))
    for images in (torch.randint(256, (2, 3, 64, 64), dtype=torch.uint8), torch.rand(2, 3, 64, 64)):
        images = images.contiguous(memory_format=torch.channels_last)
        assert on_gpu(net.train()(images)) and on_gpu(net.eval()(images))


@pytest.mark.parametrize("arch", ["timm.test_vit_normalize", "timm.test_resnet_frozen_double"])
def test_a_network_of_timm_stays_on_the_device(arch):
    """Made on the CPU, as timm's constructor looks at numbers, and then given fake tensors for its own."""
    pytest.importorskip("timm")
    net = network(arch)
    with FakeTensorMode(), torch.device("cuda"):
        for module in net.modules():
            for name, value in [*module._parameters.items(), *module._buffers.items()]:
                if value is not None:
                    module._parameters.pop(name, None)
                    module._buffers.pop(name, None)
                    module.register_buffer(name, torch.empty(value.shape, dtype=value.dtype))
        assert on_gpu(net(torch.randint(256, (2, 3, net.input_size, net.input_size), dtype=torch.uint8)))


# what looks at values runs on a device that pretends

# not the coding rate's, whose autograd.Function asks for a GPU's streams; the criteria above have it
METRICS = "e_recall@1 mAP@R R-precision mAP_10 mAP_c nmi f1 c_recall@1 dists@intra dists@inter rho_spectrum@1 "
METRICS += "effective_rank uniformity alignment"


@pytest.mark.parametrize("n_queries", [0, 50])
def test_the_metrics_on_the_device(n_queries):
    torch.manual_seed(0)
    labels = torch.arange(300) % 6
    embeddings = torch.randn(6, 8)[labels] + torch.randn(300, 8).round()
    sets = {"embeddings": embeddings[n_queries:], "labels": labels[n_queries:]}
    if n_queries:
        sets |= {"query_embeddings": embeddings[:n_queries], "query_labels": labels[:n_queries]}
    expected = evaluation.compute(**sets, names=METRICS.split(), search="torch")
    with PretendGpu():
        there = {name: values.to("cuda") for name, values in sets.items()}
        found = evaluation.compute(**there, names=METRICS.split(), search="torch")
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_pretending_device_refuses_what_a_gpu_does():
    with PretendGpu():
        a, b = torch.ones(3).to("cuda"), torch.ones(3)
        mixed = [lambda: a + b, lambda: torch.cat([a, b]), lambda: torch.where(a > 0, a, b), lambda: a.add_(b)]
        for wrong in (*mixed, lambda: a[b.long()]):
            with pytest.raises(RuntimeError, match="two devices"):
                wrong()
        assert float((a * 2 + torch.tensor(1.0)).sum()) == 9
