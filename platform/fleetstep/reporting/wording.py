"""Numbers and verdicts in words: what people read in a terminal, on a plot and on the page.

A sentence here never says more than its interval: it names the samples and the blocks, and that
one training seed was trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from fleetstep.reporting.arms import SeedDifference
from fleetstep.reporting.records import HELD_OUT_LOSS, Cell, Protocol
from fleetstep.reporting.seeds import Arm
from fleetstep.reporting.speedup import Ratio, Speedup
from fleetstep.reporting.statistics import Difference, Mean

ONE_SEED = (
    "One training seed each: the intervals cover the sampling of images only, not what another "
    "training run would give."
)

ONE_PAIR = (
    "One pair of training runs each: the intervals cover the sampling of images only, not what "
    "another training run would give."
)

NOT_FID = "Not FID: not comparable with any published FID, nor across extractors or references."

_PUBLISHED_N = 50_000

_KINDS = {
    "fd": "FD",
    "fd_z": "standardised FD",
    "fd_inf": "FD∞",
    "kid": "KID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "clip_score": "CLIP score",
}
_CARDS = {
    "kid": "squared kernel distance, unbiased, over all pairs; lower is better.",
    "is": "Inception Score in these features' own classes; higher is better.",
    "precision": "share of generated images within the real ones' manifold; higher is better.",
    "recall": "share of real images within the generated ones' manifold; higher is better.",
    "density": "how many real neighbourhoods hold a generated image; higher is better.",
    "coverage": "share of real neighbourhoods that hold a generated image; higher is better.",
    "clip_score": "cosine of each image and its class's text, times 100; higher is better.",
}

_UNBIASED = "bias removed by the jackknife; published FIDs are the raw value, shown as raw"


def number(value: float, resolution: float | None = None) -> str:
    """A number to the digits that matter: two of `resolution` (an interval's half width), else
    three significant.
    """
    if not math.isfinite(value):
        return "not finite"
    if resolution is not None and resolution > 0 and math.isfinite(resolution):
        decimals = max(0, 1 - math.floor(math.log10(resolution)))
    elif value == 0:
        return "0"
    else:
        decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    if decimals > 7:
        return f"{value:.2e}".replace("-", "−")
    return f"{value:,.{decimals}f}".replace("-", "−")


def with_interval(value: float, low: float, high: float) -> str:
    """Value plus or minus half the width of its 95 % interval: "0.568 ± 0.15"."""
    half = (high - low) / 2
    return f"{number(value, half)} ± {number(half, half)}" if half > 0 else number(value)


def images_text(images: float) -> str:
    """Images seen in the field's units: "640 images", "12.8 kimg", "1.25 Mimg"."""
    if images < 1_000:
        return f"{images:.0f} images"
    return f"{_three(images / 1e6)} Mimg" if images >= 1e6 else f"{_three(images / 1e3)} kimg"


def duration_text(seconds: float) -> str:
    """Seconds as "42 s", "3 min 20 s", "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:,.0f}"


def ratio_text(ratio: float | None) -> str:
    """A speed-up: "1.34×"."""
    return "not defined" if ratio is None else f"{ratio:.2f}×"


def speedup_text(ratio: Ratio) -> str:
    """A mean speed-up as far as it is known: "1.52× [1.41, 1.64]", "> 1.80×", "not known"."""
    if ratio.value is not None:
        if ratio.low is None or ratio.high is None:
            return ratio_text(ratio.value)
        return f"{ratio_text(ratio.value)} [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.at_least > 0 and math.isfinite(ratio.at_most):
        return f"between {ratio_text(ratio.at_least)} and {ratio_text(ratio.at_most)}"
    if ratio.at_least > 0:
        return f"> {ratio_text(ratio.at_least)}"
    return f"< {ratio_text(ratio.at_most)}" if math.isfinite(ratio.at_most) else "not known"


def seeds_text(arm: Arm) -> str:
    """The training seeds of an arm: "3 seeds: 0, 1, 2"."""
    named = ", ".join(seed or "unknown" for seed in arm.seeds)
    return f"seed {named}" if len(arm.runs) == 1 else f"{len(arm.runs)} seeds: {named}"


def pairs_text(level: Speedup) -> str:
    """How many pairs a speed-up is the mean of, and which runs never got there."""
    pairs = level.images.pairs
    text = "1 pair of runs" if pairs == 1 else f"{pairs} pairs of runs"
    own, other = (pairs - count for count in level.reached)
    missed = [f"{own} never reached it"] * (own > 0)
    missed += [f"{other} of the baseline’s never did"] * (other > 0)
    return "; ".join([text, *missed])


def curve_text(key: str) -> str:
    """A curve's name for people: "held-out loss", "fd1k.fs-rn20.multi112, dpmpp-order-2@16"."""
    if key == HELD_OUT_LOSS:
        return "held-out loss"
    metric, _, drawn = key.removeprefix("eval/").partition("/")
    return ", ".join(part for part in (metric.partition("@")[0], drawn) if part)


def mean_text(mean: Mean) -> str:
    """A mean over seeds with its interval: "0.2131 ± 0.0012"; of one seed the value."""
    if mean.low is None or mean.high is None:
        return number(mean.value)
    return with_interval(mean.value, mean.low, mean.high)


def seed_difference_text(difference: SeedDifference) -> str:
    """A signed difference over seeds: "−0.31 [−0.36, −0.26]"; without brackets of one pair."""
    mean = difference.mean
    sign = "+" if mean.value > 0 else ""
    if mean.low is None or mean.high is None:
        return f"{sign}{number(mean.value)}"
    half = (mean.high - mean.low) / 2
    value, low, high = (number(v, half) for v in (mean.value, mean.low, mean.high))
    return f"{sign}{value} [{low}, {high}]"


def pair_count_text(difference: SeedDifference) -> str:
    """What a difference over seeds is the mean of: "3 pairs", "1 pair, no interval over seeds"."""
    n = difference.mean.n
    return "1 pair, no interval over seeds" if n == 1 else f"{n} pairs"


def metric_text(protocol: Protocol) -> str:
    """The short name of a metric on axes and in tables: "FD (fs-rn20)"."""
    name, _, rest = protocol.metric.partition("@")[0].partition(".")
    # Of FID all that tells it from the published one is named.
    if name.startswith("fid"):
        return f"{name.replace('fid', 'FID')} ({rest.replace('.', ', ')})"
    extractor = rest.partition(".")[0]
    return f"{kind_text(protocol)} ({extractor})"


def kind_text(protocol: Protocol) -> str:
    """The name of a metric where its features are named beside it."""
    if protocol.metric.startswith("fid"):
        return {"fd": "FID", "fd_z": "standardised FID", "fd_inf": "FID∞"}[protocol.kind]
    return _KINDS.get(protocol.kind, protocol.kind)


def direction_text(protocol: Protocol) -> str:
    """Which way to read a metric."""
    return "higher is better" if protocol.higher_is_better else "lower is better"


def metric_card(protocol: Protocol, extractor: str) -> str:
    """What the metric is, in the words that keep it from being mistaken for a published one."""
    if protocol.kind not in ("fd", "fd_z", "fd_inf"):
        name = kind_text(protocol)
        return f"{name[0].upper()}{name[1:]}: {_CARDS.get(protocol.kind, '')}"
    if protocol.kind == "fd_z":
        return "The standardised distance divides each feature by its reference deviation."
    if protocol.kind == "fd_inf":
        return f"{kind_text(protocol)} is extrapolated to infinitely many images."
    if protocol.metric.startswith("fid"):
        if protocol.n >= _PUBLISHED_N:
            return f"Fréchet Inception distance, {_UNBIASED}."
        return (
            f"Fréchet Inception distance of only {protocol.n:,} images, {_UNBIASED}; neither is "
            "comparable with figures published for 50,000."
        )
    if "fs-rn20" in protocol.metric:
        return f"Fréchet distance in ResNet-20/CIFAR-10 features. {NOT_FID}"
    return f"Fréchet distance in {extractor or 'unnamed'} features. {NOT_FID}"


def cell_words(cell: Cell) -> str:
    """A cell in a sentence: "heun with 38 network calls and cfg 1.5"."""
    guided = f" and {cell.guidance}" if cell.guidance else ""
    return f"{cell.solver} with {cell.calls} network calls{guided}"


def verdict_text(run: str, baseline: str, difference: Difference, metric: str) -> str:
    """One sentence on one cell, which never claims more than the interval."""
    where = (
        f"at {cell_words(difference.cell)} "
        f"(n = {difference.n:,}, {difference.blocks} blocks, same latents)"
    )
    interval = interval_text(difference)
    if difference.verdict == "no difference":
        return f"{run} and {baseline}: no difference at 95 % {where}: {metric} {interval}."
    return f"{run} is {difference.verdict} than {baseline} at 95 % {where}: {metric} {interval}."


def interval_text(difference: Difference) -> str:
    """The signed difference with its interval: "−0.31 [−0.36, −0.26]"."""
    half = (difference.high - difference.low) / 2
    value, low, high = (
        number(v, half) for v in (difference.value, difference.low, difference.high)
    )
    sign = "+" if difference.value > 0 else ""
    return f"{sign}{value} [{low}, {high}]"


def tally_text(differences: Sequence[Difference]) -> str:
    """How often the run was better or worse: "better in 18, worse in 1 of 20 cells"."""
    better = sum(difference.verdict == "better" for difference in differences)
    worse = sum(difference.verdict == "worse" for difference in differences)
    return f"better in {better}, worse in {worse} of {len(differences)} cells"


def chance_text(cells: int) -> str:
    """How many of so many true ties an interval of 95 % would still call different."""
    return (
        f"Each cell is judged at 95 %: of {cells} true ties chance alone would mark "
        f"{0.05 * cells:.2g}."
    )
