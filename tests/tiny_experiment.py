"""A training job that is over in seconds: the digits, a network of a few thousand parameters,
dropout on.
"""

from __future__ import annotations

from pathlib import Path

from fleetstep.config import Experiment, load

PRESETS = Path(__file__).parents[1] / "pipelines" / "presets"
TINY = (
    "network={kind: ddpmpp, channels: 8, multipliers: [1, 1], blocks: 1, dropout: 0.2, "
    "attention_resolutions: [4]}",
    "training.images=1280",
    "training.global_batch=64",
    "training.log_every=1",
    "training.checkpoint_every=320",
    "training.snapshot_every=50%",
    "training.heldout.bins=4",
    "grid.samples=9",
    "grid.nfe=5",
)


def tiny(storage: Path, data: Path, *overrides: str, preset: str = "digits-edm") -> Experiment:
    """The preset, made small."""
    where = (f"storage={storage}", f"data.path={data}")
    return load(Experiment, PRESETS / f"{preset}.yaml", [*where, *TINY, *overrides])
