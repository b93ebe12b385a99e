"""Train one network with one loss and evaluate it: python main.py --dataset glyphs --loss antico_batch_proxy ..."""

import sys

from utilities import interrupts

if __name__ == "__main__":  # a wrong flag is answered before the seconds that torch's import takes
    interrupts.end_at_once()
    import parameters

    OPT = parameters.parse()

# ruff: noqa: E402
import argparse
import os
import time
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

import architectures
import criteria
import datasampler
import datasets
import evaluation
import parameters
from utilities import device as devices
from utilities import distributed, failures, folders, state, trackers
from utilities.profile import NoProfile, Profile, check_steps
from utilities.randomness import derive

COLLAPSE = ("effective_rank", "coding_rate@share")  # measured at every evaluation, so that a collapse is said
LOOK_EVERY = 20  # steps between looks at the loss: a look waits for the GPU
ERRORS = {criteria.NonFinite: 1, state.NotFinite: 1, evaluation.Unmeasurable: 1, datasets.BrokenImage: 2}  # exit status


@dataclass
class Run:
    """The parts of a run."""

    opt: argparse.Namespace
    device: torch.device
    dtype: Any  # of mixed precision, None for float32
    signals: interrupts.Interrupts
    model: torch.nn.Module
    criterion: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    sampler: datasampler.Batches
    loader: torch.utils.data.DataLoader
    evaluated: dict  # {name: split}
    partial: str  # what the data lacks
    progress: state.Progress
    checkpoints: state.Checkpoints
    log: Any = None  # on the first process
    profile: Any = NoProfile()
    compiled: Any = None  # the model, compiled where that is asked for
    net: Any = None  # and replicated: what trains
    warming_up: Any = None  # whether only the head learns

    @property
    def best_split(self):
        """best.pt follows the validation split where there is one, else the test split, as published tables do."""
        return next(name for name in ("val", "test", "train") if name in self.evaluated)


# --- build: what bad input can spoil comes first, the run's folder is touched last ---


def check_names(opt):
    """Every name that a flag can give, before anything is loaded."""
    datasets.check_name(opt)
    criteria.check_names(opt)
    architectures.parse_arch(opt.arch)
    evaluation.check_names(opt.evaluation_metrics, opt.embed_dim)
    evaluation.search.check_backend(opt.search)
    trackers.check(opt)


def build(opt, device, device_name, signals):
    check_names(opt)
    dtype = devices.autocast_dtype(opt, device)
    saved = state.load_resumed(opt.resume)

    torch.manual_seed(opt.seed)
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    model = distributed.synchronize_batchnorm(model)
    if opt.grad_cache:
        state.check_chunks(opt, model)

    with distributed.first_process_first():
        splits = datasets.select(opt, input_size=model.input_size)
    n_classes = len(splits.train.class_names)
    sampler = datasampler.select(opt, splits.train.labels, distributed.rank(), distributed.world())
    loader = datasampler.loader(opt, splits.train, sampler, device)
    evaluated = datasets.evaluated_splits(opt, splits)

    torch.manual_seed(derive(opt.seed, "criterion"))
    criterion = criteria.select(opt, n_classes).to(device)
    optimizer = make_optimizer(opt, model, criterion)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, opt.tau if opt.scheduler == "step" else [], opt.gamma)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)

    parts = dict(model=model, criterion=criterion, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    facts = dict(dataset=opt.dataset, n_classes=n_classes, n_images=len(splits.train), input_size=model.input_size)
    checkpoints = state.Checkpoints(parts, {**facts, "arch": opt.arch, "embed_dim": opt.embed_dim})
    progress = checkpoints.restore(saved, opt.resume, device)
    check_steps(opt.profile, (opt.n_epochs - max(progress.epoch, 0)) * sampler.n_batches - progress.step)
    config = trackers.describe(
        opt, parameters.without_effect(opt), partial=splits.partial, skipped_broken=list(splits.skipped),
        device=device_name, processes=distributed.world(), data=facts,
    )  # fmt: skip
    checkpoints.folder, log = trackers.open_folder(opt, config, progress)
    run = Run(opt, device, dtype, signals, model, criterion, optimizer, scheduler, scaler, sampler, loader, evaluated,
              splits.partial, progress, checkpoints, log)  # fmt: skip
    distributed.say(*filter(None, [parameters.note(opt), trackers.opening_line(run, config)]), sep="\n")
    return run


def make_optimizer(opt, model, criterion):
    groups = model.param_groups(opt.lr, None if opt.fc_lr < 0 else opt.fc_lr) + criterion.param_groups(opt.lr)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[opt.optim]
    more = {"momentum": 0.9} if opt.optim == "sgd" else {}
    return kind(groups, lr=opt.lr, weight_decay=opt.decay, fused=True, **more)


# --- train ---


def embed(run, images, seed):
    """Embeddings of this process's images; `seed` is that of the network's dropout."""
    devices.seed(seed, run.device)
    with devices.tf32(run.opt.tf32), torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype is not None):
        return run.net(images)


def backward(run, embeddings, gradient):
    with devices.tf32(run.opt.tf32):
        embeddings.backward(gradient)


def training_step(run, images, labels, epoch):
    """One step of the optimizer: {loss term: 0-dimensional tensor}. Nothing here waits for the device."""
    seed = derive(run.opt.seed, epoch, run.progress.step)
    chunks = images.split(run.opt.grad_cache or len(images))
    seeds = [derive(seed, distributed.rank(), number) for number in range(len(chunks))]
    with run.profile.phase("forward"), torch.set_grad_enabled(not run.opt.grad_cache):
        embeddings = torch.cat([embed(run, chunk, s) for chunk, s in zip(chunks, seeds)])

    with run.profile.phase("loss"):  # of a leaf: its gradient is all that the network needs to know
        devices.seed(seed, run.device)  # mining draws alike on all processes
        leaf = embeddings.detach().requires_grad_()
        loss = run.criterion(distributed.gather(leaf), distributed.gather(labels))
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()

    with run.profile.phase("backward"):
        if run.opt.grad_cache:  # each chunk once more, with its graph
            for number, gradient in enumerate(leaf.grad.split(run.opt.grad_cache)):
                with distributed.gradients_stay_here(run.net, number < len(chunks) - 1):
                    backward(run, embed(run, chunks[number], seeds[number]), gradient)
        else:
            backward(run, embeddings, leaf.grad)

    with run.profile.phase("optimizer"):
        distributed.average_gradients(run.criterion.parameters())
        run.scaler.step(run.optimizer)
        run.scaler.update()
    return {"loss": loss, **{f"loss/{name}": value for name, value in run.criterion.terms.items()}}


def train_epoch(run, epoch):
    """What is left of an epoch. Its part of metrics.csv: the learning rate and the means of the loss terms."""
    progress, lr = run.progress, run.optimizer.param_groups[0]["lr"]
    make_net(run, warming_up=epoch <= run.opt.warmup)
    run.model.train()
    run.sampler.set_epoch(epoch, start=progress.step)
    batches = devices.prefetch(run.loader, run.device, run.loader.dataset.on_device)
    bar = tqdm(total=run.sampler.n_batches, initial=progress.step, desc=f"epoch {epoch}/{run.opt.n_epochs}",
               leave=False, disable=True if distributed.rank() else None, dynamic_ncols=True)  # fmt: skip
    with bar:
        while True:
            with run.profile.phase("input"):
                images, labels = next(batches, (None, None))
            if images is None:
                break
            where = lambda: f"in step {progress.step + 1} of epoch {epoch}{terms(run, 'before: ')}"  # noqa: E731
            with run.signals.deferred(), failures.placed(where):
                progress.add(training_step(run, images, labels, epoch))
            run.profile.end_step()
            bar.update()
            if progress.step % LOOK_EVERY == 0:
                bar.set_postfix(loss=f"{look(run)['loss']:.3f}")
            if run.checkpoints.minutes() > run.opt.checkpoint_minutes:
                save(run)
            stop_if_asked(run)
    return {"lr": lr, **look(run)}


def make_net(run, warming_up):
    """The network as it trains: made anew when what learns changes, since DistributedDataParallel looks only once."""
    if run.warming_up is not warming_up:
        run.model.warm_up(warming_up)
        run.net = distributed.replicate(run.compiled, run.device)
        run.warming_up = warming_up


def look(run):
    """The loss terms' means over the epoch so far. Raises NonFinite if the loss was not finite in some step."""
    bad = run.progress.first_bad_step()
    if bad:
        raise criteria.NonFinite(f"the loss is not finite, in step {bad} of epoch {run.progress.epoch + 1}{terms(run)}")
    return run.progress.means()


def terms(run, when=""):
    """The loss terms of the last step that had some, in brackets."""
    shown = ", ".join(f"{name} {value:g}" for name, value in run.criterion.logs.items())
    return f" ({when}{shown})" if shown else ""


def stop_if_asked(run):
    if distributed.any_process(run.signals.signal is not None):
        run.signals.stop()


def save(run, also=()):
    with run.signals.deferred():
        look(run)  # a run that has diverged keeps its last good one
        run.checkpoints.save(run.progress, also)


# --- fit ---


def fit(run):
    """Train and evaluate to the last epoch; epoch 0 evaluates the network as it comes."""
    opt, progress = run.opt, run.progress
    compiles = opt.compile == "on" or (opt.compile == "auto" and run.device.type == "cuda")
    warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")  # advice of the compiler; that is --tf32
    run.compiled = torch.compile(run.model) if compiles else run.model  # evaluation has other sizes, and is not
    if opt.profile:
        path = run.checkpoints.path("profile.json") if distributed.rank() == 0 else None
        run.profile = Profile(opt.profile, path, run.device)
    start, first = time.monotonic(), max(progress.epoch + 1, 1)
    for epoch in range(progress.epoch + 1, opt.n_epochs + 1):
        stop_if_asked(run)
        if epoch == first:
            start = time.monotonic()
        row = {"epoch": epoch}
        if epoch > 0:
            row |= train_epoch(run, epoch)
        collapse = ""
        if epoch % opt.eval_every == 0 or epoch == opt.n_epochs:
            with run.signals.deferred(False), failures.placed(lambda: f"in the evaluation of epoch {epoch}"):
                metrics, collapse = evaluate(run, epoch)
            row |= metrics
        finish_epoch(run, row)
        left = (time.monotonic() - start) / max(epoch - first + 1, 1) * (opt.n_epochs - epoch)
        distributed.say(trackers.epoch_line(run, row, left if epoch else None) + collapse)
    distributed.say(trackers.closing_lines(run))
    if opt.save_embeddings:
        save_embeddings(run.model, run.evaluated, opt, run.checkpoints.folder)
    if run.log:
        run.log.close()


def evaluate(run, epoch):
    """({split/metric: value}, a line that says a collapse where there is one)."""
    wanted = argparse.Namespace(**vars(run.opt))
    wanted.evaluation_metrics = list(dict.fromkeys([*run.opt.evaluation_metrics, *COLLAPSE]))
    found = {name: evaluation.evaluate(run.model, split, wanted) for name, split in run.evaluated.items()}
    metrics = {f"{name}/{metric}": found[name][metric] for name in found for metric in run.opt.evaluation_metrics}
    rank, share = (found[run.best_split][metric] for metric in COLLAPSE)
    split = run.evaluated[run.best_split]
    dimensions = min(run.opt.embed_dim, len(getattr(split, "gallery", split)))  # few images span no more
    return metrics, trackers.collapse_line(rank, share, dimensions) if epoch > 0 else ""


def finish_epoch(run, row):
    """Count the epoch, save it, write it down: all of it or nothing."""
    with run.signals.deferred():
        if row["epoch"] > 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # an epoch resumed at its end has no step here
                run.scheduler.step()
        row["seconds"] = round(run.checkpoints.seconds(run.progress), 2)
        better = run.progress.end_epoch(row, run.best_split, run.opt.storage_metrics, run.opt.store_improvements)
        save(run, better)
        if run.log:
            trackers.write_rows(run.checkpoints.folder, run.progress.rows, run.opt.storage_metrics[0])
            run.log.log(row)


def save_embeddings(model, evaluated, opt, folder):
    for name, split in evaluated.items():
        path = os.path.join(folder, f"embeddings_{name}.npz")
        evaluation.save_embeddings(model, split, path, opt)
        distributed.say(f"written: {path}")


# --- evaluate only ---


def evaluate_only(opt, device):
    """Print and write the metrics of a saved run; its own architecture and dimension hold, whatever the flags say."""
    check_names(opt)
    saved = state.load_model(opt.checkpoint)
    opt.arch, opt.embed_dim, opt.not_pretrained, opt.weights = saved["arch"], saved["embed_dim"], True, None
    opt.input_size = opt.input_size or saved.get("input_size")
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    state.fill(model, saved["model"], f"--checkpoint {opt.checkpoint}")
    with distributed.first_process_first():
        splits = datasets.select(opt, input_size=model.input_size)
    evaluated = datasets.evaluated_splits(opt, splits)
    found = {name: evaluation.evaluate(model, split, opt) for name, split in evaluated.items()}
    metrics = {f"{name}/{metric}": value for name in found for metric, value in found[name].items()}
    if distributed.rank() == 0:
        trackers.write_evaluation(opt, saved["epoch"], splits.partial, metrics)
    if opt.save_embeddings:
        save_embeddings(model, evaluated, opt, os.path.dirname(os.path.abspath(opt.checkpoint)))


# --- the program ---


def listing():
    """Everything that a flag can name, a line each with its paper: the text of --list."""
    parts = {
        "--loss; those before antico, and pml, also as --antico_base": {
            **criteria.CRITERIA,
            "pml.<ClassName>": criteria.BRIDGE,
        },
        "--antico_base": {"none": criteria.NONE},
        "--batch_mining": criteria.MINERS,
        "--arch": architectures.BACKBONES,
        "--dataset": datasets.DATASETS,
        "--evaluation_metrics": evaluation.METRICS,
    }
    lines = {flag: [f"  {name:20} {entry.about}" for name, entry in names.items()] for flag, names in parts.items()}
    return "\n\n".join("\n".join([flag, *lines[flag]]) for flag in parts)


def main(argv=None, opt=None):
    """The process's exit status."""
    opt = opt or parameters.parse(argv)
    try:
        with interrupts.Interrupts() as signals:
            with failures.bad_input(signals):
                if opt.list:
                    distributed.say(listing())
                    return 0
                device, device_name = devices.choose_device(opt)
            with distributed.processes(device):
                with failures.bad_input(signals):
                    run = evaluate_only(opt, device) if opt.evaluate_only else build(opt, device, device_name, signals)
                if run:
                    # several processes stop at the same step: a signal waits until they have agreed
                    with failures.while_running(run, ERRORS, save), signals.deferred(distributed.world() > 1):
                        fit(run)
        return 0
    except (failures.Stop, interrupts.Interrupted) as stop:
        return failures.tell(stop)
    finally:
        folders.release()


if __name__ == "__main__":
    sys.exit(main(opt=OPT))
