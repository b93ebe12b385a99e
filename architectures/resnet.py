"""ResNet-18 and ResNet-50 from torchvision, without pooling and classifier."""

from collections import OrderedDict

from torch import nn
from torchvision import models


def resnet(name):
    """The convolutional part of torchvision's `name`: images (B, 3, H, W) → maps (B, 512 or 2048, H/32, W/32).

    Children keep torchvision's names (conv1, bn1, layer1, ...), so its checkpoints fit key by key.
    Source: He et al., Deep Residual Learning for Image Recognition, CVPR 2016.
    """
    full = getattr(models, name)(weights=None)
    return nn.Sequential(OrderedDict((n, m) for n, m in full.named_children() if n not in ("avgpool", "fc")))
