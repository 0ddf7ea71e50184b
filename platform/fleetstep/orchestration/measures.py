"""What a sweep, or evaluation while training, measures of images, and against what."""

from __future__ import annotations

import functools
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
from fleetstep.orchestration.measurable import check_size
from fleetstep.orchestration.pictures import lacks_pictures
from fleetstep.orchestration.references import (
    KnownReference,
    close_reference,
    is_closed,
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
        UsageError: it lacks the features of real images that a metric needs, holds too few of
            them, or is of another extractor.
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
    if reference.features_mD is not None:
        check_size(spec.metrics, spec.reference, len(reference.features_mD))
    (extractor,) = extractors_of(spec.extractors, spec.metrics)
    if (found := len(reference.gaussian.mean_D)) != extractor.dim:
        raise UsageError(
            f"{spec.reference} holds statistics of {found} features, and {extractor.name} has "
            f"{extractor.dim}",
            "name the extractor that the statistics were made with",
        )


class Finished:
    """Says for one plan whether everything that is wanted of a unit is there and sound.

    Args:
        storage: where results are.
        measures: what is measured.
        pictures: first images of every cell that are kept.
    """

    def __init__(self, storage: Path, measures: Sequence[Measure], pictures: int = 0) -> None:
        self._storage, self._measures, self._pictures = storage, measures, pictures
        # A closed reference is read once, not for each of its units.
        self._is_closed = functools.cache(functools.partial(is_closed, storage))

    def __call__(self, unit: Unit) -> bool:
        """Whether nothing of `unit` is left to do."""
        return all(
            self._is_measured(measure, unit) for measure in self._measures
        ) and not lacks_pictures(self._storage, unit, self._pictures)

    def _is_measured(self, measure: Measure, unit: Unit) -> bool:
        source = unit.source
        if isinstance(source, ReferenceSet) and self._is_closed(source, measure.space):
            return True
        result = read_unit(self._storage, unit, measure.space)
        if result is None:
            return False
        unclassified = result.probabilities is None and not isinstance(source, ReferenceSet)
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
