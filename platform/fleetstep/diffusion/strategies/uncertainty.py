"""ANT-UW: clusters of noise levels, weighted by learned uncertainty (Go et al. 2023).

Every global batch has as many samples of each of K clusters. Cluster c has a log-variance a_c, and
the loss is L = sum_c (exp(-a_c) l_c / K + a_c) / 2, l_c the mean loss of cluster c (Kendall et al.
2018). The network sees its first term, as weights of samples; the a_c follow its gradient in a,
which the l_c alone decide. A reconstruction: see the spec.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fleetstep.diffusion.adaptive import State
from fleetstep.diffusion.coupling import Strata
from fleetstep.diffusion.noise_levels import NoiseLevels
from fleetstep.diffusion.spec import AntUwSpec

if TYPE_CHECKING:
    from fleetstep.diffusion.objective import Objective

# AdamW's defaults; there is no weight decay.
_BETA1, _BETA2, _EPS = 0.9, 0.999, 1e-8

# |a| at most: shares of the loss from 1e-13 to 1e13. A cluster whose loss is zero lowers its a for
# ever, until exp(-a) overflows; up to here even the square of its weight is a float32.
_LARGEST = 30.0


@dataclass(frozen=True)
class UncertaintyWeights:
    """Weights exp(-a_c) / 2 of the samples of cluster c, a_c moved by AdamW.

    Stream position p belongs to cluster p mod K, as `Strata(K)` draws it. The mean of the weighted
    losses over a global batch is L less sum_c a_c / 2, which the network does not touch.

    State: AdamW's `step`, the log-variances `a`, and the moments `m` and `v` of their gradients.

    Args:
        clusters: K >= 2, a divisor of the global batch.
        lr: AdamW's learning rate.
    """

    clusters: int
    lr: float

    def start(self) -> State:
        """Every a_c is 0: all weights are 1/2."""
        zeros = [0.0] * self.clusters
        return {"step": 0, "a": zeros, "m": zeros, "v": zeros}

    def law(self, base: NoiseLevels, state: State) -> NoiseLevels:
        """The base law."""
        return base

    def weights(self, first: int, count: int, state: State) -> Tensor:
        """exp(-a_c) / 2."""
        weight_K = torch.tensor([math.exp(-a) / 2 for a in state["a"]], dtype=torch.float64)
        return weight_K[self._clusters(first, count)]

    def sums(self, loss_B: Tensor, first: int) -> Tensor:
        """The K sums of losses, then the K numbers of samples."""
        cluster_B, sums_2K = (
            self._clusters(first, len(loss_B)),
            torch.zeros(2, self.clusters).double(),
        )
        sums_2K[0].index_add_(0, cluster_B, loss_B.cpu().double())
        sums_2K[1] = torch.bincount(cluster_B, minlength=self.clusters)
        return sums_2K.flatten()

    def update(self, state: State, sums_S: Tensor) -> State:
        """AdamW (Loshchilov and Hutter 2019), whose gradient is (1 - exp(-a_c) l_c / K) / 2.

        Every a_c stays within [-30, 30].
        """
        step, k = state["step"] + 1, self.clusters
        loss_K = (sums_S[:k] / sums_S[k:]).tolist()
        gradient = [
            (1 - math.exp(-a) * loss / k) / 2 for a, loss in zip(state["a"], loss_K, strict=True)
        ]
        m = [_BETA1 * m + (1 - _BETA1) * g for m, g in zip(state["m"], gradient, strict=True)]
        v = [_BETA2 * v + (1 - _BETA2) * g * g for v, g in zip(state["v"], gradient, strict=True)]
        correct_m, correct_v = 1 - _BETA1**step, 1 - _BETA2**step
        a = [
            _bounded(a - self.lr * (m / correct_m) / (math.sqrt(v / correct_v) + _EPS))
            for a, m, v in zip(state["a"], m, v, strict=True)
        ]
        return {"step": step, "a": a, "m": m, "v": v}

    def metrics(self, state: State) -> Mapping[str, float]:
        """The log-variances, from low noise to high."""
        return {f"uncertainty/{c}": a for c, a in enumerate(state["a"])}

    def _clusters(self, first: int, count: int) -> Tensor:
        return torch.arange(first, first + count) % self.clusters


def _bounded(a: float) -> float:
    return min(max(a, -_LARGEST), _LARGEST)


def apply(spec: AntUwSpec, objective: Objective) -> Objective:
    """Draw from the clusters in turn, and weigh them by what is learned."""
    return dataclasses.replace(
        objective,
        coupling=Strata(spec.clusters),
        adaptive=UncertaintyWeights(spec.clusters, spec.lr),
    )
