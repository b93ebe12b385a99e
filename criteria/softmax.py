import math

import torch
from torch.nn.functional import cross_entropy

from criteria.base import ProxyCriterion, need


class NormalizedSoftmax(ProxyCriterion):
    """Normalized softmax (Zhai & Wu, Classification is a Strong Baseline for DML, BMVC 2019, temperature 0.05).

    Cross-entropy of the cosine similarities to the L2-normalised class weights over a temperature.
    """

    def __init__(self, n_classes, embed_dim, temperature=0.05, lr_multi=2000.0):
        super().__init__(n_classes, embed_dim, lr_multi)
        need(self, temperature=temperature)
        self.temperature = temperature

    def proxy_loss(self, embeddings, proxies, labels):
        cosine = embeddings @ proxies.T
        self.log(own_cosine=cosine.gather(1, labels[:, None]).mean())
        return cross_entropy(cosine / self.temperature, labels)


class ArcFace(ProxyCriterion):
    """ArcFace (Deng et al., CVPR 2019, eq. 3, margin 0.5, scale 64).

    Cross-entropy of scale · cos θ, where the own class has cos(θ + margin), margin in radians. Beyond θ = π - margin,
    where cos(θ + margin) would rise again, the own class has cos θ - margin · sin(margin), as in the authors' code.
    """

    def __init__(self, n_classes, embed_dim, margin=0.5, scale=64.0, lr_multi=2000.0):
        super().__init__(n_classes, embed_dim, lr_multi)
        need(self, scale=scale)
        need(self, 0, math.pi, margin=margin)
        self.margin, self.scale = margin, scale

    def proxy_loss(self, embeddings, proxies, labels):
        cosine = embeddings @ proxies.T
        own = cosine.gather(1, labels[:, None])
        self.log(own_cosine=own.mean())
        sine = (1 - own.square()).clamp(min=1e-12).sqrt()  # away from 0, where the root has no finite gradient
        shifted = own * math.cos(self.margin) - sine * math.sin(self.margin)
        shifted = torch.where(own >= -math.cos(self.margin), shifted, own - self.margin * math.sin(self.margin))
        return cross_entropy(self.scale * cosine.scatter(1, labels[:, None], shifted), labels)
