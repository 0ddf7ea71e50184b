"""One closed, frozen tree for a run, one for a sweep, one for an AMED predictor, one for a search;
everything wrong with a file is reported at once.

A configuration is a YAML file, which may begin with `base: other.yaml`, plus `key.sub=value`
overrides. `load` reads it and names every problem it can see without importing torch: unknown
keys with a suggestion, wrong kinds with the valid ones, impossible combinations with the numbers
and the nearest that works.
"""

from fleetstep.config.amed import AmedEvaluationSpec, AmedExperiment
from fleetstep.config.checks import how_to_pack
from fleetstep.config.loading import (
    dump,
    flatten,
    load,
    manifest_of,
    with_absolute_paths,
)
from fleetstep.config.measure import EvaluateSpec, MeasureSpec, PoolSpec
from fleetstep.config.search import (
    AshaSpec,
    ConfirmSpec,
    FifoSpec,
    GridSearchSpec,
    OptunaSearchSpec,
    PbtSpec,
    RandomSearchSpec,
    SearchSpec,
    TrialSpec,
)
from fleetstep.config.search_dimensions import Choice, Dimension, Integers, LogUniform, Uniform
from fleetstep.config.search_objectives import (
    CostObjective,
    HeldOutObjective,
    RmseObjective,
    ScoreObjective,
)
from fleetstep.config.search_space import Assignment, Space
from fleetstep.config.search_trials import (
    baseline_spec,
    rungs,
    seeded_spec,
    trial_spec,
    trials_of,
)
from fleetstep.config.secrets import resolve_secrets
from fleetstep.config.specs import (
    ClusterSpec,
    Experiment,
    GridSpec,
    PublishedSpec,
    TrackingSpec,
)
from fleetstep.config.sweep import ScreenSpec, SweepSpec

__all__ = [
    "AmedEvaluationSpec",
    "AmedExperiment",
    "AshaSpec",
    "Assignment",
    "Choice",
    "ClusterSpec",
    "ConfirmSpec",
    "CostObjective",
    "Dimension",
    "EvaluateSpec",
    "Experiment",
    "FifoSpec",
    "GridSearchSpec",
    "GridSpec",
    "HeldOutObjective",
    "Integers",
    "LogUniform",
    "MeasureSpec",
    "OptunaSearchSpec",
    "PbtSpec",
    "PoolSpec",
    "PublishedSpec",
    "RandomSearchSpec",
    "RmseObjective",
    "ScoreObjective",
    "ScreenSpec",
    "SearchSpec",
    "Space",
    "SweepSpec",
    "TrackingSpec",
    "TrialSpec",
    "Uniform",
    "baseline_spec",
    "dump",
    "flatten",
    "how_to_pack",
    "load",
    "manifest_of",
    "resolve_secrets",
    "rungs",
    "seeded_spec",
    "trial_spec",
    "trials_of",
    "with_absolute_paths",
]
