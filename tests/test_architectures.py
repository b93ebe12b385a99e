"""Networks against torchvision's and the published BN-Inception, pooling, parameter groups, names."""

import os
import re

import pytest
import torch
from architecture_tools import build, random_statistics
from torch import nn
from torchvision import models

import architectures
from architectures import BACKBONES
from architectures.embedding import POOLINGS

ARCHS = {
    "conv4": 32,
    "resnet18_frozen_normalize": 224,
    "resnet50_double": 224,
    "bninception_frozen_normalize_double": 224,
    "googlenet_lp3": 224,
}


@pytest.mark.parametrize("arch", ARCHS)
def test_embeddings_and_checkpoints(arch):
    model = build(arch).eval()
    assert model.input_size == ARCHS[arch]
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    embeddings = model(images)
    assert embeddings.shape == (2, 16)
    assert torch.allclose(embeddings, model(images / 255), atol=1e-5)  # uint8 and float in 0..1 are the same image
    assert torch.allclose(embeddings.norm(dim=1), torch.ones(2)) == ("normalize" in arch)
    other = build(arch).eval()
    nn.init.zeros_(other.last_linear.weight)
    other.load_state_dict(model.state_dict())
    other.to(memory_format=torch.channels_last)
    assert torch.allclose(other(images.contiguous(memory_format=torch.channels_last)), embeddings, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "googlenet"])
def test_features_are_torchvisions(name, tmp_path):
    torch.manual_seed(0)
    more = dict(aux_logits=True, transform_input=True, init_weights=False) if name == "googlenet" else {}
    theirs = random_statistics(getattr(models, name)(weights=None, **more)).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")  # with fc, aux1 and aux2, as the published file
    model = build(name, "--weights", tmp_path / "w.pth").eval()
    theirs.fc, images = model.last_linear, torch.rand(2, 3, 96, 96)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert torch.allclose(model(images), theirs((images - mean) / std), atol=1e-4)


def test_bninception_is_the_published_network(tmp_path):
    pretrainedmodels = pytest.importorskip("pretrainedmodels")
    torch.manual_seed(0)
    theirs = random_statistics(pretrainedmodels.bninception(pretrained=None))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build("bninception_double", "--weights", tmp_path / "w.pth")
    setting = pretrainedmodels.pretrained_settings["bninception"]["imagenet"]
    assert BACKBONES["bninception"].address == setting["url"]
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    # as the package says: BGR, 0..255, mean and std in that order
    assert (setting["input_space"], setting["input_range"]) == ("BGR", [0, 255])
    mean, std = (torch.tensor(setting[name]).view(3, 1, 1) for name in ("mean", "std"))
    raw = (images[:, [2, 1, 0]].float() - mean) / std
    for mode in (False, True):
        model.train(mode), theirs.train(mode)
        maps = theirs.features(raw)
        assert maps.std() > 0.01
        expected = model.last_linear(maps.mean((2, 3)) + maps.amax((2, 3)))
        assert torch.allclose(model(images), expected, atol=1e-4)
        state = model.features.state_dict()  # with the running statistics that training has moved
        published = {k: v for k, v in theirs.state_dict().items() if not k.startswith("last_linear")}
        assert all(torch.allclose(state[k], v, atol=1e-5) for k, v in published.items())
    assert torch.allclose(model(images / 255), expected, atol=1e-4)


@pytest.mark.parametrize("p", [2, 3])
def test_lp_pooling_is_the_generalised_mean_over_positions(p):
    pool, maps = POOLINGS[f"lp{p}"], torch.randn(2, 3, 4, 5, dtype=torch.float64)
    maps[0, 0] = 0  # a dead channel: its root has no gradient without care
    pooled = pool(maps.requires_grad_())
    for image in range(2):
        for channel in range(3):
            values = [max(abs(v), 1e-6) for v in maps[image, channel].flatten().tolist()]
            mean = (sum(v**p for v in values) / len(values)) ** (1 / p)
            assert float(pooled[image, channel]) == pytest.approx(mean, rel=1e-12)
    pooled.sum().backward()
    assert maps.grad.isfinite().all()
    assert torch.allclose(pool(torch.full((1, 1, 7, 7), -2.0)), torch.tensor(2.0))  # whatever the size
    assert torch.allclose(pool(torch.full((1, 1, 2, 2), 1e-5, dtype=torch.float16)), torch.tensor(1e-5), rtol=0.1)


@pytest.mark.parametrize("arch", ["conv4", "conv4_frozen", "timm.test_resnet", "timm.test_resnet_frozen"])
def test_frozen_keeps_statistics_through_train_but_learns_scale_and_shift(arch):
    model = build(arch)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [norm.running_mean.clone() for norm in norms]
    model.train()
    model(torch.rand(4, 3, 64, 64)).square().sum().backward()
    assert all(torch.equal(b, n.running_mean) == ("frozen" in arch) for b, n in zip(before, norms, strict=True))
    assert norms and all(norm.weight.grad is not None for norm in norms) and model.training


def test_param_groups_hold_every_parameter_once_with_its_rate():
    model = build("conv4")
    groups = model.param_groups(1e-3, fc_lr=1e-2)
    held = [p for g in groups for p in g["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(model.parameters()))
    assert [g["lr"] for g in groups] == [1e-3, 1e-2] and model.param_groups(1e-3)[1]["lr"] == 1e-3


UNKNOWN = {
    "resnet51": "did you mean resnet50",
    "resnet50_frosen": "_frosen",
    "resnet18_double_lp2": "_double, _lp2",
    "timm.vit_smal_patch16_224": "did you mean timm.vit_small_patch16_224",
    "timm.vit_small_patch16_224_frosen": "vit_small_patch16_224_frosen",
    "timm.test_vit_double": "tokens",
    "timm.coat_tiny_lp2": "tokens",  # a list of them
}


@pytest.mark.parametrize("arch", UNKNOWN)
def test_unknown_names_are_one_line(arch):
    with pytest.raises(ValueError, match=UNKNOWN[arch]) as problem:
        build(arch)
    assert "\n" not in str(problem.value) and arch in str(problem.value)


def test_the_backbone_of_the_readme(tmp_path, monkeypatch):
    """Its file and its entry, word for word; torchvision's own weights fit."""
    with open(os.path.join(os.path.dirname(architectures.__file__), "README.md"), encoding="utf-8") as file:
        blocks = re.findall("```python\n(.*?)```", file.read(), re.DOTALL)
    (text,) = [block for block in blocks if "def mobilenet" in block]
    (line,) = [block for block in blocks if '"mobilenet": Backbone(' in block]
    names = dict(vars(architectures))
    exec(text, names)
    (added,) = eval(f"{{{line}}}", names).items()
    monkeypatch.setitem(BACKBONES, *added)
    assert added[1].address == models.MobileNet_V3_Small_Weights.IMAGENET1K_V1.url
    theirs = models.mobilenet_v3_small(weights=None).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build("mobilenet", "--weights", tmp_path / "w.pth").eval()
    images = torch.rand(2, 3, 64, 64)
    expected = model.last_linear(theirs.features((images - model.mean) / model.std).mean((2, 3)))
    assert torch.allclose(model(images), expected, atol=1e-5)
