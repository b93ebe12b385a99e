"""How every figure looks: colours that the colour-blind can tell apart, with line styles and markers besides."""

import io
import textwrap

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

# Okabe and Ito, Color Universal Design, 2008, without its yellow, which is too light for lines
COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))]
MARKERS = ["o", "s", "^", "D", "v", "P", "X", "<", ">"]
WIDTH = 7.0  # inches: the text of a page; at half of it, a column, type of 10 points is still 5
SETTINGS = {
    "font.size": 10, "axes.titlesize": 10, "axes.labelsize": 10, "legend.fontsize": 9, "xtick.labelsize": 9,
    "ytick.labelsize": 9, "axes.grid": True, "grid.alpha": 0.25, "axes.spines.top": False, "axes.spines.right": False,
    "lines.linewidth": 1.7, "lines.markersize": 4, "pdf.fonttype": 42, "figure.constrained_layout.use": True,
}  # fmt: skip


def look(number, hollow=False):
    """Keyword arguments of plot for the row of that number, the same in all figures; hollow markers: collapsed."""
    color, line = COLORS[number % len(COLORS)], LINES[number % len(LINES)]
    face = "white" if hollow else color
    return {"color": color, "linestyle": line, "marker": MARKERS[number % len(MARKERS)], "markerfacecolor": face}


def every(number, points):
    """markevery of a curve: about eight markers, those of curves that run together at different places."""
    step = max(points // 8, 1)
    return number % step, step


def panels(rows, columns, height):
    """A figure of rows × columns axes, each row `height` inches high: (figure, axes as nested lists)."""
    with matplotlib.rc_context(SETTINGS):
        figure, axes = plt.subplots(rows, columns, figsize=(WIDTH, height * rows), squeeze=False)
    return figure, axes.tolist()


def grid(number):
    """A figure of that many panels: (figure, axes), one below the other, of more than two in two columns."""
    across = 2 if number > 2 else 1
    figure, lines = panels(-(-number // across), across, 2.6 if across > 1 else 3.2)
    axes = [axis for line in lines for axis in line]
    for axis in axes[number:]:
        axis.set_visible(False)
    return figure, axes[:number]


def squares(number, height=None):
    """The same for pictures: at most three beside each other, in frames without ticks; without a height, as high as
    wide."""
    across = min(number, 3)
    figure, lines = panels(-(-number // across), across, height or WIDTH / across)
    axes = [axis for line in lines for axis in line]
    for axis in axes:
        axis.set_visible(axis in axes[:number])
        bare(axis)
    return figure, axes[:number]


def bare(axis):
    """A frame without ticks."""
    axis.set(xticks=[], yticks=[])
    axis.grid(False)
    axis.spines[["top", "right"]].set_visible(True)


def wrapped(parts, number):
    """The title of one of `number` panels of a grid, in lines that fit; the last part on lines of its own."""
    if number <= 2:
        return ", ".join(filter(None, parts))
    lines = [", ".join(parts[:-1]), parts[-1]]
    return "\n".join(textwrap.fill(line, 31) for line in lines if line)


def legend(figure, axes):
    """One legend below all axes, each label once, long ones in several lines; the figure grows by its height."""
    handles = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if not handles:
        return
    longest = max(map(len, handles))
    columns = 3 if longest <= 22 and len(handles) > 2 else 2 if longest <= 43 and len(handles) > 1 else 1
    labels = ["\n".join(textwrap.wrap(label, {1: 92, 2: 44, 3: 26}[columns])) for label in handles]
    depth = -(-len(labels) // columns)  # a legend fills its columns one after the other
    lines = sum(max(label.count("\n") + 1 for label in labels[i::depth]) for i in range(depth))
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * lines + 0.15)
    figure.legend(
        handles.values(), labels, loc="outside lower center", ncols=columns, frameon=False, handlelength=3,
        columnspacing=1.2, fontsize=SETTINGS["legend.fontsize"],
    )  # fmt: skip


def finish(figure, suffixes=("png", "pdf")):
    """{suffix: bytes} of a figure as PNG and PDF."""
    files, how = {}, {"png": {"dpi": 200}, "pdf": {"metadata": {"CreationDate": None}}}
    with matplotlib.rc_context(SETTINGS):
        for suffix in suffixes:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=suffix, facecolor="white", **how[suffix])
            files[suffix] = buffer.getvalue()
    plt.close(figure)
    return files


def at_least(axis, names, span=1.0):
    """The axes named, "x" or "y", show that much at least: a difference of a hundredth of a percent is no trend."""
    for name in names:
        low, high = getattr(axis, f"get_{name}lim")()
        if high - low < span:
            getattr(axis, f"set_{name}lim")((low + high - span) / 2, (low + high + span) / 2)


def whole_numbers(axis):
    """Epochs are whole, and so are their ticks."""
    axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(nbins=6, integer=True))
