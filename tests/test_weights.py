"""Weights from a file, an address, a cache; what does not fit or is no file of weights."""

import hashlib
import http.server
import threading

import pytest
import torch
from architecture_tools import build

import architectures
import parameters
from architectures import BACKBONES


def test_weights_from_a_file(tmp_path):
    source = build("resnet18", "--not_pretrained")
    state = {**source.features.state_dict(), "fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    torch.save({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pth")
    torch.manual_seed(1)
    model = architectures.select(parameters.parse(["--arch", "resnet18", "--weights", str(tmp_path / "w.pth")]))
    assert torch.equal(model.features.conv1.weight, source.features.conv1.weight)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.pop("conv1.weight"), "missing conv1.weight"),
        (lambda s: s.update(extra=torch.ones(1)), "not in this backbone extra"),
        (lambda s: s.update({"conv1.weight": torch.ones(2, 2)}), "other shape conv1.weight"),
        (lambda s: s.update(code="x"), "no state dict"),
    ],
)
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


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A folder that a local server gives: (its path, its address); torch.hub's own folder lies beside it."""
    folder = tmp_path / "served"
    folder.mkdir()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder))) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{served.server_port}/"
        served.shutdown()


def test_weights_from_an_address_with_its_hash(server, tmp_path):
    folder, address = server
    source = build("conv4")
    torch.save(source.features.state_dict(), folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    named = f"w-{digest[:8]}.pth"
    (folder / "w.pth").rename(folder / named)
    for _ in range(2):  # the second comes from the folder
        torch.manual_seed(1)
        model = architectures.select(parameters.parse(["--arch", "conv4", "--weights", address + named]))
        assert torch.equal(model.features[0].weight, source.features[0].weight)
        if (folder / named).exists():
            (folder / named).rename(folder / "plain.pth")
    (tmp_path / "hub" / "checkpoints" / named).write_bytes(
        b"cut off"
    )  # a damaged copy is fetched anew, and here it is gone
    with pytest.raises(ValueError, match="cannot be downloaded.*404"):
        build("conv4", "--weights", address + named)
    assert torch.equal(
        build("conv4", "--weights", f"{address}plain.pth#sha256={digest}").features[0].weight, source.features[0].weight
    )
    with pytest.raises(ValueError, match="cannot be downloaded .invalid hash value"):
        build("conv4", "--weights", f"{address}plain.pth#sha256={digest[::-1]}")
    with pytest.raises(ValueError, match="an address must carry its hash"):
        build("conv4", "--weights", address + "plain.pth")


def test_weights_of_a_path_with_its_hash(tmp_path):
    torch.save({"state_dict": build("conv4").features.state_dict()}, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
    build("conv4", "--weights", f"{tmp_path / 'w.pth'}#sha256={digest[:12].upper()}")
    with pytest.raises(ValueError, match=f"its SHA-256 is {digest}, not 00000000"):
        build("conv4", "--weights", f"{tmp_path / 'w.pth'}#sha256=00000000")
    with pytest.raises(ValueError, match="8 to 64 hexadecimal digits"):
        build("conv4", "--weights", f"{tmp_path / 'w.pth'}#sha256=xyz")


@pytest.mark.parametrize("arch", ["bninception", "googlenet", "resnet18", "resnet50_frozen_normalize"])
def test_failed_download_names_both_flags(monkeypatch, tmp_path, arch):
    def offline(address, path, hash_prefix):
        assert (
            address == BACKBONES[arch.split("_")[0]].address
            and f"-{hash_prefix}.pth" in address
            and len(hash_prefix) >= 8
        )
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError) as problem:
        architectures.select(parameters.parse(["--arch", arch]))
    text = str(problem.value)
    assert "\n" not in text and all(word in text for word in ("--weights PATH", "--not_pretrained", "no route to host"))
