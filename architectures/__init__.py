"""The networks by name: a backbone, then suffixes, e.g. resnet50_frozen_normalize_double; see README.md.

To add one: write its file, then add one entry to BACKBONES.
"""

from dataclasses import dataclass
from functools import partial
from typing import Callable, Optional

from architectures.bninception import BNInception
from architectures.conv4 import conv4
from architectures.embedding import POOLINGS, EmbeddingNet, features_of_one
from architectures.from_timm import check_name, timm_backbone
from architectures.googlenet import googlenet
from architectures.resnet import resnet
from architectures.weights import load_backbone
from utilities.registry import lookup

__all__ = ["BACKBONES", "Backbone", "EmbeddingNet", "select"]

# what a network wants of its input, by the names of EmbeddingNet
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
HALVES = dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CAFFE = dict(mean=(104, 117, 128), std=(1, 1, 1), channels="BGR", input_range=255)
SUFFIXES = ("frozen", "normalize", *(name for name in POOLINGS if name != "avg"))


@dataclass(frozen=True)
class Backbone:
    about: str  # one line for main.py --list, with the paper
    build: Callable  # () → nn.Module: normalised images → feature maps
    width: Optional[int] = None  # channels of those maps
    input_size: Optional[int] = None  # pixels, H = W
    wants: Optional[dict] = None  # mean and std of the channels, ..., see EmbeddingNet
    address: str = ""  # of the ImageNet weights; the name carries the first hexadecimal digits of their SHA-256
    not_in_backbone: tuple = ()  # keys of that file which begin so belong to the classifier


TORCHVISION = "https://download.pytorch.org/models/"
BACKBONES = {
    "conv4": Backbone(
        "four convolutions for 32 x 32 pixels, no pretrained weights (Vinyals et al., NeurIPS 2016)",
        conv4, 64, 32, HALVES),
    "bninception": Backbone(
        "BN-Inception (Ioffe and Szegedy, ICML 2015), ImageNet weights from Caffe",
        BNInception, 1024, 224, CAFFE,
        "http://data.lip6.fr/cadene/pretrainedmodels/bn_inception-52deb4733.pth", ("last_linear.",)),
    "googlenet": Backbone(
        "GoogLeNet with BatchNorm (Szegedy et al., CVPR 2015), ImageNet weights",
        googlenet, 1024, 224, HALVES, TORCHVISION + "googlenet-1378be20.pth", ("fc.", "aux1.", "aux2.")),
    "resnet18": Backbone(
        "ResNet-18 (He et al., CVPR 2016), ImageNet weights",
        partial(resnet, "resnet18"), 512, 224, IMAGENET, TORCHVISION + "resnet18-f37072fd.pth", ("fc.",)),
    "resnet50": Backbone(
        "ResNet-50 (He et al., CVPR 2016), ImageNet weights",
        partial(resnet, "resnet50"), 2048, 224, IMAGENET, TORCHVISION + "resnet50-0676ba61.pth", ("fc.",)),
    # what stands for one network above is asked of timm for each of its own
    "timm.<name>": Backbone(
        "every network of timm (Wightman, PyTorch Image Models, 2019), e.g. timm.vit_small_patch16_224 (Dosovitskiy "
        "et al., ICLR 2021), with its own weights, size, mean, std and pooling", timm_backbone),
}  # fmt: skip


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
        lookup("--arch", name, BACKBONES)
        for suffix in suffixes:
            lookup(f"--arch {arch}: suffix", f"_{suffix}", {f"_{known}": known for known in SUFFIXES})
    poolings = [f"_{suffix}" for suffix in SUFFIXES if suffix in suffixes and suffix in POOLINGS]
    if len(poolings) > 1:
        raise ValueError(f"--arch {arch}: a network has one pooling; keep one of {', '.join(poolings)}")
    return name, set(suffixes)


def select(opt):
    """The network that --arch names, with its published weights unless --not_pretrained, or those of --weights.

    RGB images (B, 3, H, W), uint8 or float in 0..1 → embeddings (B, embed_dim). H = W = --input_size, or the
    network's own.
    """
    if opt.weights == "":
        raise ValueError("--weights: is empty; give a file or an address, or leave the flag away")
    name, suffixes = parse_arch(opt.arch)
    pooling = next((suffix for suffix in suffixes if suffix in POOLINGS), "avg")
    pretrained = not opt.weights and not opt.not_pretrained
    if name.startswith("timm."):
        maps = pooling != "avg"
        backbone = Backbone(**timm_backbone(opt.arch, name.removeprefix("timm."), maps, pretrained, opt.input_size))
    else:
        backbone = BACKBONES[name]
    features = backbone.build()
    if opt.input_size:
        features_of_one(features, opt.input_size, opt.arch)
    source = opt.weights or (backbone.address if pretrained else "")
    if source:
        # .net: timm's, which knows no prefix
        load_backbone(getattr(features, "net", features), source, backbone.not_in_backbone)
    form = dict(frozen="frozen" in suffixes, normalize="normalize" in suffixes, pooling=pooling)
    size = opt.input_size or backbone.input_size
    return EmbeddingNet(features, backbone.width, opt.embed_dim, size, **backbone.wants, **form)
