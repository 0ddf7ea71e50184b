"""Records such as a finished demo leaves behind, made without a tracker: for tests of reports."""

from __future__ import annotations

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from fleetstep.reporting.grids import tile
from fleetstep.reporting.records import Curve, Grid, RunRecord, Score

EXTRACTOR = "3f2a" * 16
REFERENCE = "9b1c" * 16
SOLVERS = {"dpmpp_2m": 0.55, "euler": 1.5, "heun": 1.2, "ipndm": 0.7}
BLOCKS = 10


def score(
    run: str = "edm",
    *,
    pseudo_values: Sequence[float] = (1.0, 1.2, 0.9, 1.1),
    solver: str = "heun",
    nfe: int = 9,
    n: int = 2000,
    kind: str = "fd",
    metric: str = "",
    guidance: str = "",
    images_seen: int = 200_000,
    extractor_sha256: str = EXTRACTOR,
    reference_sha256: str = REFERENCE,
    seeds: str = "0:0-1999",
) -> Score:
    """One score whose value is the mean of its pseudo-values."""
    values = np.asarray(pseudo_values)
    se = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    value = float(values.mean())
    count = f"{n // 1000}k" if n % 1000 == 0 else str(n)
    return Score(
        metric=metric or f"{kind}{count}.fs-rn20.multi112@{extractor_sha256[:8]}",
        kind=kind,
        value=value,
        raw=value * 1.05,
        se=se,
        low=value - 2.26 * se,
        high=value + 2.26 * se,
        n=n,
        blocks=len(values),
        pseudo_values=tuple(float(v) for v in values),
        solver=solver,
        schedule="polynomial(rho=7)",
        nfe=nfe,
        checkpoint="c0ffee" * 10 + "abcd",
        run=run,
        images_seen=images_seen,
        extractor_sha256=extractor_sha256,
        reference_sha256=reference_sha256,
        labels="balanced",
        ema="ema",
        seeds=seeds,
        extractor="fs-rn20.multi112",
        reference="digits/train",
        reference_n=1500,
        preprocess="nearest x4 to 32x32x3",
        quantisation="floor(127.5 x + 128)",
        guidance=guidance,
        protocol_name="",
        versions={"fleetstep": "0.1.0", "torch": "2.13.0+cpu", "numpy": "2.4.1"},
        hardware={"cpu": "x86-64, AVX-512", "threads": "1"},
    )


def as_json(score: Score) -> dict[str, Any]:
    """The record of a score as an evaluation writes it."""
    values = {name: getattr(score, name) for name in Score.__dataclass_fields__}
    namespace, _, ids = score.seeds.partition(":")
    first, _, last = ids.partition("-")
    return {
        "protocol": values.pop("protocol_name"),
        **values,
        "confidence": 0.95,
        "seeds": {
            "namespace": int(namespace),
            "first": int(first),
            "count": int(last) + 1 - int(first),
        },
    }


def curve(values: Sequence[float], *, images: int = 1000, seconds: float = 10.0) -> Curve:
    """Measurements every `images` images and `seconds` seconds, the first after one interval."""
    steps = range(1, len(values) + 1)
    return Curve(
        tuple(step * images for step in steps),
        tuple(values),
        tuple(step * seconds for step in steps),
    )


def grid(quality: float, seed: int = 7) -> bytes:
    """A PNG of 64 small grey pictures which get clearer as `quality` goes 0 -> 1."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:8, 0:8] / 7 - 0.5
    angles, sizes = rng.uniform(0, np.pi, (64, 1, 1)), rng.uniform(0.04, 0.12, (64, 1, 1))
    strokes = np.exp(-((x * np.cos(angles) + y * np.sin(angles)) ** 2) / sizes**2 / 4)
    noise = rng.uniform(0, 1, strokes.shape)
    images = np.uint8(255 * (quality * strokes + (1 - quality) * noise))
    buffer = io.BytesIO()
    tile(images[:, None], columns=8, scale=4).save(buffer, format="PNG")
    return buffer.getvalue()


def demo_run(
    name: str, *, speed: float, gain: float, seed: int, params: dict[str, str]
) -> RunRecord:
    """A run whose loss falls `speed` times as fast and whose distances are divided by `gain`."""
    rng = np.random.default_rng(seed)
    images = np.arange(0, 200_001, 12_500)
    fast, slow = np.exp(-speed * images / 14_000), np.exp(-speed * images / 90_000)
    losses = (0.19 + 1.1 * fast + 0.09 * slow) * np.exp(0.006 * rng.standard_normal(len(images)))
    wall = 3 + images / (760 if speed == 1 else 730)
    curves = {"held_out/loss": _curve(images, losses, wall)}
    for j in range(8):
        shape = 1 + (0.06 * (j - 4) ** 2 / 8 - 0.1 if gain > 1.1 else 0.01 * (-1) ** j)
        curves[f"held_out/bin{j}"] = _curve(images, losses * (0.4 + 0.2 * j) * shape, wall)
    curves["train/images_per_s"] = _curve(images[1:], np.full(len(images) - 1, 745.0), wall[1:])
    qualities = (0.35, 0.7, 0.9 if gain == 1 else 0.97)
    started = datetime(2026, 11, 20, 9, 0, tzinfo=UTC)
    return RunRecord(
        name=name,
        run_id=f"{seed:02d}c4e5f6a7b8091a2b3c4d5e6f708192",
        status="FINISHED",
        params={
            "data.path": "shards/digits",
            "network.channels": "32",
            "process.kind": "edm",
            "training.global_batch": "128",
            "training.images": "200000",
            "training.seed": "0",
            **params,
        },
        tags={"dataset.fingerprint": "77aa" * 16},
        curves=curves,
        scores=tuple(_scores(name, gain, seed)),
        grids=tuple(
            Grid(int(seen), grid(quality), "EMA, heun, NFE 35, seeds 0-63")
            for seen, quality in zip(images[2::7], qualities, strict=True)
        ),
        started=started,
        ended=started + timedelta(seconds=float(wall[-1]) + 9),
    )


def _curve(images: np.ndarray, values: np.ndarray, wall: np.ndarray) -> Curve:
    return Curve.of(
        (int(i), float(v), float(w)) for i, v, w in zip(images, values, wall, strict=True)
    )


def _scores(run: str, gain: float, seed: int) -> list[Score]:
    """Distances that fall with NFE to a floor; all runs share the noise of a block's latents."""
    own = np.random.default_rng(seed)
    scores = []
    for solver, height in SOLVERS.items():
        # The faster run is not better everywhere: euler, at many steps, ends on a higher floor.
        floor = 2.25 if gain > 1.1 and solver == "euler" else 1.9 / gain**0.4
        for nfe in (5, 7, 9, 13, 19):
            shared = np.random.default_rng(nfe * 31 + len(solver)).standard_normal(BLOCKS)
            level = floor + 4 * height / gain * (9 / nfe) ** 2.2
            blocks = level * (1 + 0.08 * shared + 0.02 * own.standard_normal(BLOCKS))
            for kind, scale in (("fd", 1), ("fd_z", 9)):
                scores.append(
                    score(
                        run,
                        pseudo_values=scale * blocks,
                        solver=solver,
                        nfe=nfe,
                        n=1000,
                        kind=kind,
                        seeds="0:0-999",
                    )
                )
    return scores


def demo_records() -> tuple[RunRecord, ...]:
    """The three runs of the demo: EDM, EDM + warm-up, EDM + FDM + SpeeD."""
    fdm = {"strategies.0.kind": "fdm", "strategies.0.multiplier": "1.0"}
    speed = {"strategies.1.kind": "speed", "strategies.1.k": "5.0", "strategies.1.lam": "0.6"}
    warmup = {"strategies.0.kind": "warmup"}
    return (
        demo_run("edm", speed=1, gain=1, seed=1, params={}),
        demo_run("edm-fdm-speed", speed=1.5, gain=1.25, seed=2, params=fdm | speed),
        demo_run("edm-warmup", speed=1.04, gain=1.01, seed=3, params=warmup),
    )


def seed_records(seeds: int = 3) -> tuple[RunRecord, ...]:
    """Two settings trained with several seeds: EDM, and EDM + FDM, 1.5 times as fast."""
    rng = np.random.default_rng(5)
    runs = []
    for seed in range(seeds):
        hard = float(np.exp(0.05 * rng.standard_normal()))
        for name, speed, gain, params in (
            ("edm", 1.0, 1.0, {}),
            ("edm-fdm", 1.5, 1.25, {"strategies.0.kind": "fdm", "strategies.0.multiplier": "1.0"}),
        ):
            pace = hard * speed * float(np.exp(0.03 * rng.standard_normal()))
            own = {**params, "training.seed": str(seed), "name": f"{name}-s{seed}"}
            run = demo_run(
                f"{name}-s{seed}",
                speed=pace,
                gain=gain,
                seed=10 + 2 * seed + len(params),
                params=own,
            )
            score = "eval/fd1k.fs-rn20.multi112@3f2a3f2a/dpmpp-order-2@16"
            loss = run.curves["held_out/loss"]
            run.curves[score] = Curve(
                loss.images_seen[2::2],
                tuple(40 * (images * pace / 1e4) ** -0.8 for images in loss.images_seen[2::2]),
                loss.wall_s[2::2],
            )
            runs.append(run)
    return tuple(runs)
