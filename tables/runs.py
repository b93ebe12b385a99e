"""The queue behind antico_runs.sh: plan the runs of a table, finish those that are not, write the table."""

import argparse
import contextlib
import glob
import hashlib
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import zlib
from datetime import timedelta
from statistics import fmean

import parameters
from tables import recipes, study
from utilities import folders
from utilities.command_line import OneLineParser, lookup, number, one_line_errors
from utilities.signals import Signals

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PROGRAM, REPORT = [sys.executable, os.path.join(ROOT, "main.py")], [sys.executable, "-m", "tables.report"]
FLAGS, UNSAFE = parameters.flags(), re.compile(r"[^\w.,=+-]")  # the latter in a file's name
# flags that the queue sets itself, those that no run of a table takes, and one that must not be in its log
OURS = "seed dataset save_path source_path gpu group savename resume list evaluate_only checkpoint wandb_key".split()
LEFT = ("new", "interrupted")  # states of a run; others: diverged, done; in a queue: running, elsewhere, failed
SAID = {"running": ["running"], "left": LEFT, "in another queue": ["elsewhere"], "failed": ["failed", "diverged"]}
# one thread a run, whose memory glibc keeps from step to step: up to a quarter faster than to ask for it again
ON_A_CORE = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "1000000000000"}
TICK = 0.1  # seconds between looks at the running processes
SCRIPT = "bash antico_runs.sh"
USAGE = f"{SCRIPT} TABLE [DATA] [--flag value ...] [more flags of main.py, for every run]"
ABOUT = """DATA is the folder that holds the data sets; quickstart, grid and --datasets glyphs need none.
Finished runs are skipped, interrupted ones go on, a failed one stops nothing; the same command again does what is left.
A flag of main.py wins over the recipe (tables/recipes.py); `off` turns a switch of it off: --no_train_metrics off."""
# B: the signal goes to the script itself, which exec turns into the queue; that lets the run save itself
SBATCH = """#!/usr/bin/env bash
#SBATCH --job-name=antico --array={array} --output="{logs}/%A_%a.out" --signal=B:USR1@180
#SBATCH --cpus-per-task=8 --gres=gpu:1 --time=24:00:00
# Written by antico_runs.sh. Change time, GPU and partition to your cluster's. Tasks that ran out of time go on where
# they were when this is submitted again; finished ones end at once.
cd {here}
exec bash {command} --number "$SLURM_ARRAY_TASK_ID"
"""


def parse(words):
    """(Namespace of this command's words, {flag of main.py: value}). Bad words: ValueError or SystemExit, one line."""
    tables = "\n".join(["tables:", *(f"  {name:14}{table['about']}" for name, table in recipes.TABLES.items())])
    how = dict(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser = OneLineParser(SCRIPT, USAGE, ABOUT, tables, **how)
    add, where = parser.add_argument, parser.add_mutually_exclusive_group().add_argument
    add("table", choices=recipes.TABLES, metavar="TABLE")
    add("--seeds", nargs="+", default=[], help='one run for each; "0 1 2", 0 1 2 and 0,1,2 are the same')
    add("--datasets", nargs="+", default=[], help="instead of the table's own")
    add("--grid", nargs="+", metavar="FLAG=VALUE,VALUE", default=[], help="for the table grid: all combinations")
    add("--out", default=os.path.join(ROOT, "results"), help="folder for runs and tables (%(default)s)")
    where("--gpus", nargs="+", default=[], help="one run at a time on each: 0,1; 0,0 is two on one")
    where("--jobs", type=number(int, 1, 1024), help="this many runs at once, one CPU thread each")
    where("--slurm", action="store_true", help="write an array of Slurm jobs instead of running here")
    add("--dry_run", action="store_true", help="print the command lines and the state of each run")
    add("--number", type=number(int, 0, 10**6), help="only this run of the list; the script of --slurm gives it")

    has_data = len(words) > 1 and not words[1].startswith("--")
    given, more = parser.parse_known_args([words[0], *words[1 + has_data :]])
    given.words, given.recipe, given.out = words, recipes.TABLES[given.table], os.path.abspath(given.out)
    given.data = os.path.abspath(words[1]) if has_data else None
    for name in ("seeds", "datasets", "gpus"):
        values = " ".join(getattr(given, name)).replace(",", " ").split()
        if getattr(given, name) and not values:
            raise ValueError(f"--{name}: is empty")
        setattr(given, name, values)
    if (given.table == "grid") != bool(given.grid):
        raise ValueError("--grid FLAG=VALUE,VALUE ...: the table grid needs it, and no other takes it")
    return given, flags_of(more)


def flags_of(words):
    """{flag of main.py: value}; a switch may have on or off behind it. ValueError or SystemExit, one line."""
    switches = {f"--{name}" for name, flag in FLAGS.items() if flag.nargs == 0}
    pairs = enumerate(zip(words, words[1:]), 1)
    turned = {i: word for i, (flag, word) in pairs if flag in switches and word in ("on", "off")}
    rest = [word for i, word in enumerate(words) if i not in turned]
    given = vars(parameters.build_parser().parse_args(rest, argparse.Namespace(**dict.fromkeys(FLAGS))))
    values = {name: value for name, value in given.items() if value is not None}
    values |= {words[i - 1][2:]: word == "on" for i, word in turned.items()}
    for name in values.keys() & OURS:
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
        acting = {name for name, flag in FLAGS.items() if flag.role == "training"} - {*idle, "seed"}
        if not (opt.dataset == "folder" or opt.allow_partial or opt.skip_broken):
            acting -= {"source_path"}  # the same data wherever it lies: its images are counted
        self.trained = {name: getattr(opt, name) for name in acting}
        # without defaults: a flag that is new to the program changes no hash
        plain = vars(parameters.parse(["--loss", opt.loss, "--antico_base", opt.antico_base]))
        default = {name: plain[name] for name in FLAGS} | {"loss": None, "antico_base": None}
        told = {name: value for name, value in self.trained.items() if value != default[name]}
        self.key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8] + f"_s{opt.seed}"
        self.parent, self.kind = os.path.join(opt.save_path, opt.dataset), (opt.dataset, opt.arch)
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
        self.folder = os.path.join(self.parent, f"{UNSAFE.sub('-', ','.join(parts))[:100]}-{self.key}")

    def look(self):
        """Find it on disk: its .state and .folder, whatever name another table gave it."""
        self.state, ends = "new", os.path.join(glob.escape(self.parent), f"*-{self.key}")
        for folder in sorted(glob.glob(ends) + glob.glob(f"{ends}-*")):  # -2: after one that was killed at its start
            with contextlib.suppress(ValueError, FileNotFoundError):  # damaged, or before its first row
                flags = folders.all_flags(folders.read_config(folder))
                # others are of a version with other defaults, or went on by hand for more epochs
                if all(flags.get(name, value) == value for name, value in self.trained.items()):
                    self.folder, self.state = folder, "diverged" if folders.divergence(folder) else "interrupted"
                    with open(os.path.join(folder, "metrics.csv"), encoding="utf-8") as file:
                        epoch = int([*file][-1].split(",")[0])
                    self.state = "done" if epoch >= self.opt.n_epochs else self.state
        self.begun, self.name = self.state != "new", os.path.relpath(self.folder, os.path.dirname(self.parent))

    @property
    def command(self):
        """The words that start it, or go on with it."""
        group = os.path.basename(self.folder).rpartition("_s")[0]
        return PROGRAM + words_of(self.flags | ({"resume": self.folder} if self.begun else {"group": group}))


def plan(given, extras):
    """(the jobs of a table, each once, seed by seed; notes to print). ValueError or SystemExit, one line."""
    table, made, jobs = given.recipe, [], {}
    pairs = [word.partition("=")[::2] for word in given.grid]
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"--grid {' '.join(given.grid)}: names a flag twice; write its values as FLAG=VALUE,VALUE")
    axes = [[flags_of([f"--{name}", *value.split()]) for value in values.split(",")] for name, values in pairs]
    for seed, dataset in itertools.product(given.seeds or table.get("seeds", [0]), given.datasets or table["datasets"]):
        place = dict(dataset=dataset, seed=seed, save_path=os.path.join(given.out, "runs"))
        place |= ({"source_path": given.data} if given.data else {}) | lookup("--datasets", dataset, recipes.DATASETS)
        kind, parts = "glyphs" if dataset == "glyphs" else "images", [table.get("archs", [{}]), table["rows"]]
        parts = [part[kind] if isinstance(part, dict) else part for part in parts]
        for chosen in study.product(*parts, *axes, [extras]):
            own = recipes.OF_BASE.get((dataset, chosen.get("antico_base", chosen.get("loss"))), {})
            made.append(Job(place | own | table.get("flags", {}), chosen))
            jobs.setdefault((dataset, made[-1].key), made[-1])
    for job in jobs.values():
        job.set_name(made)
        job.look()
    idle = [name for name in extras if all(name not in job.flags for job in made)]
    notes = [f"note: --{name}: no effect on any of these runs" for name in idle]
    return [*jobs.values()], [*notes, *(grid_notes(axes, made) if axes else [])]


def grid_notes(axes, jobs):
    """Lines on swept flags that do nothing to some runs, and on bases that no row has alone. ValueError, one line, for
    a swept flag that changes nothing."""
    losses = dict.fromkeys(job.opt.loss for job in jobs)
    for axis in axes:
        (name,) = axis[0]
        acting = [job for job in jobs if name in job.trained]
        if len({str(job.trained[name]) for job in acting}) < len({str(row[name]) for row in axis}):
            raise ValueError(f"--grid {name}: changes nothing that {', '.join(losses)} learns here; leave it out")
        idle = [loss for loss in losses if loss not in {job.opt.loss for job in acting}]
        if idle:
            yield f"note: --grid {name}: no effect on {', '.join(idle)}: one row for all its values"
    alone = {job.trained.get("antico_base", "none") for job in jobs} - {*losses, "none"}
    if alone:
        grid = f"--grid loss={','.join([*sorted(alone), *losses])}"
        yield f"note: no row of {', '.join(sorted(alone))} alone to compare with; {grid} instead of --loss makes one"


def table_path(given, extras):
    """Where the table is written: its name and what the command line says of its runs."""
    parts = [given.table, *given.datasets, *(["seeds", *given.seeds] if given.seeds else []), *given.grid]
    parts += [os.path.basename(given.data)] if given.data and "folder" in given.datasets else []
    whole = UNSAFE.sub("-", "_".join([*parts, *(word.removeprefix("--") for word in words_of(extras))]))
    return os.path.join(given.out, whole if len(whole) <= 60 else f"{whole[:50]}-{zlib.crc32(whole.encode()):08x}")


class Queue:
    """Runs that are to be finished, one at a time in each of the `places`, {variable of its environment: value}. A
    job's .state says it all; elsewhere: another queue has it."""

    def __init__(self, jobs, places, signals):
        self.jobs, self.places, self.at_once, self.signals = jobs, places, len(places), signals
        self.seconds = {}  # {(data set, network): of each whole run, from the start of its process to the end}

    def among(self, *states):
        return [job for job in self.jobs if job.state in states]

    def run(self):
        """Run until none is left, or a signal came and what ran has saved itself."""
        self.say(f"{len(self.jobs)} runs")
        while not self.signals.number and self.among(*LEFT, "elsewhere", "running"):
            for job in self.among(*LEFT, "elsewhere"):
                if self.places:
                    self.start(job)
            self.wait()
        for job in self.among("running"):
            job.process.send_signal(self.signals.number)
        while self.among("running"):
            self.wait()

    def start(self, job):
        """Start it, if no other queue has it or has done it. Its log is locked until we and its process let it go."""
        log = folders.lock(job.log)
        job.look()
        if log is None:
            job.state = "elsewhere"
        elif job.state not in LEFT:
            self.say(f"{job.name}: {job.state}, in another queue")
        else:
            job.state, job.place, job.whole = "running", self.places.pop(0), not job.begun
            job.log_file, job.log_start, job.began = log, log.tell(), time.monotonic()
            # a session of its own: a terminal's Ctrl-C comes through us, once
            how = dict(stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
            job.process = subprocess.Popen(job.command, env={**os.environ, **job.place}, **how)
            self.say(f"{job.name}: {'begins' if job.whole else 'goes on'}")

    def wait(self):
        """Wait a moment, then count the runs whose processes have ended."""
        time.sleep(TICK)
        for job in [job for job in self.among("running") if job.process.poll() is not None]:
            seconds = time.monotonic() - job.began
            job.look()
            if job.state == "done" and job.whole:
                self.seconds.setdefault(job.kind, []).append(seconds)
            if job.state in LEFT and not self.signals.number:
                job.state = "failed"
            failure = f": {why(job)}" if job in self.among("failed", "diverged") else ""
            self.say(f"{job.name}: {job.state} after {timedelta(seconds=round(seconds))}{failure}")
            job.log_file.close()
            self.places.append(job.place)

    def status(self):
        """The queue in one line: done, running, left, time left."""
        parts = [f"{len(self.among('done'))} of {len(self.jobs)} done"]
        parts += [f"{len(self.among(*states))} {what}" for what, states in SAID.items() if self.among(*states)]
        every, now = sum(self.seconds.values(), []), time.monotonic()
        past = {job: now - job.began if job.state == "running" else 0 for job in self.among(*LEFT, "running") if every}
        seconds = sum(max(fmean(self.seconds.get(job.kind, every)) - past[job], 0) for job in past) / self.at_once
        return ", ".join([*parts, *([f"about {timedelta(seconds=round(seconds))} to go"] if past else [])])

    def say(self, line):
        print(f"{line}  [{self.status()}]", flush=True)


def why(job):
    """Why a run failed: the last error in its log, or else its last line."""
    if job.state == "diverged":
        advice = "give a lower --lr, a longer --warmup or another weight, or move its folder away to train it once more"
        return f"diverged: {folders.divergence(job.folder)}; {advice}"
    status = job.process.returncode
    if status < 0:
        return f"killed by {signal.Signals(-status).name} (the system does so when memory runs out)"
    with open(job.log, encoding="utf-8", errors="replace") as file:
        file.seek(job.log_start)
        lines = file.read().strip().splitlines()
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (errors or lines or [f"ended with status {status}"])[-1].removeprefix("error: ")


def report_command(given, out, jobs, failed=()):
    """The words that write the table of these runs, with lines on what failed below it."""
    more = [*given.recipe.get("report", []), *(["--failed", *failed] if failed else [])]
    # five epochs of letters: losses are about as often just above the bound of collapse as just below it
    more += ["--count_collapsed"] if all(job.opt.dataset == "glyphs" for job in jobs) else []
    more += ["--split", "val"] if all(job.opt.no_test_metrics for job in jobs) else []
    return [*REPORT, *([job.folder for job in jobs if job.begun] or ["RUNS"]), "--out", out, "--html", *more]


def submit(given, out, jobs):
    """Write the array of Slurm jobs, a task for each run that is left."""
    left, logs = [number for number, job in enumerate(jobs) if job.state in LEFT], os.path.join(given.out, "slurm")
    if not left:
        return print("nothing is left to run; the command without --slurm writes the table")
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folder, and then the job fails
    words = [os.path.join(ROOT, "antico_runs.sh"), *(word for word in given.words if word != "--slurm")]
    place = dict(array=",".join(map(str, left)), logs=logs, here=shlex.quote(os.getcwd()))
    folders.write_whole(f"{out}.sbatch", lambda file: file.write(SBATCH.format(command=shlex.join(words), **place)))
    print(f"written: {out}.sbatch, {len(left)} tasks. Look at its first lines, then: sbatch {shlex.quote(out)}.sbatch")
    print("When they have ended, the command without --slurm writes the table.")


def finish(given, out, jobs):
    """Run what is left and write the table; the exit status."""
    chosen = jobs if given.number is None else jobs[given.number : given.number + 1]
    if not chosen:
        raise ValueError(f"--number {given.number}: the list has {len(jobs)} runs, 0 to {len(jobs) - 1}")
    at_once = given.jobs or given.recipe.get("jobs", 1)
    places = [ON_A_CORE] * at_once if at_once > 1 else [{}]
    with Signals() as signals, signals.waiting():
        queue = Queue(chosen, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in given.gpus] or places, signals)
        queue.run()
    if signals.number:
        print(f"stopped; {queue.status()}. The same command goes on: {SCRIPT} {shlex.join(given.words)}")
        return 128 + signals.number
    failed = [f"{job.name}: {why(job)} (its output: {job.log})" for job in queue.among("failed", "diverged")]
    to_report = given.number is None and any(job.begun for job in jobs)
    status = subprocess.run(report_command(given, out, jobs, failed), cwd=ROOT).returncode if to_report else 0
    if failed:
        print(f"{len(failed)} of {len(chosen)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return status or int(bool(failed))


@one_line_errors
def main(words):
    os.chdir(os.environ.get("ANTICO_STARTED_IN") or ".")  # where the user stands, which antico_runs.sh has left
    given, extras = parse(words or ["--help"])
    (jobs, notes), out = plan(given, extras), table_path(given, extras)
    for note in notes:
        print(note, file=sys.stderr)
    if given.dry_run:
        for job in jobs:
            job.state = "running" if os.path.exists(job.log) and folders.lock(job.log) is None else job.state
            print(f"{job.state:12}{shlex.join(['python', *job.command[1:]])}")
        states = [job.state for job in jobs]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        print(f"{len(jobs)} runs: {counts}; then: {shlex.join(['python', *report_command(given, out, jobs)[1:]])}")
    elif given.slurm:
        submit(given, out, jobs)
    else:
        for folder in {job.opt.source_path for job in jobs if job.opt.dataset != "glyphs"}:
            if not os.path.isdir(folder):
                raise ValueError(f"{folder}: no such folder; where are the data sets? {SCRIPT} {given.table} DATA")
        return finish(given, out, jobs)
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # before the runs begin, and in the table
    sys.exit(main())
