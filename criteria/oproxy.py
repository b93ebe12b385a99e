"""Proxy losses with several proxies' worth of pulling and pushing in one softplus: Proxy-Anchor and its NCA-like twin."""

import torch
from torch.nn.functional import normalize, one_hot

from criteria.base import Criterion, log1p_sum_exp, make_proxies


class OProxy(Criterion):
    """Proxy-Anchor (`mode="anchor"`) and the smooth Proxy-NCA (`mode="nca"`) of the published code.

    With cosine similarities s(x, p) between embeddings x and proxies p:

    - anchor: mean over the classes of the batch of log(1 + Σ_{x of p} exp(-pos_alpha (s - pos_delta)))
      + mean over all C classes of log(1 + Σ_{x not of p} exp(neg_alpha (s - neg_delta))). A proxy gathers the batch.
    - nca: the same two terms with the roles exchanged, means over the B samples: a sample gathers the proxies. As
      published, the positive proxy is taken once for each sample of its class in the batch.

    Parameters
    ----------
    n_classes, embed_dim : int
        C and d.
    mode : "anchor" or "nca"
    pos_alpha, neg_alpha : float
        Inverse temperatures. 64 as published with AntiCo; Proxy-Anchor's own paper has 32.
    pos_delta, neg_delta : float
        Margins on the cosine similarity.
    lr_multi : float
        The proxies' learning rate is this times the network's.

    Source: Kim et al., Proxy Anchor Loss, CVPR 2020, eq. 4; Movshovitz-Attias et al., Proxy-NCA, ICCV 2017.
    """

    def __init__(self, n_classes, embed_dim, mode="anchor", pos_alpha=64.0, neg_alpha=64.0,
                 pos_delta=0.1, neg_delta=-0.1, lr_multi=2000.0):
        super().__init__()
        if mode not in ("anchor", "nca"):
            raise ValueError(f"--loss_oproxy_mode {mode}: must be anchor or nca")
        self.name = "proxyanchor" if mode == "anchor" else "oproxy"
        self.n_classes, self.mode, self.lr_multi = n_classes, mode, lr_multi
        self.pos_alpha, self.neg_alpha, self.pos_delta, self.neg_delta = pos_alpha, neg_alpha, pos_delta, neg_delta
        self.proxies = make_proxies(n_classes, embed_dim)

    def param_groups(self, lr):
        return [{"params": [self.proxies], "lr": lr * self.lr_multi, "weight_decay": 0.0}]

    def loss(self, embeddings, labels):
        similarity = normalize(embeddings, dim=1) @ normalize(self.proxies, dim=1).T.to(embeddings.dtype)  # (B, C)
        positive = one_hot(labels, self.n_classes).bool()
        pull = -self.pos_alpha * (similarity - self.pos_delta)
        push = self.neg_alpha * (similarity - self.neg_delta)
        per_class = positive.sum(0)
        if self.mode == "anchor":
            present = per_class > 0
            pos = log1p_sum_exp(pull, positive, 0).sum() / present.sum()  # classes that are not there give 0
            neg = log1p_sum_exp(push, ~positive, 0).mean()
        else:
            pull = pull + per_class.clamp(min=1).to(pull.dtype).log()
            pos = log1p_sum_exp(pull, positive, 1).mean()
            neg = log1p_sum_exp(push, ~positive, 1).mean()
        self.log(positive=pos, negative=neg)
        return pos + neg
