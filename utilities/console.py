"""What a run prints."""

from utilities import distributed


def notes(run):
    """Lines on the flags given that do nothing, and on --resume without a run."""
    opt = run.opt
    idle = [f"--{name}" for name in opt.given if name in run.idle]
    if idle:
        yield f"note: {', '.join(idle)}: no effect on a run of --loss {opt.loss} with these flags"
    if "resume" in opt.given and opt.resume is None:
        yield "note: --resume: there is no run of this name yet; a new one begins"


def size_of(split):
    if hasattr(split, "query"):
        return f"{len(split.query)} queries in a gallery of {len(split.gallery)}"
    return f"{len(split)} of {len(split.class_names)}"


def opening_line(run, device_name):
    """What is about to be trained."""
    opt, facts = run.opt, run.facts
    sizes = "".join(f", {name} {size_of(split)}" for name, split in run.evaluated.items())
    precision = "float32" if run.dtype is None else str(run.dtype).removeprefix("torch.")
    kind = f" ({opt.antico_type})" if opt.loss == "antico" else ""
    loss = f"{opt.loss}{kind} over {opt.antico_base}" if opt.loss.startswith("antico") else opt.loss
    processes = f" x {distributed.world()} processes" if distributed.world() > 1 else ""
    return "; ".join([
        *([f"PARTIAL DATA: {run.partial}"] if run.partial else []),
        f"{opt.dataset}: {facts['n_images']} training images of {facts['n_classes']} classes{sizes}",
        f"{opt.arch}, {opt.embed_dim} dimensions", loss, f"{device_name}{processes}, {precision}", run.folder,
        *([f"going on after {run.place}"] if run.newest else []),
    ])  # fmt: skip


def metric_values(opt, row, split, prefix=""):
    values = {metric: row.get(f"{split}/{metric}") for metric in opt.evaluation_metrics}
    return "".join(f"  {prefix}{metric} {value:.3f}" for metric, value in values.items() if value is not None)


def epoch_line(run, row):
    """An epoch: its loss, the metrics where it was evaluated, seconds of the run so far and those left, where known."""
    values = metric_values(run.opt, row, run.best_split, f"{run.best_split} ")
    loss = f"loss {row['loss']:.3f}" if "loss" in row else "before training"
    first, left = run.rows[-6:][0], ""  # as the last five epochs went; epoch 0 trains nothing
    if epochs := row["epoch"] - first["epoch"]:
        seconds = (row["seconds"] - first["seconds"]) / epochs * (run.opt.n_epochs - row["epoch"])
        left = f", {seconds:.0f} s left" if seconds else ""
    wait = f"  {run.waited:.0%} of the epoch waiting for images; see --kernels, --cache" if run.waited > 0.5 else ""
    partial = "  PARTIAL DATA" if run.partial else ""
    return f"epoch {row['epoch']:3d}/{run.opt.n_epochs}  {loss}{values}  {row['seconds']:.0f} s{left}{wait}{partial}"


def closing_lines(run):
    """The numbers of the last epoch, and of the best on test and validation split: the first of equals, from 1 on."""
    split, lines = "test" if "test" in run.evaluated else run.best_split, {"last": run.rows[-1]}
    for name in ("test", "val"):
        column = f"{name}/{run.opt.storage_metrics[0]}"
        measured = [row for row in run.rows[1:] if row.get(column) is not None]
        lines |= {f"best-{name}": max(measured, key=lambda row: row[column])} if measured else {}
    return "\n".join(f"{name}: epoch {row['epoch']}{metric_values(run.opt, row, split)}" for name, row in lines.items())
