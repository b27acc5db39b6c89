"""Draws what was measured, by matplotlib, into a folder of PNG files.

Needs no display.  One picture for each of: hit latency by size, hand-off by number of
waiters, processor time of waiters, takeover, misses, the array, the scale.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .peers import OURS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_GREY = ("open, fstat, read, close", "bare limit", "create, write, close, rename")
_STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "font.size": 10,
    "axes.titlesize": 12,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def _look(name: str) -> dict[str, Any]:
    """Return how a competitor's line looks: ours stands out, the limit is dashed."""
    if name == OURS or name.startswith(("1,000 hot", "any key")):
        return {"linewidth": 2.6, "marker": "o", "zorder": 5}
    if name.startswith(_GREY):
        return {"color": "0.35", "linestyle": "--", "marker": ".", "zorder": 4}
    return {"linewidth": 1.3, "marker": ".", "alpha": 0.9}


def _plain_ticks(axis: Any) -> None:
    """Label a logarithmic axis with plain numbers: 1, 2, 5, 10."""
    ticker = importlib.import_module("matplotlib.ticker")
    axis.set_major_locator(ticker.LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(ticker.NullFormatter())


def _curves(
    axes: Any, lines: dict[str, dict[str, float]], factor: float, across: str, up: str
) -> None:
    """Draw one line for each competitor, both axes logarithmic."""
    ends = []
    for name, points in lines.items():
        across_values = [int(at) for at in points]
        values = [value * factor for value in points.values()]
        (line,) = axes.plot(across_values, values, label=name, **_look(name))
        if values:
            ends.append((values[-1], line))
    axes.set_xscale("log", base=10)
    axes.set_yscale("log")
    _plain_ticks(axes.yaxis)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    ends.sort(key=lambda end: -end[0])
    axes.legend(handles=[line for _, line in ends], loc="center left", bbox_to_anchor=(1.01, 0.5))


def _bars(axes: Any, values: dict[str, float], up: str, form: str) -> None:
    """Draw one bar for each competitor, the least on top."""
    names = sorted(values, key=lambda name: -values[name])
    colours = ["C0" if name == OURS else "0.35" if name in _GREY else "0.75" for name in names]
    bars = axes.barh(names, [values[name] for name in names], color=colours)
    axes.bar_label(bars, [format(values[name], form) for name in names], padding=4)
    axes.set_xlabel(up)
    axes.grid(False, axis="y")
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.set_xlim(min(values.values()) / 2, max(values.values()) * 2)


def _hits(axes: Any, lines: Any) -> None:
    shown = {name: points for name, points in lines.items() if name != "open().read()"}
    _curves(axes, shown, 1e6, "size of the value, bytes", "microseconds")
    axes.set_xscale("log", base=2)
    ticks = sorted({int(at) for points in shown.values() for at in points})
    axes.set_xticks(ticks, [_size(tick) for tick in ticks])
    axes.set_title("A hit, by size (median)")


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    return f"{count // 1024} KB" if count < 1 << 20 else f"{count >> 20} MB"


def _hand_off(axes: Any, lines: Any) -> None:
    _curves(axes, lines, 1e3, "waiters", "milliseconds")
    axes.set_xscale("log", base=2)
    ticks = sorted({int(at) for points in lines.values() for at in points})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_title("From the end of a build to the return of the median waiter")


def _cpu(axes: Any, lines: Any) -> None:
    in_ms = {name: value * 1e3 for name, value in lines.items()}
    _bars(axes, in_ms, "milliseconds, all waiters together", ",.0f")
    axes.set_title("Processor time that the waiters of one build use")


def _takeover(axes: Any, lines: Any) -> None:
    names = list(lines)[::-1]
    axes.boxplot(
        [[value * 1e3 for value in lines[name]] for name in names],
        tick_labels=names,
        orientation="horizontal",
        whis=(0, 100),
        widths=0.5,
        medianprops={"color": "C0", "linewidth": 2.5},
    )
    axes.set_xlabel("milliseconds (median, quartiles, fastest and slowest)")
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    axes.grid(False, axis="y")
    axes.set_title("From the death of a builder to the next build")


def _misses(axes: Any, lines: Any) -> None:
    _bars(axes, {name: value * 1e6 for name, value in lines.items()}, "microseconds", ",.0f")
    axes.set_title("A miss of 4 KB, empty factory (median)")


def _arrays(axes: Any, lines: Any) -> None:
    names = sorted(lines, key=lambda name: -lines[name][0])
    for shift, part, label, colour in (
        (0.2, 0, "first load of a process", "C0"),
        (-0.2, 1, "load and add up all elements", "0.7"),
    ):
        places = [at + shift for at in range(len(names))]
        values = [lines[name][part] * 1e3 for name in names]
        bars = axes.barh(places, values, 0.38, label=label, color=colour)
        axes.bar_label(
            bars,
            [f"{value:,.2g}" if value < 10 else f"{value:,.0f}" for value in values],
            padding=4,
        )
    axes.set_yticks(range(len(names)), names)
    axes.set_xscale("log")
    _plain_ticks(axes.xaxis)
    most = max(max(pair) for pair in lines.values()) * 1e3
    least = min(min(pair) for pair in lines.values()) * 1e3
    axes.set_xlim(least / 2, most * 2)
    axes.set_xlabel("milliseconds")
    axes.grid(False, axis="y")
    axes.legend(loc="lower left", bbox_to_anchor=(0.4, -0.27), ncols=2)
    axes.set_title("A 256 MB array of numpy")


def _scale(axes: Any, lines: Any) -> None:
    _curves(axes, lines, 1e6, "entries in the cache", "microseconds")
    axes.set_yscale("linear")
    axes.set_ylim(bottom=0)
    ticks = sorted({int(at) for points in lines.values() for at in points})
    axes.set_xticks(ticks, [f"{tick:,}" for tick in ticks])
    axes.yaxis.set_major_locator(importlib.import_module("matplotlib.ticker").AutoLocator())
    axes.set_title("A hit of 100 bytes, by number of entries (median)")


_PICTURES: dict[str, tuple[str, Callable[[Any, Any], None]]] = {
    "hits": ("Hit latency by size", _hits),
    "hand_off": ("Hand-off by number of waiters", _hand_off),
    "cpu": ("Processor time of waiters", _cpu),
    "takeover": ("Takeover time", _takeover),
    "misses": ("Cost of a miss", _misses),
    "arrays": ("Loading an array", _arrays),
    "scale": ("Scale to a million entries", _scale),
}


def draw(lines: dict[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draw what there is and return titles and file names; nothing without matplotlib."""
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        print("matplotlib is not installed: no plots")
        return []
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    with pyplot.rc_context(_STYLE):
        for name, (title, picture) in _PICTURES.items():
            if not lines.get(name):
                continue
            figure, axes = pyplot.subplots(figsize=(8, 4.2), layout="constrained")
            picture(axes, lines[name])
            file = f"{name.replace('_', '-')}.png"
            figure.savefig(folder / file, dpi=110, metadata={"Software": None})
            pyplot.close(figure)
            drawn.append((title, file))
    return drawn
