"""Every flag, its default and what it means. `parse` gives the namespace that the packages' `select` functions read."""

import argparse
import math
import os

from utilities import folders
from utilities.defaults import LOSSES, SHARED

HERE = os.path.dirname(os.path.abspath(__file__))
BESIDE = os.path.dirname(HERE)
LARGE = 1e30  # of rates, weights, factors: their products still fit float32


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        first = os.environ.get("RANK", "0") == "0"  # all processes of a torchrun have the same command line
        self.exit(2, f"error: {message} (python main.py --help lists every flag)\n" if first else None)


def number(kind, low=-math.inf, high=math.inf):
    """An argparse type: a number in [low, high], at most LARGE, whose error says so."""
    low, high = max(low, -LARGE), min(high, LARGE)

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            ends = [f"{end:g}" if kind is float else str(end) for end in (low, high)]
            bounds = f" from {ends[0]} to {ends[1]}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number{bounds}")
        return value

    return convert


def build_parser():
    parser = OneLineParser(
        prog="main.py",
        description="Deep metric learning with the Anti-Collapse loss.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )

    parser.add_argument(
        "--list", action="store_true", help="print the losses, miners, backbones, data sets and metrics, and stop"
    )

    g = parser.add_argument_group("data")
    g.add_argument(
        "--dataset", default="cub200", help="registry name, see datasets/__init__.py; glyphs needs no download"
    )
    g.add_argument(
        "--source_path", default=os.path.join(BESIDE, "antico_data"), help="folder that holds the data sets' folders"
    )
    g.add_argument(
        "--allow_partial",
        action="store_true",
        help="go on though classes or images are missing; config.json and the tables then say partial",
    )
    g.add_argument(
        "--skip_broken",
        action="store_true",
        help="leave out images that cannot be decoded, and count them; without it the first stops the run",
    )
    g.add_argument(
        "--cache",
        metavar="DIR",
        help="keep the decoded images in one file there, made once, checked as it is read (about 0.5 MB an image)",
    )
    g.add_argument(
        "--gpu_augment",
        action="store_true",
        help="crop, colour and flip on the network's device, for each image of the batch on its own",
    )
    g.add_argument(
        "--augmentation",
        default="base",
        choices=["base", "big", "adv", "red"],
        help="training augmentation, see datasets/transforms.py",
    )
    g.add_argument(
        "--use_tv_split", action="store_true", help="keep part of the training data apart as a validation split"
    )
    g.add_argument(
        "--tv_split_by_samples",
        action="store_true",
        help="that split takes samples of every class instead of whole classes",
    )
    g.add_argument(
        "--tv_split_perc",
        type=number(float, 0, 1),
        default=0.0,
        help="share of the training classes (or samples) that stays in training",
    )
    g.add_argument(
        "--data_sampler",
        default="class_random",
        choices=["class_random", "class_balanced", "random"],
        help="class_random: classes drawn with replacement, as published; class_balanced: distinct classes in a batch, an epoch covers every image; random: images drawn without regard to classes, --samples_per_class does not act",
    )
    g.add_argument("--bs", type=number(int, 1, 10**6), default=112, help="images a batch, of all processes together")
    g.add_argument(
        "--samples_per_class",
        type=number(int, 1, 10**6),
        default=2,
        help="images of each class in a batch; divides --bs",
    )
    g.add_argument(
        "--kernels",
        type=number(int, 0, 1024),
        default=6,
        help="data loading processes; at most the machine's cores are used",
    )

    g = parser.add_argument_group("network")
    g.add_argument(
        "--arch",
        default="resnet50_frozen_normalize",
        help="bninception, googlenet, resnet18, resnet50, conv4 or timm.<name>, then any of _frozen (BatchNorm statistics stay), _normalize (L2), and one pooling of _double (average + max), _lp2, _lp3 (generalised mean); average, or a timm network's own, where there is none",
    )
    g.add_argument("--embed_dim", type=number(int, 1, 2**16), default=128, help="dimension of the embedding")
    g.add_argument(
        "--input_size",
        type=number(int, 8, 4096),
        metavar="N",
        help="height and width of the images in pixels; the network's own where it is not given",
    )
    g.add_argument(
        "--not_pretrained",
        action="store_true",
        help="random weights instead of the published ones (conv4 has none anyway)",
    )
    g.add_argument(
        "--weights",
        metavar="PATH",
        help="backbone weights from this file (a state dict) or http(s) address instead of the published ones; PATH#sha256=DIGITS checks it, and an address must carry its hash so or as name-DIGITS.pth",
    )

    g = parser.add_argument_group("training")
    g.add_argument("--n_epochs", type=number(int, 0, 10**6), default=150, help="epochs")
    g.add_argument("--lr", type=number(float, 0), default=1e-5, help="learning rate of the network")
    g.add_argument(
        "--fc_lr",
        type=number(float, -1),
        default=-1.0,
        help="learning rate of the last linear layer; -1: that of the network",
    )
    g.add_argument(
        "--decay", type=number(float, 0), default=4e-4, help="weight decay of the network (proxies have none)"
    )
    g.add_argument("--optim", default="adam", choices=["adam", "adamw", "sgd"], help="optimizer; sgd has momentum 0.9")
    g.add_argument(
        "--scheduler",
        default="step",
        choices=["step", "none"],
        help="step: the learning rates times --gamma at each epoch of --tau",
    )
    g.add_argument(
        "--tau",
        type=number(int, 0, 10**6),
        nargs="+",
        default=[10000],
        help="epochs after which the learning rates fall",
    )
    g.add_argument("--gamma", type=number(float, 0), default=0.3, help="factor of that fall")
    g.add_argument(
        "--warmup",
        type=number(int, 0, 10**6),
        default=0,
        help="epochs in which only the last linear layer and the loss's own parameters learn",
    )
    g.add_argument("--seed", type=number(int, 0, 2**32 - 1), default=0, help="seed of everything random")
    g.add_argument(
        "--resume",
        nargs="?",
        const=True,
        default=False,
        metavar="FOLDER",
        help="go on with the run in FOLDER, or with the newest of this name; its own flags hold where none is given",
    )
    g.add_argument(
        "--checkpoint_minutes",
        type=number(float, 0),
        default=10.0,
        help="minutes between checkpoints within an epoch; one follows each epoch anyway",
    )
    g.add_argument(
        "--grad_cache",
        type=number(int, 1, 10**6),
        metavar="CHUNK",
        help="embed the batch in chunks of so many images a process, with the gradient of the whole batch (Gao et al., 2021)",
    )

    g = parser.add_argument_group("device and precision")
    g.add_argument(
        "--gpu",
        type=number(int, 0, 1023),
        nargs="+",
        default=[0],
        help="index of the GPU (one); without any GPU the CPU is used; under torchrun each process has its own",
    )
    g.add_argument(
        "--compile", default="auto", choices=["auto", "on", "off"], help="torch.compile the network; auto: on a GPU"
    )
    g.add_argument(
        "--amp",
        default="auto",
        choices=["auto", "bf16", "fp16", "none"],
        help="mixed precision of the network; auto: bf16 (else fp16) on a GPU, none on a CPU; the loss is always float32",
    )
    g.add_argument(
        "--use_float16",
        action="store_true",
        help="the same as --amp fp16; without a GPU it runs in float32 and says so",
    )

    g.add_argument(
        "--tf32",
        action="store_true",
        help="the network's float32 products and convolutions in TF32 on a GPU; the loss and the evaluation stay float32",
    )
    g.add_argument(
        "--profile",
        type=number(int, 1, 10**4),
        metavar="N",
        help="write a torch profiler trace of N steps, print the share of input, forward, loss, backward and optimizer, and stop",
    )

    g = parser.add_argument_group("loss")
    g.add_argument(
        "--loss",
        default="margin",
        help="name of a loss (--list shows them), or pml.<ClassName>: any loss of pytorch-metric-learning",
    )
    g.add_argument(
        "--pml_args",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of that class's constructor, e.g. m=0.4 gamma=80",
    )
    g.add_argument(
        "--pml_lrmulti",
        type=number(float, 0),
        default=2000.0,
        help="what such a loss learns itself learns at this times --lr",
    )
    g.add_argument(
        "--batch_mining",
        default="distance",
        help="miner of contrastive, triplet and margin (--list shows them)" + told("batch_mining"),
    )
    g.add_argument(
        "--miner_semihard_margin",
        type=number(float, 0, 2),
        default=0.2,
        help="semihard negatives are farther than the positive by less than this",
    )
    g.add_argument(
        "--miner_distance_lower_cutoff",
        type=number(float, 0, 2),
        default=0.5,
        help="distances below count as this in distance-weighted mining",
    )
    g.add_argument(
        "--miner_distance_upper_cutoff",
        type=number(float, 0, 2),
        default=1.4,
        help="no negative farther than this is mined: the paper's cutoff (Wu et al.); "
        "the published code has it commented out, which is 2 here",
    )
    g.add_argument(
        "--miner_rho_distance_lower_cutoff", type=number(float, 0, 2), default=0.5, help="the same for rho_distance"
    )
    g.add_argument(
        "--miner_rho_distance_upper_cutoff", type=number(float, 0, 2), default=1.4, help="the same for rho_distance"
    )
    g.add_argument(
        "--miner_rho_distance_cp",
        type=number(float, 0, 1),
        default=0.2,
        help="probability that a triplet (anchor, positive, negative) becomes (anchor, anchor, positive)",
    )
    g.add_argument(
        "--loss_contrastive_pos_margin",
        type=number(float),
        default=0.0,
        help="positive pairs nearer than this cost nothing, Euclidean distance",
    )
    g.add_argument(
        "--loss_contrastive_neg_margin",
        type=number(float),
        default=1.0,
        help="negative pairs farther than this cost nothing, Euclidean distance",
    )
    g.add_argument(
        "--loss_triplet_margin",
        type=number(float),
        default=0.2,
        help="negatives are to be farther than positives by this, Euclidean distance",
    )
    g.add_argument(
        "--loss_margin_margin", type=number(float), default=0.2, help="margin around the boundary, Euclidean distance"
    )
    g.add_argument("--loss_margin_beta", type=number(float), default=1.2, help="initial boundary, Euclidean distance")
    g.add_argument("--loss_margin_beta_lr", type=number(float, 0), default=5e-4, help="learning rate of the boundary")
    g.add_argument(
        "--loss_npair_temperature", type=number(float, 0), default=1.0, help="cosine similarities are divided by this"
    )
    g.add_argument(
        "--loss_multisimilarity_alpha", type=number(float, 0), default=2.0, help="inverse temperature of positive pairs"
    )
    g.add_argument(
        "--loss_multisimilarity_beta", type=number(float, 0), default=50.0, help="inverse temperature of negative pairs"
    )
    g.add_argument(
        "--loss_multisimilarity_base",
        type=number(float),
        default=0.5,
        help="similarity around which pairs are weighted (the paper's lambda)",
    )
    g.add_argument("--loss_multisimilarity_epsilon", type=number(float), default=0.1, help="margin of the pair mining")
    g.add_argument(
        "--loss_oproxy_mode",
        default="nca",
        choices=["nca", "anchor"],
        help="of oproxy, the published code's; proxyanchor is the paper's and always anchor" + told("loss_oproxy_mode"),
    )
    g.add_argument(
        "--loss_oproxy_lrmulti",
        type=number(float, 0),
        default=2000.0,
        help="the proxies' learning rate is this times --lr",
    )
    g.add_argument(
        "--loss_oproxy_pos_alpha",
        type=number(float, 0),
        default=64.0,
        help="inverse temperature of the positive term, also of proxyanchor",
    )
    g.add_argument(
        "--loss_oproxy_neg_alpha",
        type=number(float, 0),
        default=64.0,
        help="inverse temperature of the negative term, also of proxyanchor",
    )
    g.add_argument(
        "--loss_oproxy_pos_delta",
        type=number(float),
        default=0.1,
        help="margin of the positive term, also of proxyanchor",
    )
    g.add_argument(
        "--loss_oproxy_neg_delta",
        type=number(float),
        default=-0.1,
        help="margin of the negative term, also of proxyanchor",
    )
    g.add_argument(
        "--loss_proxynca_scale",
        type=number(float, 0),
        default=1.0,
        help="factor of the squared distances (ProxyNCA++: 9)",
    )
    g.add_argument(
        "--loss_proxynca_lrmulti",
        type=number(float, 0),
        default=2000.0,
        help="the proxies' learning rate is this times --lr",
    )
    g.add_argument(
        "--loss_normalized_softmax_temperature",
        type=number(float, 0),
        default=0.05,
        help="cosine similarities are divided by this",
    )
    g.add_argument(
        "--loss_normalized_softmax_lrmulti",
        type=number(float, 0),
        default=2000.0,
        help="the class weights' learning rate is this times --lr",
    )
    g.add_argument(
        "--loss_arcface_margin",
        type=number(float),
        default=0.5,
        help="added to the angle to the own class weight, radians",
    )
    g.add_argument("--loss_arcface_scale", type=number(float, 0), default=64.0, help="factor of the cosines")
    g.add_argument(
        "--loss_arcface_lrmulti",
        type=number(float, 0),
        default=2000.0,
        help="the class weights' learning rate is this times --lr",
    )

    g = parser.add_argument_group(
        "non-isotropy regularisation, --loss nir: loss_nir_w_align * proxyanchor + flow's term"
    )
    g.add_argument(
        "--loss_nir_w_align",
        type=number(float),
        default=0.01,
        help="weight of the proxy loss, which has --loss_oproxy_{pos,neg}_{alpha,delta}",
    )
    g.add_argument(
        "--loss_nir_form",
        default="exp",
        choices=["exp", "nll"],
        help="the flow's term: exp of each pair's negative log-likelihood as in the authors' code, or the likelihood itself as in the paper",
    )
    g.add_argument(
        "--loss_nir_proxy_lrmulti",
        type=number(float, 0),
        default=4000.0,
        help="the proxies' learning rate is this times --lr",
    )
    g.add_argument(
        "--loss_nir_lrmulti", type=number(float, 0), default=50.0, help="the flow's learning rate is this times --lr"
    )
    g.add_argument(
        "--loss_nir_noise", type=number(float, 0), default=0.0, help="uniform noise up to this on the flow's embeddings"
    )
    g.add_argument(
        "--loss_nir_nf_cond_mode",
        default="dense",
        choices=["dense", "start", "mid", "end", "dense_embed", "dense_embed_multi", "dense_embed_multi_stacked"],
        help="which of the flow's blocks see the proxy, and how",
    )
    g.add_argument(
        "--loss_nir_nf_fc_depth", type=number(int, 1, 10**4), default=8, help="layers of a block's subnetwork"
    )
    g.add_argument("--loss_nir_nf_fc_width", type=number(int, 1, 10**4), default=128, help="width of these layers")
    g.add_argument("--loss_nir_nf_cblocks", type=number(int, 1, 10**4), default=5, help="coupling blocks of the flow")
    g.add_argument("--loss_nir_nf_fc_dropout", type=number(float, 0, 1), default=0.0, help="dropout in the subnetworks")
    g.add_argument(
        "--loss_nir_nf_clamp_alpha", type=number(float, 0), default=2.0, help="bound on the log-scale of a block"
    )
    g.add_argument(
        "--loss_nir_nf_fc_init",
        default="none",
        choices=["none", "xavier"],
        help="initialisation of the subnetworks; none: PyTorch's",
    )

    g = parser.add_argument_group("Anti-Collapse loss: loss_ac_w_align * base + antico_w * term(coding rate)")
    g.add_argument(
        "--antico_type",
        default="batch_proxy",
        choices=["pair", "batch_proxy", "all_proxy"],
        help="variant of --loss antico; the names antico_pair, ... fix it",
    )
    g.add_argument(
        "--antico_base",
        default="proxyanchor",
        help="the loss underneath (any of --loss but antico), or none: the coding-rate term alone"
        + told("antico_base"),
    )
    g.add_argument(
        "--antico_form",
        default="exp",
        choices=["exp", "neg", "normalized"],
        help="exp(-gam2 R) as published, -gam2 R as in MCR2, or 1 - R/R_max; antico_pair, antico_batch_proxy, antico_all_proxy: normalized unless given",
    )
    g.add_argument(
        "--antico_scale",
        default=SHARED["antico_scale"],
        choices=["published", "mcr2"],
        help="scale inside the rate: d/(n eps) for embeddings and n/(d eps) for proxies, or d/(n eps^2) for both",
    )
    g.add_argument(
        "--antico_w", type=number(float), default=1.0, help="weight of the coding-rate term" + told("antico_w")
    )
    g.add_argument(
        "--loss_ac_w_align", type=number(float), default=0.01, help="weight of the base loss" + told("loss_ac_w_align")
    )
    g.add_argument(
        "--antico_eps",
        type=number(float),
        default=SHARED["antico_eps"],
        help="precision; with --antico_scale published it stands where MCR2 has its square",
    )
    g.add_argument(
        "--antico_gam1",
        type=number(float, 0),
        default=SHARED["antico_gam1"],
        help="factor of the scale inside the rate",
    )
    g.add_argument(
        "--antico_gam2",
        type=number(float, 0),
        default=SHARED["antico_gam2"],
        help="factor of the rate (forms exp and neg)",
    )

    g = parser.add_argument_group("evaluation")
    g.add_argument("--no_train_metrics", action="store_true", help="do not evaluate the training split")
    g.add_argument("--no_test_metrics", action="store_true", help="do not evaluate the test split")
    g.add_argument(
        "--evaluation_metrics",
        nargs="+",
        default=["e_recall@1", "e_recall@2", "e_recall@4", "e_recall@8", "nmi", "f1", "mAP_1000"],
        help="metrics by name, see evaluation/__init__.py",
    )
    g.add_argument(
        "--evaltypes", nargs="+", default=["embeds"], choices=["embeds"], help="what is evaluated: the embeddings"
    )
    g.add_argument(
        "--storage_metrics",
        nargs="+",
        default=["e_recall@1"],
        help="best.pt is the epoch with the highest first one (unless given, the first of --evaluation_metrics where e_recall@1 is not among them); each further one gets its own best_<metric>.pt",
    )
    g.add_argument(
        "--store_improvements",
        action="store_true",
        help="also keep a file of every epoch that improved the first storage metric",
    )
    g.add_argument(
        "--search",
        default="auto",
        choices=["auto", "faiss", "torch", "ivf"],
        help="neighbour search, exact but for ivf (faiss, for galleries past memory); auto: faiss where it is installed, else torch",
    )
    g.add_argument(
        "--kmeans_restarts",
        type=number(int, 1, 1000),
        default=1,
        help="starts of k-means for nmi and f1, of which the best by distance counts",
    )
    g.add_argument(
        "--evaluate_only",
        action="store_true",
        help="no training: evaluate --checkpoint with the flags of its run (config.json beside it) unless given, print and write evaluation_<name>.json beside it",
    )
    g.add_argument("--checkpoint", metavar="PATH", help="of --evaluate_only: a run's checkpoint.pt or best.pt")
    g.add_argument(
        "--save_embeddings",
        action="store_true",
        help="write embeddings, labels and paths of each split as npz after the last epoch, for python -m evaluation",
    )
    g.add_argument("--evaluate_on_cpu", action="store_true", help="search and cluster on the CPU though there is a GPU")
    g.add_argument(
        "--eval_every", type=number(int, 1, 10**6), default=1, help="evaluate every so many epochs, and after the last"
    )

    g = parser.add_argument_group("writing down")
    g.add_argument(
        "--save_path", default=os.path.join(BESIDE, "antico_results"), help="runs go to <save_path>/<dataset>/<run>/"
    )
    g.add_argument("--savename", default="group_plus_seed", help="the run's name; group_plus_seed: <group>_s<seed>")
    g.add_argument("--group", default="Sample_Run", help="name that the seeds of one experiment share")
    g.add_argument("--project", default="DiVA_Sample_Runs", help="Weights & Biases project")
    g.add_argument(
        "--tensorboard",
        action="store_true",
        help="also log to TensorBoard, in the run's folder (pip install tensorboard)",
    )
    g.add_argument("--log_online", action="store_true", help="also log to Weights & Biases (pip install wandb)")
    g.add_argument(
        "--wandb_key",
        default="<your_wandb_key>",
        help="Weights & Biases key, written nowhere; without it wandb's own login is used",
    )

    g = parser.add_argument_group("published flags that act on nothing, here as there")
    g.add_argument(
        "--data_ssl_set",
        action="store_true",
        help="accepted for published command lines; nothing here uses a self-supervised set",
    )
    g.add_argument(
        "--internal_split",
        type=number(float, 0, 1),
        default=1.0,
        help="accepted for published command lines; no data set here has an internal split",
    )
    g.add_argument(
        "--completed",
        action="store_true",
        help="accepted for published command lines; a finished run is told by its metrics.csv",
    )
    g.add_argument(
        "--loss_nir_logmatch",
        type=number(float),
        default=1.0,
        help="accepted for published command lines; used nowhere there either",
    )
    g.add_argument(
        "--loss_nir_pos_alpha",
        type=number(float),
        default=1.0,
        help="accepted for published command lines; read nowhere there either",
    )
    g.add_argument(
        "--loss_nir_neg_alpha",
        type=number(float),
        default=1.0,
        help="accepted for published command lines; read nowhere there either",
    )
    g.add_argument(
        "--loss_nir_margin",
        type=number(float),
        default=0.1,
        help="accepted for published command lines; read nowhere there either",
    )
    g.add_argument(
        "--loss_nir_delta",
        type=number(float),
        default=0.2,
        help="accepted for published command lines; read nowhere there either",
    )
    g.add_argument(
        "--loss_nir_pair_perc",
        type=number(float, 0, 1),
        default=1.0,
        help="accepted for published command lines; used nowhere there either",
    )
    return parser


def told(flag):
    own = ", ".join(f"{name} {d[flag]}" for name, d in LOSSES.items() if flag in d)
    return f"; unless given: {own}, else"


# flags that may differ from those of the run that --resume goes on with: what is learned does not depend on them
MAY_CHANGE = {
    "resume", "list", "n_epochs", "kernels", "gpu", "source_path", "cache", "save_path", "savename", "group", "project",
    "checkpoint_minutes", "grad_cache", "profile", "no_train_metrics", "no_test_metrics", "evaluation_metrics",
    "evaltypes", "storage_metrics", "store_improvements", "search", "kmeans_restarts", "save_embeddings",
    "evaluate_on_cpu", "eval_every", "tensorboard", "log_online", "wandb_key", "completed",
}  # fmt: skip
OF_THIS_EVALUATION = {
    "evaluate_only", "checkpoint", "save_embeddings", "resume", "list", "gpu", "evaluate_on_cpu", "search", "profile",
}  # fmt: skip


def parse(argv=None):
    """The command line (sys.argv where argv is None) as a Namespace. Bad input: one line naming the flag, exit status 2.

    A flag that is not given has, in this order, the value of the run that --resume or --evaluate_only names, that of its
    loss (utilities/defaults.py), or its own default. With --resume, opt.resume is the folder of that run, or None.
    """
    parser = build_parser()
    defaults = {action.dest: action.default for action in parser._actions if action.dest != "help"}
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    given = vars(parser.parse_args(argv))
    try:
        saved, folder = flags_of_run(given, defaults)
    except ValueError as problem:
        parser.error(str(problem))
    saved = {name: value for name, value in saved.items() if name in defaults}
    chosen = {**saved, **given}
    opt = argparse.Namespace(**{**defaults, **own_defaults(chosen, defaults), **chosen})
    opt.resume = folder
    problem = contradiction(opt)
    if problem:
        parser.error(problem)
    opt.given = sorted(given)
    return opt


def note(opt):
    """A line each on the flags that were given and do nothing, and on --resume without a run; empty where there are none."""
    idle = [name for name in opt.given if name in without_effect(opt)]
    lines = (
        [f"note: {', '.join('--' + name for name in idle)}: no effect on a run of --loss {opt.loss} with these flags"]
        if idle
        else []
    )
    if "resume" in opt.given and opt.resume is None:
        lines.append("note: --resume: there is no run of this name yet; a new one begins")
    return "\n".join(lines)


def flags_of_run(given, defaults):
    """(flags of the run that is gone on with or evaluated, its folder where it is gone on with), ({}, None) for a new run."""
    if given.get("evaluate_only") and given.get("checkpoint"):
        folder = os.path.dirname(os.path.abspath(given["checkpoint"]))
        if not os.path.isfile(os.path.join(folder, "config.json")):
            return {}, None
        flags = folders.all_flags(folders.read_config(folder))
        return {name: value for name, value in flags.items() if name not in OF_THIS_EVALUATION}, None
    folder = given.get("resume", False)
    if folder is False:
        return {}, None
    if folder is True:
        name = {**defaults, **given}
        folder = folders.find(
            name["save_path"], name["dataset"], folders.run_name(name["savename"], name["group"], name["seed"])
        )
        if folder is None:
            return {}, None
    try:
        saved = folders.all_flags(folders.read_config(folder))
    except ValueError as problem:
        raise ValueError(f"--resume {problem}") from problem
    for name, value in given.items():
        if name not in MAY_CHANGE and name in saved and saved[name] != value:
            raise ValueError(
                f"--resume {folder}: that run has --{name} {shown(saved[name])}, not {shown(value)}; "
                "leave the flag out, or start a new run without --resume"
            )
    kept = {name: value for name, value in saved.items() if name not in ("list", "profile")}
    if not set(kept.get("storage_metrics", ())) <= set(
        given.get("evaluation_metrics", kept.get("evaluation_metrics", ()))
    ):
        del kept["storage_metrics"]  # best.pt goes by another metric from now on
    return kept, folder


def shown(value):
    return " ".join(map(str, value)) if isinstance(value, list) else value


def own_defaults(chosen, defaults):
    """The defaults that depend on what was chosen: on the loss, its base and the metrics."""
    own = dict(LOSSES.get(chosen.get("loss", defaults["loss"]), {}))
    if "antico_base" in own:
        own |= LOSSES.get(chosen.get("antico_base", own["antico_base"]), {})
    if "e_recall@1" not in chosen.get("evaluation_metrics", ["e_recall@1"]):
        own["storage_metrics"] = chosen["evaluation_metrics"][:1]
    return own


def is_antico(loss):
    return loss.split("_")[0] == "antico"


def without_effect(opt):
    """The names of the flags that do nothing, given the others."""
    names = set(vars(opt)) - {"given"}
    antico = is_antico(opt.loss)
    acting = {opt.loss, opt.antico_base} if antico else {opt.loss}
    idle = {"data_ssl_set", "internal_split", "completed"}
    idle |= {f"loss_nir_{name}" for name in ("logmatch", "pair_perc", "pos_alpha", "neg_alpha", "margin", "delta")}

    def of(*prefixes):
        return {name for name in names if name.startswith(prefixes)}

    if not antico:
        idle |= of("antico_", "loss_ac_")
    elif opt.antico_form == "normalized":
        idle.add("antico_gam2")
    if not acting & {"proxyanchor", "oproxy", "nir"}:
        idle |= of("loss_oproxy_")
    if "oproxy" not in acting:
        idle.add("loss_oproxy_mode")
    if acting & {"nir"} and not acting & {"proxyanchor", "oproxy"}:
        idle.add("loss_oproxy_lrmulti")
    for loss in (
        "contrastive",
        "triplet",
        "margin",
        "npair",
        "multisimilarity",
        "proxynca",
        "normalized_softmax",
        "arcface",
        "nir",
    ):
        if loss not in acting:
            idle |= of(f"loss_{loss}_")
    mined = bool(acting & {"contrastive", "triplet", "margin"})
    if not mined:
        idle.add("batch_mining")
    for miner in ("semihard", "distance", "rho_distance"):
        if not mined or opt.batch_mining != miner:
            idle |= of(f"miner_{miner}_")
    if not any(name.startswith("pml.") for name in acting):
        idle |= of("pml_")
    if is_antico(opt.loss) and opt.antico_base == "none":
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
        idle |= of("tv_split_")
    if not opt.log_online:
        idle |= {"project", "wandb_key"}
    return idle


def contradiction(opt):
    """One line on what does not go together, or None."""
    if opt.bs % opt.samples_per_class:
        lower = opt.bs - opt.bs % opt.samples_per_class
        return (
            f"--bs {opt.bs} --samples_per_class {opt.samples_per_class}: {opt.bs} is not divisible by "
            f"{opt.samples_per_class}; {lower or opt.samples_per_class} or {lower + opt.samples_per_class} would be"
        )
    if opt.lr > 0 and opt.gamma > 1 and math.log(opt.lr) + len(opt.tau) * math.log(opt.gamma) > math.log(LARGE):
        return f"--gamma {opt.gamma:g}: the learning rate would grow beyond {LARGE:g}; it falls with a factor below 1"
    if opt.not_pretrained and opt.weights:
        return "--not_pretrained --weights: give one of the two"
    if len(opt.gpu) > 1:
        return f"--gpu {' '.join(map(str, opt.gpu))}: a run uses one GPU; give one index"
    if opt.use_float16 and opt.amp not in ("auto", "fp16"):
        return f"--use_float16 --amp {opt.amp}: give one of the two"
    if opt.use_tv_split and not 0 < opt.tv_split_perc < 1:
        return f"--use_tv_split --tv_split_perc {opt.tv_split_perc:g}: the share must lie between 0 and 1, e.g. --tv_split_perc 0.8"
    if opt.dataset == "glyphs" and (opt.gpu_augment or opt.cache):
        return f"--dataset glyphs {'--gpu_augment' if opt.gpu_augment else '--cache'}: is for data sets of image files; glyphs is in memory already"
    if opt.tv_split_by_samples and not opt.use_tv_split:
        return "--tv_split_by_samples: needs --use_tv_split --tv_split_perc SHARE"
    if opt.antico_eps <= 0:
        return f"--antico_eps {opt.antico_eps:g}: must be positive"
    if opt.antico_type != LOSSES.get(opt.loss, {}).get("antico_type", opt.antico_type):
        return f"--loss {opt.loss} --antico_type {opt.antico_type}: the loss's name fixes the type; leave one of the two out"
    if opt.antico_form == "normalized" and is_antico(opt.loss) and opt.antico_gam2 != 1:
        return "--antico_gam2: acts on --antico_form exp and neg; --antico_w weighs the normalized form"
    if opt.pml_args and not (opt.antico_base if is_antico(opt.loss) else opt.loss).startswith("pml."):
        return (
            f"--pml_args {' '.join(opt.pml_args)}: needs a loss of pytorch-metric-learning, e.g. --loss pml.CircleLoss"
        )
    for miner in ("distance", "rho_distance"):
        lower, upper = (getattr(opt, f"miner_{miner}_{end}_cutoff") for end in ("lower", "upper"))
        if lower >= upper:
            return f"--miner_{miner}_lower_cutoff {lower:g}: must be below --miner_{miner}_upper_cutoff {upper:g}"
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
