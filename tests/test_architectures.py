import pytest
import torch
from torch import nn

import architectures
import parameters
from architectures import BACKBONES, EmbeddingNet


def build(arch, *more):
    torch.manual_seed(0)
    return architectures.select(parameters.parse(["--arch", arch, "--embed_dim", "16", *more]))


@pytest.mark.parametrize("arch, size", [("conv4", 32), ("resnet18_frozen_normalize", 224), ("resnet50_double", 224)])
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
    normalised = (images - torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    assert torch.allclose(model(images), theirs(normalised), atol=1e-5)


def test_double_is_average_plus_max_pooling():
    class Maps(nn.Module):
        def forward(self, images):
            return images

    model = EmbeddingNet(Maps(), 3, 3, mean=(0, 0, 0), std=(1, 1, 1), pooling="double")
    nn.init.eye_(model.last_linear.weight), nn.init.zeros_(model.last_linear.bias)
    images = torch.rand(2, 3, 5, 5)
    assert torch.allclose(model(images), images.mean((2, 3)) + images.amax((2, 3)))


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


def test_weights_from_a_file(tmp_path):
    source = build("resnet18", "--not_pretrained")
    state = {**source.features.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    torch.manual_seed(1)
    model = architectures.select(parameters.parse(["--arch", "resnet18", "--weights", str(tmp_path / "w.pth")]))
    assert torch.equal(model.features.conv1.weight, source.features.conv1.weight)


@pytest.mark.parametrize("change, words", [
    (lambda s: s.pop("conv1.weight"), "missing conv1.weight"),
    (lambda s: s.update(extra=torch.ones(1)), "not in this backbone extra"),
    (lambda s: s.update({"conv1.weight": torch.ones(2, 2)}), "other shape conv1.weight"),
    (lambda s: s.update(code="x"), "no state dict"),
])
def test_weights_that_do_not_fit(tmp_path, change, words):
    state = dict(build("resnet18", "--not_pretrained").features.state_dict())
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=words) as problem:
        architectures.select(parameters.parse(["--arch", "resnet18", "--weights", str(tmp_path / "w.pth")]))
    assert str(tmp_path / "w.pth") in str(problem.value) and "\n" not in str(problem.value)


def test_weights_never_unpickle_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"conv1.weight": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(ValueError, match="not a file of tensors"):
        architectures.select(parameters.parse(["--arch", "resnet18", "--weights", str(tmp_path / "w.pth")]))
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(FileNotFoundError, match="--weights nowhere.pth: no such file"):
        architectures.select(parameters.parse(["--arch", "resnet18", "--weights", "nowhere.pth"]))


def test_failed_download_names_both_flags(monkeypatch):
    def offline(address, **options):
        assert address == BACKBONES["resnet50"].address and options["check_hash"] and options["weights_only"]
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError) as problem:
        architectures.select(parameters.parse(["--arch", "resnet50_frozen_normalize"]))
    text = str(problem.value)
    assert "\n" not in text and all(word in text for word in ("--weights PATH", "--not_pretrained", "no route to host"))


@pytest.mark.parametrize("arch, words", [("resnet51", "did you mean resnet50"), ("resnet50_frosen", "unknown suffix _frosen"), ("conv", "known: conv4")])
def test_unknown_names(arch, words):
    with pytest.raises(ValueError, match=words):
        build(arch)
