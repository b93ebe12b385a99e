"""The networks by name: a backbone, then suffixes, e.g. resnet50_frozen_normalize_double.

To add one: write its file, then add one line to BACKBONES.
"""

import difflib
from dataclasses import dataclass
from functools import partial
from typing import Callable

from architectures.conv4 import conv4
from architectures.embedding import EmbeddingNet
from architectures.resnet import resnet
from architectures.weights import load_backbone

__all__ = ["BACKBONES", "Backbone", "EmbeddingNet", "select"]

IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
SUFFIXES = ("frozen", "normalize", "double")


@dataclass(frozen=True)
class Backbone:
    about: str  # one line for main.py --list, with the paper
    build: Callable  # () → nn.Module: normalised images → feature maps
    width: int  # channels of those maps
    input_size: int  # pixels, H = W
    mean: tuple  # of RGB in 0..1
    std: tuple
    address: str = ""  # of the ImageNet weights; the name carries the first 8 hexadecimal digits of their SHA-256
    not_in_backbone: tuple = ()  # keys of that file which belong to the classifier


HOME = "https://download.pytorch.org/models/"
BACKBONES = {
    "conv4": Backbone("four convolutions for 32 x 32 pixels, no pretrained weights (Vinyals et al., NeurIPS 2016)", conv4, 64, 32, mean=(0.5,) * 3, std=(0.5,) * 3),
    "resnet18": Backbone("ResNet-18 (He et al., CVPR 2016), ImageNet weights", partial(resnet, "resnet18"), 512, 224, **IMAGENET,
                         address=HOME + "resnet18-f37072fd.pth", not_in_backbone=("fc.weight", "fc.bias")),
    "resnet50": Backbone("ResNet-50 (He et al., CVPR 2016), ImageNet weights", partial(resnet, "resnet50"), 2048, 224, **IMAGENET,
                         address=HOME + "resnet50-0676ba61.pth", not_in_backbone=("fc.weight", "fc.bias")),
}


def parse_arch(arch):
    """'resnet50_frozen_double' → ('resnet50', {'frozen', 'double'}); ValueError, one line, for an unknown part."""
    name, *suffixes = arch.split("_")
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1, 0.4)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"--arch {arch}: unknown backbone {name}{hint}; known: {', '.join(BACKBONES)}")
    for suffix in suffixes:
        if suffix not in SUFFIXES:
            raise ValueError(f"--arch {arch}: unknown suffix _{suffix}; known: {', '.join('_' + s for s in SUFFIXES)}")
    return name, set(suffixes)


def select(opt):
    """The network that --arch names, with ImageNet weights unless --not_pretrained, or those of --weights PATH.

    RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim).
    """
    name, suffixes = parse_arch(opt.arch)
    spec = BACKBONES[name]
    features = spec.build()
    if opt.weights or (spec.address and not opt.not_pretrained):
        load_backbone(features, opt.weights or spec.address, spec.not_in_backbone)
    return EmbeddingNet(features, spec.width, opt.embed_dim, input_size=spec.input_size, mean=spec.mean, std=spec.std,
                        frozen="frozen" in suffixes, normalize="normalize" in suffixes,
                        pooling="double" if "double" in suffixes else "avg")
