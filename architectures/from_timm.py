"""Every network of timm as timm.<name>, e.g. timm.vit_small_patch16_224 or timm.vit_base_patch16_clip_224.openai."""

from importlib.util import find_spec

from torch import nn

from utilities.command_line import near


class TimmFeatures(nn.Module):
    """A timm network without its classifier: images (B, 3, H, W) → (B, width), or with `maps` (B, width, h, w)."""

    def __init__(self, net, maps):
        super().__init__()
        self.net, self.maps, self.channels_last = net, maps, getattr(net, "output_fmt", "NCHW") == "NHWC"

    def forward(self, images):
        if not self.maps:
            return self.net(images)
        maps = self.net.forward_features(images)
        return maps.permute(0, 3, 1, 2) if self.channels_last else maps


def check_name(name):
    """ValueError, one line, if timm is missing or has no network of that name, "timm." before it."""
    known, wrong = [], "needs timm: pip install timm"
    if find_spec("timm"):
        import timm

        known = [f"timm.{known}" for known in timm.list_models() + timm.list_models(pretrained=True)]
        wrong = f"timm {timm.__version__} has no such network"
    if name not in known:
        raise ValueError(f"--arch {name}: {wrong}{near(name, known, 3, 0.6)}")


def do_not_wait_for_the_hub():
    """Where huggingface_hub's host gives no answer, take its cache alone: it would ask for 47 seconds or more."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=10)  # through the user's proxy, to the user's mirror
    except Exception:  # of requests, httpx or what else is behind the session
        constants.HF_HUB_OFFLINE = True


def timm_backbone(name, maps, pretrained, input_size=None):
    """The fields of a Backbone for timm's `name`: mean, std and size from its pretrained_cfg.

    `maps`: give feature maps to pool, not what the network pools itself.
    `input_size`: of the images instead of its own; where that is fixed, its position embedding is resampled.
    """
    import timm

    name = name.removeprefix("timm.")
    sized = {"img_size": input_size} if input_size and timm.get_pretrained_cfg(name).fixed_input_size else {}
    if pretrained:
        do_not_wait_for_the_hub()
    net = timm.create_model(name, pretrained=pretrained, **sized)  # whole, so that timm compares every key it downloads
    with_classifier = net.state_dict().keys()
    net.reset_classifier(0)
    config = net.pretrained_cfg
    wants, of_classifier = dict(mean=config["mean"], std=config["std"]), with_classifier - net.state_dict().keys()
    return dict(about=name, build=lambda: TimmFeatures(net, maps), input_size=config["input_size"][2], wants=wants,
                not_in_backbone=tuple(of_classifier))  # fmt: skip
