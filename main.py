"""Train one network with one loss and evaluate it: python main.py --dataset glyphs --loss antico_batch_proxy ..."""

import json
import os
import random
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import architectures
import criteria
import datasampler
import datasets
import evaluation
import parameters
from utilities import checkpoint, logger


class Run(dict):
    """The parts of a run: a dict whose keys are attributes."""

    __getattr__ = dict.__getitem__


def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True  # the same seed gives the same numbers on one machine


def choose_device(opt):
    """The GPU of --gpu, or the CPU where the machine has none."""
    if not torch.cuda.is_available():
        return torch.device("cpu"), "CPU"
    if opt.gpu[0] >= torch.cuda.device_count():
        raise ValueError(f"--gpu {opt.gpu[0]}: this machine has GPU 0 to {torch.cuda.device_count() - 1}")
    torch.cuda.set_device(opt.gpu[0])
    return torch.device("cuda", opt.gpu[0]), torch.cuda.get_device_name(opt.gpu[0])


def choose_amp(opt, device):
    """The dtype of mixed precision, None for float32."""
    wanted = "fp16" if opt.use_float16 else opt.amp
    if device.type == "cpu":
        if opt.amp == "fp16":
            raise ValueError("--amp fp16: needs a GPU; on a CPU give --amp bf16 or none")
        if opt.use_float16:
            print("note: --use_float16 needs a GPU; this run is in float32")
        return torch.bfloat16 if wanted == "bf16" else None
    if wanted == "auto":
        wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return {"bf16": torch.bfloat16, "fp16": torch.float16, "none": None}[wanted]


def make_optimizer(opt, model, criterion):
    groups = model.param_groups(opt.lr, None if opt.fc_lr < 0 else opt.fc_lr) + criterion.param_groups(opt.lr)
    if opt.optim == "sgd":
        return torch.optim.SGD(groups, lr=opt.lr, weight_decay=opt.decay, momentum=0.9)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[opt.optim](groups, lr=opt.lr, weight_decay=opt.decay)


def evaluated_splits(opt, splits):
    """{name: split} of what is evaluated."""
    evaluated = {} if opt.no_train_metrics else {"train": splits.train.unaugmented()}
    if splits.val is not None:
        evaluated["val"] = splits.val
    if not opt.no_test_metrics:
        evaluated["test"] = splits.tested
    return evaluated


def described(split):
    if hasattr(split, "query"):
        return f"{len(split.query)} queries in a gallery of {len(split.gallery)}"
    return f"{len(split)} of {len(split.class_names)}"


def set_up(opt):
    """Everything a run needs, built before the first step, so that bad input stops here."""
    evaluation.check_names(opt.evaluation_metrics)
    architectures.parse_arch(opt.arch)
    criteria.check_names(opt)
    device, device_name = choose_device(opt)
    amp = choose_amp(opt, device)
    seed_everything(opt.seed)
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    splits = datasets.select(opt, input_size=model.input_size)
    n_classes = len(splits.train.class_names)
    sampler = datasampler.select(opt, splits.train.labels)
    criterion = criteria.select(opt, n_classes).to(device)
    optimizer = make_optimizer(opt, model, criterion)
    milestones = opt.tau if opt.scheduler == "step" else []
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, opt.gamma)
    scaler = torch.amp.GradScaler(device.type, enabled=amp == torch.float16)

    evaluated = evaluated_splits(opt, splits)
    workers = min(opt.kernels, os.cpu_count() or 1)
    loader = torch.utils.data.DataLoader(splits.train, batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0,
                                         pin_memory=device.type == "cuda", generator=torch.Generator().manual_seed(opt.seed))
    folder = logger.run_folder(opt.save_path, opt.dataset, logger.run_name(opt.savename, opt.group, opt.seed), opt.resume)
    last = os.path.join(folder, "checkpoint.pt")
    state = checkpoint.load(last) if opt.resume and os.path.isfile(last) else None
    log = logger.RunLog(folder, opt, device_name, rows=state["rows"] if state else (), partial=splits.partial, skipped=splits.skipped)
    if splits.partial:
        print(f"PARTIAL DATA: {splits.partial}")
    print(f"{opt.dataset}: {len(splits.train)} training images of {n_classes} classes, "
          + ", ".join(f"{name} {described(split)}" for name, split in evaluated.items())
          + f"; {opt.arch}, {opt.embed_dim} dimensions; {opt.loss}; {device_name}, "
          + f"{'float32' if amp is None else str(amp).removeprefix('torch.')}; {folder}")
    return Run(device=device, amp=amp, model=model, loader=loader, sampler=sampler, criterion=criterion, optimizer=optimizer,
                         scheduler=scheduler, scaler=scaler, evaluated=evaluated, folder=folder, log=log, state=state, partial=splits.partial)


def save_embeddings(run, opt, folder):
    for name, split in run.evaluated.items():
        path = os.path.join(folder, f"embeddings_{name}.npz")
        evaluation.save_embeddings(run.model, split, path, opt)
        print(f"written: {path}")


def evaluate_only(opt):
    """Print and write the metrics of a saved run; its own architecture and dimension hold, whatever the flags say."""
    evaluation.check_names(opt.evaluation_metrics)
    if not os.path.isfile(opt.checkpoint):
        raise FileNotFoundError(f"--checkpoint {opt.checkpoint}: no such file")
    state = checkpoint.load(opt.checkpoint)
    if not isinstance(state, dict) or not {"model", "arch", "embed_dim", "epoch"} <= set(state):
        raise ValueError(f"--checkpoint {opt.checkpoint}: not a run's checkpoint.pt or best.pt")
    opt.arch, opt.embed_dim, opt.not_pretrained, opt.weights = state["arch"], state["embed_dim"], True, None
    device, _ = choose_device(opt)
    seed_everything(opt.seed)
    model = architectures.select(opt).to(device, memory_format=torch.channels_last)
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as problem:
        raise ValueError(f"--checkpoint {opt.checkpoint}: does not fit {opt.arch} as it is here ({str(problem).splitlines()[-1].strip()})") from problem
    splits = datasets.select(opt, input_size=model.input_size)
    run = Run(model=model, evaluated=evaluated_splits(opt, splits))
    values = {f"{name}/{metric}": value for name, split in run.evaluated.items()
              for metric, value in evaluation.evaluate(model, split, opt).items()}
    notes = ["approximate search"] * (opt.search == "ivf") + [f"PARTIAL DATA: {splits.partial}"] * bool(splits.partial)
    print(f"{opt.checkpoint}: epoch {state['epoch']}, {opt.dataset}, {opt.arch}, {opt.embed_dim} dimensions" + "".join(f"; {note}" for note in notes))
    print("\n".join(f"{name:32s} {value:.6f}" for name, value in values.items()))
    folder, name = os.path.split(os.path.abspath(opt.checkpoint))
    record = dict(checkpoint=name, epoch=state["epoch"], dataset=opt.dataset, partial=splits.partial, search=opt.search, seed=opt.seed, metrics=values)
    path = os.path.join(folder, f"evaluation_{os.path.splitext(name)[0]}.json")
    checkpoint.write_whole(path, lambda file: json.dump(record, file, indent=2))
    print(f"written: {path}")
    if opt.save_embeddings:
        save_embeddings(run, opt, folder)
    return 0


def train_epoch(run, net, epoch, n_epochs):
    """One pass of the sampler; the mean loss. Raises criteria.NonFinite where that stops being finite."""
    run.model.train()
    augment = run.loader.dataset.on_device
    total = torch.zeros((), device=run.device)
    bar = tqdm(run.loader, desc=f"epoch {epoch}/{n_epochs}", leave=False, disable=None, dynamic_ncols=True)
    for step, (images, labels) in enumerate(bar):
        if augment:  # whole images and their aspect ratios
            images = augment(images[0].to(run.device, non_blocking=True), images[1])
        images = images.to(run.device, non_blocking=True, memory_format=torch.channels_last)
        labels = labels.to(run.device, non_blocking=True)
        with torch.autocast(run.device.type, dtype=run.amp, enabled=run.amp is not None):
            embeddings = net(images)
        loss = run.criterion(embeddings, labels)  # outside autocast: see criteria/base.py
        run.optimizer.zero_grad(set_to_none=True)
        run.scaler.scale(loss).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()
        total += loss.detach()
        if step % 20 == 0:  # reading a number waits for the GPU, so not in every step
            bar.set_postfix(loss=f"{finite(total) / (step + 1):.3f}")
    return finite(total) / len(run.loader)


def finite(total):
    if not torch.isfinite(total):
        raise criteria.NonFinite("the loss is not finite")
    return float(total)


def listing():
    """Everything that a flag can name, a line each with its paper: the text of --list."""
    bridge, none = criteria.BRIDGE.about, criteria.NONE.about
    parts = {
        "--loss; those before antico, and pml, also as --antico_base": {name: entry.about for name, entry in criteria.CRITERIA.items()} | {"pml.<ClassName>": bridge},
        "--antico_base": {"none": none},
        "--batch_mining": {name: entry.about for name, entry in criteria.MINERS.items()},
        "--arch": {name: entry.about for name, entry in architectures.BACKBONES.items()},
        "--dataset": {name: entry.about for name, entry in datasets.DATASETS.items()},
        "--evaluation_metrics": {name.replace(r"(\d+)", "K"): entry.about for name, entry in evaluation.METRICS.items()},
    }
    return "\n\n".join("\n".join([flag] + [f"  {name:20} {about}" for name, about in names.items()]) for flag, names in parts.items())


def main(argv=None):
    opt = parameters.parse(argv)
    if opt.list:
        print(listing())
        return 0
    try:
        return train(opt)
    except datasets.BrokenImage as problem:  # found in a worker process too, in any epoch
        print(f"error: {problem}; repair or remove the file, or give --skip_broken", file=sys.stderr)
        return 2


def train(opt):
    """A whole run; the process's exit status."""
    try:
        if opt.evaluate_only:
            return evaluate_only(opt)
        run = set_up(opt)
    except (ValueError, FileNotFoundError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2

    # compiled once, for the training batches alone: evaluation has other sizes
    compiled = opt.compile == "on" or (opt.compile == "auto" and run.device.type == "cuda")
    net = torch.compile(run.model) if compiled else run.model
    parts = {name: run[name] for name in ("model", "criterion", "optimizer", "scheduler", "scaler")}
    first, seconds, best = 0, 0.0, {}
    if run.state:
        for name, part in parts.items():
            part.load_state_dict(run.state[name])
        torch.set_rng_state(run.state["rng"])
        first, seconds, best = run.state["epoch"] + 1, run.state["seconds"], run.state["best"]

    # best.pt follows the validation split where there is one, else the test split, as published tables do
    watched = next((name for name in ("val", "test", "train") if name in run.evaluated), None)
    for epoch in range(first, opt.n_epochs + 1):  # epoch 0 evaluates the network as it comes
        start = time.perf_counter()
        row = {"epoch": epoch}
        if epoch > 0:
            run.model.warm_up(epoch <= opt.warmup)
            run.sampler.set_epoch(epoch)
            run.loader.dataset.set_epoch(epoch)
            row["lr"] = run.optimizer.param_groups[0]["lr"]
            try:
                row["loss"] = train_epoch(run, net, epoch, opt.n_epochs)
            except criteria.NonFinite as problem:
                print(f"error: {problem}, in epoch {epoch}; lower --lr, or look at the loss's weights. "
                      f"The epochs before are in {run.folder}", file=sys.stderr)
                return 1
            run.scheduler.step()
            row.update({f"loss/{name}": value for name, value in run.criterion.logs.items()})
        if epoch % opt.eval_every == 0 or epoch == opt.n_epochs:
            try:
                for name, split in run.evaluated.items():
                    row.update({f"{name}/{metric}": value for metric, value in evaluation.evaluate(run.model, split, opt).items()})
            except evaluation.Unmeasurable as problem:
                print(f"error: {problem}, in epoch {epoch}. The epochs before are in {run.folder}", file=sys.stderr)
                return 1
        seconds += time.perf_counter() - start
        row["seconds"] = round(seconds, 2)
        run.log.row(**row)
        logger.write_protocol(run.folder, run.log.rows, opt.storage_metrics[0])

        state = {name: part.state_dict() for name, part in parts.items()}
        state.update(epoch=epoch, seconds=seconds, best=best, rows=run.log.rows, rng=torch.get_rng_state(), arch=opt.arch, embed_dim=opt.embed_dim)
        for i, metric in enumerate(opt.storage_metrics):
            value = row.get(f"{watched}/{metric}")
            if value is not None and value > best.get(metric, -np.inf):
                best[metric] = value
                checkpoint.save(os.path.join(run.folder, "best.pt" if i == 0 else f"best_{metric}.pt"), state)
                if i == 0 and opt.store_improvements:
                    checkpoint.save(os.path.join(run.folder, f"improved_epoch{epoch:04d}.pt"), state)
        checkpoint.save(os.path.join(run.folder, "checkpoint.pt"), state)
        shown = {f"{watched} {m}": row.get(f"{watched}/{m}") for m in opt.evaluation_metrics}
        if any(v is not None for v in shown.values()):
            print(f"epoch {epoch:3d}/{opt.n_epochs}" + (f"  loss {row['loss']:.3f}" if epoch else "  untrained")
                  + "".join(f"  {name} {value:.3f}" for name, value in shown.items() if value is not None)
                  + f"  {seconds:.0f} s" + ("  PARTIAL DATA" if run.partial else ""), flush=True)
    for name, chosen in logger.protocol_rows(run.log.rows, opt.storage_metrics[0]).items():
        print(f"{name}: epoch {chosen['epoch']}" + "".join(f"  {m} {chosen[f'test/{m}']:.3f}" for m in opt.evaluation_metrics if f"test/{m}" in chosen))
    if opt.save_embeddings:
        save_embeddings(run, opt, run.folder)
    run.log.close()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nstopped; --resume goes on from the last whole epoch", file=sys.stderr)
        sys.exit(130)
