"""What generated images are compared with: statistics of a split, or a file of statistics.

A split's features are computed by the sweep's actors in units; once they are all there they are
closed: exact moments, and the features of up to 10,000 evenly spaced images.

Legend: m kept images, D features.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from fleetstep.durable import write_bytes
from fleetstep.errors import DataError
from fleetstep.evaluation.metrics import Gaussian
from fleetstep.evaluation.moments import Float32, Moments, load_with_facts
from fleetstep.evaluation.reference import Reference, kept_ids
from fleetstep.evaluation.reference_files import read_statistics
from fleetstep.orchestration.cells import FeatureSpace, ReferenceSet, Unit, folder, units_of
from fleetstep.orchestration.units import Hardware, UnitResult, digest_of, read_unit


@dataclass(frozen=True)
class KnownReference:
    """A reference, and the hardware its features were computed on; empty for a foreign file."""

    reference: Reference
    hardware: frozenset[Hardware]


def load_reference(
    storage: Path, reference: ReferenceSet, space: FeatureSpace
) -> KnownReference | None:
    """A closed reference; None unless it is there, whole, and of this set and space."""
    try:
        moments, facts = load_with_facts(_moments_path(storage, reference, space))
        hardware = frozenset(Hardware(**values) for values in json.loads(facts["hardware"]))
        identity = json.loads(facts["reference"])
        features = _read_features(storage, reference, space)
    except (DataError, KeyError, TypeError, ValueError):
        return None
    if identity != _identity(reference, space) or moments.n != reference.samples:
        return None
    if features is None or len(features) != len(kept_ids(reference.samples)):
        return None
    return KnownReference(_known(reference, moments, features), hardware)


def close_reference(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> KnownReference:
    """Add the reference's units up and keep the sum, unless that was done before.

    Units are read one by one: whatever their number, only the sum and the kept features are in
    memory. Units that are left beside a closed reference are removed.

    Raises:
        DataError: a unit is missing or damaged.
    """
    found = load_reference(storage, reference, space)
    if found is None:
        try:
            found = _add_up(storage, reference, space)
        except DataError:
            # Another sweep may have closed it meanwhile, which removes the units.
            found = load_reference(storage, reference, space)
            if found is None:
                raise
    for left in folder(storage, reference).glob(f"unit-*.{space.key}.safetensors"):
        left.unlink(missing_ok=True)
    return found


def is_closed(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> bool:
    """Whether `load_reference` finds it; costs nothing while it is not there."""
    return (
        _moments_path(storage, reference, space).exists()
        and load_reference(storage, reference, space) is not None
    )


def reference_of_file(path: Path) -> KnownReference:
    """The reference that a file of statistics holds.

    Raises:
        DataError: it is missing, damaged, or not one of statistics.
    """
    found = read_statistics(path)
    reference = Reference(
        name=f"{path.name} {found.sha256[:8]}",
        gaussian=Gaussian(found.mean_D, found.covariance_DD),
        sha256=found.sha256,
        n=found.n,
        features_mD=found.features_mD,
    )
    return KnownReference(reference, frozenset())


def read_units(storage: Path, units: Sequence[Unit], space: FeatureSpace) -> list[UnitResult]:
    """The results of units in one space, in their order.

    Raises:
        DataError: one is missing or damaged.
    """
    return list(_each_unit(storage, units, space))


def _each_unit(storage: Path, units: Sequence[Unit], space: FeatureSpace) -> Iterator[UnitResult]:
    for unit in units:
        result = read_unit(storage, unit, space)
        if result is None:
            raise DataError(
                f"{unit} is missing or damaged at {unit.path(storage, space)}",
                "start the sweep again: this unit is done again, the others are kept",
            )
        yield result


def _add_up(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> KnownReference:
    """Sum the units and write what is kept of them."""
    units = units_of(reference, reference.samples)
    kept = np.array(kept_ids(reference.samples))
    moments: Moments | None = None
    rows: list[Float32] = []
    hardware: set[Hardware] = set()
    for unit, result in zip(units, _each_unit(storage, units, space), strict=True):
        part = Moments.of(result.features)
        moments = part if moments is None else moments + part
        here = kept[(kept >= unit.first) & (kept < unit.first + unit.count)]
        rows.append(result.features[here - unit.first])
        hardware.add(result.hardware)
    assert moments is not None  # a split has images
    features = np.concatenate(rows)
    facts = {
        "reference": json.dumps(_identity(reference, space)),
        "hardware": json.dumps([asdict(kind) for kind in sorted(hardware)]),
    }
    _write_features(storage, reference, space, features)
    # Last, because its presence says that the reference is closed.
    moments.save(_moments_path(storage, reference, space), facts)
    return KnownReference(_known(reference, moments, features), frozenset(hardware))


def _known(reference: ReferenceSet, moments: Moments, features: Float32) -> Reference:
    return Reference(
        name=reference.name,
        gaussian=Gaussian.of(moments),
        sha256=moments.digest(),
        n=moments.n,
        features_mD=features,
    )


def _identity(reference: ReferenceSet, space: FeatureSpace) -> dict[str, object]:
    return {**reference.identity, "space": asdict(space)}


def _moments_path(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> Path:
    return folder(storage, reference) / f"moments.{space.key}.safetensors"


def _features_path(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> Path:
    return folder(storage, reference) / f"features.{space.key}.safetensors"


def _write_features(
    storage: Path, reference: ReferenceSet, space: FeatureSpace, features: Float32
) -> None:
    content = save({"features": features}, {"digest": digest_of(features)})
    write_bytes(_features_path(storage, reference, space), content)


def _read_features(storage: Path, reference: ReferenceSet, space: FeatureSpace) -> Float32 | None:
    try:
        with safe_open(_features_path(storage, reference, space), framework="numpy") as file:
            features: Float32 = file.get_tensor("features")
            digest = (file.metadata() or {}).get("digest")
    except (OSError, SafetensorError):
        return None
    return features if digest == digest_of(features) else None
