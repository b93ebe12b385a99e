"""What a GPU would refuse or wait for, without a GPU.

A criterion's forward and backward run on `meta`, whose tensors have no values to read, under NoWaiting; networks under
torch's FakeTensorMode, on a GPU that is not there, where backward does not run.
"""

import contextlib
import importlib.util

import pytest
import torch
from criteria_tools import parse
from pretend_gpu import NoWaiting, PretendGpu
from torch._subclasses import FakeTensor, FakeTensorMode

import architectures
import criteria
import evaluation
import parameters

pytestmark = pytest.mark.skipif(torch.version.cuda is None, reason="this torch is built without CUDA")
CLASSES, BS, DIMENSIONS = 10, 24, 16
MINED = [f"{loss} --batch_mining {miner}" for loss in ("contrastive", "triplet", "margin") for miner in criteria.MINERS]
LOSSES = [name for name in criteria.CRITERIA if name not in ("contrastive", "triplet", "margin")] + MINED
LOSSES += [f"antico_class_means --antico_base {words}" for words in MINED[-2:]]
FORMS = ["exp", "neg", "normalized", "guard"]
VARIANTS = ["pair", "batch_proxy", "all_proxy", "class_means"]
LOSSES += [
    f"antico_{v} --antico_form {f} --antico_scale {s}" for v in VARIANTS for f in FORMS for s in ("published", "mcr2")
]


@pytest.fixture(autouse=True)
def no_autocast_on_meta(monkeypatch):
    known = torch.autocast
    none = contextlib.nullcontext()
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: none if kind == "meta" else known(kind, **how))


def make(words):
    """A criterion between two looks at its values (Criterion.check: the first call and every 100th after it)."""
    if words == "nir" and importlib.util.find_spec("FrEIA") is None:
        pytest.skip("FrEIA is not installed")
    criterion = criteria.select(parse(f"{words} --embed_dim {DIMENSIONS}"), CLASSES).to("meta")
    for module in criterion.modules():
        if isinstance(module, criteria.Criterion):
            module.calls = 1
    return criterion


def embeddings(dtype=torch.float32):
    return torch.randn(BS, DIMENSIONS, dtype=dtype, device="meta", requires_grad=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("words", LOSSES)
def test_a_step_stays_on_the_device_and_waits_for_nothing(words, dtype):
    """Labels come from the host: on how many pairs there are all shapes of a mined loss depend."""
    criterion, x = make(words), embeddings(dtype)
    with NoWaiting():
        value = criterion(x, torch.arange(BS) // 3)
        value.backward()
    learned = [x, *(p for p in criterion.parameters() if p.requires_grad)]
    assert value.is_meta and value.dtype == torch.float32 and value.dim() == 0
    assert all(p.grad.is_meta and p.grad.dtype == p.dtype for p in learned)
    assert all(isinstance(term, (int, float)) or term.is_meta for term in criterion.terms.values())


@pytest.mark.parametrize("words", ["proxyanchor", "antico_pair", "margin"])
def test_the_mode_finds_what_it_is_here_for(words):
    """A look at the values, the number of pairs where the labels are on the device, two devices, a copy that waits."""
    criterion, x, labels = make(words), embeddings(), torch.zeros(BS, dtype=torch.long, device="meta")
    criterion.calls = 100 if words != "margin" else 1
    waiting = [lambda: criterion(x, labels), lambda: x + torch.ones(BS, 1), lambda: torch.as_tensor(0.5, device="meta")]
    with NoWaiting():
        for wrong in [*waiting, lambda: x[torch.arange(3)], lambda: torch.arange(3).to("meta")]:
            with pytest.raises((RuntimeError, NotImplementedError), match="meta|devices|waits"):
                wrong()


@pytest.fixture
def cuda():
    """Everything is made on a GPU that is not there."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


def on_gpu(tensor):
    return isinstance(tensor, FakeTensor) and tensor.device.type == "cuda"


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
