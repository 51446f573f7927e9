"""The curves of a training run, drawn from its metrics.jsonl."""

import importlib.util
import io
import logging
import math
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

from nanomed.files import no_pipe, parse_json, replace_file, typed

# What a notebook left in the environment for its own pictures would fail matplotlib's import where that
# notebook's package is not installed.
_package = os.environ.get("MPLBACKEND", "").partition("module://")[2].partition(".")[0]
if _package and not importlib.util.find_spec(_package):
    del os.environ["MPLBACKEND"]
# where it keeps its fonts is no concern of who trains
logging.getLogger("matplotlib").setLevel(logging.ERROR)

# Each is told from a white page and from a dark one (3 to 1).
TRAINING = ("#3f8fbd", "#8f7fc4")
VALIDATION = ("#d9622b", "#2f9e6e", "#c2458f", "#a8801a", "#6878d8")
RUNS = (TRAINING[0], *VALIDATION)


def plot_curves(directory: Path, unit: str = "tokens") -> Path | None:
    """Draw loss.png from metrics.jsonl; says so in one line and returns None if matplotlib is not installed.
    Raises UserError if it cannot be written."""
    try:
        title = directory.name.encode("utf-8", "replace").decode()  # an odd byte in it has no shape
        image = draw_curves({title: directory}, "png", "black", unit, title=title)
    except ImportError:
        print("no loss.png: matplotlib is not installed (pip install 'nanomed[report]')", file=sys.stderr)
        return None
    replace_file(directory / "loss.png", lambda tmp: tmp.write_bytes(image))
    return directory / "loss.png"


@dataclass
class Loss:
    loss: float | None = None


@dataclass
class Record:
    """Of a line of metrics.jsonl, what is drawn."""

    tokens: int
    step: int = 0
    loss: float | None = None
    answer_loss: float | None = None
    replay_loss: float | None = None
    val_loss: float | None = None
    val: dict[str, Loss] | None = None
    lr: float | None = None
    grad_norm: float | None = None


def read_metrics(directory: Path) -> list[dict]:
    """The records of metrics.jsonl. Raises UserError for a line that is none."""
    path, records = directory / "metrics.jsonl", []
    lines = no_pipe(path).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, 1):
        record = parse_json(line, f"{path}, line {number}")
        typed(Record, record, f"{path}, line {number}: not what a training writes there")
        records.append(record)
    return records


def curves(records: list[dict]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """The points (tokens, value) of every series there is, {"training", "validation", "lr", "grad_norm":
    {name: points}}: answers and replayed text apart where both were trained on, each validation set under its
    own name."""
    both = any(r.get("replay_loss") is not None for r in records)
    training = {"answer_loss": "answers", "replay_loss": "replayed text"} if both else {"loss": "training"}
    named = list(dict.fromkeys(name for r in records for name in r.get("val") or {}))

    def points(value_of) -> list[tuple[int, float]]:
        found = [(r["tokens"], value_of(r)) for r in records]
        return [(x, y) for x, y in found if y is not None and math.isfinite(y)]

    def of_set(name: str) -> list[tuple[int, float]]:
        return points(lambda r: ((r.get("val") or {}).get(name) or {}).get("loss"))

    validation = {f"validation: {name}": of_set(name) for name in named}
    series = {
        "training": {name: points(lambda r, key=key: r.get(key)) for key, name in training.items()},
        "validation": validation or {"validation": points(lambda r: r.get("val_loss"))},
        "lr": {"learning rate": points(lambda r: r.get("lr"))},
        "grad_norm": {"gradient norm": points(lambda r: r.get("grad_norm"))},
    }
    return {kind: {name: p for name, p in found.items() if p} for kind, found in series.items()}


def draw_curves(runs: dict[str, Path], format: str, ink: str, unit: str, title: str) -> bytes:
    """Runs as a picture, {name: directory}: their losses over the tokens (`unit`) they saw, validation as
    points, and beneath them the learning rate and the gradient's norm. A colour is a series of one run, or
    one of several runs; ink: of text and axes. An SVG is transparent and small, for a page of any colour."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # without pyplot, which would look for a window
    from matplotlib.lines import Line2D
    from matplotlib.ticker import EngFormatter

    small = format == "svg"
    colours = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context(dict.fromkeys(colours, ink) | {"svg.hashsalt": "nanomed"}):
        figure = Figure(figsize=(4.5, 4.4) if small else (7, 6), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True, height_ratios=[3, 1, 1])
        lines, marks = {}, {}  # of the legend
        for run, (name, directory) in enumerate(runs.items()):
            series = curves(read_metrics(directory))
            for k, (what, points) in enumerate(series["training"].items()):
                how = {"color": _colour(runs, TRAINING, k, run), "lw": 1.3, "marker": _dot(points)}
                (line,) = panels[0].plot(*zip(*points, strict=True), ls="-:"[k], **how)
                lines[what if len(runs) == 1 else f"{name}, {what}" if k else name] = line
            for k, (what, points) in enumerate(series["validation"].items()):
                how = {"marker": "osD^v"[k % 5], "ms": 5, "ls": "none"}
                colour = _colour(runs, VALIDATION, k, run)
                panels[0].plot(*zip(*points, strict=True), color=colour, zorder=3, **how)
                marks.setdefault(what, Line2D([], [], color=colour if len(runs) == 1 else ink, **how))
            for ax, kind in zip(panels[1:], ("lr", "grad_norm"), strict=True):
                for points in series[kind].values():
                    colour = _colour(runs, TRAINING, 0, run)
                    ax.plot(*zip(*points, strict=True), color=colour, lw=1, marker=_dot(points))
        _label(figure, panels, lines | marks)
        panels[0].set_title(title, parse_math=False)  # a name with $ is a name
        panels[2].set_xlabel(f"{unit} trained on")
        panels[2].xaxis.set_major_formatter(EngFormatter(sep=""))
        out, undated = io.BytesIO(), {"Date": None} if small else None
        with warnings.catch_warnings():  # a directory's name in letters that the font has not got
            warnings.filterwarnings("ignore", "Glyph .* missing")
            figure.savefig(out, format=format, dpi=144, transparent=small, metadata=undated)
    return out.getvalue()


def _colour(runs: dict, palette: tuple, series: int, run: int) -> str:
    return palette[series % len(palette)] if len(runs) == 1 else RUNS[run % len(RUNS)]


def _label(figure, panels, legend: dict) -> None:
    names = [name if len(name) < 40 else f"{name[:20]}…{name[-18:]}" for name in legend]
    if names:
        ncols = 2 if max(map(len, names)) < 28 else 1
        how = {"loc": "outside upper center", "ncols": ncols, "frameon": False, "fontsize": "small"}
        for text in figure.legend(legend.values(), names, **how).get_texts():
            text.set_parse_math(False)
    for ax, what in zip(panels, ("loss", "learning\nrate", "gradient\nnorm"), strict=True):
        ax.set_ylabel(what)
        ax.grid(alpha=0.3)
    figure.align_ylabels(panels)
    for ax in panels[1:]:
        ax.set_ylim(0, 1.1 * max((y for line in ax.lines for y in line.get_ydata()), default=0) or 1)
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_visible(bool(ax.lines))


def _dot(points: list) -> str:
    return "." if len(points) == 1 else ""  # a line of one point would not be seen
