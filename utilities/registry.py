"""Names that a flag can give, and the flags that a function declares. Without torch, which takes seconds to import."""

import ast
import difflib
import functools
import importlib.util
import re
from typing import Any, NamedTuple


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
    """The text of --list: for each flag the names that it takes, with what their entries say `about` them.

    parts : {flag: {name: entry}}
    """
    width = max(len(name) for names in parts.values() for name in names)

    def part(flag, names):
        return "\n".join([flag, *(f"  {name:{width}} {entry.about}" for name, entry in names.items())])

    return "\n\n".join(part(flag, names) for flag, names in parts.items())


class Flag(NamedTuple):
    argument: str  # of the function
    name: str  # without --
    default: Any
    kind: type  # float, int, str, bool or tuple (words)
    choices: tuple  # empty where there are none
    help: str


@functools.cache
def flags(where):
    """The flags of the class or function named by `where`, "package.module:Name": read from its source, not imported.

    An argument of the function, or of the class's own constructor, is a flag where the comment on its line begins with
    one: `margin=0.2,  # --loss_yours_margin: what it is`. The type is the default's, or where that is None the
    annotation's; an annotation by a Literal of the module, `MODES = Literal["a", "b"]`, gives the choices.
    """
    module, _, name = where.partition(":")
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"{where}: there is no module {module}")
    with open(spec.origin, encoding="utf-8") as file:
        source = file.read()
    lines, body = source.splitlines(), ast.parse(source).body
    literals = {}
    for node in body:
        if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("Literal["):
            literals[node.targets[0].id] = ast.literal_eval(node.value.slice)
    function = next((node for node in body if getattr(node, "name", None) == name), None)
    if function is None:
        raise ImportError(f"{where}: {spec.origin} has no class or function {name}")
    if isinstance(function, ast.ClassDef):
        function = next((node for node in function.body if getattr(node, "name", None) == "__init__"), None)
    arguments = function.args.args if function else []
    defaults = function.args.defaults if function else []
    declared = []
    for node, default in zip(arguments, [None] * (len(arguments) - len(defaults)) + defaults):
        comment = re.search(r"# --(\w+): (.+)", lines[node.end_lineno - 1])
        if comment:
            value = ast.literal_eval(default) if default else None
            annotation = ast.unparse(node.annotation).split(" | ")[0] if node.annotation else ""
            annotated = {"float": float, "int": int, "bool": bool}.get(annotation, str)
            kind = annotated if value is None else type(value)
            declared.append(Flag(node.arg, comment[1], value, kind, literals.get(annotation, ()), comment[2]))
    return declared
