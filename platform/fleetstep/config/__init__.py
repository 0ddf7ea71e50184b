"""One closed, frozen tree for a run, one for a sweep, one for an AMED predictor; everything wrong
with a file is reported at once.

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
    "ClusterSpec",
    "EvaluateSpec",
    "Experiment",
    "GridSpec",
    "MeasureSpec",
    "PoolSpec",
    "PublishedSpec",
    "ScreenSpec",
    "SweepSpec",
    "TrackingSpec",
    "dump",
    "flatten",
    "how_to_pack",
    "load",
    "manifest_of",
    "resolve_secrets",
    "with_absolute_paths",
]
