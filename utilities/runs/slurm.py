"""A table's runs as an array of Slurm jobs: each task does one run of the list, through the same code."""

import os
import shlex

from utilities.files import write_whole
from utilities.runs.records import ROOT

# B: the signal is for the script itself, which exec has made the queue; it lets the run save itself
SCRIPT = """#!/usr/bin/env bash
#SBATCH --job-name={job}
#SBATCH --array={array}
#SBATCH --output={logs}
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


def ranges(numbers):
    """[0, 1, 2, 5] → "0-2,5"."""
    parts = []
    for number in numbers:
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def write(path, numbers, words):
    """Write the script for these numbers of the list; `words` are those of antico_runs.sh."""
    logs = os.path.join(os.path.dirname(path), "slurm")
    os.makedirs(logs, exist_ok=True)  # Slurm makes no folder, and then the job fails
    text = SCRIPT.format(
        job=f"antico-{os.path.basename(path).removesuffix('.sbatch')[:40]}",
        array=ranges(numbers),
        logs=f'"{os.path.join(logs, "%A_%a.out")}"',
        here=shlex.quote(os.getcwd()),
        command=shlex.join([os.path.join(ROOT, "antico_runs.sh"), *words]),
    )
    write_whole(path, lambda file: file.write(text))
