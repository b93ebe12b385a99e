"""From feature maps to an embedding: normalise the image, run the backbone, pool, project."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import normalize


def norms_of(model):
    """Its BatchNorm layers: torch's, timm's and SyncBatchNorm."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def generalised_mean(maps, p):
    """(1/hw · sum over positions of |x|^p)^(1/p) of each channel: (B, C, h, w) → (B, C), in float32 or better.

    Between the average (p = 1) and the maximum (p → ∞) of |x|, which counts as at least 1e-6: at 0 the root has no
    gradient. Source: Radenović et al., Fine-tuning CNN Image Retrieval, TPAMI 2019; p learns there, and x ≥ 0.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # 1e-6^p is no half-precision number
    return maps.abs().clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)


POOLINGS = {  # (B, C, h, w) → (B, C)
    "avg": lambda maps: maps.mean((2, 3)),
    "double": lambda maps: maps.mean((2, 3)) + maps.amax((2, 3)),  # as published
    "lp2": partial(generalised_mean, p=2),
    "lp3": partial(generalised_mean, p=3),
}


class EmbeddingNet(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim).

    features : normalised images → maps (B, width, h, w), or features (B, width) that it has pooled itself
    input_size : H = W the network is made for, in pixels; convolutional networks take larger images too
    mean, std : of the channels, in the order and range that the backbone wants; the network normalises by itself
    bgr, input_range : what the backbone wants: BGR or RGB, and 1 or 255; the images given are RGB all the same
    frozen : BatchNorm keeps its running statistics (stays in eval mode) through train(); its scale and shift learn
    normalize : L2-normalise the embeddings
    pooling : a key of POOLINGS
    """

    def __init__(self, features, width, embed_dim, input_size=224, mean=(0.485, 0.456, 0.406),
                 std=(0.229, 0.224, 0.225), bgr=False, input_range=1, frozen=False, normalize=False,
                 pooling="avg"):  # fmt: skip
        super().__init__()
        self.features, self.last_linear = features, nn.Linear(width, embed_dim)
        self.input_size, self.embed_dim = input_size, embed_dim
        self.frozen, self.normalize, self.pooling = frozen, normalize, pooling
        self.bgr, self.input_range = bgr, input_range
        # not persistent: they belong to the architecture, not to what was learned
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            for norm in norms_of(self):
                norm.eval()
        return self

    def warm_up(self, on):
        """Let only the last linear layer learn (True), or everything (False)."""
        self.features.requires_grad_(not on)

    def param_groups(self, lr, fc_lr=None):
        """The optimizer's groups: the backbone at lr, the last linear layer at fc_lr (lr where it is None)."""
        rates = {self.features: lr, self.last_linear: lr if fc_lr is None else fc_lr}
        return [{"params": list(part.parameters()), "lr": rate} for part, rate in rates.items()]

    def prepare(self, images):
        """RGB images, uint8 or float in 0..1 → what the backbone wants: its channel order, range, mean and std."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / (255 / self.input_range)
        elif self.input_range != 1:
            images = images * self.input_range
        if self.bgr:
            images = images.flip(1)
        return (images - self.mean) / self.std

    def forward(self, images):
        features = self.features(self.prepare(images))
        embeddings = self.last_linear(POOLINGS[self.pooling](features) if features.dim() == 4 else features)
        if not self.normalize:
            return embeddings
        return normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
