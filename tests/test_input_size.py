"""--input_size N: the network, the data and the checkpoint agree on it."""

import json

import miniatures
import numpy as np
import pytest
import torch
from torchvision.transforms import v2

import architectures
import datasets
import main
import parameters


def build(arch, *more):
    torch.manual_seed(0)
    return architectures.select(
        parameters.parse(["--arch", arch, "--not_pretrained", "--embed_dim", "16", *map(str, more)])
    )


@pytest.mark.parametrize(
    "arch, own, size",
    [
        ("conv4", 32, 48),
        ("resnet18", 224, 64),
        ("bninception", 224, 64),
        ("timm.test_vit", 160, 96),
        ("timm.test_resnet_double", 160, 72),
        ("timm.test_convnext", 160, 96),
    ],
)
def test_a_network_embeds_images_of_that_size_and_learns(arch, own, size):
    if arch.startswith("timm."):
        pytest.importorskip("timm")
    assert build(arch).input_size == own
    model = build(arch, "--input_size", size)
    assert model.input_size == size and model.training
    embeddings = model(torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8))
    assert embeddings.shape == (2, 16)
    embeddings.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_its_own_size_changes_nothing():
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(build("conv4").eval()(images), build("conv4", "--input_size", 32).eval()(images))


def test_a_transformer_has_a_position_for_each_patch_of_that_size():
    pytest.importorskip("timm")
    tokens = {
        size: build("timm.test_vit", "--input_size", size).features.net.pos_embed.shape[1] for size in (64, 128, 160)
    }
    assert tokens[128] - tokens[64] == 8**2 - 4**2  # patches of 16 pixels
    assert tokens[160] == build("timm.test_vit").features.net.pos_embed.shape[1]


def test_published_weights_of_a_transformer_are_resampled_to_that_size(monkeypatch, tmp_path):
    timm = pytest.importorskip("timm")
    from timm.layers import resample_abs_pos_embed

    torch.manual_seed(3)
    published = timm.create_model("test_vit").state_dict()
    torch.save(published, tmp_path / "vit.pth")
    create = timm.create_model

    def from_file(name, pretrained=False, **more):
        return create(name, pretrained=pretrained, pretrained_cfg_overlay=dict(file=str(tmp_path / "vit.pth")), **more)

    monkeypatch.setattr(timm, "create_model", from_file)
    opt = parameters.parse(["--arch", "timm.test_vit", "--embed_dim", "16", "--input_size", "96"])
    own = architectures.select(opt).features.net.state_dict()
    wanted = resample_abs_pos_embed(published["pos_embed"], [6, 6])
    assert torch.allclose(own["pos_embed"], wanted) and torch.equal(own["norm.weight"], published["norm.weight"])
    assert torch.equal(own["blocks.0.attn.qkv.weight"], published["blocks.0.attn.qkv.weight"])


@pytest.mark.parametrize(
    "arch, size",
    [
        ("conv4", 15),
        ("bninception", 72),
        ("timm.test_vit", 100),
        ("timm.twins_pcpvt_small", 112),
        ("timm.gcvit_xxtiny", 112),
    ],
)
def test_a_size_that_a_network_does_not_take_is_one_line(arch, size):
    if arch.startswith("timm."):
        pytest.importorskip("timm")
    with pytest.raises(ValueError) as problem:
        build(arch, "--input_size", size)
    text = str(problem.value)
    assert text.startswith(f"--input_size {size} --arch {arch}: this network cannot be had for images of that size (")
    assert "\n" not in text


def test_so_it_is_on_the_command_line_and_nothing_is_begun(tmp_path, capsys):
    flags = ["--dataset", "glyphs", "--arch", "conv4", "--n_epochs", "0", "--save_path", str(tmp_path / "runs")]
    assert main.main([*flags, "--input_size", "15"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("error: --input_size 15 --arch conv4: ") and text.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.fixture
def photographs(tmp_path):
    """Four classes of four noisy JPEGs of 160 x 120 pixels."""
    for c in range(4):
        for i in range(4):
            miniatures.noise(
                tmp_path / "photographs" / f"class{c}" / f"{i}.jpg", size=(160, 120), seed=4 * c + i, quality=95
            )
    return tmp_path / "photographs"


def test_images_are_cropped_to_it_and_resized_in_the_ratio_of_256_to_224(photographs):
    from PIL import Image

    splits = miniatures.select("folder", photographs, size=56)
    assert splits.train[0][0].shape == splits.test[0][0].shape == (3, 56, 56)
    with Image.open(splits.test.paths[0]) as image:
        wanted = v2.functional.pil_to_tensor(v2.CenterCrop(56)(v2.Resize(64, antialias=True)(image.convert("RGB"))))
    assert (splits.test[0][0].float() - wanted.float()).abs().mean() < 2


def test_a_run_its_checkpoint_and_its_evaluation_have_that_size(photographs, tmp_path, monkeypatch):
    seen = []
    select = datasets.select
    monkeypatch.setattr(datasets, "select", lambda opt, input_size: seen.append(input_size) or select(opt, input_size))
    flags = [
        "--dataset",
        "folder",
        "--source_path",
        str(photographs),
        "--kernels",
        "0",
        "--evaluation_metrics",
        "e_recall@1",
    ]
    run = ["--arch", "conv4_normalize", "--embed_dim", "8", "--bs", "4", "--loss", "multisimilarity", "--n_epochs", "1"]
    assert main.main([*flags, *run, "--input_size", "48", "--save_path", str(tmp_path)]) == 0
    folder = tmp_path / "folder" / "Sample_Run_s0"
    checkpoint = folder / "checkpoint.pt"
    assert main.state.load(checkpoint)["input_size"] == 48
    config = json.loads((folder / "config.json").read_text())
    assert config["flags"]["input_size"] == 48 == config["data"]["input_size"]
    recall = float((folder / "metrics.csv").read_text().splitlines()[-1].split(",")[-2])
    assert 0 <= recall <= 1 and not np.isnan(recall)

    (folder / "config.json").rename(folder / "elsewhere")  # a checkpoint that was copied alone
    for more, size in (([], 48), (["--input_size", "32"], 32)):
        assert main.main([*flags, "--evaluate_only", "--checkpoint", str(checkpoint), *more]) == 0
        assert seen[-1] == size
