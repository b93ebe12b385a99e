"""Non-isotropy regularisation: a proxy loss, and a normalizing flow that must tell the samples of a proxy apart."""

from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from criteria.base import Criterion, need_choice, need_range

Form = Literal["exp", "nll"]
Conditioning = Literal["dense", "start", "mid", "end", "dense_embed", "dense_embed_multi", "dense_embed_multi_stacked"]
Start = Literal["none", "xavier"]


class NIR(Criterion):
    """w_align · base + mean over the pairs (x, p) of sample and own proxy of f(1/2 ‖z‖² - log|det ∂z/∂x|).

    z = flow(x | p): affine coupling blocks (Glow), each after a fixed random permutation, whose subnetworks see the
    proxy. f is exp as in the authors' code (`form="exp"`), or nothing (`form="nll"`, the paper's likelihood).

    Parameters
    ----------
    base : ProxyCriterion
        Proxy-Anchor in the paper; its proxies are the flow's conditions.
    noise : float
        Uniform noise in [0, noise) is added to the flow's embeddings, which are then L2-normalised again.
    conditioning : str
        Which blocks see the proxy: `dense` all, `start`, `mid`, `end` one of them; `dense_embed` all see a learned
        embedding of it, `dense_embed_multi` one embedding a block, `dense_embed_multi_stacked` each of the one before.

    Needs FrEIA (pip install FrEIA). Source: Roth et al., Non-isotropy Regularization for Proxy-based Deep Metric
    Learning, CVPR 2022.
    """

    name = "nir"

    def __init__(
        self,
        base,
        w_align=0.01,  # --loss_nir_w_align: weight of the proxy loss, which has --loss_oproxy_{pos,neg}_{alpha,delta}
        form: Form = "exp",  # --loss_nir_form: exp of each pair's negative log-likelihood (code), or it itself (paper)
        proxy_lr_multi=4000.0,  # --loss_nir_proxy_lrmulti: the proxies' learning rate is this times --lr
        flow_lr_multi=50.0,  # --loss_nir_lrmulti: the flow's learning rate is this times --lr
        noise=0.0,  # --loss_nir_noise: uniform noise up to this on the flow's embeddings
        conditioning: Conditioning = "dense",  # --loss_nir_nf_cond_mode: which of the blocks see the proxy, and how
        blocks=5,  # --loss_nir_nf_cblocks: coupling blocks of the flow
        depth=8,  # --loss_nir_nf_fc_depth: layers of a block's subnetwork
        width=128,  # --loss_nir_nf_fc_width: width of these layers
        dropout=0.0,  # --loss_nir_nf_fc_dropout: dropout in the subnetworks
        clamp=2.0,  # --loss_nir_nf_clamp_alpha: bound on the log-scale of a block
        start: Start = "none",  # --loss_nir_nf_fc_init: initialisation of the subnetworks; none: PyTorch's
    ):
        super().__init__()
        need_choice(Form, loss_nir_form=form)
        need_choice(Conditioning, loss_nir_nf_cond_mode=conditioning)
        need_choice(Start, loss_nir_nf_fc_init=start)
        need_range(loss_nir_proxy_lrmulti=proxy_lr_multi, loss_nir_lrmulti=flow_lr_multi)
        need_range(loss_nir_noise=noise, loss_nir_nf_clamp_alpha=clamp)
        need_range(1, 10**4, loss_nir_nf_cblocks=blocks, loss_nir_nf_fc_depth=depth, loss_nir_nf_fc_width=width)
        need_range(high=1, loss_nir_nf_fc_dropout=dropout)
        self.base, self.n_classes, self.embed_dim = base, base.n_classes, base.embed_dim
        self.w_align, self.proxy_lr_multi, self.flow_lr_multi = w_align, proxy_lr_multi, flow_lr_multi
        self.noise, self.form, self.conditioning = noise, form, conditioning
        d = base.embed_dim
        self.flow = make_flow(d, conditioning, blocks, depth, width, dropout, clamp, start)
        embedders = {"dense_embed": 1, "dense_embed_multi": blocks, "dense_embed_multi_stacked": blocks}
        self.embedders = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(embedders.get(conditioning, 0))
        )

    @property
    def proxies(self):
        """The base loss's proxies (C, d)."""
        return self.base.proxies

    def param_groups(self, lr):
        proxies = [{**group, "lr": lr * self.proxy_lr_multi} for group in self.base.param_groups(lr)]
        own = [p for part in (self.flow, self.embedders) for p in part.parameters() if p.requires_grad]
        return proxies + [{"params": own, "lr": lr * self.flow_lr_multi, "weight_decay": 0.0}]

    def conditions(self, proxies):
        """What each block sees of the proxies: one tensor (B, d) a block."""
        if self.conditioning == "dense_embed_multi":
            return [embed(proxies) for embed in self.embedders]
        if self.conditioning == "dense_embed_multi_stacked":
            stacked = [proxies]
            for embed in self.embedders:
                stacked.append(embed(stacked[-1]))
            return stacked[1:]
        shared = self.embedders[0](proxies) if self.conditioning == "dense_embed" else proxies
        return [shared] * (len(self.flow) // 2)  # a permutation goes with every block

    def loss(self, embeddings, labels):
        base = self.base(embeddings, labels)
        dtype = next(p.dtype for p in self.flow.parameters() if p.requires_grad)  # its permutations are integers
        if dtype not in (torch.float32, torch.float64):
            raise ValueError(f"{self.name}: its flow is {dtype}; keep the loss in float32: criterion.float()")
        x, proxies = normalize(embeddings.to(dtype), dim=1), normalize(self.proxies.to(dtype), dim=1)[labels]
        if self.noise > 0:
            x = normalize(x + self.noise * torch.rand_like(x), dim=1)
        z, log_det = self.flow(x, c=self.conditions(proxies))
        nll = 0.5 * z.square().sum(1) - log_det
        flow = (nll.exp() if self.form == "exp" else nll).mean()
        self.log(**self.base._logs, base=base, flow=flow, nll=nll.mean())
        return self.w_align * base + flow


def make_flow(d, conditioning, blocks, depth, width, dropout, clamp, start):
    """A FrEIA network (B, d) → (z (B, d), log|det ∂z/∂x| (B,)), one condition (B, d) a block that takes one."""
    try:
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import GLOWCouplingBlock, PermuteRandom
    except ImportError as problem:
        raise ValueError("--loss nir: needs FrEIA: pip install FrEIA") from problem

    def subnet(n_in, n_out):
        layers = []
        for i in range(depth):
            linear = nn.Linear(n_in if i == 0 else width, n_out if i == depth - 1 else width)
            if start == "xavier":
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            layers += [linear] if i == depth - 1 else [linear, nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers)

    conditioned = {"start": [0], "mid": [blocks // 2], "end": [blocks - 1]}.get(conditioning, range(blocks))
    flow = SequenceINN(d)
    numpy_state = np.random.get_state()
    for k in range(blocks):
        flow.append(PermuteRandom, seed=(torch.initial_seed() + k) % 2**31)  # FrEIA's own draw ignores torch's seed
        condition = dict(cond=k, cond_shape=(d,)) if k in conditioned else {}
        flow.append(GLOWCouplingBlock, subnet_constructor=subnet, clamp=clamp, **condition)
    np.random.set_state(numpy_state)
    return flow
