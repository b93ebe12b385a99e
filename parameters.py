"""Every flag, its default and what it means. `parse` gives the namespace that the packages' `select` functions read."""

import argparse
import math
import os

HERE = os.path.dirname(os.path.abspath(__file__))
BESIDE = os.path.dirname(HERE)

# What a loss's name stands for where the flag is not given. `antico` is the published command line. The three names
# below it use the form whose gradient lives; their weights come from `antico_runs.sh sweep` (validation classes).
LOSS_DEFAULTS = {
    "antico": dict(antico_base="proxyanchor", antico_form="exp"),
    "antico_pair": dict(antico_base="multisimilarity", antico_form="normalized", loss_ac_w_align=1.0, antico_w=0.1),
    "antico_batch_proxy": dict(antico_base="proxyanchor", antico_form="normalized", loss_ac_w_align=1.0, antico_w=30.0),
    "antico_all_proxy": dict(antico_base="proxyanchor", antico_form="normalized", loss_ac_w_align=1.0, antico_w=100.0),
}


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"error: {message} (python main.py --help lists every flag)\n")


def number(kind, low=-math.inf, high=math.inf):
    """An argparse type: a finite number in [low, high], whose error says so."""

    def convert(text):
        try:
            value = kind(text)
            if math.isinf(value):
                raise ValueError(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            bounds = (f" from {low} to {high}" if high < math.inf else f" of at least {low}") if low > -math.inf else ""
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number{bounds}")
        return value

    return convert


def build_parser():
    parser = OneLineParser(prog="main.py", description="Deep metric learning with the Anti-Collapse loss.",
                           formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False)

    g = parser.add_argument_group("data")
    g.add_argument("--dataset", default="cub200", help="registry name, see datasets/__init__.py; glyphs needs no download")
    g.add_argument("--source_path", default=os.path.join(BESIDE, "antico_data"), help="folder that holds the data sets' folders")
    g.add_argument("--augmentation", default="base", choices=["base", "big", "adv", "red"], help="training augmentation, see datasets/transforms.py")
    g.add_argument("--use_tv_split", action="store_true", help="keep part of the training data apart as a validation split")
    g.add_argument("--tv_split_by_samples", action="store_true", help="that split takes samples of every class instead of whole classes")
    g.add_argument("--tv_split_perc", type=number(float, 0, 1), default=0.0, help="share of the training classes (or samples) that stays in training")
    g.add_argument("--data_sampler", default="class_random", choices=["class_random", "class_balanced"], help="class_random: classes drawn with replacement, as published; class_balanced: distinct classes in a batch, an epoch covers every class")
    g.add_argument("--bs", type=number(int, 1), default=112, help="images a batch")
    g.add_argument("--samples_per_class", type=number(int, 1), default=2, help="images of each class in a batch; divides --bs")
    g.add_argument("--kernels", type=number(int, 0), default=6, help="data loading processes; at most the machine's cores are used")
    g.add_argument("--data_ssl_set", action="store_true", help="accepted for published command lines; nothing here uses a self-supervised set")
    g.add_argument("--internal_split", type=number(float, 0, 1), default=1.0, help="accepted for published command lines; no data set here has an internal split")
    g.add_argument("--completed", action="store_true", help="accepted for published command lines; a finished run is told by its metrics.csv")

    g = parser.add_argument_group("network")
    g.add_argument("--arch", default="resnet50_frozen_normalize", help="conv4, resnet18 or resnet50, then any of _frozen (BatchNorm statistics stay), _normalize (L2), _double (average + max pooling)")
    g.add_argument("--embed_dim", type=number(int, 1), default=128, help="dimension of the embedding")
    g.add_argument("--not_pretrained", action="store_true", help="random weights instead of ImageNet's (conv4 has none anyway)")
    g.add_argument("--weights", metavar="PATH", help="backbone weights from this file (a state dict) instead of the download")

    g = parser.add_argument_group("training")
    g.add_argument("--n_epochs", type=number(int, 0), default=150, help="epochs")
    g.add_argument("--lr", type=number(float, 0), default=1e-5, help="learning rate of the network")
    g.add_argument("--fc_lr", type=number(float, -1), default=-1.0, help="learning rate of the last linear layer; -1: that of the network")
    g.add_argument("--decay", type=number(float, 0), default=4e-4, help="weight decay of the network (proxies have none)")
    g.add_argument("--optim", default="adam", choices=["adam", "adamw", "sgd"], help="optimizer; sgd has momentum 0.9")
    g.add_argument("--scheduler", default="step", choices=["step", "none"], help="step: the learning rates times --gamma at each epoch of --tau")
    g.add_argument("--tau", type=number(int, 0), nargs="+", default=[10000], help="epochs after which the learning rates fall")
    g.add_argument("--gamma", type=number(float, 0), default=0.3, help="factor of that fall")
    g.add_argument("--warmup", type=number(int, 0), default=0, help="epochs in which only the last linear layer and the loss's own parameters learn")
    g.add_argument("--seed", type=number(int, 0), default=0, help="seed of everything random")
    g.add_argument("--resume", action="store_true", help="go on from the run's checkpoint.pt where there is one")

    g = parser.add_argument_group("device and precision")
    g.add_argument("--gpu", type=number(int, 0), nargs="+", default=[0], help="index of the GPU (one); without any GPU the CPU is used")
    g.add_argument("--compile", default="auto", choices=["auto", "on", "off"], help="torch.compile the network; auto: on a GPU")
    g.add_argument("--amp", default="auto", choices=["auto", "bf16", "fp16", "none"], help="mixed precision of the network; auto: bf16 (else fp16) on a GPU, none on a CPU; the loss is always float32")
    g.add_argument("--use_float16", action="store_true", help="the same as --amp fp16; without a GPU it runs in float32 and says so")

    g = parser.add_argument_group("loss")
    g.add_argument("--loss", default="margin", help="registry name, see criteria/__init__.py")
    g.add_argument("--batch_mining", default="distance", help="miner of the losses that take triplets (margin)")
    g.add_argument("--miner_distance_lower_cutoff", type=number(float, 0, 2), default=0.5, help="distances below count as this in distance-weighted mining")
    g.add_argument("--miner_distance_upper_cutoff", type=number(float, 0, 2), default=1.4, help="no negative farther than this is mined")
    g.add_argument("--loss_margin_margin", type=number(float), default=0.2, help="margin around the boundary, Euclidean distance")
    g.add_argument("--loss_margin_beta", type=number(float), default=1.2, help="initial boundary, Euclidean distance")
    g.add_argument("--loss_margin_beta_lr", type=number(float, 0), default=5e-4, help="learning rate of the boundary")
    g.add_argument("--loss_multisimilarity_alpha", type=number(float, 0), default=2.0, help="inverse temperature of positive pairs")
    g.add_argument("--loss_multisimilarity_beta", type=number(float, 0), default=50.0, help="inverse temperature of negative pairs")
    g.add_argument("--loss_multisimilarity_base", type=number(float), default=0.5, help="similarity around which pairs are weighted (the paper's lambda)")
    g.add_argument("--loss_multisimilarity_epsilon", type=number(float), default=0.1, help="margin of the pair mining")
    g.add_argument("--loss_oproxy_mode", default="nca", choices=["nca", "anchor"], help="of --loss oproxy; --loss proxyanchor is always anchor")
    g.add_argument("--loss_oproxy_lrmulti", type=number(float, 0), default=2000.0, help="the proxies' learning rate is this times --lr")
    g.add_argument("--loss_oproxy_pos_alpha", type=number(float, 0), default=64.0, help="inverse temperature of the positive term, also of proxyanchor")
    g.add_argument("--loss_oproxy_neg_alpha", type=number(float, 0), default=64.0, help="inverse temperature of the negative term, also of proxyanchor")
    g.add_argument("--loss_oproxy_pos_delta", type=number(float), default=0.1, help="margin of the positive term, also of proxyanchor")
    g.add_argument("--loss_oproxy_neg_delta", type=number(float), default=-0.1, help="margin of the negative term, also of proxyanchor")

    g = parser.add_argument_group("Anti-Collapse loss: loss_ac_w_align * base + antico_w * term(coding rate)")
    g.add_argument("--antico_type", default="batch_proxy", choices=["pair", "batch_proxy", "all_proxy"], help="variant of --loss antico; the names antico_pair, ... fix it")
    g.add_argument("--antico_base", default="proxyanchor", help="the loss underneath; antico_pair: multisimilarity unless given")
    g.add_argument("--antico_form", default="exp", choices=["exp", "normalized"], help="exp(-gam2 R) as published, or 1 - R/R_max; antico_pair, antico_batch_proxy, antico_all_proxy: normalized unless given")
    g.add_argument("--antico_w", type=number(float), default=1.0, help="weight of the coding-rate term" + told("antico_w"))
    g.add_argument("--loss_ac_w_align", type=number(float), default=0.01, help="weight of the base loss" + told("loss_ac_w_align"))
    g.add_argument("--antico_eps", type=number(float), default=0.5, help="stands where MCR2 has its squared precision")
    g.add_argument("--antico_gam1", type=number(float, 0), default=1.0, help="factor of the scale inside the rate")
    g.add_argument("--antico_gam2", type=number(float, 0), default=1.0, help="factor of the rate inside exp (form exp only)")

    g = parser.add_argument_group("evaluation")
    g.add_argument("--no_train_metrics", action="store_true", help="do not evaluate the training split")
    g.add_argument("--no_test_metrics", action="store_true", help="do not evaluate the test split")
    g.add_argument("--evaluation_metrics", nargs="+", default=["e_recall@1", "e_recall@2", "e_recall@4", "e_recall@8", "nmi", "f1", "mAP_1000"], help="metrics by name, see evaluation/__init__.py")
    g.add_argument("--evaltypes", nargs="+", default=["embeds"], choices=["embeds"], help="what is evaluated: the embeddings")
    g.add_argument("--storage_metrics", nargs="+", default=["e_recall@1"], help="best.pt is the epoch with the highest first one; each further one gets its own best_<metric>.pt")
    g.add_argument("--store_improvements", action="store_true", help="also keep a file of every epoch that improved the first storage metric")
    g.add_argument("--search", default="auto", choices=["auto", "faiss", "torch", "ivf"], help="neighbour search, exact but for ivf (faiss, for galleries of millions); auto: faiss where it is installed, else torch")
    g.add_argument("--kmeans_restarts", type=number(int, 1), default=1, help="starts of k-means for nmi and f1, of which the best by distance counts")
    g.add_argument("--evaluate_only", action="store_true", help="no training: evaluate --checkpoint with the architecture in it, print and write evaluation_<name>.json beside it")
    g.add_argument("--checkpoint", metavar="PATH", help="of --evaluate_only: a run's checkpoint.pt or best.pt")
    g.add_argument("--save_embeddings", action="store_true", help="write embeddings, labels and paths of each split as npz after the last epoch, for python -m evaluation")
    g.add_argument("--evaluate_on_cpu", action="store_true", help="search and cluster on the CPU though there is a GPU")
    g.add_argument("--eval_every", type=number(int, 1), default=1, help="evaluate every so many epochs, and after the last")

    g = parser.add_argument_group("writing down")
    g.add_argument("--save_path", default=os.path.join(BESIDE, "antico_results"), help="runs go to <save_path>/<dataset>/<run>/")
    g.add_argument("--savename", default="group_plus_seed", help="the run's name; group_plus_seed: <group>_s<seed>")
    g.add_argument("--group", default="Sample_Run", help="name that the seeds of one experiment share")
    g.add_argument("--project", default="DiVA_Sample_Runs", help="Weights & Biases project")
    g.add_argument("--log_online", action="store_true", help="also log to Weights & Biases (pip install wandb)")
    g.add_argument("--wandb_key", default="<your_wandb_key>", help="Weights & Biases key; without it wandb's own login is used")
    return parser


def told(flag):
    own = ", ".join(f"{name} {d[flag]:g}" for name, d in LOSS_DEFAULTS.items() if flag in d)
    return f"; unless given: {own}, else"


def parse(argv=None):
    """The command line (sys.argv where argv is None) as a Namespace. Bad input: one line naming the flag, exit status 2."""
    parser = build_parser()
    parser.set_defaults(**LOSS_DEFAULTS.get(parser.parse_args(argv).loss, {}))  # what is given still wins
    opt = parser.parse_args(argv)
    problem = contradiction(opt)
    if problem:
        parser.error(problem)
    return opt


def contradiction(opt):
    """One line on what does not go together, or None."""
    if opt.bs % opt.samples_per_class:
        lower = opt.bs - opt.bs % opt.samples_per_class
        return (f"--bs {opt.bs} --samples_per_class {opt.samples_per_class}: {opt.bs} is not divisible by "
                f"{opt.samples_per_class}; {lower or opt.samples_per_class} or {lower + opt.samples_per_class} would be")
    if opt.not_pretrained and opt.weights:
        return "--not_pretrained --weights: give one of the two"
    if len(opt.gpu) > 1:
        return f"--gpu {' '.join(map(str, opt.gpu))}: a run uses one GPU; give one index"
    if opt.use_float16 and opt.amp not in ("auto", "fp16"):
        return f"--use_float16 --amp {opt.amp}: give one of the two"
    if opt.use_tv_split and not 0 < opt.tv_split_perc < 1:
        return f"--use_tv_split --tv_split_perc {opt.tv_split_perc:g}: the share must lie between 0 and 1, e.g. --tv_split_perc 0.8"
    if opt.tv_split_by_samples and not opt.use_tv_split:
        return "--tv_split_by_samples: needs --use_tv_split --tv_split_perc SHARE"
    if opt.antico_eps <= 0:
        return f"--antico_eps {opt.antico_eps:g}: must be positive"
    if opt.antico_form == "normalized" and opt.loss in LOSS_DEFAULTS and opt.antico_gam2 != 1:
        return "--antico_gam2: acts on --antico_form exp only; --antico_w weighs the normalized form"
    if opt.miner_distance_lower_cutoff >= opt.miner_distance_upper_cutoff:
        return (f"--miner_distance_lower_cutoff {opt.miner_distance_lower_cutoff:g}: must be below "
                f"--miner_distance_upper_cutoff {opt.miner_distance_upper_cutoff:g}")
    if opt.no_train_metrics and opt.no_test_metrics and not opt.use_tv_split:
        return "--no_train_metrics --no_test_metrics: nothing is left to evaluate"
    if opt.evaluate_only != (opt.checkpoint is not None):
        return "--evaluate_only --checkpoint PATH: give both or neither"
    if opt.evaluate_only and opt.resume:
        return "--evaluate_only --resume: give one of the two"
    missing = [] if opt.evaluate_only else [m for m in opt.storage_metrics if m not in opt.evaluation_metrics]
    if missing:
        return f"--storage_metrics {missing[0]}: not among --evaluation_metrics {' '.join(opt.evaluation_metrics)}"
    return None
