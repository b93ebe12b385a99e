"""Train one network with one loss and evaluate it: python main.py --dataset glyphs --loss antico_batch_proxy ..."""

import os
import shlex
import signal
import sys
import time
import warnings
from functools import partial

import torch
from tqdm import tqdm

import architectures
import criteria
import datasampler
import datasets
import evaluation
import parameters
from architectures import batchnorm
from datasampler import derive
from evaluation import collapse
from utilities import command_line, console, distributed, records
from utilities import device as devices
from utilities.run import LAST, Run, load
from utilities.signals import Signals, Stopped


def check_names(opt):
    """Every name that a flag can give, before weights and data are loaded. ValueError, one line."""
    datasets.check_name(opt)
    if not opt.evaluate_only:
        criteria.acting_flags(opt)
    architectures.parse_arch(opt.arch)
    evaluation.check_names(opt.evaluation_metrics, opt.embed_dim)
    evaluation.search.check_backend(opt.search)


def build(opt, device, signals):
    """Network, data, loss and optimizer of a run, which has no folder yet."""
    torch.manual_seed(opt.seed)
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    if distributed.world() > 1:
        model = batchnorm.synchronize(model)
    if opt.grad_cache or opt.bs == 1:
        batchnorm.check_chunks(model, opt)
    splits, evaluated = load_data(opt, model)
    n_classes = len(splits.train.class_names)
    sampler = datasampler.select(opt, splits.train.labels, distributed.rank(), distributed.world())
    loader = datasampler.loader(opt, splits.train, sampler, device)
    torch.manual_seed(derive(opt.seed, "criterion"))
    criterion = criteria.select(opt, n_classes).to(device)
    groups = model.param_groups(opt.lr, None if opt.fc_lr < 0 else opt.fc_lr) + criterion.param_groups(opt.lr)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": partial(torch.optim.SGD, momentum=0.9)}
    optimizer = kind[opt.optim](groups, lr=opt.lr, weight_decay=opt.decay, fused=True)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [] if opt.scheduler == "none" else opt.tau, opt.gamma)
    facts = dict(dataset=opt.dataset, n_classes=n_classes, n_images=len(splits.train), input_size=model.input_size,
                 contents=datasets.contents(splits), arch=opt.arch, embed_dim=opt.embed_dim)  # fmt: skip
    return Run(opt=opt, device=device, signals=signals, model=model, criterion=criterion, optimizer=optimizer,
               scheduler=scheduler, sampler=sampler, loader=loader, evaluated=evaluated, partial=splits.partial,
               skipped=list(splits.skipped), facts=facts)  # fmt: skip


def begin(run, device_name):
    """The run in its folder, restored by --resume; the folder is touched last, after all that can fail on bad input."""
    opt = run.opt
    run.dtype = devices.autocast_dtype(opt, run.device)
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=run.dtype == torch.float16)
    if opt.resume:
        run.restore(opt.resume)
    run.compiled, run.idle = devices.whether_to_compile(run), parameters.without_effect(opt, criteria.acting_flags(opt))
    run.open_folder(config := records.describe(run, device_name))
    run.trackers = records.Trackers(run, config)
    distributed.print_once(*console.notes(run), console.opening_line(run, device_name), sep="\n")
    return run


def load_data(opt, model):
    """(the splits, {name: split} of those that are evaluated)."""
    with distributed.first_process_first():
        splits = datasets.select(opt, input_size=model.input_size)
    return splits, datasets.evaluated_splits(opt, splits)


def train_epoch(run, epoch):
    """Train the rest of an epoch; its learning rate and mean loss terms, by column of metrics.csv."""
    opt, lr = run.opt, run.optimizer.param_groups[0]["lr"]
    if run.net is None or epoch == opt.warmup + 1:
        # made anew when what learns changes, at which DistributedDataParallel looks once; compiled after the warm-up
        # only, since torch 2.11 would keep the graph without the backbone's gradient
        run.model.warm_up(epoch <= opt.warmup)
        run.written()  # the loader's processes are copies of this one, in which nothing else shall be at work
        compiled = run.compiled and epoch > opt.warmup and opt.compile
        run.net = distributed.replicate(run.model, run.device, compiled)
        one_graph = run.criterion.compiles and not run.criterion.mined
        run.loss = torch.compile(run.criterion, dynamic=False) if compiled and one_graph else run.criterion
    run.model.train()
    run.sampler.set_epoch(epoch, start=run.step)
    quiet, began = True if distributed.rank() else None, time.monotonic()  # None: a bar only in a terminal
    bar = tqdm(datasampler.prefetch(run.loader, run.device), f"epoch {epoch}/{opt.n_epochs}", run.sampler.n_batches,
               initial=run.step, leave=False, disable=quiet, dynamic_ncols=True)  # fmt: skip
    for images, labels in bar:
        seed = derive(opt.seed, epoch, run.step)
        parts = images.split(opt.grad_cache or len(images))
        chunks = [(part, derive(seed, distributed.rank(), number)) for number, part in enumerate(parts)]
        with torch.set_grad_enabled(not opt.grad_cache):
            embeddings = torch.cat([embed(run, *chunk) for chunk in chunks]).requires_grad_()
        torch.manual_seed(seed)  # for mining: the same on all processes, each has the whole batch
        labels = distributed.gather(labels)
        if not run.criterion.mined:  # miners count the pairs of labels on the CPU, without waiting for a GPU
            labels = labels.to(run.device, non_blocking=True)
        loss = run.loss(distributed.gather(embeddings), labels)
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        if opt.grad_cache:
            backward_again(run, chunks, embeddings.grad)
        distributed.average_gradients(run.criterion.parameters())
        run.scaler.step(run.optimizer)
        run.scaler.update()
        run.add({"loss": loss, **{f"loss/{name}": value for name, value in run.criterion.terms.items()}})
        if run.step % 20 == 0:  # reading the loss waits for the GPU
            bar.set_postfix(loss=f"{run.means()['loss']:.3f}")
        if time.monotonic() - run.saved > 60 * opt.checkpoint_minutes:
            run.save()
        stop_if_asked(run)
    run.waited = run.loader.waited / (time.monotonic() - began)
    return {"lr": lr, **run.means()}


def embed(run, images, seed):
    """Embeddings of this process's images; the seed is that of the network's dropout."""
    torch.manual_seed(seed)
    with torch.autocast(run.device.type, dtype=run.dtype, enabled=run.dtype is not None):
        return run.net(images)


def backward_again(run, chunks, gradient):
    """The network's gradient from the embeddings', where the batch's graph does not fit into memory: by chunks, which
    are embedded once more (Gao et al., RepL4NLP 2021)."""
    for number, part in enumerate(gradient.split(run.opt.grad_cache)):
        with distributed.gradients_stay_here(run.net, number < len(chunks) - 1):
            embed(run, *chunks[number]).backward(part)


def stop_if_asked(run):
    """Raise Stopped if any process got a signal."""
    if distributed.any_process(run.signals.number > 0):
        raise Stopped(run.signals.number or signal.SIGTERM)  # another process's; ours may still be on its way


def fit(run):
    """Train and evaluate to the last epoch; epoch 0 evaluates the network as it comes. A signal saves and ends it."""
    # an epoch that is resumed after its last step has no step of the optimizer
    warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
    opt = run.opt
    try:
        for epoch in range(run.epoch + 1, opt.n_epochs + 1):
            stop_if_asked(run)
            row, said = {"epoch": epoch}, []
            if epoch > 0:
                row |= train_epoch(run, epoch)
                said.append(run.criterion.note([*run.rows, row]))
            if epoch % opt.eval_every == 0 or epoch == opt.n_epochs:
                with run.signals.waiting(False):  # an evaluation can be repeated
                    metrics, collapsed = evaluate(run)
                row |= metrics
                said.append(collapsed if epoch > 0 else "")
            if epoch > 0:
                run.scheduler.step()
            run.end_epoch(row)
            distributed.print_once(console.epoch_line(run, row), *filter(None, said), sep="\n")
    except Stopped:
        run.save()
        raise
    finally:
        run.written()
    run.write_config()
    distributed.print_once(console.closing_lines(run))
    run.trackers.close()
    if opt.save_embeddings:
        with run.signals.waiting(False):
            evaluation.save_all_embeddings(run.model, run.evaluated, opt, run.folder, run.facts["n_classes"])


def evaluate(run):
    """({split/metric: value}, a warning if the embeddings have collapsed, else "")."""
    opt, splits = run.opt, run.evaluated
    values = {name: evaluation.evaluate(run.model, splits[name], opt, also=collapse.COLLAPSE) for name in splits}
    metrics = {f"{name}/{metric}": values[name][metric] for name in splits for metric in opt.evaluation_metrics}
    best = values[run.best_split]
    if run.epoch < 0:
        run.before = {name: best[name] for name in collapse.COLLAPSE}
    return metrics, collapse.collapse_line(best, splits[run.best_split], opt.embed_dim, run.before, opt.loss)


def evaluate_only(opt, device):
    """Print and write the metrics of a saved run; its own architecture and dimension hold, whatever the flags say."""
    saved = load(opt.checkpoint, "model", "arch", "embed_dim", "epoch")
    opt.arch, opt.embed_dim, opt.not_pretrained, opt.weights = saved["arch"], saved["embed_dim"], True, None
    opt.input_size = opt.input_size or saved.get("input_size")
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    model.load_state_dict(saved["model"])
    splits, evaluated = load_data(opt, model)
    values = {name: evaluation.evaluate(model, split, opt) for name, split in evaluated.items()}
    metrics = {f"{name}/{metric}": value for name in values for metric, value in values[name].items()}
    if distributed.rank() == 0:
        records.write_evaluation(opt, saved["epoch"], splits.partial, metrics)
    if opt.save_embeddings:
        folder = os.path.dirname(os.path.abspath(opt.checkpoint))
        same = datasets.contents(splits) == saved.get("contents") and opt.checkpoint.endswith(LAST)
        own = same and not {"dataset", "source_path", "input_size"} & set(opt.given)  # else beside the run's own files
        suffix = "" if own else f"_{records.name_of_data(opt)}"
        evaluation.save_all_embeddings(model, evaluated, opt, folder, len(splits.train.class_names), suffix)


def listing():
    """The text of --list: everything that a flag can name, a line each."""
    antico = {name: f"AntiCo (Jiang et al., TMM 2024): {rows}" for name, rows in criteria.ANTICO.items()}
    return command_line.listing({
        "--loss; those before antico, and pml, also as --antico_base":
            {**criteria.BASES, **antico, "pml.<ClassName>": criteria.library_loss},
        "--antico_base": {"none": criteria.NoBase}, "--batch_mining": criteria.MINERS,
        "--arch": architectures.BACKBONES, "--dataset": datasets.DATASETS, "--evaluation_metrics": evaluation.METRICS,
    })  # fmt: skip


def main(argv=None):
    """A whole run, as the command line has it; the exit status: 2 for bad input, 1 for a run that could not go on."""
    opt, run = parameters.parse(argv), None
    with Signals() as signals:
        try:
            if opt.list:
                return distributed.print_once(listing()) or 0
            check_names(opt)
            device, device_name = devices.choose_device(opt)
            opt.kernels = devices.number_of_workers(opt)
            with distributed.processes(device):
                if opt.evaluate_only:
                    evaluate_only(opt, device)
                else:
                    run = begin(build(opt, device, signals), device_name)
                    with signals.waiting():
                        fit(run)
            return 0
        except Stopped as stop:
            line, status = f"stopped by {stop.name}{'; all is saved' if run else ' before training began'}", stop.status
        except FloatingPointError as problem:  # a loss, weights or embeddings with NaN or infinity
            line, status = f"error: {run.note_divergence(problem) if run else problem}", 1
        except (ValueError, OSError) as problem:
            line, status = f"error: {command_line.line_of(problem)}", 2
            if isinstance(problem, BrokenPipeError):
                line, status = "error: standard output was closed", command_line.silence()
        except (RuntimeError, MemoryError) as problem:  # no bug where memory ran out or another process ended
            advice = devices.advice_on_memory(problem)
            if not (advice or distributed.lost_another(problem) or "loading state_dict" in str(problem)):
                raise
            reason = str(problem).rpartition("Error: ")[2].split()  # a data process's comes with its traceback
            line, status = f"error: {advice}{' '.join(reason)[:300]}", 1
    if run and run.newest:
        start = "torchrun ..." if distributed.world() > 1 else "python"
        line += f". Last checkpoint: {run.newest}; go on with: {start} main.py --resume {shlex.quote(run.folder)}"
    if distributed.first_to_report(line):
        print(line, file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
