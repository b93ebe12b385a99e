"""Backbone weights from a file or from their public address."""

import hashlib
import os
import re
from urllib.parse import urlparse

import torch

WAY_OUT = "give a file with --weights PATH, or start from random weights with --not_pretrained"


def load_backbone(features, source, not_in_backbone=()):
    """Load a state dict into `features`: from a path, or from a http(s) address that carries its hash.

    Parameters
    ----------
    source : str
        PATH, PATH#sha256=<hex>, https://.../name-<hex>.pth or https://...#sha256=<hex>, where <hex> is the SHA-256 of
        the file or at least its first 8 digits. Files of torch.save, or .safetensors.
    not_in_backbone : strings
        Keys that begin so belong to the classifier and stay away. All others must fit exactly; only BatchNorm's
        num_batches_tracked may be missing (old files have none).

    Raises
    ------
    ValueError, FileNotFoundError
        One line that names the file or the flags --weights and --not_pretrained.
    """
    path, digest = split_hash(source)
    if path.startswith(("https://", "http://")):
        path = download(path, digest)
    elif not os.path.isfile(path):
        raise FileNotFoundError(f"--weights {path}: no such file")
    elif digest and not sha256(path).startswith(digest):
        raise ValueError(f"--weights {path}: its SHA-256 is {sha256(path)}, not {digest}")
    state = {k: v for k, v in read_state(path).items() if not k.startswith(tuple(not_in_backbone))}

    own = features.state_dict()
    problems = {
        "missing": [k for k in own if k not in state and not k.endswith("num_batches_tracked")],
        "not in this backbone": [k for k in state if k not in own],
        "other shape": [
            f"{k} {tuple(v.shape)} for {tuple(own[k].shape)}"
            for k, v in state.items()
            if k in own and v.shape != own[k].shape
        ],
    }
    lines = [f"{problem} {first_few(keys)}" for problem, keys in problems.items() if keys]
    if lines:
        raise ValueError(f"--weights {source}: does not fit this backbone: {'; '.join(lines)}")
    features.load_state_dict(state, strict=False)  # strictness was checked above; old files lack num_batches_tracked


def first_few(keys):
    return f"{', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''} ({len(keys)})"


def split_hash(source):
    """'a.pth#sha256=12ab34cd' → ('a.pth', '12ab34cd'); an address may have them in its name; None without them."""
    path, mark, digest = source.partition("#sha256=")
    if mark:
        if not re.fullmatch("[0-9a-f]{8,64}", digest.lower()):
            raise ValueError(f"--weights {source}: after #sha256= come 8 to 64 hexadecimal digits")
        return path, digest.lower()
    if path.startswith(("https://", "http://")):
        in_name = re.search(r"-([0-9a-f]{8,64})\.\w+$", urlparse(path).path)
        if not in_name:
            form = "name-<first 8 digits of the SHA-256>.pth, or #sha256=<digits> after it"
            raise ValueError(f"--weights {source}: an address must carry its hash: {form}")
        return path, in_name[1]
    return path, None


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def download(address, digest):
    """The file at `address` in torch.hub's folder, fetched unless it is there with this hash."""
    path = os.path.join(torch.hub.get_dir(), "checkpoints", os.path.basename(urlparse(address).path))
    try:
        if not (os.path.isfile(path) and sha256(path).startswith(digest)):
            os.makedirs(os.path.dirname(path), exist_ok=True)
            # under another name until the hash is right
            torch.hub.download_url_to_file(address, path, hash_prefix=digest)
    except Exception as problem:  # no network, a proxy's page, a full disk, a wrong hash: the way out is the same
        raise ValueError(f"the weights {address} cannot be downloaded ({first_line(problem)}): {WAY_OUT}") from problem
    return path


def read_state(path):
    """The state dict of a file, without unpickling code; also one that lies under "state_dict" or "model" in it."""
    try:
        if path.endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as problem:
        raise ValueError(f"--weights {path}: needs safetensors: pip install safetensors") from problem
    except Exception as problem:
        raise ValueError(f"--weights {path}: not a file of tensors ({first_line(problem)})") from problem
    if isinstance(state, dict):
        state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), dict)), state)
    is_dict = isinstance(state, dict) and len(state) > 0
    if not is_dict or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in state.items()):
        raise ValueError(f"--weights {path}: holds no state dict of tensors")
    return state


def first_line(problem):
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
