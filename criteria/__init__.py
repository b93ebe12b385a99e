"""The losses by name. To add one: its file, its line in BASES, and its flags in parameters.py (README.md)."""

import functools

import torch

from criteria import miners
from criteria.antico import AntiCo, NoBase
from criteria.base import Criterion, NonFinite, ProxyCriterion, arguments_of
from criteria.contrastive import Contrastive
from criteria.margin import Margin
from criteria.multisimilarity import MultiSimilarity
from criteria.nir import NIR
from criteria.npair import NPair
from criteria.oproxy import OProxy, ProxyAnchor
from criteria.pml import ModuleLoss, library_loss
from criteria.proxynca import ProxyNCA
from criteria.rate import coding_rate, coding_rate_share, max_coding_rate
from criteria.softmax import ArcFace, NormalizedSoftmax
from criteria.triplet import Triplet
from utilities.command_line import lookup

MINERS = {
    "all": miners.every, "random": miners.random, "semihard": miners.semihard, "softhard": miners.softhard,
    "distance": miners.distance_weighted, "rho_distance": miners.rho_distance,
}  # fmt: skip
# the losses that AntiCo can be added to
BASES = {
    "contrastive": Contrastive,
    "triplet": Triplet,
    "margin": Margin,
    "npair": NPair,
    "multisimilarity": MultiSimilarity,
    "proxynca": ProxyNCA,
    "proxyanchor": ProxyAnchor,
    "oproxy": OProxy,
    "normalized_softmax": NormalizedSoftmax,
    "arcface": ArcFace,
    "nir": NIR,
}
ANTICO = {  # {name: what it is the coding rate of}
    "antico": "as published, --antico_type picks one of those that follow",
    "antico_pair": "the coding rate of the batch's embeddings",
    "antico_batch_proxy": "the coding rate of the proxies of the batch's classes",
    "antico_all_proxy": "the coding rate of all proxies",
    "antico_class_means": "the coding rate of the means of the batch's classes (ours, README.md)",
}
CRITERIA = {**BASES, **dict.fromkeys(ANTICO, AntiCo)}

# An argument has the flag <prefix><argument>; those that were published under another name:
PUBLISHED = {
    "antico_variant": "antico_type", "antico_align": "loss_ac_w_align", "loss_nir_flow_lr_multi": "loss_nir_lrmulti",
    "loss_nir_conditioning": "loss_nir_nf_cond_mode", "loss_nir_start": "loss_nir_nf_fc_init",
    "loss_nir_blocks": "loss_nir_nf_cblocks", "loss_nir_depth": "loss_nir_nf_fc_depth",
    "loss_nir_width": "loss_nir_nf_fc_width", "loss_nir_clamp": "loss_nir_nf_clamp_alpha",
    "loss_nir_dropout": "loss_nir_nf_fc_dropout",
}  # fmt: skip


def select(opt, n_classes):
    """The criterion that --loss names, for n_classes training classes: embeddings (B, d), labels (B,) → scalar; its
    `.acting` names the flags that act on it. ValueError, one line, for what does not exist or go together."""
    acting = {"loss"}

    def values(cls, *prefixes, **parts):
        """{argument: value}: from `parts`, the data, or its flag, which is a registered parent's where the class has
        none; the other arguments keep their defaults."""
        given, chosen = dict(n_classes=n_classes, embed_dim=opt.embed_dim, **parts), {}
        for argument in arguments_of(cls):
            names = [PUBLISHED.get(prefix + argument, prefix + argument) for prefix in prefixes]
            names += [name.replace("lr_multi", "lrmulti") for name in names]
            flag = next((name for name in names if hasattr(opt, name)), None)
            if argument in given:
                chosen[argument] = given[argument]
            elif flag:
                chosen[argument] = getattr(opt, flag)
                acting.add(flag)
        return chosen

    def make(cls, *prefixes, **parts):
        return cls(**values(cls, *prefixes, **parts))

    def make_base(picked_by):
        name, parts = getattr(opt, picked_by), {}
        acting.add(picked_by)
        if name.startswith("pml."):
            loss = make(library_loss, "pml_", name=name.removeprefix("pml."))
            acting.difference_update([] if loss.param_groups(opt.lr) else ["pml_lrmulti"])
            return loss
        known = {**BASES, "none": NoBase} if picked_by == "antico_base" else CRITERIA
        cls = lookup(f"--{picked_by}", name, {**known, "pml.<ClassName>": None})
        if "miner" in arguments_of(cls):
            acting.add("batch_mining")
            miner = lookup("--batch_mining", opt.batch_mining, MINERS)
            settings = values(miner, f"miner_{opt.batch_mining}_")
            parts["miner"] = functools.partial(miner, **settings) if settings else miner
        if issubclass(cls, NIR):  # it has a flag of its own for the proxies' rate, and they start larger, as published
            parts["base"] = make(OProxy, "loss_oproxy_", mode="anchor", lr_multi=1.0, std=1.0)
        parents = [other for parent in cls.__mro__[1:] for other, known in BASES.items() if known is parent]
        return make(cls, *(f"loss_{each}_" for each in (name, *parents)), **parts)

    criterion = make_base("antico_base" if opt.loss in ANTICO else "loss")
    if opt.loss in ANTICO:
        criterion = make(AntiCo, "antico_", base=criterion, raw_embeddings=opt.loss == "antico")
    criterion.n_classes, criterion.acting = n_classes, acting
    return criterion


def acting_flags(opt):
    """The names of the flags that act on this run's loss, and the errors of `select`, before there are data."""
    with torch.random.fork_rng(devices=[]):
        return select(opt, 2).acting
