"""The figures of a sweep's page as PNG files of their own."""

from __future__ import annotations

import re
from pathlib import Path

from fleetstep.reporting.neighbours import distances_figure, draw_neighbours
from fleetstep.reporting.plots import write_plot
from fleetstep.reporting.seed_grids import draw_seeds
from fleetstep.reporting.shipping import choose
from fleetstep.reporting.sweep_figures import curves_figure, pareto_figure
from fleetstep.reporting.sweep_page import SweepReport
from fleetstep.reporting.sweep_record import contests

_NAME = 60
"""Characters of a network's name in a file's: file systems take 255 bytes."""


def write_sweep_pictures(report: SweepReport, folder: Path) -> tuple[Path, ...]:
    """Write every figure and grid as a PNG into an existing folder.

    Returns:
        pareto.png, curves.png, seeds01-NETWORK-CALLS.png, neighbours.png and distances.png, as far
        as there is something to show; with a number where there are several references.

    Raises:
        OSError: a file cannot be written.
    """
    paths = []
    judged = contests(report.record)
    for place, contest in enumerate(judged, start=1):
        number = str(place) if len(judged) > 1 else ""
        for figure in (pareto_figure(contest, choose(contest)), curves_figure(contest)):
            paths.append(folder / f"{figure.key}{number}.png")
            write_plot(figure, paths[-1])
    for place, grid in enumerate(report.grids, start=1):
        network = re.sub(r"[^A-Za-z0-9._-]+", "-", grid.network)[:_NAME].strip("-.")
        paths.append(folder / f"seeds{place:02d}-{network}-{grid.calls}.png")
        draw_seeds(grid).save(paths[-1], format="PNG")
    for place, check in enumerate(report.checks, start=1):
        number = str(place) if len(report.checks) > 1 else ""
        if len(check.images_nCHW):
            paths.append(folder / f"neighbours{number}.png")
            draw_neighbours(check).save(paths[-1], format="PNG")
        paths.append(folder / f"distances{number}.png")
        write_plot(distances_figure(check), paths[-1])
    return tuple(paths)
