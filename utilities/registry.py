"""Names that a flag can give."""

import difflib


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

    def about(entry):
        return (
            entry
            if isinstance(entry, str)
            else getattr(entry, "about", None) or entry.__doc__.split("\n")[0].strip(".")
        )

    width = max(len(name) for names in parts.values() for name in names)

    def part(flag, names):
        return "\n".join([flag, *(f"  {name:{width}} {about(entry)}" for name, entry in names.items())])

    return "\n\n".join(part(flag, names) for flag, names in parts.items())
