"""The losses by name. To add one: its file, and one line in BASES; README.md beside this has an example."""

import functools
import inspect
import pkgutil
from typing import NamedTuple

from utilities.registry import flags, lookup


class Entry(NamedTuple):
    where: str  # "module:Class", imported when the loss is made: torch takes two seconds, which --help need not wait
    about: str  # one line for main.py --list, with the paper
    fixed: dict = {}  # arguments of the constructor that go with the name, which are then no flags
    defaults: dict = {}  # {flag: its default where the loss has this name}


# name: a function (embeddings, labels, its own parameters) → triplets
MINERS = {
    "all": Entry("criteria.miners:every", "every triplet of the batch"),
    "random": Entry("criteria.miners:random", "every positive pair with a random negative"),
    "semihard": Entry("criteria.miners:semihard",
        "negatives a little farther than the positive (Schroff et al., CVPR 2015)"),
    "softhard": Entry("criteria.miners:softhard",
        "positives and negatives that are on the wrong side of some other (Roth & Brattoli, 2019)"),
    "distance": Entry("criteria.miners:distance_weighted", "negatives uniform in distance (Wu et al., ICCV 2017)"),
    "rho_distance": Entry("criteria.miners:rho_distance",
        "the same, some negatives replaced by positives (Roth et al., ICML 2020)"),
}  # fmt: skip

ALL_PAIRS = dict(batch_mining="all")
# the losses that AntiCo can stand on
BASES = {
    "contrastive": Entry("criteria.contrastive:Contrastive", "contrastive loss (Hadsell et al., CVPR 2006)",
        defaults=ALL_PAIRS),
    "triplet": Entry("criteria.triplet:Triplet", "triplet loss (Schroff et al., CVPR 2015)", defaults=ALL_PAIRS),
    "margin": Entry("criteria.margin:Margin", "margin loss with a learned boundary (Wu et al., ICCV 2017)"),
    "npair": Entry("criteria.npair:NPair", "N-pair loss (Sohn, NeurIPS 2016)"),
    "multisimilarity": Entry("criteria.multisimilarity:MultiSimilarity",
        "multi-similarity loss (Wang et al., CVPR 2019)"),
    "proxynca": Entry("criteria.proxynca:ProxyNCA", "Proxy-NCA (Movshovitz-Attias et al., ICCV 2017)"),
    "proxyanchor": Entry("criteria.oproxy:OProxy",
        "Proxy-Anchor, each class of the batch counted once (Kim et al., CVPR 2020)",
        dict(mode="anchor", published=False)),
    "oproxy": Entry("criteria.oproxy:OProxy",
        "--loss_oproxy_mode anchor, Proxy-Anchor counting each sample, or nca, smooth Proxy-NCA, both as published "
        "(Roth et al., CVPR 2022)"),
    "normalized_softmax": Entry("criteria.softmax:NormalizedSoftmax", "normalized softmax (Zhai & Wu, BMVC 2019)"),
    "arcface": Entry("criteria.softmax:ArcFace", "ArcFace (Deng et al., CVPR 2019)"),
    "nir": Entry("criteria.nir:NIR",
        "Proxy-Anchor with non-isotropy regularisation (Roth et al., CVPR 2022); needs FrEIA",
        # its rate for the proxies is a flag of its own
        dict(base=Entry("criteria.oproxy:OProxy", "its proxy part", dict(mode="anchor", lr_multi=0.0)))),
}  # fmt: skip

# `antico` is the published command line; the names below have defaults of their own, and OVER those over a base
ANTICO = "criteria.antico:AntiCo"
OF_ITS_OWN = dict(antico_form="normalized", loss_ac_w_align=1.0, antico_eps=0.5)  # the form whose gradient lives
CRITERIA = {
    **BASES,
    "antico": Entry(ANTICO,
        "Anti-Collapse loss as published, --antico_type picks the variant (Jiang et al., TMM 2024)",
        dict(raw_embeddings=True),
        dict(antico_base="oproxy", loss_oproxy_mode="anchor", antico_form="exp", loss_ac_w_align=0.01, antico_w=1.0,
             antico_eps=0.5)),
    "antico_pair": Entry(ANTICO, "the coding rate of the batch's embeddings (Jiang et al., TMM 2024)",
        defaults=dict(antico_type="pair", antico_base="multisimilarity", antico_w=0.1, **OF_ITS_OWN)),
    "antico_batch_proxy": Entry(ANTICO, "the coding rate of the batch's classes' proxies (Jiang et al., TMM 2024)",
        defaults=dict(antico_type="batch_proxy", antico_base="proxyanchor", antico_w=30.0, **OF_ITS_OWN)),
    "antico_all_proxy": Entry(ANTICO, "the coding rate of all proxies (Jiang et al., TMM 2024)",
        defaults=dict(antico_type="all_proxy", antico_base="proxyanchor", antico_w=100.0, **OF_ITS_OWN)),
    "antico_class_means": Entry(ANTICO,
        "the coding rate of the means of the batch's classes (ours; criteria/README.md)",
        defaults=dict(antico_type="class_means", antico_base="proxyanchor", antico_w=100.0, **OF_ITS_OWN)),
}  # fmt: skip
# {(variant, base): {flag: its default}}, from the study (README.md). The weight goes with the size of the base loss: of
# proxyanchor and arcface, which the study tuned to a temperature where they are far smaller, it is scaled up
OVER = {
    ("pair", "proxyanchor"): dict(antico_w=30.0, antico_eps=0.005),
    ("pair", "arcface"): dict(antico_w=30.0, antico_eps=0.005),
    ("pair", "proxynca"): dict(antico_w=1.0, antico_eps=0.005),
    ("pair", "normalized_softmax"): dict(antico_w=3.0, antico_eps=0.005),
    ("class_means", "proxynca"): dict(antico_w=10.0),
    ("class_means", "multisimilarity"): dict(antico_w=0.3),
    ("class_means", "margin"): dict(antico_w=1.0),
    ("class_means", "contrastive"): dict(antico_w=0.1),
}
NONE = Entry("criteria.antico:NoBase", "no base: the coding-rate term alone")
BRIDGE = Entry(
    "criteria.pml:library_loss",
    "any loss of pytorch-metric-learning, e.g. pml.CircleLoss, arguments in --pml_args (Musgrave et al., 2020)",
)


def __getattr__(name):
    """What others import from here, loaded when it is asked for and not with this package, as torch takes seconds."""
    public = {entry.where.partition(":")[2]: entry.where for entry in CRITERIA.values()}
    public |= {of_all: f"criteria.base:{of_all}" for of_all in ("Criterion", "ProxyCriterion", "NonFinite")}
    public |= {"ProxyAnchor": "criteria.oproxy:ProxyAnchor", "coding_rate": "criteria.coding_rate"}
    if name not in public:
        raise AttributeError(f"module 'criteria' has no attribute {name!r}")
    return pkgutil.resolve_name(public[name])


def antico_defaults(variant, base):
    """{flag: default} of a variant's own name over a base loss."""
    return {**CRITERIA[f"antico_{variant}"].defaults, **OVER.get((variant, base), {})}


def defaults_of(name):
    """{loss: the default that the flag `name` has under it}; "loss over base" where it is of the base too."""
    own = {loss: entry.defaults for loss, entry in CRITERIA.items()}
    own |= {f"antico_{variant} over {base}": defaults for (variant, base), defaults in OVER.items()}
    return {loss: defaults[name] for loss, defaults in own.items() if name in defaults}


def is_antico(loss):
    return loss in CRITERIA and loss not in BASES


def find(flag, name, known):
    """The entry of a name, or that of pml.<ClassName>. ValueError, one line, if there is none."""
    return BRIDGE if name.startswith("pml.") else lookup(flag, name, {**known, "pml.<ClassName>": BRIDGE})


def find_base(opt):
    return find("--antico_base", opt.antico_base, {**BASES, "none": NONE})


def acting_flags(opt):
    """The names of the flags that make this run's loss. ValueError, one line, for an unknown loss, base or miner."""
    entries, acting = [find("--loss", opt.loss, CRITERIA)], set()
    for entry in entries:  # which grows
        own = {flag.name for flag in flags(entry.where) if flag.argument not in entry.fixed}
        entries += [part for part in entry.fixed.values() if isinstance(part, Entry)]
        entries += [find_base(opt)] if "antico_base" in own else []
        entries += [lookup("--batch_mining", opt.batch_mining, MINERS)] if "batch_mining" in own - acting else []
        acting |= own
    return acting


def declared_flags():
    """[(flag that picks it, its names, its own flags)] of every loss and miner, those that share a class together."""
    names = {}
    for picked_by, registry in (("--loss", {**CRITERIA, "pml.<ClassName>": BRIDGE}), ("--batch_mining", MINERS)):
        for name, entry in registry.items():
            names.setdefault((picked_by, entry.where), []).append(name)
    return [(picked_by, of_it, flags(where)) for (picked_by, where), of_it in names.items()]


def build(entry, opt, **context):
    """What an entry stands for: each argument of its constructor as the entry has it, or its flag, or the context."""
    make, arguments = pkgutil.resolve_name(entry.where), {}
    flag_of = {flag.argument: flag.name for flag in flags(entry.where)}
    for argument in inspect.signature(make).parameters:
        flag = flag_of.get(argument)
        if argument in entry.fixed:
            value = entry.fixed[argument]
            arguments[argument] = build(value, opt, **context) if isinstance(value, Entry) else value
        elif flag == "batch_mining":
            arguments[argument] = select_miner(opt)
        elif flag == "antico_base":
            arguments[argument] = build(
                find_base(opt), opt, **{**context, "flag": "--antico_base", "name": opt.antico_base}
            )
        elif flag:
            arguments[argument] = getattr(opt, flag)
        elif argument in context:
            arguments[argument] = context[argument]
    return make(**arguments)


def select_miner(opt):
    """The function (embeddings, labels) → (anchors, positives, negatives) that --batch_mining names."""
    where = lookup("--batch_mining", opt.batch_mining, MINERS).where
    arguments = {flag.argument: getattr(opt, flag.name) for flag in flags(where)}
    function = pkgutil.resolve_name(where)
    return functools.partial(function, **arguments) if arguments else function


def select(opt, n_classes):
    """The criterion that --loss names, for n_classes training classes: embeddings (B, d), labels (B,) → scalar.

    Raises ValueError, one line that names the flag, for an unknown name or a combination that makes no sense.
    """
    entry = find("--loss", opt.loss, CRITERIA)
    criterion = build(entry, opt, n_classes=n_classes, embed_dim=opt.embed_dim, flag="--loss", name=opt.loss)
    criterion.n_classes = n_classes
    return criterion


def check(opt):
    """What `select` and the first step would refuse, told before data and weights are loaded: ValueError, one line."""
    acting_flags(opt)
    if opt.evaluate_only:  # without the loss, which may need a library that is not here
        return
    import torch

    with torch.random.fork_rng(devices=[]):
        embeddings = torch.nn.functional.normalize(torch.randn(4, opt.embed_dim), dim=1)
        select(opt, 2)(embeddings, torch.tensor([0, 0, 1, 1]))
