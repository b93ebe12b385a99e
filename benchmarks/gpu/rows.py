"""A row of the table is a function of the bench that gives its result in words, and an error where that is wrong."""


class Skipped(Exception):
    """A row that this machine cannot run, and why."""


def row(what):
    """Decorator: the function is a row with that name."""

    def name(function):
        function.what = what
        return function

    return name


def rows_of(module):
    """[(name, function)] in the order of the module."""
    return [(function.what, function) for function in vars(module).values() if hasattr(function, "what")]


def need(condition, why):
    if not condition:
        raise Skipped(why)


def expect(condition, what):
    """RuntimeError if a result is not what it must be."""
    if not condition:
        raise RuntimeError(what)
