"""The flags that --resume and --evaluate_only take from an earlier run. Without torch, which takes seconds."""

import os

from utilities.folders import all_flags, find, read_config, run_name

# flags that may differ from those of the run that --resume goes on with: what is learned does not depend on them
MAY_CHANGE = {
    "resume", "list", "n_epochs", "kernels", "gpu", "source_path", "cache", "save_path", "savename", "group", "project",
    "checkpoint_minutes", "grad_cache", "profile", "no_train_metrics", "no_test_metrics", "evaluation_metrics",
    "evaltypes", "storage_metrics", "store_improvements", "search", "kmeans_restarts", "save_embeddings",
    "evaluate_on_cpu", "eval_every", "tensorboard", "log_online", "wandb_key", "completed",
}  # fmt: skip
OF_THIS_EVALUATION = {
    "evaluate_only", "checkpoint", "save_embeddings", "resume", "list", "gpu", "evaluate_on_cpu", "search", "profile",
}  # fmt: skip


def flags_of_run(given, defaults):
    """(flags of the run gone on with or evaluated, the folder of one gone on with); ({}, None) for a new run."""
    if given.get("evaluate_only") and given.get("checkpoint"):
        folder = os.path.dirname(os.path.abspath(given["checkpoint"]))
        if not os.path.isfile(os.path.join(folder, "config.json")):
            return {}, None
        flags = all_flags(read_config(folder))
        return {name: value for name, value in flags.items() if name not in OF_THIS_EVALUATION}, None
    folder = given.get("resume", False)
    if folder is False:
        return {}, None
    if folder is True:
        named = {**defaults, **given}
        run = run_name(named["savename"], named["group"], named["seed"])
        folder = find(named["save_path"], named["dataset"], run)
        if folder is None:
            return {}, None
    try:
        saved = all_flags(read_config(folder))
    except ValueError as problem:
        raise ValueError(f"--resume {problem}") from problem
    for name, value in given.items():
        if name not in MAY_CHANGE and name in saved and saved[name] != value:
            raise ValueError(
                f"--resume {folder}: that run has --{name} {shown(saved[name])}, not {shown(value)}; "
                "leave the flag out, or start a new run without --resume"
            )
    kept = {name: value for name, value in saved.items() if name not in ("list", "profile")}
    evaluated = given.get("evaluation_metrics", kept.get("evaluation_metrics", ()))
    if not set(kept.get("storage_metrics", ())) <= set(evaluated):
        del kept["storage_metrics"]  # best.pt goes by another metric from now on
    return kept, folder


def shown(value):
    return " ".join(map(str, value)) if isinstance(value, list) else value
