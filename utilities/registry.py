"""Names that a flag can give, looked up: an unknown one is answered with the nearest."""

import difflib


def lookup(flag, name, known):
    """known[name]. Raises ValueError, one line, that names the flag, a near name and all known ones."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, 1, 0.4)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise ValueError(f"{flag} {name}: unknown{hint}; known: {', '.join(known)}")
