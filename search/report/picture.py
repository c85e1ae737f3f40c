"""The picture of the front for pasting elsewhere, `front.png`, drawn with matplotlib."""

import io
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..analysis.study_record import StudyRecord
from ..space.units import phrase, unit_of
from .figures import COLOURS
from .planes import Dot, axis_title, baseline_dots, divergence_limit, dots, planes, staircase
from .sections import sample_counts

NAMES = {"dominated": "dominated", "infeasible": "breaks a constraint", "front": "Pareto front", "dense": "dense"}


def save_front(record: StudyRecord, path: Path) -> None:
    """Write the picture of the front."""
    path.write_bytes(draw_front(record))


def draw_front(record: StudyRecord, dpi: int = 200) -> bytes:
    """Draw quality against the first cost, the front with its confirmation and standard errors, as a PNG.

    Args:
        record: The study.
        dpi: Dots an inch; the picture is 8 by 5 inches.
    """
    plane = planes(record)[0]
    figure = Figure(figsize=(8, 5), dpi=dpi, layout="constrained")
    axes = figure.add_subplot()
    found = dots(record, plane)
    _draw_trials(axes, found)
    _draw_baselines(axes, baseline_dots(record, plane))
    _draw_confirmed(axes, found)
    steps = staircase(found, record, plane)
    axes.step([dot.x for dot in steps], [dot.y for dot in steps], where="post", color=COLOURS["front"], lw=1.5,
              zorder=2)  # fmt: skip
    axes.set_xlabel(axis_title(plane.x))
    axes.set_ylabel(axis_title(plane.y))
    samples = f"{phrase(plane.y)}: {sample_counts(record, plane.y)}"
    axes.set_title(f"{textwrap.fill(_no_math(record.model_id), 90)}\n{samples}", loc="left", fontsize=10)
    if found and unit_of(plane.y) == "nats":
        limit = divergence_limit(found)
        axes.set_ylim(-limit / 20, limit)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    if found:
        axes.legend(frameon=False, fontsize=8)
    else:
        axes.text(0.5, 0.5, "no trial measured both metrics", ha="center", transform=axes.transAxes)
    stream = io.BytesIO()
    FigureCanvasAgg(figure).print_png(stream)
    return stream.getvalue()


def _draw_trials(axes: Axes, found: Sequence[Dot]) -> None:
    shapes = {"dominated": ("o", 14), "infeasible": ("x", 14), "front": ("o", 40), "dense": ("*", 170)}
    for order, (kind, (shape, size)) in enumerate(shapes.items()):
        group = [dot for dot in found if dot.role == kind]
        if group:
            xs, ys = [dot.x for dot in group], [dot.y for dot in group]
            alpha = 0.45 if kind in ("dominated", "infeasible") else 1.0
            label = NAMES[kind] if kind == "dense" else f"{NAMES[kind]} ({len(group)}, search split)"
            axes.scatter(xs, ys, s=size, marker=shape, c=COLOURS[kind], alpha=alpha, zorder=2 + order, lw=1,
                         label=label)  # fmt: skip


def _draw_baselines(axes: Axes, baselines: Sequence[Dot]) -> None:
    if not baselines:
        return
    style: dict[str, Any] = {"marker": "^", "s": 60, "facecolors": "none", "edgecolors": COLOURS["baseline"], "lw": 1}
    label = f"published baselines ({len(baselines)}, search split)"
    axes.scatter([dot.x for dot in baselines], [dot.y for dot in baselines], zorder=6, label=label, **style)


def _draw_confirmed(axes: Axes, found: Sequence[Dot]) -> None:
    confirmed = [(*dot.confirmed, dot.stderr or 0) for dot in found if dot.confirmed]
    if not confirmed:
        return
    xs, ys, errors = zip(*confirmed, strict=True)
    label = f"confirmed ({len(confirmed)}, report split, ± standard error)"
    style: dict[str, Any] = {"fmt": "D", "ms": 4, "mfc": "white", "c": COLOURS["confirmed"], "elinewidth": 0.8}
    axes.errorbar(xs, ys, yerr=errors, capsize=2, zorder=5, label=label, **style)


def _no_math(text: str) -> str:
    """Text with escaped dollar signs, which matplotlib would otherwise read as a formula."""
    return text.replace("$", r"\$")
