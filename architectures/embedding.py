"""From feature maps to an embedding: normalise the image, run the backbone, pool, project."""

from functools import partial

import torch
from torch import nn
from torch.nn.functional import normalize

from architectures.weights import first_line

BATCH_NORM = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)  # and what derives from them (timm)


def average(maps):
    return maps.mean((2, 3))


def double(maps):
    """The average plus the maximum of each channel, as published: (B, C, h, w) → (B, C)."""
    return maps.mean((2, 3)) + maps.amax((2, 3))


def generalised_mean(maps, p):
    """(1/hw · sum over positions of |x|^p)^(1/p) of each channel: (B, C, h, w) → (B, C), in float32 or better.

    That is the p-norm over positions, divided by hw^(1/p) so that it does not grow with the image. Between the average
    (p = 1) and the maximum (p → ∞) of |x|. |x| counts as at least 1e-6, where the root would have no gradient.
    Source: Radenović et al., Fine-tuning CNN Image Retrieval with No Human Annotation, TPAMI 2019; p learns there, and
    x ≥ 0.
    """
    maps = maps.to(torch.promote_types(maps.dtype, torch.float32))  # 1e-6^p is no half-precision number
    return maps.abs().clamp(min=1e-6).pow(p).mean((2, 3)).pow(1 / p)


POOLINGS = {
    "avg": average,
    "double": double,
    "lp2": partial(generalised_mean, p=2),
    "lp3": partial(generalised_mean, p=3),
}


def features_of_one(features, size, arch):
    """What a backbone gives for one black image; ValueError, one line, if it does not take images of this size."""
    training = features.training
    try:
        with torch.no_grad():
            return features.eval()(torch.zeros(1, 3, size, size))
    except (RuntimeError, AssertionError, IndexError, ValueError) as problem:  # sizes of maps that do not fit, or are 0
        raise refused(arch, size, problem) from problem
    finally:
        features.train(training)


def refused(arch, size, problem):
    reason = f"this network cannot be had for images of that size ({first_line(problem)})"
    return ValueError(f"--input_size {size} --arch {arch}: {reason}")


class EmbeddingNet(nn.Module):
    """RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim).

    Parameters
    ----------
    features : nn.Module
        Normalised images → maps (B, width, h, w), or with pooling "avg" also features (B, width) that it has pooled.
    input_size : int
        H = W the network is made for, in pixels; convolutional networks take larger images too.
    mean, std : three floats
        Of the channels in the order and range below. The network normalises by itself, on its device.
    channels, input_range : "RGB" or "BGR", and 1 or 255
        What the backbone wants; the images given are RGB, uint8 or 0..1, whatever it is.
    pooling : a key of POOLINGS
        avg, double (average + maximum), lp2 or lp3 (generalised mean).
    frozen : bool
        BatchNorm keeps its running statistics (stays in eval mode) through train(); its scale and shift still learn.
    normalize : bool
        L2-normalise the embeddings.
    """

    def __init__(
        self,
        features,
        width,
        embed_dim,
        input_size=224,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        channels="RGB",
        input_range=1,
        frozen=False,
        normalize=False,
        pooling="avg",
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"pooling {pooling}: must be one of {', '.join(POOLINGS)}")
        if channels not in ("RGB", "BGR"):
            raise ValueError(f"channels {channels}: must be RGB or BGR")
        self.features, self.last_linear = features, nn.Linear(width, embed_dim)
        self.input_size, self.embed_dim = input_size, embed_dim
        self.frozen, self.normalize, self.pooling = frozen, normalize, pooling
        self.channels, self.input_range = channels, input_range
        # not persistent: they belong to the architecture, not to what was learned
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
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
        return [
            {"params": list(self.features.parameters()), "lr": lr},
            {"params": list(self.last_linear.parameters()), "lr": lr if fc_lr is None else fc_lr},
        ]

    def prepare(self, images):
        """RGB images, uint8 or float in 0..1 → what the backbone wants: its channel order, range, mean and std."""
        if images.dtype == torch.uint8:
            images = images.to(self.mean.dtype) / (255 / self.input_range)
        elif self.input_range != 1:
            images = images * self.input_range
        if self.channels == "BGR":
            images = images.flip(1)
        return (images - self.mean) / self.std

    def forward(self, images):
        features = self.features(self.prepare(images))
        pooled = POOLINGS[self.pooling](features) if features.dim() == 4 else features
        embeddings = self.last_linear(pooled)
        if not self.normalize:
            return embeddings
        return normalize(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), dim=1)
