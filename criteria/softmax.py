"""Classification on the sphere: the normalized softmax and ArcFace. Their class weights stand as proxies."""

import math

import torch
from torch.nn.functional import cross_entropy

from criteria.base import ProxyCriterion, need_positive, need_range


class NormalizedSoftmax(ProxyCriterion):
    """Cross-entropy of the cosine similarities to the L2-normalised class weights over a temperature.

    Source: Wang et al., NormFace, ACM MM 2017; Zhai & Wu, Classification is a Strong Baseline for Deep Metric
    Learning, BMVC 2019 (temperature 0.05).
    """

    name = "normalized_softmax"

    def __init__(
        self,
        n_classes,
        embed_dim,
        temperature=0.05,  # --loss_normalized_softmax_temperature: cosine similarities are divided by this
        lr_multi=2000.0,  # --loss_normalized_softmax_lrmulti: the class weights' learning rate is this times --lr
    ):
        super().__init__(n_classes, embed_dim, lr_multi)
        need_range(loss_normalized_softmax_lrmulti=lr_multi)
        need_positive(loss_normalized_softmax_temperature=temperature)
        self.temperature = temperature

    def proxy_loss(self, embeddings, proxies, labels):
        cosine = embeddings @ proxies.T
        self.log(own_cosine=cosine.gather(1, labels[:, None]).mean())
        return cross_entropy(cosine / self.temperature, labels)


class ArcFace(ProxyCriterion):
    """Cross-entropy of scale · cos θ, where the own class has cos(θ + margin).

    Beyond θ = π - margin, where cos(θ + margin) would rise again, the own class has cos θ - margin · sin(margin),
    as in the authors' code.

    Source: Deng et al., ArcFace, CVPR 2019, eq. 3 (margin 0.5, scale 64).
    """

    name = "arcface"

    def __init__(
        self,
        n_classes,
        embed_dim,
        margin=0.5,  # --loss_arcface_margin: added to the angle to the own class weight, radians, 0 to pi
        scale=64.0,  # --loss_arcface_scale: factor of the cosines
        lr_multi=2000.0,  # --loss_arcface_lrmulti: the class weights' learning rate is this times --lr
    ):
        super().__init__(n_classes, embed_dim, lr_multi)
        need_positive(loss_arcface_scale=scale)
        need_range(loss_arcface_lrmulti=lr_multi)
        if not 0 <= margin <= math.pi:
            raise ValueError(f"--loss_arcface_margin {margin:g}: must be an angle in radians from 0 to pi")
        self.margin, self.scale = margin, scale

    def proxy_loss(self, embeddings, proxies, labels):
        cosine = embeddings @ proxies.T
        own = cosine.gather(1, labels[:, None])
        self.log(own_cosine=own.mean())
        sine = (1 - own.square()).clamp(min=1e-12).sqrt()  # away from 0, where the root has no finite gradient
        shifted = own * math.cos(self.margin) - sine * math.sin(self.margin)
        shifted = torch.where(own >= -math.cos(self.margin), shifted, own - self.margin * math.sin(self.margin))
        return cross_entropy(self.scale * cosine.scatter(1, labels[:, None], shifted), labels)
