"""A queue of runs on one or several GPUs: each run once, a failed one stops nothing, Ctrl-C lets them save."""

import concurrent.futures
import contextlib
import datetime
import os
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time

from utilities.runs.records import ROOT

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None

WAIT = 2.0  # seconds between looks at runs that another queue has


def lock_path(run):
    return os.path.join(run.folder, ".queue", run.lock_name)


def is_claimed(run):
    """Whether another process has the run now. Writes nothing."""
    try:
        with open(lock_path(run), "rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except (OSError, AttributeError):
        return False


@contextlib.contextmanager
def claim(run):
    """The open file that holds the run, None where another process has it.

    The lock is of the open file, which the run's own process inherits: it lasts until both are gone, however they end.
    """
    os.makedirs(os.path.dirname(lock_path(run)), exist_ok=True)
    with open(lock_path(run), "ab") as handle:
        try:
            if fcntl:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        except OSError:
            pass  # a file system without locks
        yield handle


def reason(log, start, status):
    """Why a run failed: its last line that says error, of what its log has from `start` on."""
    with open(log, encoding="utf-8", errors="replace") as file:
        file.seek(start)
        lines = [line.strip() for line in file if line.strip()]
    errors = [line for line in lines if line.startswith("error:") or "Error" in line]
    if status < 0:
        return f"killed by {signal.Signals(-status).name} (the system does so when memory runs out)"
    return (errors or lines or [f"ended with status {status}"])[-1].removeprefix("error: ")


def diverged(record):
    """Why a run that has diverged is not started again."""
    return (
        f"diverged: {record.diverged}; give a lower --lr, a longer --warmup or another weight, or move its folder away "
        "to train it once more"
    )


class Queue:
    """Runs that are to be finished. `run()` returns when all are, have failed, or a signal came.

    runs : of plan.py; places : a worker each, {variable of its environment: value}; done : runs that count as done
    failed : {run: why} of those that are not tried again
    """

    def __init__(self, runs, places, done=(), failed=()):
        self.done, self.failed, self.interrupted = list(done), dict(failed), []
        self.waiting, self.places = list(runs), places
        self.total = len(self.waiting) + len(self.done) + len(self.failed)
        self.running = {}  # {run: (process, start)}
        self.elsewhere = set()
        self.seconds = {}  # {(data set, network): [seconds of a finished run]}
        self.signal, self.lock, self.shown = None, threading.RLock(), ""

    # --- one worker ---

    def work(self, place):
        while self.signal is None:
            with self.lock:
                run = next((r for r in self.waiting if r not in self.elsewhere), None) or next(iter(self.waiting), None)
                if run is None:
                    return
                self.waiting.remove(run)
            try:
                outcome = self.attempt(run, place)
            except OSError as problem:  # a full disk, a folder that cannot be written: this run fails, others may not
                outcome = f"{problem.filename}: {problem.strerror}"
            self.count(run, outcome)
            if outcome == "elsewhere":
                time.sleep(WAIT if all(r in self.elsewhere for r in self.waiting) else 0)

    def attempt(self, run, place):
        """ "done", "elsewhere", "interrupted", or why it failed."""
        with claim(run) as handle:
            if handle is None:
                return "elsewhere"
            record = run.find()
            if record and record.finished:  # by another queue, meanwhile
                return "done"
            if record and record.diverged:
                return diverged(record)
            status, start = self.train(run, run.command(record), handle, place)
            record = run.find()
            if record and record.finished:
                self.seconds.setdefault(run.like, []).append(record.seconds)
                return "done"
            if record and record.diverged:
                return diverged(record)
            return "interrupted" if self.signal is not None else reason(run.log, start, status)

    def train(self, run, command, handle, place):
        """(exit status, where its part of the log begins) of the process that trains the run."""
        environment = {**os.environ, **place}
        os.makedirs(os.path.dirname(run.log), exist_ok=True)
        with open(run.log, "a", encoding="utf-8") as log:
            start = log.tell()
            print(f"# {datetime.datetime.now():%Y-%m-%d %H:%M:%S}  {shlex.join(command)}", file=log, flush=True)
            with self.lock:
                if self.signal is not None:
                    return 0, start
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=ROOT,
                    pass_fds=[handle.fileno()], start_new_session=True,  # a terminal's Ctrl-C comes through us, once
                )  # fmt: skip
                self.running[run] = process, time.monotonic()
                if self.signal is not None:  # it came in between
                    process.send_signal(signal.SIGTERM)
            self.say(f"{run.name}: begins" if "--resume" not in command else f"{run.name}: goes on")
            return process.wait(), start

    def count(self, run, outcome):
        with self.lock:
            _, start = self.running.pop(run, (None, None))
            self.elsewhere.discard(run)
            took = f", {clock(time.monotonic() - start)}" if start else ""
            if outcome == "elsewhere":
                self.elsewhere.add(run)
                self.waiting.append(run)
            elif outcome == "done":
                self.done.append(run)
                self.say(f"{run.name}: done{took}")
            elif outcome == "interrupted":
                self.interrupted.append(run)
            else:
                self.failed[run] = outcome
                self.say(f"{run.name}: FAILED{took}: {outcome}")

    # --- all of them ---

    def run(self):
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
        former = {n: signal.signal(n, self.stop) for n in numbers if signal.getsignal(n) != signal.SIG_IGN}  # nohup
        stopping = False
        try:
            with concurrent.futures.ThreadPoolExecutor(len(self.places)) as pool:
                workers = [pool.submit(self.work, place) for place in self.places]
                while not all(worker.done() for worker in workers):
                    if self.signal is not None and not stopping:
                        self.say(f"{signal.Signals(self.signal).name}: what runs finishes its step and saves itself")
                    stopping = self.signal is not None
                    self.show_status()
                    time.sleep(0.2)
            for worker in workers:
                worker.result()  # raises what was a bug
        finally:
            self.clear()
            for number, handler in former.items():
                signal.signal(number, handler)

    def stop(self, number, _):
        self.signal = self.signal or number
        for process, _ in list(self.running.values()):
            with contextlib.suppress(OSError):  # main.py saves itself at all but SIGHUP
                process.send_signal(signal.SIGTERM if number == signal.SIGHUP else number)

    # --- what is said ---

    def status(self):
        """The queue in one line: done, running, left, time left."""
        with self.lock:
            left = len(self.waiting) - len(self.elsewhere) + len(self.interrupted)
            parts = [f"{len(self.done)} of {self.total} done", f"{len(self.running)} running", f"{left} left"]
            parts += [f"{len(self.elsewhere)} in another queue"] * bool(self.elsewhere)
            parts += [f"{len(self.failed)} failed"] * bool(self.failed)
            seconds = self.time_left()
            parts += [] if seconds is None else [f"about {clock(seconds)} to go"]
            return ", ".join(parts)

    def time_left(self):
        """Seconds, from those that finished runs took: of the same data and network where there are some."""
        everything = [s for times in self.seconds.values() for s in times]
        if not everything:
            return None
        mean = lambda run: statistics.fmean(self.seconds.get(run.like) or everything)  # noqa: E731
        now = time.monotonic()
        running = sum(max(mean(run) - (now - start), 0) for run, (_, start) in self.running.items())
        return (running + sum(map(mean, self.waiting))) / len(self.places)

    def say(self, line):
        with self.lock, contextlib.suppress(OSError):  # nobody reads any more: the runs go on
            self.clear()
            print(line if sys.stdout.isatty() else f"{line}  [{self.status()}]", flush=True)

    def show_status(self):
        if sys.stdout.isatty():
            with self.lock:
                line = self.status()[: shutil.get_terminal_size().columns - 1]
                if line != self.shown:
                    print(f"\r\033[K{line}", end="", flush=True)
                self.shown = line

    def clear(self):
        self.shown = ""
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)


def clock(seconds):
    """1 h 5 min, 12 min, 40 s."""
    minutes = round(seconds / 60)
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
