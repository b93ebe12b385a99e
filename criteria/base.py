"""What every criterion has: checked input, full precision, logs, and its own parameter groups."""

import importlib.util
import inspect

import torch
from torch import nn
from torch.nn.functional import normalize


class NonFinite(FloatingPointError, ValueError):
    """Embeddings with NaN or infinity: training diverged, or the input was broken."""


class Criterion(nn.Module):
    """Base class of the losses: subclasses write `loss(embeddings, labels)` and, where they learn, `param_groups(lr)`.

    Calling a criterion with embeddings (B, d) and labels (B,) of classes 0..C-1 gives a scalar, finite for a batch of
    one class and one without positive pairs too, in float32, or float64 where they or its parameters are, whatever the
    autocast state: a temperature of 64 turns bf16's last digit into a factor of 1.3. Labels may stay on the CPU.

    ValueError that names the loss for a wrong shape, an empty batch, labels outside 0..C-1 or embeddings with NaN or
    infinity (`NonFinite`). Looking for the last two waits for a GPU: there only calls 1, 101, ... do, none compiled.
    """

    n_classes = embed_dim = None  # labels and embeddings are checked against them where they are known
    mined = False  # True: the number of pairs sets its shapes: not to be compiled, and labels on a GPU make it wait
    compiles = True  # False: not worth compiling, though it mines nothing

    def __init__(self):
        super().__init__()
        self.terms, self.calls = {}, 0

    def log(self, **values):
        # a new dict each time: what the old one held would be a condition on which a compiled loss is compiled again
        self.terms = {name: v.detach() if torch.is_tensor(v) else v for name, v in values.items()}

    @property
    def logs(self):
        """{name: float} of the last call. They stay on the device, as `terms`, until read: a step waits for nothing."""
        return {name: float(value) for name, value in self.terms.items()}

    def note(self, rows):
        """A line on what the last of the rows of metrics.csv shows to be wrong with the loss, "" where nothing is."""
        return ""

    def param_groups(self, lr):
        """The optimizer's groups of the criterion's own parameters, given the network's learning rate lr: proxies learn
        at `lr_multi` times lr, by default 2000 times, which is 2.0 at lr=1e-3."""
        return []

    def forward(self, embeddings, labels):
        self.check(embeddings, labels)
        dtype = torch.float32
        for x in (embeddings, *self.parameters()):
            dtype = torch.promote_types(dtype, x.dtype)
        labels = labels.long()  # as an index uint8 would be a mask
        labels = labels if self.mined else labels.to(embeddings.device, non_blocking=True)
        with torch.autocast(embeddings.device.type, enabled=False):
            return self.loss(embeddings.to(dtype), labels)

    def check(self, embeddings, labels):
        shapes = embeddings.ndim == 2 and labels.shape == embeddings.shape[:1] and len(labels) > 0
        if not shapes or labels.is_floating_point() or self.embed_dim not in (None, embeddings.shape[1]):
            d, got = self.embed_dim or "d", f"{tuple(embeddings.shape)} and {labels.dtype} {tuple(labels.shape)}"
            wanted = f"embeddings (B, {d}) and integer labels (B,) with B > 0"
            raise ValueError(f"{self._get_name()}: takes {wanted}, got {got}")
        if torch.compiler.is_compiling():
            return
        self.calls += 1
        if embeddings.device.type == "cpu" or self.calls % 100 == 1:
            self.check_values(embeddings, labels)

    def check_values(self, embeddings, labels):
        x = embeddings.detach()
        finite = x.to(torch.promote_types(x.dtype, torch.float32)).square().sum(1).isfinite()
        if not finite.all():
            what = "a squared length beyond float32" if embeddings.isfinite().all() else "NaN or infinity in them"
            raise NonFinite(f"{self._get_name()}: {int((~finite).sum())} of {len(finite)} embeddings have {what}")
        if self.n_classes:
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high >= self.n_classes:
                raise ValueError(f"{self._get_name()}: labels must be in 0..{self.n_classes - 1}, got {low}..{high}")


class ProxyCriterion(Criterion):
    """Base class of the losses with one learnable vector a class: write `proxy_loss(embeddings, proxies, labels)`.

    There rows of both are L2-normalised. `.proxies` (C, d) are not; they have no weight decay, learn at `lr_multi`
    times the network's rate, and start normal with standard deviation `std`, by default Kaiming's for fan-out C.
    """

    def __init__(self, n_classes, embed_dim, lr_multi=2000.0, std=None):
        super().__init__()
        self.n_classes, self.embed_dim, self.lr_multi = n_classes, embed_dim, lr_multi
        self.proxies = nn.Parameter((std or (2 / n_classes) ** 0.5) * torch.randn(n_classes, embed_dim))

    def param_groups(self, lr):
        return [{"params": [self.proxies], "lr": lr * self.lr_multi, "weight_decay": 0.0}]

    def loss(self, embeddings, labels):
        proxies = normalize(self.proxies.to(embeddings.dtype), dim=1)
        return self.proxy_loss(normalize(embeddings, dim=1), proxies, labels)


def need_package(owner, module, package):
    """ValueError, one line, where the module cannot be imported."""
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"{owner}: needs {package}: pip install {package}")


def need(owner, low=1e-9, high=1e9, **arguments):
    """ValueError for an argument outside [low, high], by default one that leaves no gradient or overflows float32."""
    for name, value in arguments.items():
        if not low <= value <= high:
            bounds = "positive" if low == 1e-9 else f"from {low:g} to {high:g}"
            raise ValueError(f"{owner._get_name()}: {name} must be {bounds}, got {value:g}")


def need_choice(owner, *choices, **arguments):
    """ValueError, one line, for an argument that is none of the choices."""
    for name, value in arguments.items():
        if value not in choices:
            raise ValueError(f"{owner._get_name()}: {name} must be one of {', '.join(choices)}, got {value}")


def squared_distances(x):
    """Squared Euclidean distances (B, B) of the rows of x (B, d), of length 1 or 0, accurate down to 1e-6 apart: in
    float64, whose rounding counts as 0. Float32's is that of a distance of 3e-4, where a collapsing model is."""
    wide = x.detach().double()
    products = wide @ wide.T
    norms = products.diagonal().clone()
    squared = products.mul_(-2).add_(norms).add_(norms[:, None])
    return squared.masked_fill_(squared < 2e-15, 0).to(x.dtype)


class Distances(torch.autograd.Function):
    """Euclidean distances (B, B) of the rows of x (B, d); coincident rows have distance 0 with gradient 0. torch.cdist
    loses the gradient near collapse, and autograd through float64 takes twice the time."""

    @staticmethod
    def forward(ctx, x):
        distance = squared_distances(x).sqrt()  # not in place: compiled by torch 2.11 it would have no gradient
        ctx.save_for_backward(x, distance)
        return distance

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, distance = ctx.saved_tensors
        weight = torch.where(distance > 0, grad / distance, 0)
        weight = weight + weight.T
        x = x - x[:1]  # Σ_j w_ij (x_i - x_j) does not see the shift, and the products are as small as the spread
        with torch.autocast(x.device.type, enabled=False):
            return weight.sum(1, keepdim=True) * x - weight @ x


def distances(embeddings):
    """Euclidean distances (B, B) of the L2-normalised embeddings (B, d), exact near collapse; differentiable (once)."""
    return Distances.apply(normalize(embeddings, dim=1))


def pair_masks(labels):
    """(B, B) masks of the positive pairs (same class, not the same image) and of the negative pairs."""
    same = labels[:, None] == labels[None, :]
    return same.clone().fill_diagonal_(False), ~same


def lowest(x):
    """A stand-in for -infinity in a logsumexp: the difference of two is 0, not NaN."""
    return torch.finfo(x.dtype).min / 2


def mean_of_positive(terms):
    """The mean of the entries above 0; 0 with a zero gradient where there are none."""
    return terms.sum() / (terms > 0).sum().clamp(min=1)


def arguments_of(make):
    """Names of the arguments that a function or class takes, those that a constructor hands on as **kwargs included."""
    names = []
    for part in [p for p in make.__mro__ if "__init__" in vars(p)] if isinstance(make, type) else [make]:
        arguments = inspect.signature(part).parameters.values()
        names += [a.name for a in arguments if a.kind in (a.POSITIONAL_OR_KEYWORD, a.KEYWORD_ONLY)]
        if not any(a.kind is a.VAR_KEYWORD for a in arguments):
            break
    return list(dict.fromkeys(names))
