"""ResNet and GoogLeNet from torchvision, without pooling, classifier and auxiliary heads."""

from collections import OrderedDict

from torch import nn
from torchvision import models


def torchvision_backbone(name, **how):
    """The convolutional part of torchvision's `name`: images (B, 3, H, W) → maps (B, width, H/32, W/32).

    Children keep torchvision's names (conv1, bn1, layer1, ...), so its checkpoints fit key by key.
    """
    full = getattr(models, name)(weights=None, **how)
    return nn.Sequential(OrderedDict((n, m) for n, m in full.named_children() if n not in ("avgpool", "dropout", "fc")))
