"""timm.<name>: skipped where timm is not installed."""

import http.server
import sys
import threading
import time

import pytest
import torch
from architecture_tools import build
from torchvision.transforms import v2

import architectures
import parameters

timm = pytest.importorskip("timm")


# a transformer, a convolutional net, one whose head has a hidden layer, a CLIP image tower
@pytest.mark.parametrize(
    "name", ["test_vit", "test_convnext", "mobilenetv3_small_050", "vit_xsmall_patch16_clip_224.tinyclip_yfcc15m"]
)
def test_embeds_what_the_network_pools_itself_from_its_own_normalisation(name):
    model = build(f"timm.{name}_frozen").eval()
    theirs = timm.create_model(name, pretrained=False, num_classes=0).eval()
    theirs.load_state_dict(model.features.net.state_dict())
    config = timm.get_pretrained_cfg(name)
    assert model.input_size == config.input_size[1] == config.input_size[2]
    images = torch.randint(0, 256, (2, 3, model.input_size, model.input_size), dtype=torch.uint8)
    expected = model.last_linear(theirs(v2.Normalize(config.mean, config.std)(images / 255)))
    assert torch.allclose(model(images), expected, atol=1e-4)
    model.to(memory_format=torch.channels_last)
    assert torch.allclose(model(images.to(memory_format=torch.channels_last)), expected, atol=1e-4)


@pytest.mark.parametrize("arch", ["test_resnet_double", "test_resnet_lp3", "mambaout_femto_lp3"])
def test_pooling_of_feature_maps(arch):
    model = build(f"timm.{arch}").eval()
    x = torch.rand(2, 3, 160, 160)
    maps = model.features.net.forward_features((x - model.mean) / model.std)
    positions = maps.flatten(1, 2) if "mamba" in arch else maps.flatten(2).transpose(1, 2)  # channels come last there
    double = positions.mean(1) + positions.amax(1)
    pooled = double if "double" in arch else (positions.abs() ** 3).mean(1) ** (1 / 3)
    assert torch.allclose(model(x), model.last_linear(pooled), atol=1e-4)


def test_no_name_of_timm_ends_like_a_suffix():
    for name in timm.list_models() + timm.list_models(pretrained=True):
        assert name.rpartition("_")[2] not in architectures.SUFFIXES, name


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ValueError, match="pip install timm"):
        architectures.parse_arch("timm.test_vit")


def test_a_hub_that_does_not_answer_is_not_waited_for(tmp_path, monkeypatch, capfd):
    """First one that answers, and has nothing; then nobody listens there, and only what it gave before is asked for."""
    from huggingface_hub import constants

    server, waited = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler), []
    address = f"http://127.0.0.1:{server.server_port}"
    hub = {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": False, "ENDPOINT": address}
    hub["HUGGINGFACE_CO_URL_TEMPLATE"] = address + "/{repo_id}/resolve/{revision}/{filename}"
    for name, value in hub.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(time, "sleep", waited.append)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for answers in (True, False):
        capfd.readouterr()
        with pytest.raises(ValueError, match="timm.test_vit: .*--weights PATH.*--not_pretrained") as problem:
            architectures.select(parameters.parse(["--arch", "timm.test_vit"]))
        assert "\n" not in str(problem.value) and constants.HF_HUB_OFFLINE != answers and not waited
        if answers:
            server.shutdown(), server.server_close()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name, ending", [("test_vit", "pth"), ("levit_128s", "safetensors")])  # the latter: two heads
def test_weights_of_timms_own_files(tmp_path, name, ending):
    torch.manual_seed(1)
    theirs, path = timm.create_model(name), tmp_path / f"w.{ending}"  # with its classifier, as timm's files are
    save = pytest.importorskip("safetensors.torch").save_file if ending == "safetensors" else torch.save
    save(theirs.state_dict(), str(path))
    model = build(f"timm.{name}", "--weights", path)
    theirs.reset_classifier(0)
    own = model.features.net.state_dict()
    assert all(torch.equal(own[key], value) for key, value in theirs.state_dict().items())
    first, *keys = theirs.state_dict()
    torch.save({**{key: own[key] for key in keys}, "head_of_another": torch.ones(1)}, tmp_path / "cut.pth")
    with pytest.raises(ValueError, match=f"Missing .*{first}.*Unexpected .*head_of_another"):
        build(f"timm.{name}", "--weights", tmp_path / "cut.pth")
