"""A sweep's page and pictures, from its record and from what its actors left in the storage.

Whatever is missing there (pictures that were not kept, a dataset that moved) is missing on the
page, which says so; it never stops the page.

Legend: n generated images, m kept reference images, D features.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from fleetstep.config import SweepSpec
from fleetstep.errors import DataError, FleetstepError
from fleetstep.evaluation.moments import Float32
from fleetstep.evaluation.nearest import distinct, nearest
from fleetstep.evaluation.reference import kept_ids
from fleetstep.orchestration.cells import UNIT, FeatureSpace, ReferenceSet
from fleetstep.orchestration.history import checked
from fleetstep.orchestration.references import load_reference
from fleetstep.orchestration.snapshots import reference_images
from fleetstep.orchestration.sweep import subjects
from fleetstep.reporting.neighbours import NeighbourCheck
from fleetstep.reporting.records import Score
from fleetstep.reporting.seed_grids import SeedGrid, spread
from fleetstep.reporting.shipping import choose, name_of
from fleetstep.reporting.sweep_page import SweepReport, write_sweep_page
from fleetstep.reporting.sweep_pictures import write_sweep_pictures
from fleetstep.reporting.sweep_record import (
    Candidate,
    Contest,
    SweepRecord,
    contests,
    headline_candidates,
)

UInt8 = npt.NDArray[np.uint8]

PAGE = "index.html"

_SEEDS = 8
_NETWORKS, _CALLS, _ROWS = 4, 6, 12
"""At most so many networks, numbers of calls of each, and cells of each are shown in grids."""

_CHECKED, _NEIGHBOURS = 16, 3
_UNITS = 20
"""At most so many units of a cell have their distances counted."""

_REAL = 1000
"""At most so many real images are compared with the others."""


def write_report(record: Mapping[str, Any], storage: Path, out: Path) -> Path:
    """Write `index.html` and the pictures in it as PNG files; the page's path.

    Args:
        record: the content of `scores.json`, of a sweep that is done or not.
        storage: the sweep's storage.
        out: a folder; made if missing.

    Raises:
        ComparisonError: the record is damaged or of another version, or a score's name is not
            that of its kind, features and n.
        OSError: a file cannot be written.
    """
    sweep = SweepRecord.from_dict(record)
    for entry in record["cells"]:
        for score in entry["scores"]:
            checked(score)
    judged = contests(sweep)
    grids = tuple(_grids(storage, sweep, judged))
    missing = [] if grids or not judged else ["No pictures of samples were kept."]
    checks = []
    for contest in judged:
        shipped = choose(contest).ship
        try:
            checks.append(_check(record, storage, contest, shipped))
        except (FleetstepError, OSError, ValueError) as error:
            why = (
                error.message if isinstance(error, FleetstepError) else str(error).splitlines()[0]
            )
            missing.append(
                f"{name_of(shipped, contest)} was not checked against memorisation: {why}."
            )
    report = SweepReport(record=sweep, grids=grids, checks=tuple(checks), missing=tuple(missing))
    out.mkdir(parents=True, exist_ok=True)
    write_sweep_pictures(report, out)
    write_sweep_page(report, out / PAGE)
    return out / PAGE


def _grids(storage: Path, sweep: SweepRecord, judged: Sequence[Contest]) -> Iterator[SeedGrid]:
    """The same seeds by network and calls, the network that is to be shipped first."""
    candidates = headline_candidates(sweep)
    first = [choose(contest).ship.network for contest in judged]
    for network in list(dict.fromkeys([*first, *sweep.networks]))[:_NETWORKS]:
        mine = [one for one in candidates if one.network == network]
        mine.sort(key=lambda one: (one.score.cell.nfe == 0, one.score.nfe))
        for calls in spread(list(dict.fromkeys(one.score.calls for one in mine)), _CALLS):
            cells = [one for one in mine if one.score.calls == calls][:_ROWS]
            rows = [(one, _pictures(storage, one)) for one in cells]
            kept = [(_way(one.score), images) for one, images in rows if images is not None]
            if kept and len({images.shape for _, images in kept}) == 1:
                yield SeedGrid(network, calls, tuple(kept))


def _way(score: Score) -> str:
    return ", ".join(part for part in (score.solver, score.guidance) if part)


def _pictures(storage: Path, candidate: Candidate, count: int = _SEEDS) -> UInt8 | None:
    """A cell's first images, uint8 [count, C, H, W]; None if they were not kept."""
    path = storage / "cells" / candidate.key / "pictures.safetensors"
    images = _tensor(path, "images")
    if images is None or images.dtype != np.uint8 or images.ndim != 4 or not len(images):
        return None
    return images[:count]


def _tensor(path: Path, name: str) -> npt.NDArray[Any] | None:
    try:
        with safe_open(path, framework="numpy") as file:
            tensor: npt.NDArray[Any] = file.get_tensor(name)
    except (OSError, SafetensorError):
        return None
    return tensor


def _check(
    record: Mapping[str, Any], storage: Path, contest: Contest, shipped: Candidate
) -> NeighbourCheck:
    """A cell's images against those they were scored with."""
    score = shipped.score
    space = FeatureSpace(
        name=score.extractor, sha256=score.extractor_sha256, preprocess=score.preprocess
    )
    reference, real_mD = _reference(record, storage, space, score.reference_sha256)
    generated_nD = _features(storage, shipped, space)
    images_nCHW = _pictures(storage, shipped, _CHECKED)
    shown = 0 if images_nCHW is None else min(len(images_nCHW), len(generated_nD))
    found = nearest(generated_nD, real_mD, min(_NEIGHBOURS, len(real_mD)))
    apart_mD = distinct(real_mD)
    asked = kept_ids(len(apart_mD), _REAL)
    return NeighbourCheck(
        cell=name_of(shipped, contest),
        images_nCHW=(
            np.zeros((0, 1, 1, 1), np.uint8) if images_nCHW is None else images_nCHW[:shown]
        ),
        neighbours_nKCHW=_real_images(reference, found.index_nK[:shown]),
        distance_nK=found.distance_nK[:shown],
        generated_n=found.distance_nK[:, 0],
        # The first neighbour of a real image among the real ones is itself.
        real_m=nearest(apart_mD[asked], apart_mD, 2).distance_nK[:, 1],
        features=score.extractor,
    )


def _reference(
    record: Mapping[str, Any], storage: Path, space: FeatureSpace, digest: str
) -> tuple[ReferenceSet, Float32]:
    """The reference set whose statistics have that digest, and its kept features [m, D]."""
    spec = SweepSpec.model_validate(record["sweep"])
    if spec.reference is not None:
        raise DataError("the reference is a file of statistics, which holds no images")
    sets = {s.reference.key: s.reference for s in subjects(spec) if s.reference is not None}
    for reference in sets.values():
        known = load_reference(storage, reference, space)
        if known is not None and known.reference.sha256 == digest:
            return reference, known.reference.features()
    raise DataError(f"the features of its reference are not in {storage}")


def _features(storage: Path, candidate: Candidate, space: FeatureSpace) -> Float32:
    """Features of a cell's first images [n, D]."""
    folder = storage / "cells" / candidate.key
    parts = [
        _tensor(folder / f"unit-{index:05d}.{space.key}.safetensors", "features")
        for index in range(min(candidate.score.n // UNIT, _UNITS))
    ]
    found = [part for part in parts if part is not None]
    if not found or len(found) < len(parts):
        raise DataError(f"features of its images are missing in {folder}")
    return np.concatenate(found)


def _real_images(reference: ReferenceSet, rows_nK: npt.NDArray[np.int64]) -> UInt8:
    """The images behind rows of the kept features, uint8 [n, K, C, H, W]."""
    ids = kept_ids(reference.samples)
    pictures = {
        int(row): reference_images(reference, ids[row], 1)[0] for row in np.unique(rows_nK)
    }
    if not pictures:
        return np.zeros((*rows_nK.shape, 1, 1, 1), np.uint8)
    return np.stack([np.stack([pictures[int(row)] for row in rows]) for rows in rows_nK])
