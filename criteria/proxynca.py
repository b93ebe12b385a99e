from torch.nn.functional import cross_entropy

from criteria.base import ProxyCriterion, need


class ProxyNCA(ProxyCriterion):
    """Proxy-NCA (Movshovitz-Attias et al., No Fuss Distance Metric Learning using Proxies, ICCV 2017).

    Mean over the batch of -log softmax of minus the squared Euclidean distances to the proxies, at the own proxy. The
    softmax is over all C proxies, as in pytorch-metric-learning and ProxyNCA++; the paper leaves the own proxy out of
    the denominator. `scale` multiplies the squared distances (ProxyNCA++: 9).
    """

    def __init__(self, n_classes, embed_dim, scale=1.0, lr_multi=2000.0):
        super().__init__(n_classes, embed_dim, lr_multi)
        need(self, scale=scale)
        self.scale = scale

    def proxy_loss(self, embeddings, proxies, labels):
        cosine = embeddings @ proxies.T
        self.log(own_cosine=cosine.gather(1, labels[:, None]).mean())
        # for unit vectors the squared distance is 2 - 2 cos, and the softmax does not see the 2
        return cross_entropy(2 * self.scale * cosine, labels)
