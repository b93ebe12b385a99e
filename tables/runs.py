"""The queue behind antico_runs.sh: plan the runs of a table, finish those that are not, write the table."""

import contextlib
import datetime
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from types import SimpleNamespace

from tables import recipes
from tables.plan import ROOT, SCRIPT, build_parser, missing_bases, parse, plan, table_path, words_of
from utilities import folders
from utilities.command_line import line_of, one_line_errors
from utilities.files import write_whole

TICK = 0.1  # seconds between looks at the running processes
REPORT = [sys.executable, "-m", "tables.report"]
# B: the signal is for the script itself, which exec has made the queue; it lets the run save itself
SBATCH = """#!/usr/bin/env bash
#SBATCH --job-name=antico-{name}
#SBATCH --array={array}
#SBATCH --output="{logs}/%A_%a.out"
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
# Written by antico_runs.sh. Change time, GPU and partition to your cluster's. Tasks that ran out of time go on where
# they were when this is submitted again; finished ones end at once.
cd {here}
exec bash {command} --number "$SLURM_ARRAY_TASK_ID"
"""


def notes(runs):
    """Lines on finished runs of another commit, and on what was not measured of them."""
    lines = {}
    for run in [run for run in runs if run.state == "done"]:
        commit, lacks = [run.config, *run.config.get("history", [])][-1].get("commit"), shlex.join(words_of(run.lacks))
        if commit and commit != folders.commit():
            lines.setdefault(f"of commit {commit[:8]}, this is {folders.commit()[:8] or 'none'}", []).append(run)
        if lacks:
            command = f"python main.py --evaluate_only --checkpoint RUN/checkpoint.pt {lacks}"
            lines.setdefault(f"without {lacks}, and so is the table; to measure it: {command}", []).append(run)
    for line, old in lines.items():
        more = f" and {len(old) - 1} more finished runs are" if len(old) > 1 else ", finished, is"
        yield f"note: {old[0].name}{more} {line.replace('RUN/', shlex.quote(old[0].folder) + '/')}"


def report_command(given, out, runs, failed=()):
    """The words that write the table of these runs, with lines on what failed below it."""
    more = [*recipes.TABLES[given.table].get("report", [])]
    more += recipes.GLYPHS_REPORT if {run.opt.dataset for run in runs} == {"glyphs"} else []
    more += ["--failed", *failed] if failed else []
    return [*REPORT, *([run.folder for run in runs if run.state != "new"] or ["RUNS"]), "--out", out, "--html", *more]


def dry_run(given, out, runs):
    states = []
    for run in runs:
        held = os.path.exists(run.lock_path) and folders.lock(run.lock_path) is None
        states.append("running" if held else run.state)
        print(f"{states[-1]:12}{shlex.join(['python', *run.command[1:]])}")
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    print(f"{len(runs)} runs: {counts}; then: {shlex.join(['python', *report_command(given, out, runs)[1:]])}")


def submit(given, out, runs):
    """Write the array of Slurm jobs, a task for each run that is left."""
    left = [number for number, run in enumerate(runs) if run.state in ("new", "interrupted")]
    if not left:
        print(f"all {len(runs)} runs are done or have diverged; the command without --slurm writes the table")
        return
    logs = os.path.join(given.out, "slurm")
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folder, and then the job fails
    words = [os.path.join(ROOT, "antico_runs.sh"), *(word for word in given.words if word != "--slurm")]
    text = SBATCH.format(name=os.path.basename(out), array=",".join(map(str, left)), logs=logs,
                         here=shlex.quote(os.getcwd()), command=shlex.join(words))  # fmt: skip
    write_whole(f"{out}.sbatch", lambda file: file.write(text))
    print(f"written: {out}.sbatch, {len(left)} tasks. Look at its first lines, then: sbatch {shlex.quote(out)}.sbatch")
    print("When they have ended, the command without --slurm writes the table.")


class Queue:
    """Runs that are to be finished, as many at once as there are places. `run()` returns when none is left, or when a
    signal came and what ran has saved itself. places : a worker each, {variable of its environment: value}"""

    def __init__(self, runs, places):
        self.runs, self.places, self.running, self.elsewhere, self.signal = runs, places, {}, set(), None
        self.waiting = [run for run in runs if run.state in ("new", "interrupted")]
        self.failed = {run: diverged(run) for run in runs if run.state == "diverged"}

    def run(self):
        told = False
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self.stop)
        while self.running or (self.waiting and self.signal is None):
            if self.signal is None:
                self.start_some()
            elif not told:
                told = True
                self.say(f"{signal.Signals(self.signal).name}: what runs finishes its step and saves itself")
                for job in self.running.values():  # main.py saves itself at all but SIGHUP
                    job.process.send_signal(signal.SIGTERM if self.signal == signal.SIGHUP else self.signal)
            self.say()
            time.sleep(TICK)
            for run in [run for run, job in self.running.items() if job.process.poll() is not None]:
                self.end(run, self.running.pop(run))

    def stop(self, number, _):
        self.signal = self.signal or number

    def start_some(self):
        """Give each free place the first run that nobody else has."""
        for run in list(self.waiting):
            if len(self.running) == len(self.places):
                return
            try:
                handle = folders.lock(run.lock_path)
                if handle is None:
                    self.elsewhere.add(run)
                    continue
                self.waiting.remove(run)
                self.elsewhere.discard(run)
                run.look()  # another queue may have had it meanwhile
                if run.state == "diverged":
                    self.failed[run] = diverged(run)
                elif run.state == "done":
                    self.say(f"{run.name}: done, in another queue")
                else:
                    self.start(run, handle)
            except OSError as problem:  # a full disk, a folder that cannot be written: this run fails, others may not
                self.waiting = [other for other in self.waiting if other is not run]
                self.failed[run] = line_of(problem)

    def start(self, run, handle):
        """Its process has the open lock as well: the run is held until both are gone, however they end."""
        place = next(n for n in range(len(self.places)) if n not in [job.place for job in self.running.values()])
        log = open(run.log, "a", encoding="utf-8")
        job = SimpleNamespace(handle=handle, place=place, log=log, position=log.tell(), began=time.monotonic())
        print(f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {shlex.join(run.command)}", file=log, flush=True)
        job.process = subprocess.Popen(
            run.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env={**os.environ, **self.places[place]},
            cwd=ROOT, pass_fds=[handle.fileno()], start_new_session=True,  # a terminal's Ctrl-C comes through us, once
        )  # fmt: skip
        self.running[run] = job
        self.say(f"{run.name}: {'begins' if run.state == 'new' else 'goes on'}")

    def end(self, run, job):
        """Count a run whose process has ended."""
        seconds, status = time.monotonic() - job.began, job.process.returncode
        print(f"{seconds:.1f}", file=job.handle, flush=True)
        run.look()
        if run.state == "done":
            self.say(f"{run.name}: done, {clock(seconds)}")
        elif run.state != "diverged" and self.signal is not None:
            self.waiting.append(run)
        else:
            self.failed[run] = diverged(run) if run.state == "diverged" else reason(run.log, job.position, status)
            self.say(f"{run.name}: FAILED, {clock(seconds)}: {self.failed[run]}")
        job.handle.close()
        job.log.close()

    def status(self):
        """The queue in one line: done, running, left, time left."""
        done, left = [run for run in self.runs if run.state == "done"], len(self.waiting) - len(self.elsewhere)
        parts = [f"{len(done)} of {len(self.runs)} done", f"{len(self.running)} running", f"{left} left"]
        parts += [f"{len(self.elsewhere)} in another queue"] * bool(self.elsewhere)
        parts += [f"{len(self.failed)} failed"] * bool(self.failed)
        times = {}  # {(data set, network): [seconds of a finished run]}
        for run in [run for run in done if run.seconds]:
            times.setdefault((run.opt.dataset, run.opt.arch), []).append(run.seconds)
        if times and (self.running or self.waiting):
            seconds = 0
            for run in [*self.running, *self.waiting]:
                mean = statistics.fmean(times.get((run.opt.dataset, run.opt.arch), sum(times.values(), [])))
                began = self.running[run].began if run in self.running else time.monotonic()
                seconds += max(mean + began - time.monotonic(), 0)
            parts.append(f"about {clock(seconds / len(self.places))} to go")
        return ", ".join(parts)

    def say(self, line=""):
        """Print a line above the status line of a terminal, which is written anew; elsewhere with the status behind."""
        if sys.stdout.isatty():
            status = self.status()[: shutil.get_terminal_size().columns - 1]
            line = f"\r\033[K{line}\n{status}" if line else f"\r{status}\033[K"
        elif line:
            line = f"{line}  [{self.status()}]\n"
        with contextlib.suppress(OSError):  # nobody reads any more: the runs go on
            print(line, end="", flush=True)


def diverged(run):
    """Why a run that has diverged is not started again."""
    advice = "give a lower --lr, a longer --warmup or another weight, or move its folder away to train it once more"
    return f"diverged: {folders.divergence(run.folder)}; {advice}"


def reason(log, position, status):
    """Why a run failed: its last line that says error, of what its log has from `position` on."""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(position)
        lines = [line.strip() for line in file if line.strip() and not line.startswith("# ")]
    if status < 0:
        return f"killed by {signal.Signals(-status).name} (the system does so when memory runs out)"
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (errors or lines or [f"ended with status {status}"])[-1].removeprefix("error: ")


def clock(seconds):
    return datetime.timedelta(seconds=round(seconds))  # shown as 1:05:00


def finish(given, out, runs):
    """Run what is left and write the table; the exit status."""
    chosen = runs if given.number is None else runs[given.number : given.number + 1]
    if not chosen:
        raise ValueError(f"--number {given.number}: the list has {len(runs)} runs; write the script anew with --slurm")
    jobs = given.jobs or recipes.TABLES[given.table].get("jobs", 1)
    on_cpu = [{"OMP_NUM_THREADS": "1"}] * jobs if jobs > 1 else [{}]
    queue = Queue(chosen, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in given.gpus] or on_cpu)
    print(queue.status(), flush=True)
    queue.run()
    print("\r\033[K" * sys.stdout.isatty(), end="")
    if queue.signal is not None:
        print(f"stopped; {queue.status()}. The same command goes on: {SCRIPT} {shlex.join(given.words)}")
        return 128 + queue.signal
    failed, status = [f"{run.name}: {why} (its output: {run.log})" for run, why in queue.failed.items()], 0
    if given.number is None and any(run.state != "new" for run in runs):
        status = subprocess.run(report_command(given, out, runs, failed), cwd=ROOT).returncode
    if failed:
        print(f"{len(failed)} of {len(chosen)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return status or int(bool(failed))


@one_line_errors
def main(words):
    os.chdir(os.environ.get("ANTICO_STARTED_IN") or ".")  # where the user stands, which antico_runs.sh has left
    if not words or {"-h", "--help"} & set(words):
        build_parser().print_help()
        return 0
    given, extras = parse(words)
    (runs, lines), out, status = plan(given, extras), table_path(given, extras), 0
    for folder in {run.opt.source_path for run in runs if run.opt.dataset != "glyphs" and not given.dry_run}:
        if not os.path.isdir(folder):
            raise ValueError(
                f"{folder}: no such folder; give the one that holds the data sets: {SCRIPT} {given.table} DATA"
            )
    for line in [*lines, *notes(runs)]:
        print(line, file=sys.stderr)
    if given.dry_run:
        dry_run(given, out, runs)
    elif given.slurm:
        submit(given, out, runs)
    else:
        status = finish(given, out, runs)
    for line in missing_bases(given, runs):
        print(line, file=sys.stderr)
    return status


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the runs begin, or in the table
        sys.exit(128 + signal.SIGINT)
