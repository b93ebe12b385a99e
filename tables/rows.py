"""From folders of runs to rows of a table: which runs count, which make a row, what it is called, which is its base."""

import glob
import os
import re
import shlex
from dataclasses import dataclass

import numpy as np
import pandas as pd

import parameters
from criteria import BASES
from evaluation import collapse
from utilities import folders
from utilities.command_line import lookup

NAMES = {name: cls.__name__ for name, cls in BASES.items()}
NAMES |= {"npair": "N-pair", "normalized_softmax": "Normalized softmax"}
OF_ANTICO = ("antico_", "loss_ac_")  # flags that a base loss does not have
# these act with some losses only; an older run, which lacks one of the others, had its default
OF_LOSSES = ("antico_", "loss_", "batch_mining", "miner_", "pml_")
IN_NAME = {"loss", "antico_type", "antico_base", "antico_form", "antico_scale", "loss_oproxy_mode"}
PERCENT = re.compile(r"([ec]_)?(recall@\d+|nmi|f1|mAP(@R|_\w+)|R-precision)|coding_rate@share")
HEADINGS = {"nmi": "NMI", "f1": "F1", "coding_rate@share": "coding rate", "effective_rank": "effective rank"}
REPEATED = "repeats a seed of its row; the run that began first counts"
COLLAPSED = "collapsed; a result of its method, which --count_collapsed counts"
KNOWN = parameters.flags()
# seeds are averaged, and data make tables
TELLING = {name for name, flag in KNOWN.items() if flag.role == "training"} - {"seed", "dataset", "source_path"}


def find_runs(places):
    """The folders of the runs in these places, each once, though links or two places lead there. Raises ValueError."""
    found = {}
    # a queue's log of a run stands beside its folder, and RUNS/* has both
    for place in [place for place in places if not place.endswith(".log")] or places:
        paths = sorted(glob.glob(os.path.join(glob.escape(place), "**", "config.json"), recursive=True))
        if not paths:
            raise ValueError(f"{place}: no run there (a folder with config.json and metrics.csv)")
        found |= {os.path.realpath(folder): os.path.normpath(folder) for folder in map(os.path.dirname, paths)}
    return list(found.values())


def read_metrics(path):
    """(metrics.csv as numbers, names of its columns with one that is not finite). Raises ValueError, one line."""
    if not os.path.exists(path):
        return pd.DataFrame({"epoch": []}), ""
    with folders.reading(path):
        text = pd.read_csv(path, dtype=str, keep_default_na=False)
        table = text.replace("", "nan").astype(float)
        broken = (text != "") & ~np.isfinite(table)
        return table.astype({"epoch": int}), ", ".join(table.columns[broken.any()])


def read_run(folder, given):
    """A run as a dict: also why its numbers do not count (`reason`, or ""), and those of --row's epoch (`chosen`)."""
    config = folders.read_config(folder)
    metrics, broken = read_metrics(os.path.join(folder, "metrics.csv"))
    every, done = folders.all_flags(config), int(metrics["epoch"].max()) if len(metrics) else -1
    epochs = max(every["n_epochs"], done)  # --resume with fewer epochs than were trained does not untrain
    best_by, reason, chosen = (every.get("storage_metrics") or ["e_recall@1"])[0], "", {}
    if config.get("partial"):
        reason = f"partial data ({config['partial']}); complete them and start it anew"
    elif trouble := broken and f"{broken} not finite" or (done < epochs and folders.divergence(folder)):
        reason = f"diverged: {trouble}; start it anew, with a lower --lr, --warmup or another weight"
    elif done < epochs:
        state = "before its first evaluation" if done < 0 else f"after epoch {done} of {epochs}"
        reason = f"unfinished, {state}; python main.py --resume {shlex.quote(folder)} goes on"
    elif given.row == "last":
        chosen = dict(metrics.iloc[-1])
    else:
        trained = metrics[metrics["epoch"] > 0].dropna(axis=1, how="all")  # epoch 0 is the network before training
        best = lookup(f"--row {given.row}: {folder}:", f"{given.row.removeprefix('best-')}/{best_by}", trained)
        chosen = dict(trained.loc[best.idxmax()])
    rank, share = (chosen.get(f"{given.split}/{name}") for name in collapse.COLLAPSE)
    found = re.search(rf"\b({given.split}|gallery) (\d+)", (config.get("data") or {}).get("contents") or "")
    n_images = int(found[2]) if found else 0  # that are searched, and that span the space
    collapsed = collapse.is_collapse(rank, share, min(every["embed_dim"], n_images or every["embed_dim"]))
    run = dict(folder=folder, config=config, metrics=metrics, every=every, best_by=best_by, chosen=chosen)
    run |= dict(reason=reason, collapsed=collapsed, n_images=n_images, began=config.get("started"))
    return run | dict(seed=int(config["seed"]), flags=acting(config, epochs), data=data_of(config, every))


def collect(given):
    """Every run as a line of a DataFrame: read_run's, and `row`, what it has in common with others of its row."""
    runs = pd.DataFrame([read_run(folder, given) for folder in find_runs(given.runs)])
    runs["row"] = [(data, frozenset(flags.items())) for data, flags in zip(runs["data"], runs["flags"])]
    runs["began"] = pd.to_datetime(runs["began"], utc=True, errors="coerce", format="ISO8601")
    whole = runs[runs["reason"] == ""].sort_values(["began", "folder"])
    runs.loc[whole.index[whole.duplicated(["row", "seed"])], "reason"] = REPEATED  # whatever its numbers
    runs["collapsed"] &= runs["reason"] == ""
    if not given.count_collapsed:
        runs.loc[runs["collapsed"], "reason"] = COLLAPSED
    return runs


def data_of(config, flags):
    """What the runs of a table share, in words that tell more and more: data set, part of it, size, what is tested."""
    facts, each = config.get("data") or {}, flags.get("train_images")
    place = os.path.basename(os.path.normpath(str(flags.get("source_path")))) if flags["dataset"] == "folder" else ""
    name, n_classes, tested = f"{flags['dataset']} {place}".strip(), facts.get("n_classes"), facts.get("contents") or ""
    words = f"{name} ({facts.get('n_images')} training images of {n_classes} classes)" if n_classes else name
    if flags.get("use_tv_split") or flags.get("train_classes"):  # drawn by the seed, and the images' number with them
        words = f"{name} ({n_classes} training classes" + (f", at most {each} images each)" if each else ")")
        tested = re.sub(r"\b(train|val) [^,]*(, )?", "", tested)
    words += f", {len(skipped)} broken images skipped" if (skipped := config.get("skipped_broken")) else ""
    few = f"{name}, {n_classes} classes" + (f" x {each} images" if each else "")
    return name, few, words, f"{words}; {tested}".removesuffix("; ")


def heading(metric):
    recall = re.fullmatch(r"[ec]_recall@(\d+)", metric)
    name = f"Recall@{recall[1]}" if recall else HEADINGS.get(metric.removeprefix("c_"), metric.removeprefix("c_"))
    return name + (" (cosine)" if metric.startswith("c_") else "")


def factor(metric):
    return 100 if PERCENT.fullmatch(metric) else 1


def acting(config, n_epochs):
    """{name: value} of the flags that acted on the run's training; one that is gone by now, only where it was on."""
    size = (config.get("data") or {}).get("input_size")  # the network's own where the flag was not given
    new = [name for name in TELLING - folders.all_flags(config).keys() if not name.startswith(OF_LOSSES)]
    flags = {**{name: KNOWN[name].default for name in new}, **config["flags"], "n_epochs": n_epochs}
    flags["input_size"] = size or flags.get("input_size")
    acted = {n: v for n, v in flags.items() if v is not None and (n in TELLING or v and n not in KNOWN)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in acted.items()}


def is_antico(flags):
    return flags["loss"].split("_")[0] == "antico"


def base_loss(flags):
    """The loss underneath, "none" where there is the term alone."""
    return flags.get("antico_base", "none") if is_antico(flags) else flags["loss"]


def text_of(value):
    """A flag's value as on a command line."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(text_of, value))
    return f"{value:.9g}" if isinstance(value, float) else "unset" if value is None else str(value)


@dataclass(eq=False)
class Row:
    """Runs with the same data and the same acting flags."""

    flags: dict
    every: pd.DataFrame  # its runs
    runs: pd.DataFrame = None  # those that count, one a seed
    head: str = ""  # the loss's name
    family: str = ""  # that of its base loss; a term without one is a family of its own
    told: dict = None  # what_tells it from others
    label: str = ""
    base: "Row | None" = None  # the same recipe with AntiCo's base loss alone
    lacks: str = ""  # the command that makes a base, where there is none
    values: pd.DataFrame = None  # a line a seed, a column a metric, in the units shown
    cells: dict = None  # {metric: its numbers by name}, see report.cell


def make_rows(runs, by=(), tuned=False):
    """The rows of one table: families of a base loss as they were given, the base first, numbers rising; or by `by`.

    tuned: each row has the flags that are best for it, so its base is the one row of that loss, whatever its flags.
    """
    rows = [Row(part["flags"].iloc[0], part) for _, part in runs.groupby("row", sort=False)]
    for row in rows:
        row.runs, row.head = row.every[row.every["reason"] == ""].sort_values("seed"), head_of(row.flags)
        row.family = row.head.partition(" over ")[2].split(", ")[0] or row.head
    for row in rows:
        row.told = what_tells(row, rows)
        row.label = label_of(row)
        alone = [r for r in rows if is_antico(row.flags) and r.flags["loss"] == base_loss(row.flags)]
        equal = [r for r in alone if recipe(r.flags) == recipe(row.flags)]
        row.base = next(iter(alone if tuned and len(alone) == 1 else equal), None)
        if is_antico(row.flags) and base_loss(row.flags) != "none" and not (row.base or tuned and alone):
            row.lacks = base_command(row)
    heads, families = [row.head for row in rows], [row.family for row in rows]
    names = dict.fromkeys(name for row in rows for name in row.flags)
    loss = {r: (families.index(r.family), is_antico(r.flags), heads.index(r.head), r.label != r.head) for r in rows}
    return sorted(rows, key=lambda r: ([sortable(r, n) for n in by], loss[r], [sortable(r, n) for n in names]))


def recipe(flags):
    """What a row and its base have in common."""
    return {name: value for name, value in flags.items() if name != "loss" and not name.startswith(OF_ANTICO)}


def base_command(row):
    """The command that trains the base loss alone."""
    base = base_loss(row.flags)
    flags = {"loss": base, "dataset": row.every["every"].iloc[0]["dataset"], **recipe(row.flags)}
    usual = {name: flag.default for name, flag in KNOWN.items()} | parameters.DEFAULTS.get(base, {})
    given = {name: text_of(value) for name, value in flags.items() if text_of(value) != text_of(usual.get(name, value))}
    return " ".join(["python main.py", *(f"--{name} {text}".removesuffix(" True") for name, text in given.items())])


def sortable(row, name):
    """A row's value of a flag among those of others, which may be of several kinds: words after numbers, none first."""
    words = text_of(row.flags[name]).split() if name in row.flags else []
    return [(False, float(w), "") if re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", w) else (True, 0, w) for w in words]


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
    told = {"guard": "", "normalized": ", fixed weight"}  # of the names of our own
    text += f", {form} form" if loss == "antico" or form not in told else told[form]
    if (scale := flags.get("antico_scale", "published")) != "published":
        return f"{text}, {scale} scale"
    published = (loss, base, flags.get("loss_oproxy_mode"), form) == ("antico", "oproxy", "anchor", "exp")
    return text + (", as published" if published else "")


def what_tells(row, rows):
    """{flag: (value as text, whether most have it)} of the flags in which rows differ."""
    told = {}
    for name in dict.fromkeys(n for other in rows if other.head == row.head for n in other.flags if n not in IN_NAME):
        own = name.startswith(OF_ANTICO)  # is compared in rows of the same loss
        values = [text_of(r.flags.get(name)) for r in rows if r.head == row.head or name in r.flags and not own]
        if len(set(values)) > 1:
            value = text_of(row.flags.get(name))
            told[name] = value, 2 * values.count(value) > len(values)
    return told


def label_of(row, without=()):
    """The loss, and in brackets what tells the row from most others, but for the flags in `without`."""
    told = {n: text for n, (text, usual) in row.told.items() if not usual and n not in without and text != "False"}
    texts = [f"{name} {text}".removesuffix(" True") for name, text in told.items()]
    return f"{row.head} ({', '.join(texts)})" if texts else row.head
