"""The losses by name. To add one: write its file, then add one line to BASES and its flags to parameters.py."""

import difflib
from functools import partial
from typing import Callable, NamedTuple

from criteria import coding_rate, miners  # noqa: F401 (criteria.coding_rate is part of the interface)
from criteria.antico import AntiCo, NoBase
from criteria.base import Criterion, NonFinite
from criteria.contrastive import Contrastive
from criteria.margin import Margin
from criteria.multisimilarity import MultiSimilarity
from criteria.nir import NIR
from criteria.npair import NPair
from criteria.oproxy import OProxy
from criteria.pml import PREFIX, find_pml
from criteria.proxynca import ProxyNCA
from criteria.softmax import ArcFace, NormalizedSoftmax
from criteria.triplet import Triplet

__all__ = ["BASES", "CRITERIA", "MINERS", "Criterion", "NonFinite", "check_names", "select"]


class Entry(NamedTuple):
    about: str  # one line for main.py --list, with the paper
    build: Callable


# name: how to make the function (embeddings, labels) → triplets from opt
MINERS = {
    "all": Entry("every triplet of the batch", lambda opt: miners.every),
    "random": Entry("every positive pair with a random negative", lambda opt: miners.random),
    "semihard": Entry(
        "negatives a little farther than the positive (Schroff et al., CVPR 2015)",
        lambda opt: partial(miners.semihard, margin=opt.miner_semihard_margin),
    ),
    "softhard": Entry(
        "positives and negatives that are on the wrong side of some other (Roth & Brattoli, 2019)",
        lambda opt: miners.softhard,
    ),
    "distance": Entry(
        "negatives uniform in distance (Wu et al., ICCV 2017)",
        lambda opt: partial(
            miners.distance_weighted,
            lower_cutoff=opt.miner_distance_lower_cutoff,
            upper_cutoff=opt.miner_distance_upper_cutoff,
        ),
    ),
    "rho_distance": Entry(
        "the same, some negatives replaced by positives (Roth et al., ICML 2020)",
        lambda opt: partial(
            miners.rho_distance,
            lower_cutoff=opt.miner_rho_distance_lower_cutoff,
            upper_cutoff=opt.miner_rho_distance_upper_cutoff,
            cp=opt.miner_rho_distance_cp,
        ),
    ),
}


def build_miner(opt):
    return lookup("--batch_mining", opt.batch_mining, MINERS).build(opt)


def build_antico(opt, n_classes, variant=None):
    """AntiCo over --antico_base; without a variant it is the published command line, where --antico_type picks one."""
    base = find("--antico_base", opt.antico_base, {**BASES, "none": NONE}, opt)(opt, n_classes)
    loss = AntiCo(
        base,
        variant=variant or opt.antico_type,
        form=opt.antico_form,
        align=opt.loss_ac_w_align,
        w=opt.antico_w,
        gam1=opt.antico_gam1,
        gam2=opt.antico_gam2,
        eps=opt.antico_eps,
        scale=opt.antico_scale,
        raw_embeddings=variant is None,
    )
    trace = n_classes * loss.scale_of(n_classes, opt.embed_dim)  # of n unit rows: no larger in a batch of fewer classes
    if trace > coding_rate.LARGEST:
        raise ValueError(
            f"--antico_eps {opt.antico_eps:g} --antico_gam1 {opt.antico_gam1:g}: the rate's scale times "
            f"its rows is {trace:.0e}, beyond {coding_rate.LARGEST:.0e}: float64 loses the identity"
        )
    return loss


def build_oproxy(opt, n_classes, mode=None, published=True):
    return OProxy(
        n_classes,
        opt.embed_dim,
        mode=mode or opt.loss_oproxy_mode,
        pos_alpha=opt.loss_oproxy_pos_alpha,
        neg_alpha=opt.loss_oproxy_neg_alpha,
        pos_delta=opt.loss_oproxy_pos_delta,
        neg_delta=opt.loss_oproxy_neg_delta,
        lr_multi=opt.loss_oproxy_lrmulti,
        published=published,
    )


def build_nir(opt, n_classes):
    base = build_oproxy(opt, n_classes, mode="anchor")
    base.lr_multi = opt.loss_nir_proxy_lrmulti
    return NIR(
        base,
        w_align=opt.loss_nir_w_align,
        flow_lr_multi=opt.loss_nir_lrmulti,
        noise=opt.loss_nir_noise,
        form=opt.loss_nir_form,
        conditioning=opt.loss_nir_nf_cond_mode,
        blocks=opt.loss_nir_nf_cblocks,
        depth=opt.loss_nir_nf_fc_depth,
        width=opt.loss_nir_nf_fc_width,
        dropout=opt.loss_nir_nf_fc_dropout,
        clamp=opt.loss_nir_nf_clamp_alpha,
        init=opt.loss_nir_nf_fc_init,
    )


def build_multisimilarity(opt, n_classes):
    return MultiSimilarity(
        alpha=opt.loss_multisimilarity_alpha,
        beta=opt.loss_multisimilarity_beta,
        base=opt.loss_multisimilarity_base,
        epsilon=opt.loss_multisimilarity_epsilon,
    )


def build_margin(opt, n_classes):
    return Margin(
        build_miner(opt), margin=opt.loss_margin_margin, beta=opt.loss_margin_beta, beta_lr=opt.loss_margin_beta_lr
    )


def build_contrastive(opt, n_classes):
    miner = None if opt.batch_mining == "all" else build_miner(opt)
    return Contrastive(miner, pos_margin=opt.loss_contrastive_pos_margin, neg_margin=opt.loss_contrastive_neg_margin)


def build_proxynca(opt, n_classes):
    return ProxyNCA(n_classes, opt.embed_dim, scale=opt.loss_proxynca_scale, lr_multi=opt.loss_proxynca_lrmulti)


def build_normalized_softmax(opt, n_classes):
    return NormalizedSoftmax(
        n_classes,
        opt.embed_dim,
        temperature=opt.loss_normalized_softmax_temperature,
        lr_multi=opt.loss_normalized_softmax_lrmulti,
    )


def build_arcface(opt, n_classes):
    return ArcFace(
        n_classes,
        opt.embed_dim,
        margin=opt.loss_arcface_margin,
        scale=opt.loss_arcface_scale,
        lr_multi=opt.loss_arcface_lrmulti,
    )


# name: build is a function (opt, n_classes) → Criterion
BASES = {
    "contrastive": Entry("contrastive loss (Hadsell et al., CVPR 2006)", build_contrastive),
    "triplet": Entry(
        "triplet loss (Schroff et al., CVPR 2015)",
        lambda opt, n: Triplet(build_miner(opt), margin=opt.loss_triplet_margin),
    ),
    "margin": Entry("margin loss with a learned boundary (Wu et al., ICCV 2017)", build_margin),
    "npair": Entry("N-pair loss (Sohn, NeurIPS 2016)", lambda opt, n: NPair(temperature=opt.loss_npair_temperature)),
    "multisimilarity": Entry("multi-similarity loss (Wang et al., CVPR 2019)", build_multisimilarity),
    "proxynca": Entry("Proxy-NCA (Movshovitz-Attias et al., ICCV 2017)", build_proxynca),
    "proxyanchor": Entry(
        "Proxy-Anchor, each class of the batch counted once (Kim et al., CVPR 2020)",
        partial(build_oproxy, mode="anchor", published=False),
    ),
    "oproxy": Entry(
        "--loss_oproxy_mode anchor, Proxy-Anchor counting each sample, or nca, smooth Proxy-NCA, both as "
        "published (Roth et al., CVPR 2022)",
        build_oproxy,
    ),
    "normalized_softmax": Entry("normalized softmax (Zhai & Wu, BMVC 2019)", build_normalized_softmax),
    "arcface": Entry("ArcFace (Deng et al., CVPR 2019)", build_arcface),
    "nir": Entry("Proxy-Anchor with non-isotropy regularisation (Roth et al., CVPR 2022); needs FrEIA", build_nir),
}
CRITERIA = {
    **BASES,
    "antico": Entry(
        "Anti-Collapse loss as published, --antico_type picks the variant (Jiang et al., TMM 2024)", build_antico
    ),
    "antico_pair": Entry(
        "the coding rate of the batch's embeddings (Jiang et al., TMM 2024)", partial(build_antico, variant="pair")
    ),
    "antico_batch_proxy": Entry(
        "the coding rate of the batch's classes' proxies (Jiang et al., TMM 2024)",
        partial(build_antico, variant="batch_proxy"),
    ),
    "antico_all_proxy": Entry(
        "the coding rate of all proxies (Jiang et al., TMM 2024)", partial(build_antico, variant="all_proxy")
    ),
}
NONE = Entry("no base: the coding-rate term alone", lambda opt, n: NoBase())
BRIDGE = Entry(
    "any loss of pytorch-metric-learning, e.g. pml.CircleLoss, arguments in --pml_args (Musgrave et al., 2020)",
    find_pml,
)


def lookup(flag, name, registry):
    if name not in registry:
        near = difflib.get_close_matches(name, registry, 1, 0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"{flag} {name}: unknown{hint}; known: {', '.join(registry)}")
    return registry[name]


def find(flag, name, registry, opt):
    """The function (opt, n_classes) → Criterion behind a name of the registry, or behind pml.<ClassName>."""
    if name.startswith(PREFIX):
        build = find_pml(flag, name, opt.pml_args)
        return lambda opt, n_classes: build(n_classes, opt.embed_dim, opt.pml_lrmulti)
    return lookup(flag, name, {**registry, f"{PREFIX}<ClassName>": BRIDGE}).build


def check_names(opt):
    """ValueError, one line, if --loss, --antico_base or --batch_mining names something unknown: before anything is loaded."""
    find("--loss", opt.loss, CRITERIA, opt)
    if opt.loss in CRITERIA and opt.loss not in BASES:
        find("--antico_base", opt.antico_base, {**BASES, "none": NONE}, opt)
    lookup("--batch_mining", opt.batch_mining, MINERS)


def select(opt, n_classes):
    """The criterion that --loss names, for n_classes training classes: (embeddings (B, d), labels (B,)) → scalar loss.

    Raises ValueError, one line that names the flag, for an unknown name or a combination that makes no sense.
    """
    criterion = find("--loss", opt.loss, CRITERIA, opt)(opt, n_classes)
    criterion.n_classes = n_classes
    return criterion
