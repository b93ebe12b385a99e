"""The losses by name. To add one: write its file, then add one line to CRITERIA and its flags to parameters.py."""

import difflib
from functools import partial

from criteria import coding_rate  # noqa: F401 (criteria.coding_rate is part of the interface)
from criteria.antico import AntiCo
from criteria.base import Criterion
from criteria.margin import Margin
from criteria.miners import MINERS
from criteria.multisimilarity import MultiSimilarity
from criteria.oproxy import OProxy

__all__ = ["CRITERIA", "Criterion", "select"]


def build_antico(opt, n_classes, variant=None):
    """AntiCo over --antico_base; without a variant it is the published command line, where --antico_type picks one."""
    base = lookup("--antico_base", opt.antico_base, BASES)(opt, n_classes)
    return AntiCo(base, variant=variant or opt.antico_type, form=opt.antico_form, align=opt.loss_ac_w_align, w=opt.antico_w,
                  gam1=opt.antico_gam1, gam2=opt.antico_gam2, eps=opt.antico_eps, raw_embeddings=variant is None)


def build_oproxy(opt, n_classes, mode=None):
    return OProxy(n_classes, opt.embed_dim, mode=mode or opt.loss_oproxy_mode, pos_alpha=opt.loss_oproxy_pos_alpha,
                  neg_alpha=opt.loss_oproxy_neg_alpha, pos_delta=opt.loss_oproxy_pos_delta,
                  neg_delta=opt.loss_oproxy_neg_delta, lr_multi=opt.loss_oproxy_lrmulti)


def build_multisimilarity(opt, n_classes):
    return MultiSimilarity(alpha=opt.loss_multisimilarity_alpha, beta=opt.loss_multisimilarity_beta,
                           base=opt.loss_multisimilarity_base, epsilon=opt.loss_multisimilarity_epsilon)


def build_margin(opt, n_classes):
    mine = lookup("--batch_mining", opt.batch_mining, MINERS)
    miner = partial(mine, lower_cutoff=opt.miner_distance_lower_cutoff, upper_cutoff=opt.miner_distance_upper_cutoff)
    return Margin(miner, margin=opt.loss_margin_margin, beta=opt.loss_margin_beta, beta_lr=opt.loss_margin_beta_lr)


# name: function (opt, n_classes) → Criterion
BASES = {
    "proxyanchor": partial(build_oproxy, mode="anchor"),
    "oproxy": build_oproxy,
    "multisimilarity": build_multisimilarity,
    "margin": build_margin,
}
CRITERIA = {
    **BASES,
    "antico": build_antico,
    "antico_pair": partial(build_antico, variant="pair"),
    "antico_batch_proxy": partial(build_antico, variant="batch_proxy"),
    "antico_all_proxy": partial(build_antico, variant="all_proxy"),
}


def lookup(flag, name, registry):
    if name not in registry:
        near = difflib.get_close_matches(name, registry, 1, 0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{flag} {name}: unknown{hint}; known: {', '.join(registry)}")
    return registry[name]


def select(opt, n_classes):
    """The criterion that --loss names, for n_classes training classes: (embeddings (B, d), labels (B,)) → scalar loss.

    Raises ValueError, one line that names the flag, for an unknown name or a combination that makes no sense.
    """
    return lookup("--loss", opt.loss, CRITERIA)(opt, n_classes)
