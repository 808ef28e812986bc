"""Figures 1 and 3: quality against rate, of all systems, and of our decoders by size.

Quality is normalised, for metrics have no common unit: in each domain, every column that has a
better end is mapped linearly so that the worst system has 0 and the best 1; a metric is the mean of
its columns, and quality the mean of the metrics. A column counts only if every system has a number
there. So quality depends on which systems take part, and compares only those.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from gac_jax.evaluation.suite import Suite
from gac_jax.evaluation.summary import Line
from gac_jax.evaluation.tables import millions, present

ANCHORS = ("identity", "noise")  # they fix the ends of the scale, but have no rate to speak of


def quality(suite: Suite, lines: Sequence[Line]) -> tuple[dict[str, float], list[str]]:
    """Normalised quality of each system of one domain, and the titles of the columns in it.

    Args:
      suite: metrics.
      lines: of one domain.

    Returns:
      Values 0 .. 1 by system; none if no column counts.
    """
    lines = [line for line in lines if line.clips]
    scores: dict[str, list[np.ndarray]] = defaultdict(list)
    used = []
    for metric, (columns, _) in suite.columns.items():
        for column in columns:
            values = np.array([line.value(column).mean for line in lines])
            spread = np.ptp(values) if len(values) else 0.0
            # NaN, where a system has no number, is not above 0 either.
            if column.higher_is_better is not None and spread > 0:
                share = (values - values.min()) / spread
                scores[metric].append(share if column.higher_is_better else 1 - share)
                used.append(column.title)
    if not scores:
        return {}, []
    mean = np.mean([np.mean(shares, axis=0) for shares in scores.values()], axis=0)
    return {line.system: float(q) for line, q in zip(lines, mean, strict=True)}, used


def draw(suite: Suite, lines: Sequence[Line]) -> list[tuple[str, Figure, str]]:
    """File name without suffix, figure and caption of each figure that can be drawn."""
    used = []
    for domain in present(lines):
        columns = quality(suite, [line for line in lines if line.domain == domain])[1]
        used.append(f"{domain}: {', '.join(columns) or 'nothing that all systems have'}")
    basis = f"The mean over metrics, 0 the worst system and 1 the best. {'. '.join(used)}."
    figure_3 = by_size(suite, lines)
    found = [("figure1", by_system(suite, lines), f"Normalised quality against rate. {basis}")]
    if figure_3 is not None:
        found.append(("figure3", figure_3, "The same of our decoders, by their size."))
    return found


def by_system(suite: Suite, lines: Sequence[Line]) -> Figure:
    """Figure 1: a curve for each family of systems; areas grow with the parameters."""
    figure, axes = _panels(suite, lines)
    for axis, domain in zip(axes, present(lines), strict=True):
        for colour, (name, points) in enumerate(_families(suite, lines, domain).items()):
            x, y, sizes = zip(*points, strict=True)
            axis.plot(x, y, "-", color=f"C{colour}", alpha=0.5, linewidth=1)
            axis.scatter(x, y, sizes, color=f"C{colour}", label=name, edgecolors="white")
    _legend(figure, axes)
    return figure


def by_size(suite: Suite, lines: Sequence[Line]) -> Figure | None:
    """Figure 3: a curve for each size of our decoder; None where no system has one."""
    if not any("decoder" in line.parameters for line in lines):
        return None
    figure, axes = _panels(suite, lines)
    for axis, domain in zip(axes, present(lines), strict=True):
        of_domain = [line for line in lines if line.domain == domain]
        values, _ = quality(suite, of_domain)
        curves = defaultdict(list)
        for line in of_domain:
            if "decoder" in line.parameters and line.system in values:
                size = line.parameters["decoder"]
                curves[size, _family(line.system)].append((line.kbps, values[line.system]))
        for (size, family), points in sorted(curves.items()):
            label = f"{millions({'decoder': size})} decoder ({family})"
            axis.plot(*zip(*sorted(points), strict=True), "o-", label=label)
    _legend(figure, axes)
    return figure


def png(figure: Figure) -> bytes:
    """Contents of a PNG file."""
    return _saved(figure, "png")


def svg(figure: Figure) -> bytes:
    """Contents of an SVG file, the same at every call."""
    with matplotlib.rc_context({"svg.hashsalt": "gac_jax"}):
        return _saved(figure, "svg", metadata={"Date": None})


def _families(
    suite: Suite, lines: Sequence[Line], domain: str
) -> dict[str, list[tuple[float, float, float]]]:
    """(kbps, quality, area) of the systems by what their names have before the @."""
    of_domain = [line for line in lines if line.domain == domain]
    values, _ = quality(suite, of_domain)
    families = defaultdict(list)
    for line in of_domain:
        if line.system in values and line.system not in ANCHORS:
            size = sum(line.parameters.values())
            label = _family(line.system) + (f" ({millions(line.parameters)})" if size else "")
            area = 25 + 60 * math.log10(1 + size / 1e6)
            families[label].append((line.kbps, values[line.system], area))
    return {label: sorted(points) for label, points in families.items()}


def _family(system: str) -> str:
    return system.rpartition("@")[0] or system


def _panels(suite: Suite, lines: Sequence[Line]) -> tuple[Figure, list[Axes]]:
    domains = present(lines)
    figure = Figure(figsize=(1 + 3.6 * len(domains), 4.2), dpi=130, layout="constrained")
    axes = figure.subplots(1, len(domains), sharey=True, squeeze=False)[0]
    for axis, domain in zip(axes, domains, strict=True):
        axis.set(title=domain, xlabel="kbit/s, measured", xscale="log", ylim=(-0.05, 1.05))
        axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_locator(NullLocator())
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("normalised quality")
    return figure, list(axes)


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """One for all panels: a family may be missing in some."""
    handles: dict[str, Any] = {}
    for axis in axes:
        handles |= dict(zip(*reversed(axis.get_legend_handles_labels()), strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside right center", frameon=False)


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=kind, **options)
    return buffer.getvalue()
