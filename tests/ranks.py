"""What tests/test_distributed.py compares: training steps and parts of them, on one process or on one of several."""

import argparse
import os
from types import SimpleNamespace

import torch
from torch import nn

import architectures
import criteria
import evaluation
import main
import parameters
from architectures.conv4 import conv4
from utilities import batchnorm, distributed, optimizers, state
from utilities.profile import Profile

BS, CLASSES, STEPS = 24, 6, 10
CPU = torch.device("cpu")
# name: (flags, frozen BatchNorm, epochs of warm-up)
CASES = {
    "margin": ("--loss margin --batch_mining distance", False, 0),
    "proxyanchor": ("--loss proxyanchor", False, 0),
    "proxyanchor, frozen, warm-up": ("--loss proxyanchor", True, 1),
    "antico": ("--loss antico", False, 0),
    "antico_pair": ("--loss antico_pair", False, 1),
    "antico_batch_proxy": ("--loss antico_batch_proxy", True, 0),
    "antico_all_proxy": ("--loss antico_all_proxy", False, 0),
    "antico_class_means": ("--loss antico_class_means", False, 0),
    "grad_cache that divides": ("--loss antico_pair --grad_cache 4", True, 0),
    "grad_cache that does not": ("--loss margin --grad_cache 5", True, 1),
}


def network(frozen, dropout=0.0):
    """conv4 with 4 channels instead of 64, in float64."""
    torch.manual_seed(1)
    features = nn.Sequential(conv4(4), nn.Dropout(dropout))
    return architectures.EmbeddingNet(features, 4, 8, input_size=16, frozen=frozen).double()


def batch(step):
    """Images and labels of a whole batch, each image nearer to its class's than to others."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BS // 2,), generator=generator).repeat_interleave(2)
    prototypes = torch.rand(CLASSES, 3, 16, 16, generator=torch.Generator().manual_seed(99))
    images = 0.5 * prototypes[labels] + 0.5 * torch.rand(BS, 3, 16, 16, generator=generator)
    return (255 * images).to(torch.uint8), labels


def make_run(flags, model, optim="adam", dtype=None, scaler=None, **more):
    """The parts of main.Run that a training step takes, in the model's precision."""
    opt = parameters.parse(
        [*flags.split(), "--embed_dim", "8", "--lr", "1e-3", "--optim", optim, "--loss_oproxy_lrmulti", "10"]
    )
    torch.manual_seed(2)
    criterion = criteria.select(opt, CLASSES).to(next(model.parameters()).dtype)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    run = SimpleNamespace(
        opt=opt,
        device=CPU,
        dtype=dtype,
        model=model,
        compiled=model,
        net=None,
        warming_up=None,
        criterion=criterion,
        scaler=scaler,
        progress=state.Progress(0),
        profile=Profile(None, CPU),
        **more,
    )
    run.optimizer, _, _ = optimizers.select(opt, model, criterion, CPU, dtype)
    return run


def share(values):
    """This process's rows of a whole batch."""
    rows = len(values) // distributed.world()
    return values[distributed.rank() * rows :][:rows]


def gradients(run):
    parameters = {**dict(run.model.named_parameters()), **dict(run.criterion.named_parameters(prefix="criterion"))}
    return {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}


def train(flags, frozen, warmup):
    """Losses, first gradients and last weights of STEPS steps in two epochs."""
    model = batchnorm.synchronize(network(frozen))
    run, losses, first = make_run(flags, model), [], None
    for epoch in (1, 2):
        main.make_net(run, warming_up=epoch <= warmup)
        model.train()
        run.progress = state.Progress(epoch - 1)
        for step in range(STEPS // 2):
            images, labels = map(share, batch(100 * epoch + step))
            terms = main.training_step(run, images, labels, epoch)
            run.progress.add(terms)
            losses.append(terms["loss"].item())
            first = first or gradients(run)
    return {"losses": losses, "first": first, "model": model.state_dict(), "criterion": run.criterion.state_dict()}


def whole_batch_norm(dtype):
    """BatchNorm over the whole batch: value, gradients and running statistics."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(12, 5, 3, 4, dtype=torch.float64, generator=generator) for _ in range(2))
    norm = nn.BatchNorm2d(5).to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 6) / 3)
    norm = batchnorm.synchronize(nn.Sequential(norm))[0]
    x = share((3 + 2 * x).to(dtype)).requires_grad_()
    y = norm(x)
    (y * share(weight)).sum().backward()
    grads = [torch.stack([g]) for g in (norm.weight.grad, norm.bias.grad)]
    grads = [g.sum(0) if distributed.world() == 1 else distributed.stack(g[0]).sum(0) for g in grads]
    whole = [distributed.gather(t.detach()) for t in (y, x.grad)]
    return {
        "class": type(norm).__name__,
        "dtype": str(y.dtype),
        "values": [*whole, *grads, norm.running_mean, norm.running_var],
    }


class Maps(nn.Module):
    """As a network of timm that gives its maps: what follows them is there and not used."""

    def __init__(self):
        super().__init__()
        self.maps, self.net, self.head = True, conv4(4), nn.Linear(4, 4)

    def forward(self, x):
        return self.net(x)


def unused():
    """The last layer after three steps of a network that does not use all of its parameters."""
    torch.manual_seed(4)
    model = architectures.EmbeddingNet(Maps(), 4, 8, input_size=16, frozen=True, pooling="double").double()
    run = make_run("--loss proxyanchor", model)
    main.make_net(run, warming_up=False)
    for step in range(3):
        main.training_step(run, *map(share, batch(step)), epoch=1)
    return model.last_linear.weight.detach()


class Pixels(torch.utils.data.Dataset):
    """n images whose first pixel says which they are."""

    def __init__(self, n):
        self.labels = torch.arange(n) % 7

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, i):
        return torch.full((3, 4, 4), i, dtype=torch.uint8), int(self.labels[i])


def embeddings():
    """Of splits whose size the number of processes does not divide, one of them smaller than it."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), ToFloat(), nn.Linear(48, 4))
    return {n: evaluation.embed(model, Pixels(n), batch_size=3) for n in (1, 2, 11, 12)}


class ToFloat(nn.Module):
    def forward(self, x):
        return x.float()


def measured():
    """What the first process's error is on all, and its result."""

    def fail():
        raise evaluation.Unmeasurable(f"seen by process {distributed.rank()}")

    try:
        distributed.on_first(fail)
    except evaluation.Unmeasurable as problem:
        error = str(problem)
    split, model = Pixels(11), nn.Sequential(nn.Flatten(), ToFloat(), nn.Linear(48, 4)).requires_grad_(False)
    nn.init.eye_(model[2].weight)
    opt = argparse.Namespace(
        bs=4,
        kernels=0,
        evaluation_metrics=["e_recall@1", "nmi"],
        seed=0,
        evaluate_on_cpu=False,
        search="auto",
        kmeans_restarts=1,
    )
    result = evaluation.evaluate(model, split, opt)
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    try:
        evaluation.evaluate(model, split, opt)
    except evaluation.Unmeasurable as problem:
        return (
            error,
            distributed.on_first(distributed.rank),
            distributed.any_process(distributed.rank() == 1),
            result,
            str(problem),
        )


def bad_data():
    """Data that the first process finds to be bad: the others do not wait for it to make a cache of them."""
    try:
        with distributed.first_process_first():
            raise ValueError("no such folder")
    except ValueError as problem:
        return str(problem)


def everything():
    torch.set_num_threads(1)
    return {
        "train": {name: train(*case) for name, case in CASES.items()},
        "batchnorm": {dtype: whole_batch_norm(dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)},
        "unused": unused(),
        "embeddings": embeddings(),
        "measured": measured(),
        "bad data": bad_data(),
        "said": [distributed.first_to_report("the same"), distributed.first_to_report(f"of {distributed.rank()}")],
    }


def write_everything(argv):
    """The program of one process: what `everything` gives, in the folder argv[0]."""
    with distributed.processes(CPU):
        torch.save(everything(), os.path.join(argv[0], f"{distributed.rank()}.pt"))
    return 0
