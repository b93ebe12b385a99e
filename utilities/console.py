"""What a run prints."""

from tqdm import tqdm

from utilities import distributed
from utilities.collapse import is_collapse
from utilities.trackers import protocol_rows

COLLAPSE = ("effective_rank", "coding_rate@share")  # measured at every evaluation, for collapse_line


def opening_line(run, config):
    """What is about to be trained."""

    def size(split):
        if hasattr(split, "query"):
            return f"{len(split.query)} queries in a gallery of {len(split.gallery)}"
        return f"{len(split)} of {len(split.class_names)}"

    opt, progress = run.opt, run.progress
    sizes = ", ".join(f"{name} {size(split)}" for name, split in run.evaluated.items())
    precision = "float32" if run.dtype is None else str(run.dtype).removeprefix("torch.")
    processes = f" x {distributed.world()} processes" if distributed.world() > 1 else ""
    resumed = (
        f"; going on after epoch {progress.epoch}, step {progress.step} of the next" if progress.epoch >= 0 else ""
    )
    return (
        (f"PARTIAL DATA: {run.partial}\n" if run.partial else "")
        + f"{opt.dataset}: {len(run.loader.dataset)} training images of {config['data']['n_classes']} classes, "
        f"{sizes}; "
        f"{opt.arch}, {opt.embed_dim} dimensions; {opt.loss}; {config['device']}{processes}, {precision}; "
        f"{run.checkpoints.folder}{resumed}"
    )


def progress_bar(run, epoch):
    """A bar of the epoch's steps; only in a terminal, of the first process."""
    return tqdm(
        desc=f"epoch {epoch}/{run.opt.n_epochs}", total=run.sampler.n_batches, initial=run.progress.step, leave=False,
        disable=True if distributed.rank() else None, dynamic_ncols=True,
    )  # fmt: skip


def epoch_line(run, row):
    """An epoch: its loss, the metrics where it was evaluated, seconds of the run so far and those left, where known."""
    values = metric_values(run.opt, row, run.best_split, f"{run.best_split} ")
    loss = f"loss {row['loss']:.3f}" if "loss" in row else "untrained"
    partial = "  PARTIAL DATA" if run.partial else ""
    left = seconds_left(run.progress.rows, run.opt.n_epochs)
    left = f", {left:.0f} s left" if left else ""
    return f"epoch {row['epoch']:3d}/{run.opt.n_epochs}  {loss}{values}  {row['seconds']:.0f} s{left}{partial}"


def metric_values(opt, row, split, prefix=""):
    values = {metric: row.get(f"{split}/{metric}") for metric in opt.evaluation_metrics}
    return "".join(f"  {prefix}{metric} {value:.3f}" for metric, value in values.items() if value is not None)


def seconds_left(rows, n_epochs):
    """As the last five epochs went; epoch 0 trains nothing, so that it takes two rows to know."""
    first, last = rows[-6:][0], rows[-1]
    epochs = last["epoch"] - first["epoch"]
    return (last["seconds"] - first["seconds"]) / epochs * (n_epochs - last["epoch"]) if epochs else None


def collapse_line(metrics, split, embed_dim):
    """A line that says a collapse, empty where there is none."""
    rank, share = (metrics[name] for name in COLLAPSE)
    dimensions = min(embed_dim, len(getattr(split, "gallery", split)))  # few images span no more
    if not is_collapse(rank, share, dimensions):
        return ""
    return (
        f"\nthe embeddings have collapsed: effective rank {rank:.1f} of {dimensions}, coding rate {share:.0%} of its "
        "maximum; a lower --lr, --warmup or AntiCo's pair term (--loss antico_pair, --antico_eps 0.005) help"
    )


def closing_lines(run):
    """The run's numbers: of the last epoch and of the best."""
    split = "test" if "test" in run.evaluated else run.best_split
    chosen = protocol_rows(run.progress.rows, run.opt.storage_metrics[0])
    return "\n".join(
        f"{name}: epoch {row['epoch']}{metric_values(run.opt, row, split)}" for name, row in chosen.items()
    )
