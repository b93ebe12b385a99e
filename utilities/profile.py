"""--profile N: where the time of a training step goes."""

import contextlib
import functools
import os
import time
import warnings

import torch

from utilities import distributed
from utilities.failures import Stop
from utilities.files import write_whole

WARM_UP = 5  # steps before, in which memory is taken and the network compiled


def phase(name):
    """Decorator of a function of the run: the time that it takes is that phase's, where the run is profiled."""

    def decorate(function):
        @functools.wraps(function)
        def timed(run, *args):
            with run.profile.phase(name):
                return function(run, *args)

        return timed

    return decorate


class Profile:
    """Times the phases of `steps` training steps, after WARM_UP others, and ends the program; without `steps`, nothing.

    It waits for the device after each phase, so that a phase has the time of its own work.
    """

    def __init__(self, steps, device):
        self.steps, self.device = steps, device
        self.seconds, self.done, self.trace = {}, 0, None

    def check(self, left):
        """ValueError, one line, if a run with `left` steps to go ends before `steps` of them are measured."""
        needed = WARM_UP + (self.steps or 0)
        if self.steps and left < needed:
            raise ValueError(
                f"--profile {self.steps}: takes {needed} steps ({WARM_UP} of them to warm up), this run has "
                f"{left} to go; lower it or raise --n_epochs"
            )

    @contextlib.contextmanager
    def phase(self, name):
        if self.trace is None:
            yield
            return
        start = time.perf_counter()
        with torch.profiler.record_function(name):
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        self.seconds[name] = self.seconds.get(name, 0) + time.perf_counter() - start

    def inputs(self, batches):
        """The batches; waiting for one is the phase `input`."""
        while True:
            with self.phase("input"):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def end_step(self, folder):
        """Count a step. After the last: profile.json, a trace, in `folder`; the phases' shares on the console; Stop."""
        if not self.steps:
            return
        self.done += 1
        if self.done == WARM_UP:
            self.start()
        elif self.done == WARM_UP + self.steps:
            self.trace.stop()
            if distributed.rank() == 0:
                self.write(os.path.join(folder, "profile.json"))
            raise Stop("", 0)

    def start(self):
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library writes lines of its own to stderr
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events")  # torch 2.11's, of cycles
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # the steps before are not the first phase's
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self.trace = torch.profiler.profile(activities=activities)
        self.trace.start()

    def write(self, path):
        write_whole(path, lambda file: self.trace.export_chrome_trace(file.name))
        total = sum(self.seconds.values())
        shares = "  ".join(f"{name} {seconds / total:.1%}" for name, seconds in self.seconds.items())
        print(f"profile of {self.steps} steps, {1000 * total / self.steps:.1f} ms each: {shares}; trace: {path}")
