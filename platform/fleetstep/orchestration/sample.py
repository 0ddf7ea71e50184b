"""`fleetstep sample`: images of given seeds from a snapshot, as a grid and as arrays."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import ValidationError

from fleetstep.errors import UsageError
from fleetstep.exactness import exact_on_cuda
from fleetstep.orchestration.cells import SnapshotRef, shape_text
from fleetstep.orchestration.output_paths import output_file
from fleetstep.orchestration.snapshots import find_snapshots, load_denoiser, source_of
from fleetstep.orchestration.sweep_solvers import schedule_label, state_dtype
from fleetstep.reporting.grids import write_grid
from fleetstep.sampling.generate import Generated, generate
from fleetstep.sampling.spec import AmedSpec, GuidanceSpec, SolverSpec
from fleetstep.training.snapshot import FACTS

_SEEDS = re.compile(r"(\d+)-(\d+)")
_EVERY_S = 5.0
_USUAL_NFE = 35
_LARGEST_SCALE, _ENLARGED_PX = 8, 32


def parse_seeds(text: str) -> tuple[int, int]:
    """(first, count) of "0-63": both ends belong to the range.

    Raises:
        UsageError: it is not of that form, or runs backwards.
    """
    match = _SEEDS.fullmatch(text.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise UsageError(
            f"--seeds must be first-last, for example 0-63, got {text!r}", "both ends are included"
        )
    return int(match[1]), int(match[2]) - int(match[1]) + 1


def chosen_nfe(solver: SolverSpec, nfe: int | None, guidance: GuidanceSpec | None) -> int | None:
    """The network calls to make: those asked for, else all that levels of the solver's own make,
    else 35; None for an adaptive solver.

    Raises:
        SamplingError: the solver cannot make them; it names the nearest that it can.
    """
    calls = 1 if guidance is None else guidance.calls
    if nfe is None:
        if solver.adaptive:
            return None
        points = solver.chosen_schedule.fixed_points
        nfe = _USUAL_NFE if points is None else solver.nfe_for(points, calls)
    solver.points_for(nfe, calls)
    return nfe


def parse_guidance(
    scale: float | None, channels: Literal["all", "first_three"]
) -> GuidanceSpec | None:
    """Classifier-free guidance of that scale; None for none.

    Raises:
        UsageError: the scale is no number from 0 on, or channels are chosen without one.
    """
    if scale is None:
        if channels != "all":
            raise UsageError(
                f"--guidance-channels {channels} without --guidance changes nothing",
                "add --guidance with a scale, for example 1.5",
            )
        return None
    try:
        return GuidanceSpec(scale=scale, channels=channels)
    except ValidationError:
        raise UsageError(
            f"--guidance must be a finite number from 0 on, got {scale:g}", "1 is no guidance"
        ) from None


def sample_to_files(
    source: Path,
    *,
    out: Path,
    solver: SolverSpec,
    nfe: int | None = None,
    seeds: str,
    ema: str,
    labels: str,
    guidance: GuidanceSpec | None = None,
    npz: Path | None,
    say: Callable[[str], None] | None,
) -> dict[str, Any]:
    """Draw images and write them.

    Args:
        source: a run folder (its last snapshot), a snapshot folder or `exact:FOLDER`.
        out: the grid's PNG; latents have none.
        solver: how to draw; a predictor is checked against the snapshot.
        nfe: network calls per image, see `chosen_nfe`.
        seeds: "first-last".
        ema: the EMA track.
        labels: "random" or "balanced".
        guidance: to each image's label; its network calls count.
        npz: also write `images` (uint8 NHWC, or latents as float32 NHWC) and `labels` there.
        say: where warnings and progress lines go.

    Raises:
        UsageError: an argument cannot work, a file cannot be written where it is asked for, or
            the snapshot draws latents and `npz` is None.
        SamplingError: the solver cannot make that many calls, or its predictor was trained for
            another snapshot.
    """
    if labels not in ("random", "balanced"):
        raise UsageError(f"--labels must be random or balanced, got {labels!r}")
    rule: Literal["random", "balanced"] = "random" if labels == "random" else "balanced"
    first, count = parse_seeds(seeds)
    nfe = chosen_nfe(solver, nfe, guidance)
    (snapshot,) = find_snapshots([str(source)], which="last", track=ema)
    if isinstance(solver, AmedSpec):
        solver.check_network(snapshot.digest, ema, guidance)
    grid = _grid_of(snapshot, out, npz)
    for option, file in (("--out", grid), ("--npz", npz)):
        if file is not None:
            output_file(option, file)
    warnings = [*guidance_warnings(snapshot, guidance), *_solver_warnings(solver)]
    if say is not None:
        for warning in warnings:
            say(f"warning: {warning}")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    exact_on_cuda(device)
    generated = generate(
        load_denoiser(snapshot, ema, device=device),
        solver,
        nfe,
        guidance=guidance,
        first=first,
        count=count,
        shape=snapshot.shape,
        classes=snapshot.classes,
        batch=min(100, max(2, count)),
        labels=rule,
        dtype=state_dtype(solver, "float64"),
        unquantised=grid is None,
        on_batch=_Rate(count, say),
    )
    if grid is not None:
        scale = min(_LARGEST_SCALE, max(1, _ENLARGED_PX // snapshot.shape[-1]))
        write_grid(generated.images, grid, columns=max(1, round(count**0.5)), scale=scale)
    if npz is not None:
        _write_arrays(generated, npz)
    return {
        "images": count,
        "solver": solver.label,
        "schedule": schedule_label(solver),
        "nfe": generated.nfe,
        "grid": None if grid is None else str(grid),
        "npz": None if npz is None else str(npz),
        "snapshot": source_of(snapshot),
        "warnings": warnings,
    }


def _grid_of(snapshot: SnapshotRef, out: Path, npz: Path | None) -> Path | None:
    """Where the grid goes; None for latents, which are no picture and go to `npz` alone."""
    if snapshot.draws_pictures:
        return out
    if npz is None:
        raise UsageError(
            f"{snapshot.run} draws {shape_text(snapshot.shape)}: a picture has 1 or 3 channels",
            "add --npz FILE to write the latents as float32; decoding them by their VAE is not "
            "possible yet",
        )
    return None


def _solver_warnings(solver: SolverSpec) -> list[str]:
    if not solver.adaptive:
        return []
    return [
        f"{solver.kind} carries a batch as one system: an image depends, within the tolerance, on "
        "which seeds are drawn with it"
    ]


def guidance_warnings(snapshot: SnapshotRef, guidance: GuidanceSpec | None) -> list[str]:
    """Guidance away from an image for no class that training never showed the network."""
    if snapshot.kind == "exact":
        return []  # its D for no class is that of the whole dataset
    config = json.loads((snapshot.path / FACTS).read_text(encoding="utf-8"))["config"]
    # An imported snapshot does not say how it was trained.
    if guidance is None or guidance.scale == 1 or "training" not in config:
        return []
    if config["training"].get("label_dropout", 0) > 0:
        return []
    return [
        f"{snapshot.run} dropped no label in training (training.label_dropout: 0), so its image "
        "for no class, which guidance leads away from, means nothing"
    ]


def _write_arrays(generated: Generated, npz: Path) -> None:
    drawn = generated.images if generated.unquantised is None else generated.unquantised
    labels = generated.labels if generated.labels is not None else np.full(len(drawn), -1)
    np.savez(npz, images=drawn.transpose(0, 2, 3, 1), labels=labels)


class _Rate:
    """Prints images drawn, the rate and the time left."""

    def __init__(self, total: int, say: Callable[[str], None] | None) -> None:
        self._total, self._say, self._done = total, say, 0
        self._started = self._last = time.monotonic()

    def __call__(self, images: int) -> None:
        self._done += images
        now = time.monotonic()
        if self._say is None or (now - self._last < _EVERY_S and self._done < self._total):
            return
        self._last = now
        rate = self._done / max(now - self._started, 1e-9)
        self._say(
            f"  {self._done}/{self._total} images, {rate:.0f}/s, "
            f"{(self._total - self._done) / rate:.0f} s left"
        )
