"""`fleetstep reference`: the statistics of a dataset's split as a file that other tools read."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

from fleetstep.config import PoolSpec
from fleetstep.data.manifest import load_manifest
from fleetstep.errors import DataError, UsageError
from fleetstep.evaluation.features import load_extractor
from fleetstep.evaluation.reference_files import Statistics, write_statistics
from fleetstep.evaluation.spec import ExtractorSpec
from fleetstep.orchestration.cells import ReferenceSet, Unit, space_of, units_of
from fleetstep.orchestration.measures import wherever_read
from fleetstep.orchestration.output_paths import output_file
from fleetstep.orchestration.pool import run_units
from fleetstep.orchestration.pool_actors import Cluster
from fleetstep.orchestration.references import KnownReference, close_reference, load_reference
from fleetstep.orchestration.session import connect
from fleetstep.orchestration.sweep_worker import UnitSummary, build_worker
from fleetstep.orchestration.units import read_unit

Say = Callable[[str], None]

WrittenForm = Literal["edm", "clean-fid-kid"]
"""The forms that can hold what is known of a split."""

_EVERY_S = 5.0


def reference_set(data: Path, split: str) -> ReferenceSet:
    """The images of a split of a packed dataset.

    Raises:
        DataError: there is no such dataset, or no such split.
    """
    manifest = load_manifest(data)
    if not manifest.splits.get(split):
        raise DataError(
            f"{data} has no split {split!r}", f"use one of: {', '.join(manifest.splits)}"
        )
    return ReferenceSet(
        data=data.resolve(),
        fingerprint=manifest.fingerprint,
        split=split,
        samples=manifest.samples(split),
    )


def write_reference(
    data: Path,
    *,
    split: str,
    extractor: ExtractorSpec,
    form: WrittenForm,
    out: Path,
    storage: Path,
    pool: PoolSpec,
    address: str | None = None,
    say: Say | None = None,
    cluster: Cluster | None = None,
) -> dict[str, Any]:
    """Compute a split's statistics, unless sweeps have done so, and write them to `out`.

    Args:
        data: folder of a packed dataset.
        extractor: the features.
        form: "edm" holds mean and covariance, which ADM and clean-fid read too; "clean-fid-kid"
            the features of up to 10,000 evenly spaced images. ADM's own form would need spatial
            features, which no extractor here has.
        out: an `.npz`.
        storage: root of results, shared by all actors.
        pool, address: who computes, and where.
        cluster: in place of Ray; for tests.

    Raises:
        UsageError: `out` cannot be written, or the form cannot hold what is known.
        DataError: there is no such dataset or split.
        ExtractorError: the extractor's weights are missing or wrong.
        PoolError: a unit failed, or actors died too often.
    """
    if form not in get_args(WrittenForm):
        raise UsageError(
            f"--form: {form} holds more than is known of a split",
            f"use one of: {', '.join(get_args(WrittenForm))}",
        )
    output_file("--out", out)
    reference = reference_set(data, split)
    storage = storage.resolve()
    found = _measured(storage, reference, extractor, pool, address, say, cluster)
    known = found.reference
    statistics = Statistics(
        mean_D=known.gaussian.mean_D,
        covariance_DD=known.gaussian.covariance_DD,
        n=known.n,
        features_mD=known.features_mD,
    )
    sha256 = write_statistics(out, statistics, form)
    return {
        "path": str(out),
        "form": form,
        "sha256": sha256,
        "reference": known.name,
        "images": known.n,
        "features": len(known.gaussian.mean_D),
    }


def _measured(
    storage: Path,
    reference: ReferenceSet,
    extractor: ExtractorSpec,
    pool: PoolSpec,
    address: str | None,
    say: Say | None,
    cluster: Cluster | None,
) -> KnownReference:
    """The closed reference; what is missing of it is computed first."""
    space = space_of(load_extractor(extractor))
    if (found := load_reference(storage, reference, space)) is not None:
        return found
    units = [
        unit
        for unit in units_of(reference, reference.samples)
        if read_unit(storage, unit, space) is None
    ]
    work = functools.partial(
        run_units,
        units,
        functools.partial(
            build_worker, storage, wherever_read([extractor]), on_gpu=pool.gpus_per_actor > 0
        ),
        pool=pool,
        on_result=_Rate(len(units), say),
    )
    if cluster is not None:
        work(cluster=cluster)
    elif units:
        with connect(address):
            work()
    return close_reference(storage, reference, space)


class _Rate:
    """Prints units done, images per second and the time left."""

    def __init__(self, total: int, say: Say | None) -> None:
        self._total, self._say, self._done, self._images = total, say, 0, 0
        self._started = self._last = time.monotonic()

    def __call__(self, unit: Unit, summary: UnitSummary) -> None:
        self._done, self._images = self._done + 1, self._images + unit.count
        now = time.monotonic()
        if self._say is None or (now - self._last < _EVERY_S and self._done < self._total):
            return
        self._last = now
        rate = self._images / max(now - self._started, 1e-9)
        left = (self._total - self._done) * unit.count / rate
        self._say(f"  {self._done}/{self._total} units, {rate:.0f} images/s, {left:.0f} s left")
