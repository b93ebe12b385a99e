"""The losses of pytorch-metric-learning, or of anybody, as criteria: --loss pml.<ClassName> --pml_args key=value ..."""

import ast
import contextlib
import copy

import torch

from criteria.base import Criterion, arguments_of, need_package
from utilities.command_line import lookup


def differ(loss, embeddings, labels):
    return not (loss.distance(embeddings.detach()).fill_diagonal_(0).abs() > 1 - 1e-6).any()


NEEDS = {  # what losses of pytorch-metric-learning need of a batch; without it they give an error or NaN
    "HistogramLoss": (differ, "embeddings that differ, and two are equal"),
    "NCALoss": (lambda loss, x, y: len(y.unique()) < len(y), "two images of a class"),
    "SmoothAPLoss": (lambda loss, x, y: len({*y.bincount().tolist()} - {0}) == 1, "equally many images of each class"),
    "TupletMarginLoss": (differ, "embeddings that differ, and two are equal"),
}


class ModuleLoss(Criterion):
    """Any module (embeddings (B, d), labels (B,)) → scalar as a criterion; its miners, if any, are its own affair.

    `.proxies` (C, d) are there where the module has one vector a class: its `proxies`, or its weights `W` (d, C) turned
    round. C is n_classes, by default the module's `num_classes`, without which its vectors are taken for one a class.
    Its parameters learn at `lr_multi` times the network's rate, without weight decay.
    """

    def __init__(self, module, n_classes=None, lr_multi=2000.0):
        super().__init__()
        self.inner, self.lr_multi, self.mined = module, lr_multi, True  # it may mine
        self.n_classes = n_classes or getattr(module, "num_classes", None) or None  # some of theirs have a 0 there
        if hasattr(self, "proxies"):
            self.n_classes, self.embed_dim = self.proxies.shape

    def _get_name(self):  # what errors call it
        return type(self.inner).__name__ if "inner" in self._modules else "ModuleLoss"

    @property
    def proxies(self):
        proxies, weights = (getattr(self.inner, name, None) for name in ("proxies", "W"))
        vectors = proxies if torch.is_tensor(proxies) else weights.T if torch.is_tensor(weights) else None
        if vectors is None or vectors.ndim != 2 or self.n_classes not in (None, len(vectors)):
            raise AttributeError(f"{self._get_name()} has no proxies, one a class")
        return vectors

    def param_groups(self, lr):
        own = [p for p in self.inner.parameters() if p.requires_grad]
        return [{"params": own, "lr": lr * self.lr_multi, "weight_decay": 0.0}] if own else []

    def loss(self, embeddings, labels):
        labels = labels.to(embeddings.device, non_blocking=True)
        fits, needed = NEEDS.get(self._get_name(), (None, ""))
        if fits and not fits(self.inner, embeddings, labels):
            raise ValueError(f"{self._get_name()}: each batch needs {needed}")
        value = self.inner(embeddings, labels)
        self.log(value=value)
        return value + 0 * embeddings.sum()  # a batch without pairs gives them a constant 0, on which backward fails


def parsed(word):
    """The word m=0.4 → ("m", 0.4): a Python literal where it is one, else text."""
    key, _, value = word.partition("=")
    with contextlib.suppress(ValueError, SyntaxError):
        value = ast.literal_eval(value)
    return key, value


def library_loss(name, n_classes, embed_dim, args=(), lr_multi=2000.0):
    """Any loss of pytorch-metric-learning, its arguments in --pml_args (Musgrave et al., 2020).

    The ModuleLoss of the class `name`, made with `args`, words key=value, and the data's n_classes and embed_dim where
    it asks for them. ValueError, one line, if there is no such loss, or it does not take the arguments or two batches.
    """
    need_package(f"pml.{name}", "pytorch_metric_learning", "pytorch-metric-learning")
    from pytorch_metric_learning import losses

    classes = {n: c for n, c in vars(losses).items() if isinstance(c, type) and issubclass(c, torch.nn.Module)}
    make = lookup("pytorch-metric-learning loss", name, classes)
    facts = dict(num_classes=n_classes, embedding_size=embed_dim)
    facts = {key: value for key, value in facts.items() if key in arguments_of(make)}
    embeddings = torch.arange(4.0 * embed_dim).sin().view(4, embed_dim).requires_grad_()
    try:
        loss = ModuleLoss(make(**dict(map(parsed, args)), **facts), n_classes, lr_multi)
        tried = copy.deepcopy(loss)
        for _ in range(2):
            tried(embeddings, torch.arange(4) // 2 % n_classes).backward()
    except (TypeError, ValueError, RuntimeError) as problem:
        raise ValueError(f"pml.{name}: {' '.join(str(problem).split()) or type(problem).__name__}") from problem
    return loss
