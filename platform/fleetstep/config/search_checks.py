"""Cross-checks of a search: its parts against each other. What its trials are is looked at in
`search_probes`.

Each returns problems; a check runs on whatever parts it needs are valid.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from fleetstep.config.files import BASE
from fleetstep.config.problems import Check, Parts
from fleetstep.config.search import (
    GridSearchSpec,
    RandomSearchSpec,
    SearchSpec,
    TrialKind,
    TrialSpec,
)
from fleetstep.config.search_dimensions import Choice
from fleetstep.config.search_objectives import ObjectiveSpec, ScoreObjective
from fleetstep.config.search_scheduler_checks import check_scheduler
from fleetstep.config.search_space import Space
from fleetstep.diffusion.spec import DdpmSpec, EdmSpec, VeSpec, VpSpec

MOST_POINTS = 10_000
"""Of a grid."""

_KINDS_OF: Final[Mapping[str, tuple[TrialKind, ...]]] = {
    "held_out": ("train",),
    "score": ("train", "sweep"),
    "rmse": ("amed",),
    "nfe": ("sweep", "amed"),
    "images_seen": ("train", "amed"),
    "wall_s": ("train", "sweep", "amed"),
}
# What the network predicts changes neither the noise levels nor the weights of held-out losses.
_PROCESS = {
    f"process.{name}" for one in (DdpmSpec, EdmSpec, VeSpec, VpSpec) for name in one.model_fields
} - {"process.prediction", "process.learned_variance"}
# What decides how a trial is measured, which must be the same for all: by objective, or, of
# scores, by the trials' kind.
_MEASURES: Final[Mapping[str, tuple[str, ...]]] = {
    "held_out": ("data.path", "data.heldout", "training.heldout", *sorted(_PROCESS)),
    "train": ("evaluate", "data.path"),
    "sweep": (
        "extractors", "metrics", "reference", "reference_split", "samples", "seed_blocks",
        "quantisation", "protocol", "labels",
    ),
    "rmse": ("run", "track", "evaluation", "training.guidance"),
}  # fmt: skip


def _check_owned(parts: Parts) -> list[str]:
    """What the search says about its trials, and they may not."""
    problems = []
    for place, tree in _trees(parts):
        problems += [
            f"{place}.{name}: is of the search and not of its trials; say it at the top of the "
            "file, or leave it out"
            for name in SearchSpec.owned
            if name in tree
        ]
        if BASE in tree:
            problems.append(
                f"{place}.{BASE}: is read with the file that it stands in, under trial alone; an "
                "override comes too late for it: write a file of your own"
            )
        cluster = tree.get("cluster")
        for path, section in (("cluster.address", cluster), ("address", tree)):
            if isinstance(section, Mapping) and section.get("address") is not None:
                problems.append(
                    f"{place}.{path}: all trials run on one cluster; say cluster.address at the "
                    "top of the file, and leave it out here"
                )
    return problems


def _trees(parts: Parts) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if "trial" in parts:
        yield "trial", parts["trial"].tree
    if "space" in parts:
        yield "space", parts["space"].tree
    if parts.get("confirm") is not None:
        yield "confirm.baseline", parts["confirm"].baseline


def _check_searcher(parts: Parts) -> list[str]:
    if "space" not in parts:
        return []
    space: Space = parts["space"]
    if not space.dimensions:
        return [
            "space: leaves nothing open; give a setting a choice, uniform, log_uniform or integers"
        ]
    problems = [
        f"space.{one.key}: the seed is an identity and no quantity, so a range of it means "
        "nothing; use choice, which trains replicates"
        for one in space.dimensions
        if one.key == "training.seed" and not isinstance(one.kind, Choice)
    ]
    searcher, points = parts.get("searcher"), space.size()
    if isinstance(searcher, RandomSearchSpec) and points is not None and searcher.trials > points:
        problems.append(
            f"searcher.trials: {searcher.trials} trials are asked for, and this space has "
            f"{points:,} points; use at most {points}, or grid"
        )
    if not isinstance(searcher, GridSearchSpec):
        return problems
    endless = [one for one in space.dimensions if one.kind.values() is None]
    if endless:
        return problems + [
            f"space.{one.key}: {one.kind.name} has no grid; use choice or integers, or searcher "
            "random"
            for one in endless
        ]
    if points is not None and points > MOST_POINTS:
        problems.append(
            f"searcher: a grid has at most {MOST_POINTS:,} points, and this space has "
            f"{points:,}; leave options out, or use random"
        )
    return problems


def _check_objectives(parts: Parts) -> list[str]:
    if "objectives" not in parts:
        return []
    objectives: tuple[ObjectiveSpec, ...] = parts["objectives"]
    problems = [
        f"objectives: {name} is listed twice"
        for name, times in Counter(one.name for one in objectives).items()
        if times > 1
    ]
    if not objectives[0].quality:
        problems.append(
            f"objectives.0: {objectives[0].kind} is a cost, and the first objective, by which "
            "trials are judged, is a quality; begin with held_out, score or rmse"
        )
    problems += _disagreeing(objectives)
    if "trial" in parts:
        problems += _check_kinds(parts["trial"].kind, objectives)
        if "space" in parts:
            problems += _check_alike(parts["trial"], objectives, parts["space"])
    return problems


def _disagreeing(objectives: Sequence[ObjectiveSpec]) -> Iterator[str]:
    """All scores are of the same images."""
    scores = [one for one in objectives if isinstance(one, ScoreObjective)]
    for field in ("samples", "every", "solver"):
        said = {str(getattr(one, field)) for one in scores}
        if len(said) > 1:
            yield f"objectives: all scores share {field}; say the same in each, or in none"


def _check_kinds(kind: TrialKind, objectives: Sequence[ObjectiveSpec]) -> Iterator[str]:
    for place, one in enumerate(objectives):
        if kind not in _KINDS_OF[one.kind]:
            fits = ", ".join(name for name, kinds in _KINDS_OF.items() if kind in kinds)
            yield (
                f"objectives.{place}: trials of kind {kind} have no {one.kind} to compare; they "
                f"have {fits}"
            )
        elif kind == "sweep" and isinstance(one, ScoreObjective):
            for field in ("solver", "nfe", "samples", "every"):
                if getattr(one, field) is not None:
                    yield (
                        f"objectives.{place}.{field}: the cell of a sweep says it itself; leave "
                        "it out, and set it under trial or space"
                    )


def _check_alike(
    trial: TrialSpec, objectives: Sequence[ObjectiveSpec], space: Space
) -> Iterator[str]:
    for name in dict.fromkeys(one.kind for one in objectives):
        paths = _MEASURES.get(trial.kind if name == "score" else name, ())
        changed = {one.key: path for path in paths for one in space.deciding(trial.tree, path)}
        for key, path in changed.items():
            yield (
                f"space.{key}: changes {path}, which decides how {name} is measured and must be "
                "the same for all trials; set it under trial"
            )


def _check_confirm(parts: Parts) -> list[str]:
    if parts.get("confirm") is None or "trial" not in parts or parts["trial"].kind == "train":
        return []
    return [
        f"confirm: trains winner and baseline from several seeds, and trials of kind "
        f"{parts['trial'].kind} train none; use confirm: null"
    ]


SEARCH: tuple[Check, ...] = (
    _check_owned,
    _check_searcher,
    _check_objectives,
    _check_confirm,
    check_scheduler,
)
"""The parts of a search against each other."""
