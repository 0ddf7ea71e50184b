"""The answer of a comparison in sentences, for the terminal and for the page's first screen."""

from __future__ import annotations

from fleetstep.reporting.comparison import Comparison
from fleetstep.reporting.wording import ONE_SEED, cell_words, metric_text, verdict_text


def headline(comparison: Comparison) -> str:
    """The answer in one line, with the confidence it rests on."""
    baseline = comparison.baseline
    challengers = comparison.standings[1:]
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
        f"{standing.run.name}: not compared with {comparison.baseline}."
        if standing.headline is None
        else verdict_text(standing.run.name, comparison.baseline, standing.headline, metric)
        for standing in comparison.standings[1:]
    )


def grounds(comparison: Comparison) -> str:
    """What the verdicts rest on and how far they reach; "" where there are none."""
    judged = [s.headline for s in comparison.standings if s.headline is not None]
    if not judged:
        return ""
    cells = {difference.cell for difference in judged}
    cell = judged[0].cell
    where = f"{cell_words(cell)}, " if len(cells) == 1 else ""
    return (
        f"Judged in one cell, {where}chosen because {comparison.baseline} scores best there: "
        f"{judged[0].n:,} samples of each run from the same latents, compared in "
        f"{judged[0].blocks} blocks. {ONE_SEED}"
    )
