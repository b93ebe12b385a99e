"""The networks by name: a backbone, then suffixes, e.g. resnet50_frozen_normalize_double or timm.vit_small_patch16_224_normalize.

To add one: write its file, then add one line to BACKBONES.
Suffixes: _frozen (BatchNorm keeps its running statistics through training, its scale and shift learn, as published), _normalize
(embeddings of length 1), and one pooling of _double (average + maximum), _lp2, _lp3 (generalised mean); average where there is none.
A timm network without pooling suffix pools as it does itself (class token, attention pooling, ...).
"""

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Callable

from architectures.bninception import BNInception
from architectures.conv4 import conv4
from architectures.embedding import POOLINGS, EmbeddingNet, features_of_one
from architectures.from_timm import check_name, timm_backbone
from architectures.googlenet import googlenet
from architectures.resnet import resnet
from architectures.weights import load_backbone

__all__ = ["BACKBONES", "Backbone", "EmbeddingNet", "select"]

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVES = dict(mean=(0.5,) * 3, std=(0.5,) * 3)
SUFFIXES = ("frozen", "normalize", *(name for name in POOLINGS if name != "avg"))


@dataclass(frozen=True)
class Backbone:
    about: str  # one line for main.py --list, with the paper
    build: Callable  # () → nn.Module: normalised images → feature maps
    width: int  # channels of those maps
    input_size: int  # pixels, H = W
    mean: tuple  # of the channels, in the order and range below
    std: tuple
    channels: str = "RGB"  # or BGR
    input_range: int = 1  # what a white pixel is
    address: str = ""  # of the ImageNet weights; the name carries the first hexadecimal digits of their SHA-256
    not_in_backbone: tuple = ()  # keys of that file which begin so belong to the classifier


HOME = "https://download.pytorch.org/models/"
BACKBONES = {
    "conv4": Backbone(
        "four convolutions for 32 x 32 pixels, no pretrained weights (Vinyals et al., NeurIPS 2016)",
        conv4,
        64,
        32,
        **HALVES,
    ),
    "bninception": Backbone(
        "BN-Inception (Ioffe and Szegedy, ICML 2015), ImageNet weights from Caffe",
        BNInception,
        1024,
        224,
        mean=(104, 117, 128),
        std=(1, 1, 1),
        channels="BGR",
        input_range=255,
        address="http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth",
        not_in_backbone=("last_linear.",),
    ),
    "googlenet": Backbone(
        "GoogLeNet with BatchNorm (Szegedy et al., CVPR 2015), ImageNet weights",
        googlenet,
        1024,
        224,
        **HALVES,
        address=HOME + "googlenet-1378be20.pth",
        not_in_backbone=("fc.", "aux1.", "aux2."),
    ),
    "resnet18": Backbone(
        "ResNet-18 (He et al., CVPR 2016), ImageNet weights",
        partial(resnet, "resnet18"),
        512,
        224,
        **IMAGENET,
        address=HOME + "resnet18-f37072fd.pth",
        not_in_backbone=("fc.",),
    ),
    "resnet50": Backbone(
        "ResNet-50 (He et al., CVPR 2016), ImageNet weights",
        partial(resnet, "resnet50"),
        2048,
        224,
        **IMAGENET,
        address=HOME + "resnet50-0676ba61.pth",
        not_in_backbone=("fc.",),
    ),
    # what stands for one network above is asked of timm for each of its own
    "timm.<name>": Backbone(
        "every network of timm (Wightman, PyTorch Image Models, 2019), e.g. timm.vit_small_patch16_224 (Dosovitskiy et al., ICLR 2021), "
        "with its own weights, size, mean, std and pooling",
        timm_backbone,
        None,
        None,
        None,
        None,
    ),
}


def parse_arch(arch):
    """'resnet50_frozen_double' → ('resnet50', {'frozen', 'double'}); ValueError, one line, for an unknown part."""
    if arch.startswith("timm."):
        name, suffixes = arch, []  # names of timm have underscores of their own: known suffixes come off the end
        while name.rpartition("_")[2] in SUFFIXES:
            name, _, suffix = name.rpartition("_")
            suffixes.append(suffix)
        check_name(arch, name.removeprefix("timm."))
    else:
        name, *suffixes = arch.split("_")
        if name not in BACKBONES:
            near = difflib.get_close_matches(name, BACKBONES, 1, 0.4)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"--arch {arch}: unknown backbone {name}{hint}; known: {', '.join(BACKBONES)}")
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise ValueError(f"--arch {arch}: unknown suffix _{suffix}; known: {', '.join('_' + s for s in SUFFIXES)}")
    poolings = [s for s in SUFFIXES if s in suffixes and s in POOLINGS]
    if len(poolings) > 1:
        raise ValueError(
            f"--arch {arch}: a network has one pooling; keep one of {', '.join('_' + s for s in poolings)}"
        )
    return name, set(suffixes)


def select(opt):
    """The network that --arch names, with its published weights unless --not_pretrained, or those of --weights.

    RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim). H = W = --input_size, or the
    network's own.
    """
    if opt.weights == "":
        raise ValueError("--weights: is empty; give a file or an address, or leave the flag away")
    name, suffixes = parse_arch(opt.arch)
    pooling = next((s for s in suffixes if s in POOLINGS), "avg")
    pretrained = not opt.weights and not opt.not_pretrained
    if name.startswith("timm."):
        spec = Backbone(
            **timm_backbone(
                opt.arch,
                name.removeprefix("timm."),
                maps=pooling != "avg",
                pretrained=pretrained,
                input_size=opt.input_size,
            )
        )
    else:
        spec = BACKBONES[name]
    features = spec.build()
    if opt.input_size:
        features_of_one(features, opt.input_size, opt.arch)
    source = opt.weights or (spec.address if pretrained else "")
    if source:
        load_backbone(
            getattr(features, "net", features), source, spec.not_in_backbone
        )  # .net: timm's, which knows no prefix
    return EmbeddingNet(
        features,
        spec.width,
        opt.embed_dim,
        input_size=opt.input_size or spec.input_size,
        mean=spec.mean,
        std=spec.std,
        channels=spec.channels,
        input_range=spec.input_range,
        frozen="frozen" in suffixes,
        normalize="normalize" in suffixes,
        pooling=pooling,
    )
