"""Which runs make a row of a table, what the row is called, and what its base loss is."""

from dataclasses import dataclass, field

NAMES = {
    "proxyanchor": "ProxyAnchor", "multisimilarity": "MultiSimilarity", "nir": "NIR", "contrastive": "Contrastive",
    "triplet": "Triplet", "margin": "Margin", "npair": "N-pair", "proxynca": "ProxyNCA", "arcface": "ArcFace",
    "normalized_softmax": "Normalized softmax",
}  # fmt: skip
OF_ANTICO = ("antico_", "loss_ac_")  # flags that a base loss does not have
IN_NAME = {"loss", "antico_type", "antico_base", "antico_form", "antico_scale", "loss_oproxy_mode"}


@dataclass
class Row:
    """Runs with the same data and the same acting flags."""

    flags: dict
    runs: list  # that count, one a seed
    left: list  # that do not
    head: str  # the loss's name
    label: str = ""  # in the table of means, where flags of --by have columns of their own
    full: str = ""  # everywhere else
    base: object = None  # the Row of the same recipe with AntiCo's base loss alone
    cells: dict = field(default_factory=dict)  # {Column: Cell}, see tables.py
    differences: dict = field(default_factory=dict)  # {Column: Difference}

    @property
    def all_runs(self):
        return [*self.runs, *self.left]


def is_antico(flags):
    return flags["loss"].split("_")[0] == "antico"


def loss_name(flags, name):
    if name == "oproxy":
        return f"oproxy {flags.get('loss_oproxy_mode', '')}".strip()
    return NAMES.get(name, name.removeprefix("pml.") + " (pytorch-metric-learning)" if "." in name else name)


def head_of(flags):
    """What acted, e.g. "AntiCo batch_proxy over ProxyAnchor"."""
    loss = flags["loss"]
    if not is_antico(flags):
        return loss_name(flags, loss)
    kind = flags.get("antico_type") or loss.removeprefix("antico_")
    kind += " with all_proxy" if flags.get("antico_w_proxies") else ""
    base, form = flags.get("antico_base", "none"), flags.get("antico_form", "normalized")
    text = f"AntiCo {kind} " + ("without a base loss" if base == "none" else f"over {loss_name(flags, base)}")
    if loss == "antico" or form != "normalized":
        text += f", {form} form"
    scale = flags.get("antico_scale", "published")
    if scale != "published":
        return f"{text}, {scale} scale"
    published = (loss, base, flags.get("loss_oproxy_mode"), form) == ("antico", "oproxy", "anchor", "exp")
    return text + (", as published" if published else "")


def group(runs, tuned=False):
    """{data: [Row, ...]}: a table a data set; a base loss stands before its variants, numbers rise."""
    tables = {}
    for run in runs:
        row = tables.setdefault(run.data, {}).setdefault(run.key, Row(run.flags, [], [], head_of(run.flags)))
        (row.left if run.reason else row.runs).append(run)
    for data, rows in tables.items():
        tables[data] = in_order(list(rows.values()))
        name_rows(tables[data])
        for row in tables[data]:
            row.runs.sort(key=lambda run: run.seed)
            row.base = base_of(row, tables[data], tuned)
    return tables


def family(row):
    """The base loss of a row, by which tables are ordered; an AntiCo without one is its own."""
    base = row.flags.get("antico_base") if is_antico(row.flags) else row.flags["loss"]
    return loss_name(row.flags, base) if base != "none" else row.head


def in_order(rows):
    """Families of a base loss as they were given; in one the base first, then its variants, numbers rising."""

    families, heads = [family(row) for row in rows], [row.head for row in rows]
    names, centers = differing(rows), {head: center_of([row for row in rows if row.head == head]) for head in heads}

    def place(row):
        values = [sortable(row.flags.get(name)) for name in names]
        return (
            families.index(family(row)),
            is_antico(row.flags),
            heads.index(row.head),
            row is not centers[row.head],
            values,
        )

    return sorted(rows, key=place)


def sortable(value):
    """A value among others of the same flag, which may be of several kinds."""
    parts = value if isinstance(value, tuple) else (value,)
    number = lambda part: isinstance(part, (int, float))  # noqa: E731
    return tuple((1, part, "") if number(part) else (0 if part is None else 2, 0, str(part)) for part in parts)


def differing(rows):
    """Names of the flags that do not have one value in all rows; not acting counts as a value."""
    names = dict.fromkeys(name for row in rows for name in row.flags)
    return [name for name in names if len({row.flags.get(name) for row in rows}) > 1]


def center_of(rows):
    """The row of a loss from which each of its others differs in one flag, of several that are varied; None without."""
    names = differing(rows)
    changes = lambda a, b: sum(a.flags.get(name) != b.flags.get(name) for name in names)  # noqa: E731
    fits = (row for row in rows if all(changes(row, other) <= 1 for other in rows))
    return next(fits, None) if len(names) > 1 else None


def name_rows(rows):
    """Labels: the loss, and in brackets what tells the row from others; no two are alike.

    Where one flag at a time is varied, the row in the center has all of them, any other the one that it changes.
    Between losses a flag of the recipe that both have and that differs is shown too; AntiCo's own, which is each
    variant's own default, is not.
    """
    for row in rows:
        row.label = row.full = label_of(row, rows)


def label_of(row, rows, without=()):
    """The row's label; flags in `without` have a column of their own."""
    same = [other for other in rows if other.head == row.head]
    names, center = differing(same), center_of(same)
    if center and row is not center:
        names = [name for name in names if row.flags.get(name) != center.flags.get(name)]
        return bracketed(row, names, without)
    counting = [other for other in rows if other.runs or other is row]
    for name in differing(counting):
        acting = {other.flags[name] for other in counting if name in other.flags}
        if name not in IN_NAME and not name.startswith(OF_ANTICO) and name in row.flags and len(acting) > 1:
            names.append(name)
    return bracketed(row, dict.fromkeys(names), without)


def bracketed(row, names, without):
    texts = [shown(name, row.flags.get(name)) for name in names if name not in without]
    bracket = ", ".join(filter(None, texts))
    return f"{row.head} ({bracket})" if bracket else row.head


def shown(name, value):
    if value is None or value is True:
        return name if value else f"{name} unset"
    return "" if value is False else f"{name} {text_of(value)}"


def text_of(value):
    """A flag's value as on a command line."""
    if isinstance(value, tuple):
        return " ".join(map(text_of, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def base_of(row, rows, tuned=False):
    """The Row whose loss is this AntiCo's base and whose other flags are all the same; None without one.

    tuned: each row has the flags that are best for it, so its base is the one row of that loss, whatever its flags.
    """
    if not is_antico(row.flags):
        return None

    def recipe(flags):
        return {name: v for name, v in flags.items() if name != "loss" and not name.startswith(OF_ANTICO)}

    same = [other for other in rows if other.flags["loss"] == row.flags.get("antico_base")]
    if tuned and len(same) == 1:
        return same[0]
    return next((other for other in same if recipe(other.flags) == recipe(row.flags)), None)
