"""Train one network with one loss and evaluate it: python main.py --dataset glyphs --loss antico_batch_proxy ..."""

import sys

from utilities import interrupts

if __name__ == "__main__":  # a wrong flag is answered before the seconds that torch's import takes
    interrupts.end_at_once()
    import parameters

    OPT = parameters.parse()
    parameters.check_loss(OPT)

# ruff: noqa: E402
import argparse
import os
import warnings

import torch

import architectures
import criteria
import datasampler
import datasets
import evaluation
import parameters
from utilities import batchnorm, console, distributed, failures, folders, optimizers, registry, state, trackers
from utilities import device as devices
from utilities.profile import Profile, phase
from utilities.randomness import derive
from utilities.run import Run

LOOK_EVERY = 20  # steps between looks at the loss: a look waits for the GPU
ERRORS = {  # of the packages, each told as one line: (exit status, where in the run it was)
    criteria.NonFinite: (1, ", in step {step} of epoch {epoch}{terms}"),
    state.NotFinite: (1, "{terms}"),
    evaluation.Unmeasurable: (1, ", in the evaluation of epoch {epoch}"),
    datasets.BrokenImage: (2, ""),
}


# --- build: what bad input can spoil comes first, the run's folder is touched last ---


def check_names(opt):
    """Every name that a flag can give, before anything is loaded."""
    datasets.check_name(opt)
    criteria.check(opt)
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
    model = batchnorm.synchronize(model)
    batchnorm.check_chunks(model, opt)

    splits, evaluated = load_data(opt, model)
    n_classes = len(splits.train.class_names)
    sampler = datasampler.select(opt, splits.train.labels, distributed.rank(), distributed.world())
    loader = datasampler.loader(opt, splits.train, sampler, device)

    torch.manual_seed(derive(opt.seed, "criterion"))
    criterion = criteria.select(opt, n_classes).to(device)
    optimizer, scheduler, scaler = optimizers.select(opt, model, criterion, device, dtype)
    parts = dict(model=model, criterion=criterion, optimizer=optimizer, scheduler=scheduler, scaler=scaler)
    facts = dict(dataset=opt.dataset, n_classes=n_classes, n_images=len(splits.train), input_size=model.input_size,
                 contents=datasets.contents(splits))  # fmt: skip
    checkpoints = state.Checkpoints(parts, {**facts, "arch": opt.arch, "embed_dim": opt.embed_dim})
    progress = checkpoints.restore(saved, opt.resume, device)
    profile = Profile(opt.profile, device)
    profile.check((opt.n_epochs - max(progress.epoch, 0)) * sampler.n_batches - progress.step)

    facts = dict(skipped_broken=list(splits.skipped), device=device_name, processes=distributed.world(), data=facts)
    config = trackers.describe(opt, parameters.without_effect(opt), partial=splits.partial, **facts)
    checkpoints.folder, log = trackers.open_folder(opt, config, progress)
    compiled = devices.compiled(opt, model, device)
    run = Run(opt=opt, device=device, dtype=dtype, signals=signals, **parts, sampler=sampler, loader=loader,
              evaluated=evaluated, partial=splits.partial, progress=progress, checkpoints=checkpoints, log=log,
              profile=profile, compiled=compiled)  # fmt: skip
    distributed.print_once(*filter(None, [parameters.note(opt), console.opening_line(run, config)]), sep="\n")
    return run


def load_data(opt, model):
    """(the splits, {name: split} of those that are evaluated)."""
    with distributed.first_process_first():
        splits = datasets.select(opt, input_size=model.input_size)
    return splits, datasets.evaluated_splits(opt, splits)


# --- a training step ---


def training_step(run, images, labels, epoch):
    """One step of the optimizer: {loss term: 0-dimensional tensor}. Nothing here waits for the device."""
    seed = derive(run.opt.seed, epoch, run.progress.step)
    chunks = images.split(run.opt.grad_cache or len(images))
    chunks = [(chunk, derive(seed, distributed.rank(), number)) for number, chunk in enumerate(chunks)]
    embeddings = forward(run, chunks)
    leaf = embeddings.detach().requires_grad_()  # its gradient is all that the network needs to know of the loss
    loss = loss_and_gradient(run, leaf, labels, seed)
    backward(run, chunks, embeddings, leaf.grad)
    update(run)
    return {"loss": loss, **{f"loss/{name}": value for name, value in run.criterion.terms.items()}}


def embed(run, images, seed):
    """Embeddings of this process's images; `seed` is that of the network's dropout."""
    devices.seed(seed, run.device)
    with devices.tf32(run.opt.tf32), torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype is not None):
        return run.net(images)


@phase("forward")
def forward(run, chunks):
    with torch.set_grad_enabled(not run.opt.grad_cache):
        return torch.cat([embed(run, images, seed) for images, seed in chunks])


@phase("loss")
def loss_and_gradient(run, embeddings, labels, seed):
    """Of the batch of all processes, on each of them alike."""
    devices.seed(seed, run.device)  # of mining
    loss = run.criterion(distributed.gather(embeddings), distributed.gather(labels))
    run.optimizer.zero_grad(set_to_none=True)
    run.scaler.scale(loss).backward()
    return loss


@phase("backward")
def backward(run, chunks, embeddings, gradient):
    """Through the network; with --grad_cache each chunk is embedded once more, with its graph (Gao et al., 2021)."""
    with devices.tf32(run.opt.tf32):
        if not run.opt.grad_cache:
            embeddings.backward(gradient)
            return
        for number, part in enumerate(gradient.split(run.opt.grad_cache)):
            with distributed.gradients_stay_here(run.net, number < len(chunks) - 1):
                embed(run, *chunks[number]).backward(part)


@phase("optimizer")
def update(run):
    distributed.average_gradients(run.criterion.parameters())
    run.scaler.step(run.optimizer)
    run.scaler.update()


# --- an epoch ---


def train_epoch(run, epoch):
    """What is left of an epoch. Its part of metrics.csv: the learning rate and the means of the loss terms."""
    progress, lr = run.progress, run.optimizer.param_groups[0]["lr"]
    if run.net is None or epoch == run.opt.warmup + 1:
        make_net(run, warming_up=epoch <= run.opt.warmup)
    run.model.train()
    run.sampler.set_epoch(epoch, start=progress.step)
    batches = devices.prefetch(run.loader, run.device, run.loader.dataset.on_device)
    with console.progress_bar(run, epoch) as bar:
        for images, labels in run.profile.inputs(batches):
            progress.add(training_step(run, images, labels, epoch))
            run.profile.end_step(run.checkpoints.folder)
            bar.update()
            if progress.step % LOOK_EVERY == 0:
                bar.set_postfix(loss=f"{progress.means()['loss']:.3f}")
            if run.checkpoints.minutes() > run.opt.checkpoint_minutes:
                run.checkpoints.save(progress)
            run.stop_if_asked()
    return {"lr": lr, **progress.means()}


def make_net(run, warming_up):
    """The network as it trains: made anew when what learns changes, since DistributedDataParallel looks only once, and
    compiled when all of it learns: torch 2.11 keeps what it compiled before, in which the backbone has no gradient."""
    run.model.warm_up(warming_up)
    run.net = distributed.replicate(run.model if warming_up else run.compiled, run.device)


# --- fit ---


def fit(run):
    """Train and evaluate to the last epoch; epoch 0 evaluates the network as it comes."""
    opt = run.opt
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")  # an epoch resumed at its end has no step
    for epoch in range(run.progress.epoch + 1, opt.n_epochs + 1):
        run.stop_if_asked()
        row, collapse = {"epoch": epoch}, ""
        if epoch > 0:
            row |= train_epoch(run, epoch)
            if note := run.criterion.note([*run.progress.rows, row]):
                distributed.print_once(note)
        if epoch % opt.eval_every == 0 or epoch == opt.n_epochs:
            metrics, collapse = evaluate(run)
            row |= metrics
        end_epoch(run, row)
        distributed.print_once(console.epoch_line(run, row) + (collapse if epoch > 0 else ""))
    distributed.print_once(console.closing_lines(run))
    if opt.save_embeddings:
        with run.signals.at_once():
            save_embeddings(run.model, run.evaluated, opt, run.checkpoints.folder)
    if run.log:
        run.log.close()


def evaluate(run):
    """({split/metric: value}, a line that says a collapse where there is one)."""
    names = list(dict.fromkeys([*run.opt.evaluation_metrics, *console.COLLAPSE]))
    opt = argparse.Namespace(**{**vars(run.opt), "evaluation_metrics": names})
    with run.signals.at_once():  # an evaluation can be repeated
        values = {name: evaluation.evaluate(run.model, split, opt) for name, split in run.evaluated.items()}
    metrics = {f"{name}/{metric}": values[name][metric] for name in values for metric in run.opt.evaluation_metrics}
    return metrics, console.collapse_line(values[run.best_split], run.evaluated[run.best_split], opt.embed_dim)


def end_epoch(run, row):
    """Count the epoch, save it, write it down."""
    if row["epoch"] > 0:
        run.scheduler.step()
    row["seconds"] = round(run.checkpoints.seconds(run.progress), 2)
    better = run.progress.end_epoch(row, run.best_split, run.opt.storage_metrics, run.opt.store_improvements)
    run.checkpoints.save(run.progress, better)
    if run.log:
        trackers.write_rows(run.checkpoints.folder, run.progress.rows, run.opt.storage_metrics[0])
        run.log.log(row)


def save_embeddings(model, evaluated, opt, folder):
    for name, split in evaluated.items():
        path = os.path.join(folder, f"embeddings_{name}.npz")
        evaluation.save_embeddings(model, split, path, opt)
        distributed.print_once(f"written: {path}")


# --- the program: a run is built and trained, or a saved one evaluated ---


def evaluate_only(opt, device):
    """Print and write the metrics of a saved run; its own architecture and dimension hold, whatever the flags say."""
    check_names(opt)
    saved = state.load_model(opt.checkpoint)
    opt.arch, opt.embed_dim, opt.not_pretrained, opt.weights = saved["arch"], saved["embed_dim"], True, None
    opt.input_size = opt.input_size or saved.get("input_size")
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    state.fill(model, saved["model"], f"--checkpoint {opt.checkpoint}")
    splits, evaluated = load_data(opt, model)
    values = {name: evaluation.evaluate(model, split, opt) for name, split in evaluated.items()}
    metrics = {f"{name}/{metric}": value for name in values for metric, value in values[name].items()}
    if distributed.rank() == 0:
        trackers.write_evaluation(opt, saved["epoch"], splits.partial, metrics)
    if opt.save_embeddings:
        save_embeddings(model, evaluated, opt, os.path.dirname(os.path.abspath(opt.checkpoint)))


def listing():
    """Everything that a flag can name, a line each with its paper: the text of --list."""
    losses = {**criteria.CRITERIA, "pml.<ClassName>": criteria.BRIDGE}
    return registry.listing({
        "--loss; those before antico, and pml, also as --antico_base": losses,
        "--antico_base": {"none": criteria.NONE}, "--batch_mining": criteria.MINERS,
        "--arch": architectures.BACKBONES,
        "--dataset": datasets.DATASETS,
        "--evaluation_metrics": evaluation.METRICS,
    })  # fmt: skip


def main(argv=None, opt=None):
    """The process's exit status."""
    opt = opt or parameters.parse(argv)
    try:
        with interrupts.Interrupts() as signals:
            with failures.bad_input(signals):
                if opt.list:
                    distributed.print_once(listing())
                    return 0
                device, device_name = devices.choose_device(opt)
            with distributed.processes(device):
                with failures.bad_input(signals):
                    run = evaluate_only(opt, device) if opt.evaluate_only else build(opt, device, device_name, signals)
                if run:
                    with failures.while_running(run, ERRORS), signals.deferred():
                        fit(run)
        return 0
    except (failures.Stop, interrupts.Interrupted) as stop:
        return failures.report(stop)
    finally:
        folders.release()


if __name__ == "__main__":
    sys.exit(main(opt=OPT))
