import itertools

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

from criteria.base import Criterion, need_choice, need_package


class NIR(Criterion):
    """Proxy-Anchor with non-isotropy regularisation (Roth et al., CVPR 2022); needs FrEIA.

    w_align · base + mean over the pairs (x, p) of sample and own proxy of f(1/2 ‖z‖² - log|det ∂z/∂x|), where
    z = flow(x | p): affine coupling blocks (Glow), each after a fixed random permutation, whose subnetworks see the
    proxy. f is exp as in the authors' code (form exp), or nothing (nll, the paper's likelihood). The base is the
    ProxyCriterion whose proxies are the flow's conditions. `..._lr_multi` times the network's rate is that of each.

    noise : uniform noise in [0, noise) on the flow's embeddings, which are then L2-normalised again
    conditioning : which blocks see the proxy: `dense` all, `start`, `mid`, `end` one of them; `dense_embed` all see a
        learned embedding of it, `dense_embed_multi` one embedding a block, `..._stacked` each of the one before
    blocks, depth, width, dropout : coupling blocks; layers of their subnetworks, the layers' width and dropout
    clamp, start : bound on a block's log-scale; initialisation of the subnetworks, none (PyTorch's) or xavier
    """

    def __init__(self, base, w_align=0.01, form="exp", proxy_lr_multi=4000.0, flow_lr_multi=50.0, noise=0.0,
                 conditioning="dense", blocks=5, depth=8, width=128, dropout=0.0, clamp=2.0, start="none"):  # fmt: skip
        super().__init__()
        need_choice(self, "exp", "nll", form=form)
        self.base, self.n_classes, self.embed_dim = base, base.n_classes, base.embed_dim
        self.w_align, self.proxy_lr_multi, self.flow_lr_multi = w_align, proxy_lr_multi, flow_lr_multi
        self.noise, self.form, self.conditioning = noise, form, conditioning
        self.compiles = False  # its thousand kernels take half a minute to trace
        d, n = base.embed_dim, {"dense_embed": 1, "dense_embed_multi": blocks, "dense_embed_multi_stacked": blocks}
        self.flow = make_flow(d, conditioning, blocks, depth, width, dropout, clamp, start)
        embedders = [nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(n.get(conditioning, 0))]
        self.embedders = nn.ModuleList(embedders)

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
            return list(itertools.accumulate(self.embedders, lambda x, embed: embed(x), initial=proxies))[1:]
        shared = self.embedders[0](proxies) if self.conditioning == "dense_embed" else proxies
        return [shared] * (len(self.flow) // 2)  # a permutation goes with every block

    def loss(self, embeddings, labels):
        base = self.base(embeddings, labels)
        dtype = next(p.dtype for p in self.flow.parameters() if p.requires_grad)  # its permutations are integers
        x, proxies = normalize(embeddings.to(dtype), dim=1), normalize(self.proxies.to(dtype), dim=1)[labels]
        if self.noise > 0:
            x = normalize(x + self.noise * torch.rand_like(x), dim=1)
        z, log_det = self.flow(x, c=self.conditions(proxies))
        nll = 0.5 * z.square().sum(1) - log_det
        flow = (nll.exp() if self.form == "exp" else nll).mean()
        self.log(**self.base.terms, base=base, flow=flow, nll=nll.mean())
        return self.w_align * base + flow


def make_flow(d, conditioning, blocks, depth, width, dropout, clamp, start):
    """A FrEIA network (B, d) → (z (B, d), log|det ∂z/∂x| (B,)), one condition (B, d) a block that takes one."""
    need_package("NIR", "FrEIA", "FrEIA")
    from FrEIA.framework import SequenceINN
    from FrEIA.modules import GLOWCouplingBlock, PermuteRandom

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
