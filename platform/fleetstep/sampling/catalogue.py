"""Every solver with the facts it declares: what `fleetstep solvers` prints. Plain Python."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from fleetstep.errors import SamplingError
from fleetstep.sampling.spec import ALIASES, SolverFacts, SolverSpec

Nature = Literal["deterministic", "stochastic", "adaptive", "learned"]

_LOWEST_NFE, _HIGHEST_NFE, _EXAMPLES = 1, 99, 4


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A solver at its default settings.

    Args:
        kind: as a config names it.
        aliases: other names, which stand for settings of it.
        order: global order of convergence; None where the steps are learned or chosen.
        evaluations: of D in a step between two positive levels; None where the solver chooses.
        nature: what its images depend on beside latent and network: nothing, fresh noise, the rest
            of the batch, or trained parameters.
        schedule: label of the default schedule; "" where the solver brings its own levels.
        nfe: the lowest numbers of network calls it can make; empty where none can be asked for.
        settings: its fields, beside those that every solver has.
    """

    kind: str
    aliases: tuple[str, ...]
    order: int | None
    evaluations: int | None
    nature: Nature
    schedule: str
    nfe: tuple[int, ...]
    settings: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `--json`."""
        return asdict(self)


def catalogue() -> tuple[Entry, ...]:
    """Every kind of solver, in the order of the union."""
    return tuple(_entry(solver) for solver in get_args(get_args(SolverSpec)[0]))


def _entry(solver: type[SolverFacts]) -> Entry:
    kind = str(solver.model_fields["kind"].default)
    aliases = tuple(name for name, settings in ALIASES.items() if settings["kind"] == kind)
    settings = tuple(
        name for name in solver.model_fields if name != "kind" and name not in _OF_EVERY_SOLVER
    )
    if solver.learned or solver.adaptive:
        return Entry(
            kind=kind,
            aliases=aliases,
            order=None,
            evaluations=solver.evals_per_step if solver.learned else None,
            nature="learned" if solver.learned else "adaptive",
            schedule="",
            nfe=(),
            settings=settings,
        )
    default = solver()
    return Entry(
        kind=kind,
        aliases=aliases,
        order=default.global_order,
        evaluations=_per_step(default),
        nature="stochastic" if default.stochastic else "deterministic",
        schedule=default.chosen_schedule.label,
        nfe=_reachable(default),
        settings=settings,
    )


def _per_step(solver: SolverFacts) -> int:
    """What one more point costs, beyond any start."""
    points = solver.least_points + 1
    return solver.evaluations(points + 1, False) - solver.evaluations(points, False)


def _reachable(solver: SolverFacts) -> tuple[int, ...]:
    found: list[int] = []
    for nfe in range(_LOWEST_NFE, _HIGHEST_NFE + 1):
        try:
            solver.points_for(nfe)
        except SamplingError:
            continue
        found.append(nfe)
        if len(found) == _EXAMPLES:
            break
    return tuple(found)


_OF_EVERY_SOLVER = frozenset(SolverFacts.model_fields)
