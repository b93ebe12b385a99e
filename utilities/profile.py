"""--profile N: where the time of a training step goes."""

import contextlib
import time

import torch

WARM_UP = 5  # steps before, in which memory is taken and the network compiled


class NoProfile:
    """Measures nothing."""

    def phase(self, name):
        return contextlib.nullcontext()

    def end_step(self):
        pass


class Profile:
    """Times the phases of `steps` training steps, after WARM_UP others, and writes a trace of them to `path`.

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
            activities = [torch.profiler.ProfilerActivity.CPU]
            if self.device.type == "cuda":
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self.trace = torch.profiler.profile(activities=activities)
            self.trace.start()
        elif self.done == WARM_UP + self.steps:
            self.trace.stop()
            self.trace.export_chrome_trace(self.path)
            self.trace = None
            total = sum(self.seconds.values())
            shares = "  ".join(f"{name} {seconds / total:.0%}" for name, seconds in self.seconds.items())
            print(f"profile of {self.steps} steps, {1000 * total / self.steps:.1f} ms each: {shares}; trace: {self.path}")
