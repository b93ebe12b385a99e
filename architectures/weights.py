"""Backbone weights from a file or from their public address."""

import hashlib
import os
import pickle
import re
import textwrap
from urllib.parse import urlparse

import torch


def load_backbone(features, source, not_in_backbone=()):
    """Load a state dict into `features`. Errors are those of torch, of safetensors, of the file or of the network.

    source : PATH, PATH#sha256=<hex>, https://.../name-<hex>.pth or https://...#sha256=<hex>, where <hex> is the SHA-256
        of the file or at least its first 8 digits; of torch.save, as a PATH also .safetensors
    not_in_backbone : keys that start with one of these are left out, as the classifier's. All others must fit exactly;
        only BatchNorm's num_batches_tracked may be missing (old files have none).
    """
    state = read_state(source)
    if isinstance(state, dict):
        state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), dict)), state)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(not_in_backbone))}
    features.load_state_dict(state)


def read_state(source):
    """The state dict of a file or an address, its hash compared, without unpickling code."""
    path, marked, digest = source.partition("#sha256=")
    digest = digest.lower()
    if path.startswith(("https://", "http://")):
        name, suffix = os.path.splitext(os.path.basename(urlparse(path).path))
        name += f"-{digest}{suffix}" if marked else suffix  # where torch.hub looks for the hash
        hashed = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
        if not hashed:
            raise ValueError("an address needs its hash: name-<SHA-256>.pth, or #sha256=<SHA-256> after it")
        copy = os.path.join(torch.hub.get_dir(), "checkpoints", name)
        if os.path.isfile(copy) and not sha256(copy).startswith(hashed[1]):
            os.unlink(copy)  # damaged: torch.hub compares what it downloads, and not what is there
        how = dict(map_location="cpu", weights_only=True, check_hash=True, file_name=name)
        return torch.hub.load_state_dict_from_url(path, **how)
    if marked and not (len(digest) >= 8 and sha256(path).startswith(digest)):
        raise ValueError(f"its SHA-256 is {sha256(path)}, of which #sha256={digest} must be the first 8 digits or more")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def reason(problem):
    """What an exception says, in one line; of torch's lists of keys that do not fit, the start of each."""
    if isinstance(problem, (pickle.UnpicklingError, EOFError)):  # torch's text advises to run the file's code
        return "not a file of tensors by name, as torch.save writes it"
    text = getattr(problem, "strerror", None) or str(problem) or type(problem).__name__
    lines = [line for line in text.splitlines() if line.strip() and not line.endswith(":")][:3]
    return "; ".join(textwrap.shorten(line, 120, placeholder=" ...").rstrip(".") for line in lines)
