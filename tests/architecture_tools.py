"""What tests of networks share."""

import torch
from torch import nn

import architectures
import parameters


def build(arch, *more):
    torch.manual_seed(0)
    return architectures.select(parameters.parse(["--arch", arch, "--embed_dim", "16", *more]))


def random_statistics(module):
    """BatchNorm as after training: weights, shifts and statistics that are not 1 and 0."""
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5), nn.init.normal_(norm.bias, 0, 0.3)
            nn.init.normal_(norm.running_mean, 0, 0.2), nn.init.uniform_(norm.running_var, 0.5, 2)
    return module
