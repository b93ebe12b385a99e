"""How main.py's flags are read and explained: errors in one line, the type from the default. Without torch."""

import argparse
import math
import os

LARGE = 1e30  # of rates, weights, factors: their products still fit float32


class OneLineParser(argparse.ArgumentParser):
    def error(self, message):
        first = os.environ.get("RANK", "0") == "0"  # all processes of a torchrun have the same command line
        self.exit(2, f"error: {message} (python main.py --help lists every flag)\n" if first else None)


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        unsaid = action.default is None or action.default is False or action.default == []
        return action.help if unsaid else super()._get_help_string(action)


def number(kind, low=-LARGE, high=LARGE):
    """An argparse type: a number in [low, high], whose error says so."""

    def convert(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            ends = [f"{end:g}" if kind is float else str(end) for end in (low, high)]
            bounds = f" from {ends[0]} to {ends[1]}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {'a whole' if kind is int else 'a'} number{bounds}")
        return value

    return convert


def flag(group, name, default, help, low=-LARGE, high=LARGE, kind=None, **more):
    """Add one flag. Its type, where `kind` does not say it, is its default's; a list takes several such values.

    A default that goes with other names is said in the help: `by_name`, {name: default}.
    """
    by_name = more.pop("by_name", None)
    default = list(default) if isinstance(default, tuple) else default
    several = isinstance(default, list)
    kind = type(default[0] if default else "") if several else kind or type(default)
    if kind is bool:
        more["action"] = argparse.BooleanOptionalAction if default else "store_true"
    elif kind in (int, float):
        more |= {"type": number(kind, low, int(high) if kind is int else high)}
        more.setdefault("metavar", "N" if kind is int else "X")
    elif not more.get("choices"):
        more.setdefault("metavar", "NAME")
    if several:
        more["nargs"] = "+"
    help = help.replace("%", "%%")
    if by_name:
        help += f" (default: %(default)s; {', '.join(f'{key}: {value}' for key, value in by_name.items())})"
    group.add_argument(f"--{name}", default=default, help=help, **more)
