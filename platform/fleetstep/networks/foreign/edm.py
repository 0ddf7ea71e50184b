"""Network pickles of EDM (Karras et al. 2022) and of FDM, whose code has the same format.

Such a file holds {"ema": network, ...}. The network is a preconditioning object around a U-Net;
both are described by their class's name, their attributes and the class's source text, which is
ignored.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fleetstep.errors import ForeignWeightsError
from fleetstep.networks.foreign.fitting import Imported, check_size, fit_weights
from fleetstep.networks.foreign.modules import ALLOWED, ForeignModule, mapping, module_of
from fleetstep.networks.foreign.pickles import read_pickle
from fleetstep.networks.foreign.refusals import listed, refusing, shown
from fleetstep.networks.foreign.song_unet import read_song_unet
from fleetstep.networks.foreign.tensors import StoredTensor

_FDM = "FDM_"
# FDM's command line writes 2 into the network; its class alone has 1.
_RELEASED_MULTIPLIER = 2.0
_VP_STEPS = 1000
# EDM's code computes VP's smallest level in float32: 9.77e-4, where float64 gives 1.0005e-3.
_DERIVED_TOLERANCE = 0.03


def read_edm_pickle(path: Path) -> Imported:
    """The averaged network of an EDM or FDM pickle, as one of ours.

    Raises:
        ForeignWeightsError: the file refers to anything that a network does not need, is damaged,
            or holds another network than DDPM++ or NCSN++.
    """
    with refusing(path):
        return _read(path)


def _read(path: Path) -> Imported:
    check_size(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as source:
        content = mapping(read_pickle(source, ALLOWED), "the pickle")
    outer = module_of(content.get("ema"))
    if outer is None:
        raise ForeignWeightsError(
            f"{path.name} has no network under 'ema'; it holds: {listed(content)}",
            "use a network-snapshot-*.pkl, or the file of a released model",
        )
    described = _Precond(outer)
    tensors = _inside_model(outer)
    unet = read_song_unet(outer.child("model"), tensors)
    described.check(unet.shape, unet.classes)
    return Imported(
        format="edm",
        files=(path,),
        process=described.process(),
        strategies=described.strategies(),
        network=unet.network,
        shape=unet.shape,
        classes=unet.classes,
        weights=fit_weights(
            unet.expected,
            unet.pieces,
            tensors,
            file_bytes=path.stat().st_size,
            unused=unet.unused,
        ),
        notes=(*described.notes, *unet.notes),
    )


def _inside_model(outer: ForeignModule) -> dict[str, StoredTensor]:
    found = outer.tensors()
    outside = [name for name in found if not name.startswith("model.")]
    if outside:
        raise ForeignWeightsError(
            f"{outer.kind} has tensors of its own: {listed(outside)}",
            "it is another preconditioning than EDM's VP, VE and EDM",
        )
    return {name.removeprefix("model."): tensor for name, tensor in found.items()}


class _Precond:
    """What a preconditioning object says of process and strategies."""

    def __init__(self, module: ForeignModule) -> None:
        self._module = module
        self.notes: list[str] = []
        self._base = module.kind.removeprefix(_FDM)
        if self._base not in _PROCESSES:
            raise ForeignWeightsError(
                f"the preconditioning {module.kind} is not known",
                f"known are {', '.join(_PROCESSES)}, each also as {_FDM}...",
            )

    def number(self, name: str) -> float:
        """A numeric attribute; all of them are finite and not negative.

        Raises:
            ForeignWeightsError: it is missing or no such number.
        """
        value = self._module.setting(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, int | float)
            or not 0 <= value < math.inf
        ):
            raise ForeignWeightsError(
                f"{self._module.kind}.{name} should be a finite number from 0 on and is "
                f"{shown(value)}",
                "use the file that the training program wrote",
            )
        return float(value)

    def unbounded(self, name: str) -> bool:
        """Whether an attribute is infinite."""
        return bool(self._module.setting(name) == math.inf)

    def check_derived(self, name: str, derived: float) -> None:
        """Refuse an attribute that is not what the others make it."""
        if not math.isclose(stored := self.number(name), derived, rel_tol=_DERIVED_TOLERANCE):
            raise ForeignWeightsError(
                f"{self._module.kind}.{name} is {stored:g}, and its other settings make it "
                f"{derived:g}",
                "the file is damaged or forged: fetch it again from a source you trust",
            )

    def check(self, shape: tuple[int, int, int], classes: int) -> None:
        """Refuse a preconditioning for other images than its network's."""
        said = tuple(
            self._module.setting(name) for name in ("img_channels", "img_resolution", "label_dim")
        )
        if said != (shape[0], shape[1], classes):
            raise ForeignWeightsError(
                f"{self._module.kind} is for (channels, resolution, classes) {shown(said)}, its "
                f"network for {(shape[0], shape[1], classes)}",
                "the file is damaged or forged: fetch it again from a source you trust",
            )

    def process(self) -> dict[str, Any]:
        """The `process` section."""
        return _PROCESSES[self._base](self)

    def strategies(self) -> tuple[dict[str, Any], ...]:
        """The `strategies` section: FDM, or nothing."""
        if not self._module.kind.startswith(_FDM):
            return ()
        return (
            {
                "kind": "fdm",
                "multiplier": self._multiplier(),
                "beta_min": self.number("fdm_beta_min"),
                "beta_d": self.number("fdm_beta_d"),
                "warmup": None,
            },
        )

    def _multiplier(self) -> float:
        if self._base == "VEPrecond":
            # VE-FDM carries a multiplier and does not use it.
            return 1.0
        if self._module.setting("fdm_multiplier") is None:
            self.notes.append(
                f"the file names no FDM multiplier: {_RELEASED_MULTIPLIER:g} is taken, the "
                "default of FDM's released command line"
            )
            return _RELEASED_MULTIPLIER
        return self.number("fdm_multiplier")


def _edm(precond: _Precond) -> dict[str, Any]:
    section: dict[str, Any] = {"kind": "edm", "sigma_data": precond.number("sigma_data")}
    # EDM's own network is meant for any level (0, infinity); samplers walk [0.002, 80] of it.
    if (low := precond.number("sigma_min")) > 0:
        section["sigma_min"] = low
    if not precond.unbounded("sigma_max"):
        section["sigma_max"] = precond.number("sigma_max")
    return section


def _vp(precond: _Precond) -> dict[str, Any]:
    if (steps := precond.number("M")) != _VP_STEPS:
        raise ForeignWeightsError(
            f"the VP network was conditioned on {steps:g} steps, ours on {_VP_STEPS}",
            "such a network cannot be represented here",
        )
    beta_min, beta_d = precond.number("beta_min"), precond.number("beta_d")
    t_min = precond.number("epsilon_t")
    for name, t in (("sigma_min", t_min), ("sigma_max", 1.0)):
        precond.check_derived(name, math.sqrt(math.expm1(beta_min * t + beta_d * t * t / 2)))
    return {"kind": "vp", "beta_min": beta_min, "beta_d": beta_d, "t_min": t_min}


def _ve(precond: _Precond) -> dict[str, Any]:
    return {
        "kind": "ve",
        "sigma_min": precond.number("sigma_min"),
        "sigma_max": precond.number("sigma_max"),
    }


_PROCESSES: dict[str, Callable[[_Precond], dict[str, Any]]] = {
    "EDMPrecond": _edm,
    "VPPrecond": _vp,
    "VEPrecond": _ve,
}
