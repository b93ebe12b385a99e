"""Backbone weights from a file or from their public address."""

import os

import torch


def load_backbone(features, source, not_in_backbone=()):
    """Load a state dict into `features`: from a path, or from an https address whose file name carries its hash.

    Keys must fit exactly, apart from `not_in_backbone`.

    Raises
    ------
    ValueError, FileNotFoundError
        One line that names the file or the flags --weights and --not_pretrained.
    """
    if source.startswith("https://"):
        try:
            state = torch.hub.load_state_dict_from_url(source, map_location="cpu", check_hash=True, weights_only=True)
        except Exception as problem:  # no network, a proxy's page, a full disk, a wrong hash: the way out is the same
            raise ValueError(f"the ImageNet weights {source} cannot be downloaded ({first_line(problem)}): give a file with "
                             "--weights PATH, or start from random weights with --not_pretrained") from problem
    else:
        if not os.path.isfile(source):
            raise FileNotFoundError(f"--weights {source}: no such file")
        try:
            state = torch.load(source, map_location="cpu", weights_only=True)
        except Exception as problem:
            raise ValueError(f"--weights {source}: not a file of tensors ({first_line(problem)})") from problem
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError(f"--weights {source}: holds no state dict of tensors")
    own = features.state_dict()
    state = {k: v for k, v in state.items() if k not in not_in_backbone}
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in state if k not in own]
    wrong = [f"{k} {tuple(state[k].shape)} for {tuple(own[k].shape)}" for k in state if k in own and state[k].shape != own[k].shape]
    if missing or unexpected or wrong:
        told = [f"{what} {', '.join(keys[:4])}{' ...' if len(keys) > 4 else ''} ({len(keys)})"
                for what, keys in (("missing", missing), ("not in this backbone", unexpected), ("other shape", wrong)) if keys]
        raise ValueError(f"--weights {source}: does not fit this backbone: {'; '.join(told)}")
    features.load_state_dict(state, strict=False)  # strictness was checked above; old files lack num_batches_tracked


def first_line(problem):
    return (str(problem).strip().splitlines() or [type(problem).__name__])[0]
