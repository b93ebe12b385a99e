"""From feature maps to an embedding: normalise the image, run the backbone, pool, project."""

import torch
from torch import nn
from torch.nn.functional import normalize

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class EmbeddingNet(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim).

    Parameters
    ----------
    features : nn.Module
        Normalised images → maps (B, width, h, w).
    input_size : int
        H = W the network is made for, in pixels; larger images work too.
    mean, std : three floats
        Of RGB in 0..1. The network normalises by itself, on its device.
    pooling : "avg" or "double"
        Average pooling, or its sum with max pooling.
    frozen : bool
        BatchNorm keeps its running statistics (stays in eval mode) through train(); its scale and shift still learn.
    normalize : bool
        L2-normalise the embeddings.
    """

    def __init__(self, features, width, embed_dim, input_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
                 frozen=False, normalize=False, pooling="avg"):
        super().__init__()
        if pooling not in ("avg", "double"):
            raise ValueError(f"pooling {pooling}: must be avg or double")
        self.features, self.last_linear = features, nn.Linear(width, embed_dim)
        self.input_size, self.embed_dim, self.frozen, self.normalize, self.pooling = input_size, embed_dim, frozen, normalize, pooling
        # not persistent: they belong to the architecture, not to what was learned
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.train(self.training)

    def train(self, mode=True):
        super().train(mode)
        if self.frozen:
            for module in self.modules():
                if isinstance(module, BATCH_NORM):
                    module.eval()
        return self

    def warm_up(self, on):
        """Let only the last linear layer learn (True), or everything (False)."""
        self.features.requires_grad_(not on)

    def param_groups(self, lr, fc_lr=None):
        """The optimizer's groups: the backbone at lr, the last linear layer at fc_lr (lr where it is None)."""
        return [{"params": list(self.features.parameters()), "lr": lr},
                {"params": list(self.last_linear.parameters()), "lr": lr if fc_lr is None else fc_lr}]

    def forward(self, images):
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / 255
        maps = self.features((images - self.mean) / self.std)
        pooled = maps.mean((2, 3))
        if self.pooling == "double":
            pooled = pooled + maps.amax((2, 3))
        embeddings = self.last_linear(pooled)
        return normalize(embeddings.float(), dim=1) if self.normalize else embeddings
