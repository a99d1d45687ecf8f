"""The report's figures, drawn by matplotlib to SVG files. Colours are told apart without colour vision."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from rewardzoo.clients.compare.report.view import signed
from rewardzoo.clients.compare.summaries import Estimate

# Okabe and Ito's, with Tol's wine for yellow, which is too light for a line on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#882255")
_MARKERS = "osD^vPX"
_LINES = ("-", "--", "-.", ":")
# Inches: as wide as the page's column.
_WIDTH = 11.6
# So many values of an axis have room for a tick each.
_FEW = 5
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.edgecolor": "#777",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "xtick.color": "#333",
    "ytick.color": "#333",
    "legend.frameon": False,
    "svg.hashsalt": "rewardzoo",
    # A name with dollar signs is a name.
    "text.parse_math": False,
    "figure.constrained_layout.use": True,
}
_BASELINE: dict[str, Any] = {"color": "#777", "linestyle": (0, (1, 2)), "linewidth": 1.5}


@dataclass(frozen=True)
class Look:
    """How a reward is drawn, the same in all figures of a report."""

    color: str
    marker: str
    line: Any


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Give each reward its look, by its place."""
    return {
        name: Look(
            _COLORS[i % len(_COLORS)], _MARKERS[i % len(_MARKERS)], _LINES[i // len(_COLORS) % len(_LINES)]
        )
        for i, name in enumerate(names)
    }


@contextmanager
def _drawing(
    width: float, height: float, columns: int = 1, **options: Any
) -> Iterator[tuple[Any, list[Axes], Any]]:
    with mpl.rc_context(_STYLE):
        figure = Figure((width, height))
        axes = np.atleast_1d(figure.subplots(1, columns, **options)).tolist()
        file = io.BytesIO()
        yield figure, axes, file
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None})


def dots(
    rows: Mapping[str, Sequence[tuple[str, Estimate]]],
    look: Mapping[str, Look],
    label: str,
    chance: float | None,
) -> bytes:
    """Draw estimates with their intervals: a band of the y axis a row, a dot a reward.

    `chance` is where a line is drawn for what guessing would reach.
    """
    names = list(dict.fromkeys(name for found in rows.values() for name, _ in found))
    count = sum(len(found) for found in rows.values()) + len(rows)
    with _drawing(_WIDTH, 0.9 + 0.2 * count) as (figure, (axes,), file):
        y, ticks = 0.0, []
        for found in rows.values():
            first = y
            for name, e in found:
                _dot(axes, e, y, look[name])
                y += 1
            ticks.append((first + y - 1) / 2)
            y += 1
        axes.set_yticks(ticks, list(rows))
        axes.set_ylim(y - 1, -1)
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(label)
        if chance is not None:
            axes.axvline(chance, **_BASELINE)
        _legend(figure, [(name, look[name]) for name in names])
    return bytes(file.getvalue())


def curves(
    panels: Mapping[
        str, Sequence[tuple[str, Sequence[float], Sequence[float], Sequence[float], Sequence[float]]]
    ],
    look: Mapping[str, Look],
    xlabel: str,
    ylabel: str,
) -> bytes:
    """Draw curves with bands, a panel a split: (name, x, y, low, high) each; x is on a log2 scale.

    Marks and ticks stand at every x where these are a few, and at powers of two where there are many, as of a
    pool with a point for each n. Names without a look, such as "random", are dotted grey lines with their
    name at the end.
    """
    with _drawing(_WIDTH, 3.9, len(panels), sharey=True) as (figure, axes, file):
        for panel, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, x, y, low, high in lines:
                if (drawn := look.get(name)) is None:
                    panel.plot(x, y, **_BASELINE)
                    panel.annotate(
                        name, (x[-1], y[-1]), (-2, 4), textcoords="offset points", ha="right", color="#555"
                    )
                    continue
                marks = _marked(x)
                marked = [i for i, n in enumerate(x) if n in marks]
                panel.plot(x, y, color=drawn.color, linestyle=drawn.line, markevery=marked, **_marker(drawn))
                panel.fill_between(x, low, high, color=drawn.color, alpha=0.13, linewidth=0)
            panel.set_xscale("log", base=2)
            ticks = _marked(sorted({n for line in lines for n in line[1]}))
            panel.set_xticks(ticks, [f"{n:g}" for n in ticks], minor=False)
            panel.minorticks_off()
            panel.set_title(title)
            panel.set_xlabel(xlabel)
        axes[0].set_ylabel(ylabel)
        names = dict.fromkeys(line[0] for lines in panels.values() for line in lines)
        _legend(figure, [(name, look[name]) for name in names if name in look])
    return bytes(file.getvalue())


def heat(
    values: NDArray[np.float64],
    rows: Sequence[str],
    columns: Sequence[str],
    label: str,
    *,
    limit: float = 1.0,
    form: str = ".2f",
    marks: NDArray[np.bool_] | None = None,
    cell: float = 0.95,
) -> bytes:
    """Draw a table of numbers (rows, columns) as colours from -limit (blue) to limit (orange-red).

    NaN is left white; `marks` are framed. `cell` is the width of one in inches.
    """
    slanted = len(columns) > 3
    width = 1.6 + 0.075 * max(map(len, rows)) + cell * len(columns) + 0.05 * slanted * len(columns[-1])
    height = 0.5 + 0.27 * len(rows) + 0.055 * slanted * max(map(len, columns))
    with _drawing(min(_WIDTH, width), height) as (figure, (axes,), file):
        axes.grid(visible=False)
        picture = axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            if not np.isfinite(value):
                continue
            color = "white" if abs(value) > 0.65 * limit else "#222"
            axes.text(column, row, signed(value, form), ha="center", va="center", color=color, fontsize=8.5)
            if marks is not None and marks[row, column]:
                frame = mpl.patches.Rectangle(
                    (column - 0.47, row - 0.45), 0.94, 0.9, fill=False, ec="k", lw=1.8
                )
                axes.add_patch(frame)
        turned: dict[str, Any] = {"rotation": 30, "ha": "left", "rotation_mode": "anchor"} if slanted else {}
        axes.xaxis.tick_top()
        axes.set_xticks(range(len(columns)), list(columns), **turned)
        axes.set_yticks(range(len(rows)), list(rows))
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        bar = figure.colorbar(picture, ax=axes, shrink=min(1.0, 3 / height), aspect=14, pad=0.02)
        bar.set_label(label)
        bar.outline.set_visible(False)
    return bytes(file.getvalue())


def scatter(
    panels: Mapping[str, Sequence[tuple[str, Estimate, Estimate]]],
    look: Mapping[str, Look],
    xlabel: str,
    ylabel: str,
    *,
    diagonal: bool = False,
) -> bytes:
    """Draw points (name, x, y) with their intervals, a panel a title; `diagonal` draws x = y."""
    with _drawing(_WIDTH, 3.7, len(panels), sharex=True, sharey=True) as (figure, axes, file):
        for panel, (title, points) in zip(axes, panels.items(), strict=True):
            for name, x, y in points:
                drawn = look[name]
                panel.errorbar(
                    x.value,
                    y.value,
                    xerr=_bars(x),
                    yerr=_bars(y),
                    color=drawn.color,
                    marker=drawn.marker,
                    markersize=7,
                    elinewidth=1.2,
                    capsize=2,
                )
            panel.set_title(title)
            panel.set_xlabel(xlabel)
            panel.margins(0.12)
            panel.locator_params(axis="x", nbins=5)
        if diagonal:
            for panel in axes:
                low = min(panel.get_xlim()[0], panel.get_ylim()[0])
                high = max(panel.get_xlim()[1], panel.get_ylim()[1])
                panel.plot([low, high], [low, high], scalex=False, scaley=False, zorder=0, **_BASELINE)
        axes[0].set_ylabel(ylabel)
        names = dict.fromkeys(name for points in panels.values() for name, _, _ in points)
        _legend(figure, [(name, look[name]) for name in names])
    return bytes(file.getvalue())


def training(
    panels: Mapping[str, Sequence[tuple[str, Sequence[float], Sequence[float], float | None]]],
    look: Mapping[str, Look],
    ylabel: str,
) -> bytes:
    """Draw curves over training steps, a panel a title: (reward, steps, values, step of an alarm or None)."""
    with _drawing(_WIDTH, 3.6, len(panels), sharey=True) as (figure, axes, file):
        alarmed = False
        for panel, (title, lines) in zip(axes, panels.items(), strict=True):
            for name, steps, values, alarm in lines:
                drawn = look[name]
                panel.plot(steps, values, color=drawn.color, linestyle=drawn.line, linewidth=1.2, alpha=0.85)
                if alarm is not None:
                    at = float(np.interp(alarm, steps, values))
                    panel.plot([alarm], [at], marker="X", markersize=9, color=drawn.color, mec="k", zorder=5)
                    alarmed = True
            panel.set_title(title)
            panel.set_xlabel("training step")
        axes[0].set_ylabel(ylabel)
        names = dict.fromkeys(line[0] for lines in panels.values() for line in lines)
        extra = [("over-optimisation alarm", Look("#999", "X", ""))] if alarmed else []
        _legend(figure, [*((name, look[name]) for name in names), *extra], markers=False)
    return bytes(file.getvalue())


def _marker(look: Look) -> dict[str, Any]:
    return {"marker": look.marker, "markersize": 5}


def _dot(axes: Axes, e: Estimate, y: float, look: Look) -> None:
    axes.errorbar(
        e.value,
        y,
        xerr=_bars(e),
        color=look.color,
        marker=look.marker,
        markersize=5.5,
        elinewidth=1.6,
        capsize=2.5,
    )


def _bars(e: Estimate) -> NDArray[np.float64] | None:
    if not np.isfinite([e.low, e.high]).all():
        return None
    return np.array([[max(0.0, e.value - e.low)], [max(0.0, e.high - e.value)]])


def _marked(x: Sequence[float]) -> list[float]:
    powers = [n for n in x if n > 0 and float(np.log2(n)).is_integer()]
    return list(x) if len(x) <= _FEW else powers or list(x)


def _legend(figure: Figure, entries: Sequence[tuple[str, Look]], *, markers: bool = True) -> None:
    """Put the legend above the axes, where it covers nothing."""
    if not entries:
        return
    handles = [
        mpl.lines.Line2D(
            [],
            [],
            color=look.color,
            marker=look.marker if markers or not look.line else "",
            linestyle=look.line or "",
            label=name,
        )
        for name, look in entries
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=min(len(handles), 5), fontsize=9)
