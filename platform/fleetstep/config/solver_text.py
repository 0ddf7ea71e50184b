"""A solver as a user writes it on a command line: a kind, settings in YAML, or a predictor."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic import ValidationError

from fleetstep.config.messages import explain
from fleetstep.errors import UsageError
from fleetstep.sampling.spec import SolverSpec
from fleetstep.spec import Spec

_PREDICTOR = "amed:"


class _Written(Spec):
    """Gives problems the place that a user knows: "solver.order"."""

    solver: SolverSpec


def parse_solver(
    text: str, *, schedule: str | None = None, afs: bool = False, denoise_to_zero: bool = False
) -> SolverSpec:
    """The solver that `text` names.

    Args:
        text: a kind or an alias ("ipndm", "ddim"), its settings as inline YAML or JSON
            ("{kind: ipndm, order: 3, schedule: {kind: logsnr}}"), or "amed:FOLDER", a predictor.
        schedule: a kind or inline settings, in place of the solver's own.
        afs, denoise_to_zero: turned on whatever `text` says.

    Raises:
        UsageError: it is none; one line for each problem, with what would be valid.
        SamplingError: the folder of a predictor holds none.
    """
    settings = written_settings("--solver", text)
    if schedule is not None:
        settings["schedule"] = written_settings("--schedule", schedule)
    settings |= {
        name: True for name, on in (("afs", afs), ("denoise_to_zero", denoise_to_zero)) if on
    }
    tree = {"solver": settings}
    try:
        return _Written.model_validate(tree).solver
    except ValidationError as error:
        problems = [explain(_Written, tree, item) for item in error.errors(include_url=False)]
        raise UsageError("; ".join(problems), "`fleetstep solvers` lists every kind") from None


def written_settings(option: str, text: str) -> dict[str, Any]:
    """A kind, inline settings, or "amed:FOLDER" as a section of a configuration, not yet checked.

    Raises:
        UsageError: it is not YAML, or no mapping; it names the option.
    """
    written = text.strip()
    if written.startswith(_PREDICTOR):
        return {"kind": "amed", "predictor": written.removeprefix(_PREDICTOR)}
    if not written.startswith("{"):
        return {"kind": written}
    try:
        settings = yaml.safe_load(written)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        place = " ".join(str(error).split())
        raise UsageError(
            f"{option} {text!r} is not YAML: {place}", 'for example "{kind: ipndm, order: 3}"'
        ) from None
    if not isinstance(settings, dict):
        raise UsageError(f"{option} must be a mapping, got {text!r}")
    return {str(name): value for name, value in settings.items()}
