"""The answer of a comparison in sentences, for the terminal and for the page's first screen."""

from __future__ import annotations

from fleetstep.reporting.arms import ArmStanding, SeedDifference
from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.records import HELD_OUT_LOSS
from fleetstep.reporting.statistics import Verdict
from fleetstep.reporting.wording import (
    ONE_PAIR,
    ONE_SEED,
    cell_words,
    metric_text,
    pair_count_text,
    seed_difference_text,
    speedup_text,
    verdict_text,
)


def headline(comparison: Comparison) -> str:
    """The answer in one line, with the confidence it rests on."""
    if comparison.arms.over_seeds and (verdicts := seed_verdicts(comparison)):
        return _seed_headline(comparison, verdicts)
    return _checkpoint_headline(comparison)


def judged_by(standing: ArmStanding) -> SeedDifference | None:
    """The difference an arm is judged by over seeds: of scores, else of held-out losses."""
    return standing.score_difference or standing.loss_difference


def seed_verdicts(comparison: Comparison) -> dict[str, Verdict]:
    """Arm -> what its pairs of seeds allow to say, for each that has an interval over seeds."""
    return {
        standing.arm.name: verdict
        for standing in comparison.arms.standings[1:]
        if (found := judged_by(standing)) is not None and (verdict := found.verdict) is not None
    }


def _seed_headline(comparison: Comparison, verdicts: dict[str, Verdict]) -> str:
    first, *others = comparison.arms.standings
    baseline = first.arm.name
    if len(others) == 1:
        ((arm, verdict),) = verdicts.items()
        found = judged_by(others[0])
        count = f"over {0 if found is None else found.mean.n} seeds at 95 %"
        if verdict == "no difference":
            return f"No difference between {arm} and {baseline} {count}"
        return f"{arm} is {verdict} than {baseline} {count}"
    better = [arm for arm, verdict in verdicts.items() if verdict == "better"]
    of = f"{len(verdicts)} settings with several seeds"
    if len(better) == 1:
        return f"Of {of}, {better[0]} alone is better than {baseline} at 95 %"
    count = f"{len(better)}" if better else "None"
    return f"{count} of {of} {'are' if len(better) > 1 else 'is'} better than {baseline} at 95 %"


def seed_sentences(comparison: Comparison) -> tuple[str, ...]:
    """For each arm how much better it ends and how much sooner, over seeds; none where no arm has
    several.
    """
    if not comparison.arms.over_seeds:
        return ()
    baseline = comparison.arms.standings[0].arm.name
    return tuple(
        f"{standing.arm.name} against {baseline}: {_seed_words(comparison, standing)}."
        for standing in comparison.arms.standings[1:]
    )


def _seed_words(comparison: Comparison, standing: ArmStanding) -> str:
    cell, sweep = comparison.arms.cell, comparison.sweep
    words = []
    if standing.score_difference is not None and cell is not None and sweep is not None:
        metric = metric_text(sweep.protocol)
        words.append(f"{metric} {_seed_text(standing.score_difference)} at {cell_words(cell)}")
    if standing.loss_difference is not None:
        words.append(f"held-out loss {_seed_text(standing.loss_difference)}")
    if (level := standing.last_known(HELD_OUT_LOSS)) is not None:
        words.append(
            f"speed-up in images to the quality at {level.share:.0%} of "
            f"{comparison.arms.standings[0].arm.name}'s training {speedup_text(level.images)}"
        )
    return "; ".join(words) or "nothing that both were measured by"


def _seed_text(difference: SeedDifference) -> str:
    return f"{seed_difference_text(difference)} ({pair_count_text(difference)})"


def _checkpoint_headline(comparison: Comparison) -> str:
    """The answer where each setting was trained once."""
    baseline = comparison.baseline
    own = {run.name for run in comparison.arms.standings[0].arm.runs}
    several = len(comparison.arms.standings) > 1
    challengers = [s for s in comparison.standings[1:] if not several or s.run.name not in own]
    judged = [s for s in challengers if s.headline is not None]
    if not challengers:
        return f"{baseline}: one run, nothing to compare it with"
    if not judged:
        return "No verdict on sample quality"
    if len(challengers) == 1 and (difference := judged[0].headline) is not None:
        run = judged[0].run.name
        if difference.verdict == "no difference":
            return f"No difference between {run} and {baseline} at 95 %"
        return f"{run} is {difference.verdict} than {baseline} at 95 %"
    better = [s for s in judged if s.headline is not None and s.headline.verdict == "better"]
    if len(better) == 1:
        return (
            f"Of {len(judged)} runs, {better[0].run.name} alone is better than {baseline} at 95 %"
        )
    count = "None" if not better else f"{len(better)}"
    verb = "is" if len(better) < 2 else "are"
    return f"{count} of {len(judged)} runs {verb} better than {baseline} at 95 %"


def sentences(comparison: Comparison) -> tuple[str, ...]:
    """One sentence a challenger: its difference in the headline cell."""
    sweep = comparison.sweep
    if sweep is None:
        return ()
    metric = metric_text(sweep.protocol)
    return tuple(
        f"{standing.run.name}: not compared with {sweep.partners[standing.run.name]}."
        if standing.headline is None
        else verdict_text(
            standing.run.name, sweep.partners[standing.run.name], standing.headline, metric
        )
        for standing in comparison.standings[1:]
        if standing.run.name in sweep.partners
    )


def grounds(comparison: Comparison) -> str:
    """What the verdicts rest on and how far they reach; "" where there are none."""
    if comparison.arms.over_seeds and seed_verdicts(comparison):
        return _seed_grounds(comparison)
    judged = [s.headline for s in comparison.standings if s.headline is not None]
    if not judged:
        return ""
    cells = {difference.cell for difference in judged}
    cell = judged[0].cell
    where = f"{cell_words(cell)}, " if len(cells) == 1 else ""
    return (
        f"Judged in one cell, {where}chosen because {comparison.baseline} scores best there: "
        f"{judged[0].n:,} samples of each run from the same latents, compared in "
        f"{judged[0].blocks} blocks. "
        f"{ONE_PAIR if comparison.arms.over_seeds else ONE_SEED}"
    )


def _seed_grounds(comparison: Comparison) -> str:
    judged = [s for s in map(judged_by, comparison.arms.standings[1:]) if s is not None]
    pairs = "runs of one training seed are held against each other"
    if not all(one.same_seed for one in judged):
        pairs += " where both settings have it, the others in order"
    single = any(one.mean.n == 1 for one in judged)
    return (
        f"Judged over training seeds: {pairs}, and the 95 % Student interval of their differences "
        "tells what another training run would give. Differences within one pair of checkpoints, "
        "further down, are another question: their intervals cover the sampling of images only."
        + (" A setting with one seed has no interval over seeds." if single else "")
    )
