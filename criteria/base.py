"""What every criterion has: checked input, full precision, logs, and its own parameter groups."""

import torch
from torch import nn


class Criterion(nn.Module):
    """Base class of the losses: subclasses write `loss(embeddings, labels)` and, where they learn, `param_groups(lr)`.

    Calling a criterion with embeddings (B, d) and labels (B,) of classes 0..C-1 gives a scalar. It is computed in
    float32 or better whatever the autocast state: a temperature of 64 turns bf16's last digit into a factor of 1.3.
    """

    name = "criterion"
    n_classes = None  # proxy losses set it; labels are then checked against it

    def __init__(self):
        super().__init__()
        self._logs = {}

    @property
    def logs(self):
        """{name: float} of the last call. Kept on the device until read, so that a training step waits for nothing."""
        return {name: float(value) for name, value in self._logs.items()}

    def log(self, **values):
        self._logs.update({name: v.detach() if torch.is_tensor(v) else v for name, v in values.items()})

    def param_groups(self, lr):
        """The optimizer's groups for the criterion's own parameters, given the network's learning rate."""
        return []

    def forward(self, embeddings, labels):
        self.check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.to(torch.promote_types(embeddings.dtype, torch.float32)), labels)

    def check(self, embeddings, labels):
        if embeddings.ndim != 2 or labels.ndim != 1 or len(embeddings) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{self.name}: expects embeddings (B, d) and labels (B,) with B > 0, "
                f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
            )
        # on a GPU reading the labels back would stall every step; there an index out of range asserts by itself
        if self.n_classes and labels.device.type == "cpu" and not torch.compiler.is_compiling():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(f"{self.name}: labels must be in 0..{self.n_classes - 1}, got {low}..{high}")


def log1p_sum_exp(logits, mask, dim):
    """log(1 + Σ exp(logits)) over the entries of `mask` along `dim`: stable, and 0 with a zero gradient where there are none."""
    lowest = torch.finfo(logits.dtype).min / 2  # not -inf, whose differences are NaN
    return nn.functional.softplus(torch.logsumexp(logits.masked_fill(~mask, lowest), dim))


def make_proxies(n_classes, embed_dim):
    """One learnable proxy a class, (C, d), drawn as by Kaiming for fan-out C, as Proxy-Anchor's authors do."""
    proxies = nn.Parameter(torch.empty(n_classes, embed_dim))
    nn.init.kaiming_normal_(proxies, mode="fan_out")
    return proxies
