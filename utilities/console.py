"""What a run prints."""

from tqdm import tqdm

from utilities import distributed
from utilities.records import protocol_rows


def notes(opt, idle):
    """Lines on the flags given that do nothing, and on --resume without a run."""
    idle = [f"--{name}" for name in opt.given if name in idle]
    if idle:
        yield f"note: {', '.join(idle)}: no effect on a run of --loss {opt.loss} with these flags"
    if "resume" in opt.given and opt.resume is None:
        yield "note: --resume: there is no run of this name yet; a new one begins"


def opening_line(run, config):
    """What is about to be trained."""
    opt, sizes = run.opt, []
    for name, split in run.evaluated.items():
        one = not hasattr(split, "query")
        size = (
            f"{len(split)} of {len(split.class_names)}"
            if one
            else f"{len(split[0])} queries in a gallery of {len(split[1])}"
        )
        sizes.append(f"{name} {size}")
    n_images, n_classes = len(run.loader.dataset), run.facts["n_classes"]
    precision = "float32" if run.dtype is None else str(run.dtype).removeprefix("torch.")
    processes = f" x {distributed.world()} processes" if distributed.world() > 1 else ""
    parts = [f"{opt.dataset}: {n_images} training images of {n_classes} classes, {', '.join(sizes)}", opt.arch]
    parts[1] += f", {opt.embed_dim} dimensions"
    parts += [opt.loss, f"{config['device']}{processes}, {precision}", run.folder]
    parts += [f"going on after {run.place}"] if run.newest else []
    return (f"PARTIAL DATA: {run.partial}\n" if run.partial else "") + "; ".join(parts)


def progress_bar(run, epoch, batches):
    """The batches under a bar of the epoch's steps; only in a terminal, of the first process."""
    return tqdm(
        batches, desc=f"epoch {epoch}/{run.opt.n_epochs}", total=run.sampler.n_batches, initial=run.step, leave=False,
        disable=True if distributed.rank() else None, dynamic_ncols=True,
    )  # fmt: skip


def metric_values(opt, row, split, prefix=""):
    values = {metric: row.get(f"{split}/{metric}") for metric in opt.evaluation_metrics}
    return "".join(f"  {prefix}{metric} {value:.3f}" for metric, value in values.items() if value is not None)


def epoch_line(run, row):
    """An epoch: its loss, the metrics where it was evaluated, seconds of the run so far and those left, where known."""
    values = metric_values(run.opt, row, run.best_split, f"{run.best_split} ")
    loss = f"loss {row['loss']:.3f}" if "loss" in row else "untrained"
    first, left = run.rows[-6:][0], ""  # as the last five epochs went; epoch 0 trains nothing
    if epochs := row["epoch"] - first["epoch"]:
        seconds = (row["seconds"] - first["seconds"]) / epochs * (run.opt.n_epochs - row["epoch"])
        left = f", {seconds:.0f} s left" if seconds else ""
    partial = "  PARTIAL DATA" if run.partial else ""
    return f"epoch {row['epoch']:3d}/{run.opt.n_epochs}  {loss}{values}  {row['seconds']:.0f} s{left}{partial}"


def closing_lines(run):
    """The run's numbers: of the last epoch and of the best."""
    split = "test" if "test" in run.evaluated else run.best_split
    chosen = protocol_rows(run.rows, run.opt.storage_metrics[0])
    return "\n".join(
        f"{name}: epoch {row['epoch']}{metric_values(run.opt, row, split)}" for name, row in chosen.items()
    )
