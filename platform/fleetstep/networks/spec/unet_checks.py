"""Whether a U-Net fits square images: its levels halve them evenly, its widths split evenly."""

from __future__ import annotations

from collections.abc import Iterator

from fleetstep.networks.spec.blocks import Plan, norm_groups
from fleetstep.networks.spec.song_unet import SongUnetSpec
from fleetstep.networks.spec.unet import UnetSpec


def check_levels(spec: SongUnetSpec | UnetSpec, resolution: int) -> Iterator[str]:
    """Why images of side `resolution` cannot be halved as often as the levels ask."""
    levels = len(spec.multipliers)
    factor = 2 ** (levels - 1)
    if resolution % factor:
        nearest = max(round(resolution / factor), 1) * factor
        fitting = (resolution & -resolution).bit_length()
        yield (
            f"multipliers {list(spec.multipliers)} halve the image {levels - 1} times, "
            f"and {resolution} is not divisible by {factor}: use at most {fitting} multipliers, "
            f"or images of side {nearest}"
        )
        return
    reached = [resolution >> level for level in range(levels)]
    missed = [r for r in spec.attention_resolutions if r not in reached]
    if missed:
        yield (
            f"attention_resolutions {missed} are never reached: images of side {resolution} "
            f"with {levels} levels run at {reached}; "
            "use some of these, or [] for attention in the bottleneck only"
        )


def check_widths(spec: SongUnetSpec | UnetSpec, plan: Plan) -> Iterator[str]:
    """Why the widths of the planned blocks cannot be embedded or normalised."""
    if spec.channels % 2:
        yield (
            "channels must be even (sines and cosines embed the noise level), "
            f"got {spec.channels}: use {spec.channels + 1}"
        )
    blocks = (*plan.encoder, *plan.bottleneck, *plan.decoder)
    widths = sorted({width for block in blocks for width in (block.c_in, block.c_out)})
    uneven = [width for width in widths if width % norm_groups(width)]
    if uneven:
        nearest = max(round(spec.channels / 32), 1) * 32
        yield (
            f"channels={spec.channels} with multipliers {list(spec.multipliers)} gives blocks of "
            f"{uneven} channels, which group normalisation cannot split into "
            f"{[norm_groups(w) for w in uneven]} equal groups: use channels={nearest}"
        )
