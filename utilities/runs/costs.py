"""The runs of the table `cost`: a step is measured (benchmarks/cost.py), nothing is trained."""

import json
import os
import sys

from utilities.folders import all_flags
from utilities.runs import plan, records

ALSO = ("kernels", "grad_cache", "cache")  # change no number of a run, but what a step costs


class Measurement(plan.Run):
    """A Run whose record is a file of benchmarks/cost.py."""

    @property
    def key(self):
        return self.key_of(vars(self.opt))

    @staticmethod
    def key_of(flags):
        return records.key(flags) + json.dumps([flags.get(name) for name in ALSO])

    @property
    def folder(self):
        return os.path.join(os.path.dirname(self.opt.save_path), "cost", self.dataset)

    @property
    def path(self):
        return os.path.join(self.folder, f"{os.path.basename(self.name)}.json")

    @property
    def log(self):
        return self.path.replace(".json", ".log")

    def find(self, scanned=None):
        try:
            with open(self.path, encoding="utf-8") as file:
                record = json.load(file)
            if self.key_of({**all_flags(record), **self.housekeeping()}) != self.key:
                return None  # of other flags: it is measured anew
            commit, seconds = record["commit"] or "", float(record["seconds"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return records.Record(self.path, self.key, 0, True, frozenset(self.columns), seconds, commit)

    def housekeeping(self):
        """What benchmarks/cost.py gives itself."""
        return {"n_epochs": self.opt.n_epochs, "warmup": self.opt.warmup}

    def command(self, record):
        own = ("save_path", "group", "n_epochs", "warmup")
        flags = {name: value for name, value in self.flags.items() if name not in own}
        return [sys.executable, "-m", "benchmarks.cost", self.path, *plan.words_of(flags)]
