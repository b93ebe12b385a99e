"""The networks by name: a backbone, then suffixes, e.g. resnet50_frozen_normalize_double; see README.md.

To add one: write its file, then add one entry to BACKBONES.
"""

from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

import torch

from architectures.bninception import BNInception
from architectures.conv4 import conv4
from architectures.embedding import POOLINGS, EmbeddingNet
from architectures.from_timm import check_name, timm_backbone
from architectures.from_torchvision import torchvision_backbone
from architectures.weights import load_backbone, reason
from utilities.command_line import lookup

__all__ = ["BACKBONES", "Backbone", "EmbeddingNet", "select"]

# what a network wants of its input, by the names of EmbeddingNet
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVES = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CAFFE = dict(mean=(104, 117, 128), std=(1, 1, 1), bgr=True, input_range=255)
SUFFIXES = ("frozen", "normalize", *(name for name in POOLINGS if name != "avg"))


@dataclass(frozen=True)
class Backbone:
    about: str  # one line for main.py --list, with the paper
    build: Callable  # () → nn.Module: normalised images → feature maps
    input_size: Optional[int] = None  # pixels, H = W
    wants: Optional[dict] = None  # mean and std of the channels, ..., see EmbeddingNet
    address: Optional[str] = None  # of the ImageNet weights; its name carries the first digits of their SHA-256
    not_in_backbone: tuple = ()  # keys of that file that start with one of these belong to the classifier


TORCHVISION = "https://download.pytorch.org/models/"
# its weights come from TensorFlow and want mean and std of 0.5, which torchvision reaches by transform_input
GOOGLENET = partial(torchvision_backbone, "googlenet", aux_logits=False, transform_input=False, init_weights=False)
BACKBONES = {
    "conv4": Backbone(
        "four convolutions for 32 x 32 pixels, no pretrained weights (Vinyals et al., NeurIPS 2016)",
        conv4, 32, HALVES),
    "bninception": Backbone(
        "BN-Inception (Ioffe and Szegedy, ICML 2015), ImageNet weights from Caffe",
        BNInception, 224, CAFFE,
        "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth", ("last_linear.",)),
    "googlenet": Backbone(
        "GoogLeNet with BatchNorm (Szegedy et al., CVPR 2015), ImageNet weights",
        GOOGLENET, 224, HALVES, TORCHVISION + "googlenet-1378be20.pth", ("fc.", "aux1.", "aux2.")),
    "resnet18": Backbone(
        "ResNet-18 (He et al., CVPR 2016), ImageNet weights",
        partial(torchvision_backbone, "resnet18"), 224, IMAGENET, TORCHVISION + "resnet18-f37072fd.pth", ("fc.",)),
    "resnet50": Backbone(
        "ResNet-50 (He et al., CVPR 2016), ImageNet weights",
        partial(torchvision_backbone, "resnet50"), 224, IMAGENET, TORCHVISION + "resnet50-0676ba61.pth", ("fc.",)),
    # what stands for one network above is asked of timm for each of its own
    "timm.<name>": Backbone(
        "every network of timm (Wightman, PyTorch Image Models, 2019), e.g. timm.vit_small_patch16_224 (Dosovitskiy "
        "et al., ICLR 2021), with its own weights, size, mean, std and pooling", timm_backbone),
}  # fmt: skip


def parse_arch(arch):
    """'resnet50_frozen_double' → ('resnet50', {'frozen', 'double'}); ValueError, one line, for an unknown part."""
    name, suffixes = arch, set()  # names of timm have underscores of their own: known suffixes come off the end
    while name.rpartition("_")[2] in SUFFIXES:
        name, _, suffix = name.rpartition("_")
        suffixes.add(suffix)
    if name.startswith("timm."):
        check_name(name)
    else:
        lookup("--arch", name, BACKBONES)
    poolings = sorted(suffixes & POOLINGS.keys())
    if len(poolings) > 1:
        raise ValueError(f"--arch {arch}: a network has one pooling; keep one of _{', _'.join(poolings)}")
    return name, suffixes


def select(opt):
    """The network that --arch names, with its published weights unless --not_pretrained, or those of --weights.

    RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim). H = W = --input_size, or the
    network's own. Raises ValueError, one line: here alone, whatever keeps the network from being made.
    """
    name, suffixes = parse_arch(opt.arch)
    pooling = next(iter(suffixes & POOLINGS.keys()), "avg")
    pretrained = opt.weights is None and not opt.not_pretrained
    flags = f"--arch {opt.arch}" if opt.input_size is None else f"--input_size {opt.input_size} --arch {opt.arch}"
    what = f"{flags}: this network cannot be made"
    try:
        if name.startswith("timm."):
            backbone = Backbone(**timm_backbone(name, pooling != "avg", pretrained, opt.input_size))
        else:
            backbone = BACKBONES[name]
        features, size = backbone.build(), opt.input_size or backbone.input_size
        with torch.no_grad():
            maps = features.eval()(torch.zeros(1, 3, size, size))
        if pooling != "avg" and getattr(maps, "ndim", 0) != 4:  # some networks of timm give a list of token maps
            raise ValueError(f"it gives tokens, not feature maps; without _{pooling} it pools them as it does itself")
        source = backbone.address if pretrained else opt.weights
        if source is not None:
            what = f"--arch {opt.arch}: the weights {source} cannot be loaded"
            load_backbone(getattr(features, "net", features), source, backbone.not_in_backbone)  # timm's .net
    except Exception as problem:  # timm, its hub and files of weights raise what they like
        way_out = "; give a file with --weights PATH, or start from random weights with --not_pretrained"
        offline = pretrained and isinstance(problem, OSError)
        raise ValueError(f"{what} ({reason(problem)}){way_out if offline else ''}") from problem
    form = dict(frozen="frozen" in suffixes, normalize="normalize" in suffixes, pooling=pooling)
    return EmbeddingNet(features, maps.shape[1], opt.embed_dim, size, **backbone.wants, **form)
