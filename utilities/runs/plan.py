"""From the words of a command line to the list of runs."""

import argparse
import functools
import hashlib
import itertools
import os
import re
import sys
from dataclasses import dataclass

import parameters
from utilities import recipes
from utilities.flags import HOUSEKEEPING, defaults
from utilities.registry import lookup, near
from utilities.runs import records

PROGRAM = [sys.executable, os.path.join(records.ROOT, "main.py")]
OTHERWISE = {  # flags of main.py that the queue gives itself
    "seed": '--seeds "0 1 2"', "dataset": "--datasets NAME ...", "arch": "--archs NAME ...", "save_path": "--out DIR",
    "source_path": "the folder after the table's name", "gpu": "--gpus 0,1", "resume": "nothing: it resumes by itself",
    "group": "nothing: runs are named by their flags", "savename": "nothing: runs are named by their flags",
    "profile": "python main.py", "list": "python main.py", "evaluate_only": "python main.py",
    "checkpoint": "python main.py",
}  # fmt: skip
OWN = ("seeds", "datasets", "archs", "out", "dry_run", "gpus", "jobs", "slurm", "grid")
PATHS = ("weights", "cache")  # flags with a path
SWITCH = {"on": True, "true": True, "off": False, "false": False}


@dataclass(frozen=True, eq=False)
class Run:
    """One run of main.py, and where it is found again."""

    dataset: str
    flags: dict  # what its command line has
    opt: argparse.Namespace  # and means
    group: str

    @property
    def name(self):
        return f"{self.dataset}/{self.group}_s{self.opt.seed}"

    @functools.cached_property
    def key(self):
        return records.key(vars(self.opt))

    @property
    def lock_name(self):
        return hashlib.sha256(self.key.encode()).hexdigest()[:16]

    @property
    def like(self):
        """What decides how long it takes, roughly."""
        return self.dataset, self.opt.arch

    @property
    def folder(self):
        """Where the data set's runs are."""
        return os.path.join(self.opt.save_path, self.dataset)

    @property
    def log(self):
        return os.path.join(self.opt.save_path, f"{self.name}.log")

    @property
    def columns(self):
        """Of metrics.csv, that its table shows."""
        opt = self.opt
        splits = ["test"] * (not opt.no_test_metrics) + ["val"] * opt.use_tv_split
        return {f"{split}/{metric}" for split in splits for metric in opt.evaluation_metrics}

    def find(self, scanned=None):
        """The Record of this run, None before its first start. `scanned`: of its folder, where that is at hand."""
        return (records.scan(self.folder)[0] if scanned is None else scanned).get(self.key)

    def command(self, record):
        """The words that start it, or go on with the run of a Record."""
        if record is None:
            return PROGRAM + words_of({**self.flags, "group": self.group})
        own = HOUSEKEEPING - {"save_path"} | {"source_path"}
        return PROGRAM + words_of({"resume": record.folder, **{n: v for n, v in self.flags.items() if n in own}})


def words_of(flags):
    """{name: value} as words of a command line."""
    words = []
    for name, value in flags.items():
        if value is False:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += map(str, value if isinstance(value, list) else [value])
    return words


def check_name(prefix, name):
    """ValueError, one line, if main.py has no such flag, or the queue gives it itself."""
    if name in OTHERWISE:
        raise ValueError(f"{prefix}{name}: give {OTHERWISE[name]} instead")
    if name not in defaults():
        known = [prefix + flag for flag in (*defaults(), *OWN)]
        raise ValueError(f"{prefix}{name}: unknown{near(prefix + name, known, cutoff=0.7)}")


def flag_value(name, values):
    """The value of a flag of main.py from its words. Raises ValueError, one line, for a wrong switch."""
    default = defaults()[name]
    if isinstance(default, bool):
        if len(values) > 1 or (values and values[0] not in SWITCH):
            raise ValueError(f"--{name} {' '.join(values)}: is a switch, on or off")
        return SWITCH[values[0]] if values else True
    if isinstance(default, list) or len(values) != 1:
        return values
    here = name in PATHS and values[0] and "://" not in values[0]  # runs start in another folder
    return os.path.abspath(values[0]) if here else values[0]


def flags_of(words):
    """{name: value} of more flags for main.py; the last of one name counts. Raises ValueError, one line."""
    groups = []
    for word in words:
        if word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            groups.append((name, [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
        else:
            raise ValueError(f"{word}: not understood; the folder of the data stands right after the table's name")
    for name, _ in groups:
        check_name("--", name)
    return {name: flag_value(name, values) for name, values in groups}


def grid_rows(words):
    """The product of "flag=value,value" words as dicts of flags. Raises ValueError, one line."""
    axes = []
    for word in words:
        name, equals, values = word.partition("=")
        if not equals or not values:
            raise ValueError(f"--grid {word}: write FLAG=VALUE,VALUE, e.g. antico_w=10,100")
        check_name("--grid ", name)
        several = isinstance(defaults()[name], list)
        axes.append([(name, flag_value(name, v.split() if several else [v])) for v in values.split(",")])
    repeated = {axis[0][0] for axis in axes if sum(axis[0][0] == other[0][0] for other in axes) > 1}
    if repeated:
        raise ValueError(f"--grid {repeated.pop()}: stands twice; give all its values in one word")
    return [dict(combination) for combination in itertools.product(*axes)]


def of_kind(choices, dataset):
    return choices["glyphs" if dataset == "glyphs" else "images"] if isinstance(choices, dict) else choices


def networks(table, dataset, archs):
    """The flags of each network: of --archs, else the table's, else the data set's own (no flags)."""
    known = [{"arch": a} if isinstance(a, str) else a for a in of_kind(table.get("archs", []), dataset)]
    if archs:
        by_name = {flags["arch"]: flags for flags in known}
        known = [by_name.get(with_suffix(a, dataset), {"arch": a}) for a in archs]
    return [{**flags, "arch": with_suffix(flags["arch"], dataset)} for flags in known] or [{}]


def with_suffix(arch, dataset):
    """A backbone's bare name with the suffixes that the recipes have: resnet50 → resnet50_frozen_normalize_double."""
    return arch if "_" in arch else arch + of_kind(recipes.SUFFIX, dataset)


def plan(table_name, given, extras, kind=Run):
    """The runs of a table, each once, seed by seed. Raises ValueError, or SystemExit of main.py's parser."""
    table = recipes.TABLES[table_name]
    rows = grid_rows(given.grid) if table_name == "grid" else None
    runs = {}
    for seed in given.seeds:
        for dataset in given.datasets or table["datasets"]:
            recipe = lookup("--datasets", dataset, recipes.DATASETS)
            place = dict(dataset=dataset, seed=seed, save_path=os.path.join(given.out, "runs"))
            if given.data:
                place["source_path"] = given.data
            for network in networks(table, dataset, given.archs):
                for row in rows or of_kind(table["rows"], dataset):
                    chosen = {**network, **row, **extras}
                    prefix = [table_name] if "flags" in table else []
                    run = make(place, {**recipe, **table.get("flags", {})}, chosen, prefix, kind)
                    runs.setdefault(run.key, run)
    return list(runs.values())


def make(place, recipe, chosen, prefix, kind):
    """The Run of a place (data set, seed, folder), a recipe, and flags over it; what has no effect falls away."""
    every = {**place, **recipe, **chosen}
    opt = parameters.parse(words_of(every))
    idle = parameters.without_effect(opt)
    flags = {name: value for name, value in every.items() if name not in idle}
    group = group_name(recipe, opt, [n for n in chosen if n in flags and n not in HOUSEKEEPING], prefix)
    return kind(place["dataset"], flags, opt, group)


def group_name(recipe, opt, names, prefix):
    """The loss, and what differs from its recipe: antico_pair,antico_base=proxyanchor,antico_w=30."""
    plain = plain_flags(tuple(words_of({**recipe, "loss": opt.loss})))
    parts = [*prefix, opt.loss]
    for name in names:
        value = getattr(opt, name)
        if name != "loss" and value != plain[name]:
            values = value if isinstance(value, list) else [value]
            text = "+".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
            parts.append(name if value is True else f"{name}={text}")
    return slug(",".join(parts))


@functools.cache
def plain_flags(words):
    return vars(parameters.parse(list(words)))


def slug(text):
    """A file's name: no spaces or slashes, at most 120 characters."""
    text = re.sub(r"[^\w.,=+-]", "-", text)
    return text if len(text) <= 120 else f"{text[:110]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def table_path(name, given, extras):
    """Where the table is written: its name, and what differs from the recipe, so that one never replaces another."""
    parts = [name]
    if given.datasets and given.datasets != recipes.TABLES[name]["datasets"]:
        parts += given.datasets
    if "folder" in parts and given.data:  # one's own images
        parts.append(os.path.basename(given.data))
    parts += given.archs or []
    words = [word.lstrip("-") for word in words_of(extras)] + (given.grid or [])
    return os.path.join(given.out, slug("_".join([*parts, *words])))
