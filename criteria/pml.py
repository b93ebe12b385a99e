"""The losses of pytorch-metric-learning, or of anybody, as criteria: --loss pml.<ClassName> --pml_args key=value ..."""

import ast
import copy
import inspect

import torch

from criteria.base import Criterion, need_range
from utilities.registry import lookup

PREFIX = "pml."
FROM_DATA = ("num_classes", "embedding_size")  # constructor arguments that the data and --embed_dim decide


class ModuleLoss(Criterion):
    """Any module (embeddings (B, d), labels (B,)) → scalar as a criterion; its miners, if any, are its own affair.

    `.proxies` (C, d) are there where the module has one vector a class: its `proxies`, or its weights `W` (d, C) turned
    round. Its parameters learn at `lr_multi` times the network's rate, without weight decay.

    n_classes : C; by default the module's `num_classes`, without which its vectors are taken for one a class.
    """

    def __init__(self, module, n_classes=None, lr_multi=2000.0, name=None):
        super().__init__()
        self.inner, self.lr_multi, self.name = module, lr_multi, name or type(module).__name__
        self.n_classes = n_classes or getattr(module, "num_classes", None) or None  # some of theirs have a 0 there
        if hasattr(self, "proxies"):
            self.n_classes, self.embed_dim = self.proxies.shape

    @property
    def proxies(self):
        proxies, weights = (getattr(self.inner, name, None) for name in ("proxies", "W"))
        vectors = proxies if torch.is_tensor(proxies) else weights.T if torch.is_tensor(weights) else None
        if vectors is None or vectors.ndim != 2 or self.n_classes not in (None, len(vectors)):
            raise AttributeError(f"{self.name} has no proxies, one a class")
        return vectors

    def param_groups(self, lr):
        own = [p for p in self.inner.parameters() if p.requires_grad]
        return [{"params": own, "lr": lr * self.lr_multi, "weight_decay": 0.0}] if own else []

    def loss(self, embeddings, labels):
        value = self.inner(embeddings, labels)
        self.log(value=value)
        return value + 0 * embeddings.sum()  # a batch without pairs gives them a constant 0, on which backward fails


def parse_arguments(words):
    """['m=0.4', 'distance=x'] → {'m': 0.4, 'distance': 'x'}: Python literals where they are such, else text."""
    arguments = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--pml_args {word}: must be key=value, e.g. margin=0.2")
        try:
            arguments[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            arguments[key] = text
    return arguments


def constructor_arguments(cls):
    """Names that cls(...) takes, those which it hands on to its base classes as **kwargs included."""
    names = []
    for parent in cls.__mro__:
        parameters = inspect.signature(parent.__init__).parameters.values() if "__init__" in vars(parent) else ()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        names += [name for name in named if name not in ("self", *names)]
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def find_class(flag, name):
    """The class that `pml.<ClassName>` names. ValueError, one line, if the library is missing or has no such loss."""
    try:
        from pytorch_metric_learning import losses
    except ImportError as problem:
        line = f"{flag} {name}: needs pytorch-metric-learning: pip install pytorch-metric-learning"
        raise ValueError(line) from problem
    classes = {PREFIX + key: value for key, value in vars(losses).items() if inspect.isclass(value)}
    return lookup(flag, name, {key: value for key, value in classes.items() if issubclass(value, torch.nn.Module)})


def library_loss(
    flag,
    name,
    n_classes,
    embed_dim,
    arguments=(),  # --pml_args: arguments KEY=VALUE of that class's constructor, e.g. m=0.4 gamma=80
    lr_multi=2000.0,  # --pml_lrmulti: what such a loss learns itself learns at this times --lr
):
    """The ModuleLoss of the class `pml.<ClassName>` that `flag` names, made with these arguments, words key=value.

    Raises ValueError, one line, if the library is missing, the class or an argument is unknown, or the loss cannot be
    used with embeddings and labels alone.
    """
    need_range(pml_lrmulti=lr_multi)
    cls, chosen = find_class(flag, name), parse_arguments(arguments)
    accepted = constructor_arguments(cls)
    for key, value in chosen.items():
        if key not in accepted:
            raise ValueError(f"--pml_args {key}={value}: {cls.__name__} takes {', '.join(accepted)}")
        if key in FROM_DATA:
            raise ValueError(f"--pml_args {key}={value}: comes from the data and --embed_dim; leave it out")
    from_data = {key: value for key, value in zip(FROM_DATA, (n_classes, embed_dim)) if key in accepted}
    step = ""
    try:
        loss = cls(**from_data, **chosen)
        trial = copy.deepcopy(loss)  # so that a loss which needs more than this is told now
        with torch.random.fork_rng(devices=[]):
            for step in ("", "second step: "):  # some keep a state that the step after cannot do with
                embeddings = torch.randn(4, embed_dim, requires_grad=True)
                value = trial(embeddings, torch.tensor([0, 0, 1, 1]) % n_classes)
                (value + 0 * embeddings.sum()).backward()
    except Exception as problem:  # whatever a foreign class says of its arguments
        line = step + (str(problem).strip() or type(problem).__name__).splitlines()[0].split(". ")[0]
        words = " ".join([name, *arguments])
        raise ValueError(f"{flag} {words}: {cls.__name__} cannot be used so ({line})") from problem
    return ModuleLoss(loss, n_classes, lr_multi, name)
