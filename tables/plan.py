"""From the words of antico_runs.sh to the runs of a table, and what is on disk of each."""

import argparse
import contextlib
import csv
import glob
import hashlib
import itertools
import json
import os
import re
import shlex
import sys

import parameters
from tables import recipes
from utilities import folders
from utilities.command_line import OneLineParser, number
from utilities.registry import lookup, near

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM = [sys.executable, os.path.join(ROOT, "main.py")]
SCRIPT = "bash antico_runs.sh"
FLAGS = parameters.flags()
OURS = "seed dataset arch save_path source_path gpu group savename resume".split()  # flags that the queue gives itself
OURS += "list evaluate_only checkpoint wandb_key".split()  # and those that are no run's, or must not be in its log
USAGE = f"{SCRIPT} TABLE [DATA] [--flag value ...] [more flags of main.py, for every run]"
ABOUT = """DATA is the folder that holds the data sets; quickstart, sweep, grid and --datasets glyphs need none.
Finished runs are skipped, interrupted ones go on, a failed one stops nothing; the same command again does what is left.
A flag of main.py wins over the recipe (tables/recipes.py); `off` turns a switch of it off: --no_train_metrics off."""


# --- the words ---


def build_parser():
    tables = [f"  {name:14}{table['about']}" for name, table in recipes.TABLES.items()]
    raw, below = argparse.RawDescriptionHelpFormatter, "\n".join(["tables:", *tables])
    parser = OneLineParser(SCRIPT, USAGE, ABOUT, below, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("--seeds", nargs="+", default=[], help='a run of each; "0 1 2", 0 1 2 and 0,1,2 are the same')
    add("--datasets", nargs="+", default=[], help="instead of the table's own")
    add("--archs", nargs="+", default=[], help="instead of the table's own; resnet50 gets the recipe's suffixes")
    add("--grid", nargs="+", metavar="FLAG=VALUE,VALUE", default=[], help="of the table grid: their product")
    add("--out", default=os.path.join(ROOT, "results"), help="folder for runs and tables (%(default)s)")
    add("--gpus", nargs="+", default=[], help="one run at a time on each: 0,1; 0,0 is two on one")
    add("--jobs", type=number(int, 1, 1024), help="so many runs at once, one CPU thread each")
    add("--dry_run", action="store_true", help="print the command lines, and what is done of them")
    add("--slurm", action="store_true", help="write an array of Slurm jobs instead of running here")
    add("--number", type=number(int, 0, 10**6), help="only this run of the list; the script of --slurm gives it")
    return parser


def parse(words):
    """(Namespace of this command's words, {flag of main.py: value}). Bad words: ValueError or SystemExit, one line."""
    words = [part for word in words for part in (word.split("=", 1) if word.startswith("--") else [word])]
    if words[0] in recipes.DATASETS:  # the former spelling: the paper's recipe on one data set
        words = ["main", *words[1:], "--datasets", words[0]]
    table = lookup("TABLE", words[0], recipes.TABLES)
    parser, flags = build_parser(), [word for word in words if word.startswith("--")]
    known = [f"--{name}" for name in (*FLAGS, *vars(parser.parse_args([]))) if name not in OURS]
    for flag in flags:
        if flag not in known:
            raise ValueError(f"{flag}: unknown{near(flag, known, cutoff=0.7)}")
        if flags.count(flag) > 1:
            raise ValueError(f"{flag}: stands twice")
    has_data = len(words) > 1 and not words[1].startswith("--")
    given, more = parser.parse_known_args(words[1 + has_data :])
    given.table, given.words, given.out = words[0], words, os.path.abspath(given.out)
    given.data = os.path.abspath(words[1]) if has_data else None
    for name in ("seeds", "datasets", "archs", "gpus"):
        values = " ".join(getattr(given, name)).replace(",", " ").split()
        if f"--{name}" in flags and (not values or name != "gpus" and len(set(values)) < len(values)):
            raise ValueError(f"--{name} {' '.join(values)}: is empty, or has one twice")
        setattr(given, name, values)
    given.seeds = given.seeds or [*table.get("seeds", [0])]
    if (given.table == "grid") != bool(given.grid):
        raise ValueError("--grid FLAG=VALUE,VALUE ...: is what the table grid needs, and no other takes")
    if bool(given.jobs) + bool(given.gpus) + given.slurm > 1:
        raise ValueError("--jobs --gpus --slurm: give one; --gpus 0,0 is two runs on one GPU")
    return given, flags_of(more)


def flags_of(words):
    """{flag of main.py: value}, where a switch may have on or off behind it. ValueError or SystemExit, one line."""
    switches = {f"--{name}" for name, flag in FLAGS.items() if flag.default is False}
    off = {before[2:]: False for before, word in zip(words, words[1:]) if before in switches and word == "off"}
    words = [word for before, word in zip(["", *words], words) if not (before in switches and word in ("on", "off"))]
    unset = argparse.Namespace(**dict.fromkeys(FLAGS))
    values = vars(parameters.build_parser().parse_args(words, unset)) | off
    values = {name: value for name, value in values.items() if value is not None}
    for name in values.keys() & {"weights", "cache"}:  # runs start in another folder
        values[name] = values[name] if "://" in values[name] else os.path.abspath(values[name])
    return values


def words_of(flags):
    """{flag: value} as words of main.py's command line."""
    words = []
    for name, value in flags.items():
        if value is not False:
            words += [f"--{name}", *([] if value is True else map(str, value if isinstance(value, list) else [value]))]
    return words


def grid_rows(words):
    """The product of "flag=value,value" words as dicts of flags. ValueError or SystemExit, one line."""
    axes = {}
    for word in words:
        name, _, values = word.partition("=")
        axis = [flags_of([f"--{name}", *value.split()]) for value in values.split(",")] if values else []
        if not axis or name in OURS or name in axes or any(axis.count(value) > 1 for value in axis):
            raise ValueError(f"--grid {word}: write FLAG=VALUE,VALUE, each training flag and each value once")
        axes[name] = axis
    return [{name: value for one in row for name, value in one.items()} for row in itertools.product(*axes.values())]


# --- the runs ---


class Run:
    """A run of main.py: `flags` are those of its command line, `opt` what they mean, `trained` those that act on what
    it learns. Of one data set, runs with the same `key`, a hash and the seed, are the same run."""

    def __init__(self, place, chosen):
        from main import check_names, criteria  # torch, which --help does without

        every, self.chosen = {**place, **chosen}, chosen
        self.opt = opt = parameters.parse(words_of(every))
        check_names(opt)
        idle = parameters.without_effect(opt, criteria.acting_flags(opt)) | {"seed"}
        self.flags = {name: value for name, value in every.items() if name not in idle - {"seed"}}
        acting = [name for name, flag in FLAGS.items() if flag.role == "training" and name not in idle]
        self.trained = {name: getattr(opt, name) for name in acting}
        if not (opt.dataset == "folder" or opt.allow_partial or opt.skip_broken):
            self.trained.pop("source_path", None)  # the same data wherever it lies: its images are counted
        elif "source_path" in acting:
            self.trained["source_path"] = os.path.realpath(opt.source_path)
        # without defaults: a flag that is new to the program changes no hash
        own = parameters.defaults_of(opt.loss, self.trained.get("antico_base"))
        default = {**{name: flag.default for name, flag in FLAGS.items()}, **own, "loss": None, "antico_base": None}
        told = {name: value for name, value in self.trained.items() if value != default[name]}
        self.key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8] + f"_s{opt.seed}"
        self.parent = os.path.join(opt.save_path, opt.dataset)
        self.lock_path = os.path.join(self.parent, ".queue", self.key)

    def set_name(self, runs):
        """Its loss and, of what row and command line say, what is not the same in all these runs; its key."""
        others, parts = [run.trained for run in runs if run.opt.dataset == self.opt.dataset], [self.opt.loss]
        for name in [name for name in self.chosen if name in self.trained and name != "loss"]:
            value = self.trained[name]
            if any(other.get(name, value) != value for other in others):
                values = value if isinstance(value, list) else [value]
                text = "+".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
                parts.append(name if value is True else f"{name}={text}")
        self.folder = os.path.join(self.parent, f"{slug(','.join(parts))[:100]}-{self.key}")

    def look(self):
        """Find it on disk: its .folder, .config, .row (the last of metrics.csv), .state, and the .seconds that its
        processes took from start to end, which the queue has noted in the lock's file."""
        states = ("new", "diverged", "interrupted", "done")
        self.state, self.config, self.row, self.seconds = "new", {}, {}, 0
        ends = os.path.join(glob.escape(self.parent), f"*-{self.key}")
        for folder in sorted(glob.glob(ends) + glob.glob(f"{ends}-*")):  # -2: after one that was killed at its start
            try:
                config = folders.read_config(folder)
            except ValueError:
                continue
            flags, row = folders.all_flags(config), last_row(folder)
            if any(flags.get(name, v) != v for name, v in self.trained.items() if name != "source_path"):
                continue  # of a time with other defaults, or gone on with by hand for more epochs
            state = "diverged" if folders.divergence(folder) else "interrupted"
            state = "done" if int(row.get("epoch", -1)) >= self.opt.n_epochs else state
            if states.index(state) > states.index(self.state):
                self.folder, self.config, self.row, self.state = folder, config, row, state
        self.name = os.path.join(self.opt.dataset, os.path.basename(self.folder))
        self.log = f"{self.folder.rpartition(self.key)[0]}{self.key}.log"
        with contextlib.suppress(OSError), open(self.lock_path) as file:
            self.seconds = sum(map(float, file))

    @property
    def command(self):
        """The words that start it, or go on with it."""
        if self.state == "new":
            return PROGRAM + words_of({**self.flags, "group": os.path.basename(self.folder).rpartition("_s")[0]})
        may_change = {name: value for name, value in self.flags.items() if FLAGS[name].may_change}
        return PROGRAM + words_of({"resume": self.folder, **may_change})

    @property
    def lacks(self):
        """{flag: value} of main.py --evaluate_only that would measure what the finished run lacks for its table."""
        flags, opt = self.config["flags"], self.opt
        told = {n: getattr(opt, n) for n in ("search", "kmeans_restarts") if n in flags and flags[n] != getattr(opt, n)}
        splits = ["test"] * (not opt.no_test_metrics) + ["val"] * opt.use_tv_split
        metrics = [m for m in opt.evaluation_metrics if not all(self.row.get(f"{split}/{m}") for split in splits)]
        return {**told, "evaluation_metrics": metrics} if metrics else told


def last_row(folder):
    """The last row of metrics.csv; {} where there is none, or a damaged one: --resume writes it anew."""
    with contextlib.suppress(OSError, LookupError, AttributeError, csv.Error):
        with open(os.path.join(folder, "metrics.csv"), encoding="utf-8", newline="") as file:
            row = [*csv.DictReader(file)][-1]
        return row if row["epoch"].isdigit() else {}
    return {}


def slug(text):
    """A file's name, without spaces and slashes."""
    return re.sub(r"[^\w.,=+-]", "-", text)


# --- the table ---


def of_kind(choices, dataset):
    return choices["glyphs" if dataset == "glyphs" else "images"] if isinstance(choices, dict) else choices


def networks(table, dataset, archs):
    """The flags of each network: of --archs, else the table's, else the data set's own (no flags)."""

    def full(arch):
        return arch if "_" in arch else arch + of_kind(recipes.SUFFIX, dataset)

    known = [{"arch": a} if isinstance(a, str) else a for a in of_kind(table.get("archs", []), dataset)]
    known = {full(flags["arch"]): flags for flags in known}
    return [{**known.get(arch, {}), "arch": arch} for arch in [*map(full, archs)] or known] or [{}]


def plan(given, extras):
    """(the runs of a table, each once, seed by seed; lines to say of them). ValueError or SystemExit, one line."""
    table, made, runs, rows = recipes.TABLES[given.table], [], {}, grid_rows(given.grid) if given.grid else []
    for name in extras.keys() & (rows[0] if rows else {}):
        raise ValueError(f"--grid {name} --{name}: give one of the two")
    for seed, dataset in itertools.product(given.seeds, given.datasets or table["datasets"]):
        place = dict(dataset=dataset, seed=seed, save_path=os.path.join(given.out, "runs"))
        place |= {"source_path": given.data} if given.data else {}
        place |= {**lookup("--datasets", dataset, recipes.DATASETS), **table.get("flags", {})}
        rows_here = rows or of_kind(table["rows"], dataset)
        for network, row in itertools.product(networks(table, dataset, given.archs), rows_here):
            made.append(Run(place, {**network, **row, **extras}))
            runs.setdefault((dataset, made[-1].key), made[-1])
    idle = [name for name in extras if all(name not in run.flags for run in made)]
    notes = [f"note: --{name}: no effect on any of these runs" for name in idle]
    notes += check_grid(rows[0], made) if rows else []
    for run in runs.values():
        run.set_name(made)
        run.look()
    return [*runs.values()], notes


def check_grid(swept, made):
    """A swept flag has to act on what some run of the grid learns (else ValueError, one line); those on which it does
    not act are one row for all its values, which a line says."""
    notes = []
    for name in swept:
        acting = {run.opt.loss for run in made if name in run.trained}
        idle = dict.fromkeys(run.opt.loss for run in made if name not in run.trained)
        if not acting:
            raise ValueError(f"--grid {name}: has no effect on what {', '.join(idle)} learns; leave it out")
        runs = [f"some runs of {loss}" if loss in acting else loss for loss in idle]
        notes += [f"note: --grid {name}: no effect on {of}: one row for all its values" for of in runs]
    return notes


def missing_bases(given, runs):
    """Lines on bases of a grid that are not in it alone, with the command that has them, too."""
    losses = dict.fromkeys(run.opt.loss for run in runs)
    bases = dict.fromkeys(run.trained.get("antico_base", "none") for run in runs)
    alone = [base for base in bases if base not in (*losses, "none")]
    words = [word for before, word in zip(["", *given.words], given.words) if "--loss" not in (before, word)]
    words = [word for word in words if not word.startswith("loss=") and word != "--dry_run"]
    if alone and given.grid:
        words.insert(words.index("--grid") + 1, f"loss={','.join([*alone, *losses])}")
        yield f"note: no row of {', '.join(alone)} alone to compare with; with it: {SCRIPT} {shlex.join(words)}"


def table_path(given, extras):
    """Where the table is written: its name and what differs from the recipe, so that one never replaces another."""
    parts = [given.table, *(given.datasets if given.datasets != recipes.TABLES[given.table]["datasets"] else [])]
    parts += [os.path.basename(given.data)] if given.data and "folder" in parts else []
    whole = "_".join([*parts, *given.archs, *given.grid, *(word.removeprefix("--") for word in words_of(extras))])
    cut = f"{slug(whole)[:50]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return os.path.join(given.out, slug(whole) if len(whole) <= 60 else cut)
