"""Every network of timm as timm.<name>, e.g. timm.vit_small_patch16_224 or timm.vit_base_patch16_clip_224.openai."""

import contextlib

from torch import nn

from architectures.embedding import features_of_one, refused
from architectures.weights import WAY_OUT, first_line
from utilities.registry import near

SECONDS = 10  # to wait for an answer; huggingface_hub's own limit for a file's header


class TimmFeatures(nn.Module):
    """A timm network without its classifier: normalised images (B, 3, H, W) → what it pools itself (B, width),
    or with `maps` its last feature maps (B, width, h, w)."""

    def __init__(self, net, maps):
        super().__init__()
        self.net, self.maps, self.channels_last = net, maps, getattr(net, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images):
        if not self.maps:
            return self.net(images)
        maps = self.net.forward_features(images)
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps


def check_name(arch, name):
    """ValueError, one line, if timm is missing or has no network of that name."""
    try:
        import timm
    except ImportError as problem:
        raise ValueError(f"--arch {arch}: needs timm ({first_line(problem)}): pip install timm") from problem
    base, _, tag = name.partition(".")
    tagged = timm.list_models(pretrained=True)
    if not timm.is_model(base):
        hint = near(f"timm.{name}", [f"timm.{known}" for known in timm.list_models() + tagged], 3, 0.6)
        raise ValueError(f"--arch {arch}: timm {timm.__version__} has no network {name}{hint}")
    if tag and name not in tagged:
        hint = near(f"timm.{name}", [f"timm.{other}" for other in tagged if other.partition(".")[0] == base], 3, 0)
        raise ValueError(f"--arch {arch}: timm {timm.__version__} has no weights {tag} of {base}{hint}")


@contextlib.contextmanager
def quick_hub():
    """Let huggingface_hub ask its cache alone where its host gives no answer; yields "", or a line that says why.

    By itself it asks for each of two files six times over 25 seconds, and writes two lines each time.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    offline, reason = constants.HF_HUB_OFFLINE, ""
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)  # through the user's proxy, to the user's mirror
    except Exception as problem:  # of requests, httpx or what else is behind the session
        reason = f"no answer from {constants.ENDPOINT}: {first_line(problem)}"
        constants.HF_HUB_OFFLINE = True
    try:
        yield reason
    finally:
        constants.HF_HUB_OFFLINE = offline


def create(arch, name, pretrained, input_size):
    """timm's network with its classifier, so that timm compares every key of its download."""
    import timm

    made_for = {"img_size": input_size} if input_size and timm.get_pretrained_cfg(name).fixed_input_size else {}
    with quick_hub() if pretrained else contextlib.nullcontext() as unreachable:
        try:
            return timm.create_model(name, pretrained=pretrained, **made_for)
        except Exception as problem:
            if made_for and isinstance(problem, (TypeError, AssertionError)):
                raise refused(arch, input_size, problem) from problem
            if not pretrained:
                raise
            reason = unreachable or first_line(problem)
            raise ValueError(f"the weights of --arch {arch} cannot be had ({reason}): {WAY_OUT}") from problem


def timm_backbone(arch, name, maps, pretrained, input_size=None):
    """The fields of a Backbone for timm's `name`: mean, std, size from its pretrained_cfg, width from what it gives.

    `maps`: give feature maps to pool, not what the network pools itself; ValueError for one that has tokens.
    `input_size`: of the images instead of its own; a network made for one size is made for this one, its position
    embedding resampled. ValueError if that cannot be.
    """
    net = create(arch, name, pretrained, input_size)
    with_classifier = net.state_dict().keys()
    net.reset_classifier(0)
    config = net.pretrained_cfg
    _, height, width = config["input_size"]
    if height != width:
        problem = f"takes images of {height} x {width} pixels; the data sets here give square ones"
        raise ValueError(f"--arch {arch}: {problem}")
    features = TimmFeatures(net, maps)
    shape = getattr(features_of_one(features, input_size or width, arch), "shape", ())  # some give a list of token maps
    if maps and len(shape) != 4:
        problem = f"{name} gives tokens, not a feature map to pool"
        raise ValueError(f"--arch {arch}: {problem}; leave the pooling suffix away for its own pooling")
    classifier = config["classifier"] or ()
    classifier = [layer + "." for layer in ((classifier,) if isinstance(classifier, str) else classifier)]
    return dict(
        about=f"timm's {name}",
        build=lambda: features,
        width=shape[1],
        input_size=input_size or width,
        wants=dict(mean=config["mean"], std=config["std"]),
        not_in_backbone=(*classifier, *(with_classifier - net.state_dict().keys())),
    )
