"""What a sweep, or evaluation while training, measures of images, and against what."""

from __future__ import annotations

import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from fleetstep.config import MeasureSpec
from fleetstep.errors import UsageError
from fleetstep.evaluation.clip import load_texts
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.network_extractor import NetworkExtractor
from fleetstep.evaluation.spec import (
    NEEDS_PROBABILITIES,
    NEEDS_REFERENCE_FEATURES,
    ClipSpec,
    ExtractorSpec,
    MetricKind,
)
from fleetstep.orchestration.cell_scores import Measure
from fleetstep.orchestration.cells import FeatureSpace, ReferenceSet, Unit, space_of
from fleetstep.orchestration.references import (
    KnownReference,
    close_reference,
    load_reference,
    reference_of_file,
)
from fleetstep.orchestration.units import read_unit


def extractors_of(
    specs: Sequence[ExtractorSpec], metrics: Collection[MetricKind], device: str = "cpu"
) -> list[NetworkExtractor]:
    """Extractors, classifying where a metric needs it.

    Raises:
        ExtractorError: an extractor's weights are missing or wrong.
    """
    return [
        load_extractor(spec, device, with_probabilities=classifies(spec, metrics))
        for spec in specs
    ]


def wherever_read(specs: Sequence[ExtractorSpec]) -> list[ExtractorSpec]:
    """The same extractors with absolute paths: actors run in folders of their own."""
    return [
        spec.model_copy(
            update={
                name: str(Path(path).resolve())
                for name in ("path", "texts")
                if (path := getattr(spec, name, None)) is not None
            }
        )
        for spec in specs
    ]


def classifies(extractor: ExtractorSpec, metrics: Collection[MetricKind]) -> bool:
    """Whether class probabilities of this extractor are measured."""
    return extractor.probabilities and not NEEDS_PROBABILITIES.isdisjoint(metrics)


def measures_of(spec: MeasureSpec, protocol: str = "") -> list[Measure]:
    """What is measured in each feature space of a sweep.

    Args:
        spec: extractors and metrics.
        protocol: the named protocol that was asked for; "" for none.

    Raises:
        ExtractorError: an extractor's weights are missing or wrong.
    """
    return [
        Measure(
            space=space_of(extractor),
            metrics=spec.metrics_of(named),
            probabilities=classifies(named, spec.metrics),
            texts=load_texts(named) if isinstance(named, ClipSpec) else None,
            protocol=protocol,
        )
        for named, extractor in zip(
            spec.extractors, extractors_of(spec.extractors, spec.metrics), strict=True
        )
    ]


def check_reference(spec: MeasureSpec) -> None:
    """Refuse a file of statistics that cannot serve before anything is sampled.

    Raises:
        DataError: it is missing, damaged, or not one of statistics.
        UsageError: it lacks the features of real images that a metric needs, or is of another
            extractor.
    """
    if spec.reference is None:
        return
    reference = reference_of_file(Path(spec.reference)).reference
    needing = [kind for kind in spec.metrics if kind in NEEDS_REFERENCE_FEATURES]
    if needing and reference.features_mD is None:
        others = [kind for kind in spec.metrics if kind not in needing]
        raise UsageError(
            f"{', '.join(needing)} compare with features of real images, and {spec.reference} "
            "holds statistics only",
            f"use metrics: [{', '.join(others or ('fd',))}], or a packed dataset as reference",
        )
    (extractor,) = extractors_of(spec.extractors, spec.metrics)
    if (found := len(reference.gaussian.mean_D)) != extractor.dim:
        raise UsageError(
            f"{spec.reference} holds statistics of {found} features, and {extractor.name} has "
            f"{extractor.dim}",
            "name the extractor that the statistics were made with",
        )


def is_finished(storage: Path, measures: Sequence[Measure], unit: Unit) -> bool:
    """Whether everything that is measured of a unit is there and sound."""
    return all(_is_measured(storage, measure, unit) for measure in measures)


def _is_measured(storage: Path, measure: Measure, unit: Unit) -> bool:
    if isinstance(unit.source, ReferenceSet) and load_reference(
        storage, unit.source, measure.space
    ):
        return True
    result = read_unit(storage, unit, measure.space)
    if result is None:
        return False
    unclassified = result.probabilities is None and not isinstance(unit.source, ReferenceSet)
    return not (measure.probabilities and unclassified)


class References:
    """References as scores need them: each is closed, or read, once.

    Args:
        storage: where results are.
        file: of statistics, in place of all; None for the sets that plans name.

    Raises:
        DataError: the file is missing, damaged, or not one of statistics.
    """

    def __init__(self, storage: Path, file: str | None) -> None:
        self._storage = storage
        self._file = None if file is None else reference_of_file(Path(file))
        self._closed: dict[tuple[str, str], KnownReference] = {}
        # Closing removes the units: a second thread would not find them.
        self._closing = threading.Lock()

    def of(self, reference: ReferenceSet | None, space: FeatureSpace) -> KnownReference:
        """The reference of a cell in one space.

        Args:
            reference: from the plan; None where a file is the reference of all.
            space: of the features.

        Raises:
            DataError: one of its units is missing or damaged.
        """
        if self._file is not None:
            return self._file
        assert reference is not None  # without a file, every cell has one
        key = (reference.key, space.key)
        with self._closing:
            if key not in self._closed:
                self._closed[key] = close_reference(self._storage, reference, space)
            return self._closed[key]
