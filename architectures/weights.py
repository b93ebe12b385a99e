"""Backbone weights from a file or from their public address."""

import hashlib
import os
import pickle
import re
import textwrap
from urllib.parse import urlparse

import torch

WAY_OUT = "give a file with --weights PATH, or start from random weights with --not_pretrained"


def load_backbone(features, source, not_in_backbone=()):
    """Load a state dict into `features`. Raises ValueError, one line.

    source : PATH, PATH#sha256=<hex>, https://.../name-<hex>.pth or https://...#sha256=<hex>, where <hex> is the SHA-256
        of the file or at least its first 8 digits; of torch.save, as a PATH also .safetensors
    not_in_backbone : keys that begin so stay away, as the classifier's. All others must fit exactly; only BatchNorm's
        num_batches_tracked may be missing (old files have none).
    """
    try:
        state = read_state(source)
        state = next((state[k] for k in ("state_dict", "model") if isinstance(state.get(k), dict)), state)
        state = {k: v for k, v in state.items() if not k.startswith(tuple(not_in_backbone))}
        features.load_state_dict(state)
    except Exception as problem:  # no network, a proxy's page, a full disk, a wrong hash, other keys, ...
        # of torch's list of keys, one line each that are missing and unexpected
        lines = [textwrap.shorten(line, 200, placeholder=" ...") for line in str(problem).splitlines()[:3]]
        reason = "; ".join(lines).rstrip(".")
        # the first advises to run the file's code, the others say nothing
        if isinstance(problem, (pickle.UnpicklingError, AttributeError, EOFError, LookupError)):
            reason = "not a file of tensors by name"
        raise ValueError(f"--weights {source}: {reason}; {WAY_OUT}") from problem


def read_state(source):
    """The state dict of a file or an address, its hash compared, without unpickling code."""
    path, marked, digest = source.partition("#sha256=")
    if marked and not re.fullmatch("[0-9a-fA-F]{8,64}", digest):
        raise ValueError("#sha256= needs the first 8 hexadecimal digits at least")
    if path.startswith(("https://", "http://")):
        name, suffix = os.path.splitext(os.path.basename(urlparse(path).path))
        name += f"-{digest.lower()}{suffix}" if digest else suffix  # where torch.hub looks for the hash
        hashed = re.search(r"-([0-9a-f]{8,64})\.\w+$", name)
        if not hashed:
            raise ValueError("an address must carry its hash: name-<SHA-256>.pth, or #sha256=<SHA-256> after it")
        copy = os.path.join(torch.hub.get_dir(), "checkpoints", name)
        if os.path.isfile(copy) and not sha256(copy).startswith(hashed[1]):
            os.unlink(copy)  # damaged: torch.hub compares what it downloads, and not what is there
        how = dict(map_location="cpu", weights_only=True, check_hash=True, file_name=name)
        return torch.hub.load_state_dict_from_url(path, **how)
    if digest and not sha256(path).startswith(digest.lower()):
        raise ValueError(f"its SHA-256 is {sha256(path)}, not {digest}")
    if path.endswith(".safetensors"):
        from safetensors.torch import load_file

        return load_file(path)
    return torch.load(path, map_location="cpu", weights_only=True)


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.sha256(file.read()).hexdigest()


def first_line(problem):
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
