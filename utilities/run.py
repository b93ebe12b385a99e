"""The parts of a run, as main.py hands them from step to step."""

import argparse
from dataclasses import dataclass
from typing import Any

import torch

from utilities import distributed, interrupts, state
from utilities.profile import Profile


@dataclass
class Run:
    """What main.build makes: everything that training, evaluation and the records of a run need."""

    opt: argparse.Namespace
    device: torch.device
    dtype: Any  # of mixed precision, None for float32
    signals: interrupts.Interrupts
    model: torch.nn.Module
    criterion: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    sampler: Any  # of datasampler: which images make a batch
    loader: torch.utils.data.DataLoader
    evaluated: dict  # {name: split}
    partial: str  # what the data lacks
    progress: state.Progress
    checkpoints: state.Checkpoints
    log: Any  # trackers.Trackers on the first process, None on the others
    profile: Profile
    compiled: Any  # the model, compiled where that is asked for
    net: Any = None  # and replicated: what trains

    @property
    def best_split(self):
        """best.pt follows the validation split where there is one, else the test split, as published tables do."""
        return next(name for name in ("val", "test", "train") if name in self.evaluated)

    def stop_if_asked(self):
        """Raise `Interrupted` where any of the processes was told to stop."""
        if distributed.any_process(self.signals.signal is not None):
            self.signals.stop()
