"""A trained predictor as a solver."""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import torch

from fleetstep.errors import SamplingError
from fleetstep.sampling.amed.files import load_predictor
from fleetstep.sampling.amed.plugin import plugin_step
from fleetstep.sampling.amed.predictor import AmedPredictor
from fleetstep.sampling.solvers.step import Levels, Problem, State, Step
from fleetstep.sampling.spec import AmedSpec

_CPU = torch.device("cpu")


def amed(levels: Levels, spec: AmedSpec) -> Step:
    """The plugin's steps with the trained predictor, run where the images are.

    Raises:
        SamplingError: there is no sound predictor, or it was trained for other levels.
    """
    facts = spec.facts
    if tuple(levels) != facts.levels:
        raise SamplingError(
            f"the predictor {spec.predictor} was trained for {len(facts.levels)} points of "
            f"{facts.schedule.label}, [{_shown(facts.levels)}], not for [{_shown(levels)}]",
            "take the levels from `levels_for`, or train a predictor for these",
        )
    folder = Path(spec.predictor)
    # A damaged predictor is refused before the first network call.
    _loaded(folder, facts.seal, _CPU)

    @cache
    def steps_on(device: torch.device) -> Step:
        predictor = _loaded(folder, facts.seal, device)
        return plugin_step(facts.student, levels, predictor.predict)

    def step(problem: Problem, state: State) -> State:
        return steps_on(state.x_BCHW.device)(problem, state)

    return step


@lru_cache(maxsize=16)
def _loaded(folder: Path, _seal: str, device: torch.device) -> AmedPredictor:
    # Kept for later calls, which may need ordinary tensors.
    with torch.inference_mode(mode=False):
        return load_predictor(folder)[0].to(device)


def _shown(levels: Levels) -> str:
    return ", ".join(f"{level:g}" for level in levels)
