"""From folders of runs to rows of a table: which runs count, which make a row, what it is called, which is its base."""

import glob
import os
import re
import shlex
from dataclasses import dataclass

import numpy as np
import pandas as pd

import parameters
from evaluation.collapse import COLLAPSE, is_collapse
from utilities import folders

NAMES = {
    "proxyanchor": "ProxyAnchor", "multisimilarity": "MultiSimilarity", "nir": "NIR", "contrastive": "Contrastive",
    "triplet": "Triplet", "margin": "Margin", "npair": "N-pair", "proxynca": "ProxyNCA", "arcface": "ArcFace",
    "normalized_softmax": "Normalized softmax",
}  # fmt: skip
OF_ANTICO = ("antico_", "loss_ac_")  # flags that a base loss does not have
IN_NAME = {"loss", "antico_type", "antico_base", "antico_form", "antico_scale", "loss_oproxy_mode"}
PERCENT = re.compile(r"([ec]_)?(recall@\d+|nmi|f1|mAP(@R|_\w+)|R-precision)|coding_rate@share")
HEADINGS = {"nmi": "NMI", "f1": "F1", "coding_rate@share": "coding rate", "effective_rank": "effective rank"}
DATA = {"seed", "dataset", "source_path"}  # seeds are averaged, and data make tables
KNOWN = parameters.flags()


# --- runs ---


def find_runs(places):
    """The folders of the runs in these places, each once, though links or two places lead there. Raises ValueError."""
    found = {}
    for place in places:
        paths = sorted(glob.glob(os.path.join(glob.escape(place), "**", "config.json"), recursive=True))
        if not paths:
            raise ValueError(f"{place}: no run there (a folder with config.json and metrics.csv)")
        for folder in map(os.path.dirname, paths):
            found.setdefault(os.path.realpath(folder), os.path.normpath(folder))
    return list(found.values())


def read_metrics(path):
    """(metrics.csv as numbers, names of its columns with one that is not finite). Raises ValueError, one line."""
    if not os.path.exists(path):
        return pd.DataFrame({"epoch": []}), ""
    try:
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = text.replace("", "nan").astype(float)
        broken = (text != "") & ~np.isfinite(table)
        return table.astype({"epoch": int}), ", ".join(table.columns[broken.any()])
    except (ValueError, KeyError) as problem:
        raise ValueError(f"{path}: damaged ({str(problem).splitlines()[0]})") from problem


def read_run(folder, which):
    """A run as a dict: its config.json and metrics.csv, the flags that acted, and why its numbers do not count.

    kind, reason: "" where they do; chosen: {column: value} of the epoch that --row names, empty where they do not.
    """
    config = folders.read_config(folder)
    metrics, broken = read_metrics(os.path.join(folder, "metrics.csv"))
    every, done = folders.all_flags(config), int(metrics["epoch"].max()) if len(metrics) else -1
    epochs = max(every["n_epochs"], done)  # --resume with fewer epochs than were trained does not untrain
    kind, reason = "", ""
    if config.get("partial"):
        kind, reason = "partial", f"partial data ({config['partial']}); complete them and start it anew"
    elif trouble := broken and f"{broken} not finite" or (done < epochs and folders.divergence(folder)):
        kind, reason = "diverged", f"diverged: {trouble}; start it anew, with a lower --lr, --warmup or another weight"
    elif done < epochs:
        state = "before its first evaluation" if done < 0 else f"after epoch {done} of {epochs}"
        kind, reason = "unfinished", f"unfinished, {state}; python main.py --resume {shlex.quote(folder)} goes on"
    run = dict(folder=folder, config=config, metrics=metrics, every=every, seed=int(config["seed"]), kind=kind)
    run |= dict(flags=acting(config, epochs), data=data_of(config, every), began=config.get("started"), reason=reason)
    best_by = (every.get("storage_metrics") or ["e_recall@1"])[0]
    return run | dict(best_by=best_by, chosen={} if kind else chosen_epoch(folder, metrics, which, best_by))


def chosen_epoch(folder, metrics, which, best_by):
    """{column: value} of the epoch that --row names; best-* is an epoch of training, not the network before it."""
    if which == "last":
        return dict(metrics.iloc[-1])
    name, trained = f"{which.removeprefix('best-')}/{best_by}", metrics.query("epoch > 0")
    if name not in trained or trained[name].isna().all():
        raise ValueError(f"--row {which}: {folder} has measured no {name}; --row last needs none")
    return dict(trained.loc[trained[name].idxmax()])


def collect(given):
    """Every run as a line of a DataFrame: read_run's, the number of its row, and whether it collapsed."""
    # a queue's log of a run stands beside its folder, and RUNS/* has both
    places = [place for place in given.runs if not place.endswith(".log")] or given.runs
    runs = pd.DataFrame([read_run(folder, given.row) for folder in find_runs(places)])
    add_missing(runs)
    numbers = {}
    keys = ((data, frozenset(flags.items())) for data, flags in zip(runs["data"], runs["flags"]))
    runs["row"] = [numbers.setdefault(key, len(numbers)) for key in keys]
    runs["began"] = pd.to_datetime(runs["began"], utc=True, errors="coerce", format="ISO8601")
    whole = runs[runs["kind"] == ""].sort_values(["began", "folder"])
    first = whole.groupby(["row", "seed"])["folder"].transform("first")
    for number in whole.index[whole["folder"] != first]:  # not the one that suits
        reason = f"repeats seed {runs['seed'][number]} of {first[number]}, which began first and counts"
        runs.loc[number, ["kind", "reason"]] = "repeated", reason
    runs["collapsed"] = [run.kind == "" and has_collapsed(run, given.split) for run in runs.itertuples()]
    if not given.count_collapsed:
        reason = "collapsed; a result of its method, which --count_collapsed counts"
        runs.loc[runs["collapsed"], ["kind", "reason"]] = "collapsed", reason
    return runs


def has_collapsed(run, split):
    """By the rule of training, where the shown epoch measured the rank or the share."""
    rank, share = (run.chosen.get(f"{split}/{name}", np.nan) for name in COLLAPSE)
    return is_collapse(rank, share, run.flags["embed_dim"])


def data_of(config, flags):
    """What the runs of a table share, in words that tell more and more: data set, part of it, size, what is tested."""
    facts, each = config.get("data") or {}, flags.get("train_images")
    place = os.path.basename(os.path.normpath(str(flags.get("source_path")))) if flags["dataset"] == "folder" else ""
    name, n_classes, tested = f"{flags['dataset']} {place}".strip(), facts.get("n_classes"), facts.get("contents") or ""
    words = f"{name} ({facts.get('n_images')} training images of {n_classes} classes)" if n_classes else name
    if flags.get("use_tv_split") or flags.get("train_classes"):  # drawn by the seed, and the images' number with them
        words = f"{name} ({n_classes} training classes" + (f", at most {each} images each)" if each else ")")
        tested = ", ".join(part for part in tested.split(", ") if not part.startswith(("train ", "val ")))
    skipped = len(config.get("skipped_broken") or ())
    words += f", {skipped} broken images skipped" if skipped else ""
    return (
        name,
        f"{name}, {n_classes} classes" + (f" x {each} images" if each else ""),
        words,
        words + (f"; {tested}" if tested else ""),
    )


# --- metrics ---


def heading(metric):
    recall = re.fullmatch(r"[ec]_recall@(\d+)", metric)
    name = f"Recall@{recall[1]}" if recall else HEADINGS.get(metric.removeprefix("c_"), metric.removeprefix("c_"))
    return name + (" (cosine)" if metric.startswith("c_") else "")


def factor(metric):
    return 100 if PERCENT.fullmatch(metric) else 1


# --- flags ---


def acting(config, n_epochs):
    """{name: value} of the flags that acted on the run's training; one that is gone by now, only where it was on."""
    size = (config.get("data") or {}).get("input_size")  # the network's own where the flag was not given
    flags = {**config["flags"], "n_epochs": n_epochs, "input_size": size or config["flags"].get("input_size")}
    known = {name for name, flag in KNOWN.items() if flag.role == "training"} - DATA
    names = [name for name, value in flags.items() if name in known or (name not in KNOWN and value)]
    return {name: plain(flags[name]) for name in names if flags[name] is not None}


def plain(value):
    return tuple(value) if isinstance(value, list) else value


def add_missing(runs):
    """A flag that an older run lacks has its default, where it acts in other runs of that base loss."""
    together = {}
    for flags in runs["flags"]:
        together.setdefault(base_loss(flags), set()).update(flags)
    for flags, every in zip(runs["flags"], runs["every"]):
        for name in (together[base_loss(flags)] & KNOWN.keys()) - every.keys():
            if is_antico(flags) or not name.startswith(OF_ANTICO):
                flags[name] = default(name, flags["loss"], base_loss(flags))


def default(name, loss, base=None):
    return plain(parameters.defaults_of(loss, base).get(name, KNOWN[name].default))


def is_antico(flags):
    return flags["loss"].split("_")[0] == "antico"


def base_loss(flags):
    """The loss underneath, "none" where there is the term alone."""
    return flags.get("antico_base", "none") if is_antico(flags) else flags["loss"]


def recipe(flags):
    """What a row and its base have in common."""
    return {name: value for name, value in flags.items() if name != "loss" and not name.startswith(OF_ANTICO)}


def text_of(value):
    """A flag's value as on a command line."""
    if isinstance(value, tuple):
        return " ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


# --- rows ---


@dataclass(eq=False)
class Row:
    """Runs with the same data and the same acting flags."""

    flags: dict
    every: pd.DataFrame  # its runs: those that count, one a seed, and those that do not
    runs: pd.DataFrame  # those that count
    head: str  # the loss's name
    family: str  # that of its base loss; a term without one is a family of its own
    told: dict = None  # of its flags those that tell it from other rows
    usual: dict = None  # and those that tell others from it
    label: str = ""  # in the table of means, where flags of --by have columns of their own
    full: str = ""  # everywhere else
    base: "Row | None" = None  # the same recipe with AntiCo's base loss alone


def make_rows(runs, by=(), tuned=False):
    """The rows of one table: families of a base loss as they were given, the base first, numbers rising; or by `by`.

    tuned: each row has the flags that are best for it, so its base is the one row of that loss, whatever its flags.
    """
    rows = []
    for _, part in runs.groupby("row", sort=False):
        flags, counted = part["flags"].iloc[0], part[part["kind"] == ""].sort_values("seed")
        head, base = head_of(flags), base_loss(flags)
        rows.append(Row(flags, part, counted, head, head if base == "none" else loss_name(flags, base)))
    for row in rows:
        row.told, row.usual = what_tells(row, rows)
        row.label, row.full = label_of(row, by), label_of(row)
        same = [other for other in rows if is_antico(row.flags) and other.flags["loss"] == base_loss(row.flags)]
        equal = [other for other in same if recipe(other.flags) == recipe(row.flags)]
        row.base = next(iter(same if tuned and len(same) == 1 else equal), None)
    heads, families = [row.head for row in rows], [row.family for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.flags)

    def place(row):
        loss = families.index(row.family), is_antico(row.flags), heads.index(row.head), row.full != row.head
        return [sortable(row.flags.get(name)) for name in by], loss, [sortable(row.flags.get(name)) for name in names]

    return sorted(rows, key=place)


def sortable(value):
    """A value among others of the same flag, which may be of several kinds."""
    parts = value if isinstance(value, tuple) else (value,)
    return tuple((1, v, "") if isinstance(v, (int, float)) else (0 if v is None else 2, 0, str(v)) for v in parts)


def loss_name(flags, name):
    if name == "oproxy":
        return f"oproxy {flags.get('loss_oproxy_mode', '')}".strip()
    return NAMES.get(name, name.removeprefix("pml.") + " (pytorch-metric-learning)" if "." in name else name)


def head_of(flags):
    """What acted, e.g. "AntiCo batch_proxy over ProxyAnchor"."""
    loss, base, form = flags["loss"], base_loss(flags), flags.get("antico_form", "normalized")
    if not is_antico(flags):
        return loss_name(flags, loss)
    text = f"AntiCo {flags.get('antico_type') or loss.removeprefix('antico_')} "
    text += "without a base loss" if base == "none" else f"over {loss_name(flags, base)}"
    text += f", {form} form" if loss == "antico" or form != "normalized" else ""
    if flags.get("antico_scale", "published") != "published":
        return f"{text}, {flags['antico_scale']} scale"
    published = (loss, base, flags.get("loss_oproxy_mode"), form) == ("antico", "oproxy", "anchor", "exp")
    return text + (", as published" if published else "")


def what_tells(row, rows):
    """({flag: value} of what tells the row from others, {flag: value} of what it has in common with most of them).

    AntiCo's own flags are compared among rows of the same loss, others between losses too.
    """
    same, told, usual = [other for other in rows if other.head == row.head], {}, {}
    for name in dict.fromkeys(name for other in same for name in other.flags if name not in IN_NAME):
        others = [] if name.startswith(OF_ANTICO) else [r for r in rows if r.head != row.head and name in r.flags]
        values, value = [other.flags.get(name) for other in same + others], row.flags.get(name)
        if len(set(values)) > 1:
            (usual if 2 * values.count(value) > len(values) else told)[name] = value
    return told, usual


def label_of(row, without=()):
    """The loss, and in brackets what tells the row from others, but for the flags in `without`."""
    texts = []
    for name, value in row.told.items():
        if name not in without and value is not False:
            texts.append(f"{name} unset" if value is None else name if value is True else f"{name} {text_of(value)}")
    return f"{row.head} ({', '.join(texts)})" if texts else row.head


def base_command(row):
    """The command that trains the base loss alone, where no run of the table did."""
    base = base_loss(row.flags)
    flags = {"loss": base, "dataset": row.every["every"].iloc[0]["dataset"], **recipe(row.flags)}
    given = {name: value for name, value in flags.items() if name in KNOWN and value != default(name, base)}
    words = (f"--{name}" if value is True else f"--{name} {text_of(value)}" for name, value in given.items())
    return " ".join(["python main.py", *words])
