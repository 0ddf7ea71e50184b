"""Whether a pool of equal actors fits on the machines there are: refused with the sum if not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from fleetstep.errors import ResourceError

# Ray counts resources in ten-thousandths, so sums of fractions are exact here too.
_GRAIN = 10_000


def placeable(nodes: Sequence[Mapping[str, float]], *, cpus: float, gpus: float) -> int:
    """How many actors of so many CPUs and GPUs fit on machines with these resources when they are
    empty: an actor cannot be split over two.
    """
    asked = [
        (key, round(value * _GRAIN)) for key, value in (("CPU", cpus), ("GPU", gpus)) if value > 0
    ]
    if not asked:
        return 2**31
    return sum(
        min(math.floor(node.get(key, 0.0) * _GRAIN) // grains for key, grains in asked)
        for node in nodes
    )


def check_placement(
    nodes: Sequence[Mapping[str, float]],
    *,
    actors: int,
    cpus: float,
    gpus: float,
    what: str = "actors",
) -> None:
    """Refuse a pool that could never be placed, instead of waiting for ever.

    Args:
        nodes: resources of each machine.
        actors: processes of the pool.
        cpus, gpus: of each.
        what: what the message calls the processes.

    Raises:
        ResourceError: with the sum asked for, the sum there is, and how many actors fit.
    """
    fit = placeable(nodes, cpus=cpus, gpus=gpus)
    if actors <= fit:
        return
    have = {key: sum(node.get(key, 0.0) for node in nodes) for key in ("CPU", "GPU")}
    asked = f"{actors} {what.removesuffix('s') if actors == 1 else what} x {cpus:g} CPU"
    asked += f" = {actors * cpus:g} CPU"
    there = f"{have['CPU']:g} CPU"
    if gpus > 0:
        asked += f" and {actors} x {gpus:g} GPU = {actors * gpus:g} GPU"
        there += f" and {have['GPU']:g} GPU"
    machines = f"{len(nodes)} machine{'' if len(nodes) == 1 else 's'}"
    raise ResourceError(
        f"cannot be placed: {asked} asked for, but {machines} with {there} in all "
        f"hold {fit} such {what}",
        f"use at most {fit} {what}, or less of a CPU or GPU for each"
        if fit
        else "use less of a CPU or GPU for each",
    )
