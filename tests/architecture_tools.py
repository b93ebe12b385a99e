"""What tests of networks share."""

from importlib.util import find_spec

import pytest
import torch
from torch import nn

import architectures
import parameters


def build(arch, *more):
    """A network with random weights, or those that the further flags name."""
    if arch.startswith("timm.") and not find_spec("timm"):
        pytest.skip("needs timm")
    torch.manual_seed(0)
    weights = [] if "--weights" in more else ["--not_pretrained"]
    return architectures.select(parameters.parse(["--arch", arch, "--embed_dim", "16", *weights, *map(str, more)]))


def random_statistics(module):
    """BatchNorm as after training: weights, shifts and statistics that are not 1 and 0."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.2), nn.init.uniform_(norm.running_var, 0.5, 2)
    return module
