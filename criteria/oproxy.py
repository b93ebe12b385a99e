"""Proxy losses that pull and push in one softplus a proxy or a sample: Proxy-Anchor and its NCA-like twin."""

from functools import partial
from typing import Literal

import torch
from torch.nn.functional import softplus

from criteria.base import ProxyCriterion, lowest, need_choice, need_positive, need_range

Mode = Literal["nca", "anchor"]


class OProxy(ProxyCriterion):
    """Proxy-Anchor (`mode="anchor"`) and the smooth Proxy-NCA (`mode="nca"`) of the published code.

    With cosine similarities s(x, p) between embeddings x and proxies p:

    - anchor: mean over the samples of the batch of log(1 + Σ_{x of p} exp(-pos_alpha (s - pos_delta))), p the sample's
      proxy, + mean over all C classes of log(1 + Σ_{x not of p} exp(neg_alpha (s - neg_delta))). A proxy gathers the
      batch, and a class counts as often as it has samples there.
    - nca: the same two terms with the roles exchanged, means over the B samples: a sample gathers the proxies. As
      published, the positive proxy is taken once for each sample of its class in the batch.

    Parameters
    ----------
    n_classes, embed_dim : int
        C and d.
    published : bool
        False is the Proxy-Anchor paper: the first mean of `anchor` is over the classes of the batch, each once, and the
        proxies start as Kaiming's normal numbers instead of normal numbers / 8.
    pos_alpha, neg_alpha : float
        64 as published with AntiCo; Proxy-Anchor's own paper has 32.

    Source: Kim et al., Proxy Anchor Loss, CVPR 2020, eq. 4; Movshovitz-Attias et al., Proxy-NCA, ICCV 2017.
    """

    def __init__(
        self,
        n_classes,
        embed_dim,
        mode: Mode = "nca",  # --loss_oproxy_mode: of oproxy, the published code's; proxyanchor is always anchor
        pos_alpha=64.0,  # --loss_oproxy_pos_alpha: inverse temperature of the positive term
        neg_alpha=64.0,  # --loss_oproxy_neg_alpha: inverse temperature of the negative term
        pos_delta=0.1,  # --loss_oproxy_pos_delta: margin of the positive term, cosine similarity
        neg_delta=-0.1,  # --loss_oproxy_neg_delta: margin of the negative term, cosine similarity
        lr_multi=2000.0,  # --loss_oproxy_lrmulti: the proxies' learning rate is this times --lr
        published=True,
    ):
        super().__init__(n_classes, embed_dim, lr_multi, std=1 / 8 if published else None)
        need_choice(Mode, loss_oproxy_mode=mode)
        need_range(loss_oproxy_lrmulti=lr_multi)
        need_positive(loss_oproxy_pos_alpha=pos_alpha, loss_oproxy_neg_alpha=neg_alpha)
        self.name, self.mode, self.published = "oproxy" if published else "proxyanchor", mode, published
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
            # for the paper each class once, though it is here `count` times
            weight = torch.ones_like(pull) if self.published else 1 / count.to(pull.dtype)
            pos = (weight * softplus(of_class)).sum() / weight.sum()
        else:
            pos = softplus(pull + count.to(pull.dtype).log()).mean()
        neg = softplus(
            torch.logsumexp(push, 1 if self.mode == "anchor" else 0) - self.neg_alpha * self.neg_delta
        ).mean()
        self.log(positive=pos, negative=neg)
        return pos + neg


# the paper's, as --loss proxyanchor is
ProxyAnchor = partial(OProxy, mode="anchor", published=False)
