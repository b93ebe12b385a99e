"""What antico_runs.sh calls: plan the runs of a table, finish those that are not, write the table."""

import os
import shlex
import subprocess
import sys

from utilities import recipes
from utilities.command_line import one_line_errors
from utilities.runs import costs, options, plan, records, slurm, workers
from utilities.runs.listing import Listing, without_effect


def report_command(name, out, folders, runs, failed=()):
    """The words that write the table of these folders, with lines on what failed below it."""
    below = ["--failed", *failed] if failed else []
    if name == "cost":
        return [sys.executable, "-m", "benchmarks.cost", "--table", out, *folders, *below]
    more = list(recipes.TABLES[name].get("report", []))
    if {run.dataset for run in runs} == {"glyphs"}:
        more += recipes.GLYPHS_REPORT
    return [sys.executable, "-m", "utilities.report", *folders, "--out", out, "--html", *more, *below]


def dry_run(listing, name, out):
    states = [listing.state(run) for run in listing.runs]
    for run, state in zip(listing.runs, states):
        command = run.command(listing.records[run] if state == "interrupted" else None)
        print(f"{state:12}{shlex.join(['python', *command[1:]])}")
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    report = report_command(name, out, listing.folders() or ["RUNS"], listing.runs)
    print(f"{len(states)} runs: {counts}; then: {shlex.join(['python', *report[1:]])}")


def submit(path, listing, words):
    states = [listing.state(run) for run in listing.runs]
    left = [number for number, state in enumerate(states) if state not in ("done", "diverged")]
    if not left:
        print(f"all {len(states)} runs are done or have diverged; the command without --slurm writes the table")
        return
    slurm.write(path, left, [word for word in words if word != "--slurm"])
    print(f"written: {path}, {len(left)} tasks. Look at its first lines, then: sbatch {shlex.quote(path)}")
    print("When they have ended, the command without --slurm writes the table.")


def write_table(name, out, listing, failed):
    """The report over exactly these runs, with what failed below it; its exit status."""
    folders = listing.folders()
    if not folders:
        return 0
    return subprocess.run(report_command(name, out, folders, listing.runs, failed), cwd=records.ROOT).returncode


def places(name, given):
    """A worker each, as what its runs have in their environment: a GPU, or one CPU thread where several are at work."""
    if given.gpus:
        return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in given.gpus]
    jobs = given.jobs or recipes.TABLES[name].get("jobs", 1)
    return [{"OMP_NUM_THREADS": "1"}] * jobs if jobs > 1 else [{}]


def run_all(listing, places):
    """The Queue after all runs of the listing that are not done were tried."""
    datasets = dict.fromkeys(run.dataset for run in listing.runs)
    states = {run: listing.state(run) for run in listing.runs}
    done = [run for run, state in states.items() if state == "done"]
    runs = "1 run" if len(states) == 1 else f"{len(states)} runs"
    already = f", {len(done)} of them done" if done else ""
    print(f"{runs}{already}; made for {'; '.join(f'{name}: {recipes.MADE_FOR[name]}' for name in datasets)}")
    left = [run for run, state in states.items() if state not in ("done", "diverged")]
    failed = {run: workers.diverged(listing.records[run]) for run, state in states.items() if state == "diverged"}
    queue = workers.Queue(left, places, done, failed)
    for run in done:
        queue.seconds.setdefault(run.like, []).append(listing.records[run].seconds)
    queue.run()
    return queue


@one_line_errors
def main(words):
    os.chdir(os.environ.get("ANTICO_STARTED_IN") or ".")  # where the user stands, which antico_runs.sh has left
    if not words or words[0] in ("-h", "--help"):
        print(options.usage())
        return 0
    name, given, extras = options.parse(words)
    kind = costs.Measurement if name == "cost" else plan.Run
    runs, out = plan.plan(name, given, extras, kind), plan.table_path(name, given, extras)
    if not given.dry_run:
        options.check_data(name, given, list(dict.fromkeys(run.dataset for run in runs)))
    if given.check:
        return 0
    if given.number is not None and given.number >= len(runs):
        raise ValueError(f"--number {given.number}: the list has {len(runs)} runs; write the script anew with --slurm")
    listing = Listing(runs if given.number is None else [runs[given.number]])
    for line in listing.notes() + without_effect(extras, runs):
        print(line, file=sys.stderr)
    if given.dry_run:
        dry_run(listing, name, out)
        return 0
    if given.slurm:
        submit(f"{out}.sbatch", listing, words)
        return 0
    queue = run_all(listing, places(name, given))
    if queue.signal is not None:
        print(f"stopped; {queue.status()}. The same command goes on: {options.SCRIPT} {shlex.join(words)}")
        return 128 + queue.signal
    failed = [f"{run.name}: {why} (its output: {run.log})" for run, why in queue.failed.items()]
    status = write_table(name, out, Listing(runs), failed) if given.number is None else 0
    if failed:
        print(f"{len(failed)} of {len(listing.runs)} runs failed:", *failed, sep="\n", file=sys.stderr)
    return status or int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
