"""Non-leaky augmentation: images are changed before noising, and the network is told how; and the
labels that it is not told.

What it was told is zero at sampling, so it draws images that were not changed (Karras et al. 2020;
Karras et al. 2022, appendix F.2). Unlike a mirror image that is taken for an ordinary one, this
also works where changed images are not valid samples.

The draws belong to a stream position, so they do not depend on workers, micro-batches or the
device.

Legend: B batch, C channels, H W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fleetstep import rng
from fleetstep.data.warp import warped
from fleetstep.errors import ConfigError

Float64 = npt.NDArray[np.float64]

CONDITIONS: Final = (
    "xflip", "yflip", "scale", "cos_angle_minus_1", "sin_angle",
    "stretch_cos_axis", "stretch_sin_axis", "move_x", "move_y",
)  # fmt: skip
"""What the network is told of an image, in this order; all are zero for one left alone."""

_LOG2_SCALE = 0.2  # standard deviation, for scale and stretch
_MOVE = 0.125  # standard deviation, as a share of the image's side

# Uniform numbers of a position: five gates, two coins and the axis's, two angles, four normals.
_NUMBERS = 14


@dataclass(frozen=True)
class Draws:
    """How each image of a batch is changed, each an array [B]; zero where a change is not made.

    The changes are made in this order. Angles are counter-clockwise as seen.

    Args:
        xflip, yflip: 1 mirrors left and right, top and bottom.
        scale: z; the image grows 2^(0.2 z) times.
        angle: radians by which it turns.
        stretch, axis: z and radians; it grows 2^(0.2 z) times along the axis and shrinks as much
            across it.
        move_x, move_y: z; it moves right and down by z / 8 of its side.
    """

    xflip: Float64
    yflip: Float64
    scale: Float64
    angle: Float64
    stretch: Float64
    axis: Float64
    move_x: Float64
    move_y: Float64

    def __len__(self) -> int:
        return len(self.xflip)

    def __getitem__(self, rows: slice | npt.NDArray[np.bool_]) -> Draws:
        return Draws(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def warps(self) -> npt.NDArray[np.bool_]:
        """Which images need resampling, [B]; a mirror image does not."""
        warping = (self.scale, self.angle, self.stretch, self.move_x, self.move_y)
        warps_B: npt.NDArray[np.bool_] = np.any(np.stack(warping), axis=0)
        return warps_B

    @property
    def conditions(self) -> Float64:
        """The values named by `CONDITIONS`, [B, 9] (Karras et al. 2022, table 6)."""
        told = (
            self.xflip,
            self.yflip,
            self.scale,
            np.cos(self.angle) - 1,
            np.sin(self.angle),
            self.stretch * np.cos(self.axis),
            self.stretch * np.sin(self.axis),
            self.move_x,
            self.move_y,
        )
        return np.stack(told, axis=1)

    def inverse(self, height: int, width: int) -> Float64:
        """Where each point came from, flips aside: [A b] of shape [B, 2, 3].

        The point p (x right, y down, in pixels from the centre) shows what stood at A p + b.
        """
        grow, stretch = np.exp2(_LOG2_SCALE * self.scale), np.exp2(_LOG2_SCALE * self.stretch)
        along, across = 1 / (grow * stretch), stretch / grow
        # turn(-angle) turn(axis) diag(along, across) turn(-axis)
        a_B22 = (
            _turn(self.axis - self.angle)
            * np.stack((along, across), -1)[:, None, :]
            @ _turn(-self.axis)
        )
        moved_B2 = _MOVE * np.stack((self.move_x * width, self.move_y * height), -1)
        b_B21 = -a_B22 @ moved_B2[:, :, None]
        return np.concatenate((a_B22, b_B21), axis=2)


def _turn(angle_B: Float64) -> Float64:
    """Counter-clockwise as seen, where y points down: [B, 2, 2]."""
    cos_B, sin_B = np.cos(angle_B), np.sin(angle_B)
    return np.stack((cos_B, sin_B, -sin_B, cos_B), -1).reshape(-1, 2, 2)


@dataclass(frozen=True)
class Augmentation:
    """The pipeline of Karras et al. 2022, appendix F.2 (without colour, as published).

    Args:
        probability: of making each change, independently of the others; mirroring left and right
            is always at even odds, unless this is 0, which changes nothing. 0.12 for CIFAR-10,
            0.15 for FFHQ and AFHQv2.

    Raises:
        ConfigError: if the probability is not in [0, 1].
    """

    probability: float

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(
                [f"data.augment: must be in [0, 1], a probability, got {self.probability:g}"]
            )

    def draws(self, seed: int, first: int, count: int) -> Draws:
        """How the images of stream positions first ... first+count-1 are changed."""
        u_NB = rng.uniform(seed, "augment", first, count, (_NUMBERS,)).T
        yflip, scale, turn, stretch, move = u_NB[:5] < self.probability
        coin_x, coin_y, coin_axis = u_NB[5:8] < 0.5
        angle, axis = np.pi * (2 * u_NB[8:10] - 1)
        z = rng.normal_icdf(u_NB[10:])
        return Draws(
            xflip=coin_x * float(self.probability > 0),
            yflip=(coin_y & yflip).astype(np.float64),
            scale=np.where(scale, z[0], 0.0),
            angle=np.where(turn, angle, 0.0),
            stretch=np.where(stretch, z[1], 0.0),
            axis=np.where(stretch & coin_axis, axis, 0.0),
            move_x=np.where(move, z[2], 0.0),
            move_y=np.where(move, z[3], 0.0),
        )

    @staticmethod
    def apply(images_BCHW: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The changed images and what the network is told: float32 [B, C, H, W] and [B, 9].

        An image that is only mirrored, or left alone, keeps its values to the bit; the others
        can leave [-1, 1] a little, as filtered images do.

        Args:
            images_BCHW: float32 pixels in [-1, 1], on any device.
            draws: of the same images.

        Raises:
            ValueError: if there are not as many draws as images.
        """
        if len(draws) != len(images_BCHW):
            raise ValueError(f"{len(images_BCHW)} images cannot take {len(draws)} draws")
        device, (height, width) = images_BCHW.device, images_BCHW.shape[2:]
        xflip_B111, yflip_B111 = (
            torch.from_numpy(flip != 0).to(device).view(-1, 1, 1, 1)
            for flip in (draws.xflip, draws.yflip)
        )
        out_BCHW = torch.where(xflip_B111, images_BCHW.flip(3), images_BCHW)
        out_BCHW = torch.where(yflip_B111, out_BCHW.flip(2), out_BCHW)
        (chosen,) = np.nonzero(draws.warps)
        if len(chosen):
            rows = torch.from_numpy(chosen).to(device)
            inverse_B23 = torch.from_numpy(draws.inverse(height, width)[chosen])
            out_BCHW[rows] = warped(out_BCHW[rows], inverse_B23)
        return out_BCHW, torch.from_numpy(draws.conditions).float().to(device)


def dropped_labels(labels_B: Tensor, seed: int, first: int, probability: float) -> Tensor:
    """The labels of stream positions first, first+1, ...: int64 [B], -1 where one is dropped.

    A network that is sometimes not told the class learns the images of all classes too, which
    classifier-free guidance needs (Ho and Salimans 2022, Algorithm 1).
    """
    dropped_B = rng.uniform(seed, "label-dropout", first, len(labels_B)) < probability
    return labels_B.masked_fill(torch.from_numpy(dropped_B).to(labels_B.device), -1)
