"""GoogLeNet from torchvision, without auxiliary heads, pooling and classifier."""

from collections import OrderedDict

from torch import nn
from torchvision import models


def googlenet():
    """The convolutional part of torchvision's googlenet: images (B, 3, H, W) → maps (B, 1024, H/32, W/32).

    Its weights come from TensorFlow and want mean and std of 0.5, which torchvision reaches by `transform_input`; here
    the mean and std are said at once.
    Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015 (with BatchNorm).
    """
    # torchvision's own initialisation takes seconds
    full = models.googlenet(weights=None, aux_logits=False, transform_input=False, init_weights=False)
    return nn.Sequential(OrderedDict((n, m) for n, m in full.named_children() if n not in ("avgpool", "dropout", "fc")))
