"""The record of a search such as a finished one leaves behind: for tests of reports."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

RUNGS = (3200, 9600, 30_000)


def demo_search(
    trials: int = 24, *, several: bool = False, confirmed: bool = True
) -> dict[str, Any]:
    """Halving over learning rate, strategy and multiplier: the rate matters most, the batch of the
    held-out measurement not at all; one trial fails.
    """
    rng = np.random.default_rng(3)
    entries = [_trial(index, rng) for index in range(trials)]
    entries[5] |= {
        "status": "failed",
        "values": {"held_out": None},
        "curve": {"held_out": []},
        "stopped_at": None,
        "error": "Traceback\nNonFiniteLoss: the loss is NaN after 640 images",
    }
    if several:
        for entry in entries:
            last = entry["curve"]["held_out"][-1:] or [[0, 0]]
            entry["values"]["wall_s"] = last[0][0] / 700 * (2 if "fdm" in entry["title"] else 1)
            entry["curve"]["wall_s"] = []
    finished = [entry for entry in entries if entry["status"] == "finished"]
    best = min(finished, key=lambda entry: entry["values"]["held_out"])
    pairs = [
        {"seed": seed, "winner": 0.19 + 0.004 * seed, "baseline": (0.19 + 0.004 * seed) * ratio}
        for seed, ratio in ((1, 1.05), (2, 1.06), (3, 1.07))
    ]
    confirm = {
        "objective": "held_out", "trial": best["id"], "baseline": "plain EDM", "pairs": pairs,
    }  # fmt: skip
    objectives = [{"name": "held_out", "goal": "min"}]
    return {
        "name": "digits-speed",
        "objectives": [*objectives, *([{"name": "wall_s", "goal": "min"}] if several else [])],
        "dimensions": [
            _dimension("training.optimizer.lr", "log_uniform", 1e-4, 1e-2),
            {
                "key": "strategies",
                "kind": "choice",
                "low": None,
                "high": None,
                "labels": ["plain", "fdm", "speed"],
                "when": [],
            },
            _dimension("strategies/fdm/0.multiplier", "uniform", 1, 3, [["strategies", "fdm"]]),
            _dimension("training.heldout.batch", "integers", 8, 64),
        ],
        "trials": entries,
        "best": [best["id"]] if not several else _front(finished),
        "confirm": confirm if confirmed else None,
    }


def _front(finished: list[dict[str, Any]]) -> list[str]:
    """Ids of the trials that no other beats in both values."""
    values = {e["id"]: (e["values"]["held_out"], e["values"]["wall_s"]) for e in finished}
    return [
        one
        for one, (loss, cost) in values.items()
        if not any(a <= loss and b <= cost and (a, b) != (loss, cost) for a, b in values.values())
    ]


def _dimension(
    key: str, kind: str, low: float, high: float, when: list[list[str]] | None = None
) -> dict[str, Any]:
    return {
        "key": key, "kind": kind, "low": low, "high": high, "labels": None, "when": when or [],
    }  # fmt: skip


def _trial(index: int, rng: np.random.Generator) -> dict[str, Any]:
    rate = float(10 ** rng.uniform(-4, -2))
    strategy = ("plain", "fdm", "speed")[index % 3]
    assignment: dict[str, Any] = {
        "training.optimizer.lr": rate,
        "strategies": strategy,
        "training.heldout.batch": int(rng.integers(8, 65)),
    }
    if strategy == "fdm":
        assignment["strategies/fdm/0.multiplier"] = float(rng.uniform(1, 3))
    off = 0.35 * math.log10(rate / 1.5e-3) ** 2 - 0.03 * (strategy == "fdm")
    last = 2 if off < 0.05 else 1 if off < 0.2 else 0
    points = [
        [images, (0.2 + off + 0.6 * (images / 1000) ** -0.8) * (1 + 0.004 * rng.standard_normal())]
        for images in (800, 1600, 3200, 6400, 9600, 20_000, 30_000)
        if images <= RUNGS[last]
    ]
    stopped = RUNGS[last] if last < 2 else None
    return {
        "id": f"{index:04d}",
        "title": f"lr={rate:.2g} {strategy}",
        "assignment": assignment,
        "status": "finished" if stopped is None else "stopped",
        "stopped_at": stopped,
        "values": {"held_out": points[-1][1]},
        "curve": {"held_out": points},
        "run_id": f"{index:032x}",
        "error": "",
    }
