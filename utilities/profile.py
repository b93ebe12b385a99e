"""--profile N: where the time of a training step goes."""

import contextlib
import os
import time

import torch

from utilities.failures import Stop
from utilities.files import UNFINISHED

WARM_UP = 5  # steps before, in which memory is taken and the network compiled


class NoProfile:
    """Measures nothing."""

    def phase(self, name):
        return contextlib.nullcontext()

    def end_step(self):
        pass


class Profile:
    """Times the phases of `steps` training steps, after WARM_UP others, writes a trace of them to `path`, prints the
    phases' shares, and ends the program. Of several processes all time and end; those with path None say nothing.

    It waits for the device after each phase, so that a phase has the time of its own work.
    """

    def __init__(self, steps, path, device):
        self.steps, self.path, self.device = steps, path, device
        self.seconds, self.done, self.trace = {}, 0, None

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

    def end_step(self):
        self.done += 1
        if self.done == WARM_UP:
            os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's library writes lines of its own to stderr
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)  # the steps before are not the first phase's
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.trace = torch.profiler.profile(activities=activities)
            self.trace.start()
        elif self.done == WARM_UP + self.steps:
            self.trace.stop()
            if self.path:
                self.write()
            raise Stop("", 0)

    def write(self):
        unfinished = os.path.join(os.path.dirname(self.path), f"{UNFINISHED}profile.json")  # torch goes by the ending
        self.trace.export_chrome_trace(unfinished)
        os.replace(unfinished, self.path)
        total = sum(self.seconds.values())
        shares = "  ".join(f"{name} {seconds / total:.1%}" for name, seconds in self.seconds.items())
        print(f"profile of {self.steps} steps, {1000 * total / self.steps:.1f} ms each: {shares}; trace: {self.path}")


def check_steps(steps, left):
    """ValueError, one line, if a run with `left` steps to go ends before --profile has measured `steps` of them."""
    if steps and left < WARM_UP + steps:
        raise ValueError(
            f"--profile {steps}: takes {WARM_UP + steps} steps ({WARM_UP} of them to warm up), this run has "
            f"{left} to go; lower it or raise --n_epochs"
        )
