"""What every criterion has: checked input, full precision, logs, and its own parameter groups."""

import torch
from torch import nn
from torch.nn.functional import normalize


class NonFinite(ValueError):
    """Embeddings with NaN or infinity: training diverged, or the input was broken."""


class Criterion(nn.Module):
    """Base class of the losses: subclasses write `loss(embeddings, labels)` and, where they learn, `param_groups(lr)`.

    Calling a criterion with embeddings (B, d) and labels (B,) of classes 0..C-1 gives a scalar. It is computed in
    float32 or better whatever the autocast state: a temperature of 64 turns bf16's last digit into a factor of 1.3.
    A batch of one class, or one without any positive pair, gives a finite loss (0 where nothing is to be compared).

    Raises
    ------
    ValueError
        Naming the loss: for a wrong shape, an empty batch, labels outside 0..C-1 or embeddings that are not finite
        (`NonFinite`). On a GPU the last two are looked at in the first call and every 100th after it, since looking
        waits for the device; a compiled criterion does not look.
    """

    name = "criterion"
    n_classes = None  # labels are checked against it where it is known (`select` sets it)
    embed_dim = None  # likewise; losses with proxies set it

    def __init__(self):
        super().__init__()
        self._logs, self.calls = {}, 0

    @property
    def logs(self):
        """{name: float} of the last call. Kept on the device until read, so that a training step waits for nothing."""
        return {name: float(value) for name, value in self._logs.items()}

    @property
    def terms(self):
        """{name: number or 0-dimensional tensor} of the last call, where it was computed: reading it waits for nothing."""
        return self._logs

    def log(self, **values):
        # a new dict each time: what the old one held would be a condition on which a compiled loss is compiled again
        self._logs = {name: v.detach() if torch.is_tensor(v) else v for name, v in values.items()}

    def param_groups(self, lr):
        """The optimizer's groups for the criterion's own parameters, given the network's learning rate."""
        return []

    def forward(self, embeddings, labels):
        self.check(embeddings, labels)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(full_precision(embeddings), labels)

    def check(self, embeddings, labels):
        if embeddings.ndim != 2 or labels.ndim != 1 or len(embeddings) != len(labels) or len(labels) == 0:
            raise ValueError(
                f"{self.name}: expects embeddings (B, d) and labels (B,) with B > 0, "
                f"got {tuple(embeddings.shape)} and {tuple(labels.shape)}"
            )
        if labels.is_floating_point():
            raise ValueError(f"{self.name}: labels must be integers, got {labels.dtype}")
        if self.embed_dim not in (None, embeddings.shape[1]):
            raise ValueError(f"{self.name}: expects embeddings of {self.embed_dim} dimensions (--embed_dim), got {embeddings.shape[1]}")
        if torch.compiler.is_compiling():
            return
        self.calls += 1
        if embeddings.device.type == "cpu" or self.calls % 100 == 1:
            self.check_values(embeddings, labels)

    def check_values(self, embeddings, labels):
        finite = embeddings.detach().isfinite().all(1)
        if not finite.all():
            raise NonFinite(f"{self.name}: {int((~finite).sum())} of {len(finite)} embeddings have NaN or infinity in them")
        if self.n_classes:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(f"{self.name}: labels must be in 0..{self.n_classes - 1}, got {low}..{high}")


class ProxyCriterion(Criterion):
    """Base class of the losses with one learnable vector a class: subclasses write `proxy_loss(embeddings, proxies, labels)`.

    There rows of both are L2-normalised. `.proxies` (C, d) are the parameters, not normalised; they have no weight
    decay and learn at `lr_multi` times the network's rate.
    """

    def __init__(self, n_classes, embed_dim, lr_multi=2000.0):
        super().__init__()
        self.n_classes, self.embed_dim, self.lr_multi = n_classes, embed_dim, lr_multi
        # drawn as by Kaiming for fan-out C, as Proxy-Anchor's authors do
        self.proxies = nn.Parameter(torch.empty(n_classes, embed_dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out")

    def param_groups(self, lr):
        return [{"params": [self.proxies], "lr": lr * self.lr_multi, "weight_decay": 0.0}]

    def loss(self, embeddings, labels):
        return self.proxy_loss(normalize(embeddings, dim=1), normalize(self.proxies, dim=1), labels)


def full_precision(x):
    """x in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def pair_masks(labels):
    """(B, B) masks of the positive pairs (same class, not the same image) and of the negative pairs."""
    same = labels[:, None] == labels[None, :]
    return same.clone().fill_diagonal_(False), ~same


def log1p_sum_exp(logits, mask, dim):
    """log(1 + Σ exp(logits)) over the entries of `mask` along `dim`: stable, and 0 with a zero gradient where there are none."""
    return nn.functional.softplus(torch.logsumexp(logits.masked_fill(~mask, lowest(logits)), dim))


def lowest(x):
    """What stands for -infinity in a logsumexp: its differences are not NaN."""
    return torch.finfo(x.dtype).min / 2


def mean_of_positive(terms):
    """The mean of the entries above 0; 0 with a zero gradient where there are none."""
    return terms.sum() / (terms > 0).sum().clamp(min=1)
