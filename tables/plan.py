"""From the words of antico_runs.sh to the jobs of a table, and what is on disk of each."""

import argparse
import contextlib
import csv
import glob
import hashlib
import itertools
import json
import os
import re
import sys

import parameters
from tables import recipes, study
from utilities import folders
from utilities.command_line import OneLineParser, lookup, number

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
    tables = "\n".join(["tables:", *(f"  {name:14}{table['about']}" for name, table in recipes.TABLES.items())])
    raw = argparse.RawDescriptionHelpFormatter
    parser = OneLineParser(SCRIPT, USAGE, ABOUT, tables, formatter_class=raw, allow_abbrev=False)
    add, where = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("table", choices=recipes.TABLES, metavar="TABLE")
    add("--seeds", nargs="+", help='a run of each; "0 1 2", 0 1 2 and 0,1,2 are the same')
    add("--datasets", nargs="+", help="instead of the table's own")
    add("--archs", nargs="+", help="instead of the table's own; resnet50 gets the recipe's suffixes")
    add("--grid", nargs="+", metavar="FLAG=VALUE,VALUE", default=[], help="of the table grid: their product")
    add("--out", default=os.path.join(ROOT, "results"), help="folder for runs and tables (%(default)s)")
    where("--gpus", nargs="+", help="one run at a time on each: 0,1; 0,0 is two on one")
    where("--jobs", type=number(int, 1, 1024), help="so many runs at once, one CPU thread each")
    where("--slurm", action="store_true", help="write an array of Slurm jobs instead of running here")
    add("--dry_run", action="store_true", help="print the command lines, and what is done of them")
    add("--number", type=number(int, 0, 10**6), help="only this run of the list; the script of --slurm gives it")
    return parser


def parse(words):
    """(Namespace of this command's words, {flag of main.py: value}). Bad words: ValueError or SystemExit, one line."""
    if words[0] in recipes.DATASETS:  # the former spelling: the paper's recipe on one data set
        words = ["main", *words[1:], "--datasets", words[0]]
    has_data = len(words) > 1 and not words[1].startswith("--")
    given, more = build_parser().parse_known_args([words[0], *words[1 + has_data :]])
    given.words, given.recipe, given.out = words, recipes.TABLES[given.table], os.path.abspath(given.out)
    given.data = os.path.abspath(words[1]) if has_data else None
    for name in ("seeds", "datasets", "archs", "gpus"):
        values = " ".join(getattr(given, name) or ()).replace(",", " ").split()
        if f"--{name}" in words and not values:
            raise ValueError(f"--{name}: is empty")
        setattr(given, name, values)
    if (given.table == "grid") != bool(given.grid):
        raise ValueError("--grid FLAG=VALUE,VALUE ...: is what the table grid needs, and no other takes")
    return given, flags_of(more)


def takes_none(name):
    return name in FLAGS and FLAGS[name].nargs == 0


def flags_of(words):
    """{flag of main.py: value}, where a switch may have on or off behind it. ValueError or SystemExit, one line."""
    pairs = [*zip(words, words[1:])]  # only a switch, which takes no value, has them behind it
    switches = [i for i, (flag, word) in enumerate(pairs) if word in ("on", "off") and takes_none(flag[2:])]
    switched = {words[i][2:]: words[i + 1] == "on" for i in switches}
    unset = argparse.Namespace(**dict.fromkeys(FLAGS))
    rest = [word for i, word in enumerate(words) if i - 1 not in switches]
    given = parameters.build_parser().parse_args(rest, unset)
    values = {name: value for name, value in vars(given).items() if value is not None} | switched
    for name in OURS:
        if name in values:
            raise ValueError(f"--{name}: the queue gives it itself, or it is not for a table ({SCRIPT} --help)")
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
    axes = []
    for word in words:
        name, _, values = word.partition("=")
        axes.append([flags_of([f"--{name}", *value.split()]) for value in values.split(",")])
    names = [word.partition("=")[0] for word in words]
    if len({*names}) < len(names):
        raise ValueError(f"--grid {' '.join(words)}: names a flag twice; write its values as FLAG=VALUE,VALUE")
    return study.product(*axes)


# --- the jobs ---


class Job:
    """A run of a table: `flags` are those of its command line, `opt` what they mean, `trained` those that act on what
    it learns. Of one data set, jobs with the same `key`, a hash and the seed, are the same run."""

    def __init__(self, place, chosen):
        from main import check_names, criteria  # torch, which --help does without

        every, self.chosen = {**place, **chosen}, chosen
        self.opt = opt = parameters.parse(words_of(every))
        check_names(opt)
        idle = parameters.without_effect(opt, criteria.acting_flags(opt))
        self.flags = {name: value for name, value in every.items() if name not in idle}
        acting = [name for name, flag in FLAGS.items() if flag.role == "training" and name not in {*idle, "seed"}]
        self.trained = {name: getattr(opt, name) for name in acting}
        if "source_path" in acting:
            self.trained["source_path"] = os.path.realpath(opt.source_path)
            if not (opt.dataset == "folder" or opt.allow_partial or opt.skip_broken):
                del self.trained["source_path"]  # the same data wherever it lies: its images are counted
        # without defaults: a flag that is new to the program changes no hash
        own = parameters.defaults_of(opt.loss, self.trained.get("antico_base"))
        default = {**{name: flag.default for name, flag in FLAGS.items()}, **own, "loss": None, "antico_base": None}
        told = {name: value for name, value in self.trained.items() if value != default[name]}
        self.key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8] + f"_s{opt.seed}"
        self.parent = os.path.join(opt.save_path, opt.dataset)
        self.log = os.path.join(self.parent, f"{self.key}.log")  # locked while it runs

    def set_name(self, jobs):
        """Its loss and, of what row and command line say, what is not the same in all these jobs; its key."""
        others, parts = [job.trained for job in jobs if job.opt.dataset == self.opt.dataset], [self.opt.loss]
        for name in [name for name in self.chosen if name in self.trained and name != "loss"]:
            value = self.trained[name]
            if any(other.get(name, value) != value for other in others):
                values = value if isinstance(value, list) else [value]
                text = "+".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
                parts.append(name if value is True else f"{name}={text}")
        self.folder = os.path.join(self.parent, f"{slug(','.join(parts))[:100]}-{self.key}")

    def look(self):
        """Find it on disk: .state, new | interrupted | diverged | done; .folder; .row, the last of metrics.csv."""
        self.state, self.row, self.begun = "new", {}, False
        ends = os.path.join(glob.escape(self.parent), f"*-{self.key}")
        for folder in sorted(glob.glob(ends) + glob.glob(f"{ends}-*")):  # -2: after one that was killed at its start
            with contextlib.suppress(ValueError):
                flags = folders.all_flags(folders.read_config(folder))
                # else of a time with other defaults, or gone on with by hand for more epochs
                if all(flags.get(name, v) == v for name, v in self.trained.items() if name != "source_path"):
                    self.folder, self.row, self.begun = folder, last_row(folder), True
                    self.state = "diverged" if folders.divergence(folder) else "interrupted"
        self.state = "done" if int(self.row.get("epoch", -1)) >= self.opt.n_epochs else self.state
        self.name = os.path.join(self.opt.dataset, os.path.basename(self.folder))

    @property
    def command(self):
        """The words that start it, or go on with it."""
        group = os.path.basename(self.folder).rpartition("_s")[0]
        place = {"group": group} if self.state == "new" else {"resume": self.folder}
        return PROGRAM + words_of({**self.flags, **place})


def last_row(folder):
    """The last row of metrics.csv, {} before there is one."""
    path = os.path.join(folder, "metrics.csv")
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8", newline="") as file:
        return [{}, *csv.DictReader(file)][-1]


def slug(text):
    """A file's name, without spaces and slashes."""
    return re.sub(r"[^\w.,=+-]", "-", text)


# --- the table ---


def of_kind(choices, dataset):
    return choices["glyphs" if dataset == "glyphs" else "images"] if isinstance(choices, dict) else choices


def networks(table, dataset, archs):
    """The flags of each network: of --archs, else the table's, else the data set's own (no flags)."""
    known = of_kind(table.get("archs", [{}]), dataset)
    own, suffix = {flags.get("arch"): flags for flags in known}, of_kind(recipes.SUFFIX, dataset)
    names = [arch if "_" in arch else arch + suffix for arch in archs]
    return [own.get(name, {"arch": name}) for name in names] or known


def plan(given, extras):
    """(the jobs of a table, each once, seed by seed; lines to say of them). ValueError or SystemExit, one line."""
    table, made, jobs, grid = given.recipe, [], {}, grid_rows(given.grid) if given.grid else []
    for seed, dataset in itertools.product(given.seeds or table.get("seeds", [0]), given.datasets or table["datasets"]):
        place = dict(dataset=dataset, seed=seed, save_path=os.path.join(given.out, "runs"))
        place |= {"source_path": given.data} if given.data else {}
        place |= {**lookup("--datasets", dataset, recipes.DATASETS), **table.get("flags", {})}
        rows = grid or of_kind(table["rows"], dataset)
        for network, row in itertools.product(networks(table, dataset, given.archs), rows):
            made.append(Job(place, {**network, **row, **extras}))
            jobs.setdefault((dataset, made[-1].key), made[-1])
    for job in jobs.values():
        job.set_name(made)
        job.look()
    idle = [name for name in extras if all(name not in job.flags for job in made)]
    notes = [f"note: --{name}: no effect on any of these runs" for name in idle]
    return [*jobs.values()], [*notes, *(grid_notes(grid, made) if grid else [])]


def grid_notes(rows, jobs):
    """Lines on swept flags that do nothing to some runs, and on bases that no row has alone. ValueError, one line, for
    a swept flag that changes nothing."""
    losses = dict.fromkeys(job.opt.loss for job in jobs)
    for name in rows[0]:
        acting = [job for job in jobs if name in job.trained]
        if len({str(job.trained[name]) for job in acting}) < len({str(row[name]) for row in rows}):
            raise ValueError(f"--grid {name}: changes nothing that {', '.join(losses)} learns here; leave it out")
        idle = [loss for loss in losses if loss not in {job.opt.loss for job in acting}]
        if idle:
            yield f"note: --grid {name}: no effect on {', '.join(idle)}: one row for all its values"
    alone = dict.fromkeys(job.trained.get("antico_base", "none") for job in jobs).keys() - {*losses, "none"}
    if alone:
        grid = f"--grid loss={','.join([*sorted(alone), *losses])}"
        yield f"note: no row of {', '.join(sorted(alone))} alone to compare with; {grid} instead of --loss makes one"


def table_path(given, extras):
    """Where the table is written: its name and what differs from the recipe, the seeds apart."""
    parts = [given.table, *(given.datasets if given.datasets != given.recipe["datasets"] else [])]
    parts += [os.path.basename(given.data)] if given.data and "folder" in parts else []
    whole = "_".join([*parts, *given.archs, *given.grid, *(word.removeprefix("--") for word in words_of(extras))])
    cut = f"{slug(whole)[:50]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
    return os.path.join(given.out, slug(whole) if len(whole) <= 60 else cut)
