"""The runs of a table with what is on disk of each, and what is said of them before they run."""

import os
import shlex

from utilities import folders
from utilities.runs import records, workers


class Listing:
    """The runs of a table with what is on disk of each."""

    def __init__(self, runs):
        self.runs, self.problems, scanned = runs, [], {}
        for folder in dict.fromkeys(run.folder for run in runs):
            scanned[folder], problems = records.scan(folder)
            self.problems += problems
        self.records = {run: run.find(scanned[run.folder]) for run in runs}

    def state(self, run):
        record = self.records[run]
        if record and record.finished:
            return "done"
        if record and record.diverged:
            return "diverged"
        return "running" if workers.is_claimed(run) else "interrupted" if record else "new"

    def folders(self):
        return [record.folder for record in self.records.values() if record]

    def notes(self):
        """Lines on what the user should know of the finished runs and of what was left out."""
        lines = [f"note: {problem}" for problem in self.problems]
        finished = [run for run in self.runs if self.state(run) == "done"]
        commits = {self.records[run].commit for run in finished} - {folders.commit(), ""}
        for commit in sorted(commits):
            names = [run.name for run in finished if self.records[run].commit == commit]
            this = folders.short(folders.commit()) or "none"
            lines.append(f"note: {several(names)} of commit {folders.short(commit)}, this is {this}")
        lacking = {}
        for run in finished:
            for column in run.columns - self.records[run].columns:
                lacking.setdefault(column, []).append(run)
        for column, runs in sorted(lacking.items()):
            checkpoint = os.path.join(self.records[runs[0]].folder, "checkpoint.pt")
            metric = column.partition("/")[2]
            lines.append(
                f"note: {several([run.name for run in runs])} without {column}, and so is the table; measure it by "
                f"python main.py --evaluate_only --checkpoint {shlex.quote(checkpoint)} --evaluation_metrics {metric}"
            )
        return lines


def several(names):
    return f"{names[0]}, finished, is" if len(names) == 1 else f"{len(names)} finished runs ({names[0]}, ...) are"


def without_effect(extras, runs):
    """A line on flags of the command line that act on none of the runs."""
    idle = [name for name in extras if all(name not in run.flags for run in runs)]
    return [f"note: --{name}: no effect on any of these runs" for name in idle]
