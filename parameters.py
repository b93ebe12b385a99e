"""Every flag, its default and what it means; those of a loss or miner stand in its constructor, in criteria/."""

import argparse
import itertools
import math
import os

import criteria
from utilities.command_line import LARGE, Formatter, OneLineParser, flag
from utilities.flags import flags_of_run

BESIDE, MILLION = os.path.dirname(os.path.dirname(os.path.abspath(__file__))), 10**6
USAGE = "python main.py [--flag value ...]"
EXAMPLES = """Deep metric learning with the Anti-Collapse loss.

a first try on a CPU, no download:
  python main.py --dataset glyphs --arch conv4_normalize --embed_dim 64 --bs 96 --samples_per_class 4 --lr 1e-3 \\
      --loss antico_all_proxy --loss_oproxy_lrmulti 3 --n_epochs 5 --kernels 0 --no_train_metrics
CUB-200-2011 as published:
  python main.py --dataset cub200 --source_path DATA --loss antico --antico_type batch_proxy --loss_ac_w_align 0.0035 \\
      --arch resnet50_frozen_normalize_double --embed_dim 512 --bs 90 --n_epochs 100 --tau 100 --gamma 0.5
an ablation: the same base without the term, then with it:
  python main.py --dataset cub200 --source_path DATA --loss multisimilarity --group base
  python main.py --dataset cub200 --source_path DATA --loss antico_pair --antico_base multisimilarity --group pair
names of losses, miners, backbones, data sets and metrics:
  python main.py --list"""
SUFFIXES = """--arch is a name of --list and suffixes: _frozen (BatchNorm's statistics stay), _normalize (L2), and one
pooling of _double (average + maximum), _lp2, _lp3 (generalised mean); else average, or a timm network's own."""


def build_parser():
    parser = OneLineParser("python main.py", USAGE, EXAMPLES, formatter_class=Formatter, allow_abbrev=False)
    flag(parser, "list", False, "print the losses, miners, backbones, data sets and metrics, and stop")
    add_data(parser.add_argument_group("data"))
    add_network(parser.add_argument_group("network", SUFFIXES))
    add_training(parser.add_argument_group("training"))
    add_device(parser.add_argument_group("device and precision"))
    add_losses(parser)
    add_evaluation(parser.add_argument_group("evaluation"))
    add_records(parser.add_argument_group("writing down"))
    add_idle(parser.add_argument_group("published flags that act on nothing, here as there"))
    return parser


def add_data(g):
    flag(g, "dataset", "cub200", "name of a data set (--list shows them); glyphs needs no download")
    flag(g, "source_path", os.path.join(BESIDE, "antico_data"), "folder of the data sets' folders", metavar="DIR")
    flag(g, "allow_partial", False, "go on though classes or images are missing; config.json and tables say partial")
    flag(g, "skip_broken", False, "leave out images that cannot be decoded, and count them, instead of stopping")
    flag(g, "cache", None, "keep decoded images in one file there, checked as read (about 0.5 MB each)", metavar="DIR")
    flag(g, "gpu_augment", False, "crop, colour and flip on the network's device, each image of the batch on its own")
    augmentations = ["base", "big", "adv", "red"]
    flag(g, "augmentation", "base", "training augmentation, see datasets/transforms.py", choices=augmentations)
    flag(g, "use_tv_split", False, "keep part of the training data apart as a validation split")
    flag(g, "tv_split_by_samples", False, "that split takes samples of every class instead of whole classes")
    flag(g, "tv_split_perc", 0.0, "share of the training classes (or samples) that stays in training", 0, 1)
    subset = "drawn by --seed, after the validation split is apart"
    flag(g, "train_classes", None, f"train on N classes only, {subset}", 2, MILLION, int)
    flag(g, "train_images", None, f"train on at most N images of each class, {subset}", 1, MILLION, int)
    samplers = ["class_random", "class_balanced", "random"]
    sampler = "class_random: drawn with replacement, published; class_balanced: an epoch covers every image"
    flag(g, "data_sampler", "class_random", sampler, choices=samplers)
    flag(g, "bs", 112, "images a batch, of all processes together", 1, MILLION)
    flag(g, "samples_per_class", 2, "images of each class in a batch; divides --bs; idle with random", 1, MILLION)
    flag(g, "kernels", 6, "data loading processes; at most the machine's cores are used", 0, 1024)


def add_network(g):
    flag(g, "arch", "resnet50_frozen_normalize", "backbone and suffixes, see above")
    flag(g, "embed_dim", 128, "dimension of the embedding", 1, 2**16)
    flag(g, "input_size", None, "height and width of images in pixels; the network's own if not given", 8, 4096, int)
    flag(g, "not_pretrained", False, "random weights instead of the published ones (conv4 has none anyway)")
    flag(g, "weights", None, "backbone weights, a file or address; #sha256=DIGITS after it checks", metavar="PATH")


def add_training(g):
    flag(g, "n_epochs", 150, "epochs", 0, MILLION)
    flag(g, "lr", 1e-5, "learning rate of the network", 0)
    flag(g, "fc_lr", -1.0, "learning rate of the last linear layer; -1: that of the network", -1)
    flag(g, "decay", 4e-4, "weight decay of the network (proxies have none)", 0)
    flag(g, "optim", "adam", "optimizer; sgd has momentum 0.9", choices=["adam", "adamw", "sgd"])
    flag(g, "scheduler", "step", "step: learning rates times --gamma at each epoch of --tau", choices=["step", "none"])
    flag(g, "tau", [10000], "epochs after which the learning rates fall", 0, MILLION)
    flag(g, "gamma", 0.3, "factor of that fall", 0)
    flag(g, "warmup", 0, "epochs in which only the last linear layer and the loss's own parameters learn", 0, MILLION)
    flag(g, "seed", 0, "seed of everything random", 0, 2**32 - 1)
    resume = "go on with the run in FOLDER, or the newest of this name; its flags hold where none is given"
    flag(g, "resume", False, resume, kind=str, nargs="?", const=True, metavar="FOLDER")
    flag(g, "checkpoint_minutes", 10.0, "minutes between checkpoints within an epoch; one follows each epoch anyway", 0)
    flag(g, "grad_cache", None, "embed in chunks of N images a process; the same gradient", 1, MILLION, int)


def add_device(g):
    flag(g, "gpu", [0], "index of the GPU (one); the CPU if there is none; torchrun gives each its own", 0, 1023)
    flag(g, "compile", "auto", "torch.compile, after the warm-up; auto: on a GPU", choices=["auto", "on", "off"])
    precisions = ["auto", "bf16", "fp16", "none"]
    flag(g, "amp", "auto", "mixed precision; auto: bf16 (else fp16) on a GPU; the loss is float32", choices=precisions)
    flag(g, "use_float16", False, "the same as --amp fp16; without a GPU it runs in float32 and says so")
    flag(g, "tf32", False, "TF32 in the network on a GPU; the loss and the evaluation stay float32")
    flag(g, "profile", None, "trace N steps, print input's, forward's, loss's, ... shares, and stop", 1, 10**4, int)


def add_losses(parser):
    """The names of what is registered in criteria/, and the flags that stand in its constructors."""
    g = parser.add_argument_group("loss")
    flag(g, "loss", "margin", "name of a loss (--list shows them), or pml.<ClassName> of pytorch-metric-learning")
    mining, base = criteria.defaults_of("batch_mining"), criteria.defaults_of("antico_base")
    flag(g, "batch_mining", "distance", "miner of the losses that take triplets", by_name=mining)
    flag(g, "antico_base", "proxyanchor", "the loss under antico..., or none: its term alone", by_name=base)
    added = {"batch_mining", "antico_base"}
    for picked_by, names, declared in criteria.declared_flags():
        new = [one for one in declared if one.name not in added]
        added.update(one.name for one in new)
        group = parser.add_argument_group(f"{picked_by} {' | '.join(names)}") if new else None
        for _, name, default, kind, choices, help in new:
            own = criteria.defaults_of(name)
            if default is None:  # that of the published command line
                default = own.pop("antico", None)
            own = {loss: value for loss, value in own.items() if value != default or " over " in loss}
            more = {"choices": choices} if choices else {}
            flag(group, name, default, help, kind=kind, by_name=own, **more)


def add_evaluation(g):
    flag(g, "no_train_metrics", False, "do not evaluate the training split")
    flag(g, "no_test_metrics", False, "do not evaluate the test split")
    metrics = ["e_recall@1", "e_recall@2", "e_recall@4", "e_recall@8", "nmi", "f1", "mAP_1000"]
    flag(g, "evaluation_metrics", metrics, "metrics by name (--list shows them)")
    flag(g, "evaltypes", ["embeds"], "what is evaluated: the embeddings", choices=["embeds"])
    flag(g, "storage_metrics", ["e_recall@1"], "best.pt is the first one's best epoch, best_<metric>.pt of the others")
    flag(g, "store_improvements", False, "also keep a file of every epoch that improved the first storage metric")
    searches = ["auto", "faiss", "torch", "ivf"]
    flag(g, "search", "auto", "exact but for ivf (faiss, past memory); auto: faiss if installed", choices=searches)
    flag(g, "kmeans_restarts", 1, "starts of k-means for nmi and f1, of which the best by distance counts", 1, 1000)
    flag(g, "evaluate_only", False, "no training: evaluate --checkpoint with its run's flags unless given")
    flag(g, "checkpoint", None, "of --evaluate_only: a run's checkpoint.pt or best.pt", metavar="PATH")
    flag(g, "save_embeddings", False, "write each split as npz after the last epoch, for python -m evaluation")
    flag(g, "evaluate_on_cpu", False, "search and cluster on the CPU though there is a GPU")
    flag(g, "eval_every", 1, "evaluate every so many epochs, and after the last", 1, MILLION)


def add_records(g):
    flag(g, "save_path", os.path.join(BESIDE, "antico_results"), "runs go to DIR/<dataset>/<run>/", metavar="DIR")
    flag(g, "savename", "group_plus_seed", "the run's name; group_plus_seed: <group>_s<seed>")
    flag(g, "group", "Sample_Run", "name that the seeds of one experiment share")
    flag(g, "project", "DiVA_Sample_Runs", "Weights & Biases project")
    flag(g, "tensorboard", False, "also log to TensorBoard, in the run's folder (pip install tensorboard)")
    flag(g, "log_online", False, "also log to Weights & Biases (pip install wandb)")
    flag(g, "wandb_key", "<your_wandb_key>", "Weights & Biases key, written nowhere; without it wandb's own login")


IDLE = {
    "data_ssl_set": (False, "nothing here uses a self-supervised set"),
    "internal_split": (1.0, "no data set here has an internal split"),
    "completed": (False, "a finished run is recognised by its metrics.csv"),
    "loss_nir_logmatch": (1.0, "used nowhere there either"),
    "loss_nir_pos_alpha": (1.0, "read nowhere there either"),
    "loss_nir_neg_alpha": (1.0, "read nowhere there either"),
    "loss_nir_margin": (0.1, "read nowhere there either"),
    "loss_nir_delta": (0.2, "read nowhere there either"),
    "loss_nir_pair_perc": (1.0, "used nowhere there either"),
}


def add_idle(g):
    for name, (default, reason) in IDLE.items():
        flag(g, name, default, f"accepted for published command lines; {reason}")


def parse(argv=None):
    """The command line (sys.argv where argv is None) as a Namespace. Bad input: one line, exit status 2.

    A flag that is not given has, in this order, the value of the run that --resume or --evaluate_only names, that of
    its loss (criteria/__init__.py), or its own default. With --resume, opt.resume is the folder of that run, or None.
    """
    parser = build_parser()
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    unset = object()  # which flags the command line has: argparse leaves alone what the namespace has already
    namespace = parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(defaults, unset)))
    given = {name: value for name, value in vars(namespace).items() if value is not unset}
    try:
        saved, folder = flags_of_run(given, defaults)
    except ValueError as problem:
        parser.error(str(problem))
    chosen = {**{name: value for name, value in saved.items() if name in defaults}, **given}
    opt = argparse.Namespace(**{**defaults, **own_defaults(chosen, defaults), **chosen})
    opt.resume = folder
    for line in contradictions(opt):
        parser.error(line)
    opt.given = sorted(given)
    return opt


def check_loss(opt):
    """Exit status 2, one line, for an unknown loss, base or miner: for main.py, before it imports torch."""
    try:
        criteria.acting_flags(opt)
    except ValueError as problem:
        OneLineParser("python main.py").error(str(problem))


def note(opt):
    """A line each on the flags given that do nothing, and on --resume without a run; empty where there are none."""
    idle, lines = [f"--{name}" for name in opt.given if name in without_effect(opt)], []
    if idle:
        lines.append(f"note: {', '.join(idle)}: no effect on a run of --loss {opt.loss} with these flags")
    if "resume" in opt.given and opt.resume is None:
        lines.append("note: --resume: there is no run of this name yet; a new one begins")
    return "\n".join(lines)


def own_defaults(chosen, defaults):
    """The defaults that depend on what was chosen: on the loss, its base and the metrics."""
    own = {}
    for flag_of_name in ("loss", "antico_base"):  # of the base only where the loss stands on one
        if flag_of_name == "loss" or "antico_base" in own:
            name = chosen.get(flag_of_name, own.get(flag_of_name, defaults[flag_of_name]))
            own |= criteria.CRITERIA[name].defaults if name in criteria.CRITERIA else {}
    own |= criteria.OVER.get((own.get("antico_type"), chosen.get("antico_base", own.get("antico_base"))), {})
    if "e_recall@1" not in chosen.get("evaluation_metrics", ["e_recall@1"]):
        own["storage_metrics"] = chosen["evaluation_metrics"][:1]
    return own


def without_effect(opt):
    """The names of the flags that do nothing, given the others."""
    of_losses = {flag.name for _, _, declared in criteria.declared_flags() for flag in declared}
    idle = set(IDLE) | of_losses - criteria.acting_flags(opt)
    if opt.antico_form == "normalized":
        idle.add("antico_gam2")
    if opt.antico_base == "none":
        idle.add("loss_ac_w_align")
    if opt.dataset == "glyphs":
        idle |= {"source_path", "allow_partial", "skip_broken"}
    if not {"nmi", "f1", "c_nmi", "c_f1"} & set(opt.evaluation_metrics):
        idle.add("kmeans_restarts")
    if opt.data_sampler == "random":
        idle.add("samples_per_class")
    if opt.scheduler == "none":
        idle |= {"tau", "gamma"}
    if not opt.use_tv_split:
        idle |= {"tv_split_perc", "tv_split_by_samples"}
    if not opt.log_online:
        idle |= {"project", "wandb_key"}
    return idle


def contradictions(opt):
    """A line on each pair of flags that do not go together."""
    return itertools.chain(of_training(opt), of_data(opt), of_loss(opt), of_evaluation(opt))


def of_training(opt):
    each = opt.samples_per_class
    if opt.bs % each:
        lower = opt.bs - opt.bs % each
        words = f"{opt.bs} is not divisible by {each}; {lower or each} or {lower + each} would be"
        yield f"--bs {opt.bs} --samples_per_class {each}: {words}"
    if opt.lr > 0 and opt.gamma > 1 and math.log(opt.lr) + len(opt.tau) * math.log(opt.gamma) > math.log(LARGE):
        yield f"--gamma {opt.gamma:g}: the learning rate would grow beyond {LARGE:g}; it falls with a factor below 1"
    if opt.not_pretrained and opt.weights:
        yield "--not_pretrained --weights: give one of the two"
    if len(opt.gpu) > 1:
        yield f"--gpu {' '.join(map(str, opt.gpu))}: a run uses one GPU; give one index"
    if opt.use_float16 and opt.amp not in ("auto", "fp16"):
        yield f"--use_float16 --amp {opt.amp}: give one of the two"


def of_data(opt):
    share = opt.tv_split_perc
    if opt.use_tv_split and not 0 < share < 1:
        yield f"--use_tv_split --tv_split_perc {share:g}: the share must lie between 0 and 1, e.g. --tv_split_perc 0.8"
    if opt.tv_split_by_samples and not opt.use_tv_split:
        yield "--tv_split_by_samples: needs --use_tv_split --tv_split_perc SHARE"
    for name in ("gpu_augment", "cache"):
        if opt.dataset == "glyphs" and getattr(opt, name):
            yield f"--dataset glyphs --{name}: is for data sets of image files; glyphs is in memory already"


def of_loss(opt):
    entry, antico = criteria.CRITERIA.get(opt.loss), criteria.is_antico(opt.loss)
    if entry and opt.antico_type != entry.defaults.get("antico_type", opt.antico_type):
        yield f"--loss {opt.loss} --antico_type {opt.antico_type}: the loss's name fixes the type; leave one out"
    if opt.antico_form == "normalized" and antico and opt.antico_gam2 != 1:
        yield "--antico_gam2: acts on --antico_form exp and neg; --antico_w weighs the normalized form"
    if opt.pml_args and not (opt.antico_base if antico else opt.loss).startswith("pml."):
        yield f"--pml_args {' '.join(opt.pml_args)}: needs a loss of pytorch-metric-learning, as --loss pml.CircleLoss"


def of_evaluation(opt):
    if opt.no_train_metrics and opt.no_test_metrics and not opt.use_tv_split:
        yield "--no_train_metrics --no_test_metrics: nothing is left to evaluate"
    if opt.evaluate_only != (opt.checkpoint is not None):
        yield "--evaluate_only --checkpoint PATH: give both or neither"
    if opt.evaluate_only and opt.resume:
        yield "--evaluate_only --resume: give one of the two"
    missing = [] if opt.evaluate_only else [m for m in opt.storage_metrics if m not in opt.evaluation_metrics]
    if missing:
        yield f"--storage_metrics {missing[0]}: not among --evaluation_metrics {' '.join(opt.evaluation_metrics)}"
