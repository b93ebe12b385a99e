"""The optimizer of a run, with its schedule of learning rates and its scaler of losses."""

import torch

KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def select(opt, model, criterion, device, dtype):
    """(optimizer, scheduler, scaler) of the flags; dtype: of mixed precision, None for float32.

    The network's head learns with --fc_lr where that is not negative, a criterion's own parameters as it says itself.
    """
    groups = model.param_groups(opt.lr, None if opt.fc_lr < 0 else opt.fc_lr) + criterion.param_groups(opt.lr)
    momentum = {"momentum": 0.9} if opt.optim == "sgd" else {}
    optimizer = KINDS[opt.optim](groups, lr=opt.lr, weight_decay=opt.decay, fused=True, **momentum)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, opt.tau if opt.scheduler == "step" else [], opt.gamma)
    return optimizer, scheduler, torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
