"""Conv-4, the small network of the few-shot literature: right for 32-pixel images and for a CPU."""

from torch import nn


def conv4(width=64):
    """Four times (3x3 convolution, BatchNorm, ReLU, 2x2 max pooling): images (B, 3, H, W) → maps (B, 64, H/16, W/16).

    Source: Vinyals et al., Matching Networks, NeurIPS 2016; Snell et al., Prototypical Networks, NeurIPS 2017.
    """
    layers, channels = [], 3
    for _ in range(4):
        convolution = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        channels = width
    return nn.Sequential(*layers)
