"""--input_size N: the network, the data and the checkpoint agree on it."""

import json

import miniatures
import pytest
import torch
from architecture_tools import build

import architectures
import datasets
import main
import parameters
from utilities.run import load

SIZES = [  # network, its own size, another
    ("conv4", 32, 48),
    ("resnet18", 224, 64),
    ("bninception", 224, 64),
    ("timm.test_vit", 160, 96),
    ("timm.test_resnet_double", 160, 72),
    ("timm.test_convnext", 160, 96),
]


@pytest.mark.parametrize("arch, own, size", SIZES)
def test_a_network_embeds_images_of_that_size_and_learns(arch, own, size):
    assert build(arch).input_size == own
    model = build(arch, "--input_size", size)
    assert model.input_size == size and model.training
    embeddings = model(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    embeddings.square().sum().backward()
    assert embeddings.shape == (2, 16)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_published_weights_of_a_transformer_are_resampled_to_that_size(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(3)
    published, create = timm.create_model("test_vit").state_dict(), timm.create_model
    torch.save(published, tmp_path / "vit.pth")

    def from_file(name, pretrained=False, **more):
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=dict(file=str(tmp_path / "vit.pth")), **more)

    monkeypatch.setattr(timm, "create_model", from_file)
    opt = parameters.parse(["--arch", "timm.test_vit", "--embed_dim", "16", "--input_size", "96"])
    own = architectures.select(opt).features.net.state_dict()
    assert torch.allclose(own["pos_embed"], resample_abs_pos_embed(published["pos_embed"], [6, 6]))
    assert torch.equal(own["blocks.0.attn.qkv.weight"], published["blocks.0.attn.qkv.weight"])


REFUSED = [("conv4", 15), ("bninception", 72), ("timm.test_vit", 100), ("timm.gcvit_xxtiny", 112)]


@pytest.mark.parametrize("arch, size", REFUSED)
def test_a_size_that_a_network_does_not_take_is_one_line(arch, size):
    with pytest.raises(ValueError, match=f"--input_size {size} --arch {arch}") as problem:
        build(arch, "--input_size", size)
    assert "\n" not in str(problem.value)


def test_a_run_its_checkpoint_and_its_evaluation_have_that_size(tmp_path, monkeypatch):
    photographs, seen, select = tmp_path / "photographs", [], datasets.select
    for n in range(16):
        miniatures.noise(photographs / f"class{n // 4}" / f"{n % 4}.jpg", size=(160, 120), seed=n, quality=95)
    monkeypatch.setattr(datasets, "select", lambda opt, input_size: seen.append(input_size) or select(opt, input_size))
    flags = ["--dataset", "folder", "--source_path", str(photographs), *"--kernels 0 --evaluation_metrics nmi".split()]
    run = "--arch conv4 --embed_dim 8 --bs 4 --loss multisimilarity --n_epochs 1 --input_size 48 --save_path".split()
    assert main.main([*flags, *run, str(tmp_path)]) == 0
    folder = tmp_path / "folder" / "Sample_Run_s0"
    config = json.loads((folder / "config.json").read_text())
    assert load(folder / "checkpoint.pt")["input_size"] == 48 == config["data"]["input_size"]

    (folder / "config.json").rename(folder / "elsewhere")  # a checkpoint that was copied alone
    for more, size in (([], 48), (["--input_size", "32"], 32)):
        assert main.main([*flags, "--evaluate_only", "--checkpoint", str(folder / "checkpoint.pt"), *more]) == 0
        assert seen[-1] == size
