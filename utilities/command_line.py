"""Parser, help, names that a flag can give, and one-line errors."""

import argparse
import difflib
import functools
import os
import signal
import sys

OTHERS = {"batch_size": "bs", "learning_rate": "lr", "weight_decay": "decay", "epochs": "n_epochs"}  # programs' flags
LARGE = 1e30  # of rates, weights, factors: their products still fit float32


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        if message.startswith(unknown := "unrecognized arguments: --"):
            name = message.removeprefix(unknown).split()[0].partition("=")[0].replace("-", "_")
            known = [word.strip("-") for action in self._actions for word in action.option_strings]
            message += near(OTHERS.get(name, name), known).replace("mean ", "mean --")
        first = os.environ.get("RANK", "0") == "0"  # all processes of a torchrun have the same command line
        self.exit(2, f"error: {message} ({self.prog} --help lists every flag)\n" if first else None)


def line_of(problem):
    """An exception as text; of an OSError the file and the reason."""
    if isinstance(problem, OSError) and problem.filename and problem.strerror:
        return f"{problem.filename}: {problem.strerror}"
    return str(problem).strip() or type(problem).__name__


def silence():
    """Nothing more to standard output, or Python's own last flush would complain of a closed pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return 128 + signal.SIGPIPE  # the exit status


def one_line_errors(main):
    """Decorator: from the words of a command line, or sys.argv's, to its exit status: 2 for bad input."""

    @functools.wraps(main)
    def guarded(words=None):
        try:
            status = main(sys.argv[1:] if words is None else [str(word) for word in words])
            sys.stdout.flush()
            return status
        except (ValueError, OSError) as problem:
            if isinstance(problem, BrokenPipeError):
                return silence()
            print(f"error: {line_of(problem)}", file=sys.stderr)
            return 2

    return guarded


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        unsaid = action.default is None or action.default is False or action.default == []
        return action.help if unsaid else super()._get_help_string(action)


def number(kind, low=-LARGE, high=LARGE):
    """An argparse type: a number in [low, high], whose error says so."""

    def convert(text):
        value = kind(text)
        if not low <= value <= high:
            ends = [f"{end:g}" if kind is float else str(end) for end in (low, high)]
            raise argparse.ArgumentTypeError(f"{text!r} is not a {convert.__name__} from {ends[0]} to {ends[1]}")
        return value

    convert.__name__ = "whole number" if kind is int else "number"  # for argparse: invalid number value: 'fast'
    return convert


def add_group(parser, title, role="training", about=None):
    """A group of flags with one role (parameters.py)."""
    group = parser.add_argument_group(title, about)
    group.role = role
    return group


def flag(group, name, default, help, low=-LARGE, high=LARGE, kind=None, role=None, may_change=False, **more):
    """Add one flag, of the group's role. Its type, where `kind` does not say it, is its default's; a list takes several
    such values. may_change: a run that goes on may have it otherwise, though it is a training flag."""
    several = isinstance(default, list)
    kind = type(default[0] if default else "") if several else kind or type(default)
    if kind is bool:
        more["action"] = "store_true"
    elif kind in (int, float):
        more |= {"type": number(kind, low, int(high) if kind is int else high)}
        more.setdefault("metavar", "N" if kind is int else "X")
    elif not more.get("choices"):
        more.setdefault("metavar", "NAME")
    if several:
        more["nargs"] = "+"
    action = group.add_argument(f"--{name}", default=default, help=help.replace("%", "%%"), **more)
    action.role = role or group.role
    action.may_change = may_change or action.role != "training"


def lookup(flag, name, known):
    """known[name]. Raises ValueError, one line, that names the flag, a near name and all known ones."""
    if name not in known:
        raise ValueError(f"{flag} {name}: unknown{near(name, known)}; known: {', '.join(known)}")
    return known[name]


def near(name, known, most=1, cutoff=0.4):
    """Names of `known` that are like `name`, as a question: " (did you mean a or b?)"; empty where there are none."""
    similar = difflib.get_close_matches(name, known, most, cutoff)
    return f" (did you mean {' or '.join(similar)}?)" if similar else ""


def listing(parts):
    """The text of --list. parts : {flag: {name: words, an entry that has them as `about`, a class or a function}}"""

    def about(x):
        return x if isinstance(x, str) else getattr(x, "about", None) or x.__doc__.split("\n")[0].strip(".")

    width = max(len(name) for names in parts.values() for name in names)

    def part(flag, names):
        return "\n".join([flag, *(f"  {name:{width}} {about(entry)}" for name, entry in names.items())])

    return "\n\n".join(part(flag, names) for flag, names in parts.items())
