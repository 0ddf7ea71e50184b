"""What could not be measured is refused before anything is sampled."""

from __future__ import annotations

from collections.abc import Sequence

from fleetstep.config import MeasureSpec
from fleetstep.errors import UsageError
from fleetstep.evaluation.score import fewest_real
from fleetstep.evaluation.spec import ExtractorSpec, MetricKind, too_large
from fleetstep.orchestration.cell_scores import Measure
from fleetstep.orchestration.cells import ReferenceSet, SnapshotRef


def check_subject(
    spec: MeasureSpec,
    measures: Sequence[Measure],
    snapshot: SnapshotRef,
    reference: ReferenceSet | None,
) -> None:
    """A network's images against extractors, texts and reference.

    Raises:
        UsageError: images too large for an extractor, texts of other classes, or too few real
            images for a metric.
    """
    check_side(spec.extractors, snapshot)
    check_texts(measures, snapshot.run, snapshot.classes)
    if reference is not None:
        check_size(spec.metrics, f"split {reference.split} of {reference.data}", reference.samples)


def check_side(extractors: Sequence[ExtractorSpec], snapshot: SnapshotRef) -> None:
    """Images that an extractor cannot read.

    Raises:
        UsageError: they are too large for one.
    """
    for extractor in extractors:
        if reason := too_large(snapshot.shape[1:], extractor):
            raise UsageError(
                f"images of {snapshot.run} cannot be measured: {reason}",
                "use another extractor: inception, dinov2 or clip",
            )


def check_texts(measures: Sequence[Measure], run: str, classes: int) -> None:
    """Texts of a CLIP score: one a class.

    Raises:
        UsageError: there are fewer, more, or no classes.
    """
    for measure in measures:
        if measure.texts is not None and len(measure.texts) != classes:
            raise UsageError(
                f"clip_score needs one text a class: {len(measure.texts)} texts are given, and "
                f"{run} has {classes} classes",
                "give the texts of this network's classes, in the order of its labels, or leave "
                "`texts` and clip_score out",
            )


def check_size(metrics: Sequence[MetricKind], what: str, images: int) -> None:
    """A reference too small for a metric.

    Raises:
        UsageError: it has too few images.
    """
    needed = fewest_real(metrics)
    if images < needed:
        raise UsageError(
            f"{what} has {images} images, and the reference of {', '.join(metrics)} needs "
            f"{needed} or more",
            "use a larger split as reference, or metrics of fewer neighbours",
        )
