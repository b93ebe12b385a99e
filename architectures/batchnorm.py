"""BatchNorm where a process, or a chunk of --grad_cache, sees only a part of the batch."""

import torch
import torch.distributed as dist
from torch import nn

from utilities import distributed


def norms_of(model):
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def check_chunks(model, opt):
    """ValueError if --grad_cache would change the gradient: a chunk's BatchNorm statistics are not the batch's."""
    if opt.grad_cache and any(norm.training for norm in norms_of(model.train())):
        raise ValueError(
            f"--grad_cache {opt.grad_cache}: needs BatchNorm with frozen statistics, since those of a chunk are "
            f"not the batch's; give --arch {opt.arch} the suffix _frozen"
        )


def synchronize(model):
    """The model, its BatchNorm with the statistics of all processes' images; torch's own does so on GPUs alone."""
    norms = [norm for norm in norms_of(model) if norm.training]
    if distributed.world() == 1 or not norms:
        return model
    if next(model.parameters()).is_cuda:
        return with_sync_batchnorm(model)
    for norm in norms:
        if type(norm) is not nn.BatchNorm2d:
            raise ValueError(
                f"torchrun on CPUs: {type(norm).__name__} cannot take its statistics from the whole batch; freeze it "
                "with the suffix _frozen of --arch"
            )
        norm.__class__ = WholeBatchNorm2d  # the parameters, statistics and settings stay
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


class WholeBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm2d in training with the statistics of all processes' images; on CPUs, where torch has none."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dtype, x = x.dtype, x.to(torch.promote_types(x.dtype, torch.float32))  # statistics as torch's, never in bf16
        n = x.numel() // x.shape[1] * distributed.world()
        mean = SumOverProcesses.apply(x.sum((0, 2, 3))) / n
        centred = x - mean[:, None, None]
        variance = SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / n
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (n / (n - 1)), self.momentum)
        factor = (self.weight * (variance + self.eps).rsqrt())[:, None, None]
        return (centred * factor + self.bias[:, None, None]).to(dtype)
