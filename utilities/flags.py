"""The flags of a run as its config.json has them: which act, which may change, which are taken over.

Without torch, which takes seconds.
"""

import argparse
import functools
import os

from utilities.folders import all_flags, find, read_config, run_name

# of where, how fast and what is looked at: what is learned does not depend on them, so they tell no runs apart
HOUSEKEEPING = {
    "resume", "list", "kernels", "gpu", "cache", "save_path", "savename", "group", "project", "checkpoint_minutes",
    "grad_cache", "profile", "no_train_metrics", "no_test_metrics", "evaluation_metrics", "evaltypes", "eval_every",
    "storage_metrics", "store_improvements", "save_embeddings", "evaluate_on_cpu", "tensorboard", "log_online",
    "wandb_key", "completed",
}  # fmt: skip
MAY_CHANGE = HOUSEKEEPING | {"n_epochs", "source_path", "search", "kmeans_restarts"}  # of a run that goes on
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


@functools.cache
def defaults(loss=None, base=None):
    """{flag: its default}; for a loss, and AntiCo's base, the defaults that go with them."""
    import parameters

    words = [word for name, value in (("loss", loss), ("antico_base", base)) if value for word in (f"--{name}", value)]
    return {name: value for name, value in vars(parameters.parse(words)).items() if name != "given"}


def acting(flags):
    """{name: value} of those that act in a run of these flags; one that is missing, as in older runs, has its default.

    Raises ValueError, one line, for a loss that there is no longer.
    """
    import parameters

    every = {**defaults(flags.get("loss"), flags.get("antico_base")), **flags}
    idle = parameters.without_effect(argparse.Namespace(**every))
    return {name: value for name, value in every.items() if name not in idle}
