import torch
from torch.nn.functional import softplus

from criteria.base import ProxyCriterion, lowest, need, need_choice


class OProxy(ProxyCriterion):
    """Proxy-Anchor counting each sample (mode anchor) or smooth Proxy-NCA (nca), as published (Roth et al., CVPR 2022).

    With cosine similarities s(x, p) between embeddings x and proxies p:

    - anchor: mean over the samples of the batch of log(1 + Σ_{x of p} exp(-pos_alpha (s - pos_delta))), p the sample's
      proxy, + mean over all C classes of log(1 + Σ_{x not of p} exp(neg_alpha (s - neg_delta))). A proxy gathers the
      batch, and a class counts as often as it has samples there (Kim et al., CVPR 2020, eq. 4: once).
    - nca: the same two terms with the roles exchanged, means over the B samples: a sample gathers the proxies. As
      published, the positive proxy is taken once for each sample of its class in the batch.

    The alphas are inverse temperatures, 64 as published with AntiCo (Proxy-Anchor's own paper: 32), the deltas margins
    in cosine similarity. The proxies start normal with standard deviation `std`, 1/8 as published.
    """

    each_class_once = False

    def __init__(self, n_classes, embed_dim, mode="nca", pos_alpha=64.0, neg_alpha=64.0, pos_delta=0.1, neg_delta=-0.1,
                 lr_multi=2000.0, std=1 / 8):  # fmt: skip
        super().__init__(n_classes, embed_dim, lr_multi, std)
        need_choice(self, "nca", "anchor", mode=mode)
        need(self, pos_alpha=pos_alpha, neg_alpha=neg_alpha)
        self.mode = mode
        self.pos_alpha, self.neg_alpha, self.pos_delta, self.neg_delta = pos_alpha, neg_alpha, pos_delta, neg_delta

    def proxy_loss(self, embeddings, proxies, labels):
        similarity = proxies @ embeddings.T  # (C, B)
        own = labels[None, :]
        # a sample has one positive proxy, so the positive terms need B numbers and not C · B
        pull = -self.pos_alpha * (similarity.gather(0, own).squeeze(0) - self.pos_delta)
        same = labels[:, None] == own
        count = same.sum(1)  # samples of this sample's class
        push = (self.neg_alpha * similarity).scatter(0, own, lowest(similarity))
        if self.mode == "anchor":
            of_class = torch.logsumexp(torch.where(same, pull[None, :], lowest(pull)), 1)
            # a class that counts once is here `count` times
            weight = 1 / count.to(pull.dtype) if self.each_class_once else torch.ones_like(pull)
            pos = (weight * softplus(of_class)).sum() / weight.sum()
        else:
            pos = softplus(pull + count.to(pull.dtype).log()).mean()
        over = 1 if self.mode == "anchor" else 0
        neg = softplus(torch.logsumexp(push, over) - self.neg_alpha * self.neg_delta).mean()
        self.log(positive=pos, negative=neg)
        return pos + neg


class ProxyAnchor(OProxy):
    """Proxy-Anchor, each class of the batch counted once (Kim et al., Proxy Anchor Loss, CVPR 2020, eq. 4).

    As `OProxy` in mode anchor, but the first mean is over the classes of the batch, and the proxies start as Kaiming's
    normal numbers for fan-out C, both as in the paper's own code.
    """

    each_class_once = True

    def __init__(self, n_classes, embed_dim, pos_alpha=64.0, neg_alpha=64.0, pos_delta=0.1, neg_delta=-0.1,
                 lr_multi=2000.0):  # fmt: skip
        super().__init__(n_classes, embed_dim, "anchor", pos_alpha, neg_alpha, pos_delta, neg_delta, lr_multi, std=None)
