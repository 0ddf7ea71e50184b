"""The record of a sweep and its folder, such as a finished sweep leaves behind: for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from fleetstep.evaluation.record import ScoreRecord, Seeds
from fleetstep.evaluation.spec import RN20_NAME, RN20_SHA256, MetricKind, metric_name

BLOCKS = 10
SOLVERS = ("ddim", "dpmpp_2m", "euler", "heun", "ipndm(order=4)", "unipc")
NFE = (3, 5, 7, 9, 18, 35)
KINDS: tuple[MetricKind, ...] = ("fd", "fd_z", "kid", "precision", "recall")
_HEIGHTS = {"ddim": 4.0, "dpmpp_2m": 1.0, "euler": 3.9, "heun": 9.0, "unipc": 0.9}
_SCALES = {"fd": 1.0, "fd_z": 9.0, "kid": 0.002}


def level(solver: str, nfe: float, floor: float) -> float:
    """A distance that falls with the calls to a floor; Heun is poor at few."""
    steepness = 3.4 if solver == "heun" else 2.0
    return floor + _HEIGHTS.get(solver, 1.2) * (7 / nfe) ** steepness


def record(
    run: str = "edm",
    *,
    solver: str = "heun",
    nfe: float = 9,
    kind: MetricKind = "fd",
    blocks: Sequence[float] = (1.0, 1.2, 0.9, 1.1),
    n: int = 1000,
    first: int = 0,
    images_seen: int = 200_000,
    **facts: Any,
) -> ScoreRecord:
    """One score whose value is the mean of its blocks."""
    values = np.asarray(blocks, np.float64)
    value, se = float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5)
    extractor = facts.pop("extractor", RN20_NAME)
    digest = facts.pop("extractor_sha256", RN20_SHA256)
    return ScoreRecord(
        metric=metric_name(kind, extractor, digest, n),
        kind=kind,
        value=value,
        raw=value if kind in ("precision", "recall") else value + 2 * se,
        se=se,
        low=value - 2.262 * se,
        high=value + 2.262 * se,
        confidence=0.95,
        n=n,
        blocks=len(values),
        pseudo_values=tuple(float(v) for v in values),
        seeds=Seeds(0, first, n),
        run=run,
        images_seen=images_seen,
        solver=solver,
        nfe=nfe,
        extractor=extractor,
        extractor_sha256=digest,
        **{"checkpoint": (run.encode().hex() + "ab" * 32)[:64], **_FACTS, **facts},
    )


_FACTS: dict[str, Any] = {
    "ema": "ema",
    "schedule": "polynomial(rho=7)",
    "labels": "random",
    "preprocess": "nearest x4 to 32x32x3",
    "quantisation": "uint8: floor(127.5 x + 128), clipped",
    "reference": "digits/train",
    "reference_sha256": "9b1c" * 16,
    "reference_n": 1500,
    "versions": {"fleetstep": "0.1.0", "torch": "2.13.0+cpu"},
    "hardware": {"device": "x86-64", "threads": "1", "build": "torch 2.13.0"},
}


def cell(key: str, *scores: ScoreRecord, seed_block: int = 0, made: float = 0) -> dict[str, Any]:
    """An entry of `cells`."""
    return {
        "key": key,
        "seed_block": seed_block,
        "moments_sha256": ["ab" * 32],
        "calls_made": made or scores[0].nfe - 0.9,
        "scores": [score.to_dict() for score in scores],
    }


def sweep(*cells: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """The content of scores.json."""
    return {
        "format": 3,
        "complete": True,
        "sweep": {"name": "demo"},
        "skipped": [],
        "dropped": [],
        "minima": [],
        "cells": list(cells),
        **parts,
    }


def demo_sweep(
    floors: Callable[[str], float] = {"edm": 0.45, "edm-fdm": 0.3}.__getitem__,
) -> dict[str, Any]:
    """Two networks, six solvers and six numbers of calls, five metrics, as the demo sweeps."""
    cells = []
    for run in ("edm", "edm-fdm"):
        for solver in SOLVERS:
            for nfe in NFE:
                if solver == "heun" and nfe == 18:
                    continue
                cells.append(_demo_cell(run, solver, nfe, floors(run)))
    skipped = [{"solver": "heun", "nfe": 18, "reason": "heun makes 2 calls a step but the last"}]
    return sweep(*cells, skipped=skipped)


def _demo_cell(run: str, solver: str, nfe: int, floor: float) -> dict[str, Any]:
    shared = np.random.default_rng(7).standard_normal(BLOCKS)
    own = np.random.default_rng([len(run), len(solver), nfe]).standard_normal(BLOCKS)
    value = level(solver, nfe, floor)
    blocks = value + (0.03 + 0.05 * value) * shared + 0.04 * abs(value) ** 0.5 * own
    scores = []
    for kind in KINDS:
        mine = blocks * _SCALES.get(kind, 1.0)
        if kind in ("precision", "recall"):
            mine = 0.9 / (1 + 0.4 * value) + 0.01 * own + (0.05 if kind == "recall" else 0)
        scores.append(record(run, solver=solver, nfe=nfe, kind=kind, blocks=mine))
    return cell(f"{run}-{solver}-{nfe}", *scores)
