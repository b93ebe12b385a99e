"""Weights from a file, an address, a cache; what does not fit or is no file of weights."""

import hashlib
import http.server
import threading
from unittest.mock import Mock

import pytest
import torch
from architecture_tools import build

import architectures
import parameters
from architectures import BACKBONES


def refused(source, arch="resnet18"):
    """The line that says why --weights `source` is none."""
    with pytest.raises(ValueError) as problem:
        build(arch, "--weights", source)
    text = str(problem.value)
    assert "\n" not in text and str(source) in text
    return text


CHANGES = {
    "conv1.weight": lambda state: state.pop("conv1.weight"),
    "extra": lambda state: state.update(extra=torch.ones(1)),
    "bn1.weight": lambda state: state.update({"bn1.weight": torch.ones(2, 2)}),
    "": lambda state: state.update(code="x"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_all_weights_of_a_file_must_fit(tmp_path, key):
    state = dict(build("resnet18").features.state_dict())
    state |= {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    state["conv1.weight"] = torch.randn(64, 3, 7, 7)
    torch.save({"state_dict": state}, tmp_path / "w.pth")
    loaded = build("resnet18", "--weights", tmp_path / "w.pth").features
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"])
    CHANGES[key](state)
    torch.save(state, tmp_path / "w.pth")
    assert key in refused(tmp_path / "w.pth")


def test_weights_never_unpickle_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "exploded"), "w"))

    torch.save({"conv1.weight": Bomb()}, tmp_path / "w.pth")
    refused(tmp_path / "w.pth")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises((ValueError, OSError), match="nowhere.pth"):
        build("resnet18", "--weights", "nowhere.pth")


def test_weights_of_an_address_or_a_path_with_its_hash(tmp_path, monkeypatch):
    folder, source = tmp_path / "served", build("conv4").features.state_dict()
    folder.mkdir()
    source = {name: value + 1 for name, value in source.items()}
    torch.save(source, folder / "w.pth")
    digest = hashlib.sha256((folder / "w.pth").read_bytes()).hexdigest()
    build("conv4", "--weights", f"{folder / 'w.pth'}#sha256={digest[:12].upper()}")
    assert digest in refused(f"{folder / 'w.pth'}#sha256=00000000", "conv4")
    named = f"w-{digest[:8]}.pth"
    (folder / "w.pth").rename(folder / named)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *words: None})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"

        def loaded(end):
            return torch.equal(build("conv4", "--weights", address + end).features[0].weight, source["0.weight"])

        assert loaded(named)
        (folder / named).rename(folder / "plain.pth")
        assert loaded(named)  # from torch.hub's folder
        (tmp_path / "hub" / "checkpoints" / named).write_bytes(b"cut off")  # fetched anew, and it is gone
        assert "404" in refused(address + named, "conv4")
        assert loaded(f"plain.pth#sha256={digest}")
        assert "hash" in refused(f"{address}plain.pth#sha256={digest[::-1]}", "conv4")
        assert "hash" in refused(address + "plain.pth", "conv4")
        server.shutdown()


@pytest.mark.parametrize("arch", ["bninception", "googlenet", "resnet18", "resnet50_frozen_normalize"])
def test_failed_download_names_both_flags(monkeypatch, tmp_path, arch):
    offline = Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ValueError) as problem:
        architectures.select(parameters.parse(["--arch", arch]))
    text = str(problem.value)
    assert "\n" not in text and all(word in text for word in ("--weights PATH", "--not_pretrained", "no route to host"))
    assert [call.args[0] for call in offline.call_args_list] == [BACKBONES[arch.split("_")[0]].address]
