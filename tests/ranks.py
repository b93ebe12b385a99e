"""What tests/test_distributed.py compares: epochs of training and parts of them, on one process or one of several."""

import os

import torch
from torch import nn

import architectures
import criteria
import evaluation
import main
import parameters
from architectures import batchnorm
from architectures.conv4 import conv4
from utilities import distributed
from utilities.run import Run
from utilities.signals import Signals

BS, CLASSES = 24, 6  # images a batch, classes
CPU = torch.device("cpu")
CASES = {  # name: (flags, network, steps of each of two epochs where they are not 1 and 2)
    "margin": ("--loss margin --batch_mining distance", "plain"),
    "proxyanchor": ("--loss proxyanchor", "plain"),
    "proxyanchor, frozen, warm-up": ("--loss proxyanchor --warmup 1", "frozen"),
    "proxyanchor, parameters that do nothing": ("--loss proxyanchor", "unused"),
    "antico": ("--loss antico", "plain"),
    "antico_pair": ("--loss antico_pair --antico_w 3 --warmup 1", "plain"),
    "guard": ("--loss antico_pair --antico_target 0.95", "plain", (1, 19)),
    "antico_batch_proxy": ("--loss antico_batch_proxy", "frozen"),
    "antico_all_proxy": ("--loss antico_all_proxy", "plain"),
    "antico_class_means": ("--loss antico_class_means", "plain"),
    "grad_cache that divides": ("--loss antico_pair --grad_cache 4", "frozen"),
    "grad_cache that does not": ("--loss margin --grad_cache 5 --warmup 1", "frozen"),
}


class Maps(nn.Module):
    """As a network of timm that gives its maps: what follows them is there and not used."""

    def __init__(self):
        super().__init__()
        self.maps, self.net, self.head = True, conv4(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.net(x)


def network(kind="plain"):
    """conv4 with 4 channels instead of 64, in float64; its BatchNorm is frozen unless the kind is "plain"."""
    torch.manual_seed(1)
    features = Maps() if kind == "unused" else conv4(4)
    return architectures.EmbeddingNet(features, 4, 8, input_size=16, frozen=kind != "plain").double()


def batch(number):
    """Images and labels of a whole batch, each image nearer to its class's than to others."""
    generator = torch.Generator().manual_seed(number)
    labels = torch.randint(CLASSES, (BS // 2,), generator=generator).repeat_interleave(2)
    prototypes = torch.rand(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    images = 0.5 * prototypes[labels] + 0.5 * torch.rand(BS, 3, 16, 16, generator=generator)
    return (255 * images).to(torch.uint8), labels


def share(values):
    """This process's rows of a whole batch."""
    rows = len(values) // distributed.world()
    return values[distributed.rank() * rows :][:rows]


class Batches:
    """Sampler and loader of a run: `n_batches` an epoch, all different."""

    n_batches = 1

    def set_epoch(self, epoch, start=0):
        self.epoch, self.start = epoch, start

    def __iter__(self):
        return (map(share, batch(100 * self.epoch + step)) for step in range(self.start, self.n_batches))


def make_run(flags, model, dtype=None, scaler=None):
    """A run in the model's precision, for main.train_epoch."""
    fixed = "--embed_dim 8 --lr 1e-3 --loss_oproxy_lrmulti 10".split()
    opt, batches = parameters.parse([*fixed, *flags.split()]), Batches()
    torch.manual_seed(2)
    criterion = criteria.select(opt, CLASSES).to(next(model.parameters()).dtype)
    kind = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}[opt.optim]
    optimizer = kind(model.param_groups(opt.lr) + criterion.param_groups(opt.lr), lr=opt.lr)
    return Run(
        opt=opt, device=CPU, dtype=dtype, signals=Signals(), model=model, compiled=opt.compile == "on",
        criterion=criterion, scaler=scaler or torch.amp.GradScaler("cpu", enabled=False), optimizer=optimizer,
        sampler=batches, scheduler=torch.optim.lr_scheduler.MultiStepLR(optimizer, []), loader=batches,
        facts={"arch": "conv4", "embed_dim": 8},
    )  # fmt: skip


def train_epoch(run, epoch, steps=1):
    """The mean loss of an epoch of so many steps, which is then over."""
    run.sampler.n_batches = steps
    loss = main.train_epoch(run, epoch)["loss"]
    run.epoch, run.step, run.sums = epoch, 0, {}
    return loss


def gradients(run):
    """Those of the last step."""
    parameters = {**dict(run.model.named_parameters()), **dict(run.criterion.named_parameters(prefix="criterion"))}
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def train(flags, kind, steps=(1, 2)):
    """Losses, gradients of the first step, and last weights."""
    run = make_run(flags, batchnorm.synchronize(network(kind)))
    losses, first = [], None
    for epoch, number in enumerate(steps, 1):
        losses.append(train_epoch(run, epoch, number))
        first = first or gradients(run)
    return {"losses": losses, "first": first, "model": run.model.state_dict(), "criterion": run.criterion.state_dict()}


def whole_batch_norm(dtype, norm, *places):
    """BatchNorm over the whole batch: value, gradients and running statistics."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(12, 5, *places, generator=generator) for _ in range(2))
    norm = batchnorm.synchronize(nn.Sequential(norm(5)))[0]
    x = share((3 + 2 * x).to(dtype)).requires_grad_()
    y = norm(x)
    (y * share(weight)).sum().backward()
    whole = [distributed.gather(t.detach()).float() for t in (y, x.grad)]
    return [*whole, norm.running_mean, norm.running_var, str(y.dtype)]


class Pixels(torch.utils.data.Dataset):
    """n images whose first pixel says which they are."""

    def __init__(self, n):
        self.labels = torch.arange(n) % 7

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.full((3, 16, 16), i, dtype=torch.uint8), int(self.labels[i])


def everything():
    torch.set_num_threads(1)
    sizes = (1, 2, 11, 12)  # the number of processes does not divide all of them, and one of them is smaller than it
    norms = [(torch.float32, nn.BatchNorm1d), *((t, nn.BatchNorm2d, 3, 4) for t in (torch.float32, torch.bfloat16))]
    return {
        "train": {name: train(*case) for name, case in CASES.items()},
        "batchnorm": [whole_batch_norm(*norm) for norm in norms],
        "embeddings": {n: evaluation.embed(network().eval().float(), Pixels(n), batch_size=3) for n in sizes},
    }


def write_everything(argv):
    """The program of one process: what `everything` gives, in the folder argv[0]."""
    with distributed.processes(CPU):
        torch.save(everything(), os.path.join(argv[0], f"{distributed.rank()}.pt"))
    return 0
