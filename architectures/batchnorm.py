"""BatchNorm where a process, or a chunk of --grad_cache, sees only a part of the batch."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import batch_norm

from architectures.embedding import norms_of
from utilities import distributed


def check_chunks(model, opt):
    """ValueError if BatchNorm would take its statistics from a chunk of --grad_cache, or from a single image."""
    if any(norm.training for norm in norms_of(model.train())):
        part, flag = ("a chunk", f"grad_cache {opt.grad_cache}") if opt.grad_cache else ("one image", f"bs {opt.bs}")
        reason = f"the statistics of {part} are not a batch's; give --arch {opt.arch} the suffix _frozen"
        raise ValueError(f"--{flag}: needs BatchNorm with frozen statistics: {reason}")


def synchronize(model):
    """The model, with its unfrozen BatchNorm taking the statistics of all processes' images."""
    norms = [norm for norm in norms_of(model) if norm.training]
    if distributed.world() == 1 or not norms:
        return model
    if next(model.parameters()).is_cuda:
        return with_sync_batchnorm(model)
    for norm in norms:
        norm.__class__ = WholeBatchNorm  # the parameters, statistics and settings stay
    return model


def with_sync_batchnorm(model):
    """The model with SyncBatchNorm for each BatchNorm."""
    convert = nn.SyncBatchNorm.convert_sync_batchnorm
    if not {type(norm) for norm in norms_of(model)} <= {nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d}:
        from timm.layers import convert_sync_batchnorm as convert  # torch's would drop the activation inside timm's
    return convert(model)


class SumOverProcesses(torch.autograd.Function):
    """The gradient of a sum that all processes use is the sum of their gradients."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return SumOverProcesses.apply(gradient)


class WholeBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm in training with the statistics of all processes' images; on CPUs, for which torch has none."""

    def forward(self, x):
        y = self.normalized(x) if self.training else batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)  # fmt: skip
        return self.act(self.drop(y)) if hasattr(self, "act") else y  # timm's include what follows them

    def normalized(self, x):
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # statistics as torch's, never in bf16
        places, channels = [0, *range(2, x.ndim)], [-1, *[1] * (x.ndim - 2)]
        n = x.numel() // x.shape[1] * distributed.world()
        mean = SumOverProcesses.apply(x.sum(places)) / n
        centred = x - mean.view(channels)
        variance = SumOverProcesses.apply(centred.square().sum(places)) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        factor = self.weight * (variance + self.eps).rsqrt()
        return (centred * factor.view(channels) + self.bias.view(channels)).to(dtype)
