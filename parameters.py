"""Every flag: its default, what it means, and its role. `python main.py --help` prints them; edit them here.

The role says what a flag decides, and all else follows from it:
  training      what is learned: runs with equal acting training flags count as one, --resume refuses to change them
  evaluation    what is measured: --resume and --evaluate_only may change it
  housekeeping  where it runs, how fast, what is written: tables ignore these
  nothing       published flags that the published program ignores, too
"""

import argparse
import math
import os

from utilities.command_line import Formatter, OneLineParser, add_group, flag
from utilities.folders import flags_of_run

BESIDE, MILLION = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 10**6
TINY, HUGE = 1e-9, 1e9  # factors and temperatures outside these leave no gradient, or overflow float32
USAGE = "python main.py [--flag value ...]"
EXAMPLES = """Deep metric learning with the Anti-Collapse loss.

a first try on a CPU, no download:
  python main.py --dataset glyphs --arch conv4_normalize --embed_dim 64 --bs 96 --samples_per_class 4 --lr 1e-3 \\
      --loss antico_pair --antico_base proxyanchor --loss_oproxy_lrmulti 3 --n_epochs 5 --no_train_metrics
CUB-200-2011 as published:
  python main.py --dataset cub200 --source_path DATA --loss antico --antico_type batch_proxy --loss_ac_w_align 0.0035 \\
      --arch resnet50_frozen_normalize_double --embed_dim 512 --bs 90 --n_epochs 100 --tau 100 --gamma 0.5
an ablation: the same base without the term, then with it:
  python main.py --dataset cub200 --source_path DATA --loss proxyanchor --group base
  python main.py --dataset cub200 --source_path DATA --loss antico_pair --antico_base proxyanchor --group pair
names of losses, miners, backbones, data sets and metrics:
  python main.py --list"""
SUFFIXES = """--arch is a name of --list and suffixes: _frozen (BatchNorm's statistics stay), _normalize (L2), and one
pooling of _double (average + maximum), _lp2, _lp3 (generalised mean); else average, or a timm network's own."""

# --- defaults that depend on the loss, or on AntiCo's base: they replace those of the flags below ---

DEFAULTS = {
    "contrastive": dict(batch_mining="all"),
    "triplet": dict(batch_mining="all"),
    "antico": dict(antico_base="oproxy", loss_oproxy_mode="anchor", antico_form="exp"),  # as published
    "antico_pair": dict(antico_type="pair", loss_ac_w_align=1.0),
    "antico_batch_proxy": dict(antico_type="batch_proxy", loss_ac_w_align=1.0),
    "antico_all_proxy": dict(antico_type="all_proxy", loss_ac_w_align=1.0),
    "antico_class_means": dict(antico_type="class_means", loss_ac_w_align=1.0),
}


# --- the flags ---


def add_flags(parser):
    g = add_group(parser, "names", "housekeeping")
    flag(g, "list", False, "print the losses, miners, backbones, data sets and metrics, and stop")

    g = add_group(parser, "data")
    data = os.path.join(BESIDE, "antico_data")
    flag(g, "dataset", "cub200", "name of a data set (--list shows them); glyphs needs no download")
    flag(g, "source_path", data, "folder of the data sets' folders", metavar="DIR", may_change=True)
    flag(g, "allow_partial", False, "go on though classes or images are missing; config.json and tables say partial")
    flag(g, "skip_broken", False, "leave out images that cannot be decoded, and count them, instead of stopping")
    flag(g, "augmentation", "base", "see datasets/transforms.py", choices=["base", "big", "adv", "red"])
    flag(g, "use_tv_split", False, "keep part of the training data apart as a validation split")
    flag(g, "tv_split_by_samples", False, "that split takes samples of every class instead of whole classes")
    flag(g, "tv_split_perc", 0.0, "share of the training classes (or samples) that stays in training", 0, 1)
    flag(g, "train_classes", None, "train on N classes, drawn by --seed after the validation split", 2, MILLION, int)
    flag(g, "train_images", None, "train on at most N images of each class, drawn in the same way", 1, MILLION, int)
    samplers = "class_random: drawn with replacement, published; class_balanced: an epoch covers every image"
    flag(g, "data_sampler", "class_random", samplers, choices=["class_random", "class_balanced", "random"])
    flag(g, "bs", 112, "images a batch, of all processes together", 1, MILLION)
    flag(g, "samples_per_class", 2, "images of each class in a batch; must divide --bs; ignored by random", 1, MILLION)

    g = add_group(parser, "network", about=SUFFIXES)
    flag(g, "arch", "resnet50_frozen_normalize", "backbone and suffixes, see above")
    flag(g, "embed_dim", 128, "dimension of the embedding", 1, 2**16)
    flag(g, "input_size", None, "height and width of images in pixels; the network's own if not given", 8, 4096, int)
    flag(g, "not_pretrained", False, "random weights instead of the published ones (conv4 has none anyway)")
    flag(g, "weights", None, "backbone weights, a file or address; #sha256=DIGITS after it is checked", metavar="PATH")

    g = add_group(parser, "training")
    flag(g, "n_epochs", 150, "epochs; --resume may change it", 0, MILLION, may_change=True)
    flag(g, "lr", 1e-5, "learning rate of the network", 0)
    flag(g, "fc_lr", -1.0, "learning rate of the last linear layer; -1: that of the network", -1)
    flag(g, "decay", 4e-4, "weight decay of the network (proxies have none)", 0)
    flag(g, "optim", "adam", "optimizer; sgd has momentum 0.9", choices=["adam", "adamw", "sgd"], type=str.lower)
    fall = "step: learning rates times --gamma at each epoch of --tau; exp: the same, as in the published program"
    flag(g, "scheduler", "step", fall, choices=["step", "exp", "none"])
    flag(g, "tau", [10000], "epochs after which the learning rates fall", 0, MILLION)
    flag(g, "gamma", 0.3, "factor of that fall", 0)
    flag(g, "warmup", 0, "epochs in which only the last linear layer and the loss's own parameters learn", 0, MILLION)
    flag(g, "seed", 0, "seed of everything random", 0, 2**32 - 1)
    compiled = "torch.compile, after the warm-up; auto: on a GPU where it pays and works; graphs: with CUDA graphs, too"
    flag(g, "compile", "auto", compiled, choices=["auto", "on", "off", "graphs"], may_change=True)
    amp = "mixed precision; auto: bf16 (else fp16) on a GPU; the loss is float32"
    flag(g, "amp", "auto", amp, choices=["auto", "bf16", "fp16", "none"])
    flag(g, "use_float16", False, "the same as --amp fp16; without a GPU it runs in float32 and says so")

    add_losses(parser)

    g = add_group(parser, "evaluation", "evaluation")
    flag(g, "no_train_metrics", False, "do not evaluate the training split")
    flag(g, "no_test_metrics", False, "do not evaluate the test split")
    metrics = ["e_recall@1", "e_recall@2", "e_recall@4", "e_recall@8", "nmi", "f1", "mAP_1000"]
    flag(g, "evaluation_metrics", metrics, "metrics by name (--list shows them)")
    flag(g, "evaltypes", ["embeds"], "what is evaluated: the embeddings", choices=["embeds"])
    best = "best.pt keeps the best epoch by the first, best_<metric>.pt by each other"
    flag(g, "storage_metrics", ["e_recall@1"], best)
    search = "back-end of the neighbour search; auto: faiss if installed"
    flag(g, "search", "auto", search, choices=["auto", "faiss", "torch"])
    starts = "starts of k-means for nmi and f1; the one with the smallest distances counts"
    flag(g, "kmeans_restarts", 1, starts, 1, 1000)
    flag(g, "eval_every", 1, "evaluate every so many epochs, and after the last", 1, MILLION)

    g = add_group(parser, "where and how fast", "housekeeping")
    flag(g, "gpu", [0], "index of the GPU (one); the CPU if there is none; torchrun gives each its own", 0, 1023)
    kernels = "data loading processes; if not given: cores / processes of torchrun, 16 at most, not the published"
    flag(g, "kernels", 6, kernels, 0, 1024)
    flag(g, "cache", None, "folder for one file of all decoded images (0.5 MB each)", metavar="DIR")
    flag(g, "grad_cache", None, "embed in chunks of N images: less memory, the same gradient", 1, MILLION, int)
    flag(g, "evaluate_on_cpu", False, "search and cluster on the CPU though there is a GPU")

    g = add_group(parser, "going on, and what is written", "housekeeping")
    resume = "go on with the run in FOLDER, or the newest of this name; its flags hold unless given"
    flag(g, "resume", False, resume, kind=str, nargs="?", const=True, metavar="FOLDER")
    flag(g, "checkpoint_minutes", 10.0, "minutes between checkpoints within an epoch; one follows each epoch anyway", 0)
    flag(g, "evaluate_only", False, "no training: evaluate --checkpoint, with its run's flags unless given")
    flag(g, "checkpoint", None, "with --evaluate_only: a run's checkpoint.pt or best.pt", metavar="PATH")
    flag(g, "save_embeddings", False, "write each split as npz after the last epoch, for python -m evaluation")
    flag(g, "store_improvements", False, "also keep a file of every epoch that improved the first storage metric")
    flag(g, "save_path", os.path.join(BESIDE, "antico_results"), "runs go to DIR/<dataset>/<run>/", metavar="DIR")
    flag(g, "savename", "group_plus_seed", "the run's name; group_plus_seed: <group>_s<seed>")
    flag(g, "group", "Sample_Run", "name that the seeds of one experiment share")
    flag(g, "project", "DiVA_Sample_Runs", "Weights & Biases project")
    flag(g, "tensorboard", False, "also log to TensorBoard, in the run's folder (pip install tensorboard)")
    flag(g, "log_online", False, "also log to Weights & Biases (pip install wandb)")
    flag(g, "wandb_key", "<your_wandb_key>", "Weights & Biases key, not written down; without it wandb's own login")

    g = add_group(parser, "published flags that the published program ignores, too", "nothing")
    flag(g, "data_ssl_set", False, "accepted")
    flag(g, "internal_split", 1.0, "accepted")
    flag(g, "completed", False, "accepted")
    flag(g, "loss_nir_logmatch", 1.0, "accepted")
    flag(g, "loss_nir_pos_alpha", 1.0, "accepted")
    flag(g, "loss_nir_neg_alpha", 1.0, "accepted")
    flag(g, "loss_nir_margin", 0.1, "accepted")
    flag(g, "loss_nir_delta", 0.2, "accepted")
    flag(g, "loss_nir_pair_perc", 1.0, "accepted")


def add_losses(parser):
    """loss_<name>_<argument> is an argument of that loss's constructor (criteria/__init__.py has the exceptions)."""
    g = add_group(parser, "loss")
    flag(g, "loss", "margin", "name of a loss (--list shows them), or pml.<ClassName> of pytorch-metric-learning")
    flag(g, "pml_args", [], "arguments KEY=VALUE of that class's constructor, e.g. m=0.4 gamma=80", metavar="KEY=VALUE")
    flag(g, "pml_lrmulti", 2000.0, "such a loss's own parameters learn at this times --lr", 0)

    g = add_group(parser, "antico: loss_ac_w_align · base + antico_w · term(R) of the coding rate R")
    what = "rows of the rate: embeddings, the batch's classes' proxies, all proxies, class means; antico_<type> sets it"
    flag(g, "antico_base", "proxyanchor", "the loss underneath, or none: the term alone")
    flag(g, "antico_type", "batch_proxy", what, choices=["pair", "batch_proxy", "all_proxy", "class_means"])
    forms = "exp(-gam2 R), as published; -gam2 R; 1 - R/R_max (the default with --antico_w); this with w by gradients"
    flag(g, "antico_form", "guard", forms, choices=["exp", "neg", "normalized", "guard"])
    flag(g, "antico_target", None, "R/R_max below which the guard acts, see criteria/README.md", 0, 2, kind=float)
    flag(g, "loss_ac_w_align", 0.01, "weight of the base loss")
    flag(g, "antico_w", 1.0, "weight of the coding-rate term; with --antico_form guard a factor of the guard's weight")
    flag(g, "antico_gam1", 1.0, "factor of the scale inside the rate", TINY, HUGE)
    flag(g, "antico_gam2", 1.0, "factor of the rate (forms exp and neg)", TINY, HUGE)
    precision = "precision, in antico_pair's guard 0.005; at scale published it stands where MCR2 has its square"
    flag(g, "antico_eps", 0.5, precision, TINY, HUGE)
    scale = "published: d/(n eps), for proxies n/(d eps); mcr2: d/(n eps^2) for both"
    flag(g, "antico_scale", "published", scale, choices=["published", "mcr2"])

    g = add_group(parser, "pair losses")
    flag(g, "loss_contrastive_pos_margin", 0.0, "positive pairs nearer than this cost nothing, Euclidean distance")
    flag(g, "loss_contrastive_neg_margin", 1.0, "negative pairs farther than this cost nothing, Euclidean distance")
    flag(g, "loss_triplet_margin", 0.2, "negatives are to be farther than positives by this, Euclidean distance")
    flag(g, "loss_margin_margin", 0.2, "margin around the boundary, Euclidean distance")
    flag(g, "loss_margin_beta", 1.2, "initial boundary, Euclidean distance")
    flag(g, "loss_margin_beta_lr", 5e-4, "learning rate of the boundary", 0)
    flag(g, "loss_npair_temperature", 1.0, "cosine similarities are divided by this", TINY, HUGE)
    flag(g, "loss_multisimilarity_alpha", 2.0, "inverse temperature of positive pairs", TINY, HUGE)
    flag(g, "loss_multisimilarity_beta", 50.0, "inverse temperature of negative pairs", TINY, HUGE)
    flag(g, "loss_multisimilarity_base", 0.5, "similarity around which pairs are weighted (the paper's lambda)")
    flag(g, "loss_multisimilarity_epsilon", 0.1, "margin of the pair mining, cosine similarity")

    g = add_group(parser, "miners of contrastive, triplet and margin")
    flag(g, "batch_mining", "distance", "miner (--list shows them)")
    flag(g, "miner_semihard_margin", 0.2, "semihard negatives are farther than the positive by less than this", 0, 2)
    far = "no negative farther away is mined; 2 is as in the published code (paper: 1.4)"
    flag(g, "miner_distance_lower_cutoff", 0.5, "distances below count as this", 0, 2)
    flag(g, "miner_distance_upper_cutoff", 1.4, far, 0, 2)
    flag(g, "miner_rho_distance_lower_cutoff", 0.5, "distances below count as this", 0, 2)
    flag(g, "miner_rho_distance_upper_cutoff", 1.4, far, 0, 2)
    flag(g, "miner_rho_distance_cp", 0.2, "share of triplets (a, p, n) that become (a, a, p)", 0, 1)

    g = add_group(parser, "proxy losses; proxyanchor takes oproxy's flags; lrmulti multiplies --lr")
    modes = "of oproxy, the published code's; proxyanchor is always anchor"
    flag(g, "loss_oproxy_mode", "nca", modes, choices=["nca", "anchor"])
    flag(g, "loss_oproxy_pos_alpha", 64.0, "inverse temperature of the positive term", TINY, HUGE)
    flag(g, "loss_oproxy_neg_alpha", 64.0, "inverse temperature of the negative term", TINY, HUGE)
    flag(g, "loss_oproxy_pos_delta", 0.1, "margin of the positive term, cosine similarity")
    flag(g, "loss_oproxy_neg_delta", -0.1, "margin of the negative term, cosine similarity")
    flag(g, "loss_oproxy_lrmulti", 2000.0, "the proxies' learning rate is this times --lr", 0)
    flag(g, "loss_proxynca_scale", 1.0, "factor of the squared distances (ProxyNCA++: 9)", TINY, HUGE)
    flag(g, "loss_proxynca_lrmulti", 2000.0, "the proxies' learning rate is this times --lr", 0)
    flag(g, "loss_normalized_softmax_temperature", 0.05, "cosine similarities are divided by this", TINY, HUGE)
    flag(g, "loss_normalized_softmax_lrmulti", 2000.0, "the class weights' learning rate is this times --lr", 0)
    flag(g, "loss_arcface_margin", 0.5, "added to the angle to the own class weight, radians", 0, math.pi)
    flag(g, "loss_arcface_scale", 64.0, "factor of the cosines", TINY, HUGE)
    flag(g, "loss_arcface_lrmulti", 2000.0, "the class weights' learning rate is this times --lr", 0)

    g = add_group(parser, "nir: a proxy loss and a normalizing flow of nf_cblocks coupling blocks")
    flag(g, "loss_nir_w_align", 0.01, "weight of the proxy loss, which has --loss_oproxy_{pos,neg}_{alpha,delta}")
    nir = "exp of each pair's negative log-likelihood (code), or this itself (paper)"
    flag(g, "loss_nir_form", "exp", nir, choices=["exp", "nll"])
    flag(g, "loss_nir_proxy_lrmulti", 4000.0, "the proxies' learning rate is this times --lr", 0)
    flag(g, "loss_nir_lrmulti", 50.0, "the flow's learning rate is this times --lr", 0)
    flag(g, "loss_nir_noise", 0.0, "uniform noise up to this on the flow's embeddings", 0)
    blocks = ["dense", "start", "mid", "end", "dense_embed", "dense_embed_multi", "dense_embed_multi_stacked"]
    flag(g, "loss_nir_nf_cond_mode", "dense", "which of the blocks see the proxy, and how", choices=blocks)
    flag(g, "loss_nir_nf_cblocks", 5, "coupling blocks of the flow", 1, 10**4)
    flag(g, "loss_nir_nf_fc_depth", 8, "layers of a block's subnetwork", 1, 10**4)
    flag(g, "loss_nir_nf_fc_width", 128, "width of these layers", 1, 10**4)
    flag(g, "loss_nir_nf_fc_dropout", 0.0, "dropout in the subnetworks", 0, 1)
    flag(g, "loss_nir_nf_clamp_alpha", 2.0, "bound on the log-scale of a block", 0)
    start = "initialisation of the subnetworks; none: PyTorch's"
    flag(g, "loss_nir_nf_fc_init", "none", start, choices=["none", "xavier"])


# --- from the command line to a Namespace ---


def build_parser():
    parser = OneLineParser("python main.py", USAGE, EXAMPLES, formatter_class=Formatter, allow_abbrev=False)
    add_flags(parser)
    for name, known in flags(parser).items():
        own = ", ".join(f"{loss}: {table[name]}" for loss, table in DEFAULTS.items() if name in table)
        known.help += f" (default: %(default)s; {own})" if own else ""
    return parser


def flags(parser=None):
    """{name: flag}, each with its .default, .role and .may_change (by --resume)."""
    return {action.dest: action for action in (parser or build_parser())._actions if action.dest != "help"}


def parse(argv=None):
    """The command line (sys.argv where argv is None) as a Namespace. Bad input: one line, exit status 2.

    A flag that is not given has, in this order, the value of the run that --resume or --evaluate_only names, that of
    its loss (DEFAULTS), or its own default. With --resume, opt.resume is the folder of that run, or None.
    """
    parser, unset = build_parser(), object()
    defaults = {name: known.default for name, known in flags(parser).items()}
    # argparse sets no default where the namespace has a value
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset)))
    given = {name: value for name, value in vars(namespace).items() if value is not unset}
    try:
        saved, folder = flags_of_run(given, flags(parser))
    except ValueError as problem:
        parser.error(str(problem))
    chosen = {**saved, **given}
    loss = chosen.get("loss", defaults["loss"])
    base = chosen.get("antico_base", DEFAULTS.get(loss, {}).get("antico_base", defaults["antico_base"]))
    own = {**(DEFAULTS.get(base, {}) if loss.startswith("antico") else {}), **DEFAULTS.get(loss, {})}
    if "antico_w" in chosen:  # a weight of one's own is fixed, where nothing else is said
        own.setdefault("antico_form", "normalized")
    form, scale = ({**defaults, **own, **chosen}[name] for name in ("antico_form", "antico_scale"))
    if (loss, form, scale) == ("antico_pair", "guard", "published"):
        own["antico_eps"] = 0.005
    if "e_recall@1" not in chosen.get("evaluation_metrics", ["e_recall@1"]):
        own["storage_metrics"] = chosen["evaluation_metrics"][:1]
    opt = argparse.Namespace(**{**defaults, **own, **chosen, "resume": folder, "given": sorted(given)})
    for line in contradictions(opt):
        parser.error(line)
    return opt


def contradictions(opt):
    """A line on each pair of flags that do not go together."""
    each, share = opt.samples_per_class, opt.tv_split_perc
    if opt.loss == "nir_mcr2":
        known = "the published line for SOP names it, but no published code has it"
        yield f"--loss nir_mcr2: {known}; our reading of it is --loss antico --loss_ac_w_align 0.0035"
    if opt.bs % each and opt.data_sampler != "random":
        lower = opt.bs - opt.bs % each
        yield f"--bs {opt.bs} --samples_per_class {each}: not divisible; {lower or each} or {lower + each} would be"
    if opt.not_pretrained and opt.weights:
        yield "--not_pretrained --weights: give one of the two"
    if len(opt.gpu) > 1:
        yield f"--gpu {' '.join(map(str, opt.gpu))}: a run uses one GPU; give one index"
    if opt.use_float16 and opt.amp not in ("auto", "fp16"):
        yield f"--use_float16 --amp {opt.amp}: give one of the two"
    if opt.use_tv_split and not 0 < share < 1:
        yield f"--use_tv_split --tv_split_perc {share:g}: the share must lie between 0 and 1, e.g. --tv_split_perc 0.8"
    if opt.antico_type != DEFAULTS.get(opt.loss, {}).get("antico_type", opt.antico_type):
        yield f"--loss {opt.loss} --antico_type {opt.antico_type}: the loss's name fixes the type; leave one out"
    for miner in ("distance", "rho_distance"):
        lower, upper = (getattr(opt, f"miner_{miner}_{end}_cutoff") for end in ("lower", "upper"))
        if lower >= upper:
            yield f"--miner_{miner}_lower_cutoff {lower:g}: must be below --miner_{miner}_upper_cutoff {upper:g}"
    if opt.no_train_metrics and opt.no_test_metrics and not opt.use_tv_split:
        yield "--no_train_metrics --no_test_metrics: nothing is left to evaluate"
    if opt.evaluate_only != (opt.checkpoint is not None):
        yield "--evaluate_only --checkpoint PATH: give both or neither"
    if opt.evaluate_only and opt.resume:
        yield "--evaluate_only --resume: give one of the two"
    for metric in [] if opt.evaluate_only else set(opt.storage_metrics) - set(opt.evaluation_metrics):
        yield f"--storage_metrics {metric}: not among --evaluation_metrics {' '.join(opt.evaluation_metrics)}"


def without_effect(opt, of_loss):
    """The names of the flags that do nothing, given the others. of_loss: criteria.acting_flags(opt)."""
    losses = ("loss", "antico_", "miner_", "batch_mining", "pml_")
    every = flags()
    idle = {name for name in every if every[name].role == "nothing" or name.startswith(losses) and name not in of_loss}
    together = {
        "antico_gam2": opt.antico_form in ("normalized", "guard"),
        "antico_target": opt.antico_form != "guard" or opt.antico_base == "none",
        "loss_ac_w_align": opt.antico_base == "none",
        "source_path allow_partial skip_broken cache": opt.dataset == "glyphs",
        "kmeans_restarts": not {"nmi", "f1", "c_nmi", "c_f1"} & set(opt.evaluation_metrics),
        "samples_per_class": opt.data_sampler == "random",
        "tau gamma": opt.scheduler == "none",
        "tv_split_perc tv_split_by_samples": not opt.use_tv_split,
        "project wandb_key": not opt.log_online,
    }
    return idle.union(*(names.split() for names, are_idle in together.items() if are_idle))
