"""A search's answer in sentences: which trial is best, and whether it holds up."""

from __future__ import annotations

import math
from collections import Counter

from fleetstep.reporting.search_record import Confirmation, SearchRecord, Trial
from fleetstep.reporting.wording import images_text, number


def search_headline(record: SearchRecord) -> str:
    """The answer in one line."""
    if not record.best:
        return f"{record.name}: no trial has a value yet"
    if len(record.objectives) > 1:
        names = " and ".join(objective.name for objective in record.objectives)
        if len(record.best) > 1:
            return f"{len(record.best)} trials of {record.name} are best in {names}"
        return f"One trial of {record.name} is best in {names}: {record.best[0]}"
    best = next(t for t in record.trials if t.id == record.best[0])
    value = number(best.value(record.objective))
    return f"Best of {record.name}: {best.title or best.id}, {record.objective.name} {value}"


def search_grounds(record: SearchRecord) -> str:
    """How far the search came, and why its best is not the last word."""
    counts = Counter(trial.status for trial in record.trials)
    listed = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    chosen = "The best of many is chosen by looking, so its value flatters it: " + (
        "what holds up is below." if record.confirm else "train it again with other seeds."
    )
    return f"{len(record.trials)} trials: {listed}. {chosen}"


def confirmation_text(found: Confirmation) -> str:
    """Winner against baseline over seeds, in one sentence."""
    n = len(found.pairs)
    seeds = "1 seed" if n == 1 else f"{n} seeds"
    if (ratio := found.ratio) is None:
        difference = found.difference
        if difference is None:
            return f"Nothing is known yet of trial {found.trial} against {found.baseline}."
        words = f"{number(difference.value)} more {found.objective.name}"
        if difference.low is not None and difference.high is not None:
            words += f" [{number(difference.low)}, {number(difference.high)}]"
        return f"Trial {found.trial} has {words} than {found.baseline} over {seeds}."
    words = f"{ratio.value:.3f} times the {found.objective.name} of {found.baseline}"
    if ratio.low is None or ratio.high is None:
        return f"Trial {found.trial} has {words} with {seeds}: no interval."
    verdict = confirmation_verdict(found)
    return (
        f"Trial {found.trial} has {words} over {seeds}, 95 % [{ratio.low:.3f}, "
        f"{ratio.high:.3f}]: {verdict}."
    )


def confirmation_verdict(found: Confirmation) -> str:
    """better, worse or no difference; "not judged" without an interval."""
    ratio, difference = found.ratio, found.difference
    mean, even = (ratio, 1.0) if ratio is not None else (difference, 0.0)
    if mean is None or mean.low is None or mean.high is None:
        return "not judged"
    if mean.low <= even <= mean.high:
        return "no difference"
    return "better" if (mean.high < even) == (found.objective.goal == "min") else "worse"


def state_text(trial: Trial) -> str:
    """A trial's state: "finished", "stopped at 3.2 kimg", "failed: why"."""
    if trial.stopped_at is not None:
        return f"stopped at {images_text(trial.stopped_at)}"
    reason = trial.error.strip().splitlines()[-1] if trial.error.strip() else ""
    return f"{trial.status}: {reason}" if reason else trial.status


def value_text(value: float) -> str:
    """A value of an objective, "–" where there is none."""
    return number(value) if math.isfinite(value) else "–"
