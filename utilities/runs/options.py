"""The words of antico_runs.sh: its own flags, and more of main.py's."""

import argparse
import os

from utilities import recipes
from utilities.flags import defaults
from utilities.registry import lookup
from utilities.runs import plan, records

SCRIPT = "bash antico_runs.sh"
USAGE = """bash antico_runs.sh TABLE [DATA] [--seeds 0 1 2] [--datasets NAME ...] [--archs NAME ...] [--out DIR]
                    [--dry_run] [--gpus 0,1 | --jobs N] [--slurm] [more flags for main.py]

DATA is the folder that holds the data sets; quickstart, sweep, grid and --datasets glyphs need none. Finished runs are
skipped, interrupted ones go on, a failed one stops nothing. The table is written to DIR (results). --jobs N: N runs at
once, one CPU thread each. --dry_run shows the command lines. More flags go to every run (--lr 1e-4, --no_train_metrics
off). The recipes: utilities/recipes.py.
"""


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise ValueError(message)


def parse(words):
    """(the table's name, Namespace of this command's flags, {flag of main.py: value}). Raises ValueError, one line."""
    name, words = words[0], words[1:]
    if (
        name in recipes.DATASETS and name not in recipes.TABLES
    ):  # the former spelling: the paper's recipe on one data set
        name, words = "main", [*words, "--datasets", name]
    lookup("TABLE", name, recipes.TABLES)
    data = words.pop(0) if words and not words[0].startswith("--") else None
    parser = Parser(prog=SCRIPT, add_help=False, allow_abbrev=False)
    parser.add_argument("--seeds", nargs="+", default=list(map(str, recipes.TABLES[name].get("seeds", [0]))))
    parser.add_argument("--datasets", nargs="+")
    parser.add_argument("--archs", nargs="+")
    parser.add_argument("--out", default=os.path.join(records.ROOT, "results"))
    parser.add_argument("--dry_run", action="store_true")
    parser.add_argument("--gpus", nargs="+")
    parser.add_argument("--jobs")
    parser.add_argument("--slurm", action="store_true")
    parser.add_argument("--check", action="store_true")  # nothing but that: the script asks before it installs anything
    parser.add_argument("--number", type=int)  # of a run in the list: the script of --slurm gives it
    parser.add_argument("--grid", nargs="+")
    given, more = parser.parse_known_args(words)
    given.data = data and os.path.abspath(data)
    given.out = os.path.abspath(given.out)
    for flag in ("seeds", "datasets", "archs", "gpus"):  # "0 1 2", 0 1 2 and 0,1,2 are the same
        values = getattr(given, flag)
        if values is not None:
            values = [part for value in values for part in value.replace(",", " ").split()]
            setattr(given, flag, list(dict.fromkeys(values)) if flag != "gpus" else values)
    check(name, given)
    return name, given, plan.flags_of(more)


def check(name, given):
    """ValueError, one line, on what does not go together."""
    for flag in ("seeds", "datasets", "archs", "gpus", "grid"):
        if getattr(given, flag) == []:
            raise ValueError(f"--{flag}: is empty")
    wrong = next((seed for seed in given.seeds if not seed.isdigit()), None)
    if wrong:
        raise ValueError(f'--seeds {wrong}: is not a whole number; write --seeds "0 1 2"')
    given.seeds = list(map(int, given.seeds))
    if (name == "grid") != bool(given.grid):
        raise ValueError(
            "grid: needs --grid FLAG=VALUE,VALUE ..." if name == "grid" else "--grid: is for the table grid"
        )
    if given.jobs is not None and not (given.jobs.isdigit() and 1 <= int(given.jobs) <= 1024):
        raise ValueError(f"--jobs {given.jobs}: is not a whole number from 1 to 1024, of runs at once")
    given.jobs = given.jobs and int(given.jobs)
    if given.jobs and (given.gpus or given.slurm):
        raise ValueError(f"--jobs --{'gpus' if given.gpus else 'slurm'}: give one; --gpus 0,0 is two runs on one GPU")
    if given.slurm and given.gpus:
        raise ValueError("--slurm --gpus: a cluster's task has the GPU that Slurm gives it; leave --gpus out")


def check_data(name, given, datasets):
    """ValueError, one line, if the folder of the data sets is not there."""
    if set(datasets) != {"glyphs"} and not os.path.isdir(given.data or defaults()["source_path"]):
        where = given.data or f"{defaults()['source_path']} (the default)"
        raise ValueError(
            f"{where}: no such folder; give the one that holds {', '.join(datasets)}: {SCRIPT} {name} DATA, "
            "or --datasets glyphs, which needs no data"
        )


def usage():
    lines = [f"  {name:12}{table['about']}" for name, table in recipes.TABLES.items()]
    return "\n".join([USAGE, "Tables:", *lines])
