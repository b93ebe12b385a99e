"""Networks against torchvision's and the published BN-Inception, pooling, parameter groups, flags."""

import math
import os
import re

import pytest
import torch
from architecture_tools import build, random_statistics
from torch import nn

import architectures
import main
import parameters
from architectures import BACKBONES, EmbeddingNet
from architectures.embedding import POOLINGS


@pytest.mark.parametrize(
    "arch, size",
    [
        ("conv4", 32),
        ("resnet18_frozen_normalize", 224),
        ("resnet50_double", 224),
        ("bninception_frozen_normalize_double", 224),
        ("googlenet_lp3", 224),
    ],
)
def test_embeddings(arch, size):
    model = build(arch, "--not_pretrained").eval()
    assert model.input_size == size
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    embeddings = model(images)
    assert embeddings.shape == (2, 16)
    assert torch.allclose(embeddings, model(images / 255), atol=1e-5)  # uint8 and float in 0..1 are the same image
    norms = embeddings.norm(dim=1)
    assert torch.allclose(norms, torch.ones(2)) == ("normalize" in arch)


def test_resnet_features_are_torchvisions():
    from torchvision import models

    model, theirs = build("resnet18", "--not_pretrained").eval(), models.resnet18(weights=None).eval()
    model.features.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    theirs.fc = model.last_linear
    images = torch.rand(2, 3, 64, 64)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    assert torch.allclose(model(images), theirs(normalised), atol=1e-5)


def test_double_is_average_plus_max_pooling():
    class Maps(nn.Module):
        def forward(self, images):
            return images

    model = EmbeddingNet(Maps(), 3, 3, mean=(0, 0, 0), std=(1, 1, 1), pooling="double")
    nn.init.eye_(model.last_linear.weight), nn.init.zeros_(model.last_linear.bias)
    images = torch.rand(2, 3, 5, 5)
    assert torch.allclose(model(images), images.mean((2, 3)) + images.amax((2, 3)))


@pytest.mark.parametrize("p", [2, 3])
def test_lp_pooling_is_the_generalised_mean_over_positions(p):
    maps = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    maps[0, 0] = 0  # a dead channel: its root has no gradient without care
    pooled = POOLINGS[f"lp{p}"](maps.requires_grad_())
    for image in range(2):
        for channel in range(3):
            values = [max(abs(v), 1e-6) for v in maps[image, channel].flatten().tolist()]
            assert math.isclose(
                pooled[image, channel], (sum(v**p for v in values) / len(values)) ** (1 / p), rel_tol=1e-12
            )
    pooled.sum().backward()
    assert maps.grad.isfinite().all()
    # the norm of a constant map is the constant whatever the size, unlike the plain p-norm
    assert torch.allclose(POOLINGS[f"lp{p}"](torch.full((1, 1, 7, 7), -2.0)), torch.tensor(2.0))


def test_pooling_in_half_precision_has_no_underflow():
    assert torch.allclose(
        POOLINGS["lp3"](torch.full((1, 1, 2, 2), 1e-5, dtype=torch.float16)), torch.tensor(1e-5), rtol=0.1
    )


def test_bninception_is_the_published_network(tmp_path):
    pretrainedmodels = pytest.importorskip("pretrainedmodels")
    torch.manual_seed(0)
    theirs = random_statistics(pretrainedmodels.bninception(pretrained=None))
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    model = build("bninception_double", "--weights", str(tmp_path / "w.pth"))
    setting = pretrainedmodels.pretrained_settings["bninception"]["imagenet"]
    assert BACKBONES["bninception"].address == setting["url"]
    images = torch.randint(0, 256, (2, 3, 160, 160), dtype=torch.uint8)
    # as the package says: BGR, 0..255, mean and std in that order
    assert (setting["input_space"], setting["input_range"]) == ("BGR", [0, 255])
    raw = (images[:, [2, 1, 0]].float() - torch.tensor(setting["mean"]).view(3, 1, 1)) / torch.tensor(
        setting["std"]
    ).view(3, 1, 1)
    for given in (images, images / 255):
        assert model.prepare(given).dtype == torch.float32 and torch.allclose(model.prepare(given), raw, atol=1e-3)
    for mode in (False, True):
        model.train(mode), theirs.train(mode)
        maps = theirs.features(raw)
        assert maps.std() > 0.01
        assert (model.features(raw) - maps).abs().max() < 1e-5
        state = model.features.state_dict()  # with the running statistics that training has moved
        assert all(
            torch.allclose(state[k], v, atol=1e-5)
            for k, v in theirs.state_dict().items()
            if not k.startswith("last_linear")
        )
        expected = model.last_linear(maps.mean((2, 3)) + maps.amax((2, 3)))
        assert torch.allclose(model(images), expected, atol=1e-4)


def test_googlenet_features_are_torchvisions(tmp_path):
    from torchvision import models

    torch.manual_seed(0)
    theirs = random_statistics(
        models.googlenet(weights=None, aux_logits=True, transform_input=True, init_weights=False)
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")  # with fc, aux1 and aux2, as the published file
    model = build("googlenet", "--weights", str(tmp_path / "w.pth")).eval()
    theirs.fc, images = model.last_linear, torch.rand(2, 3, 96, 96)
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).view(3, 1, 1)
    assert torch.allclose(model(images), theirs(normalised), atol=1e-4)


@pytest.mark.parametrize("arch", ["conv4", "bninception_frozen_double", "googlenet_lp2", "resnet18_lp3"])
def test_channels_last_and_checkpoints_of_plain_tensors(arch, tmp_path):
    model = build(arch, *(["--not_pretrained"] if arch != "conv4" else [])).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images.to(memory_format=torch.channels_last)), expected, atol=1e-4)
    torch.save(model.state_dict(), tmp_path / "c.pt")
    state = torch.load(tmp_path / "c.pt", weights_only=True)
    assert not {"mean", "std"} & set(state)
    torch.manual_seed(1)
    other = architectures.select(
        parameters.parse(["--arch", arch, "--embed_dim", "16"] + (["--not_pretrained"] if arch != "conv4" else []))
    ).eval()
    assert not torch.allclose(other(images), expected)
    other.load_state_dict(state)
    assert torch.allclose(other(images), expected, atol=1e-4)


def test_frozen_keeps_statistics_through_train_but_learns_scale_and_shift():
    for arch, frozen in (("conv4_frozen", True), ("conv4", False)):
        model = build(arch)
        before = model.features[1].running_mean.clone()
        model.train()
        model(torch.rand(4, 3, 32, 32)).sum().backward()
        assert torch.equal(before, model.features[1].running_mean) == frozen
        assert model.features[1].weight.grad is not None and model.training


def test_warm_up_lets_only_the_last_layer_learn():
    model = build("conv4")
    model.warm_up(True)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["last_linear.weight", "last_linear.bias"]
    model.warm_up(False)
    assert all(p.requires_grad for p in model.parameters())


def test_param_groups_hold_every_parameter_once_with_its_rate():
    model = build("conv4")
    groups = model.param_groups(1e-3, fc_lr=1e-2)
    held = [p for g in groups for p in g["params"]]
    assert len(held) == len(set(map(id, held))) == len(list(model.parameters()))
    assert [g["lr"] for g in groups] == [1e-3, 1e-2] and model.param_groups(1e-3)[1]["lr"] == 1e-3


@pytest.mark.parametrize(
    "arch, words",
    [
        ("resnet51", "did you mean resnet50"),
        ("resnet50_frosen", "suffix _frosen: unknown"),
        ("conv", "known: conv4"),
        ("resnet18_double_lp2", "one of _double, _lp2"),
    ],
)
def test_unknown_names(arch, words):
    with pytest.raises(ValueError, match=words):
        build(arch)


@pytest.mark.parametrize(
    "more, words",
    [
        (["--weights", ""], "--weights: is empty; give a file or an address"),
        (["--not_pretrained", "--weights", ""], "--weights: is empty"),
    ],
)
def test_flags_that_cannot_be_are_one_line(more, words, tmp_path, capsys):
    assert main.main(["--arch", "resnet18", "--save_path", str(tmp_path), *more]) == 2
    text = capsys.readouterr().err
    assert text.startswith(f"error: {words}") and text.count("\n") == 1 and not list(tmp_path.iterdir())


def test_the_largest_embedding_is_made():
    assert build("conv4", "--embed_dim", "65536")(torch.rand(1, 3, 32, 32)).shape == (1, 65536)


def test_the_backbone_of_the_readme(tmp_path, monkeypatch):
    """Its file and its entry, word for word; torchvision's own weights fit."""
    from torchvision import models

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
    model = build("mobilenet", "--weights", str(tmp_path / "w.pth")).eval()
    images = torch.rand(2, 3, 64, 64)
    expected = model.last_linear(theirs.features((images - model.mean) / model.std).mean((2, 3)))
    assert torch.allclose(model(images), expected, atol=1e-5)
