"""Laws of the augmentation: its filter, its geometry against closed forms, its draws' statistics.

Most images here are sums of cosines that reflection continues smoothly, so their warp is known in
closed form at every point, however far outside the image it came from.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import ndimage, stats

from fleetstep.data.augmentation import Augmentation, Draws
from fleetstep.data.warp import SYM6, warped

Float64 = npt.NDArray[np.float64]

# Bilinear reading of a cosine of frequency w on half pixels errs by w^2 / 32 at most; the images
# below have w up to 0.2 along each axis and amplitude 1.
SMOOTH_TOLERANCE = 4e-3


def draws_of(**changes: float) -> Draws:
    """Draws of one image with only these changes."""
    names = ("xflip", "yflip", "scale", "angle", "stretch", "axis", "move_x", "move_y")
    return Draws(**{name: np.array([changes.get(name, 0.0)]) for name in names})


def smooth(x: Float64, y: Float64, size: int = 32) -> Float64:
    """Reflected images' own waves: cos(pi k i / (size - 1)) repeats and mirrors at the edges."""
    waves = ((0.5, 1, 0), (0.3, 2, 1), (-0.2, 1, 2))
    w = np.pi / (size - 1)
    return sum(a * np.cos(w * kx * x) * np.cos(w * ky * y) for a, kx, ky in waves)


def smooth_image(size: int = 32) -> torch.Tensor:
    places = np.arange(size, dtype=np.float64)
    return torch.from_numpy(smooth(places[None, :], places[:, None], size)).float()[None, None]


def truth(forward_33: Float64, size: int = 32) -> Float64:
    """The smooth image after the forward map `forward_33`, about its centre, y down."""
    centre, inverse = (size - 1) / 2, np.linalg.inv(forward_33)
    y, x = np.mgrid[:size, :size] - centre
    came_x, came_y, _ = np.tensordot(inverse, np.stack((x, y, np.ones_like(x))), axes=1)
    return smooth(came_x + centre, came_y + centre, size)


def apply_one(image: torch.Tensor, **changes: float) -> Float64:
    out, _ = Augmentation.apply(image, draws_of(**changes))
    return out[0, 0].double().numpy()


# --- the filter ----------------------------------------------------------------------------------


def test_the_low_pass_is_orthonormal_to_its_even_shifts():
    assert sum(SYM6) == pytest.approx(np.sqrt(2), abs=1e-15)
    for shift in range(6):
        product = np.dot(SYM6[2 * shift :], SYM6[: 12 - 2 * shift])
        assert product == pytest.approx(1.0 if shift == 0 else 0.0, abs=1e-15)


def test_the_high_pass_has_six_vanishing_moments_and_no_more():
    # About the middle, which keeps the powers small; moments below the first that is not zero do
    # not depend on the origin.
    k = np.arange(12)
    high = (-1.0) ** k * np.array(SYM6)
    moments = [np.sum((k - 5.5) ** power * high) for power in range(7)]
    assert np.abs(moments[:6]) == pytest.approx(0, abs=1e-11)
    assert abs(moments[6]) > 1


def test_the_low_pass_is_the_least_asymmetric_of_its_family():
    # Every factor of this half-band polynomial has the same magnitude; the zeros that were chosen
    # differ by inversion, and the phase of this choice is the nearest to linear.
    def bend(taps: Float64) -> float:
        w = np.linspace(0.01, 2.0, 200)
        phase = np.unwrap(np.angle(np.exp(-1j * np.outer(w, np.arange(12))) @ taps))
        return float(np.abs(phase - w * np.dot(w, phase) / np.dot(w, w)).max())

    zeros = [z for z in np.roots(SYM6) if abs(z + 1) > 0.1]
    pairs = [z for z in zeros if z.imag > 1e-9]
    real = [z for z in zeros if abs(z.imag) <= 1e-9]
    assert (len(pairs), len(real)) == (2, 1)
    bends = []
    for inverted in np.ndindex(2, 2, 2):
        chosen = [1 / z if flip else z for flip, z in zip(inverted, pairs + real, strict=True)]
        chosen += [z.conjugate() for z in chosen[:2]]
        taps = np.real(np.poly(np.concatenate((chosen, -np.ones(6)))))
        bends.append(bend(taps * np.sqrt(2) / taps.sum()))
    assert bend(np.array(SYM6)) == pytest.approx(min(bends), rel=1e-3)
    assert sorted(bends)[2] > 1.5 * min(bends)


# --- the resampling ------------------------------------------------------------------------------


def explicit(image_HW: Float64, inverse_23: Float64) -> Float64:
    """The warp written out on a widely padded image: stuff, convolve, read, convolve, thin out."""
    pad, taps = 90, np.array(SYM6)
    padded = np.pad(image_HW, pad, mode="reflect")
    stuffed = np.zeros([2 * side for side in padded.shape])
    stuffed[::2, ::2] = padded
    convolve = functools.partial(np.apply_along_axis, np.convolve)
    fine = convolve(0, convolve(1, stuffed, np.sqrt(2) * taps), np.sqrt(2) * taps)
    # Tap 5.098 is the centre of mass: the sample at pixel i is number 2 (pad + i) + 5.098.
    mass = np.dot(taps, np.arange(12)) / taps.sum()
    height, width = image_HW.shape

    def number(place: Float64, size: int) -> Float64:
        return 2 * (place + (size - 1) / 2 + pad) + mass

    def place(size: int) -> Float64:
        return (np.arange(-5, 2 * size + 5) + 5 - mass) / 2 - (size - 1) / 2

    x, y = np.meshgrid(place(width), place(height))
    came = np.tensordot(inverse_23, np.stack((x, y, np.ones_like(x))), axes=1)
    rows, columns = number(came[1], height), number(came[0], width)
    read = ndimage.map_coordinates(fine, (rows, columns), order=1)
    for axis in (0, 1):
        read = np.apply_along_axis(np.correlate, axis, read, taps / np.sqrt(2), "valid")
    return read[::2, ::2]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 12)])
def test_noise_is_resampled_as_defined_to_rounding(height: int, width: int):
    generator = np.random.default_rng(0)
    images = generator.uniform(-1, 1, (6, 1, height, width))
    inverses = generator.normal(0, 0.7, (6, 2, 3)) + np.eye(2, 3)
    inverses[:, :, 2] *= 20  # several images away
    out = warped(torch.from_numpy(images).float(), torch.from_numpy(inverses))
    for image, inverse, got in zip(images, inverses, out.double().numpy(), strict=True):
        np.testing.assert_allclose(got[0], explicit(image[0], inverse), rtol=0, atol=1e-4)


def test_the_identity_returns_noise():
    # The filter's even shifts are orthonormal: what up-sampling spreads, down-sampling collects.
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    still = torch.eye(2, 3, dtype=torch.float64).expand(2, 2, 3)
    torch.testing.assert_close(warped(image, still), image, rtol=0, atol=2e-5)


@pytest.mark.parametrize("whole", [3, -8, 40])
def test_a_move_by_whole_pixels_takes_pixels_over_unchanged(whole: int):
    image = torch.rand(1, 2, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    moved, told = Augmentation.apply(image, draws_of(move_x=whole / 2))  # z / 8 of 16 pixels
    # numpy continues by reflection, too, and also far beyond the image.
    wide = np.pad(image.numpy(), ((0, 0), (0, 0), (0, 0), (48, 48)), mode="reflect")
    expected = wide[..., 48 - whole : 64 - whole]
    np.testing.assert_allclose(moved.numpy(), expected, rtol=0, atol=2e-5)
    assert told.tolist() == [[0, 0, 0, 0, 0, 0, 0, whole / 2, 0]]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_counter_clockwise(quarters: int):
    image = smooth_image()
    expected = torch.rot90(image, quarters, (2, 3))[0, 0].double().numpy()
    turned = apply_one(image, angle=quarters * np.pi / 2)
    np.testing.assert_allclose(turned, expected, rtol=0, atol=SMOOTH_TOLERANCE)
    assert np.abs(turned - image[0, 0].numpy()).max() > 0.3


def test_signs():
    """One change at a time, on a dot: where it goes, and whether it grows."""
    y, x = np.mgrid[:33, :33] - 16.0

    def seen(cx: float, cy: float, **changes: float) -> tuple[float, float, float, float]:
        """Centre of the dot relative to the image's, to the right and down, and its spreads."""
        dot = np.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * 2.0**2))
        out = apply_one(torch.from_numpy(dot).float()[None, None], **changes)
        mass = out.sum()
        mx, my = (out * x).sum() / mass, (out * y).sum() / mass
        spread = (np.sqrt((out * (axis - m) ** 2).sum() / mass) for axis, m in ((x, mx), (y, my)))
        return (mx, my, *spread)

    close = functools.partial(pytest.approx, abs=0.05)
    assert seen(5, 0) == close((5, 0, 2, 2))
    assert seen(5, 1, xflip=1) == close((-5, 1, 2, 2))
    assert seen(5, 1, yflip=1) == close((5, -1, 2, 2))
    assert seen(4, 0, scale=2.5) == close((4 * 2**0.5, 0, 2 * 2**0.5, 2 * 2**0.5))
    assert seen(4, 0, angle=np.pi / 2) == close((0, -4, 2, 2))  # up
    assert seen(4, 2, stretch=2.5) == close((4 * 2**0.5, 2**0.5, 2 * 2**0.5, 2**0.5))
    assert seen(2, 4, stretch=2.5, axis=np.pi / 2) == close((2**0.5, 4 * 2**0.5, 2**0.5, 2**1.5))
    assert seen(0, 0, move_x=1) == close((33 / 8, 0, 2, 2))
    assert seen(0, 0, move_y=-1) == close((0, -33 / 8, 2, 2))
    # An axis that points up and to the right: a dot there moves outwards along it.
    assert seen(3, -3, stretch=2.5, axis=np.pi / 4)[:2] == close((3 * 2**0.5, -3 * 2**0.5))


def table_6(
    scale: float, angle: float, stretch: float, axis: float, move_x: float, move_y: float
) -> Float64:
    """Forward map of the table of Karras et al. 2022, one 3 x 3 matrix for each row."""

    def turned(t: float) -> Float64:  # counter-clockwise where y points down
        return np.array([[np.cos(t), np.sin(t), 0], [-np.sin(t), np.cos(t), 0], [0, 0, 1]])

    grow, long = 2 ** (0.2 * scale), 2 ** (0.2 * stretch)
    shift = np.array([[1, 0, 4 * move_x], [0, 1, 4 * move_y], [0, 0, 1.0]])  # 32 / 8
    stretched = turned(axis) @ np.diag([long, 1 / long, 1]) @ turned(-axis)
    return shift @ stretched @ turned(angle) @ np.diag([grow, grow, 1])


CASES = [
    (1.3, 0.0, 0.0, 0.0, 0.0, 0.0),
    (0.0, 2.2, 0.0, 0.0, 0.0, 0.0),
    (0.0, 0.0, -1.7, 0.6, 0.0, 0.0),
    (0.0, 0.0, 0.0, 0.0, 0.37, -1.21),
    (0.8, -2.9, 1.4, 2.1, -0.9, 0.55),
    (1.1, 0.7, -2.0, -0.4, 6.3, -9.1),  # far outside
]


@pytest.mark.parametrize("case", CASES)
def test_the_changes_are_made_in_the_published_order(case: tuple[float, ...]):
    names = ("scale", "angle", "stretch", "axis", "move_x", "move_y")
    out = apply_one(smooth_image(), **dict(zip(names, case, strict=True)))
    forward = table_6(*case)
    np.testing.assert_allclose(out, truth(forward), rtol=0, atol=SMOOTH_TOLERANCE)
    # Quintic splines, by another hand; (row, column) order, and "mirror" is the same reflection.
    swap = np.array([[0, 1, 0], [1, 0, 0], [0, 0, 1.0]])
    to_centre = np.array([[1, 0, -15.5], [0, 1, -15.5], [0, 0, 1]])
    matrix = swap @ np.linalg.inv(to_centre) @ np.linalg.inv(forward) @ to_centre @ swap
    image = smooth_image()[0, 0].double().numpy()
    spline = ndimage.affine_transform(image, matrix, order=5, mode="mirror")
    np.testing.assert_allclose(out, spline, rtol=0, atol=SMOOTH_TOLERANCE)


def test_mirroring_comes_before_the_warp():
    image = smooth_image()
    after = apply_one(image, xflip=1, yflip=1, angle=0.5, move_x=1)
    before = apply_one(image.flip(2, 3), angle=0.5, move_x=1)
    assert np.array_equal(after, before)
    assert np.abs(after - apply_one(image, angle=0.5, move_x=1)).max() > 0.3


# --- the draws -----------------------------------------------------------------------------------

COUNT = 40_000
PROBABILITY = 0.12


@functools.cache
def many() -> Draws:
    return Augmentation(PROBABILITY).draws(0, 0, COUNT)


def gates() -> dict[str, npt.NDArray[np.bool_]]:
    draws = many()
    names = ("scale", "angle", "stretch", "move_x")
    return {"yflip": draws.yflip == 1, **{name: getattr(draws, name) != 0 for name in names}}


def test_each_change_is_made_with_its_probability():
    for name, open_B in gates().items():
        # A mirror image needs its coin, too.
        expected = PROBABILITY / 2 if name == "yflip" else PROBABILITY
        assert stats.binomtest(int(open_B.sum()), COUNT, expected).pvalue > 1e-3, name
    draws = many()
    assert stats.binomtest(int(draws.xflip.sum()), COUNT, 0.5).pvalue > 1e-3
    turned_axes = int((draws.axis != 0).sum())
    stretched = int((draws.stretch != 0).sum())
    assert stats.binomtest(turned_axes, stretched, 0.5).pvalue > 1e-3
    assert not draws.axis[draws.stretch == 0].any()
    assert np.array_equal(draws.move_x != 0, draws.move_y != 0)  # one gate for both


def test_changes_are_independent_of_each_other():
    open_GB = [*gates().values(), many().xflip == 1]
    for i, first in enumerate(open_GB):
        for second in open_GB[:i]:
            table = np.histogram2d(first, second, bins=2)[0]
            assert stats.chi2_contingency(table).pvalue > 1e-4


def test_each_change_has_its_law():
    draws = many()
    for name in ("scale", "stretch", "move_x", "move_y"):
        z = getattr(draws, name)
        assert stats.kstest(z[z != 0], "norm").pvalue > 1e-3, name
    circle = stats.uniform(-np.pi, 2 * np.pi)
    for name in ("angle", "axis"):
        angle = getattr(draws, name)
        assert stats.kstest(angle[angle != 0], circle.cdf).pvalue > 1e-3, name
    moved = draws.move_x != 0
    assert abs(np.corrcoef(draws.move_x[moved], draws.move_y[moved])[0, 1]) < 0.05
