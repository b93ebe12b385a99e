"""Non-isotropy regularisation: a proxy loss, and a normalizing flow that must tell the samples of a proxy apart."""

import torch
from torch import nn
from torch.nn.functional import normalize

from criteria.base import Criterion

CONDITIONING = ("dense", "start", "mid", "end", "dense_embed", "dense_embed_multi", "dense_embed_multi_stacked")
FORMS = ("exp", "nll")


class NIR(Criterion):
    """w_align · base + mean over the pairs (x, p) of sample and own proxy of f(1/2 ‖z‖² - log|det ∂z/∂x|).

    z = flow(x | p): affine coupling blocks (Glow), each after a fixed random permutation, whose subnetworks see the
    proxy. f is exp as in the authors' code (`form="exp"`), or nothing (`form="nll"`, the paper's likelihood).

    Parameters
    ----------
    base : ProxyCriterion
        Proxy-Anchor in the paper; its proxies are the flow's conditions.
    w_align : float
        Weight of the base loss.
    flow_lr_multi : float
        The flow's learning rate is this times the network's.
    noise : float
        Uniform noise in [0, noise) is added to the flow's embeddings, which are then L2-normalised again.
    conditioning : str
        Which blocks see the proxy: `dense` all, `start`, `mid`, `end` one of them; `dense_embed` all see a learned
        embedding of it, `dense_embed_multi` one embedding a block, `dense_embed_multi_stacked` each of the one before.
    blocks, depth, width, dropout, clamp, init
        Coupling blocks; layers of a subnetwork and their width, dropout after them; bound on the log-scale of a
        block; `xavier` or `none` (PyTorch's initialisation).

    Needs FrEIA (pip install FrEIA). Source: Roth et al., Non-isotropy Regularization for Proxy-based Deep Metric
    Learning, CVPR 2022.
    """

    name = "nir"

    def __init__(
        self,
        base,
        w_align=0.01,
        flow_lr_multi=50.0,
        noise=0.0,
        form="exp",
        conditioning="dense",
        blocks=5,
        depth=8,
        width=128,
        dropout=0.0,
        clamp=2.0,
        init="none",
    ):
        super().__init__()
        if conditioning not in CONDITIONING:
            raise ValueError(f"--loss_nir_nf_cond_mode {conditioning}: must be one of {', '.join(CONDITIONING)}")
        if form not in FORMS:
            raise ValueError(f"--loss_nir_form {form}: must be one of {', '.join(FORMS)}")
        if init not in ("none", "xavier"):
            raise ValueError(f"--loss_nir_nf_fc_init {init}: must be none or xavier")
        self.base, self.n_classes, self.embed_dim = base, base.n_classes, base.embed_dim
        self.w_align, self.flow_lr_multi = w_align, flow_lr_multi
        self.noise, self.form, self.conditioning = noise, form, conditioning
        d = base.embed_dim
        self.flow = make_flow(d, conditioning, blocks, depth, width, dropout, clamp, init)
        n_embedders = {"dense_embed": 1, "dense_embed_multi": blocks, "dense_embed_multi_stacked": blocks}.get(
            conditioning, 0
        )
        self.embedders = nn.ModuleList(
            nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(n_embedders)
        )

    @property
    def proxies(self):
        """The base loss's proxies (C, d)."""
        return self.base.proxies

    def param_groups(self, lr):
        own = [p for part in (self.flow, self.embedders) for p in part.parameters() if p.requires_grad]
        return self.base.param_groups(lr) + [{"params": own, "lr": lr * self.flow_lr_multi, "weight_decay": 0.0}]

    def conditions(self, proxies):
        """What each block is told: one tensor (B, d) a block."""
        if self.conditioning == "dense_embed_multi":
            return [embed(proxies) for embed in self.embedders]
        if self.conditioning == "dense_embed_multi_stacked":
            told = [proxies]
            for embed in self.embedders:
                told.append(embed(told[-1]))
            return told[1:]
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


def make_flow(d, conditioning, blocks, depth, width, dropout, clamp, init):
    """A FrEIA network (B, d) → (z (B, d), log|det ∂z/∂x| (B,)), conditioned on one tensor (B, d) for every block that takes one."""
    try:
        from FrEIA.framework import SequenceINN
        from FrEIA.modules import GLOWCouplingBlock, PermuteRandom
    except ImportError as problem:
        raise ValueError("--loss nir: needs FrEIA: pip install FrEIA") from problem

    def subnet(n_in, n_out):
        layers = []
        for i in range(depth):
            linear = nn.Linear(n_in if i == 0 else width, n_out if i == depth - 1 else width)
            if init == "xavier":
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)
            layers += [linear] if i == depth - 1 else [linear, nn.ReLU(), nn.Dropout(dropout)]
        return nn.Sequential(*layers)

    told = {"start": [0], "mid": [blocks // 2], "end": [blocks - 1]}.get(conditioning, range(blocks))
    flow = SequenceINN(d)
    for k in range(blocks):
        flow.append(PermuteRandom)
        condition = dict(cond=k, cond_shape=(d,)) if k in told else {}
        flow.append(GLOWCouplingBlock, subnet_constructor=subnet, clamp=clamp, **condition)
    return flow
