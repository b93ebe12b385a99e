"""The bridge to the losses of the library pytorch-metric-learning: --loss pml.<ClassName> --pml_args key=value ..."""

import ast
import copy
import difflib
import inspect

import torch

from criteria.base import Criterion

PREFIX = "pml."
FROM_DATA = ("num_classes", "embedding_size")  # constructor arguments that the data and --embed_dim decide


class PML(Criterion):
    """A loss of pytorch-metric-learning as a criterion: loss(embeddings, labels), without a miner of theirs.

    `.proxies` (C, d) are there where the loss has one vector a class (its `proxies`, or its weights `W` turned round).
    Its own parameters learn at `lr_multi` times the network's rate, without weight decay.
    """

    def __init__(self, name, loss, n_classes=None, lr_multi=2000.0):
        super().__init__()
        self.name, self.inner, self.n_classes, self.lr_multi = name, loss, n_classes, lr_multi

    @property
    def proxies(self):
        if torch.is_tensor(getattr(self.inner, "proxies", None)) and len(self.inner.proxies) == self.n_classes:
            return self.inner.proxies
        if (
            torch.is_tensor(getattr(self.inner, "W", None))
            and self.inner.W.ndim == 2
            and self.inner.W.shape[1] == self.n_classes
        ):
            return self.inner.W.T
        raise AttributeError(f"{self.name} has no proxies, one a class")

    def param_groups(self, lr):
        own = [p for p in self.inner.parameters() if p.requires_grad]
        return [{"params": own, "lr": lr * self.lr_multi, "weight_decay": 0.0}] if own else []

    def loss(self, embeddings, labels):
        value = self.inner(embeddings, labels)
        self.log(pml=value)
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
        names += [
            p.name
            for p in parameters
            if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name not in ("self", *names)
        ]
        if parameters and not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names


def find_pml(flag, name, words):
    """The function (n_classes, embed_dim, lr_multi) → PML for the class `pml.<ClassName>` that `flag` names and its arguments key=value.

    Raises ValueError, one line, if the library is missing, the class or an argument is unknown, or (when it is called)
    the loss cannot be used with embeddings and labels alone.
    """
    try:
        from pytorch_metric_learning import losses
    except ImportError as problem:
        raise ValueError(
            f"{flag} {name}: needs pytorch-metric-learning: pip install pytorch-metric-learning"
        ) from problem
    known = {
        key: value
        for key, value in vars(losses).items()
        if inspect.isclass(value) and issubclass(value, torch.nn.Module)
    }
    wanted = name.removeprefix(PREFIX)
    if wanted not in known:
        near = difflib.get_close_matches(wanted, known, 1, 0.4)
        hint = f" (did you mean {PREFIX}{near[0]}?)" if near else ""
        raise ValueError(
            f"{flag} {name}: pytorch-metric-learning has no loss {wanted}{hint}; known: {', '.join(sorted(known))}"
        )
    given = parse_arguments(words)
    accepted = constructor_arguments(known[wanted])
    for key in given:
        if key not in accepted:
            raise ValueError(f"--pml_args {key}={given[key]}: {wanted} takes {', '.join(accepted)}")
        if key in FROM_DATA:
            raise ValueError(f"--pml_args {key}={given[key]}: comes from the data and --embed_dim; leave it out")

    def build(n_classes, embed_dim, lr_multi=2000.0):
        from_data = {key: value for key, value in zip(FROM_DATA, (n_classes, embed_dim)) if key in accepted}
        step = ""
        try:
            loss = known[wanted](**from_data, **given)
            trial = copy.deepcopy(loss)  # so that a loss which needs more than this is told now
            with torch.random.fork_rng(devices=[]):
                for step in ("", "second step: "):  # some keep a state that the step after cannot do with
                    embeddings = torch.randn(4, embed_dim, requires_grad=True)
                    value = trial(embeddings, torch.tensor([0, 0, 1, 1]) % n_classes)
                    (value + 0 * embeddings.sum()).backward()
        except Exception as problem:  # whatever a foreign class says of its arguments
            line = step + (str(problem).strip() or type(problem).__name__).splitlines()[0].split(". ")[0]
            raise ValueError(
                f"{flag} {name}{''.join(f' {w}' for w in words)}: {wanted} cannot be used so ({line})"
            ) from problem
        return PML(name, loss, n_classes, lr_multi)

    return build
