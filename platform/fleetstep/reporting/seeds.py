"""Training seeds: runs of one setting that differ in their seed are one arm of a comparison.

Two runs have one setting when everything that decides what a run learns is the same: process,
strategies, network, the data it sees, and of the training the batch, optimiser, averages,
precision and budget. Where and how it was executed, and how often measured, decides nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fleetstep.reporting.records import RunRecord

SEED = "training.seed"
"""Parameter whose values tell the runs of an arm apart."""

_DATASET = "dataset.fingerprint"
_EXECUTION = (
    "name", "storage", "published", "grid", "evaluate", "cluster", "tracking", "search",
    "data.path", "data.heldout", "data.prefetch", "data.expects",
    "training.micro_batch", "training.activation_checkpointing", "training.compile",
    "training.zero_stage", "training.checkpoint_every", "training.snapshot_every",
    "training.keep_checkpoints", "training.log_every", "training.heldout",
)  # fmt: skip
_WORDS = re.compile(r"([-_./ ]+)")


@dataclass(frozen=True)
class Arm:
    """Runs of one setting, one a training seed.

    Args:
        name: of its only run, or what the names of its runs share.
        runs: by seed; every seed once.
    """

    name: str
    runs: tuple[RunRecord, ...]

    @property
    def seeds(self) -> tuple[str, ...]:
        """The training seeds; "" of a run that does not say."""
        return tuple(run.params.get(SEED, "") for run in self.runs)


@dataclass(frozen=True)
class RunPair:
    """A run and the baseline's run it is held against.

    Args:
        same_seed: whether both drew the same data order, noise and starting weights.
    """

    run: RunRecord
    baseline: RunRecord
    same_seed: bool

    @property
    def seed(self) -> str:
        """The pair's training seed: "3", or "3 against 0" where they differ."""
        own, other = self.run.params.get(SEED, "?"), self.baseline.params.get(SEED, "?")
        return own if self.same_seed else f"{own} against {other}"


def decides_nothing(key: str) -> bool:
    """Whether a flattened parameter says only where, how and under which name a run was executed
    and measured.
    """
    return any(key == part or key.startswith(f"{part}.") for part in _EXECUTION)


def setting_of(run: RunRecord) -> tuple[tuple[str, str], ...]:
    """What decides what a run learns, but for its seed: sorted (key, value) pairs."""
    kept = {k: v for k, v in run.params.items() if k != SEED and not decides_nothing(k)}
    dataset = run.tags.get(_DATASET) or run.params.get(_DATASET, "")
    return tuple(sorted({**kept, _DATASET: dataset}.items()))


def arms_of(runs: Sequence[RunRecord]) -> tuple[Arm, ...]:
    """The runs as arms, in the order in which each arm's first run was given.

    A run that repeats a seed of its setting is no further seed: it stands in an arm of its own
    together with other repeats. So does each run that does not tell its seed.
    """
    groups: dict[object, list[RunRecord]] = {}
    repeats: Counter[object] = Counter()
    for run in runs:
        seed = run.params.get(SEED)
        setting = setting_of(run)
        place: object = run.run_id if seed is None else (setting, repeats[setting, seed])
        repeats[setting, seed] += 1
        groups.setdefault(place, []).append(run)
    members = [tuple(sorted(group, key=_by_seed)) for group in groups.values()]
    names = [_shared_name(run.name for run in group) for group in members]
    counts = Counter(names)
    return tuple(
        Arm(name if counts[name] == 1 else group[0].name, group)
        for name, group in zip(names, members, strict=True)
    )


def pairs_of(arm: Arm, baseline: Arm) -> tuple[RunPair, ...]:
    """Each run of an arm with one of the baseline's: of the same seed where both have it, the
    others in the order of their seeds; runs beyond the shorter arm stay alone.
    """
    of_seed = dict(zip(baseline.seeds, baseline.runs, strict=True))
    shared = {seed for seed in arm.seeds if seed and seed in of_seed}
    left = [run for seed, run in zip(arm.seeds, arm.runs, strict=True) if seed not in shared]
    free = [run for seed, run in of_seed.items() if seed not in shared]
    matched = [
        RunPair(run, of_seed[seed], same_seed=True)
        for seed, run in zip(arm.seeds, arm.runs, strict=True)
        if seed in shared
    ]
    others = [RunPair(run, other, same_seed=False) for run, other in zip(left, free, strict=False)]
    return (*matched, *others)


def _by_seed(run: RunRecord) -> tuple[int, str]:
    seed = run.params.get(SEED, "")
    return (int(seed) if seed.isdecimal() else -1, seed)


def _shared_name(names: Iterable[str]) -> str:
    """What all names begin with, in whole words: "edm-s1" and "edm-s2" are "edm"."""
    first, *others = [_WORDS.split(name) for name in names]
    if not others:
        return "".join(first)
    count = 0
    while all(parts[: count + 1] == first[: count + 1] for parts in others) and count < len(first):
        count += 1
    return "".join(first[:count]).rstrip("-_./ ") or "".join(first)
