"""`fleetstep trajectory`: the shape of a snapshot's trajectories, measured and drawn.

Legend: B trajectories of a batch, N points, C channels, H W pixels, d = C H W, K components.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fleetstep.durable import write_whole
from fleetstep.errors import UsageError
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.cells import SnapshotRef
from fleetstep.orchestration.output_paths import output_folder
from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser, track_of
from fleetstep.reporting.geometry_plots import Band, Search, View, write_alignment, write_geometry
from fleetstep.sampling.alignment import Alignment, align
from fleetstep.sampling.denoiser import Denoiser
from fleetstep.sampling.generate import labels_of, latents
from fleetstep.sampling.geometry import COMPONENTS, Geometry, geometry, unit_variance
from fleetstep.sampling.spec import AmedStudentSpec, Dpm2Spec, HeunAbSpec
from fleetstep.sampling.trajectory import levels_for, sample

ALIGNED_STEPS: Final = 5
"""Steps of the coarse trajectory, as in AMED's Fig. 5."""

RATIOS: Final = tuple(round(0.02 + 0.04 * i, 2) for i in range(25))
_SPREAD: Final = (0.05, 0.95)
_EVERY_S: Final = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrajectoryReport:
    """What was found.

    Args:
        record: the JSON record.
        files: what was written.
    """

    record: dict[str, Any]
    files: tuple[Path, ...]

    def text(self) -> str:
        """For people."""
        raw, scaled = (self.record["views"][name] for name in ("raw", "unit_variance"))
        lines = [
            f"{self.record['samples']} trajectories of {len(self.record['sigmas'])} points: "
            f"{self.record['run']} at {self.record['images_seen']:,} images"
        ]
        for name, view in (("raw", raw), ("x / √(1+σ²)", scaled)):
            for k in range(COMPONENTS):
                lines.append(
                    f"  {name}, {k + 1} component(s): projection error at most "
                    f"{max(view['error_mean'][k]):.2%}, "
                    f"variance explained {view['explained_mean'][k]:.6f}"
                )
        for found in self.record["alignment"]:
            best = ", ".join(f"{r:g}" for r in found["best"])
            lines.append(f"  {found['student']}: best r of each of {ALIGNED_STEPS} steps: {best}")
        return "\n".join(lines)


def report_trajectories(
    source: Path,
    *,
    out: Path,
    samples: int = 1024,
    batch: int = 64,
    points: int = 41,
    ema: str = "ema",
    say: Say | None = None,
) -> TrajectoryReport:
    """Walk trajectories by Heun's method, and write their geometry and the alignment search.

    Trajectories stay on the device for one batch at a time; what is kept of each is its errors.

    Args:
        source: a run folder (its last snapshot), a snapshot folder or `exact:FOLDER`.
        out: folder for trajectory.json, trajectory-geometry.png and alignment.png.
        samples: trajectories.
        batch: of them at once; the alignment search uses the first batch.
        points: of a trajectory, 5 k + 1, so that five equal steps of the schedule end on them.
        ema: the EMA track.
        say: where progress goes.

    Raises:
        UsageError: numbers that cannot work, or `out` cannot be written to.
        OSError: a file cannot be written.
    """
    if samples < 1 or batch < 1:
        raise UsageError(f"--samples and --batch start at 1, got {samples} and {batch}")
    if points <= COMPONENTS or (points - 1) % ALIGNED_STEPS:
        nearest = ALIGNED_STEPS * max(1, round((points - 1) / ALIGNED_STEPS)) + 1
        raise UsageError(
            f"--points must be a multiple of {ALIGNED_STEPS} plus one, got {points}",
            f"nearest that works: {nearest}",
        )
    (snapshot,) = find_snapshots([str(source)], which="last", track=ema)
    output_folder("--out", out)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact_on_cuda(device)
    denoiser = load_denoiser(snapshot, ema, device=device)
    walks = _Walks(denoiser, snapshot, points, device)
    with torch.inference_mode():
        raw, scaled = _measure(walks, samples, batch, say)
        found = walks.align(min(samples, batch))
    record = _record(snapshot, track_of(snapshot, ema), samples, walks.sigmas, raw, scaled, found)
    return TrajectoryReport(record, _write(record, raw, scaled, found, out))


class _Walks:
    """Trajectories by seed."""

    def __init__(
        self, denoiser: Denoiser, snapshot: SnapshotRef, points: int, device: torch.device
    ) -> None:
        self._denoiser, self._snapshot, self._device = denoiser, snapshot, device
        self.sigmas = levels_for(denoiser, HeunAbSpec(), HeunAbSpec().nfe_for(points))

    def trace(self, first: int, count: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The images at every level of seeds first ... first+count-1, and their labels."""
        noise = torch.from_numpy(latents(0, first, count, self._snapshot.shape))
        start = noise.to(self._device, torch.float64) * float(self.sigmas[0])
        labels = None
        if classes := self._snapshot.classes:
            ids = labels_of(0, first, count, classes, "balanced")
            labels = torch.from_numpy(ids).to(self._device)
        result = sample(self._denoiser, HeunAbSpec(), self.sigmas, start, labels, trace=True)
        assert result.trace is not None, "asked for"
        return result.trace, labels

    def align(self, count: int) -> list[Alignment]:
        """The search on the first seeds, along the finest levels that five steps share."""
        trace, labels = self.trace(0, count)
        stride = (len(self.sigmas) - 1) // ALIGNED_STEPS
        levels = tuple(float(level) for level in self.sigmas[::stride])
        return [
            align(self._denoiser, student, levels, trace[::stride], RATIOS, labels)
            for student in (Dpm2Spec(), AmedStudentSpec())
        ]


def _measure(
    walks: _Walks, samples: int, batch: int, say: Say | None
) -> tuple[Geometry, Geometry]:
    raw, scaled = [], []
    started = last = time.monotonic()
    for done in range(0, samples, batch):
        count = min(batch, samples - done)
        trace, _ = walks.trace(done, count)
        points_BNd = torch.stack(trace, dim=1).flatten(2)
        raw.append(geometry(points_BNd))
        scaled.append(geometry(unit_variance(points_BNd, walks.sigmas)))
        now, reached = time.monotonic(), done + count
        if say is not None and (now - last >= _EVERY_S or reached == samples):
            last, rate = now, reached / (now - started)
            say(
                f"  {reached}/{samples} trajectories, {rate:.1f}/s, "
                f"{(samples - reached) / rate:.0f} s left"
            )
    return _joined(raw), _joined(scaled)


def _joined(parts: list[Geometry]) -> Geometry:
    return Geometry(
        torch.cat([part.errors_BKN for part in parts]).cpu(),
        torch.cat([part.unexplained_BK for part in parts]).cpu(),
        torch.cat([part.deviations_BN for part in parts]).cpu(),
    )


def _record(
    snapshot: SnapshotRef,
    ema: str,
    samples: int,
    sigmas: Tensor,
    raw: Geometry,
    scaled: Geometry,
    found: list[Alignment],
) -> dict[str, Any]:
    return {
        "format": 1,
        "run": snapshot.run,
        "images_seen": snapshot.images_seen,
        "snapshot": snapshot.digest,
        "track": ema,
        "solver": HeunAbSpec().label,
        "schedule": HeunAbSpec().chosen_schedule.label,
        "samples": samples,
        "sigmas": sigmas.tolist(),
        "views": {"raw": _summary(raw), "unit_variance": _summary(scaled)},
        "alignment": [asdict(each) for each in found],
    }


def _summary(shape: Geometry) -> dict[str, Any]:
    """Means and spreads over trajectories."""
    low, high = _SPREAD
    explained_BK = 1 - shape.unexplained_BK
    return {
        "error_mean": shape.errors_BKN.mean(0).tolist(),
        f"error_{low:.0%}": shape.errors_BKN.quantile(low, dim=0).tolist(),
        f"error_{high:.0%}": shape.errors_BKN.quantile(high, dim=0).tolist(),
        "explained_mean": explained_BK.mean(0).tolist(),
        "explained_min": explained_BK.amin(0).tolist(),
        "deviation_mean": shape.deviations_BN.mean(0).tolist(),
        "deviation_max": shape.deviations_BN.amax(0).tolist(),
    }


def _write(
    record: dict[str, Any], raw: Geometry, scaled: Geometry, found: list[Alignment], out: Path
) -> tuple[Path, ...]:
    text = json.dumps(record, indent=2) + "\n"
    written = out / "trajectory.json"
    write_whole(written, lambda path: _put(path, text))
    figure, aligned = out / "trajectory-geometry.png", out / "alignment.png"
    who = f"{record['run']}, {record['samples']} trajectories"
    views = [_view("raw", raw), _view("x / √(1+σ²)", scaled)]
    deviation = _band("deviation", raw.deviations_BN)
    write_geometry(
        f"Geometry of sampling trajectories: {who}", record["sigmas"], views, deviation, figure
    )
    searches = [Search(each.student, each.distances, each.best, _gains(each)) for each in found]
    names = [f"{s:.3g} → {after:.3g}" for s, after in pairwise(found[0].levels)]
    title = f"Where to take a step's second slope: {record['run']}"
    write_alignment(title, RATIOS, names, searches, aligned)
    return written, figure, aligned


def _gains(found: Alignment) -> tuple[float, ...]:
    """AMED's relative alignment: the baseline's distance less the searched one's."""
    return tuple(b - s for b, s in zip(found.baseline, found.searched, strict=True))


def _put(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def _view(name: str, shape: Geometry) -> View:
    bands = tuple(
        _band(f"{k + 1} component{'s' if k else ''}", shape.errors_BKN[:, k])
        for k in range(COMPONENTS)
    )
    return View(name, bands, tuple((1 - shape.unexplained_BK.mean(0)).tolist()))


def _band(name: str, values_BN: Tensor) -> Band:
    low, high = (values_BN.quantile(q, dim=0).tolist() for q in _SPREAD)
    return Band(name, tuple(values_BN.mean(0).tolist()), tuple(low), tuple(high))
