"""The queue behind antico_runs.sh: plan the runs of a table, finish those that are not, write the table."""

import contextlib
import datetime
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter

from tables import recipes
from tables.plan import ROOT, SCRIPT, parse, plan, table_path
from utilities import folders
from utilities.command_line import one_line_errors
from utilities.folders import write_whole
from utilities.signals import SIGNALS

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


def lacks(jobs):
    """Lines on finished runs that have not measured what their table is to show."""
    for job in [job for job in jobs if job.state == "done"]:
        split = "val/" if job.opt.no_test_metrics else "test/"
        measured = {name.removeprefix(split) for name, value in job.row.items() if value and name.startswith(split)}
        metrics = " ".join(metric for metric in job.opt.evaluation_metrics if metric not in measured)
        if metrics:
            command = f"main.py --evaluate_only --checkpoint {shlex.quote(job.folder)}/checkpoint.pt"
            yield f"note: {job.name}, finished, is without {metrics}: python {command} --evaluation_metrics {metrics}"


def report_command(given, out, jobs, failed=()):
    """The words that write the table of these runs, with lines on what failed below it."""
    more = [*given.recipe.get("report", [])]
    more += recipes.GLYPHS_REPORT if {job.opt.dataset for job in jobs} == {"glyphs"} else []
    if "--split" not in more and all(job.opt.no_test_metrics for job in jobs):
        more += ["--split", "val"]
    more += ["--failed", *failed] if failed else []
    return [*REPORT, *([job.folder for job in jobs if job.begun] or ["RUNS"]), "--out", out, "--html", *more]


def dry_run(given, out, jobs):
    for job in jobs:
        held = os.path.exists(job.log) and folders.lock(job.log) is None
        print(f"{'running' if held else job.state:12}{shlex.join(['python', *job.command[1:]])}")
    counts = ", ".join(f"{count} {state}" for state, count in Counter(job.state for job in jobs).items())
    print(f"{len(jobs)} runs: {counts}; then: {shlex.join(['python', *report_command(given, out, jobs)[1:]])}")


def submit(given, out, jobs):
    """Write the array of Slurm jobs, a task for each run that is left."""
    left = [number for number, job in enumerate(jobs) if job.state in ("new", "interrupted")]
    if not left:
        return print("nothing is left to run; the command without --slurm writes the table")
    logs = os.path.join(given.out, "slurm")
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folder, and then the job fails
    words = [os.path.join(ROOT, "antico_runs.sh"), *(word for word in given.words if word != "--slurm")]
    text = SBATCH.format(name=os.path.basename(out), array=",".join(map(str, left)), logs=logs,
                         here=shlex.quote(os.getcwd()), command=shlex.join(words))  # fmt: skip
    write_whole(f"{out}.sbatch", lambda file: file.write(text))
    print(f"written: {out}.sbatch, {len(left)} tasks. Look at its first lines, then: sbatch {shlex.quote(out)}.sbatch")
    print("When they have ended, the command without --slurm writes the table.")


class Queue:
    """Runs that are to be finished, one at a time in each of the `places`, {variable of its environment: value}.

    A job's .state says it all: as on disk, new | interrupted | diverged | done; here also running, elsewhere (another
    queue has it) and failed.
    """

    def __init__(self, jobs, places):
        self.jobs, self.places, self.at_once, self.signal = jobs, places, len(places), None
        self.times = {}  # {(data set, network): [seconds of a run's process, from start to end]}

    def among(self, *states):
        return [job for job in self.jobs if job.state in states]

    def run(self):
        """Until none is left, or a signal came and what ran has saved itself."""
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as nohup has it
                signal.signal(number, self.stop)
        self.say(f"{len(self.jobs)} runs")
        while self.signal is None and self.among("new", "interrupted", "elsewhere", "running"):
            for job in self.among("new", "interrupted", "elsewhere"):
                if self.places:
                    self.start(job)
            self.wait()
        for job in self.among("running"):
            job.process.send_signal(self.signal)
        while self.among("running"):
            self.wait()

    def stop(self, number, _):
        self.signal = self.signal or number

    def start(self, job):
        """Unless another queue has it or has done it. The run's process has the locked log as well: it is held until
        both are gone, however they end."""
        log = folders.lock(job.log)
        if log is None:
            job.state = "elsewhere"
            return
        job.look()
        if job.state not in ("new", "interrupted"):
            self.say(f"{job.name}: {job.state}, in another queue")
            return
        job.log_file, job.place, job.began, job.whole = log, self.places.pop(0), time.monotonic(), job.state == "new"
        print(f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {shlex.join(job.command)}", file=log, flush=True)
        job.process = subprocess.Popen(
            job.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT, env={**os.environ, **job.place},
            start_new_session=True,  # a terminal's Ctrl-C comes through us, once
        )  # fmt: skip
        job.state = "running"
        self.say(f"{job.name}: {'begins' if job.whole else 'goes on'}")

    def wait(self):
        """A moment, and count the runs whose processes have ended."""
        time.sleep(TICK)
        for job in [job for job in self.among("running") if job.process.poll() is not None]:
            seconds = time.monotonic() - job.began
            job.look()
            if job.state == "done" and job.whole:
                self.times.setdefault((job.opt.dataset, job.opt.arch), []).append(seconds)
            if job.state in ("new", "interrupted") and self.signal is None:
                job.state = "failed"
            failure = f": {why(job)}" if job.state in ("failed", "diverged") else ""
            self.say(f"{job.name}: {job.state} after {clock(seconds)}{failure}")
            job.log_file.close()
            self.places.append(job.place)

    def status(self):
        """The queue in one line: done, running, left, time left."""
        count = Counter(job.state for job in self.jobs)
        count["left"], count["failed"] = count["new"] + count["interrupted"], count["failed"] + count["diverged"]
        parts = [f"{count['done']} of {len(self.jobs)} done", f"{count['running']} running", f"{count['left']} left"]
        parts += [f"{count['elsewhere']} in another queue"] * (count["elsewhere"] > 0)
        parts += [f"{count['failed']} failed"] * (count["failed"] > 0)
        every, seconds, now = sum(self.times.values(), []), 0, time.monotonic()
        for job in self.among("new", "interrupted", "running") if every else []:
            whole = statistics.fmean(self.times.get((job.opt.dataset, job.opt.arch), every))
            seconds += max(whole - (now - job.began if job.state == "running" else 0), 0)
        parts += [f"about {clock(seconds / self.at_once)} to go"] * (seconds > 0)
        return ", ".join(parts)

    def say(self, line):
        with contextlib.suppress(OSError):  # nobody reads any more: the runs go on
            print(f"{line}  [{self.status()}]", flush=True)


def why(job):
    """Why a run failed: what its log says last, of errors where it speaks of any."""
    if job.state == "diverged":
        advice = "give a lower --lr, a longer --warmup or another weight, or move its folder away to train it once more"
        return f"diverged: {folders.divergence(job.folder)}; {advice}"
    status = job.process.returncode
    if status < 0:
        return f"killed by {signal.Signals(-status).name} (the system does so when memory runs out)"
    with open(job.log, encoding="utf-8", errors="replace") as file:
        _, *lines = file.read().split("\n# ")[-1].strip().splitlines()
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    return (errors or lines or [f"ended with status {status}"])[-1].removeprefix("error: ")


def clock(seconds):
    return datetime.timedelta(seconds=round(seconds))  # shown as 1:05:00


def finish(given, out, jobs):
    """Run what is left and write the table; the exit status."""
    chosen = jobs if given.number is None else jobs[given.number : given.number + 1]
    if not chosen:
        raise ValueError(f"--number {given.number}: the list has {len(jobs)} runs, 0 to {len(jobs) - 1}")
    at_once = given.jobs or given.recipe.get("jobs", 1)
    on_cpu = [{"OMP_NUM_THREADS": "1"}] * at_once if at_once > 1 else [{}]
    queue = Queue(chosen, [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in given.gpus] or on_cpu)
    queue.run()
    if queue.signal is not None:
        print(f"stopped; {queue.status()}. The same command goes on: {SCRIPT} {shlex.join(given.words)}")
        return 128 + queue.signal
    failed = [f"{job.name}: {why(job)} (its output: {job.log})" for job in queue.among("failed", "diverged")]
    status = 0
    if given.number is None and any(job.begun for job in jobs):
        status = subprocess.run(report_command(given, out, jobs, failed), cwd=ROOT).returncode
    if failed:
        print(f"{len(failed)} of {len(chosen)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return status or int(bool(failed))


@one_line_errors
def main(words):
    os.chdir(os.environ.get("ANTICO_STARTED_IN") or ".")  # where the user stands, which antico_runs.sh has left
    given, extras = parse(words or ["--help"])
    (jobs, notes), out = plan(given, extras), table_path(given, extras)
    for line in [*notes, *lacks(jobs)]:
        print(line, file=sys.stderr)
    if given.dry_run:
        dry_run(given, out, jobs)
    elif given.slurm:
        submit(given, out, jobs)
    else:
        for folder in {job.opt.source_path for job in jobs if job.opt.dataset != "glyphs"}:
            if not os.path.isdir(folder):
                raise ValueError(f"{folder}: no such folder; where are the data sets? {SCRIPT} {given.table} DATA")
        return finish(given, out, jobs)
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # before the runs begin, or in the table
        sys.exit(128 + signal.SIGINT)
